//! Reports and standing between two providers.

use std::time::Duration;

use trunkline_store::{Batch, Lane, sql};
use trunkline_xmpp::ns;
use trunkline_xmpp::stanza::IqType;

use super::stage::{Site, World, settle};
use crate::admin::actor::Actor;
use crate::admin::{Admin as _, OpError, Operation, Outcome};
use crate::control::asking::{AskError, Question};
use crate::control::policy::PolicyOp;
use crate::control::reports::{ReportAction, ReportView, ReportsOp};
use crate::control::rule::Action;
use crate::operations::Operator;

const NAMES: &[&str] = &["north.example", "south.example", "third.example"];

pub(super) async fn pair(settings: &[&str]) -> (World, Site, Site) {
    let world = World::new(NAMES);
    let north = world.site("north.example", settings).await;
    let south = world.site("south.example", settings).await;
    (world, north, south)
}

pub(super) async fn ask(site: &Site, operation: Operation) -> Result<Outcome, OpError> {
    Operator(site.exchange().clone()).run(&Actor::command_line(), operation).await
}

async fn reports(site: &Site) -> Vec<ReportView> {
    let op = ReportsOp::List { open_only: false, domain: None, before: None };
    match ask(site, Operation::Reports(op)).await.unwrap() {
        Outcome::Reports { reports, .. } => reports,
        other => panic!("{other:?}"),
    }
}

async fn report(site: &Site, id: i64) -> ReportView {
    match ask(site, Operation::Reports(ReportsOp::Show { id })).await.unwrap() {
        Outcome::Report(report) => *report,
        other => panic!("{other:?}"),
    }
}

async fn decide(site: &Site, id: i64, action: ReportAction) -> Result<Outcome, OpError> {
    let op = ReportsOp::Decide { id, action, why: "no pills here".into(), until: None };
    ask(site, Operation::Reports(op)).await
}

pub(super) async fn audited(site: &Site, what: &'static str) -> i64 {
    let rows =
        site.exchange().db.read(sql("SELECT COUNT(*) FROM audit WHERE what = ?1").bind(what)).await.unwrap();
    rows.first().map_or(0, |row| row.int(0))
}

fn stanza_id(xml: &str) -> String {
    let (_, rest) = xml.split_once("<stanza-id").unwrap();
    let (_, rest) = rest.split_once(" id='").unwrap();
    rest.split('\'').next().unwrap().to_owned()
}

/// Iago of the south has written to Juliet of the north, who reports him.
async fn reported(options: &str) -> (World, Site, Site, super::stage::Person, super::stage::Person) {
    reported_with(options, &[]).await
}

/// The same, with settings for the south.
async fn reported_with(
    options: &str,
    settings: &[&str],
) -> (World, Site, Site, super::stage::Person, super::stage::Person) {
    let world = World::new(NAMES);
    let north = world.site("north.example", &[]).await;
    let south = world.site("south.example", settings).await;
    let mut juliet = north.person("juliet@north.example/b").await;
    let mut iago = south.person("iago@south.example/a").await;
    // Who is written to may answer.
    juliet.send("<message to='iago@south.example' type='chat' id='m0'><body>yes?</body></message>").await;
    iago.arrived().await;
    iago.send("<message to='juliet@north.example' type='chat' id='m1'><body>pills</body></message>").await;
    let arrived = juliet.arrived().await;
    let id = stanza_id(arrived.iter().find(|xml| xml.contains("pills")).unwrap());
    juliet
        .send(&format!(
            "<iq type='set' id='b'><block xmlns='urn:xmpp:blocking'><item jid='iago@south.example'>\
             <report xmlns='urn:xmpp:reporting:1' reason='urn:xmpp:reporting:spam'>\
             <stanza-id xmlns='urn:xmpp:sid:0' by='juliet@north.example' id='{id}'/>\
             <stanza-id xmlns='urn:xmpp:sid:0' by='juliet@north.example' id='unknown'/>\
             <text>He sells pills.</text>{options}</report></item></block></iq>"
        ))
        .await;
    let arrived = juliet.arrived().await;
    assert!(arrived.iter().any(|xml| xml.contains("id='b'") && xml.contains("type='result'")), "{arrived:?}");
    (world, north, south, juliet, iago)
}

