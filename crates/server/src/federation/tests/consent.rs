//! Consent before first contact: what strangers are told, what users are asked, and what becomes of the answers.

use std::ops::Range;

use trunkline_store::{Batch, Lane, sql};
use trunkline_xmpp::jid::Jid;
use trunkline_xmpp::stanza::Stanza;

use super::stage::{Person, Rogue, Site, World, settle};
use crate::admin::actor::Actor;
use crate::admin::{Admin as _, Operation, Outcome};
use crate::control::policy::PolicyOp;
use crate::control::requests::{RequestView, RequestsOp};
use crate::operations::Operator;
use crate::route::consent::Threshold;
use crate::route::{Mail, Origin};

const NAMES: &[&str] = &["here.example", "evil.example", "other.example"];
const ME: (&str, &str) = ("evil.example", "here.example");

async fn here(settings: &[&str]) -> (World, Site) {
    let world = World::new(NAMES);
    let settings = [&["federation.preset=careful"], settings].concat();
    let here = world.site("here.example", &settings).await;
    (world, here)
}

/// Juliet, online, and a peer.
async fn juliet_and_iago(settings: &[&str]) -> (World, Site, Person, Rogue) {
    let (world, here) = here(settings).await;
    let mut juliet = here.person("juliet@here.example/b").await;
    juliet.send("<iq type='get' id='r'><query xmlns='jabber:iq:roster'/></iq>").await;
    juliet.arrived().await;
    let rogue = Rogue::both_ways(&world, &here, ME).await;
    (world, here, juliet, rogue)
}

fn says(id: &str, body: &str) -> String {
    format!(
        "<message from='iago@evil.example/x' to='juliet@here.example' type='chat' id='{id}'><body>{body}</body>\
         <request xmlns='urn:xmpp:receipts'/></message>"
    )
}

const SUBSCRIBE: &str = "<presence from='iago@evil.example' to='juliet@here.example' type='subscribe'>\
     <status>Let me in: www.evil.example</status><x xmlns='vcard-temp:x:update'><photo>00</photo></x></presence>";

fn answer(kind: &str) -> String {
    format!("<presence to='iago@evil.example' type='{kind}'/>")
}

/// What becomes of a stanza of the peer's before it crosses.
fn at_threshold(site: &Site, xml: &str) -> Threshold {
    let stanza = Stanza::parse(xml.as_bytes()).unwrap();
    site.exchange().meet_at_threshold(Mail::new(stanza, Origin::Outside))
}

#[tokio::test(start_paused = true)]
async fn strangers_take_nothing_of_the_inside() {
    let (_world, here, mut juliet, mut evil) = juliet_and_iago(&[]).await;
    for to in ["juliet", "nobody"] {
        for kind in KINDS {
            let xml = kind.replace("NAME", to).replacen(" to=", " from='iago@evil.example/x' to=", 1);
            let met = at_threshold(&here, &xml);
            assert!(matches!(met, Threshold::Done), "{xml}: {met:?}");
        }
    }
    assert!(!stanzas(&mut evil).await.is_empty(), "they are answered all the same");
    juliet.send("<iq to='iago@evil.example/x' type='get' id='asked'><q xmlns='q'/></iq>").await;
    settle().await;
    let answer = "<iq from='iago@evil.example/x' to='juliet@here.example/b' type='result' id='asked'/>";
    assert!(matches!(at_threshold(&here, answer), Threshold::Cross(_)), "somebody asked");
    let domain = "<message from='iago@evil.example/x' to='here.example' id='2'><body>hi</body></message>";
    assert!(matches!(at_threshold(&here, domain), Threshold::Cross(_)));
    juliet.send("<message to='iago@evil.example' type='chat' id='j1'><body>hi</body></message>").await;
    settle().await;
    assert!(matches!(at_threshold(&here, &says("m1", "hello")), Threshold::Cross(_)), "no stranger any more");
}

