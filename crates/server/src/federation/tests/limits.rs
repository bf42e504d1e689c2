//! Rows that are held back, a crossing that is full, streams that bugs end, and what one account may take.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::stage::{Person, Rogue, Site, World, auth, leaf, settle};
use crate::federation::MOST_WAITING;
use crate::federation::budget::Most;
use crate::federation::handle::Command;
use crate::federation::management::ENABLES;
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

/// A stream that goes both ways, proved, and not acknowledged yet.
async fn unacknowledged(world: &World, here: &Site) -> Rogue {
    let certs = world.certs("rogue", &leaf("rogue.example"));
    let mut rogue = Rogue::connect(world, here, &certs, ME).await;
    assert!(rogue.next().await.unwrap().contains("EXTERNAL"));
    rogue.send("<bidi xmlns='urn:xmpp:bidi'/>").await;
    rogue.external(ME.0, ME.1).await;
    rogue
}

/// A stream that goes both ways and is not acknowledged yet, with messages of some 20 kB each on their way to a rogue that
/// does not read.
async fn bytes_wait(world: &World, here: &Site, romeo: &mut Person) -> Rogue {
    let rogue = unacknowledged(world, here).await;
    // Longer than anybody waits for acknowledgements to be enabled.
    tokio::time::sleep(ENABLES).await;
    long_messages(romeo, 0..20).await;
    assert!(here.outbound().await > 5, "most of them wait");
    rogue
}

async fn long_messages(romeo: &mut Person, numbers: std::ops::Range<usize>) {
    for n in numbers {
        let body = "x".repeat(20_000);
        let id = format!("m{n}");
        romeo
            .send(&format!(
                "<message to='a@rogue.example' type='chat' id='{id}'><body>{body}</body></message>"
            ))
            .await;
    }
    settle().await;
}

/// The numbers of the messages that the rogue gets, and how many had come when acknowledgements began.
async fn numbers(rogue: &mut Rogue) -> (Vec<usize>, Option<usize>) {
    let (mut numbers, mut began) = (Vec::new(), None);
    for element in rogue.heard().await {
        if element.starts_with("<enabled") {
            began = Some(numbers.len());
        }
        let id = element.split_once("id='m").and_then(|(_, rest)| rest.split_once('\''));
        if element.starts_with("<message") {
            numbers.push(id.unwrap().0.parse().unwrap());
        }
    }
    (numbers, began)
}

#[tokio::test(start_paused = true)]
async fn what_waits_is_not_sent_between_the_proof_and_the_acknowledgements() {
    let (world, here) = here().await;
    let mut romeo = here.person("romeo@here.example/a").await;
    romeo.send(TO_ROGUE).await;
    settle().await;
    // It dies before it could enable them.
    let mut rogue = unacknowledged(&world, &here).await;
    let early = tokio::time::timeout(ENABLES / 2, message(&mut rogue)).await;
    assert!(early.is_err(), "{early:?}");
    drop(rogue);
    settle().await;
    assert_eq!(here.outbound().await, 1, "it is still there");
    let mut rogue = both_ways(&world, &here).await;
    assert!(message(&mut rogue).await.contains("m1"));
    acknowledge(&mut rogue, 1).await;
    settle().await;
    assert_eq!(here.outbound().await, 0);
}

#[tokio::test(start_paused = true)]
async fn who_sends_stanzas_instead_of_enabling_acknowledgements_gets_what_waits() {
    let (world, here) = here().await;
    let mut romeo = here.person("romeo@here.example/a").await;
    romeo.send(TO_ROGUE).await;
    settle().await;
    let mut rogue = unacknowledged(&world, &here).await;
    rogue.send(FROM_ROGUE).await;
    let soon = tokio::time::timeout(ENABLES / 2, message(&mut rogue)).await;
    assert!(soon.is_ok_and(|message| message.contains("m1")));
}

