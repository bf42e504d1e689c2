//! What users reported (XEP-0377), what other providers reported about our users, and what moderators made of it.
//!
//! A report comes with a block (XEP-0191) and goes into the queue in the same transaction. It has a copy of the
//! reported messages from the reporter's own archive: nobody can accuse another of what they were not sent.

mod complaint;
mod decisions;
mod intake;
mod operations;
mod providers;

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use trunkline_store::{Batch, Lane, StoreError, sql};
use trunkline_xmpp::jid::Jid;
use trunkline_xmpp::stanza::{Kind, MessageType, Stanza};

use crate::exchange::Exchange;
pub use complaint::Complaint;
pub use intake::Taken;
pub use operations::{ReportAction, ReportView, ReportsOp, run};

/// Reports that are kept, handled ones included. Beyond it the oldest handled ones go.
const MOST_KEPT: i64 = 50_000;
/// Milliseconds that a handled report is kept.
const KEPT_FOR: i64 = 365 * DAY;
/// Bytes of the copies of reported messages in one report.
const MOST_BYTES: usize = 64 * 1024;
/// Milliseconds after which a handled report has its copies no longer.
const COPIES_FOR: i64 = 30 * DAY;
/// How long a report of another provider waits for a moderator.
const OUTSIDE_FOR: i64 = 90 * DAY;
/// Moderators hear of reports once in this time at most.
const QUIET: Duration = Duration::from_secs(60);
const DAY: i64 = 86_400_000;

/// The moderation queue. Its reports are in the store; this is what was told lately.
#[derive(Debug, Default)]
pub struct Reports {
    notice: Mutex<Notice>,
    /// Held while a report of another provider is counted and stored, so that its bounds hold.
    outside: tokio::sync::Mutex<()>,
    /// Held while a moderator decides.
    deciding: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Notice {
    /// Until then moderators are left alone.
    quiet_until: i64,
    /// Came meanwhile.
    missed: u64,
}

impl Exchange {
    /// Tells moderators, once in [`QUIET`] at most.
    fn tell_moderators(self: &Arc<Self>, complaint: &Complaint, reporter: &str) {
        let now = self.clock().now();
        {
            let mut notice = self.control.reports.notice.lock();
            if now < notice.quiet_until {
                notice.missed += 1;
                if notice.missed == 1 {
                    let wait = Duration::from_millis(u64::try_from(notice.quiet_until - now).unwrap_or(0));
                    let exchange = Arc::clone(self);
                    self.spawn(async move {
                        tokio::time::sleep(wait).await;
                        let missed = std::mem::take(&mut exchange.control.reports.notice.lock().missed);
                        exchange.to_moderators(&format!("Further reports: {missed}."));
                    });
                }
                return;
            }
            notice.quiet_until = now + i64::try_from(QUIET.as_millis()).unwrap_or(i64::MAX);
        }
        let text = format!("{reporter} reports {} for {}.", complaint.about, complaint.reason);
        self.to_moderators(&text);
    }

    fn to_moderators(self: &Arc<Self>, text: &str) {
        let config = self.config.load_full();
        for moderator in &config.accounts.moderators {
            let Ok(to) = Jid::parse(moderator) else { continue };
            let Some(from) = self.voice(to.domain()) else { continue };
            let body = format!("{text} `trunkline federation reports list`, or the console.");
            self.send(headline(&from, &to, &body));
        }
    }

    /// The domain of ours that speaks with somebody at `domain`: that domain, or our first one.
    pub(crate) fn voice(&self, domain: &str) -> Option<Jid> {
        if let Some(host) = self.host(domain) {
            return Some(host.domain.clone());
        }
        self.host(&self.config.load().domain).map(|host| host.domain.clone())
    }
}

/// Deletes reports that are old or too many, again and again.
pub(crate) async fn keep(exchange: Arc<Exchange>) {
    loop {
        tokio::time::sleep(Duration::from_secs(3600)).await;
        if let Err(error) = tidy(&exchange).await {
            tracing::warn!(%error, "old reports could not be deleted");
        }
    }
}

/// Deletes a part of what is old or too much.
pub(crate) async fn tidy(exchange: &Exchange) -> Result<(), StoreError> {
    let now = exchange.clock().now();
    let batch = Batch::new(Lane::Outside)
        .with(
            sql("DELETE FROM reports WHERE id IN (SELECT id FROM reports WHERE state = 'handled' AND \
                 (at < ?1 OR (SELECT COUNT(*) FROM reports) > ?2) ORDER BY id LIMIT 200)")
            .bind(now - KEPT_FOR)
            .bind(MOST_KEPT),
        )
        .with(
            sql("UPDATE reports SET messages = '[]' WHERE id IN (SELECT id FROM reports WHERE state = 'handled' AND \
                 at < ?1 AND messages <> '[]' LIMIT 200)")
            .bind(now - COPIES_FOR),
        )
        .with(
            sql("DELETE FROM reports WHERE id IN (SELECT id FROM reports WHERE state = 'open' AND \
                 origin = 'outside' AND at < ?1 ORDER BY id LIMIT 200)")
            .bind(now - OUTSIDE_FOR),
        );
    exchange.db.run(batch).await.map(drop)
}

fn headline(from: &Jid, to: &Jid, text: &str) -> Stanza {
    Stanza::build(Kind::Message(MessageType::Headline))
        .from(from.clone())
        .to(to.clone())
        .body(|w| {
            w.text_element("body", text);
        })
        .done()
}

fn note_to(to: &Jid, text: &str) -> Stanza {
    headline(&to.domain_jid(), to, text)
}
