//! SASL (RFC 6120 s.6), the client's side of the conversation.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use trunkline_xml::Node;

use crate::stream::{Stream, unexpected};
use crate::{ClientError, Login};

const NS: &str = "urn:ietf:params:xml:ns:xmpp-sasl";

/// How to prove who one is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    /// RFC 5802.
    ScramSha1,
    /// RFC 4616: the password itself, for inside TLS only.
    Plain,
}

impl Mechanism {
    /// All that there are, best first.
    pub const ALL: [Mechanism; 1] = [Mechanism::Plain];

    /// The registered name.
    pub fn name(self) -> &'static str {
        match self {
            Mechanism::ScramSha1 => "SCRAM-SHA-1",
            Mechanism::Plain => "PLAIN",
        }
    }
}

/// Logs in on a stream whose `features` have come; the caller opens the next stream then.
pub(crate) async fn authenticate(
    stream: &mut Stream,
    features: Node<'_>,
    login: &Login,
) -> Result<(), ClientError> {
    let offered = features.child(NS, "mechanisms").ok_or(ClientError::NotOffered("a login"))?;
    let offers = |mechanism: &Mechanism| offered.children().any(|it| it.text().trim() == mechanism.name());
    let candidates =
        Mechanism::ALL.into_iter().filter(|it| login.mechanism.is_none_or(|wanted| wanted == *it));
    let mechanism =
        candidates.into_iter().find(offers).ok_or(ClientError::NotOffered("a mechanism for the login"))?;
    let first = match mechanism {
        Mechanism::ScramSha1 => return Err(ClientError::NotOffered("SCRAM")),
        Mechanism::Plain => format!("\0{}\0{}", login.user, login.password),
    };
    let auth = format!("<auth xmlns='{NS}' mechanism='{}'>{}</auth>", mechanism.name(), BASE64.encode(first));
    stream.send(auth.as_bytes()).await?;
    let answer = stream.next().await?;
    let root = answer.root();
    if root.is(NS, "success") {
        return Ok(());
    }
    Err(if root.is(NS, "failure") { refused(root) } else { unexpected("the end of the login", &answer) })
}

fn refused(failure: Node<'_>) -> ClientError {
    let condition =
        failure.children().find(|it| it.name() != "text").map_or("not-authorized", |it| it.name());
    let text = failure.child(NS, "text").map(|it| it.text().into_owned()).unwrap_or_default();
    ClientError::LoginRefused { condition: condition.to_owned(), text }
}
