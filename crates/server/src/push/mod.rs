//! XEP-0357 Push Notifications 0.4.1: devices that sleep are woken through the push service of their app.
//!
//! What is worth waking somebody for is the classifier's answer ([`trunkline_xmpp::classify`]); whom it wakes is decided
//! here, for each service that a device has enabled:
//!
//! | the device | what happens |
//! |---|---|
//! | has no session | pushed when the message is on the disk |
//! | waits for resumption (XEP-0198) for a while | the same |
//! | has just lost its connection, or is connected | if it does not acknowledge the message in time, the keeper of sessions pushes |
//! | is connected without XEP-0198 | nothing: what the socket took counts as delivered |
//!
//! A push says that there is something, no more (but see `push.summary`): what it is waits in the log, so a push that
//! fails loses nothing. Publishing is in `publish`, what is published in `payload`.

mod payload;
mod publish;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use trunkline_store::{Batch, Lane, Rows, StoreError, Value, sql};
use trunkline_xmpp::error::{Condition, StanzaError};
use trunkline_xmpp::jid::Jid;
use trunkline_xmpp::stanza::Stanza;

use crate::exchange::Exchange;
use crate::ids::LogId;
use crate::route::account::{Account, AccountState};
use crate::route::message::store_trouble;
use crate::session::Session;

pub use payload::{KEY, Notice};
pub use publish::Publisher;

/// Services that the devices of one account may have enabled. Above it those go that are disabled; then it is an error.
pub const MOST: usize = 16;
/// Bytes of a node's name.
pub const MOST_NODE: usize = 1024;
/// Bytes of what the service wants to be given with each push.
pub const MOST_OPTIONS: usize = 4096;
/// A device that lost its connection may come back so long before it is woken.
const COMES_BACK: Duration = Duration::from_secs(5);
/// A device that is connected, and says nothing, has so long to acknowledge a message; then its connection is taken for
/// dead.
const ANSWERS: Duration = Duration::from_secs(20);
/// A service that was disabled for its errors is tried again after a day, when there is something to say (s.7.1).
const TRIED_AGAIN: i64 = 24 * 60 * 60 * 1000;

/// A service that one device wants to be woken through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    /// The store's key; never used again.
    pub id: i64,
    /// The push service.
    pub service: Jid,
    /// The node to publish to; may be empty.
    pub node: String,
    /// Which device it is for, by the store's key; 0: it did not say.
    pub device: i64,
    /// The resource that the device had when it enabled the service.
    pub resource: String,
    /// A form of publish options, as it came.
    pub options: Option<Bytes>,
    /// The device's key, if it wants to be told what there is, encrypted.
    pub secret: Option<Secret>,
    /// Failures in a row.
    pub failures: i64,
    /// When there were too many of them.
    pub disabled_at: Option<i64>,
}

/// With what, and how large, a payload is encrypted.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret {
    /// AES-128.
    pub key: [u8; KEY],
    /// Bytes of the payload at most; 0: not said.
    pub most: i64,
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

/// What a device asks for with `<enable/>`.
#[derive(Clone, Debug)]
pub struct Wish {
    /// The push service.
    pub service: Jid,
    /// Its node.
    pub node: String,
    /// A form of publish options.
    pub options: Option<Vec<u8>>,
    /// What is to be encrypted.
    pub secret: Option<Secret>,
}

/// A push that is to be made.
#[derive(Clone, Debug)]
pub struct Order {
    account: Jid,
    account_id: i64,
    registration: Registration,
    notice: Notice,
}

impl Registration {
    /// All of one account, by domain and local part.
    pub(crate) const QUERY: &str = "SELECT id, service, node, device, resource, options, secret, most, failures, \
         disabled_at FROM push_services WHERE account = (SELECT a.id FROM accounts a \
         JOIN hosts h ON h.id = a.host_id WHERE h.name = ?1 AND a.local = ?2) ORDER BY id";

