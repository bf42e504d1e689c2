//! The rows of the table: what is measured and what is to be reached.

use super::results::Results;

/// Who is measured: a column of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Subject {
    /// A bare TLS relay: what this machine can do at all.
    Floor,
    Ours,
    Prosody,
    Ejabberd,
}

impl Subject {
    pub(super) const ALL: [Subject; 4] = [Subject::Floor, Subject::Ours, Subject::Prosody, Subject::Ejabberd];
    pub(super) const PEERS: [Subject; 2] = [Subject::Prosody, Subject::Ejabberd];

    pub(super) fn name(self) -> &'static str {
        match self {
            Subject::Floor => "floor",
            Subject::Ours => "trunkline",
            Subject::Prosody => "prosody",
            Subject::Ejabberd => "ejabberd",
        }
    }

    pub(super) fn by_name(name: &str) -> Option<Subject> {
        Subject::ALL.into_iter().find(|it| it.name() == name)
    }
}

/// What our median must not exceed.
#[derive(Clone, Copy, Debug)]
pub(super) enum Bound {
    /// So many units.
    Absolute(f64),
    /// So many times the floor of the same row.
    Floor(f64),
    /// This part of the best peer's median in this row.
    Peer(f64),
    /// This part of the best peer's median in any of these rows.
    PeerIn(&'static [&'static str], f64),
    /// So many times our own median in this row.
    Own(&'static str, f64),
    /// It is enough to have been measured.
    Shown,
}

/// One line of the table.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) id: &'static str,
    pub(super) work: &'static str,
    pub(super) unit: &'static str,
    /// The target in words; empty for rows that only help to read others.
    pub(super) target: &'static str,
    pub(super) bounds: &'static [Bound],
}

const CPU: &str = "µs CPU";
const LATENCY: &str = "µs";
const NO_BOUNDS: &[Bound] = &[];

pub(super) const ROWS: &[Row] = &[
    Row {
        id: "chat-w1",
        work: "chat message, 100 pairs, window 1",
        unit: CPU,
        target: "≤ 2.0 × floor, ≤ 1/6 of the best peer",
        bounds: &[Bound::Floor(2.0), Bound::Peer(1.0 / 6.0)],
    },
    Row {
        id: "chat-w16",
        work: "chat message, 100 pairs, window 16 (floor: coalesced)",
        unit: CPU,
        target: "≤ 1/10 of the best peer",
        bounds: &[Bound::Peer(0.1)],
    },
    Row {
        id: "chat-w16-writes",
        work: "the same floor with one write a message",
        unit: CPU,
        target: "",
        bounds: NO_BOUNDS,
    },
    Row {
        id: "rate",
        work: "chat message at 1,000 messages/s, open loop",
        unit: CPU,
        target: "≤ 2.0 × floor",
        bounds: &[Bound::Floor(2.0)],
    },
    Row {
        id: "latency-p50",
        work: "delivery latency at 1,000 messages/s, p50",
        unit: LATENCY,
        target: "≤ 150 µs",
        bounds: &[Bound::Absolute(150.0)],
    },
    Row {
        id: "latency-p99",
        work: "delivery latency at 1,000 messages/s, p99",
        unit: LATENCY,
        target: "below the best peer's p50",
        bounds: &[Bound::PeerIn(&["latency-p50"], 1.0)],
    },
    Row {
        id: "archived",
        work: "chat message, window 1, stream management, archive on",
        unit: CPU,
        target: "≤ 1/4 of the best peer",
        bounds: &[Bound::Peer(0.25)],
    },
    Row {
        id: "chat-full",
        work: "the same with two devices a user, carbons, one of them inactive (three deliveries and two archives a message)",
        unit: CPU,
        target: "≤ 1/4 of the best peer",
        bounds: &[Bound::Peer(0.25)],
    },
    Row {
        id: "fanout",
        work: "presence to 1,000 contacts online, a delivery",
        unit: CPU,
        target: "≤ 6 µs",
        bounds: &[Bound::Absolute(6.0)],
    },
    Row {
        id: "login",
        work: "login, full handshake, SCRAM-SHA-256",
        unit: CPU,
        target: "≤ 1/3 of the best peer",
        bounds: &[Bound::Peer(1.0 / 3.0)],
    },
    Row {
        id: "login-resumed",
        work: "login, TLS session resumed, SCRAM-SHA-256",
        unit: CPU,
        target: "≤ 1/6 of the best peer, resumed or not",
        bounds: &[Bound::PeerIn(&["login", "login-resumed"], 1.0 / 6.0)],
    },
    Row {
        id: "idle",
        work: "idle session, stream management, presence sent; at 10,000",
        unit: "KiB",
        target: "≤ 12 KiB",
        bounds: &[Bound::Absolute(12.0)],
    },
    Row {
        id: "many",
        work: "the same with as many sessions as --sessions asks for",
        unit: "KiB",
        target: "100,000 sessions shown",
        bounds: &[Bound::Shown],
    },
    Row {
        id: "s2s",
        work: "message from server to server, 100 pairs, window 1, CPU of both",
        unit: CPU,
        target: "≤ 1/4 of the best peer",
        bounds: &[Bound::Peer(0.25)],
    },
    Row {
        id: "growth-few",
        work: "chat message, window 1, beside 100 idle sessions",
        unit: CPU,
        target: "",
        bounds: NO_BOUNDS,
    },
    Row {
        id: "growth-many",
        work: "chat message, window 1, beside 10,000 idle sessions",
        unit: CPU,
        target: "≤ 1.1 × that at 100",
        bounds: &[Bound::Own("growth-few", 1.1)],
    },
    Row {
        id: "login-1k",
        work: "login with 1,000 accounts in the store",
        unit: CPU,
        target: "",
        bounds: NO_BOUNDS,
    },
    Row {
        id: "login-1m",
        work: "login with 1,000,000 accounts in the store",
        unit: CPU,
        target: "flat (≤ 1.1 ×)",
        bounds: &[Bound::Own("login-1k", 1.1)],
    },
    Row {
        id: "roster-1k",
        work: "roster change and its push, 1,000 accounts in the store",
        unit: CPU,
        target: "",
        bounds: NO_BOUNDS,
    },
    Row {
        id: "roster-1m",
        work: "roster change and its push, 1,000,000 accounts in the store",
        unit: CPU,
        target: "flat (≤ 1.1 ×)",
        bounds: &[Bound::Own("roster-1k", 1.1)],
    },
    Row {
        id: "start",
        work: "start to ready with 1,000,000 accounts",
        unit: "ms",
        target: "< 300 ms",
        bounds: &[Bound::Absolute(300.0)],
    },
    Row {
        id: "room",
        work: "message in a room of 200, one sender, a delivery",
        unit: CPU,
        target: "",
        bounds: NO_BOUNDS,
    },
];

