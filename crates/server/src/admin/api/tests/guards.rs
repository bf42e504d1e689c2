//! Who gets in, and how much of the server strangers can take.

use trunkline_store::{Batch, Lane, sql};

use super::*;

impl Desk {
    /// How often something of this name was refused.
    fn refusals(&self, name: &str) -> u64 {
        let metrics = self.exchange().metrics.encode();
        let line = format!("trunkline_refusals_total{{name=\"{name}\"}} ");
        metrics.lines().find_map(|found| found.strip_prefix(&line)?.parse().ok()).unwrap_or(0)
    }

    /// The first step of a sign-in from an address: what it is called.
    async fn begin(&self, address: &str) -> Got {
        let first = json!({ "client_first": "n,,n=admin@north.example,r=fyko+d2lbbFgONRv9qkxdawL" });
        let headers = [("content-type", "application/json")];
        self.ask_from(address, ("POST", "/api/v1/session"), &headers, &first.to_string()).await
    }

    fn reconfigure<R>(&self, change: impl FnOnce(&mut Config) -> R) {
        let mut config = (*self.exchange().config.load_full()).clone();
        change(&mut config);
        self.exchange().config.store(Arc::new(config));
    }
}

/// Who proves the old password while it is changed has not proved the new one.
#[tokio::test(start_paused = true)]
async fn a_proof_is_of_the_password_as_it_is() {
    let desk = Desk::new("").await;
    let nobody = Browser::default();
    let mut scram = Scram::new(Hash::Sha256, "admin@north.example", PASSWORD, Binding::Unsupported).unwrap();
    let text = |encoded: &str| String::from_utf8(STANDARD.decode(encoded).unwrap()).unwrap();
    let first = desk.post("/session", &nobody, json!({ "client_first": text(&scram.initial()) })).await;
    let challenge = STANDARD.encode(first.body["server_first"].as_str().unwrap());
    let last = text(&scram.respond(&challenge).unwrap());
    let address = "admin@north.example".to_owned();
    let passwd = Operation::UserPasswd { address, password: Password::new("therefore") };
    Operator(Arc::clone(desk.exchange())).run(&Actor::command_line(), passwd).await.unwrap();
    let body = json!({ "login": first.body["login"], "client_final": last });
    let got = desk.post("/session", &nobody, body).await;
    assert_eq!(got.status, 401, "{}", got.body);
    assert!(!got.headers.contains_key("set-cookie"));
}

#[tokio::test(start_paused = true)]
async fn sign_ins_that_are_not_ended_lock_nobody_out() {
    let desk = Desk::new("[console]\nrequests_per_minute = 100000\n").await;
    // One household, whatever address of theirs it is.
    for n in 0..40 {
        assert_eq!(desk.begin(&format!("2001:db8::{n:x}")).await.status, 200, "the oldest makes room");
    }
    assert_eq!(desk.refusals("console-logins"), 20);
    let (got, _) = desk.prove("admin@north.example", PASSWORD).await;
    assert_eq!(got.status, 200);
    // And of the household itself who comes last may go on.
    assert_eq!(desk.begin("2001:db8::1:1").await.status, 200);
}

#[tokio::test(start_paused = true)]
async fn sessions_end_when_the_second_factor_changes() {
    let desk = Desk::new("").await;
    let now = || desk.exchange().clock().now();
    let (own, other) = (desk.sign_in("admin@north.example").await, desk.sign_in("admin@north.example").await);
    let moderator = desk.sign_in("mod@north.example").await;
    let enrolment = desk.post("/session/totp", &own, json!({})).await;
    let secret = enrolment.body["secret"].as_str().unwrap().to_owned();
    let code = crate::admin::totp::code_of(&secret, now());
    assert_eq!(desk.get("/status", &other).await.status, 200, "not in force yet");
    assert_eq!(desk.post("/session/totp", &own, json!({ "code": code })).await.status, 200);
    assert_eq!(desk.get("/status", &own).await.status, 200);
    assert_eq!(desk.get("/status", &other).await.status, 401, "it came by the password alone");
    assert_eq!(desk.get("/status", &moderator).await.status, 200);

    // A wrong code is counted under a name of its own: somebody has the password.
    let (_, login) = desk.prove("admin@north.example", PASSWORD).await;
    let wrong = json!({ "login": login, "code": "000000" });
    assert_eq!(desk.post("/session", &Browser::default(), wrong).await.status, 401);
    assert_eq!(desk.refusals("console-code"), 1);

    let reset = Operation::UserTotpReset { address: "admin@north.example".into() };
    Operator(Arc::clone(desk.exchange())).run(&Actor::command_line(), reset).await.unwrap();
    assert_eq!(desk.get("/status", &own).await.status, 401, "it was taken off by somebody else");
    assert_eq!(desk.get("/status", &moderator).await.status, 200);
}

