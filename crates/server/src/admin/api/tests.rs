//! The API as a program and a page meet it, without a network and in virtual time; and THE WALK: every operation, with
//! every role, through every face.

mod changes;
mod guards;

use std::collections::BTreeSet;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use trunkline_xmpp::jid::Jid;
use trunkline_xmpp::sasl::Hash;
use trunkline_xmpp::sasl::client::{Binding, Scram};

use super::*;
use crate::admin::actor::{Actor, Face as Through, Scope};
use crate::admin::tokens::TokensOp;
use crate::admin::{OpError, Operation, Outcome, Password, accounts};
use crate::config::Config;
use crate::ids::Clock;
use crate::serve::{Parts, Server};

const PASSWORD: &str = "wherefore art thou";

struct Desk {
    server: Arc<Server>,
    face: Face,
    /// With the configuration's file.
    directory: tempfile::TempDir,
}

/// What a browser keeps.
#[derive(Clone, Debug, Default)]
struct Browser {
    cookie: String,
    csrf: String,
}

struct Got {
    status: u16,
    headers: HeaderMap,
    body: Value,
}

impl Desk {
    async fn new(settings: &str) -> Desk {
        let text = format!(
            "domain = \"north.example\"\ndata_dir = \"/nonexistent\"\n[accounts]\nadmins = [\"admin@north.example\"]\n\
             moderators = [\"mod@north.example\"]\npassword_iterations = 4096\n{settings}"
        );
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("trunkline.toml");
        std::fs::write(&file, &text).unwrap();
        let config = Config::parse(&text, &file).unwrap();
        let parts = Parts { clock: Clock::virtual_now(), in_memory: true, ..Parts::default() };
        let server = Server::start(config, parts).await.unwrap();
        for name in ["admin", "mod", "romeo"] {
            let jid = Jid::from_parts(Some(name), "north.example", None).unwrap();
            let password = Password::new(PASSWORD);
            let new = accounts::NewAccount { jid: &jid, password: &password, iterations: 4096, now: 0 };
            accounts::add(&server.exchange().db, new, None).await.unwrap();
        }
        let face = Face::new(Arc::clone(server.exchange()));
        Desk { server, face, directory }
    }

    fn exchange(&self) -> &Arc<Exchange> {
        self.server.exchange()
    }

    async fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Got {
        self.ask_from("192.0.2.7", (method, path), headers, body).await
    }

