//! The one classifier: what a message is, and so what the server does with it.
//!
//! Five questions are answered for each message, each yes or no with a reason:
//!
//! | question | who asks | specification |
//! |---|---|---|
//! | `store` | the archive | XEP-0313 s.5, XEP-0334 |
//! | `offline` | the log: kept until a device has it | XEP-0160 s.3, RFC 6121 s.8.5.2 |
//! | `copy` | carbons | XEP-0280 s.6.1 |
//! | `wake` | client state: not held back while inactive | XEP-0352 s.4 |
//! | `push` | push notifications | XEP-0357 |
//!
//! First the type of the stanza decides what is possible, then its most telling payload chooses a row of `TABLE`,
//! then hints overrule. Nothing but the stanza and its direction is looked at: whether anybody is online, subscribed
//! or blocked is not the classifier's business.
//!
//! # Where others disagree
//!
//! Prosody asks these questions in three modules, and their answers differ:
//!
//! - A body-less message that is encrypted is stored and wakes there only if it carries XEP-0380; we know OMEMO and
//!   OpenPGP by their own elements too, and tell an OMEMO message without payload (key transport, a heartbeat): it
//!   must reach every device but is nothing to wake anybody for.
//! - Receipts and markers are stored but do not wake, in both.
//! - Reactions and retractions are stored there only with a `<store/>` hint. We store them: without them the archive
//!   shows a conversation that never was. A retraction wakes, so that a notification can be taken back.
//! - A correction (XEP-0308) is a message there. Here it is stored and wakes, but is not pushed: a notification for each
//!   typing error is noise.
//! - Prosody keeps everything of type chat or normal for offline users, even what is empty or a chat state only;
//!   XEP-0160 s.3 excludes chat states, and we follow it.
//! - A `<no-store/>` beats a `<store/>` beside it, in both.
//! - Errors: a bounce that comes to a client's full address is archived in both (its user should find out that the
//!   message failed), and copied if what bounced came from a bare address. Hints in errors are ignored (XEP-0334 s.5):
//!   they belong to the message that bounced.
//! - Group chat is archived by the room (XEP-0313 s.5.1.3 leaves it to the server).

use std::borrow::Cow;

use trunkline_xml::Node;

use crate::ns;
use crate::stanza::{Kind, MessageType, PresenceType, Stanza};

/// Yes or no, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The answer.
    pub yes: bool,
    /// What decided it: a stable name for logs, tests and counters.
    pub reason: &'static str,
}

/// What the server does with a stanza.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Class {
    /// Goes into the archive.
    pub store: Verdict,
    /// Is kept until it is delivered.
    pub offline: Verdict,
    /// Is copied to the user's other devices.
    pub copy: Verdict,
    /// Is sent at once to a device that said it is inactive.
    pub wake: Verdict,
    /// Is worth a push notification.
    pub push: Verdict,
}

/// From whose side a message is looked at: it passes the classifier once for its sender and once for its recipient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// A user of ours sends it.
    Sent,
    /// A user of ours receives it.
    Received,
}

/// What a message is about, most telling first: of several payloads the first one counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Matter {
    Wrapped,
    Retraction,
    Call,
    Ringing,
    Invitation,
    Correction,
    Encrypted,
    KeyTransport,
    Reaction,
    Body,
    File,
    Question,
    Subject,
    Receipt,
    Marker,
    PubSub,
    Bytestream,
    Attention,
    Typing,
    Other,
    Empty,
}

/// For chat and normal messages. A letter at its place stands for yes: s(tore) o(ffline) c(opy) w(ake) p(ush).
/// The reasons are the rows' names.
const TABLE: &[(Matter, &str, &str)] = &[
    // XEP-0280 and XEP-0313 results: made by a server, for one device, which waits for them.
    (Matter::Wrapped, "wrapped", "---w-"),
    (Matter::Retraction, "retraction", "socwp"),
    (Matter::Call, "call", "socwp"),
    // XEP-0353: worth nothing after the call.
    (Matter::Ringing, "ringing", "--cw-"),
    (Matter::Invitation, "invitation", "socwp"),
    // XEP-0308: the message that it corrects was pushed. What it says now is content, so it is not held back.
    (Matter::Correction, "correction", "socw-"),
    (Matter::Encrypted, "encrypted", "socwp"),
    (Matter::KeyTransport, "key-transport", "soc--"),
    (Matter::Reaction, "reaction", "soc--"),
    (Matter::Body, "body", "socwp"),
    (Matter::File, "file", "socwp"),
    // XEP-0070, XEP-0158: somebody waits for an answer.
    (Matter::Question, "question", "-o-wp"),
    (Matter::Subject, "subject", "socw-"),
    (Matter::Receipt, "receipt", "soc--"),
    (Matter::Marker, "marker", "soc--"),
    (Matter::PubSub, "pubsub", "-o---"),
    (Matter::Bytestream, "bytestream", "---w-"),
    (Matter::Attention, "attention", "--cwp"),
    // XEP-0160 s.3: SHOULD NOT be stored offline.
    (Matter::Typing, "chat-state", "--c--"),
    (Matter::Other, "unknown-payload", "-o---"),
    (Matter::Empty, "empty", "-----"),
];

