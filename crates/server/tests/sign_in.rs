//! Signing in with everything in one request, over real TLS in memory: XEP-0388, 0386, 0484, 0474, 0480, 0509 and 0494,
//! and what of it must be refused. At the end the round trips, counted by a client over TCP.

#![allow(clippy::unwrap_used, reason = "tests")]

mod house;

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use trunkline_client::{Device, Login, Mechanism, Resumption, Security, Target, Trust};
use trunkline_server::admin::{Password, accounts};
use trunkline_server::config::TlsPolicy;
use trunkline_server::session::login::Entry;
use trunkline_store::{Batch, Lane, Statement, sql};
use trunkline_xml::Element;
use trunkline_xmpp::jid::Jid;
use trunkline_xmpp::ns;
use trunkline_xmpp::sasl::client::{Binding, Scram, plain, salted_password};
use trunkline_xmpp::sasl::{Hash, TokenMechanism, token_initial, token_verify};

use house::{Client, HEADER, House, PASSWORD};

const PHONE: &str = "d4565fa7-4d72-4749-b3d3-740edbf87770";
const LAPTOP: &str = "0d2f8f4e-6a43-4a52-8d2b-0a27a1a1a1a1";
const BIND: &str = "<bind xmlns='urn:xmpp:bind:0'><tag>Orchard</tag><enable xmlns='urn:xmpp:carbons:2'/>\
                    <enable xmlns='urn:xmpp:sm:3' resume='true'/><inactive xmlns='urn:xmpp:csi:0'/></bind>";
const EXPR: &str = "HT-SHA-256-EXPR";

fn agent(id: &str) -> String {
    format!("<user-agent id='{id}'><software>Play</software><device>Romeo's phone</device></user-agent>")
}

fn wish(mechanism: &str) -> String {
    format!("<request-token xmlns='urn:xmpp:fast:0' mechanism='{mechanism}'/>")
}

fn text(element: &Element) -> String {
    String::from_utf8_lossy(element.bytes()).into_owned()
}

/// The conditions of a failure, ours first.
fn condition(failure: &Element) -> String {
    let root = failure.root();
    assert!(root.is(ns::SASL2, "failure"), "{}", text(failure));
    let condition = root.first_child().unwrap();
    assert_eq!(condition.ns(), ns::SASL);
    condition.name().to_owned()
}

fn identity(success: &Element) -> String {
    let root = success.root();
    assert!(root.is(ns::SASL2, "success"), "{}", text(success));
    root.child(ns::SASL2, "authorization-identifier").unwrap().text().into_owned()
}

fn token(success: &Element) -> Option<String> {
    Some(success.root().child(ns::FAST, "token")?.attr("token")?.into_owned())
}

impl Client {
    async fn authenticate(&mut self, mechanism: &str, rest: &str) {
        self.send(&format!(
            "<authenticate xmlns='{}' mechanism='{mechanism}'>{rest}</authenticate>",
            ns::SASL2
        ))
        .await;
    }

    /// A login with PLAIN, to its end; what follows a success is still to be read.
    async fn plain(&mut self, password: &str, rest: &str) -> Element {
        let initial = format!("<initial-response>{}</initial-response>", plain("romeo", password));
        self.authenticate("PLAIN", &(initial + rest)).await;
        self.next().await
    }

    /// A login with a token.
    async fn fast(&mut self, mechanism: &str, user: &str, (token, rest): (&str, &str)) -> Element {
        let data = match mechanism {
            EXPR => self.tls().exporter.unwrap().to_vec(),
            "HT-SHA-256-ENDP" => self.tls().end_point.clone().unwrap(),
            _ => Vec::new(),
        };
        let initial = token_initial(user, token, &data);
        let fast = if rest.contains("<fast") { "" } else { "<fast xmlns='urn:xmpp:fast:0'/>" };
        let rest = format!("<initial-response>{initial}</initial-response>{fast}{rest}");
        self.authenticate(mechanism, &rest).await;
        let answer = self.next().await;
        if answer.root().is(ns::SASL2, "success") {
            let proof = answer.root().child(ns::SASL2, "additional-data").unwrap().text().into_owned();
            assert!(token_verify(&proof, token, &data), "the server knows the token too");
        }
        answer
    }

    /// The features that follow a success.
    async fn features(&mut self) -> Element {
        let features = self.next().await;
        assert!(features.root().is(ns::STREAMS, "features"), "{}", text(&features));
        features
    }

    async fn iq(&mut self, kind: &str, payload: &str) -> Element {
        self.send(&format!("<iq type='{kind}' id='q'>{payload}</iq>")).await;
        loop {
            let answer = self.next().await;
            if answer.root().attr("id").as_deref() == Some("q") {
                return answer;
            }
        }
    }

    /// A stream error, whatever comes before.
    async fn error(&mut self) -> String {
        loop {
            let element = self.next().await;
            if element.root().is(ns::STREAMS, "error") {
                return element.root().first_child().unwrap().name().to_owned();
            }
        }
    }
}

impl House {
    async fn client(&self) -> Client {
        self.encrypted().await.0
    }

    async fn run(&self, statement: Statement) {
        self.server.exchange().db.run(Batch::new(Lane::Inside).with(statement)).await.unwrap();
    }

    async fn add(&self, address: &str) {
        let jid = Jid::parse(address).unwrap();
        let password = Password::new(PASSWORD);
        let new = accounts::NewAccount { jid: &jid, password: &password, iterations: 4096, now: 0 };
        accounts::add(&self.server.exchange().db, new, None).await.unwrap();
    }

    /// A token of romeo's for this device and mechanism.
    async fn token(&self, device: &str, mechanism: &str) -> String {
        let success = self.client().await.plain(PASSWORD, &(agent(device) + &wish(mechanism))).await;
        token(&success).unwrap()
    }

    /// The nodes of the push services that romeo's devices have enabled, in the store and in memory.
    async fn woken(&self) -> Vec<String> {
        let exchange = self.server.exchange();
        let rows = exchange.db.read(sql("SELECT node FROM push_services ORDER BY id")).await.unwrap();
        let stored: Vec<String> = rows.iter().map(|row| row.text(0).to_owned()).collect();
        if let Some(account) = exchange.accounts.online(&Jid::parse("romeo@north.localhost").unwrap()) {
            let known: Vec<String> = account.state().pushes.iter().map(|it| it.node.clone()).collect();
            assert_eq!(known, stored, "memory and store move together");
        }
        stored
    }

