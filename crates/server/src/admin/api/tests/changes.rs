//! What changes something: each leaves one entry in the audit log, and none when it is refused; a page of another site
//! can't do it, nor a client whose account has a second factor.

use trunkline_store::{Batch, Lane, Statement, sql};

use super::*;
use crate::admin::totp;
use crate::net::pki::{Leaf, self_signed};
use crate::route::account::Resource;
use crate::session::{Bounds, Session};

/// Fields with which the operation is done, and with which it is refused; in an order in which each finds what it
/// changes.
fn changes() -> Vec<((&'static str, &'static str), Value, Value)> {
    let rule = |domain: &str| json!({ "direction": "in", "when": { "domain": domain }, "then": { "do": "drop" }, "reason": "r" });
    let (sam, romeo, nobody) = ("sam@north.example", "romeo@north.example", "nobody@north.example");
    vec![
        (
            ("user-add", ""),
            json!({ "address": sam, "password": "x" }),
            json!({ "address": romeo, "password": "x" }),
        ),
        (
            ("user-passwd", ""),
            json!({ "address": sam, "password": "y" }),
            json!({ "address": nobody, "password": "y" }),
        ),
        (("user-totp-reset", ""), json!({ "address": romeo }), json!({ "address": sam })),
        (
            ("user-client-end", ""),
            json!({ "address": romeo, "client": "phone" }),
            json!({ "address": romeo, "client": "none" }),
        ),
        (("kick", ""), json!({ "address": "romeo@north.example/orchard" }), json!({ "address": sam })),
        (("user-disable", ""), json!({ "address": sam }), json!({ "address": nobody })),
        (("user-enable", ""), json!({ "address": sam }), json!({ "address": romeo })),
        (("user-remove", ""), json!({ "address": sam }), json!({ "address": nobody })),
        (("announce", ""), json!({ "text": "t", "all": true }), json!({ "text": " " })),
        (("motd", "set"), json!({ "text": "t" }), json!({ "text": "t", "domain": "other.example" })),
        (("motd", "edit"), json!({ "text": "u" }), json!({ "text": "\u{7}" })),
        (("motd", "delete"), json!({}), json!({ "domain": "other.example" })),
        (("invite-create", ""), json!({}), json!({ "domain": "other.example" })),
        (
            ("tokens", "create"),
            json!({ "name": "t", "scopes": ["read"] }),
            json!({ "name": " ", "scopes": ["read"] }),
        ),
        (("tokens", "revoke"), json!({ "name": "t" }), json!({ "name": "none" })),
        (("reload", ""), json!({}), json!({ "x": 1 })),
        (("federation-close", ""), json!({ "domain": "a.example" }), json!({})),
        (("federation-open", ""), json!({ "domain": "a.example" }), json!({ "domain": "b.example" })),
        (
            ("policy", "set-preset"),
            json!({ "preset": "open", "why": "w" }),
            json!({ "preset": "open", "why": "\u{7}" }),
        ),
        (("policy", "add"), json!({ "rule": rule("a.example") }), json!({ "rule": rule("no domain") })),
        (
            ("policy", "replace"),
            json!({ "id": 1, "rule": rule("b.example") }),
            json!({ "id": 77, "rule": rule("b.example") }),
        ),
        (
            ("policy", "move"),
            json!({ "id": 1, "position": 0, "why": "w" }),
            json!({ "id": 77, "position": 0, "why": "w" }),
        ),
        (("policy", "remove"), json!({ "id": 1, "why": "w" }), json!({ "id": 77, "why": "w" })),
        (
            ("policy", "block"),
            json!({ "domain": "c.example", "reason": "r" }),
            json!({ "domain": "no domain", "reason": "r" }),
        ),
        (
            ("policy", "unblock"),
            json!({ "domain": "c.example", "why": "w" }),
            json!({ "domain": "d.example", "why": "w" }),
        ),
        (
            ("policy", "import"),
            json!({ "format": "json", "text": "[{\"domain\":\"d.example\",\"reason\":\"r\"}]", "why": "w" }),
            json!({ "format": "json", "text": "[1]", "why": "w" }),
        ),
        (
            ("breaker", "set"),
            json!({ "level": "text-only", "why": "w" }),
            json!({ "level": "text-only", "why": "w", "until": 1 }),
        ),
        (
            ("requests", "drop"),
            json!({ "from": "spam.example", "why": "w" }),
            json!({ "from": "no domain", "why": "w" }),
        ),
        (
            ("reports", "decide"),
            json!({ "id": 1, "action": "dismiss", "why": "w" }),
            json!({ "id": 77, "action": "dismiss", "why": "w" }),
        ),
        (
            ("lists", "subscribe"),
            json!({ "name": "l", "service": "lists.example", "node": "muc_bans_sha256", "why": "w" }),
            json!({ "name": "l", "service": "no service", "node": "muc_bans_sha256", "why": "w" }),
        ),
        (("lists", "unsubscribe"), json!({ "name": "l", "why": "w" }), json!({ "name": "none", "why": "w" })),
        (
            ("lists", "publish"),
            json!({ "entry": "bad@a.example", "reason": "r" }),
            json!({ "entry": "north.example", "reason": "r" }),
        ),
        (
            ("lists", "retract"),
            json!({ "entry": "bad@a.example", "why": "w" }),
            json!({ "entry": "good@a.example", "why": "w" }),
        ),
        (
            ("lists", "remove-subscriber"),
            json!({ "address": "a.example", "why": "w" }),
            json!({ "address": "b.example", "why": "w" }),
        ),
    ]
}

