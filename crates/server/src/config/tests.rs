use std::path::Path;

use super::keys::{Apply, KEYS, find};
use super::overrides::{OverrideError, Overrides};
use super::*;

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(text, Path::new("/etc/trunkline/trunkline.toml"))
}

fn errors(text: &str) -> Vec<Problem> {
    parse(text).expect_err("should be refused").problems
}

fn one(text: &str) -> Problem {
    let mut problems = errors(text);
    assert_eq!(problems.len(), 1, "{problems:?}");
    problems.remove(0)
}

#[test]
fn a_domain_is_enough() {
    let config = parse("domain = \"Example.org\"").unwrap();
    assert_eq!(config.domain, "example.org");
    assert_eq!(config.data_dir, Path::new("/etc/trunkline/data"));
    assert_eq!(config.database(), Path::new("/etc/trunkline/data/trunkline.db"));
    assert_eq!(config.clients.listen, ["[::]:5222".parse().unwrap()]);
    assert_eq!(config.federation.queue_age, Duration::from_secs(2 * 86_400));
    assert_eq!(config.limits.outbox_bytes, 1_000_000);
    assert!(config.federation.dialback);
    assert_eq!(config.accounts.registration, Registration::Closed);
}

/// Every row must have its field and every field its row: defaults of all rows deserialise with unknown fields
/// denied, and each optional key works too.
#[test]
fn table_and_structs_agree() {
    // Each map has a name of its own: a host can't be a component at the same time.
    let name_of = |key: &keys::Key| {
        key.name.replace('*', &format!("\"{}.example.com\"", key.name.find('*').unwrap_or(0)))
    };
    let mut presets = Overrides::default();
    for key in KEYS.iter().filter(|key| key.kind != value::Kind::Table) {
        let value = key.example.or(key.default).unwrap();
        let name = name_of(key);
        presets.set(&format!("{name}={value}")).unwrap();
    }
    let text = template(&presets);
    let config = parse(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    for key in KEYS {
        assert!(!key.doc.is_empty(), "{} has no text", key.name);
        let name = name_of(key);
        assert!(config.source.values.contains_key(&name), "{name} was lost");
    }
}

#[test]
fn a_wrong_domain_is_not_missing_too() {
    let problem = one("domain = \"a b\"\n");
    assert_eq!((problem.line, problem.key.as_str()), (Some(1), "domain"));
    assert!(problem.text.contains("is not a domain name"), "{}", problem.text);
    assert!(one("data_dir = \"x\"\n").text.starts_with("missing"));
}

#[test]
fn unknown_keys_name_line_and_nearest() {
    let problem = one("domain = \"example.org\"\n\n[clients]\nlistn = \"127.0.0.1:5222\"\n");
    assert_eq!(problem.line, Some(4));
    assert_eq!(problem.key, "clients.listn");
    assert!(problem.text.contains("`clients.listen`"), "{}", problem.text);

    let problem = one("domain = \"example.org\"\n[fedration]\ndialback = true\n");
    assert_eq!(problem.line, Some(2));
    assert!(problem.text.contains("`federation`"), "{}", problem.text);

    let problem = one("domain = \"example.org\"\n[federation.domains.\"bad.example\"]\nblok = true\n");
    assert!(problem.text.contains("`federation.domains.\"bad.example\".block`"), "{}", problem.text);

    let problem = one("domain = \"example.org\"\nzzzzqq = 1\n");
    assert!(problem.text.contains("docs/configuration.md"), "{}", problem.text);
}

#[test]
fn all_problems_are_reported_in_order() {
    let text = "domain = \"example.org\"\n[clients]\ntls = \"maybe\"\nlisten = 5\n[web]\nlisten = \"x\"\n";
    let problems = errors(text);
    assert_eq!(problems.iter().map(|p| p.line).collect::<Vec<_>>(), [Some(3), Some(4), Some(6)]);
    let shown = parse(text).unwrap_err().to_string();
    assert!(shown.starts_with("/etc/trunkline/trunkline.toml:3: clients.tls: "), "{shown}");
}

#[test]
fn broken_toml_has_a_line() {
    let problem = one("domain = \"example.org\"\n[clients\n");
    assert_eq!(problem.line, Some(2));
}

#[test]
fn a_missing_domain_says_so() {
    assert_eq!(one("[clients]\n").key, "domain");
}

#[test]
fn checks_across_keys() {
    let with = |rest: &str| one(&format!("domain = \"example.org\"\n{rest}"));
    let problem = with("[clients]\ntls = \"optional\"\n");
    assert_eq!((problem.line, problem.key.as_str()), (Some(3), "clients.tls"));
    assert!(
        parse("domain = \"example.org\"\n[clients]\ntls = \"optional\"\nlisten = \"127.0.0.1:5222\"\n")
            .is_ok()
    );
    assert_eq!(with("[hosts.\"EXAMPLE.org\"]\n").key, "hosts.\"example.org\"");
    assert_eq!(with("[accounts]\nadmins = [\"me@other.example\"]\n").line, Some(3));
    assert_eq!(with("[tls]\ncertificate = \"a.pem\"\n").key, "tls.certificate");
    assert_eq!(with("[web]\nlisten = \"[::]:5222\"\n").key, "web.listen");
    assert_eq!(with("[log]\nlevel = \"a=b=c\"\n").key, "log.level");
    assert!(with("[store]\nurl = \"postgres://x/y\"\n").text.contains("not built"));
    assert!(with("[components.entries.\"gw.example.org\"]\n").text.contains("secret"));
    assert_eq!(with("[federation.routes]\n\"a b\" = \"127.0.0.1:1\"\n").line, Some(3));
    assert_eq!(with("clients = 5\n").key, "clients");
}

#[test]
fn several_domains_and_their_certificates() {
    let config = parse(
        "domain = \"example.org\"\nhosts.\"b.example\" = {}\n[tls]\ncertificate = \"a.pem\"\nkey = \"a.key\"\n\
         [hosts.\"c.example\"]\ncertificate = \"/c.pem\"\nkey = \"/c.key\"\n",
    )
    .unwrap();
    assert_eq!(config.domains().collect::<Vec<_>>(), ["example.org", "b.example", "c.example"]);
    assert_eq!(config.certificate("b.example").unwrap().0, Path::new("/etc/trunkline/a.pem"));
    assert_eq!(config.certificate("c.example").unwrap().1, Path::new("/c.key"));
    assert!(config.missing_files().unwrap_err().to_string().contains("/c.pem"));
}

#[test]
fn policies_for_peers() {
    let config = parse(
        "domain = \"example.org\"\n[federation]\ndialback = \"forbid\"\n\
         [federation.domains.\"old.example\"]\ndialback = \"allow\"\n[federation.domains.\"spam.example\"]\nblock = true\n",
    )
    .unwrap();
    assert!(!config.federation.dialback_with("peer.example"));
    assert!(config.federation.dialback_with("old.example"));
    assert!(config.federation.blocked("muc.spam.example"));
    assert!(!config.federation.blocked("notspam.example"));
}

#[test]
fn presets_appear_in_their_places() {
    let mut presets = Overrides::default();
    for set in [
        "domain=example.org",
        "federation.routes.\"peer.example\"=127.0.0.1:1234",
        "federation.routes.'other.example'=tls://10.0.0.1:1234",
        "clients.listen=[\"127.0.0.1:5222\", \"[::1]:5222\"]",
        "clients.listen_tls=127.0.0.1:5223",
        "clients.tls=optional",
        "limits.enabled=false",
        "federation.dialback=forbid",
        "accounts.admins=me@example.org",
        "hosts.\"b.example\"={}",
        "hosts.\"c.example\".certificate=c.pem",
        "hosts.\"c.example\".key=c.key",
        "federation.domains.\"p.example\"={ block = true }",
        "federation.queue_age=90",
        "components.entries.\"gw.example.org\".secret=a=b",
    ] {
        presets.set(set).unwrap_or_else(|error| panic!("{error}"));
    }
    let text = template(&presets);
    let config = parse(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    assert_eq!(
        config.federation.routes["peer.example"],
        Route { host: "127.0.0.1".into(), port: 1234, direct_tls: false }
    );
    assert!(config.federation.routes["other.example"].direct_tls);
    assert_eq!(config.clients.listen.len(), 2);
    assert_eq!(config.clients.tls, TlsPolicy::Optional);
    assert!(!config.limits.enabled);
    assert!(!config.federation.dialback);
    assert_eq!(config.federation.queue_age, Duration::from_secs(90));
    assert!(config.federation.blocked("p.example"));
    assert_eq!(config.hosts.len(), 2);
    assert_eq!(config.components.entries["gw.example.org"].secret, "a=b");
    assert!(text.contains("# Addresses for clients with STARTTLS. [restart]\nlisten = "), "{text}");
}

#[test]
fn presets_are_checked() {
    let set = |text: &str| Overrides::default().set(text).unwrap_err();
    assert!(matches!(set("clients.listen"), OverrideError::NoValue(_)));
    assert!(matches!(set("a b=1"), OverrideError::BadKey(_)));
    assert!(set("clients.lissten=1").to_string().contains("`clients.listen`"));
    assert!(set("clients.listen=nowhere").to_string().contains("nowhere"));
    assert!(set("limits.enabled=perhaps").to_string().contains("true or false"));
    // The dots of a domain without quotes make another key.
    assert!(matches!(set("federation.routes.peer.example=127.0.0.1:1"), OverrideError::Unknown { .. }));
}

#[test]
fn a_diff_tells_reload_from_restart() {
    let old = parse("domain = \"example.org\"\n[federation]\ndialback = true\n").unwrap();
    let new = parse(
        "domain = \"example.org\"\n[federation]\ndialback = false\nlisten = \"[::]:7777\"\nmax_connections = 6\n\
         max_connections_per_address = 5\n[clients]\nmax_connections = 7\n\
         [federation.routes]\n\"p.example\" = \"127.0.0.1:1\"\n[hosts.\"b.example\"]\ncertificate = \"x\"\nkey = \"y\"\n",
    )
    .unwrap();
    let reload = Config::diff(&old, &new);
    assert_eq!(
        reload.applied,
        ["federation.dialback", "federation.max_connections_per_address", "federation.routes.\"p.example\""]
    );
    assert_eq!(
        reload.needs_restart,
        [
            "clients.max_connections",
            "federation.listen",
            "federation.max_connections",
            "hosts.\"b.example\"",
            "hosts.\"b.example\".certificate",
            "hosts.\"b.example\".key"
        ]
    );
    assert_eq!(Config::diff(&old, &old), Reload::default());

    let effective = new.with_restart_keys_of(&old);
    assert!(!effective.federation.dialback);
    assert_eq!(effective.federation.listen, old.federation.listen);
    assert!(effective.hosts.is_empty());
    assert!(effective.federation.routes.contains_key("p.example"));
    assert_eq!(effective.data_dir, old.data_dir);
    // The next reload still sees what waits for a restart.
    assert_eq!(Config::diff(&effective, &new).needs_restart, reload.needs_restart);
    assert!(Config::diff(&effective, &new).applied.is_empty());
}

#[test]
fn a_spelling_of_the_same_value_is_no_change() {
    let old = parse("domain = \"example.org\"\n[federation]\nqueue_age = \"2 days\"\n").unwrap();
    let new = parse("domain = \"EXAMPLE.org\"\n[federation]\nqueue_age = \"48h\"\n").unwrap();
    assert_eq!(Config::diff(&old, &new), Reload::default());
}

#[test]
fn every_listener_needs_a_restart() {
    for key in KEYS.iter().filter(|key| key.kind == value::Kind::Listen) {
        assert_eq!(key.apply, Apply::Restart, "{}", key.name);
    }
    assert!(find(&["hosts".into(), "x.example".into(), "key".into()]).is_some());
}

#[test]
fn the_reference_is_fresh() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/configuration.md");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, reference()).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(written, reference(), "docs/configuration.md is stale: run the test with UPDATE_DOCS=1");
}

#[test]
fn a_list_needs_its_service_and_its_node_and_a_name_of_its_own() {
    let problems = |text: &str| {
        let text = format!("domain = \"example.org\"\n{text}");
        match Config::parse(&text, Path::new("t.toml")) {
            Ok(_) => String::new(),
            Err(error) => error.to_string(),
        }
    };
    let fine = "[federation.lists.spam]\nservice = \"lists.example\"\nnode = \"n\"\naction = \"drop\"";
    assert_eq!(problems(fine), "");
    let text = problems("[federation.lists.spam]\naction = \"none\"");
    assert!(text.contains("t.toml:2") && text.contains("`service = ") && text.contains("`node = "), "{text}");
    assert!(problems(&fine.replace("spam", "own")).contains("choose another name"));
    assert!(problems(&fine.replace("drop", "eat")).contains("not possible here"));
}

#[test]
fn secrets_do_not_show() {
    let config =
        parse("domain = \"example.org\"\n[components.entries.\"gw.example.org\"]\nsecret = \"hunter2\"\n")
            .unwrap();
    assert!(!format!("{:?}", config.components).contains("hunter2"));
    assert!(!format!("{config:?}").contains("hunter2"));
}

#[test]
fn rereading_is_all_or_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("trunkline.toml");
    let write = |rest: &str| {
        let tls = "[tls]\ncertificate = \"c.pem\"\nkey = \"k.pem\"\n";
        std::fs::write(&file, format!("domain = \"example.org\"\n{tls}{rest}")).unwrap();
    };
    for name in ["c.pem", "k.pem"] {
        std::fs::write(directory.path().join(name), "").unwrap();
    }
    write("");
    let config = Config::load(&file).unwrap();
    write("[federation]\ndialback = false\nthreads = 3\n");
    let (config, reload) = config.reread().unwrap();
    assert_eq!(
        reload,
        Reload {
            applied: vec!["federation.dialback".into()],
            needs_restart: vec!["federation.threads".into()]
        }
    );
    assert!(!config.federation.dialback);
    assert_eq!(config.federation.threads, 0);
    write("[federation]\ndialback = 7\n");
    assert!(config.reread().unwrap_err().to_string().contains(":6: federation.dialback"));
    std::fs::remove_file(directory.path().join("k.pem")).unwrap();
    write("");
    assert!(config.reread().unwrap_err().to_string().contains("k.pem"));
}

