//! One other domain: what it may use of this server, and how many there may be.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Semaphore;
use trunkline_xmpp::jid::Jid;

use super::crossing::Load;
use super::pair::Pair;
use super::queue::Queue;
use crate::exchange::Host;

/// Connections to one peer that are made at the same time: more of them than that wait to share the stream.
pub(super) const MOST_DIALS: usize = 4;
/// Streams in a row that bugs of ours may end. A peer that sends what we can't handle sends it again on the next stream,
/// as it should: beyond this its domain can't be proved, and on the way out senders get their stanzas back.
pub(super) const MOST_FAULTS: u32 = 3;
/// Milliseconds after which bugs are forgotten.
const FAULTS_PASS: i64 = 600_000;

/// One other domain.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) domain: Jid,
    /// What it may send in a second.
    pub(super) budget: Mutex<Budget>,
    /// What it has in the crossing.
    pub(super) load: Arc<Load>,
    /// Streams of it that a bug of ours has ended.
    pub(super) faults: Mutex<Faults>,
    /// Connections to it that may be made at the same time.
    pub(super) dials: Semaphore,
    /// By local domain.
    pub(super) pairs: Mutex<BTreeMap<String, Arc<Pair>>>,
}

impl Peer {
    fn is_idle(&self) -> bool {
        self.load.stanzas() == 0
            && self.pairs.lock().values().all(|pair| Arc::strong_count(pair) == 1 && pair.is_idle())
    }

    pub(super) fn pair(&self, local: &Arc<Host>) -> Arc<Pair> {
        let mut pairs = self.pairs.lock();
        let pair = pairs
            .entry(local.domain.as_str().to_owned())
            .or_insert_with(|| Pair::new(Arc::clone(local), self, Queue::new()));
        Arc::clone(pair)
    }
}

/// All peers.
#[derive(Debug, Default)]
pub(super) struct Peers {
    by_domain: Mutex<HashMap<String, Arc<Peer>>>,
}

impl Peers {
    pub(super) fn get(&self, domain: &str) -> Option<Arc<Peer>> {
        self.by_domain.lock().get(domain).cloned()
    }

    pub(super) fn all(&self) -> Vec<Arc<Peer>> {
        self.by_domain.lock().values().cloned().collect()
    }

    /// The peer, made if need be. `None` when there are `most` peers and all of them are in use.
    pub(super) fn get_or_make(
        &self,
        domain: &Jid,
        most: usize,
        make: impl FnOnce() -> Peer,
    ) -> Option<Arc<Peer>> {
        let mut peers = self.by_domain.lock();
        if let Some(peer) = peers.get(domain.as_str()) {
            return Some(Arc::clone(peer));
        }
        if peers.len() >= most {
            peers.retain(|_, peer| Arc::strong_count(peer) > 1 || !peer.is_idle());
            if peers.len() >= most {
                return None;
            }
        }
        let peer = Arc::new(make());
        peers.insert(domain.as_str().to_owned(), Arc::clone(&peer));
        Some(peer)
    }
}

/// How often bugs of ours have ended streams of one peer lately.
#[derive(Debug, Default)]
pub(super) struct Faults {
    count: u32,
    /// Of the last one, in milliseconds since 1970.
    at: i64,
}

impl Faults {
    pub(super) fn note(&mut self, now: i64) {
        self.count = if self.is_recent(now) { self.count.saturating_add(1) } else { 1 };
        self.at = now;
    }

    /// No more streams for a while: whatever the peer sends makes us fail, again and again.
    pub(super) fn are_too_many(&self, now: i64) -> bool {
        self.count >= MOST_FAULTS && self.is_recent(now)
    }

    fn is_recent(&self, now: i64) -> bool {
        now.saturating_sub(self.at) < FAULTS_PASS
    }
}

/// A token bucket for what a peer domain sends, on all its streams together.
#[derive(Debug)]
pub(super) struct Budget {
    stanzas: f64,
    bytes: f64,
    at: i64,
}

impl Budget {
    pub(super) fn new(limits: &crate::config::Limits, now: i64) -> Budget {
        Budget {
            stanzas: f64::from(limits.peer_stanzas_burst),
            bytes: f64::from(limits.peer_bytes_burst),
            at: now,
        }
    }

    /// Takes what was received; how long not to read.
    pub(super) fn take(&mut self, limits: &crate::config::Limits, now: i64, got: (usize, usize)) -> Duration {
        if !limits.enabled {
            return Duration::ZERO;
        }
        let elapsed = (now - self.at).max(0) as f64 / 1000.0;
        self.at = now;
        let fill =
            |have: f64, rate: u32, burst: u32| (have + elapsed * f64::from(rate)).min(f64::from(burst));
        self.stanzas = fill(self.stanzas, limits.peer_stanzas, limits.peer_stanzas_burst) - got.0 as f64;
        self.bytes = fill(self.bytes, limits.peer_bytes, limits.peer_bytes_burst) - got.1 as f64;
        let wait = |have: f64, rate: u32| if have < 0.0 { -have / f64::from(rate.max(1)) } else { 0.0 };
        let seconds = wait(self.stanzas, limits.peer_stanzas).max(wait(self.bytes, limits.peer_bytes));
        Duration::from_secs_f64(seconds.min(60.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_in_a_row_are_too_many_until_they_are_forgotten() {
        let mut faults = Faults::default();
        for now in [1_000_000, 1_500_000] {
            faults.note(now);
            assert!(!faults.are_too_many(now));
        }
        faults.note(2_000_000);
        assert!(faults.are_too_many(2_599_999));
        assert!(!faults.are_too_many(2_600_000));
        faults.note(2_600_000);
        assert!(!faults.are_too_many(2_600_000), "it begins anew");
    }
}
