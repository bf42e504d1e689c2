//! How the streams are: for `trunkline federation status`, and as gauges.

use std::collections::HashMap;
use std::sync::Arc;

use super::peer::Peer;
use super::shared::Shared;
use crate::admin::{FederationStatus, PeerStatus, StreamStatus};

impl Shared {
    /// Gauges for the metrics.
    pub(super) fn watch(self: &Arc<Self>) {
        let metrics = &self.exchange.metrics;
        let shared = Arc::downgrade(self);
        metrics.watch_gauge(
            "federation_crossing_stanzas",
            "Stanzas from outside that wait to cross",
            move || shared.upgrade().map_or(0.0, |shared| shared.crossing.waiting().0 as f64),
        );
        let shared = Arc::downgrade(self);
        metrics.watch_gauge("federation_queue_kept", "Messages that wait for other domains", move || {
            let Some(shared) = shared.upgrade() else { return 0.0 };
            let peers = shared.peers.all();
            peers
                .iter()
                .map(|peer| peer.pairs.lock().values().map(|pair| pair.report().kept).sum::<usize>())
                .sum::<usize>() as f64
        });
    }

    pub(super) fn report(&self) -> FederationStatus {
        let mut streams: HashMap<String, Vec<StreamStatus>> = HashMap::new();
        let handles: Vec<_> = self.lines.lock().values().cloned().collect();
        for handle in handles {
            let peer = handle.peer.lock().clone();
            if let Some(peer) = peer {
                streams.entry(peer.as_str().to_owned()).or_default().push(handle.status.lock().clone());
            }
        }
        let mut peers: Vec<PeerStatus> = self
            .peers
            .all()
            .iter()
            .map(|peer| {
                let mut streams = streams.remove(peer.domain.as_str()).unwrap_or_default();
                streams.sort_by_key(|stream| stream.since);
                self.peer_status(peer, streams)
            })
            .collect();
        peers.sort_by(|a, b| a.domain.cmp(&b.domain));
        FederationStatus { open: self.is_open(), peers }
    }

    fn peer_status(&self, peer: &Peer, streams: Vec<StreamStatus>) -> PeerStatus {
        let mut status =
            PeerStatus { domain: peer.domain.as_str().to_owned(), streams, ..PeerStatus::default() };
        let mut state = "idle";
        let rank =
            |state: &str| ["idle", "waiting", "connecting", "connected"].iter().position(|s| *s == state);
        let pairs: Vec<_> = peer.pairs.lock().values().cloned().collect();
        for report in pairs.iter().map(|pair| pair.report()) {
            if rank(report.state) > rank(state) {
                state = report.state;
            }
            status.queue_stanzas += report.stanzas as u64;
            status.queue_bytes += report.bytes as u64;
            status.queue_kept += report.kept as u64;
            status.queue_oldest = [status.queue_oldest, report.oldest].into_iter().flatten().min();
            status.retry_at = match (status.retry_at, report.retry_at) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            };
            let newer = report.last_error.as_ref().map(|e| e.at) > status.last_error.as_ref().map(|e| e.at);
            if newer {
                status.last_error = report.last_error;
            }
        }
        if !status.streams.is_empty() {
            state = "connected";
        }
        if !self.is_open() {
            state = "closed";
        } else if !self.may_talk(&status.domain) {
            state = "blocked";
        }
        status.state = state.into();
        status
    }
}