/// Files that are cut off or scrambled are refused or accepted, but nothing panics.
#[test]
fn scrambled_files() {
    let mut presets = Overrides::default();
    for set in ["domain=example.org", "hosts.\"b.example\"={}", "federation.routes.\"p.example\"=h:1"] {
        presets.set(set).unwrap();
    }
    let whole: String = template(&presets)
        .lines()
        .filter(|line| !line.starts_with("# "))
        .map(|line| line.replace('#', "") + "\n")
        .collect();
    parse(&whole).expect("all examples and defaults together are a valid configuration");
    for end in whole.char_indices().map(|(index, _)| index) {
        let _ = parse(&whole[..end]);
    }
    for (from, to) in
        [("[", "[["), ("]", ""), ("\"", ""), ("= ", "= {a="), (".", "."), ("=", "=="), ("[\"", "{\"")]
    {
        for (at, _) in whole.match_indices(from) {
            let _ = parse(&format!("{}{to}{}", &whole[..at], &whole[at + from.len()..]));
        }
    }
    for text in [
        "[[hosts]]\nname = \"b.example\"\n",
        "hosts = 3\n",
        "clients.listen.x = 1\n",
        "federation = []\n",
        "[federation.domains]\n\"x.example\" = true\n",
        "components.entries.\"gw.example\" = {}\n",
        "tls = {}\n",
        "\"\" = 1\n",
    ] {
        let _ = parse(&format!("domain = \"example.org\"\n{text}"));
    }
    assert!(parse("domain = \"example.org\"\n[[hosts]]\nname = \"b.example\"\n").is_err());
}

