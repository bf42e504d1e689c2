use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, sleep};

use crate::net::connect::{ConnectOptions, Connected, is_public, race};
use crate::net::dns::{DnsError, FakeResolver, MAX_RECORDS, Resolver, published, route};
use crate::net::{ConnectError, Target, TargetError, targets};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

async fn look(dns: FakeResolver, domain: &str) -> Result<Vec<Target>, TargetError> {
    let dns: Arc<dyn Resolver> = Arc::new(dns);
    targets(&dns, domain, &|_| 0).await
}

fn hosts(targets: &[Target]) -> Vec<(&str, u16, bool)> {
    targets.iter().map(|t| (t.host.as_str(), t.port, t.direct_tls)).collect()
}

const STARTTLS: &str = "_xmpp-server._tcp.peer.example";
const DIRECT: &str = "_xmpps-server._tcp.peer.example";

#[tokio::test]
async fn both_kinds_of_records_are_ordered_as_one() {
    let dns = FakeResolver::new()
        .srv(STARTTLS, (20, 0, 5269), "c.example")
        .srv(STARTTLS, (5, 0, 5269), "a.example")
        .srv(DIRECT, (10, 0, 5270), "b.example")
        .address("a.example", ip("192.0.2.1"))
        .address("b.example", ip("192.0.2.2"))
        .address("c.example", ip("192.0.2.3"));
    let found = look(dns, "Peer.example").await.unwrap();
    let expected = [("a.example", 5269, false), ("b.example", 5270, true), ("c.example", 5269, false)];
    assert_eq!(hosts(&found), expected);
}

#[tokio::test]
async fn weights_decide_how_often_a_host_comes_first() {
    let mut dns = FakeResolver::new();
    for (host, weight) in [("small.example", 0), ("one.example", 10), ("three.example", 30)] {
        dns = dns.srv(STARTTLS, (1, weight, 5269), host).address(host, ip("192.0.2.1"));
    }
    let dns: Arc<dyn Resolver> = Arc::new(dns);
    // RFC 2782: 0 takes the one without weight, 1 to 10 the second, 11 to 40 the third.
    for (number, first) in [
        (0, "small.example"),
        (1, "one.example"),
        (10, "one.example"),
        (11, "three.example"),
        (40, "three.example"),
    ] {
        let asked = Mutex::new(Vec::new());
        let pick = |max| {
            let mut asked = asked.lock();
            asked.push(max);
            if asked.len() == 1 { number } else { 0 }
        };
        let found = targets(&dns, "peer.example", &pick).await.unwrap();
        assert_eq!(found[0].host, first, "for {number}");
        assert_eq!(found.len(), 3);
        assert_eq!(asked.lock()[0], 40);
    }
}

#[tokio::test]
async fn a_dot_says_no_and_a_missing_record_leads_to_the_domain_itself() {
    let refused =
        || FakeResolver::new().srv(STARTTLS, (0, 0, 0), "").address("peer.example", ip("192.0.2.1"));
    assert_eq!(look(refused(), "peer.example").await, Err(TargetError::NotOffered("peer.example".into())));
    let direct_only = refused().srv(DIRECT, (0, 0, 5270), "b.example").address("b.example", ip("192.0.2.2"));
    assert_eq!(hosts(&look(direct_only, "peer.example").await.unwrap()), [("b.example", 5270, true)]);
    let no_direct = FakeResolver::new().srv(DIRECT, (0, 0, 0), "").address("peer.example", ip("192.0.2.1"));
    assert_eq!(hosts(&look(no_direct, "peer.example").await.unwrap()), [("peer.example", 5269, false)]);
    let plain = FakeResolver::new().address("xn--bcher-kva.example", ip("192.0.2.1"));
    let found = look(plain, "bücher.example").await.unwrap();
    assert_eq!(hosts(&found), [("xn--bcher-kva.example", 5269, false)]);
}

#[tokio::test]
async fn addresses_as_domains_need_no_dns() {
    let found = look(FakeResolver::new(), "[2001:db8::1]").await.unwrap();
    assert_eq!(found[0].addresses, [ip("2001:db8::1")]);
    assert_eq!(look(FakeResolver::new(), "a b").await, Err(TargetError::BadName("a b".into())));
}

#[tokio::test]
async fn failures_are_named() {
    let error = look(FakeResolver::new(), "peer.example").await.unwrap_err();
    assert_eq!(error, TargetError::NoAddress { host: "peer.example".into(), error: DnsError::NoSuchName });
    assert!(!error.is_temporary());

    let ill = || FakeResolver::new().fail(STARTTLS, DnsError::ServFail).fail(DIRECT, DnsError::Timeout);
    let error = look(ill(), "peer.example").await.unwrap_err();
    assert_eq!(error, TargetError::NoAddress { host: "peer.example".into(), error: DnsError::ServFail });
    assert!(error.is_temporary() && error.to_string().contains("SERVFAIL"), "{error}");
    let ill = ill().address("peer.example", ip("192.0.2.1"));
    assert_eq!(look(ill, "peer.example").await.unwrap().len(), 1, "RFC 6120 s.3.2.1: fall back");

    let half = FakeResolver::new()
        .srv(STARTTLS, (1, 0, 5269), "gone.example")
        .srv(STARTTLS, (2, 0, 5269), "there.example")
        .address("there.example", ip("192.0.2.1"));
    assert_eq!(hosts(&look(half, "peer.example").await.unwrap()), [("there.example", 5269, false)]);
    let gone = FakeResolver::new().srv(STARTTLS, (1, 0, 5269), "gone.example");
    let error = look(gone, "peer.example").await.unwrap_err();
    assert_eq!(error.to_string(), "no address for gone.example: the name does not exist (NXDOMAIN)");
}