#[tokio::test(start_paused = true)]
async fn a_report_goes_to_the_provider_that_it_is_about() {
    let (_world, north, south, _juliet, _iago) = reported("<report-origin/>").await;
    let listed = reports(&north).await;
    assert_eq!(listed.len(), 1);
    assert!(listed[0].messages.is_empty(), "copies are shown one by one only");
    let own = report(&north, listed[0].id).await;
    assert_eq!((own.about.as_str(), own.reason.as_str()), ("iago@south.example", "spam"));
    assert_eq!((own.origin.as_str(), own.affiliation.as_str()), ("user", "registered"));
    assert_eq!((own.stanza_ids.len(), own.messages.len()), (2, 1));
    assert!(own.messages[0].contains("<body>pills</body>"));
    assert!(own.may_forward && !own.may_share);

    decide(&north, own.id, ReportAction::Forward).await.unwrap();
    settle().await;
    let theirs = reports(&south).await;
    assert_eq!(theirs.len(), 1);
    let theirs = report(&south, theirs[0].id).await;
    assert_eq!((theirs.origin.as_str(), theirs.reporter.as_str()), ("outside", "north.example"));
    assert_eq!((theirs.about.as_str(), theirs.text.as_str()), ("iago@south.example", "He sells pills."));
    assert!(theirs.messages[0].contains("<body>pills</body>"));
    let all = format!("{theirs:?}");
    assert!(!all.contains("juliet"), "who reported stays here: {all}");

    let own = report(&north, own.id).await;
    assert_eq!((own.state.as_str(), own.forwarded_to.as_deref()), ("open", Some("south.example")));
    let again = decide(&north, own.id, ReportAction::Forward).await;
    assert!(matches!(again, Err(OpError::NotPossible(_))), "{again:?}");
    assert_eq!(audited(&north, "reports forward").await, 1);
    let op = crate::control::traffic::DomainsOp::Show { domain: "south.example".into() };
    let Outcome::Domain(domain) = ask(&north, Operation::Domains(op)).await.unwrap() else {
        panic!("no domain")
    };
    assert_eq!((domain.summary.reputation, domain.summary.reports), (40, 1));
    assert_eq!(domain.reputation_reasons, [(-10, "1 report about its users".to_owned())]);
    assert_eq!(domain.contacts, ["abuse: xmpp:south.example"]);
    assert_eq!(north.exchange().control.reputation.score("south.example"), 40);
}

#[tokio::test(start_paused = true)]
async fn without_the_reporters_consent_nothing_is_forwarded() {
    let (_world, north, south, _juliet, _iago) = reported("<third-party/>").await;
    let refused = decide(&north, 1, ReportAction::Forward).await;
    assert!(
        matches!(&refused, Err(OpError::NotPossible(text)) if text.contains("did not agree")),
        "{refused:?}"
    );
    settle().await;
    assert!(reports(&south).await.is_empty());
    assert!(report(&north, 1).await.may_share);
}

