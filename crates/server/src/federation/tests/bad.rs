//! Peers that misbehave: each has a refusal with a name, and nobody else notices.

use trunkline_store::{Batch, Lane, sql};
use trunkline_xml::Limits;

use super::stage::{HELLO, Rogue, Site, World, auth, dates, leaf, settle};
use crate::admin::Admin as _;
use crate::federation::wire::Wire;
use crate::net::pki::Leaf;
use crate::net::{Side, Transport};
use crate::route::remote::Remote as _;

const NAMES: &[&str] = &["here.example", "rogue.example", "victim.example"];
const ME: (&str, &str) = ("rogue.example", "here.example");

async fn here(settings: &[&str]) -> (World, Site) {
    let world = World::new(NAMES);
    let here = world.site("here.example", settings).await;
    (world, here)
}

/// A peer that has proved `rogue.example`.
async fn proved() -> (World, Site, Rogue) {
    proved_at(&[]).await
}

async fn proved_at(settings: &[&str]) -> (World, Site, Rogue) {
    let (world, here) = here(settings).await;
    let certs = world.certs("rogue", &leaf("rogue.example"));
    let mut rogue = Rogue::connect(&world, &here, &certs, ME).await;
    assert!(rogue.next().await.unwrap().contains("EXTERNAL"));
    rogue.external(ME.0, ME.1).await;
    (world, here, rogue)
}