#[test]
fn rules_and_triggers_are_read_as_people_write_them() {
    let text = "domain = \"example.org\"\n\
        [[federation.rules]]\n\
        when = { domain = \"Noisy.Example\", subdomains = true, first_seen_within = \"7 days\", larger_than = \"64 kB\" }\n\
        direction = \"in\"\n\
        then = { do = \"limit\", per_minute = 60 }\n\
        until = 2026-12-31T00:00:00Z\n\
        [[federation.rules]]\n\
        then = \"hold\"\n\
        [[federation.triggers]]\n\
        on = \"queue-age\"\n\
        above = \"10 min\"\n\
        level = \"closed\"\n\
        lasts = \"1 h\"\n";
    let config = parse(text).unwrap();
    let [limit, hold] = config.federation.rules.as_slice() else { panic!("{:?}", config.federation.rules) };
    assert_eq!(limit.when.domain.as_deref(), Some("noisy.example"));
    assert_eq!((limit.when.first_seen_within, limit.when.larger_than), (Some(604_800), Some(64_000)));
    assert_eq!(limit.until, Some(1_798_675_200_000));
    assert_eq!(hold.then.name(), "hold");
    let trigger = &config.federation.triggers[0];
    assert_eq!((trigger.above, trigger.lasts), (600, 3600));
}

