//! What waits for the writer: two lanes, each with a bound of its own.

use std::{
    collections::VecDeque,
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex, MutexGuard};
use tokio::sync::Notify;

use crate::{
    engine::GROUP,
    error::StoreError,
    statement::{Batch, Lane, Statement},
    value::Rows,
};

/// How long the writer lets batches gather that nobody awaits: each commit costs a sync of the disk and a page for each
/// place that was touched, so the more share one the better (design/001-store.md).
const GATHER: Duration = Duration::from_millis(20);

/// Called once, with what became of the batch.
pub(crate) type Done = Box<dyn FnOnce(Result<Vec<Rows>, StoreError>) + Send>;

pub(crate) struct Job {
    pub(crate) batch: Batch,
    pub(crate) done: Done,
    /// Bytes, roughly.
    pub(crate) weight: usize,
    /// Somebody waits for it.
    pub(crate) awaited: bool,
}

impl Job {
    pub(crate) fn new(batch: Batch, done: Done, awaited: bool) -> Job {
        let weight = batch.statements.iter().map(Statement::weight).sum();
        Job { batch, done, weight, awaited }
    }

    /// What the bound counts. An empty batch counts too, or a queue of them had no bound.
    pub(crate) fn statements(&self) -> usize {
        self.batch.statements.len().max(1)
    }
}

/// When a lane is full: its callers wait (`run`, `ready`), which brakes the sockets they read from. What `submit`
/// adds beyond is bounded by the callers that asked `ready` before.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bound {
    pub(crate) statements: usize,
    pub(crate) bytes: usize,
}

pub(crate) struct Queue {
    bound: Bound,
    state: Mutex<State>,
    work: Condvar,
    room: [Room; 2],
}

#[derive(Default)]
struct State {
    lanes: [Waiting; 2],
    /// Since when batches gather; none: there are none, or the writer is to come at once.
    gathering: Option<Instant>,
    closed: bool,
}

#[derive(Default)]
struct Waiting {
    jobs: VecDeque<Job>,
    statements: usize,
    bytes: usize,
}

#[derive(Default)]
struct Room {
    waiters: AtomicUsize,
    notify: Notify,
}

impl Queue {
    pub(crate) fn new(bound: Bound) -> Queue {
        Queue { bound, state: Mutex::default(), work: Condvar::new(), room: Default::default() }
    }

    /// Queues a job, or gives it back when the queue is closed.
    pub(crate) fn push(&self, job: Job) -> Result<(), Job> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(job);
        }
        let first = state.is_empty();
        let lane = &mut state.lanes[index(job.batch.lane)];
        lane.statements += job.statements();
        lane.bytes += job.weight;
        let awaited = job.awaited || lane.statements >= GROUP;
        lane.jobs.push_back(job);
        let tell = if awaited {
            // What nobody awaits goes with it.
            state.gathering.take().is_some() || first
        } else if first {
            state.gathering = Some(Instant::now());
            true
        } else {
            false
        };
        drop(state);
        if tell {
            self.work.notify_one();
        }
        Ok(())
    }

    /// Blocks until there is work to be done now. False: closed, and nothing left to do.
    pub(crate) fn wait(&self) -> bool {
        let mut state = self.state.lock();
        loop {
            if state.is_empty() {
                state.gathering = None;
                if state.closed {
                    return false;
                }
                self.work.wait(&mut state);
                continue;
            }
            match state.gathering.map(|since| since + GATHER).filter(|_| !state.closed) {
                Some(end) if Instant::now() < end => {
                    self.work.wait_until(&mut state, end);
                }
                _ => {
                    state.gathering = None;
                    return true;
                }
            }
        }
    }

    /// Takes jobs from the front of a lane: at least one if there is any, about `statements` at most.
    pub(crate) fn take(&self, lane: Lane, statements: usize) -> Vec<Job> {
        let mut state = self.state.lock();
        let waiting = &mut state.lanes[index(lane)];
        let mut jobs = Vec::new();
        let mut taken = 0;
        while taken < statements
            && let Some(job) = waiting.jobs.pop_front()
        {
            taken += job.statements();
            waiting.bytes -= job.weight;
            jobs.push(job);
        }
        waiting.statements -= taken;
        self.wake(state, lane, taken);
        jobs
    }

    /// Puts a job back to the front of its lane, to be the next one.
    pub(crate) fn put_back(&self, job: Job) {
        let mut state = self.state.lock();
        // It has waited already; what came meanwhile goes with it.
        state.gathering = None;
        let lane = &mut state.lanes[index(job.batch.lane)];
        lane.statements += job.statements();
        lane.bytes += job.weight;
        lane.jobs.push_front(job);
    }

    pub(crate) fn has_work(&self, lane: Lane) -> bool {
        !self.state.lock().lanes[index(lane)].jobs.is_empty()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.state.lock().is_empty()
    }

    /// Also true when closed: then handing over fails at once, so there is nothing to wait for.
    pub(crate) fn has_room(&self, lane: Lane) -> bool {
        let state = self.state.lock();
        state.closed || self.fits(&state.lanes[index(lane)])
    }

    pub(crate) async fn ready(&self, lane: Lane) {
        if self.has_room(lane) {
            return;
        }
        let room = &self.room[index(lane)];
        let _waiter = Waiter::new(room);
        loop {
            // Registered before the look, so that room made in between is not missed.
            let notified = room.notify.notified();
            if self.has_room(lane) {
                return;
            }
            notified.await;
        }
    }

    /// From now on nothing is accepted. What is queued is still done.
    pub(crate) fn close(&self) {
        self.state.lock().closed = true;
        self.work.notify_all();
        self.room.iter().for_each(|room| room.notify.notify_waiters());
    }

    /// Statements and bytes that wait in a lane.
    pub(crate) fn load(&self, lane: Lane) -> (usize, usize) {
        let state = self.state.lock();
        let waiting = &state.lanes[index(lane)];
        (waiting.statements, waiting.bytes)
    }

    fn fits(&self, waiting: &Waiting) -> bool {
        waiting.statements < self.bound.statements && waiting.bytes < self.bound.bytes
    }

    /// As many statements as left, so many waiters come in. All at once would overfill the queue, so that happens only
    /// when it is empty: somebody who waits for room but then has nothing to write must not leave the others waiting.
    fn wake(&self, state: MutexGuard<'_, State>, lane: Lane, taken: usize) {
        let waiting = &state.lanes[index(lane)];
        let (fits, empty) = (self.fits(waiting), waiting.jobs.is_empty());
        drop(state);
        let room = &self.room[index(lane)];
        let waiters = room.waiters.load(Ordering::SeqCst);
        if waiters == 0 || !fits {
            return;
        }
        if empty {
            room.notify.notify_waiters();
        } else {
            (0..taken.min(waiters)).for_each(|_| room.notify.notify_one());
        }
    }
}

impl State {
    fn is_empty(&self) -> bool {
        self.lanes.iter().all(|lane| lane.jobs.is_empty())
    }
}

/// Counts those who wait for room, also when their future is dropped.
struct Waiter<'a>(&'a Room);

impl Waiter<'_> {
    fn new(room: &Room) -> Waiter<'_> {
        room.waiters.fetch_add(1, Ordering::SeqCst);
        Waiter(room)
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.0.waiters.fetch_sub(1, Ordering::SeqCst);
    }
}

pub(crate) fn index(lane: Lane) -> usize {
    match lane {
        Lane::Inside => 0,
        Lane::Outside => 1,
    }
}
