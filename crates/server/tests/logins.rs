//! Logins over real TLS in memory: every mechanism, channel binding of both types, and what must be refused.
//! RFC 6120 s.5 and s.6, RFC 5802 s.6, RFC 9266, RFC 5929 s.4, XEP-0440.

#![allow(clippy::unwrap_used, reason = "tests")]

mod house;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use trunkline_server::admin::{Password, accounts};
use trunkline_server::config::TlsPolicy;
use trunkline_server::net::{Gate, GateLimits, Transport};
use trunkline_server::session::login::{self, Arrival, Entry};
use trunkline_xml::Element;
use trunkline_xmpp::jid::Jid;
use trunkline_xmpp::ns;
use trunkline_xmpp::sasl::Hash;
use trunkline_xmpp::sasl::client::{Binding, Scram, plain};

use house::{Client, HEADER, House, PASSWORD};

impl Client {
    async fn auth(&mut self, mechanism: &str, initial: &str) -> Element {
        self.send(&format!("<auth xmlns='{}' mechanism='{mechanism}'>{initial}</auth>", ns::SASL)).await;
        self.next().await
    }

    /// A SCRAM login to its end: the last element, and whether the server has proved that it knows the keys.
    async fn scram(&mut self, mechanism: &str, mut scram: Scram) -> (Element, bool) {
        let challenge = self.auth(mechanism, &scram.initial()).await;
        if !challenge.root().is(ns::SASL, "challenge") {
            return (challenge, false);
        }
        let response = scram.respond(&challenge.root().text()).unwrap();
        self.send(&format!("<response xmlns='{}'>{response}</response>", ns::SASL)).await;
        let end = self.next().await;
        let proved = scram.verify(&end.root().text()).is_ok();
        (end, proved)
    }

    /// What a bound resource is called.
    async fn bind(&mut self) -> String {
        self.scanner.restart();
        self.send(HEADER).await;
        assert!(self.next().await.root().child(ns::BIND, "bind").is_some());
        self.send("<iq type='set' id='b'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'><resource>orchard</resource></bind></iq>").await;
        let answer = self.next().await;
        let bind = answer.root().child(ns::BIND, "bind").unwrap();
        bind.child(ns::BIND, "jid").unwrap().text().into_owned()
    }
}

fn scram(hash: Hash, user: &str, password: &str, binding: Binding) -> Scram {
    Scram::new(hash, user, password, binding).unwrap()
}

fn condition(failure: &Element) -> String {
    let root = failure.root();
    assert!(root.is(ns::SASL, "failure"), "{}", String::from_utf8_lossy(failure.bytes()));
    root.first_child().unwrap().name().to_owned()
}

fn names(features: &Element, parent: (&str, &str)) -> Vec<String> {
    features
        .root()
        .child(parent.0, parent.1)
        .map(|list| {
            list.children()
                .map(|it| it.attr("type").map_or_else(|| it.text().into_owned(), |name| name.into_owned()))
                .collect()
        })
        .unwrap_or_default()
}

const HASHES: [(Hash, &str); 3] =
    [(Hash::Sha1, "SCRAM-SHA-1"), (Hash::Sha256, "SCRAM-SHA-256"), (Hash::Sha512, "SCRAM-SHA-512")];

#[tokio::test]
async fn what_is_offered_inside_tls() {
    let house = House::new().await;
    let (client, features) = house.encrypted().await;
    assert_eq!(
        names(&features, (ns::SASL, "mechanisms")),
        [
            "SCRAM-SHA-512-PLUS",
            "SCRAM-SHA-256-PLUS",
            "SCRAM-SHA-1-PLUS",
            "SCRAM-SHA-512",
            "SCRAM-SHA-256",
            "SCRAM-SHA-1",
            "PLAIN"
        ]
    );
    assert_eq!(
        names(&features, (ns::SASL_CB, "sasl-channel-binding")),
        ["tls-exporter", "tls-server-end-point"]
    );
    assert!(features.root().child(ns::TLS, "starttls").is_none(), "RFC 6120 s.5.4.1: not twice");
    assert_eq!(client.tls().version, "TLSv1.3");
    assert_eq!(client.tls().key_exchange, "X25519MLKEM768");
}

