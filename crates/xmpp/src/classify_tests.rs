use super::*;

const BODY: &str = "<body>Wherefore art thou?</body>";
const OMEMO: &str = "<encrypted xmlns='eu.siacs.conversations.axolotl'><header sid='1'/><payload>x</payload></encrypted>\
                     <encryption xmlns='urn:xmpp:eme:0' namespace='eu.siacs.conversations.axolotl'/>";
const OMEMO2: &str = "<encrypted xmlns='urn:xmpp:omemo:2'><header sid='1'/><payload>x</payload></encrypted>";
const OMEMO_KEY: &str = "<encrypted xmlns='eu.siacs.conversations.axolotl'><header sid='1'/></encrypted>\
                         <encryption xmlns='urn:xmpp:eme:0' namespace='eu.siacs.conversations.axolotl'/><store xmlns='urn:xmpp:hints'/>";
const OPENPGP: &str = "<openpgp xmlns='urn:xmpp:openpgp:0'>x</openpgp>";
const EME_ONLY: &str =
    "<encryption xmlns='urn:xmpp:eme:0' namespace='urn:example:mls'/><m xmlns='urn:example:mls'/>";
const OTR: &str =
    "<body>?OTR:AAIDAAAAAAEAAAAB</body><encryption xmlns='urn:xmpp:eme:0' namespace='urn:xmpp:otr:0'/>";
const RECEIPT: &str = "<received xmlns='urn:xmpp:receipts' id='1'/>";
const WANT_RECEIPT: &str = "<request xmlns='urn:xmpp:receipts'/>";
const DISPLAYED: &str = "<displayed xmlns='urn:xmpp:chat-markers:0' id='1'/>";
const MARKABLE: &str = "<markable xmlns='urn:xmpp:chat-markers:0'/>";
const COMPOSING: &str = "<composing xmlns='http://jabber.org/protocol/chatstates'/>";
const ACTIVE: &str = "<active xmlns='http://jabber.org/protocol/chatstates'/>";
const CORRECTION: &str = "<body>Wherefore?</body><replace xmlns='urn:xmpp:message-correct:0' id='1'/>";
const REPLACE: &str = "<replace xmlns='urn:xmpp:message-correct:0' id='1'/>";
const REPLY: &str = "<body>> Wherefore?\nTherefore.</body><reply xmlns='urn:xmpp:reply:0' to='a@b.example/c' id='1'/>\
                     <fallback xmlns='urn:xmpp:fallback:0' for='urn:xmpp:reply:0'><body start='0' end='13'/></fallback>";
const REACTION: &str =
    "<reactions xmlns='urn:xmpp:reactions:0' id='1'><reaction>\u{1F44B}</reaction></reactions>";
const RETRACT: &str = "<retract xmlns='urn:xmpp:message-retract:1' id='1'/>";
const RETRACT_FALLBACK: &str = "<retract xmlns='urn:xmpp:message-retract:1' id='1'/><body>/me retracted</body>\
                                <fallback xmlns='urn:xmpp:fallback:0' for='urn:xmpp:message-retract:1'/>";
const INVITE: &str = "<x xmlns='jabber:x:conference' jid='room@muc.example'/>";
const MEDIATED: &str = "<x xmlns='http://jabber.org/protocol/muc#user'><invite from='a@b.example'/></x>";
const DECLINE: &str = "<x xmlns='http://jabber.org/protocol/muc#user'><decline from='a@b.example'/></x>";
const ROOM: &str = "<x xmlns='http://jabber.org/protocol/muc#user'/>";
const ROOM_STATUS: &str = "<x xmlns='http://jabber.org/protocol/muc#user'><status code='104'/></x>";
const PROPOSE: &str = "<propose xmlns='urn:xmpp:jingle-message:0' id='1'/><store xmlns='urn:xmpp:hints'/>";
const RINGING: &str = "<ringing xmlns='urn:xmpp:jingle-message:0' id='1'/>";
const CALL_ENDED: &str = "<finish xmlns='urn:xmpp:jingle-message:0' id='1'/>";
const PEP: &str = "<event xmlns='http://jabber.org/protocol/pubsub#event'><items node='n'/></event>";
const SUBJECT: &str = "<subject>Verona</subject>";
const FILE: &str = "<x xmlns='jabber:x:oob'><url>https://up.example/f</url></x>";
const HTTP_AUTH: &str = "<confirm xmlns='http://jabber.org/protocol/http-auth' id='1'/>";
const IBB: &str = "<data xmlns='http://jabber.org/protocol/ibb' sid='1' seq='0'>AA==</data>";
const BUZZ: &str = "<attention xmlns='urn:xmpp:attention:0'/>";
const UNKNOWN: &str = "<mood xmlns='urn:example:mood'/>";
const CARBON: &str = "<sent xmlns='urn:xmpp:carbons:2'><forwarded xmlns='urn:xmpp:forward:0'/></sent>";
const MAM: &str = "<result xmlns='urn:xmpp:mam:2' id='1'><forwarded xmlns='urn:xmpp:forward:0'/></result>";
const NO_STORE: &str = "<no-store xmlns='urn:xmpp:hints'/>";
const NO_PERMANENT: &str = "<no-permanent-store xmlns='urn:xmpp:hints'/>";
const NO_COPY: &str = "<no-copy xmlns='urn:xmpp:hints'/>";
const STORE: &str = "<store xmlns='urn:xmpp:hints'/>";
const PRIVATE: &str = "<private xmlns='urn:xmpp:carbons:2'/>";
const ID: &str =
    "<origin-id xmlns='urn:xmpp:sid:0' id='1'/><stanza-id xmlns='urn:xmpp:sid:0' id='1' by='a@b.example'/>";
