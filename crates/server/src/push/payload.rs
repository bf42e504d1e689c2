//! What is published: by default only how many messages there are. A device that gave a key is told more, so that
//! nobody on the way can read it.

use aws_lc_rs::aead::{AES_128_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use trunkline_xml::Writer;
use trunkline_xmpp::classify::plain_body;
use trunkline_xmpp::forms::{Field, Form};
use trunkline_xmpp::jid::Jid;
use trunkline_xmpp::ns;
use trunkline_xmpp::stanza::{Kind, MessageType, Stanza};

use super::{Registration, Secret};
use crate::config::PushSummary;

/// Bytes of a device's key.
pub const KEY: usize = 16;
/// Bytes of what is encrypted, if the device did not say less: what the services of phone makers take.
const MOST: usize = 3072;
/// Characters of a body in the open summary.
const MOST_BODY: usize = 256;
/// Bytes of a call's id: a longer one is left away.
const MOST_SID: usize = 256;

/// What a device is woken for. Several messages become one notice while a push is under way.
#[derive(Clone, Debug)]
pub struct Notice {
    count: u32,
    /// Somebody waits for an answer now (XEP-0353).
    pub(super) call: bool,
    /// The newest message; `None`: it is not at hand.
    newest: Option<Newest>,
}

/// What may be told of a message. No more of it is kept: it may wait for long.
#[derive(Clone, Debug)]
struct Newest {
    /// In a room the resource says who it is; else the bare address.
    sender: Option<Jid>,
    room: bool,
    /// As much as can be told.
    body: Option<String>,
    /// The id of a call, or an empty one; `None`: it is no call.
    call: Option<String>,
}

impl Newest {
    fn of(stanza: &Stanza) -> Newest {
        let room = matches!(stanza.head.kind, Kind::Message(MessageType::Groupchat));
        let call = stanza.child(ns::JINGLE_MESSAGE, "propose").map(|propose| {
            let sid = propose.attr("id").filter(|sid| sid.len() <= MOST_SID);
            sid.map(|sid| sid.into_owned()).unwrap_or_default()
        });
        let sender = stanza.head.from.as_ref();
        let body = plain_body(stanza).map(|body| upto(&body, MOST).to_owned());
        Newest { sender: sender.map(|from| if room { from.clone() } else { from.bare() }), room, body, call }
    }
}

/// As much of a text as has so many bytes.
fn upto(text: &str, bytes: usize) -> &str {
    let end = (0..=bytes.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
    &text[..end.unwrap_or(0)]
}

impl Notice {
    /// One message.
    pub(crate) fn of(stanza: &Stanza) -> Notice {
        let newest = Newest::of(stanza);
        Notice { count: 1, call: newest.call.is_some(), newest: Some(newest) }
    }

    /// One message that is not at hand.
    pub(crate) fn unknown() -> Notice {
        Notice { count: 1, call: false, newest: None }
    }

    /// Another one came.
    pub(super) fn and(self, newer: Notice) -> Notice {
        Notice {
            count: self.count.saturating_add(newer.count),
            call: self.call || newer.call,
            newest: newer.newest.or(self.newest),
        }
    }

    fn sender(&self) -> Option<&Jid> {
        self.newest.as_ref()?.sender.as_ref()
    }

    fn body(&self) -> Option<&str> {
        self.newest.as_ref()?.body.as_deref()
    }
}

/// The whole `<pubsub/>` element (s.7).
pub(super) fn publication(registration: &Registration, notice: &Notice, open: &[PushSummary]) -> Vec<u8> {
    let mut w = Writer::new();
    w.open("pubsub").attr("xmlns", ns::PUBSUB);
    w.open("publish");
    if !registration.node.is_empty() {
        w.attr("node", &registration.node);
    }
    w.open("item").open("notification").attr("xmlns", ns::PUSH);
    match &registration.secret {
        Some(secret) => encrypted(&mut w, secret, notice),
        None => summary(&mut w, notice, open),
    }
    w.close().close().close();
    if let Some(options) = &registration.options {
        w.open("publish-options").raw(options).close();
    }
    w.close();
    w.finish()
}

/// `urn:xmpp:push:summary`, as far as the operator lets it out.
fn summary(w: &mut Writer, notice: &Notice, open: &[PushSummary]) {
    let mut form = Form::result(ns::PUSH_SUMMARY);
    if open.contains(&PushSummary::Count) {
        form = form.field(Field::text_single("message-count").value(&notice.count.to_string()));
    }
    if let Some(sender) = notice.sender().filter(|_| open.contains(&PushSummary::Sender)) {
        form = form.field(Field::jid_single("last-message-sender").value(sender.as_str()));
    }
    if let Some(body) = notice.body().filter(|_| open.contains(&PushSummary::Body)) {
        let body: String = body.chars().take(MOST_BODY).collect();
        form = form.field(Field::text_single("last-message-body").value(&body));
    }
    if !open.is_empty() {
        form.write(w);
    }
}

/// "Encrypted Push Notifications", an extension of XEP-0357 that clients use: a JSON object, AES-128-GCM with the tag
/// behind it.
fn encrypted(w: &mut Writer, secret: &Secret, notice: &Notice) {
    let most = usize::try_from(secret.most).ok().filter(|most| *most > 0).map_or(MOST, |most| most.min(MOST));
    let Some((iv, sealed)) = seal(&secret.key, plain(notice, most)) else { return };
    w.open("encrypted").attr("xmlns", ns::PUSH_ENCRYPT).attr("iv", &STANDARD.encode(iv));
    w.text(&STANDARD.encode(sealed)).close();
}

/// At most so many bytes, as far as leaving the text away can make it so.
fn plain(notice: &Notice, most: usize) -> Vec<u8> {
    let room = notice.newest.as_ref().is_some_and(|newest| newest.room);
    let mut object = serde_json::Map::new();
    object.insert("unread".into(), notice.count.into());
    if let Some(sender) = notice.sender() {
        object.insert("sender".into(), sender.bare_str().into());
        if let Some(nick) = sender.resource().filter(|_| room) {
            object.insert("nickname".into(), nick.into());
        }
    }
    let call = notice.newest.as_ref().and_then(|newest| newest.call.as_deref());
    let kind = match (call, room) {
        (Some(_), _) => "call",
        (None, true) => "groupchat",
        (None, false) => "chat",
    };
    object.insert("type".into(), kind.into());
    if let Some(sid) = call.filter(|sid| !sid.is_empty()) {
        object.insert("sid".into(), sid.into());
    }
    let written = |object: &serde_json::Map<String, serde_json::Value>| {
        serde_json::to_vec(object).expect("invariant: text and numbers can be written")
    };
    let mut text = notice.body();
    while let Some(body) = text {
        object.insert("message".into(), body.into());
        let bytes = written(&object);
        if bytes.len() <= most {
            return bytes;
        }
        // What is too much, and at least one character: signs may be longer in JSON.
        let keep = body.len().saturating_sub((bytes.len() - most).min(body.len() / 2).max(1));
        text = Some(upto(body, keep)).filter(|body| !body.is_empty());
        object.remove("message");
    }
    written(&object)
}

fn seal(key: &[u8; KEY], mut bytes: Vec<u8>) -> Option<([u8; NONCE_LEN], Vec<u8>)> {
    let mut iv = [0; NONCE_LEN];
    getrandom::fill(&mut iv).ok()?;
    let key = LessSafeKey::new(UnboundKey::new(&AES_128_GCM, key).ok()?);
    key.seal_in_place_append_tag(Nonce::assume_unique_for_key(iv), Aad::empty(), &mut bytes).ok()?;
    Some((iv, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notice(xml: &str) -> Notice {
        Notice::of(&Stanza::parse(xml.as_bytes()).unwrap())
    }

    const HELLO: &str = "<message from='romeo@north.example/orchard' type='chat'><body>\u{201c}Hello\u{201d} there</body></message>";
    const OMEMO: &str = "<message from='romeo@north.example/orchard' type='chat'><body>I sent you an OMEMO message</body>\
         <encrypted xmlns='eu.siacs.conversations.axolotl'><payload>x</payload></encrypted></message>";

    fn registration(secret: Option<Secret>) -> Registration {
        Registration {
            id: 1,
            service: Jid::parse("push.example").unwrap(),
            node: "n<1>".into(),
            device: 0,
            resource: "r".into(),
            options: None,
            secret,
            failures: 0,
            disabled_at: None,
        }
    }

    fn text(registration: &Registration, notice: &Notice, open: &[PushSummary]) -> String {
        String::from_utf8(publication(registration, notice, open)).unwrap()
    }

    #[test]
    fn a_summary_says_what_the_operator_lets_out() {
        let all = [PushSummary::Count, PushSummary::Sender, PushSummary::Body];
        let hello = text(&registration(None), &notice(HELLO), &all[..1]);
        assert!(hello.contains("node='n&lt;1&gt;'") && hello.contains("<value>1</value>"), "{hello}");
        assert!(!hello.contains("romeo") && !hello.contains("Hello"), "{hello}");
        let hello = text(&registration(None), &notice(HELLO), &all);
        assert!(hello.contains("romeo@north.example<") && hello.contains("Hello"), "{hello}");
        let nothing = text(&registration(None), &notice(HELLO), &[]);
        assert!(nothing.contains("<notification xmlns='urn:xmpp:push:0'/>"), "{nothing}");
        let secret = text(&registration(None), &notice(OMEMO), &all);
        assert!(secret.contains("romeo") && !secret.contains("OMEMO"), "{secret}");
        let two = text(&registration(None), &notice(OMEMO).and(notice(HELLO)), &all);
        assert!(two.contains("<value>2</value>") && two.contains("Hello"), "{two}");
    }

    #[test]
    fn what_is_encrypted_is_read_with_the_key_only() {
        let key = [7; KEY];
        let published =
            text(&registration(Some(Secret { key, most: 0 })), &notice(HELLO), &[PushSummary::Body]);
        assert!(!published.contains("romeo") && !published.contains(ns::PUSH_SUMMARY), "{published}");
        let between = |start: &str, end: char| {
            let rest = published.split_once(start).unwrap().1;
            STANDARD.decode(rest.split_once(end).unwrap().0).unwrap()
        };
        let iv: [u8; NONCE_LEN] = between("iv='", '\'').try_into().unwrap();
        let rest = published.split_once("iv='").unwrap().1.split_once('>').unwrap().1;
        let mut sealed = STANDARD.decode(rest.split_once('<').unwrap().0).unwrap();
        let key = LessSafeKey::new(UnboundKey::new(&AES_128_GCM, &key).unwrap());
        let opened = key.open_in_place(Nonce::assume_unique_for_key(iv), Aad::empty(), &mut sealed).unwrap();
        let said: serde_json::Value = serde_json::from_slice(opened).unwrap();
        assert_eq!(said["sender"], "romeo@north.example");
        assert_eq!(said["message"], "\u{201c}Hello\u{201d} there");
        assert_eq!((said["type"].as_str(), said["unread"].as_u64()), (Some("chat"), Some(1)));
    }

    #[test]
    fn what_waits_is_small() {
        let long = HELLO.replace("there", &"\u{20ac}".repeat(40_000));
        let notice = notice(&long);
        let body = notice.body().unwrap();
        assert!(body.len() <= MOST && body.len() > MOST - 4 && body.starts_with("\u{201c}Hello"));
        let call =
            "<message from='a@b.example/c'><propose xmlns='urn:xmpp:jingle-message:0' id='ID'/></message>";
        let call = Notice::of(&Stanza::parse(call.replace("ID", &"i".repeat(5000)).as_bytes()).unwrap());
        assert!(call.call && call.newest.unwrap().call.is_some_and(|sid| sid.is_empty()));
    }

    #[test]
    fn a_payload_fits() {
        let long = HELLO.replace("there", &"\u{e4}\u{1}".replace('\u{1}', "&quot;").repeat(4000));
        for most in [60, 61, 100, 101, 1000, MOST] {
            let bytes = plain(&notice(&long), most);
            assert!(bytes.len() <= most.max(80), "{most}: {}", bytes.len());
            let said: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
            if most >= 1000 {
                assert!(said["message"].as_str().unwrap().starts_with("\u{201c}Hello"));
                assert!(bytes.len() > most / 3, "it is not cut more than it has to be: {}", bytes.len());
            }
        }
        let call =
            "<message from='a@b.example/c'><propose xmlns='urn:xmpp:jingle-message:0' id='s1'/></message>";
        let said: serde_json::Value = serde_json::from_slice(&plain(&notice(call), MOST)).unwrap();
        assert_eq!((said["type"].as_str(), said["sid"].as_str()), (Some("call"), Some("s1")));
        let room = "<message from='room@muc.example/romeo' type='groupchat'><body>x</body></message>";
        let said: serde_json::Value = serde_json::from_slice(&plain(&notice(room), MOST)).unwrap();
        assert_eq!((said["type"].as_str(), said["nickname"].as_str()), (Some("groupchat"), Some("romeo")));
        assert_eq!(said["sender"], "room@muc.example");
    }
}