pub(super) fn row(id: &str) -> Option<&'static Row> {
    ROWS.iter().find(|row| row.id == id)
}

/// How a row came out for us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Met,
    NotMet,
    /// A figure that the target is compared with is missing.
    Unknown,
    NoTarget,
}

impl Row {
    pub(super) fn verdict(&self, results: &Results) -> Verdict {
        if self.bounds.is_empty() {
            return Verdict::NoTarget;
        }
        let Some(ours) = results.median(self.id, Subject::Ours) else { return Verdict::Unknown };
        // A loss is an error, however good the other rounds were.
        if results.failure(self.id, Subject::Ours).is_some() {
            return Verdict::NotMet;
        }
        let mut verdict = Verdict::Met;
        for bound in self.bounds {
            match bound.limit(self.id, results) {
                Some(limit) if ours <= limit => {}
                Some(_) => return Verdict::NotMet,
                None => verdict = Verdict::Unknown,
            }
        }
        verdict
    }
}

impl Bound {
    fn limit(self, row: &'static str, results: &Results) -> Option<f64> {
        match self {
            Bound::Absolute(limit) => Some(limit),
            Bound::Floor(times) => Some(results.median(row, Subject::Floor)? * times),
            Bound::Peer(part) => Some(results.best_peer(&[row])? * part),
            Bound::PeerIn(rows, part) => Some(results.best_peer(rows)? * part),
            Bound::Own(other, times) => Some(results.median(other, Subject::Ours)? * times),
            Bound::Shown => Some(f64::INFINITY),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::results::Sample;
    use super::*;

    fn results(figures: &[(&str, Subject, f64)]) -> Results {
        let samples = figures.iter().map(|(row, subject, value)| Sample::figure(row, *subject, *value));
        Results { samples: samples.collect() }
    }

    fn verdict(id: &str, figures: &[(&str, Subject, f64)]) -> Verdict {
        row(id).map_or(Verdict::NoTarget, |row| row.verdict(&results(figures)))
    }

    #[test]
    fn every_bound_must_hold() {
        use Subject::{Ejabberd, Floor, Ours, Prosody};
        let mut figures = vec![("chat-w1", Floor, 6.0), ("chat-w1", Ours, 11.0), ("chat-w1", Prosody, 90.0)];
        assert_eq!(verdict("chat-w1", &figures), Verdict::Met);
        figures.push(("chat-w1", Ejabberd, 60.0));
        assert_eq!(verdict("chat-w1", &figures), Verdict::NotMet, "the best peer counts");
        assert_eq!(verdict("chat-w1", &figures[..2]), Verdict::Unknown, "no peer was measured");
        let slow = [("chat-w1", Floor, 6.0), ("chat-w1", Ours, 13.0)];
        assert_eq!(verdict("chat-w1", &slow), Verdict::NotMet, "one that fails is enough");
    }

    #[test]
    fn bounds_that_look_at_other_rows() {
        use Subject::{Ejabberd, Ours};
        let growth = [("growth-few", Ours, 10.0), ("growth-many", Ours, 10.9)];
        assert_eq!(verdict("growth-many", &growth), Verdict::Met);
        assert_eq!(verdict("growth-few", &growth), Verdict::NoTarget);
        let latency = [("latency-p99", Ours, 300.0), ("latency-p50", Ejabberd, 280.0)];
        assert_eq!(verdict("latency-p99", &latency), Verdict::NotMet);
        let resumed =
            [("login-resumed", Ours, 150.0), ("login", Ejabberd, 1500.0), ("login-resumed", Ejabberd, 900.0)];
        assert_eq!(verdict("login-resumed", &resumed), Verdict::Met);
    }

    #[test]
    fn rows_have_names_of_their_own() {
        for (n, row) in ROWS.iter().enumerate() {
            assert!(ROWS[..n].iter().all(|it| it.id != row.id), "{}", row.id);
            assert_eq!(row.target.is_empty(), row.bounds.is_empty(), "{}", row.id);
        }
    }
}
