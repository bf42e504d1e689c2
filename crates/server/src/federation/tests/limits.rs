//! Rows that are held back, a crossing that is full, streams that bugs end, and what one account may take.

use std::time::Duration;

use super::stage::{Rogue, Site, World, auth, leaf, settle};
use crate::federation::MOST_WAITING;
use crate::federation::budget::Most;
use crate::federation::handle::Command;
use crate::federation::peer::MOST_FAULTS;

const NAMES: &[&str] = &["here.example", "rogue.example"];
const ME: (&str, &str) = ("rogue.example", "here.example");
const TO_ROGUE: &str = "<message to='a@rogue.example' type='chat' id='m1'><body>hello</body></message>";
const FROM_ROGUE: &str = "<message from='a@rogue.example' to='juliet@here.example/b' type='chat' id='r1'><body>hello</body></message>";

/// A moment in which everybody does what there is to do, far below the time for which rows are held.
const MOMENT: Duration = Duration::from_millis(5);

async fn here() -> (World, Site) {
    let world = World::new(NAMES);
    let here = world.site("here.example", &[]).await;
    (world, here)
}

async fn both_ways(world: &World, here: &Site) -> Rogue {
    Rogue::both_ways(world, here, ME).await
}

/// What the rogue reads up to and with the next message; requests for acknowledgements count it.
async fn message(rogue: &mut Rogue) -> String {
    loop {
        let element = rogue.next().await.unwrap();
        if element.starts_with("<message") {
            return element;
        }
    }
}

async fn acknowledge(rogue: &mut Rogue, h: u32) {
    rogue.send(&format!("<a xmlns='urn:xmpp:sm:3' h='{h}'/>")).await;
}

#[tokio::test(start_paused = true)]
async fn a_message_that_the_peer_acknowledges_at_once_needs_no_row() {
    let (world, here) = here().await;
    let mut rogue = both_ways(&world, &here).await;
    let mut romeo = here.person("romeo@here.example/a").await;
    romeo.send("<enable xmlns='urn:xmpp:sm:3'/>").await;
    assert!(romeo.arrived().await.iter().any(|xml| xml.contains("enabled")));
    romeo.send(TO_ROGUE).await;
    romeo.send("<r xmlns='urn:xmpp:sm:3'/>").await;
    assert!(message(&mut rogue).await.contains("hello"));
    tokio::time::sleep(MOMENT).await;
    assert_eq!(here.outbound().await, 0, "no row yet");
    assert!(!romeo.now().await.iter().any(|xml| xml.contains("h='1'")), "nobody is told that it is safe");
    acknowledge(&mut rogue, 1).await;
    tokio::time::sleep(MOMENT).await;
    assert!(romeo.now().await.iter().any(|xml| xml.contains("h='1'")), "now it is");
    settle().await;
    assert_eq!(here.outbound().await, 0);
    assert_eq!(here.federation.shared.report().peers[0].queue_kept, 0);
}

