use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};

use crate::net::listen::{Handler, HandshakeTimeout, Refused};
use crate::net::{Gate, GateLimits, Guard, Neighbours, bind, serve};

struct Report {
    events: mpsc::UnboundedSender<Result<(TcpStream, Guard), Refused>>,
}

impl Handler for Report {
    fn connection(&self, stream: TcpStream, _peer: SocketAddr, guard: Guard) {
        let _ = self.events.send(Ok((stream, guard)));
    }
    fn refused(&self, _peer: IpAddr, why: Refused) {
        let _ = self.events.send(Err(why));
    }
}

struct Server {
    address: SocketAddr,
    gate: Arc<Gate>,
    events: mpsc::UnboundedReceiver<Result<(TcpStream, Guard), Refused>>,
    stop: watch::Sender<()>,
    task: tokio::task::JoinHandle<()>,
}

fn start(limits: GateLimits) -> Server {
    let listener = bind(&["127.0.0.1:0".parse().unwrap()]).unwrap().pop().unwrap();
    let address = listener.local_addr().unwrap();
    let gate = Gate::new(limits);
    let (sender, events) = mpsc::unbounded_channel();
    let (stop, shutdown) = watch::channel(());
    let task = tokio::spawn(serve(listener, gate.clone(), Arc::new(Report { events: sender }), shutdown));
    Server { address, gate, events, stop, task }
}

#[tokio::test]
async fn one_address_gets_so_many_connections_and_then_none() {
    let limits = GateLimits { per_address: 2, ..GateLimits::default() };
    let mut server = start(limits);
    let mut clients = Vec::new();
    for _ in 0..3 {
        clients.push(TcpStream::connect(server.address).await.unwrap());
    }
    let first = server.events.recv().await.unwrap().unwrap();
    let _second = server.events.recv().await.unwrap().unwrap();
    assert_eq!(server.events.recv().await.unwrap().unwrap_err(), Refused::PerAddress);
    let closed = clients[2].read(&mut [0]).await;
    assert!(matches!(closed, Ok(0) | Err(_)));
    drop(first);
    clients.push(TcpStream::connect(server.address).await.unwrap());
    assert!(server.events.recv().await.unwrap().is_ok(), "a place became free");
}

#[tokio::test]
async fn one_address_comes_so_often_and_others_are_not_affected() {
    let gate = Gate::new(GateLimits { per_minute: 2, ..GateLimits::default() });
    let admit = async |ip: &str| {
        let place = Arc::new(tokio::sync::Semaphore::new(1)).acquire_owned().await.unwrap();
        gate.admit(ip.parse().unwrap(), place).map(drop)
    };
    assert!(admit("2001:db8::1").await.is_ok());
    assert!(admit("2001:db8::2").await.is_ok());
    assert_eq!(admit("2001:db8::3").await, Err(Refused::TooOften), "one /64 is one address");
    assert!(admit("2001:db8:0:1::1").await.is_ok());
    assert!(admit("192.0.2.1").await.is_ok());
    assert!(admit("::ffff:192.0.2.1").await.is_ok());
    assert_eq!(admit("192.0.2.1").await, Err(Refused::TooOften));
    gate.set_limits(GateLimits { enabled: false, per_address: 0, ..GateLimits::default() });
    for _ in 0..10 {
        assert!(admit("192.0.2.1").await.is_ok(), "limits are switched off");
    }
}

#[tokio::test]
async fn a_full_gate_accepts_nobody_until_a_place_is_free() {
    let mut server = start(GateLimits { connections: 1, ..GateLimits::default() });
    let _a = TcpStream::connect(server.address).await.unwrap();
    let first = server.events.recv().await.unwrap().unwrap();
    // The kernel takes the second one into its backlog.
    let _b = TcpStream::connect(server.address).await.unwrap();
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert!(server.events.try_recv().is_err());
    assert_eq!(server.gate.free(), 0);
    drop(first);
    assert!(server.events.recv().await.unwrap().is_ok());
}

