//! What each peer domain sends, gets and is refused: counters, and their history at falling resolution.

mod counts;
pub(crate) mod history;
mod latency;
mod row;
pub(crate) mod series;

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use trunkline_store::sql;
use trunkline_xmpp::jid::Jid;

use super::Access;
use super::breaker::{self, BreakerOp, BreakerView, Level};
use super::policy::{self, PolicyOp, RuleView};
use super::rule::Authentication;
use crate::admin::actor::Actor;
use crate::admin::{OpError, Outcome, PeerStatus};
use crate::exchange::Exchange;
use crate::metrics::{Direction, KINDS, StanzaKind};
use row::Row;

pub use counts::{Facts, MOST_DOMAINS, MOST_SERIES, Traffic};
pub use row::Event;

/// What can be asked about peer domains.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "do", rename_all = "kebab-case", deny_unknown_fields)]
pub enum DomainsOp {
    /// Inside and outside at this moment.
    Now,
    /// Peer domains, a page at a time.
    List {
        /// Containing this text.
        #[serde(default)]
        search: Option<String>,
        /// `domain`, `first-seen`, `in`, `out`, `refused`, `held`, `reports`, `reputation`, `queue`.
        #[serde(default)]
        sort: Option<String>,
        /// From this place on, from 0.
        #[serde(default)]
        offset: u32,
    },
    /// All about one domain.
    Show {
        /// Which.
        domain: String,
    },
    /// How it was.
    History {
        /// `None`: all together.
        #[serde(default)]
        domain: Option<String>,
        /// So many hours back, 720 at most.
        hours: u32,
    },
}

/// This moment: rates of the last ten seconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct NowView {
    /// Milliseconds since 1970.
    pub at: i64,
    /// Stanzas a second among local users.
    pub inside: f64,
    /// Stanzas a second from outside.
    pub outside_in: f64,
    /// Stanzas a second to the outside.
    pub outside_out: f64,
    /// Sessions of local users.
    pub sessions: u64,
    /// Peer domains with a stream.
    pub peers: u64,
    /// The breaker's level for all.
    pub level: Level,
    /// Domains with a level of their own.
    pub levels: u64,
    /// What was refused in the last minute, by name.
    pub refused: BTreeMap<String, u64>,
    /// The busiest domains of the last minute, in and out together: name and stanzas.
    pub busiest: Vec<(String, u64)>,
    /// Requests that wait for consent, of all accounts.
    pub requests: u64,
    /// Reports that wait for a moderator.
    pub reports: u64,
}

/// A peer domain in the table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DomainSummary {
    /// Its name.
    pub domain: String,
    /// As in `federation status`.
    pub state: String,
    /// Milliseconds since 1970.
    pub first_seen: i64,
    /// Milliseconds since 1970.
    pub last_seen: i64,
    /// Stanzas from it, since first seen.
    pub stanzas_in: u64,
    /// Stanzas to it.
    pub stanzas_out: u64,
    /// Stanzas and streams of it that were refused.
    pub refused: u64,
    /// First contacts held.
    pub held: u64,
    /// Reports about its users.
    pub reports: u64,
    /// 0 to 100.
    pub reputation: u8,
    /// Stanzas that wait for it.
    pub queue: u64,
    /// Its own level of the breaker, or that for all.
    pub level: Level,
    /// A rule blocks it.
    pub blocked: bool,
}

/// All about one domain.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DomainDetail {
    /// As in the table.
    pub summary: DomainSummary,
    /// Stanzas and bytes by kind and direction (`message-in`), handshakes, failures by name, refusals by name.
    pub counters: BTreeMap<String, u64>,
    /// Milliseconds from writing to its acknowledgement (XEP-0198): median and 99th percentile of late.
    pub acknowledged_after: Option<(f64, f64)>,
    /// The oldest that waits, milliseconds of age.
    pub queue_age: Option<i64>,
    /// The certificate it showed last: subject, issuer, end, in words.
    pub certificate: Vec<String>,
    /// `certificate`, `dialback` or nothing yet.
    pub authentication: Option<String>,
    /// Why it has the reputation it has: points and words, largest first.
    pub reputation_reasons: Vec<(i32, String)>,
    /// Rules that name it.
    pub sanctions: Vec<RuleView>,
    /// Whom to contact there (XEP-0157), as it says.
    pub contacts: Vec<String>,
    /// The last thing that went wrong, in words.
    pub last_error: Option<String>,
}

