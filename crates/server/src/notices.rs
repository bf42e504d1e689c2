//! What the staff tells everybody: announcements, and the message of the day (XEP-0133 s.4.23 to s.4.26).
//!
//! An announcement goes to whoever is online, or to every account: then it waits like any message for those who are
//! not there. The message of the day waits on its own: each account gets it once, when somebody of it is or comes online.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use trunkline_store::{Batch, Lane, StoreError, Value, sql};
use trunkline_xmpp::jid::Jid;
use trunkline_xmpp::stanza::{Kind, MessageType, Stanza};

use crate::admin::actor::Actor;
use crate::admin::{OpError, Outcome};
use crate::exchange::{Exchange, Host};
use crate::route::Mail;
use crate::route::account::Account;

/// Bytes of a text for everybody.
const MOST_TEXT: usize = 10_000;
/// Accounts that are read at once.
const PAGE: i64 = 500;

/// The messages of the day, by host.
#[derive(Debug, Default)]
pub struct Notices {
    known: Mutex<HashMap<i64, Motd>>,
    /// Held while one is changed on the disk and then here.
    changing: tokio::sync::Mutex<()>,
}

#[derive(Clone, Debug)]
struct Motd {
    /// Grows with each one that is set.
    id: i64,
    text: Arc<str>,
    at: i64,
}

/// What can be done about the message of the day.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "do", rename_all = "kebab-case", deny_unknown_fields)]
pub enum MotdOp {
    /// What it is.
    Show {
        /// Of this domain; `None`: the first.
        #[serde(default)]
        domain: Option<String>,
    },
    /// Sets another one: everybody gets it once.
    Set {
        /// Of this domain; `None`: the first.
        #[serde(default)]
        domain: Option<String>,
        /// What it says.
        text: String,
    },
    /// Corrects it: who got it already does not get it again.
    Edit {
        /// Of this domain; `None`: the first.
        #[serde(default)]
        domain: Option<String>,
        /// What it says from now on.
        text: String,
    },
    /// Takes it back: who did not get it yet will not.
    Delete {
        /// Of this domain; `None`: the first.
        #[serde(default)]
        domain: Option<String>,
    },
}

/// What is to be announced.
#[derive(Clone, Debug)]
pub struct Announcement {
    /// What it says.
    pub text: String,
    /// To the accounts of this domain; `None`: of all.
    pub domain: Option<String>,
    /// To those who are not online, too.
    pub all: bool,
}

/// Reads the messages of the day.
///
/// # Errors
/// The store's.
pub async fn start(exchange: &Exchange) -> Result<(), StoreError> {
    let rows = exchange.db.read(sql("SELECT host, id, text, at FROM motd")).await?;
    let motd = rows
        .iter()
        .map(|row| (row.int(0), Motd { id: row.int(1), text: row.text(2).into(), at: row.int(3) }));
    *exchange.notices.known.lock() = motd.collect();
    Ok(())
}

/// Announces something; when it returns, messages that wait are on the disk.
///
/// # Errors
/// A text that can't be sent; an unknown domain; the store's.
pub async fn announce(
    exchange: &Arc<Exchange>,
    actor: &Actor,
    what: Announcement,
) -> Result<Outcome, OpError> {
    check(&what.text)?;
    let host = match &what.domain {
        Some(domain) => Some(host(exchange, Some(domain.as_str()))?),
        None => None,
    };
    let change = (what.domain.clone(), Some(what.text.clone()));
    note(exchange, Batch::new(Lane::Inside), (actor, "announce", change)).await?;
    // Whoever asked may go away meanwhile; the announcement goes on.
    let sender = Arc::clone(exchange);
    let sent = exchange.runtime.spawn(async move {
        let concerned = |jid: &Jid| host.as_ref().is_none_or(|host| host.domain.domain() == jid.domain());
        let mut sent = 0;
        if what.all {
            let mut last = 0;
            loop {
                let accounts = page(&sender, (host.as_deref(), last)).await?;
                let Some((end, _)) = accounts.last() else { break };
                last = *end;
                for (_, jid) in &accounts {
                    // What a message for everybody brings to the store does not pile up there.
                    sender.db.ready(Lane::Inside).await;
                    tell(&sender, jid, ("Announcement", &what.text)).await;
                    sent += 1;
                }
            }
        } else {
            for account in sender.accounts.all() {
                if concerned(&account.jid) && account.state().is_available() {
                    tell(&sender, &account.jid, ("Announcement", &what.text)).await;
                    sent += 1;
                }
            }
        }
        // What was handed to the store before this is on the disk after it.
        sender.db.run(Batch::new(Lane::Inside).with(sql("SELECT 1"))).await?;
        Ok::<u64, StoreError>(sent)
    });
    match sent.await {
        Ok(Ok(sent)) => Ok(Outcome::Done { text: format!("Announced to {sent} accounts.") }),
        Ok(Err(error)) => Err(store(&error)),
        Err(_) => Err(OpError::Closing),
    }
}

