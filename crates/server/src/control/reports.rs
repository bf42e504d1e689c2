//! What users reported (XEP-0377), what other providers reported about our users, and what moderators made of it.
//!
//! A report comes with a block (XEP-0191) and goes into the queue in the same transaction. It has a copy of the
//! reported messages from the reporter's own archive: nobody can accuse another of what they were not sent.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use trunkline_store::{Batch, Lane, Row, Statement, StoreError, sql};
use trunkline_xml::{Node, Writer};
use trunkline_xmpp::error::{Condition, StanzaError};
use trunkline_xmpp::jid::Jid;
use trunkline_xmpp::ns;
use trunkline_xmpp::stanza::{Kind, MessageType, Stanza};

use super::asking::short;
use super::policy::PolicyOp;
use super::reputation::Sign;
use super::rule::{Action, Conditions, Direction, Per, Rule};
use crate::admin::actor::Actor;
use crate::admin::{OpError, Outcome};
use crate::exchange::Exchange;
use crate::ids::LogId;
use crate::logging::Refusal;
use crate::route::account::Account;
use crate::route::{Mail, Routed};

/// Reports of one user within a day.
const MOST_OF_ONE: i64 = 50;
/// Reports from one other provider within a day.
const MOST_OF_PROVIDER: i64 = 50;
/// Reports that wait for a moderator.
const MOST_OPEN: i64 = 10_000;
/// Of these, from other providers.
const MOST_OPEN_OUTSIDE: i64 = 2_000;
/// Reports that are kept, handled ones included. Beyond it the oldest handled ones go.
const MOST_KEPT: i64 = 50_000;
/// Milliseconds that a handled report is kept.
const KEPT_FOR: i64 = 365 * DAY;
/// Stanzas that one report can name.
const MOST_STANZAS: usize = 20;
/// Characters of a stanza's id.
const MOST_ID: usize = 128;
/// Bytes of the copies of reported messages in one report.
const MOST_BYTES: usize = 64 * 1024;
/// The same, where another provider brings the copy.
const MOST_BYTES_OUTSIDE: usize = 16 * 1024;
/// Milliseconds after which a handled report has its copies no longer.
const COPIES_FOR: i64 = 30 * DAY;
/// How long a report of another provider waits for a moderator.
const OUTSIDE_FOR: i64 = 90 * DAY;
/// Characters that a reporter can write.
const MOST_TEXT: usize = 2000;
/// Reports in one request.
const MOST_AT_ONCE: usize = 20;
/// Reports forwarded to one domain within a day.
const MOST_FORWARDED: i64 = 50;
/// Reports on one page of a list.
const PAGE: i64 = 100;
/// Moderators hear of reports once in this time at most.
const QUIET: Duration = Duration::from_secs(60);
/// Milliseconds within which one report of a reporter about a domain counts against the domain's reputation.
const COUNTS_ONCE_IN: i64 = 30 * DAY;
/// What somebody with a limit may send.
const LIMITED: u32 = 6;
/// How long a limit lasts if nobody says.
const LIMITED_FOR: i64 = 7 * DAY;
/// How long the block of an address lasts if nobody says.
const BLOCKED_FOR: i64 = 90 * DAY;
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

/// What can be asked of the moderation queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "do", rename_all = "kebab-case", deny_unknown_fields)]
pub enum ReportsOp {
    /// Reports, newest first, a page at a time.
    List {
        /// Only those that wait.
        #[serde(default)]
        open_only: bool,
        /// About this domain only.
        #[serde(default)]
        domain: Option<String>,
        /// Older than this id: the last one of the page before.
        #[serde(default)]
        before: Option<i64>,
    },
    /// One report, with the reported stanzas.
    Show {
        /// Which.
        id: i64,
    },
    /// Acts on a report; it is handled then.
    Decide {
        /// Which.
        id: i64,
        /// What is done.
        action: ReportAction,
        /// For the audit log, and for whom it concerns.
        why: String,
        /// When a limit or block ends: milliseconds since 1970. Without it: after 7 days, 90 days, never for a domain.
        #[serde(default)]
        until: Option<i64>,
    },
}

