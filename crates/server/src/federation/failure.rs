//! Why a peer can't be reached, in words for the operator and the sender, and with a name for the counters.

use trunkline_xmpp::error::{Condition, StanzaError, StreamCondition};

use crate::net::Verdict;

/// Why an attempt to reach a peer failed, or a stream to it ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Failure {
    #[error("{0}")]
    NotFound(String),
    #[error("{0}")]
    Unreachable(String),
    #[error("no answer within {0} s")]
    Timeout(u64),
    #[error("the connection was lost: {0}")]
    Lost(String),
    #[error("the peer closed the stream")]
    Closed,
    #[error("the peer ended the stream: {condition}{}", words(.text.as_deref()))]
    Peer { condition: StreamCondition, text: Option<String> },
    #[error("the peer does not offer TLS")]
    NoTls,
    #[error("{0}")]
    Handshake(String),
    #[error("{0}, and dialback is not allowed")]
    Untrusted(Verdict),
    #[error("the peer offers neither EXTERNAL nor dialback{}", refused(.external.as_deref()))]
    NoProof { external: Option<String> },
    #[error("the peer does not take our certificate{}, and dialback is not allowed", refused(.external.as_deref()))]
    NoExternal { external: Option<String> },
    #[error("dialback failed: {0}")]
    Dialback(String),
    #[error("the peer speaks no XMPP that we understand: {0}")]
    Protocol(String),
    #[error("this server does not talk to that provider{}", because(.0))]
    Policy(String),
    #[error("this server is cut off from that provider for the time being{}", because(.0))]
    CutOff(String),
    #[error("this server is shutting down")]
    Shutdown,
    #[error("a bug in this server ended the stream")]
    Internal,
}

fn because(reason: &str) -> String {
    if reason.is_empty() { String::new() } else { format!(": {reason}") }
}

fn words(text: Option<&str>) -> String {
    text.map(|text| format!(" ({text})")).unwrap_or_default()
}

fn refused(condition: Option<&str>) -> String {
    condition.map(|condition| format!(" (EXTERNAL: {condition})")).unwrap_or_default()
}

impl Failure {
    /// The name of the counter.
    pub(super) fn label(&self) -> &'static str {
        match self {
            Failure::NotFound(_) => "peer-not-found",
            Failure::Unreachable(_) => "peer-unreachable",
            Failure::Timeout(_) => "peer-timeout",
            Failure::Lost(_) => "peer-lost",
            Failure::Closed => "peer-closed",
            Failure::Peer { .. } => "peer-stream-error",
            Failure::NoTls => "peer-without-tls",
            Failure::Handshake(_) => "peer-tls-handshake",
            Failure::Untrusted(verdict) => certificate_label(verdict),
            Failure::NoProof { .. } => "peer-without-proof",
            Failure::NoExternal { .. } => "peer-refused-our-certificate",
            Failure::Dialback(_) => "dialback-failed",
            Failure::Protocol(_) => "peer-protocol",
            Failure::Policy(_) => "policy",
            Failure::CutOff(_) => "cut-off",
            Failure::Shutdown => "shutdown",
            Failure::Internal => "internal",
        }
    }

    /// Trying again would end the same way until somebody changes something: senders are told at once, and what
    /// they sent doesn't wait for days.
    pub(super) fn is_final(&self) -> bool {
        matches!(
            self,
            Failure::NotFound(_)
                | Failure::NoTls
                | Failure::Untrusted(_)
                | Failure::NoProof { .. }
                | Failure::NoExternal { .. }
                | Failure::Policy(_)
        )
    }

    /// RFC 6120 s.8.3.3.16 and s.8.3.3.17: what a sender is told.
    pub(super) fn stanza_error(&self) -> StanzaError {
        let condition = match self {
            Failure::NotFound(_) => Condition::RemoteServerNotFound,
            Failure::Policy(_) | Failure::CutOff(_) => Condition::PolicyViolation,
            Failure::Internal => Condition::InternalServerError,
            _ => Condition::RemoteServerTimeout,
        };
        StanzaError::new(condition).text(self.to_string())
    }

    /// XEP-0220 s.2.6: what the initiating server is told when we could not ask its domain.
    pub(super) fn dialback_condition(&self) -> Condition {
        match self {
            Failure::NotFound(_) => Condition::RemoteServerNotFound,
            Failure::Policy(_) | Failure::CutOff(_) => Condition::PolicyViolation,
            Failure::Untrusted(_) => Condition::NotAuthorized,
            // remote-connection-failed is a stream condition in RFC 6120; the stanza condition next to it is this.
            _ => Condition::RemoteServerTimeout,
        }
    }
}

/// The counter for a certificate that was not enough.
pub(super) fn certificate_label(verdict: &Verdict) -> &'static str {
    match verdict {
        Verdict::Valid => "certificate-valid",
        Verdict::Expired { .. } => "certificate-expired",
        Verdict::NotYetValid { .. } => "certificate-not-yet-valid",
        Verdict::WrongName { .. } => "certificate-wrong-name",
        Verdict::UnknownIssuer { .. } => "certificate-unknown-issuer",
        Verdict::SelfSigned => "certificate-self-signed",
        Verdict::Revoked => "certificate-revoked",
        Verdict::BadSignature => "certificate-bad-signature",
        Verdict::WrongPurpose => "certificate-wrong-purpose",
        Verdict::Missing => "certificate-missing",
        Verdict::Other(_) => "certificate-unusable",
    }
}
