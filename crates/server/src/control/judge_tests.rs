use proptest::prelude::*;

use super::*;
use crate::control::policy::Preset;

/// What is known, as a test says.
#[derive(Default)]
struct Known {
    first_seen: Option<i64>,
    authentication: Option<Authentication>,
    rate: u32,
    reputation: Option<u8>,
    listed: Option<(&'static str, &'static str)>,
}

impl Facts for Known {
    fn first_seen(&self, _: &str) -> Option<i64> {
        self.first_seen
    }
    fn authentication(&self, _: &str) -> Option<Authentication> {
        self.authentication
    }
    fn rate(&self, _: &str) -> u32 {
        self.rate
    }
    fn reputation(&self, _: &str) -> Option<u8> {
        self.reputation
    }
    fn is_listed(&self, list: &str, who: &str) -> bool {
        self.listed == Some((list, who))
    }
}

const NOW: i64 = 1_000_000;

fn rule(json: &str) -> Rule {
    serde_json::from_str::<Rule>(json).unwrap().checked().unwrap()
}

fn armed(rules: &[&str]) -> Vec<Arc<Armed>> {
    (1..)
        .zip(rules)
        .map(|(id, json)| Armed::new(Some(id), &format!("rule {id}"), rule(json), ("me".into(), 0)))
        .collect()
}

struct Court {
    level: Level,
    blocked: Option<Blocked>,
    rules: Vec<Arc<Armed>>,
    preset: Option<Arc<Armed>>,
    known: Known,
    now: i64,
}

impl Court {
    fn new(preset: Preset, rules: &[&str]) -> Court {
        let preset = preset.rule(false).map(|rule| Armed::new(None, "preset", rule, ("me".into(), 0)));
        Court {
            level: Level::Normal,
            blocked: None,
            rules: armed(rules),
            preset,
            known: Known::default(),
            now: NOW,
        }
    }

    fn judge(&self, xml: &str, relation: Option<Relation>) -> Decision {
        self.judge_as(Direction::In, xml, relation)
    }

    fn judge_as(&self, direction: Direction, xml: &str, relation: Option<Relation>) -> Decision {
        let stanza = Stanza::parse(xml.as_bytes()).unwrap();
        let other = if direction == Direction::In { &stanza.head.from } else { &stanza.head.to };
        let domain = other.as_ref().unwrap().domain().to_owned();
        let case = Case { direction, domain: &domain, stanza: &stanza, relation };
        let bench = Bench {
            level: self.level,
            level_reason: "an attack",
            blocked: self.blocked.as_ref(),
            rules: [&[], &self.rules, &[]],
            preset: self.preset.as_ref(),
            facts: &self.known,
            now: self.now,
        };
        Trial::new(&bench, &case).judge()
    }

    fn hits(&self) -> Vec<u64> {
        self.rules.iter().map(|rule| rule.hits.load(Ordering::Relaxed)).collect()
    }
}

const HELLO: &str =
    "<message from='a@sub.bad.example/r' to='b@south.example' type='chat'><body>hi</body></message>";
const PRESENCE: &str = "<presence from='a@sub.bad.example/r' to='b@south.example'/>";