/// What a moderator does about a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ReportAction {
    /// Nothing.
    Dismiss,
    /// The sender gets a message from the domain.
    Warn,
    /// The sender may write a little only.
    Limit,
    /// The sender's address is blocked for everybody here.
    BlockSender,
    /// The sender's domain is blocked.
    BlockDomain,
    /// It is sent to the sender's provider (its abuse address, XEP-0157). The report stays open.
    Forward,
}

/// A report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ReportView {
    /// Grows with time.
    pub id: i64,
    /// Milliseconds since 1970.
    pub at: i64,
    /// Who reported: a user here, or another provider's domain.
    pub reporter: String,
    /// `user`, or `outside`: another provider reports one of our users.
    pub origin: String,
    /// Their affiliation with this server (XEP-0489), such as `registered`; `outside` of another provider.
    pub affiliation: String,
    /// Whom it is about.
    pub about: String,
    /// `spam`, `abuse`, or another reason's URN.
    pub reason: String,
    /// What the reporter wrote.
    pub text: String,
    /// The ids of the reported stanzas (XEP-0359).
    pub stanza_ids: Vec<String>,
    /// The reported messages, from the reporter's archive; in `show` only.
    pub messages: Vec<String>,
    /// The reporter agrees that the sender's provider is told (XEP-0377).
    pub may_forward: bool,
    /// The reporter agrees that third parties are told.
    pub may_share: bool,
    /// `open` or `handled`.
    pub state: String,
    /// To whom it was forwarded.
    pub forwarded_to: Option<String>,
    /// What was done, by whom and why, oldest first.
    pub actions: Vec<String>,
}

/// What a user says with a report, before it is one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Complaint {
    /// Whom it is about: a bare address or a domain.
    pub about: Jid,
    /// `spam`, `abuse`, or another reason's URN.
    pub reason: String,
    /// In the reporter's words.
    pub text: String,
    /// Ids of stanzas (XEP-0359).
    pub stanza_ids: Vec<String>,
    /// XEP-0377 s.5: the provider of whom it is about may be told.
    pub may_forward: bool,
    /// XEP-0377 s.5: others may be told.
    pub may_share: bool,
}

impl Complaint {
    /// Reads `<report/>` about `about`.
    ///
    /// # Errors
    /// s.4: a report without a reason; or one that is too large.
    pub fn read(report: Node<'_>, about: Jid) -> Result<Complaint, StanzaError> {
        let bad = |text: &str| StanzaError::new(Condition::BadRequest).text(text);
        let reason = report.attr("reason").ok_or_else(|| bad("A report needs a reason."))?;
        let reason = match &*reason {
            ns::REPORTING_SPAM => "spam".to_owned(),
            ns::REPORTING_ABUSE => "abuse".to_owned(),
            // s.9: reasons can be registered.
            other => short(other, MOST_ID),
        };
        let children = || report.children().filter(|child| child.ns() == ns::REPORTING);
        let texts: Vec<String> = children()
            .filter(|child| child.name() == "text")
            .take(MOST_STANZAS)
            .map(|text| text.text().trim().to_owned())
            .collect();
        let mut complaint = Complaint {
            about: about.bare(),
            reason,
            text: texts.join("\n").chars().take(MOST_TEXT).collect(),
            stanza_ids: Vec::new(),
            may_forward: children().any(|child| child.name() == "report-origin"),
            may_share: children().any(|child| child.name() == "third-party"),
        };
        for id in report.children().filter(|child| child.is(ns::STANZA_ID, "stanza-id")) {
            let id = id.attr("id").ok_or_else(|| bad("A stanza-id without an id."))?;
            let id = short(&id, MOST_ID);
            if complaint.stanza_ids.contains(&id) {
                continue;
            }
            if complaint.stanza_ids.len() == MOST_STANZAS {
                return Err(StanzaError::new(Condition::ResourceConstraint)
                    .text(format!("A report names {MOST_STANZAS} messages at most.")));
            }
            complaint.stanza_ids.push(id);
        }
        Ok(complaint)
    }

