//! Looks after all sessions, so that none needs a timer: acknowledgements that are due, clients that fell
//! silent or don't read, sessions that wait for resumption; and their snapshot across a clean restart.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use trunkline_store::{Batch, Lane, StoreError, sql};
use trunkline_xmpp::error::{StreamCondition, StreamError};
use trunkline_xmpp::jid::Jid;
use trunkline_xmpp::ns;
use trunkline_xmpp::stanza::{IqType, Kind, PresenceType, Stanza};

use super::ledger::Ledger;
use super::{CatchUp, Close, Kept, Management, Outbox, Queued, Session, management};
use crate::exchange::Exchange;
use crate::ids::LogId;
use crate::route::account::Resource;

/// XEP-0198 forbids to withhold an acknowledgement: this long it may wait for the disk.
const ANSWER_WITHIN: Duration = Duration::from_millis(500);
/// How often sessions are looked at.
const ROUND: Duration = Duration::from_secs(5);
/// After a crash, clients that were online have this long to come back before their contacts are told.
const COME_BACK: Duration = Duration::from_secs(60);

/// Acknowledgements that are due.
#[derive(Debug, Default)]
pub struct Keeper {
    due: Mutex<VecDeque<(Instant, Weak<Session>)>>,
    added: tokio::sync::Notify,
}

impl Keeper {
    /// The client asked for an acknowledgement that waits for the disk: at the latest after 500 ms it
    /// gets the number of what is handled until then.
    pub fn answer_later(&self, session: &Arc<Session>) {
        let mut due = self.due.lock();
        let first = due.is_empty();
        due.push_back((Instant::now() + ANSWER_WITHIN, Arc::downgrade(session)));
        drop(due);
        if first {
            self.added.notify_one();
        }
    }

    /// Answers what is due, for ever.
    pub async fn answer(&self) {
        loop {
            let next = self.due.lock().front().map(|(at, _)| *at);
            let Some(at) = next else {
                self.added.notified().await;
                continue;
            };
            tokio::time::sleep_until(at).await;
            let now = Instant::now();
            loop {
                let ripe = {
                    let mut due = self.due.lock();
                    if due.front().is_none_or(|(at, _)| *at > now) {
                        break;
                    }
                    due.pop_front()
                };
                let Some(session) = ripe.and_then(|(_, session)| session.upgrade()) else { continue };
                if let Some(ledger) = session.ledger().filter(|ledger| ledger.late().is_some()) {
                    management::answer_now(&session, &ledger);
                }
            }
        }
    }
}