    fn resources(&self) -> Vec<(String, bool, bool)> {
        let jid = Jid::parse("romeo@north.localhost").unwrap();
        let Some(account) = self.server.exchange().accounts.online(&jid) else { return Vec::new() };
        let state = account.state();
        let resources = state.resources.iter();
        resources
            .map(|it| {
                (it.name().to_owned(), it.carbons, it.session.with_outbox(|outbox| outbox.is_inactive()))
            })
            .collect()
    }
}

#[tokio::test]
async fn everything_is_announced_inside_tls_and_nothing_outside() {
    let house = House::new().await;
    let (_, features) = house.encrypted().await;
    let root = features.root();
    let list = root.child(ns::SASL2, "authentication").unwrap();
    let names = |node: trunkline_xml::Node<'_>, name: &str| -> Vec<String> {
        node.children().filter(|it| it.name() == name).map(|it| it.text().into_owned()).collect()
    };
    let plain: Vec<String> = names(root.child(ns::SASL, "mechanisms").unwrap(), "mechanism");
    assert_eq!(names(list, "mechanism"), plain);
    assert_eq!(names(list, "upgrade"), ["UPGR-SCRAM-SHA-256", "UPGR-SCRAM-SHA-512"]);
    let inline = list.child(ns::SASL2, "inline").unwrap();
    assert!(inline.child(ns::SM, "sm").is_some());
    let fast = inline.child(ns::FAST, "fast").unwrap();
    // TLS 1.3 has no tls-unique.
    assert_eq!(names(fast, "mechanism"), [EXPR, "HT-SHA-256-ENDP", "HT-SHA-256-NONE"]);
    assert_eq!(fast.attr("tls-0rtt"), None);
    let bind = inline.child(ns::BIND2, "bind").unwrap().child(ns::BIND2, "inline").unwrap();
    let vars: Vec<_> = bind.children().map(|it| it.attr("var").unwrap().into_owned()).collect();
    assert_eq!(vars, [ns::CARBONS, ns::CSI, ns::SM]);
    assert!(root.child(ns::PIPELINING, "config-version").is_some());
    // XEP-0388 s.3: not before TLS.
    let mut client = house.dial(Entry::StartTls(TlsPolicy::Optional)).await;
    client.send(HEADER).await;
    let features = client.next().await;
    assert!(features.root().child(ns::SASL2, "authentication").is_none());
    assert!(features.root().child(ns::PIPELINING, "config-version").is_none());
    assert_eq!(condition(&client.plain(PASSWORD, "").await), "encryption-required");
    let mut client = house.dial(Entry::StartTls(TlsPolicy::Required)).await;
    client.send(HEADER).await;
    client.next().await;
    client.authenticate("PLAIN", "").await;
    assert_eq!(client.error().await, "policy-violation");
}

#[tokio::test]
async fn one_request_brings_a_session_with_all_that_was_asked_for() {
    let house = House::new().await;
    let mut client = house.client().await;
    let success = client.plain(PASSWORD, &(agent(PHONE) + BIND)).await;
    let full = identity(&success);
    let resource = full.strip_prefix("romeo@north.localhost/Orchard/").unwrap().to_owned();
    assert!(!full.contains(PHONE), "XEP-0386 s.3.3");
    let bound = success.root().child(ns::BIND2, "bound").unwrap();
    assert_eq!(bound.child(ns::SM, "enabled").unwrap().attr("resume").as_deref(), Some("true"));
    assert!(bound.child(ns::MAM, "metadata").unwrap().first_child().is_none(), "the archive is empty");
    assert!(success.root().child(ns::SASL2, "additional-data").is_none(), "PLAIN says nothing at its end");
    assert_eq!(token(&success), None, "none was asked for");
    let features = client.features().await;
    assert!(features.root().child(ns::BIND, "bind").is_none());
    assert!(features.root().child(ns::CSI, "csi").is_some());
    assert!(
        features.root().child(ns::SM, "sm").is_none(),
        "it is on: offered again, clients would ask again"
    );
    assert_eq!(house.resources(), [(format!("Orchard/{resource}"), true, true)]);
    assert!(house.counted("PLAIN", "ok"));
    // The session is live, and counts from the first stanza on.
    assert_eq!(
        client.iq("get", "<ping xmlns='urn:xmpp:ping'/>").await.root().attr("type").as_deref(),
        Some("result")
    );
    client.send("<r xmlns='urn:xmpp:sm:3'/>").await;
    loop {
        let element = client.next().await;
        if element.root().is(ns::SM, "a") {
            assert_eq!(element.root().attr("h").as_deref(), Some("1"));
            break;
        }
    }
    // XEP-0388 s.4.8: once is enough.
    client.authenticate("PLAIN", "").await;
    assert_eq!(client.error().await, "unsupported-stanza-type");
}

#[tokio::test]
async fn who_binds_learns_how_far_the_archive_goes() {
    let house = House::new().await;
    let mut client = house.client().await;
    client.plain(PASSWORD, &(agent(PHONE) + BIND)).await;
    client.features().await;
    client.send("<presence/>").await;
    let mut ids = Vec::new();
    for id in ["m1", "m2", "m3"] {
        client.send(&format!("<message id='{id}' type='chat'><body>{id}</body></message>")).await;
        let message = loop {
            let element = client.next().await;
            if element.root().attr("id").as_deref() == Some(id) {
                break element;
            }
        };
        let stamp = message.root().child(ns::STANZA_ID, "stanza-id").unwrap();
        ids.push(stamp.attr("id").unwrap().into_owned());
    }
    let success = house.client().await.plain(PASSWORD, &(agent(LAPTOP) + BIND)).await;
    let bound = success.root().child(ns::BIND2, "bound").unwrap();
    let metadata = bound.child(ns::MAM, "metadata").unwrap();
    let end = |name: &str| metadata.child(ns::MAM, name).unwrap().attr("id").unwrap().into_owned();
    assert_eq!((&end("start"), &end("end")), (&ids[0], &ids[2]));
}