    /// Every report in a request to block (XEP-0377 s.6).
    ///
    /// # Errors
    /// Those of [`Complaint::read`].
    pub fn of_block(stanza: &Stanza) -> Result<Vec<Complaint>, StanzaError> {
        let Some(command) = stanza.first_child() else { return Ok(Vec::new()) };
        let mut complaints = Vec::new();
        for item in command.children().filter(|child| child.is(ns::BLOCKING, "item")) {
            let Some(report) = item.child(ns::REPORTING, "report") else { continue };
            let about = item.attr("jid").and_then(|jid| Jid::parse(&jid).ok());
            let about = about.ok_or_else(|| StanzaError::new(Condition::JidMalformed))?;
            if complaints.len() == MOST_AT_ONCE {
                return Err(StanzaError::new(Condition::ResourceConstraint)
                    .text(format!("{MOST_AT_ONCE} reports at once, at most.")));
            }
            complaints.push(Complaint::read(report, about)?);
        }
        Ok(complaints)
    }
}

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
    fn may_count(&self, domain: &str) -> bool {
        self.host(domain).is_none() && self.control.traffic.first_seen(domain).is_some()
    }

    /// Of the reports by `reporter` about `domain` one counted within [`COUNTS_ONCE_IN`]: whether it does still, or
    /// a moderator took it back.
    async fn counted_lately(&self, reporter: &str, domain: &str) -> Result<Option<bool>, StoreError> {
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
            self.control.traffic.count(domain, super::traffic::Event::Reported);
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

    /// A report of another provider about a user of ours. `None`: the message is something else.
    ///
    /// The form is that of the servers that forward reports: `<report/>` in a message to an abuse address (XEP-0157),
    /// with the reported address in `<jid xmlns='urn:xmpp:jid:0'/>` or as the sender of a forwarded message. The answer
    /// is silence, whatever becomes of it. What a person sends to such an address is a message to its account.
    pub(crate) fn take_outside_report(self: &Arc<Self>, mail: &Mail) -> Option<Routed> {
        let stanza = &mail.stanza;
        if !mail.is_outside()
            || !matches!(stanza.head.kind, Kind::Message(kind) if kind != MessageType::Error)
        {
            return None;
        }
        let report = stanza.child(ns::REPORTING, "report")?;
        let (Some(from), Some(to)) = (&stanza.head.from, &stanza.head.to) else { return None };
        if !(to.is_domain() || self.is_abuse_address(to)) {
            return None;
        }
        let refuse = |name: &'static str, detail: &str| {
            self.refusals.report(Refusal { name, peer: from.as_str(), conn: 0, detail });
        };
        // Somebody who writes to the people behind the address: a message like others.
        if !from.is_domain() && !to.is_domain() {
            return None;
        }
        // Any user of theirs could write otherwise.
        if !from.is_domain() {
            refuse("report-from-user", "a report of another provider comes from its domain");
            return Some(Routed::Done);
        }
        let forwarded = stanza
            .child(ns::FORWARD, "forwarded")
            .and_then(|forwarded| forwarded.children().find(|child| child.name() == "message"));
        let about = match report.child(ns::JID, "jid") {
            Some(jid) => Some(jid.text().trim().to_owned()),
            None => forwarded.and_then(|message| message.attr("from")).map(|from| from.into_owned()),
        };
        let Some(about) = about.and_then(|about| Jid::parse(&about).ok()) else {
            refuse("report-without-subject", "a report says nobody's address");
            return Some(Routed::Done);
        };
        if self.host(about.domain()).is_none() {
            refuse("report-not-ours", "a report about somebody who is not ours");
            return Some(Routed::Done);
        }
        let complaint = match Complaint::read(report, about) {
            Ok(complaint) => complaint,
            Err(_) => {
                refuse("report-malformed", "a report that can't be read");
                return Some(Routed::Done);
            }
        };
        let messages: Vec<String> = forwarded
            .map(|message| String::from_utf8_lossy(&message.to_standalone("")).into_owned())
            .filter(|text| text.len() <= MOST_BYTES_OUTSIDE)
            .into_iter()
            .collect();
        let (exchange, reporter) = (Arc::clone(self), from.clone());
        Some(Routed::Later(Box::pin(async move {
            match exchange.store_outside_report(&reporter, &complaint, &messages).await {
                Ok(None) => {
                    tracing::info!(%reporter, about = %complaint.about, "another provider reported a user of ours");
                    exchange.tell_moderators(&complaint, reporter.as_str());
                }
                Ok(Some(name)) => exchange.refusals.report(Refusal {
                    name,
                    peer: reporter.as_str(),
                    conn: 0,
                    detail: "a report of another provider was not taken",
                }),
                Err(error) => tracing::warn!(%error, "a report of another provider could not be stored"),
            }
        })))
    }

    /// The name of the bound that it met.
    async fn store_outside_report(
        &self,
        reporter: &Jid,
        complaint: &Complaint,
        messages: &[String],
    ) -> Result<Option<&'static str>, StoreError> {
        let _one_by_one = self.control.reports.outside.lock().await;
        let now = self.clock().now();
        let counts = self
            .db
            .read_in(
                Lane::Outside,
                sql("SELECT (SELECT COUNT(*) FROM reports WHERE reporter = ?1 AND at > ?2), \
                     (SELECT COUNT(*) FROM reports WHERE state = 'open' AND origin = 'outside')")
                .bind(reporter.as_str())
                .bind(now - DAY),
            )
            .await?;
        let (own, open) = counts.first().map_or((0, 0), |row| (row.int(0), row.int(1)));
        if own >= MOST_OF_PROVIDER {
            return Ok(Some("report-too-many-outside"));
        }
        if open >= MOST_OPEN_OUTSIDE {
            return Ok(Some("report-queue-full-outside"));
        }
        let row = NewReport {
            at: now,
            account: None,
            reporter: reporter.as_str(),
            origin: "outside",
            affiliation: "outside",
            complaint,
            messages,
            counted_at: None,
        };
        self.db.run(Batch::new(Lane::Outside).with(row.insert())).await?;
        Ok(None)
    }

    /// `to` is where we want to hear of abuse (`contact.abuse`).
    fn is_abuse_address(&self, to: &Jid) -> bool {
        let config = self.config.load();
        let ours = config.contact.get("abuse").map(Vec::as_slice).unwrap_or_default();
        ours.iter().filter_map(|uri| super::asking::xmpp_address(uri)).any(|jid| jid.same_bare(to))
    }
}

