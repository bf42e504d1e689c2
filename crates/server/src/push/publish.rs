//! Publishing: one task for each registration that has something to say, at most [`MOST`] of them, so that a service
//! that hangs holds up nobody else's pushes.
//!
//! The task publishes, waits for the answer, and goes on while messages came meanwhile; several become one push. What
//! fails is tried again later and later; after too many failures in a row the registration is disabled, and kept with
//! the reason (s.7.1), until the device enables it again or a day has passed.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore};
use trunkline_store::{Batch, Lane, Value, sql};
use trunkline_xmpp::jid::Jid;
use trunkline_xmpp::stanza::IqType;

use super::{Notice, Order, payload};
use crate::control::asking::{AskError, Question};
use crate::exchange::Exchange;

/// Registrations that have something to say, at once; half of them may be of one service.
const MOST: usize = 4096;
/// Pushes that wait for their answer, at once.
const MOST_ASKED: usize = 512;
/// Those of one service.
const MOST_ASKED_OF_ONE: usize = 128;
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// From one push of a registration to the next: what comes meanwhile is one push. A call does not wait for it.
const PAUSE: Duration = Duration::from_secs(2);
/// Failures in a row after which a registration is disabled.
const MOST_FAILURES: i64 = 10;
/// What a clear "no" counts: three in a row are enough.
const CLEAR_NO: i64 = 4;
/// After the first failure; doubled with each further one.
const FIRST_WAIT: Duration = Duration::from_secs(10);

/// What is being published.
#[derive(Debug)]
pub struct Publisher {
    running: Mutex<Running>,
    turns: AtomicU64,
    asked: Semaphore,
    /// By domain.
    asked_of: Mutex<HashMap<String, Weak<Semaphore>>>,
}

#[derive(Debug, Default)]
struct Running {
    /// By the registration's key.
    slots: HashMap<i64, Slot>,
    /// How many of them are of one domain.
    of: HashMap<String, usize>,
}

/// A registration that has something to say.
#[derive(Debug)]
struct Slot {
    /// Which task has it: one that was stopped may still run for a moment.
    turn: u64,
    domain: String,
    /// What came since the last push.
    next: Option<Notice>,
    changed: Arc<Notify>,
}

impl Default for Publisher {
    fn default() -> Publisher {
        Publisher {
            running: Mutex::default(),
            turns: AtomicU64::new(0),
            asked: Semaphore::new(MOST_ASKED),
            asked_of: Mutex::default(),
        }
    }
}

impl Running {
    fn remove(&mut self, id: i64) {
        let Some(slot) = self.slots.remove(&id) else { return };
        if let Some(count) = self.of.get_mut(&slot.domain) {
            *count -= 1;
            if *count == 0 {
                self.of.remove(&slot.domain);
            }
        }
        slot.changed.notify_one();
    }
}

/// A task's hold on a slot.
struct Turn {
    id: i64,
    turn: u64,
    changed: Arc<Notify>,
}

impl Publisher {
    /// What becomes of a notice: it joins one that waits, gets a slot, or there is none.
    fn begin(&self, id: i64, service: &Jid, notice: &Notice) -> Begun {
        let mut running = self.running.lock();
        if let Some(slot) = running.slots.get_mut(&id) {
            let call = notice.call;
            slot.next = Some(match slot.next.take() {
                Some(waiting) => waiting.and(notice.clone()),
                None => notice.clone(),
            });
            if call {
                slot.changed.notify_one();
            }
            return Begun::Joined;
        }
        let domain = service.domain();
        let of = running.of.get(domain).copied().unwrap_or(0);
        if running.slots.len() >= MOST || of >= MOST / 2 {
            return Begun::Full;
        }
        let turn = self.turns.fetch_add(1, Ordering::Relaxed);
        let changed = Arc::new(Notify::new());
        let slot = Slot { turn, domain: domain.to_owned(), next: None, changed: Arc::clone(&changed) };
        running.slots.insert(id, slot);
        *running.of.entry(domain.to_owned()).or_default() += 1;
        Begun::Slot(Turn { id, turn, changed })
    }

    /// Nobody has stopped it.
    fn goes_on(&self, turn: &Turn) -> bool {
        self.running.lock().slots.get(&turn.id).is_some_and(|slot| slot.turn == turn.turn)
    }

    /// What came meanwhile.
    fn next(&self, turn: &Turn) -> Option<Notice> {
        let mut running = self.running.lock();
        running.slots.get_mut(&turn.id).filter(|slot| slot.turn == turn.turn)?.next.take()
    }

    /// What came meanwhile; if nothing did, the slot is given back.
    fn next_or_end(&self, turn: &Turn) -> Option<Notice> {
        let mut running = self.running.lock();
        let slot = running.slots.get_mut(&turn.id).filter(|slot| slot.turn == turn.turn)?;
        let next = slot.next.take();
        if next.is_none() {
            running.remove(turn.id);
        }
        next
    }

