//! What waits for one peer domain, sent by one of ours: the order, the bounds, and what is on disk only. No I/O.
//!
//! A *kept* stanza has a row in the table `outbound` from the moment it enters until its peer has it; but a message that
//! enters while a stream carries the queue is *held* first, since most peers have it before a row would pay (see
//! design/009-federation-speed.md). It is in memory as long as the bounds allow; beyond them the rows stay on disk alone
//! and are read back, in order, as the queue drains. All others live in memory only, and only while a stream is there
//! or being made.

use std::collections::VecDeque;

use tokio::time::Instant;
use trunkline_xmpp::stanza::Stanza;

use super::answers::Answering;
use super::budget::Claim;
use crate::ids::LogId;
use crate::session::ledger::Receipt;

/// How much may wait.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Stanzas in memory, and as many answers of the server's own.
    pub(super) stanzas: usize,
    /// Bytes in memory, likewise.
    pub(super) bytes: usize,
    /// Rows in the log.
    pub(super) kept: usize,
}

/// What becomes of a stanza that can't be sent now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sort {
    /// It has a row.
    Kept,
    /// It is of no use later.
    Passing,
    /// The server's own answer to the peer. It belongs to no conversation, so it need not wait behind what is on disk,
    /// and it has room of its own: what our users send takes nobody's answers away.
    Answer,
}

/// One stanza that waits.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) stanza: Stanza,
    /// Its row in the log, if it has one.
    pub(super) kept: Option<LogId>,
    /// When it is given up, in milliseconds since 1970; of a kept one.
    pub(super) expires: i64,
    /// That row is not written yet.
    pub(super) held: Option<Held>,
    /// It is an answer that the peer has not taken.
    pub(super) answers: Option<Answering>,
    /// Its bytes, among those of all queues. What is read back from the disk is not counted: it goes to a stream that is up.
    pub(super) _counted: Option<Claim<()>>,
}

/// The row of a stanza is held back: nobody is told that the stanza is safe before the row is written or the peer has
/// acknowledged it.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) since: Instant,
    /// The sender's.
    pub(super) receipt: Option<Receipt>,
}

impl Drop for Held {
    fn drop(&mut self) {
        // Promise 1: what a bug has lost is not acknowledged.
        if std::thread::panicking()
            && let Some(receipt) = self.receipt.take()
        {
            receipt.lose();
        }
    }
}

/// About what an item takes beside its stanza's bytes: some 300 for itself, half as much in reserve behind it, and the
/// allocations of addresses, root tag and tape. Of an answer to a stranger it is most.
pub(super) const WEIGHT: usize = 768;
/// An empty queue keeps room for this many.
const SPARE: usize = 64;

impl Item {
    pub(super) fn size(&self) -> usize {
        self.stanza.size()
    }
}

/// Gives back what an empty queue was large for: there are thousands of them, and each was long at some time.
pub(super) fn slim<T>(queue: &mut VecDeque<T>) {
    if queue.is_empty() && queue.capacity() > SPARE {
        *queue = VecDeque::new();
    }
}

/// There is no room. Which room it is decides what the sender reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Full {
    /// The memory for this peer.
    Memory,
    /// The log's quota for this peer.
    Log,
}

/// The queue of one pair of domains.
#[derive(Debug)]
pub(super) struct Queue {
    items: VecDeque<Item>,
    bytes: usize,
    /// Of these, answers: their number and bytes.
    answers: (usize, usize),
    /// Rows of this pair, wherever else the stanzas are: here, on disk only, or on their way.
    kept: usize,
    disk: Option<Disk>,
    /// Grows with every row that goes to disk only.
    spills: u64,
}

/// The part that is on disk only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Disk {
    /// Rows above this id are on disk only.
    after: LogId,
    rows: usize,
}

/// Where to read on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Page {
    pub(super) after: LogId,
    spills: u64,
}

impl Queue {
    pub(super) fn new() -> Queue {
        Queue { items: VecDeque::new(), bytes: 0, answers: (0, 0), kept: 0, disk: None, spills: 0 }
    }

    /// A queue as a restart finds it: `rows` on disk, nothing in memory.
    pub(super) fn from_disk(rows: usize) -> Queue {
        let disk = (rows > 0).then_some(Disk { after: LogId::ZERO, rows });
        Queue { kept: rows, disk, ..Queue::new() }
    }

    /// Some of it is on disk only.
    pub(super) fn is_on_disk(&self) -> bool {
        self.disk.is_some()
    }

    /// Nothing waits here; kept stanzas may still be on their way.
    pub(super) fn is_empty(&self) -> bool {
        self.items.is_empty() && self.disk.is_none()
    }

