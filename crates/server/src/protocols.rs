//! `docs/protocols.md` and `doap.xml`: what the server speaks, generated from the list of modules and from [`CORE`].
//!
//! A test fails when the files are stale; `UPDATE_DOCS=1 cargo test -p trunkline-server --test protocols` writes them.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use trunkline_xml::Writer;

use crate::modules::{self, Level};

/// One specification that no module stands for, because it is a part of streams, routing or federation.
struct Core {
    xep: u16,
    version: &'static str,
    level: Level,
    place: &'static str,
}

const fn core(xep: u16, version: &'static str, level: Level, place: &'static str) -> Core {
    Core { xep, version, level, place }
}

/// What is not a module, by number.
const CORE: &[Core] = &[
    core(4, "2.13.2", Level::Partial("what our own forms need: no reported tables"), "xmpp::forms"),
    core(68, "1.3.0", Level::Complete, "xmpp::forms"),
    core(82, "1.1.1", Level::Complete, "xmpp::time"),
    core(114, "1.6", Level::Partial("accept only, as all servers today; no connect"), "session::component"),
    core(
        124,
        "1.11.2",
        Level::Partial(
            "one stream a session; no script syntax, no content types but XML; no reports of missing responses \
             (report, time), no compressed requests (accept), no charsets but UTF-8",
        ),
        "http::bosh",
    ),
    core(147, "1.2", Level::Partial("the links of invitations"), "invites"),
    core(
        156,
        "1.4.0",
        Level::Partial("host-meta in both formats; no DNS TXT records, which are obsolete"),
        "http::meta",
    ),
    core(160, "1.0.1", Level::Complete, "log"),
    core(178, "1.2", Level::Partial("between servers; not for clients"), "federation"),
    core(185, "1.0", Level::Complete, "federation"),
    core(
        198,
        "1.6.3",
        Level::Partial(
            "resumption for clients; between servers acknowledgements, what is not acknowledged is sent again",
        ),
        "session::management, federation",
    ),
    core(203, "2.0", Level::Complete, "route"),
    core(206, "1.4", Level::Complete, "http::bosh"),
    core(220, "1.1.1", Level::Complete, "federation"),
    core(288, "1.0.1", Level::Complete, "federation"),
    core(318, "0.2", Level::Partial("probes of clients are ignored, not forwarded"), "route::presence"),
    core(334, "1.0.0", Level::Complete, "xmpp::classify"),
    core(352, "1.0.0", Level::Complete, "session::outbox"),
    core(368, "1.1.0", Level::Complete, "net, federation"),
    core(
        386,
        "1.1.0",
        Level::Partial("what waits is delivered, not cleared: a client that reads no archive would lose it"),
        "session::login",
    ),
    core(388, "1.0.4", Level::Complete, "session::login"),
    core(440, "1.0.0", Level::Complete, "session::login"),
    core(474, "0.5.0", Level::Complete, "xmpp::sasl"),
    core(478, "0.2.0", Level::Complete, "session::login"),
    core(480, "0.2.0", Level::Complete, "session::login"),
    core(484, "0.2.0", Level::Complete, "session::login, devices"),
    core(
        487,
        "0.1.0",
        Level::Partial(
            "WebSocket, BOSH and direct TLS; no pinned keys, no Encrypted Client Hello, no QUIC; not used by our own connecting",
        ),
        "http::meta",
    ),
    core(509, "0.2.0", Level::Complete, "session::login"),
];