#[tokio::test(start_paused = true)]
async fn acknowledgements_that_begin_while_bytes_wait_count_what_comes_after() {
    let (world, here) = here().await;
    let mut romeo = here.person("romeo@here.example/a").await;
    let mut rogue = bytes_wait(&world, &here, &mut romeo).await;
    rogue.send("<enable xmlns='urn:xmpp:sm:3'/>").await;
    long_messages(&mut romeo, 20..30).await;
    let (got, began) = numbers(&mut rogue).await;
    assert_eq!(got, (0..30).collect::<Vec<_>>());
    let began = began.unwrap();
    assert!((1..20).contains(&began), "{began}");
    assert_eq!(here.outbound().await, 30 - i64::try_from(began).unwrap(), "what came before it is delivered");
    acknowledge(&mut rogue, u32::try_from(30 - began).unwrap()).await;
    settle().await;
    assert_eq!(here.outbound().await, 0);
    assert_eq!(here.federation.shared.report().peers[0].queue_kept, 0);
    // One more than there were: both sides had the same count.
    acknowledge(&mut rogue, u32::try_from(31 - began).unwrap()).await;
    assert!(rogue.rest().await.contains("handled-count-too-high"));
}

#[tokio::test(start_paused = true)]
async fn a_cut_while_bytes_wait_loses_nothing_that_the_socket_had_not_taken() {
    let (world, here) = here().await;
    let mut romeo = here.person("romeo@here.example/a").await;
    let mut rogue = bytes_wait(&world, &here, &mut romeo).await;
    let waited = usize::try_from(here.outbound().await).unwrap();
    rogue.send("<enable xmlns='urn:xmpp:sm:3'/>").await;
    long_messages(&mut romeo, 20..25).await;
    drop(rogue);
    settle().await;
    assert_eq!(here.outbound().await, i64::try_from(waited).unwrap() + 5);
    let mut rogue = both_ways(&world, &here).await;
    let (got, _) = numbers(&mut rogue).await;
    assert_eq!(got, (20 - waited..25).collect::<Vec<_>>(), "in order, each once");
    acknowledge(&mut rogue, u32::try_from(got.len()).unwrap()).await;
    settle().await;
    assert_eq!(here.outbound().await, 0);
}

fn question(n: usize) -> String {
    format!("<iq from='a@rogue.example/x' to='juliet@here.example' type='get' id='q{n}'><q xmlns='q'/></iq>")
}

#[tokio::test(start_paused = true)]
async fn who_asks_and_takes_no_answers_is_read_no_further_and_misses_none() {
    const MANY: usize = 4000;
    let world = World::new(NAMES);
    let here = world.site("here.example", &["federation.preset=careful", "limits.enabled=false"]).await;
    let rogue = unacknowledged(&world, &here).await;
    let questions: String = (0..MANY).map(question).collect();
    let (mut reads, mut writes) = tokio::io::split(rogue.wire.transport);
    let asking = tokio::spawn(async move {
        writes.write_all(questions.as_bytes()).await.unwrap();
        writes.flush().await.unwrap();
        writes
    });
    settle().await;
    let peer = &here.federation.shared.report().peers[0];
    assert!((500..510).contains(&peer.queue_stanzas), "{}", peer.queue_stanzas);
    assert!(!asking.is_finished(), "it is not read");
    let mut heard = String::new();
    let mut bytes = vec![0; 65536];
    while let Ok(Ok(read)) = tokio::time::timeout(Duration::from_secs(2), reads.read(&mut bytes)).await {
        heard.push_str(std::str::from_utf8(&bytes[..read]).unwrap());
    }
    let answered: Vec<usize> =
        heard.split(" id='q").skip(1).map(|rest| rest.split_once('\'').unwrap().0.parse().unwrap()).collect();
    assert_eq!(answered, (0..MANY).collect::<Vec<_>>());
    assert_eq!(here.refusals("peer-queue-full"), 0);
}

#[tokio::test(start_paused = true)]
async fn what_waits_on_disk_takes_nobodys_answer() {
    let world = World::new(NAMES);
    let settings = ["federation.preset=careful", "federation.queue_stanzas=4", "limits.unacked_stanzas=16"];
    let here = world.site("here.example", &settings).await;
    let mut romeo = here.person("romeo@here.example/a").await;
    let mut rogue = both_ways(&world, &here).await;
    // The window is full, and so is the memory behind it.
    for _ in 0..40 {
        romeo.send(TO_ROGUE).await;
    }
    settle().await;
    assert!(here.federation.shared.report().peers[0].queue_stanzas >= 4);
    rogue.send(&question(1)).await;
    settle().await;
    assert_eq!(here.refusals("peer-queue-full"), 0);
    let mut heard = rogue.heard().await;
    for h in [16, 32] {
        acknowledge(&mut rogue, h).await;
        heard.extend(rogue.heard().await);
    }
    assert!(heard.iter().any(|xml| xml.starts_with("<iq") && xml.contains("id='q1'")), "{heard:?}");
}
