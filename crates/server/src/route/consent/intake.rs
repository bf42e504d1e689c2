//! What strangers sent and nobody has looked at yet: one row for each stanza, whoever it is for.
//!
//! The acknowledgement waits for this row only. A worker sorts them at moments of its own: whatever it finds about the
//! account shows in nothing that a stranger can see.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::{JoinError, JoinSet};
use trunkline_store::{Batch, Lane, Statement, StoreError, sql};
use trunkline_xmpp::error::{Condition, StanzaError};
use trunkline_xmpp::jid::Jid;
use trunkline_xmpp::stanza::{Kind, PresenceType, Stanza};

use super::index::Pair;
use crate::exchange::Exchange;
use crate::ids::LogId;
use crate::logging::Refusal;
use crate::route::presence::delayed;
use crate::route::{Mail, Origin};

/// Rows sorted before the next pause.
const PAGE: i64 = 64;
/// The pause lasts at least so many times as long as the sorting took: a quarter of the time is for strangers.
const SHARE: u32 = 3;
/// Domains whose rows are sorted at the same time.
const AT_ONCE: usize = 16;
/// The pause before rows are sorted: from, and so much more at most.
const PAUSE: (u64, u8) = (50, 100);
/// The pause after the store has failed.
const TROUBLE: Duration = Duration::from_secs(5);
/// The pause between two rounds of throwing away what is too old.
const ROUND: Duration = Duration::from_secs(600);

/// What waits to be sorted, counted.
#[derive(Debug, Default)]
pub(crate) struct Intake {
    waiting: Mutex<Waiting>,
    filled: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    all: usize,
    /// By the sender's domain; those with none are not here.
    domains: HashMap<String, usize>,
}

impl Intake {
    /// One more waits.
    pub(super) fn enter(&self, domain: &str) {
        let mut waiting = self.waiting.lock();
        waiting.all += 1;
        *waiting.domains.entry(domain.to_owned()).or_default() += 1;
        drop(waiting);
        self.filled.notify_one();
    }

    /// One more waits, if there is room.
    fn admit(&self, domain: &str, (all, each): (usize, usize)) -> bool {
        let full = {
            let waiting = self.waiting.lock();
            waiting.all >= all || waiting.domains.get(domain).is_some_and(|count| *count >= each)
        };
        if !full {
            self.enter(domain);
        }
        !full
    }

