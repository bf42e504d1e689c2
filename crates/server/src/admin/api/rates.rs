//! How often somebody may ask: each token, each session, each address counts for itself, minute by minute. Those who
//! have shown who they are and strangers are counted apart: no flood of strangers takes a place or a turn of theirs.

use std::collections::HashMap;
use std::net::IpAddr;

use parking_lot::Mutex;

use crate::net::listen::network;

/// Milliseconds of a window.
const WINDOW: i64 = 60_000;
/// Callers of either kind that are counted at once; beyond it those who come later share one count. There are fewer
/// sessions and tokens than this.
const MOST: usize = 10_000;
/// The count that is shared when there are too many.
const SHARED: &str = "";

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub(super) enum Who<'a> {
    /// A token or an account, by its name.
    Known(&'a str),
    /// Somebody at this address: an IPv6 /64 is one.
    Stranger(IpAddr),
}

/// Counts requests.
#[derive(Debug, Default)]
pub(super) struct Rates {
    known: Mutex<Window>,
    strangers: Mutex<Window>,
}

#[derive(Debug, Default)]
struct Window {
    began: i64,
    counts: HashMap<String, u32>,
}

impl Rates {
    /// One more of `who`.
    ///
    /// # Errors
    /// Too many: in so many seconds there may be more.
    pub(super) fn take(&self, who: Who<'_>, most: u32, now: i64) -> Result<(), u64> {
        match who {
            Who::Known(name) => self.known.lock().take(name, most, now),
            Who::Stranger(address) => self.strangers.lock().take(&network(address).to_string(), most, now),
        }
    }
}

impl Window {
    fn take(&mut self, who: &str, most: u32, now: i64) -> Result<(), u64> {
        let window = self;
        if now - window.began >= WINDOW || now < window.began {
            *window = Window { began: now, counts: HashMap::new() };
        }
        let known = window.counts.len() < MOST || window.counts.contains_key(who);
        let count = window.counts.entry(if known { who } else { SHARED }.to_owned()).or_default();
        *count = count.saturating_add(1);
        if *count <= most {
            return Ok(());
        }
        let left = window.began + WINDOW - now;
        Err(u64::try_from(left).unwrap_or(0).div_ceil(1000).max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_counts_for_itself_until_the_minute_is_over() {
        let rates = Rates::default();
        let (a, b) = (Who::Known("a"), Who::Known("b"));
        for _ in 0..3 {
            assert_eq!(rates.take(a, 3, 1_000_000), Ok(()));
        }
        assert_eq!(rates.take(a, 3, 1_020_500), Err(40));
        assert_eq!(rates.take(b, 3, 1_020_500), Ok(()));
        assert_eq!(rates.take(a, 3, 1_060_000), Ok(()));
        let of = |address: &str| Who::Stranger(address.parse().unwrap());
        assert_eq!(rates.take(of("2001:db8::1"), 1, 1_060_000), Ok(()));
        assert!(rates.take(of("2001:db8::2"), 1, 1_060_000).is_err(), "one network");
        assert_eq!(rates.take(of("2001:db8:0:1::1"), 1, 1_060_000), Ok(()));
    }

    #[test]
    fn strangers_share_a_count_when_there_are_too_many_and_hurt_nobody_who_is_known() {
        let rates = Rates::default();
        let stranger = |n: u32| Who::Stranger(IpAddr::from(n.to_be_bytes()));
        for n in 0..u32::try_from(MOST).unwrap() {
            assert_eq!(rates.take(stranger(n), 2, 0), Ok(()));
        }
        assert_eq!(rates.take(stranger(1_000_001), 2, 0), Ok(()));
        assert_eq!(rates.take(stranger(1_000_002), 2, 0), Ok(()));
        assert!(rates.take(stranger(1_000_003), 2, 0).is_err());
        assert_eq!(rates.take(stranger(0), 2, 0), Ok(()), "who came before keeps the own count");
        assert!(rates.strangers.lock().counts.len() <= MOST + 1);
        for name in ["one", "two", "three"] {
            assert_eq!(rates.take(Who::Known(name), 1, 0), Ok(()));
        }
    }
}
