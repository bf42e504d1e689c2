//! XEP-0220 Server Dialback 1.1.1 with the keys of XEP-0185: the elements and the arithmetic, no I/O.
//!
//! Three roles meet here. The *initiating* server sends `<db:result>` with a key; the *receiving* server
//! asks the domain's *authoritative* server with `<db:verify>` whether the key is its own.

use aws_lc_rs::{constant_time, digest, hmac};
use trunkline_xml::{Node, Writer};
use trunkline_xmpp::error::Condition;
use trunkline_xmpp::jid::Jid;
use trunkline_xmpp::ns;

/// Longer keys are nobody's: XEP-0185 keys have 64 characters, some servers use up to twice that.
const LONGEST_KEY: usize = 512;

/// The key that proves to `receiving`, on the stream `id` that it gave out, that we are `originating`.
///
/// The secret is the domain's own and is in the store: a key that was sent before a restart is still ours
/// after it, and every node of a domain computes the same.
pub(super) fn key(secret: &[u8; 32], receiving: &Jid, originating: &Jid, id: &str) -> String {
    // XEP-0185 s.3: HMAC-SHA256(SHA256(secret), "receiving originating id"). The label keeps this use of the
    // host's secret apart from its other uses.
    let purpose = digest::digest(&digest::SHA256, &[b"dialback:".as_slice(), secret].concat());
    let key = hmac::Key::new(hmac::HMAC_SHA256, hex(purpose.as_ref()).as_bytes());
    let text = format!("{} {} {id}", receiving.as_str(), originating.as_str());
    hex(hmac::sign(&key, text.as_bytes()).as_ref())
}

/// Whether `claimed` is `expected`; takes the same time for every wrong key.
pub(super) fn is_key(expected: &str, claimed: &str) -> bool {
    constant_time::verify_slices_are_equal(expected.as_bytes(), claimed.as_bytes()).is_ok()
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut out, byte| {
        let _ = write!(out, "{byte:02x}");
        out
    })
}

/// A dialback element as the peer sent it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Dialback {
    pub(super) kind: Kind,
    pub(super) from: Jid,
    pub(super) to: Jid,
    pub(super) say: Say,
}

/// Which of the two elements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Between the initiating and the receiving server.
    Result,
    /// Between the receiving and the authoritative server, about the stream with this id.
    Verify(String),
}

/// What it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Say {
    /// A request: here is a key.
    Key(String),
    /// An answer.
    Outcome(Outcome),
}

/// The answer to a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It is genuine.
    Valid,
    /// It is not.
    Invalid,
    /// It could not be decided (s.2.6).
    Error(Option<Condition>),
}

/// Why a dialback element can't be understood. The peer's fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Malformed {
    #[error("neither db:result nor db:verify")]
    Name,
    #[error("from or to is missing or no domain")]
    Addressing,
    #[error("a db:verify without id")]
    Id,
    #[error("a type that is none of valid, invalid, error")]
    Type,
    #[error("the key is empty or far too long")]
    Key,
}

impl Malformed {
    pub(super) fn label(self) -> &'static str {
        match self {
            Malformed::Name => "dialback-unknown-element",
            Malformed::Addressing => "dialback-addressing",
            Malformed::Id => "dialback-without-id",
            Malformed::Type => "dialback-unknown-type",
            Malformed::Key => "dialback-bad-key",
        }
    }
}

impl Dialback {
    pub(super) fn parse(node: Node<'_>) -> Result<Dialback, Malformed> {
        let domain = |name| {
            let text = node.attr(name).ok_or(Malformed::Addressing)?;
            Jid::parse(&text).ok().filter(Jid::is_domain).ok_or(Malformed::Addressing)
        };
        let (from, to) = (domain("from")?, domain("to")?);
        let kind = match node.name() {
            "result" => Kind::Result,
            "verify" => {
                let id = node.attr("id").filter(|id| !id.is_empty() && id.len() <= LONGEST_KEY);
                Kind::Verify(id.ok_or(Malformed::Id)?.into_owned())
            }
            _ => return Err(Malformed::Name),
        };
        let say = match node.attr("type").as_deref() {
            None => {
                let key = node.text();
                let key = key.trim();
                if key.is_empty() || key.len() > LONGEST_KEY {
                    return Err(Malformed::Key);
                }
                Say::Key(key.to_owned())
            }
            Some("valid") => Say::Outcome(Outcome::Valid),
            Some("invalid") => Say::Outcome(Outcome::Invalid),
            Some("error") => Say::Outcome(Outcome::Error(condition(node))),
            Some(_) => return Err(Malformed::Type),
        };
        Ok(Dialback { kind, from, to, say })
    }