    async fn ask_from(
        &self,
        address: &str,
        (method, path): (&str, &str),
        headers: &[(&str, &str)],
        body: &str,
    ) -> Got {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Body::from(body.to_owned())).unwrap();
        let address = SocketAddr::new(address.parse().unwrap(), 4711);
        let origin = Origin { address, tls: !address.ip().is_loopback(), progress: Arc::default() };
        let response = handle(State(Arc::clone(&self.face.0)), ConnectInfo(origin), request).await;
        let (parts, body) = response.into_parts();
        let bytes = to_bytes(body, usize::MAX).await.unwrap();
        for (name, value) in [("x-content-type-options", "nosniff"), ("x-frame-options", "DENY")] {
            assert_eq!(parts.headers[name], value, "{method} {path}");
        }
        assert!(
            parts.headers["content-security-policy"].to_str().unwrap().contains("frame-ancestors 'none'")
        );
        if parts.status.is_client_error() || parts.status.is_server_error() {
            let media_type = parts.headers.get("content-type").unwrap();
            assert_eq!(media_type, "application/problem+json", "{method} {path}");
            // RFC 9457 s.3.1.1: programs tell problems by their type, which is one of those that are described.
            let problem: Value = serde_json::from_slice(&bytes).unwrap();
            let kind = problem["type"].as_str().unwrap().rsplit(':').next().unwrap();
            assert!(problem::KINDS.contains(&(parts.status.as_u16(), kind)), "{method} {path}: {problem}");
        }
        let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        Got { status: parts.status.as_u16(), headers: parts.headers, body }
    }

    async fn post(&self, path: &str, browser: &Browser, body: Value) -> Got {
        self.send("POST", path, browser, body).await
    }

    async fn send(&self, method: &str, path: &str, browser: &Browser, body: Value) -> Got {
        let cookie = format!("{SECURE_COOKIE}={}", browser.cookie);
        let headers = [
            ("cookie", cookie.as_str()),
            ("x-csrf-token", browser.csrf.as_str()),
            ("content-type", "application/json"),
        ];
        self.ask(method, &format!("/api/v1{path}"), &headers, &body.to_string()).await
    }

    async fn get(&self, path: &str, browser: &Browser) -> Got {
        let cookie = format!("{SECURE_COOKIE}={}", browser.cookie);
        self.ask("GET", &format!("/api/v1{path}"), &[("cookie", &cookie)], "").await
    }

    async fn with_token(&self, method: &str, path: &str, token: &str, body: &str) -> Got {
        let bearer = format!("Bearer {token}");
        let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
        self.ask(method, &format!("/api/v1{path}"), &headers, body).await
    }

    /// The salt that somebody of this name is shown.
    async fn salt(&self, name: &str) -> String {
        let first = json!({ "client_first": format!("n,,n={name},r=fyko+d2lbbFgONRv9qkxdawL") });
        let got = self.post("/session", &Browser::default(), first).await;
        assert_eq!(got.status, 200, "{}", got.body);
        let challenge = got.body["server_first"].as_str().unwrap().to_owned();
        challenge.split(',').find_map(|part| part.strip_prefix("s=")).unwrap().to_owned()
    }

    /// The two round trips of SCRAM: the last answer.
    async fn prove(&self, address: &str, password: &str) -> (Got, String) {
        let nobody = Browser::default();
        let mut scram = Scram::new(Hash::Sha256, address, password, Binding::Unsupported).unwrap();
        let text = |encoded: &str| String::from_utf8(STANDARD.decode(encoded).unwrap()).unwrap();
        let first = self.post("/session", &nobody, json!({ "client_first": text(&scram.initial()) })).await;
        if first.status != 200 {
            return (first, String::new());
        }
        let login = first.body["login"].as_str().unwrap().to_owned();
        let challenge = STANDARD.encode(first.body["server_first"].as_str().unwrap());
        let last = text(&scram.respond(&challenge).unwrap());
        let got = self.post("/session", &nobody, json!({ "login": login, "client_final": last })).await;
        if got.status == 200 {
            let server_final = got.body["server_final"].as_str().unwrap();
            scram.verify(&STANDARD.encode(server_final)).unwrap();
        }
        (got, login)
    }

    fn browser(got: &Got) -> Browser {
        assert_eq!(got.status, 200, "{}", got.body);
        let set = got.headers["set-cookie"].to_str().unwrap();
        for part in ["__Host-trunkline-session=", "; HttpOnly", "; SameSite=Strict", "; Secure", "; Path=/"] {
            assert!(set.contains(part), "{set}");
        }
        let cookie = set.split(';').next().unwrap().split_once('=').unwrap().1.to_owned();
        Browser { cookie, csrf: got.body["session"]["csrf"].as_str().unwrap().to_owned() }
    }

    async fn sign_in(&self, address: &str) -> Browser {
        Desk::browser(&self.prove(address, PASSWORD).await.0)
    }

    async fn token(&self, name: &str, scopes: &[Scope]) -> String {
        let operation =
            Operation::Tokens(TokensOp::Create { name: name.into(), scopes: scopes.to_vec(), until: None });
        match Operator(Arc::clone(self.exchange())).run(&Actor::command_line(), operation).await.unwrap() {
            Outcome::Token { token, .. } => token,
            other => panic!("{other:?}"),
        }
    }
}

/// Promise 5 for sign-in: whoever is known has one salt, so whoever is not has one too, however the name is written.
#[tokio::test(start_paused = true)]
async fn a_name_has_one_salt_however_it_is_written() {
    let desk = Desk::new("").await;
    for local in ["admin", "nobody"] {
        let salt = desk.salt(local).await;
        let upper = local.to_uppercase();
        for name in [format!("{local}@north.example"), format!("{upper}@north.example"), upper] {
            assert_eq!(desk.salt(&name).await, salt, "{name}");
        }
    }
}

/// A role can't be had by way of the account of somebody who has it.
#[tokio::test(start_paused = true)]
async fn accounts_of_people_with_a_role_are_for_those_with_the_same() {
    let desk = Desk::new("").await;
    let actor = |scopes: &[Scope]| Actor { scopes: scopes.to_vec(), ..Actor::trigger("test") };
    let operator = Operator(Arc::clone(desk.exchange()));
    for address in ["admin@north.example", "mod@north.example", "admin@north.example/console"] {
        let address = || address.to_owned();
        for operation in [
            Operation::UserPasswd { address: address(), password: Password::new("therefore") },
            Operation::UserAdd { address: address(), password: Password::new("therefore") },
            Operation::UserRemove { address: address() },
            Operation::UserTotpReset { address: address() },
        ] {
            let outcome = operator.run(&actor(&[Scope::Accounts]), operation).await;
            assert!(matches!(outcome, Err(OpError::Forbidden(_))), "{outcome:?}");
        }
    }
    let passwd =
        Operation::UserPasswd { address: "mod@north.example".into(), password: Password::new("therefore") };
    let outcome =
        operator.run(&actor(&[Scope::Accounts, Scope::Read, Scope::Moderate, Scope::Audit]), passwd).await;
    assert!(outcome.is_ok(), "{outcome:?}");
}

