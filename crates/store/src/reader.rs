//! Connections that only read, each on a thread of its own. In WAL mode they neither wait for the writer nor stop it.

use std::{
    collections::VecDeque,
    sync::{Arc, atomic::Ordering::Relaxed},
    thread::{self, JoinHandle},
};

use parking_lot::{Condvar, Mutex};
use rusqlite::Connection;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::{
    engine::{self, Counters},
    error::StoreError,
    queue::index,
    statement::{Lane, Statement},
    value::Rows,
};

/// Reads of one lane that wait for a connection; more callers than that wait before they queue.
const BOUND: usize = 1024;

pub(crate) struct Pool {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

struct Shared {
    state: Mutex<State>,
    work: Condvar,
    permits: [Arc<Semaphore>; 2],
    /// Connections that reads from outside may hold at once: one always stays for inside.
    outside: usize,
    counters: Arc<Counters>,
}

#[derive(Default)]
struct State {
    lanes: [VecDeque<Read>; 2],
    outside_running: usize,
    closed: bool,
}

struct Read {
    statements: Vec<Statement>,
    reply: oneshot::Sender<Result<Vec<Rows>, StoreError>>,
    _permit: OwnedSemaphorePermit,
}

impl Pool {
    pub(crate) fn start(conns: Vec<Connection>, counters: Arc<Counters>) -> std::io::Result<Pool> {
        let permits = || Arc::new(Semaphore::new(BOUND));
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            work: Condvar::new(),
            permits: [permits(), permits()],
            outside: conns.len().saturating_sub(1).max(1),
            counters,
        });
        let pool = Pool { shared, threads: Mutex::default() };
        for (number, conn) in conns.into_iter().enumerate() {
            let shared = pool.shared.clone();
            let thread = thread::Builder::new().name(format!("store-read-{number}"));
            match thread.spawn(move || work(&conn, &shared)) {
                Ok(thread) => pool.threads.lock().push(thread),
                Err(error) => {
                    pool.close();
                    return Err(error);
                }
            }
        }
        Ok(pool)
    }

    pub(crate) async fn read(&self, lane: Lane, statements: Vec<Statement>) -> Result<Vec<Rows>, StoreError> {
        let permit = self.shared.permits[index(lane)].clone().acquire_owned().await;
        let permit = permit.map_err(|_| StoreError::Closed)?;
        let (reply, answer) = oneshot::channel();
        {
            let mut state = self.shared.state.lock();
            if state.closed {
                return Err(StoreError::Closed);
            }
            state.lanes[index(lane)].push_back(Read { statements, reply, _permit: permit });
        }
        self.shared.work.notify_one();
        answer.await.unwrap_or(Err(StoreError::Closed))
    }

    pub(crate) fn waiting(&self) -> usize {
        self.shared.state.lock().lanes.iter().map(VecDeque::len).sum()
    }

    /// Answers what is queued, then ends the threads.
    pub(crate) fn close(&self) {
        self.shared.state.lock().closed = true;
        self.shared.permits.iter().for_each(|permits| permits.close());
        self.shared.work.notify_all();
        for thread in self.threads.lock().drain(..) {
            join(thread);
        }
    }
}

/// Joins a thread unless it is this one: the last handle may be dropped by what the store itself woke up.
pub(crate) fn join(thread: JoinHandle<()>) {
    if thread.thread().id() != thread::current().id() && thread.join().is_err() {
        tracing::error!("a thread of the store panicked");
    }
}

fn work(conn: &Connection, shared: &Shared) {
    while let Some((lane, read)) = shared.next() {
        // Who asked may be gone by now.
        if !read.reply.is_closed() {
            let result = engine::read(conn, &read.statements);
            shared.counters.reads.fetch_add(read.statements.len() as u64, Relaxed);
            let _ = read.reply.send(result);
        }
        if lane == Lane::Outside {
            shared.state.lock().outside_running -= 1;
            shared.work.notify_one();
        }
    }
}

impl Shared {
    fn next(&self) -> Option<(Lane, Read)> {
        let mut state = self.state.lock();
        loop {
            if let Some(read) = state.lanes[index(Lane::Inside)].pop_front() {
                return Some((Lane::Inside, read));
            }
            if state.outside_running < self.outside
                && let Some(read) = state.lanes[index(Lane::Outside)].pop_front()
            {
                state.outside_running += 1;
                return Some((Lane::Outside, read));
            }
            if state.closed && state.lanes.iter().all(VecDeque::is_empty) {
                return None;
            }
            self.work.wait(&mut state);
        }
    }
}