#[test]
fn each_condition_asks_its_own_question() {
    let media = "<message from='a@sub.bad.example/r' to='b@south.example'><body>see https://x.y/z</body><x xmlns='jabber:x:oob'><url>u</url></x></message>";
    let known = || Known {
        first_seen: Some(NOW - 10_000),
        authentication: Some(Authentication::Dialback),
        rate: 61,
        reputation: Some(19),
        listed: Some(("spam", "sub.bad.example")),
    };
    for (when, yes, no) in [
        (r#""domain":"sub.bad.example""#, HELLO, "<message from='a@bad.example' to='b@south.example'/>"),
        (
            r#""domain":"Bad.example","subdomains":true"#,
            HELLO,
            "<message from='a@notbad.example' to='b@south.example'/>",
        ),
        (
            r#""address":"a@sub.bad.example""#,
            HELLO,
            "<message from='c@sub.bad.example' to='b@south.example'/>",
        ),
        (r#""kind":["message","iq"]"#, HELLO, PRESENCE),
        (
            r#""has":["link","media"]"#,
            media,
            "<message from='a@sub.bad.example/r' to='b@south.example'><body>https://x.y</body></message>",
        ),
        (r#""larger_than":150"#, media, PRESENCE),
    ] {
        let court = Court::new(Preset::Open, &[&format!(r#"{{"when":{{{when}}},"then":{{"do":"drop"}}}}"#)]);
        assert_eq!(court.judge(yes, None).verdict, Verdict::Drop, "{when}");
        assert_eq!(court.judge(no, None).verdict, Verdict::Allow, "{when}");
    }
    for (when, otherwise) in [
        (r#""first_seen_within":11"#, Known { first_seen: Some(NOW - 11_000), ..known() }),
        (
            r#""authentication":"dialback""#,
            Known { authentication: Some(Authentication::Certificate), ..known() },
        ),
        (r#""faster_than":60"#, Known { rate: 60, ..known() }),
        (r#""reputation_below":20"#, Known { reputation: Some(20), ..known() }),
        (r#""listed_in":"spam""#, Known { listed: Some(("other", "sub.bad.example")), ..known() }),
        (r#""listed_in":"spam""#, Known { listed: None, ..known() }),
    ] {
        let mut court =
            Court::new(Preset::Open, &[&format!(r#"{{"when":{{{when}}},"then":{{"do":"drop"}}}}"#)]);
        court.known = known();
        assert_eq!(court.judge(HELLO, None).verdict, Verdict::Drop, "{when}");
        court.known = otherwise;
        assert_eq!(court.judge(HELLO, None).verdict, Verdict::Allow, "{when}");
    }
    let mut court = Court::new(Preset::Open, &[r#"{"when":{"listed_in":"spam"},"then":{"do":"drop"}}"#]);
    court.known.listed = Some(("spam", "a@sub.bad.example"));
    assert_eq!(court.judge(HELLO, None).verdict, Verdict::Drop, "a listed address");
}

#[test]
fn directions_are_told_apart() {
    let court = Court::new(
        Preset::Open,
        &[r#"{"direction":"out","then":{"do":"reject"},"reason":"they harass us"}"#],
    );
    assert_eq!(court.judge(HELLO, None).verdict, Verdict::Allow);
    let out = "<message from='b@south.example/x' to='a@bad.example'><body>hi</body></message>";
    let Verdict::Reject(error) = court.judge_as(Direction::Out, out, None).verdict else { panic!() };
    assert_eq!(error.condition, Condition::PolicyViolation);
    assert!(error.text.unwrap().contains("they harass us"), "ours read why");
    let court = Court::new(
        Preset::Open,
        &[r#"{"then":{"do":"reject","condition":"not-allowed"},"reason":"secret"}"#],
    );
    let Verdict::Reject(error) = court.judge(HELLO, None).verdict else { panic!() };
    assert_eq!(error.condition, Condition::NotAllowed);
    assert!(!error.text.unwrap().contains("secret"), "outsiders don't");
}

#[test]
fn careful_holds_strangers_and_nobody_else() {
    let court = Court::new(Preset::Careful, &[]);
    assert_eq!(court.judge(HELLO, None).verdict, Verdict::Undecided);
    assert_eq!(court.judge(HELLO, Some(Relation::Stranger)).verdict, Verdict::Hold);
    assert_eq!(court.judge(HELLO, Some(Relation::Conversation)).verdict, Verdict::Allow);
    assert_eq!(court.judge(PRESENCE, None).verdict, Verdict::Undecided, "of every kind");
    assert_eq!(court.judge(PRESENCE, Some(Relation::Stranger)).verdict, Verdict::Hold);
    let service = "<message from='a@sub.bad.example/r' to='south.example'><body>hi</body></message>";
    assert_eq!(court.judge(service, None).verdict, Verdict::Allow, "no account, nobody to consent");
    let out = "<message from='b@south.example/x' to='a@bad.example'><body>hi</body></message>";
    assert_eq!(court.judge_as(Direction::Out, out, Some(Relation::Stranger)).verdict, Verdict::Allow);
    let open = Court::new(Preset::Open, &[]);
    assert_eq!(open.judge(HELLO, Some(Relation::Stranger)).verdict, Verdict::Allow);
    for preset in [Preset::AllowListOnly, Preset::Closed] {
        let court = Court::new(preset, &[]);
        assert!(matches!(court.judge(HELLO, None).verdict, Verdict::Reject(_)), "{preset:?}");
    }
    let listed = Court::new(
        Preset::AllowListOnly,
        &[r#"{"when":{"domain":"sub.bad.example"},"then":{"do":"allow"}}"#],
    );
    assert_eq!(listed.judge(HELLO, None).verdict, Verdict::Allow);
}

#[test]
fn a_mark_or_a_limit_does_not_let_a_stranger_in() {
    let court = Court::new(
        Preset::Careful,
        &[
            r#"{"when":{"kind":["call"]},"then":{"do":"text-only"}}"#,
            r#"{"then":{"do":"mark","text":"new"}}"#,
        ],
    );
    let edge = court.judge(HELLO, None);
    assert_eq!((edge.verdict, edge.mark.as_deref()), (Verdict::Undecided, Some("new")));
    let account = court.judge(HELLO, Some(Relation::Stranger));
    assert_eq!((account.verdict, account.mark), (Verdict::Hold, None), "marked at the edge, not twice");
    assert_eq!(court.hits(), [0, 1]);
}

#[test]
fn a_limit_counts_each_domain_for_itself_and_refills() {
    let mut court = Court::new(Preset::Open, &[r#"{"then":{"do":"limit","per_minute":3}}"#]);
    let other = HELLO.replace("sub.bad", "good");
    let passes = |court: &Court, xml: &str| court.judge(xml, None).verdict == Verdict::Allow;
    assert_eq!((0..5).filter(|_| passes(&court, HELLO)).count(), 3);
    assert!(passes(&court, &other), "another domain has its own");
    court.now += 19_000;
    assert!(!passes(&court, HELLO));
    court.now += 2_000;
    assert!(passes(&court, HELLO), "one in twenty seconds");
    assert!(!passes(&court, HELLO));
    court.now += 3_600_000;
    assert_eq!((0..5).filter(|_| passes(&court, HELLO)).count(), 3, "not more than a minute's worth");
    let Verdict::Reject(error) = court.judge(HELLO, None).verdict else { panic!() };
    assert_eq!((error.condition, error.kind), (Condition::ResourceConstraint, ErrorType::Wait));
}

#[test]
fn a_limit_per_rule_counts_all_together() {
    let rule = r#"{"when":{"domain":"bad.example","subdomains":true},"then":{"do":"limit","per_minute":3,"per":"rule"}}"#;
    let court = Court::new(Preset::Open, &[rule]);
    // Somebody who owns a domain makes as many below it as they like.
    let from = |n: usize| HELLO.replace("sub.bad", &format!("d{n}.bad"));
    assert_eq!((0..9).filter(|n| court.judge(&from(*n), None).verdict == Verdict::Allow).count(), 3);
    let court = Court::new(Preset::Open, &[&rule.replace(r#","per":"rule""#, "")]);
    assert_eq!((0..9).filter(|n| court.judge(&from(*n), None).verdict == Verdict::Allow).count(), 9);
}

#[test]
fn nobody_gets_around_a_rule_by_saying_it_otherwise() {
    let drops = |when: &str, xml: &str| {
        let court = Court::new(Preset::Open, &[&format!(r#"{{"when":{{{when}}},"then":{{"do":"drop"}}}}"#)]);
        court.judge(xml, None).verdict == Verdict::Drop
    };
    // A call or an invitation beside the text.
    let message = |more: &str| HELLO.replace("</message>", &format!("{more}</message>"));
    for more in [
        "<propose xmlns='urn:xmpp:jingle-message:0' id='1'/>",
        "<x xmlns='jabber:x:conference' jid='room@rooms.example'/>",
    ] {
        assert!(drops(r#""kind":["message"]"#, &message(more)), "{more}");
    }
    // Another spelling of the domain, in the rule or on the stanza.
    for spelling in ["bücher.example", "BÜCHER.example.", "xn--bcher-kva.example", "bücher\u{3002}example"]
    {
        let when = format!(r#""domain":"{spelling}""#);
        for from in ["bücher.example", "Bücher.Example.", "XN--BCHER-KVA.example"] {
            assert!(drops(&when, &HELLO.replace("sub.bad.example", from)), "{spelling} {from}");
        }
    }
    // Another device, another case of the address.
    for from in ["a@sub.bad.example", "A@Sub.Bad.Example/other", "a@sub.bad.example./x"] {
        let xml = HELLO.replace("a@sub.bad.example/r", from);
        assert!(drops(r#""address":"a@SUB.bad.example""#, &xml), "{from}");
    }
    // Text in another language, a second body, the type `error`.
    let link = r#""has":["link"]"#;
    assert!(drops(link, &message("<body xml:lang='de'>evil.com</body>")));
    assert!(drops(link, &message("<body>evil.com</body>").replace("type='chat'", "type='error'")));
    assert!(drops(
        link,
        "<presence type='unavailable' from='a@sub.bad.example/r' to='b@south.example'><status>evil.com</status></presence>"
    ));
    assert!(drops(r#""kind":["message"]"#, &HELLO.replace("type='chat'", "type='error'")));
    // A domain that the memory has no place for is new.
    assert!(drops(r#""first_seen_within":60"#, HELLO));
    // A message that calls itself an error is a first contact as any other.
    let mut court = Court::new(Preset::Open, &[]);
    court.level = Level::NoNewContacts;
    let error = HELLO.replace("type='chat'", "type='error'");
    assert!(matches!(court.judge(&error, Some(Relation::Stranger)).verdict, Verdict::Reject(_)));
}

#[test]
fn a_limit_has_places_for_a_bounded_number_of_domains() {
    let limiter = Limiter::default();
    for n in 0..MOST_LIMITED + 50 {
        limiter.take(&format!("d{n}.example"), 1, NOW);
    }
    assert!(limiter.table.lock().of.len() <= MOST_LIMITED + 1);
    // Those beyond share one place: it is used up.
    assert!(!limiter.take("late.example", 1, NOW));
    assert!(limiter.take("late.example", 1, NOW + 60_000), "and are let in when others have come to rest");
}

#[test]
fn a_full_table_is_searched_once_a_second() {
    let limiter = Limiter::default();
    let held = || limiter.table.lock().of.len();
    for n in 0..=MOST_LIMITED {
        limiter.take(&format!("d{n}.example"), 600, NOW);
    }
    assert_eq!(held(), MOST_LIMITED + 1, "all have used something, and the last is in the shared place");
    // After half a second all are full again, but it was just searched.
    limiter.take("early.example", 600, NOW + 500);
    assert_eq!(held(), MOST_LIMITED + 1);
    limiter.take("later.example", 600, NOW + 1000);
    assert_eq!(held(), 1);
}

#[test]
fn levels_say_who_may_still_talk() {
    use Relation::{Contact, Conversation, Stranger};
    let mut court = Court::new(Preset::Open, &[]);
    let verdict = |court: &Court, xml: &str, relation| match court.judge(xml, relation).verdict {
        Verdict::Allow => "allow",
        Verdict::Undecided => "undecided",
        Verdict::Reject(_) => "reject",
        _ => "else",
    };
    for (level, message, presence) in [
        (Level::Normal, ["allow", "allow", "allow", "allow"], ["allow", "allow", "allow", "allow"]),
        (
            Level::NoNewContacts,
            ["undecided", "reject", "allow", "allow"],
            ["allow", "allow", "allow", "allow"],
        ),
        (
            Level::GrantedOnly,
            ["undecided", "reject", "reject", "allow"],
            ["undecided", "reject", "reject", "allow"],
        ),
        (
            Level::TextOnly,
            ["undecided", "reject", "reject", "allow"],
            ["undecided", "reject", "reject", "allow"],
        ),
        (Level::Closed, ["reject"; 4], ["reject"; 4]),
    ] {
        court.level = level;
        let relations = [None, Some(Stranger), Some(Conversation), Some(Contact)];
        assert_eq!(relations.map(|relation| verdict(&court, HELLO, relation)), message, "{level:?}");
        assert_eq!(relations.map(|relation| verdict(&court, PRESENCE, relation)), presence, "{level:?}");
        assert_eq!(court.judge(HELLO, None).text_only, level == Level::TextOnly);
        let service = "<iq type='get' id='1' from='a@sub.bad.example/r' to='south.example'><ping xmlns='urn:xmpp:ping'/></iq>";
        assert_eq!(verdict(&court, service, None), if level == Level::Closed { "reject" } else { "allow" });
    }
    // A level does not keep rules from protecting the inside at the edge.
    let mut court = Court::new(Preset::Open, &[r#"{"then":{"do":"limit","per_minute":1}}"#]);
    court.level = Level::NoNewContacts;
    assert_eq!(verdict(&court, HELLO, None), "undecided");
    assert_eq!(verdict(&court, HELLO, None), "reject");
}

#[test]
fn a_block_stands_before_every_rule() {
    let mut court = Court::new(Preset::Open, &[r#"{"then":{"do":"allow"}}"#]);
    court.blocked = Some(Blocked { domain: "bad.example".into(), reason: "spam".into() });
    let decision = court.judge(HELLO, None);
    assert!(matches!(decision.verdict, Verdict::Reject(_)));
    assert_eq!(&*decision.by, "block bad.example");
}

#[test]
fn a_rehearsal_counts_nothing_and_says_why() {
    let court = Court::new(
        Preset::Careful,
        &[
            r#"{"when":{"domain":"other.example"},"then":{"do":"drop"}}"#,
            r#"{"then":{"do":"drop"},"shadow":true}"#,
            r#"{"then":{"do":"limit","per_minute":1},"reason":"busy"}"#,
        ],
    );
    let stanza = Stanza::parse(HELLO.as_bytes()).unwrap();
    let case = Case {
        direction: Direction::In,
        domain: "sub.bad.example",
        stanza: &stanza,
        relation: Some(Relation::Stranger),
    };
    for _ in 0..3 {
        let bench = Bench {
            level: Level::Normal,
            level_reason: "",
            blocked: None,
            rules: [&[], &court.rules, &[]],
            preset: court.preset.as_ref(),
            facts: &court.known,
            now: NOW,
        };
        let (decision, trace, _) = Trial::new(&bench, &case).rehearse();
        assert_eq!(decision.verdict, Verdict::Hold);
        assert_eq!(
            trace,
            [
                "rule 1: another domain",
                "rule 2: would drop, but is in shadow",
                "rule 3: applies",
                "preset: applies",
            ]
        );
    }
    assert_eq!(court.hits(), [0, 0, 0]);
    assert_eq!(court.rules[1].shadow_hits.load(Ordering::Relaxed), 0);
}

// ---- first match, against a model

fn any_rule() -> impl Strategy<Value = Rule> {
    let domain =
        proptest::option::of(prop_oneof![Just("sub.bad.example"), Just("bad.example"), Just("good.example")]);
    let kinds = proptest::collection::vec(
        prop_oneof![Just(StanzaKind::Message), Just(StanzaKind::Presence), Just(StanzaKind::Subscribe)],
        0..2,
    );
    let relations = proptest::collection::vec(
        prop_oneof![Just(Relation::Stranger), Just(Relation::Conversation), Just(Relation::Contact)],
        0..3,
    );
    let direction = prop_oneof![Just(Direction::In), Just(Direction::Out), Just(Direction::Both)];
    let then = prop_oneof![
        Just(Action::Allow),
        Just(Action::Drop),
        Just(Action::Reject { condition: None, text: None }),
        Just(Action::TextOnly),
        Just(Action::Mark { text: "m".into() }),
        Just(Action::Limit { per_minute: 1_000, per: Per::Domain }),
    ];
    let until = proptest::option::of(prop_oneof![Just(NOW - 1), Just(NOW), Just(NOW + 1)]);
    (domain, any::<bool>(), kinds, relations, direction, then, until, any::<bool>()).prop_map(
        |(domain, below, kind, relation, direction, then, until, shadow)| Rule {
            when: Conditions {
                subdomains: below && domain.is_some(),
                domain: domain.map(str::to_owned),
                kind,
                relation,
                ..Conditions::default()
            },
            direction,
            then,
            reason: String::new(),
            until,
            shadow: shadow && below,
        },
    )
}

/// The rule that decides, said in the plainest way.
fn model(rules: &[Rule], xml_kind: StanzaKind, relation: Relation) -> Option<usize> {
    rules.iter().position(|rule| {
        let domain = match rule.when.domain.as_deref() {
            None | Some("sub.bad.example") => true,
            Some("bad.example") => rule.when.subdomains,
            Some(_) => false,
        };
        !rule.shadow
            && rule.until.is_none_or(|until| until > NOW)
            && rule.direction != Direction::Out
            && domain
            && (rule.when.kind.is_empty() || rule.when.kind.contains(&xml_kind))
            && (rule.when.relation.is_empty() || rule.when.relation.contains(&relation))
    })
}

proptest! {
    #[test]
    fn the_first_match_wins_and_is_counted_once(rules in proptest::collection::vec(any_rule(), 0..8)) {
        for (xml, kind) in [(HELLO, StanzaKind::Message), (PRESENCE, StanzaKind::Presence)] {
            for relation in [Relation::Stranger, Relation::Conversation, Relation::Contact] {
                let mut court = Court::new(Preset::Open, &[]);
                court.rules = (1..)
                    .zip(&rules)
                    .map(|(id, rule)| Armed::new(Some(id), &format!("rule {id}"), rule.clone(), ("me".into(), 0)))
                    .collect();
                let edge = court.judge(xml, None);
                let wins = model(&rules, kind, relation);
                let mut expected = vec![0; rules.len()];
                if let Some(wins) = wins {
                    expected[wins] = 1;
                }
                let mut last = edge.clone();
                let mut marks = usize::from(edge.mark.is_some());
                let mut text_only = usize::from(edge.text_only);
                let crosses = matches!(edge.verdict, Verdict::Allow | Verdict::Undecided);
                if crosses {
                    last = court.judge(xml, Some(relation));
                    marks += usize::from(last.mark.is_some());
                    text_only += usize::from(last.text_only);
                }
                let then = wins.map(|wins| &rules[wins].then);
                match then {
                    None | Some(Action::Allow | Action::Limit { .. } | Action::Mark { .. } | Action::TextOnly) => {
                        prop_assert_eq!(&last.verdict, &Verdict::Allow);
                    }
                    Some(Action::Drop) => prop_assert_eq!(&last.verdict, &Verdict::Drop),
                    Some(_) => prop_assert!(matches!(last.verdict, Verdict::Reject(_))),
                }
                prop_assert_eq!(marks, usize::from(matches!(then, Some(Action::Mark { .. }))), "marked once");
                prop_assert_eq!(text_only, usize::from(matches!(then, Some(Action::TextOnly))));
                prop_assert_eq!(court.hits(), expected, "{:?} then {:?}", edge, last);
            }
        }
    }
}
