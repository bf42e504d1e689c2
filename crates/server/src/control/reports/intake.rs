//! Reports of our own users: they come with a block, and go into the queue in the same transaction.

use std::collections::HashSet;
use std::sync::Arc;

use trunkline_store::{Statement, StoreError, sql};
use trunkline_xmpp::jid::Jid;
use trunkline_xmpp::ns;

use super::complaint::Complaint;
use super::{DAY, MOST_BYTES, note_to};
use crate::control::reputation::Sign;
use crate::control::traffic;
use crate::exchange::Exchange;
use crate::ids::LogId;
use crate::logging::Refusal;
use crate::route::account::Account;

/// Reports of one user within a day.
const MOST_OF_ONE: i64 = 50;
/// Reports that wait for a moderator.
const MOST_OPEN: i64 = 10_000;
/// Milliseconds within which one report of a reporter about a domain counts against the domain's reputation.
const COUNTS_ONCE_IN: i64 = 30 * DAY;

/// Reports that are to be stored together with what else their request does.
#[derive(Debug, Default)]
pub struct Taken {
    /// For the same batch.
    pub statements: Vec<Statement>,
    /// With what they are about, and whether they count against its reputation.
    accepted: Vec<(Complaint, bool)>,
    reporter: Option<Jid>,
    refused: Option<&'static str>,
}

impl Exchange {
    /// Makes reports of `account`'s complaints: with copies of the messages from its own archive. The account's
    /// `writes` are locked by the caller, so that the bounds hold.
    ///
    /// A report beyond a bound is refused by name and left out; XEP-0377 s.6 demands that the block goes on.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn take_reports(
        self: &Arc<Self>,
        account: &Arc<Account>,
        complaints: Vec<Complaint>,
    ) -> Result<Taken, StoreError> {
        let mut taken = Taken { reporter: Some(account.jid.clone()), ..Taken::default() };
        if complaints.is_empty() {
            return Ok(taken);
        }
        let now = self.clock().now();
        let counts = self
            .db
            .read(
                sql("SELECT (SELECT COUNT(*) FROM reports WHERE account = ?1 AND at > ?2), \
                     (SELECT COUNT(*) FROM reports WHERE state = 'open')")
                .bind(account.id)
                .bind(now - DAY),
            )
            .await?;
        let (mut own, mut open) = counts.first().map_or((0, 0), |row| (row.int(0), row.int(1)));
        let affiliation = self.affiliation(account).await?;
        let mut counted = HashSet::new();
        for complaint in complaints {
            let refusal = match () {
                () if own >= MOST_OF_ONE => Some("report-too-many"),
                () if open >= MOST_OPEN => Some("report-queue-full"),
                () => None,
            };
            if let Some(name) = refusal {
                let detail = "a report was not taken; its block was carried out";
                self.refusals.report(Refusal { name, peer: account.jid.as_str(), conn: 0, detail });
                taken.refused = Some(name);
                continue;
            }
            own += 1;
            open += 1;
            let copies = self.copies(account, &complaint).await?;
            let domain = complaint.about.domain();
            // Without a copy it is a mere claim, until a moderator acts on it.
            let counts = !copies.is_empty()
                && self.may_count(domain)
                && !counted.contains(domain)
                && self.counted_lately(account.jid.as_str(), domain).await?.is_none();
            if counts {
                counted.insert(domain.to_owned());
            }
            let row = NewReport {
                at: now,
                account: Some(account.id),
                reporter: account.jid.as_str(),
                origin: "user",
                affiliation: affiliation.name,
                complaint: &complaint,
                messages: &copies,
                counted_at: counts.then_some(now),
            };
            taken.statements.push(row.insert());
            taken.accepted.push((complaint, counts));
        }
        Ok(taken)
    }

    /// Reports about `domain` can count: it is another's, and was seen. Who names domains that never spoke with us
    /// would fill the memory of them otherwise.
    pub(super) fn may_count(&self, domain: &str) -> bool {
        self.host(domain).is_none() && self.control.traffic.first_seen(domain).is_some()
    }

    /// Of the reports by `reporter` about `domain` one counted within [`COUNTS_ONCE_IN`]: whether it does still, or
    /// a moderator took it back.
    pub(super) async fn counted_lately(
        &self,
        reporter: &str,
        domain: &str,
    ) -> Result<Option<bool>, StoreError> {
        let rows = self
            .db
            .read(
                sql(
                    "SELECT taken_back FROM reports WHERE reporter = ?1 AND domain = ?2 AND counted_at > ?3 \
                     ORDER BY taken_back LIMIT 1",
                )
                .bind(reporter)
                .bind(domain)
                .bind(self.clock().now() - COUNTS_ONCE_IN),
            )
            .await?;
        Ok(rows.first().map(|row| !row.bool(0)))
    }

    /// The reported messages: only what the account received from whom it reports.
    async fn copies(&self, account: &Account, complaint: &Complaint) -> Result<Vec<String>, StoreError> {
        let ids: Vec<LogId> = complaint.stanza_ids.iter().filter_map(|id| self.ids.parse(id)).collect();
        let mut copies = Vec::new();
        let mut room = MOST_BYTES;
        for logged in crate::log::picked(&self.db, account, &ids).await? {
            let from = logged.stanza.head.from.as_ref();
            let of_reported = from.is_some_and(|from| {
                from.same_bare(&complaint.about)
                    || (complaint.about.is_domain() && from.domain() == complaint.about.domain())
            });
            if logged.flags & crate::log::SENT != 0 || !of_reported {
                continue;
            }
            let mut bytes = Vec::new();
            logged.stanza.write_in(&mut bytes, ns::CLIENT);
            if bytes.len() > room {
                break;
            }
            room -= bytes.len();
            copies.push(String::from_utf8_lossy(&bytes).into_owned());
        }
        Ok(copies)
    }

    /// Reports are stored: moderators and whoever counts hear of them; the reporter hears of what was refused.
    pub fn reports_stored(self: &Arc<Self>, taken: Taken) {
        let Some(reporter) = taken.reporter else { return };
        for (complaint, counts) in taken.accepted {
            tracing::info!(about = %complaint.about, reason = %complaint.reason, "a user reported an address");
            self.tell_moderators(&complaint, reporter.as_str());
            let domain = complaint.about.domain();
            if self.host(domain).is_some() {
                continue;
            }
            self.control.traffic.count(domain, traffic::Event::Reported);
            if counts {
                self.control.reputation.note(domain, Sign::Reported);
            }
        }
        if let Some(name) = taken.refused {
            let text = match name {
                "report-too-many" => {
                    "You have sent many reports today: the address is blocked, the report was not taken."
                }
                _ => "The address is blocked. There are too many reports at the moment: yours was not taken.",
            };
            self.send(note_to(&reporter, text));
        }
    }
}