#[tokio::test]
async fn who_is_signed_out_is_not_woken() {
    let house = House::new().await;
    let enable = |node: &str| format!("<enable xmlns='urn:xmpp:push:0' jid='push.example' node='{node}'/>");
    let mut phone = house.client().await;
    phone.plain(PASSWORD, &(agent(PHONE) + BIND)).await;
    phone.features().await;
    phone.iq("set", &enable("phone-old")).await;
    let answer = phone.iq("set", &enable("phone")).await;
    assert_eq!(answer.root().attr("type").as_deref(), Some("result"));
    assert_eq!(house.woken().await, ["phone"], "a device has one node at a service");
    let laptop = house.token(LAPTOP, EXPR).await;
    let mut at_laptop = house.client().await;
    at_laptop.fast(EXPR, "romeo", (&laptop, &(agent(LAPTOP) + BIND))).await;
    at_laptop.features().await;
    at_laptop.iq("set", &enable("laptop")).await;
    let unknown = || format!("<initial-response>{}</initial-response>", plain("romeo", PASSWORD));
    let mut old = house.client().await;
    old.authenticate("PLAIN", &(unknown() + "<bind xmlns='urn:xmpp:bind:0'><tag>old</tag></bind>")).await;
    old.next().await;
    old.features().await;
    old.iq("set", &enable("old")).await;
    assert_eq!(house.woken().await, ["phone", "laptop", "old"]);
    // XEP-0494: the device that is ended.
    let answer = phone.iq("get", "<list xmlns='urn:xmpp:cam:0'/>").await;
    let clients = answer.root().child(ns::CLIENT_ACCESS, "clients").unwrap();
    let fast = |it: &trunkline_xml::Node<'_>| text(&answer)[it.range()].contains("<fast");
    let id = clients.children().find(fast).unwrap().attr("id").unwrap().into_owned();
    phone.iq("set", &format!("<revoke xmlns='urn:xmpp:cam:0' id='{id}'/>")).await;
    assert_eq!(house.woken().await, ["phone", "old"]);
    // A new password: everybody but who set it.
    let change =
        "<query xmlns='jabber:iq:register'><username>romeo</username><password>new</password></query>";
    phone.send(&format!("<iq type='set' id='q' to='north.localhost'>{change}</iq>")).await;
    phone.next().await;
    assert_eq!(house.woken().await, ["phone"]);
    house.run(sql("DELETE FROM devices")).await;
    let rows = house.server.exchange().db.read(sql("SELECT 1 FROM push_services")).await.unwrap();
    assert!(rows.is_empty(), "who is forgotten is not woken");
}

#[tokio::test]
async fn a_device_has_one_session_and_keeps_its_resource() {
    let house = House::new().await;
    let mut first = house.client().await;
    let name = identity(&first.plain(PASSWORD, &(agent(PHONE) + BIND)).await);
    let mut other = house.client().await;
    let laptop = identity(&other.plain(PASSWORD, &(agent(LAPTOP) + BIND)).await);
    assert_ne!(name, laptop);
    let mut second = house.client().await;
    assert_eq!(identity(&second.plain(PASSWORD, &(agent(PHONE) + BIND)).await), name);
    assert_eq!(first.error().await, "conflict");
    // Another tag is another resource, and the same device.
    let mut third = house.client().await;
    let tagged = third.plain(PASSWORD, &(agent(PHONE) + &BIND.replace("Orchard", "Garden"))).await;
    assert!(identity(&tagged).contains("/Garden/"));
    assert_eq!(second.error().await, "conflict");
    assert_eq!(house.resources().len(), 2, "phone and laptop");
    // A tag that can't stand in an address is left out.
    let mut fourth = house.client().await;
    let odd = BIND.replace("Orchard", &"x".repeat(2000));
    assert!(identity(&fourth.plain(PASSWORD, &(agent(PHONE) + &odd)).await).len() < 60);
}

#[tokio::test]
async fn without_bind_the_stream_goes_on_unbound() {
    let house = House::new().await;
    let mut client = house.client().await;
    assert_eq!(identity(&client.plain(PASSWORD, "").await), "romeo@north.localhost");
    assert!(client.features().await.root().child(ns::BIND, "bind").is_some());
    let bound = client
        .iq("set", "<bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'><resource>x</resource></bind>")
        .await;
    assert!(text(&bound).contains("romeo@north.localhost/x"));
    let mut client = house.client().await;
    client.plain(PASSWORD, "").await;
    client.features().await;
    client.authenticate("PLAIN", "").await;
    assert_eq!(client.error().await, "unsupported-stanza-type");
}

#[tokio::test]
async fn more_devices_than_allowed_are_signed_in_but_not_bound() {
    let house = House::with(&["clients.max_sessions_per_account=1"]).await;
    let mut phone = house.client().await;
    phone.plain(PASSWORD, &(agent(PHONE) + BIND)).await;
    let mut laptop = house.client().await;
    let success = laptop.plain(PASSWORD, &(agent(LAPTOP) + BIND)).await;
    assert_eq!(identity(&success), "romeo@north.localhost");
    let failed = success.root().child(ns::BIND2, "failed").unwrap();
    assert!(failed.child(ns::STANZA_ERRORS, "resource-constraint").is_some());
    assert!(laptop.features().await.root().child(ns::BIND, "bind").is_some());
}

