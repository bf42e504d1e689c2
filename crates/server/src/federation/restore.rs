//! Queues brought back from the disk: after a start, and as what is in memory drains.

use std::sync::Arc;

use trunkline_store::StoreError;
use trunkline_xmpp::jid::Jid;

use super::MOST_PEERS;
use super::outbound;
use super::pair::Pair;
use super::queue::{Page, Queue};
use super::shared::Shared;

/// Milliseconds between two attempts of a start that finds queues for many peers.
const STAGGER: i64 = 20;

impl Shared {
    /// Pairs for which something waits from before the start.
    pub(super) async fn resume_queues(self: &Arc<Self>) -> Result<(), StoreError> {
        for (index, rows) in (0i64..).zip(outbound::pairs(&self.exchange.db).await?) {
            let (Some(local), Ok(domain)) = (self.exchange.served(&rows.local), Jid::parse(&rows.peer))
            else {
                tracing::warn!(
                    local = rows.local,
                    peer = rows.peer,
                    "what waits in the queue is not from a domain of ours"
                );
                continue;
            };
            let Some(peer) = self.peer(&domain, MOST_PEERS) else { continue };
            let pair = Pair::new(local, &peer, Queue::from_disk(rows.rows));
            peer.pairs.lock().insert(rows.local, Arc::clone(&pair));
            // One after the other: ten thousand peers are not all called in the first second.
            pair.kick_at(self, self.now() + index * STAGGER);
        }
        Ok(())
    }
}

impl Pair {
    /// Reads what is on disk only, for an attempt that has nothing in memory.
    pub(super) async fn load_now(&self, shared: &Arc<Shared>) {
        if let Some(page) = self.wants_page(&shared.queue_bounds()) {
            self.load(shared, page).await;
        }
    }

    pub(super) async fn load(&self, shared: &Arc<Shared>, page: Page) {
        let (local, peer) = (self.local.domain.as_str(), self.peer.as_str());
        match outbound::page(&shared.exchange.db, local, peer, page.after).await {
            Ok(mut read) => {
                let broken = std::mem::take(&mut read.broken);
                self.forget(broken.len());
                self.add_page(page, read);
                outbound::delete(&shared.exchange.db, &broken);
            }
            Err(error) => {
                tracing::warn!(%error, peer, "the queue can't be read");
                self.no_page();
            }
        }
    }
}