/// Does something about the message of the day.
///
/// # Errors
/// A text that can't be sent; an unknown domain; the store's.
pub async fn run(exchange: &Arc<Exchange>, actor: &Actor, op: MotdOp) -> Result<Outcome, OpError> {
    // Whoever asked may go away meanwhile: what is on the disk is in memory all the same.
    let (to, actor) = (Arc::clone(exchange), actor.clone());
    let done = exchange.runtime.spawn(async move { change(&to, &actor, op).await });
    done.await.unwrap_or(Err(OpError::Closing))
}

async fn change(exchange: &Arc<Exchange>, actor: &Actor, op: MotdOp) -> Result<Outcome, OpError> {
    let done = |text: &str| Ok(Outcome::Done { text: text.to_owned() });
    let (MotdOp::Show { domain }
    | MotdOp::Set { domain, .. }
    | MotdOp::Edit { domain, .. }
    | MotdOp::Delete { domain }) = &op;
    let host = host(exchange, domain.as_deref())?;
    // The last one on the disk is the last one here.
    let _changing = exchange.notices.changing.lock().await;
    let before = exchange.notices.known.lock().get(&host.id).cloned();
    let old = before.as_ref().map(|motd| motd.text.to_string());
    let none = || OpError::NotFound("message of the day".into());
    match op {
        MotdOp::Show { .. } => Ok(Outcome::Motd { text: old, set_at: before.map(|motd| motd.at) }),
        MotdOp::Set { text, .. } => {
            check(&text)?;
            let at = exchange.clock().now();
            // Such ids grow also when the clock steps back.
            let motd = Motd { id: exchange.ids.next().0, text: text.as_str().into(), at };
            let set =
                sql("INSERT INTO motd (host, id, text, at) VALUES (?1, ?2, ?3, ?4) ON CONFLICT (host) DO \
                           UPDATE SET id = excluded.id, text = excluded.text, at = excluded.at")
                .bind(host.id)
                .bind(motd.id)
                .bind(text.as_str())
                .bind(at);
            let batch = Batch::new(Lane::Inside).with(set);
            note(exchange, batch, (actor, "motd set", (old, Some(text)))).await?;
            exchange.notices.known.lock().insert(host.id, motd);
            // s.4.24: at once to those who are online.
            let teller = Arc::clone(exchange);
            exchange.spawn(async move {
                for account in teller.accounts.all() {
                    if account.jid.domain() == host.domain.domain() && account.state().is_available() {
                        teller.tell_motd(&account).await;
                    }
                }
            });
            done("The message of the day is set.")
        }
        MotdOp::Edit { text, .. } => {
            check(&text)?;
            let before = before.ok_or_else(none)?;
            let edit = sql("UPDATE motd SET text = ?2 WHERE host = ?1").bind(host.id).bind(text.as_str());
            let batch = Batch::new(Lane::Inside).with(edit.must_change());
            let motd = Motd { text: text.as_str().into(), ..before };
            note(exchange, batch, (actor, "motd edit", (old, Some(text)))).await?;
            exchange.notices.known.lock().insert(host.id, motd);
            done("The message of the day is corrected.")
        }
        MotdOp::Delete { .. } => {
            before.ok_or_else(none)?;
            let batch = Batch::new(Lane::Inside).with(sql("DELETE FROM motd WHERE host = ?1").bind(host.id));
            note(exchange, batch, (actor, "motd delete", (old, None))).await?;
            exchange.notices.known.lock().remove(&host.id);
            done("There is no message of the day any more.")
        }
    }
}