/// One point of the history; counts within one step.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HistoryPoint {
    /// The step's begin, milliseconds since 1970.
    pub at: i64,
    /// Stanzas in.
    pub stanzas_in: u64,
    /// Stanzas out.
    pub stanzas_out: u64,
    /// Bytes in.
    pub bytes_in: u64,
    /// Bytes out.
    pub bytes_out: u64,
    /// Refused.
    pub refused: u64,
    /// Held.
    pub held: u64,
    /// Reports.
    pub reports: u64,
    /// Stanzas from local users, whoever they are for. Only of all together.
    #[serde(default)]
    pub inside_in: u64,
    /// Stanzas to local users, wherever they are from. Only of all together.
    #[serde(default)]
    pub inside_out: u64,
}

/// Domains on one page of the list.
pub const PAGE: usize = 100;
/// Names in the list of the busiest.
const BUSIEST: usize = 10;

/// Runs an operation.
///
/// # Errors
/// What the caller did wrong, or the store's.
pub async fn run(exchange: &Arc<Exchange>, actor: &Actor, op: DomainsOp) -> Result<Outcome, OpError> {
    match op {
        DomainsOp::Now => Ok(Outcome::Now(Box::new(now(exchange, actor).await?))),
        DomainsOp::List { search, sort, offset } => {
            list(exchange, actor, (search.as_deref(), sort.as_deref(), offset)).await
        }
        DomainsOp::Show { domain } => show(exchange, actor, &canonical(&domain)?).await,
        DomainsOp::History { domain, hours } => {
            if !(1..=history::LONGEST).contains(&hours) {
                return Err(OpError::BadRequest(format!("hours: 1 to {}", history::LONGEST)));
            }
            let domain = domain.map(|domain| canonical(&domain)).transpose()?;
            let (step, points) = history::history(exchange, domain.as_deref(), hours)
                .await
                .map_err(|error| OpError::Store(error.to_string()))?;
            Ok(Outcome::History { step, points })
        }
    }
}

fn canonical(domain: &str) -> Result<String, OpError> {
    let jid = Jid::parse(domain).ok().filter(Jid::is_domain);
    jid.map(|jid| jid.as_str().to_owned())
        .ok_or_else(|| OpError::BadAddress(format!("{} is not a domain", domain.escape_debug())))
}

/// What other parts know of domains.
struct Surroundings {
    peers: HashMap<String, PeerStatus>,
    breaker: BreakerView,
    rules: Vec<RuleView>,
}

impl Surroundings {
    async fn of(exchange: &Arc<Exchange>, actor: &Actor) -> Result<Surroundings, OpError> {
        let peers = exchange.remote.get().map(|remote| remote.status().peers).unwrap_or_default();
        let breaker = match breaker::run(exchange, actor, BreakerOp::Show).await? {
            Outcome::Breaker(view) => view,
            _ => BreakerView::default(),
        };
        let rules = match policy::run(exchange, actor, PolicyOp::Show).await? {
            Outcome::Policy(view) => view.rules,
            _ => Vec::new(),
        };
        let peers = peers.into_iter().map(|peer| (peer.domain.clone(), peer)).collect();
        Ok(Surroundings { peers, breaker, rules })
    }

    /// Rules that name the domain.
    fn sanctions(&self, domain: &str) -> Vec<RuleView> {
        let names = |rule: &&RuleView| {
            let when = &rule.rule.when;
            let named = |name: &str| {
                name == domain
                    || (when.subdomains && domain.strip_suffix(name).is_some_and(|rest| rest.ends_with('.')))
            };
            let address = when.address.as_deref().and_then(|address| address.rsplit_once('@'));
            when.domain.as_deref().is_some_and(named) || address.is_some_and(|(_, host)| host == domain)
        };
        self.rules.iter().filter(names).cloned().collect()
    }

