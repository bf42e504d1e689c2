//! SASL (RFC 6120 s.6), the client's side of the conversation.

use trunkline_xml::{Element, Node};
use trunkline_xmpp::sasl::Hash;
use trunkline_xmpp::sasl::client::{Binding, Scram, plain};

use crate::stream::{Stream, unexpected};
use crate::{ClientError, Login};

const NS: &str = "urn:ietf:params:xml:ns:xmpp-sasl";

pub(crate) const BINDINGS: &str = "urn:xmpp:sasl-cb:0";
pub(crate) const EXPORTER: &str = "tls-exporter";

/// How to prove who one is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    /// RFC 5802 with SHA-512, bound to the TLS connection.
    ScramSha512Plus,
    /// RFC 7677, bound to the TLS connection.
    ScramSha256Plus,
    /// RFC 5802, bound to the TLS connection.
    ScramSha1Plus,
    /// RFC 5802 with SHA-512.
    ScramSha512,
    /// RFC 7677.
    ScramSha256,
    /// RFC 5802.
    ScramSha1,
    /// RFC 4616: the password itself, for inside TLS only.
    Plain,
}

impl Mechanism {
    /// All that there are, best first.
    pub const ALL: [Mechanism; 7] = [
        Mechanism::ScramSha512Plus,
        Mechanism::ScramSha256Plus,
        Mechanism::ScramSha1Plus,
        Mechanism::ScramSha512,
        Mechanism::ScramSha256,
        Mechanism::ScramSha1,
        Mechanism::Plain,
    ];

    /// The registered name.
    pub fn name(self) -> &'static str {
        match self {
            Mechanism::ScramSha512Plus => "SCRAM-SHA-512-PLUS",
            Mechanism::ScramSha256Plus => "SCRAM-SHA-256-PLUS",
            Mechanism::ScramSha1Plus => "SCRAM-SHA-1-PLUS",
            Mechanism::ScramSha512 => "SCRAM-SHA-512",
            Mechanism::ScramSha256 => "SCRAM-SHA-256",
            Mechanism::ScramSha1 => "SCRAM-SHA-1",
            Mechanism::Plain => "PLAIN",
        }
    }

    /// For SCRAM: the hash function.
    pub(crate) fn hash(self) -> Option<Hash> {
        match self {
            Mechanism::ScramSha512Plus | Mechanism::ScramSha512 => Some(Hash::Sha512),
            Mechanism::ScramSha256Plus | Mechanism::ScramSha256 => Some(Hash::Sha256),
            Mechanism::ScramSha1Plus | Mechanism::ScramSha1 => Some(Hash::Sha1),
            Mechanism::Plain => None,
        }
    }

    pub(crate) fn is_bound(self) -> bool {
        self.name().ends_with("-PLUS")
    }
}

/// Logs in on a stream whose `features` have come; the caller opens the next stream then.
pub(crate) async fn authenticate(
    stream: &mut Stream,
    features: Node<'_>,
    login: &Login,
) -> Result<(), ClientError> {
    let offered = features.child(NS, "mechanisms").ok_or(ClientError::NotOffered("a login"))?;
    let offers = |it: Mechanism| offered.children().any(|name| name.text().trim() == it.name());
    let exporter = stream.exporter().filter(|_| announces_exporter(features));
    let mechanism = Mechanism::ALL
        .into_iter()
        .filter(|it| login.mechanism.is_none_or(|wanted| wanted == *it))
        .find(|it| offers(*it) && (exporter.is_some() || !it.is_bound()))
        .ok_or(ClientError::NotOffered("a mechanism for the login"))?;
    let Some(hash) = mechanism.hash() else {
        begin(stream, mechanism, &plain(&login.user, &login.password)).await?;
        return success(&stream.next().await?).map(|_| ());
    };
    let any_bound = Mechanism::ALL.into_iter().any(|it| it.is_bound() && offers(it));
    let binding = match exporter {
        Some(data) if mechanism.is_bound() => Binding::Bound { name: EXPORTER.to_owned(), data },
        // RFC 5802 s.6: with this a server that did offer it notices that somebody took the offer away.
        Some(_) if !any_bound => Binding::NotOffered,
        _ => Binding::Unsupported,
    };
    let failed = |error: trunkline_xmpp::sasl::client::ClientError| ClientError::Login(error.to_string());
    let mut scram = Scram::new(hash, &login.user, &login.password, binding).map_err(failed)?;
    begin(stream, mechanism, &scram.initial()).await?;
    let answer = stream.next().await?;
    if !answer.root().is(NS, "challenge") {
        return Err(refusal(&answer, "a challenge"));
    }
    let response = scram.respond(answer.root().text().trim()).map_err(failed)?;
    stream.send(format!("<response xmlns='{NS}'>{response}</response>").as_bytes()).await?;
    let proof = success(&stream.next().await?)?;
    scram.verify(proof.trim()).map_err(failed)
}

/// XEP-0440: some servers offer `-PLUS` with binding types of TLS 1.2 only, so one that does not say is not asked.
fn announces_exporter(features: Node<'_>) -> bool {
    let types = features.child(BINDINGS, "sasl-channel-binding");
    types.is_some_and(|it| it.children().any(|binding| binding.attr("type").as_deref() == Some(EXPORTER)))
}

async fn begin(stream: &mut Stream, mechanism: Mechanism, initial: &str) -> Result<(), ClientError> {
    let auth = format!("<auth xmlns='{NS}' mechanism='{}'>{initial}</auth>", mechanism.name());
    stream.send(auth.as_bytes()).await
}

/// The data that came with success.
fn success(answer: &Element) -> Result<String, ClientError> {
    if answer.root().is(NS, "success") {
        return Ok(answer.root().text().into_owned());
    }
    Err(refusal(answer, "the end of the login"))
}

fn refusal(answer: &Element, expected: &'static str) -> ClientError {
    let root = answer.root();
    if !root.is(NS, "failure") {
        return unexpected(expected, answer);
    }
    let condition = root.children().find(|it| it.name() != "text").map_or("not-authorized", |it| it.name());
    let text = root.child(NS, "text").map(|it| it.text().into_owned()).unwrap_or_default();
    ClientError::LoginRefused { condition: condition.to_owned(), text }
}