#[tokio::test(start_paused = true)]
async fn signing_in_and_out() {
    let desk = Desk::new("").await;
    assert_eq!(desk.get("/session", &Browser::default()).await.status, 401);
    let admin = desk.sign_in("admin@north.example").await;
    let session = desk.get("/session", &admin).await;
    assert_eq!(session.status, 200);
    assert_eq!(session.body["address"], "admin@north.example");
    assert_eq!(session.body["scopes"], json!(["read", "moderate", "operate", "accounts", "audit"]));
    assert_eq!((&session.body["totp"], &session.body["csrf"]), (&json!(false), &json!(admin.csrf)));
    let moderator = desk.sign_in("mod@north.example").await;
    assert_eq!(desk.get("/session", &moderator).await.body["scopes"], json!(["read", "moderate", "audit"]));

    // Another's password, nobody, and who has no role.
    let (wrong, _) = desk.prove("admin@north.example", "therefore").await;
    let (unknown, _) = desk.prove("nobody@north.example", PASSWORD).await;
    assert_eq!((wrong.status, unknown.status), (401, 401));
    assert_eq!(wrong.body, unknown.body, "whether there is an account is not told");
    assert_eq!(desk.prove("romeo@north.example", PASSWORD).await.0.status, 403);
    assert!(!desk.prove("romeo@north.example", PASSWORD).await.0.headers.contains_key("set-cookie"));

    // A proof is good once.
    let mut scram = Scram::new(Hash::Sha256, "admin@north.example", PASSWORD, Binding::Unsupported).unwrap();
    let text = |encoded: &str| String::from_utf8(STANDARD.decode(encoded).unwrap()).unwrap();
    let nobody = Browser::default();
    let first = desk.post("/session", &nobody, json!({ "client_first": text(&scram.initial()) })).await;
    let last = text(&scram.respond(&STANDARD.encode(first.body["server_first"].as_str().unwrap())).unwrap());
    let body = json!({ "login": first.body["login"], "client_final": last });
    assert_eq!(desk.post("/session", &nobody, body.clone()).await.status, 200);
    assert_eq!(desk.post("/session", &nobody, body).await.status, 401);

    assert_eq!(
        desk.send("DELETE", "/session", &Browser { csrf: "x".into(), ..admin.clone() }, json!({}))
            .await
            .status,
        403
    );
    assert_eq!(desk.send("DELETE", "/session", &admin, json!({})).await.status, 204);
    assert_eq!(desk.get("/session", &admin).await.status, 401);
    assert_eq!(desk.get("/session", &moderator).await.status, 200, "the other one goes on");
}

#[tokio::test(start_paused = true)]
async fn a_session_ends() {
    let desk = Desk::new("[console]\nidle_timeout = \"10 min\"\nsession_lifetime = \"1 h\"\n").await;
    let pass = |seconds| tokio::time::advance(Duration::from_secs(seconds));
    let idle = desk.sign_in("admin@north.example").await;
    pass(599).await;
    assert_eq!(desk.get("/status", &idle).await.status, 200);
    pass(599).await;
    assert_eq!(desk.get("/status", &idle).await.status, 200);
    pass(600).await;
    assert_eq!(desk.get("/status", &idle).await.status, 401);

    let busy = desk.sign_in("admin@north.example").await;
    for _ in 0..11 {
        pass(300).await;
        assert_eq!(desk.get("/status", &busy).await.status, 200);
    }
    pass(300).await;
    assert_eq!(desk.get("/status", &busy).await.status, 401, "an hour is an hour");

    let changed = desk.sign_in("mod@north.example").await;
    let jid = Jid::parse("mod@north.example").unwrap();
    let new = accounts::NewPassword {
        password: &Password::new("new"),
        iterations: 4096,
        keep: 0,
        keep_resource: "",
    };
    accounts::set_password(&desk.exchange().db, &jid, new, None).await.unwrap();
    assert_eq!(desk.get("/status", &changed).await.status, 401, "the password is another");

    let removed = Desk::browser(&desk.prove("mod@north.example", "new").await.0);
    let mut config = (*desk.exchange().config.load_full()).clone();
    config.accounts.moderators.clear();
    desk.exchange().config.store(Arc::new(config));
    assert_eq!(desk.get("/status", &removed).await.status, 401, "the role is gone");

    // The oldest session of an account makes room.
    let first = desk.sign_in("admin@north.example").await;
    for _ in 0..10 {
        pass(1).await;
        desk.sign_in("admin@north.example").await;
    }
    assert_eq!(desk.get("/status", &first).await.status, 401);
}