    fn end(&self, turn: &Turn) {
        let mut running = self.running.lock();
        if running.slots.get(&turn.id).is_some_and(|slot| slot.turn == turn.turn) {
            running.remove(turn.id);
        }
    }

    /// The queue for a service: who hangs fills its own.
    fn queue(&self, domain: &str) -> Arc<Semaphore> {
        let mut queues = self.asked_of.lock();
        if let Some(queue) = queues.get(domain).and_then(Weak::upgrade) {
            return queue;
        }
        // As many as there are slots at most: each queue is held by a task.
        queues.retain(|_, queue| queue.strong_count() > 0);
        let queue = Arc::new(Semaphore::new(MOST_ASKED_OF_ONE));
        queues.insert(domain.to_owned(), Arc::downgrade(&queue));
        queue
    }
}

enum Begun {
    Slot(Turn),
    Joined,
    Full,
}

impl Exchange {
    pub(super) fn make_push(self: &Arc<Self>, order: Order) {
        match self.pushes.begin(order.registration.id, &order.registration.service, &order.notice) {
            Begun::Joined => {}
            Begun::Full => {
                self.metrics.refused("push-table-full");
                self.metrics.pushed("dropped");
            }
            Begun::Slot(turn) => {
                let exchange = Arc::clone(self);
                self.spawn(async move { exchange.go_on_publishing(order, turn).await });
            }
        }
    }

    /// The registration is gone, or its device is there.
    pub(super) fn stop_publishing(&self, id: i64) {
        self.pushes.running.lock().remove(id);
    }

    async fn go_on_publishing(self: Arc<Self>, mut order: Order, turn: Turn) {
        loop {
            if !self.pushes.goes_on(&turn) {
                return;
            }
            if !self.sleeps(&order) {
                self.metrics.pushed("awake");
                return self.pushes.end(&turn);
            }
            match self.publish_once(&order).await {
                Ok(()) => {
                    self.metrics.pushed("sent");
                    if order.registration.failures > 0 && !self.note_health(&mut order, 0, None).await {
                        return self.pushes.end(&turn);
                    }
                    match order.notice.call {
                        true => self.wait(&turn, PAUSE).await,
                        false => self.pause(&turn).await,
                    }
                    match self.pushes.next_or_end(&turn) {
                        Some(next) => order.notice = next,
                        None => return,
                    }
                }
                // Ours.
                Err(AskError::TooMany) => tokio::time::sleep(Duration::from_secs(1)).await,
                Err(error) => {
                    self.metrics.pushed("failed");
                    if !self.pushes.goes_on(&turn) {
                        return;
                    }
                    let failures = (order.registration.failures + weight(&error)).min(MOST_FAILURES);
                    let kept = self.note_health(&mut order, failures, Some(&error)).await;
                    if failures >= MOST_FAILURES {
                        self.metrics.refused("push-service-disabled");
                        let service = &order.registration.service;
                        tracing::info!(%service, %error, "a push service is disabled for one device");
                    }
                    if failures >= MOST_FAILURES || !kept {
                        return self.pushes.end(&turn);
                    }
                    self.wait(&turn, back_off(failures)).await;
                    if let Some(next) = self.pushes.next(&turn) {
                        order.notice = order.notice.and(next);
                    }
                }
            }
        }
    }

    async fn publish_once(self: &Arc<Self>, order: &Order) -> Result<(), AskError> {
        let registration = &order.registration;
        let queue = self.pushes.queue(registration.service.domain());
        let _place = queue.acquire().await.map_err(|_| AskError::TooMany)?;
        let _asked = self.pushes.asked.acquire().await.map_err(|_| AskError::TooMany)?;
        let open = self.config.load().push.summary.clone();
        let from = Jid::parse(order.account.domain()).map_err(|_| AskError::TooMany)?;
        let question = Question {
            from,
            to: registration.service.clone(),
            kind: IqType::Set,
            payload: payload::publication(registration, &order.notice, &open),
            patience: PATIENCE,
        };
        self.ask(question).await.map(drop)
    }

    /// Between two pushes. A call cuts it short; behind a call it is not, or an app server that calls whom it wakes
    /// would go round and round.
    async fn pause(&self, turn: &Turn) {
        let until = tokio::time::Instant::now() + PAUSE;
        tokio::select! {
            () = tokio::time::sleep_until(until) => {}
            () = turn.changed.notified() => {}
        }
    }

    /// Waits, unless it is stopped.
    async fn wait(&self, turn: &Turn, duration: Duration) {
        let until = tokio::time::Instant::now() + duration;
        while self.pushes.goes_on(turn) {
            tokio::select! {
                () = tokio::time::sleep_until(until) => return,
                () = turn.changed.notified() => {}
            }
        }
    }

