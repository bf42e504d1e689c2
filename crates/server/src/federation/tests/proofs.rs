//! How domains are proved, and what a stream carries then.

use std::time::Duration;

use super::stage::{Site, World, leaf, settle};
use crate::admin::Operation;
use crate::route::remote::Remote as _;

const NAMES: &[&str] = &["north.example", "south.example", "third.example"];

async fn pair(settings: &[&str]) -> (World, Site, Site) {
    let world = World::new(NAMES);
    let north = world.site("north.example", settings).await;
    let south = world.site("south.example", settings).await;
    (world, north, south)
}

const CHAT: &str = "<message to='juliet@south.example' type='chat' id='m1'><body>hello</body></message>";

#[tokio::test(start_paused = true)]
async fn external_both_ways_on_one_stream() {
    let (world, north, south) = pair(&["federation.dialback=false"]).await;
    let mut romeo = north.person("romeo@north.example/a").await;
    let mut juliet = south.person("juliet@south.example/b").await;
    romeo.send(CHAT).await;
    assert_eq!(juliet.bodies().await, ["hello"]);
    juliet.send("<message to='romeo@north.example' type='chat' id='m2'><body>welcome</body></message>").await;
    assert_eq!(romeo.bodies().await, ["welcome"]);
    assert_eq!(*world.wires.dialled.lock(), 1, "bidi: one connection for both directions");
    assert_eq!(north.outbound().await, 0, "acknowledged");
    assert_eq!(south.outbound().await, 0, "acknowledged");
    let status = north.federation.status();
    let stream = &status.peers[0].streams[0];
    assert_eq!((status.peers[0].state.as_str(), stream.direction.as_str()), ("connected", "both"));
    assert!(stream.acks);
    assert_eq!(stream.we_proved.as_deref(), Some("external"));
    assert_eq!(stream.they_proved.as_deref(), Some("certificate valid"));
    assert!(stream.tls.as_deref().unwrap().starts_with("1.3"));
    let status = south.federation.status();
    assert_eq!(status.peers[0].streams[0].they_proved.as_deref(), Some("external (certificate valid)"));
}

