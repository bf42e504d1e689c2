//! What one address, one domain and all together may use: connections, streams, memory, questions.

use std::net::IpAddr;
use std::sync::Arc;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::stage::{HELLO, Rogue, Site, World, auth, leaf, settle};
use crate::federation::accept::Door;
use crate::net::serve;

const NAMES: &[&str] = &["here.example", "rogue.example", "silent.example", "quiet.example"];
const ME: (&str, &str) = ("rogue.example", "here.example");

/// Where all rogues come from.
const ADDRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(203, 0, 113, 1));
/// Somewhere else.
const ELSEWHERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(198, 51, 100, 1));

async fn here(settings: &[&str]) -> (World, Site) {
    let world = World::new(NAMES);
    let here = world.site("here.example", settings).await;
    (world, here)
}

/// A stream with TLS and features, on which nothing is proved.
async fn unproved(world: &World, here: &Site) -> Rogue {
    let certs = world.certs("rogue", &leaf("rogue.example"));
    let mut rogue = Rogue::connect(world, here, &certs, ME).await;
    assert!(rogue.next().await.unwrap().contains("EXTERNAL"));
    rogue
}

async fn proved(world: &World, here: &Site) -> Rogue {
    let mut rogue = unproved(world, here).await;
    rogue.external(ME.0, ME.1).await;
    rogue
}

#[tokio::test(start_paused = true)]
async fn who_has_proved_nothing_has_few_places_and_who_has_keeps_his() {
    let (world, here) = here(&["federation.max_unproved_per_address=2", "federation.max_unproved=3"]).await;
    let shared = &here.federation.shared;
    let mut first = unproved(&world, &here).await;
    let _second = unproved(&world, &here).await;
    assert_eq!(shared.let_in(ADDRESS).unwrap_err(), "unproved-per-address");
    let elsewhere = shared.let_in(ELSEWHERE).unwrap();
    assert_eq!(shared.let_in(ELSEWHERE).unwrap_err(), "unproved-connections");
    drop(elsewhere);
    // A proof makes room, and so does the end of a stream.
    first.external(ME.0, ME.1).await;
    let room = shared.let_in(ADDRESS).unwrap();
    assert!(shared.let_in(ADDRESS).is_err());
    drop((room, first));
    settle().await;
    assert_eq!(shared.budgets.unproved.all(), 1);
}

