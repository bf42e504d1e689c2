//! Threads that make load, and the conductor that measures while they do.
//!
//! Each thread has a runtime of its own, and nothing is handed between them while messages flow. The main thread takes
//! the kernel's figures and shows progress.

use std::io::{IsTerminal as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::error::LoadError;
use crate::usage::{self, Meter, Source};

/// How far a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Phase {
    /// Accounts, connections, logins.
    Prepare,
    /// Load, which is not counted yet.
    Warm,
    /// Load, counted.
    Measure,
    /// Nothing new is sent; what is under way arrives.
    Drain,
    /// Something is wrong.
    Failed,
}

/// How long load is made before it counts.
pub(crate) const WARM_UP: Duration = Duration::from_secs(1);

/// How long the first delivery may take.
const FIRST: Duration = Duration::from_secs(60);

/// What all threads share.
#[derive(Debug)]
pub(crate) struct Stage {
    epoch: Instant,
    phase: AtomicU8,
    signal: watch::Sender<Phase>,
    /// Threads that are ready to make load.
    ready: AtomicU64,
    /// Steps of preparation done, of how many.
    prepared: AtomicU64,
    to_prepare: AtomicU64,
    /// What is being prepared, for people.
    preparing: Mutex<&'static str>,
    fault: Mutex<Option<LoadError>>,
}

/// The counts of one thread.
#[derive(Debug)]
pub(crate) struct Tally {
    /// Messages that arrived (logins that were made).
    received: AtomicU64,
    /// Nanoseconds, of those that arrived while measuring.
    pub(crate) latency: Mutex<Histogram<u64>>,
}

impl Stage {
    pub(crate) fn new() -> Arc<Stage> {
        Arc::new(Stage {
            epoch: Instant::now(),
            phase: AtomicU8::new(Phase::Prepare as u8),
            signal: watch::channel(Phase::Prepare).0,
            ready: AtomicU64::new(0),
            prepared: AtomicU64::new(0),
            to_prepare: AtomicU64::new(0),
            preparing: Mutex::new("logging in"),
            fault: Mutex::new(None),
        })
    }

    /// Nanoseconds on the clock of the run.
    pub(crate) fn now(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    pub(crate) fn phase(&self) -> Phase {
        const PHASES: [Phase; 5] = [Phase::Prepare, Phase::Warm, Phase::Measure, Phase::Drain, Phase::Failed];
        PHASES[usize::from(self.phase.load(Ordering::Relaxed)).min(4)]
    }

    /// Whether load is to be made.
    pub(crate) fn sending(&self) -> bool {
        matches!(self.phase(), Phase::Warm | Phase::Measure)
    }

    pub(crate) fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Relaxed);
        self.signal.send_replace(phase);
    }

    /// Waits until the run is at `phase` or beyond.
    pub(crate) async fn reached(&self, phase: Phase) -> Result<(), LoadError> {
        let mut signal = self.signal.subscribe();
        // The sender is ours, so it is not gone.
        let now = signal.wait_for(|now| *now >= phase).await.map_or(Phase::Failed, |now| *now);
        if now == Phase::Failed { Err(aborted()) } else { Ok(()) }
    }

    /// Ends the run with an error; the first one counts.
    pub(crate) fn fail(&self, error: LoadError) {
        let mut fault = self.fault.lock();
        if fault.is_none() {
            *fault = Some(error);
        }
        drop(fault);
        self.enter(Phase::Failed);
    }

    /// Names what is prepared now, and how much of it there is.
    pub(crate) fn prepare(&self, what: &'static str, count: u64) {
        *self.preparing.lock() = what;
        self.prepared.store(0, Ordering::Relaxed);
        self.to_prepare.store(count, Ordering::Relaxed);
    }

    pub(crate) fn one_prepared(&self) {
        self.prepared.fetch_add(1, Ordering::Relaxed);
    }

    /// This thread is ready; returns when load begins.
    pub(crate) async fn ready(&self) -> Result<(), LoadError> {
        self.ready.fetch_add(1, Ordering::Relaxed);
        self.reached(Phase::Warm).await
    }
}

/// For tasks that end because another one failed: never shown.
pub(crate) fn aborted() -> LoadError {
    LoadError::Machine("the run was aborted".into())
}

impl Tally {
    pub(crate) fn new() -> Arc<Tally> {
        let latency = Histogram::new_with_bounds(1_000, 600_000_000_000, 3)
            .expect("invariant: these bounds and digits are allowed");
        Arc::new(Tally { received: AtomicU64::new(0), latency: Mutex::new(latency) })
    }

    pub(crate) fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Counts `count` more; one thread only.
    pub(crate) fn add(&self, count: u64) {
        self.received.store(self.received.load(Ordering::Relaxed) + count, Ordering::Relaxed);
    }
}

/// Threads at work.
#[derive(Debug)]
pub(crate) struct Crew<T> {
    stage: Arc<Stage>,
    threads: Vec<JoinHandle<Option<T>>>,
    tallies: Vec<Arc<Tally>>,
}

/// A figure of the measured part.
#[derive(Debug)]
pub(crate) struct Measured {
    pub(crate) seconds: f64,
    /// What the threads counted.
    pub(crate) count: u64,
    pub(crate) server_cpu: Option<(Duration, Source)>,
    pub(crate) own_cpu: Duration,
    pub(crate) latency: Histogram<u64>,
}

