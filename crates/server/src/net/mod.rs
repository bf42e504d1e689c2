//! Bytes in, bytes out: listeners, TLS, certificates, DNS and connecting. No XMPP is spoken here, and nothing here
//! decides whom to trust: a handshake never fails over trust, [`verify_peer`] says what a certificate is worth.

mod buffered;
pub mod cert;
pub mod connect;
pub mod dns;
mod handshake;
pub mod listen;
pub mod pki;
pub mod proxy;
mod record;
pub mod stream;
pub mod tls;
pub mod verdict;

pub use cert::{CertInfo, inspect};
pub use connect::{ConnectError, ConnectOptions, Connected, connect};
pub use dns::{Resolver, Target, TargetError, targets};
pub use listen::{BindError, Gate, GateLimits, Guard, Neighbours, bind, serve};
pub use proxy::Network;
pub use stream::{Carried, TlsInfo, Transport};
pub use tls::{CertSource, CertStore, Side, TlsError, TrustRoots};
pub use verdict::{Verdict, verify_peer};

#[cfg(test)]
mod tests;