#[tokio::test(start_paused = true)]
async fn failed_sign_ins_count_like_failed_logins() {
    let desk = Desk::new("[clients]\nlogin_failures_per_account = 3\n").await;
    for _ in 0..3 {
        assert_eq!(desk.prove("admin@north.example", "guess").await.0.status, 401);
    }
    let refused = desk.prove("admin@north.example", PASSWORD).await.0;
    assert_eq!(refused.status, 429, "{}", refused.body);
    assert!(refused.headers.contains_key("retry-after"));
    assert_eq!(desk.prove("mod@north.example", PASSWORD).await.0.status, 200);
    let admin = Jid::parse("admin@north.example").unwrap();
    assert_eq!(desk.exchange().logins.of_account(&admin), 3, "the same counter as that of clients");
    tokio::time::advance(Duration::from_secs(601)).await;
    assert_eq!(desk.prove("admin@north.example", PASSWORD).await.0.status, 200);
}

#[tokio::test(start_paused = true)]
async fn a_second_factor_is_enrolled_asked_for_and_reset() {
    let desk = Desk::new("").await;
    let now = || desk.exchange().clock().now();
    let admin = desk.sign_in("admin@north.example").await;
    assert_eq!(
        desk.post("/session/totp", &admin, json!({ "code": "123456" })).await.status,
        400,
        "not begun"
    );
    let enrolment = desk.post("/session/totp", &admin, json!({})).await;
    let secret = enrolment.body["secret"].as_str().unwrap().to_owned();
    let uri = enrolment.body["uri"].as_str().unwrap();
    assert_eq!(uri, format!("otpauth://totp/Trunkline:admin@north.example?secret={secret}&issuer=Trunkline"));
    let code = |at: i64| crate::admin::totp::code_of(&secret, at);
    // Not in force before it is confirmed.
    assert!(desk.prove("admin@north.example", PASSWORD).await.0.body["session"].is_object());
    assert_eq!(
        desk.post("/session/totp", &admin, json!({ "code": code(now() - 600_000) })).await.status,
        400
    );
    assert_eq!(desk.post("/session/totp", &admin, json!({ "code": code(now()) })).await.status, 200);
    assert_eq!(desk.get("/session", &admin).await.body["totp"], true);
    assert_eq!(desk.post("/session/totp", &admin, json!({})).await.status, 409, "there is one already");

    // The password alone is not enough; the code that enrolled is used up.
    let (half, login) = desk.prove("admin@north.example", PASSWORD).await;
    assert_eq!((half.status, &half.body["second_factor"]), (200, &json!(true)));
    assert!(half.body.get("session").is_none() && !half.headers.contains_key("set-cookie"));
    let nobody = Browser::default();
    let with = |login: &str, code: String| json!({ "login": login, "code": code });
    assert_eq!(desk.post("/session", &nobody, with(&login, code(now()))).await.status, 401);
    tokio::time::advance(Duration::from_secs(30)).await;
    let done = desk.post("/session", &nobody, with(&login, code(now()))).await;
    let _ = Desk::browser(&done);
    assert_eq!(done.body["session"]["totp"], true);
    let (_, login) = desk.prove("admin@north.example", PASSWORD).await;
    assert_eq!(desk.post("/session", &nobody, with(&login, code(now()))).await.status, 401, "a replay");
    // Three wrong codes end the sign-in, also for the right one.
    assert_eq!(desk.post("/session", &nobody, with(&login, "000000".into())).await.status, 401);
    assert_eq!(desk.post("/session", &nobody, with(&login, "000000".into())).await.status, 401);
    tokio::time::advance(Duration::from_secs(30)).await;
    assert_eq!(desk.post("/session", &nobody, with(&login, code(now()))).await.status, 401);

    // Taken off against a code, or by an administrator.
    let forget = |code: String| desk.send("DELETE", "/session/totp", &admin, json!({ "code": code }));
    assert_eq!(forget("000000".into()).await.status, 400);
    let reset = Operation::UserTotpReset { address: "admin@north.example".into() };
    let operator = Operator(Arc::clone(desk.exchange()));
    operator.run(&Actor::command_line(), reset.clone()).await.unwrap();
    assert!(matches!(operator.run(&Actor::command_line(), reset).await, Err(OpError::NotFound(_))));
    assert!(desk.prove("admin@north.example", PASSWORD).await.0.body["session"].is_object());
}