const ERROR: &str =
    "<error type='cancel'><service-unavailable xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></error>";
const NOTHING: &str = "";

const JULIET: &str = "juliet@capulet.example/balcony";
const JULIET_BARE: &str = "juliet@capulet.example";
const ROMEO: &str = "romeo@montague.example/orchard";
const OCCUPANT: &str = "room@muc.example/romeo";
const THE_ROOM: &str = "room@muc.example";
const SERVICE: &str = "pubsub.example";

/// `From`, type, payload; what Juliet's server does with it when she receives it:
/// s(tored in the archive), o(ffline: kept for her), c(arbon), w(akes an inactive client), p(ushed).
type Row = (&'static str, &'static str, &'static [&'static str], &'static str, &'static str);

#[rustfmt::skip]
const RECEIVED: &[Row] = &[
    // from        type         payload                    answers  reasons (of s o c w p where they differ)
    // ---- conversation
    (ROMEO,        "chat",      &[BODY],                   "socwp", "body"),
    (ROMEO,        "normal",    &[BODY],                   "socwp", "body"),
    (ROMEO,        "chat",      &[BODY, ACTIVE, ID],       "socwp", "body"),
    (ROMEO,        "chat",      &[BODY, WANT_RECEIPT, MARKABLE], "socwp", "body"),
    (ROMEO,        "chat",      &[CORRECTION],             "socw-", "correction"),
    (ROMEO,        "chat",      &[OMEMO, REPLACE, STORE],  "socw-", "store-hint store-hint correction correction correction"),
    (ROMEO,        "chat",      &[CORRECTION, RETRACT],    "socwp", "retraction"),
    (ROMEO,        "chat",      &[REPLY],                  "socwp", "body"),
    (ROMEO,        "normal",    &[SUBJECT],                "socw-", "subject"),
    (ROMEO,        "normal",    &[SUBJECT, BODY],          "socwp", "body"),
    (ROMEO,        "chat",      &[FILE],                   "socwp", "file"),
    (ROMEO,        "chat",      &[FILE, BODY],             "socwp", "body"),
    // ---- encrypted: content that the server can't see
    (ROMEO,        "chat",      &[OMEMO],                  "socwp", "encrypted"),
    (ROMEO,        "chat",      &[OMEMO, BODY, STORE],     "socwp", "store-hint store-hint encrypted encrypted encrypted"),
    (ROMEO,        "normal",    &[OMEMO2],                 "socwp", "encrypted"),
    (ROMEO,        "normal",    &[OPENPGP],                "socwp", "encrypted"),
    (ROMEO,        "chat",      &[OTR],                    "socwp", "encrypted"),
    (ROMEO,        "normal",    &[EME_ONLY],               "socwp", "encrypted"),
    (ROMEO,        "chat",      &[OMEMO_KEY],              "soc--", "store-hint store-hint key-transport key-transport key-transport"),
    // ---- about a conversation
    (ROMEO,        "chat",      &[RECEIPT],                "soc--", "receipt"),
    (ROMEO,        "normal",    &[RECEIPT],                "soc--", "receipt"),
    (ROMEO,        "chat",      &[DISPLAYED],              "soc--", "marker"),
    (ROMEO,        "chat",      &[DISPLAYED, RECEIPT],     "soc--", "receipt"),
    (ROMEO,        "chat",      &[COMPOSING],              "--c--", "chat-state"),
    (ROMEO,        "normal",    &[COMPOSING],              "--c--", "chat-state"),
    (ROMEO,        "chat",      &[COMPOSING, NO_STORE],    "--c--", "no-store no-store chat-state chat-state chat-state"),
    (ROMEO,        "chat",      &[REACTION],               "soc--", "reaction"),
    (ROMEO,        "chat",      &[REACTION, BODY],         "soc--", "reaction"),
    (ROMEO,        "chat",      &[RETRACT],                "socwp", "retraction"),
    (ROMEO,        "chat",      &[RETRACT_FALLBACK],       "socwp", "retraction"),
    // ---- invitations and calls
    (ROMEO,        "normal",    &[INVITE],                 "socwp", "invitation"),
    (THE_ROOM,     "normal",    &[MEDIATED],               "socwp", "invitation"),
    (THE_ROOM,     "normal",    &[MEDIATED, INVITE, BODY], "socwp", "invitation"),
    (THE_ROOM,     "normal",    &[DECLINE],                "socwp", "invitation"),
    (OCCUPANT,     "normal",    &[MEDIATED],               "socwp", "invitation"),
    (ROMEO,        "chat",      &[PROPOSE],                "socwp", "store-hint store-hint call call call"),
    (ROMEO,        "chat",      &[CALL_ENDED],             "socwp", "call"),
    (ROMEO,        "chat",      &[RINGING],                "--cw-", "ringing"),
    // ---- rooms
    (OCCUPANT,     "groupchat", &[BODY],                   "---wp", "groupchat"),
    (OCCUPANT,     "groupchat", &[OMEMO],                  "---wp", "groupchat"),
    (OCCUPANT,     "groupchat", &[BODY, STORE],            "---wp", "groupchat"),
    (OCCUPANT,     "groupchat", &[CORRECTION],             "---w-", "groupchat-correction"),
    (OCCUPANT,     "groupchat", &[REACTION],               "-----", "groupchat"),
    (OCCUPANT,     "groupchat", &[SUBJECT],                "---w-", "groupchat-subject"),
    (OCCUPANT,     "groupchat", &[COMPOSING],              "-----", "groupchat"),
    (OCCUPANT,     "groupchat", &[DISPLAYED],              "-----", "groupchat"),
    (THE_ROOM,     "groupchat", &[ROOM_STATUS],            "-----", "groupchat"),
    (OCCUPANT,     "chat",      &[BODY, ROOM],             "so-wp", "body body room-private-message body body"),
    (OCCUPANT,     "chat",      &[COMPOSING, ROOM],        "-----", "chat-state chat-state room-private-message chat-state chat-state"),
    (ROMEO,        "chat",      &[BODY, INVITE],           "socwp", "invitation"),
    // ---- services
    (SERVICE,      "headline",  &[PEP],                    "-----", "headline"),
    (SERVICE,      "normal",    &[PEP],                    "-o---", "pubsub"),
    (SERVICE,      "headline",  &[BODY],                   "-----", "headline"),
    (SERVICE,      "headline",  &[BODY, STORE],            "s----", "store-hint headline headline headline headline"),
    (SERVICE,      "normal",    &[HTTP_AUTH],              "-o-wp", "question"),
    (ROMEO,        "headline",  &[BUZZ],                   "---wp", "headline"),
    (ROMEO,        "normal",    &[IBB],                    "---w-", "bytestream"),
    // ---- hints
    (ROMEO,        "chat",      &[BODY, NO_STORE],         "--cwp", "no-store no-store body body body"),
    (ROMEO,        "chat",      &[BODY, NO_STORE, STORE],  "--cwp", "no-store no-store body body body"),
    (ROMEO,        "chat",      &[BODY, NO_PERMANENT],     "-ocwp", "no-permanent-store body body body body"),
    (ROMEO,        "chat",      &[BODY, NO_COPY],          "so-wp", "body body no-copy body body"),
    (ROMEO,        "chat",      &[BODY, PRIVATE, NO_COPY], "so-wp", "body body private body body"),
    (ROMEO,        "normal",    &[UNKNOWN, STORE],         "so---", "store-hint store-hint unknown-payload unknown-payload unknown-payload"),
    // ---- neither fish nor fowl
    (ROMEO,        "normal",    &[UNKNOWN],                "-o---", "unknown-payload"),
    (ROMEO,        "chat",      &[UNKNOWN],                "-oc--", "unknown-payload unknown-payload chat unknown-payload unknown-payload"),
    (ROMEO,        "normal",    &[NOTHING],                "-----", "empty"),
    (ROMEO,        "normal",    &[ID],                     "-----", "empty"),
    (ROMEO,        "chat",      &[NOTHING],                "--c--", "empty empty chat empty empty"),
    // ---- made by a server for one device
    (JULIET_BARE,  "chat",      &[CARBON],                 "---w-", "wrapped"),
    (JULIET_BARE,  "normal",    &[MAM],                    "---w-", "wrapped"),
    // ---- bounces: hints and payload are those of the message that bounced
    (JULIET_BARE,  "error",     &[BODY, ERROR],            "s-cw-", "bounce"),
    (ROMEO,        "error",     &[BODY, ERROR, NO_STORE],  "s--w-", "bounce"),
    (SERVICE,      "error",     &[ERROR],                  "s-cw-", "bounce"),
];