#[tokio::test]
async fn every_mechanism_logs_in() {
    let house = House::new().await;
    let (mut client, _) = house.encrypted().await;
    let answer = client.auth("PLAIN", &plain("romeo", PASSWORD)).await;
    assert!(answer.root().is(ns::SASL, "success"));
    assert_eq!(client.bind().await, "romeo@north.localhost/orchard");
    for (hash, name) in HASHES {
        let (mut client, _) = house.encrypted().await;
        let (end, proved) = client.scram(name, scram(hash, "Romeo", PASSWORD, Binding::Unsupported)).await;
        // RFC 5802 s.5: `n=` is prepared with SASLprep, which keeps the case; the local part is folded by nodeprep.
        assert!(end.root().is(ns::SASL, "success") && proved, "{name}");
        assert_eq!(client.bind().await, "romeo@north.localhost/orchard");
        assert!(house.counted(name, "ok"));
        for kind in ["tls-exporter", "tls-server-end-point"] {
            let (mut client, _) = house.encrypted().await;
            let data = match kind {
                "tls-exporter" => client.tls().exporter.unwrap().to_vec(),
                _ => client.tls().end_point.clone().unwrap(),
            };
            let binding = Binding::Bound { name: kind.to_owned(), data };
            let plus = format!("{name}-PLUS");
            let (end, proved) = client.scram(&plus, scram(hash, "romeo", PASSWORD, binding)).await;
            assert!(end.root().is(ns::SASL, "success") && proved, "{plus} {kind}");
            assert_eq!(client.bind().await, "romeo@north.localhost/orchard");
            assert!(house.counted(&plus, "ok"));
        }
    }
}

#[tokio::test]
async fn direct_tls_goes_straight_to_the_login() {
    let house = House::new().await;
    let mut client = house.dial(Entry::DirectTls).await;
    client.encrypt(Some("xmpp-client")).await;
    assert_eq!(client.tls().alpn.as_deref(), Some("xmpp-client"));
    client.send(HEADER).await;
    let features = client.next().await;
    assert!(names(&features, (ns::SASL, "mechanisms")).contains(&"PLAIN".to_owned()));
    assert!(client.auth("PLAIN", &plain("romeo", PASSWORD)).await.root().is(ns::SASL, "success"));
    assert_eq!(client.bind().await, "romeo@north.localhost/orchard");
}

#[tokio::test]
async fn a_wrong_password_and_an_unknown_user_are_answered_alike() {
    let house = House::new().await;
    for (hash, name) in HASHES {
        let (mut client, _) = house.encrypted().await;
        let (wrong, _) = client.scram(name, scram(hash, "romeo", "wrong", Binding::Unsupported)).await;
        let (nobody, _) = client.scram(name, scram(hash, "nobody", PASSWORD, Binding::Unsupported)).await;
        assert_eq!(condition(&wrong), "not-authorized");
        assert_eq!(wrong.bytes(), nobody.bytes());
    }
    let (mut client, _) = house.encrypted().await;
    let wrong = client.auth("PLAIN", &plain("romeo", "wrong")).await;
    let nobody = client.auth("PLAIN", &plain("nobody", PASSWORD)).await;
    assert_eq!(condition(&wrong), "not-authorized");
    assert_eq!(wrong.bytes(), nobody.bytes());
    // RFC 6120 s.6.4.5: the stream stays, a retry works.
    assert!(client.auth("PLAIN", &plain("romeo", PASSWORD)).await.root().is(ns::SASL, "success"));
}

#[tokio::test]
async fn a_login_bound_to_another_connection_is_refused() {
    let house = House::new().await;
    for kind in ["tls-exporter", "tls-server-end-point"] {
        let (mut client, _) = house.encrypted().await;
        let binding = Binding::Bound { name: kind.to_owned(), data: vec![7; 32] };
        let (end, _) =
            client.scram("SCRAM-SHA-256-PLUS", scram(Hash::Sha256, "romeo", PASSWORD, binding)).await;
        assert_eq!(condition(&end), "not-authorized", "{kind}");
    }
    assert!(house.counted("SCRAM-SHA-256-PLUS", "channel-binding-mismatch"));
    // A type that TLS 1.3 does not have (RFC 9266 s.3).
    let (mut client, _) = house.encrypted().await;
    let binding = Binding::Bound { name: "tls-unique".to_owned(), data: vec![7; 12] };
    let (end, _) = client.scram("SCRAM-SHA-256-PLUS", scram(Hash::Sha256, "romeo", PASSWORD, binding)).await;
    assert_eq!(condition(&end), "not-authorized");
    assert!(house.counted("SCRAM-SHA-256-PLUS", "channel-binding-unsupported"));
}

#[tokio::test]
async fn a_client_that_was_told_of_no_channel_binding_is_refused() {
    // RFC 5802 s.6: flag `y` while the server had offered -PLUS: somebody has changed the list.
    let house = House::new().await;
    let (mut client, _) = house.encrypted().await;
    let (end, _) =
        client.scram("SCRAM-SHA-256", scram(Hash::Sha256, "romeo", PASSWORD, Binding::NotOffered)).await;
    assert_eq!(condition(&end), "not-authorized");
    assert!(house.counted("SCRAM-SHA-256", "channel-binding-downgrade"));
}

