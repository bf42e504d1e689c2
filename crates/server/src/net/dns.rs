//! Where the servers of a domain are (RFC 6120 s.3.2, XEP-0368), asked through a [`Resolver`] that tests replace.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError as HickoryDnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{RData, RecordType};
use hickory_resolver::{ResolverBuilder, TokioResolver};
use parking_lot::Mutex;
use tokio::task::JoinSet;

use super::cert::{ip_literal, to_ascii};

/// SRV records of one domain that are looked at; further ones are ignored.
pub const MAX_RECORDS: usize = 32;
/// Addresses of one host that are tried.
pub const MAX_ADDRESSES: usize = 16;
const CACHE_ENTRIES: u64 = 4096;
const CACHE_AT_MOST: Duration = Duration::from_secs(3600);
/// A domain that was just set up must not stay unknown for long.
const CACHE_FAILURES_AT_MOST: Duration = Duration::from_secs(120);
const ONE_QUERY: Duration = Duration::from_secs(3);
const ALL_QUERIES: Duration = Duration::from_secs(10);
/// The port of servers without SRV record, RFC 6120 s.3.2.2.
const SERVER_PORT: u16 = 5269;

/// A future as trait objects need it.
pub type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Asks DNS. Names are A-labels without a trailing dot.
pub trait Resolver: fmt::Debug + Send + Sync {
    /// The SRV records of a name. An empty answer is [`DnsError::NoRecords`] or [`DnsError::NoSuchName`].
    fn srv<'a>(&'a self, name: &'a str) -> Boxed<'a, Result<Answer<Srv>, DnsError>>;
    /// The IPv6 and IPv4 addresses of a host.
    fn addresses<'a>(&'a self, host: &'a str) -> Boxed<'a, Result<Answer<IpAddr>, DnsError>>;
}

/// Records, at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer<T> {
    /// The records.
    pub records: Vec<T>,
    /// Proven by DNSSEC; None when nobody checked (as long as the resolver is built without validation).
    pub secure: Option<bool>,
}

/// One SRV record (RFC 2782). A target of `.` is the empty string.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Srv {
    /// Lower is tried first.
    pub priority: u16,
    /// Share among those of one priority.
    pub weight: u16,
    /// The port.
    pub port: u16,
    /// The host, without a trailing dot.
    pub host: String,
}

/// Why a name could not be looked up.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DnsError {
    /// NXDOMAIN.
    #[error("the name does not exist (NXDOMAIN)")]
    NoSuchName,
    /// The name exists, but has no record of that type.
    #[error("no such record")]
    NoRecords,
    /// The name server failed, or DNSSEC refused the answer.
    #[error("the name server could not answer (SERVFAIL)")]
    ServFail,
    /// The name server does not want to answer us.
    #[error("the name server refused the question (REFUSED)")]
    Refused,
    /// Nobody answered in time.
    #[error("the name server did not answer in time")]
    Timeout,
    /// The name is not one that DNS could know.
    #[error("not a name for DNS")]
    BadName,
    /// Anything else, in words.
    #[error("{0}")]
    Other(String),
}

impl DnsError {
    /// Whether DNS said that there is nothing, in contrast to DNS being ill.
    pub fn is_answer(&self) -> bool {
        matches!(self, DnsError::NoSuchName | DnsError::NoRecords)
    }
}

/// One host of a domain, in the order in which they are to be tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The host, for texts.
    pub host: String,
    /// Its addresses, as DNS had them.
    pub addresses: Vec<IpAddr>,
    /// The port.
    pub port: u16,
    /// TLS from the first byte (XEP-0368) instead of STARTTLS.
    pub direct_tls: bool,
    /// The operator named it: it may be a private address.
    pub from_operator: bool,
    /// The SRV record and the addresses were proven by DNSSEC. None when nobody checked.
    pub secure: Option<bool>,
}

/// Why a domain has no server to connect to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// Its SRV record says `.`.
    #[error("{0} says in DNS that it offers no XMPP service (SRV target \".\")")]
    NotOffered(String),
    /// Not a domain.
    #[error("{0} is not a domain that DNS could know")]
    BadName(String),
    /// There are SRV records or not, but no addresses.
    #[error("no address for {host}: {error}")]
    NoAddress {
        /// The host whose addresses were wanted.
        host: String,
        /// What DNS said.
        error: DnsError,
    },
}

