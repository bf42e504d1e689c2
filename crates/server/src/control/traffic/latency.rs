//! How long a peer takes to acknowledge: a histogram of the last ten to twenty minutes, two steps to an octave.

use std::time::Duration;

/// Steps: from below a quarter of a millisecond to a minute and more.
const STEPS: usize = 37;
/// The upper end of the first step, in milliseconds.
const FIRST: f64 = 0.25;
/// Milliseconds that one half of the memory covers.
const HALF: i64 = 10 * 60 * 1000;

/// How long acknowledgements took of late.
#[derive(Debug, Default)]
pub(crate) struct Latencies {
    /// `None` until something was measured.
    halves: Option<Box<[[u32; STEPS]; 2]>>,
    began: i64,
}

impl Latencies {
    pub(crate) fn add(&mut self, after: Duration, now: i64) {
        self.turn(now);
        if self.halves.is_none() {
            self.began = now;
        }
        let count = &mut self.halves.get_or_insert_with(|| Box::new([[0; STEPS]; 2]))[0][step(after)];
        *count = count.saturating_add(1);
    }

    fn turn(&mut self, now: i64) {
        let Some(halves) = &mut self.halves else { return };
        if now - self.began >= 2 * HALF {
            self.halves = None;
        } else if now - self.began >= HALF {
            halves[1] = std::mem::replace(&mut halves[0], [0; STEPS]);
            self.began += HALF;
        }
    }

    /// Median and 99th percentile in milliseconds: the upper ends of their steps.
    pub(crate) fn quantiles(&mut self, now: i64) -> Option<(f64, f64)> {
        self.turn(now);
        let halves = self.halves.as_deref()?;
        let sums: Vec<u64> = (0..STEPS).map(|n| u64::from(halves[0][n]) + u64::from(halves[1][n])).collect();
        let total: u64 = sums.iter().sum();
        let quantile = |share: f64| {
            let wanted = ((total as f64 * share).ceil() as u64).max(1);
            let mut seen = 0;
            let step = sums.iter().position(|count| {
                seen += count;
                seen >= wanted
            });
            upper(step.unwrap_or(STEPS - 1))
        };
        (total > 0).then(|| (quantile(0.5), quantile(0.99)))
    }
}

fn step(after: Duration) -> usize {
    let octaves = (after.as_secs_f64() * 1000.0 / FIRST).max(1e-9).log2();
    ((octaves * 2.0).ceil().max(0.0) as usize).min(STEPS - 1)
}

fn upper(step: usize) -> f64 {
    let value = FIRST * 2f64.powf(step as f64 / 2.0);
    (value * 100.0).round() / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_upper_ends_and_what_is_old_is_forgotten() {
        let mut latencies = Latencies::default();
        assert_eq!(latencies.quantiles(0), None);
        for _ in 0..98 {
            latencies.add(Duration::from_millis(10), 1000);
        }
        latencies.add(Duration::from_secs(2), 1000);
        latencies.add(Duration::from_secs(7200), 1000);
        let (median, late) = latencies.quantiles(1000).unwrap();
        assert!((10.0..=14.2).contains(&median), "{median}");
        assert!((2000.0..=2900.0).contains(&late), "{late}");
        // After ten minutes it still counts, after twenty no more.
        assert_eq!(latencies.quantiles(1000 + HALF), Some((median, late)));
        latencies.add(Duration::from_millis(1), 1000 + HALF);
        assert_eq!(latencies.quantiles(1000 + HALF).unwrap().0, median);
        assert_eq!(latencies.quantiles(1000 + 2 * HALF), Some((1.0, 1.0)));
        assert_eq!(latencies.quantiles(1000 + 5 * HALF), None);
    }
}