#[tokio::test]
async fn what_is_malformed_is_refused_by_name_and_changes_nothing() {
    let house = House::new().await;
    let initial = format!("<initial-response>{}</initial-response>", plain("romeo", PASSWORD));
    let twice = |what: &str| format!("{initial}{what}{what}");
    let cases = [
        ("PLAIN", twice("<bind xmlns='urn:xmpp:bind:0'/>"), "malformed-request"),
        ("PLAIN", twice("<resume xmlns='urn:xmpp:sm:3' previd='x' h='0'/>"), "malformed-request"),
        ("PLAIN", twice(&agent(PHONE)), "malformed-request"),
        ("PLAIN", twice(&wish(EXPR)), "malformed-request"),
        ("PLAIN", format!("{initial}{initial}"), "malformed-request"),
        ("PLAIN", format!("{initial}<user-agent id='not a uuid'/>"), "malformed-request"),
        ("PLAIN", "<initial-response>not base64</initial-response>".into(), "incorrect-encoding"),
        ("PLAIN", "<initial-response/>".into(), "malformed-request"),
        ("MAGIC", initial.clone(), "invalid-mechanism"),
        ("", initial.clone(), "invalid-mechanism"),
        // A mechanism for tokens is one with <fast/> only, and the other way round.
        (EXPR, format!("{initial}{}", agent(PHONE)), "invalid-mechanism"),
        ("PLAIN", format!("{initial}{}<fast xmlns='urn:xmpp:fast:0'/>", agent(PHONE)), "invalid-mechanism"),
        ("HT-SHA-256-UNIQ", format!("{}<fast xmlns='urn:xmpp:fast:0'/>", agent(PHONE)), "invalid-mechanism"),
        (EXPR, "<fast xmlns='urn:xmpp:fast:0'/>".into(), "malformed-request"),
        (EXPR, format!("{}<fast xmlns='urn:xmpp:fast:0'/>", agent(PHONE)), "malformed-request"),
        (
            EXPR,
            format!("{}<fast xmlns='urn:xmpp:fast:0'/><initial-response>?</initial-response>", agent(PHONE)),
            "incorrect-encoding",
        ),
    ];
    for (mechanism, rest, expected) in cases {
        let mut client = house.client().await;
        client.authenticate(mechanism, &(rest.clone() + BIND)).await;
        assert_eq!(condition(&client.next().await), expected, "{mechanism} {rest}");
        assert!(house.resources().is_empty());
        // The stream goes on.
        assert_eq!(identity(&client.plain(PASSWORD, "").await), "romeo@north.localhost");
    }
    let mut client = house.client().await;
    assert_eq!(condition(&client.plain("wrong", &(agent(PHONE) + BIND)).await), "not-authorized");
    assert!(house.resources().is_empty(), "XEP-0388 s.2.6.2");
    client.send("<abort xmlns='urn:xmpp:sasl:2'/>").await;
    assert_eq!(condition(&client.next().await), "aborted");
    client.send("<response xmlns='urn:xmpp:sasl:2'/>").await;
    assert_eq!(condition(&client.next().await), "malformed-request");
    client.send("<next xmlns='urn:xmpp:sasl:2'/>").await;
    assert_eq!(condition(&client.next().await), "malformed-request");
    assert_eq!(client.error().await, "policy-violation", "four failures are enough");
    // XEP-0388 s.2.3: anything else during the exchange ends the stream.
    let mut client = house.client().await;
    let scram = Scram::new(Hash::Sha256, "romeo", PASSWORD, Binding::Unsupported).unwrap();
    let initial = format!("<initial-response>{}</initial-response>", scram.initial());
    client.authenticate("SCRAM-SHA-256", &initial).await;
    assert!(client.next().await.root().is(ns::SASL2, "challenge"));
    client.send("<response xmlns='urn:ietf:params:xml:ns:xmpp-sasl'>eA==</response>").await;
    assert_eq!(client.error().await, "not-authorized");
}

#[tokio::test]
async fn who_one_asks_to_be_is_who_the_stream_is_from() {
    let house = House::new().await;
    let dial = |from: &'static str| {
        let house = &house;
        async move {
            let mut client = house.dial(Entry::DirectTls).await;
            client.encrypt(Some("xmpp-client")).await;
            client.send(&HEADER.replace(" to=", &format!(" from='{from}' to="))).await;
            client
        }
    };
    let mut client = dial("romeo@south.localhost").await;
    assert_eq!(client.error().await, "invalid-from");
    let named = BASE64.encode(format!("romeo@north.localhost\0romeo\0{PASSWORD}"));
    let request = format!("<initial-response>{named}</initial-response>");
    let mut client = dial("juliet@north.localhost").await;
    client.next().await;
    client.authenticate("PLAIN", &request).await;
    assert_eq!(condition(&client.next().await), "invalid-authzid");
    let mut client = dial("romeo@north.localhost/orchard").await;
    client.next().await;
    client.authenticate("PLAIN", &request).await;
    assert_eq!(identity(&client.next().await), "romeo@north.localhost");
}

#[tokio::test]
async fn a_token_signs_in_its_device_with_its_mechanism_and_nobody_else() {
    let house = House::new().await;
    house.add("juliet@north.localhost").await;
    for mechanism in [EXPR, "HT-SHA-256-ENDP", "HT-SHA-256-NONE"] {
        let secret = house.token(PHONE, mechanism).await;
        for _ in 0..2 {
            let mut client = house.client().await;
            let success = client.fast(mechanism, "romeo", (&secret, &(agent(PHONE) + BIND))).await;
            assert!(identity(&success).starts_with("romeo@north.localhost/Orchard/"));
            assert_eq!(token(&success), None, "it is not due yet");
            assert!(house.counted(mechanism, "ok"));
        }
    }
    // What the database holds makes no token.
    let rows =
        house.server.exchange().db.read(sql("SELECT hex(next_seed), hex(seed), handle FROM devices")).await;
    let secret = house.token(PHONE, EXPR).await;
    assert!(rows.unwrap().iter().all(|row| !row.text(0).is_empty() || !row.text(1).is_empty()));
    let mut refusals = Vec::new();
    for (mechanism, user, device) in [
        ("HT-SHA-256-NONE", "romeo", PHONE),
        ("HT-SHA-256-ENDP", "romeo", PHONE),
        (EXPR, "romeo", LAPTOP),
        (EXPR, "juliet", PHONE),
        (EXPR, "nobody", PHONE),
        (EXPR, "romeo@south.localhost", PHONE),
    ] {
        let mut client = house.client().await;
        let refusal = client.fast(mechanism, user, (&secret, &(agent(device) + BIND))).await;
        assert_eq!(condition(&refusal), "not-authorized", "{mechanism} {user} {device}");
        refusals.push(refusal.bytes().to_vec());
    }
    let mut client = house.client().await;
    let wrong = client.fast(EXPR, "romeo", ("made up", &agent(PHONE))).await;
    refusals.push(wrong.bytes().to_vec());
    assert!(refusals.iter().all(|refusal| *refusal == refusals[0]), "nobody learns what was wrong");
    // On another connection the same proof proves nothing.
    let mut first = house.client().await;
    let data = first.tls().exporter.unwrap();
    let initial = token_initial("romeo", &secret, &data);
    let rest = format!(
        "<initial-response>{initial}</initial-response><fast xmlns='urn:xmpp:fast:0'/>{}",
        agent(PHONE)
    );
    let mut second = house.client().await;
    second.authenticate(EXPR, &rest).await;
    assert_eq!(condition(&second.next().await), "not-authorized");
    first.authenticate(EXPR, &rest).await;
    assert_eq!(identity(&first.next().await), "romeo@north.localhost");
}