/// Titles, by number: a specification without one here fails the test.
const TITLES: &[(u16, &str)] = &[
    (4, "Data Forms"),
    (12, "Last Activity"),
    (30, "Service Discovery"),
    (48, "Bookmarks"),
    (49, "Private XML Storage"),
    (50, "Ad-Hoc Commands"),
    (54, "vcard-temp"),
    (59, "Result Set Management"),
    (60, "Publish-Subscribe"),
    (68, "Field Standardization for Data Forms"),
    (77, "In-Band Registration"),
    (82, "XMPP Date and Time Profiles"),
    (84, "User Avatar"),
    (92, "Software Version"),
    (114, "Jabber Component Protocol"),
    (115, "Entity Capabilities"),
    (124, "Bidirectional-streams Over Synchronous HTTP (BOSH)"),
    (133, "Service Administration"),
    (147, "XMPP URI Scheme Query Components"),
    (153, "vCard-Based Avatars"),
    (156, "Discovering Alternative XMPP Connection Methods"),
    (157, "Contact Addresses for XMPP Services"),
    (160, "Best Practices for Handling Offline Messages"),
    (163, "Personal Eventing Protocol"),
    (172, "User Nickname"),
    (178, "Best Practices for Use of SASL EXTERNAL with Certificates"),
    (185, "Dialback Key Generation and Validation"),
    (191, "Blocking Command"),
    (198, "Stream Management"),
    (199, "XMPP Ping"),
    (202, "Entity Time"),
    (203, "Delayed Delivery"),
    (206, "XMPP Over BOSH"),
    (220, "Server Dialback"),
    (222, "Persistent Storage of Public Data via PubSub"),
    (223, "Persistent Storage of Private Data via PubSub"),
    (237, "Roster Versioning"),
    (280, "Message Carbons"),
    (288, "Bidirectional Server-to-Server Connections"),
    (292, "vCard4 Over XMPP"),
    (313, "Message Archive Management"),
    (318, "Best Practices for Client Initiated Presence Probes"),
    (334, "Message Processing Hints"),
    (352, "Client State Indication"),
    (357, "Push Notifications"),
    (359, "Unique and Stable Stanza IDs"),
    (368, "SRV records for XMPP over TLS"),
    (377, "Blocking Command Reports"),
    (379, "Pre-Authenticated Roster Subscription"),
    (386, "Bind 2"),
    (388, "Extensible SASL Profile"),
    (398, "User Avatar to vCard-Based Avatars Conversion"),
    (401, "Ad-hoc Account Invitation Generation"),
    (402, "PEP Native Bookmarks"),
    (411, "Bookmarks Conversion"),
    (424, "Message Retraction"),
    (431, "Full Text Search in MAM"),
    (440, "SASL Channel-Binding Type Capability"),
    (441, "Message Archive Management Preferences"),
    (445, "Pre-Authenticated In-Band Registration"),
    (455, "Service Outage Status"),
    (474, "SASL SCRAM Downgrade Protection"),
    (478, "Stream Limits Advertisement"),
    (480, "SASL Upgrade Tasks"),
    (484, "Fast Authentication Streamlining Tokens"),
    (485, "PubSub Server Information"),
    (487, "Host Meta 2 - One Method To Rule Them All"),
    (489, "Reporting Account Affiliations"),
    (490, "Message Displayed Synchronization"),
    (494, "Client Access Management"),
    (504, "Data Policy"),
    (509, "Initial Authentication Pipelining"),
];

/// What each RFC comes to, in one line.
const RFCS: &[(&str, &str, &str)] = &[
    ("6120", "XMPP Core", "complete; SASL: SCRAM-SHA-1, -256, -512 and -PLUS, PLAIN inside TLS"),
    ("6121", "XMPP Instant Messaging and Presence", "complete"),
    (
        "7395",
        "XMPP Subprotocol for WebSocket",
        "complete, but for see-other-uri: this server sends nobody elsewhere",
    ),
    ("7590", "Use of TLS in XMPP", "complete: TLS 1.2 and 1.3 only"),
    (
        "7622",
        "XMPP Address Format",
        "addresses are RFC 6122's; new accounts have names that are the same in both",
    ),
    ("9266", "Channel Bindings for TLS 1.3", "complete"),
];

/// Where the server does otherwise than a specification recommends, and why.
const DEPARTURES: &str = "\
- **Who exists is not told to strangers from other domains** (RFC 6121 s.8.5.1 permits it). The answer to a sender of
  another domain without consent is fixed before the account is looked up: silence for messages and presence,
  `service-unavailable` for IQ requests and group chat, `unsubscribed` for probes. The RFC's SHOULD of
  `service-unavailable` for messages to unknown users applies to local senders only. Who has consent is in
  docs/control/consent.md; whether an address exists shows neither in the answer nor in its time nor in the
  acknowledgement (XEP-0198). A contact who is blocked gets the literal answers of XEP-0191. With the preset \"open\"
  strangers' messages are delivered, and then the time may tell.
