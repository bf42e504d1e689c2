//! Nobody overtakes their own words: while something of a pair waits for its release or in the intake, what comes later
//! stands in line behind it, unacknowledged and with its room in the crossing.
//!
//! Only who has consent stands here. So the wait is as short as the disk allows: it tells nothing that they don't know.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use trunkline_store::{Lane, StoreError, sql};
use trunkline_xmpp::stanza::Stanza;

use super::index::{Key, Pair};
use super::intake::TROUBLE;
use crate::control::rule::Relation;
use crate::exchange::Exchange;
use crate::route::message::{nothing, store_trouble};
use crate::route::{Mail, Origin, Routed};

/// Rows read at once.
const PAGE: usize = 64;

/// The lines of all pairs: as long as the crossing has room.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    lines: Arc<Mutex<HashMap<Key, Line>>>,
}

#[derive(Debug)]
struct Line {
    /// How many have ever stood in it.
    number: u64,
    /// Ends with the turn of the last one.
    last: oneshot::Receiver<()>,
}

/// A place in a line; whoever is behind has to wait until it is dropped.
#[derive(Debug)]
pub(super) struct Turn {
    lines: Arc<Mutex<HashMap<Key, Line>>>,
    key: Key,
    number: u64,
    before: Option<oneshot::Receiver<()>>,
    _ends: oneshot::Sender<()>,
}

impl Lines {
    /// Somebody stands there.
    pub(super) fn has(&self, key: &Key) -> bool {
        self.lines.lock().contains_key(key)
    }

    /// The next place.
    pub(super) fn join(&self, key: Key) -> Turn {
        let (ends, last) = oneshot::channel();
        let mut lines = self.lines.lock();
        let before = lines.remove(&key);
        let number = before.as_ref().map_or(1, |line| line.number + 1);
        lines.insert(key, Line { number, last });
        let before = before.map(|line| line.last);
        Turn { lines: Arc::clone(&self.lines), key, number, before, _ends: ends }
    }
}

impl Turn {
    /// Waits for those before.
    pub(super) async fn comes(&mut self) {
        if let Some(before) = self.before.take() {
            // It ends without a word, also by a bug.
            let _ = before.await;
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut lines = self.lines.lock();
        if lines.get(&self.key).is_some_and(|line| line.number == self.number) {
            lines.remove(&self.key);
        }
    }
}

/// Who works on the rows of which pair: the sorting of all, or the line of that one.
#[derive(Debug, Default)]
pub(super) struct Claims {
    keys: Mutex<HashSet<Key>>,
    freed: Notify,
}

/// Nobody else touches the rows of that pair.
#[derive(Debug)]
pub(super) struct Claim<'a> {
    claims: &'a Claims,
    key: Key,
}

impl Claims {
    /// `None`: somebody has it.
    pub(super) fn try_claim(&self, key: Key) -> Option<Claim<'_>> {
        self.keys.lock().insert(key).then(|| Claim { claims: self, key })
    }

    async fn claim(&self, key: Key) -> Claim<'_> {
        loop {
            let freed = self.freed.notified();
            if let Some(claim) = self.try_claim(key) {
                return claim;
            }
            freed.await;
        }
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.keys.lock().is_empty()
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.claims.keys.lock().remove(&self.key);
        self.claims.freed.notify_waiters();
    }
}

impl Exchange {
    /// Something of that pair is not delivered yet, or stands in line.
    pub(super) fn must_wait(&self, key: &Key) -> bool {
        let requests = &self.control.requests;
        requests.index.is_releasing(key) || requests.intake.has(key) || requests.lines.has(key)
    }