#[tokio::test]
async fn tokens_are_replaced_and_the_old_one_holds_until_the_new_one_is_used() {
    let house = House::new().await;
    let first = house.token(PHONE, EXPR).await;
    let age = || {
        house.run(sql(
            "UPDATE devices SET expires = expires - 172800000, next_expires = next_expires - 172800000",
        ))
    };
    let sign_in = async |secret: &str| {
        let mut client = house.client().await;
        client.fast(EXPR, "romeo", (secret, &agent(PHONE))).await
    };
    assert_eq!(token(&sign_in(&first).await), None);
    age().await;
    let lost = token(&sign_in(&first).await).expect("two days old: it is due");
    // That one never arrived: the old one works, and brings another, which ends the lost one.
    let second = token(&sign_in(&first).await).unwrap();
    assert_ne!(lost, second);
    assert_eq!(condition(&sign_in(&lost).await), "not-authorized");
    assert_eq!(token(&sign_in(&second).await), None);
    assert_eq!(condition(&sign_in(&first).await), "not-authorized", "XEP-0484 s.3.4");
    // Too old: said to nobody but who has it.
    house.run(sql("UPDATE devices SET expires = 1")).await;
    assert_eq!(condition(&sign_in(&second).await), "credentials-expired");
    assert_eq!(condition(&sign_in(&first).await), "not-authorized");
    // And the password still works.
    assert_eq!(identity(&house.client().await.plain(PASSWORD, "").await), "romeo@north.localhost");
}

#[tokio::test]
async fn a_device_signs_out() {
    let house = House::new().await;
    let secret = house.token(PHONE, EXPR).await;
    house.run(sql("UPDATE devices SET next_expires = next_expires - 172800000")).await;
    let leave = agent(PHONE) + "<fast xmlns='urn:xmpp:fast:0' invalidate='true'/>";
    let success = house.client().await.fast(EXPR, "romeo", (&secret, &leave)).await;
    assert_eq!(identity(&success), "romeo@north.localhost");
    assert_eq!(token(&success), None, "no new one, although it is due");
    let refused = house.client().await.fast(EXPR, "romeo", (&secret, &agent(PHONE))).await;
    assert_eq!(condition(&refused), "not-authorized");
    // XEP-0484 s.3.5: unless another one is asked for.
    let secret = house.token(PHONE, EXPR).await;
    let success =
        house.client().await.fast(EXPR, "romeo", (&secret, &(leave + &wish("HT-SHA-256-NONE")))).await;
    let new = token(&success).unwrap();
    let refused = house.client().await.fast(EXPR, "romeo", (&secret, &agent(PHONE))).await;
    assert_eq!(condition(&refused), "not-authorized");
    let success = house.client().await.fast("HT-SHA-256-NONE", "romeo", (&new, &agent(PHONE))).await;
    assert_eq!(identity(&success), "romeo@north.localhost");
}

#[tokio::test]
async fn where_there_are_no_tokens_none_is_offered_given_or_taken() {
    let house = House::with(&["clients.token_lifetime=\"0 s\""]).await;
    let (mut client, features) = house.encrypted().await;
    assert!(!text(&features).contains("urn:xmpp:fast:0"));
    let success = client.plain(PASSWORD, &(agent(PHONE) + &wish(EXPR))).await;
    assert_eq!(token(&success), None);
    let refused = house.client().await.fast(EXPR, "romeo", ("x", &agent(PHONE))).await;
    assert_eq!(condition(&refused), "invalid-mechanism");
}

#[tokio::test]
async fn wrong_tokens_count_as_failed_logins() {
    let house = House::with(&["limits.enabled=true", "clients.login_failures_per_account=3"]).await;
    let secret = house.token(PHONE, EXPR).await;
    for user in ["romeo", "Romeo", "romeo"] {
        let refused = house.client().await.fast(EXPR, user, ("guessed", &agent(PHONE))).await;
        assert_eq!(condition(&refused), "not-authorized");
    }
    let blocked = house.client().await.fast(EXPR, "romeo", (&secret, &agent(PHONE))).await;
    assert_eq!(condition(&blocked), "temporary-auth-failure");
    assert_eq!(condition(&house.client().await.plain(PASSWORD, "").await), "temporary-auth-failure");
    // An account that does not exist is blocked just so.
    for _ in 0..3 {
        house.client().await.fast(EXPR, "nobody", ("guessed", &agent(PHONE))).await;
    }
    let blocked = house.client().await.fast(EXPR, "nobody", ("guessed", &agent(PHONE))).await;
    assert_eq!(condition(&blocked), "temporary-auth-failure");
}

#[tokio::test]
async fn failures_from_an_address_count_for_tokens_too() {
    let house = House::with(&["limits.enabled=true", "clients.login_failures_per_address=2"]).await;
    let secret = house.token(PHONE, EXPR).await;
    for user in ["a", "b"] {
        let refused = house.client().await.fast(EXPR, user, ("guessed", &agent(PHONE))).await;
        assert_eq!(condition(&refused), "not-authorized");
    }
    let blocked = house.client().await.fast(EXPR, "romeo", (&secret, &agent(PHONE))).await;
    assert_eq!(condition(&blocked), "temporary-auth-failure");
}

#[tokio::test]
async fn a_new_password_ends_other_sessions_and_tokens() {
    let house = House::new().await;
    let phone = house.token(PHONE, EXPR).await;
    let laptop = house.token(LAPTOP, EXPR).await;
    let mut at_phone = house.client().await;
    at_phone.fast(EXPR, "romeo", (&phone, &(agent(PHONE) + BIND))).await;
    at_phone.features().await;
    let mut at_laptop = house.client().await;
    at_laptop.fast(EXPR, "romeo", (&laptop, &(agent(LAPTOP) + BIND))).await;
    let change =
        "<query xmlns='jabber:iq:register'><username>romeo</username><password>new</password></query>";
    at_phone.send(&format!("<iq type='set' id='p' to='north.localhost'>{change}</iq>")).await;
    assert_eq!(at_laptop.error().await, "reset");
    let refused = house.client().await.fast(EXPR, "romeo", (&laptop, &agent(LAPTOP))).await;
    assert_eq!(condition(&refused), "not-authorized");
    let stays = house.client().await.fast(EXPR, "romeo", (&phone, &agent(PHONE))).await;
    assert_eq!(identity(&stays), "romeo@north.localhost", "the device that changed it is not signed out");
    // An operator's change ends all of them.
    let operator = trunkline_server::operations::Operator(std::sync::Arc::clone(house.server.exchange()));
    let operation = trunkline_server::admin::Operation::UserPasswd {
        address: "romeo@north.localhost".into(),
        password: Password::new("newer"),
    };
    use trunkline_server::admin::Admin as _;
    operator.run(&trunkline_server::admin::actor::Actor::trigger("test"), operation).await.unwrap();
    assert_eq!(at_phone.error().await, "reset");
    let refused = house.client().await.fast(EXPR, "romeo", (&phone, &agent(PHONE))).await;
    assert_eq!(condition(&refused), "not-authorized");
}