    /// The answer that goes back where this came from.
    pub(super) fn answer(&self, outcome: Outcome) -> Dialback {
        Dialback {
            kind: self.kind.clone(),
            from: self.to.clone(),
            to: self.from.clone(),
            say: Say::Outcome(outcome),
        }
    }

    /// For a stream that declares the prefix `db`, as all of ours do.
    pub(super) fn write(&self) -> Vec<u8> {
        let mut w = Writer::new();
        w.open(match self.kind {
            Kind::Result => "db:result",
            Kind::Verify(_) => "db:verify",
        });
        w.attr("from", self.from.as_str()).attr("to", self.to.as_str());
        if let Kind::Verify(id) = &self.kind {
            w.attr("id", id);
        }
        match &self.say {
            Say::Key(key) => {
                w.text(key);
            }
            Say::Outcome(Outcome::Valid) => {
                w.attr("type", "valid");
            }
            Say::Outcome(Outcome::Invalid) => {
                w.attr("type", "invalid");
            }
            Say::Outcome(Outcome::Error(condition)) => {
                let condition = condition.unwrap_or(Condition::UndefinedCondition);
                w.attr("type", "error").open("error").attr("type", "cancel");
                w.open(condition.as_str()).attr("xmlns", ns::STANZA_ERRORS).close();
                w.close();
            }
        }
        w.close();
        w.finish()
    }
}

/// The condition inside `<error/>`, as far as it is one that s.2.6 lists.
fn condition(node: Node<'_>) -> Option<Condition> {
    let error = node.children().find(|child| child.name() == "error")?;
    let name = error.children().find(|child| child.ns() == ns::STANZA_ERRORS)?.name();
    [
        Condition::ItemNotFound,
        Condition::RemoteServerNotFound,
        Condition::RemoteServerTimeout,
        Condition::PolicyViolation,
        Condition::NotAuthorized,
        Condition::Forbidden,
        Condition::NotAcceptable,
        Condition::ResourceConstraint,
        Condition::InternalServerError,
    ]
    .into_iter()
    .find(|condition| condition.as_str() == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use trunkline_xml::Element;

    fn jid(text: &str) -> Jid {
        Jid::parse(text).unwrap()
    }

    fn parse(inner: &str) -> Result<Dialback, Malformed> {
        let xml = format!("<x xmlns:db='{}'>{inner}</x>", ns::DIALBACK);
        let element = Element::parse(xml.into_bytes(), ns::SERVER).unwrap();
        Dialback::parse(element.root().first_child().unwrap())
    }

    #[test]
    fn a_key_is_bound_to_both_domains_and_the_stream() {
        let (a, b) = (jid("a.example"), jid("b.example"));
        let genuine = key(&[7; 32], &a, &b, "s1");
        assert_eq!(genuine.len(), 64);
        assert_eq!(genuine, key(&[7; 32], &a, &b, "s1"));
        for other in [
            key(&[8; 32], &a, &b, "s1"),
            key(&[7; 32], &b, &a, "s1"),
            key(&[7; 32], &a, &b, "s2"),
            key(&[7; 32], &a, &a, "s1"),
        ] {
            assert!(!is_key(&genuine, &other));
        }
        assert!(is_key(&genuine, &genuine));
        assert!(!is_key(&genuine, ""));
    }

    #[test]
    fn every_element_comes_back_as_it_was_written() {
        let kinds = [Kind::Result, Kind::Verify("id'&".into())];
        let says = [
            Say::Key("abc".into()),
            Say::Outcome(Outcome::Valid),
            Say::Outcome(Outcome::Invalid),
            Say::Outcome(Outcome::Error(Some(Condition::RemoteServerNotFound))),
        ];
        for kind in kinds {
            for say in &says {
                let sent = Dialback {
                    kind: kind.clone(),
                    from: jid("a.example"),
                    to: jid("b.example"),
                    say: say.clone(),
                };
                assert_eq!(parse(&String::from_utf8(sent.write()).unwrap()), Ok(sent));
            }
        }
    }

    #[test]
    fn malformed_elements_have_names() {
        let cases = [
            ("<db:other from='a' to='b'/>", Malformed::Name),
            ("<db:result to='b'>k</db:result>", Malformed::Addressing),
            ("<db:result from='u@a' to='b'>k</db:result>", Malformed::Addressing),
            ("<db:result from='a' to='b/r'>k</db:result>", Malformed::Addressing),
            ("<db:verify from='a' to='b'>k</db:verify>", Malformed::Id),
            ("<db:result from='a' to='b' type='maybe'/>", Malformed::Type),
            ("<db:result from='a' to='b'> </db:result>", Malformed::Key),
        ];
        for (xml, why) in cases {
            assert_eq!(parse(xml), Err(why), "{xml}");
        }
    }
}