#[tokio::test(start_paused = true)]
async fn another_sites_page_can_do_nothing() {
    let desk = Desk::new("").await;
    let admin = desk.sign_in("admin@north.example").await;
    let cookie = format!("{SECURE_COOKIE}={}", admin.cookie);
    let json = ("content-type", "application/json");
    let post = |headers: Vec<(&'static str, String)>| {
        let (desk, cookie) = (&desk, cookie.clone());
        async move {
            let mut all: Vec<(&str, &str)> = vec![("cookie", cookie.as_str()), json];
            all.extend(headers.iter().map(|(name, value)| (*name, value.as_str())));
            desk.ask("POST", "/api/v1/tokens/revoke", &all, "{\"name\":\"none\"}").await.status
        }
    };
    assert_eq!(post(vec![]).await, 403);
    assert_eq!(post(vec![("x-csrf-token", "guess".into())]).await, 403);
    assert_eq!(
        post(vec![("x-csrf-token", admin.csrf.clone())]).await,
        404,
        "it is done: there is no such token"
    );
    for (site, status) in [("cross-site", 403), ("same-site", 403), ("same-origin", 404), ("none", 404)] {
        let headers = vec![("x-csrf-token", admin.csrf.clone()), ("sec-fetch-site", site.into())];
        assert_eq!(post(headers).await, status, "{site}");
    }
    let foreign = [json, ("sec-fetch-site", "cross-site")];
    let got = desk.ask("POST", "/api/v1/session", &foreign, "{\"client_first\":\"n,,n=a,r=b\"}").await;
    assert_eq!(got.status, 403);
    // A cookie that a neighbour could set in clear text is not ours inside TLS.
    let plain = format!("{COOKIE}={}", admin.cookie);
    assert_eq!(desk.ask("GET", "/api/v1/status", &[("cookie", &plain)], "").await.status, 401);
}

#[tokio::test(start_paused = true)]
async fn tokens_have_scopes_an_end_and_no_way_to_make_others() {
    let desk = Desk::new("").await;
    let admin = desk.sign_in("admin@north.example").await;
    let now = desk.exchange().clock().now();
    let made = desk
        .post(
            "/tokens/create",
            &admin,
            json!({ "name": "grafana", "scopes": ["read"], "until": now + 60_000 }),
        )
        .await;
    let token = made.body["token"].as_str().unwrap().to_owned();
    assert_eq!(desk.with_token("GET", "/status", &token, "").await.status, 200);
    assert_eq!(desk.with_token("GET", "/accounts", &token, "").await.status, 403);
    assert_eq!(desk.with_token("GET", "/status", &format!("{token}x"), "").await.status, 401);
    assert_eq!(desk.with_token("GET", "/session", &token, "").await.status, 401, "a token is no session");
    let list = desk.get("/tokens", &admin).await;
    assert_eq!(list.body["tokens"][0]["name"], "grafana");
    assert_eq!(list.body["tokens"][0]["created_by"], "admin@north.example");
    assert!(!list.body.to_string().contains(&token[12..]), "secrets are never listed");
    let again = json!({ "name": "grafana", "scopes": ["read"] });
    assert_eq!(desk.post("/tokens/create", &admin, again).await.status, 409);
    for bad in [
        json!({ "name": "a", "scopes": [] }),
        json!({ "name": " ", "scopes": ["read"] }),
        json!({ "name": "a", "scopes": ["root"] }),
        json!({ "name": "a", "scopes": ["read"], "until": now }),
    ] {
        assert_eq!(desk.post("/tokens/create", &admin, bad.clone()).await.status, 400, "{bad}");
    }
    tokio::time::advance(Duration::from_secs(60)).await;
    assert_eq!(desk.with_token("GET", "/status", &token, "").await.status, 401, "its time is over");

    let all = desk.token("all", &Scope::ALL).await;
    let child = "{\"name\":\"child\",\"scopes\":[\"read\"]}";
    assert_eq!(desk.with_token("POST", "/tokens/create", &all, child).await.status, 409);
    assert_eq!(desk.with_token("POST", "/tokens/revoke", &all, "{\"name\":\"all\"}").await.status, 200);
    assert_eq!(desk.with_token("GET", "/status", &all, "").await.status, 401);
    let stored = trunkline_store::sql("SELECT hash FROM api_tokens");
    for row in desk.exchange().db.read(stored).await.unwrap().iter() {
        assert_eq!(row.blob(0).len(), 32);
    }
    // Nobody gives what they don't have.
    let half = Actor { name: "x".into(), face: Through::Console, scopes: vec![Scope::Accounts] };
    let create = TokensOp::Create { name: "y".into(), scopes: vec![Scope::Operate], until: None };
    let refused = Operator(Arc::clone(desk.exchange())).run(&half, Operation::Tokens(create)).await;
    assert_eq!(refused, Err(OpError::Forbidden("operate".into())));
}