/// A report to be stored.
struct NewReport<'a> {
    at: i64,
    account: Option<i64>,
    reporter: &'a str,
    origin: &'static str,
    affiliation: &'static str,
    complaint: &'a Complaint,
    messages: &'a [String],
    /// Since when it counts against the reputation of whose user it is about.
    counted_at: Option<i64>,
}

impl NewReport<'_> {
    fn insert(&self) -> Statement {
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

/// Runs an operation.
///
/// # Errors
/// What the caller did wrong, or the store's.
pub async fn run(exchange: &Arc<Exchange>, actor: &Actor, op: ReportsOp) -> Result<Outcome, OpError> {
    match op {
        ReportsOp::List { open_only, domain, before } => list(exchange, open_only, domain, before).await,
        ReportsOp::Show { id } => Ok(Outcome::Report(Box::new(find(exchange, id).await?))),
        ReportsOp::Decide { id, action, why, until } => {
            decide(exchange, actor, Decision { id, action, why, until }).await
        }
    }
}

fn store(error: StoreError) -> OpError {
    OpError::Store(error.to_string())
}

macro_rules! columns {
    () => {
        "id, at, reporter, origin, affiliation, about, reason, words, stanza_ids, messages, may_forward, \
         may_share, state, forwarded_to, actions"
    };
}

fn view(row: Row<'_>) -> ReportView {
    let list = |column: usize| serde_json::from_str::<Vec<String>>(row.text(column)).unwrap_or_default();
    ReportView {
        id: row.int(0),
        at: row.int(1),
        reporter: row.text(2).to_owned(),
        origin: row.text(3).to_owned(),
        affiliation: row.text(4).to_owned(),
        about: row.text(5).to_owned(),
        reason: row.text(6).to_owned(),
        text: row.text(7).to_owned(),
        stanza_ids: list(8),
        messages: list(9),
        may_forward: row.bool(10),
        may_share: row.bool(11),
        state: row.text(12).to_owned(),
        forwarded_to: row.opt_text(13).map(str::to_owned),
        actions: list(14),
    }
}

impl Exchange {
    /// How many reports wait for a moderator.
    ///
    /// # Errors
    /// The store's.
    pub(crate) async fn open_reports(&self) -> Result<u64, OpError> {
        let rows =
            self.db.read(sql("SELECT COUNT(*) FROM reports WHERE state = 'open'")).await.map_err(store)?;
        Ok(rows.first().map_or(0, |row| u64::try_from(row.int(0)).unwrap_or(0)))
    }
}

async fn list(
    exchange: &Exchange,
    open_only: bool,
    domain: Option<String>,
    before: Option<i64>,
) -> Result<Outcome, OpError> {
    let statement = sql(concat!(
        "SELECT ",
        columns!(),
        " FROM reports WHERE id < ?1 AND (?2 = 0 OR state = 'open') AND (?3 IS NULL OR domain = ?3) \
         ORDER BY id DESC LIMIT ?4"
    ))
    .bind(before.unwrap_or(i64::MAX))
    .bind(i64::from(open_only))
    .bind(domain)
    .bind(PAGE + 1);
    let rows = exchange.db.read(statement).await.map_err(store)?;
    let more = rows.len() > PAGE as usize;
    let reports = rows.iter().take(PAGE as usize).map(|row| ReportView { messages: Vec::new(), ..view(row) });
    Ok(Outcome::Reports { reports: reports.collect(), more })
}

async fn find(exchange: &Exchange, id: i64) -> Result<ReportView, OpError> {
    let statement = sql(concat!("SELECT ", columns!(), " FROM reports WHERE id = ?1")).bind(id);
    let rows = exchange.db.read(statement).await.map_err(store)?;
    rows.first().map(view).ok_or_else(|| OpError::NotFound(format!("report {id}")))
}

/// What a moderator wants.
struct Decision {
    id: i64,
    action: ReportAction,
    why: String,
    until: Option<i64>,
}

async fn decide(exchange: &Arc<Exchange>, actor: &Actor, wish: Decision) -> Result<Outcome, OpError> {
    // Of two moderators at once the second is to find the report handled, before a rule is made. To forward asks
    // another domain, and claims the report by itself before it acts.
    let _one_by_one = match wish.action {
        ReportAction::Forward => None,
        _ => Some(exchange.control.reports.deciding.lock().await),
    };
    let report = find(exchange, wish.id).await?;
    let about = Jid::parse(&report.about).map_err(|error| OpError::BadRequest(error.to_string()))?;
    if report.state != "open" && wish.action != ReportAction::Forward {
        return Err(OpError::NotPossible(format!("report {} is handled already", wish.id)));
    }
    let now = exchange.clock().now();
    if wish.until.is_some_and(|until| until <= now) {
        return Err(OpError::BadRequest("`until` is in the past".into()));
    }
    let ours = exchange.host(about.domain()).is_some();
    let (done, until) = match wish.action {
        ReportAction::Dismiss => ("dismissed".to_owned(), None),
        ReportAction::Warn if wish.why.trim().is_empty() => {
            return Err(OpError::BadRequest("a warning needs words: say why".into()));
        }
        ReportAction::Warn => (format!("{about} was warned"), None),
        ReportAction::Forward => return forward(exchange, actor, (report, about, wish.why)).await,
        _ if ours => {
            return Err(OpError::NotPossible(format!(
                "{about} is a user of this server: rules are for outsiders. Warn them, end their sessions, or remove the account"
            )));
        }
        ReportAction::Limit => {
            let action = Action::Limit { per_minute: LIMITED, per: Per::Domain };
            let rule = sanction(&about, action, Direction::In);
            let rule = Rule { until: Some(wish.until.unwrap_or(now + LIMITED_FOR)), ..rule };
            let until = put_first(exchange, actor, Rule { reason: wish.why.clone(), ..rule }).await?;
            (format!("{about} is limited to {LIMITED} stanzas a minute"), until)
        }
        ReportAction::BlockSender => {
            let action = Action::Reject { condition: None, text: None };
            let rule = sanction(&about, action, Direction::Both);
            let rule = Rule { until: Some(wish.until.unwrap_or(now + BLOCKED_FOR)), ..rule };
            let until = put_first(exchange, actor, Rule { reason: wish.why.clone(), ..rule }).await?;
            (format!("{about} is blocked"), until)
        }
        ReportAction::BlockDomain => {
            let op = PolicyOp::Block {
                domain: about.domain().to_owned(),
                subdomains: false,
                reason: wish.why.clone(),
                until: wish.until,
            };
            super::policy::run(exchange, actor, op).await?;
            (format!("{} is blocked", about.domain()), wish.until)
        }
    };
    let done = match until {
        Some(until) => format!("{done} until {}", trunkline_xmpp::time::format_millis(until)),
        None if matches!(wish.action, ReportAction::Dismiss | ReportAction::Warn) => done,
        None => format!("{done} without an end"),
    };
    let weight = weigh(exchange, &report, wish.action).await.map_err(store)?;
    let noted = Noted { report: &report, done: &done, why: &wish.why, outcome: Handling::Handled(weight) };
    note(exchange, actor, noted).await?;
    match weight {
        Weight::Stays => {}
        Weight::Begins => exchange.control.reputation.note(about.domain(), Sign::Reported),
        Weight::TakenBack(since) => exchange.control.reputation.take_back_report(about.domain(), since),
    }
    if wish.action == ReportAction::Warn
        && let Some(from) = exchange.voice(about.domain())
    {
        exchange.send(
            Stanza::build(Kind::Message(MessageType::Normal))
                .from(from)
                .to(about.clone())
                .id(exchange.ids.short())
                .body(|w| {
                    w.text_element("body", wish.why.trim());
                })
                .done(),
        );
    }
    Ok(Outcome::Done { text: format!("Report {}: {done}.", wish.id) })
}

/// What a decision does to the weight of a report.
#[derive(Clone, Copy)]
enum Weight {
    Stays,
    /// It counts from now on.
    Begins,
    /// It counted since then, and does no longer.
    TakenBack(i64),
}

/// What is dismissed is taken back; what a moderator acts on counts, if no other of its reporter does.
async fn weigh(exchange: &Exchange, report: &ReportView, action: ReportAction) -> Result<Weight, StoreError> {
    let Ok(about) = Jid::parse(&report.about) else { return Ok(Weight::Stays) };
    if report.origin != "user" {
        return Ok(Weight::Stays);
    }
    let rows = exchange.db.read(sql("SELECT counted_at FROM reports WHERE id = ?1").bind(report.id)).await?;
    let counted_at = rows.first().and_then(|row| row.opt_int(0));
    Ok(match (action, counted_at) {
        (ReportAction::Dismiss, Some(since)) => Weight::TakenBack(since),
        (ReportAction::Dismiss | ReportAction::Forward, _) | (_, Some(_)) => Weight::Stays,
        (_, None) if !exchange.may_count(about.domain()) => Weight::Stays,
        (_, None) => match exchange.counted_lately(&report.reporter, about.domain()).await? {
            Some(true) => Weight::Stays,
            Some(false) | None => Weight::Begins,
        },
    })
}

/// A rule on one address, or on a domain that is reported as a whole.
fn sanction(about: &Jid, then: Action, direction: Direction) -> Rule {
    let mut when = Conditions::default();
    match about.local() {
        Some(_) => when.address = Some(about.as_str().to_owned()),
        None => when.domain = Some(about.domain().to_owned()),
    }
    Rule { when, direction, then, reason: String::new(), until: None, shadow: false }
}

/// Puts a rule before all others that are not in the configuration. One that is there already and differs in its end
/// and reason alone is taken: the later end holds. When it ends.
async fn put_first(exchange: &Arc<Exchange>, actor: &Actor, rule: Rule) -> Result<Option<i64>, OpError> {
    let equal =
        |other: &Rule| Rule { reason: rule.reason.clone(), until: rule.until, ..other.clone() } == rule;
    let view = exchange.control.policy.view(exchange.clock().now());
    let own = || view.rules.iter().filter_map(|view| Some((view.id?, &view.rule)));
    let Some((place, (id, there))) = own().enumerate().find(|(_, (_, there))| equal(there)) else {
        let until = rule.until;
        super::policy::run(exchange, actor, PolicyOp::Add { rule, position: Some(0) }).await?;
        return Ok(until);
    };
    let why = rule.reason.clone();
    let until = there.until.and_then(|end| rule.until.map(|until| until.max(end)));
    if until != there.until {
        let rule = Rule { until, ..rule };
        super::policy::run(exchange, actor, PolicyOp::Replace { id, rule }).await?;
    }
    if place > 0 {
        super::policy::run(exchange, actor, PolicyOp::Move { id, position: 0, why }).await?;
    }
    Ok(until)
}

/// What was done about a report.
struct Noted<'a> {
    report: &'a ReportView,
    done: &'a str,
    why: &'a str,
    outcome: Handling<'a>,
}