#[tokio::test]
async fn one_too_many_is_closed_at_the_door() {
    let (_world, here) = here(&["federation.max_unproved_per_address=1"]).await;
    let shared = Arc::clone(&here.federation.shared);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (_stop, stopped) = watch::channel(());
    let door = Arc::new(Door { shared: Arc::clone(&shared), direct_tls: false });
    tokio::spawn(serve(listener, Arc::clone(&shared.gate), door, stopped));
    let mut first = TcpStream::connect(address).await.unwrap();
    let hello = format!("{HELLO} from='rogue.example' to='here.example'>");
    first.write_all(hello.as_bytes()).await.unwrap();
    assert!(first.read(&mut [0; 64]).await.unwrap() > 0);
    let mut second = TcpStream::connect(address).await.unwrap();
    assert_eq!(second.read(&mut [0; 64]).await.unwrap_or(0), 0);
    assert_eq!(here.refusals("unproved-per-address"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_domain_has_so_many_streams() {
    let (world, here) = here(&["federation.max_streams_per_domain=2"]).await;
    let (first, _second) = (proved(&world, &here).await, proved(&world, &here).await);
    let mut third = unproved(&world, &here).await;
    third.send(&auth(ME.0)).await;
    third.next().await.unwrap();
    third.wire.restart();
    third.hello(ME.0, ME.1).await;
    assert!(third.rest().await.contains("resource-constraint"));
    assert_eq!(here.refusals("streams-per-domain"), 1);
    drop(first);
    settle().await;
    proved(&world, &here).await;
    assert_eq!(here.refusals("streams-per-domain"), 1);
}

/// The beginning of a stanza of so many bytes.
fn beginning(bytes: usize) -> String {
    let head = "<message from='a@rogue.example' to='juliet@here.example'><body>";
    format!("{head}{}", "x".repeat(bytes))
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_needs_too_much_memory_is_ended_by_name() {
    for (setting, name) in [
        ("federation.memory=30 kB", "memory"),
        ("federation.memory_per_address=30 kB", "memory-per-address"),
        ("federation.memory_per_domain=30 kB", "memory-per-domain"),
    ] {
        let (world, here) = here(&[setting]).await;
        let shared = Arc::clone(&here.federation.shared);
        let mut small = proved(&world, &here).await;
        let mut large = proved(&world, &here).await;
        small.send(&beginning(15_000)).await;
        settle().await;
        large.send(&beginning(12_000)).await;
        settle().await;
        assert!((27_000..30_000).contains(&shared.budgets.memory.all()), "{setting}");
        assert_eq!(here.refusals(name), 0, "{setting}: there is room");
        large.send(&"x".repeat(12_000)).await;
        assert!(large.rest().await.contains("resource-constraint"), "{setting}");
        assert_eq!(here.refusals(name), 1, "{setting}");
        settle().await;
        // What was ended has given everything back, and the small one was left alone.
        assert!((14_000..16_000).contains(&shared.budgets.memory.all()), "{setting}");
        small.send("</body></message><iq type='get' id='p' from='a@rogue.example' to='here.example'><x xmlns='y'/></iq>").await;
        settle().await;
        assert_eq!(shared.budgets.memory.all(), 0, "{setting}");
        assert_eq!(shared.budgets.memory.keys(), 0, "{setting}");
    }
}

#[tokio::test(start_paused = true)]
async fn few_keys_are_checked_at_a_time_for_one_address_one_domain_and_all() {
    for (setting, name) in [
        ("federation.max_verifications=1", "verifications"),
        ("federation.max_verifications_per_address=1", "verifications-per-address"),
        ("federation.max_verifications_per_domain=1", "verifications-per-domain"),
    ] {
        let (world, here) = here(&[setting]).await;
        // Its server takes connections and says nothing.
        let mut silent = world.rogue("silent.example");
        let request = "<db:result from='silent.example' to='here.example'>k</db:result>";
        let mut first = unproved(&world, &here).await;
        first.send(request).await;
        settle().await;
        let mut second = unproved(&world, &here).await;
        second.send(request).await;
        let answer = second.next().await.unwrap();
        assert!(answer.contains("resource-constraint"), "{setting}: {answer}");
        assert_eq!(here.refusals(name), 1, "{setting}");
        // Another domain may be asked about at the same time, where the bound is the domain's.
        let other = request.replace("silent", "quiet");
        let mut quiet = world.rogue("quiet.example");
        second.send(&other).await;
        settle().await;
        let asked = quiet.try_recv().is_ok();
        assert_eq!(asked, name == "verifications-per-domain", "{setting}");
        // When the first question has its answer, the next is asked.
        drop((silent.recv().await.unwrap(), quiet));
        assert!(first.next().await.unwrap().contains("error"), "{setting}");
        let before = here.refusals(name);
        drop(silent);
        second.send(request).await;
        settle().await;
        assert_eq!(here.refusals(name), before, "{setting}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_memory_of_all_queues_is_one() {
    let (world, here) = here(&["federation.queue_memory=300"]).await;
    let mut romeo = here.person("romeo@here.example/a").await;
    let _silent = world.rogue("silent.example");
    let to = |domain: &str, id: u32| {
        format!("<iq type='get' id='q{id}' to='{domain}'><ping xmlns='urn:xmpp:ping'/></iq>")
    };
    for id in 0..20 {
        romeo.send(&to("silent.example", id)).await;
    }
    let arrived = romeo.arrived().await;
    let refused = arrived.iter().filter(|xml| xml.contains("resource-constraint")).count();
    assert!((1..20).contains(&refused), "{refused}");
    assert_eq!(here.refusals("peer-queue-full"), refused as u64);
    // It counts for every other domain too, and messages wait on disk alone.
    let _quiet = world.rogue("quiet.example");
    romeo.send(&to("quiet.example", 99)).await;
    assert!(
        romeo.arrived().await.iter().any(|xml| xml.contains("resource-constraint") && xml.contains("q99"))
    );
    let held = here.federation.shared.budgets.queued.all();
    romeo.send("<message to='a@quiet.example' type='chat'><body>hello</body></message>").await;
    settle().await;
    assert_eq!((here.outbound().await, here.federation.shared.budgets.queued.all()), (1, held));
}

#[tokio::test(start_paused = true)]
async fn answers_leave_half_of_the_memory_to_our_users() {
    let (world, here) = here(&["federation.queue_memory=4000"]).await;
    let mut romeo = here.person("romeo@here.example/a").await;
    // It has proved its domain and takes nothing: no way leads back to it.
    let mut rogue = proved(&world, &here).await;
    let _silent = world.rogue("rogue.example");
    for id in 0..20 {
        rogue
            .send(&format!(
                "<iq type='get' id='q{id}' from='a@rogue.example' to='here.example'><x xmlns='y'/></iq>"
            ))
            .await;
    }
    settle().await;
    let held = here.federation.shared.budgets.queued.all();
    assert!((1..=3200).contains(&held), "{held}");
    assert!(here.refusals("peer-queue-full") > 0);
    let refused = here.refusals("peer-queue-full");
    let _quiet = world.rogue("quiet.example");
    romeo.send("<iq type='get' id='r' to='quiet.example'><ping xmlns='urn:xmpp:ping'/></iq>").await;
    settle().await;
    assert_eq!(here.refusals("peer-queue-full"), refused, "there is room for it");
}
