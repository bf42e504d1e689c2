//! The policy and the breaker, carried out on streams: every rule, every level, in virtual time.

use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;
use trunkline_store::{Batch, Lane, Options, sql};

use super::stage::{Person, Rogue, Site, World, leaf, settle};
use crate::admin::actor::{Actor, Face, Scope};
use crate::admin::table::{Method, TABLE};
use crate::admin::{OpError, Operation, Outcome};
use crate::config::Config;
use crate::config::overrides::Overrides;
use crate::control::Access;
use crate::control::audit::{AuditEntry, AuditOp};
use crate::control::breaker::{self, BreakerOp, BreakerView, Level, LevelView, Wish};
use crate::control::policy::{Format, PolicyOp, PolicyView, Preset, TestResult};
use crate::control::rule::{Direction, Rule};
use crate::ids::Clock;
use crate::serve::{self, Server};

const NAMES: &[&str] = &["north.example", "south.example", "sub.south.example"];
const CHAT: &str = "<message to='juliet@south.example' type='chat' id='m1'><body>hello</body></message>";
const ANSWER: &str = "<message to='romeo@north.example' type='chat' id='m2'><body>welcome</body></message>";

/// Two servers that have talked, with a person each.
struct Pair {
    world: World,
    north: Site,
    south: Site,
    romeo: Person,
    juliet: Person,
}

async fn pair(settings: &[&str]) -> Pair {
    let world = World::new(NAMES);
    let north = world.site("north.example", settings).await;
    let south = world.site("south.example", &[]).await;
    let mut romeo = north.person("romeo@north.example/a").await;
    let mut juliet = south.person("juliet@south.example/b").await;
    romeo.send(CHAT).await;
    assert_eq!(juliet.bodies().await, ["hello"]);
    juliet.send(ANSWER).await;
    assert_eq!(romeo.bodies().await, ["welcome"]);
    Pair { world, north, south, romeo, juliet }
}

impl Site {
    async fn policy(&self, op: PolicyOp) -> Result<Outcome, OpError> {
        self.admin(Operation::Policy(op)).await
    }

    async fn add(&self, rule: &str) {
        let rule: Rule = serde_json::from_str(rule).unwrap();
        self.policy(PolicyOp::Add { rule, position: None }).await.unwrap();
    }

    async fn rules(&self) -> PolicyView {
        match self.policy(PolicyOp::Show).await.unwrap() {
            Outcome::Policy(view) => view,
            other => panic!("{other:?}"),
        }
    }

    async fn block(&self, domain: &str, subdomains: bool) {
        let reason = "they send spam".into();
        let op = PolicyOp::Block { domain: domain.into(), subdomains, reason, until: None };
        self.policy(op).await.unwrap();
    }

    async fn level(&self, domain: Option<&str>, level: Level) {
        let op =
            BreakerOp::Set { domain: domain.map(str::to_owned), level, why: "an attack".into(), until: None };
        self.admin(Operation::Breaker(op)).await.unwrap();
    }

    async fn log(&self) -> Vec<AuditEntry> {
        match self.admin(Operation::Audit(AuditOp::List { before: None, search: None })).await.unwrap() {
            Outcome::Audit { entries, .. } => entries,
            other => panic!("{other:?}"),
        }
    }

    fn streams(&self) -> usize {
        use crate::route::remote::Remote as _;
        self.federation.status().peers.iter().map(|peer| peer.streams.len()).sum()
    }
}

fn error_of(arrived: &[String]) -> &str {
    arrived.iter().find(|xml| xml.contains("type='error'")).map_or("", String::as_str)
}

// ---- block