#[tokio::test(start_paused = true)]
async fn requests_and_their_answers_cross() {
    let (_world, north, _south) = pair(&[]).await;
    let mut romeo = north.person("romeo@north.example/a").await;
    romeo.send("<iq to='south.example' type='get' id='p1'><ping xmlns='urn:xmpp:ping'/></iq>").await;
    let arrived = romeo.arrived().await;
    assert!(
        arrived.iter().any(|xml| xml.contains("id='p1'") && xml.contains("type='result'")),
        "{arrived:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn dialback_when_certificates_are_not_trusted() {
    let world = World::new(NAMES);
    let mut sites = Vec::new();
    for name in ["north.example", "south.example"] {
        let pem = crate::net::pki::self_signed(&leaf(name)).unwrap();
        sites.push(world.site_of(name, world.store(name, &pem), &[]).await);
    }
    let (north, south) = (&sites[0], &sites[1]);
    let mut romeo = north.person("romeo@north.example/a").await;
    let mut juliet = south.person("juliet@south.example/b").await;
    romeo.send(CHAT).await;
    assert_eq!(juliet.bodies().await, ["hello"]);
    juliet.send("<message to='romeo@north.example' type='chat'><body>welcome</body></message>").await;
    assert_eq!(romeo.bodies().await, ["welcome"]);
    let status = south.federation.status();
    let stream = &status.peers[0].streams[0];
    assert!(
        stream.they_proved.as_deref().unwrap().starts_with("dialback (certificate is self-signed"),
        "{stream:?}"
    );
    assert!(stream.acks, "acknowledgements with dialback too");
    assert_eq!(north.outbound().await, 0);
}

#[tokio::test(start_paused = true)]
async fn without_dialback_an_untrusted_certificate_is_refused_by_name() {
    let world = World::new(NAMES);
    let settings = ["federation.dialback=false"];
    let north = world.site("north.example", &settings).await;
    let pem = crate::net::pki::self_signed(&leaf("south.example")).unwrap();
    let south = world.site_of("south.example", world.store("south", &pem), &settings).await;
    let mut romeo = north.person("romeo@north.example/a").await;
    romeo.send("<iq to='south.example' type='get' id='p1'><ping xmlns='urn:xmpp:ping'/></iq>").await;
    let arrived = romeo.arrived().await;
    assert!(
        arrived.iter().any(|xml| xml.contains("remote-server-timeout") && xml.contains("self-signed")),
        "{arrived:?}"
    );
    assert_eq!(north.refusals("certificate-self-signed"), 1);
    romeo.send(CHAT).await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    let arrived = romeo.arrived().await;
    assert!(arrived.iter().any(|xml| xml.contains("id='m1'") && xml.contains("self-signed")), "{arrived:?}");
    assert_eq!(north.outbound().await, 0, "nothing waits for a peer that is not trusted");
    // The other way round: south's certificate proves nothing to north.
    let mut juliet = south.person("juliet@south.example/b").await;
    juliet.send("<iq to='north.example' type='get' id='p2'><ping xmlns='urn:xmpp:ping'/></iq>").await;
    let arrived = juliet.arrived().await;
    assert!(arrived.iter().any(|xml| xml.contains("remote-server-timeout")), "{arrived:?}");
    assert_eq!(north.refusals("certificate-self-signed"), 3, "seen from the receiving side");
}

#[tokio::test(start_paused = true)]
async fn direct_tls_as_dns_says() {
    let mut world = World::new(NAMES);
    let resolver = crate::net::dns::FakeResolver::new()
        .srv("_xmpps-server._tcp.south.example", (0, 0, 5270), "south.example")
        .address("south.example", "10.0.0.2".parse().unwrap())
        .address("north.example", "10.0.0.1".parse().unwrap());
    world.resolver = std::sync::Arc::new(resolver);
    let north = world.site("north.example", &[]).await;
    let south = world.site("south.example", &[]).await;
    let mut romeo = north.person("romeo@north.example/a").await;
    let mut juliet = south.person("juliet@south.example/b").await;
    romeo.send(CHAT).await;
    assert_eq!(juliet.bodies().await, ["hello"]);
    assert!(north.federation.status().peers[0].streams[0].direct_tls);
}

#[tokio::test(start_paused = true)]
async fn an_idle_stream_closes_and_comes_back_when_needed() {
    let (world, north, south) = pair(&["federation.idle_timeout=5 min"]).await;
    let mut romeo = north.person("romeo@north.example/a").await;
    let mut juliet = south.person("juliet@south.example/b").await;
    romeo.send(CHAT).await;
    assert_eq!(juliet.bodies().await, ["hello"]);
    tokio::time::sleep(Duration::from_secs(200)).await;
    assert_eq!(north.federation.status().peers[0].streams.len(), 1);
    tokio::time::sleep(Duration::from_secs(150)).await;
    assert_eq!(north.federation.status().peers[0].streams.len(), 0);
    assert_eq!(north.federation.status().peers[0].last_error, None, "a peaceful end");
    romeo.send(CHAT).await;
    assert_eq!(juliet.bodies().await, ["hello"]);
    assert_eq!(*world.wires.dialled.lock(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_second_domain_shares_the_stream() {
    let world = World::new(NAMES);
    let both = crate::net::pki::Leaf {
        domains: vec!["north.example".into(), "third.example".into()],
        ..leaf("north.example")
    };
    let north = world.site_with("north.example", &both, &["hosts.\"third.example\"={}"]).await;
    let south = world.site("south.example", &[]).await;
    let mut romeo = north.person("romeo@north.example/a").await;
    let mut tybalt = north.person("tybalt@third.example/t").await;
    let mut juliet = south.person("juliet@south.example/b").await;
    romeo.send(CHAT).await;
    assert_eq!(juliet.bodies().await, ["hello"]);
    tybalt.send("<message to='juliet@south.example' type='chat'><body>beware</body></message>").await;
    assert_eq!(juliet.bodies().await, ["beware"]);
    assert_eq!(*world.wires.dialled.lock(), 1, "dialback on the stream that was there, XEP-0220 s.2.5");
    juliet.send("<message to='tybalt@third.example' type='chat'><body>of what</body></message>").await;
    assert_eq!(tybalt.bodies().await, ["of what"]);
}

#[tokio::test(start_paused = true)]
async fn closing_cuts_the_outside_off_and_opening_brings_it_back() {
    let (_world, north, south) = pair(&[]).await;
    let mut romeo = north.person("romeo@north.example/a").await;
    let mut juliet = south.person("juliet@south.example/b").await;
    romeo.send(CHAT).await;
    assert_eq!(juliet.bodies().await, ["hello"]);
    north.admin(Operation::FederationClose { domain: None, all: true }).await.unwrap();
    settle().await;
    assert_eq!(north.federation.status().peers[0].streams.len(), 0);
    assert!(!north.federation.status().open);
    romeo.send(CHAT).await;
    let arrived = romeo.arrived().await;
    assert!(arrived.iter().any(|xml| xml.contains("policy-violation")), "{arrived:?}");
    // What outsiders want meanwhile waits with them.
    juliet.send("<message to='romeo@north.example' type='chat'><body>are you there</body></message>").await;
    assert!(romeo.bodies().await.is_empty());
    north.admin(Operation::FederationOpen { domain: None }).await.unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(romeo.bodies().await, ["are you there"]);
}

#[tokio::test(start_paused = true)]
async fn stopping_says_so_and_keeps_what_comes_late() {
    let (_world, north, south) = pair(&[]).await;
    let mut romeo = north.person("romeo@north.example/a").await;
    let mut juliet = south.person("juliet@south.example/b").await;
    romeo.send(CHAT).await;
    assert_eq!(juliet.bodies().await, ["hello"]);
    // Something of south's own has to be on its way to have an opinion about the end.
    juliet.send("<message to='romeo@north.example' type='chat'><body>stay</body></message>").await;
    assert_eq!(romeo.bodies().await, ["stay"]);
    north.federation.stop().await;
    assert_eq!(south.federation.status().peers[0].streams.len(), 0);
    let last = south.federation.status().peers[0].last_error.clone().unwrap();
    assert!(last.text.contains("system-shutdown"), "{last:?}");
    romeo.send(CHAT).await;
    assert!(romeo.arrived().await.is_empty(), "no bounce");
    assert_eq!(north.outbound().await, 1, "kept for the next start");
}
