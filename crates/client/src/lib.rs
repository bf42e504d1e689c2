//! A small XMPP client: for the demo, the tests and the load generator.
//!
//! ```no_run
//! # async fn example() -> Result<(), trunkline_client::ClientError> {
//! use std::time::Duration;
//! use trunkline_client::{Client, Login, Target, Trust};
//!
//! let target = Target::new("127.0.0.1:5222".parse().expect("an address"), "north.localhost")
//!     .trust(Trust::pem_file("demo-ca.pem".as_ref())?);
//! let mut romeo = Client::connect(&target, &Login::new("romeo", "secret")).await?;
//! romeo.enable_acks().await?;
//! romeo.send(b"<presence/>").await?;
//! romeo.send(b"<message to='juliet@south.localhost' id='1'><body>hello</body></message>").await?;
//! let answer = romeo.expect("an answer", Duration::from_secs(5), |it| it.root().name() == "message").await?;
//! println!("{}", answer.root().text());
//! romeo.close().await?;
//! # Ok(())
//! # }
//! ```
//!
//! - [`Client::connect`] does TCP, TLS, SASL and resource binding; [`Client::resume`] takes up a session that was cut.
//! - [`Client::sign_in`] does the same in one request, with tokens instead of the password (XEP-0388 and its company).
//! - [`Client::recv`] gives the next stanza, [`Client::expect`] the next that matches and keeps the others for later.
//! - With [`Client::enable_acks`] stream management (XEP-0198) counts in both directions: requests for acknowledgement
//!   are answered while receiving, and what the server has not acknowledged stays in [`Client::unacked`].
//!
//! All calls are cancel-safe: one may `select!` over [`Client::recv`] and other work. What is deliberately absent:
//! name resolution, a roster, replies to requests (use [`Client::send`]), tasks in the background.

mod acks;
mod auth;
mod client;
mod sign_in;
mod stream;
mod tls;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

pub use acks::Acks;
pub use auth::Mechanism;
pub use client::{Client, Resumption, Session};
pub use sign_in::Device;

/// Where and how to reach a server.
#[derive(Clone, Debug)]
pub struct Target {
    pub(crate) address: SocketAddr,
    pub(crate) domain: Arc<str>,
    pub(crate) security: Security,
    pub(crate) trust: Trust,
    pub(crate) timeout: Duration,
    pub(crate) transcript: Option<Transcript>,
}

impl Target {
    /// A server at `address` that serves `domain`; with STARTTLS, the system of trust empty, and 30 s for a login.
    pub fn new(address: SocketAddr, domain: &str) -> Target {
        Target {
            address,
            domain: domain.into(),
            security: Security::StartTls,
            trust: Trust::none(),
            timeout: Duration::from_secs(30),
            transcript: None,
        }
    }

    /// How the connection is protected.
    pub fn security(self, security: Security) -> Target {
        Target { security, ..self }
    }

    /// Which certificates are accepted.
    pub fn trust(self, trust: Trust) -> Target {
        Target { trust, ..self }
    }

    /// How long connecting and logging in may take in all.
    pub fn timeout(self, timeout: Duration) -> Target {
        Target { timeout, ..self }
    }

    /// Calls `hook` with every element sent and received, login included: passwords appear in it.
    pub fn transcript(self, hook: impl Fn(Direction, &[u8]) + Send + Sync + 'static) -> Target {
        Target { transcript: Some(Transcript(Arc::new(hook))), ..self }
    }

    /// The domain served.
    pub fn domain(&self) -> &str {
        &self.domain
    }
}

/// How a connection is protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Security {
    /// TCP that becomes TLS (RFC 6120 s.5); a server without it is refused.
    StartTls,
    /// TLS from the first byte (XEP-0368), with ALPN `xmpp-client`.
    DirectTls,
    /// No TLS at all: on loopback, for benchmarks.
    Plain,
}

/// Which certificates are accepted.
#[derive(Clone, Debug)]
pub struct Trust(pub(crate) Arc<rustls::ClientConfig>);

impl Trust {
    /// Only what the certificates of this PEM file vouch for.
    pub fn pem_file(file: &Path) -> Result<Trust, ClientError> {
        tls::trust_pem(file).map(Trust)
    }

    /// Nothing.
    pub fn none() -> Trust {
        Trust(tls::trust_none())
    }
}

/// Who logs in.
#[derive(Clone)]
pub struct Login {
    pub(crate) user: Arc<str>,
    pub(crate) password: Arc<str>,
    pub(crate) resource: Option<Arc<str>>,
    pub(crate) mechanism: Option<Mechanism>,
}

impl Login {
    /// `user` is the local part of the address. The server chooses the resource, the client the best mechanism offered.
    pub fn new(user: &str, password: &str) -> Login {
        Login { user: user.into(), password: password.into(), resource: None, mechanism: None }
    }

    /// Asks for a resource of this name.
    pub fn resource(self, resource: &str) -> Login {
        Login { resource: Some(resource.into()), ..self }
    }

    /// Uses this mechanism and no other.
    pub fn mechanism(self, mechanism: Mechanism) -> Login {
        Login { mechanism: Some(mechanism), ..self }
    }
}

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Login")
            .field("user", &self.user)
            .field("resource", &self.resource)
            .finish_non_exhaustive()
    }
}

/// Which way an element went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From us to the server.
    Sent,
    /// From the server to us.
    Received,
}

type Hook = dyn Fn(Direction, &[u8]) + Send + Sync;

#[derive(Clone)]
pub(crate) struct Transcript(pub(crate) Arc<Hook>);

impl std::fmt::Debug for Transcript {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Transcript")
    }
}

/// Why something could not be done. The text says who is at fault.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The network, or TLS: a certificate that is not trusted is here too.
    #[error("connection: {0}")]
    Io(#[from] std::io::Error),
    /// A certificate file, or TLS settings, can't be used.
    #[error("TLS settings: {0}")]
    Tls(String),
    /// What the server sent is no XMPP stream.
    #[error("the server sent what can't be read: {0}")]
    Scan(#[from] trunkline_xml::ScanError),
    /// The server has closed the stream or the connection.
    #[error("the server closed the stream")]
    Closed,
    /// The server ended the stream with an error (RFC 6120 s.4.9).
    #[error("the server ended the stream: {condition} {text}")]
    StreamError {
        /// The defined condition.
        condition: String,
        /// The server's words.
        text: String,
    },
    /// The login was refused (RFC 6120 s.6.5).
    #[error("login refused: {condition} {text}")]
    LoginRefused {
        /// The defined condition.
        condition: String,
        /// The server's words.
        text: String,
    },
    /// The server lacks something that was asked for.
    #[error("the server does not offer {0}")]
    NotOffered(&'static str),
    /// The server broke the protocol.
    #[error("{expected} expected, the server sent {got}")]
    Unexpected {
        /// What should have come.
        expected: &'static str,
        /// The start of what came.
        got: String,
    },
    /// The login can't go on: our user name or password can't be used, or the server did not prove that it knows them.
    #[error("login: {0}")]
    Login(String),
    /// Nothing came in time.
    #[error("{what} did not come within {after:?}")]
    Timeout {
        /// What was waited for.
        what: String,
        /// For how long.
        after: Duration,
    },
}