#[tokio::test]
async fn a_session_is_resumed_in_the_same_request() {
    let house = House::new().await;
    house.add("juliet@north.localhost").await;
    let mut client = house.client().await;
    let success = client.plain(PASSWORD, &(agent(PHONE) + BIND + &wish(EXPR))).await;
    let (full, secret) = (identity(&success), token(&success).unwrap());
    let bound = success.root().child(ns::BIND2, "bound").unwrap();
    let id = bound.child(ns::SM, "enabled").unwrap().attr("id").unwrap().into_owned();
    drop(client);
    let resume = |id: &str, h: &str| format!("<resume xmlns='urn:xmpp:sm:3' previd='{id}' h='{h}'/>");
    // Another's session can't be had, nor one that there is not; then the new one is bound.
    let mut juliet = house.client().await;
    let initial = format!("<initial-response>{}</initial-response>", plain("juliet", PASSWORD));
    juliet.authenticate("PLAIN", &(initial + &agent(LAPTOP) + &resume(&id, "0") + BIND)).await;
    let answer = juliet.next().await;
    assert!(identity(&answer).starts_with("juliet@north.localhost/Orchard/"));
    let failed = answer.root().child(ns::SM, "failed").unwrap();
    assert!(failed.child(ns::STANZA_ERRORS, "item-not-found").is_some());
    assert!(answer.root().child(ns::BIND2, "bound").is_some());
    juliet.features().await;
    juliet
        .send(&format!("<message to='{full}' type='chat' id='m'><body>wilt thou be gone?</body></message>"))
        .await;
    // One without a number is no resumption, and binds nothing when nothing is to be bound.
    let mut odd = house.client().await;
    let answer = odd.plain(PASSWORD, &(agent(LAPTOP) + &resume(&id, "many"))).await;
    assert_eq!(identity(&answer), "romeo@north.localhost");
    assert!(text(&answer).contains("bad-request"));
    let mut client = house.client().await;
    let rest = agent(PHONE) + &resume(&id, "0") + BIND;
    let success = client.fast(EXPR, "romeo", (&secret, &rest)).await;
    assert_eq!(identity(&success), full);
    let resumed = success.root().child(ns::SM, "resumed").unwrap();
    assert_eq!(resumed.attr("previd").as_deref(), Some(&*id));
    assert!(success.root().child(ns::BIND2, "bound").is_none(), "XEP-0386 s.3.2");
    assert!(client.features().await.root().child(ns::SM, "sm").is_none(), "a resumed session is managed");
    let message = client.next().await;
    assert_eq!(message.root().attr("id").as_deref(), Some("m"), "{}", text(&message));
    // Who counts more than was sent has lost the thread.
    drop(client);
    let mut client = house.client().await;
    let rest = agent(PHONE) + &resume(&id, "77") + BIND;
    client
        .authenticate(
            "PLAIN",
            &format!("<initial-response>{}</initial-response>{rest}", plain("romeo", PASSWORD)),
        )
        .await;
    let error = client.next().await;
    assert!(text(&error).contains("handled-count-too-high"), "{}", text(&error));
}

#[tokio::test]
async fn a_request_for_other_features_is_refused_without_prejudice() {
    let house = House::with(&["limits.enabled=true", "clients.login_failures_per_address=1"]).await;
    let (mut client, features) = house.encrypted().await;
    let version = features.root().child(ns::PIPELINING, "config-version").unwrap();
    assert_eq!(version.attr("scheme").as_deref(), Some("opaque"));
    let value = version.attr("value").unwrap().into_owned();
    let with = |scheme: &str, value: &str| {
        format!("<config-version xmlns='urn:xmpp:iap:0' scheme='{scheme}' value='{value}'/>")
    };
    for rest in [with("opaque", "old"), with("other", &value)] {
        let refused = client.plain(PASSWORD, &rest).await;
        assert_eq!(condition(&refused), "aborted");
        assert!(refused.root().child(ns::PIPELINING, "config-version-mismatch").is_some());
    }
    assert_eq!(identity(&client.plain(PASSWORD, &with("opaque", &value)).await), "romeo@north.localhost");
    // The same features have the same name on every connection; other features another.
    let (_, again) = house.encrypted().await;
    assert_eq!(again.bytes(), features.bytes());
    let other = House::with(&["accounts.registration=\"open\""]).await;
    let (_, features) = other.encrypted().await;
    let version = features.root().child(ns::PIPELINING, "config-version").unwrap();
    assert_ne!(version.attr("value").unwrap(), value);
}

#[tokio::test]
async fn what_was_announced_is_signed_in_both_profiles() {
    let house = House::new().await;
    let (client, features) = house.encrypted().await;
    drop(client);
    let list = features.root().child(ns::SASL2, "authentication").unwrap();
    let names: Vec<String> =
        list.children().filter(|it| it.name() == "mechanism").map(|it| it.text().into_owned()).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let types = ["tls-server-end-point", "tls-exporter"];
    let fewer: Vec<&str> = names.iter().copied().filter(|name| !name.contains("512")).collect();
    for (names, types, genuine) in
        [(&names, &types[..], true), (&fewer, &types[..], false), (&names, &types[..1], false)]
    {
        for (open, close) in [
            (
                format!("<authenticate xmlns='{}' mechanism='SCRAM-SHA-256'><initial-response>", ns::SASL2),
                "</initial-response></authenticate>",
            ),
            (format!("<auth xmlns='{}' mechanism='SCRAM-SHA-256'>", ns::SASL), "</auth>"),
        ] {
            let scram = Scram::new(Hash::Sha256, "romeo", PASSWORD, Binding::Unsupported).unwrap();
            let mut scram = scram.announced(names, types);
            let mut client = house.client().await;
            client.send(&format!("{open}{}{close}", scram.initial())).await;
            let challenge = client.next().await;
            let said = BASE64.decode(challenge.root().text().as_bytes()).unwrap();
            assert!(String::from_utf8(said).unwrap().contains(",h="));
            assert_eq!(scram.respond(&challenge.root().text()).is_ok(), genuine, "{names:?} {types:?}");
        }
    }
}