#[tokio::test]
async fn dropping_the_sender_stops_the_listener_and_frees_the_port() {
    let server = start(GateLimits::default());
    drop(server.stop);
    server.task.await.unwrap();
    assert!(TcpStream::connect(server.address).await.is_err());
    bind(&[server.address]).unwrap();
}

#[tokio::test]
async fn a_taken_port_is_named_with_what_to_do() {
    let taken = bind(&["127.0.0.1:0".parse().unwrap()]).unwrap().pop().unwrap();
    let address = taken.local_addr().unwrap();
    let error = bind(&[address]).unwrap_err();
    assert_eq!(error.address, address);
    let text = error.to_string();
    assert!(text.contains(&address.to_string()) && text.contains("taken by another program"), "{text}");
    let elsewhere = bind(&["192.0.2.1:0".parse().unwrap()]).unwrap_err().to_string();
    assert!(elsewhere.contains("no network interface"), "{elsewhere}");
}

#[tokio::test]
async fn the_unspecified_address_takes_both_families() {
    let both = bind(&["[::]:0".parse().unwrap()]).unwrap().pop().unwrap();
    let port = both.local_addr().unwrap().port();
    TcpStream::connect(("127.0.0.1", port)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn handshakes_wait_for_their_turn_and_run_out_of_time() {
    let limits =
        GateLimits { handshakes: 1, handshake_timeout: Duration::from_secs(5), ..GateLimits::default() };
    let gate = Gate::new(limits);
    let peer = |last| IpAddr::V4(Ipv4Addr::new(192, 0, 2, last));
    let stuck = gate.handshake(peer(1), std::future::pending::<()>());
    let waiting = gate.handshake(peer(2), async { 1 });
    let (stuck, waiting) = tokio::join!(stuck, waiting);
    assert_eq!(stuck, Err(HandshakeTimeout));
    // Both times end together; which of them is seen first does not matter.
    assert!(matches!(waiting, Ok(1) | Err(HandshakeTimeout)));
    assert_eq!(gate.handshake(peer(2), async { 2 }).await, Ok(2));
}

#[tokio::test(start_paused = true)]
async fn one_address_has_a_share_of_the_handshakes_only() {
    let limits = GateLimits { handshakes: 16, handshakes_per_address: 2, ..GateLimits::default() };
    let gate = Gate::new(limits);
    let stalls = |peer: &'static str| {
        let gate = gate.clone();
        tokio::spawn(async move { gate.handshake(peer.parse().unwrap(), std::future::pending::<()>()).await })
    };
    // All of one network: two may run, the others wait for them.
    let flood: Vec<_> = (0..50).map(|_| stalls("2001:db8::1")).chain([stalls("2001:db8::ffff")]).collect();
    tokio::time::sleep(Duration::from_millis(10)).await;
    let neighbour = gate.handshake("2001:db8::2".parse().unwrap(), async { 1 });
    assert!(tokio::time::timeout(Duration::from_secs(5), neighbour).await.is_err(), "the share is used up");
    let other = gate.handshake("192.0.2.1".parse().unwrap(), async { 2 });
    assert_eq!(tokio::time::timeout(Duration::from_secs(1), other).await, Ok(Ok(2)));
    for stalled in flood {
        assert_eq!(stalled.await.unwrap(), Err(HandshakeTimeout));
    }
    assert_eq!(gate.shares(), 0, "forgotten when nobody is there");
}

type Said = Result<(SocketAddr, Vec<u8>), (IpAddr, Refused)>;

/// Whom a connection is said to come from, with its first bytes; or why it was refused.
struct Named(mpsc::UnboundedSender<Said>);

impl Handler for Named {
    fn connection(&self, mut stream: TcpStream, peer: SocketAddr, guard: Guard) {
        let events = self.0.clone();
        tokio::spawn(async move {
            let mut bytes = Vec::new();
            let _ = stream.read_to_end(&mut bytes).await;
            let _ = events.send(Ok((peer, bytes)));
            drop(guard);
        });
    }
    fn refused(&self, peer: IpAddr, why: Refused) {
        let _ = self.0.send(Err((peer, why)));
    }
}

/// Sends `bytes` to a listener whose proxies are these, and closes.
async fn said(proxies: &[&str], limits: GateLimits, all: &[&[u8]]) -> Vec<Said> {
    let listener = bind(&["127.0.0.1:0".parse().unwrap()]).unwrap().pop().unwrap();
    let address = listener.local_addr().unwrap();
    let gate = Gate::new(limits);
    let proxies = proxies.iter().map(|network| network.parse().unwrap()).collect();
    gate.set_neighbours(Neighbours { proxies, ..Neighbours::default() });
    let (sender, mut events) = mpsc::unbounded_channel();
    let (stop, shutdown) = watch::channel(());
    let serving = tokio::spawn(serve(listener, gate, Arc::new(Named(sender)), shutdown));
    let mut outcomes = Vec::new();
    for bytes in all {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream.shutdown().await.unwrap();
        outcomes.push(events.recv().await.unwrap());
    }
    drop(stop);
    serving.await.unwrap();
    outcomes
}

const INTRODUCED: &[u8] =
    b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x07\xcb\0\x71\x01\x30\x39\x14\x66<stream>";

#[tokio::test]
async fn a_proxy_says_whom_it_speaks_for_and_nobody_else_may() {
    let both = [INTRODUCED, b"<stream>".as_slice()];
    let from_proxy = said(&["127.0.0.0/8"], GateLimits::default(), &both).await;
    assert_eq!(from_proxy[0], Ok(("192.0.2.7:12345".parse().unwrap(), b"<stream>".to_vec())));
    let local: IpAddr = "127.0.0.1".parse().unwrap();
    assert_eq!(from_proxy[1], Err((local, Refused::ProxyHeader)));
    // From elsewhere it is bytes like any other.
    let from_elsewhere = said(&["192.0.2.0/24"], GateLimits::default(), &both[..1]).await;
    let (peer, bytes) = from_elsewhere[0].clone().unwrap();
    assert_eq!((peer.ip(), bytes.as_slice()), (local, INTRODUCED));
}

#[tokio::test]
async fn limits_go_by_the_address_in_the_header() {
    let limits = GateLimits { per_minute: 1, ..GateLimits::default() };
    let mut other = INTRODUCED.to_vec();
    other[19] = 8;
    let all = [INTRODUCED, INTRODUCED, &other];
    let outcomes = said(&["127.0.0.1"], limits, &all).await;
    assert!(outcomes[0].is_ok());
    assert_eq!(outcomes[1], Err(("192.0.2.7".parse().unwrap(), Refused::TooOften)));
    assert_eq!(outcomes[2].as_ref().unwrap().0.ip(), "192.0.2.8".parse::<IpAddr>().unwrap());
}

#[tokio::test]
async fn many_behind_one_address_are_counted_elsewhere() {
    let gate = Gate::new(GateLimits { per_address: 1, per_minute: 1, ..GateLimits::default() });
    let proxy: IpAddr = "192.0.2.1".parse().unwrap();
    let shared = vec!["192.0.2.1".parse().unwrap()];
    gate.set_neighbours(Neighbours { shared, ..Neighbours::default() });
    let _one = gate.enter(proxy).unwrap();
    let _two = gate.enter(proxy).unwrap();
    let other: IpAddr = "192.0.2.2".parse().unwrap();
    let _three = gate.enter(other).unwrap();
    assert_eq!(gate.enter(other).unwrap_err(), Refused::TooOften);
    let full = Gate::new(GateLimits { connections: 1, ..GateLimits::default() });
    let _place = full.enter(proxy).unwrap();
    assert_eq!(full.enter(other).unwrap_err(), Refused::Full);
}