    /// Stanzas and bytes that wait in memory.
    pub(super) fn memory(&self) -> (usize, usize) {
        (self.items.len(), self.bytes)
    }

    /// Stanzas that wait, on disk too.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.items.len() + self.disk.map_or(0, |disk| disk.rows)
    }

    /// Rows in the log, those on their way included.
    pub(super) fn kept(&self) -> usize {
        self.kept
    }

    /// When the oldest kept stanza here came: milliseconds since 1970.
    pub(super) fn oldest(&self) -> Option<i64> {
        let here = self.items.iter().find_map(|item| item.kept).map(LogId::millis);
        let on_disk = self.disk.filter(|disk| disk.after != LogId::ZERO).map(|disk| disk.after.millis());
        here.or(on_disk)
    }

    pub(super) fn has_kept(&self) -> bool {
        self.disk.is_some() || self.items.iter().any(|item| item.kept.is_some())
    }

    /// Says whether a stanza would be taken.
    pub(super) fn admits(&self, sort: Sort, size: usize, bounds: &Bounds) -> Result<(), Full> {
        match sort {
            Sort::Kept if self.kept >= bounds.kept => Err(Full::Log),
            // Behind rows that are on disk only it would overtake them.
            Sort::Passing if self.disk.is_some() || !self.fits(size, bounds) => Err(Full::Memory),
            Sort::Answer if !fits(self.answers, size, bounds) => Err(Full::Memory),
            Sort::Kept | Sort::Passing | Sort::Answer => Ok(()),
        }
    }

    /// A kept stanza would be in memory.
    pub(super) fn has_memory(&self, size: usize, bounds: &Bounds) -> bool {
        self.disk.is_none() && self.fits(size, bounds)
    }

    fn fits(&self, size: usize, bounds: &Bounds) -> bool {
        let (answers, bytes) = self.answers;
        fits((self.items.len() - answers, self.bytes - bytes), size, bounds)
    }

    /// Takes a stanza that [`Queue::admits`] let in. Its row, if it has one, is being written.
    pub(super) fn push(&mut self, item: Item, bounds: &Bounds) {
        let Some(id) = item.kept else {
            return self.append(item);
        };
        self.kept += 1;
        if self.has_memory(item.size(), bounds) {
            return self.append(item);
        }
        self.disk.get_or_insert(Disk { after: LogId(id.0 - 1), rows: 0 }).rows += 1;
        self.spills += 1;
    }

    fn append(&mut self, item: Item) {
        self.bytes += item.size();
        if item.answers.is_some() {
            self.answers = (self.answers.0 + 1, self.answers.1 + item.size());
        }
        self.items.push_back(item);
    }

    /// The next stanza to send.
    pub(super) fn pop(&mut self) -> Option<Item> {
        let mut item = self.items.pop_front()?;
        self.bytes -= item.size();
        if item.answers.take().is_some() {
            self.answers = (self.answers.0 - 1, self.answers.1 - item.size());
        }
        slim(&mut self.items);
        Some(item)
    }

    /// Stanzas whose rows are not written yet, in order.
    pub(super) fn held(&mut self) -> impl Iterator<Item = &mut Item> {
        self.items.iter_mut().filter(|item| item.held.is_some())
    }

    /// A stream broke: what it had not delivered comes first again, in its old order.
    pub(super) fn put_back(&mut self, items: Vec<Item>) {
        for item in items.into_iter().rev() {
            self.bytes += item.size();
            self.items.push_front(item);
        }
    }

    /// Rows have gone: delivered, expired, or never written.
    pub(super) fn forget(&mut self, rows: usize) {
        self.kept = self.kept.saturating_sub(rows);
    }

    /// Takes out one kept stanza. True when it was in memory; otherwise it is on its way, or on disk only.
    pub(super) fn remove(&mut self, id: LogId) -> bool {
        let Some(at) = self.items.iter().position(|item| item.kept == Some(id)) else { return false };
        if let Some(item) = self.items.remove(at) {
            self.bytes -= item.size();
        }
        true
    }

    /// A row that is on disk only has gone.
    pub(super) fn remove_from_disk(&mut self, id: LogId) -> bool {
        let Some(disk) = &mut self.disk else { return false };
        if id <= disk.after {
            return false;
        }
        disk.rows = disk.rows.saturating_sub(1);
        if disk.rows == 0 {
            self.disk = None;
        }
        true
    }

    /// Takes out what lives in memory only.
    pub(super) fn take_transient(&mut self) -> Vec<Stanza> {
        let (kept, transient): (VecDeque<_>, VecDeque<_>) =
            std::mem::take(&mut self.items).into_iter().partition(|item| item.kept.is_some());
        self.items = kept;
        self.bytes = self.items.iter().map(Item::size).sum();
        self.answers = (0, 0);
        transient.into_iter().map(|item| item.stanza).collect()
    }

    /// Where to read on, if rows are on disk only and memory is at most half full.
    pub(super) fn wants_page(&self, bounds: &Bounds) -> Option<Page> {
        let disk = self.disk?;
        let low = self.items.len() <= bounds.stanzas / 2 && self.bytes <= bounds.bytes / 2;
        low.then_some(Page { after: disk.after, spills: self.spills })
    }

    /// Rows read from disk, in order, from `page.after` on; `last` is the id of the last row read, readable or not.
    pub(super) fn add_page(&mut self, page: Page, rows: usize, last: Option<LogId>, items: Vec<Item>) {
        let Some(disk) = &mut self.disk else { return };
        if disk.after != page.after {
            return;
        }
        match last {
            Some(last) => {
                disk.after = last;
                disk.rows = disk.rows.saturating_sub(rows);
            }
            // The page is empty: the rows are gone, unless some were written after it was read.
            None if self.spills == page.spills => disk.rows = 0,
            None => {}
        }
        // A row that was counted wrong must not be lost: only an empty page says that there are no more.
        if disk.rows == 0 && (last.is_none() || self.spills == page.spills) {
            self.disk = None;
        }
        for item in items {
            self.append(item);
        }
    }
}