#[rustfmt::skip]
const SENT: &[Row] = &[
    // to          type         payload                    answers  reasons
    (ROMEO,        "chat",      &[BODY],                   "socwp", "body"),
    (ROMEO,        "chat",      &[DISPLAYED],              "soc--", "marker"),
    (OCCUPANT,     "chat",      &[BODY, ROOM],             "socwp", "body"),
    (OCCUPANT,     "chat",      &[BODY],                   "socwp", "body"),
    (THE_ROOM,     "groupchat", &[BODY],                   "---wp", "groupchat"),
    (THE_ROOM,     "normal",    &[MEDIATED],               "socwp", "invitation"),
    (ROMEO,        "chat",      &[BODY, PRIVATE, NO_COPY], "so-wp", "body body private body body"),
    (ROMEO,        "error",     &[BODY, ERROR],            "-----", "bounce"),
];

fn message(from: &str, to: &str, kind: &str, payload: &[&str]) -> Stanza {
    let xml = format!("<message from='{from}' to='{to}' type='{kind}'>{}</message>", payload.concat());
    Stanza::parse(xml.as_bytes()).unwrap()
}

fn check(class: Class, answers: &str, reasons: &str, row: &str) {
    let verdicts = [class.store, class.offline, class.copy, class.wake, class.push];
    let got: String =
        verdicts.iter().zip("socwp".chars()).map(|(v, c)| if v.yes { c } else { '-' }).collect();
    let mut why: Vec<&str> = verdicts.iter().map(|v| v.reason).collect();
    if why.iter().all(|reason| *reason == why[0]) {
        why.truncate(1);
    }
    assert_eq!((got.as_str(), why.join(" ").as_str()), (answers, reasons), "{row}");
}