#[tokio::test(start_paused = true)]
async fn a_block_ends_streams_at_once_and_says_why() {
    let Pair { north, mut romeo, mut juliet, .. } = pair(&[]).await;
    assert_eq!(north.streams(), 1);
    let began = Instant::now();
    north.block("south.example", false).await;
    while north.streams() > 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(began.elapsed() < Duration::from_secs(1), "virtual time");
    romeo.send(CHAT).await;
    let arrived = romeo.arrived().await;
    let error = error_of(&arrived);
    assert!(error.contains("policy-violation") && error.contains("they send spam"), "{arrived:?}");
    juliet.send(ANSWER).await;
    assert!(romeo.bodies().await.is_empty());
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(north.refusals("peer-blocked") > 0);
    north
        .policy(PolicyOp::Unblock { domain: "SOUTH.example".into(), why: "better now".into() })
        .await
        .unwrap();
    romeo.send(CHAT).await;
    assert_eq!(juliet.bodies().await, ["hello"]);
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_a_blocked_domain_goes_back_with_the_reason() {
    let Pair { world, north, south, mut romeo, .. } = pair(&[]).await;
    world.wires.unplug(&south);
    romeo.send(CHAT).await;
    settle().await;
    assert_eq!(north.outbound().await, 1);
    north.block("south.example", false).await;
    let arrived = romeo.arrived().await;
    assert!(error_of(&arrived).contains("they send spam"), "{arrived:?}");
    assert_eq!(north.outbound().await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_block_works_below_a_domain_when_asked() {
    let world = World::new(NAMES);
    let north = world.site("north.example", &[]).await;
    let below = world.site("sub.south.example", &[]).await;
    let mut romeo = north.person("romeo@north.example/a").await;
    let mut nurse = below.person("nurse@sub.south.example/n").await;
    let hello = "<message to='nurse@sub.south.example' type='chat' id='m1'><body>hello</body></message>";
    north.block("south.example", false).await;
    romeo.send(hello).await;
    assert_eq!(nurse.bodies().await, ["hello"]);
    north.block("south.example", true).await;
    romeo.send(hello).await;
    assert!(error_of(&romeo.arrived().await).contains("they send spam"));
    assert!(nurse.bodies().await.is_empty());
    assert!(matches!(north.exchange().control.access("notsouth.example"), Access::Open));
}

#[tokio::test(start_paused = true)]
async fn a_block_ends_at_its_time() {
    let Pair { north, mut romeo, mut juliet, .. } = pair(&[]).await;
    let until = north.exchange().clock().now() + 60_000;
    let block = PolicyOp::Block {
        domain: "south.example".into(),
        subdomains: false,
        reason: "for a minute".into(),
        until: Some(until),
    };
    north.policy(block).await.unwrap();
    north.add(&format!(r#"{{"then":{{"do":"drop"}},"until":{until}}}"#)).await;
    tokio::time::sleep(Duration::from_secs(59)).await;
    romeo.send(CHAT).await;
    assert!(!error_of(&romeo.arrived().await).is_empty());
    tokio::time::sleep(Duration::from_secs(2)).await;
    romeo.send(CHAT).await;
    assert_eq!(juliet.bodies().await, ["hello"]);
    let view = north.rules().await;
    assert!(view.blocks.is_empty() && view.rules.is_empty(), "they are gone, not only without effect");
    let ended: Vec<_> = north.log().await.into_iter().filter(|entry| entry.who == "end time").collect();
    assert_eq!(ended.len(), 2);
    assert!(ended.iter().all(|entry| entry.before.is_some() && entry.after.is_none()));
}

#[tokio::test(start_paused = true)]
async fn files_are_taken_whole_or_not_at_all() {
    let Pair { north, .. } = pair(&[]).await;
    let import =
        |text: &str| PolicyOp::Import { format: Format::Csv, text: text.into(), why: "a list".into() };
    let refused = north.policy(import("domain\na.example\nb b\n")).await.unwrap_err();
    assert!(refused.to_string().contains("line 3"), "{refused}");
    let refused = north.policy(import("domain\na.example\nnorth.example\n")).await.unwrap_err();
    assert!(refused.to_string().contains("north.example is a domain of this server"), "{refused}");
    assert_eq!(north.rules().await.blocks_total, 0);
    north
        .policy(import("domain,subdomains,reason\na.example,true,spam\nsouth.example,,worse\n"))
        .await
        .unwrap();
    settle().await;
    assert_eq!(north.streams(), 0, "blocked by the file");
    assert!(matches!(north.exchange().control.access("x.a.example"), Access::Blocked(_)));
    for format in [Format::Csv, Format::Json] {
        let Outcome::File { text, .. } = north.policy(PolicyOp::Export { format }).await.unwrap() else {
            panic!()
        };
        let blocks = crate::control::blocks::read(&text, format).unwrap();
        assert_eq!(blocks.len(), 2);
        assert!(blocks[0].subdomains && blocks[1].reason == "worse", "{text}");
    }
    let rows =
        north.exchange().db.read(sql("SELECT domain, subdomains FROM federation_blocks ORDER BY 1")).await;
    let rows = rows.unwrap();
    let stored: Vec<_> = rows.iter().map(|row| (row.text(0).to_owned(), row.bool(1))).collect();
    assert_eq!(stored, [("a.example".to_owned(), true), ("south.example".to_owned(), false)]);
}

// ---- rules

#[tokio::test(start_paused = true)]
async fn a_limit_holds_for_the_domain_and_not_for_others() {
    let Pair { north, mut romeo, mut juliet, .. } = pair(&[]).await;
    north
        .add(r#"{"when":{"domain":"south.example"},"direction":"in","then":{"do":"limit","per_minute":3}}"#)
        .await;
    for _ in 0..5 {
        juliet.send(ANSWER).await;
    }
    assert_eq!(romeo.bodies().await.len(), 3);
    let arrived = juliet.arrived().await;
    assert_eq!(arrived.iter().filter(|xml| xml.contains("resource-constraint")).count(), 2, "{arrived:?}");
    tokio::time::sleep(Duration::from_secs(60)).await;
    juliet.send(ANSWER).await;
    assert_eq!(romeo.bodies().await.len(), 1);
    assert_eq!(north.rules().await.rules[0].hits, 6);
}

#[tokio::test(start_paused = true)]
async fn a_shadow_decides_and_counts_and_lets_pass() {
    let Pair { north, mut romeo, mut juliet, .. } = pair(&[]).await;
    north.add(r#"{"when":{"domain":"south.example"},"then":{"do":"reject"},"shadow":true}"#).await;
    north
        .policy(PolicyOp::SetPreset { preset: Preset::AllowListOnly, shadow: true, why: "to see".into() })
        .await
        .unwrap();
    juliet.send(ANSWER).await;
    assert_eq!(romeo.bodies().await, ["welcome"]);
    let view = north.rules().await;
    assert_eq!((view.rules[0].hits, view.rules[0].shadow_hits), (0, 1));
    assert_eq!((view.preset_hits, view.preset_shadow_hits), (0, 1));
    // And in earnest.
    north
        .policy(PolicyOp::SetPreset { preset: Preset::AllowListOnly, shadow: false, why: "seen".into() })
        .await
        .unwrap();
    juliet.send(ANSWER).await;
    assert!(romeo.bodies().await.is_empty());
    assert!(error_of(&juliet.arrived().await).contains("policy-violation"));
    assert_eq!(north.rules().await.preset_hits, 1);
}

#[tokio::test(start_paused = true)]
async fn marks_are_put_on_here_and_nowhere_else() {
    let Pair { world, north, mut romeo, .. } = pair(&[]).await;
    let mut rogue = Rogue::both_ways(&world, &north, ("sub.south.example", "north.example")).await;
    let forged = "<message from='iago@sub.south.example/x' to='romeo@north.example' type='chat' id='1'>\
         <body>trust me</body><mark xmlns='urn:trunkline:mark:0' by='north.example'>verified</mark></message>";
    rogue.send(forged).await;
    let arrived = romeo.arrived().await;
    assert!(arrived.iter().any(|xml| xml.contains("trust me")));
    assert!(!arrived.iter().any(|xml| xml.contains("verified")), "{arrived:?}");
    north
        .add(r#"{"when":{"domain":"sub.south.example"},"then":{"do":"mark","text":"unknown provider"}}"#)
        .await;
    rogue.send(forged).await;
    let arrived = romeo.arrived().await;
    let marked = arrived.iter().find(|xml| xml.contains("trust me")).unwrap();
    assert!(
        marked.contains("<mark xmlns='urn:trunkline:mark:0' by='north.example'>unknown provider</mark>"),
        "{marked}"
    );
    assert_eq!(marked.matches("<mark").count(), 1);
}

#[tokio::test(start_paused = true)]
async fn text_only_takes_the_rest_out_both_ways() {
    let Pair { north, mut romeo, mut juliet, .. } = pair(&[]).await;
    north.add(r#"{"when":{"domain":"south.example"},"then":{"do":"text-only"}}"#).await;
    let full = |to: &str| {
        format!(
            "<message to='{to}' type='chat' id='1'><body>see https://x.example/a.jpg now</body>\
             <x xmlns='jabber:x:oob'><url>https://x.example/a.jpg</url></x></message>"
        )
    };
    juliet.send(&full("romeo@north.example")).await;
    romeo.send(&full("juliet@south.example")).await;
    for person in [&mut romeo, &mut juliet] {
        let arrived = person.arrived().await;
        let message = arrived.iter().find(|xml| xml.contains("<body>")).unwrap();
        assert!(
            message.contains("<body>see [link removed] now</body>") && !message.contains("oob"),
            "{message}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn wrong_rules_are_refused_and_the_old_ones_stay() {
    let Pair { north, .. } = pair(&[]).await;
    north.add(r#"{"when":{"domain":"a.example"},"then":{"do":"drop"}}"#).await;
    for (rule, says) in [
        (r#"{"when":{"domain":"a b"},"then":{"do":"drop"}}"#, "when.domain"),
        (r#"{"when":{"subdomains":true},"then":{"do":"drop"}}"#, "when.subdomains"),
        (r#"{"then":{"do":"limit","per_minute":0}}"#, "then.per_minute"),
        (r#"{"then":{"do":"reject","condition":"no-such"}}"#, "then.condition"),
        (r#"{"then":{"do":"mark","text":" "}}"#, "then.text"),
        (r#"{"direction":"out","then":{"do":"hold"}}"#, "then"),
        (r#"{"then":{"do":"drop"},"until":5}"#, "until"),
        (r#"{"when":{"listed_in":"nowhere"},"then":{"do":"drop"}}"#, "when.listed_in"),
    ] {
        let rule: Rule = serde_json::from_str(rule).unwrap();
        let refused = north.policy(PolicyOp::Add { rule: rule.clone(), position: None }).await.unwrap_err();
        assert!(refused.to_string().starts_with(says), "{refused}");
        let id = north.rules().await.rules[0].id.unwrap();
        assert!(north.policy(PolicyOp::Replace { id, rule }).await.is_err());
    }
    let view = north.rules().await;
    assert_eq!(view.rules.len(), 1);
    assert_eq!(view.rules[0].rule.when.domain.as_deref(), Some("a.example"));
    assert!(matches!(
        north.policy(PolicyOp::Remove { id: 99, why: String::new() }).await,
        Err(OpError::NotFound(_))
    ));
}

#[tokio::test(start_paused = true)]
async fn rules_keep_their_order_in_the_store() {
    let Pair { north, .. } = pair(&[]).await;
    let rule = |domain: &str| -> Rule {
        serde_json::from_str(&format!(r#"{{"when":{{"domain":"{domain}.example"}},"then":{{"do":"drop"}}}}"#))
            .unwrap()
    };
    for (domain, position) in [("a", None), ("b", None), ("c", Some(0)), ("d", Some(1)), ("e", Some(99))] {
        north.policy(PolicyOp::Add { rule: rule(domain), position }).await.unwrap();
    }
    let order = |view: &PolicyView| -> String {
        view.rules.iter().filter_map(|rule| rule.rule.when.domain.as_ref()?.chars().next()).collect()
    };
    assert_eq!(order(&north.rules().await), "cdabe");
    let id_of = |view: &PolicyView, place: usize| view.rules[place].id.unwrap();
    let view = north.rules().await;
    north.policy(PolicyOp::Move { id: id_of(&view, 4), position: 1, why: String::new() }).await.unwrap();
    north.policy(PolicyOp::Remove { id: id_of(&view, 2), why: String::new() }).await.unwrap();
    north.policy(PolicyOp::Replace { id: id_of(&view, 3), rule: rule("x") }).await.unwrap();
    assert_eq!(order(&north.rules().await), "cedx");
    let rows = north
        .exchange()
        .db
        .read(sql("SELECT json_extract(rule, '$.when.domain') FROM federation_rules ORDER BY position, id"))
        .await
        .unwrap();
    let stored: String = rows.iter().filter_map(|row| row.text(0).chars().next()).collect();
    assert_eq!(stored, "cedx");
}

#[tokio::test(start_paused = true)]
async fn a_test_says_what_would_become_of_a_stanza() {
    let Pair { north, .. } = pair(&["federation.preset=careful"]).await;
    north
        .add(r#"{"when":{"domain":"a.example","has":["link"]},"then":{"do":"drop"},"reason":"links"}"#)
        .await;
    let test = |stanza: &str, direction| PolicyOp::Test { stanza: stanza.into(), direction, relation: None };
    let tested = |outcome: Result<Outcome, OpError>| -> TestResult {
        match outcome.unwrap() {
            Outcome::Tested(result) => result,
            other => panic!("{other:?}"),
        }
    };
    let stanza = "<message from='x@a.example/1' to='romeo@north.example'><body>https://a.b</body></message>";
    let result = tested(north.policy(test(stanza, Direction::In)).await);
    assert_eq!(
        (result.action.as_str(), result.by.as_str(), result.reason.as_str()),
        ("drop", "rule 1", "links")
    );
    let stanza = "<message from='x@a.example/1' to='romeo@north.example'><body>hi</body></message>";
    let result = tested(north.policy(test(stanza, Direction::In)).await);
    assert_eq!(
        (result.action.as_str(), result.by.as_str()),
        ("hold", "preset careful"),
        "a stranger in truth"
    );
    assert_eq!(result.trace, ["rule 1: no such content", "preset careful: applies"]);
    // Romeo wrote to juliet.
    let stanza = "<message from='juliet@south.example/1' to='romeo@north.example'><body>hi</body></message>";
    assert_eq!(tested(north.policy(test(stanza, Direction::In)).await).action, "allow");
    for stanza in ["<message/>", "nonsense", "<message from='a@b.example' to='c@d.example'/>"] {
        assert!(north.policy(test(stanza, Direction::In)).await.is_err(), "{stanza}");
    }
    assert_eq!(north.rules().await.rules[0].hits, 0);
}

// ---- breaker

#[tokio::test(start_paused = true)]
async fn every_level_lets_through_what_it_says() {
    // Boxed: tests have small stacks.
    Box::pin(every_level()).await;
}

/// A contact of romeo's, somebody whom he has written to, and a stranger.
struct Friends {
    _world: World,
    north: Site,
    _south: Site,
    romeo: Person,
    juliet: Person,
    benvolio: Person,
    iago: Person,
}

async fn friends() -> Friends {
    let names = ["north.example", "south.example"];
    let world = World::new(&names);
    let north = world.site("north.example", &[]).await;
    let south = world.site("south.example", &[]).await;
    let mut romeo = north.person("romeo@north.example/a").await;
    let mut juliet = south.person("juliet@south.example/b").await;
    let mut benvolio = south.person("benvolio@south.example/c").await;
    let mut iago = south.person("iago@south.example/d").await;
    romeo.send("<presence to='juliet@south.example' type='subscribe'/>").await;
    settle().await;
    juliet.send("<presence to='romeo@north.example' type='subscribed'/>").await;
    settle().await;
    romeo.send("<message to='benvolio@south.example' type='chat'><body>cousin</body></message>").await;
    settle().await;
    for person in [&mut romeo, &mut juliet, &mut benvolio, &mut iago] {
        person.arrived().await;
    }
    Friends { _world: world, north, _south: south, romeo, juliet, benvolio, iago }
}

async fn every_level() {
    let Friends { _world, north, _south, mut romeo, mut juliet, mut benvolio, mut iago } =
        Box::pin(friends()).await;
    let full =
        "<message to='romeo@north.example' type='chat' id='1'><body>WHO https://x.y/z</body></message>";
    for (level, passes, whole) in [
        (Level::Normal, [true, true, true], true),
        (Level::NoNewContacts, [true, true, false], true),
        (Level::GrantedOnly, [true, false, false], true),
        (Level::TextOnly, [true, false, false], false),
        (Level::Closed, [false, false, false], true),
        (Level::Normal, [true, true, true], true),
    ] {
        north.level(None, level).await;
        tokio::time::sleep(Duration::from_secs(5)).await;
        romeo.arrived().await;
        for (who, (person, passes)) in
            ["J", "B", "I"].iter().zip([&mut juliet, &mut benvolio, &mut iago].into_iter().zip(passes))
        {
            if level == Level::Closed {
                continue;
            }
            person.send(&full.replace("WHO", who)).await;
            let bodies = romeo.bodies().await;
            let expected =
                if whole { format!("{who} https://x.y/z") } else { format!("{who} [link removed]") };
            let expected: &[String] = if passes { &[expected] } else { &[] };
            assert_eq!(bodies, expected, "{level:?}");
            let refused = error_of(&person.arrived().await).contains("policy-violation");
            assert_eq!(refused, !passes, "{level:?} {who}");
        }
        // The other way: a first contact of ours, and what goes on.
        romeo
            .send("<message to='iago@south.example' type='chat' id='2'><body>who are you</body></message>")
            .await;
        let new = error_of(&romeo.arrived().await).is_empty();
        assert_eq!(new, level == Level::Normal, "{level:?}");
        romeo.send("<message to='juliet@south.example' type='chat' id='3'><body>love</body></message>").await;
        assert_eq!(error_of(&romeo.arrived().await).is_empty(), level != Level::Closed, "{level:?}");
        juliet.arrived().await;
        if level == Level::Normal {
            // It made him somebody romeo has written to: another stranger for the next round.
            break;
        }
    }
    // From normal on with a stranger of his own for each level.
    for (level, text) in [
        (Level::NoNewContacts, "people who know each other"),
        (Level::GrantedOnly, "people who know each other"),
        (Level::Closed, "cut off"),
    ] {
        north.level(None, level).await;
        settle().await;
        romeo.arrived().await;
        romeo.send("<message to='new@south.example' type='chat' id='2'><body>hi</body></message>").await;
        let arrived = romeo.arrived().await;
        assert!(error_of(&arrived).contains(text), "{level:?} {arrived:?}");
        assert!(error_of(&arrived).contains("an attack"), "with the reason");
    }
}

#[tokio::test(start_paused = true)]
async fn levels_of_a_domain_hold_for_it_and_what_is_below() {
    let Pair { north, mut romeo, mut juliet, .. } = pair(&[]).await;
    north.level(Some("example"), Level::TextOnly).await;
    north.level(Some("south.example"), Level::NoNewContacts).await;
    let control = &north.exchange().control;
    let now = north.exchange().clock().now();
    assert_eq!(control.breaker.level(Some("south.example"), now), Level::TextOnly, "the strictest");
    assert_eq!(control.breaker.level(Some("south.other"), now), Level::Normal);
    north.level(Some("example"), Level::Normal).await;
    assert_eq!(control.breaker.level(Some("south.example"), now), Level::NoNewContacts);
    north.level(Some("south.example"), Level::Closed).await;
    settle().await;
    assert_eq!(north.streams(), 0);
    romeo.send(CHAT).await;
    assert!(error_of(&romeo.arrived().await).contains("cut off"));
    assert!(juliet.bodies().await.is_empty());
}

/// Servers played by the test, with a proved stream each.
async fn crowd(world: &World, north: &Site, size: usize) -> Vec<Rogue> {
    let mut rogues = Vec::new();
    for n in 0..size {
        let name = format!("r{n}.example");
        rogues.push(Rogue::both_ways(world, north, (&name, "north.example")).await);
    }
    rogues
}

fn names(size: usize) -> Vec<String> {
    std::iter::once("north.example".to_owned()).chain((0..size).map(|n| format!("r{n}.example"))).collect()
}

#[tokio::test(start_paused = true)]
async fn closed_ends_every_stream_and_refuses_new_ones_within_a_second() {
    const MANY: usize = 60;
    let names = names(MANY + 1);
    let world = World::new(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let north = world.site("north.example", &[]).await;
    let mut romeo = north.person("romeo@north.example/a").await;
    let mut nurse = north.person("nurse@north.example/n").await;
    let mut rogues = crowd(&world, &north, MANY).await;
    // One is in the middle of its proof, one has not even said hello.
    let certs = world.certs("late", &leaf(&names[MANY + 1]));
    let mut late = Rogue::connect(&world, &north, &certs, (&names[MANY + 1], "north.example")).await;
    let mut silent = Rogue::plain(&world, &north, b"").await;
    assert_eq!(north.streams(), MANY);
    let began = Instant::now();
    north.level(None, Level::Closed).await;
    for rogue in rogues.iter_mut().chain([&mut late]) {
        let rest = rogue.rest().await;
        assert!(rest.contains("policy-violation"), "{rest}");
        assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    }
    assert_eq!(silent.rest().await, "");
    let mut new = Rogue::plain(&world, &north, b"<stream:stream xmlns='jabber:server'").await;
    assert_eq!(new.rest().await, "", "nothing is said");
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    assert_eq!(north.streams(), 0);
    romeo.send("<message to='nurse@north.example' type='chat'><body>good nurse</body></message>").await;
    assert_eq!(nurse.bodies().await, ["good nurse"], "inside goes on");
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_reads_nothing_is_cut_off_as_fast() {
    let world = World::new(&["north.example", "r0.example"]);
    let north = world.site("north.example", &[]).await;
    let mut romeo = north.person("romeo@north.example/a").await;
    let _rogue = Rogue::both_ways(&world, &north, ("r0.example", "north.example")).await;
    // More than its socket takes.
    let long = "x".repeat(60_000);
    for _ in 0..8 {
        romeo.send(&format!("<message to='a@r0.example' type='chat'><body>{long}</body></message>")).await;
    }
    settle().await;
    let began = Instant::now();
    north.level(None, Level::Closed).await;
    use crate::route::remote::Remote as _;
    while north.federation.status().peers.iter().any(|peer| !peer.streams.is_empty()) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn what_is_queued_meanwhile_is_delivered_afterwards() {
    let Pair { north, mut romeo, mut juliet, .. } = pair(&["federation.when_closed=queue"]).await;
    let until = Some(north.exchange().clock().now() + 600_000);
    let op = BreakerOp::Set { domain: None, level: Level::Closed, why: "an attack".into(), until };
    north.admin(Operation::Breaker(op)).await.unwrap();
    for n in 0..3 {
        romeo
            .send(&format!("<message to='juliet@south.example' type='chat'><body>{n}</body></message>"))
            .await;
    }
    romeo.send("<iq type='get' id='p' to='south.example'><ping xmlns='urn:xmpp:ping'/></iq>").await;
    let arrived = romeo.arrived().await;
    assert_eq!(arrived.iter().filter(|xml| xml.contains("type='error'")).count(), 1, "{arrived:?}");
    assert!(error_of(&arrived).contains("id='p'"), "what can't wait is refused");
    assert_eq!(north.outbound().await, 3);
    tokio::time::sleep(Duration::from_secs(590)).await;
    assert!(juliet.bodies().await.is_empty());
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(juliet.bodies().await, ["0", "1", "2"], "it ends by itself, and nothing is out of order");
    assert_eq!(north.outbound().await, 0);
    assert!(
        north.log().await.iter().any(|entry| entry.who == "end time" && entry.what == "breaker set normal")
    );
}

#[tokio::test(start_paused = true)]
async fn after_a_reopening_connections_come_back_one_after_the_other() {
    const MANY: usize = 40;
    let names = names(MANY);
    let world = World::new(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let settings = ["federation.when_closed=queue", "federation.reopen_per_second=4"];
    let north = world.site("north.example", &settings).await;
    let mut listeners = Vec::new();
    for n in 0..MANY {
        listeners.push(world.rogue(&format!("r{n}.example")));
    }
    north.level(None, Level::Closed).await;
    let mut romeo = north.person("romeo@north.example/a").await;
    for n in 0..MANY {
        romeo.send(&format!("<message to='a@r{n}.example' type='chat'><body>hi</body></message>")).await;
    }
    settle().await;
    assert_eq!(*world.wires.dialled.lock(), 0);
    north.level(None, Level::Normal).await;
    let began = Instant::now();
    for _ in 0..8 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let dialled = *world.wires.dialled.lock();
        let seconds = began.elapsed().as_secs_f64();
        assert!(dialled as f64 <= 4.0 * seconds + 2.0, "{dialled} after {seconds} s");
        assert!(dialled as f64 >= 4.0 * (seconds - 1.0), "{dialled} after {seconds} s");
    }
    // Peers that come back at once are taken one after the other too.
    let before = *world.wires.dialled.lock();
    *world.wires.from_many.lock() = true;
    let hello = format!("{} from='r0.example' to='north.example'>", super::stage::HELLO);
    let mut peers = Vec::new();
    for _ in 0..12 {
        peers.push(Rogue::plain(&world, &north, hello.as_bytes()).await);
    }
    assert!(*world.wires.dialled.lock() >= before + 12);
    let mut greeted = Vec::new();
    for peer in &mut peers {
        let _ = peer.wire.next().await;
        greeted.push(began.elapsed().as_secs_f64());
    }
    let spread = greeted[11] - greeted[0];
    assert!((2.0..4.5).contains(&spread), "{greeted:?}");
    // And once it is over, everybody's turn is now.
    tokio::time::sleep(Duration::from_secs(3700)).await;
    let now = Instant::now();
    let mut peer = Rogue::plain(&world, &north, hello.as_bytes()).await;
    let _ = peer.wire.next().await;
    assert!(now.elapsed() < Duration::from_millis(100));
}

#[tokio::test(start_paused = true)]
async fn those_with_contacts_outside_are_told_once() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("status.json");
    let setting = format!("federation.outage_file={}", file.display());
    let Pair { north, mut romeo, mut juliet, .. } =
        pair(&[&setting, "federation.outage_url=https://status.north.example/x.json"]).await;
    let mut nurse = north.person("nurse@north.example/n").await;
    romeo.send("<presence to='juliet@south.example' type='subscribe'/>").await;
    settle().await;
    juliet.send("<presence to='romeo@north.example' type='subscribed'/>").await;
    settle().await;
    romeo.arrived().await;
    let status =
        || -> serde_json::Value { serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap() };
    assert_eq!(status(), serde_json::json!({}));
    let headlines = |arrived: &[String]| -> Vec<String> {
        arrived.iter().filter(|xml| xml.contains("type='headline'")).cloned().collect()
    };
    north.level(None, Level::Closed).await;
    north.level(None, Level::Closed).await;
    let told = headlines(&romeo.arrived().await);
    assert_eq!(told.len(), 1, "once for the change: {told:?}");
    assert!(told[0].contains("from='north.example'") && told[0].contains("an attack"), "{told:?}");
    assert!(headlines(&nurse.arrived().await).is_empty(), "no contacts outside");
    let outage = status();
    assert!(outage["beginning"].as_str().unwrap().starts_with("2026-"), "{outage}");
    assert!(outage["message"]["default"].as_str().unwrap().contains("an attack"), "{outage}");
    north.level(Some("south.example"), Level::NoNewContacts).await;
    north.level(Some("other.example"), Level::Closed).await;
    assert_eq!(headlines(&romeo.arrived().await).len(), 1, "of the domain of a contact only");
    north.level(None, Level::Normal).await;
    assert!(headlines(&romeo.arrived().await)[0].contains("as usual"));
    assert_eq!(status(), serde_json::json!({}));
    romeo.send("<iq type='get' id='d' to='north.example'><query xmlns='http://jabber.org/protocol/disco#info'/></iq>").await;
    let disco = romeo.arrived().await.concat();
    assert!(
        disco.contains("urn:xmpp:sos:0") && disco.contains("https://status.north.example/x.json"),
        "{disco}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_trigger_pulls_holds_on_and_lets_go() {
    let setting =
        "federation.triggers=[{ on = \"rate\", above = 100, level = \"closed\", lasts = \"1 min\" }]";
    let world = World::new(&["north.example", "r0.example", "r1.example"]);
    let north = world.site("north.example", &[setting]).await;
    let mut quiet = Rogue::both_ways(&world, &north, ("r1.example", "north.example")).await;
    let mut loud = Rogue::both_ways(&world, &north, ("r0.example", "north.example")).await;
    let level = |north: &Site, domain: &str| {
        north.exchange().control.breaker.level(Some(domain), north.exchange().clock().now())
    };
    let stanza = "<presence from='a@r0.example/x' to='nobody@north.example'/>";
    loud.send(&stanza.repeat(100)).await;
    tokio::time::sleep(Duration::from_secs(15)).await;
    assert_eq!(level(&north, "r0.example"), Level::Normal, "not above it");
    loud.send(stanza).await;
    tokio::time::sleep(Duration::from_secs(15)).await;
    assert_eq!(level(&north, "r0.example"), Level::Closed);
    assert_eq!(level(&north, "r1.example"), Level::Normal);
    assert!(loud.rest().await.contains("policy-violation"));
    quiet.send("<presence from='a@r1.example/x' to='nobody@north.example'/>").await;
    let entries = north.log().await;
    let pulled: Vec<_> = entries.iter().filter(|entry| entry.face == "trigger").collect();
    assert_eq!(pulled.len(), 1);
    assert_eq!(pulled[0].who, "trigger: rate above 100 stanzas a minute");
    // Nothing comes any more: it lets go by itself.
    tokio::time::sleep(Duration::from_secs(90)).await;
    assert_eq!(level(&north, "r0.example"), Level::Normal);
    // What is set by hand stays as it is.
    north.level(Some("r1.example"), Level::TextOnly).await;
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert_eq!(level(&north, "r1.example"), Level::TextOnly);
}

fn level_of(north: &Site, domain: &str) -> Level {
    north.exchange().control.breaker.level(Some(domain), north.exchange().clock().now())
}

async fn shown(north: &Site) -> BreakerView {
    match north.admin(Operation::Breaker(BreakerOp::Show)).await.unwrap() {
        Outcome::Breaker(view) => view,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_trigger_leaves_alone_what_was_set_by_hand() {
    let setting =
        "federation.triggers=[{ on = \"rate\", above = 100, level = \"text-only\", lasts = \"1 min\" }]";
    let world = World::new(&["north.example", "r0.example"]);
    let north = world.site("north.example", &[setting]).await;
    let mut loud = Rogue::both_ways(&world, &north, ("r0.example", "north.example")).await;
    let until = north.exchange().clock().now() + 3_600_000;
    let domain = Some("r0.example".to_owned());
    let why = "we asked them to stop".to_owned();
    let op = BreakerOp::Set { domain, level: Level::NoNewContacts, why, until: Some(until) };
    north.admin(Operation::Breaker(op)).await.unwrap();
    loud.send(&"<presence from='a@r0.example/x' to='nobody@north.example'/>".repeat(101)).await;
    tokio::time::sleep(Duration::from_secs(15)).await;
    assert_eq!(level_of(&north, "r0.example"), Level::TextOnly, "the stricter one holds");
    let view = shown(&north).await;
    let of = |views: &[LevelView]| {
        views.iter().map(|view| (view.level, view.set_by.clone(), view.until)).collect::<Vec<_>>()
    };
    assert_eq!(of(&view.covered), [(Level::NoNewContacts, "command line".to_owned(), Some(until))]);
    assert_eq!(view.domains[0].set_by, "trigger: rate above 100 stanzas a minute");
    tokio::time::sleep(Duration::from_secs(120)).await;
    let view = shown(&north).await;
    assert_eq!(of(&view.domains), [(Level::NoNewContacts, "command line".to_owned(), Some(until))]);
    assert!(view.covered.is_empty());
    let entries = north.log().await;
    let about: Vec<_> = entries.iter().filter(|entry| entry.what.contains("r0.example")).collect();
    let about: Vec<_> = about
        .iter()
        .rev()
        .map(|entry| (entry.what.as_str(), entry.who.as_str(), entry.before.is_some(), entry.after.is_some()))
        .collect();
    assert_eq!(
        about,
        [
            ("breaker set r0.example no-new-contacts", "command line", false, true),
            ("breaker set r0.example text-only", "trigger: rate above 100 stanzas a minute", false, true),
            ("breaker set r0.example normal", "end time", true, false),
        ]
    );
    // Who opens by hand opens, whoever had closed.
    loud.send(&"<presence from='a@r0.example/x' to='nobody@north.example'/>".repeat(101)).await;
    tokio::time::sleep(Duration::from_secs(15)).await;
    assert_eq!(level_of(&north, "r0.example"), Level::TextOnly);
    let before = north.log().await.len();
    north.level(Some("r0.example"), Level::Normal).await;
    assert_eq!(level_of(&north, "r0.example"), Level::Normal);
    assert_eq!(north.log().await.len() - before, 2, "an entry for each that was taken back");
}

#[tokio::test(start_paused = true)]
async fn triggers_have_bounds_and_leave_room_for_people() {
    let world = World::new(&["north.example"]);
    let north = world.site("north.example", &[]).await;
    let until = Some(north.exchange().clock().now() + 600_000);
    let pull = |from: usize, count: usize| {
        let wish = |n: usize| Wish {
            domain: Some(format!("d{n}.example")),
            level: Level::Closed,
            why: "flood".into(),
            until,
        };
        let wishes = (from..from + count).map(wish).collect();
        breaker::pull(north.exchange(), "trigger: a test", wishes)
    };
    for round in 0..4 {
        assert_eq!(pull(round * 50, 50).await.unwrap(), 0);
    }
    let entries = || async {
        let count = sql("SELECT COUNT(*) FROM audit WHERE face = 'trigger'");
        north.exchange().db.read(count).await.unwrap().first().map_or(0, |row| row.int(0))
    };
    assert_eq!(entries().await, 101, "the last one says that the others are counted");
    assert_eq!(pull(200, 9_850).await.unwrap(), 50, "there is an end");
    assert_eq!(shown(&north).await.domains.len(), 10_000);
    north.level(Some("mine.example"), Level::Closed).await;
    assert_eq!(level_of(&north, "mine.example"), Level::Closed, "people have places of their own");
    tokio::time::sleep(Duration::from_secs(1200)).await;
    assert_eq!(shown(&north).await.domains.len(), 1, "all that triggers pulled is over");
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(entries().await, 102);
    let last = &north.log().await[0];
    let sum: serde_json::Value = serde_json::from_str(last.after.as_ref().unwrap()).unwrap();
    assert_eq!((sum["pulled"].as_u64(), sum["ended"].as_u64()), (Some(9_900), Some(10_000)), "{last:?}");
    // And the next hour is written again.
    assert_eq!(pull(0, 1).await.unwrap_or(9), 0);
    assert_eq!(entries().await, 103);
}

#[tokio::test(start_paused = true)]
async fn a_trigger_pulls_when_most_is_refused() {
    let setting = "federation.triggers=[{ on = \"error-share\", above = 50, level = \"no-new-contacts\", lasts = \"1 min\" }]";
    let names: Vec<String> = names(3);
    let world = World::new(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let north = world.site("north.example", &[setting]).await;
    north.add(r#"{"when":{"kind":["presence"]},"direction":"in","then":{"do":"reject"}}"#).await;
    let mut rogues = crowd(&world, &north, 3).await;
    for (n, (refused, taken)) in [(80, 70), (70, 80), (99, 0)].into_iter().enumerate() {
        let from = format!("from='a@r{n}.example/x' to='north.example'");
        let presence = format!("<presence {from}/>").repeat(refused);
        let message = format!("<message {from} type='headline'/>").repeat(taken);
        rogues[n].send(&(presence + &message)).await;
    }
    tokio::time::sleep(Duration::from_secs(15)).await;
    assert_eq!(level_of(&north, "r0.example"), Level::NoNewContacts, "more than half of 150");
    assert_eq!(level_of(&north, "r1.example"), Level::Normal, "less than half");
    assert_eq!(level_of(&north, "r2.example"), Level::Normal, "too few to say");
    assert_eq!(north.log().await[0].who, "trigger: error share above 50 %");
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(level_of(&north, "r0.example"), Level::Normal);
}

#[tokio::test(start_paused = true)]
async fn a_trigger_pulls_when_nothing_can_be_delivered_and_lets_go() {
    let setting =
        "federation.triggers=[{ on = \"queue-age\", above = 60, level = \"closed\", lasts = \"2 min\" }]";
    let Pair { world, north, south, mut romeo, mut juliet } = pair(&[setting]).await;
    world.wires.unplug(&south);
    romeo.send(CHAT).await;
    tokio::time::sleep(Duration::from_secs(55)).await;
    assert_eq!(level_of(&north, "south.example"), Level::Normal);
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(level_of(&north, "south.example"), Level::Closed);
    assert!(north.log().await.iter().any(|entry| entry.who == "trigger: queue age above 60 s"));
    romeo.arrived().await;
    romeo.send(&CHAT.replace("m1", "m9")).await;
    assert!(error_of(&romeo.arrived().await).contains("id='m9'"), "nothing more is taken");
    // What waits can't leave while it is closed, and does not keep it closed.
    world.wires.plug(&south);
    tokio::time::sleep(Duration::from_secs(150)).await;
    assert_eq!(level_of(&north, "south.example"), Level::Normal);
    tokio::time::sleep(Duration::from_secs(40)).await;
    assert_eq!(juliet.bodies().await, ["hello"]);
    assert_eq!(level_of(&north, "south.example"), Level::Normal);
}

// ---- what survives

fn config_with(file: &Path, rest: &str, settings: &[String]) -> Config {
    let mut presets = Overrides::default();
    for setting in settings {
        presets.set(setting).unwrap();
    }
    for setting in
        ["domain=north.example", "data_dir=/nonexistent", "clients.listen=[]", "federation.listen=[]"]
    {
        presets.set(setting).unwrap();
    }
    std::fs::write(file, crate::config::template(&presets) + rest).unwrap();
    Config::load(file).unwrap()
}

#[tokio::test]
async fn what_was_set_survives_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let toml = directory.path().join("trunkline.toml");
    let database = directory.path().join("x.db");
    let start = |rest: &'static str| {
        let config = config_with(&toml, rest, &[]);
        let store = Some(Options::file(&database, crate::schema::MIGRATIONS));
        let parts = serve::Parts { clock: Clock::System, in_memory: true, store };
        Server::start(config, parts)
    };
    let server = start("").await.unwrap();
    let exchange = server.exchange();
    let operator = crate::operations::Operator(std::sync::Arc::clone(exchange));
    let run = |operation| {
        use crate::admin::Admin as _;
        let operator = operator.clone();
        async move { operator.run(&Actor::command_line(), operation).await.unwrap() }
    };
    let rule: Rule = serde_json::from_str(r#"{"then":{"do":"limit","per_minute":7},"reason":"r"}"#).unwrap();
    run(Operation::Policy(PolicyOp::Add { rule: rule.clone(), position: None })).await;
    run(Operation::Policy(PolicyOp::Block {
        domain: "bad.example".into(),
        subdomains: true,
        reason: "spam".into(),
        until: None,
    }))
    .await;
    run(Operation::Policy(PolicyOp::SetPreset { preset: Preset::Open, shadow: true, why: "w".into() })).await;
    run(Operation::FederationClose { domain: None, all: true }).await;
    let over = exchange.clock().now() + 50;
    run(Operation::Breaker(BreakerOp::Set {
        domain: Some("soon.example".into()),
        level: Level::Closed,
        why: "w".into(),
        until: Some(over),
    }))
    .await;
    let hand = Operation::Breaker(BreakerOp::Set {
        domain: Some("both.example".into()),
        level: Level::NoNewContacts,
        why: "by hand".into(),
        until: None,
    });
    run(hand).await;
    let pulled = Wish {
        domain: Some("both.example".into()),
        level: Level::TextOnly,
        why: "a flood".into(),
        until: Some(exchange.clock().now() + 3_600_000),
    };
    breaker::pull(exchange, "trigger: a test", vec![pulled]).await.unwrap();
    server.stop().await;
    drop(server);
    tokio::time::sleep(Duration::from_millis(60)).await;
    // The configuration says something now: its preset does not matter, its rules come first.
    let rest = "\n[[federation.rules]]\nwhen = { domain = \"c.example\" }\nthen = \"drop\"\n\
                [federation.domains.\"old.example\"]\nblock = true\n";
    let server = start(rest).await.unwrap();
    let control = &server.exchange().control;
    let now = server.exchange().clock().now();
    let view = control.policy.view(now);
    assert_eq!((view.preset, view.preset_shadow), (Preset::Open, true));
    assert_eq!(view.rules.len(), 2);
    assert_eq!((view.rules[0].id, view.rules[0].rule.when.domain.as_deref()), (None, Some("c.example")));
    assert_eq!((view.rules[1].id, &view.rules[1].rule), (Some(1), &rule));
    assert!(matches!(control.access("x.bad.example"), Access::Closed(_)));
    assert_eq!(control.breaker.level(None, now), Level::Closed, "the breaker is not forgotten");
    let view = control.breaker.view(now);
    let of =
        |views: &[LevelView]| views.iter().map(|view| (view.level, view.reason.clone())).collect::<Vec<_>>();
    assert_eq!(of(&view.domains), [(Level::TextOnly, "a flood".into())], "and of the others one is over");
    assert_eq!(of(&view.covered), [(Level::NoNewContacts, "by hand".into())]);
    assert!(
        control.policy.is_blocked("x.bad.example", now) && control.policy.is_blocked("a.old.example", now)
    );
    let rows = server
        .exchange()
        .db
        .read(sql("SELECT face, before, after FROM audit WHERE what = 'configuration' ORDER BY id"))
        .await
        .unwrap();
    assert_eq!(rows.len(), 2, "each configuration that says something else");
    let last = rows.iter().last().unwrap();
    assert_eq!(last.text(0), "configuration");
    assert!(!last.text(1).contains("old.example") && last.text(2).contains("old.example"));
    server.stop().await;
}

#[tokio::test]
async fn a_reload_with_a_wrong_rule_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let toml = directory.path().join("trunkline.toml");
    let world = World::new(NAMES);
    world.certs("north", &leaf("north.example"));
    let tls = ["certificate=north.crt", "key=north.key"];
    let tls = tls.map(|setting| {
        format!("tls.{}", setting.replace('=', &format!("={}/", world.files.path().display())))
    });
    let config = config_with(&toml, "\n[[federation.rules]]\nthen = \"drop\"\nreason = \"old\"\n", &tls);
    let parts = serve::Parts { clock: Clock::System, in_memory: true, store: None };
    let server = Server::start(config, parts).await.unwrap();
    let operator = crate::operations::Operator(std::sync::Arc::clone(server.exchange()));
    let reload = || {
        use crate::admin::Admin as _;
        let operator = operator.clone();
        async move { operator.run(&Actor::command_line(), Operation::Reload).await }
    };
    let reasons = || -> Vec<String> {
        let view = server.exchange().control.policy.view(server.exchange().clock().now());
        view.rules.into_iter().map(|rule| rule.rule.reason).collect()
    };
    let text = std::fs::read_to_string(&toml).unwrap();
    let lines = text.lines().count();
    std::fs::write(&toml, format!("{text}[[federation.rules]]\nthen = \"limit\"\n")).unwrap();
    let refused = reload().await.unwrap_err().to_string();
    assert!(
        refused.contains(&format!("trunkline.toml:{}: federation.rules, number 2", lines + 1)),
        "{refused}"
    );
    assert_eq!(reasons(), ["old"]);
    std::fs::write(&toml, text.replace("\"old\"", "\"new\"")).unwrap();
    reload().await.unwrap();
    assert_eq!(reasons(), ["new"]);
    // A list, and a rule on it, at once.
    let lists = &server.exchange().control.lists;
    let listed = "[[federation.rules]]\nthen = \"drop\"\nreason = \"listed\"\nwhen = { listed_in = \"theirs\" }\n\
                  [federation.lists.theirs]\nservice = \"lists.example\"\nnode = \"n\"\n";
    std::fs::write(&toml, format!("{text}{listed}")).unwrap();
    match reload().await.unwrap() {
        Outcome::Reloaded { reload } => assert!(reload.needs_restart.is_empty(), "{reload:?}"),
        other => panic!("{other:?}"),
    }
    assert!(reasons() == ["old", "listed"] && lists.exists("theirs"));
    std::fs::write(&toml, text).unwrap();
    reload().await.unwrap();
    assert!(reasons() == ["old"] && !lists.exists("theirs"));
    server.stop().await;
}

#[tokio::test(start_paused = true)]
async fn the_old_keys_are_part_of_the_picture() {
    let world = World::new(NAMES);
    let settings = ["federation.domains.\"south.example\".block=true", "federation.enabled=false"];
    let north = world.site("north.example", &settings).await;
    let view = north.rules().await;
    assert!(view.blocks[0].configured && view.blocks[0].block.subdomains);
    let why = String::new();
    let refused = north.policy(PolicyOp::Unblock { domain: "south.example".into(), why }).await.unwrap_err();
    assert!(refused.to_string().contains("configuration"), "{refused}");
    let Outcome::Breaker(breaker) = north.admin(Operation::Breaker(BreakerOp::Show)).await.unwrap() else {
        panic!()
    };
    assert_eq!((breaker.all.level, breaker.all.set_by.as_str()), (Level::Closed, "configuration"));
    let Outcome::Done { text } = north.admin(Operation::FederationOpen { domain: None }).await.unwrap()
    else {
        panic!()
    };
    assert!(text.contains("federation.enabled is false"), "{text}");
}

// ---- the audit log

#[tokio::test(start_paused = true)]
async fn every_change_is_in_the_log_with_before_and_after() {
    let Pair { north, .. } = pair(&[]).await;
    let start = north.log().await.len();
    north.add(r#"{"then":{"do":"drop"},"reason":"first"}"#).await;
    let rule: Rule = serde_json::from_str(r#"{"then":{"do":"allow"},"reason":"second"}"#).unwrap();
    north.policy(PolicyOp::Replace { id: 1, rule }).await.unwrap();
    north.policy(PolicyOp::Remove { id: 1, why: "third".into() }).await.unwrap();
    north.block("bad.example", true).await;
    north.policy(PolicyOp::Unblock { domain: "bad.example".into(), why: "fourth".into() }).await.unwrap();
    north.level(None, Level::TextOnly).await;
    north.admin(Operation::FederationOpen { domain: None }).await.unwrap();
    let preset = PolicyOp::SetPreset { preset: Preset::Closed, shadow: true, why: "fifth".into() };
    north.policy(preset).await.unwrap();
    let log = north.log().await;
    let log: Vec<_> = log[..log.len() - start].iter().rev().collect();
    let shape: Vec<_> = log
        .iter()
        .map(|entry| (entry.what.as_str(), entry.before.is_some(), entry.after.is_some()))
        .collect();
    assert_eq!(
        shape,
        [
            ("policy add", false, true),
            ("policy replace 1", true, true),
            ("policy remove 1", true, false),
            ("policy block bad.example", false, true),
            ("policy unblock bad.example", true, false),
            ("breaker set text-only", false, true),
            ("breaker set normal", true, false),
            ("policy set-preset", true, true),
        ]
    );
    assert!(log.iter().all(|entry| entry.who == "command line" && entry.face == "command-line"));
    assert!(
        log[1].before.as_ref().unwrap().contains("drop") && log[1].after.as_ref().unwrap().contains("allow")
    );
    let search = AuditOp::List { before: None, search: Some("FOURTH".into()) };
    let Outcome::Audit { entries, more } = north.admin(Operation::Audit(search)).await.unwrap() else {
        panic!()
    };
    assert_eq!((entries.len(), more), (1, false));
    // A page at a time.
    for _ in 0..60 {
        north.block("bad.example", true).await;
        north.policy(PolicyOp::Unblock { domain: "bad.example".into(), why: String::new() }).await.unwrap();
    }
    let page = |before| Operation::Audit(AuditOp::List { before, search: None });
    let Outcome::Audit { entries, more } = north.admin(page(None)).await.unwrap() else { panic!() };
    assert!(more && entries.len() == 100);
    let Outcome::Audit { entries: rest, more } = north.admin(page(Some(entries[99].id))).await.unwrap()
    else {
        panic!()
    };
    assert!(!more && rest[0].id < entries[99].id && rest.len() == 28 + start);
}

#[tokio::test(start_paused = true)]
async fn the_log_cannot_be_changed_through_any_face() {
    let Pair { north, .. } = pair(&[]).await;
    north.block("bad.example", true).await;
    let before = north.log().await;
    // No face has an operation for it: all faces have the operations of the table.
    for row in TABLE.iter().filter(|row| row.op == "audit") {
        assert_eq!((row.act, row.method), ("list", Method::Get));
    }
    for act in ["delete", "clear", "update", "edit", "remove", "add"] {
        let request = format!(r#"{{"op":"audit","do":"{act}","id":1}}"#);
        assert!(serde_json::from_str::<Operation>(&request).is_err());
    }
    // Nor has whoever would reach the store.
    for statement in [
        sql("UPDATE audit SET who = 'nobody'"),
        sql("DELETE FROM audit"),
        sql("DELETE FROM audit WHERE id = 1"),
        sql("INSERT OR REPLACE INTO audit (id, at, who, face, what, why) VALUES (1, 0, 'x', 'x', 'x', 'x')"),
        sql("INSERT INTO audit (id, at, who, face, what, why) VALUES (1, 0, 'x', 'x', 'x', 'x') \
             ON CONFLICT (id) DO UPDATE SET who = 'x'"),
    ] {
        assert!(north.exchange().db.run(Batch::new(Lane::Inside).with(statement)).await.is_err());
    }
    assert_eq!(north.log().await, before);
    // A change whose entry can't be written does not happen: they are one batch. And who may not, leaves none.
    let reader = Actor { name: "reader".into(), face: Face::Api, scopes: vec![Scope::Read] };
    let operator = crate::operations::Operator(std::sync::Arc::clone(north.exchange()));
    use crate::admin::Admin as _;
    for operation in [
        Operation::Policy(PolicyOp::Unblock { domain: "bad.example".into(), why: String::new() }),
        Operation::Breaker(BreakerOp::Set {
            domain: None,
            level: Level::Closed,
            why: String::new(),
            until: None,
        }),
    ] {
        assert!(matches!(operator.run(&reader, operation).await, Err(OpError::Forbidden(_))));
    }
    assert_eq!(north.log().await, before);
}