#[tokio::test]
async fn nobody_logs_in_for_somebody_else() {
    use base64::Engine as _;
    let house = House::new().await;
    let (mut client, _) = house.encrypted().await;
    let asked = |authzid: &str| {
        base64::engine::general_purpose::STANDARD.encode(format!("{authzid}\0romeo\0{PASSWORD}"))
    };
    assert_eq!(condition(&client.auth("PLAIN", &asked("juliet@north.localhost")).await), "invalid-authzid");
    assert_eq!(condition(&client.auth("PLAIN", &asked("romeo@south.localhost")).await), "invalid-authzid");
    assert!(client.auth("PLAIN", &asked("romeo@north.localhost")).await.root().is(ns::SASL, "success"));
}

#[tokio::test]
async fn the_stream_inside_tls_is_for_the_domain_it_began_with() {
    let house = House::new().await;
    let mut client = house.dial(Entry::StartTls(TlsPolicy::Required)).await;
    client.send(HEADER).await;
    client.next().await;
    client.send("<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>").await;
    client.next().await;
    client.encrypt(None).await;
    client.send(&HEADER.replace("north", "south")).await;
    let error = client.next().await;
    assert!(error.root().child(ns::STREAM_ERRORS, "host-unknown").is_some());
}

#[tokio::test]
async fn accounts_belong_to_their_domain() {
    let house = House::new().await;
    let mut client = house.dial(Entry::DirectTls).await;
    client.encrypt(Some("xmpp-client")).await;
    client.send(&HEADER.replace("north", "south")).await;
    client.next().await;
    assert_eq!(condition(&client.auth("PLAIN", &plain("romeo", PASSWORD)).await), "not-authorized");
}

#[tokio::test]
async fn a_user_name_leads_to_no_other_domain() {
    let house = House::new().await;
    let db = &house.server.exchange().db;
    for address in ["romeo@south.localhost", "juliet@south.localhost"] {
        let jid = Jid::parse(address).unwrap();
        let password = Password::new("thus with a kiss");
        let new = accounts::NewAccount { jid: &jid, password: &password, iterations: 4096, now: 0 };
        accounts::add(db, new, None).await.unwrap();
    }
    for user in [
        "romeo@south.localhost",
        "romeo@south.localhost/x",
        "romeo@north.localhost",
        "romeo@north.localhost/x",
        "romeo/x",
        "romeo/",
    ] {
        let (mut client, _) = house.encrypted().await;
        assert_eq!(
            condition(&client.auth("PLAIN", &plain(user, PASSWORD)).await),
            "not-authorized",
            "{user}"
        );
        for (hash, name) in HASHES {
            let (mut client, _) = house.encrypted().await;
            let (end, proved) = client.scram(name, scram(hash, user, PASSWORD, Binding::Unsupported)).await;
            assert_eq!(condition(&end), "not-authorized", "{name} {user}");
            assert!(!proved);
        }
    }
}