impl TargetError {
    /// Whether a retry may help soon: DNS was ill and said neither yes nor no.
    pub fn is_temporary(&self) -> bool {
        matches!(self, TargetError::NoAddress { error, .. } if !error.is_answer() && *error != DnsError::BadName)
    }
}

/// A uniformly distributed number between 0 and the argument, both included.
pub type Pick<'a> = &'a (dyn Fn(u64) -> u64 + Send + Sync);

/// [`Pick`] from the system's randomness.
pub fn random_pick(max: u64) -> u64 {
    // The bias of the remainder is 2^-32 and less: weights are sums of 32 numbers of 16 bits.
    getrandom::u64().unwrap_or_default() % max.saturating_add(1)
}

/// The servers of a peer `domain` (U- or A-labels), in the order to try them.
pub async fn targets(
    resolver: &Arc<dyn Resolver>,
    domain: &str,
    pick: Pick<'_>,
) -> Result<Vec<Target>, TargetError> {
    if let Some(ip) = ip_literal(domain) {
        // RFC 6120 s.3.2.3: no DNS for an address.
        return Ok(vec![plain(domain, vec![ip], None)]);
    }
    let Some(name) = to_ascii(domain) else { return Err(TargetError::BadName(domain.into())) };
    let (starttls_name, direct_name) =
        (format!("_xmpp-server._tcp.{name}"), format!("_xmpps-server._tcp.{name}"));
    let (starttls, direct) = tokio::join!(resolver.srv(&starttls_name), resolver.srv(&direct_name));
    // RFC 2782: a single record with target "." says that the service is decidedly not available.
    let refused = |answer: &Result<Answer<Srv>, DnsError>| matches!(answer, Ok(a) if a.records.iter().all(|r| r.host.is_empty()));
    if refused(&starttls) && (refused(&direct) || direct.is_err()) {
        return Err(TargetError::NotOffered(domain.into()));
    }
    // A domain without SRV record, or one whose SRV records could not be had (RFC 6120 s.3.2.1, steps 8 and 9).
    if starttls.is_err() && (direct.is_err() || refused(&direct)) {
        return match resolver.addresses(&name).await {
            Ok(answer) => Ok(vec![plain(&name, answer.records, answer.secure)]),
            // When DNS was ill with the SRV records, that is what an operator must read.
            Err(error) if error.is_answer() => Err(TargetError::NoAddress {
                host: name,
                error: starttls.err().filter(|srv| !srv.is_answer()).unwrap_or(error),
            }),
            Err(error) => Err(TargetError::NoAddress { host: name, error }),
        };
    }
    let mut records = Vec::new();
    for (answer, direct_tls) in [(direct, true), (starttls, false)] {
        let Ok(answer) = answer else { continue };
        let usable = answer.records.into_iter().filter(|record| !record.host.is_empty());
        records.extend(usable.take(MAX_RECORDS / 2).map(|record| (record, direct_tls, answer.secure)));
    }
    // XEP-0368: both kinds together are ordered as if they were one.
    resolve(resolver, order(records, pick)).await
}

/// The way to a peer that the operator wrote down.
pub async fn route(
    resolver: &Arc<dyn Resolver>,
    host: &str,
    port: u16,
    direct_tls: bool,
) -> Result<Vec<Target>, TargetError> {
    let (addresses, secure) = match ip_literal(host) {
        Some(ip) => (vec![ip], None),
        None => {
            let Some(name) = to_ascii(host) else { return Err(TargetError::BadName(host.into())) };
            let answer = resolver.addresses(&name).await;
            let answer = answer.map_err(|error| TargetError::NoAddress { host: host.into(), error })?;
            (answer.records, answer.secure)
        }
    };
    Ok(vec![Target { host: host.into(), addresses, port, direct_tls, from_operator: true, secure }])
}