impl Desk {
    async fn put(&self, statement: Statement) {
        self.exchange().db.run(Batch::new(Lane::Inside).with(statement.must_change())).await.unwrap();
    }

    /// What operations of [`changes`] need: a device, a session, a second factor, a first contact, a report.
    async fn furnish(&self) {
        for text in [
            "INSERT INTO devices (account, agent, handle, first_seen, last_seen, password) \
             SELECT id, x'01', 'phone', 0, 0, 1 FROM accounts WHERE local = 'romeo'",
            "INSERT INTO first_contacts (account, peer, domain, state, asks, stanzas, bytes, changed_at) \
             SELECT id, 'x@spam.example', 'spam.example', 0, 0, 1, 10, 0 FROM accounts WHERE local = 'romeo'",
            "INSERT INTO reports (at, reporter, origin, affiliation, about, domain, reason, words, stanza_ids, \
             messages, may_forward, may_share, state, actions) VALUES (0, 'romeo@north.example', 'user', '', \
             'x@spam.example', 'spam.example', 'spam', '', '[]', '[]', 0, 0, 'open', '[]')",
            "INSERT INTO list_subscribers (host, node, jid, domain, at) \
             VALUES ('north.example', 'spam_source_domains', 'x@a.example', 'a.example', 9000000000000000)",
        ] {
            self.put(sql(text)).await;
        }
        let exchange = self.exchange();
        let romeo = Jid::parse("romeo@north.example").unwrap();
        let audit = exchange.control.audit.entry(&Actor::command_line(), "test", "", (None, None));
        totp::enrol(&exchange.db, &romeo, &totp::Secret::random(), (0, 0), audit).await.unwrap();
        let account = exchange.accounts.load(&exchange.db, &romeo).await.unwrap().unwrap();
        let full = romeo.with_resource("orchard").unwrap();
        let session = Session::new(1, full, Arc::clone(&account), Bounds::default());
        account.state().resources.push(Resource::new(session));
    }

    /// Entries of the audit log, but for those of the configuration, which come by themselves.
    async fn entries(&self) -> Vec<(String, String, String)> {
        let all = "SELECT who, face, what FROM audit WHERE face <> 'configuration' ORDER BY id";
        let rows = self.exchange().db.read(sql(all)).await.unwrap();
        let text = |row: &trunkline_store::Row<'_>, n| row.text(n).to_owned();
        rows.iter().map(|row| (text(&row, 0), text(&row, 1), text(&row, 2))).collect()
    }
}

/// THE WALK, second part.
#[tokio::test(start_paused = true)]
async fn every_change_leaves_one_entry_in_the_audit_log() {
    // `registration` stands in [accounts], the table that `Desk::new` has opened.
    let desk = Desk::new("registration = \"invite\"\n[console]\nrequests_per_minute = 100000\n").await;
    desk.furnish().await;
    // What is read again has to be good.
    let file = desk.directory.path().join("trunkline.toml");
    let (chain, key) = (desk.directory.path().join("chain.pem"), desk.directory.path().join("key.pem"));
    self_signed(&Leaf::new("north.example", 30)).unwrap().write(&chain, &key).unwrap();
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, format!("{text}[tls]\ncertificate = {chain:?}\nkey = {key:?}\n")).unwrap();
    let admin = desk.sign_in("admin@north.example").await;
    let reader = desk.token("reader", &[Scope::Read]).await;
    let all = changes();
    let named: BTreeSet<_> = all.iter().map(|(op, _, _)| *op).collect();
    let rows = table::TABLE.iter().filter(|row| row.changes());
    assert_eq!(named, rows.map(|row| (row.op, row.act)).collect(), "each operation that changes something");
    for ((op, act), good, bad) in all {
        let row = table::row(op, act).unwrap();
        let before = desk.entries().await;
        let refused = desk.post(row.path, &admin, bad).await;
        assert!((400..500).contains(&refused.status), "{op} {act}: {}", refused.body);
        // Without the secret that only the page knows.
        let foreign = Browser { csrf: String::new(), ..admin.clone() };
        let refused = desk.post(row.path, &foreign, good.clone()).await;
        assert_eq!((refused.status, &refused.body["type"]), (403, &json!("urn:trunkline:problem:csrf")));
        let refused = desk.with_token("POST", row.path, &reader, &good.to_string()).await;
        assert_eq!((refused.status, &refused.body["type"]), (403, &json!("urn:trunkline:problem:forbidden")));
        assert_eq!(desk.entries().await, before, "{op} {act}: nothing was done");

        let done = desk.post(row.path, &admin, good).await;
        assert_eq!(done.status, 200, "{op} {act}: {}", done.body);
        let after = desk.entries().await;
        assert_eq!(after.len(), before.len() + 1, "{op} {act}: {:?}", after.get(before.len()..));
        let (who, face, what) = after.last().unwrap();
        assert_eq!((who.as_str(), face.as_str()), ("admin@north.example", "console"), "{what}");
    }
    // A configuration that is not good changes nothing.
    let before = desk.entries().await;
    std::fs::write(&file, "domain = 1").unwrap();
    assert_eq!(desk.post("/reload", &admin, json!({})).await.status, 422);
    assert_eq!(desk.entries().await, before);
}