/// What becomes of a report.
enum Handling<'a> {
    /// It stays open.
    Forwarded(&'a Jid),
    Handled(Weight),
}

async fn note(exchange: &Exchange, actor: &Actor, noted: Noted<'_>) -> Result<(), OpError> {
    let Noted { report, done, why, outcome } = noted;
    let time = trunkline_xmpp::time::format_millis(exchange.clock().now());
    let reason = if why.trim().is_empty() { String::new() } else { format!(": {}", why.trim()) };
    let mut actions = report.actions.clone();
    actions.push(format!("{time} {}: {done}{reason}", actor.name));
    let actions = serde_json::to_string(&actions).unwrap_or_else(|_| "[]".into());
    let before = serde_json::json!({"report": report.id, "about": report.about, "state": report.state});
    let after = serde_json::json!({"report": report.id, "about": report.about, "done": done});
    let now = exchange.clock().now();
    let (what, change) = match outcome {
        Handling::Forwarded(to) => (
            "reports forward",
            sql("UPDATE reports SET actions = ?2, forwarded_to = ?3, forwarded_at = ?4 \
                 WHERE id = ?1 AND forwarded_to IS NULL")
            .bind(report.id)
            .bind(actions)
            .bind(to.as_str())
            .bind(now),
        ),
        Handling::Handled(weight) => (
            "reports decide",
            sql(
                "UPDATE reports SET actions = ?2, state = 'handled', counted_at = COALESCE(counted_at, ?3), \
                 taken_back = ?4 WHERE id = ?1 AND state = 'open'",
            )
            .bind(report.id)
            .bind(actions)
            .bind(matches!(weight, Weight::Begins).then_some(now))
            .bind(i64::from(matches!(weight, Weight::TakenBack(_)))),
        ),
    };
    let entry =
        exchange.control.audit.entry(actor, what, why, (Some(before.to_string()), Some(after.to_string())));
    let batch = Batch::new(Lane::Inside).with(change.must_change()).with(entry);
    exchange.db.run(batch).await.map(drop).map_err(|error| match error {
        StoreError::Conflict => OpError::NotPossible("somebody else was faster".into()),
        error => store(error),
    })
}