    /// The rows of the query.
    pub(crate) fn load(rows: &Rows) -> Box<[Registration]> {
        let read = |row: trunkline_store::Row<'_>| {
            let key = row.opt_blob(6).and_then(|key| <[u8; KEY]>::try_from(key.as_ref()).ok());
            Some(Registration {
                id: row.int(0),
                service: Jid::parse(row.text(1)).ok()?,
                node: row.text(2).to_owned(),
                device: row.int(3),
                resource: row.text(4).to_owned(),
                options: row.opt_blob(5).cloned(),
                secret: key.map(|key| Secret { key, most: row.int(7) }),
                failures: row.int(8),
                disabled_at: row.opt_int(9),
            })
        };
        rows.iter().filter_map(read).collect()
    }

    /// The session is the device's.
    fn is_for(&self, session: &Session) -> bool {
        match (self.device, session.device.load(Ordering::Relaxed)) {
            (0, 0) => self.resource == session.resource(),
            (ours, theirs) => ours == theirs,
        }
    }

    /// Not given up, or long enough ago.
    fn is_tried(&self, now: i64) -> bool {
        self.disabled_at.is_none_or(|at| now - at >= TRIED_AGAIN)
    }
}

/// How a device is, as far as one message is concerned.
enum Device {
    /// Nobody is there.
    Sleeps,
    /// It has a session that has to acknowledge what it is sent.
    Owes(Arc<Session>),
    /// It has a session that says nothing.
    Connected,
}

fn device(state: &AccountState, registration: &Registration, now: i64) -> Device {
    let session = state.resources.iter().map(|resource| &resource.session).find(|it| registration.is_for(it));
    let Some(session) = session else { return Device::Sleeps };
    if session.management().is_none() {
        return Device::Connected;
    }
    if !session.is_attached() && gone_for(session, now) >= COMES_BACK.as_millis() as i64 {
        return Device::Sleeps;
    }
    Device::Owes(Arc::clone(session))
}

/// Milliseconds since its connection was lost.
fn gone_for(session: &Session, now: i64) -> i64 {
    let at = session.vitals.detached.load(Ordering::Relaxed);
    if at > 0 { now - at } else { 0 }
}

/// A message that is worth a push has come for an account that is locked.
pub(crate) struct Arrival<'a> {
    pub(crate) exchange: &'a Exchange,
    pub(crate) account: &'a Account,
    pub(crate) state: &'a AccountState,
    pub(crate) stanza: &'a Stanza,
    /// Its place in the log.
    pub(crate) kept: Option<LogId>,
    /// Whom it is sent to.
    pub(crate) targets: &'a [Arc<Session>],
    /// Others get a copy.
    pub(crate) copied: bool,
}

impl Arrival<'_> {
    /// The pushes to make when the message is on the disk. Devices that are connected are noted to owe an
    /// acknowledgement.
    pub(crate) fn orders(&self) -> Vec<Order> {
        let now = self.exchange.clock().now();
        let mut orders = Vec::new();
        for registration in self.state.pushes.iter().filter(|it| it.is_tried(now)) {
            // A service that writes to whom it wakes would wake them again, and so on.
            let from = self.stanza.head.from.as_ref();
            if from.is_some_and(|from| from.domain() == registration.service.domain()) {
                continue;
            }
            match device(self.state, registration, now) {
                Device::Connected => {}
                Device::Owes(session) => {
                    if !self.is_sent_to(&session) {
                        continue;
                    }
                    match self.kept {
                        Some(id) => session.with_outbox(|outbox| outbox.owe(id)),
                        // It waits for nothing but its connection, and is not read from the log later.
                        None if !session.is_attached() => orders.push(self.order(registration)),
                        None => {}
                    }
                }
                Device::Sleeps => {
                    let session = self.state.resources.iter().find(|it| registration.is_for(&it.session));
                    let reached = match session {
                        // It finds in the log what is kept. What was sent to others and is not kept is not for it.
                        None => self.kept.is_some(),
                        Some(resource) => self.copied || self.is_sent_to(&resource.session),
                    };
                    if reached {
                        orders.push(self.order(registration));
                    }
                }
            }
        }
        orders
    }

    fn is_sent_to(&self, session: &Session) -> bool {
        self.targets.iter().any(|target| target.serial == session.serial)
    }

    fn order(&self, registration: &Registration) -> Order {
        Order {
            account: self.account.jid.clone(),
            account_id: self.account.id,
            registration: registration.clone(),
            notice: Notice::of(self.stanza),
        }
    }
}