/// All that DNS says about a domain of ours, for the operator's check.
#[derive(Clone, Debug)]
pub struct Published {
    /// `_xmpp-client._tcp`
    pub client: Result<Answer<Srv>, DnsError>,
    /// `_xmpps-client._tcp`
    pub client_tls: Result<Answer<Srv>, DnsError>,
    /// `_xmpp-server._tcp`
    pub server: Result<Answer<Srv>, DnsError>,
    /// `_xmpps-server._tcp`
    pub server_tls: Result<Answer<Srv>, DnsError>,
    /// A and AAAA of the domain itself.
    pub addresses: Result<Answer<IpAddr>, DnsError>,
}

/// Looks up all that DNS says about `domain`.
pub async fn published(resolver: &Arc<dyn Resolver>, domain: &str) -> Published {
    let name = to_ascii(domain).unwrap_or_default();
    let [a, b, c, d] = ["_xmpp-client", "_xmpps-client", "_xmpp-server", "_xmpps-server"]
        .map(|s| format!("{s}._tcp.{name}"));
    let (client, client_tls, server, server_tls, addresses) = tokio::join!(
        resolver.srv(&a),
        resolver.srv(&b),
        resolver.srv(&c),
        resolver.srv(&d),
        resolver.addresses(&name)
    );
    Published { client, client_tls, server, server_tls, addresses }
}

fn plain(host: &str, mut addresses: Vec<IpAddr>, secure: Option<bool>) -> Target {
    addresses.truncate(MAX_ADDRESSES);
    Target {
        host: host.into(),
        addresses,
        port: SERVER_PORT,
        direct_tls: false,
        from_operator: false,
        secure,
    }
}

type Ordered = Vec<(Srv, bool, Option<bool>)>;

/// RFC 2782: by priority; among equals at random, by weight.
fn order(mut records: Ordered, pick: Pick<'_>) -> Ordered {
    // Zero weights first within a priority, so that they have a very small chance instead of none.
    records.sort_by_key(|(srv, ..)| (srv.priority, srv.weight));
    let mut out = Vec::with_capacity(records.len());
    while let Some(first) = records.first() {
        let priority = first.0.priority;
        let group = records.iter().take_while(|(srv, ..)| srv.priority == priority);
        let sum: u64 = group.clone().map(|(srv, ..)| u64::from(srv.weight)).sum();
        let chosen = pick(sum);
        let mut running = 0;
        let index = group.clone().position(|(srv, ..)| {
            running += u64::from(srv.weight);
            running >= chosen
        });
        out.push(records.remove(index.unwrap_or(0)));
    }
    out
}

async fn resolve(resolver: &Arc<dyn Resolver>, records: Ordered) -> Result<Vec<Target>, TargetError> {
    let mut hosts: Vec<String> = records.iter().map(|(srv, ..)| srv.host.to_ascii_lowercase()).collect();
    hosts.sort();
    hosts.dedup();
    let mut lookups = JoinSet::new();
    for host in hosts {
        let resolver = resolver.clone();
        lookups.spawn(async move {
            let answer = match ip_literal(&host) {
                // Not allowed in SRV, but seen.
                Some(ip) => Ok(Answer { records: vec![ip], secure: None }),
                None => resolver.addresses(&host).await,
            };
            (host, answer)
        });
    }
    let mut found = HashMap::new();
    while let Some(done) = lookups.join_next().await {
        let Ok((host, answer)) = done else { continue };
        found.insert(host, answer);
    }
    let mut out = Vec::new();
    let mut failed = None;
    for (srv, direct_tls, secure) in records {
        match found.get(&srv.host.to_ascii_lowercase()) {
            Some(Ok(answer)) => {
                let addresses = answer.records.iter().copied().take(MAX_ADDRESSES).collect();
                let secure = secure.zip(answer.secure).map(|(a, b)| a && b);
                out.push(Target {
                    host: srv.host,
                    addresses,
                    port: srv.port,
                    direct_tls,
                    from_operator: false,
                    secure,
                });
            }
            Some(Err(error)) => failed = failed.or_else(|| Some((srv.host, error.clone()))),
            None => failed = failed.or(Some((srv.host, DnsError::Other("the lookup was cut short".into())))),
        }
    }
    match failed {
        Some((host, error)) if out.is_empty() => Err(TargetError::NoAddress { host, error }),
        _ => Ok(out),
    }
}