impl<T: Send + 'static> Crew<T> {
    /// Starts `count` threads. `work` gets the thread's number and where to count.
    pub(crate) fn start<W, F>(stage: &Arc<Stage>, count: u32, work: W) -> Result<Crew<T>, LoadError>
    where
        W: Fn(u32, Arc<Tally>) -> F + Clone + Send + 'static,
        F: Future<Output = Result<T, LoadError>>,
    {
        let tallies: Vec<_> = (0..count).map(|_| Tally::new()).collect();
        let mut threads = Vec::new();
        for (number, tally) in (0..).zip(&tallies) {
            let (stage, work, tally) = (stage.clone(), work.clone(), tally.clone());
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .event_interval(31)
                .build()
                .map_err(|error| LoadError::Machine(format!("no runtime: {error}")))?;
            let thread = std::thread::Builder::new().name(format!("load-{number}")).spawn(move || {
                let done = runtime.block_on(work(number, tally));
                runtime.shutdown_background();
                match done {
                    Ok(done) => Some(done),
                    Err(error) => {
                        stage.fail(error);
                        None
                    }
                }
            });
            threads.push(thread.map_err(|error| LoadError::Machine(format!("no thread: {error}")))?);
        }
        Ok(Crew { stage: stage.clone(), threads, tallies })
    }

    /// Returns when all threads are ready, with progress on a terminal.
    pub(crate) fn await_ready(&self) -> Result<(), LoadError> {
        let mut progress = Progress::new();
        while self.stage.ready.load(Ordering::Relaxed) < self.threads.len() as u64 {
            let what = *self.stage.preparing.lock();
            let done = self.stage.prepared.load(Ordering::Relaxed);
            let all = self.stage.to_prepare.load(Ordering::Relaxed);
            progress.show(|| format!("{what}: {done} of {all}"));
            self.pause(Duration::from_millis(20))?;
        }
        progress.clear();
        Ok(())
    }

    /// Warms up, then measures for so long; then the threads drain.
    pub(crate) fn measure(&self, length: Duration, meter: Option<&Meter>) -> Result<Measured, LoadError> {
        let mut progress = Progress::new();
        self.stage.enter(Phase::Warm);
        progress.show(|| "warming up".into());
        // Between servers a connection has to be made first.
        let end = Instant::now() + FIRST;
        while self.count() == 0 {
            if Instant::now() > end {
                let what = "the first delivery".to_owned();
                return Err(LoadError::Timeout { what, seconds: FIRST.as_secs() });
            }
            self.pause(Duration::from_millis(10))?;
        }
        self.pause(WARM_UP)?;
        let usage_before = meter.map(Meter::usage);
        let own_before = usage::own();
        let count_before = self.count();
        let begin = Instant::now();
        self.stage.enter(Phase::Measure);
        loop {
            let left = length.saturating_sub(begin.elapsed());
            if left.is_zero() {
                break;
            }
            self.pause(left.min(Duration::from_millis(200)))?;
            progress.show(|| {
                let seconds = begin.elapsed().as_secs_f64();
                let rate = (self.count() - count_before) as f64 / seconds;
                format!("{seconds:.0} of {:.0} s, {rate:.0} a second", length.as_secs_f64())
            });
        }
        let seconds = begin.elapsed().as_secs_f64();
        let count = self.count() - count_before;
        let own_cpu = usage::own().saturating_sub(own_before);
        let server_cpu =
            meter.zip(usage_before).map(|(meter, before)| meter.between(&before, &meter.usage()));
        self.stage.enter(Phase::Drain);
        progress.clear();
        Ok(Measured { seconds, count, server_cpu, own_cpu, latency: self.take_latency() })
    }

    /// What was recorded since it was last taken.
    pub(crate) fn take_latency(&self) -> Histogram<u64> {
        let mut all = Tally::new().latency.lock().clone();
        for tally in &self.tallies {
            let mut latency = tally.latency.lock();
            // Of the same bounds.
            let _ = all.add(&*latency);
            latency.reset();
        }
        all
    }

    fn count(&self) -> u64 {
        self.tallies.iter().map(|tally| tally.received()).sum()
    }

    /// Sleeps, or fails when the run has failed.
    pub(crate) fn pause(&self, length: Duration) -> Result<(), LoadError> {
        let end = Instant::now() + length;
        loop {
            if self.stage.phase() == Phase::Failed {
                return Err(self.stage.fault.lock().take().unwrap_or_else(aborted));
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(Duration::from_millis(50)));
        }
    }

    /// Waits for the threads' ends and gives what they return.
    pub(crate) fn finish(self) -> Result<Vec<T>, LoadError> {
        let mut all = Vec::new();
        for thread in self.threads {
            let Ok(done) = thread.join() else {
                return Err(LoadError::Machine("a thread of the load generator panicked".into()));
            };
            all.extend(done);
        }
        match self.stage.fault.lock().take() {
            Some(fault) => Err(fault),
            None => Ok(all),
        }
    }
}

/// One line on a terminal that is written over.
#[derive(Debug)]
pub(crate) struct Progress {
    terminal: bool,
    last: Option<Instant>,
}

impl Progress {
    pub(crate) fn new() -> Progress {
        Progress { terminal: std::io::stderr().is_terminal(), last: None }
    }

    pub(crate) fn show(&mut self, line: impl FnOnce() -> String) {
        let due = self.last.is_none_or(|last| last.elapsed() >= Duration::from_millis(100));
        if self.terminal && due {
            self.last = Some(Instant::now());
            // A terminal that is gone is no reason to stop.
            let _ = write!(std::io::stderr(), "\r\x1b[K{}", line());
        }
    }

    pub(crate) fn clear(&mut self) {
        if self.terminal && self.last.take().is_some() {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}