impl Exchange {
    /// Makes pushes. What they are about is on the disk.
    pub(crate) fn push(self: &Arc<Self>, orders: Vec<Order>) {
        for order in orders {
            self.make_push(order);
        }
    }

    /// The session owes an acknowledgement of something that is worth a push, and has had its time.
    pub(crate) fn push_what_is_owed(self: &Arc<Self>, session: &Arc<Session>, now: i64) {
        let Some(since) = session.with_outbox(|outbox| outbox.owes_since()) else { return };
        let late = match session.is_attached() {
            // Who says anything is there, whatever it has come to acknowledge.
            true => {
                let heard = session.vitals.heard.load(Ordering::Relaxed);
                now - since.max(heard) >= ANSWERS.as_millis() as i64
            }
            false => gone_for(session, now) >= COMES_BACK.as_millis() as i64,
        };
        if late {
            self.push_for(session);
        }
    }

    /// Wakes the device whose session this is, or was, for what it owes.
    pub(crate) fn push_for(self: &Arc<Self>, session: &Arc<Session>) {
        let Some((id, stanza)) = session.with_outbox(|outbox| outbox.take_owed()) else { return };
        let account = &session.account;
        let now = self.clock().now();
        let orders: Vec<Order> = {
            let state = account.state();
            if state.removed {
                return;
            }
            let its = state.pushes.iter().filter(|it| it.is_for(session) && it.is_tried(now));
            let order = |registration: &Registration| Order {
                account: account.jid.clone(),
                account_id: account.id,
                registration: registration.clone(),
                notice: stanza.as_ref().map_or_else(Notice::unknown, Notice::of),
            };
            its.map(order).collect()
        };
        if orders.is_empty() {
            return;
        }
        let (exchange, account) = (Arc::clone(self), Arc::clone(account));
        self.spawn(async move {
            // Promise 1: not before it is on the disk.
            account.in_flight.settled(LogId(id.0.saturating_add(1))).await;
            drop(exchange.accounts.hold(account));
            exchange.push(orders);
        });
    }

    /// The device of this registration has something to be woken for: nobody else has told it meanwhile.
    fn sleeps(&self, order: &Order) -> bool {
        let Some(account) = self.accounts.online(&order.account) else { return true };
        let now = self.clock().now();
        let state = account.state();
        match device(&state, &order.registration, now) {
            Device::Sleeps => true,
            Device::Connected => false,
            Device::Owes(session) => {
                let owes =
                    session.with_outbox(|outbox| outbox.owes_since().is_some() || outbox.has_unacked());
                owes || !session.is_attached()
            }
        }
    }