/// The real thing: asks the name servers that the system is configured with.
pub struct SystemResolver {
    inner: TokioResolver,
}

impl fmt::Debug for SystemResolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SystemResolver")
    }
}

impl SystemResolver {
    /// Reads the system's configuration (`/etc/resolv.conf`, `/etc/hosts`). Without one the name server is expected
    /// on this machine, as the C library does.
    pub fn new() -> Result<SystemResolver, DnsError> {
        match TokioResolver::builder_tokio() {
            Ok(builder) => SystemResolver::build(builder),
            Err(error) => {
                tracing::warn!(%error, "the system's DNS configuration cannot be read, asking 127.0.0.1");
                SystemResolver::with_servers(&[SocketAddr::from(([127, 0, 0, 1], 53))])
            }
        }
    }

    /// Asks these name servers only.
    pub fn with_servers(servers: &[SocketAddr]) -> Result<SystemResolver, DnsError> {
        let one = |server: &SocketAddr| {
            let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
                connection.port = server.port();
                connection
            });
            NameServerConfig::new(server.ip(), true, connections.into())
        };
        let config = ResolverConfig::from_name_servers(servers.iter().map(one).collect());
        SystemResolver::build(TokioResolver::builder_with_config(config, TokioRuntimeProvider::default()))
    }

    fn build(mut builder: ResolverBuilder<TokioRuntimeProvider>) -> Result<SystemResolver, DnsError> {
        let options = builder.options_mut();
        options.timeout = ONE_QUERY;
        options.attempts = 2;
        options.cache_size = CACHE_ENTRIES;
        options.positive_max_ttl = Some(CACHE_AT_MOST);
        options.negative_max_ttl = Some(CACHE_FAILURES_AT_MOST);
        options.try_tcp_on_error = true;
        let inner = builder.build().map_err(|e| DnsError::Other(e.to_string()))?;
        Ok(SystemResolver { inner })
    }

    async fn lookup<T>(
        &self,
        name: &str,
        kind: RecordType,
        read: impl Fn(&RData) -> Option<T>,
    ) -> Result<Vec<T>, DnsError> {
        // The dot at the end keeps the system's search domains out.
        let question = self.inner.lookup(format!("{name}."), kind);
        let answer = tokio::time::timeout(ALL_QUERIES, question).await.map_err(|_| DnsError::Timeout)?;
        let answer = answer.map_err(|error| explain(&error))?;
        // What lies beyond the bound is ignored: nobody needs it.
        let records: Vec<T> =
            answer.answers().iter().filter_map(|record| read(&record.data)).take(MAX_RECORDS).collect();
        if records.is_empty() { Err(DnsError::NoRecords) } else { Ok(records) }
    }
}

impl Resolver for SystemResolver {
    fn srv<'a>(&'a self, name: &'a str) -> Boxed<'a, Result<Answer<Srv>, DnsError>> {
        Box::pin(async move {
            let read = |data: &RData| match data {
                RData::SRV(srv) => Some(Srv {
                    priority: srv.priority,
                    weight: srv.weight,
                    port: srv.port,
                    host: srv.target.to_ascii().trim_end_matches('.').to_owned(),
                }),
                _ => None,
            };
            Ok(Answer { records: self.lookup(name, RecordType::SRV, read).await?, secure: None })
        })
    }

    fn addresses<'a>(&'a self, host: &'a str) -> Boxed<'a, Result<Answer<IpAddr>, DnsError>> {
        Box::pin(async move {
            let read = |data: &RData| match data {
                RData::A(a) => Some(IpAddr::V4(a.0)),
                RData::AAAA(aaaa) => Some(IpAddr::V6(aaaa.0)),
                _ => None,
            };
            let (v6, v4) = tokio::join!(
                self.lookup(host, RecordType::AAAA, read),
                self.lookup(host, RecordType::A, read)
            );
            // One family may be missing, or its name server ill, as long as the other is there.
            match (v6, v4) {
                (Err(v6), Err(v4)) => Err(if v4.is_answer() && !v6.is_answer() { v6 } else { v4 }),
                (v6, v4) => {
                    let records = v6.unwrap_or_default().into_iter().chain(v4.unwrap_or_default()).collect();
                    Ok(Answer { records, secure: None })
                }
            }
        })
    }
}