impl Exchange {
    /// Somebody has come online: the account gets the message of the day, if it did not yet.
    pub(crate) fn show_motd(self: &Arc<Self>, account: &Arc<Account>) {
        if self.notices.known.lock().is_empty() {
            return;
        }
        let (exchange, account) = (Arc::clone(self), Arc::clone(account));
        self.spawn(async move { exchange.tell_motd(&account).await });
    }

    async fn tell_motd(self: &Arc<Self>, account: &Arc<Account>) {
        let Some(host) = self.host(account.jid.domain()) else { return };
        let Some(motd) = self.notices.known.lock().get(&host.id).cloned() else { return };
        // Noted first: several devices may come at once, and it is to be read once.
        let noted =
            sql("UPDATE accounts SET motd = ?2 WHERE id = ?1 AND motd < ?2").bind(account.id).bind(motd.id);
        match self.db.run(Batch::new(Lane::Inside).with(noted)).await {
            Ok(results) if results.first().is_some_and(|rows| rows.changes() > 0) => {
                tell(self, &account.jid, ("Message of the day", &motd.text)).await;
            }
            Ok(_) => {}
            Err(error) => tracing::error!(%error, "the message of the day could not be noted"),
        }
    }
}

async fn tell(exchange: &Arc<Exchange>, jid: &Jid, (subject, text): (&str, &str)) {
    let stanza = Stanza::build(Kind::Message(MessageType::Normal))
        .from(jid.domain_jid())
        .to(jid.clone())
        .id(exchange.ids.short())
        .body(|w| {
            w.text_element("subject", subject);
            w.text_element("body", text);
        })
        .done();
    Box::pin(exchange.deliver(Mail::inside(stanza))).await;
}

/// Accounts that can be used, beyond the id of one.
async fn page(
    exchange: &Exchange,
    (host, last): (Option<&Host>, i64),
) -> Result<Vec<(i64, Jid)>, StoreError> {
    let page = sql("SELECT a.id, a.local, h.name FROM accounts a JOIN hosts h ON h.id = a.host_id \
                    WHERE a.id > ?1 AND a.disabled = 0 AND (?2 IS NULL OR a.host_id = ?2) ORDER BY a.id LIMIT ?3")
    .bind(last)
    .bind(host.map_or(Value::Null, |host| host.id.into()))
    .bind(PAGE);
    let rows = exchange.db.read(page).await?;
    let jid = |row: &trunkline_store::Row<'_>| Jid::parse(&format!("{}@{}", row.text(1), row.text(2))).ok();
    Ok(rows.iter().filter_map(|row| Some((row.int(0), jid(&row)?))).collect())
}

fn host(exchange: &Exchange, domain: Option<&str>) -> Result<Arc<Host>, OpError> {
    let config = exchange.config.load();
    let domain = domain.unwrap_or(&config.domain);
    exchange.host(domain).cloned().ok_or_else(|| OpError::UnknownDomain(domain.to_owned()))
}

fn check(text: &str) -> Result<(), OpError> {
    let printable = |c: char| !c.is_control() || matches!(c, '\n' | '\t');
    if text.trim().is_empty() || text.len() > MOST_TEXT || !text.chars().all(printable) {
        let text = format!("text: 1 to {MOST_TEXT} bytes that can be read");
        return Err(OpError::BadRequest(text));
    }
    Ok(())
}

/// The audit log knows in the same batch.
async fn note(
    exchange: &Exchange,
    mut batch: Batch,
    (actor, what, change): (&Actor, &str, (Option<String>, Option<String>)),
) -> Result<(), OpError> {
    batch.push(exchange.control.audit.entry(actor, what, "", change));
    exchange.db.run(batch).await.map(drop).map_err(|error| store(&error))
}

fn store(error: &StoreError) -> OpError {
    OpError::Store(error.to_string())
}
