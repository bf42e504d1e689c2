//! THE TABLE of configuration keys. From it come the defaults, the commented `trunkline.toml`, the reference in
//! `docs/configuration.md`, the check for unknown keys, and what a reload can apply.
//!
//! A new key is one row here and one field in [`super::Config`]; a test fails when one of them is missing.

use super::value::Kind;

/// What it takes for a changed value to take effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Apply {
    /// `trunkline reload` or SIGHUP.
    Reload,
    /// The server has to be started again.
    Restart,
}

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// The dotted name; `*` stands for a name that the operator chooses.
    pub name: &'static str,
    /// What the value looks like.
    pub kind: Kind,
    /// The default as TOML; `None`: no value, or (for `domain`) required.
    pub default: Option<&'static str>,
    /// What it takes for a change to take effect.
    pub apply: Apply,
    /// What it does, for the operator.
    pub doc: &'static str,
    /// A value for the reference, where there is no default.
    pub example: Option<&'static str>,
}

const fn key(name: &'static str, kind: Kind) -> Key {
    Key { name, kind, default: None, apply: Apply::Reload, doc: "", example: None }
}

impl Key {
    const fn default(self, default: &'static str) -> Key {
        Key { default: Some(default), ..self }
    }
    const fn restart(self) -> Key {
        Key { apply: Apply::Restart, ..self }
    }
    const fn doc(self, doc: &'static str) -> Key {
        Key { doc, ..self }
    }
    const fn example(self, example: &'static str) -> Key {
        Key { example: Some(example), ..self }
    }

    /// Whether the path (already split into its segments) is this key.
    pub(crate) fn matches(&self, path: &[String]) -> bool {
        let mut names = self.name.split('.');
        path.iter().all(|segment| names.next().is_some_and(|name| name == "*" || name == segment))
            && names.next().is_none()
    }

    /// The section it stands in, `""` at the top: everything before the last segment.
    pub(crate) fn section(&self) -> &'static str {
        self.name.rsplit_once('.').map_or("", |(section, _)| section)
    }

    /// The last segment.
    pub(crate) fn leaf(&self) -> &'static str {
        self.name.rsplit_once('.').map_or(self.name, |(_, leaf)| leaf)
    }
}

/// The row for a path, if there is one.
pub fn find(path: &[String]) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.matches(path))
}

/// The sections with their heading text, in the order of the file.
pub const SECTIONS: &[(&str, &str)] = &[
    ("", "The provider itself"),
    ("tls", "The certificate. One certificate may cover several domains; a host may have its own."),
    (
        "hosts.*",
        "Further domains on this server, one table each: [hosts.\"example.net\"]. An empty table is enough.",
    ),
    ("clients", "Where the provider's own users connect"),
    ("accounts", "Who may have an account"),
    (
        "federation",
        "Other providers' servers. They have their own listeners, threads and budgets, so that no flood from outside touches your users.",
    ),
    ("federation.routes", "Where a peer domain is reached, instead of asking DNS"),
    (
        "federation.lists.*",
        "Block lists of others that are followed, one table each: [federation.lists.spam]. More can be followed at run time.",
    ),
    ("federation.domains.*", "Exceptions for one peer domain: [federation.domains.\"peer.example\"]"),
    (
        "consent",
        "First contacts: what people elsewhere send to a user who does not know them waits for the user's consent",
    ),
    ("push", "Waking devices that sleep, through the push services of their apps (XEP-0357)"),
    ("components", "External components (XEP-0114): gateways and services in programs of their own"),
    ("components.entries.*", "One table for each component: [components.entries.\"gateway.example.org\"]"),
    (
        "pubsub",
        "Publish-subscribe (XEP-0060): a service with a domain of its own beside each of yours. Its name needs no DNS record for your own users; others reach it if it has one and your certificate covers it.",
    ),
    ("web", "Metrics and health over HTTP"),
    (
        "http",
        "XMPP for browsers (WebSocket and BOSH), where to find it (/.well-known/host-meta), and the web chat at /. docs/web.md has more.",
    ),
    ("console", "The console and the HTTP API"),
    ("store", "Where everything that must survive is kept"),
    (
        "limits",
        "Bounds for everything that others can make grow. The defaults suit a provider with some thousand users on a small machine.",
    ),
    ("log", "What the server writes about itself. Never message content, never passwords."),
    (
        "traces",
        "Traces for OpenTelemetry: kinds and sizes of stanzas and their domains, never people, never content",
    ),
    (
        "data_policy",
        "How this server handles its users' data (XEP-0504), published to everybody, beside what the server knows itself",
    ),
    ("contact", "Whom to contact about this server (XEP-0157), published to everybody"),
];