fn explain(error: &NetError) -> DnsError {
    match error {
        NetError::Dns(HickoryDnsError::NoRecordsFound(none))
            if none.response_code == ResponseCode::NXDomain =>
        {
            DnsError::NoSuchName
        }
        NetError::Dns(HickoryDnsError::NoRecordsFound(none))
            if none.response_code == ResponseCode::ServFail =>
        {
            DnsError::ServFail
        }
        NetError::Dns(HickoryDnsError::NoRecordsFound(_)) => DnsError::NoRecords,
        NetError::Dns(HickoryDnsError::ResponseCode(ResponseCode::Refused)) => DnsError::Refused,
        NetError::Dns(HickoryDnsError::ResponseCode(ResponseCode::ServFail)) => DnsError::ServFail,
        NetError::Timeout => DnsError::Timeout,
        NetError::Proto(error) => DnsError::Other(error.to_string()),
        other => DnsError::Other(other.to_string()),
    }
}

/// DNS for tests: what was put in comes out; everything else does not exist.
#[derive(Debug, Default)]
pub struct FakeResolver {
    zone: Mutex<Zone>,
}

#[derive(Debug, Default)]
struct Zone {
    srv: HashMap<String, Vec<Srv>>,
    addresses: HashMap<String, Vec<IpAddr>>,
    failures: HashMap<String, DnsError>,
    delays: HashMap<String, Duration>,
}

impl FakeResolver {
    /// An empty world.
    pub fn new() -> FakeResolver {
        FakeResolver::default()
    }

    /// Adds an SRV record under its full name: `(priority, weight, port)`, host.
    pub fn srv(self, name: &str, (priority, weight, port): (u16, u16, u16), host: &str) -> FakeResolver {
        let srv = Srv { priority, weight, port, host: host.into() };
        self.zone.lock().srv.entry(name.into()).or_default().push(srv);
        self
    }

    /// Adds an address.
    pub fn address(self, host: &str, address: IpAddr) -> FakeResolver {
        self.zone.lock().addresses.entry(host.into()).or_default().push(address);
        self
    }

    /// Makes every question for a name fail.
    pub fn fail(self, name: &str, error: DnsError) -> FakeResolver {
        self.set_failure(name, Some(error));
        self
    }

    /// Lets every question for a name wait.
    pub fn delay(self, name: &str, delay: Duration) -> FakeResolver {
        self.zone.lock().delays.insert(name.into(), delay);
        self
    }

    /// Makes a name fail, or work again, while in use.
    pub fn set_failure(&self, name: &str, error: Option<DnsError>) {
        let mut zone = self.zone.lock();
        match error {
            Some(error) => zone.failures.insert(name.into(), error),
            None => zone.failures.remove(name),
        };
    }

    async fn answer<T>(
        &self,
        name: &str,
        records: impl Fn(&Zone) -> Option<Vec<T>>,
    ) -> Result<Answer<T>, DnsError> {
        let delay = self.zone.lock().delays.get(name).copied();
        if let Some(delay) = delay {
            tokio::time::sleep(delay).await;
        }
        let zone = self.zone.lock();
        if let Some(error) = zone.failures.get(name) {
            return Err(error.clone());
        }
        let known = zone.srv.contains_key(name) || zone.addresses.contains_key(name);
        match records(&zone) {
            Some(records) => Ok(Answer { records, secure: None }),
            None => Err(if known { DnsError::NoRecords } else { DnsError::NoSuchName }),
        }
    }
}

impl Resolver for FakeResolver {
    fn srv<'a>(&'a self, name: &'a str) -> Boxed<'a, Result<Answer<Srv>, DnsError>> {
        Box::pin(self.answer(name, move |zone| zone.srv.get(name).cloned()))
    }

    fn addresses<'a>(&'a self, host: &'a str) -> Boxed<'a, Result<Answer<IpAddr>, DnsError>> {
        Box::pin(self.answer(host, move |zone| zone.addresses.get(host).cloned()))
    }
}