#[tokio::test(start_paused = true)]
async fn what_could_be_neither_kept_nor_answered_is_not_acknowledged() {
    const ROOM: &str =
        "<message from='iago@evil.example/x' to='juliet@here.example' type='groupchat' id='g'/>";
    let second = says("m2", "too much");
    // At the threshold, and inside.
    for crosses in [false, true] {
        for last in [ROOM, SUBSCRIBE, &second] {
            // No answer to the peer fits, and of strangers one stanza is taken in.
            let settings = &["federation.queue_memory=0", "consent.intake_peer_stanzas=1"];
            let (_world, here, _juliet, mut iago) = juliet_and_iago(settings).await;
            if crosses {
                let (ours, theirs) = ("juliet@here.example", "iago@evil.example");
                let (ours, theirs): (Jid, Jid) = (ours.parse().unwrap(), theirs.parse().unwrap());
                here.exchange().direct(&ours, &theirs);
                here.exchange().undirect(&ours, &theirs);
            }
            let iq = "<iq from='iago@evil.example/x' to='juliet@here.example' type='get' id='q'><q xmlns='q'/></iq>";
            iago.send(&format!("{}{iq}", says("m1", "hello"))).await;
            settle().await;
            assert!(here.refusals("peer-queue-full") >= 1, "nobody promised an answer to IQ");
            iago.send(last).await;
            settle().await;
            iago.send("<r xmlns='urn:xmpp:sm:3'/>").await;
            let rest = iago.rest().await;
            assert!(rest.contains("resource-constraint"), "{last}: {rest}");
            assert!(rest.contains("h='2'") && !rest.contains("h='3'"), "{last}: {rest}");
            assert_eq!((here.refusals("stanza-unanswered"), here.refusals("stanza-lost")), (1, 0), "{last}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn only_a_pair_that_crosses_keeps_a_stranger_from_the_threshold() {
    let (_world, here, mut juliet, mut evil) = juliet_and_iago(&[]).await;
    juliet.send("<message to='iago@evil.example' type='chat' id='j1'><body>hi</body></message>").await;
    juliet.send("<iq to='emilia@evil.example/x' type='get' id='asked'><q xmlns='q'/></iq>").await;
    settle().await;
    juliet.arrived().await;
    let peer = here.federation.shared.peers.get("evil.example").unwrap();
    // Whoever changes the account holds up iago's request, and what crosses behind it.
    let account = here.exchange().accounts.online(&"juliet@here.example".parse().unwrap()).unwrap();
    let writing = account.writes.lock().await;
    let answer = "<iq from='emilia@evil.example/x' to='juliet@here.example/b' type='result' id='asked'/>";
    let (emilia, roderigo) =
        (says("e1", "hello").replace("iago", "emilia"), says("r1", "me").replace("iago", "roderigo"));
    for (xml, crossing, taken) in
        [(SUBSCRIBE, 1, 0), (answer, 2, 0), (&emilia, 3, 0), (&roderigo, 3, 1), (answer, 4, 1)]
    {
        evil.send(xml).await;
        settle().await;
        assert_eq!((peer.load.stanzas(), count(&here, "intake").await), (crossing, taken), "{xml}");
    }
    drop(writing);
    tokio::time::sleep(std::time::Duration::from_secs(20)).await;
    let seen = juliet.arrived().await.join("");
    for xml in [
        "from='iago@evil.example'",
        "id='asked'",
        "from='emilia@evil.example'",
        "from='roderigo@evil.example'",
    ] {
        assert!(seen.contains(xml), "{xml}: {seen}");
    }
    assert_eq!(peer.load.stanzas(), 0);
    evil.send(answer).await;
    settle().await;
    assert!(!juliet.arrived().await.join("").contains("id='asked'"), "each request has one answer");
}

#[tokio::test(start_paused = true)]
async fn who_is_let_in_by_a_rule_is_judged_once() {
    let (_world, here, mut juliet, mut evil) = juliet_and_iago(&["federation.preset=open"]).await;
    let rule = "{\"when\":{\"relation\":[\"stranger\"]},\"then\":{\"do\":\"limit\",\"per_minute\":2}}";
    let rule = serde_json::from_str(rule).unwrap();
    here.admin(Operation::Policy(PolicyOp::Add { rule, position: None })).await.unwrap();
    assert!(matches!(at_threshold(&here, &says("m1", "one").replace("iago@", "ev@")), Threshold::Through(_)));
    for id in ["m2", "m3"] {
        evil.send(&says(id, id)).await;
        settle().await;
    }
    let seen = juliet.arrived().await.join("");
    assert!(seen.contains("id='m2'"), "{seen}");
    assert!(!seen.contains("id='m3'"), "the limit counts each stanza once, and it does count: {seen}");
}

/// What the peer heard, but for acknowledgements.
async fn stanzas(rogue: &mut Rogue) -> Vec<String> {
    let mut heard = rogue.heard().await;
    heard.retain(|xml| !xml.contains("urn:xmpp:sm:3"));
    heard
}

async fn count(site: &Site, table: &'static str) -> i64 {
    let statement = match table {
        "intake" => sql("SELECT COUNT(*) FROM intake"),
        "held" => sql("SELECT COUNT(*) FROM held"),
        "first_contacts" => sql("SELECT COUNT(*) FROM first_contacts"),
        "consents" => sql("SELECT COUNT(*) FROM consents"),
        "roster" => sql("SELECT COUNT(*) FROM roster WHERE removed = 0"),
        _ => panic!("{table}"),
    };
    site.exchange().db.read(statement).await.unwrap().first().unwrap().int(0)
}

async fn waiting(site: &Site) -> Vec<RequestView> {
    let op = Operation::Requests(RequestsOp::List { domain: None, before: None });
    match Operator(std::sync::Arc::clone(site.exchange())).run(&Actor::command_line(), op).await.unwrap() {
        Outcome::Requests { requests, .. } => requests,
        other => panic!("{other:?}"),
    }
}

/// One stanza of every kind, `NAME` being whom it is for.
const KINDS: &[&str] = &[
    "<message to='NAME@here.example' type='chat' id='1'><body>hi</body><request xmlns='urn:xmpp:receipts'/></message>",
    "<message to='NAME@here.example/b' type='chat' id='2'><body>hi</body></message>",
    "<message to='NAME@here.example/b' id='3'><body>hi</body></message>",
    "<message to='NAME@here.example' type='headline' id='4'><body>hi</body></message>",
    "<message to='NAME@here.example' type='groupchat' id='5'><body>hi</body></message>",
    "<message to='NAME@here.example/b' type='groupchat' id='6'><subject>hi</subject></message>",
    "<message to='NAME@here.example/b' type='error' id='7'><error type='cancel'><gone xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></error></message>",
    "<message to='NAME@here.example' type='chat' id='8'><composing xmlns='http://jabber.org/protocol/chatstates'/></message>",
    "<message to='NAME@here.example' type='chat' id='9'><received xmlns='urn:xmpp:receipts' id='1'/></message>",
    "<message to='NAME@here.example' id='10'><propose xmlns='urn:xmpp:jingle-message:0' id='c'><description xmlns='urn:xmpp:jingle:apps:rtp:1' media='audio'/></propose></message>",
    "<message to='NAME@here.example' id='11'><x xmlns='jabber:x:conference' jid='den@rooms.evil.example'/></message>",
    "<message to='NAME@here.example' type='chat' id='12'><encrypted xmlns='urn:xmpp:omemo:2'><payload>AA</payload></encrypted></message>",
    "<message to='NAME@here.example' id='13'/>",
    "<presence to='NAME@here.example' id='20'/>",
    "<presence to='NAME@here.example/b' id='21'/>",
    "<presence to='NAME@here.example' type='unavailable' id='22'/>",
    "<presence to='NAME@here.example' type='probe' id='23'/>",
    "<presence to='NAME@here.example/b' type='probe' id='24'/>",
    "<presence to='NAME@here.example' type='subscribe' id='25'/>",
    "<presence to='NAME@here.example' type='subscribe' id='26'/>",
    "<presence to='NAME@here.example' type='unsubscribe' id='27'/>",
    "<presence to='NAME@here.example' type='subscribed' id='28'/>",
    "<presence to='NAME@here.example' type='unsubscribed' id='29'/>",
    "<presence to='NAME@here.example/b' type='error' id='30'><error type='cancel'><gone xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></error></presence>",
    "<iq to='NAME@here.example' type='get' id='40'><query xmlns='http://jabber.org/protocol/disco#info'/></iq>",
    "<iq to='NAME@here.example/b' type='get' id='41'><query xmlns='http://jabber.org/protocol/disco#info'/></iq>",
    "<iq to='NAME@here.example' type='get' id='42'><query xmlns='http://jabber.org/protocol/disco#items'/></iq>",
    "<iq to='NAME@here.example' type='get' id='43'><vCard xmlns='vcard-temp'/></iq>",
    "<iq to='NAME@here.example/b' type='get' id='44'><vCard xmlns='vcard-temp'/></iq>",
    "<iq to='NAME@here.example' type='get' id='45'><query xmlns='jabber:iq:last'/></iq>",
    "<iq to='NAME@here.example/b' type='get' id='46'><query xmlns='jabber:iq:last'/></iq>",
    "<iq to='NAME@here.example/b' type='get' id='47'><query xmlns='jabber:iq:version'/></iq>",
    "<iq to='NAME@here.example' type='get' id='48'><pubsub xmlns='http://jabber.org/protocol/pubsub'><items node='urn:xmpp:avatar:metadata'/></pubsub></iq>",
    "<iq to='NAME@here.example' type='get' id='49'><ping xmlns='urn:xmpp:ping'/></iq>",
    "<iq to='NAME@here.example/b' type='get' id='50'><ping xmlns='urn:xmpp:ping'/></iq>",
    "<iq to='NAME@here.example/b' type='set' id='51'><jingle xmlns='urn:xmpp:jingle:1' action='session-initiate' sid='s'/></iq>",
    "<iq to='NAME@here.example' type='set' id='52'><query xmlns='urn:xmpp:mam:2'/></iq>",
    "<iq to='NAME@here.example/b' type='result' id='53'/>",
    "<iq to='NAME@here.example/b' type='error' id='54'><error type='cancel'><gone xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></error></iq>",
];

#[tokio::test(start_paused = true)]
async fn existing_missing_blocked_and_offline_addresses_are_told_apart_by_nothing() {
    for settings in [&[][..], &["accounts.archive=false"]] {
        let (world, here) = here(settings).await;
        let mut juliet = here.person("juliet@here.example/b").await;
        let mut tybalt = here.person("tybalt@here.example/b").await;
        tybalt
            .send("<iq type='set' id='b'><block xmlns='urn:xmpp:blocking'><item jid='iago@evil.example'/></block></iq>")
            .await;
        assert!(tybalt.arrived().await.join("").contains("type='result'"));
        drop(here.person("nurse@here.example/b").await);
        settle().await;
        let mut transcripts = Vec::new();
        for name in ["juliet", "nobody", "tybalt", "nurse"] {
            let mut rogue = Rogue::both_ways(&world, &here, ME).await;
            let mut transcript = Vec::new();
            // Twice: what the first round leaves behind must not show in the second.
            for kind in KINDS.iter().chain(KINDS) {
                let stanza =
                    kind.replace("NAME", name).replacen(" to=", " from='iago@evil.example/x' to=", 1);
                rogue.send(&format!("{stanza}<r xmlns='urn:xmpp:sm:3'/>")).await;
                let heard = rogue.heard().await;
                assert!(
                    heard.iter().any(|xml| xml.starts_with("<a ")),
                    "{stanza} is acknowledged: {heard:?}"
                );
                transcript.push((*kind, heard.join("").replace(name, "NAME")));
            }
            transcripts.push(transcript);
        }
        for other in &transcripts[1..] {
            for (one, other) in transcripts[0].iter().zip(other) {
                assert_eq!(one, other);
            }
        }
        let answered = |kind: &str, what: &str| {
            transcripts[0].iter().filter(|(sent, heard)| sent.contains(kind) && heard.contains(what)).count()
        };
        assert_eq!(answered("<iq", "<service-unavailable"), 26);
        assert_eq!(answered("'groupchat'", "<service-unavailable"), 4);
        assert_eq!(answered("'probe'", "type='unsubscribed'"), 4);
        assert_eq!(answered("<message", "<message"), 4, "only group chat is answered");
        assert_eq!(answered("<presence", "<presence"), 4, "only probes are answered");
        // One request, and nothing else, for those who are there and do not block.
        let seen: Vec<String> = juliet.arrived().await;
        let from_iago: Vec<&String> = seen.iter().filter(|xml| xml.contains("iago")).collect();
        assert_eq!(from_iago.len(), 1, "{from_iago:?}");
        assert!(tybalt.arrived().await.iter().all(|xml| !xml.contains("iago")));
        let waits: Vec<String> = waiting(&here).await.into_iter().map(|request| request.account).collect();
        assert_eq!(waits, ["nurse@here.example", "juliet@here.example"]);
        assert_eq!(count(&here, "intake").await, 0, "everything is sorted");
        assert!(here.exchange().control.requests.intake.is_as_new(), "and nothing is counted as waiting");
    }
}

#[tokio::test(start_paused = true)]
async fn who_accepts_gets_what_was_held_and_the_stranger_gets_nothing_that_was_not_asked_for() {
    let (_world, here, mut juliet, mut iago) = juliet_and_iago(&[]).await;
    for (id, body) in [("m1", "one https://evil.example/?a&amp;b"), ("m2", "two"), ("m3", "three")] {
        iago.send(&says(id, body)).await;
    }
    settle().await;
    let seen = juliet.arrived().await;
    assert_eq!(seen.len(), 1, "{seen:?}");
    assert!(seen[0].contains("type='subscribe'") && seen[0].contains("from='iago@evil.example'"), "{seen:?}");
    assert!(seen[0].contains("<status>one https[:]//evil[.]example/?a&amp;b</status>"), "{seen:?}");
    // Shown again at the next login, with all that was written, and not in the roster.
    let mut other = here.device("juliet@here.example/c").await;
    other.send("<iq type='get' id='r'><query xmlns='jabber:iq:roster'/></iq>").await;
    let seen = other.arrived().await.join("");
    assert!(seen.contains("example/?a&amp;b\ntwo\nthree</status>"), "{seen}");
    assert!(!seen.contains("<item"), "{seen}");
    juliet.arrived().await;

    juliet.send(&answer("subscribed")).await;
    settle().await;
    let seen = juliet.arrived().await;
    let ids: Vec<&str> = ["m1", "m2", "m3"].to_vec();
    let got: Vec<&String> = seen.iter().filter(|xml| xml.starts_with("<message")).collect();
    assert_eq!(got.len(), 3, "{seen:?}");
    for (xml, id) in got.iter().zip(ids) {
        assert!(xml.contains(&format!("id='{id}'")) && xml.contains("<delay "), "{xml}");
    }
    assert_eq!(stanzas(&mut iago).await, Vec::<String>::new(), "no answer, no presence");
    assert_eq!((count(&here, "held").await, count(&here, "first_contacts").await), (0, 0));
    assert_eq!(count(&here, "roster").await, 0);
    // From now on they talk, and she may be asked.
    iago.send(&says("m4", "four")).await;
    iago.send("<iq from='iago@evil.example/x' to='juliet@here.example/b' type='get' id='q'><ping xmlns='urn:xmpp:ping'/></iq>").await;
    let seen = juliet.arrived().await.join("");
    assert!(seen.contains("id='m4'") && seen.contains("id='q'") && !seen.contains("delay"), "{seen}");
    iago.send("<presence from='iago@evil.example' to='juliet@here.example' type='probe'/>").await;
    assert!(stanzas(&mut iago).await.join("").contains("unsubscribed"), "still no presence");
}

#[tokio::test(start_paused = true)]
async fn who_really_asked_gets_the_answer_and_presence() {
    let (_world, here, mut juliet, mut iago) = juliet_and_iago(&[]).await;
    iago.send(&says("m1", "hello")).await;
    settle().await;
    iago.send(SUBSCRIBE).await;
    let seen = juliet.arrived().await;
    assert_eq!(seen.len(), 1, "one request: {seen:?}");
    assert_eq!(
        waiting(&here).await.iter().map(|r| (r.stanzas, r.asks_subscription)).collect::<Vec<_>>(),
        [(1, true)]
    );
    juliet.send(&answer("subscribed")).await;
    let heard = stanzas(&mut iago).await.join("");
    assert!(heard.contains("type='subscribed'") && heard.contains("from='juliet@here.example/b'"), "{heard}");
    let seen = juliet.arrived().await.join("");
    assert!(seen.contains("subscription='from'") && seen.contains("id='m1'"), "{seen}");
}

#[tokio::test(start_paused = true)]
async fn a_request_says_what_was_asked_and_nothing_that_can_be_clicked_on() {
    let (_world, here, mut juliet, mut iago) = juliet_and_iago(&[]).await;
    iago.send(SUBSCRIBE).await;
    let seen = juliet.arrived().await.join("");
    assert!(seen.contains("<status>Let me in: www[.]evil[.]example</status>"), "{seen}");
    assert!(!seen.contains("photo"), "{seen}");
    // Taken back: the request goes.
    iago.send("<presence from='iago@evil.example' to='juliet@here.example' type='unsubscribe'/>").await;
    assert!(juliet.arrived().await.join("").contains("type='unsubscribe'"));
    assert_eq!((waiting(&here).await.len(), count(&here, "roster").await), (0, 0));
    // Taken back after a message: that goes on waiting, and `subscribed` gives no presence any more.
    iago.send(SUBSCRIBE).await;
    iago.send(&says("m1", "hello")).await;
    settle().await;
    iago.send("<presence from='iago@evil.example' to='juliet@here.example' type='unsubscribe'/>").await;
    settle().await;
    juliet.arrived().await;
    juliet.send(&answer("subscribed")).await;
    assert!(juliet.arrived().await.join("").contains("id='m1'"));
    assert_eq!(stanzas(&mut iago).await, Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn who_is_declined_is_heard_no_more() {
    let (_world, here, mut juliet, mut iago) = juliet_and_iago(&["consent.declined_age=\"1 day\""]).await;
    iago.send(&says("m1", "hello")).await;
    assert_eq!(juliet.arrived().await.len(), 1);
    juliet.send(&answer("unsubscribed")).await;
    settle().await;
    assert_eq!(stanzas(&mut iago).await, Vec::<String>::new(), "who did not ask is not answered");
    assert_eq!(count(&here, "held").await, 0);
    iago.send(&says("m2", "hello?")).await;
    iago.send(SUBSCRIBE).await;
    assert_eq!(juliet.arrived().await, Vec::<String>::new());
    assert_eq!(here.refusals("first-contact-declined"), 2);
    // Not for ever.
    tokio::time::sleep(std::time::Duration::from_secs(2 * 24 * 3600)).await;
    let mut iago = Rogue::both_ways(&_world, &here, ME).await;
    let mut juliet = here.device("juliet@here.example/c").await;
    juliet.arrived().await;
    iago.send(&says("m3", "sorry")).await;
    assert!(juliet.arrived().await.join("").contains("<status>sorry</status>"));
}

#[tokio::test(start_paused = true)]
async fn who_is_declined_after_asking_is_told() {
    let (_world, _here, mut juliet, mut iago) = juliet_and_iago(&[]).await;
    iago.send(SUBSCRIBE).await;
    juliet.arrived().await;
    juliet.send(&answer("unsubscribed")).await;
    assert!(stanzas(&mut iago).await.join("").contains("type='unsubscribed'"));
}

#[tokio::test(start_paused = true)]
async fn a_block_drops_what_is_held_and_ends_conversations() {
    for blocked in ["iago@evil.example", "evil.example"] {
        let (_world, here, mut juliet, mut iago) = juliet_and_iago(&[]).await;
        let block = |what: &str| {
            format!(
                "<iq type='set' id='b'><{what} xmlns='urn:xmpp:blocking'><item jid='{blocked}'/></{what}></iq>"
            )
        };
        iago.send(&says("m1", "hello")).await;
        assert_eq!(juliet.arrived().await.len(), 1);
        juliet.send(&block("block")).await;
        juliet.arrived().await;
        for table in ["held", "first_contacts", "roster", "consents"] {
            assert_eq!(count(&here, table).await, 0, "{table}");
        }
        // She takes it back, writes, and blocks again: what she wrote does not count any more.
        juliet.send(&block("unblock")).await;
        juliet
            .send("<message to='iago@evil.example' type='chat' id='j1'><body>who are you?</body></message>")
            .await;
        settle().await;
        iago.send(&says("m2", "me")).await;
        assert!(juliet.arrived().await.join("").contains("id='m2'"));
        juliet.send(&block("block")).await;
        juliet.send(&block("unblock")).await;
        juliet.arrived().await;
        iago.send(&says("m3", "still me")).await;
        let seen = juliet.arrived().await.join("");
        assert!(seen.contains("type='subscribe'") && !seen.contains("id='m3'"), "{seen}");
        assert_eq!(waiting(&here).await.len(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn writing_to_somebody_lets_them_answer_and_brings_what_they_wrote() {
    let (_world, here, mut juliet, mut iago) = juliet_and_iago(&[]).await;
    iago.send(&says("m1", "hello")).await;
    juliet.arrived().await;
    juliet.send("<message to='iago@evil.example' type='chat' id='j1'><body>yes?</body></message>").await;
    settle().await;
    let seen = juliet.arrived().await.join("");
    assert!(seen.contains("id='m1'"), "{seen}");
    assert_eq!((count(&here, "roster").await, waiting(&here).await.len()), (0, 0));
    iago.send(&says("m2", "you")).await;
    assert!(juliet.arrived().await.join("").contains("id='m2'"));
    // It is on the disk, not only in memory.
    here.exchange().forget_consents();
    iago.send(&says("m3", "again")).await;
    assert!(juliet.arrived().await.join("").contains("id='m3'"));
    // And for her only.
    let mut nurse = here.person("nurse@here.example/b").await;
    iago.send(&says("n1", "hello").replace("juliet", "nurse")).await;
    assert!(nurse.arrived().await.join("").contains("type='subscribe'"));
}

#[tokio::test(start_paused = true)]
async fn adding_a_stranger_to_the_roster_is_an_answer_and_removing_a_contact_takes_it_back() {
    let (_world, here, mut juliet, mut iago) = juliet_and_iago(&[]).await;
    iago.send(&says("m1", "hello")).await;
    juliet.arrived().await;
    juliet.send("<iq type='set' id='s'><query xmlns='jabber:iq:roster'><item jid='iago@evil.example'/></query></iq>").await;
    settle().await;
    assert!(juliet.arrived().await.join("").contains("id='m1'"));
    assert_eq!(waiting(&here).await.len(), 0);
    // Somebody else, without a word between them.
    let set = |extra: &str| {
        format!(
            "<iq type='set' id='s'><query xmlns='jabber:iq:roster'><item jid='emilia@evil.example'{extra}/></query></iq>"
        )
    };
    let emilia = |id: &str| says(id, "dear").replace("iago", "emilia");
    juliet.send(&set("")).await;
    juliet.arrived().await;
    iago.send(&emilia("e1")).await;
    assert!(juliet.arrived().await.join("").contains("id='e1'"));
    juliet.send(&set(" subscription='remove'")).await;
    juliet.arrived().await;
    iago.send(&emilia("e2")).await;
    let seen = juliet.arrived().await.join("");
    assert!(seen.contains("type='subscribe'") && !seen.contains("id='e2'"), "{seen}");
}

#[tokio::test(start_paused = true)]
async fn answers_rooms_services_and_gateways_pass() {
    let (_world, here, mut juliet, mut evil) = juliet_and_iago(&[]).await;
    // The answer to a request, once.
    juliet
        .send("<iq type='get' id='v1' to='iago@evil.example/x'><query xmlns='jabber:iq:version'/></iq>")
        .await;
    let result = "<iq from='iago@evil.example/x' to='juliet@here.example/b' type='result' id='v1'/>";
    settle().await;
    evil.send(&format!("{result}{result}")).await;
    let seen = juliet.arrived().await.join("");
    assert_eq!(seen.matches("id='v1'").count(), 1, "{seen}");
    // A room, while she is in it.
    juliet.send("<presence to='den@evil.example/juliet'/>").await;
    settle().await;
    let said = "<message from='den@evil.example/iago' to='juliet@here.example/b' type='groupchat' id='g1'><body>hi</body></message>";
    let whisper = "<message from='den@evil.example/iago' to='juliet@here.example/b' type='chat' id='g2'><body>hi</body></message>";
    evil.send(said).await;
    evil.send(whisper).await;
    let seen = juliet.arrived().await.join("");
    assert!(seen.contains("id='g1'") && seen.contains("id='g2'"), "{seen}");
    juliet.send("<presence to='den@evil.example/juliet' type='unavailable'/>").await;
    settle().await;
    evil.heard().await;
    evil.send(said).await;
    assert!(stanzas(&mut evil).await.join("").contains("<service-unavailable"));
    // A service that she asked for its presence.
    juliet.send("<presence to='evil.example' type='subscribe'/>").await;
    settle().await;
    evil.send("<message from='evil.example' to='juliet@here.example' id='s1'><body>news</body></message>")
        .await;
    assert!(juliet.arrived().await.join("").contains("id='s1'"));
    // That is one address; a gateway is all of its domain, from the moment it says that she is registered.
    evil.send(&says("w1", "hi").replace("iago", "whale")).await;
    assert!(!juliet.arrived().await.join("").contains("id='w1'"));
    juliet.send("<iq type='set' id='reg' to='evil.example'><query xmlns='jabber:iq:register'><username>j</username></query></iq>").await;
    settle().await;
    evil.send("<iq from='evil.example' to='juliet@here.example/b' type='result' id='reg'/>").await;
    settle().await;
    here.exchange().forget_consents();
    evil.send(&says("c1", "hi").replace("iago", "carp")).await;
    assert!(juliet.arrived().await.join("").contains("id='c1'"));
    juliet.send("<iq type='set' id='un' to='evil.example'><query xmlns='jabber:iq:register'><remove/></query></iq>").await;
    settle().await;
    evil.send("<iq from='evil.example' to='juliet@here.example/b' type='result' id='un'/>").await;
    settle().await;
    juliet.arrived().await;
    evil.send(&says("c2", "hi").replace("iago", "carp")).await;
    assert!(!juliet.arrived().await.join("").contains("id='c2'"));
}

#[tokio::test(start_paused = true)]
async fn who_was_approved_beforehand_needs_no_answer() {
    let (_world, here, mut juliet, mut iago) = juliet_and_iago(&[]).await;
    juliet.send(&answer("subscribed")).await;
    juliet.arrived().await;
    iago.send(&says("m1", "hello")).await;
    iago.send(SUBSCRIBE).await;
    assert!(stanzas(&mut iago).await.join("").contains("type='subscribed'"));
    assert!(juliet.arrived().await.join("").contains("id='m1'"));
    assert_eq!(waiting(&here).await.len(), 0);
}

#[tokio::test(start_paused = true)]
async fn what_is_held_is_bounded_for_each_sender_account_and_domain() {
    let (_world, here, mut juliet, mut evil) = juliet_and_iago(&[
        "consent.held_stanzas=2",
        "consent.sender_requests=1",
        "consent.domain_requests=2",
        "limits.held_requests=16",
    ])
    .await;
    for id in ["m1", "m2", "m3"] {
        evil.send(&says(id, "hello")).await;
    }
    settle().await;
    assert_eq!((here.refusals("first-contact-full"), count(&here, "held").await), (1, 2));
    let _nurse = here.person("nurse@here.example/b").await;
    evil.send(&says("n1", "hello").replace("juliet", "nurse")).await;
    settle().await;
    assert_eq!(here.refusals("first-contacts-of-sender"), 1);
    evil.send(&says("e1", "hello").replace("iago", "emilia")).await;
    settle().await;
    evil.send(&says("e2", "hello").replace("iago", "bianca").replace("juliet", "nurse")).await;
    settle().await;
    assert_eq!(here.refusals("first-contacts-of-domain"), 1);
    // One of two declined: evil.example has one slot left, which is taken.
    juliet.send(&answer("unsubscribed")).await;
    settle().await;
    evil.send(&says("e3", "hello").replace("iago", "bianca").replace("juliet", "nurse")).await;
    settle().await;
    assert_eq!(here.refusals("first-contacts-of-domain"), 2);
    assert_eq!(waiting(&here).await.len(), 1);
    assert_eq!(stanzas(&mut evil).await, Vec::<String>::new(), "silence for all of it");
}

async fn waits_from(site: &Site) -> Vec<String> {
    waiting(site).await.into_iter().map(|request| request.from).collect()
}

#[tokio::test(start_paused = true)]
async fn a_domain_that_asks_too_much_of_one_user_gives_way_to_itself() {
    // An eighth of 16.
    let (world, here, mut juliet, mut evil) = juliet_and_iago(&["limits.held_requests=16"]).await;
    for name in ["iago", "emilia"] {
        evil.send(&says("m1", "hello").replace("iago", name)).await;
        settle().await;
    }
    let mut other = Rogue::both_ways(&world, &here, ("other.example", "here.example")).await;
    other.send(&says("o1", "hello").replace("evil", "other")).await;
    settle().await;
    juliet.arrived().await;
    evil.send(&says("m1", "hello").replace("iago", "bianca")).await;
    let seen = juliet.arrived().await.join("");
    assert!(
        seen.contains("iago@evil.example") && seen.contains("type='unsubscribe'"),
        "not shown any more: {seen}"
    );
    assert!(seen.contains("bianca@evil.example"), "{seen}");
    assert_eq!(waits_from(&here).await, ["bianca@evil.example", "iago@other.example", "emilia@evil.example"]);
    assert_eq!((here.refusals("first-contact-gave-way"), count(&here, "held").await), (1, 3));
    assert_eq!(stanzas(&mut evil).await, Vec::<String>::new(), "silence");
    // What gave way goes on counting for its domain: three of three.
    assert_eq!(count(&here, "first_contacts").await, 4);
    // The inside has its half.
    let mut nurse = here.person("nurse@here.example/b").await;
    nurse.send("<presence to='juliet@here.example' type='subscribe'/>").await;
    assert!(juliet.arrived().await.join("").contains("nurse@here.example"));
}

#[tokio::test(start_paused = true)]
async fn asking_and_taking_back_is_no_way_around_the_bounds() {
    let (world, here, mut juliet, mut evil) =
        juliet_and_iago(&["consent.domain_requests=2", "consent.age=\"1 day\""]).await;
    let back = "<presence from='iago@evil.example' to='juliet@here.example' type='unsubscribe'/>";
    for name in ["iago", "emilia", "bianca"] {
        evil.send(&SUBSCRIBE.replace("iago", name)).await;
        settle().await;
        evil.send(&back.replace("iago", name)).await;
        settle().await;
    }
    let seen = juliet.arrived().await.join("");
    assert!(seen.contains("emilia@") && !seen.contains("bianca@"), "{seen}");
    assert_eq!(here.refusals("first-contacts-of-domain"), 1);
    assert!(waiting(&here).await.is_empty(), "nobody is shown");
    // Who asked before may ask again.
    evil.send(SUBSCRIBE).await;
    assert!(juliet.arrived().await.join("").contains("iago@"));
    evil.send(back).await;
    settle().await;
    // It ages like what nobody answers.
    tokio::time::sleep(std::time::Duration::from_secs(2 * 24 * 3600)).await;
    assert_eq!(count(&here, "first_contacts").await, 0);
    let mut evil = Rogue::both_ways(&world, &here, ME).await;
    evil.send(&SUBSCRIBE.replace("iago", "bianca")).await;
    settle().await;
    assert_eq!(waits_from(&here).await, ["bianca@evil.example"]);
}

async fn does(site: &Site, statement: &'static str) {
    site.exchange().db.run(Batch::new(Lane::Inside).with(sql(statement))).await.unwrap();
}

const BREAK: &str = "CREATE TRIGGER broken BEFORE INSERT ON first_contacts WHEN new.peer = 'iago@evil.example' \
     BEGIN SELECT RAISE(ABORT, 'broken'); END";

#[tokio::test(start_paused = true)]
async fn what_the_store_did_not_take_is_tried_again() {
    for stanza in [SUBSCRIBE.to_owned(), says("m1", "hello")] {
        let (_world, here, mut juliet, mut iago) = juliet_and_iago(&[]).await;
        does(&here, BREAK).await;
        iago.send(&format!("{stanza}<r xmlns='urn:xmpp:sm:3'/>")).await;
        assert!(iago.heard().await.iter().any(|xml| xml.starts_with("<a ")), "acknowledged");
        assert_eq!((juliet.arrived().await.len(), count(&here, "intake").await), (0, 1), "{stanza}");
        does(&here, "DROP TRIGGER broken").await;
        tokio::time::sleep(std::time::Duration::from_secs(6)).await;
        assert!(juliet.arrived().await.join("").contains("type='subscribe'"), "{stanza}");
        assert_eq!((count(&here, "intake").await, waiting(&here).await.len()), (0, 1));
        assert!(here.exchange().control.requests.intake.is_as_new());
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_taken_back_while_the_store_failed_is_taken_back_later() {
    let (_world, here, mut juliet, mut iago) = juliet_and_iago(&[]).await;
    iago.send(SUBSCRIBE).await;
    settle().await;
    does(&here, "CREATE TRIGGER broken BEFORE UPDATE ON roster BEGIN SELECT RAISE(ABORT, 'broken'); END")
        .await;
    iago.send("<presence from='iago@evil.example' to='juliet@here.example' type='unsubscribe'/>").await;
    assert!(!juliet.arrived().await.join("").contains("unsubscribe"));
    does(&here, "DROP TRIGGER broken").await;
    tokio::time::sleep(std::time::Duration::from_secs(6)).await;
    assert!(juliet.arrived().await.join("").contains("type='unsubscribe'"));
    assert!(waiting(&here).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn one_that_cannot_be_sorted_holds_up_nobody_else() {
    let (_world, here, mut juliet, mut evil) = juliet_and_iago(&[]).await;
    does(&here, BREAK).await;
    evil.send(SUBSCRIBE).await;
    evil.send(&says("e1", "hello").replace("iago", "emilia")).await;
    let seen = juliet.arrived().await.join("");
    assert!(seen.contains("emilia@") && !seen.contains("iago@"), "at once, and from the same domain: {seen}");
    // It is set aside, on the disk.
    tokio::time::sleep(std::time::Duration::from_secs(20)).await;
    assert_eq!((here.refusals("first-contact-aside"), count(&here, "intake").await), (1, 1));
    assert!(here.exchange().control.requests.intake.is_as_new());
    // The next start tries again.
    does(&here, "DROP TRIGGER broken").await;
    here.exchange().start_consent().await.unwrap();
    assert!(juliet.arrived().await.join("").contains("iago@"));
    assert_eq!(count(&here, "intake").await, 0);
}

#[tokio::test(start_paused = true)]
async fn nothing_that_was_held_is_lost_when_its_delivery_fails() {
    let (_world, here, mut juliet, mut iago) = juliet_and_iago(&[]).await;
    for id in ["m1", "m2"] {
        iago.send(&says(id, "hello")).await;
        settle().await;
    }
    juliet.arrived().await;
    does(&here, "CREATE TRIGGER broken BEFORE DELETE ON held BEGIN SELECT RAISE(ABORT, 'broken'); END").await;
    juliet.send(&answer("subscribed")).await;
    settle().await;
    assert_eq!(count(&here, "held").await, 2);
    juliet.arrived().await;
    does(&here, "DROP TRIGGER broken").await;
    tokio::time::sleep(std::time::Duration::from_secs(6)).await;
    let seen = juliet.arrived().await.join("");
    assert!(seen.contains("id='m1'") && seen.contains("id='m2'"), "{seen}");
    assert_eq!((count(&here, "held").await, count(&here, "first_contacts").await), (0, 0));
    assert!(stanzas(&mut iago).await.is_empty(), "the sender is told nothing of it");
}

/// In the order in which they came.
fn ids(seen: &[String]) -> Vec<String> {
    let id = |xml: &String| Some(xml.split_once(" id='")?.1.split_once('\'')?.0.to_owned());
    seen.iter().filter(|xml| xml.starts_with("<message")).filter_map(id).collect()
}

/// Messages from iago, with these numbers.
async fn write(iago: &mut Rogue, numbers: Range<u32>) -> Vec<String> {
    let ids: Vec<String> = numbers.map(|number| format!("m{number}")).collect();
    for id in &ids {
        iago.send(&says(id, "more")).await;
    }
    ids
}

#[tokio::test(start_paused = true)]
async fn nothing_overtakes_what_was_held() {
    let (_world, here, mut juliet, mut iago) = juliet_and_iago(&[]).await;
    let mut all = write(&mut iago, 0..5).await;
    settle().await;
    juliet.arrived().await;
    // The release has to wait for somebody who changes the account.
    let account = here.exchange().accounts.online(&"juliet@here.example".parse().unwrap()).unwrap();
    let writing = account.writes.lock().await;
    juliet.send("<message to='iago@evil.example' type='chat' id='j1'><body>yes?</body></message>").await;
    settle().await;
    all.extend(write(&mut iago, 5..40).await);
    iago.send(
        "<message from='iago@evil.example/x' to='juliet@here.example' type='chat' id='state'><active \
               xmlns='http://jabber.org/protocol/chatstates'/></message>",
    )
    .await;
    iago.send(SUBSCRIBE).await;
    settle().await;
    all.push("state".into());
    assert_eq!(ids(&juliet.arrived().await), Vec::<String>::new());
    drop(writing);
    settle().await;
    let seen = juliet.arrived().await;
    assert_eq!(ids(&seen), all, "{seen:?}");
    assert!(seen.last().unwrap().contains("type='subscribe'"), "and the request is not lost: {seen:?}");
    assert!(here.exchange().control.requests.intake.is_as_new());
    // From now on they come as they are.
    iago.send(&says("last", "now")).await;
    assert!(!juliet.arrived().await.join("").contains("<delay"));
}

#[tokio::test(start_paused = true)]
async fn nothing_overtakes_what_is_not_sorted_yet() {
    let (_world, here, mut juliet, mut iago) = juliet_and_iago(&[]).await;
    // What waits in the intake is what the worker has not come to.
    let account = here.exchange().accounts.online(&"juliet@here.example".parse().unwrap()).unwrap();
    let writing = account.writes.lock().await;
    let mut all = write(&mut iago, 0..20).await;
    settle().await;
    juliet.send("<message to='iago@evil.example' type='chat' id='j1'><body>yes?</body></message>").await;
    settle().await;
    all.extend(write(&mut iago, 20..40).await);
    settle().await;
    assert_eq!(ids(&juliet.arrived().await), Vec::<String>::new());
    drop(writing);
    settle().await;
    // Who writes on and on has had consent for long: none of it waits for the worker's pauses.
    all.extend(write(&mut iago, 40..60).await);
    settle().await;
    let seen = juliet.arrived().await;
    assert_eq!(ids(&seen), all, "{seen:?}");
    assert_eq!(
        (count(&here, "first_contacts").await, waiting(&here).await.len()),
        (0, 0),
        "nothing is left held"
    );
    assert!(here.exchange().control.requests.intake.is_as_new());
}

#[tokio::test(start_paused = true)]
async fn who_loses_consent_while_they_stand_in_line_is_held() {
    let (_world, here, mut juliet, mut iago) = juliet_and_iago(&[]).await;
    write(&mut iago, 0..1).await;
    settle().await;
    juliet.arrived().await;
    let account = here.exchange().accounts.online(&"juliet@here.example".parse().unwrap()).unwrap();
    let writing = account.writes.lock().await;
    juliet.send("<message to='iago@evil.example' type='chat' id='j1'><body>yes?</body></message>").await;
    settle().await;
    write(&mut iago, 1..2).await;
    settle().await;
    does(&here, "DELETE FROM consents").await;
    here.exchange().forget_consents();
    drop(writing);
    settle().await;
    let seen = juliet.arrived().await;
    assert_eq!(ids(&seen), ["m0"], "what was accepted is delivered: {seen:?}");
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    assert_eq!(count(&here, "held").await, 1);
}

#[tokio::test(start_paused = true)]
async fn who_waits_behind_their_own_words_keeps_their_room_and_is_not_acknowledged() {
    let (_world, here, mut juliet, mut iago) = juliet_and_iago(&["limits.crossing_peer_stanzas=3"]).await;
    write(&mut iago, 0..1).await;
    settle().await;
    let account = here.exchange().accounts.online(&"juliet@here.example".parse().unwrap()).unwrap();
    let writing = account.writes.lock().await;
    juliet.send("<message to='iago@evil.example' type='chat' id='j1'><body>yes?</body></message>").await;
    settle().await;
    // One is on the disk; the others are neither lost nor taken, and after three the stream is not read.
    iago.send("<r xmlns='urn:xmpp:sm:3'/>").await;
    assert!(iago.heard().await.join("").contains("h='1'"));
    let all = write(&mut iago, 1..10).await;
    iago.send("<r xmlns='urn:xmpp:sm:3'/>").await;
    let heard = iago.heard().await.join("");
    assert!(!heard.contains("<a "), "{heard}");
    drop(writing);
    settle().await;
    assert_eq!(ids(&juliet.arrived().await)[1..], all);
}

#[tokio::test(start_paused = true)]
async fn granted_only_lets_in_whom_the_user_has_accepted() {
    use crate::control::breaker::{BreakerOp, Level};
    let (_world, here, mut juliet, mut evil) = juliet_and_iago(&[]).await;
    evil.send(&says("m1", "hello")).await;
    settle().await;
    juliet.send(&answer("subscribed")).await;
    juliet.send("<message to='emilia@evil.example' type='chat' id='j1'><body>hi</body></message>").await;
    settle().await;
    juliet.arrived().await;
    let (level, why) = (Level::GrantedOnly, "an attack".into());
    here.admin(Operation::Breaker(BreakerOp::Set { domain: None, level, why, until: None })).await.unwrap();
    evil.send(&says("e1", "hello").replace("iago", "emilia")).await;
    evil.send(&says("m2", "hello")).await;
    assert_eq!(ids(&juliet.arrived().await), ["m2"], "she accepted iago, and only wrote to emilia");
}

#[tokio::test(start_paused = true)]
async fn who_subscribes_to_a_node_gets_what_it_publishes() {
    let (_world, here, mut juliet, mut evil) = juliet_and_iago(&[]).await;
    let event = "<message from='news.evil.example' to='juliet@here.example' type='headline' id='p1'><event \
         xmlns='http://jabber.org/protocol/pubsub#event'><items node='n'><item id='1'/></items></event></message>"
        .replace("news.evil", "evil");
    let ask = |what: &str, id: &str| {
        format!(
            "<iq type='set' id='{id}' to='evil.example'><pubsub xmlns='http://jabber.org/protocol/pubsub'><{what} \
             node='n' jid='juliet@here.example'/></pubsub></iq>"
        )
    };
    let result = |id: &str, kind: &str| {
        format!("<iq from='evil.example' to='juliet@here.example/b' type='{kind}' id='{id}'/>")
    };
    evil.send(&event).await;
    assert!(ids(&juliet.arrived().await).is_empty());
    for (what, answered, passes) in [
        ("subscribe", "error", false),
        ("subscribe", "result", true),
        ("unsubscribe", "error", true),
        ("unsubscribe", "result", false),
    ] {
        juliet.send(&ask(what, "q")).await;
        settle().await;
        evil.send(&result("q", answered)).await;
        settle().await;
        juliet.arrived().await;
        here.exchange().forget_consents();
        evil.send(&event).await;
        assert_eq!(ids(&juliet.arrived().await).len(), usize::from(passes), "{what} {answered}");
    }
}

#[tokio::test(start_paused = true)]
async fn presence_is_refreshed_after_a_reopening() {
    use crate::control::breaker::{BreakerOp, Level};
    let world = World::new(NAMES);
    let here = world.site("here.example", &[]).await;
    let other = world.site("other.example", &[]).await;
    let mut juliet = here.person("juliet@here.example/b").await;
    let mut romeo = other.person("romeo@other.example/a").await;
    let both = |to: &str, kind: &str| format!("<presence to='{to}' type='{kind}'/>");
    juliet.send(&both("romeo@other.example", "subscribe")).await;
    settle().await;
    romeo.send(&both("juliet@here.example", "subscribed")).await;
    romeo.send(&both("juliet@here.example", "subscribe")).await;
    settle().await;
    juliet.send(&both("romeo@other.example", "subscribed")).await;
    settle().await;
    let set = |level| {
        let why = "an attack".into();
        Operation::Breaker(BreakerOp::Set { domain: None, level, why, until: None })
    };
    here.admin(set(Level::Closed)).await.unwrap();
    settle().await;
    juliet.send("<presence><status>moved on</status></presence>").await;
    romeo.send("<presence><status>waits</status></presence>").await;
    settle().await;
    assert!(!juliet.arrived().await.join("").contains("waits"));
    assert!(!romeo.arrived().await.join("").contains("moved on"));
    here.admin(set(Level::Normal)).await.unwrap();
    tokio::time::sleep(std::time::Duration::from_secs(20)).await;
    let (seen, heard) = (juliet.arrived().await.join(""), romeo.arrived().await.join(""));
    assert!(seen.contains("<status>waits"), "{seen}; he: {heard}");
    assert!(heard.contains("<status>moved on"), "{heard}");
}

#[tokio::test(start_paused = true)]
async fn moderators_see_who_waits_and_throw_it_away() {
    let (_world, here, mut juliet, mut evil) = juliet_and_iago(&[]).await;
    evil.send(&says("m1", "secret words")).await;
    evil.send(&says("m2", "more").replace("iago", "emilia")).await;
    settle().await;
    let listed = waiting(&here).await;
    assert_eq!(listed.len(), 2);
    assert!(!serde_json::to_string(&listed).unwrap().contains("secret"), "never the text");
    let operator = Operator(std::sync::Arc::clone(here.exchange()));
    let throw = |from: &str| Operation::Requests(RequestsOp::Drop { from: from.into(), why: "spam".into() });
    operator.run(&Actor::command_line(), throw("iago@evil.example")).await.unwrap();
    let left: Vec<String> = waiting(&here).await.into_iter().map(|request| request.from).collect();
    assert_eq!(left, ["emilia@evil.example"]);
    operator.run(&Actor::command_line(), throw("evil.example")).await.unwrap();
    for table in ["held", "first_contacts", "roster"] {
        assert_eq!(count(&here, table).await, 0, "{table}");
    }
    juliet.arrived().await;
    let mut other = here.device("juliet@here.example/c").await;
    assert!(!other.arrived().await.join("").contains("evil.example"), "not shown any more");
    assert!(operator.run(&Actor::command_line(), throw("not an address")).await.is_err());
    let audit = here
        .exchange()
        .db
        .read(sql("SELECT what, why FROM audit WHERE face <> 'configuration' ORDER BY id"))
        .await
        .unwrap();
    let entries: Vec<_> = audit.iter().map(|row| (row.text(0).to_owned(), row.text(1).to_owned())).collect();
    assert_eq!(entries, vec![("requests drop".to_owned(), "spam".to_owned()); 2]);
}

#[tokio::test(start_paused = true)]
async fn an_account_that_goes_takes_consents_and_requests_along() {
    let (_world, here, mut juliet, mut evil) = juliet_and_iago(&[]).await;
    juliet.send("<message to='iago@evil.example' type='chat' id='j1'><body>hi</body></message>").await;
    evil.send(&says("m1", "hello").replace("iago", "emilia")).await;
    settle().await;
    assert!(count(&here, "held").await > 0 && count(&here, "consents").await > 0);
    let jid: Jid = "juliet@here.example".parse().unwrap();
    here.exchange().erase_account(&jid, None).await.unwrap().depart().await;
    for table in ["held", "first_contacts", "consents", "roster"] {
        assert_eq!(count(&here, table).await, 0, "{table}");
    }
    // The next of that name starts with nobody.
    let mut next = here.person("juliet@here.example/b").await;
    evil.send(&says("m2", "hello")).await;
    let seen = next.arrived().await.join("");
    assert!(seen.contains("type='subscribe'") && !seen.contains("id='m2'"), "{seen}");
}

#[tokio::test(start_paused = true)]
async fn what_a_stop_interrupted_is_done_at_the_next_start() {
    let (_world, here, mut juliet, mut evil) = juliet_and_iago(&[]).await;
    evil.send(&says("m1", "hello")).await;
    settle().await;
    juliet.arrived().await;
    // As if it had stopped between the answer and the delivery, and between an acknowledgement and the sorting.
    let stanza = says("m2", "hello").replace("iago", "emilia");
    let batch = Batch::new(Lane::Inside).with(sql("UPDATE first_contacts SET state = 2")).with(
        sql("INSERT INTO intake (id, stanza) VALUES (?1, ?2)")
            .bind(here.exchange().ids.next().0)
            .bind(stanza.into_bytes()),
    );
    here.exchange().db.run(batch).await.unwrap();
    here.exchange().start_consent().await.unwrap();
    settle().await;
    let seen = juliet.arrived().await.join("");
    assert!(seen.contains("id='m1'") && seen.contains("emilia@evil.example"), "{seen}");
    assert_eq!((count(&here, "intake").await, count(&here, "held").await), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn what_nobody_answers_goes_after_a_while() {
    let (_world, here, mut juliet, mut evil) = juliet_and_iago(&["consent.age=\"1 day\""]).await;
    evil.send(&says("m1", "hello")).await;
    settle().await;
    assert_eq!(waiting(&here).await.len(), 1);
    tokio::time::sleep(std::time::Duration::from_secs(2 * 24 * 3600)).await;
    for table in ["held", "first_contacts", "roster"] {
        assert_eq!(count(&here, table).await, 0, "{table}");
    }
    juliet.arrived().await;
}

#[tokio::test(start_paused = true)]
async fn an_update_knows_who_knew_each_other_before() {
    let (_world, here, mut juliet, mut evil) = juliet_and_iago(&[]).await;
    juliet.send("<iq type='set' id='s'><query xmlns='jabber:iq:roster'><item jid='emilia@evil.example'/></query></iq>").await;
    juliet.send("<message to='iago@evil.example' type='chat' id='j1'><body>hi</body></message>").await;
    settle().await;
    let before =
        Batch::new(Lane::Inside).with(sql("DELETE FROM consents")).with(sql("DELETE FROM consents_built"));
    here.exchange().db.run(before).await.unwrap();
    here.exchange().forget_consents();
    here.exchange().start_consent().await.unwrap();
    juliet.arrived().await;
    evil.send(&says("m1", "hello")).await;
    evil.send(&says("m2", "hello").replace("iago", "emilia")).await;
    let seen = juliet.arrived().await.join("");
    assert!(seen.contains("id='m1'") && seen.contains("id='m2'"), "{seen}");
}
