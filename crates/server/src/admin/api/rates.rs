//! How often somebody may ask: each token, each session, each address counts for itself, minute by minute.

use std::collections::HashMap;

use parking_lot::Mutex;

/// Milliseconds of a window.
const WINDOW: i64 = 60_000;
/// Callers that are counted at once. Beyond it strangers share one count; who is signed in never does, as there are
/// fewer sessions and tokens than this.
const MOST: usize = 10_000;
/// The count that strangers share when there are too many.
const SHARED: &str = "";

/// Counts requests.
#[derive(Debug, Default)]
pub(super) struct Rates(Mutex<Window>);

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
    pub(super) fn take(&self, who: &str, most: u32, now: i64) -> Result<(), u64> {
        let mut window = self.0.lock();
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
        for _ in 0..3 {
            assert_eq!(rates.take("a", 3, 1_000_000), Ok(()));
        }
        assert_eq!(rates.take("a", 3, 1_020_500), Err(40));
        assert_eq!(rates.take("b", 3, 1_020_500), Ok(()));
        assert_eq!(rates.take("a", 3, 1_060_000), Ok(()));
    }

    #[test]
    fn strangers_share_a_count_when_there_are_too_many() {
        let rates = Rates::default();
        assert_eq!(rates.take("known", 2, 0), Ok(()));
        for n in 0..MOST - 1 {
            assert_eq!(rates.take(&format!("x{n}"), 2, 0), Ok(()));
        }
        assert_eq!(rates.take("y1", 2, 0), Ok(()));
        assert_eq!(rates.take("y2", 2, 0), Ok(()));
        assert!(rates.take("y3", 2, 0).is_err());
        assert_eq!(rates.take("known", 2, 0), Ok(()), "who is known keeps the own count");
        assert!(rates.0.lock().counts.len() <= MOST + 1);
    }
}
