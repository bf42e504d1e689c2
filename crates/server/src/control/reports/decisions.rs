//! What moderators make of reports.

use std::sync::Arc;

use trunkline_store::{Batch, Lane, StoreError, sql};
use trunkline_xmpp::jid::Jid;
use trunkline_xmpp::stanza::{Kind, MessageType, Stanza};

use super::DAY;
use super::operations::{ReportAction, ReportView, find, store};
use super::providers::forward;
use crate::admin::actor::Actor;
use crate::admin::{OpError, Outcome};
use crate::control::policy::{self, PolicyOp};
use crate::control::reputation::Sign;
use crate::control::rule::{Action, Conditions, Direction, Per, Rule};
use crate::exchange::Exchange;

/// What somebody with a limit may send.
const LIMITED: u32 = 6;
/// How long a limit lasts if nobody says.
const LIMITED_FOR: i64 = 7 * DAY;
/// How long the block of an address lasts if nobody says.
const BLOCKED_FOR: i64 = 90 * DAY;

/// What a moderator wants.
pub(super) struct Decision {
    pub(super) id: i64,
    pub(super) action: ReportAction,
    pub(super) why: String,
    pub(super) until: Option<i64>,
}

pub(super) async fn decide(
    exchange: &Arc<Exchange>,
    actor: &Actor,
    wish: Decision,
) -> Result<Outcome, OpError> {
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
            policy::run(exchange, actor, op).await?;
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
pub(super) enum Weight {
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
        policy::run(exchange, actor, PolicyOp::Add { rule, position: Some(0) }).await?;
        return Ok(until);
    };
    let why = rule.reason.clone();
    let until = there.until.and_then(|end| rule.until.map(|until| until.max(end)));
    if until != there.until {
        let rule = Rule { until, ..rule };
        policy::run(exchange, actor, PolicyOp::Replace { id, rule }).await?;
    }
    if place > 0 {
        policy::run(exchange, actor, PolicyOp::Move { id, position: 0, why }).await?;
    }
    Ok(until)
}

/// What was done about a report.
pub(super) struct Noted<'a> {
    pub(super) report: &'a ReportView,
    pub(super) done: &'a str,
    pub(super) why: &'a str,
    pub(super) outcome: Handling<'a>,
}

/// What becomes of a report.
pub(super) enum Handling<'a> {
    /// It stays open.
    Forwarded(&'a Jid),
    Handled(Weight),
}

pub(super) async fn note(exchange: &Exchange, actor: &Actor, noted: Noted<'_>) -> Result<(), OpError> {
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
