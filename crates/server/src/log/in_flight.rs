//! What of one account's log is on its way to the disk.
//!
//! Most messages are with their receiver before the store has come to them. The row that says "not delivered yet" is
//! then withdrawn instead of written and deleted again. And the store's two lanes have no order between them: where
//! order matters, the account knows it. Who reads on waits for the rows that are still on their way, and what deletes
//! a row goes down the lane that the row went.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;
use trunkline_store::{Lane, Ticket};

use crate::ids::LogId;

/// One account's rows on their way.
#[derive(Debug, Default)]
pub struct InFlight {
    /// In the order of their ids: they are given out and submitted under the account's lock.
    rows: Mutex<VecDeque<Row>>,
    landed: Notify,
}

#[derive(Debug)]
struct Row {
    id: LogId,
    lane: Lane,
    /// Of the row that says that it waits for its delivery. Without it there is no such row.
    ticket: Option<Arc<Ticket>>,
    /// Batches about this row that are not committed: its insertion, and its deletion.
    batches: u8,
}

/// What is to be done about the row of a stanza that was delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deletion {
    /// Nothing: it was not written, and will not be.
    Withdrawn,
    /// To be deleted in this lane, behind its insertion; [`InFlight::landed`] is to be told.
    Behind(Lane),
    /// It is on the disk.
    Anywhere,
}

impl InFlight {
    /// A batch with this row is about to be submitted, under this ticket if it waits for its delivery;
    /// [`InFlight::landed`] is to be told when it is done.
    pub fn submitted(&self, id: LogId, lane: Lane, ticket: Option<Arc<Ticket>>) {
        self.rows.lock().push_back(Row { id, lane, ticket, batches: 1 });
    }

    /// The stanza is delivered: its row can go.
    pub fn delivered(&self, id: LogId) -> Deletion {
        let mut rows = self.rows.lock();
        let Ok(at) = rows.binary_search_by_key(&id, |row| row.id) else { return Deletion::Anywhere };
        let row = &mut rows[at];
        if row.ticket.as_ref().is_none_or(|ticket| ticket.withdraw()) {
            return Deletion::Withdrawn;
        }
        row.batches += 1;
        Deletion::Behind(row.lane)
    }

    /// A batch with this row is committed, or has failed.
    pub fn landed(&self, id: LogId) {
        let mut rows = self.rows.lock();
        let Ok(at) = rows.binary_search_by_key(&id, |row| row.id) else { return };
        rows[at].batches -= 1;
        if rows[at].batches > 0 {
            return;
        }
        rows.remove(at);
        if rows.is_empty() {
            // An account at rest holds no memory for this.
            *rows = VecDeque::new();
        }
        drop(rows);
        self.landed.notify_waiters();
    }

    /// Waits until no row before `end` is on its way.
    pub async fn settled(&self, end: LogId) {
        loop {
            let landed = self.landed.notified();
            if self.rows.lock().front().is_none_or(|row| row.id >= end) {
                return;
            }
            landed.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_poll as poll;

    #[tokio::test]
    async fn who_reads_on_waits_for_what_is_older() {
        let rows = InFlight::default();
        let ticket: Arc<Ticket> = Arc::default();
        rows.submitted(LogId(1), Lane::Outside, None);
        rows.submitted(LogId(3), Lane::Inside, Some(Arc::clone(&ticket)));
        rows.settled(LogId(1)).await;
        let mut settled = Box::pin(rows.settled(LogId(3)));
        assert!(poll(&mut settled).is_none());
        rows.landed(LogId(1));
        assert!(poll(&mut settled).is_some());
        assert_eq!(rows.delivered(LogId(1)), Deletion::Anywhere);
        assert_eq!(rows.delivered(LogId(3)), Deletion::Withdrawn);
        assert!(ticket.withdraw(), "withdrawn is withdrawn");
        rows.landed(LogId(3));
        rows.settled(LogId(i64::MAX)).await;
    }

    #[tokio::test]
    async fn what_is_written_is_deleted_behind_its_insertion() {
        let db =
            trunkline_store::Db::open(trunkline_store::Options::memory(crate::schema::MIGRATIONS)).unwrap();
        let rows = InFlight::default();
        let ticket = Arc::default();
        rows.submitted(LogId(1), Lane::Outside, Some(Arc::clone(&ticket)));
        let touch = trunkline_store::sql("DELETE FROM pending").under(&ticket);
        db.run(trunkline_store::Batch::new(Lane::Outside).with(touch)).await.unwrap();
        assert_eq!(rows.delivered(LogId(1)), Deletion::Behind(Lane::Outside));
        rows.landed(LogId(1));
        let mut settled = Box::pin(rows.settled(LogId(2)));
        assert!(poll(&mut settled).is_none(), "its deletion is waited for as well");
        rows.landed(LogId(1));
        assert!(poll(&mut settled).is_some());
    }

    fn futures_poll(future: &mut std::pin::Pin<Box<impl Future<Output = ()>>>) -> Option<()> {
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        match future.as_mut().poll(&mut cx) {
            std::task::Poll::Ready(()) => Some(()),
            std::task::Poll::Pending => None,
        }
    }
}