    /// A device enables a service (s.5). Durable when it returns.
    pub(crate) async fn enable_push(&self, session: &Session, wish: Wish) -> Result<(), StanzaError> {
        let account = &session.account;
        let device = session.device.load(Ordering::Relaxed);
        let writing = account.writes.lock().await;
        if account.state().removed {
            return Err(StanzaError::new(Condition::ItemNotFound));
        }
        let mut batch = Batch::new(Lane::Inside);
        let of_it = |statement: trunkline_store::Statement| {
            statement.bind(account.id).bind(wish.service.as_str()).bind(wish.node.as_str())
        };
        // A device has one node at a service: the app server may have given it another one.
        batch.push(
            of_it(sql("DELETE FROM push_services WHERE account = ?1 AND service = ?2 AND node <> ?3 \
                 AND device = ?4 AND ?4 <> 0"))
            .bind(device),
        );
        // Room is made by what does not work.
        batch.push(
            of_it(sql("DELETE FROM push_services WHERE id = (SELECT id FROM push_services WHERE account = ?1 \
                 AND disabled_at IS NOT NULL AND NOT (service = ?2 AND node = ?3) ORDER BY disabled_at LIMIT 1) \
                 AND (SELECT COUNT(*) FROM push_services WHERE account = ?1 AND NOT (service = ?2 AND node = ?3)) \
                 >= ?4"))
            .bind(i64::try_from(MOST).unwrap_or(i64::MAX)),
        );
        batch.push(
            of_it(sql("INSERT INTO push_services (account, service, node, device, resource, options, secret, most, \
                 enabled_at, failures) SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, 0 WHERE \
                 (SELECT COUNT(*) FROM push_services WHERE account = ?1 AND NOT (service = ?2 AND node = ?3)) < ?10 \
                 ON CONFLICT (account, service, node) DO UPDATE SET device = excluded.device, \
                 resource = excluded.resource, options = excluded.options, secret = excluded.secret, \
                 most = excluded.most, enabled_at = excluded.enabled_at, failures = 0, disabled_at = NULL, \
                 reason = NULL"))
            .bind(device)
            .bind(session.resource())
            .bind(wish.options.map_or(Value::Null, Value::from))
            .bind(wish.secret.as_ref().map_or(Value::Null, |secret| Value::from(secret.key.to_vec())))
            .bind(wish.secret.as_ref().map_or(0, |secret| secret.most))
            .bind(self.clock().now())
            .bind(i64::try_from(MOST).unwrap_or(i64::MAX))
            .must_change(),
        );
        let result = self.change_pushes(account, batch).await;
        drop(writing);
        match result {
            Err(StoreError::Conflict) => Err(StanzaError::new(Condition::ResourceConstraint).text(format!(
                "An account may have {MOST} push services, and none is left: disable one first."
            ))),
            Err(error) => Err(store_trouble(&error)),
            Ok(()) => Ok(()),
        }
    }

    /// A device disables a node of a service, or all of them (s.6).
    pub(crate) async fn disable_push(
        &self,
        account: &Account,
        service: &Jid,
        node: Option<&str>,
    ) -> Result<(), StanzaError> {
        let writing = account.writes.lock().await;
        let batch = Batch::new(Lane::Inside).with(
            sql(
                "DELETE FROM push_services WHERE account = ?1 AND service = ?2 AND (?3 IS NULL OR node = ?3)",
            )
            .bind(account.id)
            .bind(service.as_str())
            .bind(node.map_or(Value::Null, Value::from)),
        );
        let result = self.change_pushes(account, batch).await;
        drop(writing);
        result.map_err(|error| store_trouble(&error))
    }

    /// Rows of this account were changed by others: memory follows.
    pub(crate) async fn reload_pushes(&self, account: &Account) -> Result<(), StoreError> {
        if account.state().pushes.is_empty() {
            return Ok(());
        }
        let _writing = account.writes.lock().await;
        self.change_pushes(account, Batch::new(Lane::Inside)).await
    }

    /// Runs `batch`, and puts what is in the store then into memory. To be called with `writes` held.
    async fn change_pushes(&self, account: &Account, mut batch: Batch) -> Result<(), StoreError> {
        batch.push(
            sql("SELECT id, service, node, device, resource, options, secret, most, failures, disabled_at \
                 FROM push_services WHERE account = ?1 ORDER BY id")
            .bind(account.id),
        );
        let results = self.db.run(batch).await?;
        let now = results.last().map(Registration::load).unwrap_or_default();
        let before = std::mem::replace(&mut account.state().pushes, now.clone());
        for old in before.iter().filter(|old| !now.contains(old)) {
            // Also one that was enabled anew: the device is there, so what it was to be told it knows.
            self.stop_publishing(old.id);
        }
        Ok(())
    }
}
