//! Every kind of work against the real server, over real sockets, briefly. What is asserted is that deliveries were
//! verified and figures are there, never how fast anything was.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::io::{BufRead as _, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use serde_json::Value;
use tokio::runtime::Runtime;
use trunkline_server::config::Config;
use trunkline_server::config::overrides::Overrides;
use trunkline_server::net::pki::{Authority, Leaf, self_signed};
use trunkline_server::route::Mail;
use trunkline_server::serve::{Parts, Server};
use trunkline_store::{Batch, Lane, sql};
use trunkline_xmpp::stanza::Stanza;

/// A provider in this process. Dropped, it stops.
struct Provider {
    runtime: Option<Runtime>,
    server: Arc<Server>,
    domain: &'static str,
    clients: SocketAddr,
    direct: SocketAddr,
    _files: tempfile::TempDir,
}

impl Provider {
    fn alone() -> Provider {
        Provider::start(
            "north.localhost",
            &["federation.enabled=false".into(), "federation.listen=[]".into()],
        )
    }

    fn start(domain: &'static str, settings: &[String]) -> Provider {
        let files = tempfile::tempdir().unwrap();
        let (chain, key) = (files.path().join("chain.pem"), files.path().join("key.pem"));
        self_signed(&Leaf::new(domain, 30)).unwrap().write(&chain, &key).unwrap();
        let (clients, direct) = (free(), free());
        let mut presets = Overrides::default();
        for setting in [
            format!("domain={domain}"),
            format!("data_dir={}", files.path().display()),
            format!("clients.listen={clients}"),
            format!("clients.listen_tls={direct}"),
            "clients.threads=1".to_owned(),
            "federation.listen_tls=[]".to_owned(),
            "web.listen=[]".to_owned(),
            "console.listen=[]".to_owned(),
            "limits.enabled=false".to_owned(),
            "accounts.password_iterations=4096".to_owned(),
            "accounts.registration=open".to_owned(),
            format!("tls.certificate={}", chain.display()),
            format!("tls.key={}", key.display()),
        ] {
            presets.set(&setting).unwrap();
        }
        for setting in settings {
            presets.set(setting).unwrap();
        }
        let text = trunkline_server::config::template(&presets);
        let config = Config::parse(&text, Path::new("load.toml")).unwrap();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let server = runtime.block_on(Server::start(config, Parts::default())).unwrap();
        Provider { runtime: Some(runtime), server, domain, clients, direct, _files: files }
    }

    /// Runs the program against this server and gives the results.
    fn load(&self, work: &[&str]) -> Value {
        results(&self.run(work))
    }

    fn run(&self, work: &[&str]) -> Output {
        let server = if work.contains(&"direct") { self.direct } else { self.clients }.to_string();
        let pid = std::process::id().to_string();
        let mut all = work.to_vec();
        all.extend(["--server", &server, "--domain", self.domain, "--server-pid", &pid]);
        all.extend(["--insecure", "--password", "wherefore", "--seconds", "0.3", "--json", "-"]);
        load(&all)
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.block_on(self.server.stop());
            runtime.shutdown_background();
        }
    }
}

fn free() -> SocketAddr {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap()
}

fn load(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_trunkline-load")).args(args).output().unwrap()
}

fn results(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["tool"], "trunkline-load");
    assert!(text.contains(json["work"].as_str().unwrap()), "the table is on standard error:\n{text}");
    json["results"].clone()
}

/// Each of these is there and more than nothing.
fn positive(results: &Value, names: &[&str]) {
    for name in names {
        let value = name.split('.').fold(results, |value, part| &value[part]);
        assert!(value.as_f64().is_some_and(|it| it > 0.0), "{name}: {results}");
    }
}

const CHAT: [&str; 8] = [
    "messages",
    "seconds",
    "messages_per_second",
    "latency_us.p50",
    "latency_us.p999",
    "server_cpu_us_per_message",
    "load_cpu_us_per_message",
    "verified",
];