/// One of the two domains is the other or lies under it.
fn are_kin(a: &str, b: &str) -> bool {
    let is_under = |a: &str, b: &str| a.strip_suffix(b).is_some_and(|rest| rest.ends_with('.'));
    a == b || is_under(a, b) || is_under(b, a)
}

/// Sends a report to the provider of whom it is about.
async fn forward(
    exchange: &Arc<Exchange>,
    actor: &Actor,
    (report, about, why): (ReportView, Jid, String),
) -> Result<Outcome, OpError> {
    let no = |text: String| Err(OpError::NotPossible(text));
    if report.origin != "user" || exchange.host(about.domain()).is_some() {
        return no(format!("{about} is a user of this server: there is nobody to forward it to"));
    }
    // s.5: without the reporter's consent it MUST NOT be done.
    if !report.may_forward {
        return no("the reporter did not agree that the provider is told (XEP-0377 report-origin)".into());
    }
    if let Some(to) = &report.forwarded_to {
        return no(format!("it was forwarded already, to {to}"));
    }
    let sent = exchange
        .db
        .read(
            sql("SELECT COUNT(*) FROM reports WHERE domain = ?1 AND forwarded_at > ?2")
                .bind(about.domain())
                .bind(exchange.clock().now() - DAY),
        )
        .await
        .map_err(store)?;
    if sent.first().is_some_and(|row| row.int(0) >= MOST_FORWARDED) {
        return no(format!(
            "{} has got {MOST_FORWARDED} reports within a day: that is enough",
            about.domain()
        ));
    }
    let reporter = Jid::parse(&report.reporter).map_err(|error| OpError::BadRequest(error.to_string()))?;
    let Some(from) = exchange.voice(reporter.domain()) else {
        return no(format!("{} is no domain of this server any more", reporter.domain()));
    };
    let profile = exchange.profile(&from, &about.domain_jid()).await.map_err(|error| {
        OpError::NotPossible(format!("{} can't be asked for its abuse address: {error}", about.domain()))
    })?;
    let to = match profile.addresses("abuse").into_iter().next() {
        Some(to) => to,
        None => match profile.contacts.get("abuse").and_then(|uris| uris.first()) {
            Some(uri) => return no(format!("{} takes reports at {uri} only: write there", about.domain())),
            // What others do too: a domain without an address is told itself.
            None => about.domain_jid(),
        },
    };
    if exchange.host(to.domain()).is_some() {
        return no(format!("{} names {to}, which is of this server, as its abuse address", about.domain()));
    }
    // Who is not the accused's own provider is a third party, whoever names it (s.5).
    if !report.may_share && !are_kin(about.domain(), to.domain()) {
        return no(format!(
            "{} wants reports at {to}, which is another provider: the reporter did not agree that third parties are \
             told (XEP-0377 third-party)",
            about.domain()
        ));
    }
    let done = format!("forwarded to {to}");
    note(
        exchange,
        actor,
        Noted { report: &report, done: &done, why: &why, outcome: Handling::Forwarded(&to) },
    )
    .await?;
    exchange.deliver(Mail::inside(forwarded(exchange, &report, (from, to)))).await;
    Ok(Outcome::Done { text: format!("Report {}: {done}. It stays open.", report.id) })
}