#[tokio::test(start_paused = true)]
async fn slow_hosts_are_asked_at_once_and_records_are_bounded() {
    let mut dns = FakeResolver::new();
    for i in 0..100 {
        let host = format!("h{i}.example");
        dns = dns.srv(STARTTLS, (1, 1, 5269), &host).address(&host, ip("192.0.2.1"));
        dns = dns.srv(DIRECT, (1, 1, 5270), &host).delay(&host, Duration::from_secs(2));
    }
    let before = Instant::now();
    assert_eq!(look(dns, "peer.example").await.unwrap().len(), MAX_RECORDS);
    assert_eq!(before.elapsed().as_secs(), 2);
}

#[tokio::test]
async fn routes_and_the_check_use_the_same_lookups() {
    let dns: Arc<dyn Resolver> = Arc::new(
        FakeResolver::new()
            .srv("_xmpp-client._tcp.peer.example", (0, 0, 5222), "c2s.example")
            .address("near.example", ip("10.0.0.1")),
    );
    let found = route(&dns, "near.example", 15269, true).await.unwrap();
    assert_eq!((found[0].port, found[0].direct_tls, found[0].from_operator), (15269, true, true));
    assert_eq!(route(&dns, "127.0.0.1", 1, false).await.unwrap()[0].addresses, [ip("127.0.0.1")]);
    let published = published(&dns, "peer.example").await;
    assert_eq!(published.client.unwrap().records[0].host, "c2s.example");
    assert_eq!(published.server, Err(DnsError::NoSuchName));
}

fn target(port: u16, addresses: &[&str]) -> Target {
    let addresses = addresses.iter().map(|a| ip(a)).collect();
    let host = "peer.example".into();
    Target { host, addresses, port, direct_tls: false, from_operator: false, secure: None }
}

/// Dials in virtual time: 2001:db8: never answers, .9 refuses, everything else answers at once.
async fn dial(
    targets: &[Target],
    allow_private: bool,
) -> (Result<Connected<SocketAddr>, ConnectError>, usize) {
    let dialled = Arc::new(AtomicUsize::new(0));
    let options = ConnectOptions { allow_private, ..ConnectOptions::default() };
    let count = dialled.clone();
    let result = race(targets, &options, move |address: SocketAddr| {
        count.fetch_add(1, Ordering::SeqCst);
        async move {
            match address.ip() {
                IpAddr::V6(_) => sleep(Duration::from_secs(3600)).await,
                IpAddr::V4(ip) if ip.octets()[3] == 9 => return Err(io::ErrorKind::ConnectionRefused.into()),
                IpAddr::V4(_) => {}
            }
            Ok(address)
        }
    })
    .await;
    (result, dialled.load(Ordering::SeqCst))
}

#[tokio::test(start_paused = true)]
async fn a_dead_address_costs_a_quarter_of_a_second() {
    let before = Instant::now();
    let (connected, _) = dial(&[target(5269, &["1.1.1.1", "2606:4700::1", "2606:4700::2"])], false).await;
    assert_eq!(connected.unwrap().address, "1.1.1.1:5269".parse().unwrap());
    assert_eq!(before.elapsed().as_millis(), 250);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_moves_on_at_once_and_targets_keep_their_order() {
    let before = Instant::now();
    let (connected, dialled) =
        dial(&[target(1, &["1.1.1.9"]), target(2, &["1.1.1.2"]), target(3, &["1.1.1.3"])], false).await;
    let connected = connected.unwrap();
    assert_eq!((connected.target, connected.address.port(), dialled), (1, 2, 2));
    assert!(before.elapsed() < Duration::from_millis(10));
}

#[tokio::test(start_paused = true)]
async fn when_nothing_answers_the_text_says_what_happened_where() {
    let (result, _) = dial(&[target(5269, &["2606:4700::1", "1.1.1.9"])], false).await;
    let error = result.unwrap_err().to_string();
    assert_eq!(
        error,
        "1.1.1.9:5269: nobody listens there (connection refused); [2606:4700::1]:5269: no answer"
    );
    let many: Vec<Target> = (0..200).map(|port| target(port, &["2606:4700::1"])).collect();
    let before = Instant::now();
    let (result, dialled) = dial(&many, false).await;
    assert!(before.elapsed() <= Duration::from_secs(31) && dialled <= 24, "{dialled}");
    assert!(result.unwrap_err().to_string().contains("and 20 more"));
    assert_eq!(dial(&[], false).await.0.unwrap_err().to_string(), "there is no address to connect to");
}

#[tokio::test(start_paused = true)]
async fn nobodys_dns_leads_into_our_own_network() {
    let inside = [target(5269, &["127.0.0.1", "10.1.2.3", "::1", "fe80::1"])];
    let (result, dialled) = dial(&inside, false).await;
    assert_eq!(dialled, 0);
    assert!(result.unwrap_err().to_string().contains("federation.allow_private"));
    assert!(dial(&inside, true).await.0.is_ok());
    let routed = [Target { from_operator: true, ..inside[0].clone() }];
    assert!(dial(&routed, false).await.0.is_ok());
}

#[test]
fn special_addresses_are_not_public() {
    for private in [
        "127.0.0.1",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "198.18.0.1",
        "192.0.2.1",
        "::1",
        "::",
        "fe80::1",
        "fc00::1",
        "fd12::1",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
        "2001:db8::1",
        "::127.0.0.1",
    ] {
        assert!(!is_public(ip(private)), "{private}");
    }
    for public in
        ["1.1.1.1", "100.128.0.1", "2606:4700::1", "2a01:4f8::1", "::ffff:1.1.1.1", "64:ff9b::101:101"]
    {
        assert!(is_public(ip(public)), "{public}");
    }
}
