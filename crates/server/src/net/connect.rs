//! Connecting to one of several targets: Happy Eyeballs (RFC 8305), and no way to be led into our own network.

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::dns::Target;
use super::listen::tune;

/// Addresses that are tried in one go; a domain with more is served by the first.
const MAX_ATTEMPTS: usize = 24;

/// How to connect.
#[derive(Clone, Copy, Debug)]
pub struct ConnectOptions {
    /// Also connect to loopback, private and link-local addresses that DNS gave. Off: otherwise anybody's DNS could
    /// make the server talk to machines that trust it for being near.
    pub allow_private: bool,
    /// Time before the next address is tried while the last one has not answered. RFC 8305 s.5: 250 ms.
    pub stagger: Duration,
    /// Time for one address.
    pub attempt: Duration,
    /// Time for all.
    pub total: Duration,
}

impl Default for ConnectOptions {
    fn default() -> ConnectOptions {
        ConnectOptions {
            allow_private: false,
            stagger: Duration::from_millis(250),
            attempt: Duration::from_secs(10),
            total: Duration::from_secs(30),
        }
    }
}

/// A connection, and where it leads.
#[derive(Debug)]
pub struct Connected<S = TcpStream> {
    /// The connection.
    pub stream: S,
    /// Index into the targets: when TLS fails there, the later ones may still do.
    pub target: usize,
    /// The address.
    pub address: SocketAddr,
}

/// Why nothing could be connected to: what happened at each address.
#[derive(Debug)]
pub struct ConnectError {
    /// Each address in the order of failure, and what was wrong with it.
    pub attempts: Vec<(SocketAddr, AttemptError)>,
    /// The time for all was over.
    pub timed_out: bool,
}

/// What was wrong with one address.
#[derive(Debug, thiserror::Error)]
pub enum AttemptError {
    /// The system said no.
    #[error("{}", io_text(.0))]
    Io(#[from] io::Error),
    /// No answer in time.
    #[error("no answer")]
    Timeout,
    /// Our own network, and not allowed.
    #[error("a private address, not connected to (federation.allow_private is off)")]
    Private,
}

impl std::error::Error for ConnectError {}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.attempts.is_empty() {
            return f.write_str(if self.timed_out {
                "no answer in time"
            } else {
                "there is no address to connect to"
            });
        }
        let (shown, more) = self.attempts.split_at(self.attempts.len().min(4));
        for (i, (address, error)) in shown.iter().enumerate() {
            write!(f, "{}{address}: {error}", if i == 0 { "" } else { "; " })?;
        }
        if !more.is_empty() {
            write!(f, "; and {} more", more.len())?;
        }
        if self.timed_out { f.write_str("; then the time was over") } else { Ok(()) }
    }
}

/// Connects to the first address of the `targets` that answers.
pub async fn connect(targets: &[Target], options: &ConnectOptions) -> Result<Connected, ConnectError> {
    race(targets, options, |address| async move {
        let stream = TcpStream::connect(address).await?;
        tune(&stream);
        Ok(stream)
    })
    .await
}

/// [`connect`] with any way of dialling: tests count and delay.
pub async fn race<S, D, F>(
    targets: &[Target],
    options: &ConnectOptions,
    dial: D,
) -> Result<Connected<S>, ConnectError>
where
    D: Fn(SocketAddr) -> F,
    F: Future<Output = io::Result<S>> + Send + 'static,
    S: Send + 'static,
{
    let mut failed = ConnectError { attempts: Vec::new(), timed_out: false };
    let mut waiting = candidates(targets, options, &mut failed);
    let mut running = JoinSet::new();
    let deadline = Instant::now() + options.total;
    let mut next = Instant::now();
    loop {
        if running.is_empty() && waiting.is_empty() {
            return Err(failed);
        }
        tokio::select! {
            biased;
            Some(done) = running.join_next(), if !running.is_empty() => match done {
                Ok((target, address, Ok(stream))) => return Ok(Connected { stream, target, address }),
                Ok((_, address, Err(error))) => {
                    failed.attempts.push((address, error));
                    // RFC 8305 s.5: a failure starts the next attempt at once.
                    next = Instant::now();
                }
                // Only our own panic or shutdown ends a task without an outcome.
                Err(_) => next = Instant::now(),
            },
            () = sleep_until(deadline) => {
                failed.timed_out = true;
                return Err(failed);
            }
            () = sleep_until(next), if !waiting.is_empty() => {
                if let Some((target, address)) = waiting.pop_front() {
                    let (attempt, limit) = (dial(address), options.attempt);
                    running.spawn(async move {
                        let outcome = match tokio::time::timeout(limit, attempt).await {
                            Ok(outcome) => outcome.map_err(AttemptError::Io),
                            Err(_) => Err(AttemptError::Timeout),
                        };
                        (target, address, outcome)
                    });
                    next = Instant::now() + options.stagger;
                }
            }
        }
    }
}