#[tokio::test(start_paused = true)]
async fn a_message_that_the_peer_does_not_acknowledge_gets_its_row() {
    let (world, here) = here().await;
    let mut rogue = both_ways(&world, &here).await;
    let mut romeo = here.person("romeo@here.example/a").await;
    romeo.send("<enable xmlns='urn:xmpp:sm:3'/>").await;
    romeo.arrived().await;
    romeo.send(TO_ROGUE).await;
    romeo.send("<r xmlns='urn:xmpp:sm:3'/>").await;
    message(&mut rogue).await;
    let arrived = romeo.arrived().await;
    assert_eq!(here.outbound().await, 1);
    assert!(arrived.iter().any(|xml| xml.contains("h='1'")), "{arrived:?}");
    acknowledge(&mut rogue, 1).await;
    settle().await;
    assert_eq!(here.outbound().await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_breaks_leaves_rows_of_what_was_held() {
    let (world, here) = here().await;
    let mut rogue = both_ways(&world, &here).await;
    let mut romeo = here.person("romeo@here.example/a").await;
    romeo.send(TO_ROGUE).await;
    message(&mut rogue).await;
    assert_eq!(here.outbound().await, 0);
    drop(rogue);
    tokio::time::sleep(MOMENT).await;
    assert_eq!(here.outbound().await, 1);
    // And the next stream brings it, once.
    let mut rogue = both_ways(&world, &here).await;
    assert!(message(&mut rogue).await.contains("id='m1'"));
    acknowledge(&mut rogue, 1).await;
    settle().await;
    assert_eq!(here.outbound().await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_bug_in_a_stream_loses_nothing_and_is_not_repeated_for_ever() {
    let (world, here) = here().await;
    let mut romeo = here.person("romeo@here.example/a").await;
    romeo.send("<presence/>").await;
    for fault in 1..=MOST_FAULTS {
        let mut rogue = both_ways(&world, &here).await;
        if fault == 1 {
            romeo.send(TO_ROGUE).await;
        }
        assert!(message(&mut rogue).await.contains("id='m1'"));
        let lines: Vec<_> = here.federation.shared.lines.lock().values().cloned().collect();
        lines.iter().for_each(|line| line.ask(Command::Panic));
        tokio::time::sleep(MOMENT).await;
        assert_eq!(here.refusals("stream-panicked"), u64::from(fault));
        assert_eq!(here.outbound().await, i64::from(fault < MOST_FAULTS), "after {fault}");
    }
    let arrived = romeo.arrived().await;
    let error = arrived.iter().find(|xml| xml.contains("id='m1'")).unwrap_or_else(|| panic!("{arrived:?}"));
    assert!(error.contains("internal-server-error"), "{error}");
    // What the peer sends may be what makes us fail: its domain is not let in for a while.
    let certs = world.certs("rogue", &leaf("rogue.example"));
    let mut rogue = Rogue::connect(&world, &here, &certs, ME).await;
    assert!(rogue.next().await.unwrap().contains("EXTERNAL"));
    rogue.send(&auth(ME.0)).await;
    rogue.next().await.unwrap();
    rogue.wire.restart();
    rogue.hello(ME.0, ME.1).await;
    assert!(rogue.rest().await.contains("internal-server-error"));
    assert_eq!(here.refusals("peer-faults"), 1);
    tokio::time::sleep(Duration::from_secs(601)).await;
    both_ways(&world, &here).await;
}

#[tokio::test(start_paused = true)]
async fn a_full_crossing_is_waited_for_and_then_refused_by_name() {
    let (world, here) = here().await;
    let mut juliet = here.person("juliet@here.example/b").await;
    let mut rogue = both_ways(&world, &here).await;
    let load = std::sync::Arc::clone(&here.federation.shared.peers.get("rogue.example").unwrap().load);
    // Nothing of this peer's crosses.
    load.set(256);
    rogue.send(FROM_ROGUE).await;
    tokio::time::sleep(Duration::from_secs(29)).await;
    assert_eq!(here.refusals("crossing-full"), 0, "it waits");
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(here.refusals("crossing-full"), 1);
    let answer = message(&mut rogue).await;
    assert!(answer.contains("resource-constraint") && answer.contains("id='r1'"), "{answer}");
    load.set(0);
    rogue.send(&FROM_ROGUE.replace("hello", "again")).await;
    assert_eq!(juliet.bodies().await, ["again"]);
}

#[tokio::test(start_paused = true)]
async fn what_could_be_neither_taken_nor_answered_is_not_acknowledged() {
    let (world, here) = here().await;
    let certs = world.certs("rogue", &leaf("rogue.example"));
    let mut rogue = Rogue::connect(&world, &here, &certs, ME).await;
    assert!(rogue.next().await.unwrap().contains("EXTERNAL"));
    rogue.external(ME.0, ME.1).await;
    rogue.send("<enable xmlns='urn:xmpp:sm:3'/>").await;
    assert!(rogue.next().await.unwrap().contains("enabled"));
    // Nobody listens at its address: an answer has no way, and after an attempt that failed none is made for a while.
    rogue.send("<iq type='get' id='1' from='a@rogue.example' to='here.example'><ping xmlns='urn:xmpp:ping'/></iq>").await;
    settle().await;
    let load = std::sync::Arc::clone(&here.federation.shared.peers.get("rogue.example").unwrap().load);
    load.set(256);
    let pair = here.federation.shared.peers.get("rogue.example").unwrap();
    let pair = pair.pairs.lock().values().next().cloned().unwrap();
    rogue.send(FROM_ROGUE).await;
    tokio::time::sleep(Duration::from_secs(29)).await;
    pair.kick_at(&here.federation.shared, i64::MAX);
    let rest = rogue.rest().await;
    assert_eq!(here.refusals("crossing-full"), 1);
    assert!(rest.contains("resource-constraint") && rest.contains("h='1'"), "{rest}");
}

#[tokio::test(start_paused = true)]
async fn one_account_does_not_call_all_the_world() {
    let (_world, here) = here().await;
    let mut romeo = here.person("romeo@here.example/a").await;
    let mut juliet = here.person("juliet@here.example/b").await;
    let account: trunkline_xmpp::jid::Jid = "romeo@here.example".parse().unwrap();
    let places = &here.federation.shared.budgets.waiting_for;
    let most = Most::each(MOST_WAITING);
    let taken: Vec<_> = (0..MOST_WAITING).map(|_| places.take(account.clone(), most).unwrap()).collect();
    romeo.send(TO_ROGUE).await;
    let arrived = romeo.arrived().await;
    assert!(arrived.iter().any(|xml| xml.contains("too many other servers")), "{arrived:?}");
    assert_eq!((here.refusals("too-many-domains"), here.outbound().await), (1, 0));
    juliet.send(TO_ROGUE).await;
    settle().await;
    assert_eq!(here.outbound().await, 1, "others are not concerned");
    // And where a call is made already, nothing more is taken.
    romeo.send(TO_ROGUE).await;
    settle().await;
    assert_eq!(here.outbound().await, 2);
    drop(taken);
    assert!(places.take(account, most).is_ok());
}