#[test]
fn wrong_rules_have_their_line() {
    let with = |rule: &str| {
        one(&format!(
            "domain = \"example.org\"\n[[federation.rules]]\nthen = \"drop\"\n\n[[federation.rules]]\n{rule}\n"
        ))
    };
    for (rule, line, says) in [
        ("reason = \"x\"\nthen = { do = \"limit\" }", 5, "per_minute"),
        ("then = \"drop\"\nwhen = { domain = \"a b\" }", 7, "not a domain"),
        ("then = \"drop\"\n[federation.rules.when]\nkind = [\"iq\"]\ncolour = \"red\"", 9, "colour"),
        ("then = \"drop\"\nuntil = \"soon\"", 7, "not a time"),
        ("then = \"vanish\"", 6, "vanish"),
        ("reason = \"x\"", 5, "then"),
        ("then = \"drop\"\nwhen = { listed_in = \"spam\" }", 7, "no [federation.lists.spam]"),
        ("then = \"drop\"\n[federation.rules.when]\nlisted_in = \"spam\"", 8, "no [federation.lists.spam]"),
    ] {
        let problem = with(rule);
        assert_eq!(
            (problem.line, problem.key.as_str()),
            (Some(line), "federation.rules, number 2"),
            "{rule}: {problem:?}"
        );
        assert!(problem.text.contains(says), "{rule}: {}", problem.text);
    }
    for list in ["own", "spam"] {
        parse(&format!(
            "domain = \"example.org\"\n[[federation.rules]]\nthen = \"drop\"\nwhen = {{ listed_in = \"{list}\" }}\n\
             [federation.lists.spam]\nservice = \"lists.example\"\nnode = \"n\"\n"
        ))
        .unwrap();
    }
    let trigger = "domain = \"example.org\"\n[[federation.triggers]]\non = \"rate\"\nabove = 0\nlevel = \"closed\"\nlasts = 60\n";
    assert_eq!(one(trigger).line, Some(4));
    assert!(one("domain = \"example.org\"\n[federation]\nrules = 5\n").text.contains("[[federation.rules]]"));
}
