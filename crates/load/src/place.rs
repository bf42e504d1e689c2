//! A server under load: where it is, how to connect and log in.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::Mutex;
use rustls::{ClientConfig, ClientConnection};
use rustls_pki_types::ServerName;
use tokio::net::{TcpSocket, TcpStream};
use trunkline_xmpp::sasl::client::ClientKeys;

use crate::error::LoadError;
use crate::options::Security;

/// Everything that connections to one server share.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) address: SocketAddr,
    pub(crate) domain: String,
    pub(crate) security: Security,
    /// The only mechanism to use; `None`: the best offered.
    pub(crate) mechanism: Option<String>,
    /// Accounts are called this and a number.
    pub(crate) prefix: String,
    pub(crate) password: String,
    pub(crate) tls: Arc<ClientConfig>,
    pub(crate) name: ServerName<'static>,
    /// SCRAM keys by user, so that not our own PBKDF2 is measured.
    pub(crate) keys: Mutex<HashMap<u32, ClientKeys>>,
    pub(crate) dialled: AtomicU32,
}

/// On loopback, connections come from that many addresses, each of which has the ports of one: there are about 28,000,
/// and a closed connection blocks its own for a minute.
const SOURCES: u32 = 64;

impl Place {
    /// The local part of an account.
    pub(crate) fn user(&self, number: u32) -> String {
        format!("{}{number}", self.prefix)
    }

    /// The bare address of an account.
    pub(crate) fn jid(&self, number: u32) -> String {
        format!("{}{number}@{}", self.prefix, self.domain)
    }

    pub(crate) fn session(&self, config: &Arc<ClientConfig>) -> Result<ClientConnection, LoadError> {
        Ok(ClientConnection::new(config.clone(), self.name.clone())?)
    }

    pub(crate) async fn dial(&self) -> Result<TcpStream, LoadError> {
        let failed = |error| LoadError::Connect { address: self.address, error };
        let socket = match self.address {
            SocketAddr::V4(_) => TcpSocket::new_v4(),
            SocketAddr::V6(_) => TcpSocket::new_v6(),
        };
        let socket = socket.map_err(|error| LoadError::Machine(format!("no more sockets: {error}")))?;
        socket.set_nodelay(true).map_err(failed)?;
        if let Some(source) = self.source() {
            socket
                .bind(source)
                .map_err(|error| LoadError::Machine(format!("binding to {source}: {error}")))?;
        }
        socket.connect(self.address).await.map_err(failed)
    }

    fn source(&self) -> Option<SocketAddr> {
        let IpAddr::V4(to) = self.address.ip() else { return None };
        to.is_loopback().then(|| {
            let number = self.dialled.fetch_add(1, Ordering::Relaxed) % SOURCES;
            SocketAddr::from((Ipv4Addr::new(127, 0, 0, 2 + number as u8), 0))
        })
    }
}