    fn summary(&self, exchange: &Exchange, domain: &str, row: Option<&Row>) -> DomainSummary {
        let peer = self.peers.get(domain);
        let empty = Row::default();
        let row = row.unwrap_or(&empty);
        DomainSummary {
            domain: domain.to_owned(),
            state: peer.map_or_else(|| "idle".to_owned(), |peer| peer.state.clone()),
            first_seen: row.first_seen,
            last_seen: row.last_seen,
            stanzas_in: row.tally.stanzas(Direction::In),
            stanzas_out: row.tally.stanzas(Direction::Out),
            refused: row.tally.refused,
            held: row.tally.held,
            reports: row.tally.reported,
            reputation: reputation(exchange, domain).0,
            queue: peer.map_or(0, |peer| peer.queue_stanzas.max(peer.queue_kept)),
            level: level(exchange, domain),
            blocked: matches!(exchange.control.access(domain), Access::Blocked(_)),
        }
    }
}

/// Its own level, or that for all if it is higher.
fn level(exchange: &Exchange, domain: &str) -> Level {
    let breaker = &exchange.control.breaker;
    breaker.of(domain, exchange.clock().now()).map_or(Level::Normal, |set| set.level)
}

/// The score of a domain, and its reasons.
fn reputation(exchange: &Exchange, domain: &str) -> (u8, Vec<(i32, String)>) {
    let judged = exchange.control.reputation.judgement(domain);
    (judged.score, judged.reasons)
}

async fn now(exchange: &Arc<Exchange>, actor: &Actor) -> Result<NowView, OpError> {
    let traffic = &exchange.control.traffic;
    let around = Surroundings::of(exchange, actor).await?;
    let [inside, outside_in, outside_out] = traffic.total.lock().rates;
    Ok(NowView {
        at: traffic.now(),
        inside,
        outside_in,
        outside_out,
        sessions: u64::try_from(exchange.metrics.sessions.get()).unwrap_or(0),
        peers: around.peers.values().filter(|peer| !peer.streams.is_empty()).count() as u64,
        level: around.breaker.all.level,
        levels: around.breaker.domains.len() as u64,
        refused: traffic.refused_lately(),
        busiest: traffic.busiest(BUSIEST),
        requests: waiting(exchange).await?,
        reports: exchange.open_reports().await?,
    })
}

/// First contacts that wait, of all accounts.
async fn waiting(exchange: &Exchange) -> Result<u64, OpError> {
    let rows = exchange.db.read(sql("SELECT COUNT(*) FROM first_contacts WHERE state = 0")).await;
    let rows = rows.map_err(|error| OpError::Store(error.to_string()))?;
    Ok(rows.first().and_then(|row| u64::try_from(row.int(0)).ok()).unwrap_or(0))
}

async fn list(
    exchange: &Arc<Exchange>,
    actor: &Actor,
    (search, sort, offset): (Option<&str>, Option<&str>, u32),
) -> Result<Outcome, OpError> {
    type Key = fn(&DomainSummary) -> u64;
    let key: Option<Key> = match sort.unwrap_or("domain") {
        "domain" => None,
        "first-seen" => Some(|domain| u64::try_from(domain.first_seen).unwrap_or(0)),
        "in" => Some(|domain| domain.stanzas_in),
        "out" => Some(|domain| domain.stanzas_out),
        "refused" => Some(|domain| domain.refused),
        "held" => Some(|domain| domain.held),
        "reports" => Some(|domain| domain.reports),
        // Those first that deserve a look.
        "reputation" => Some(|domain| u64::from(u8::MAX - domain.reputation)),
        "queue" => Some(|domain| domain.queue),
        _ => {
            let text = "sort: one of domain, first-seen, in, out, refused, held, reports, reputation, queue";
            return Err(OpError::BadRequest(text.into()));
        }
    };
    let around = Surroundings::of(exchange, actor).await?;
    let search = search.unwrap_or_default().to_lowercase();
    let rows = exchange.control.traffic.rows();
    let known: HashSet<&str> = rows.iter().map(|(domain, _)| domain.as_str()).collect();
    // Domains that nobody has proved yet: somebody here writes to them.
    let unproved = around.peers.keys().filter(|domain| !known.contains(domain.as_str()));
    let mut domains: Vec<DomainSummary> = unproved
        .filter(|domain| domain.contains(&search))
        .map(|domain| around.summary(exchange, domain, None))
        .collect();
    let found = rows.iter().filter(|(domain, _)| domain.contains(&search));
    domains.extend(found.map(|(domain, row)| around.summary(exchange, domain, Some(&row.lock()))));
    domains.sort_by(|a, b| {
        let by_key = key.map_or(Ordering::Equal, |key| key(b).cmp(&key(a)));
        by_key.then_with(|| a.domain.cmp(&b.domain))
    });
    let total = domains.len() as u64;
    let offset = usize::try_from(offset).unwrap_or(usize::MAX);
    Ok(Outcome::Domains { domains: domains.into_iter().skip(offset).take(PAGE).collect(), total })
}

