//! Identifiers and the clock: one place for both, injected, so that a play in virtual time sees the
//! same numbers every run.
//!
//! A [`LogId`] is the key of every kept stanza: 43 bits of milliseconds, 20 bits of counter. It grows
//! monotonically, also when the wall clock steps back, and it maps to a UUIDv7 (RFC 9562 s.5.7) and
//! back, so that the stanza-id (XEP-0359) needs neither a column nor an index.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use uuid::Uuid;

/// Bits of a [`LogId`] below the milliseconds.
const COUNTER_BITS: u32 = 20;

/// Key of a kept stanza; its order is the order of the archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct LogId(pub i64);

impl LogId {
    /// Before every stanza.
    pub const ZERO: LogId = LogId(0);

    /// The first that may be given in that millisecond since 1970.
    pub fn first_of(millis: i64) -> LogId {
        LogId(millis.max(0).saturating_mul(1 << COUNTER_BITS))
    }

    /// Milliseconds since 1970 at which the id was given.
    pub fn millis(self) -> i64 {
        self.0 >> COUNTER_BITS
    }
}

/// The wall clock in milliseconds since 1970.
#[derive(Clone, Debug)]
pub enum Clock {
    /// The system's.
    System,
    /// Follows tokio's clock, which tests pause and advance, from a fixed date.
    Virtual {
        /// Milliseconds since 1970 at `start`.
        epoch: i64,
        /// Tokio's instant at that date.
        start: tokio::time::Instant,
    },
}

impl Clock {
    /// A clock that follows tokio's paused time, from 2026-01-01T00:00:00Z on.
    pub fn virtual_now() -> Clock {
        Clock::Virtual { epoch: 1_767_225_600_000, start: tokio::time::Instant::now() }
    }

    /// Milliseconds since 1970.
    pub fn now(&self) -> i64 {
        match self {
            Clock::System => SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX)),
            Clock::Virtual { epoch, start } => {
                epoch + i64::try_from(start.elapsed().as_millis()).unwrap_or(i64::MAX)
            }
        }
    }
}

/// Gives out identifiers.
#[derive(Debug)]
pub struct Ids {
    clock: Clock,
    last: AtomicI64,
    /// 54 bits that make this server's UUIDs its own.
    mark: u64,
    short: AtomicU64,
}

impl Ids {
    /// `last` is the highest id in the store: ids go on above it even when the clock was set back.
    /// `mark` is any number that other servers are unlikely to have.
    pub fn new(clock: Clock, last: LogId, mark: u64) -> Arc<Ids> {
        Arc::new(Ids {
            clock,
            last: AtomicI64::new(last.0),
            mark: mark & ((1 << 54) - 1),
            short: AtomicU64::new(0),
        })
    }

    /// The clock the ids are made with.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// The next id; greater than every one before.
    pub fn next(&self) -> LogId {
        let floor = self.clock.now() << COUNTER_BITS;
        let mut last = self.last.load(Ordering::Relaxed);
        loop {
            let next = floor.max(last + 1);
            match self.last.compare_exchange_weak(last, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return LogId(next),
                Err(seen) => last = seen,
            }
        }
    }

    /// The stanza-id (XEP-0359) that stands for `id`.
    pub fn uuid(&self, id: LogId) -> Uuid {
        let millis = u64::try_from(id.millis()).unwrap_or(0);
        let counter = u64::try_from(id.0 & ((1 << COUNTER_BITS) - 1)).unwrap_or(0);
        let (high, low) = (counter >> 8, counter & 0xff);
        let top = (millis << 16) | 0x7000 | high;
        let bottom = (0b10 << 62) | (low << 54) | self.mark;
        Uuid::from_u64_pair(top, bottom)
    }

    /// The id behind a stanza-id of this server; `None` for a foreign or malformed one.
    pub fn parse(&self, text: &str) -> Option<LogId> {
        let uuid = Uuid::try_parse(text).ok()?;
        let (top, bottom) = uuid.as_u64_pair();
        if top & 0xf000 != 0x7000 || bottom >> 62 != 0b10 || bottom & ((1 << 54) - 1) != self.mark {
            return None;
        }
        let counter = ((top & 0xfff) << 8) | ((bottom >> 54) & 0xff);
        let millis = i64::try_from(top >> 16).ok()?;
        millis.checked_mul(1 << COUNTER_BITS)?.checked_add(i64::try_from(counter).ok()?).map(LogId)
    }

    /// A short id for a stanza the server itself sends; unique in this process.
    pub fn short(&self) -> String {
        format!("t{:x}", self.short.fetch_add(1, Ordering::Relaxed))
    }
}

/// A random token of `bytes` bytes, in URL-safe base64: resumption ids, resources, stream ids.
pub fn token(bytes: usize) -> String {
    use base64::Engine as _;
    let mut raw = vec![0u8; bytes];
    getrandom::fill(&mut raw).expect("invariant: the operating system gives randomness");
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_grow_and_survive_a_clock_that_steps_back() {
        let far = LogId(i64::from(u32::MAX) << 25);
        let ids = Ids::new(Clock::System, far, 7);
        let first = ids.next();
        assert!(first > far || first.millis() > far.millis());
        assert!(ids.next() > first);
    }

    #[test]
    fn a_stanza_id_is_a_uuid_v7_and_comes_back() {
        let ids = Ids::new(Clock::System, LogId::ZERO, 0x1234_5678);
        for _ in 0..1000 {
            let id = ids.next();
            let uuid = ids.uuid(id);
            assert_eq!(uuid.get_version_num(), 7);
            assert_eq!(ids.parse(&uuid.to_string()), Some(id));
        }
        assert_eq!(Ids::new(Clock::System, LogId::ZERO, 1).parse(&ids.uuid(ids.next()).to_string()), None);
        assert_eq!(ids.parse("no uuid"), None);
    }
}
