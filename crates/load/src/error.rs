//! What can go wrong in a run, whose fault it is, and what to do about it.

use std::net::SocketAddr;

/// Why a run did not end well.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    /// Options that can't be followed: the caller's fault.
    #[error("{0}")]
    Usage(String),
    /// This machine does not give what the run needs.
    #[error("this machine: {0}")]
    Machine(String),
    /// Nobody answers.
    #[error("{address} can't be reached: {error}. Is the server running there, and is --server right?")]
    Connect {
        /// Where to.
        address: SocketAddr,
        /// What the system said.
        error: std::io::Error,
    },
    /// The connection of `who` broke.
    #[error("the connection of {who} broke: {error}")]
    Io {
        /// Whose.
        who: String,
        /// What the system said.
        error: std::io::Error,
    },
    /// TLS did not come about or broke.
    #[error("TLS to the server: {0}.{advice}", advice = tls_advice(.0))]
    Tls(#[from] rustls::Error),
    /// The server ended a stream that we still needed.
    #[error("the server closed the stream of {who} {while_}")]
    Closed {
        /// Whose.
        who: String,
        /// In the middle of what.
        while_: &'static str,
    },
    /// The server ended a stream with an error (RFC 6120 s.4.9).
    #[error("the server ended the stream of {who} with {condition}{advice}", advice = stream_advice(.condition))]
    StreamError {
        /// Whose.
        who: String,
        /// The defined condition and its text.
        condition: String,
    },
    /// The server refused the login (RFC 6120 s.6.5).
    #[error(
        "the server refused the login of {who}: {condition}. Does the account exist with that --password? \
         --register makes the accounts where the server allows registration"
    )]
    LoginRefused {
        /// Whose.
        who: String,
        /// The defined condition and its text.
        condition: String,
    },
    /// The login can't go on.
    #[error("the login of {who}: {error}")]
    Sasl {
        /// Whose.
        who: String,
        /// Why.
        error: trunkline_xmpp::sasl::client::ClientError,
    },
    /// The server lacks something that the run needs.
    #[error("the server does not offer {what}{advice}")]
    NotOffered {
        /// What.
        what: String,
        /// What to do; empty or beginning with `: `.
        advice: String,
    },
    /// The server refused a request.
    #[error("the server refused {what}: {condition}{advice}")]
    Refused {
        /// What was asked.
        what: String,
        /// The stanza error's condition and text.
        condition: String,
        /// What to do; empty or beginning with `: `.
        advice: &'static str,
    },
    /// The server broke the protocol, or we did not understand it.
    #[error("{expected} expected for {who}, the server sent: {got}")]
    Unexpected {
        /// Whose stream.
        who: String,
        /// What should have come.
        expected: &'static str,
        /// The start of what came.
        got: String,
    },
    /// Nothing came in time.
    #[error("the server did not give {what} within {seconds} s")]
    Timeout {
        /// What was waited for.
        what: String,
        /// For how long.
        seconds: u64,
    },
    /// What was sent is not what was received.
    #[error("DELIVERY IS WRONG: {0}")]
    Delivery(String),
    /// The open loop asks for more than the server does.
    #[error(
        "the server does not keep up with --rate: {under_way} messages are under way. Lower --rate until this ends"
    )]
    Overrun {
        /// Sent and not received.
        under_way: u64,
    },
}

fn tls_advice(error: &rustls::Error) -> &'static str {
    match error {
        rustls::Error::InvalidCertificate(_) => {
            " Give the certificate of its authority with --ca FILE, or --insecure if you know which server this is"
        }
        rustls::Error::AlertReceived(_) => {
            " The server refused the handshake: does it have a certificate for --domain there, and TLS 1.2 or 1.3?"
        }
        rustls::Error::InvalidMessage(_) => " What answered is no TLS: is the port one for --tls direct?",
        _ => "",
    }
}

fn stream_advice(condition: &str) -> &'static str {
    if condition.starts_with("host-unknown") {
        ": --domain must be a domain that the server serves"
    } else if condition.starts_with("policy-violation") || condition.starts_with("resource-constraint") {
        ": a limit of the server, which has to be off for a measurement"
    } else {
        ""
    }
}

impl LoadError {
    /// 2 for what the caller has to change, as for wrong options; otherwise 1.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            LoadError::Usage(_) => 2,
            _ => 1,
        }
    }
}