/// The scope that is given most lightly changes nothing.
#[test]
fn what_the_scope_read_permits_changes_nothing() {
    for row in table::TABLE {
        assert_eq!(row.changes(), row.method == Method::Post && row.scope != Scope::Read);
        // All that is asked for with POST and does not change anything.
        let harmless = row.method == Method::Post && !row.changes();
        assert_eq!(harmless, (row.op, row.act) == ("policy", "test"), "{} {}", row.op, row.act);
    }
}

/// XMPP asks for no code: an account with a second factor changes nothing through it.
#[tokio::test(start_paused = true)]
async fn a_second_factor_is_not_bypassed_by_ad_hoc_commands() {
    let desk = Desk::new("").await;
    let operator = Operator(Arc::clone(desk.exchange()));
    let actor = || Actor::ad_hoc("admin@north.example", Scope::ALL.to_vec());
    let create = |name: &str| {
        Operation::Tokens(TokensOp::Create { name: name.into(), scopes: vec![Scope::Read], until: None })
    };
    assert!(operator.run(&actor(), create("before")).await.is_ok(), "there is no second factor yet");
    let admin = Jid::parse("admin@north.example").unwrap();
    let audit = desk.exchange().control.audit.entry(&actor(), "test", "", (None, None));
    totp::enrol(&desk.exchange().db, &admin, &totp::Secret::random(), (0, 0), audit).await.unwrap();
    let before = desk.entries().await;
    for row in table::TABLE {
        let outcome = operator.run(&actor(), sample(row)).await;
        let told = matches!(&outcome, Err(OpError::NotPossible(text)) if text.contains("second factor"));
        assert_eq!(told, row.changes(), "{} {}: {outcome:?}", row.op, row.act);
    }
    assert_eq!(desk.entries().await, before);
    // Others, and other faces, are not concerned.
    let other = Actor::ad_hoc("mod@north.example", Scope::ALL.to_vec());
    assert!(operator.run(&other, create("other")).await.is_ok());
    assert!(operator.run(&Actor::command_line(), create("after")).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_disabled_account_is_met_like_none_until_it_is_enabled() {
    let desk = Desk::new("").await;
    desk.furnish().await;
    let exchange = desk.exchange();
    let romeo = Jid::parse("romeo@north.example").unwrap();
    let host = Arc::clone(exchange.host("north.example").unwrap());
    let admin = desk.sign_in("admin@north.example").await;
    let listed = async || {
        let list = desk.get("/accounts", &admin).await;
        let all = list.body["users"].as_array().unwrap().clone();
        all.into_iter().find(|user| user["address"] == "romeo@north.example").unwrap()["disabled"].clone()
    };
    let keys = async || exchange.credentials(&host, Some(&romeo), Hash::Sha1).await.unwrap();
    assert!(keys().await.is_some() && exchange.accounts.online(&romeo).is_some());
    let address = json!({ "address": "romeo@north.example" });

    assert_eq!(desk.post("/accounts/disable", &admin, address.clone()).await.status, 200);
    assert_eq!(desk.post("/accounts/disable", &admin, address.clone()).await.status, 409, "it is already");
    assert_eq!(listed().await, true);
    assert!(keys().await.is_none(), "nobody can log in");
    assert!(exchange.accounts.online(&romeo).is_none(), "its session is over");
    assert!(exchange.accounts.load(&exchange.db, &romeo).await.unwrap().is_none(), "nobody finds it");

    assert_eq!(desk.post("/accounts/enable", &admin, address.clone()).await.status, 200);
    assert_eq!(desk.post("/accounts/enable", &admin, address.clone()).await.status, 409);
    assert_eq!(listed().await, false);
    assert!(keys().await.is_some());
    let account = exchange.accounts.load(&exchange.db, &romeo).await.unwrap().unwrap();
    assert!(!account.state().removed);

    // Nobody disables somebody who may more.
    let half = Actor { scopes: vec![Scope::Accounts], ..Actor::trigger("test") };
    let disable = Operation::UserDisable { address: "admin@north.example".into() };
    let refused = Operator(Arc::clone(exchange)).run(&half, disable).await;
    assert!(matches!(refused, Err(OpError::Forbidden(_))), "{refused:?}");
    // An administrator who is disabled is not signed in any more.
    let other = desk.sign_in("mod@north.example").await;
    let moderator = json!({ "address": "mod@north.example" });
    assert_eq!(desk.post("/accounts/disable", &admin, moderator).await.status, 200);
    assert_eq!(desk.get("/status", &other).await.status, 401);
}