    /// Delivers a stanza of somebody who has consent, after what waits; if they have it then.
    pub(super) fn stand_in_line(self: &Arc<Self>, pair: Pair, mail: Mail) {
        let mut turn = self.control.requests.lines.join(pair.address);
        if let Some(receipt) = &mail.receipt {
            // Who sees it come back without an answer must not take it for handled.
            receipt.note_commit();
        }
        let exchange = Arc::clone(self);
        self.spawn(async move {
            turn.comes().await;
            match exchange.sort_and_ask(&pair).await {
                Ok(Some(_)) => {
                    let mail = Mail { origin: Origin::Known, ..mail };
                    if let Routed::Later(later) = exchange.route_to_account(mail) {
                        later.await;
                    }
                }
                Ok(None) => exchange.hold(&pair, mail),
                Err(error) => exchange.turn_away(&mail, &store_trouble(&error)),
            }
        });
    }

    /// How the two stand to each other when nothing of theirs waits any more.
    async fn sort_and_ask(self: &Arc<Self>, pair: &Pair) -> Result<Option<Relation>, StoreError> {
        self.sort_pair(pair.address).await?;
        match self.consents().now(pair) {
            Some(relation) => Ok(relation),
            None => self.consents().read(&self.db, pair).await,
        }
    }

    /// Returns when nothing of that pair waits. Its rows are sorted now: a quarter of the time is what strangers get.
    async fn sort_pair(self: &Arc<Self>, key: Key) -> Result<(), StoreError> {
        let requests = &self.control.requests;
        requests.index.wait_for_release(&key).await;
        if !requests.intake.has(&key) {
            return Ok(());
        }
        let _claim = requests.intake.claims.claim(key).await;
        loop {
            let ids = requests.intake.oldest(&key, PAGE);
            if ids.is_empty() {
                return Ok(());
            }
            for id in ids {
                // Whether it is there, or nowhere, is known when it has been on its way to the disk.
                while !requests.intake.is_written(id) {
                    self.db.run(nothing()).await?;
                    tokio::task::yield_now().await;
                }
                let row = sql("SELECT stanza FROM intake WHERE id = ?1 AND aside = 0").bind(id.0);
                let rows = self.db.read_in(Lane::Outside, row).await?;
                match rows.first() {
                    Some(row) => self.sort_alone(id, Stanza::parse(row.blob(0)).ok()).await?,
                    None => requests.intake.leave(id),
                }
                if requests.intake.waits(id) {
                    // It could not be sorted. It is tried again, and before what came later.
                    tokio::time::sleep(TROUBLE).await;
                    break;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const KEY: Key = [1; 16];

    #[tokio::test(start_paused = true)]
    async fn turns_come_in_order_and_nothing_is_left_behind() {
        let lines = Lines::default();
        let order = Arc::new(Mutex::new(Vec::new()));
        let turns: Vec<Turn> = (0..5).map(|_| lines.join(KEY)).collect();
        let mut tasks = Vec::new();
        // The last is polled first, and the third one meets a bug.
        for (number, mut turn) in turns.into_iter().enumerate().rev() {
            let order = Arc::clone(&order);
            tasks.push(tokio::spawn(async move {
                turn.comes().await;
                order.lock().push(number);
                tokio::time::sleep(Duration::from_secs(1)).await;
                assert!(number != 2, "a bug");
            }));
        }
        assert!(lines.has(&KEY) && !lines.has(&[2; 16]));
        for task in tasks {
            let _ = task.await;
        }
        assert_eq!(*order.lock(), [0, 1, 2, 3, 4]);
        assert!(!lines.has(&KEY));
        assert!(lines.join(KEY).before.is_none(), "a new line");
    }

    #[tokio::test(start_paused = true)]
    async fn one_works_on_a_pair() {
        let claims = Claims::default();
        let claim = claims.try_claim(KEY).unwrap();
        assert!(claims.try_claim(KEY).is_none() && claims.try_claim([2; 16]).is_some());
        let waits = tokio::time::timeout(Duration::from_secs(1), claims.claim(KEY)).await;
        assert!(waits.is_err());
        drop(claim);
        drop(claims.claim(KEY).await);
        assert!(claims.is_empty());
    }
}
