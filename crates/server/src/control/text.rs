//! Only the text of a stanza: THE TABLE of what passes, and links in what people write.
//!
//! Text only is a list of what stays (design/010): what nobody has thought of yet does not pass. It goes down to
//! attributes and children: an element of the table is written anew with what the table says of it, so that nothing can
//! hide inside an element that is known.

use std::ops::Range;

use trunkline_xml::{Node, Writer, XML_NS};
use trunkline_xmpp::error::{Condition, StanzaError};
use trunkline_xmpp::ns;
use trunkline_xmpp::stanza::{IqType, Kind, Stanza};

use super::content::{MARK, is_encrypted};

/// What stands in a text where a link was.
const REMOVED: &str = "[link removed]";
/// Characters of a reaction: one emoji with all that belongs to it. What is longer is a message.
const REACTION: usize = 16;

/// What may be in an element.
#[derive(Debug)]
struct Shape {
    ns: &'static str,
    names: &'static [&'static str],
    attrs: &'static [&'static str],
    text: Text,
    children: &'static [Shape],
    /// It says something: a message of which nothing such stays is refused, not passed on empty.
    says: bool,
}

/// What an element's own text is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Text {
    /// None.
    No,
    /// Somebody's words: without links.
    Words,
    /// An emoji; without one there is no element.
    Emoji,
}

