//! The console's listener: TLS unless it is loopback, and connections that end.

use std::future::Future as _;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, Sleep};

use crate::logging::{Refusal, Refusals};
use crate::net::{CertStore, Guard, Side, Transport, listen};

/// Connections that have shaken hands and wait to be served.
const WAITING: usize = 64;
/// Silence before a connection is closed.
const SILENCE: Duration = Duration::from_secs(75);
/// A connection's whole life: who sends a byte a minute does not keep a place.
const LIFETIME: Duration = Duration::from_secs(3600);

/// Where a connection came from.
#[derive(Clone, Copy, Debug)]
pub(super) struct From {
    pub(super) address: SocketAddr,
    pub(super) tls: bool,
}

/// Takes connections from the gate, up to the end of the handshake.
pub(super) struct Door {
    /// `None`: no TLS.
    pub(super) certificates: Option<Arc<CertStore>>,
    pub(super) connections: mpsc::Sender<(Connection, From)>,
    pub(super) refusals: Arc<crate::exchange::Exchange>,
}

impl Door {
    pub(super) fn new(
        certificates: Option<Arc<CertStore>>,
        exchange: Arc<crate::exchange::Exchange>,
        address: SocketAddr,
    ) -> (Door, Doorway) {
        let (connections, coming) = mpsc::channel(WAITING);
        (Door { certificates, connections, refusals: exchange }, Doorway { coming, address })
    }

    fn refusals(&self) -> &Refusals {
        &self.refusals.refusals
    }
}

impl listen::Handler for Door {
    fn connection(&self, stream: TcpStream, peer: SocketAddr, guard: Guard) {
        let (certificates, connections) = (self.certificates.clone(), self.connections.clone());
        let exchange = Arc::clone(&self.refusals);
        self.refusals.spawn(async move {
            let mut transport = Transport::from(stream);
            let tls = certificates.is_some();
            if let Some(certificates) = certificates {
                let handshake = transport.accept_tls(&certificates, Side::Web, None);
                transport = match guard.handshake(handshake).await {
                    Ok(Ok(transport)) => transport,
                    Ok(Err(error)) => {
                        let detail = error.to_string();
                        let peer = peer.to_string();
                        let refusal = Refusal { name: "console-tls", peer: &peer, conn: 0, detail: &detail };
                        return exchange.refusals.report(refusal);
                    }
                    Err(_) => return,
                };
            }
            let now = Instant::now();
            let connection = Connection {
                transport,
                silence: Box::pin(tokio::time::sleep_until(now + SILENCE)),
                heard: now,
                end: now + LIFETIME,
                _guard: guard,
            };
            // Nobody takes it any more: the server stops.
            let _ = connections.send((connection, From { address: peer, tls })).await;
        });
    }

    fn refused(&self, peer: IpAddr, why: listen::Refused) {
        let peer = peer.to_string();
        self.refusals().report(Refusal {
            name: why.label(),
            peer: &peer,
            conn: 0,
            detail: "the console's listener",
        });
    }
}

/// What axum accepts from.
pub(super) struct Doorway {
    coming: mpsc::Receiver<(Connection, From)>,
    address: SocketAddr,
}

impl Listener for Doorway {
    type Io = Connection;
    type Addr = From;

    async fn accept(&mut self) -> (Connection, From) {
        match self.coming.recv().await {
            Some(connection) => connection,
            // The gate has gone; axum is about to be stopped.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<From> {
        Ok(From { address: self.address, tls: false })
    }
}

impl Connected<IncomingStream<'_, Doorway>> for From {
    fn connect_info(stream: IncomingStream<'_, Doorway>) -> From {
        *stream.remote_addr()
    }
}

/// A connection that ends when it is silent or old.
pub(super) struct Connection {
    transport: Transport,
    silence: Pin<Box<Sleep>>,
    heard: Instant,
    end: Instant,
    _guard: Guard,
}

impl Connection {
    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        while self.silence.as_mut().poll(cx).is_ready() {
            let until = (self.heard + SILENCE).min(self.end);
            if until <= Instant::now() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.silence.as_mut().reset(until);
        }
        Ok(())
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(cx)?;
        let read = Pin::new(&mut self.transport).poll_read(cx, buf);
        if read.is_ready() {
            self.heard = Instant::now();
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        let written = Pin::new(&mut self.transport).poll_write(cx, buf);
        if written.is_ready() {
            self.heard = Instant::now();
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.transport).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.transport).poll_shutdown(cx)
    }
}