/// A report to be stored.
pub(super) struct NewReport<'a> {
    pub(super) at: i64,
    pub(super) account: Option<i64>,
    pub(super) reporter: &'a str,
    pub(super) origin: &'static str,
    pub(super) affiliation: &'static str,
    pub(super) complaint: &'a Complaint,
    pub(super) messages: &'a [String],
    /// Since when it counts against the reputation of whose user it is about.
    pub(super) counted_at: Option<i64>,
}

impl NewReport<'_> {
    pub(super) fn insert(&self) -> Statement {
        let json = |list: &[String]| serde_json::to_string(list).unwrap_or_else(|_| "[]".into());
        sql("INSERT INTO reports (at, account, reporter, origin, affiliation, about, domain, reason, words, \
             stanza_ids, messages, may_forward, may_share, counted_at, state, actions) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, 'open', '[]')")
        .bind(self.at)
        .bind(self.account)
        .bind(self.reporter)
        .bind(self.origin)
        .bind(self.affiliation)
        .bind(self.complaint.about.as_str())
        .bind(self.complaint.about.domain())
        .bind(self.complaint.reason.as_str())
        .bind(self.complaint.text.as_str())
        .bind(json(&self.complaint.stanza_ids))
        .bind(json(self.messages))
        .bind(i64::from(self.complaint.may_forward))
        .bind(i64::from(self.complaint.may_share))
        .bind(self.counted_at)
    }
}