- **Answers to other domains are not kept** (RFC 6121 says nothing): the `unsubscribed` for a probe, or a `subscribed`
  that repeats what was granted before, is lost when the peer can't be reached. The next probe gets it again.
- **Strangers' first contacts are held** until the user agrees: messages, calls (XEP-0353), invitations (XEP-0045,
  XEP-0249) and subscription requests show as one subscription request. Of the stranger's own request only the text
  reaches the user, with its links broken, where RFC 6121 s.3.1.3 delivers it whole. `subscribed` and `unsubscribed` go
  to the stranger only if they answer a request of the stranger's.
- **While the disk is full** senders are told `resource-constraint` for what could not be stored, those from other
  domains too: for that time they can tell an account that exists from one that does not.
- **Errors of subscription requests** come to the bare address that the request was sent from; while it has no answer
  they are shown to all of the user's available devices.
- **What a node is of is not enforced**: XEP-0060 s.7.1.3.5 has an item refused whose namespace is not the node's
  `pubsub#type`. Since 1.23 that field says what the items mean, and XEP-0472 puts a profile's name there which no item has
  as its namespace.
- **An owner subscribes people of this server only** (XEP-0060 s.8.8.2): others are `not-acceptable`, and approved if they
  asked for it themselves. Else whoever has a node could make the server send to any address.
- **Components that are not connected** (XEP-0114 says nothing): `remote-server-timeout`, type wait. With
  `service-unavailable` a client that pings its room (XEP-0410 s.3.2) would believe to be inside still.
- **A component that connects twice** (XEP-0114 s.3 lets the server choose): the newer connection stays, the older one
  is closed with `conflict`. Both have shown the secret; the older one is most likely dead.
- **Changing the password** (XEP-0077 s.3.3) ends the account's other sessions with the stream error `reset`, and the
  tokens of its other devices; an operator who sets one ends all of them.
- **Ending a device that has the password** (XEP-0494 s.3.2) answers `password-reset-required`, as it should, and signs
  the device out nevertheless: its sessions and tokens are gone.
- **Upgrade tasks** (XEP-0480 s.2) are announced to everybody alike, since who is announced less would be known to exist;
  a client that asks for one is given it only if the account lacks those keys.
- **A token that is not for its device, its mechanism or anybody** is `not-authorized`, whatever is the reason; only who
  shows a token that was right and is too old hears `credentials-expired` (XEP-0484 s.4.2).
- **Registration and invitations**: off by default. An invitation works once and expires; what a user's invitation is
  good for is the operator's choice (`accounts.user_invites`).
- **Requests between others have no timer.** RFC 6120 s.8.2.3 has the addressee answer, not the servers between. A
  request that can't be handed on gets an error: `service-unavailable` when the device is gone, or its session ends
  before the request is written (with XEP-0198: acknowledged); `remote-server-timeout` or what else the reason is when
  there is no way to the other server. Once it was handed over, no answer is made up: the real one may still come, and
  the asker would have two. So clients need a timeout of their own. `limits.iq_timeout` is for the server's own requests.
- **Errors don't repeat requests** above 1 KiB (RFC 6120 s.8.3.1 permits it), and never those that have a password in
  them.
";

/// One row: level and where it is.
struct Row {
    version: &'static str,
    level: Level,
    place: String,
}

fn rows() -> BTreeMap<u16, Row> {
    let mut rows = BTreeMap::new();
    for core in CORE {
        let row = Row { version: core.version, level: core.level, place: core.place.to_owned() };
        rows.insert(core.xep, row);
    }
    for module in modules::all() {
        for (xep, version, level) in module.xeps() {
            rows.insert(*xep, Row { version, level: *level, place: format!("modules::{}", module.name()) });
        }
    }
    rows
}

