//! The HTTP listener: `/metrics` for Prometheus and `/healthz` for whoever watches.
//!
//! Plain HTTP without a login, on loopback by default. Deliberately absent: anything that changes the server.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep};

use crate::metrics::Metrics;
use crate::net::listen::network;

/// One thing that must be well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// Such as `store`.
    pub name: &'static str,
    /// What is wrong, in words.
    pub state: Result<(), String>,
}

/// Looks after everything that must be well.
pub type HealthCheck = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = Vec<Health>> + Send>> + Send + Sync>;

/// What the pages show.
#[derive(Clone)]
pub struct Pages {
    /// For `/metrics`.
    pub metrics: Arc<Metrics>,
    /// For `/healthz`.
    pub health: HealthCheck,
}

impl std::fmt::Debug for Pages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pages").finish_non_exhaustive()
    }
}

/// Serves until `stop` is ready.
pub async fn serve(
    listener: TcpListener,
    pages: Pages,
    stop: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let router =
        Router::new().route("/metrics", get(metrics)).route("/healthz", get(healthz)).with_state(pages);
    let listener = Bounded { listener, room: Arc::new(Semaphore::new(CONNECTIONS)), guests: Arc::default() };
    axum::serve(listener, router).with_graceful_shutdown(stop).await
}

async fn metrics(State(pages): State<Pages>) -> impl IntoResponse {
    (
        [(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")],
        pages.metrics.encode(),
    )
}

async fn healthz(State(pages): State<Pages>) -> impl IntoResponse {
    let checked = tokio::time::timeout(HEALTH_TIMEOUT, (pages.health)()).await;
    let health = checked
        .unwrap_or_else(|_| vec![Health { name: "server", state: Err("no answer within 5 s".into()) }]);
    let well = health.iter().all(|health| health.state.is_ok());
    let lines = health.iter().map(|health| match &health.state {
        Ok(()) => format!("{}: ok\n", health.name),
        Err(text) => format!("{}: FAILED: {text}\n", health.name),
    });
    let status = if well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, lines.collect::<String>())
}

const HEALTH_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections at once; more wait in the kernel's queue.
const CONNECTIONS: usize = 64;
/// Of these, for one address (IPv6: one /64). What comes beyond it is closed.
const PER_ADDRESS: usize = 16;
/// A connection's whole life: who sends a byte a minute does not keep a place.
const LIFETIME: Duration = Duration::from_secs(120);

/// A listener with bounds: HTTP libraries wait for a request as long as it takes.
struct Bounded {
    listener: TcpListener,
    room: Arc<Semaphore>,
    guests: Arc<Guests>,
}

/// Connections of each address.
#[derive(Default)]
struct Guests(Mutex<HashMap<IpAddr, usize>>);

/// One connection's place among those of its address.
struct Seat {
    guests: Arc<Guests>,
    address: IpAddr,
}

impl Guests {
    /// `None`: its address has all it may have.
    fn seat(self: &Arc<Self>, address: IpAddr) -> Option<Seat> {
        let address = network(address);
        let mut guests = self.0.lock();
        let count = guests.entry(address).or_default();
        if *count >= PER_ADDRESS {
            return None;
        }
        *count += 1;
        drop(guests);
        Some(Seat { guests: Arc::clone(self), address })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut guests = self.guests.0.lock();
        if let Some(count) = guests.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                guests.remove(&self.address);
            }
        }
    }
}

impl axum::serve::Listener for Bounded {
    type Io = Mortal;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Mortal, SocketAddr) {
        let place =
            self.room.clone().acquire_owned().await.expect("invariant: the semaphore is never closed");
        loop {
            match self.listener.accept().await {
                Ok((stream, peer)) => {
                    let Some(seat) = self.guests.seat(peer.ip()) else {
                        tracing::debug!(%peer, "web listener: too many connections of one address");
                        continue;
                    };
                    let end = Box::pin(tokio::time::sleep_until(Instant::now() + LIFETIME));
                    return (Mortal { stream, end, _place: place, _seat: seat }, peer);
                }
                Err(error) => {
                    // Out of file descriptors, as a rule: accepting again at once would spin.
                    tracing::warn!("web listener: {error}");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

struct Mortal {
    stream: TcpStream,
    end: Pin<Box<Sleep>>,
    _place: OwnedSemaphorePermit,
    _seat: Seat,
}

impl AsyncRead for Mortal {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.end.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Mortal {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.end.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn get(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn pages() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let well = Arc::new(std::sync::atomic::AtomicBool::new(true));
        let seen = well.clone();
        let health: HealthCheck = Arc::new(move || {
            let well = seen.load(std::sync::atomic::Ordering::SeqCst);
            let state = if well { Ok(()) } else { Err("the disk is full".to_owned()) };
            Box::pin(async move { vec![Health { name: "store", state }] })
        });
        let pages = Pages { metrics: Metrics::new(), health };
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let server = tokio::spawn(serve(listener, pages, async move {
            let _ = stopped.await;
        }));

        assert!(get(address, "/metrics").await.contains("trunkline_build_info{version="));
        let healthy = get(address, "/healthz").await;
        assert!(healthy.starts_with("HTTP/1.1 200") && healthy.ends_with("store: ok\n"), "{healthy}");
        well.store(false, std::sync::atomic::Ordering::SeqCst);
        let ill = get(address, "/healthz").await;
        assert!(ill.starts_with("HTTP/1.1 503") && ill.contains("the disk is full"), "{ill}");
        assert!(get(address, "/nothing").await.starts_with("HTTP/1.1 404"));
        // One address can't take all places: beyond its share it is sent away, and back when one is free.
        well.store(true, std::sync::atomic::Ordering::SeqCst);
        let mut silent = Vec::new();
        for _ in 0..PER_ADDRESS {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        let mut refused = TcpStream::connect(address).await.unwrap();
        let mut nothing = [0; 1];
        // Long before the life of a connection that was let in is over.
        let sent_away = tokio::time::timeout(LIFETIME / 4, refused.read(&mut nothing)).await;
        assert!(matches!(sent_away, Ok(Ok(0) | Err(_))), "{sent_away:?}");
        silent.clear();
        loop {
            let mut stream = TcpStream::connect(address).await.unwrap();
            let ask = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
            let mut answer = String::new();
            if stream.write_all(ask).await.is_ok()
                && stream.read_to_string(&mut answer).await.is_ok()
                && answer.starts_with("HTTP/1.1 200")
            {
                break;
            }
        }
        drop(stop);
        server.await.unwrap().unwrap();
    }
}