/// A further one of this size beside so many stanzas and bytes.
fn fits((stanzas, bytes): (usize, usize), size: usize, bounds: &Bounds) -> bool {
    stanzas < bounds.stanzas && bytes + size <= bounds.bytes.max(size)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use trunkline_xmpp::stanza::{Kind, MessageType, PresenceType};

    const BOUNDS: Bounds = Bounds { stanzas: 4, bytes: 100_000, kept: 10 };

    fn item(id: Option<i64>) -> Item {
        let kind = if id.is_some() {
            Kind::Message(MessageType::Chat)
        } else {
            Kind::Presence(PresenceType::Available)
        };
        Item {
            stanza: Stanza::build(kind).done(),
            kept: id.map(LogId),
            expires: 0,
            held: None,
            answers: None,
            _counted: None,
        }
    }

    fn ids(queue: &mut Queue) -> Vec<i64> {
        std::iter::from_fn(|| queue.pop()).filter_map(|item| item.kept).map(|id| id.0).collect()
    }

    #[test]
    fn beyond_memory_rows_stay_on_disk_and_come_back_in_order() {
        let mut queue = Queue::new();
        for id in 1..=7 {
            assert_eq!(queue.admits(Sort::Kept, 10, &BOUNDS), Ok(()));
            queue.push(item(Some(id)), &BOUNDS);
        }
        assert_eq!(queue.len(), 7);
        assert_eq!(queue.wants_page(&BOUNDS), None);
        assert_eq!(queue.admits(Sort::Passing, 10, &BOUNDS), Err(Full::Memory), "it would overtake");
        assert_eq!(ids(&mut queue), [1, 2, 3, 4]);
        let page = queue.wants_page(&BOUNDS).unwrap();
        assert_eq!(page.after, LogId(4));
        // Meanwhile another one comes: behind the others.
        queue.push(item(Some(8)), &BOUNDS);
        queue.add_page(page, 3, Some(LogId(7)), (5..=7).map(|id| item(Some(id))).collect());
        assert_eq!(ids(&mut queue), [5, 6, 7]);
        let page = queue.wants_page(&BOUNDS).unwrap();
        queue.add_page(page, 1, Some(LogId(8)), vec![item(Some(8))]);
        assert_eq!(ids(&mut queue), [8]);
        assert!(queue.is_empty());
        queue.forget(8);
        assert_eq!(queue.kept(), 0);
    }

    #[test]
    fn an_empty_queue_is_small() {
        let mut queue = Queue::new();
        for _ in 0..1000 {
            queue.append(item(None));
        }
        assert!(queue.items.capacity() >= 1000);
        while queue.pop().is_some() {}
        assert!(queue.items.capacity() <= SPARE);
    }

    #[test]
    fn answers_have_room_of_their_own_and_take_none() {
        let load = std::sync::Arc::default();
        let mut queue = Queue::new();
        for id in 1..=5 {
            queue.push(item(Some(id)), &BOUNDS);
        }
        assert_eq!(queue.admits(Sort::Passing, 10, &BOUNDS), Err(Full::Memory));
        for _ in 0..4 {
            assert_eq!(queue.admits(Sort::Answer, 10, &BOUNDS), Ok(()));
            queue.push(Item { answers: Some(Answering::new(&load, 10)), ..item(None) }, &BOUNDS);
        }
        assert_eq!(queue.admits(Sort::Answer, 10, &BOUNDS), Err(Full::Memory));
        assert_eq!(queue.admits(Sort::Answer, 10, &Bounds { bytes: 0, ..BOUNDS }), Err(Full::Memory));
        assert_eq!(ids(&mut queue), [1, 2, 3, 4]);
        let page = queue.wants_page(&BOUNDS).unwrap();
        queue.add_page(page, 1, Some(LogId(5)), vec![item(Some(5))]);
        assert_eq!(queue.admits(Sort::Answer, 10, &BOUNDS), Ok(()), "they are taken");
        // And the other way round: answers that wait keep nothing else out.
        let mut queue = Queue::new();
        for _ in 0..4 {
            queue.push(Item { answers: Some(Answering::new(&load, 10)), ..item(None) }, &BOUNDS);
        }
        assert_eq!(queue.admits(Sort::Passing, 10, &BOUNDS), Ok(()));
        assert!(queue.has_memory(10, &BOUNDS));
        queue.take_transient();
        assert_eq!(queue.admits(Sort::Answer, 10, &BOUNDS), Ok(()));
        assert!(load.answers.have_room((1, 1)), "none waits any more");
    }

    #[test]
    fn the_quota_of_the_log_counts_what_is_on_its_way() {
        let mut queue = Queue::new();
        for id in 1..=10 {
            queue.push(item(Some(id)), &BOUNDS);
        }
        assert_eq!(queue.admits(Sort::Kept, 10, &BOUNDS), Err(Full::Log));
        let _ = queue.pop();
        assert_eq!(queue.admits(Sort::Kept, 10, &BOUNDS), Err(Full::Log));
        queue.forget(1);
        assert_eq!(queue.admits(Sort::Kept, 10, &BOUNDS), Ok(()));
    }

    #[test]
    fn what_a_broken_stream_gives_back_comes_first() {
        let mut queue = Queue::new();
        for id in 1..=3 {
            queue.push(item(Some(id)), &BOUNDS);
        }
        let sent = vec![queue.pop().unwrap(), queue.pop().unwrap()];
        queue.put_back(sent);
        queue.push(item(None), &BOUNDS);
        assert_eq!(queue.take_transient().len(), 1);
        assert_eq!(ids(&mut queue), [1, 2, 3]);
    }

    #[test]
    fn an_empty_page_ends_the_wait_for_rows_that_were_never_written() {
        let mut queue = Queue::from_disk(2);
        let page = queue.wants_page(&BOUNDS).unwrap();
        queue.add_page(page, 0, None, Vec::new());
        assert!(queue.is_empty());
    }

    proptest! {
        /// Whatever happens, kept stanzas leave in the order in which they came, none twice, none lost.
        #[test]
        fn order_holds(steps in prop::collection::vec(0u8..6, 1..200)) {
            let mut queue = Queue::new();
            let (mut next, mut disk, mut sent, mut flying) = (1i64, Vec::new(), Vec::new(), Vec::new());
            let drive = |step: u8, queue: &mut Queue, next: &mut i64, disk: &mut Vec<i64>, sent: &mut Vec<i64>, flying: &mut Vec<Item>| {
                match step {
                    0 | 1 if queue.admits(Sort::Kept, 1, &BOUNDS).is_ok() => {
                        queue.push(item(Some(*next)), &BOUNDS);
                        disk.push(*next);
                        *next += 1;
                    }
                    2 => flying.extend(queue.pop()),
                    3 => queue.put_back(std::mem::take(flying)),
                    4 => {
                        queue.forget(flying.len());
                        for item in flying.drain(..) {
                            let id = item.kept.unwrap().0;
                            sent.push(id);
                            disk.retain(|row| *row != id);
                        }
                    }
                    5 => if let Some(page) = queue.wants_page(&BOUNDS) {
                        let rows: Vec<i64> = disk.iter().copied().filter(|id| *id > page.after.0).take(3).collect();
                        let last = rows.last().copied().map(LogId);
                        queue.add_page(page, rows.len(), last, rows.iter().map(|id| item(Some(*id))).collect());
                    },
                    _ => {}
                }
            };
            for step in steps {
                drive(step, &mut queue, &mut next, &mut disk, &mut sent, &mut flying);
                prop_assert!(queue.kept() <= BOUNDS.kept);
            }
            while !queue.is_empty() || !flying.is_empty() {
                for step in [5, 2, 4] {
                    drive(step, &mut queue, &mut next, &mut disk, &mut sent, &mut flying);
                }
            }
            prop_assert_eq!(sent, (1..next).collect::<Vec<_>>());
            prop_assert_eq!(queue.kept(), 0);
        }
    }
}