#[test]
fn received() {
    for (from, kind, payload, answers, reasons) in RECEIVED {
        let class = classify(&message(from, JULIET, kind, payload));
        check(class, answers, reasons, &format!("{kind} from {from}: {payload:?}"));
    }
}

#[test]
fn sent() {
    for (to, kind, payload, answers, reasons) in SENT {
        let class = classify_sent(&message(JULIET, to, kind, payload));
        check(class, answers, reasons, &format!("{kind} to {to}: {payload:?}"));
    }
}

#[test]
fn errors_for_an_account_are_not_its_users() {
    // As for a notification that the account had sent.
    let class = classify(&message(ROMEO, JULIET_BARE, "error", &[PEP, ERROR]));
    check(class, "---w-", "bounce", "error to a bare address");
}

#[test]
fn other_stanzas() {
    for (xml, answers, reason) in [
        ("<presence from='a@b.example/c'/>", "-----", "presence"),
        ("<presence type='unavailable'/>", "-----", "presence"),
        ("<presence type='subscribe'/>", "---w-", "subscription"),
        ("<presence type='unsubscribed'/>", "---w-", "subscription"),
        ("<iq type='get' id='1'><ping xmlns='urn:xmpp:ping'/></iq>", "---w-", "iq"),
    ] {
        check(classify(&Stanza::parse(xml.as_bytes()).unwrap()), answers, reason, xml);
    }
}

#[test]
fn every_matter_has_its_row() {
    let mut next = Matter::Wrapped;
    for (matter, reason, answers) in TABLE {
        assert!(*matter >= next, "{reason} stands where it belongs");
        assert_eq!(answers.len(), 5, "{reason}");
        next = *matter;
    }
    assert_eq!(TABLE.len(), Matter::Empty as usize + 1);
}