/// All addresses in order: target by target, within one the families in turn, IPv6 first (RFC 8305 s.4).
fn candidates(
    targets: &[Target],
    options: &ConnectOptions,
    failed: &mut ConnectError,
) -> VecDeque<(usize, SocketAddr)> {
    let mut out: VecDeque<(usize, SocketAddr)> = VecDeque::new();
    for (index, target) in targets.iter().enumerate() {
        let (v6, v4): (Vec<IpAddr>, Vec<IpAddr>) = target.addresses.iter().partition(|ip| ip.is_ipv6());
        let (mut v6, mut v4) = (v6.into_iter(), v4.into_iter());
        loop {
            let pair = [v6.next(), v4.next()];
            if pair == [None, None] {
                break;
            }
            for ip in pair.into_iter().flatten() {
                let address = SocketAddr::new(ip, target.port);
                if out.len() >= MAX_ATTEMPTS
                    || out
                        .iter()
                        .any(|(i, known)| *known == address && targets[*i].direct_tls == target.direct_tls)
                {
                    continue;
                }
                if target.from_operator || options.allow_private || is_public(ip) {
                    out.push_back((index, address));
                } else {
                    failed.attempts.push((address, AttemptError::Private));
                }
            }
        }
    }
    out
}

/// Whether an address belongs to the public internet. Anything that may lead to this machine or its neighbours does
/// not, also when wrapped into IPv6.
pub fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => is_public_v4(ip),
        IpAddr::V6(ip) => is_public_v6(ip),
    }
}

fn is_public_v4(ip: Ipv4Addr) -> bool {
    let [a, b, c, _] = ip.octets();
    let special = ip.is_private()
        || ip.is_loopback()
        || ip.is_link_local()
        || ip.is_multicast()
        || ip.is_documentation()
        || a == 0 // "this network", RFC 1122
        || a >= 240 // reserved, and broadcast
        || (a == 100 && (64..128).contains(&b)) // shared by carriers' customers, RFC 6598
        || (a == 192 && b == 0 && c == 0) // protocol assignments, RFC 6890
        || (a == 192 && b == 88 && c == 99) // 6to4 relays, RFC 7526
        || (a == 198 && (b & 0xfe) == 18); // benchmarks, RFC 2544
    !special
}

fn is_public_v6(ip: Ipv6Addr) -> bool {
    let s = ip.segments();
    let embedded = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        Ipv4Addr::new(a, b, c, d)
    };
    match s {
        // Mapped, RFC 4291 s.2.5.5.2: the kernel connects to the IPv4 address.
        [0, 0, 0, 0, 0, 0xffff, high, low] => is_public_v4(embedded(high, low)),
        // NAT64, RFC 6052.
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => is_public_v4(embedded(high, low)),
        // 6to4, RFC 3056.
        [0x2002, high, low, ..] => is_public_v4(embedded(high, low)),
        // Teredo, ORCHID, benchmarks and other protocol assignments (2001::/23), documentation.
        [0x2001, second, ..] if second < 0x200 || second == 0xdb8 => false,
        [0x3fff, second, ..] if second < 0x1000 => false,
        // Global unicast is 2000::/3, and nothing else is given out.
        [first, ..] => (first & 0xe000) == 0x2000,
    }
}

fn io_text(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "nobody listens there (connection refused)".into(),
        io::ErrorKind::NetworkUnreachable => "no way to that network".into(),
        io::ErrorKind::HostUnreachable => "no way to that host".into(),
        io::ErrorKind::TimedOut => "no answer".into(),
        io::ErrorKind::ConnectionReset => "the connection was reset".into(),
        _ => error.to_string(),
    }
}