#[tokio::test(start_paused = true)]
async fn a_third_party_is_told_only_with_consent_and_we_ourselves_never() {
    let abuse = |domain: &str| format!("contact.abuse=[\"xmpp:abuse@{domain}\"]");
    for (options, domain, refusal) in [
        ("<report-origin/>", "third.example", Some("third parties")),
        ("<report-origin/><third-party/>", "third.example", None),
        ("<report-origin/>", "help.south.example", None),
        ("<report-origin/>", "south.example", None),
        ("<report-origin/>", "notsouth.example", Some("third parties")),
        ("<report-origin/><third-party/>", "north.example", Some("of this server")),
    ] {
        let (_world, north, _south, _juliet, _iago) = reported_with(options, &[&abuse(domain)]).await;
        let decided = decide(&north, 1, ReportAction::Forward).await;
        let forwarded_to = report(&north, 1).await.forwarded_to;
        match refusal {
            Some(words) => {
                assert!(
                    matches!(&decided, Err(OpError::NotPossible(text)) if text.contains(words)),
                    "{domain}: {decided:?}"
                );
                assert_eq!(forwarded_to, None, "{domain}");
            }
            None => assert_eq!(forwarded_to, Some(format!("abuse@{domain}")), "{decided:?}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn of_two_moderators_at_once_one_decides() {
    let (_world, north, _south, _juliet, _iago) = reported("").await;
    // The store of this test answers at once: the policy is held so that both have read the report before one acts.
    let holds = north.exchange().control.policy.held().await;
    let (one, other, ()) = tokio::join!(
        decide(&north, 1, ReportAction::BlockSender),
        decide(&north, 1, ReportAction::BlockSender),
        async {
            settle().await;
            drop(holds);
        }
    );
    assert_eq!(usize::from(one.is_ok()) + usize::from(other.is_ok()), 1, "{one:?} {other:?}");
    assert_eq!(audited(&north, "reports decide").await, 1);
    let view = north.exchange().control.policy.view(north.exchange().clock().now());
    let rules = serde_json::to_string(&view).unwrap();
    assert_eq!(rules.matches("iago@south.example").count(), 1, "{rules}");
}

#[tokio::test(start_paused = true)]
async fn what_our_users_may_not_send_does_not_count_against_who_would_get_it() {
    let (_world, north, _south) = pair(&[]).await;
    let control = &north.exchange().control;
    let mut juliet = north.person("juliet@north.example/b").await;
    juliet.send("<message to='iago@south.example' type='chat'><body>yes?</body></message>").await;
    settle().await;
    let rule = crate::control::rule::Rule {
        when: crate::control::rule::Conditions { domain: Some("south.example".into()), ..Default::default() },
        direction: crate::control::rule::Direction::Out,
        then: Action::Reject { condition: None, text: None },
        reason: String::new(),
        until: None,
        shadow: false,
    };
    let refused = async |site: &Site| {
        let op = crate::control::traffic::DomainsOp::Show { domain: "south.example".into() };
        match ask(site, Operation::Domains(op)).await.unwrap() {
            Outcome::Domain(domain) => domain.summary.refused,
            other => panic!("{other:?}"),
        }
    };
    ask(&north, Operation::Policy(PolicyOp::Add { rule, position: None })).await.unwrap();
    let block = PolicyOp::Block {
        domain: "south.example".into(),
        subdomains: false,
        reason: String::new(),
        until: None,
    };
    for expected in [30, 60] {
        for _ in 0..30 {
            juliet.send("<message to='iago@south.example' type='chat'><body>so?</body></message>").await;
        }
        settle().await;
        assert_eq!(refused(&north).await, expected, "they are counted");
        assert_eq!(control.reputation.score("south.example"), 50);
        ask(&north, Operation::Policy(block.clone())).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn moderators_dismiss_and_warn() {
    let (_world, north, _south, _juliet, mut iago) = reported("").await;
    iago.arrived().await;
    decide(&north, 1, ReportAction::Warn).await.unwrap();
    assert_eq!(iago.bodies().await, ["no pills here"]);
    assert_eq!(report(&north, 1).await.state, "handled");
    assert!(decide(&north, 1, ReportAction::Dismiss).await.is_err(), "once");
    assert_eq!(audited(&north, "reports decide").await, 1);
    assert!(matches!(decide(&north, 2, ReportAction::Dismiss).await, Err(OpError::NotFound(_))));

    let (_world, north, _south, _juliet, _iago) = reported("").await;
    assert_eq!(north.exchange().control.reputation.score("south.example"), 40);
    decide(&north, 1, ReportAction::Dismiss).await.unwrap();
    assert_eq!(north.exchange().control.reputation.score("south.example"), 50, "there was nothing in it");
}

#[tokio::test(start_paused = true)]
async fn moderators_limit_and_block() {
    const CHAT: &str = "<message to='lear@north.example' type='chat'><body>again</body></message>";
    for (action, passing, others, words) in [
        (ReportAction::Limit, 6, 10, "iago@south.example is limited to 6 stanzas a minute until "),
        (ReportAction::BlockSender, 0, 10, "iago@south.example is blocked until "),
        (ReportAction::BlockDomain, 0, 0, ": south.example is blocked without an end"),
    ] {
        let (_world, north, south, _juliet, mut iago) = reported("").await;
        let mut emilia = south.person("emilia@south.example/b").await;
        let mut lear = north.person("lear@north.example/c").await;
        for (person, address) in [(&mut iago, "iago"), (&mut emilia, "emilia")] {
            let hello =
                format!("<message to='{address}@south.example' type='chat'><body>yes?</body></message>");
            lear.send(&hello).await;
            person.arrived().await;
        }
        decide(&north, 1, action).await.unwrap();
        settle().await;
        for (person, passing) in [(&mut iago, passing), (&mut emilia, others)] {
            for _ in 0..10 {
                person.send(CHAT).await;
            }
            tokio::time::sleep(Duration::from_secs(5)).await;
            assert_eq!(lear.bodies().await.len(), passing, "{action:?}");
        }
        let actions = report(&north, 1).await.actions;
        assert!(actions.len() == 1 && actions[0].contains(words), "{action:?}: {actions:?}");
    }
}

/// `person` blocks `about` so many times, each time with a report that names the stanza `id`.
async fn complain(person: &mut super::stage::Person, about: &str, id: Option<&str>, times: usize) {
    let by = "<stanza-id xmlns='urn:xmpp:sid:0' by='x@north.example'";
    let id = id.map(|id| format!("{by} id='{id}'/>")).unwrap_or_default();
    for n in 0..times {
        person
            .send(&format!(
                "<iq type='set' id='c{n}'><block xmlns='urn:xmpp:blocking'><item jid='{about}'>\
                 <report xmlns='urn:xmpp:reporting:1' reason='urn:xmpp:reporting:spam'>{id}</report></item>\
                 </block></iq>"
            ))
            .await;
    }
    person.arrived().await;
}

/// Iago writes to Lear too; the id by which Lear can report it.
async fn lear_is_written_to(lear: &mut super::stage::Person, iago: &mut super::stage::Person) -> String {
    lear.send("<message to='iago@south.example' type='chat'><body>yes?</body></message>").await;
    iago.arrived().await;
    iago.send("<message to='lear@north.example' type='chat'><body>pills</body></message>").await;
    let arrived = lear.arrived().await;
    stanza_id(arrived.iter().find(|xml| xml.contains("pills")).unwrap())
}

#[tokio::test(start_paused = true)]
async fn an_accomplice_whose_reports_are_dismissed_washes_nothing_away() {
    let (_world, north, _south, _juliet, mut iago) = reported("").await;
    let mut lear = north.person("lear@north.example/c").await;
    let id = lear_is_written_to(&mut lear, &mut iago).await;
    let score = || north.exchange().control.reputation.score("south.example");
    assert_eq!(score(), 40);
    complain(&mut lear, "south.example", Some(&id), 50).await;
    assert_eq!(reports(&north).await.len(), 51);
    assert_eq!(score(), 30, "of fifty one counts");
    for id in 2..52 {
        decide(&north, id, ReportAction::Dismiss).await.unwrap();
    }
    assert_eq!(score(), 40, "Juliet's report stands");
}

#[tokio::test(start_paused = true)]
async fn one_angry_person_counts_once_in_a_month_and_with_proof() {
    const DAY: i64 = 86_400_000;
    let (_world, north, _south, _juliet, mut iago) = reported("").await;
    let mut lear = north.person("lear@north.example/c").await;
    let id = lear_is_written_to(&mut lear, &mut iago).await;
    let reputation = &north.exchange().control.reputation;
    let counted = || {
        let reasons = reputation.judgement("south.example").reasons;
        reasons
            .into_iter()
            .find(|(_, words)| words.contains("report"))
            .map_or(String::new(), |(_, words)| words)
    };
    complain(&mut lear, "iago@south.example", None, 2).await;
    assert_eq!(counted(), "1 report about its users", "without a copy it has no weight");
    decide(&north, 2, ReportAction::BlockSender).await.unwrap();
    assert_eq!(counted(), "2 reports about its users", "a moderator upheld it");
    decide(&north, 3, ReportAction::Limit).await.unwrap();
    complain(&mut lear, "iago@south.example", Some(&id), 1).await;
    assert_eq!(counted(), "2 reports about its users", "the same reporter within a month");
    for (days, reports) in [(29, 2), (2, 3)] {
        let older = sql("UPDATE reports SET counted_at = counted_at - ?1").bind(days * DAY);
        north.exchange().db.run(Batch::new(Lane::Inside).with(older)).await.unwrap();
        complain(&mut lear, "iago@south.example", Some(&id), 2).await;
        assert_eq!(counted(), format!("{reports} reports about its users"), "{days} days later");
    }

    // Nobody makes a reputation for a name that never spoke with us.
    complain(&mut lear, "never.example", None, 1).await;
    let id = reports(&north).await[0].id;
    assert_eq!(report(&north, id).await.about, "never.example");
    decide(&north, id, ReportAction::Limit).await.unwrap();
    assert_eq!(reputation.score("never.example"), 50);
}

#[tokio::test(start_paused = true)]
async fn the_same_sanction_twice_is_one_rule_with_the_later_end() {
    const DAY: i64 = 86_400_000;
    let (_world, north, _south, _juliet, mut iago) = reported("").await;
    let mut lear = north.person("lear@north.example/c").await;
    let id = lear_is_written_to(&mut lear, &mut iago).await;
    complain(&mut lear, "iago@south.example", Some(&id), 3).await;
    let block = async |id: i64, days: Option<i64>| {
        let until = days.map(|days| north.exchange().clock().now() + days * DAY);
        let why = format!("report {id}");
        let op = ReportsOp::Decide { id, action: ReportAction::BlockSender, why, until };
        ask(&north, Operation::Reports(op)).await.unwrap();
    };
    let rules = || {
        let now = north.exchange().clock().now();
        let days = |until: i64| (until - now + DAY / 2) / DAY;
        let view = north.exchange().control.policy.view(now);
        view.rules
            .into_iter()
            .map(|view| (view.id.unwrap(), view.rule.until.map(days), view.rule.reason))
            .collect::<Vec<_>>()
    };
    block(1, None).await;
    assert_eq!(rules(), [(1, Some(90), "report 1".to_owned())]);
    block(2, Some(10)).await;
    assert_eq!(rules(), [(1, Some(90), "report 1".to_owned())], "no earlier end");
    let allow = serde_json::from_str(r#"{"when":{"domain":"south.example"},"then":{"do":"allow"}}"#).unwrap();
    ask(&north, Operation::Policy(PolicyOp::Add { rule: allow, position: Some(0) })).await.unwrap();
    block(3, Some(200)).await;
    assert_eq!(rules(), [(1, Some(200), "report 3".to_owned()), (2, None, String::new())]);
    decide(&north, 4, ReportAction::Limit).await.unwrap();
    assert_eq!(rules().len(), 3, "a limit is another rule");
}

#[tokio::test(start_paused = true)]
async fn what_a_person_writes_to_the_abuse_address_arrives() {
    let (_world, north, south) = pair(&["contact.abuse=[\"xmpp:portia@south.example\"]"]).await;
    let mut portia = south.person("portia@south.example/a").await;
    let mut romeo = north.person("romeo@north.example/a").await;
    portia.send("<message to='romeo@north.example' type='chat'><body>yes?</body></message>").await;
    romeo.arrived().await;
    let report = |to: &str, text: &str| {
        format!(
            "<message to='{to}' type='chat'><body>{text}</body><report xmlns='urn:xmpp:reporting:1' \
             reason='urn:xmpp:reporting:spam'><jid xmlns='urn:xmpp:jid:0'>iago@south.example</jid></report></message>"
        )
    };
    romeo.send(&report("portia@south.example", "help")).await;
    settle().await;
    assert_eq!(portia.bodies().await, ["help"]);
    assert_eq!(south.refusals("report-from-user"), 0);
    romeo.send(&report("south.example", "domain")).await;
    settle().await;
    assert_eq!(south.refusals("report-from-user"), 1);
    assert!(reports(&south).await.is_empty(), "only domains fill the queue");
}

/// So many reports that are there already.
async fn fill(site: &Site, count: i64, origin: &'static str, state: &'static str) {
    let insert = sql("WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1) \
                      INSERT INTO reports (at, reporter, origin, affiliation, about, domain, reason, words, \
                      stanza_ids, messages, may_forward, may_share, state, actions) \
                      SELECT 0, 'x' || i, ?2, '', 'a@b.example', 'b.example', 'spam', '', '[]', '[]', 0, 0, ?3, '[]' \
                      FROM n")
    .bind(count)
    .bind(origin)
    .bind(state);
    site.exchange()
        .db
        .run(trunkline_store::Batch::new(trunkline_store::Lane::Inside).with(insert))
        .await
        .unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_queue_is_bounded_and_outsiders_have_a_share_of_it() {
    const OUTSIDE: &str = "<message to='south.example' type='normal'><report xmlns='urn:xmpp:reporting:1' \
                           reason='urn:xmpp:reporting:spam'><jid xmlns='urn:xmpp:jid:0'>iago@south.example</jid>\
                           </report></message>";
    let (_world, north, south) = pair(&[]).await;
    let theirs = || {
        let stanza = trunkline_xmpp::stanza::Stanza::parse(OUTSIDE.as_bytes()).unwrap();
        let mut stanza = stanza;
        stanza.head.from = Some("north.example".parse().unwrap());
        stanza
    };
    fill(&south, 1999, "outside", "open").await;
    for _ in 0..2 {
        north.exchange().send(theirs());
        settle().await;
    }
    assert_eq!(south.refusals("report-queue-full-outside"), 1);
    let own = |id: &str| {
        format!(
            "<iq type='set' id='{id}'><block xmlns='urn:xmpp:blocking'><item jid='{id}@far.example'>\
             <report xmlns='urn:xmpp:reporting:1' reason='urn:xmpp:reporting:spam'/></item></block></iq>"
        )
    };
    let mut juliet = south.person("juliet@south.example/b").await;
    fill(&south, 7999, "user", "open").await;
    for (id, refused) in [("b1", 0), ("b2", 1)] {
        juliet.send(&own(id)).await;
        let arrived = juliet.arrived().await;
        assert!(arrived.iter().any(|xml| xml.contains(&format!("id='{id}' type='result'"))), "{arrived:?}");
        assert_eq!(south.refusals("report-queue-full"), refused);
    }
}

#[tokio::test(start_paused = true)]
async fn copies_of_messages_go_a_month_after_a_report_that_is_handled() {
    let (_world, north, _south, _juliet, _iago) = reported("").await;
    decide(&north, 1, ReportAction::Dismiss).await.unwrap();
    let db = &north.exchange().db;
    for (days, copies) in [(29, 1), (2, 0)] {
        let older = sql("UPDATE reports SET at = at - ?1 * 86400000").bind(days);
        db.run(trunkline_store::Batch::new(trunkline_store::Lane::Inside).with(older)).await.unwrap();
        crate::control::reports::tidy(north.exchange()).await.unwrap();
        assert_eq!(report(&north, 1).await.messages.len(), copies, "{days} days");
    }
}

#[tokio::test(start_paused = true)]
async fn old_reports_go_when_they_are_handled() {
    let (_world, north, _south) = pair(&[]).await;
    fill(&north, 10, "user", "handled").await;
    fill(&north, 5, "user", "open").await;
    crate::control::reports::tidy(north.exchange()).await.unwrap();
    let left = reports(&north).await;
    assert_eq!(left.len(), 5);
    assert!(left.iter().all(|report| report.state == "open"));
    fill(&north, 3, "outside", "open").await;
    crate::control::reports::tidy(north.exchange()).await.unwrap();
    assert_eq!(reports(&north).await.len(), 5, "what another provider reported waits for three months");
}

#[tokio::test(start_paused = true)]
async fn a_peer_asks_for_its_standing_and_for_nobody_elses() {
    let (_world, north, south) = pair(&["contact.admin=[\"xmpp:portia@south.example\"]"]).await;
    let command = format!(
        "<command xmlns='{}' node='https://trunkline.im/protocol/standing' action='execute'/>",
        ns::COMMANDS
    );
    let question = || Question {
        from: "south.example".parse().unwrap(),
        to: "north.example".parse().unwrap(),
        kind: IqType::Set,
        payload: command.clone().into_bytes(),
        patience: Duration::from_secs(10),
    };
    for (domain, reason) in [("south.example", "pills"), ("third.example", "secret")] {
        let op = crate::control::policy::PolicyOp::Block {
            domain: format!("x.{domain}"),
            subdomains: false,
            reason: reason.into(),
            until: None,
        };
        ask(&north, Operation::Policy(op)).await.unwrap();
        let rule = crate::control::rule::Rule {
            when: crate::control::rule::Conditions {
                address: Some(format!("iago@{domain}")),
                ..Default::default()
            },
            direction: crate::control::rule::Direction::In,
            then: Action::Limit { per_minute: 6, per: crate::control::rule::Per::Domain },
            reason: reason.into(),
            until: Some(1_800_000_000_000),
            shadow: false,
        };
        let op = crate::control::policy::PolicyOp::Add { rule, position: None };
        ask(&north, Operation::Policy(op)).await.unwrap();
    }
    let answer = south.exchange().ask(question()).await.unwrap();
    let mut text = Vec::new();
    answer.write(&mut text);
    let text = String::from_utf8(text).unwrap();
    assert!(
        text.contains("iago@south.example: limited to 6 stanzas a minute (pills), until 2027-01-15"),
        "{text}"
    );
    assert!(text.contains("x.south.example: blocked (pills), without an end"), "{text}");
    assert!(!text.contains("secret"), "{text}");

    let mut portia = south.person("portia@south.example/a").await;
    let mut iago = south.person("iago@south.example/a").await;
    for person in [&mut portia, &mut iago] {
        person.send(&format!("<iq to='north.example' type='set' id='c'>{command}</iq>")).await;
    }
    let (granted, refused) = (portia.arrived().await, iago.arrived().await);
    assert!(granted.iter().any(|xml| xml.contains("completed")), "{granted:?}");
    assert!(refused.iter().any(|xml| xml.contains("<forbidden")), "{refused:?}");

    for _ in 0..8 {
        south.exchange().ask(question()).await.unwrap();
    }
    let enough = south.exchange().ask(question()).await;
    assert!(
        matches!(&enough, Err(AskError::Refused { condition, .. }) if condition == "resource-constraint"),
        "{enough:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_domain_is_asked_about_itself_one_question_at_a_time() {
    let (_world, north, south) = pair(&[]).await;
    let ask = |_| {
        let exchange = std::sync::Arc::clone(north.exchange());
        tokio::spawn(async move {
            let (from, to) = ("north.example".parse().unwrap(), "south.example".parse().unwrap());
            exchange.profile(&from, &to).await
        })
    };
    let asked = [(); 3].map(ask);
    let mut most = 0;
    while !asked.iter().all(|one| one.is_finished()) {
        most = most.max(north.exchange().control.asking.in_flight());
        tokio::task::yield_now().await;
    }
    assert_eq!(most, 1);
    for one in asked {
        assert!(one.await.unwrap().is_ok());
    }
    drop(south);
}

#[tokio::test(start_paused = true)]
async fn server_information_names_only_those_who_agree() {
    for (settings, named) in [(&["federation.server_info=true"][..], true), (&[][..], false)] {
        let world = World::new(NAMES);
        let north = world.site("north.example", &["federation.server_info=true"]).await;
        let south = world.site("south.example", settings).await;
        let mut romeo = north.person("romeo@north.example/a").await;
        romeo.send("<iq to='south.example' type='get' id='p1'><ping xmlns='urn:xmpp:ping'/></iq>").await;
        romeo.arrived().await;
        tokio::time::sleep(Duration::from_secs(601)).await;
        let mut juliet = north.person("juliet@north.example/b").await;
        juliet
            .send(
                "<iq to='north.example' type='get' id='i1'><pubsub xmlns='http://jabber.org/protocol/pubsub'>\
                 <items node='serverinfo'/></pubsub></iq>",
            )
            .await;
        let arrived = juliet.arrived().await;
        let info = arrived.iter().find(|xml| xml.contains("id='i1'")).unwrap();
        assert!(info.contains("<remote-domain"), "{info}");
        assert!(info.contains("<connection type='bidi'/>"), "{info}");
        assert_eq!(info.contains("south.example"), named, "{info}");
        drop(south);
    }
}