#[tokio::test]
async fn failures_are_counted_by_the_account_however_it_is_spelled() {
    let house = House::with(&["limits.enabled=true", "clients.login_failures_per_account=3"]).await;
    for user in ["romeo", "Romeo", "ROMEO"] {
        let (mut client, _) = house.encrypted().await;
        assert_eq!(condition(&client.auth("PLAIN", &plain(user, "wrong")).await), "not-authorized");
    }
    let (mut client, _) = house.encrypted().await;
    // Nothing behind the name makes another account of it.
    for user in ["romeo/1", "romeo/2"] {
        assert_eq!(condition(&client.auth("PLAIN", &plain(user, PASSWORD)).await), "not-authorized");
    }
    let blocked = client.auth("PLAIN", &plain("romeo", PASSWORD)).await;
    assert_eq!(condition(&blocked), "temporary-auth-failure");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_guesses_at_once_none_slips_through() {
    let house = House::with(&["limits.enabled=true", "clients.login_failures_per_account=3"]).await;
    let mut clients = Vec::new();
    for _ in 0..12 {
        clients.push(house.encrypted().await.0);
    }
    // Those that are right count only while they are checked.
    for client in clients.iter_mut().take(4) {
        let welcome = client.auth("PLAIN", &plain("romeo", PASSWORD)).await;
        assert!(welcome.root().is(ns::SASL, "success"));
    }
    let guesses: Vec<_> = clients
        .into_iter()
        .skip(4)
        .map(|mut client| {
            tokio::spawn(async move { condition(&client.auth("PLAIN", &plain("romeo", "wrong")).await) })
        })
        .collect();
    let mut checked = 0;
    for guess in guesses {
        match guess.await.unwrap().as_str() {
            "not-authorized" => checked += 1,
            other => assert_eq!(other, "temporary-auth-failure"),
        }
    }
    assert!((1..=3).contains(&checked), "{checked} guesses were checked");
}

#[tokio::test]
async fn handshakes_are_bounded_by_the_gate() {
    let house = House::new().await;
    let gate = Gate::new(GateLimits {
        handshakes: 1,
        handshake_timeout: Duration::from_secs(1),
        ..GateLimits::default()
    });
    let dial = async |entry: Entry| {
        let (ours, transport) = Transport::pair();
        let peer = SocketAddr::from(([192, 0, 2, 1], 1));
        let place = Arc::new(tokio::sync::Semaphore::new(1)).acquire_owned().await.unwrap();
        let guard = gate.admit(peer.ip(), place).unwrap();
        let certificates = house.server.certificates().cloned();
        let arrival = Arrival { transport, peer, certificates, entry, guard: Some(guard) };
        tokio::spawn(login::serve(Arc::clone(house.server.exchange()), arrival));
        Client::new(ours)
    };
    let mut silent = dial(Entry::DirectTls).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let mut talks = dial(Entry::StartTls(TlsPolicy::Required)).await;
    talks.send(HEADER).await;
    talks.next().await;
    talks.send("<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>").await;
    talks.next().await;
    // Its turn comes when the silent one is out of time.
    talks.encrypt(None).await;
    assert_eq!(silent.transport.as_mut().unwrap().read(&mut [0]).await.unwrap_or(0), 0, "closed");
    talks.send(HEADER).await;
    assert!(names(&talks.next().await, (ns::SASL, "mechanisms")).contains(&"PLAIN".to_owned()));
    let text = house.server.exchange().metrics.encode();
    assert!(text.contains("tls-timeout"), "{text}");
}

/// What the server says in a SCRAM challenge.
async fn challenge(house: &House, user: &str) -> String {
    use base64::Engine as _;
    let (mut client, _) = house.encrypted().await;
    let initial = scram(Hash::Sha256, user, PASSWORD, Binding::Unsupported).initial();
    let challenge = client.auth("SCRAM-SHA-256", &initial).await;
    let text = challenge.root().text().into_owned();
    String::from_utf8(base64::engine::general_purpose::STANDARD.decode(text).unwrap()).unwrap()
}

#[tokio::test]
async fn a_new_iteration_count_does_not_tell_who_exists() {
    // Romeo's keys are from a time when it was 4096.
    let house = House::with(&["accounts.password_iterations=5000"]).await;
    for user in ["romeo", "nobody", "nobody2"] {
        let text = challenge(&house, user).await;
        assert!(text.contains(",i=4096,h="), "{user}: {text}");
    }
}

#[tokio::test]
async fn checking_a_password_does_not_hold_up_others() {
    let house = House::new().await;
    let jid = Jid::parse("slow@north.localhost").unwrap();
    let password = Password::new(PASSWORD);
    let new = accounts::NewAccount { jid: &jid, password: &password, iterations: 1_000_000, now: 0 };
    accounts::add(&house.server.exchange().db, new, None).await.unwrap();
    let (mut slow, _) = house.encrypted().await;
    // On the one thread of this test, nothing else would move while it is checked.
    slow.send(&format!("<auth xmlns='{}' mechanism='PLAIN'>{}</auth>", ns::SASL, plain("slow", PASSWORD)))
        .await;
    let (mut quick, _) = house.encrypted().await;
    let (end, _) =
        quick.scram("SCRAM-SHA-256", scram(Hash::Sha256, "romeo", PASSWORD, Binding::Unsupported)).await;
    assert!(end.root().is(ns::SASL, "success"));
    assert!(!house.counted("PLAIN", "ok"), "still at it");
    assert!(slow.next().await.root().is(ns::SASL, "success"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_many_that_bind_one_name_at_once_one_stays() {
    let house = Arc::new(House::new().await);
    let jid = Jid::parse("romeo@north.localhost").unwrap();
    for _ in 0..20 {
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..8 {
            let (house, jid) = (Arc::clone(&house), jid.clone());
            tasks.spawn(async move {
                let mut client = house.dial(Entry::Seated(jid)).await;
                assert_eq!(client.bind().await, "romeo@north.localhost/orchard");
                client
            });
        }
        let _clients = tasks.join_all().await;
        let account = house.server.exchange().accounts.online(&jid).unwrap();
        assert_eq!(account.state().resources.len(), 1);
    }
}
