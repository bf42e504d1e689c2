//! Checks one flow of messages: everything once, in order.

use std::collections::BTreeSet;

/// Numbers that are missing are remembered up to here; beyond it the run has failed anyway.
const MOST_MISSING: usize = 100_000;

/// What has arrived of one flow.
#[derive(Debug, Default)]
pub(crate) struct Verifier {
    next: u32,
    arrived: u64,
    missing: BTreeSet<u32>,
    disordered: u64,
    repeated: u64,
}

/// How a flow ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) sent: u64,
    pub(crate) lost: u64,
    pub(crate) disordered: u64,
    pub(crate) repeated: u64,
}

impl Verifier {
    /// Takes in a number; whether it is the first time that it comes.
    pub(crate) fn arrived(&mut self, number: u32) -> bool {
        if number == self.next {
            self.next += 1;
        } else if number > self.next {
            let room = MOST_MISSING.saturating_sub(self.missing.len());
            self.missing.extend((self.next..number).take(room));
            self.next = number + 1;
        } else if self.missing.remove(&number) {
            self.disordered += 1;
        } else {
            self.repeated += 1;
            return false;
        }
        self.arrived += 1;
        true
    }

    /// How many are there.
    pub(crate) fn count(&self) -> u64 {
        self.arrived
    }

    /// Whether all of `sent` are there.
    pub(crate) fn complete(&self, sent: u64) -> bool {
        self.arrived >= sent
    }

    pub(crate) fn verdict(&self, sent: u64) -> Verdict {
        Verdict {
            sent,
            lost: sent.saturating_sub(self.arrived),
            disordered: self.disordered,
            repeated: self.repeated,
        }
    }
}

impl Verdict {
    pub(crate) fn add(&mut self, other: Verdict) {
        self.sent += other.sent;
        self.lost += other.lost;
        self.disordered += other.disordered;
        self.repeated += other.repeated;
    }

    /// What is wrong, in words.
    pub(crate) fn check(&self) -> Result<(), String> {
        let Verdict { sent, lost, disordered, repeated } = *self;
        if (lost, disordered, repeated) == (0, 0, 0) {
            return Ok(());
        }
        Err(format!(
            "of {sent} sent, {lost} were lost, {repeated} came more than once, {disordered} came out of order"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(numbers: &[u32], sent: u64) -> Verdict {
        let mut verifier = Verifier::default();
        for number in numbers {
            verifier.arrived(*number);
        }
        assert_eq!(verifier.complete(sent), verifier.verdict(sent).lost == 0);
        verifier.verdict(sent)
    }

    fn found(lost: u64, disordered: u64, repeated: u64, sent: u64) -> Verdict {
        Verdict { sent, lost, disordered, repeated }
    }

    #[test]
    fn all_in_order_is_well() {
        assert!(verdict(&[0, 1, 2, 3], 4).check().is_ok());
        assert!(verdict(&[], 0).check().is_ok());
    }

    #[test]
    fn losses_are_found() {
        assert_eq!(verdict(&[0, 1, 3], 4), found(1, 0, 0, 4), "in the middle");
        assert_eq!(verdict(&[1, 2, 3], 4), found(1, 0, 0, 4), "at the start");
        assert_eq!(verdict(&[0, 1, 2], 4), found(1, 0, 0, 4), "at the end");
        assert_eq!(verdict(&[], 4), found(4, 0, 0, 4), "everything");
    }

    #[test]
    fn repeats_are_found_and_hide_no_loss() {
        assert_eq!(verdict(&[0, 1, 1, 2], 3), found(0, 0, 1, 3));
        assert_eq!(verdict(&[0, 0, 2], 3), found(1, 0, 1, 3));
        assert_eq!(verdict(&[0, 2, 1, 1], 3), found(0, 1, 1, 3));
    }

    #[test]
    fn disorder_is_found() {
        assert_eq!(verdict(&[0, 2, 1, 3], 4), found(0, 1, 0, 4));
        assert_eq!(verdict(&[3, 2, 1, 0], 4), found(0, 3, 0, 4));
        assert!(verdict(&[0, 2, 1], 3).check().is_err_and(|text| text.contains("1 came out of order")));
    }
}