    /// Notes how it went, in the store and in memory. False: there is no such registration any more.
    async fn note_health(&self, order: &mut Order, failures: i64, error: Option<&AskError>) -> bool {
        let disabled_at = (failures >= MOST_FAILURES).then(|| self.clock().now());
        let id = order.registration.id;
        order.registration.failures = failures;
        order.registration.disabled_at = disabled_at;
        let batch = Batch::new(Lane::Inside).with(
            sql("UPDATE push_services SET failures = ?2, disabled_at = ?3, reason = ?4 WHERE id = ?1")
                .bind(id)
                .bind(failures)
                .bind(disabled_at.map_or(Value::Null, Value::from))
                .bind(error.map_or(Value::Null, |error| Value::from(error.to_string()))),
        );
        let there = match self.db.run(batch).await {
            Ok(results) => results.first().is_some_and(|rows| rows.changes() > 0),
            Err(error) => {
                tracing::warn!(%error, "how a push service does could not be noted");
                true
            }
        };
        if let Some(account) = self.accounts.online(&order.account).filter(|it| it.id == order.account_id) {
            let mut state = account.state();
            if let Some(registration) = state.pushes.iter_mut().find(|registration| registration.id == id) {
                registration.failures = failures;
                registration.disabled_at = disabled_at;
            }
        }
        there
    }
}

/// How much a failure counts.
fn weight(error: &AskError) -> i64 {
    match error {
        AskError::Refused { condition, .. } => match condition.as_str() {
            // It may be there again soon.
            "remote-server-timeout"
            | "remote-server-not-found"
            | "service-unavailable"
            | "resource-constraint"
            | "internal-server-error"
            | "recipient-unavailable"
            | "policy-violation"
            | "undefined-condition" => 1,
            _ => CLEAR_NO,
        },
        AskError::TooMany | AskError::Silence(_) | AskError::Odd(_) => 1,
    }
}

fn back_off(failures: i64) -> Duration {
    FIRST_WAIT * 2u32.saturating_pow(u32::try_from(failures - 1).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str) -> Jid {
        Jid::parse(name).unwrap()
    }

    #[test]
    fn a_service_has_half_of_the_table() {
        let publisher = Publisher::default();
        let notice = Notice::unknown();
        let mut turns = Vec::new();
        for id in 0..MOST as i64 / 2 {
            let Begun::Slot(turn) = publisher.begin(id, &service("hangs.example"), &notice) else { panic!() };
            turns.push(turn);
        }
        let full = publisher.begin(9000, &service("hangs.example"), &notice);
        assert!(matches!(full, Begun::Full));
        assert!(matches!(publisher.begin(1, &service("hangs.example"), &notice), Begun::Joined));
        for id in 10_000..10_000 + MOST as i64 / 2 {
            assert!(matches!(publisher.begin(id, &service("works.example"), &notice), Begun::Slot(_)));
        }
        assert!(matches!(publisher.begin(9001, &service("third.example"), &notice), Begun::Full));
        publisher.end(&turns[0]);
        assert!(matches!(publisher.begin(9001, &service("third.example"), &notice), Begun::Slot(_)));
        assert!(publisher.next(&turns[1]).is_some(), "what joined is there");
        assert!(publisher.next_or_end(&turns[1]).is_none());
        assert!(!publisher.goes_on(&turns[1]));
    }

    #[test]
    fn who_was_stopped_does_not_end_its_successor() {
        let publisher = Publisher::default();
        let Begun::Slot(first) = publisher.begin(1, &service("a.example"), &Notice::unknown()) else {
            panic!()
        };
        publisher.running.lock().remove(1);
        assert!(!publisher.goes_on(&first));
        let Begun::Slot(second) = publisher.begin(1, &service("a.example"), &Notice::unknown()) else {
            panic!()
        };
        publisher.end(&first);
        assert!(publisher.next_or_end(&first).is_none());
        assert!(publisher.goes_on(&second));
        assert_eq!(publisher.running.lock().of.get("a.example"), Some(&1));
    }

    #[test]
    fn failures_wait_longer_and_longer_and_end() {
        let transient: Vec<u64> = (1..MOST_FAILURES).map(|n| back_off(n).as_secs()).collect();
        assert_eq!(transient.first(), Some(&10));
        assert!(transient.windows(2).all(|two| two[1] == two[0] * 2));
        let refused = |condition: &str| AskError::Refused {
            who: "push.example".into(),
            condition: condition.into(),
            text: String::new(),
        };
        assert_eq!(weight(&refused("item-not-found")) * 3 / MOST_FAILURES, 1);
        assert_eq!(weight(&refused("remote-server-timeout")), 1);
        assert_eq!(weight(&AskError::Silence("push.example".into())), 1);
    }
}