/// What a message is for the one who receives it. Other stanzas are never stored, kept, copied or pushed, but wake
/// or not.
pub fn classify(stanza: &Stanza) -> Class {
    classify_as(stanza, Direction::Received)
}

/// What a message is for the one who sends it.
pub fn classify_sent(stanza: &Stanza) -> Class {
    classify_as(stanza, Direction::Sent)
}

/// What a message is, seen from one side.
pub fn classify_as(stanza: &Stanza, direction: Direction) -> Class {
    let kind = match stanza.head.kind {
        Kind::Message(kind) => kind,
        Kind::Presence(kind) => return presence(kind),
        Kind::Iq(_) => return Class::of("---w-", "iq"),
    };
    let marks = Marks::of(stanza);
    match kind {
        MessageType::Error => return error(stanza, direction),
        MessageType::Headline => {
            // RFC 6121 s.5.2.2: to whoever is there now.
            let mut class = Class::of("-----", "headline");
            if marks.matter == Matter::Attention || marks.matter == Matter::Question {
                class = Class::of("---wp", "headline");
            }
            return marks.overrule(class, kind);
        }
        MessageType::Groupchat => return groupchat(&marks),
        MessageType::Chat | MessageType::Normal => {}
    }
    let (_, reason, answers) = TABLE
        .iter()
        .find(|(matter, ..)| *matter == marks.matter)
        .expect("invariant: the table has a row for each matter; a test walks all");
    let mut class = Class::of(answers, reason);
    // XEP-0280 s.6.1: everything of type chat is eligible, whatever it contains.
    if kind == MessageType::Chat
        && !matches!(marks.matter, Matter::Wrapped | Matter::Bytestream)
        && !class.copy.yes
    {
        class.copy = Verdict { yes: true, reason: "chat" };
    }
    // XEP-0280 s.6.1, the last two rules: rooms replicate private messages to all devices that joined.
    let from_occupant = stanza.head.from.as_ref().is_some_and(|from| from.is_full());
    if marks.room && direction == Direction::Received && from_occupant && marks.matter != Matter::Invitation {
        class.copy = Verdict { yes: false, reason: "room-private-message" };
    }
    marks.overrule(class, kind)
}

fn presence(kind: PresenceType) -> Class {
    match kind {
        PresenceType::Subscribe
        | PresenceType::Subscribed
        | PresenceType::Unsubscribe
        | PresenceType::Unsubscribed => Class::of("---w-", "subscription"),
        PresenceType::Available | PresenceType::Unavailable | PresenceType::Probe | PresenceType::Error => {
            Class::of("-----", "presence")
        }
    }
}

fn error(stanza: &Stanza, direction: Direction) -> Class {
    let head = &stanza.head;
    let mut class = Class::of("---w-", "bounce");
    if direction == Direction::Sent {
        class.wake.yes = false;
        return class;
    }
    // An answer to a client, not to the account (as for a notification that the account had sent).
    class.store.yes = head.to.as_ref().is_some_and(|to| to.is_full());
    class.copy.yes = head.from.as_ref().is_some_and(|from| !from.is_full());
    class
}

/// RFC 6121 s.8.5: to a full address, never stored offline; the room has the archive.
fn groupchat(marks: &Marks) -> Class {
    match marks.matter {
        Matter::Body
        | Matter::Encrypted
        | Matter::File
        | Matter::Retraction
        | Matter::Call
        | Matter::Attention => Class::of("---wp", "groupchat"),
        Matter::Correction => Class::of("---w-", "groupchat-correction"),
        // XEP-0045 s.7.2.15: the last step of joining a room.
        Matter::Subject => Class::of("---w-", "groupchat-subject"),
        _ => Class::of("-----", "groupchat"),
    }
}

impl Class {
    fn of(answers: &str, reason: &'static str) -> Class {
        let verdict = |place: usize| Verdict {
            yes: answers.as_bytes().get(place).is_some_and(|it| *it != b'-'),
            reason,
        };
        Class { store: verdict(0), offline: verdict(1), copy: verdict(2), wake: verdict(3), push: verdict(4) }
    }
}

/// What is seen in one pass over the payload.
#[derive(Debug)]
struct Marks {
    matter: Matter,
    /// XEP-0045: `muc#user`, so it passed a room.
    room: bool,
    private: bool,
    no_copy: bool,
    no_store: bool,
    no_permanent_store: bool,
    store: bool,
}

impl Marks {
    fn of(stanza: &Stanza) -> Marks {
        let mut marks = Marks {
            matter: Matter::Empty,
            room: false,
            private: false,
            no_copy: false,
            no_store: false,
            no_permanent_store: false,
            store: false,
        };
        for child in stanza.children() {
            match (child.ns(), child.name()) {
                (ns::HINTS, "no-store") => marks.no_store = true,
                (ns::HINTS, "no-permanent-store") => marks.no_permanent_store = true,
                (ns::HINTS, "no-copy") => marks.no_copy = true,
                (ns::HINTS, "store") => marks.store = true,
                (ns::CARBONS, "private") => marks.private = true,
                (ns::MUC_USER, "x") => marks.room = true,
                _ => {}
            }
            if let Some(matter) = matter(child) {
                marks.matter = marks.matter.min(matter);
            }
        }
        marks
    }