const fn empty(ns: &'static str, names: &'static [&'static str], attrs: &'static [&'static str]) -> Shape {
    Shape { ns, names, attrs, text: Text::No, children: &[], says: false }
}

const fn words(ns: &'static str, names: &'static [&'static str], attrs: &'static [&'static str]) -> Shape {
    Shape { text: Text::Words, ..empty(ns, names, attrs) }
}

const fn with(shape: Shape, children: &'static [Shape]) -> Shape {
    Shape { children, ..shape }
}

const fn says(shape: Shape) -> Shape {
    Shape { says: true, ..shape }
}

/// RFC 6120 s.8.3. What applications add to an error is not text.
const ERROR: Shape = says(with(
    empty(ns::CLIENT, &["error"], &["type", "code", "by"]),
    &[
        words(ns::STANZA_ERRORS, &["text"], &[]),
        empty(
            ns::STANZA_ERRORS,
            &[
                "bad-request",
                "conflict",
                "feature-not-implemented",
                "forbidden",
                "gone",
                "internal-server-error",
                "item-not-found",
                "jid-malformed",
                "not-acceptable",
                "not-allowed",
                "not-authorized",
                "policy-violation",
                "recipient-unavailable",
                "redirect",
                "registration-required",
                "remote-server-not-found",
                "remote-server-timeout",
                "resource-constraint",
                "service-unavailable",
                "subscription-required",
                "undefined-condition",
                "unexpected-request",
            ],
            &[],
        ),
    ],
));

/// XEP-0045: what rooms say about occupants and themselves, and invitations by way of a room.
const MUC_USER: Shape = says(with(
    empty(ns::MUC_USER, &["x"], &[]),
    &[
        empty(ns::MUC_USER, &["status"], &["code"]),
        with(
            empty(ns::MUC_USER, &["item"], &["affiliation", "role", "jid", "nick"]),
            &[empty(ns::MUC_USER, &["actor"], &["jid", "nick"]), words(ns::MUC_USER, &["reason"], &[])],
        ),
        with(
            empty(ns::MUC_USER, &["invite", "decline", "destroy"], &["from", "to", "jid"]),
            &[words(ns::MUC_USER, &["reason"], &[]), empty(ns::MUC_USER, &["continue"], &["thread"])],
        ),
        words(ns::MUC_USER, &["password"], &[]),
    ],
));

/// XEP-0203.
const DELAY: Shape = empty(ns::DELAY, &["delay"], &["stamp", "from"]);
/// XEP-0172.
const NICK: Shape = words(ns::NICK, &["nick"], &[]);
/// XEP-0421.
const OCCUPANT_ID: Shape = empty(ns::OCCUPANT_ID, &["occupant-id"], &["id"]);

/// THE TABLE for messages.
const MESSAGE: &[Shape] = &[
    says(words(ns::CLIENT, &["body", "subject"], &[])),
    words(ns::CLIENT, &["thread"], &["parent"]),
    ERROR,
    empty(ns::CHAT_STATES, &["active", "composing", "paused", "inactive", "gone"], &[]),
    says(empty(ns::RECEIPTS, &["received"], &["id"])),
    empty(ns::RECEIPTS, &["request"], &[]),
    says(empty(ns::MARKERS, &["received", "displayed", "acknowledged"], &["id", "sender"])),
    empty(ns::MARKERS, &["markable"], &[]),
    DELAY,
    empty(ns::STANZA_ID, &["stanza-id", "origin-id"], &["id", "by"]),
    empty(ns::CORRECT, &["replace"], &["id"]),
    says(with(
        empty(ns::RETRACT, &["retract", "retracted"], &["id", "stamp", "by"]),
        &[
            with(empty(ns::MODERATE, &["moderated"], &["by"]), &[OCCUPANT_ID]),
            words(ns::RETRACT, &["reason"], &[]),
            OCCUPANT_ID,
        ],
    )),
    empty(ns::REPLY, &["reply"], &["to", "id"]),
    says(with(
        empty(ns::REACTIONS, &["reactions"], &["id"]),
        &[Shape { text: Text::Emoji, ..empty(ns::REACTIONS, &["reaction"], &[]) }],
    )),
    with(
        empty(ns::FALLBACK, &["fallback"], &["for"]),
        &[empty(ns::FALLBACK, &["body", "subject"], &["start", "end"])],
    ),
    empty(ns::HINTS, &["no-permanent-store", "no-store", "no-copy", "store"], &[]),
    // Its `name` would be shown.
    empty(ns::EME, &["encryption"], &["namespace"]),
    NICK,
    OCCUPANT_ID,
    MUC_USER,
    with(
        empty(ns::ADDRESS, &["addresses"], &[]),
        &[empty(ns::ADDRESS, &["address"], &["type", "jid", "node", "delivered"])],
    ),
    words(MARK, &["mark"], &["by"]),
];

/// THE TABLE for presence. No pictures (XEP-0153), and nothing that a client would fetch.
const PRESENCE: &[Shape] = &[
    words(ns::CLIENT, &["show", "status", "priority"], &[]),
    ERROR,
    // Identifies software: nobody reads its `node`.
    empty(ns::CAPS, &["c"], &["hash", "node", "ver"]),
    DELAY,
    empty("urn:xmpp:idle:1", &["idle"], &["since"]),
    NICK,
    OCCUPANT_ID,
    MUC_USER,
    with(
        empty(ns::MUC, &["x"], &[]),
        &[
            words(ns::MUC, &["password"], &[]),
            empty(ns::MUC, &["history"], &["maxchars", "maxstanzas", "seconds", "since"]),
        ],
    ),
    empty(ns::PARS, &["preauth"], &["token"]),
];

/// What a user's client may ask of another, or of a service: what text needs.
const REQUESTS: &[&str] = &[ns::PING, ns::DISCO_INFO, ns::DISCO_ITEMS, ns::VERSION, ns::TIME, ns::LAST];

/// Nodes that hold keys, by how their names begin: without them nobody could encrypt.
const KEY_NODES: &[&str] = &["eu.siacs.conversations.axolotl.", "urn:xmpp:omemo:2:", "urn:xmpp:openpgp:0:"];

/// Only the text of a stanza, with `[link removed]` for each link.
///
/// Of messages and presence stays what the tables name, and encrypted payload. Requests pass that text needs, and those
/// for keys; of answers stays the same. A message of which nothing is left that says something is refused, and so are
/// all other requests: calls and file transfers among them.
///
/// # Errors
/// The whole stanza is what is not let through.
pub fn text_only(stanza: &Stanza) -> Result<Stanza, StanzaError> {
    let refused = || StanzaError::new(Condition::PolicyViolation).text("Only text is let through just now.");
    match stanza.head.kind {
        Kind::Message(_) => {
            let (passes, loss) = rewritten(stanza, MESSAGE);
            if loss == Loss::OfAllThatSays { Err(refused()) } else { Ok(passes) }
        }
        Kind::Presence(_) => Ok(rewritten(stanza, PRESENCE).0),
        Kind::Iq(IqType::Error) => Ok(rewritten(stanza, &[ERROR]).0),
        Kind::Iq(IqType::Result) => Ok(stanza.without_children(|child| !is_request(child))),
        Kind::Iq(IqType::Get | IqType::Set) if stanza.children().all(is_request) => Ok(stanza.clone()),
        Kind::Iq(IqType::Get | IqType::Set) => Err(refused()),
    }
}

/// The request, or its answer, is one that text needs.
fn is_request(child: Node<'_>) -> bool {
    if child.ns() == ns::PUBSUB {
        return child.children().all(|child| child.name() == "items" && is_for_keys(child));
    }
    // What has links in forms (XEP-0157 in XEP-0030) has them for servers; what people write has none.
    let is_form = |node: &Node<'_>| node.ns() == ns::DATA_FORMS;
    let says_link = || {
        std::iter::once(child)
            .chain(child.descendants())
            .filter(|node| !is_form(node))
            .any(|node| links(&node.text()).next().is_some())
    };
    REQUESTS.contains(&child.ns()) && !says_link()
}

fn is_for_keys(items: Node<'_>) -> bool {
    items.attr("node").is_some_and(|node| KEY_NODES.iter().any(|begin| node.starts_with(begin)))
}

/// XEP-0163: somebody's keys are others.
fn is_key_event(child: Node<'_>) -> bool {
    child.is(ns::PUBSUB_EVENT, "event")
        && child.children().all(|child| child.name() == "items" && is_for_keys(child))
}

/// What the tables took away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Loss {
    Nothing,
    Something,
    OfAllThatSays,
}

fn rewritten(stanza: &Stanza, table: &[Shape]) -> (Stanza, Loss) {
    let is_text = |child: &Node<'_>| child.ns() == ns::CLIENT && matches!(child.name(), "body" | "subject");
    // XEP-0428 counts characters: of a text that became another, it would hide the wrong ones.
    let counts = !stanza.children().any(|child| is_text(&child) && links(&child.text()).next().is_some());
    let mut w = Writer::new();
    let (mut lost, mut says) = (false, false);
    for child in stanza.children() {
        if is_encrypted(child) || is_key_event(child) {
            w.raw(child.raw());
            says = true;
            continue;
        }
        let shape = shape_of(table, child).filter(|_| counts || child.ns() != ns::FALLBACK);
        let kept = shape.is_some_and(|shape| write(&mut w, child, (shape, ns::CLIENT)));
        says |= kept && shape.is_some_and(|shape| shape.says);
        lost |= !kept;
    }
    let passes = stanza.with_payload(w.finish());
    let loss = match (lost, says) {
        (false, _) => Loss::Nothing,
        (true, true) => Loss::Something,
        (true, false) => Loss::OfAllThatSays,
    };
    (passes, loss)
}

fn shape_of<'a>(shapes: &'a [Shape], node: Node<'_>) -> Option<&'a Shape> {
    shapes.iter().find(|shape| shape.ns == node.ns() && shape.names.contains(&node.name()))
}

/// Writes what the shape says of the element, inside one of the namespace `outer`. False: nothing.
fn write(w: &mut Writer, node: Node<'_>, (shape, outer): (&Shape, &str)) -> bool {
    let text = match shape.text {
        Text::No => String::new(),
        Text::Words => without_links(&node.text()),
        Text::Emoji => {
            let text = node.text();
            let text = text.trim();
            if text.is_empty() || text.chars().count() > REACTION || links(text).next().is_some() {
                return false;
            }
            text.to_owned()
        }
    };
    w.open(node.name());
    if shape.ns != outer {
        w.attr("xmlns", shape.ns);
    }
    for name in shape.attrs {
        w.attr_opt(name, node.attr(name));
    }
    if shape.text == Text::Words {
        w.attr_opt("xml:lang", node.attr_ns(XML_NS, "lang"));
    }
    if !text.is_empty() {
        w.text(&text);
    }
    for child in node.children() {
        if let Some(known) = shape_of(shape.children, child) {
            write(w, child, (known, shape.ns));
        }
    }
    w.close();
    true
}

// ---- links

/// The links in a text, as places in it. A link is `scheme://...`, `www....`, one of the schemes that clients make
/// clickable without slashes, or the name of a host: clients link those too. Invisible characters hide nothing.
pub(super) fn links(text: &str) -> impl Iterator<Item = Range<usize>> + '_ {
    parts(text).filter(|range| is_link(&text[range.clone()]))
}

fn without_links(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut from = 0;
    for link in links(text) {
        out.push_str(&text[from..link.start]);
        out.push_str(REMOVED);
        from = link.end;
    }
    out.push_str(&text[from..]);
    out
}

fn parts(text: &str) -> impl Iterator<Item = Range<usize>> + '_ {
    let separates =
        |c: char| c.is_whitespace() || matches!(c, '<' | '>' | '"' | '(' | ')' | '[' | ']' | '{' | '}');
    text.split(separates).map(move |part| {
        let start = part.as_ptr() as usize - text.as_ptr() as usize;
        start..start + part.len()
    })
}

fn is_link(part: &str) -> bool {
    const WITHOUT_SLASHES: &[&str] = &[
        "bitcoin:",
        "callto:",
        "data:",
        "ethereum:",
        "facetime:",
        "file:",
        "geo:",
        "intent:",
        "javascript:",
        "lightning:",
        "magnet:",
        "mailto:",
        "market:",
        "matrix:",
        "monero:",
        "sip:",
        "sips:",
        "skype:",
        "sms:",
        "tel:",
        "tg:",
        "vbscript:",
        "xmpp:",
    ];
    // Most words are words.
    if part.is_ascii() && !part.bytes().any(|b| matches!(b, b'.' | b':')) {
        return false;
    }
    let plain: String = part
        .chars()
        .filter(|c| !is_invisible(*c))
        // What IDNA takes for a dot (RFC 3490 s.3.1).
        .map(|c| if matches!(c, '\u{3002}' | '\u{ff0e}' | '\u{ff61}') { '.' } else { c })
        .collect::<String>()
        .to_lowercase();
    if let Some((scheme, rest)) = plain.split_once("://") {
        let scheme = scheme.rsplit(|c: char| !c.is_ascii_alphanumeric() && !"+-.".contains(c)).next();
        if scheme.is_some_and(|scheme| scheme.starts_with(|c: char| c.is_ascii_alphabetic()))
            && !rest.is_empty()
        {
            return true;
        }
    }
    let begins = |prefix: &str| {
        plain.match_indices(prefix).any(|(at, _)| {
            let before = plain[..at].chars().next_back();
            let after = plain[at + prefix.len()..].chars().next();
            before.is_none_or(|c| !c.is_alphanumeric()) && after.is_some_and(|c| !c.is_whitespace())
        })
    };
    begins("www.") || WITHOUT_SLASHES.iter().any(|scheme| begins(scheme)) || names_host(&plain)
}

/// Nobody sees these, and software that looks for links passes over them or stumbles.
fn is_invisible(c: char) -> bool {
    matches!(
        c,
        '\u{ad}'
            | '\u{34f}'
            | '\u{61c}'
            | '\u{180e}'
            | '\u{200b}'..='\u{200f}'
            | '\u{202a}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{fe00}'..='\u{fe0f}'
            | '\u{feff}'
            | '\u{e0000}'..='\u{e007f}'
    )
}

/// The name of a host stands in it, with or without a path. Addresses of people are no links: they are what people
/// give each other here.
fn names_host(part: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || matches!(c, '.' | '-' | '_');
    let mut rest = part;
    let mut before = None;
    while let Some(start) = rest.find(is_part) {
        if let Some(c) = rest[..start].chars().next_back() {
            before = Some(c);
        }
        let run = &rest[start..];
        let end = run.find(|c| !is_part(c)).unwrap_or(run.len());
        let (host, after) = run.split_at(end);
        let host = host.trim_matches(['.', '-', '_']);
        let is_address = before == Some('@') || after.starts_with('@');
        if !is_address && is_host(host, has_path(after)) {
            return true;
        }
        before = host.chars().next_back();
        rest = after;
    }
    false
}

/// What follows a host is a path, maybe behind a port.
fn has_path(after: &str) -> bool {
    let port = after.strip_prefix(':').map(|rest| rest.trim_start_matches(|c: char| c.is_ascii_digit()));
    port.unwrap_or(after).strip_prefix('/').is_some_and(|path| !path.is_empty())
}

fn is_host(host: &str, has_path: bool) -> bool {
    let Some((below, top)) = host.rsplit_once('.') else { return false };
    let numeric = |label: &str| label.parse::<u8>().is_ok();
    if has_path && host.split('.').count() == 4 && host.split('.').all(numeric) {
        return true;
    }
    let labels =
        !below.is_empty() && below.split('.').all(|label| !label.is_empty() && !label.starts_with('-'));
    if !labels {
        return false;
    }
    if has_path {
        return top.chars().count() >= 2 && top.chars().all(char::is_alphabetic);
    }
    // A number and an abbreviation: "3.am".
    below.chars().any(char::is_alphabetic) && is_top(top)
}

/// What hosts' names end with. Every country; of the others those in use, for no list of all of them stays right.
fn is_top(top: &str) -> bool {
    const MORE: &[&str] = &[
        "agency",
        "app",
        "art",
        "bank",
        "best",
        "bid",
        "biz",
        "blog",
        "cam",
        "casa",
        "cash",
        "casino",
        "cfd",
        "chat",
        "click",
        "cloud",
        "club",
        "com",
        "community",
        "company",
        "cyou",
        "date",
        "design",
        "dev",
        "digital",
        "domains",
        "download",
        "edu",
        "education",
        "email",
        "event",
        "events",
        "example",
        "exchange",
        "expert",
        "express",
        "family",
        "fashion",
        "fit",
        "foundation",
        "fun",
        "fund",
        "gallery",
        "games",
        "gay",
        "global",
        "goog",
        "gov",
        "group",
        "guru",
        "help",
        "host",
        "hosting",
        "icu",
        "info",
        "ink",
        "int",
        "jobs",
        "lat",
        "life",
        "link",
        "live",
        "lol",
        "ltd",
        "market",
        "marketing",
        "media",
        "men",
        "mil",
        "mobi",
        "money",
        "monster",
        "mov",
        "museum",
        "name",
        "net",
        "network",
        "news",
        "ninja",
        "onion",
        "one",
        "online",
        "org",
        "page",
        "party",
        "photo",
        "photos",
        "pics",
        "plus",
        "poker",
        "porn",
        "press",
        "pro",
        "pub",
        "quest",
        "racing",
        "rest",
        "review",
        "reviews",
        "rip",
        "rocks",
        "run",
        "sale",
        "sbs",
        "services",
        "sex",
        "sexy",
        "shop",
        "site",
        "skin",
        "social",
        "software",
        "solutions",
        "space",
        "store",
        "stream",
        "studio",
        "support",
        "surf",
        "systems",
        "team",
        "tech",
        "tel",
        "today",
        "tokyo",
        "tools",
        "top",
        "trade",
        "travel",
        "trust",
        "tube",
        "vegas",
        "video",
        "vip",
        "wang",
        "watch",
        "web",
        "webcam",
        "website",
        "wiki",
        "win",
        "work",
        "works",
        "world",
        "wtf",
        "xin",
        "xxx",
        "xyz",
        "yachts",
        "zip",
        "zone",
        "рф",
        "укр",
        "бел",
        "срб",
        "мкд",
        "қаз",
        "онлайн",
        "сайт",
        "中国",
        "中國",
        "网络",
        "公司",
        "网站",
        "在线",
        "香港",
        "台湾",
        "みんな",
        "한국",
        "भारत",
        "ไทย",
        "ישראל",
        "السعودية",
        "مصر",
        "امارات",
        "ایران",
        "ελ",
        "გე",
        "հայ",
    ];
    let country = top.len() == 2 && top.bytes().all(|b| b.is_ascii_lowercase());
    country || top.starts_with("xn--") || MORE.contains(&top)
}

#[cfg(test)]
#[path = "text_tests.rs"]
mod tests;
