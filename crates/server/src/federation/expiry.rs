//! The end of stanzas that were not delivered: what has waited too long, and the errors that senders get.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use trunkline_store::StoreError;
use trunkline_xmpp::error::{Condition, StanzaError};
use trunkline_xmpp::stanza::{Kind, Stanza};

use super::failure::Failure;
use super::outbound;
use super::queue::Item;
use super::shared::Shared;
use crate::ids::LogId;
use crate::route::Mail;
use crate::session::ledger::Receipt;

/// How often what has expired is looked for.
const SWEEP: Duration = Duration::from_secs(60);

/// A stanza that goes back to its sender, with its row if it has one.
#[derive(Debug)]
pub(super) struct Bounce {
    pub(super) stanza: Stanza,
    pub(super) kept: Option<LogId>,
}

impl From<Item> for Bounce {
    fn from(item: Item) -> Bounce {
        Bounce { stanza: item.stanza, kept: item.kept }
    }
}

impl Shared {
    /// Tells senders, on the inside's threads, then removes the rows.
    pub(super) fn bounce(self: &Arc<Self>, bounces: Vec<Bounce>, error: StanzaError) {
        self.bounce_then(bounces, error, None);
    }

    /// [`Shared::bounce`]; the sender's `receipt` goes after the errors: nobody may take for stored what was not.
    pub(super) fn bounce_then(
        self: &Arc<Self>,
        bounces: Vec<Bounce>,
        error: StanzaError,
        receipt: Option<Receipt>,
    ) {
        if bounces.is_empty() {
            return;
        }
        let exchange = Arc::clone(&self.exchange);
        self.exchange.spawn(async move {
            let mut gone = Vec::new();
            for bounce in bounces {
                exchange.metrics.expired.inc();
                // Nobody waits for presence that did not arrive, except for an answer to a request.
                let silent = matches!(bounce.stanza.head.kind, Kind::Presence(_)) && bounce.kept.is_none();
                if !silent && let Some(answer) = bounce.stanza.error(&error) {
                    exchange.deliver(Mail::inside(answer)).await;
                }
                gone.extend(bounce.kept);
            }
            // After the errors: a crash in between repeats them, under the same ids.
            outbound::delete(&exchange.db, &gone);
            drop(receipt);
        });
    }

    pub(super) async fn sweep_for_ever(self: Arc<Self>, mut stopped: watch::Receiver<()>) {
        loop {
            let every = SWEEP
                .min(self.exchange.config.load().federation.queue_age / 4)
                .max(Duration::from_millis(50));
            tokio::select! {
                _ = stopped.changed() => return,
                () = tokio::time::sleep(every) => {}
            }
            self.refusals.sweep();
            if let Err(error) = self.sweep().await {
                tracing::warn!(%error, "the queue for other domains can't be swept");
            }
        }
    }

    /// Bounces what has waited too long.
    async fn sweep(self: &Arc<Self>) -> Result<(), StoreError> {
        let now = self.now();
        let mut after = LogId::ZERO;
        loop {
            let rows = outbound::expired(&self.exchange.db, now, after).await?;
            let Some(last) = rows.last() else { return Ok(()) };
            after = last.id;
            for row in rows {
                let pair =
                    self.peers.get(&row.peer).and_then(|peer| peer.pairs.lock().get(&row.local).cloned());
                let why = match &pair {
                    Some(pair) if !pair.expire(row.id) => continue,
                    Some(pair) => {
                        pair.forget(1);
                        pair.last_failure()
                    }
                    None => None,
                };
                let Some(stanza) = row.stanza else {
                    outbound::delete(&self.exchange.db, &[row.id]);
                    continue;
                };
                let waited = words(self.exchange.config.load().federation.queue_age);
                let error = why
                    .as_ref()
                    .map_or_else(|| StanzaError::new(Condition::RemoteServerTimeout), Failure::stanza_error);
                let text = match why {
                    Some(why) => format!("{} could not be reached for {waited}: {why}.", row.peer),
                    None => format!("{} could not be reached for {waited}.", row.peer),
                };
                self.bounce(vec![Bounce { stanza, kept: Some(row.id) }], error.text(text));
            }
        }
    }
}

/// `2 days`, `15 min`.
fn words(span: Duration) -> String {
    let seconds = span.as_secs();
    match seconds {
        172_800.. => format!("{} days", seconds / 86_400),
        7200.. => format!("{} hours", seconds / 3600),
        120.. => format!("{} minutes", seconds / 60),
        _ => format!("{seconds} seconds"),
    }
}