impl Exchange {
    /// Looks at every session, round after round.
    pub(crate) async fn keep_sessions(self: Arc<Self>) {
        let mut round = tokio::time::interval(ROUND);
        round.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            round.tick().await;
            self.look_at_sessions();
        }
    }

    fn look_at_sessions(self: &Arc<Self>) {
        let config = self.config.load();
        let now = self.clock().now();
        let millis = |duration: Duration| i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
        let (standstill, element, idle, answer) = (
            millis(config.limits.outbox_standstill),
            millis(config.limits.element_timeout),
            millis(config.clients.idle_check),
            millis(config.limits.iq_timeout),
        );
        let mut waiting = 0;
        for account in self.accounts.all() {
            let sessions: Vec<Arc<Session>> =
                account.state().resources.iter().map(|resource| Arc::clone(&resource.session)).collect();
            if sessions.is_empty() {
                // Its last session held it in memory until its connection was gone.
                drop(self.accounts.hold(account));
                continue;
            }
            for session in sessions {
                self.look_at(&session, now, &Patience { standstill, element, idle, answer });
                waiting += i64::from(!session.is_attached() && !session.is_ended());
            }
        }
        self.metrics.sessions_waiting.set(waiting);
    }

    fn look_at(self: &Arc<Self>, session: &Arc<Session>, now: i64, patience: &Patience) {
        let since = |vital: &std::sync::atomic::AtomicI64| {
            let at = vital.load(Ordering::Relaxed);
            (at > 0).then_some(now - at)
        };
        let vitals = &session.vitals;
        session.with_outbox(Outbox::shrink);
        self.push_what_is_owed(session, now);
        if !session.is_attached() {
            let wait = session.management().map_or(0, |management| i64::from(management.seconds) * 1000);
            if since(&vitals.detached).is_some_and(|gone| gone >= wait) {
                tracing::debug!(conn = session.serial, "a session was not resumed in time");
                self.end_session(session, None);
            }
            return;
        }
        let close = |name: &'static str, condition: StreamCondition| {
            self.refused_client(session, name, "the connection is closed");
            session.close(Close { error: Some(StreamError::new(condition)), resumable: true });
        };
        if since(&vitals.blocked).is_some_and(|stood| stood >= patience.standstill) {
            return close("client-does-not-read", StreamCondition::ConnectionTimeout);
        }
        if since(&vitals.partial).is_some_and(|waited| waited >= patience.element) {
            return close("element-too-slow", StreamCondition::PolicyViolation);
        }
        let heard = now - vitals.heard.load(Ordering::Relaxed).max(vitals.asked.load(Ordering::Relaxed));
        if let Some(asked) = since(&vitals.asked) {
            if vitals.heard.load(Ordering::Relaxed) > now - asked {
                vitals.asked.store(0, Ordering::Relaxed);
            } else if asked >= patience.answer {
                close("client-silent", StreamCondition::ConnectionTimeout)
            }
        } else if heard >= patience.idle {
            vitals.asked.store(now, Ordering::Relaxed);
            self.ask_for_life(session);
        }
    }

    /// XEP-0198 `<r/>` or XEP-0199 ping.
    fn ask_for_life(self: &Arc<Self>, session: &Arc<Session>) {
        if session.management().is_some() {
            session.push_nonza(b"<r xmlns='urn:xmpp:sm:3'/>");
            return;
        }
        let Ok(domain) = Jid::parse(session.jid.domain()) else { return };
        let ping = Stanza::build(Kind::Iq(IqType::Get))
            .from(domain)
            .to(session.jid.clone())
            .id(self.ids.short())
            .body(|w| {
                w.open("ping").attr("xmlns", ns::PING).close();
            })
            .done();
        session.push(Queued::plain(ping));
    }

    /// Ends all streams for a clean stop: resumable sessions go into the snapshot, the others end.
    ///
    /// # Errors
    /// Those of the store.
    pub(crate) async fn save_sessions(self: &Arc<Self>) -> Result<usize, StoreError> {
        let mut batch = Batch::new(Lane::Inside);
        let mut saved = 0;
        for account in self.accounts.all() {
            let sessions: Vec<Arc<Session>> =
                account.state().resources.iter().map(|resource| Arc::clone(&resource.session)).collect();
            for session in sessions {
                let Some((hash, snapshot)) = self.snapshot(&session) else {
                    self.end_session(&session, None);
                    continue;
                };
                let Ok(data) = serde_json::to_string(&snapshot) else { continue };
                batch.push(
                    sql("INSERT INTO session_snapshots (hash, account, data) VALUES (?1, ?2, ?3)")
                        .bind(hash.to_vec())
                        .bind(account.id)
                        .bind(data),
                );
                saved += 1;
            }
        }
        if !batch.is_empty() {
            self.db.run(batch).await?;
        }
        Ok(saved)
    }

    fn snapshot(&self, session: &Arc<Session>) -> Option<([u8; 32], Snapshot)> {
        let management = session.management()?;
        let hash = management.resume?;
        let handled = session.ledger()?.handled();
        let mut state = session.account.state();
        let resource = state.resource_of(session)?;
        let kept = session.with_outbox(|outbox| outbox.kept())?;
        // What is kept for the account later than this, until the store closes, is read from the log.
        let seen = self.ids.next();
        Some((
            hash,
            Snapshot {
                resource: session.resource().to_owned(),
                seconds: management.seconds,
                detached: self.clock().now(),
                received: handled,
                acked: kept.acked,
                unacked: kept.unacked.iter().map(Saved::of).collect(),
                queue: kept.queue.iter().map(Saved::of).collect(),
                catch_up: kept.catch_up.unwrap_or(CatchUp::Archive(seen)),
                presence: resource.presence.as_ref().map(text),
                priority: resource.priority,
                directed: resource.directed.iter().map(|jid| jid.as_str().to_owned()).collect(),
                interested: resource.interested,
                block_interested: resource.block_interested,
                carbons: resource.carbons,
                device: session.device.load(Ordering::Relaxed),
                owed: kept.owed,
            },
        ))
    }

    /// Brings back the sessions of the last clean stop, each waiting to be resumed. What a crash left
    /// behind instead are the names of those who were online: see [`Exchange::tell_of_the_lost`].
    ///
    /// # Errors
    /// Those of the store.
    pub(crate) async fn restore_sessions(self: &Arc<Self>) -> Result<usize, StoreError> {
        let rows = self
            .db
            .read(sql("SELECT s.hash, s.data, a.local, h.name FROM session_snapshots s \
                       JOIN accounts a ON a.id = s.account JOIN hosts h ON h.id = a.host_id"))
            .await?;
        let mut restored = 0;
        for row in rows.iter() {
            let Ok(hash) = <[u8; 32]>::try_from(row.blob(0).as_ref()) else { continue };
            let Ok(snapshot) = serde_json::from_str::<Snapshot>(row.text(1)) else { continue };
            let Ok(jid) = Jid::parse(&format!("{}@{}", row.text(2), row.text(3))) else { continue };
            if self.restore(hash, snapshot, &jid).await?.is_some() {
                restored += 1;
            }
        }
        let mut batch = Batch::new(Lane::Inside);
        batch.push(sql("DELETE FROM session_snapshots"));
        self.db.run(batch).await?;
        Ok(restored)
    }

    async fn restore(
        self: &Arc<Self>,
        hash: [u8; 32],
        snapshot: Snapshot,
        jid: &Jid,
    ) -> Result<Option<()>, StoreError> {
        let Some(account) = self.accounts.load(&self.db, jid).await? else { return Ok(None) };
        let Ok(full) = jid.with_resource(&snapshot.resource) else { return Ok(None) };
        let session = Session::new(super::serial(), full, Arc::clone(&account), self.bounds());
        let ledger = {
            let session = Arc::downgrade(&session);
            Ledger::new(snapshot.received, move || {
                if let Some(session) = session.upgrade() {
                    management::answer(&session);
                }
            })
        };
        session.manage(Management { resume: Some(hash), seconds: snapshot.seconds }, ledger);
        let kept = Kept {
            acked: snapshot.acked,
            unacked: snapshot.unacked.iter().filter_map(Saved::queued).collect(),
            queue: snapshot.queue.iter().filter_map(Saved::queued).collect(),
            catch_up: Some(snapshot.catch_up),
            owed: snapshot.owed,
        };
        if kept.unacked.len() != snapshot.unacked.len() {
            // The counters would no longer fit. The client binds anew and gets from the log what was kept.
            tracing::error!(session = %session.jid, "a stanza of a saved session can't be read");
            return Ok(None);
        }
        session.with_outbox(|outbox| outbox.restore(kept));
        session.device.store(snapshot.device, Ordering::Relaxed);
        session.detach(session.serial);
        session.vitals.detached.store(snapshot.detached.max(1), Ordering::Relaxed);
        let mut resource = Resource::new(Arc::clone(&session));
        resource.presence = snapshot.presence.and_then(|xml| Stanza::parse(xml.as_bytes()).ok());
        resource.priority = snapshot.priority;
        resource.directed = snapshot.directed.iter().filter_map(|jid| Jid::parse(jid).ok()).collect();
        for to in &resource.directed {
            self.direct(&account.jid, to);
        }
        resource.interested = snapshot.interested;
        resource.block_interested = snapshot.block_interested;
        resource.carbons = snapshot.carbons;
        account.state().resources.push(resource);
        self.metrics.sessions.inc();
        self.resumable.lock().insert(hash, session);
        Ok(Some(()))
    }

    /// After a crash: sessions that were available and don't come back are unavailable for their contacts.
    ///
    /// # Errors
    /// Those of the store.
    pub(crate) async fn tell_of_the_lost(self: &Arc<Self>) -> Result<(), StoreError> {
        let rows = self
            .db
            .read(sql("SELECT p.account, p.resource, a.local, h.name FROM present p \
                       JOIN accounts a ON a.id = p.account JOIN hosts h ON h.id = a.host_id"))
            .await?;
        if rows.is_empty() {
            return Ok(());
        }
        tokio::time::sleep(COME_BACK).await;
        for row in rows.iter() {
            let Ok(bare) = Jid::parse(&format!("{}@{}", row.text(2), row.text(3))) else { continue };
            let Ok(full) = bare.with_resource(row.text(1)) else { continue };
            let Some(account) = self.accounts.load(&self.db, &bare).await? else { continue };
            let contacts: Vec<Jid> = {
                let state = account.state();
                if state.resource(row.text(1)).is_some_and(|resource| resource.presence.is_some()) {
                    continue;
                }
                state
                    .roster
                    .iter()
                    .filter(|(_, item)| item.subscription.from)
                    .map(|(jid, _)| jid.clone())
                    .collect()
            };
            for contact in contacts {
                self.send(
                    Stanza::build(Kind::Presence(PresenceType::Unavailable))
                        .from(full.clone())
                        .to(contact)
                        .done(),
                );
            }
            self.note_absent(row.int(0), row.text(1));
        }
        Ok(())
    }

    /// Notes that a resource is available: after a crash its contacts have to be told.
    pub(crate) fn note_present(&self, account: i64, resource: &str) {
        let mut batch = Batch::new(Lane::Inside);
        batch.push(
            sql("INSERT INTO present (account, resource) VALUES (?1, ?2) ON CONFLICT DO NOTHING")
                .bind(account)
                .bind(resource),
        );
        batch.push(
            sql("UPDATE accounts SET last_login = ?2 WHERE id = ?1").bind(account).bind(self.clock().now()),
        );
        self.db.submit(batch, log_failure);
    }

    /// The reverse of [`Exchange::note_present`].
    pub(crate) fn note_absent(&self, account: i64, resource: &str) {
        let mut batch = Batch::new(Lane::Inside);
        batch.push(
            sql("DELETE FROM present WHERE account = ?1 AND resource = ?2").bind(account).bind(resource),
        );
        self.db.submit(batch, log_failure);
    }
}

