//! What is seen of peers: counters, series, traces without content; and that administration is not for the outside.

use std::io::{Read as _, Write as _};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tracing_subscriber::layer::SubscriberExt as _;

use super::stage::{World, settle};
use crate::admin::actor::Scope;
use crate::admin::table::TABLE;
use crate::admin::{Operation, Outcome};
use crate::control::rule::Authentication;
use crate::control::traffic::DomainsOp;
use crate::traces::Exporter;

const NAMES: &[&str] = &["north.example", "south.example"];

#[tokio::test(start_paused = true)]
async fn what_a_peer_does_is_counted_on_both_sides() {
    let world = World::new(NAMES);
    let north = world.site("north.example", &[]).await;
    let south = world.site("south.example", &[]).await;
    let mut romeo = north.person("romeo@north.example/a").await;
    let mut juliet = south.person("juliet@south.example/b").await;
    let start = north.exchange().clock().now();
    for n in 0..3 {
        romeo
            .send(&format!("<message to='juliet@south.example' type='chat'><body>{n}</body></message>"))
            .await;
    }
    settle().await;
    juliet.send("<message to='romeo@north.example' type='chat'><body>so</body></message>").await;
    settle().await;
    assert_eq!(romeo.bodies().await, ["so"]);

    let traffic = &south.exchange().control.traffic;
    assert!(traffic.first_seen("north.example").is_some_and(|at| at >= start));
    assert_eq!(traffic.authentication("north.example"), Some(Authentication::Certificate));
    assert!(traffic.rate("north.example") >= 3);
    let show = Operation::Domains(DomainsOp::Show { domain: "South.Example".into() });
    let Outcome::Domain(detail) = north.admin(show).await.unwrap() else { panic!() };
    assert_eq!(detail.summary.domain, "south.example");
    assert_eq!(detail.summary.state, "connected");
    assert_eq!((detail.counters["message-out"], detail.counters["message-in"]), (3, 1));
    assert!(detail.counters["message-bytes-out"] > 100);
    assert!(detail.counters["handshakes"] >= 1);
    assert!(detail.certificate.iter().any(|line| line.starts_with("subject:")), "{:?}", detail.certificate);
    assert_eq!(detail.authentication.as_deref(), Some("certificate"));
    assert!(detail.acknowledged_after.is_some());
    let list =
        |sort: &str| DomainsOp::List { search: Some("SOUTH".into()), sort: Some(sort.into()), offset: 0 };
    for sort in ["domain", "first-seen", "in", "out", "refused", "held", "reports", "reputation", "queue"] {
        let Outcome::Domains { domains, total } = north.admin(Operation::Domains(list(sort))).await.unwrap()
        else {
            panic!()
        };
        assert_eq!((total, domains[0].stanzas_out >= 3), (1, true), "{sort}");
    }
    assert!(north.admin(Operation::Domains(list("size"))).await.is_err());
    let unknown = Operation::Domains(DomainsOp::Show { domain: "west.example".into() });
    assert!(north.admin(unknown).await.is_err());
    tokio::time::sleep(Duration::from_secs(70)).await;
    let Outcome::Now(now) = north.admin(Operation::Domains(DomainsOp::Now)).await.unwrap() else { panic!() };
    assert_eq!((now.sessions, now.peers), (1, 1));
    let text = north.exchange().metrics.encode();
    for line in [
        "trunkline_peer_stanzas_total{domain=\"other\",kind=\"message\",direction=\"out\"} 3",
        "trunkline_peer_queue_age_seconds{domain=\"other\"} 0.0",
    ] {
        assert!(text.contains(line), "{line} is missing");
    }
    romeo.send("<message to='juliet@south.example' type='chat'><body>x</body></message>").await;
    settle().await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    romeo.send("<message to='juliet@south.example' type='chat'><body>y</body></message>").await;
    settle().await;
    let text = north.exchange().metrics.encode();
    let line = "trunkline_peer_stanzas_total{domain=\"south.example\",kind=\"message\",direction=\"out\"} 1";
    assert!(text.contains(line), "a busy domain has a series of its own:\n{text}");
    assert!(text.ends_with("# EOF\n"));
}

/// THE WALK, second part: no operation is reachable from another provider, for nobody there.
#[tokio::test(start_paused = true)]
async fn no_operation_is_for_the_outside() {
    let world = World::new(NAMES);
    let settings = ["accounts.admins=[\"romeo@north.example\"]", "limits.enabled=false"];
    let north = world.site("north.example", &settings).await;
    let south = world.site("south.example", &[]).await;
    let mut outsider = south.person("romeo@south.example/b").await;
    let commands = "http://jabber.org/protocol/commands";
    let nodes: Vec<String> =
        north.exchange().modules.commands().map(|command| command.node.to_owned()).collect();
    assert!(nodes.iter().filter(|node| node.starts_with("urn:trunkline:admin:0#")).count() > 40);
    for (n, node) in nodes.iter().enumerate() {
        outsider
            .send(&format!(
                "<iq type='set' id='c{n}' to='north.example'><command xmlns='{commands}' node='{node}'/></iq>"
            ))
            .await;
    }
    settle().await;
    let answers = outsider.arrived().await;
    assert_eq!(answers.len(), nodes.len());
    for answer in &answers {
        assert!(answer.contains("type='error'") && !answer.contains("jabber:x:data"), "{answer}");
    }
    let audit = trunkline_store::sql("SELECT COUNT(*) FROM audit WHERE face <> 'configuration'");
    assert_eq!(north.exchange().db.read(audit).await.unwrap().first().unwrap().int(0), 0);
}