fn title(xep: u16) -> &'static str {
    TITLES.iter().find(|(number, _)| *number == xep).map_or("", |(_, title)| title)
}

/// `docs/protocols.md`.
pub fn markdown() -> String {
    let mut out = String::from(
        "# What Trunkline speaks\n\n\
         Generated from the list of modules (`crates/server/src/modules/mod.rs`) and from \
         `crates/server/src/protocols.rs`; don't edit.\n\n\
         ## RFCs\n\n| RFC | | how much |\n|---|---|---|\n",
    );
    for (number, title, level) in RFCS {
        let _ = writeln!(out, "| {number} | {title} | {level} |");
    }
    out.push_str("\n## XEPs\n\n| XEP | | version | how much | where |\n|---|---|---|---|---|\n");
    for (xep, row) in rows() {
        let level = match row.level {
            Level::Complete => "complete",
            Level::Partial(what) => what,
        };
        let _ = writeln!(out, "| {xep:04} | {} | {} | {level} | `{}` |", title(xep), row.version, row.place);
    }
    out.push_str("\n## Where we do otherwise\n\n");
    out.push_str(DEPARTURES);
    out.push_str("\n## Modules\n\n| module | what it does |\n|---|---|\n");
    for module in modules::all() {
        let _ = writeln!(out, "| `{}` | {} |", module.name(), module.summary());
    }
    out.push_str("\n## Commands\n\n| node | | who |\n|---|---|---|\n");
    for module in modules::all() {
        for command in module.commands() {
            let who = match command.access {
                crate::commands::Access::Users => "users",
                crate::commands::Access::Admins => "administrators",
                // All operations of administration: docs/control/api.md.
                crate::commands::Access::Scope(_) => continue,
            };
            let _ = writeln!(out, "| `{}` | {} | {who} |", command.node, command.name);
        }
    }
    out.push_str(
        "| `urn:trunkline:admin:0#...` | Every operation of the HTTP API | administrators, moderators |\n",
    );
    out
}

/// `doap.xml` (XEP-0453).
pub fn doap() -> String {
    let mut w = Writer::new();
    w.open("rdf:RDF")
        .attr("xmlns", "http://usefulinc.com/ns/doap#")
        .attr("xmlns:rdf", "http://www.w3.org/1999/02/22-rdf-syntax-ns#")
        .attr("xmlns:xmpp", "https://linkmauve.fr/ns/xmpp-doap#");
    w.open("Project");
    w.text_element("name", "Trunkline");
    w.text_element("shortdesc", "An XMPP server and federation edge");
    w.text_element("programming-language", "Rust");
    w.open("category").attr("rdf:resource", "https://linkmauve.fr/ns/xmpp-doap#category-server").close();
    for license in ["https://spdx.org/licenses/Apache-2.0", "https://spdx.org/licenses/MIT"] {
        w.open("license").attr("rdf:resource", license).close();
    }
    for (number, ..) in RFCS {
        w.open("implements").attr("rdf:resource", &format!("https://xmpp.org/rfcs/rfc{number}.html")).close();
    }
    for (xep, row) in rows() {
        w.open("implements").open("xmpp:SupportedXep");
        w.open("xmpp:xep")
            .attr("rdf:resource", &format!("https://xmpp.org/extensions/xep-{xep:04}.html"))
            .close();
        w.text_element("xmpp:version", row.version);
        match row.level {
            Level::Complete => w.text_element("xmpp:status", "complete"),
            Level::Partial(what) => w.text_element("xmpp:status", "partial").text_element("xmpp:note", what),
        };
        w.close().close();
    }
    w.close().close();
    let text = String::from_utf8_lossy(&w.finish()).into_owned();
    // One element a line, so that a change is a line in the history.
    let text = text.replace("><implements", ">\n<implements").replace("></Project>", ">\n</Project>");
    format!("<?xml version='1.0' encoding='UTF-8'?>\n{text}\n")
}

/// Specifications without a title.
pub fn untitled() -> Vec<u16> {
    rows().into_keys().filter(|xep| title(*xep).is_empty()).collect()
}
