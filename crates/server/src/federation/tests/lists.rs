//! Block lists between two providers: followed, published, reloaded.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use trunkline_store::{Batch, Lane, sql};

use super::signals::{ask, audited, pair};
use super::stage::{Person, Site, World, settle};
use crate::admin::{OpError, Operation, Outcome};
use crate::config::Config;
use crate::control::lists::{ListView, ListsOp, Subscriber};
use crate::control::policy::PolicyOp;
use crate::control::rule::Action;

async fn follow(site: &Site, node: &str, action: Option<Action>) {
    let op = ListsOp::Subscribe {
        name: "theirs".into(),
        service: "north.example".into(),
        node: node.into(),
        action,
        why: String::new(),
    };
    ask(site, Operation::Lists(op)).await.unwrap();
    settle().await;
}

async fn publish(site: &Site, entry: &str) {
    let op = ListsOp::Publish { entry: entry.into(), reason: "spam".into() };
    ask(site, Operation::Lists(op)).await.unwrap();
}

async fn list(site: &Site, name: &str) -> ListView {
    match ask(site, Operation::Lists(ListsOp::Show)).await.unwrap() {
        Outcome::Lists { lists } => lists.into_iter().find(|list| list.name == name).unwrap(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_list_is_followed_and_takes_effect_at_once() {
    let (_world, north, south) = pair(&[]).await;
    publish(&north, "first.example").await;
    follow(&south, "spam_source_domains", None).await;
    let lists = &south.exchange().control.lists;
    assert!(lists.lists("theirs", "somebody@first.example"), "what was there already");
    assert_eq!(list(&south, "theirs").await.state, "subscribed");

    publish(&north, "second.example").await;
    settle().await;
    assert!(lists.lists("theirs", "second.example"));
    publish(&north, "iago@third.example").await;
    settle().await;
    assert!(!lists.lists("theirs", "iago@third.example"), "that is the other node");

    let op = ListsOp::Retract { entry: "first.example".into(), why: String::new() };
    ask(&north, Operation::Lists(op)).await.unwrap();
    settle().await;
    assert!(!lists.lists("theirs", "first.example"));
    assert_eq!(list(&south, "theirs").await.entries, 1);
    let rows = south.exchange().db.read(sql("SELECT entry FROM list_entries")).await.unwrap();
    let stored: Vec<&str> = rows.iter().map(|row| row.text(0)).collect();
    assert_eq!(stored, ["second.example"]);
    assert_eq!(audited(&north, "lists publish").await, 3);

    let op = ListsOp::Unsubscribe { name: "theirs".into(), why: String::new() };
    ask(&south, Operation::Lists(op)).await.unwrap();
    settle().await;
    assert!(!lists.lists("theirs", "second.example"));
    let rows = north.exchange().db.read(sql("SELECT COUNT(*) FROM list_subscribers")).await.unwrap();
    assert_eq!(rows.first().unwrap().int(0), 0, "the service knows");
}

#[tokio::test(start_paused = true)]
async fn a_list_that_a_rule_asks_for_stays() {
    let (_world, _north, south) = pair(&[]).await;
    follow(&south, "spam_source_domains", None).await;
    let rule = serde_json::from_str(r#"{"when":{"listed_in":"theirs"},"then":{"do":"drop"}}"#).unwrap();
    ask(&south, Operation::Policy(PolicyOp::Add { rule, position: None })).await.unwrap();
    let off = || Operation::Lists(ListsOp::Unsubscribe { name: "theirs".into(), why: String::new() });
    let refused = ask(&south, off()).await;
    assert!(
        matches!(&refused, Err(OpError::NotPossible(text)) if text.starts_with("rule 1 ")),
        "{refused:?}"
    );
    assert!(south.exchange().control.lists.exists("theirs"));
    ask(&south, Operation::Policy(PolicyOp::Remove { id: 1, why: String::new() })).await.unwrap();
    ask(&south, off()).await.unwrap();
    assert!(!south.exchange().control.lists.exists("theirs"));
}

#[tokio::test(start_paused = true)]
async fn what_the_store_did_not_take_is_written_at_the_next_reading() {
    let (_world, north, south) = pair(&[]).await;
    follow(&south, "spam_source_domains", None).await;
    let db = &south.exchange().db;
    let run = |text: &'static str| {
        db.run(trunkline_store::Batch::new(trunkline_store::Lane::Inside).with(sql(text)))
    };
    run("CREATE TRIGGER broken BEFORE INSERT ON list_entries BEGIN SELECT RAISE(ABORT, 'no'); END")
        .await
        .unwrap();
    publish(&north, "bad.example").await;
    settle().await;
    assert!(south.exchange().control.lists.lists("theirs", "bad.example"), "in memory it is so");
    run("DROP TRIGGER broken").await.unwrap();
    tokio::time::sleep(Duration::from_secs(3700)).await;
    settle().await;
    let rows = db.read(sql("SELECT entry FROM list_entries")).await.unwrap();
    assert_eq!(rows.iter().map(|row| row.text(0)).collect::<Vec<_>>(), ["bad.example"]);
}

#[tokio::test(start_paused = true)]
async fn subscriptions_end_unless_renewed_and_operators_can_end_them() {
    const DAY: i64 = 24 * 60 * 60 * 1000;
    let (_world, north, south) = pair(&[]).await;
    let mut iago = south.person("iago@south.example/5").await;
    let mut romeo = north.person("romeo@north.example/a").await;
    let age = async |days: i64| {
        let older = sql("UPDATE list_subscribers SET at = at - ?1, since = since - ?1").bind(days * DAY);
        north.exchange().db.run(Batch::new(Lane::Inside).with(older)).await.unwrap();
    };
    let pubsub = "<pubsub xmlns='http://jabber.org/protocol/pubsub'>";
    let wish = |jid: &str, n: usize| {
        format!(
            "<iq to='north.example' type='set' id='s{n}'>{pubsub}<subscribe node='spam_source_domains' \
             jid='{jid}/{n}'/></pubsub></iq>"
        )
    };
    // Of one address only ten subscribe, ours or not.
    for n in 0..11 {
        for (person, address) in [(&mut romeo, "romeo@north.example"), (&mut iago, "iago@south.example")] {
            person.send(&wish(address, n)).await;
            let taken = person.arrived().await.iter().any(|xml| xml.contains("type='result'"));
            assert_eq!(taken, n < 10, "{address}/{n}");
        }
    }
    let subscribers = async || match ask(&north, Operation::Lists(ListsOp::Subscribers)).await.unwrap() {
        Outcome::ListSubscribers { subscribers } => subscribers,
        other => panic!("{other:?}"),
    };
    let since = |all: Vec<Subscriber>| all.into_iter().map(|one| (one.address, one.since));
    let first: BTreeMap<String, i64> = since(subscribers().await).collect();
    assert_eq!(first.values().filter(|at| **at > 0).count(), 20);
    age(20).await;
    // By reading and by subscribing again.
    iago.send(&wish("iago@south.example", 3)).await;
    let read = format!(
        "<iq to='north.example' type='get' id='r'>{pubsub}<items node='spam_source_domains'/></pubsub></iq>"
    );
    iago.send(&read).await;
    assert_eq!(iago.arrived().await.len(), 2);
    age(20).await;
    let left: BTreeMap<String, i64> = since(subscribers().await).collect();
    assert!(left.keys().eq(["iago@south.example/3", "iago@south.example/5"]));
    let kept = |(address, since): (&String, &i64)| first[address] - 40 * DAY == *since;
    assert!(left.iter().all(kept), "who renews does not begin anew: {first:?} {left:?}");
    publish(&north, "bad.example").await;
    settle().await;
    assert!(iago.arrived().await.iter().any(|xml| xml.contains("bad.example")));
    assert!(romeo.arrived().await.is_empty(), "what has ended is not told");
    // The places of those that ended are free.
    iago.send(&wish("iago@south.example", 12)).await;
    assert!(iago.arrived().await.iter().any(|xml| xml.contains("type='result'")));

    let remove = |address: &str| {
        Operation::Lists(ListsOp::RemoveSubscriber { address: address.into(), why: "w".into() })
    };
    ask(&north, remove("iago@south.example/3")).await.unwrap();
    assert_eq!(subscribers().await.len(), 2);
    ask(&north, remove("south.example")).await.unwrap();
    assert_eq!(subscribers().await, []);
    assert!(matches!(ask(&north, remove("south.example")).await, Err(OpError::NotFound(_))));
    assert_eq!(audited(&north, "lists remove-subscriber").await, 2);
}

#[tokio::test(start_paused = true)]
async fn none_of_our_domains_nor_all_of_them_take_every_place_of_our_list() {
    let world = World::new(&["north.example", "south.example", "third.example"]);
    let north = world.site("north.example", &["hosts.\"home.example\"={}"]).await;
    let south = world.site("south.example", &[]).await;
    let mut romeo = north.person("romeo@north.example/a").await;
    let mut iago = south.person("iago@south.example/a").await;
    let follows = async |person: &mut Person, jid: &str| {
        let wish = format!(
            "<iq to='north.example' type='set' id='s'><pubsub xmlns='http://jabber.org/protocol/pubsub'>\
             <subscribe node='spam_source_domains' jid='{jid}'/></pubsub></iq>"
        );
        person.send(&wish).await;
        person.arrived().await.iter().any(|xml| xml.contains("type='result'"))
    };
    let fill = async |domain: &'static str, count: i64| {
        let rows = sql("WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?2) \
             INSERT INTO list_subscribers (host, node, jid, domain, at) \
             SELECT 'north.example', 'spam_source_domains', 'u' || i || '@' || ?1, ?1, ?3 FROM n");
        let rows = rows.bind(domain).bind(count).bind(north.exchange().clock().now());
        north.exchange().db.run(Batch::new(Lane::Inside).with(rows)).await.unwrap();
    };
    fill("north.example", 99).await;
    assert!(follows(&mut romeo, "romeo@north.example/a").await);
    assert!(!follows(&mut romeo, "romeo@north.example").await, "the domain's places are taken");
    assert!(follows(&mut romeo, "romeo@north.example/a").await, "who follows may renew it");
    // Another domain of ours, with more than its share, as from before there was one.
    fill("home.example", 400).await;
    let some = sql("DELETE FROM list_subscribers WHERE jid = 'u1@north.example'");
    north.exchange().db.run(Batch::new(Lane::Inside).with(some)).await.unwrap();
    assert!(follows(&mut romeo, "romeo@north.example").await, "499 of 500 were taken");
    let some = sql("UPDATE list_subscribers SET jid = 'v@home.example', domain = 'home.example' \
                    WHERE jid = 'u2@north.example'");
    north.exchange().db.run(Batch::new(Lane::Inside).with(some)).await.unwrap();
    assert!(!follows(&mut romeo, "romeo@north.example/b").await, "all of ours have half");
    assert!(follows(&mut iago, "iago@south.example").await, "others have places");
}

/// As if the file had these lists now.
async fn reload_lists(site: &Site, lists: &str) {
    let mut config = Config::clone(&site.exchange().config.load());
    let text = format!("domain = \"south.example\"\ndata_dir = \"/nonexistent\"\n{lists}");
    config.federation.lists = Config::parse(&text, Path::new("test.toml")).unwrap().federation.lists;
    site.exchange().reload_lists(&config).await.unwrap();
}

const THEIRS: &str =
    "[federation.lists.theirs]\nservice = \"north.example\"\nnode = \"spam_source_domains\"\n";

#[tokio::test(start_paused = true)]
async fn a_reload_begins_changes_and_ends_lists() {
    let (_world, north, south) = pair(&[]).await;
    publish(&north, "first.example").await;
    let lists = &south.exchange().control.lists;
    reload_lists(&south, THEIRS).await;
    settle().await;
    assert!(lists.lists("theirs", "first.example"));
    publish(&north, "second.example").await;
    settle().await;
    assert!(lists.lists("theirs", "second.example"), "its events are taken");

    reload_lists(&south, &format!("{THEIRS}action = \"drop\"\n")).await;
    assert!(lists.lists("theirs", "second.example"), "nobody passes meanwhile");
    assert_eq!(list(&south, "theirs").await.action, Some(Action::Drop));
    settle().await;
    publish(&north, "third.example").await;
    settle().await;
    assert!(lists.lists("theirs", "third.example"), "the service was not told that nobody listens");

    let elsewhere = THEIRS.replace("spam_source_domains", "muc_bans_sha256");
    reload_lists(&south, &elsewhere).await;
    assert!(!lists.lists("theirs", "third.example"), "that was said by another node");
    settle().await;
    let followed = async || {
        let rows = north.exchange().db.read(sql("SELECT node FROM list_subscribers")).await.unwrap();
        rows.iter().map(|row| row.text(0).to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(followed().await, ["muc_bans_sha256"]);
    reload_lists(&south, "").await;
    settle().await;
    assert!(!lists.exists("theirs"));
    assert!(followed().await.is_empty(), "the service knows");
    let rows = south.exchange().db.read(sql("SELECT COUNT(*) FROM list_entries")).await.unwrap();
    assert_eq!(rows.first().unwrap().int(0), 0);
}

#[tokio::test(start_paused = true)]
async fn a_list_that_a_rule_asks_for_outlives_the_configuration() {
    for restarted in [false, true] {
        let (_world, north, south) = pair(&[]).await;
        publish(&north, "first.example").await;
        reload_lists(&south, THEIRS).await;
        settle().await;
        let lists = &south.exchange().control.lists;
        let rule = serde_json::from_str(r#"{"when":{"listed_in":"theirs"},"then":{"do":"drop"}}"#).unwrap();
        ask(&south, Operation::Policy(PolicyOp::Add { rule, position: None })).await.unwrap();
        let warnings = async || match ask(&south, Operation::Policy(PolicyOp::Show)).await.unwrap() {
            Outcome::Policy(view) => view.warnings,
            other => panic!("{other:?}"),
        };
        assert!(warnings().await.is_empty());
        match restarted {
            false => reload_lists(&south, "").await,
            // The configuration in force has no lists at all.
            true => {
                south.exchange().load_lists().await.unwrap();
                south.exchange().follow_lists();
            }
        }
        assert!(lists.lists("theirs", "first.example"), "nobody passes meanwhile");
        settle().await;
        publish(&north, "second.example").await;
        settle().await;
        assert!(lists.lists("theirs", "second.example"), "it is followed on");
        let told = warnings().await;
        assert!(told.len() == 1 && told[0].contains("list theirs") && told[0].contains("rule 1"), "{told:?}");
        match ask(&south, Operation::Status).await.unwrap() {
            Outcome::Status(status) => assert_eq!(status.problems, told),
            other => panic!("{other:?}"),
        }
        assert_eq!(audited(&south, "lists keep").await, 1);
        ask(&south, Operation::Policy(PolicyOp::Remove { id: 1, why: String::new() })).await.unwrap();
        assert!(warnings().await[0].contains("no rule asks for it"));
        let off = Operation::Lists(ListsOp::Unsubscribe { name: "theirs".into(), why: String::new() });
        ask(&south, off).await.unwrap();
        assert!(!lists.exists("theirs") && warnings().await.is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn a_rule_without_its_list_is_told_of() {
    let (_world, _north, south) = pair(&[]).await;
    follow(&south, "spam_source_domains", None).await;
    let rule = serde_json::from_str(r#"{"when":{"listed_in":"theirs"},"then":{"do":"drop"}}"#).unwrap();
    ask(&south, Operation::Policy(PolicyOp::Add { rule, position: None })).await.unwrap();
    // A row that can't be read.
    let broken = sql("UPDATE lists SET service = '@'");
    south.exchange().db.run(Batch::new(Lane::Inside).with(broken)).await.unwrap();
    south.exchange().load_lists().await.unwrap();
    let Outcome::Policy(view) = ask(&south, Operation::Policy(PolicyOp::Show)).await.unwrap() else {
        panic!("no policy");
    };
    assert_eq!(view.warnings, ["rule 1 never matches: the list theirs is not followed"]);
}

#[tokio::test(start_paused = true)]
async fn a_list_can_act_by_itself() {
    let (world, north, south) = pair(&[]).await;
    let third = world.site("third.example", &[]).await;
    let mut juliet = south.person("juliet@south.example/b").await;
    let mut iago = third.person("iago@third.example/a").await;
    juliet.send("<message to='iago@third.example' type='chat'><body>yes?</body></message>").await;
    iago.arrived().await;
    follow(&south, "muc_bans_sha256", Some(Action::Reject { condition: None, text: None })).await;
    let chat = |id: &str| {
        format!("<message to='juliet@south.example' type='chat' id='{id}'><body>{id}</body></message>")
    };
    iago.send(&chat("before")).await;
    assert_eq!(juliet.bodies().await, ["before"]);
    publish(&north, "iago@third.example").await;
    settle().await;
    iago.send(&chat("after")).await;
    assert!(juliet.bodies().await.is_empty());
    let arrived = iago.arrived().await;
    assert!(
        arrived.iter().any(|xml| xml.contains("id='after'") && xml.contains("policy-violation")),
        "{arrived:?}"
    );
    assert_eq!(list(&south, "theirs").await.hits, 1);
}

#[tokio::test(start_paused = true)]
async fn a_service_that_is_gone_leaves_its_last_state() {
    let (world, north, south) = pair(&[]).await;
    publish(&north, "first.example").await;
    follow(&south, "spam_source_domains", None).await;
    world.wires.unplug(&north);
    tokio::time::sleep(Duration::from_secs(2 * 3600)).await;
    let view = list(&south, "theirs").await;
    assert!(view.state.starts_with("the last state is in force: "), "{}", view.state);
    assert!(south.exchange().control.lists.lists("theirs", "first.example"));
    // As after a restart: from the store.
    let exchange = south.exchange();
    exchange.load_lists().await.unwrap();
    assert!(exchange.control.lists.lists("theirs", "first.example"));
    assert_eq!(list(&south, "theirs").await.state, "not asked yet");
    exchange.follow_lists();
    tokio::time::sleep(Duration::from_secs(2 * 3600)).await;
    world.wires.plug(&north);
    publish(&north, "second.example").await;
    tokio::time::sleep(Duration::from_secs(2 * 3600)).await;
    assert_eq!(list(&south, "theirs").await.state, "subscribed");
    assert!(exchange.control.lists.lists("theirs", "second.example"));
}