    fn leave(&self, domain: &str) {
        let mut waiting = self.waiting.lock();
        waiting.all = waiting.all.saturating_sub(1);
        if let Some(count) = waiting.domains.get_mut(domain) {
            *count -= 1;
            if *count == 0 {
                waiting.domains.remove(domain);
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.waiting.lock().all == 0
    }
}

impl Exchange {
    /// Keeps a stranger's stanza, whoever it is for.
    pub(super) fn take_in(self: &Arc<Self>, mail: Mail) {
        let Some(from) = &mail.stanza.head.from else { return };
        let domain = from.domain().to_owned();
        let bounds = {
            let consent = &self.config.load().consent;
            (consent.intake_stanzas, consent.intake_peer_stanzas)
        };
        if !self.control.requests.intake.admit(&domain, bounds) {
            self.first_contact_refused("first-contacts-unsorted", &domain);
            let error =
                StanzaError::new(Condition::ResourceConstraint).text("Too much at once. Try again later.");
            return self.bounce(&mail.stanza, &error);
        }
        let mut bytes = Vec::with_capacity(mail.stanza.size() + 32);
        mail.stanza.write(&mut bytes);
        let row = sql("INSERT INTO intake (id, stanza) VALUES (?1, ?2)").bind(self.ids.next().0).bind(bytes);
        let exchange = Arc::clone(self);
        self.commit_then(Batch::new(Lane::Outside).with(row), (mail.receipt, &mail.stanza), move |done| {
            if !done {
                exchange.control.requests.intake.leave(&domain);
            }
        });
    }

    /// A first contact that is not kept: counted, and named in the log. The sender sees silence.
    pub(super) fn first_contact_refused(&self, name: &'static str, domain: &str) {
        self.refusals.report(Refusal { name, peer: domain, conn: 0, detail: "a first contact was not kept" });
    }

    /// Sorts what has come, a page at most: what one domain sent in its order, so that its bounds are counted exactly;
    /// several domains at once, so that none waits for the others' disk.
    async fn sort_page(self: &Arc<Self>) -> Result<(), StoreError> {
        let page = sql("SELECT id, stanza FROM intake ORDER BY id LIMIT ?1").bind(PAGE);
        let rows = self.db.read_in(Lane::Outside, page).await?;
        let mut domains: BTreeMap<String, Vec<(LogId, Option<Stanza>)>> = BTreeMap::new();
        for row in rows.iter() {
            let stanza = Stanza::parse(row.blob(1)).ok();
            let from = stanza.as_ref().and_then(|stanza| stanza.head.from.as_ref());
            let domain = from.map_or(String::new(), |from| from.domain().to_owned());
            domains.entry(domain).or_default().push((LogId(row.int(0)), stanza));
        }
        let mut sorting = JoinSet::new();
        let mut outcome = Ok(());
        for (domain, rows) in domains {
            if sorting.len() >= AT_ONCE {
                outcome = outcome.and(ended(sorting.join_next().await));
            }
            let exchange = Arc::clone(self);
            sorting.spawn(async move { exchange.sort_domain(&domain, rows).await });
        }
        while !sorting.is_empty() {
            outcome = outcome.and(ended(sorting.join_next().await));
        }
        outcome
    }

    async fn sort_domain(
        self: &Arc<Self>,
        domain: &str,
        rows: Vec<(LogId, Option<Stanza>)>,
    ) -> Result<(), StoreError> {
        let mut gone = Batch::new(Lane::Outside);
        let mut outcome = Ok(());
        for (id, stanza) in rows {
            let from = stanza.as_ref().and_then(|stanza| stanza.head.from.clone());
            if let (Some(stanza), Some(from)) = (stanza, from) {
                outcome = self.sort_one((id, stanza), &from).await;
                if outcome.is_err() {
                    break;
                }
            }
            // Also what went with what was done: a row is deleted in the same way, whatever was in it.
            gone.push(sorted_row(id));
        }
        let sorted = gone.len();
        if sorted > 0 {
            self.db.run(gone).await?;
        }
        for _ in 0..sorted {
            self.control.requests.intake.leave(domain);
        }
        outcome
    }

    async fn sort_one(self: &Arc<Self>, (id, stanza): (LogId, Stanza), from: &Jid) -> Result<(), StoreError> {
        let Some(to) = stanza.head.to.clone() else { return Ok(()) };
        let Some(host) = self.host(to.domain()) else { return Ok(()) };
        let pair = Pair::of(host, &to, from);
        let relation = match self.consents().now(&pair) {
            Some(relation) => relation,
            None => self.consents().read(&self.db, &pair).await?,
        };
        // The same reading whether the account exists or not.
        let Some(account) = self.accounts.load_in(Lane::Outside, &self.db, &to).await? else {
            return Ok(());
        };
        let kind = stanza.head.kind;
        let mail = |origin, stanza| Mail { stanza, origin, receipt: None };
        if let Kind::Presence(kind @ (PresenceType::Subscribe | PresenceType::Unsubscribe)) = kind {
            let origin = if relation.is_some() { Origin::Known } else { Origin::Outside };
            self.subscribe_to(account, kind, (mail(origin, stanza), Some(id))).await;
            return Ok(());
        }
        if relation.is_some() {
            // Somebody has consented meanwhile.
            let stanza = delayed(&stanza, account.jid.domain(), id);
            let batch = Batch::new(Lane::Outside).with(sorted_row(id));
            self.receive_with(&account, mail(Origin::Known, stanza), batch);
            return Ok(());
        }
        self.hold_message(&account, (id, &stanza)).await
    }
}

/// A bug in one stanza's handling is logged by its panic; its rows are tried again.
fn ended(task: Option<Result<Result<(), StoreError>, JoinError>>) -> Result<(), StoreError> {
    match task {
        Some(Ok(outcome)) => outcome,
        Some(Err(error)) => Err(StoreError::Other(error.to_string())),
        None => Ok(()),
    }
}

/// The statement that takes a row out of the intake.
pub(super) fn sorted_row(id: LogId) -> Statement {
    sql("DELETE FROM intake WHERE id = ?1").bind(id.0)
}

/// Sorts, for ever.
pub(crate) async fn sort(exchange: Arc<Exchange>) {
    let mut round = tokio::time::Instant::now();
    let mut worked = Duration::ZERO;
    loop {
        let intake = &exchange.control.requests.intake;
        if intake.is_empty() {
            let _ = tokio::time::timeout(ROUND, intake.filled.notified()).await;
        }
        let mut chance = [0u8; 1];
        let _ = getrandom::fill(&mut chance);
        let more = u64::from(chance[0]) * u64::from(PAUSE.1) / 255;
        tokio::time::sleep(Duration::from_millis(PAUSE.0 + more) + worked * SHARE).await;
        let begin = tokio::time::Instant::now();
        let sorted = exchange.sort_page().await;
        worked = begin.elapsed();
        if let Err(error) = sorted {
            tracing::warn!(%error, "first contacts could not be sorted");
            tokio::time::sleep(TROUBLE).await;
        }
        if round.elapsed() >= ROUND {
            round = tokio::time::Instant::now();
            if let Err(error) = exchange.forget_old_contacts().await {
                tracing::warn!(%error, "old first contacts could not be thrown away");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_domain_is_bounded_and_leaves_room_for_others() {
        let intake = Intake::default();
        assert!(intake.admit("flood.example", (3, 2)) && intake.admit("flood.example", (3, 2)));
        assert!(!intake.admit("flood.example", (3, 2)));
        assert!(intake.admit("other.example", (3, 2)));
        assert!(!intake.admit("third.example", (3, 2)), "all together");
        intake.leave("flood.example");
        assert!(intake.admit("third.example", (3, 2)));
        for domain in ["flood.example", "other.example", "third.example"] {
            intake.leave(domain);
        }
        assert!(intake.is_empty() && intake.waiting.lock().domains.is_empty(), "nothing is left behind");
    }
}