#[tokio::test(start_paused = true)]
async fn a_token_permits_no_more_than_its_maker_may_now() {
    let desk = Desk::new("").await;
    let admin = desk.sign_in("admin@north.example").await;
    let make = json!({ "name": "mine", "scopes": ["read", "accounts"] });
    let made = desk.post("/tokens/create", &admin, make).await;
    let token = made.body["token"].as_str().unwrap().to_owned();
    let status = async |path: &str| desk.with_token("GET", path, &token, "").await.status;
    assert_eq!((status("/status").await, status("/accounts").await), (200, 200));
    desk.reconfigure(|config| {
        config.accounts.admins.clear();
        config.accounts.moderators.insert("admin@north.example".into());
    });
    assert_eq!((status("/status").await, status("/accounts").await), (200, 403), "a moderator now");
    desk.reconfigure(|config| config.accounts.moderators.clear());
    assert_eq!(status("/status").await, 401, "no role");
    desk.reconfigure(|config| config.accounts.admins.insert("admin@north.example".into()));
    assert_eq!(status("/accounts").await, 200);

    let operator = Operator(Arc::clone(desk.exchange()));
    let run = async |operation| operator.run(&Actor::command_line(), operation).await.unwrap();
    let address = || "admin@north.example".to_owned();
    run(Operation::UserDisable { address: address() }).await;
    assert_eq!(status("/status").await, 401, "disabled");
    run(Operation::UserEnable { address: address() }).await;
    assert_eq!(status("/status").await, 200);
    let others = desk.token("of the command line", &[Scope::Read]).await;
    run(Operation::UserRemove { address: address() }).await;
    run(Operation::UserAdd { address: address(), password: Password::new(PASSWORD) }).await;
    assert_eq!(status("/status").await, 401, "it went with the account, also for who has the address next");
    assert_eq!(desk.with_token("GET", "/status", &others, "").await.status, 200);
}

#[tokio::test(start_paused = true)]
async fn the_audit_log_is_for_those_with_its_scope() {
    let desk = Desk::new("").await;
    for scope in Scope::ALL {
        let token = desk.token(scope.name(), &[scope]).await;
        let got = desk.with_token("GET", "/audit", &token, "").await;
        assert_eq!(got.status, if scope == Scope::Audit { 200 } else { 403 }, "{scope:?}");
    }
    // Those who decide about outsiders see what others of the staff decided.
    let moderator = desk.sign_in("mod@north.example").await;
    assert_eq!(desk.get("/audit", &moderator).await.status, 200);
}

#[tokio::test(start_paused = true)]
async fn a_failing_store_is_not_a_wrong_token() {
    let desk = Desk::new("").await;
    let token = desk.token("one", &[Scope::Read]).await;
    let admin = desk.sign_in("admin@north.example").await;
    for table in ["DROP TABLE api_tokens", "DROP TABLE totp"] {
        desk.exchange().db.run(Batch::new(Lane::Inside).with(sql(table))).await.unwrap();
    }
    let got = desk.with_token("GET", "/status", &token, "").await;
    assert_eq!((got.status, &got.body["type"]), (500, &json!("urn:trunkline:problem:internal")));
    assert_eq!(desk.get("/status", &admin).await.status, 500);
}

#[tokio::test(start_paused = true)]
async fn what_strangers_send_is_short() {
    let desk = Desk::new("").await;
    let json = [("content-type", "application/json")];
    let long = format!("{{\"client_first\":\"{}\"}}", "x".repeat(MOST_SIGN_IN));
    let got = desk.ask("POST", "/api/v1/session", &json, &long).await;
    assert_eq!((got.status, &got.body["type"]), (413, &json!("urn:trunkline:problem:too-large")));
}

