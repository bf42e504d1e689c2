//! First contacts that wait for the consent of the one they are for.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use trunkline_store::{Batch, Lane, StoreError, Value, sql};
use trunkline_xmpp::jid::Jid;

use crate::admin::actor::Actor;
use crate::admin::{OpError, Outcome};
use crate::control::traffic::Event;
use crate::exchange::Exchange;
use crate::route::consent::index::Index;
use crate::route::consent::{Intake, Lines};

/// First contacts shown on one page.
const PAGE: usize = 100;

/// Who may write to whom, and what waits to be sorted: the state of [`crate::route::consent`].
#[derive(Debug, Default)]
pub struct Requests {
    pub(crate) index: Index,
    pub(crate) intake: Intake,
    pub(crate) lines: Lines,
}

/// What moderators can ask and do about first contacts. What people wrote is not shown to them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "do", rename_all = "kebab-case", deny_unknown_fields)]
pub enum RequestsOp {
    /// What waits, newest first, a page at a time.
    List {
        /// From this domain only.
        #[serde(default)]
        domain: Option<String>,
        /// Older than this id: the last one of the page before.
        #[serde(default)]
        before: Option<i64>,
    },
    /// Throws away what waits from one address, or from all of a domain.
    Drop {
        /// A bare address or a domain.
        from: String,
        /// For the audit log.
        why: String,
    },
}

/// A first contact that waits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RequestView {
    /// Grows with time.
    pub id: i64,
    /// Whose consent it waits for.
    pub account: String,
    /// From whom.
    pub from: String,
    /// Stanzas held.
    pub stanzas: u64,
    /// The first of them, milliseconds since 1970.
    pub since: i64,
    /// A subscription request is among them.
    pub asks_subscription: bool,
}

impl Requests {
    /// A stanza is held.
    pub(crate) fn held(&self, exchange: &Exchange, domain: &str) {
        exchange.control.traffic.count(domain, Event::Held);
    }

    /// A user has answered a first contact: accepted, or not.
    pub(crate) fn answered(&self, exchange: &Exchange, (domain, accepted): (&str, bool)) {
        exchange.control.traffic.count(domain, if accepted { Event::Accepted } else { Event::Declined });
    }
}

/// Runs an operation.
///
/// # Errors
/// What the caller did wrong, or the store's.
pub async fn run(exchange: &Arc<Exchange>, actor: &Actor, op: RequestsOp) -> Result<Outcome, OpError> {
    match op {
        RequestsOp::List { domain, before } => {
            let (requests, more) = list(exchange, domain.as_deref(), before).await?;
            Ok(Outcome::Requests { requests, more })
        }
        RequestsOp::Drop { from, why } => throw_away(exchange, actor, (&from, &why)).await,
    }
}

async fn list(
    exchange: &Exchange,
    domain: Option<&str>,
    before: Option<i64>,
) -> Result<(Vec<RequestView>, bool), OpError> {
    let statement =
        sql("SELECT f.id, a.local, h.name, f.peer, f.stanzas, f.changed_at, f.asks FROM first_contacts f \
         JOIN accounts a ON a.id = f.account JOIN hosts h ON h.id = a.host_id \
         WHERE f.state = 0 AND (?1 IS NULL OR f.domain = ?1) AND f.id < ?2 ORDER BY f.id DESC LIMIT ?3")
        .bind(domain.map_or(Value::Null, Into::into))
        .bind(before.unwrap_or(i64::MAX))
        .bind(i64::try_from(PAGE + 1).unwrap_or(i64::MAX));
    let rows = exchange.db.read(statement).await.map_err(store)?;
    let requests = rows.iter().take(PAGE).map(|row| RequestView {
        id: row.int(0),
        account: format!("{}@{}", row.text(1), row.text(2)),
        from: row.text(3).to_owned(),
        stanzas: u64::try_from(row.int(4)).unwrap_or(0),
        since: row.int(5),
        asks_subscription: row.bool(6),
    });
    Ok((requests.collect(), rows.len() > PAGE))
}

/// One after the other, oldest first: what comes meanwhile stays.
async fn throw_away(
    exchange: &Arc<Exchange>,
    actor: &Actor,
    (from, why): (&str, &str),
) -> Result<Outcome, OpError> {
    let whom = Jid::parse(from).ok().filter(|whom| whom.resource().is_none()).ok_or_else(|| {
        OpError::BadAddress(format!("{} is no bare address and no domain", from.escape_debug()))
    })?;
    let peer = whom.local().map_or(Value::Null, |_| whom.as_str().into());
    let last = exchange.ids.next().0;
    let what = serde_json::json!({ "from": whom.as_str() }).to_string();
    let entry = exchange.control.audit.entry(actor, "requests drop", why, (Some(what), None));
    let (mut after, mut dropped) = (i64::MIN, 0_u64);
    loop {
        let statement = sql("SELECT f.id, a.local, h.name, f.peer FROM first_contacts f \
             JOIN accounts a ON a.id = f.account JOIN hosts h ON h.id = a.host_id \
             WHERE f.state = 0 AND f.domain = ?1 AND (?2 IS NULL OR f.peer = ?2) AND f.id > ?3 AND f.id < ?4 \
             ORDER BY f.id LIMIT ?5")
        .bind(whom.domain())
        .bind(peer.clone())
        .bind(after)
        .bind(last)
        .bind(i64::try_from(PAGE).unwrap_or(i64::MAX));
        let rows = exchange.db.read(statement).await.map_err(store)?;
        for row in rows.iter() {
            after = row.int(0);
            let account = Jid::from_parts(Some(row.text(1)), row.text(2), None);
            let (Ok(account), Ok(peer)) = (account, Jid::parse(row.text(3))) else { continue };
            let mut batch = Batch::new(Lane::Inside);
            // One entry for all, with the first that goes.
            if dropped == 0 {
                batch.push(entry.clone());
            }
            let gone = exchange.drop_first_contact((&account, &peer), batch).await.map_err(store)?;
            dropped += u64::from(gone);
        }
        if rows.len() < PAGE {
            break;
        }
    }
    Ok(Outcome::Done { text: format!("{dropped} first contacts from {whom} were thrown away.") })
}

fn store(error: StoreError) -> OpError {
    OpError::Store(error.to_string())
}
