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
use parking_lot::Mutex;
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

/// Time from the first byte of a request to the end of its head.
const HEAD: Duration = Duration::from_secs(20);

/// Where a connection came from.
#[derive(Clone, Debug)]
pub(super) struct From {
    pub(super) address: SocketAddr,
    pub(super) tls: bool,
    pub(super) progress: Arc<Progress>,
}

/// How far the request of a connection is. HTTP/1.1 has one at a time; the body has a deadline of its own, where it is
/// read.
#[derive(Debug, Default)]
pub(super) struct Progress(Mutex<Stage>);

#[derive(Clone, Copy, Debug, Default)]
enum Stage {
    /// Nothing was asked, or all is answered.
    #[default]
    Idle,
    /// The head has begun.
    Head(Instant),
    /// It is complete.
    Asked,
}

impl Progress {
    /// Bytes have come.
    fn heard(&self, now: Instant) {
        let mut stage = self.0.lock();
        if let Stage::Idle = *stage {
            *stage = Stage::Head(now);
        }
    }

    /// By when the head has to be complete, if one has begun.
    fn deadline(&self) -> Option<Instant> {
        match *self.0.lock() {
            Stage::Head(began) => Some(began + HEAD),
            Stage::Idle | Stage::Asked => None,
        }
    }

    pub(super) fn head_is_complete(&self) {
        *self.0.lock() = Stage::Asked;
    }

    pub(super) fn is_answered(&self) {
        *self.0.lock() = Stage::Idle;
    }
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
            let progress = Arc::<Progress>::default();
            let connection = Connection {
                progress: Arc::clone(&progress),
                transport,
                silence: Box::pin(tokio::time::sleep_until(now + SILENCE)),
                heard: now,
                end: now + LIFETIME,
                _guard: guard,
            };
            // Nobody takes it any more: the server stops.
            let _ = connections.send((connection, From { address: peer, tls, progress })).await;
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
        Ok(From { address: self.address, tls: false, progress: Arc::default() })
    }
}

impl Connected<IncomingStream<'_, Doorway>> for From {
    fn connect_info(stream: IncomingStream<'_, Doorway>) -> From {
        stream.remote_addr().clone()
    }
}

/// A connection that ends when it is silent or old, or when the head of a request takes too long.
pub(super) struct Connection {
    progress: Arc<Progress>,
    transport: Transport,
    silence: Pin<Box<Sleep>>,
    heard: Instant,
    end: Instant,
    _guard: Guard,
}

impl Connection {
    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        // A deadline that has come nearer needs a nearer alarm.
        let head = self.progress.deadline();
        if head.is_some_and(|head| head < self.silence.deadline()) {
            self.silence.as_mut().reset(head.unwrap_or(self.end));
        }
        while self.silence.as_mut().poll(cx).is_ready() {
            let until = (self.heard + SILENCE).min(self.end).min(head.unwrap_or(self.end));
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
        let before = buf.filled().len();
        let read = Pin::new(&mut self.transport).poll_read(cx, buf);
        if read.is_ready() {
            self.heard = Instant::now();
            if buf.filled().len() > before {
                self.progress.heard(self.heard);
            }
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
