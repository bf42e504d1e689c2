//! What each peer domain sends, gets and is refused: counters, and their history at falling resolution.

mod counts;
mod latency;

use std::collections::BTreeMap;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::breaker::Level;
use super::policy::RuleView;
use crate::admin::actor::Actor;
use crate::admin::{OpError, Outcome};
use crate::exchange::Exchange;

pub use counts::{Event, Facts, MOST_DOMAINS, MOST_SERIES, Traffic};

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
}

/// Runs an operation.
///
/// # Errors
/// What the caller did wrong, or the store's.
pub async fn run(_exchange: &Arc<Exchange>, _actor: &Actor, op: DomainsOp) -> Result<Outcome, OpError> {
    Err(OpError::NotPossible(format!("{op:?} is not built yet")))
}
