//! What waits for a peer: cuts, restarts, bounds, expiry; and what crosses.

use std::time::Duration;

use trunkline_store::{Batch, Lane, sql};
use trunkline_xmpp::stanza::Stanza;

use super::stage::{Site, World, leaf, settle};
use crate::federation::MOST_DIALS;
use crate::route::Mail;
use crate::route::remote::Remote as _;

const NAMES: &[&str] = &["north.example", "south.example", "gone.example"];

fn message(n: usize) -> String {
    format!("<message to='juliet@south.example' type='chat' id='m{n}'><body>{n}</body></message>")
}

async fn pair(settings: &[&str]) -> (World, Site, Site) {
    let world = World::new(NAMES);
    let north = world.site("north.example", settings).await;
    let south = world.site("south.example", &[]).await;
    (world, north, south)
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_is_away_gets_everything_in_order_when_it_is_back() {
    let (world, north, south) = pair(&["federation.queue_stanzas=10"]).await;
    let mut romeo = north.person("romeo@north.example/a").await;
    let mut juliet = south.person("juliet@south.example/b").await;
    world.wires.unplug(&south);
    for n in 0..500 {
        romeo.send(&message(n)).await;
    }
    settle().await;
    assert_eq!(north.outbound().await, 500);
    let status = &north.federation.status().peers[0];
    assert_eq!((status.state.as_str(), status.queue_kept), ("waiting", 500));
    assert!(status.queue_stanzas <= 10, "memory is bounded: {}", status.queue_stanzas);
    assert!(status.last_error.as_ref().unwrap().text.contains("nobody listens"), "{status:?}");
    world.wires.plug(&south);
    tokio::time::sleep(Duration::from_secs(60)).await;
    let expected: Vec<String> = (0..500).map(|n| n.to_string()).collect();
    assert_eq!(juliet.bodies().await, expected);
    settle().await;
    assert_eq!(north.outbound().await, 0);
    assert_eq!(north.federation.status().peers[0].queue_kept, 0);
}

#[tokio::test(start_paused = true)]
async fn cuts_lose_nothing_and_repeats_keep_their_id() {
    let (world, north, south) = pair(&[]).await;
    let mut romeo = north.person("romeo@north.example/a").await;
    let mut juliet = south.person("juliet@south.example/b").await;
    let mut arrived = Vec::new();
    for round in 0..10 {
        for n in 0..20 {
            romeo.send(&message(round * 20 + n)).await;
            if n % 7 == round % 7 {
                tokio::task::yield_now().await;
                world.wires.cut();
            }
        }
        tokio::time::sleep(Duration::from_millis(300 * round as u64)).await;
        world.wires.cut();
        arrived.extend(juliet.arrived().await);
    }
    tokio::time::sleep(Duration::from_secs(1200)).await;
    arrived.extend(juliet.arrived().await);
    let mut seen = std::collections::BTreeMap::<usize, usize>::new();
    for xml in &arrived {
        let Some(body) = super::stage::body(xml) else { continue };
        assert!(xml.contains(&format!("id='m{body}'")), "{xml}");
        *seen.entry(body.parse().unwrap()).or_default() += 1;
    }
    assert_eq!(seen.keys().copied().collect::<Vec<_>>(), (0..200).collect::<Vec<_>>());
    assert_eq!(north.outbound().await, 0);
}

#[tokio::test(start_paused = true)]
async fn what_expires_goes_back_with_the_reason() {
    let (world, north, south) = pair(&["federation.queue_age=10 min"]).await;
    let mut romeo = north.person("romeo@north.example/a").await;
    world.wires.unplug(&south);
    romeo.send(&message(1)).await;
    romeo.send("<presence type='subscribe' to='juliet@south.example'/>").await;
    assert!(!romeo.arrived().await.iter().any(|xml| xml.contains("error")));
    assert_eq!(north.outbound().await, 2);
    for _ in 0..13 {
        tokio::time::sleep(Duration::from_secs(60)).await;
        romeo.send(" ").await;
    }
    let arrived = romeo.arrived().await;
    let bounce = arrived
        .iter()
        .find(|xml| xml.contains("id='m1'"))
        .unwrap_or_else(|| panic!("no bounce: {arrived:?}"));
    assert!(bounce.contains("remote-server-timeout"), "{bounce}");
    assert!(
        bounce.contains("could not be reached for 10 minutes: ") && bounce.contains("nobody listens"),
        "{bounce}"
    );
    assert_eq!(north.outbound().await, 0);
    assert_eq!(north.federation.status().peers[0].queue_kept, 0);
}

#[tokio::test(start_paused = true)]
async fn the_quota_of_the_log_is_kept_and_said() {
    let (world, north, south) = pair(&["federation.queue_kept=5"]).await;
    let mut romeo = north.person("romeo@north.example/a").await;
    world.wires.unplug(&south);
    for n in 0..7 {
        romeo.send(&message(n)).await;
    }
    let arrived = romeo.arrived().await;
    let refused: Vec<_> = arrived.iter().filter(|xml| xml.contains("resource-constraint")).collect();
    assert_eq!(refused.len(), 2, "{arrived:?}");
    assert!(refused[0].contains("no more can be kept"));
    assert_eq!(north.refusals("peer-queue-full"), 2);
    assert_eq!(north.outbound().await, 5);
}

#[tokio::test(start_paused = true)]
async fn a_domain_that_does_not_exist_is_answered_at_once() {
    let (_world, north, _south) = pair(&[]).await;
    let mut romeo = north.person("romeo@north.example/a").await;
    romeo.send("<message to='a@nowhere.example' type='chat' id='m1'><body>?</body></message>").await;
    romeo.send("<iq to='nowhere.example' type='get' id='p1'><ping xmlns='urn:xmpp:ping'/></iq>").await;
    let arrived = romeo.arrived().await;
    for id in ["m1", "p1"] {
        let bounced =
            |xml: &&String| xml.contains(&format!("id='{id}'")) && xml.contains("remote-server-not-found");
        assert_eq!(arrived.iter().filter(bounced).count(), 1, "{arrived:?}");
    }
    assert_eq!(north.outbound().await, 0);
}

#[tokio::test(start_paused = true)]
async fn requests_do_not_wait_for_a_peer_that_is_away() {
    let (world, north, south) = pair(&[]).await;
    let mut romeo = north.person("romeo@north.example/a").await;
    world.wires.unplug(&south);
    romeo.send(&message(1)).await;
    settle().await;
    romeo.send("<iq to='south.example' type='get' id='p1'><ping xmlns='urn:xmpp:ping'/></iq>").await;
    let arrived = romeo.arrived().await;
    assert!(
        arrived.iter().any(|xml| xml.contains("id='p1'") && xml.contains("remote-server-timeout")),
        "{arrived:?}"
    );
    assert_eq!(north.outbound().await, 1, "the message waits on");
}

#[tokio::test(start_paused = true)]
async fn a_restart_brings_the_queue_back() {
    let (world, north, south) = pair(&["federation.queue_stanzas=10"]).await;
    let mut romeo = north.person("romeo@north.example/a").await;
    let mut juliet = south.person("juliet@south.example/b").await;
    world.wires.unplug(&south);
    for n in 0..50 {
        romeo.send(&message(n)).await;
    }
    settle().await;
    north.federation.stop().await;
    assert_eq!(north.outbound().await, 50);
    world.wires.plug(&south);
    let again = world.federate(north.exchange(), world.certs("again", &leaf("north.example"))).await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(juliet.bodies().await.len(), 50);
    assert_eq!(north.outbound().await, 0);
    assert_eq!(again.status().peers[0].queue_kept, 0);
}

#[tokio::test(start_paused = true)]
async fn a_flood_crosses_within_its_bounds_and_arrives() {
    let world = World::new(NAMES);
    let north = world.site("north.example", &["limits.enabled=false"]).await;
    let south = world
        .site(
            "south.example",
            &["limits.enabled=false", "limits.crossing_peer_stanzas=8", "limits.crossing_stanzas=16"],
        )
        .await;
    let mut romeo = north.person("romeo@north.example/a").await;
    let mut juliet = south.person("juliet@south.example/b").await;
    let mut bodies = Vec::new();
    for n in 0..300 {
        romeo.send(&message(n)).await;
        if n % 50 == 49 {
            bodies.extend(juliet.bodies().await);
        }
    }
    bodies.extend(juliet.bodies().await);
    assert_eq!(bodies, (0..300).map(|n| n.to_string()).collect::<Vec<_>>());
    assert_eq!(south.refusals("crossing-full"), 0, "the stream was not read meanwhile; nothing was refused");
    assert_eq!(south.federation.shared.crossing.waiting(), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn connections_are_made_in_turns_and_answers_take_none_of_them() {
    let (world, north, south) = pair(&[]).await;
    let mut romeo = north.person("romeo@north.example/a").await;
    let mut juliet = south.person("juliet@south.example/b").await;
    let shared = &north.federation.shared;
    let turns = shared.dials.acquire_many(u32::try_from(MOST_DIALS).unwrap()).await.unwrap();
    romeo.send(&message(0)).await;
    settle().await;
    assert_eq!(*world.wires.dialled.lock(), 0);
    drop(turns);
    settle().await;
    assert_eq!(juliet.bodies().await, ["0"]);
    world.wires.cut();
    // The pause after the cut.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let dialled = *world.wires.dialled.lock();
    let _turns = shared.dials.acquire_many(u32::try_from(MOST_DIALS).unwrap()).await.unwrap();
    let answer = "<presence from='romeo@north.example' to='juliet@south.example' type='unsubscribed'/>";
    shared.send(Mail::answer(Stanza::parse(answer.as_bytes()).unwrap())).unwrap();
    settle().await;
    assert_eq!(*world.wires.dialled.lock(), dialled + 1);
}

#[tokio::test(start_paused = true)]
async fn what_the_store_did_not_take_goes_back_before_it_is_acknowledged() {
    let (world, north, south) = pair(&[]).await;
    let mut romeo = north.person("romeo@north.example/a").await;
    romeo.send("<enable xmlns='urn:xmpp:sm:3'/>").await;
    romeo.arrived().await;
    world.wires.unplug(&south);
    let run = |text: &'static str| north.exchange().db.run(Batch::new(Lane::Inside).with(sql(text)));
    run("CREATE TRIGGER broken BEFORE INSERT ON outbound BEGIN SELECT RAISE(ABORT, 'no'); END")
        .await
        .unwrap();
    for n in 1..=20 {
        romeo.send(&message(n)).await;
        romeo.send("<r xmlns='urn:xmpp:sm:3'/>").await;
        let arrived = romeo.arrived().await;
        let at = |what: &str| arrived.iter().position(|xml| xml.contains(what));
        let (error, acknowledged) = (at(&format!("id='m{n}'")), at(&format!("h='{n}'")));
        assert!(error.is_some() && error < acknowledged, "{n}: {arrived:?}");
        assert!(arrived[error.unwrap()].contains("resource-constraint"), "{arrived:?}");
        romeo.send(&format!("<a xmlns='urn:xmpp:sm:3' h='{n}'/>")).await;
    }
    assert_eq!(north.outbound().await, 0);
    let status = &north.federation.status().peers[0];
    assert_eq!((status.queue_kept, status.queue_stanzas), (0, 0), "it is not sent all the same");
    run("DROP TRIGGER broken").await.unwrap();
    romeo.send(&message(21)).await;
    settle().await;
    assert_eq!(north.outbound().await, 1);
}