#[tokio::test(start_paused = true)]
async fn problems_have_names() {
    let desk = Desk::new("").await;
    let token = desk.token("all", &Scope::ALL).await;
    let kind =
        |got: &Got| got.body["type"].as_str().unwrap_or_default().rsplit(':').next().unwrap().to_owned();
    for (method, path, body, status, name) in [
        ("GET", "/nothing-here", "", 404, "unknown-path"),
        ("POST", "/status", "{}", 405, "wrong-method"),
        ("PUT", "/breaker", "{}", 405, "wrong-method"),
        ("GET", "/status?verbose=1", "", 400, "bad-request"),
        ("GET", "/domains/history?hours=1&hours=2", "", 400, "bad-request"),
        ("GET", "/domains/history?hours=soon", "", 400, "bad-request"),
        ("GET", "/domains/history", "", 400, "bad-request"),
        ("GET", "/domains/history?hours=721", "", 400, "bad-request"),
        ("POST", "/tokens/revoke", "{\"name\":\"a\",\"force\":true}", 400, "bad-request"),
        ("POST", "/tokens/revoke", "[]", 400, "bad-request"),
        ("POST", "/tokens/revoke", "{", 400, "bad-request"),
        ("POST", "/tokens/revoke?name=a", "{}", 400, "bad-request"),
        ("POST", "/tokens/revoke", "{\"name\":\"a\"}", 404, "not-found"),
        ("POST", "/accounts/remove", "{\"address\":\"x@north.example\"}", 404, "no-such-user"),
        ("POST", "/accounts/remove", "{\"address\":\"x@other.example\"}", 422, "unknown-domain"),
        ("POST", "/accounts/remove", "{\"address\":\"x y\"}", 422, "bad-address"),
        ("POST", "/session", "{\"name\":1}", 400, "bad-request"),
    ] {
        let got = desk.with_token(method, path, &token, body).await;
        assert_eq!((got.status, kind(&got).as_str()), (status, name), "{method} {path} {body}: {}", got.body);
        assert_eq!(got.body["status"], status);
        assert_eq!(got.headers["cache-control"], "no-store");
        if status == 405 {
            assert!(got.headers.contains_key("allow"));
        }
    }
    let bearer = format!("Bearer {token}");
    let text = [("authorization", bearer.as_str()), ("content-type", "text/plain")];
    assert_eq!(desk.ask("POST", "/api/v1/tokens/revoke", &text, "{}").await.status, 415);
    let huge = format!("{{\"name\":\"{}\"}}", "x".repeat(MOST_BODY));
    assert_eq!(desk.with_token("POST", "/tokens/revoke", &token, &huge).await.status, 413);
    let unsigned = desk.ask("GET", "/api/v1/status", &[], "").await;
    assert_eq!((unsigned.status, kind(&unsigned).as_str()), (401, "not-signed-in"));
    assert!(unsigned.headers["www-authenticate"].to_str().unwrap().starts_with("Bearer"));
    // What came is not repeated where it may be secret.
    let secret = "{\"address\":\"x@north.example\",\"password\":{\"hunter2\":1}}";
    let got = desk.with_token("POST", "/accounts/add", &token, secret).await;
    assert!(got.status == 400 && !got.body.to_string().contains("hunter2"), "{}", got.body);
}