/// THE WALK, third part: from a client, each role reaches what its scopes permit.
#[tokio::test(start_paused = true)]
async fn ad_hoc_commands_follow_the_roles() {
    let world = World::new(NAMES);
    let settings = [
        "accounts.admins=[\"admin@north.example\"]",
        "accounts.moderators=[\"mod@north.example\"]",
        "limits.enabled=false",
    ];
    let north = world.site("north.example", &settings).await;
    let commands = "http://jabber.org/protocol/commands";
    for (who, scopes) in [
        ("admin", &Scope::ALL[..]),
        ("mod", &[Scope::Read, Scope::Moderate, Scope::Audit][..]),
        ("romeo", &[][..]),
    ] {
        let mut person = north.person(&format!("{who}@north.example/a")).await;
        person
            .send(&format!(
                "<iq type='get' id='d' to='north.example'>\
                 <query xmlns='http://jabber.org/protocol/disco#items' node='{commands}'/></iq>"
            ))
            .await;
        settle().await;
        let listed = person.arrived().await.concat();
        for row in TABLE {
            let name = if row.act.is_empty() { row.op.to_owned() } else { format!("{}-{}", row.op, row.act) };
            let node = format!("urn:trunkline:admin:0#{name}");
            let permitted = scopes.contains(&row.scope);
            assert_eq!(listed.contains(&format!("'{node}'")), permitted, "{who} {node} in {listed}");
            person
                .send(&format!(
                    "<iq type='set' id='c' to='north.example'><command xmlns='{commands}' node='{node}'/></iq>"
                ))
                .await;
            settle().await;
            let answer = person.arrived().await.concat();
            assert_eq!(answer.contains("<forbidden"), !permitted, "{who} {node}: {answer}");
            if let Some((_, rest)) = answer.split_once("sessionid='") {
                // One account has so many commands under way, and no more.
                let id = rest.split('\'').next().unwrap();
                person
                    .send(&format!(
                        "<iq type='set' id='e' to='north.example'><command xmlns='{commands}' node='{node}' \
                         sessionid='{id}' action='cancel'/></iq>"
                    ))
                    .await;
                settle().await;
                person.arrived().await;
            }
        }
    }
}

/// A collector that remembers what it is sent.
fn collector() -> (String, Arc<Mutex<Vec<u8>>>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}/v1/traces", listener.local_addr().unwrap());
    let seen: Arc<Mutex<Vec<u8>>> = Arc::default();
    let remembered = Arc::clone(&seen);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut request = Vec::new();
            let mut buffer = [0; 4096];
            loop {
                let read = stream.read(&mut buffer).unwrap_or(0);
                request.extend_from_slice(&buffer[..read]);
                let text = String::from_utf8_lossy(&request).to_lowercase();
                let Some(end) = text.find("\r\n\r\n") else { continue };
                let length = text.split("content-length: ").nth(1).and_then(|rest| rest.split("\r\n").next());
                let length: usize = length.unwrap().parse().unwrap();
                if read == 0 || request.len() >= end + 4 + length {
                    break;
                }
            }
            remembered.lock().unwrap().extend_from_slice(&request);
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        }
    });
    (endpoint, seen)
}

#[tokio::test(start_paused = true)]
async fn traces_have_domains_and_no_people_and_no_content() {
    let (endpoint, seen) = collector();
    let exporter = Exporter::new(&endpoint, 1).unwrap();
    let subscriber = tracing_subscriber::registry().with(exporter.layer());
    let _on = tracing::subscriber::set_default(subscriber);

    let world = World::new(NAMES);
    let north = world.site("north.example", &[]).await;
    let south = world.site("south.example", &[]).await;
    let mut romeo = north.person("montague@north.example/balcony").await;
    let mut juliet = south.person("capulet@south.example/tomb").await;
    romeo.send("<message to='capulet@south.example' type='chat' id='nightingale'><body>wherefore</body></message>").await;
    settle().await;
    assert_eq!(juliet.bodies().await, ["wherefore"]);
    let list = DomainsOp::List { search: Some("capulet@south.example".into()), sort: None, offset: 0 };
    north.admin(Operation::Domains(list)).await.unwrap();
    tracing::info!("a log line about montague@north.example");
    tokio::task::spawn_blocking(move || exporter.flush()).await.unwrap();

    let bytes = seen.lock().unwrap().clone();
    let has = |text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
    for wanted in [
        "POST /v1/traces",
        "trunkline",
        "stanza",
        "outside-in",
        "dial",
        "operation",
        "north.example",
        "south.example",
        "message",
    ] {
        assert!(has(wanted), "{wanted} is missing in {}", String::from_utf8_lossy(&bytes));
    }
    for secret in ["montague", "capulet", "balcony", "tomb", "wherefore", "nightingale", "log line"] {
        assert!(!has(secret), "{secret} is exported");
    }
}
