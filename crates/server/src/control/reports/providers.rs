//! Reports between providers: what others say about our users, and what we forward about theirs.

use std::sync::Arc;

use trunkline_store::{Batch, Lane, StoreError, sql};
use trunkline_xml::Writer;
use trunkline_xmpp::jid::Jid;
use trunkline_xmpp::ns;
use trunkline_xmpp::stanza::{Kind, MessageType, Stanza};

use super::complaint::Complaint;
use super::decisions::{Handling, Noted, note};
use super::intake::NewReport;
use super::operations::{ReportView, store};
use super::{DAY, MOST_BYTES};
use crate::admin::actor::Actor;
use crate::admin::{OpError, Outcome};
use crate::control::asking::xmpp_address;
use crate::exchange::Exchange;
use crate::logging::Refusal;
use crate::route::{Mail, Routed};

/// Reports from one other provider within a day.
const MOST_OF_PROVIDER: i64 = 50;
/// Of these, from other providers.
const MOST_OPEN_OUTSIDE: i64 = 2_000;
/// The same, where another provider brings the copy.
const MOST_BYTES_OUTSIDE: usize = 16 * 1024;
/// Reports forwarded to one domain within a day.
const MOST_FORWARDED: i64 = 50;

impl Exchange {
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
        ours.iter().filter_map(|uri| xmpp_address(uri)).any(|jid| jid.same_bare(to))
    }
}

/// One of the two domains is the other or lies under it.
fn are_kin(a: &str, b: &str) -> bool {
    let is_under = |a: &str, b: &str| a.strip_suffix(b).is_some_and(|rest| rest.ends_with('.'));
    a == b || is_under(a, b) || is_under(b, a)
}

/// Sends a report to the provider of whom it is about.
pub(super) async fn forward(
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