#[tokio::test]
async fn an_account_gets_the_keys_that_it_lacks() {
    let house = House::new().await;
    house.run(sql("DELETE FROM credentials WHERE mechanism = 'SCRAM-SHA-512'")).await;
    let keys = async || {
        let rows = house.server.exchange().db.read(sql("SELECT count(*) FROM credentials")).await.unwrap();
        rows.first().unwrap().int(0)
    };
    assert_eq!(keys().await, 2);
    let upgrades = ["UPGR-SCRAM-SHA-256", "UPGR-SCRAM-SHA-512", "UPGR-BLOOP"]
        .map(|name| format!("<upgrade xmlns='urn:xmpp:sasl:upgrade:0'>{name}</upgrade>"))
        .concat();
    // To the task: only what is lacking is asked for.
    let begin = async || {
        let mut client = house.client().await;
        let answer = client.plain(PASSWORD, &(agent(PHONE) + &upgrades + BIND + &wish(EXPR))).await;
        assert!(answer.root().is(ns::SASL2, "continue"), "{}", text(&answer));
        let tasks = answer.root().child(ns::SASL2, "tasks").unwrap();
        let tasks: Vec<_> = tasks.children().map(|task| task.text().into_owned()).collect();
        assert_eq!(tasks, ["UPGR-SCRAM-SHA-512"]);
        client
    };
    let next = "<next xmlns='urn:xmpp:sasl:2' task='UPGR-SCRAM-SHA-512'/>";
    let data = |hash: &str| {
        format!(
            "<task-data xmlns='urn:xmpp:sasl:2'><hash xmlns='urn:xmpp:scram-upgrade:0'>{hash}</hash></task-data>"
        )
    };
    let mut client = begin().await;
    client.send(&next.replace("512", "1")).await;
    assert_eq!(condition(&client.next().await), "malformed-request");
    let mut client = begin().await;
    client.send("<abort xmlns='urn:xmpp:sasl:2'/>").await;
    assert_eq!(condition(&client.next().await), "aborted");
    let mut client = begin().await;
    client.send("<presence/>").await;
    assert_eq!(client.error().await, "not-authorized");
    for (hash, expected) in
        [("AAAA", "malformed-request"), ("?", "incorrect-encoding"), ("", "malformed-request")]
    {
        let mut client = begin().await;
        client.send(next).await;
        client.next().await;
        client.send(&data(hash)).await;
        assert_eq!(condition(&client.next().await), expected);
    }
    assert!(house.resources().is_empty(), "nobody was bound");
    let tokens = house.server.exchange().db.read(sql("SELECT count(*) FROM devices")).await.unwrap();
    assert_eq!(tokens.first().unwrap().int(0), 0, "XEP-0484 s.3.2: no token before all is done");
    assert_eq!(keys().await, 2);
    let mut client = begin().await;
    client.send(next).await;
    let task = client.next().await;
    let salt = task.root().child(ns::SCRAM_UPGRADE, "salt").unwrap();
    assert_eq!(salt.attr("iterations").as_deref(), Some("4096"), "as the account's other keys");
    let salted = salted_password(Hash::Sha512, PASSWORD, &salt.text(), 4096).unwrap();
    client.send(&data(&salted)).await;
    let success = client.next().await;
    assert!(identity(&success).starts_with("romeo@north.localhost/Orchard/"));
    assert!(token(&success).is_some());
    assert_eq!(keys().await, 3);
    // The new keys are the password's; and nothing more is asked for.
    let mut client = house.client().await;
    let mut scram = Scram::new(Hash::Sha512, "romeo", PASSWORD, Binding::Unsupported).unwrap();
    let initial = format!("<initial-response>{}</initial-response>{upgrades}", scram.initial());
    client.authenticate("SCRAM-SHA-512", &initial).await;
    let response = scram.respond(&client.next().await.root().text()).unwrap();
    client.send(&format!("<response xmlns='urn:xmpp:sasl:2'>{response}</response>")).await;
    let success = client.next().await;
    assert_eq!(identity(&success), "romeo@north.localhost");
    let proof = success.root().child(ns::SASL2, "additional-data").unwrap();
    scram.verify(&proof.text()).unwrap();
}

#[tokio::test]
async fn a_user_sees_the_devices_and_ends_one() {
    let house = House::new().await;
    house.add("juliet@north.localhost").await;
    let laptop = house.token(LAPTOP, EXPR).await;
    let mut at_laptop = house.client().await;
    at_laptop.fast(EXPR, "romeo", (&laptop, &(agent(LAPTOP) + BIND))).await;
    let mut client = house.client().await;
    client.plain(PASSWORD, &(agent(PHONE) + BIND)).await;
    client.features().await;
    let list = "<list xmlns='urn:xmpp:cam:0'/>";
    let answer = client.iq("get", list).await;
    let clients = answer.root().child(ns::CLIENT_ACCESS, "clients").unwrap();
    assert_eq!(clients.children().count(), 2, "{}", text(&answer));
    let of = |answer: &Element, fast: bool| {
        let clients = answer.root().child(ns::CLIENT_ACCESS, "clients").unwrap();
        let has_token = |it: &trunkline_xml::Node<'_>| {
            it.child(ns::CLIENT_ACCESS, "auth")
                .is_some_and(|auth| auth.child(ns::CLIENT_ACCESS, "fast").is_some())
        };
        let found = clients.children().find(|it| has_token(it) == fast);
        found.map(|it| {
            assert_eq!(it.attr("connected").as_deref(), Some("true"));
            assert!(it.child(ns::CLIENT_ACCESS, "first-seen").is_some());
            let agent = it.child(ns::CLIENT_ACCESS, "user-agent").unwrap();
            assert_eq!(agent.child(ns::CLIENT_ACCESS, "device").unwrap().text(), "Romeo's phone");
            it.attr("id").unwrap().into_owned()
        })
    };
    assert!(!text(&answer).contains(PHONE) && !text(&answer).contains(LAPTOP));
    let id = of(&answer, true).unwrap();
    let revoke = |id: &str| format!("<revoke xmlns='urn:xmpp:cam:0' id='{id}'/>");
    assert!(text(&client.iq("set", &revoke("x")).await).contains("item-not-found"));
    assert!(text(&client.iq("set", "<revoke xmlns='urn:xmpp:cam:0'/>").await).contains("bad-request"));
    // Nobody else's.
    let mut juliet = house.client().await;
    let initial = format!("<initial-response>{}</initial-response>", plain("juliet", PASSWORD));
    juliet.authenticate("PLAIN", &(initial + BIND)).await;
    juliet.next().await;
    juliet.features().await;
    assert!(text(&juliet.iq("set", &revoke(&id)).await).contains("item-not-found"));
    let asked = format!("<iq type='get' id='other' to='romeo@north.localhost'>{list}</iq>");
    juliet.send(&asked).await;
    let answer = loop {
        let element = juliet.next().await;
        if element.root().attr("id").as_deref() == Some("other") {
            break element;
        }
    };
    assert!(text(&answer).contains("service-unavailable"));
    // It has shown the password: that is said, and the device is signed out all the same.
    let answer = client.iq("set", &revoke(&id)).await;
    assert!(
        text(&answer).contains("service-unavailable") && text(&answer).contains("password-reset-required")
    );
    assert_eq!(at_laptop.error().await, "reset");
    let refused = house.client().await.fast(EXPR, "romeo", (&laptop, &agent(LAPTOP))).await;
    assert_eq!(condition(&refused), "not-authorized");
    // After a new password, a device that has come back by nothing but that can be ended for good.
    let change =
        "<query xmlns='jabber:iq:register'><username>romeo</username><password>new</password></query>";
    client.send(&format!("<iq type='set' id='q' to='north.localhost'>{change}</iq>")).await;
    client.next().await;
    let answer = client.iq("get", list).await;
    let clients = answer.root().child(ns::CLIENT_ACCESS, "clients").unwrap();
    let gone = clients.children().find(|it| it.attr("connected").as_deref() == Some("false")).unwrap();
    let id = gone.attr("id").unwrap().into_owned();
    assert_eq!(client.iq("set", &revoke(&id)).await.root().attr("type").as_deref(), Some("result"));
    let answer = client.iq("get", list).await;
    assert_eq!(answer.root().child(ns::CLIENT_ACCESS, "clients").unwrap().children().count(), 1);
}