/// A report as another provider gets it. The reporter's address is not in it (XEP-0377 s.5: `to` is removed).
fn forwarded(exchange: &Exchange, report: &ReportView, (from, to): (Jid, Jid)) -> Stanza {
    let reason = match report.reason.as_str() {
        "spam" => ns::REPORTING_SPAM,
        "abuse" => ns::REPORTING_ABUSE,
        other => other,
    };
    let said = if report.text.is_empty() { String::new() } else { format!(": {}", report.text) };
    let body = format!("A user of {from} reports {} for {}{said}", report.about, report.reason);
    let mut w = Writer::new();
    w.text_element("body", &body);
    w.open("report").attr("xmlns", ns::REPORTING).attr("reason", reason);
    w.open("jid").attr("xmlns", ns::JID).text(&report.about).close();
    if !report.text.is_empty() {
        w.text_element("text", &report.text);
    }
    w.empty("report-origin");
    if report.may_share {
        w.empty("third-party");
    }
    w.close();
    let mut room = MOST_BYTES;
    for message in &report.messages {
        let Ok(mut stanza) = Stanza::parse(message.as_bytes()) else { continue };
        stanza.head.to = None;
        // The ids that the reporter's own account gave name the reporter.
        let stanza = stanza.without_children(|node| {
            node.is(ns::STANZA_ID, "stanza-id") && node.attr("by").is_some_and(|by| by == report.reporter)
        });
        let mut bytes = Vec::new();
        stanza.write_in(&mut bytes, ns::CLIENT);
        if bytes.len() > room {
            break;
        }
        room -= bytes.len();
        w.open("forwarded").attr("xmlns", ns::FORWARD).raw(&bytes).close();
    }
    Stanza::build(Kind::Message(MessageType::Normal))
        .from(from)
        .to(to)
        .id(exchange.ids.short())
        .payload(w.finish())
        .done()
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