use Kind::{
    Addresses, Allow, Bool, Bytes, Domain, Duration, Int, Ips, Listen, Networks, OneOf, Path, Route, Secret,
    SomeOf, StoreUrl, Table, Text, Uris,
};

/// Every key.
pub const KEYS: &[Key] = &[
    // --- the provider
    key("domain", Domain).restart().example("\"example.org\"").doc("The domain in your users' addresses. Required."),
    key("data_dir", Path).restart().default("\"data\"").doc("The directory for the database and the control socket."),
    // --- certificates
    key("tls.certificate", Path).example("\"/etc/letsencrypt/live/example.org/fullchain.pem\"").doc(
        "The certificate with its chain, PEM. The files are read again on reload, without dropping a connection.",
    ),
    key("tls.key", Path)
        .example("\"/etc/letsencrypt/live/example.org/privkey.pem\"")
        .doc("The private key of the certificate, PEM. Readable by the server only."),
    // --- further domains
    key("hosts.*", Table).restart().doc("A further domain."),
    key("hosts.*.certificate", Path)
        .example("\"/etc/letsencrypt/live/example.net/fullchain.pem\"")
        .doc("This domain's own certificate; without it tls.certificate must cover the domain."),
    key("hosts.*.key", Path)
        .example("\"/etc/letsencrypt/live/example.net/privkey.pem\"")
        .doc("The private key of this domain's own certificate."),
    key("hosts.*.history_age", Duration).example("\"30 days\"").doc("accounts.history_age for this domain."),
    key("hosts.*.archive_bytes", Bytes).example("\"100 MB\"").doc("limits.archive_bytes for this domain."),
    // --- clients
    key("clients.listen", Listen).restart().default("[\"[::]:5222\"]").doc("Addresses for clients with STARTTLS."),
    key("clients.listen_tls", Listen)
        .restart()
        .default("[\"[::]:5223\"]")
        .doc("Addresses for clients with TLS from the first byte (direct TLS, XEP-0368)."),
    key("clients.proxies", Networks)
        .default("[]")
        .example("[\"10.0.0.5\"]")
        .doc("Proxies whose connections to these listeners begin with a PROXY protocol header (version 2). From these addresses it must be there, from others it is refused."),
    key("clients.tls", OneOf(&["required", "optional"])).restart().default("\"required\"").doc(
        "Whether clients on clients.listen must use TLS. \"optional\" is for tests: it is accepted only when every address of clients.listen is loopback.",
    ),
    key("clients.threads", Int(0, 256))
        .restart()
        .default("0")
        .doc("Worker threads for clients and all inside traffic; 0 means one for each processor."),
    key("clients.max_connections", Int(1, i64::MAX))
        .restart()
        .default("20000")
        .doc("Connections at most. Beyond it new ones wait in the system's backlog until a place is free."),
    key("clients.max_connections_per_address", Int(1, i64::MAX)).default("500").doc(
        "Connections at most from one address (IPv6: one /64). Households, schools and mobile networks share addresses.",
    ),
    key("clients.max_sessions_per_account", Int(1, 1000))
        .default("20")
        .doc("Devices of one account that are connected at once."),
    key("clients.login_timeout", Duration)
        .default("\"60 s\"")
        .doc("How long a connection may take until it has logged in."),
    key("clients.login_failures_per_address", Int(1, i64::MAX))
        .default("60")
        .doc("Failed logins from one address within 10 minutes, before further attempts are refused."),
    key("clients.login_failures_per_account", Int(1, i64::MAX))
        .default("20")
        .doc("Failed logins to one account within 10 minutes, before further attempts are refused."),
    key("clients.idle_check", Duration).default("\"5 min\"").doc(
        "A connection silent for this long is asked whether it is still there, and closed when no answer comes for a minute.",
    ),
    key("clients.resume_timeout", Duration)
        .default("\"10 min\"")
        .doc("How long a session waits for a client whose connection broke (XEP-0198)."),
    key("clients.token_lifetime", Duration).default("\"30 days\"").doc(
        "How long the token is good that a device signs in with instead of the password (FAST, XEP-0484). A device that signs in gets a new one in time. 0 means no tokens.",
    ),
    // --- accounts
    key("accounts.admins", Addresses)
        .default("[]")
        .example("[\"me@example.org\"]")
        .doc("Administrators: accounts on this server that may use the administration commands."),
    key("accounts.moderators", Addresses)
        .default("[]")
        .example("[\"moderator@example.org\"]")
        .doc("Moderators: accounts on this server that may look at everything in the console, handle reports and requests, and block domains. They hear of users' reports with a headline, once a minute at most."),
    key("accounts.registration", OneOf(&["closed", "invite", "open"])).default("\"closed\"").doc(
        "Who may make an account from a client. \"open\" attracts spammers within days; prefer \"invite\".",
    ),
    key("accounts.registrations_per_address", Int(1, i64::MAX))
        .default("3")
        .doc("New accounts from one address (IPv6: one /64) within an hour."),
    key("accounts.user_invites", Bool).default("false").doc(
        "Whether the invitations that users make for contacts let the invited register an account here. Needs registration \"invite\" or \"open\".",
    ),
    key("accounts.invite_lifetime", Duration).default("\"7 days\"").doc("How long an invitation can be used."),
    key("accounts.archive", Bool).default("true").doc(
        "Whether messages are kept after their delivery, in each user's archive. Without it a message stays until one device has it.",
    ),
    key("accounts.history_age", Duration).default("\"365 days\"").doc(
        "How long messages stay in the archive; 0 means for ever. What waits to be picked up stays.",
    ),
    key("accounts.device_age", Duration).default("\"90 days\"").doc(
        "How long a device that does not sign in any more is listed for its user (XEP-0494); its token ends with it. 0 means for ever.",
    ),
    key("accounts.search", Bool).default("false").doc(
        "Whether users may search their archives for words (XEP-0431). The first search of a user makes an index of the archive, about half as large as the texts in it.",
    ),
    key("accounts.password_iterations", Int(4096, 10_000_000)).default("10000").doc(
        "The work factor of stored passwords (SCRAM, PBKDF2). Clients do this work at each login. Applies when a password is set.",
    ),
    // --- federation
    key("federation.listen", Listen)
        .restart()
        .default("[\"[::]:5269\"]")
        .doc("Addresses for other servers with STARTTLS."),
    key("federation.listen_tls", Listen)
        .restart()
        .default("[\"[::]:5270\"]")
        .doc("Addresses for other servers with TLS from the first byte (direct TLS, XEP-0368)."),
    key("federation.proxies", Networks)
        .default("[]")
        .example("[\"10.0.0.5\"]")
        .doc("Proxies whose connections to these listeners begin with a PROXY protocol header (version 2). From these addresses it must be there, from others it is refused."),
    key("federation.enabled", Bool).default("true").doc(
        "false cuts the outside off: no stream to or from another domain, while everything inside goes on.",
    ),
    key("federation.preset", OneOf(&["open", "careful", "allow-list-only", "closed"])).default("\"careful\"").doc(
        "What becomes of stanzas that no rule decides: \"open\" lets them pass, \"careful\" holds first contacts until the receiver consents, \"allow-list-only\" refuses them, \"closed\" refuses everything. What is set at run time (`trunkline federation policy preset`) counts instead.",
    ),
    key("federation.rules", Kind::Rules)
        .default("[]")
        .example("[{ when = { domain = \"noisy.example\", subdomains = true }, then = { do = \"limit\", per_minute = 60 }, reason = \"too much noise\" }]")
        .doc("Rules for outside traffic, first match wins; better written as [[federation.rules]] sections. They come before those set at run time. docs/control/policy.md has the language."),
    key("federation.when_closed", OneOf(&["refuse", "queue"])).default("\"refuse\"").doc(
        "What becomes of messages to other providers while the breaker is closed: \"refuse\" tells the sender at once, \"queue\" keeps them until it is open again (federation.queue_age at most).",
    ),
    key("federation.reopen_per_second", Int(1, 10_000)).default("20").doc(
        "After the breaker was closed for all: connections to peers that are made, and connections of peers that are taken, in a second. Further ones wait for their turn.",
    ),
    key("federation.outage_file", Path).example("\"/var/www/status/xmpp.json\"").doc(
        "Where to write whether the outside is cut off, for clients to read (XEP-0455). Best on another machine's web server: it is of use when this one is in trouble.",
    ),
    key("federation.outage_url", Uris)
        .default("[]")
        .example("[\"https://status.example.org/xmpp.json\"]")
        .doc("Where clients find that file. Announced to them if given."),
    key("federation.triggers", Kind::Triggers)
        .default("[]")
        .example("[{ on = \"rate\", above = 6000, of = \"domain\", level = \"no-new-contacts\", lasts = \"10 min\" }]")
        .doc("What pulls the breaker by itself; better written as [[federation.triggers]] sections. None by default. docs/control/policy.md has what there is."),
    key("federation.trust", Path)
        .example("\"/etc/trunkline/partners.pem\"")
        .doc("A PEM file with further root certificates for other servers, beside the system's."),
    key("federation.dialback", Allow).default("true").doc(
        "Whether a server without a certificate for its domain may prove the domain by dialback (XEP-0220). TLS is required in any case.",
    ),
    key("federation.allow_private", Bool).default("false").doc(
        "Whether to connect to private and loopback addresses that DNS gives for a peer. Routes are not affected.",
    ),
    key("federation.threads", Int(0, 256))
        .restart()
        .default("0")
        .doc("Worker threads for federation; 0 means one for each two processors."),
    key("federation.niceness", Int(0, 19)).restart().default("10").doc(
        "How far federation's threads stand back when processors are short: 0 not at all, 19 most. Your users' threads stay at 0. Linux only.",
    ),
    key("federation.name_servers", Listen)
        .restart()
        .default("[]")
        .example("[\"192.0.2.53:53\"]")
        .doc("Name servers that are asked about other domains, instead of the system's."),
    key("federation.max_connections", Int(1, i64::MAX))
        .restart()
        .default("5000")
        .doc("Incoming connections at most. Beyond it new ones wait in the system's backlog until a place is free."),
    key("federation.max_connections_per_address", Int(1, i64::MAX))
        .default("100")
        .doc("Incoming connections at most from one address (IPv6: one /64)."),
    key("federation.max_handshakes", Int(1, i64::MAX))
        .restart()
        .default("256")
        .doc("TLS handshakes of other servers at the same time. The others wait for their turn."),
    key("federation.max_handshakes_per_address", Int(1, i64::MAX)).default("32").doc(
        "TLS handshakes at the same time from one address (IPv6: one /64). The others of that address wait for their turn.",
    ),
    key("federation.max_unproved", Int(1, i64::MAX)).default("1000").doc(
        "Incoming connections at most that have not proved a domain yet. Beyond it new ones are closed at once; streams that are established keep their places.",
    ),
    key("federation.max_unproved_per_address", Int(1, i64::MAX))
        .default("50")
        .doc("The same, from one address (IPv6: one /64)."),
    key("federation.max_streams_per_domain", Int(1, i64::MAX))
        .default("32")
        .doc("Incoming streams at most on which one domain is proved. Beyond it the proof is refused."),
    key("federation.max_verifications", Int(1, i64::MAX))
        .default("256")
        .doc("Dialback keys that are checked with their domains at the same time. Beyond it the answer is that the peer should try again."),
    key("federation.max_verifications_per_address", Int(1, i64::MAX))
        .default("16")
        .doc("The same, brought by one address (IPv6: one /64)."),
    key("federation.max_verifications_per_domain", Int(1, i64::MAX))
        .default("4")
        .doc("The same, of one domain: however many ask us to, nobody is called more often by us."),
    key("federation.memory", Bytes).default("\"64 MB\"").doc(
        "Bytes at most in the buffers of all streams to and from other servers. A stream that needs more than 16 KiB beyond it is ended.",
    ),
    key("federation.memory_per_address", Bytes)
        .default("\"8 MB\"")
        .doc("The same, of the streams with one address (IPv6: one /64)."),
    key("federation.memory_per_domain", Bytes)
        .default("\"4 MB\"")
        .doc("The same, of the streams of one domain; a stream counts for the first one that is proved on it."),
    key("federation.handshake_timeout", Duration)
        .default("\"60 s\"")
        .doc("How long an incoming stream may take to prove a domain."),
    key("federation.connect_timeout", Duration)
        .default("\"30 s\"")
        .doc("How long an attempt to reach a peer may take, with all its addresses, until it counts as failed."),
    key("federation.retry_max", Duration)
        .default("\"15 min\"")
        .doc("The longest pause between two attempts to reach a peer."),
    key("federation.idle_timeout", Duration)
        .default("\"15 min\"")
        .doc("A stream without stanzas for this long is closed."),
    key("federation.ping_interval", Duration)
        .default("\"2 min\"")
        .doc("How often a silent stream is tested with a whitespace ping."),
    key("federation.queue_stanzas", Int(1, i64::MAX))
        .default("1000")
        .doc("Stanzas to one peer domain that wait in memory, at most, and as many of answers that the server gives itself."),
    key("federation.queue_bytes", Bytes)
        .default("\"4 MB\"")
        .doc("Bytes to one peer domain that wait in memory, at most, and as many of answers that the server gives itself."),
    key("federation.queue_memory", Bytes)
        .default("\"64 MB\"")
        .doc("Bytes to all peer domains that wait in memory, at most. Beyond it messages wait on disk only, and what is not kept is refused."),
    key("federation.queue_kept", Int(1, i64::MAX))
        .default("20000")
        .doc("Messages to one peer domain that wait on disk, at most. Beyond it senders get an error at once."),
    key("federation.queue_age", Duration)
        .default("\"2 days\"")
        .doc("How long a message waits for a peer that can't be reached, before its sender gets an error."),
    key("federation.routes.*", Route)
        .example("\"192.0.2.7:5269\"")
        .doc("host:port of the peer domain, or \"tls://host:port\" for direct TLS. The certificate is checked as always."),
    key("federation.server_info", Bool).default("false").doc(
        "Whether to publish with how many other domains this server is connected (XEP-0485). Named are only those that publish it too.",
    ),
    key("federation.lists.*", Table).doc("A block list that is followed. The name is what rules know it by."),
    key("federation.lists.*.service", Domain)
        .example("\"lists.example\"")
        .doc("The domain of the list's pubsub service. Required."),
    key("federation.lists.*.node", Text)
        .example("\"muc_bans_sha256\"")
        .doc("The node: as a rule \"muc_bans_sha256\" (addresses) or \"spam_source_domains\" (domains). Required."),
    key("federation.lists.*.action", OneOf(&["none", "reject", "drop", "hold", "text-only"]))
        .example("\"reject\"")
        .doc("What is done with stanzas from those on the list, where no rule says otherwise. \"none\" (the default): only rules that name the list apply."),
    key("federation.domains.*", Table).doc("Exceptions for one peer domain."),
    key("federation.domains.*.dialback", Allow)
        .example("false")
        .doc("Overrides federation.dialback for this domain."),
    key("federation.domains.*.block", Bool)
        .example("true")
        .doc("true: nothing goes to this domain and nothing is accepted from it, its subdomains included."),
    // --- first contacts
    key("consent.conversations", Int(1, i64::MAX)).default("2000").doc(
        "Addresses elsewhere that the server remembers one user to have written to, so that they may answer. Beyond it the one not written to for longest is forgotten.",
    ),
    key("consent.held_stanzas", Int(1, 1000))
        .default("20")
        .doc("Messages of one stranger to one user that wait for consent. Beyond it they are dropped."),
    key("consent.held_bytes", Bytes)
        .default("\"256 KiB\"")
        .doc("Bytes of one stranger to one user that wait for consent. Beyond it they are dropped."),
    key("consent.account_bytes", Bytes)
        .default("\"2 MiB\"")
        .doc("Bytes of all strangers to one user that wait for consent; of one domain an eighth. How many strangers: half of limits.held_requests, of one domain an eighth."),
    key("consent.sender_requests", Int(1, i64::MAX)).default("10").doc(
        "Users whose consent one stranger waits for. Fewer, down to a tenth, the more first contacts of its domain were declined.",
    ),
    key("consent.domain_requests", Int(1, i64::MAX)).default("200").doc(
        "First contacts from one domain that wait for consent. Fewer, down to a tenth, the more of its first contacts were declined.",
    ),
    key("consent.age", Duration)
        .default("\"30 days\"")
        .doc("How long what a stranger wrote waits for consent; then it is thrown away."),
    key("consent.declined_age", Duration)
        .default("\"90 days\"")
        .doc("How long a stranger who was declined is not shown again."),
    key("consent.intake_stanzas", Int(16, i64::MAX)).default("4096").doc(
        "Stanzas that strangers may send to users within ten seconds, to whomever. Beyond it they get an error.",
    ),
    key("consent.intake_peer_stanzas", Int(1, i64::MAX))
        .default("512")
        .doc("Of these, from one domain."),
    // --- push
    key("push.enabled", Bool).default("true").doc("Whether users' devices may be woken through push services."),
    key("push.summary", SomeOf(&["count", "sender", "body"])).default("[\"count\"]").doc(
        "What a push service is told in the open: how many messages there are, who sent the last one, what it says unless it is encrypted. The services belong to the makers of apps. Devices that give a key are told more, encrypted.",
    ),
    // --- components
    key("components.listen", Listen)
        .restart()
        .default("[]")
        .example("[\"127.0.0.1:5347\"]")
        .doc("Addresses for components. The protocol has no TLS: use loopback or a private network."),
    key("components.entries.*", Table).doc("A component's domain."),
    key("components.entries.*.secret", Secret)
        .example("\"a long random text\"")
        .doc("The secret that the component shows. Required."),
    key("components.entries.*.side", OneOf(&["inside", "outside"])).example("\"inside\"").doc(
        "\"inside\" (the default): trusted as a part of this provider. \"outside\": treated like another provider, with its budgets and without knowledge of who exists.",
    ),
    // --- publish-subscribe
    key("pubsub.enabled", Bool)
        .restart()
        .default("true")
        .doc("Whether there is the service. Nodes at people's own addresses (XEP-0163) there are always."),
    key("pubsub.subdomain", Text)
        .restart()
        .default("\"pubsub\"")
        .doc("What stands before your domain in the service's name: pubsub.example.org."),
    key("pubsub.create", OneOf(&["admins", "users", "anyone"])).default("\"users\"").doc(
        "Who may make nodes at the service: administrators, users of the domain, or everybody, people at other providers included.",
    ),
    // --- web
    key("web.listen", Listen)
        .restart()
        .default("[\"127.0.0.1:5280\"]")
        .doc("Addresses for /metrics (Prometheus) and /healthz. Plain HTTP without a login: keep it on loopback."),
    // --- http
    key("http.listen", Listen)
        .restart()
        .default("[]")
        .example("[\"127.0.0.1:5282\"]")
        .doc("Addresses for plain HTTP, behind a reverse proxy that speaks TLS. Without TLS nobody can sign in from another machine."),
    key("http.listen_tls", Listen)
        .restart()
        .default("[]")
        .example("[\"[::]:443\"]")
        .doc("Addresses for HTTPS with the server's certificates."),
    key("http.url", Text).example("\"https://chat.example.org\"").doc(
        "Where browsers reach these listeners, for /.well-known/host-meta. Without it: the domain itself, with the port of http.listen_tls, or without a port where only http.listen is set.",
    ),
    key("http.addresses", Ips)
        .default("[]")
        .example("[\"192.0.2.7\", \"2001:db8::7\"]")
        .doc("This server's public IP addresses. If given, /.well-known/host-meta.json is a Host Meta 2 document (XEP-0487), by which clients and servers connect without asking DNS."),
    key("http.chat", Bool).default("true").doc("Whether the web chat is served at /."),
    key("http.trusted_proxies", Networks).default("[\"127.0.0.1\", \"::1\"]").doc(
        "Reverse proxies whose X-Forwarded-For and X-Forwarded-Proto are believed.",
    ),
    key("http.proxies", Networks)
        .default("[]")
        .example("[\"10.0.0.5\"]")
        .doc("Proxies whose connections to these listeners begin with a PROXY protocol header (version 2), as with HAProxy's send-proxy-v2. From these addresses it must be there, from others it is refused."),
    key("http.plain_from_loopback", Bool).default("false").doc(
        "Whether a request to http.listen from this machine itself that names no proxy may sign in without TLS: for trying out and for tests. Never behind a reverse proxy on this machine, which would make everybody a local one as soon as it forgets X-Forwarded-Proto.",
    ),
    // --- console
    key("console.listen", Listen).restart().default("[\"127.0.0.1:5281\"]").doc(
        "Addresses for the console and the HTTP API. On loopback plain HTTP (for this machine, a tunnel or a reverse proxy), elsewhere TLS with the server's certificate; [] for neither.",
    ),
    key("console.idle_timeout", Duration)
        .default("\"30 min\"")
        .doc("A session of the console in which nothing is asked for this long ends."),
    key("console.session_lifetime", Duration)
        .default("\"12 h\"")
        .doc("A session of the console ends after this long in any case."),
    key("console.requests_per_minute", Int(10, i64::MAX)).default("600").doc(
        "Requests a minute of one token, one signed-in account, or one address that is neither. Beyond it they are answered with 429.",
    ),
    // --- store
    key("store.url", StoreUrl)
        .restart()
        .default("\"sqlite:trunkline.db\"")
        .doc("The database: \"sqlite:FILE\", relative to data_dir."),
    // --- limits
    key("limits.enabled", Bool).default("true").doc(
        "false switches rate limits and connection limits per address off, for benchmarks. Bounds on memory stay.",
    ),
    key("limits.stanza_bytes", Bytes).default("\"256 KiB\"").doc("The largest stanza from our own users."),
    key("limits.stanza_bytes_outside", Bytes)
        .default("\"256 KiB\"")
        .doc("The largest stanza from other servers. Below 256 KiB messages of other providers' users may be refused."),
    key("limits.stanza_bytes_unauthenticated", Bytes)
        .default("\"16 KiB\"")
        .doc("The largest element before a login (RFC 6120 s.13.12: not below 10000)."),
    key("limits.header_bytes", Bytes).default("\"8 KiB\"").doc("The largest stream header."),
    key("limits.depth", Int(8, 1024)).default("64").doc("How deep elements may be nested."),
    key("limits.attributes", Int(16, 4096)).default("64").doc("Attributes on one element."),
    key("limits.namespaces", Int(8, 1024)).default("16").doc("Namespace declarations on one element."),
    key("limits.nodes", Int(256, 1_048_576)).default("16384").doc("Elements within one stanza."),
    key("limits.element_timeout", Duration)
        .default("\"60 s\"")
        .doc("How long a stanza may take from its first byte to its last."),
    key("limits.outbox_stanzas", Int(16, i64::MAX))
        .default("256")
        .doc("Stanzas waiting to be written to one client. From outside at most half of it."),
    key("limits.outbox_bytes", Bytes)
        .default("\"1 MB\"")
        .doc("Bytes waiting to be written to one client. From outside at most half of it."),
    key("limits.outbox_standstill", Duration)
        .default("\"60 s\"")
        .doc("A connection that takes no byte for this long while its outbox is full is closed."),
    key("limits.unacked_stanzas", Int(16, i64::MAX))
        .default("500")
        .doc("Stanzas sent to one client that it has not acknowledged (XEP-0198)."),
    key("limits.unacked_bytes", Bytes)
        .default("\"2 MB\"")
        .doc("Bytes sent to one client that it has not acknowledged (XEP-0198)."),
    key("limits.crossing_stanzas", Int(16, i64::MAX))
        .restart()
        .default("4096")
        .doc("Stanzas from all peers that wait to cross to the inside."),
    key("limits.crossing_bytes", Bytes)
        .restart()
        .default("\"8 MB\"")
        .doc("Bytes from all peers that wait to cross to the inside."),
    key("limits.crossing_peer_stanzas", Int(1, i64::MAX))
        .restart()
        .default("256")
        .doc("Stanzas of one peer domain that wait to cross to the inside."),
    key("limits.crossing_peer_bytes", Bytes)
        .restart()
        .default("\"2 MB\"")
        .doc("Bytes of one peer domain that wait to cross to the inside."),
    key("limits.crossing_share", Int(1, 100))
        .restart()
        .default("50")
        .doc("Per cent of the inside's time that stanzas from outside may take when both sides are busy."),
    key("limits.store_statements", Int(64, i64::MAX))
        .restart()
        .default("4096")
        .doc("Statements waiting for the database writer; beyond it readers wait."),
    key("limits.client_stanzas", Int(1, i64::MAX))
        .default("50")
        .doc("Stanzas a second from one client, on average. Above it reading is slowed down, nothing is refused."),
    key("limits.client_stanzas_burst", Int(1, i64::MAX))
        .default("500")
        .doc("Stanzas at once from one client before limits.client_stanzas applies."),
    key("limits.client_bytes", Bytes)
        .default("\"256 kB\"")
        .doc("Bytes a second from one client, on average."),
    key("limits.client_bytes_burst", Bytes)
        .default("\"2 MB\"")
        .doc("Bytes at once from one client before limits.client_bytes applies."),
    key("limits.peer_stanzas", Int(1, i64::MAX))
        .default("200")
        .doc("Stanzas a second from one peer domain, on average. Above it reading is slowed down."),
    key("limits.peer_stanzas_burst", Int(1, i64::MAX))
        .default("2000")
        .doc("Stanzas at once from one peer domain before limits.peer_stanzas applies."),
    key("limits.peer_bytes", Bytes)
        .default("\"1 MB\"")
        .doc("Bytes a second from one peer domain, on average."),
    key("limits.peer_bytes_burst", Bytes)
        .default("\"8 MB\"")
        .doc("Bytes at once from one peer domain before limits.peer_bytes applies."),
    key("limits.connections_per_minute", Int(1, i64::MAX))
        .default("120")
        .doc("New connections a minute from one address (IPv6: one /64), counted for clients, components and other servers each. Beyond it they are closed at once."),
    key("limits.offline_messages", Int(0, i64::MAX))
        .default("2000")
        .doc("Messages kept for one account that nobody has picked up. Beyond it they are refused. For senders at other providers the queue is full at half of it, for strangers there at an eighth."),
    key("limits.offline_bytes", Bytes)
        .default("\"16 MB\"")
        .doc("Bytes of messages kept for one account that nobody has picked up, with the same shares."),
    key("limits.archive_bytes", Bytes).default("\"1 GB\"").doc(
        "Bytes of one account's archive. Beyond it the oldest messages go, within minutes.",
    ),
    key("limits.archive_page", Int(1, 1000))
        .default("250")
        .doc("Messages of an archive that are sent for one request, whatever the client asks for."),
    key("limits.held_requests", Int(1, i64::MAX))
        .default("200")
        .doc("Subscription requests of others that wait for one account's answer."),
    key("limits.roster_items", Int(1, i64::MAX)).default("2000").doc("Contacts of one account."),
    key("limits.blocked_items", Int(1, i64::MAX)).default("2000").doc("Blocked addresses of one account."),
    key("limits.directed_presence", Int(1, i64::MAX))
        .default("500")
        .doc("Addresses outside the roster that one session has sent presence to."),
    key("limits.vcard_bytes", Bytes).default("\"240 KiB\"").doc("The largest vCard, picture included."),
    key("limits.private_bytes", Bytes).default("\"256 KiB\"").doc("Private XML of one account, all together."),
    key("limits.pubsub_nodes", Int(1, i64::MAX))
        .default("500")
        .doc("Nodes of one account, at its own address and at a service each."),
    key("limits.pubsub_items", Int(1, i64::MAX))
        .default("1000")
        .doc("Items of one node: what \"max\" means in its configuration."),
    key("limits.pubsub_item_bytes", Bytes).default("\"200 KiB\"").doc("The largest item."),
    key("limits.pubsub_bytes", Bytes)
        .default("\"16 MB\"")
        .doc("Bytes of all items of one account, at its own address and at a service each."),
    key("limits.pubsub_service_nodes", Int(1, i64::MAX))
        .default("10000")
        .doc("Nodes of one service, all together."),
    key("limits.iq_timeout", Duration)
        .default("\"2 min\"")
        .doc("How long the server waits for the answer to a request of its own."),
    // --- log
    key("log.level", Text)
        .default("\"info\"")
        .example("\"info,trunkline_server::net=debug\"")
        .doc("error, warn, info, debug or trace, also per part of the server: \"info,trunkline_server::federation=debug\"."),
    key("log.format", OneOf(&["text", "journal", "json"])).restart().default("\"text\"").doc(
        "\"text\" with time stamps, \"journal\" without (the journal adds them), or \"json\".",
    ),
    // --- traces
    key("traces.endpoint", Text).restart().example("\"http://127.0.0.1:4318/v1/traces\"").doc(
        "Where an OpenTelemetry collector takes traces (OTLP over HTTP, on this machine or in a private network). Without it there are none.",
    ),
    key("traces.one_in", Int(1, 1_000_000))
        .restart()
        .default("1")
        .doc("One of so many traces is sent."),
    // --- data policy
    key("data_policy.tos", Text).example("\"https://example.org/terms\"").doc("A link to the terms of service."),
    key("data_policy.encryption_at_rest", Bool)
        .default("false")
        .doc("Whether the disk that the database is on is encrypted."),
    key("data_policy.access", SomeOf(&["admins", "moderators", "organization_member", "government", "advertisers", "partners", "none"]))
        .default("[]")
        .example("[\"admins\", \"moderators\"]")
        .doc("Who can get at users' data."),
    key("data_policy.backup_frequency", Duration).example("\"1 day\"").doc("How often backups are made, at least."),
    key("data_policy.backup_retention", Duration).example("\"30 days\"").doc("How long backups are kept, at most."),
    key("data_policy.text", Text).example("\"The server stands in Oslo.\"").doc("What else people should know."),
    // --- contact
    key("contact.abuse", Uris)
        .default("[]")
        .example("[\"mailto:abuse@example.org\"]")
        .doc("For reports of spam and abuse. Other providers look here first."),
    key("contact.admin", Uris).default("[]").doc("The administrators."),
    key("contact.feedback", Uris).default("[]").doc("For feedback."),
    key("contact.sales", Uris).default("[]").doc("For sales."),
    key("contact.security", Uris).default("[]").doc("For reports of security holes."),
    key("contact.status", Uris).default("[]").doc("Where the state of the service is published."),
    key("contact.support", Uris).default("[]").doc("For help."),
];