#[tokio::test]
async fn a_client_that_does_not_say_what_it_is_is_seen_while_it_is_there() {
    let house = House::new().await;
    let mut client = house.client().await;
    client.plain(PASSWORD, BIND).await;
    client.features().await;
    let answer = client.iq("get", "<list xmlns='urn:xmpp:cam:0'/>").await;
    let clients = answer.root().child(ns::CLIENT_ACCESS, "clients").unwrap();
    assert_eq!(clients.children().count(), 1);
    let auth = clients.first_child().unwrap().child(ns::CLIENT_ACCESS, "auth").unwrap();
    assert!(auth.child(ns::CLIENT_ACCESS, "password").is_some());
}

#[tokio::test]
async fn an_account_has_so_many_devices_at_most() {
    let house = House::new().await;
    let first = house.token(PHONE, EXPR).await;
    house.run(sql("UPDATE devices SET last_seen = 1")).await;
    for n in 0..64 {
        let id = format!("d4565fa7-4d72-4749-b3d3-{n:012}");
        identity(&house.client().await.plain(PASSWORD, &agent(&id)).await);
    }
    let rows = house.server.exchange().db.read(sql("SELECT count(*) FROM devices")).await.unwrap();
    assert_eq!(rows.first().unwrap().int(0), 64);
    let refused = house.client().await.fast(EXPR, "romeo", (&first, &agent(PHONE))).await;
    assert_eq!(condition(&refused), "not-authorized", "the one that was away longest was forgotten");
}

/// Over TCP with the client that people use: how often it waits for the server, from TLS to the resumed session.
#[tokio::test]
async fn round_trips() {
    let house = House::new().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = std::sync::Arc::clone(&house.server);
    tokio::spawn(async move {
        while let Ok((tcp, peer)) = listener.accept().await {
            server.accept(tcp.into(), peer, Entry::StartTls(TlsPolicy::Required));
        }
    });
    let trust = Trust::pem_file(&house.files.path().join("ca.pem")).unwrap();
    let target = Target::new(address, "north.localhost").trust(trust).security(Security::StartTls);
    let login = Login::new("romeo", PASSWORD);
    let mut device = Device::new(PHONE, "Romeo's phone");
    let resume = async |device: &mut Device, client: trunkline_client::Client| {
        let jid = client.jid().to_owned();
        let session = client.cut().unwrap();
        match trunkline_client::Client::sign_in_again(&target, (&login, device), session).await.unwrap() {
            Resumption::Resumed(client) => {
                assert_eq!(client.jid(), jid);
                client
            }
            Resumption::Fresh { .. } => panic!("not resumed"),
        }
    };
    let mut table = Vec::new();
    // Nothing known: features, challenge, success.
    let client = trunkline_client::Client::sign_in(&target, &login, &mut device).await.unwrap();
    table.push(("SCRAM, first time", client.round_trips(), 3));
    assert!(device.has_token());
    let token_device = device.clone();
    device.forget_token();
    device.forget_features();
    let client = resume(&mut device, client).await;
    table.push(("SCRAM, resumed", client.round_trips(), 3));
    device.forget_token();
    let client = resume(&mut device, client).await;
    table.push(("SCRAM, resumed, pipelined", client.round_trips(), 2));
    // The token of the sign-in that was used last.
    drop(token_device);
    device.forget_features();
    let client = resume(&mut device, client).await;
    table.push(("FAST, resumed", client.round_trips(), 2));
    let mut client = resume(&mut device, client).await;
    table.push(("FAST, resumed, pipelined", client.round_trips(), 1));
    for (what, counted, most) in &table {
        println!("{what}: {counted} round trips");
        assert_eq!(counted, most, "{what}");
    }
    let pong = client.iq("get", "", "<ping xmlns='urn:xmpp:ping'/>").await.unwrap();
    assert_eq!(pong.root().attr("type").as_deref(), Some("result"));
    // Features that have changed since: one round trip more, and no harm.
    client.close().await.unwrap();
    let mut stale = device.clone();
    stale.forget_features();
    let bound = Login::new("romeo", PASSWORD).mechanism(Mechanism::ScramSha256Plus);
    let client = trunkline_client::Client::sign_in(&target, &bound, &mut stale).await.unwrap();
    assert_eq!(client.round_trips(), 2, "the token goes before the password");
    tokio::time::timeout(Duration::from_secs(10), client.close()).await.unwrap().unwrap();
    assert!(TokenMechanism::parse(EXPR).is_some());
}