fn log_failure(result: Result<Vec<trunkline_store::Rows>, StoreError>) {
    if let Err(error) = result {
        tracing::warn!(%error, "presence could not be noted");
    }
}

struct Patience {
    standstill: i64,
    element: i64,
    idle: i64,
    answer: i64,
}

/// A session across a clean restart.
#[derive(Serialize, Deserialize)]
struct Snapshot {
    resource: String,
    seconds: u32,
    detached: i64,
    received: u32,
    acked: u32,
    unacked: Vec<Saved>,
    queue: Vec<Saved>,
    catch_up: CatchUp,
    presence: Option<String>,
    priority: i8,
    directed: Vec<String>,
    interested: bool,
    block_interested: bool,
    carbons: bool,
    #[serde(default)]
    device: i64,
    #[serde(default)]
    owed: Option<Box<(LogId, LogId)>>,
}

/// A stanza in a snapshot.
#[derive(Serialize, Deserialize)]
struct Saved {
    stanza: String,
    kept: Option<LogId>,
    outside: bool,
    lazy: bool,
}

impl Saved {
    fn of(queued: &Queued) -> Saved {
        let Queued { stanza, kept, outside, lazy } = queued;
        Saved { stanza: text(stanza), kept: *kept, outside: *outside, lazy: *lazy }
    }

    fn queued(&self) -> Option<Queued> {
        let stanza = Stanza::parse(self.stanza.as_bytes()).ok()?;
        Some(Queued { stanza, kept: self.kept, outside: self.outside, lazy: self.lazy })
    }
}

fn text(stanza: &Stanza) -> String {
    let mut bytes = Vec::new();
    stanza.write(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}