#[tokio::test(start_paused = true)]
async fn each_caller_has_a_rate() {
    let desk = Desk::new("[console]\nrequests_per_minute = 20\n").await;
    let (one, other) = (desk.token("one", &[Scope::Read]).await, desk.token("other", &[Scope::Read]).await);
    for _ in 0..20 {
        assert_eq!(desk.with_token("GET", "/status", &one, "").await.status, 200);
    }
    let refused = desk.with_token("GET", "/status", &one, "").await;
    assert_eq!(refused.status, 429);
    let wait: u64 = refused.headers["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=60).contains(&wait));
    assert_eq!(desk.with_token("GET", "/status", &other, "").await.status, 200);
    assert_eq!(desk.with_token("GET", "/status", &other, "").await.status, 200);
    let unseen = desk.token("unseen", &[Scope::Read]).await;
    // Guessing tokens counts for the address.
    let tried: Vec<u16> = {
        let mut tried = Vec::new();
        for n in 0..21 {
            tried.push(desk.with_token("GET", "/status", &format!("trunkline_{n}"), "").await.status);
        }
        tried
    };
    assert_eq!((tried[0], tried[20]), (401, 429));
    assert_eq!(
        desk.with_token("GET", "/status", &other, "").await.status,
        200,
        "who has a token is not hurt"
    );
    let refused = desk.with_token("GET", "/status", &unseen, "").await;
    assert_eq!(refused.status, 429, "nothing is looked up for an address that has asked too often");
    tokio::time::advance(Duration::from_secs(wait)).await;
    assert_eq!(desk.with_token("GET", "/status", &one, "").await.status, 200);
}

#[tokio::test(start_paused = true)]
async fn the_console_is_served_with_its_policy() {
    let desk = Desk::new("").await;
    let page = desk.ask("GET", "/", &[], "").await;
    assert_eq!(page.status, 200);
    assert!(page.headers["content-type"].to_str().unwrap().starts_with("text/html"));
    let etag = page.headers["etag"].to_str().unwrap().to_owned();
    assert_eq!(desk.ask("GET", "/", &[("if-none-match", &etag)], "").await.status, 304);
    assert_eq!(desk.ask("GET", "/nothing", &[], "").await.status, 404);
    assert_eq!(desk.ask("POST", "/", &[], "").await.status, 405);
    let document = desk.ask("GET", "/api/v1/openapi.json", &[], "").await;
    assert_eq!(document.body["openapi"], "3.1.0");
}

#[tokio::test]
async fn off_loopback_it_speaks_tls_with_the_servers_certificate() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use crate::net::pki::{Leaf, self_signed};
    use crate::net::{CertSource, GateLimits, Transport};

    let files = tempfile::tempdir().unwrap();
    let (chain, key) = (files.path().join("chain.pem"), files.path().join("key.pem"));
    self_signed(&Leaf::new("north.example", 30)).unwrap().write(&chain, &key).unwrap();
    let certificates = CertStore::load(&[CertSource { domains: Vec::new(), chain, key }]).unwrap();
    let desk = Desk::new("").await;
    let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    assert!(
        needs_tls(address)
            && !needs_tls("127.0.0.1:1".parse().unwrap())
            && !needs_tls("[::1]:1".parse().unwrap())
    );
    let (stop, stopped) = watch::channel(());
    let listening = Listening {
        listener,
        certificates: Some(Arc::clone(&certificates)),
        gate: Gate::new(GateLimits::default()),
        stopped,
    };
    let serving = tokio::spawn(desk.face.clone().serve(listening, async move {
        std::future::pending::<()>().await;
    }));
    let here = SocketAddr::from(([127, 0, 0, 1], address.port()));
    let ask = b"GET /api/v1/openapi.json HTTP/1.1\r\nHost: north.example\r\nConnection: close\r\n\r\n";
    let socket = tokio::net::TcpStream::connect(here).await.unwrap();
    let identity = certificates.for_domain(None);
    let mut tls =
        Transport::from(socket).connect_tls(&identity, "north.example", Some("http/1.1")).await.unwrap();
    tls.write_all(ask).await.unwrap();
    tls.flush().await.unwrap();
    let mut answer = Vec::new();
    let _ = tls.read_to_end(&mut answer).await;
    let answer = String::from_utf8_lossy(&answer).to_lowercase();
    assert!(
        answer.starts_with("http/1.1 200") && answer.contains("strict-transport-security"),
        "{answer:.300}"
    );
    // In clear text there is nothing.
    let mut plain = tokio::net::TcpStream::connect(here).await.unwrap();
    plain.write_all(ask).await.unwrap();
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer).await;
    assert!(!String::from_utf8_lossy(&answer).contains("HTTP/1.1"), "{answer:?}");
    drop(stop);
    serving.abort();
}

/// Some operation of a row, with fields that a schema allows.
fn sample(row: &Row) -> Operation {
    fn some(schema: &Value) -> Value {
        if let Some(constant) = schema.get("const") {
            return constant.clone();
        }
        if let Some(name) = schema.get("$ref").and_then(Value::as_str) {
            return some(&schema::definitions()[name.rsplit('/').next().unwrap()]);
        }
        for key in ["oneOf", "anyOf"] {
            if let Some(first) = schema.get(key).and_then(Value::as_array).and_then(|all| all.first()) {
                return some(first);
            }
        }
        if let Some(first) = schema.get("enum").and_then(Value::as_array).and_then(|all| all.first()) {
            return first.clone();
        }
        let kind = match &schema["type"] {
            Value::Array(kinds) => kinds[0].as_str().unwrap_or_default().to_owned(),
            kind => kind.as_str().unwrap_or_default().to_owned(),
        };
        match kind.as_str() {
            "string" => json!("sample.example"),
            "integer" | "number" => json!(1),
            "boolean" => json!(false),
            "array" => json!([some(&schema["items"])]),
            _ => {
                let required = schema.get("required").and_then(Value::as_array).into_iter().flatten();
                let fields = required.filter_map(Value::as_str);
                let pairs = fields.map(|name| (name.to_owned(), some(&schema["properties"][name])));
                Value::Object(pairs.collect())
            }
        }
    }
    let fields = schema::fields(row).iter().filter(|field| field.required);
    let mut given: Map<String, Value> =
        fields.map(|field| (field.name.clone(), some(&field.schema))).collect();
    if row.op == "federation-close" {
        given.insert("all".into(), true.into());
    }
    schema::operation(row, given).unwrap_or_else(|error| panic!("{} {}: {error}", row.op, row.act))
}