async fn show(exchange: &Arc<Exchange>, actor: &Actor, domain: &str) -> Result<Outcome, OpError> {
    let around = Surroundings::of(exchange, actor).await?;
    let traffic = &exchange.control.traffic;
    let row = traffic.row(domain);
    let peer = around.peers.get(domain);
    let sanctions = around.sanctions(domain);
    // Blocks stand beside the rules, and so does a level of its own.
    let is_acted_on = exchange.control.policy.standing().blocked(domain, traffic.now()).is_some()
        || around.breaker.domains.iter().any(|level| level.domain.as_deref() == Some(domain));
    if row.is_none() && peer.is_none() && sanctions.is_empty() && !is_acted_on {
        return Err(OpError::NotFound(format!("domain {domain} that this server has seen")));
    }
    if peer.is_some_and(|peer| !peer.streams.is_empty()) {
        exchange.hear_of(domain).await;
    }
    let now = traffic.now();
    let mut detail = DomainDetail {
        summary: DomainSummary::default(),
        counters: BTreeMap::new(),
        acknowledged_after: None,
        queue_age: peer.and_then(|peer| peer.queue_oldest).map(|since| (now - since).max(0)),
        certificate: Vec::new(),
        authentication: None,
        reputation_reasons: reputation(exchange, domain).1,
        sanctions,
        contacts: exchange.control.profiles.contacts(domain),
        last_error: peer.and_then(|peer| peer.last_error.as_ref()).map(|error| error.text.clone()),
    };
    let Some(row) = row else {
        detail.summary = around.summary(exchange, domain, None);
        return Ok(Outcome::Domain(Box::new(detail)));
    };
    let mut row = row.lock();
    detail.summary = around.summary(exchange, domain, Some(&row));
    detail.counters = counters(&row);
    detail.acknowledged_after = row.latencies.quantiles(now);
    detail.certificate = row.certificate.clone();
    detail.authentication = row.authentication.map(|by| match by {
        Authentication::Certificate => "certificate".to_owned(),
        Authentication::Dialback => "dialback".to_owned(),
    });
    Ok(Outcome::Domain(Box::new(detail)))
}

/// Everything that was counted of a domain: `message-in`, `message-bytes-in`, `refused.NAME`, `failed.NAME` (since the
/// start).
fn counters(row: &Row) -> BTreeMap<String, u64> {
    let mut counters = BTreeMap::new();
    let tally = &row.tally;
    for (kind, name) in [StanzaKind::Message, StanzaKind::Presence, StanzaKind::Iq].into_iter().zip(KINDS) {
        for (direction, way) in [(Direction::In, "in"), (Direction::Out, "out")] {
            let (kind, direction) = (kind as usize, direction as usize);
            counters.insert(format!("{name}-{way}"), tally.stanzas[kind][direction]);
            counters.insert(format!("{name}-bytes-{way}"), tally.bytes[kind][direction]);
        }
    }
    for (name, value) in [
        ("handshakes", tally.handshakes),
        ("failed", tally.failed),
        ("refused", tally.refused),
        ("held", tally.held),
        ("accepted", tally.accepted),
        ("declined", tally.declined),
        ("reports", tally.reported),
    ] {
        counters.insert(name.to_owned(), value);
    }
    counters.extend(row.names.iter().map(|((what, name), count)| (format!("{what}.{name}"), *count)));
    counters
}