    /// XEP-0334 and XEP-0280 s.9: what the sender asks for.
    fn overrule(&self, mut class: Class, kind: MessageType) -> Class {
        let verdict = |yes, reason| Verdict { yes, reason };
        if self.no_store {
            class.store = verdict(false, "no-store");
            class.offline = verdict(false, "no-store");
        } else if self.no_permanent_store {
            class.store = verdict(false, "no-permanent-store");
        } else if self.store && self.matter != Matter::Wrapped {
            class.store = verdict(true, "store-hint");
            // XEP-0160 s.3: a headline is not kept for later, but its archive copy will be there.
            if kind != MessageType::Headline {
                class.offline = verdict(true, "store-hint");
            }
        }
        if self.private {
            class.copy = verdict(false, "private");
        } else if self.no_copy {
            class.copy = verdict(false, "no-copy");
        }
        class
    }
}

/// What people wrote, unless it only stands in for what is encrypted.
pub fn plain_body(stanza: &Stanza) -> Option<Cow<'_, str>> {
    let encrypted = stanza.children().any(|child| {
        matches!(
            (child.ns(), child.name()),
            (ns::OMEMO | ns::OMEMO_LEGACY, "encrypted")
                | (ns::OPENPGP, "openpgp")
                | (ns::OPENPGP_LEGACY, "x")
                | (ns::EME, "encryption")
        )
    });
    stanza.body().filter(|_| !encrypted)
}

/// What one child says; `None` if it says nothing of its own.
fn matter(child: Node<'_>) -> Option<Matter> {
    Some(match (child.ns(), child.name()) {
        (ns::CLIENT, "body") => Matter::Body,
        (ns::CLIENT, "subject") => Matter::Subject,
        (ns::CLIENT, "thread") => return None,
        (ns::CARBONS, "sent" | "received") | (ns::MAM, "result") => Matter::Wrapped,
        (ns::CARBONS | ns::HINTS | ns::DELAY | ns::STANZA_ID | ns::NICK | ns::OCCUPANT_ID, _) => return None,
        (ns::CORRECT, "replace") => Matter::Correction,
        // XEP-0461: an answer is a message like others.
        (ns::FALLBACK | ns::REPLY | ns::CORRECT | ns::ADDRESS | ns::SHIM | ns::XHTML_IM, _) => return None,
        (ns::RETRACT, "retract") => Matter::Retraction,
        // XEP-0425: the room's order, around which older clients had XEP-0422.
        (ns::MODERATE, _) | (ns::FASTEN, "apply-to") => Matter::Retraction,
        (ns::JINGLE_MESSAGE, "ringing") => Matter::Ringing,
        (ns::JINGLE_MESSAGE, _) => Matter::Call,
        (ns::CONFERENCE, "x") => Matter::Invitation,
        // XEP-0045 s.7.8.2. Other contents of <x/> tell about the room.
        (ns::MUC_USER, "x") => {
            let invites =
                child.child(ns::MUC_USER, "invite").or_else(|| child.child(ns::MUC_USER, "decline"));
            return invites.map(|_| Matter::Invitation);
        }
        (ns::OMEMO | ns::OMEMO_LEGACY, "encrypted") if child.child(child.ns(), "payload").is_none() => {
            Matter::KeyTransport
        }
        (ns::OMEMO | ns::OMEMO_LEGACY, "encrypted") => Matter::Encrypted,
        (ns::OPENPGP, "openpgp") | (ns::OPENPGP_LEGACY, "x") => Matter::Encrypted,
        // XEP-0380 says how, not whether: with OMEMO beside it, that decides. Unknown methods count as content.
        (ns::EME, "encryption") => match child.attr("namespace").as_deref() {
            Some(ns::OMEMO | ns::OMEMO_LEGACY) => return None,
            _ => Matter::Encrypted,
        },
        (ns::REACTIONS, "reactions") => Matter::Reaction,
        (ns::FILE_SHARING, "file-sharing" | "sources") | (ns::OOB, "x") => Matter::File,
        (ns::HTTP_AUTH, "confirm") | (ns::CAPTCHA, "captcha") => Matter::Question,
        (ns::RECEIPTS, _) => Matter::Receipt,
        // XEP-0333 s.4.1: asks for a marker, and always stands beside something else.
        (ns::MARKERS, "markable") => return None,
        (ns::MARKERS, _) => Matter::Marker,
        (ns::PUBSUB_EVENT, "event") => Matter::PubSub,
        (ns::IBB, _) => Matter::Bytestream,
        (ns::ATTENTION, "attention") => Matter::Attention,
        (ns::CHAT_STATES, _) | (ns::MESSAGE_EVENTS, "x") => Matter::Typing,
        _ => Matter::Other,
    })
}

#[cfg(test)]
#[path = "classify_tests.rs"]
mod tests;