/// THE WALK, first part: no caller gets further than their scopes, through HTTP or past it.
#[tokio::test(start_paused = true)]
async fn every_operation_with_every_role() {
    let desk = Desk::new("[console]\nrequests_per_minute = 100000\n").await;
    let (admin, moderator) =
        (desk.sign_in("admin@north.example").await, desk.sign_in("mod@north.example").await);
    assert_eq!(desk.prove("romeo@north.example", PASSWORD).await.0.status, 403, "a user has no session");
    let mut tokens = Vec::new();
    for scope in Scope::ALL {
        tokens.push((scope, desk.token(scope.name(), &[scope]).await));
    }
    let operator = Operator(Arc::clone(desk.exchange()));
    let mut seen = BTreeSet::new();
    for row in table::TABLE {
        let name = format!("{} {}", row.op, row.act);
        seen.insert(row.scope);
        let method = if row.method == Method::Get { "GET" } else { "POST" };
        // A field that no operation has: whoever may ask is told so, and nothing is done.
        let (path, body) = match row.method {
            Method::Get => (format!("{}?x-none=1", row.path), String::new()),
            Method::Post => (row.path.to_owned(), "{\"x-none\":1}".to_owned()),
        };
        let nobody =
            desk.ask(method, &format!("/api/v1{path}"), &[("content-type", "application/json")], &body).await;
        assert_eq!(nobody.status, 401, "{name}");
        for (browser, scopes) in
            [(&admin, &Scope::ALL[..]), (&moderator, &[Scope::Read, Scope::Moderate, Scope::Audit][..])]
        {
            let cookie = format!("{SECURE_COOKIE}={}", browser.cookie);
            let headers = [
                ("cookie", cookie.as_str()),
                ("x-csrf-token", &browser.csrf),
                ("content-type", "application/json"),
            ];
            let got = desk.ask(method, &format!("/api/v1{path}"), &headers, &body).await;
            let wanted = if scopes.contains(&row.scope) { 400 } else { 403 };
            assert_eq!(got.status, wanted, "{name} {scopes:?}: {}", got.body);
        }
        for (scope, token) in &tokens {
            let got = desk.with_token(method, &path, token, &body).await;
            assert_eq!(
                got.status,
                if *scope == row.scope { 400 } else { 403 },
                "{name} {scope:?}: {}",
                got.body
            );
        }
        // The operation itself asks again, whatever face it came through.
        for face in [Through::Api, Through::Console, Through::AdHoc] {
            let without = Scope::ALL.into_iter().filter(|scope| *scope != row.scope).collect();
            let actor = Actor { name: "walker".into(), face, scopes: without };
            let refused = operator.run(&actor, sample(row)).await;
            assert_eq!(refused, Err(OpError::Forbidden(row.scope.name().into())), "{name}");
        }
        let actor = Actor { name: "walker".into(), face: Through::Console, scopes: vec![row.scope] };
        // The account of the sample does not exist, and so on: but it is not a matter of this scope.
        let done = operator.run(&actor, sample(row)).await;
        let forbidden = OpError::Forbidden(row.scope.name().into());
        let not_built = matches!(&done, Err(OpError::NotPossible(text)) if text.contains("not built"));
        assert!(!not_built, "{name}: {done:?}");
        assert!(done != Err(forbidden) && !matches!(done, Err(OpError::BadRequest(_))), "{name}: {done:?}");
    }
    assert_eq!(seen.len(), Scope::ALL.len());
    // The audit log is read, and that is all.
    let audit: Vec<_> =
        table::TABLE.iter().filter(|row| row.op == "audit").map(|row| (row.act, row.method)).collect();
    assert_eq!(audit, [("list", Method::Get)]);
}

#[test]
fn every_kind_of_problem_is_explained() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/control/api.md");
    let page = std::fs::read_to_string(page).unwrap();
    let rows: Vec<&str> = page.lines().filter(|line| line.starts_with("| ")).collect();
    for (status, kind) in problem::KINDS {
        let explains = |row: &&&str| row.contains(&status.to_string()) && row.contains(&format!("`{kind}`"));
        assert!(rows.iter().any(|row| explains(&row)), "{status} {kind}");
    }
}

#[test]
fn the_committed_description_is_that_of_the_code() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/api/openapi.json");
    let committed = std::fs::read_to_string(path).unwrap_or_default();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::create_dir_all(std::path::Path::new(path).parent().unwrap()).unwrap();
        std::fs::write(path, openapi::text()).unwrap();
    } else {
        assert!(
            committed == openapi::text(),
            "docs/api/openapi.json is stale: run the test with UPDATE_DOCS=1"
        );
    }
}