#[tokio::test(start_paused = true)]
async fn a_request_has_to_come_to_its_end() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use crate::net::GateLimits;

    let desk = Desk::new("").await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (_stop, stopped) = watch::channel(());
    let listening =
        Listening { listener, certificates: None, gate: Gate::new(GateLimits::default()), stopped };
    let serving = tokio::spawn(desk.face.clone().serve(listening, std::future::pending::<()>()));
    let mut slow = tokio::net::TcpStream::connect(address).await.unwrap();
    let head = b"POST /api/v1/session HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n\
        Content-Length: 10\r\n\r\n";
    slow.write_all(head).await.unwrap();
    let mut answer = [0; 12];
    slow.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 408");

    let mut socket = tokio::net::TcpStream::connect(address).await.unwrap();
    // A whole request is answered, and the next one on the same connection has a deadline of its own.
    socket.write_all(b"GET /api/v1/openapi.json HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let mut byte = [0; 1];
    socket.read_exact(&mut byte).await.unwrap();
    let (mut reading, mut writing) = socket.into_split();
    let trickle = async {
        // Never silent for long, and never at the end.
        while writing.write_all(b"G").await.is_ok() {
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
        std::future::pending::<()>().await;
    };
    let began = tokio::time::Instant::now();
    let mut rest = Vec::new();
    let ended = async {
        tokio::time::timeout(Duration::from_secs(600), reading.read_to_end(&mut rest)).await.is_ok()
    };
    tokio::select! {
        () = trickle => {}
        ended = ended => assert!(ended, "the connection went on"),
    }
    // Not for its silence, nor for its age.
    let took = began.elapsed();
    assert!(took < Duration::from_secs(60), "{took:?}");
    serving.abort();
}

/// TLS that somebody else ends is not ours to promise, and only a proxy on this machine is believed at all.
#[tokio::test(start_paused = true)]
async fn strict_transport_security_is_for_our_own_tls() {
    let desk = Desk::new("").await;
    let ours = desk.ask("GET", "/", &[], "").await;
    assert!(ours.headers.contains_key("strict-transport-security"));
    let forwarded = [("x-forwarded-proto", "https"), ("x-forwarded-for", "192.0.2.99")];
    let behind = desk.ask_from("127.0.0.1", ("GET", "/"), &forwarded, "").await;
    assert!(!behind.headers.contains_key("strict-transport-security"));
    let headers: HeaderMap = forwarded
        .iter()
        .map(|(name, value)| (header::HeaderName::from_static(name), HeaderValue::from_static(value)))
        .collect();
    let origin = |address: &str| Origin {
        address: SocketAddr::new(address.parse().unwrap(), 1),
        tls: false,
        progress: Arc::default(),
    };
    assert_eq!(who(&headers, &origin("127.0.0.1")), ("192.0.2.99".parse().unwrap(), true));
    assert_eq!(who(&headers, &origin("192.0.2.1")), ("192.0.2.1".parse().unwrap(), false));
}

/// A blocked domain can be looked at before it was ever seen.
#[tokio::test(start_paused = true)]
async fn a_domain_that_is_acted_on_is_shown_before_it_is_seen() {
    let desk = Desk::new("").await;
    let token = desk.token("all", &Scope::ALL).await;
    let shown = async |domain: &str| {
        desk.with_token("GET", &format!("/domains/show?domain={domain}"), &token, "").await
    };
    assert_eq!(shown("spam.example").await.status, 404);
    let block = "{\"domain\":\"spam.example\",\"reason\":\"r\"}";
    assert_eq!(desk.with_token("POST", "/policy/block", &token, block).await.status, 200);
    let got = shown("spam.example").await;
    assert_eq!((got.status, &got.body["summary"]["blocked"]), (200, &json!(true)), "{}", got.body);
    assert_eq!(shown("other.example").await.status, 404);
    let level = "{\"domain\":\"loud.example\",\"level\":\"text-only\",\"why\":\"w\"}";
    assert_eq!(desk.with_token("POST", "/breaker", &token, level).await.status, 200);
    assert_eq!(shown("loud.example").await.status, 200);
}

#[tokio::test(start_paused = true)]
async fn the_audit_log_is_searched_in_any_script_and_bounded() {
    let desk = Desk::new("").await;
    let actor = Actor::command_line();
    let change = (None, Some("x".repeat(200_000)));
    let audit = &desk.exchange().control.audit;
    let batch = Batch::new(Lane::Inside)
        .with(audit.entry(&actor, "policy block", "Wegen \u{c4}rger mit [*]", (None, None)))
        .with(audit.entry(&actor, "policy add", "why", change));
    desk.exchange().db.run(batch).await.unwrap();
    let find = async |search: &str| {
        let op = crate::control::audit::AuditOp::List { before: None, search: Some(search.into()) };
        let operator = Operator(Arc::clone(desk.exchange()));
        match operator.run(&actor, Operation::Audit(op)).await {
            Ok(Outcome::Audit { entries, .. }) => entries,
            other => panic!("{other:?}"),
        }
    };
    for search in ["\u{e4}rger", "\u{c4}RGER", "wegen \u{e4}", "[*]", "POLICY BLOCK"] {
        let found = find(search).await;
        assert_eq!(found.len(), 1, "{search}");
        assert!(found[0].why.starts_with("Wegen"), "{search}");
    }
    for search in ["arger", "[a-z]", "p?licy", "\u{c4}*r"] {
        assert_eq!(find(search).await.len(), 0, "{search}");
    }
    let long = find("policy add").await[0].after.clone().unwrap();
    assert!(long.len() < 110_000 && long.ends_with("..."), "{}", long.len());
}

/// RFC 4013: what `web/test/scram.test.ts` expects of the page, the server does.
#[test]
fn passwords_are_prepared_as_the_page_does() {
    use trunkline_xmpp::sasl::ScramKeys;

    for (typed, meant) in [
        ("I\u{ad}X", "IX"),
        ("\u{aa}", "a"),
        ("\u{2168}", "IX"),
        ("a\u{200d}\u{fe0f}\u{feff}b", "ab"),
        ("a\u{a0}\u{3000}\u{200b}b", "a  b"),
    ] {
        let keys = ScramKeys::new(Hash::Sha256, typed, 4096).unwrap();
        assert!(keys.verify_password(meant), "{typed:?}");
    }
}