#[test]
fn one_server() {
    let provider = Provider::alone();
    // The others find the accounts there.
    positive(&provider.load(&["chat", "--register", "--pairs", "3", "--idle", "2"]), &CHAT);
    let managed = provider.load(&["chat", "--pairs", "3", "--window", "4", "--sm", "--tls", "direct"]);
    positive(&managed, &CHAT);
    positive(&managed, &["acknowledgements"]);
    let paced = ["chat", "--pairs", "2", "--rate", "200", "--threads", "2", "--mechanism", "SCRAM-SHA-1"];
    positive(&provider.load(&paced), &CHAT);

    let full = provider.load(&["chat", "--pairs", "3", "--sm", "--second-device"]);
    positive(&full, &CHAT);
    assert_eq!(full["copies_verified"].as_u64(), full["verified"].as_u64().map(|sent| sent * 2));

    let login = ["logins", "seconds", "logins_per_second", "server_cpu_us_per_login", "latency_us.p50"];
    let full =
        provider.load(&["login", "--at-once", "2", "--mechanism", "PLAIN", "--key-exchange", "classic"]);
    positive(&full, &login);
    assert_eq!(full["resumed"], 0);
    let resumed = provider.load(&["login", "--at-once", "2", "--resume-tls", "--tls", "direct"]);
    positive(&resumed, &login);
    positive(&resumed, &["resumed"]);

    let idle = provider.load(&["idle", "--sessions", "6", "--per-account", "2", "--sm", "--presence"]);
    positive(&idle, &["sessions", "memory_before_kib", "memory_after_kib"]);
    assert!(idle["kib_per_session"].is_number());

    let fanout = ["deliveries", "seconds", "server_cpu_us_per_delivery", "latency_us.p99", "verified"];
    positive(&provider.load(&["fanout", "--contacts", "4"]), &fanout);
    // The subscriptions are there already.
    positive(&provider.load(&["fanout", "--contacts", "4", "--rate", "100"]), &fanout);
}

#[test]
fn two_servers() {
    let federation = [free(), free()];
    let domains = ["east.localhost", "west.localhost"];
    let [east, west] = [0, 1].map(|side| {
        let settings = [
            format!("federation.listen={}", federation[side]),
            format!("federation.routes.\"{}\"={}", domains[1 - side], federation[1 - side]),
        ];
        Provider::start(domains[side], &settings)
    });
    let peer = west.clients.to_string();
    let s2s = [
        "s2s",
        "--register",
        "--pairs",
        "2",
        "--both-ways",
        "--peer-server",
        &peer,
        "--peer-domain",
        west.domain,
    ];
    positive(&east.load(&s2s), &CHAT);
}

#[test]
fn a_siege() {
    let files = tempfile::tempdir().unwrap();
    let file = |name: &str| files.path().join(name);
    let authority = Authority::new("Siege").unwrap();
    std::fs::write(file("ca.pem"), authority.pem()).unwrap();
    let outside = Leaf::new("siege.test", 30);
    authority.issue(&outside).unwrap().write(&file("chain.pem"), &file("key.pem")).unwrap();
    let (federation, web, dns) = (free(), free(), free());
    let provider = Provider::start(
        "north.localhost",
        &[
            format!("federation.listen={federation}"),
            format!("federation.trust={}", file("ca.pem").display()),
            format!("federation.name_servers={dns}"),
            "federation.allow_private=true".into(),
            format!("web.listen={web}"),
        ],
    );
    let path = |name: &str| file(name).to_string_lossy().into_owned();
    let (federation, web, dns) = (federation.to_string(), web.to_string(), dns.to_string());
    let (chain, key) = (path("chain.pem"), path("key.pem"));
    let results = provider.load(&[
        "siege",
        "--register",
        "--pairs",
        "2",
        "--victims",
        "4",
        "--rate",
        "50",
        "--domains",
        "3",
        "--federation",
        &federation,
        "--metrics",
        &web,
        "--dns",
        &dns,
        "--certificate",
        &chain,
        "--key",
        &key,
    ]);
    let rows = results["rows"].as_array().unwrap();
    let names: Vec<&str> = rows.iter().filter_map(|row| row["attack"].as_str()).collect();
    assert_eq!(names, ["stanzas", "connections", "handshakes", "dialback", "presence"]);
    for row in rows {
        positive(row, &["sent", "before.messages", "during.messages", "after.messages", "memory_mib.peak"]);
        assert_eq!(row["lost"], 0, "{row}");
        // What the attackers set out to do came about, at the server and at the sink.
        let done = match row["attack"].as_str().unwrap() {
            "stanzas" | "presence" => &["proved", "stanzas"][..],
            "connections" => &["connections"],
            "handshakes" => &["connections", "handshakes"],
            _ => &["connections", "dialback_requests", "asked"],
        };
        positive(&row["attackers"], done);
        positive(&row["attackers_of_sink"], done);
    }
    // Of three domains all were proved: by EXTERNAL, and the others with the certificate on the same stream.
    assert_eq!(rows[0]["attackers"]["proved"], 8, "{}", rows[0]);
    positive(&rows[3]["refused"], &["dialback-unverified"]);
}