#[tokio::test(start_paused = true)]
async fn each_bad_certificate_is_refused_by_its_name() {
    let (begin, end) = dates();
    let early = "2025-07-01T00:00:00Z".parse().unwrap();
    let late = "2026-12-01T00:00:00Z".parse().unwrap();
    let cases = [
        (Leaf { valid: (begin, early), ..leaf("rogue.example") }, "certificate-expired", "expired"),
        (
            Leaf { valid: (late, end), ..leaf("rogue.example") },
            "certificate-not-yet-valid",
            "valid only from",
        ),
        (leaf("other.example"), "certificate-wrong-name", "is for other.example"),
    ];
    for (leaf, name, words) in cases {
        let (world, here) = here(&["federation.dialback=false"]).await;
        let certs = world.certs("rogue", &leaf);
        let mut rogue = Rogue::connect(&world, &here, &certs, ME).await;
        let rest = rogue.rest().await;
        assert!(rest.contains("not-authorized") && rest.contains(words), "{name}: {rest}");
        assert_eq!(here.refusals(name), 1, "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_certificate_of_a_foreign_authority_is_refused() {
    let (world, here) = here(&["federation.dialback=false"]).await;
    let foreign = crate::net::pki::Authority::new("Foreign Authority").unwrap();
    let certs = world.store("rogue", &foreign.issue(&leaf("rogue.example")).unwrap());
    let mut rogue = Rogue::connect(&world, &here, &certs, ME).await;
    assert!(rogue.rest().await.contains("not-authorized"));
    assert_eq!(here.refusals("certificate-unknown-issuer"), 1);
}

#[tokio::test(start_paused = true)]
async fn external_is_for_the_domain_of_the_certificate_only() {
    let (world, here) = here(&[]).await;
    let certs = world.certs("rogue", &leaf("rogue.example"));
    // Claims another domain in the header: EXTERNAL is not even offered.
    let mut rogue = Rogue::connect(&world, &here, &certs, ("victim.example", "here.example")).await;
    assert!(!rogue.next().await.unwrap().contains("EXTERNAL"));
    rogue.send(&auth("victim.example")).await;
    assert!(rogue.next().await.unwrap().contains("not-authorized"));
    // Names another domain only in the authzid.
    let mut rogue = Rogue::connect(&world, &here, &certs, ME).await;
    assert!(rogue.next().await.unwrap().contains("EXTERNAL"));
    rogue.send(&auth("victim.example")).await;
    assert!(rogue.next().await.unwrap().contains("invalid-authzid"));
    // Without any from, the authzid says it.
    let mut rogue = Rogue::connect(&world, &here, &certs, ("", "here.example")).await;
    rogue.next().await.unwrap();
    rogue.send(&auth("victim.example")).await;
    assert!(rogue.next().await.unwrap().contains("not-authorized"));
    rogue.send("<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='PLAIN'>AGEAYg==</auth>").await;
    assert!(rogue.next().await.unwrap().contains("invalid-mechanism"));
    rogue.send("<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='EXTERNAL'>?</auth>").await;
    assert!(rogue.next().await.unwrap().contains("incorrect-encoding"));
    rogue.external("rogue.example", "here.example").await;
    assert_eq!(here.refusals("sasl-other-domain"), 1);
    assert_eq!(here.refusals("certificate-wrong-name"), 2);
}

#[tokio::test(start_paused = true)]
async fn a_from_that_was_not_proved_ends_the_stream() {
    let cases = [
        (
            "<message from='a@victim.example' to='juliet@here.example'><body>x</body></message>",
            "invalid-from",
            "forged-from",
        ),
        (
            "<message from='a@here.example' to='juliet@here.example'><body>x</body></message>",
            "invalid-from",
            "forged-from",
        ),
        (
            "<message from='a@rogue.example' to='b@elsewhere.example'><body>x</body></message>",
            "host-unknown",
            "stanza-host-unknown",
        ),
        (
            "<message to='juliet@here.example'><body>x</body></message>",
            "improper-addressing",
            "stanza-addressing",
        ),
        (
            "<message from='a@rogue.example'><body>x</body></message>",
            "improper-addressing",
            "stanza-addressing",
        ),
        ("<message from='@' to='juliet@here.example'/>", "invalid-from", "stanza-bad-from"),
        (
            "<message xmlns='jabber:client' from='a@rogue.example' to='juliet@here.example'/>",
            "unsupported-stanza-type",
            "unknown-element",
        ),
        ("<!-- hello -->", "restricted-xml", "xml-restricted"),
        ("<a><b></a>", "not-well-formed", "xml-not-well-formed"),
        (
            "<message from='a@rogue.example' to='j@here.example'>\u{1}</message>",
            "not-well-formed",
            "xml-not-well-formed",
        ),
        ("text", "bad-format", "xml-stray-text"),
    ];
    for (xml, condition, name) in cases {
        let (_world, here, mut rogue) = proved().await;
        let mut juliet = here.person("juliet@here.example/b").await;
        rogue.send(xml).await;
        let rest = rogue.rest().await;
        assert!(rest.contains(condition), "{xml}: {rest}");
        assert_eq!(here.refusals(name), 1, "{xml}: {name}");
        assert!(juliet.arrived().await.is_empty(), "{xml}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_too_large_or_too_deep_ends_the_stream() {
    let (_world, here, mut rogue) = proved().await;
    rogue
        .send(&format!("<message from='a@rogue.example' to='j@here.example'>{}</message>", "<a>".repeat(100)))
        .await;
    assert!(rogue.rest().await.contains("policy-violation"));
    assert_eq!(here.refusals("xml-too-deep"), 1);
    let (world, here) = self::here(&[]).await;
    let certs = world.certs("rogue", &leaf("rogue.example"));
    let mut rogue = Rogue::connect(&world, &here, &certs, ME).await;
    rogue.next().await.unwrap();
    rogue.send(&format!("<x xmlns='y'>{}</x>", "a".repeat(20_000))).await;
    assert!(rogue.rest().await.contains("policy-violation"));
    assert_eq!(here.refusals("xml-too-large"), 1, "small before the proof");
}

#[tokio::test(start_paused = true)]
async fn stanzas_before_a_proof_and_elements_nobody_knows() {
    let cases = [
        ("<message from='a@rogue.example' to='j@here.example'/>", "not-authorized", "stanza-before-proof"),
        ("<x xmlns='y'/>", "unsupported-stanza-type", "unknown-element"),
        ("<a xmlns='urn:xmpp:sm:3' h='0'/>", "unsupported-stanza-type", ""),
        ("<db:result from='rogue.example'>k</db:result>", "improper-addressing", "dialback-addressing"),
    ];
    for (xml, condition, name) in cases {
        let (world, here) = here(&[]).await;
        let certs = world.certs("rogue", &leaf("rogue.example"));
        let mut rogue = Rogue::connect(&world, &here, &certs, ME).await;
        rogue.next().await.unwrap();
        rogue.send(xml).await;
        assert!(rogue.rest().await.contains(condition), "{xml}");
        assert!(name.is_empty() || here.refusals(name) == 1, "{xml}");
    }
}

#[tokio::test(start_paused = true)]
async fn headers_that_are_wrong() {
    let cases = [
        (
            "<stream:stream xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams' version='1.0' to='here.example'>",
            "invalid-namespace",
        ),
        ("<stream xmlns='jabber:server' version='1.0'>", "invalid-namespace"),
        (
            "<stream:stream xmlns='jabber:server' xmlns:stream='http://etherx.jabber.org/streams' to='here.example'>",
            "unsupported-version",
        ),
        (&format!("{HELLO} to='nowhere.example'>"), "host-unknown"),
        (&format!("{HELLO} to='here.example' from='a@b'>"), "invalid-from"),
        (&format!("{HELLO} to='here.example'><message/>"), "not-authorized"),
        (
            &format!("{HELLO} to='here.example'><db:result from='a' to='here.example'>k</db:result>"),
            "policy-violation",
        ),
        (
            &format!("{HELLO} to='here.example'><starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/><evil/>"),
            "policy-violation",
        ),
        ("GET / HTTP/1.1\r\n\r\n", "not-well-formed"),
    ];
    for (bytes, condition) in cases {
        let (world, here) = here(&[]).await;
        let mut rogue = Rogue::plain(&world, &here, bytes.as_bytes()).await;
        let rest = rogue.rest().await;
        assert!(rest.contains(condition), "{bytes}: {rest}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_proves_nothing_is_closed_in_time() {
    let (world, here) = here(&[]).await;
    let certs = world.certs("rogue", &leaf("rogue.example"));
    let mut rogue = Rogue::connect(&world, &here, &certs, ME).await;
    assert!(rogue.rest().await.contains("connection-timeout"));
    assert_eq!(here.refusals("proof-timeout"), 1);
    // And one that does not even start.
    let mut rogue = Rogue::plain(&world, &here, b"").await;
    assert_eq!(rogue.rest().await, "");
    assert_eq!(here.refusals("tls-timeout"), 1);
}

#[tokio::test(start_paused = true)]
async fn dialback_for_a_domain_of_somebody_else_fails() {
    let world = World::new(NAMES);
    let here = world.site("here.example", &[]).await;
    let victim = world.site("victim.example", &[]).await;
    let certs = world.certs("rogue", &leaf("rogue.example"));
    let mut rogue = Rogue::connect(&world, &here, &certs, ME).await;
    rogue.next().await.unwrap();
    rogue.send("<db:result from='victim.example' to='here.example'>0123456789abcdef</db:result>").await;
    let answer = rogue.next().await.unwrap();
    assert!(answer.contains("type='invalid'"), "{answer}");
    assert_eq!(here.refusals("dialback-invalid"), 1);
    assert_eq!(victim.refusals("dialback-foreign-key"), 1, "the victim's log tells who was impersonated");
    // Ours, one that nobody serves, and one that can't be asked.
    for (from, to, condition, name) in [
        ("here.example", "here.example", "not-acceptable", "own-domain"),
        ("victim.example", "nothere.example", "item-not-found", "host-unknown"),
        ("nowhere.example", "here.example", "remote-server-not-found", "dialback-unverified"),
    ] {
        rogue.send(&format!("<db:result from='{from}' to='{to}'>k</db:result>")).await;
        let answer = rogue.next().await.unwrap();
        assert!(answer.contains("type='error'") && answer.contains(condition), "{answer}");
        assert_eq!(here.refusals(name), 1);
    }
    rogue.send("<message from='a@victim.example' to='j@here.example'/>").await;
    assert!(rogue.rest().await.contains("not-authorized"));
}

#[tokio::test(start_paused = true)]
async fn dialback_is_refused_where_policy_forbids_it() {
    let (world, here) = here(&["federation.domains.\"victim.example\".dialback=false"]).await;
    let certs = world.certs("rogue", &leaf("rogue.example"));
    let mut rogue = Rogue::connect(&world, &here, &certs, ME).await;
    rogue.next().await.unwrap();
    rogue.send("<db:result from='victim.example' to='here.example'>k</db:result>").await;
    let answer = rogue.next().await.unwrap();
    assert!(answer.contains("not-authorized"), "{answer}");
    assert_eq!(here.refusals("certificate-wrong-name"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_dialback_requests_is_ended() {
    let (world, here) = here(&[]).await;
    let certs = world.certs("rogue", &leaf("rogue.example"));
    let mut rogue = Rogue::connect(&world, &here, &certs, ME).await;
    let flood = "<db:result from='x.example' to='here.example'>k</db:result>".repeat(100);
    rogue.send(&flood).await;
    assert!(rogue.rest().await.contains("policy-violation"));
    assert_eq!(here.refusals("dialback-flood"), 1);
}

#[tokio::test(start_paused = true)]
async fn blocked_domains_are_not_let_in() {
    let (world, here) = here(&["federation.domains.\"rogue.example\".block=true"]).await;
    let certs = world.certs("rogue", &leaf("rogue.example"));
    for from in ["rogue.example", "sub.rogue.example"] {
        let mut rogue = Rogue::connect(&world, &here, &certs, (from, "here.example")).await;
        assert!(rogue.rest().await.contains("policy-violation"));
    }
    assert_eq!(here.refusals("peer-blocked"), 2);
    let mut romeo = here.person("romeo@here.example/a").await;
    romeo.send("<message to='a@rogue.example' type='chat'><body>x</body></message>").await;
    assert!(romeo.arrived().await.iter().any(|xml| xml.contains("policy-violation")));
}

#[tokio::test(start_paused = true)]
async fn a_blocked_domain_is_told_why_and_nobody_else_is() {
    let (world, here) = here(&[]).await;
    let op = crate::control::policy::PolicyOp::Block {
        domain: "rogue.example".into(),
        subdomains: false,
        reason: "pills for everybody".into(),
        until: Some(4_102_444_800_000),
    };
    let operator = crate::operations::Operator(here.exchange().clone());
    let actor = crate::admin::actor::Actor::command_line();
    operator.run(&actor, crate::admin::Operation::Policy(op)).await.unwrap();
    for (name, told) in [("rogue.example", true), ("other.example", false)] {
        let certs = world.certs(name, &leaf(name));
        let mut rogue = Rogue::connect(&world, &here, &certs, ("rogue.example", "here.example")).await;
        let rest = rogue.rest().await;
        assert!(rest.contains("policy-violation"), "{rest}");
        assert_eq!(rest.contains("pills for everybody"), told, "{rest}");
        assert_eq!(rest.contains("2100-01-01T00:00:00"), told, "{rest}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_acknowledgement_of_more_than_was_sent_is_an_error() {
    let (_world, _here, mut rogue) = proved().await;
    rogue.send("<enable xmlns='urn:xmpp:sm:3'/>").await;
    assert!(rogue.next().await.unwrap().contains("enabled"));
    rogue.send("<enable xmlns='urn:xmpp:sm:3'/>").await;
    assert!(rogue.next().await.unwrap().contains("unexpected-request"));
    rogue.send("<r xmlns='urn:xmpp:sm:3'/>").await;
    assert!(rogue.next().await.unwrap().contains("h='0'"));
    rogue.send("<a xmlns='urn:xmpp:sm:3' h='7'/>").await;
    let rest = rogue.rest().await;
    assert!(rest.contains("handled-count-too-high") && rest.contains("undefined-condition"), "{rest}");
}

#[tokio::test(start_paused = true)]
async fn what_is_received_is_acknowledged_when_it_is_handled() {
    let (_world, here, mut rogue) = proved().await;
    let mut juliet = here.person("juliet@here.example/b").await;
    rogue.send("<enable xmlns='urn:xmpp:sm:3'/>").await;
    assert!(rogue.next().await.unwrap().contains("enabled"));
    for n in 0..3 {
        rogue.send(&format!("<message from='a@rogue.example' to='juliet@here.example/b' type='chat'><body>{n}</body></message>")).await;
    }
    rogue.send("<r xmlns='urn:xmpp:sm:3'/>").await;
    assert!(rogue.next().await.unwrap().contains("h='3'"));
    assert_eq!(juliet.bodies().await, ["0", "1", "2"]);
}

/// A server that offers what `script` says and is trusted.
async fn serve_rogue(world: &World, certs: &crate::net::CertStore, transport: Transport) -> Rogue {
    let mut wire = Wire::new(transport, Limits::default());
    wire.next().await.unwrap();
    let hello = format!("{HELLO} id='x' from='rogue.example'>");
    wire.send(hello.as_bytes()).await.unwrap();
    wire.send(b"<stream:features><starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/></stream:features>")
        .await
        .unwrap();
    wire.next().await.unwrap();
    wire.send(b"<proceed xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>").await.unwrap();
    let transport = wire.transport.accept_tls(certs, Side::Servers, None).await.unwrap();
    let mut wire = Wire::new(transport, Limits::default());
    wire.next().await.unwrap();
    wire.send(format!("{HELLO} id='y' from='rogue.example'>").as_bytes()).await.unwrap();
    let _ = world;
    Rogue { wire }
}

#[tokio::test(start_paused = true)]
async fn see_other_host_is_shown_and_not_followed() {
    let (world, here) = here(&[]).await;
    let mut dialled = world.rogue("rogue.example");
    let certs = world.certs("rogue", &leaf("rogue.example"));
    let mut romeo = here.person("romeo@here.example/a").await;
    romeo.send("<iq to='rogue.example' type='get' id='p1'><ping xmlns='urn:xmpp:ping'/></iq>").await;
    let mut rogue = serve_rogue(&world, &certs, dialled.recv().await.unwrap()).await;
    rogue
        .send("<stream:error><see-other-host xmlns='urn:ietf:params:xml:ns:xmpp-streams'>evil.example</see-other-host></stream:error></stream:stream>")
        .await;
    let arrived = romeo.arrived().await;
    assert!(arrived.iter().any(|xml| xml.contains("not followed")), "{arrived:?}");
    assert_eq!(*world.wires.dialled.lock(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_answer_to_no_question_of_ours_is_not_believed() {
    let (world, here) = here(&[]).await;
    let mut dialled = world.rogue("rogue.example");
    let certs = world.certs("rogue", &leaf("rogue.example"));
    let mut romeo = here.person("romeo@here.example/a").await;
    romeo.send("<message to='a@rogue.example' type='chat'><body>x</body></message>").await;
    let mut rogue = serve_rogue(&world, &certs, dialled.recv().await.unwrap()).await;
    rogue.send("<stream:features><mechanisms xmlns='urn:ietf:params:xml:ns:xmpp-sasl'><mechanism>EXTERNAL</mechanism></mechanisms><dialback xmlns='urn:xmpp:features:dialback'/></stream:features>").await;
    assert!(rogue.next().await.unwrap().contains("<auth"));
    // Refuses, and says yes to a dialback that was not asked for.
    rogue.send("<failure xmlns='urn:ietf:params:xml:ns:xmpp-sasl'><not-authorized/></failure>").await;
    rogue.send("<db:result from='victim.example' to='here.example' type='valid'/>").await;
    assert!(rogue.next().await.unwrap().contains("db:result"));
    assert_eq!(rogue.next().await, None, "the stream is given up");
    let last = here.federation.status().peers[0].last_error.clone().unwrap();
    assert!(last.text.contains("no answer to dialback"), "{last:?}");
    assert_eq!(here.outbound().await, 1, "the message waits for the next attempt");
}

#[tokio::test(start_paused = true)]
async fn garbage_at_every_step_harms_nobody() {
    let world = World::new(NAMES);
    let here = world.site("here.example", &[]).await;
    let friend = world.site("victim.example", &[]).await;
    let mut romeo = here.person("romeo@here.example/a").await;
    let mut juliet = friend.person("juliet@victim.example/b").await;
    let certs = world.certs("rogue", &leaf("rogue.example"));
    let mut seed = 7u64;
    let mut random = move || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as usize
    };
    let pieces = [
        "<",
        ">",
        "</stream:stream>",
        "<stream:features/>",
        "<stream:error/>",
        "<db:result/>",
        "<db:verify/>",
        "<db:verify from='a' to='here.example' id='1'>k</db:verify>",
        "<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl'/>",
        "<enable xmlns='urn:xmpp:sm:3'/>",
        "<a xmlns='urn:xmpp:sm:3'/>",
        "<r xmlns='urn:xmpp:sm:3'/>",
        "<bidi xmlns='urn:xmpp:bidi'/>",
        "<message/>",
        "<iq from='a@rogue.example' to='here.example'/>",
        "\u{0}",
        "&lt;",
        " ",
        HELLO,
        "<db:result from='rogue.example' to='here.example'>k</db:result>",
        "<presence from='a@rogue.example' to='romeo@here.example' type='bogus'/>",
    ];
    for step in 0..200 {
        let mut rogue = if step % 3 == 0 {
            Rogue::plain(&world, &here, HELLO.as_bytes()).await
        } else {
            Rogue::connect(&world, &here, &certs, ME).await
        };
        for _ in 0..1 + random() % 8 {
            rogue.send(pieces[random() % pieces.len()]).await;
        }
    }
    romeo.send("<message to='juliet@victim.example' type='chat'><body>still here</body></message>").await;
    assert_eq!(juliet.bodies().await, ["still here"]);
}

#[tokio::test(start_paused = true)]
async fn probing_leaves_nothing_behind() {
    let (_world, here, mut rogue) = proved().await;
    let mut juliet = here.person("juliet@here.example/b").await;
    for address in ["juliet@here.example", "nobody@here.example", "here.example"] {
        rogue.send(&format!("<presence from='a@rogue.example' to='{address}' type='probe'/>")).await;
    }
    settle().await;
    assert_eq!(here.outbound().await, 0);
    assert_eq!(juliet.arrived().await.len(), 0);
    // What was granted before is said again as often as somebody asks; it is kept when it is granted.
    rogue.send("<presence from='a@rogue.example' to='juliet@here.example' type='subscribe'/>").await;
    juliet.send("<presence to='a@rogue.example' type='subscribed'/>").await;
    settle().await;
    assert_eq!(here.outbound().await, 1);
    for _ in 0..3 {
        rogue.send("<presence from='a@rogue.example' to='juliet@here.example' type='subscribe'/>").await;
    }
    settle().await;
    assert_eq!(here.outbound().await, 1);
}

#[tokio::test(start_paused = true)]
async fn an_acknowledgement_costs_the_same_for_addresses_that_do_not_exist() {
    let (_world, here, mut rogue) = proved_at(&["federation.preset=careful"]).await;
    // An account that nobody uses.
    let host = here.exchange().host("here.example").unwrap().id;
    let insert = sql("INSERT INTO accounts (host_id, local, created_at) VALUES (?1, 'juliet', 0)").bind(host);
    here.exchange().db.run(Batch::new(Lane::Inside).with(insert)).await.unwrap();
    rogue.send("<enable xmlns='urn:xmpp:sm:3'/>").await;
    assert!(rogue.next().await.unwrap().contains("enabled"));
    for stanza in [
        "<message from='a@rogue.example' to='TO' type='chat'><body>hello</body></message>",
        "<message from='a@rogue.example' to='TO'><active xmlns='http://jabber.org/protocol/chatstates'/></message>",
        "<presence from='a@rogue.example' to='TO' type='subscribe'/>",
        "<presence from='a@rogue.example' to='TO' type='subscribe'/>",
        "<presence from='a@rogue.example' to='TO' type='subscribed'/>",
        "<presence from='a@rogue.example' to='TO' type='probe'/>",
        "<iq from='a@rogue.example' to='TO' id='1' type='get'><ping xmlns='urn:xmpp:ping'/></iq>",
    ] {
        let mut costs = Vec::new();
        for to in ["juliet@here.example", "nobody@here.example"] {
            let before = here.exchange().db.stats();
            rogue.send(&stanza.replace("TO", to)).await;
            // What is kept is sorted later than that.
            tokio::time::sleep(std::time::Duration::from_millis(40)).await;
            let after = here.exchange().db.stats();
            settle().await;
            costs.push((after.reads - before.reads, after.commits - before.commits));
        }
        assert_eq!(costs[0], costs[1], "{stanza}");
    }
}
