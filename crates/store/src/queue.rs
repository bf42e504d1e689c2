//! What waits for the writer: two lanes, each with a bound of its own.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use parking_lot::{Condvar, Mutex, MutexGuard};
use tokio::sync::Notify;

use crate::{
    error::StoreError,
    statement::{Batch, Lane, Statement},
    value::Rows,
};

/// Called once, with what became of the batch.
pub(crate) type Done = Box<dyn FnOnce(Result<Vec<Rows>, StoreError>) + Send>;

pub(crate) struct Job {
    pub(crate) batch: Batch,
    pub(crate) done: Done,
    /// Bytes, roughly.
    pub(crate) weight: usize,
}

impl Job {
    pub(crate) fn new(batch: Batch, done: Done) -> Job {
        let weight = batch.statements.iter().map(Statement::weight).sum();
        Job { batch, done, weight }
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
    /// Jobs that are queued or being done.
    open: [Arc<AtomicUsize>; 2],
}

#[derive(Default)]
struct State {
    lanes: [Waiting; 2],
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
        Queue {
            bound,
            state: Mutex::default(),
            work: Condvar::new(),
            room: Default::default(),
            open: Default::default(),
        }
    }

    /// Queues a job, or gives it back when the queue is closed.
    pub(crate) fn push(&self, mut job: Job) -> Result<(), Job> {
        let open = Arc::clone(&self.open[index(job.batch.lane)]);
        open.fetch_add(1, Ordering::SeqCst);
        let done = job.done;
        job.done = Box::new(move |result| {
            open.fetch_sub(1, Ordering::SeqCst);
            done(result);
        });
        let mut state = self.state.lock();
        if state.closed {
            return Err(job);
        }
        let lane = &mut state.lanes[index(job.batch.lane)];
        lane.statements += job.statements();
        lane.bytes += job.weight;
        lane.jobs.push_back(job);
        drop(state);
        self.work.notify_one();
        Ok(())
    }

    /// Something that was pushed to this lane is not done yet.
    pub(crate) fn is_open(&self, lane: Lane) -> bool {
        self.open[index(lane)].load(Ordering::SeqCst) > 0
    }

    /// Blocks until there is work. False: closed, and nothing left to do.
    pub(crate) fn wait(&self) -> bool {
        let mut state = self.state.lock();
        loop {
            if !state.is_empty() {
                return true;
            }
            if state.closed {
                return false;
            }
            self.work.wait(&mut state);
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
