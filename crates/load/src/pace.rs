//! The clock of the open loop.
//!
//! A message's time is fixed before the run: number divided by rate. Latency counts from there, so a server that stalls
//! can't hide it by making the sender late (coordinated omission). The runtime's timers have a resolution of a
//! millisecond, so the kernel's are used.

use std::sync::Arc;
use std::time::Duration;

use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe::Receiver;

use crate::crew::Stage;
use crate::error::LoadError;

/// The timer rings that often at most.
const FINEST: Duration = Duration::from_micros(50);

/// Tells what is due.
#[derive(Debug)]
pub(crate) struct Pace {
    stage: Arc<Stage>,
    timer: Receiver,
    schedule: Schedule,
}

/// Times at a constant rate, in nanoseconds.
#[derive(Clone, Copy, Debug)]
struct Schedule {
    begin: u64,
    /// Messages a second.
    rate: f64,
    next: u64,
}

impl Schedule {
    /// Computed from the number, so that no error adds up.
    fn time(&self, number: u64) -> u64 {
        self.begin + (number as f64 * 1e9 / self.rate) as u64
    }

    /// The times up to `now` that have not been given yet.
    fn due(&mut self, now: u64) -> impl Iterator<Item = u64> + use<> {
        let first = self.next;
        while self.time(self.next) <= now {
            self.next += 1;
        }
        let schedule = *self;
        (first..self.next).map(move |number| schedule.time(number))
    }
}

impl Pace {
    /// Begins now.
    pub(crate) fn new(stage: &Arc<Stage>, rate: f64) -> Result<Pace, LoadError> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = rustix::time::timerfd_create(TimerfdClockId::Monotonic, flags).map_err(no_timer)?;
        let interval = Duration::from_secs_f64(1.0 / rate).max(FINEST);
        let interval = Timespec {
            tv_sec: i64::try_from(interval.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: interval.subsec_nanos().into(),
        };
        let setting = Itimerspec { it_interval: interval, it_value: interval };
        rustix::time::timerfd_settime(&timer, TimerfdTimerFlags::empty(), &setting).map_err(no_timer)?;
        // Not a pipe, but read like one: a descriptor that becomes readable.
        let timer = Receiver::from_owned_fd_unchecked(timer).map_err(no_timer)?;
        let schedule = Schedule { begin: stage.now(), rate, next: 0 };
        Ok(Pace { stage: stage.clone(), timer, schedule })
    }

    /// Waits until something is due and gives the times at which it was.
    pub(crate) async fn due(&mut self) -> Result<impl Iterator<Item = u64> + use<>, LoadError> {
        // Longer than the eight bytes that come: a short read tells the runtime that no more is there.
        let mut expirations = [0; 16];
        self.timer.read(&mut expirations).await.map_err(no_timer)?;
        Ok(self.schedule.due(self.stage.now()))
    }

    /// How many times have been given.
    pub(crate) fn sent(&self) -> u64 {
        self.schedule.next
    }
}

fn no_timer(error: impl std::fmt::Display) -> LoadError {
    LoadError::Machine(format!("no timer: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_has_its_time_however_late_we_are() {
        let mut schedule = Schedule { begin: 500, rate: 3.0, next: 0 };
        assert_eq!(schedule.due(499).count(), 0);
        assert_eq!(schedule.due(500).collect::<Vec<_>>(), [500]);
        assert_eq!(schedule.due(333_000_000).count(), 0);
        // A stall of a second: three are due, at the times they should have had.
        let late: Vec<_> = schedule.due(1_000_000_500).collect();
        assert_eq!(late, [333_333_833, 666_667_166, 1_000_000_500]);
        assert_eq!(schedule.due(1_000_000_600).count(), 0);
    }

    #[test]
    fn the_rate_is_kept_over_long_runs() {
        let mut schedule = Schedule { begin: 0, rate: 7_777.0, next: 0 };
        let mut count = 0;
        for second in 1..=3600 {
            count += schedule.due(second * 1_000_000_000).count();
        }
        assert!((7_777 * 3600..=7_777 * 3600 + 1).contains(&count), "{count}");
    }
}