#[test]
fn the_floor() {
    for coalesce in [None, Some("--coalesce")] {
        let mut args = vec!["floor", "--pairs", "2", "--window", "4", "--seconds", "0.3", "--json", "-"];
        args.extend(coalesce);
        positive(&results(&load(&args)), &CHAT);
    }
}

#[test]
fn errors_say_whose_fault_it_is_and_what_to_do() {
    let provider = Provider::alone();
    let fails = |output: Output, code: i32, part: &str| {
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{text}");
        assert!(text.contains(part), "`{part}` is missing in: {text}");
    };
    fails(provider.run(&["chat", "--pairs", "1"]), 1, "--register");
    fails(provider.run(&["chat", "--mechanism", "CRAM-MD5"]), 2, "SCRAM-SHA-256");
    fails(provider.run(&["chat", "--body", "3"]), 2, "46");
    let room = ["room", "--register", "--occupants", "2"];
    fails(provider.run(&room), 1, "does the server have rooms there?");
    let nobody = free().to_string();
    let server = ["--server", &nobody, "--domain", "north.localhost"];
    fails(load(&[&["chat", "--pairs", "1"][..], &server].concat()), 1, "Is the server running");
    let there = provider.clients.to_string();
    let server = ["--server", &there, "--domain", "north.localhost"];
    fails(load(&[&["chat", "--pairs", "1"][..], &server].concat()), 1, "--insecure");
    let pid = [&["chat", "--pairs", "1", "--server-pid", "4194305"][..], &server].concat();
    fails(load(&pid), 2, "no such process");
}

#[test]
fn a_push_service_prints_what_it_is_told() {
    let components = free();
    let provider = Provider::start(
        "north.localhost",
        &[
            "federation.enabled=false".into(),
            "federation.listen=[]".into(),
            format!("components.listen={components}"),
            "components.entries.\"push.north.localhost\".secret = \"s3cret\"".into(),
        ],
    );
    let exchange = Arc::clone(provider.server.exchange());
    let runtime = provider.runtime.as_ref().unwrap();
    let account = "INSERT INTO accounts (id, host_id, local, created_at) VALUES (9, 1, 'juliet', 0)";
    let service = "INSERT INTO push_services (account, service, node, device, resource, most, enabled_at, failures) \
                   VALUES (9, 'push.north.localhost', 'phone', 0, 'r', 0, 0, 0)";
    let setup = Batch::new(Lane::Inside).with(sql(account)).with(sql(service));
    runtime.block_on(exchange.db.run(setup)).unwrap();
    let mut program = Command::new(env!("CARGO_BIN_EXE_trunkline-load"))
        .args(["push-service", "--component", &components.to_string(), "--domain", "push.north.localhost"])
        .args(["--secret", "s3cret", "--count", "1"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(program.stdout.take().unwrap()).lines();
    let mut line = || serde_json::from_str::<Value>(&lines.next().unwrap().unwrap()).unwrap();
    assert_eq!(line()["connected"], "push.north.localhost");
    let message = b"<message from='romeo@north.localhost/a' to='juliet@north.localhost' type='chat'><body>x</body></message>";
    let stanza = Stanza::parse(&message[..]).unwrap();
    runtime.block_on(exchange.deliver(Mail::inside(stanza)));
    let told = line();
    assert_eq!((told["node"].as_str(), told["from"].as_str()), (Some("phone"), Some("north.localhost")));
    assert_eq!(told["summary"]["message-count"], "1");
    assert!(program.wait().unwrap().success());
    // Nobody is there any more: the failure is noted, and nothing else comes of it.
    let refused = load(&["push-service", "--component", "127.0.0.1:1", "--domain", "d", "--secret", "s"]);
    assert_eq!(refused.status.code(), Some(1));
    let wrong =
        ["push-service", "--component", "127.0.0.1:1", "--domain", "d", "--secret", "s", "--answer", "x"];
    assert_eq!(load(&wrong).status.code(), Some(2));
}
