//! The devices of an account: which ones signed in, the tokens they sign in with (XEP-0484), and how one is ended
//! (XEP-0494).
//!
//! A device is known by the `id` of its `<user-agent/>` (XEP-0388 s.2.2), of which a hash is kept. A token is derived
//! from the server's secret, which is not in the database, and a seed, which is: who reads the database can't sign in
//! with what is there. A mere hash of the token would not do: the mechanism proves the token by an HMAC that is keyed
//! with it, so whatever checks the proof could make it too.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use aws_lc_rs::{digest, hmac};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use trunkline_store::{Batch, Lane, Row, Statement, StoreError, Value, sql};
use trunkline_xmpp::error::{StreamCondition, StreamError};
use trunkline_xmpp::jid::Jid;
use trunkline_xmpp::sasl::{Failure, TokenMechanism};

use crate::exchange::{Exchange, Host};
use crate::route::account::Account;
use crate::session::{Close, Session};

/// Devices remembered of one account; beyond it the one that signed in longest ago is forgotten, with its tokens.
pub const MOST: i64 = 64;
/// Bytes of what a device says about itself.
const MOST_TEXT: usize = 128;
/// A token this old is replaced when it is used: one day, in milliseconds.
const ROTATE: i64 = 24 * 60 * 60 * 1000;
/// Devices looked at in one round of forgetting.
const PAGE: i64 = 256;

/// What makes tokens: 32 bytes that are not in the database.
pub struct Mint([u8; 32]);

impl std::fmt::Debug for Mint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Mint")
    }
}

impl Mint {
    /// With the server's secret.
    pub fn new(secret: &[u8; 32]) -> Mint {
        Mint(tag(secret, &[b"trunkline tokens"]))
    }

    /// The token of a seed; bound to the device and the mechanism, so that a seed is worth nothing elsewhere.
    fn token(&self, (account, agent): (i64, &[u8]), mechanism: &str, seed: &[u8]) -> String {
        let parts: [&[u8]; 4] = [&account.to_be_bytes(), agent, mechanism.as_bytes(), seed];
        URL_SAFE_NO_PAD.encode(tag(&self.0, &parts))
    }
}

/// HMAC-SHA-256 over the parts, each with its length.
fn tag(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, key));
    for part in parts {
        context.update(&(part.len() as u64).to_be_bytes());
        context.update(part);
    }
    context.sign().as_ref().try_into().expect("invariant: HMAC-SHA-256 has 32 bytes")
}

/// What a client says it is (XEP-0388 s.2.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agent {
    /// A hash of the installation's id.
    id: [u8; 32],
    software: Option<String>,
    device: Option<String>,
}

impl Agent {
    /// An installation. `None`: the id has not the form of a UUID.
    pub fn new(id: &str, software: Option<String>, device: Option<String>) -> Option<Agent> {
        let well_formed = id.len() == 36
            && id.bytes().enumerate().all(|(at, byte)| match at {
                8 | 13 | 18 | 23 => byte == b'-',
                _ => byte.is_ascii_hexdigit(),
            });
        if !well_formed {
            return None;
        }
        let digest = digest::digest(&digest::SHA256, id.to_ascii_lowercase().as_bytes());
        let id = digest.as_ref().try_into().expect("invariant: SHA-256 has 32 bytes");
        Some(Agent { id, software: software.map(shortened), device: device.map(shortened) })
    }

    /// XEP-0386 s.3.3: the same for the same device whenever it binds, and says nothing of its id.
    pub fn resource(&self, host: &Host, account: &Account, tag_text: &str) -> String {
        let parts: [&[u8]; 4] =
            [b"trunkline resource", &account.id.to_be_bytes(), &self.id, tag_text.as_bytes()];
        URL_SAFE_NO_PAD.encode(&tag(&host.secret, &parts)[..9])
    }
}

fn shortened(mut text: String) -> String {
    let end = (0..=MOST_TEXT.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    text.truncate(end);
    text
}

/// One of the two tokens of a device (XEP-0484 s.5.1).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Slot {
    mechanism: Option<String>,
    seed: Option<Vec<u8>>,
    expires: Option<i64>,
}

impl Slot {
    fn of(row: Row<'_>, column: usize) -> Slot {
        Slot {
            mechanism: row.opt_text(column).map(str::to_owned),
            seed: row.opt_blob(column + 1).map(|seed| seed.to_vec()),
            expires: row.opt_int(column + 2),
        }
    }

    fn bind(&self, statement: Statement) -> Statement {
        let or_null = |value: Option<Value>| value.unwrap_or(Value::Null);
        statement
            .bind(or_null(self.mechanism.clone().map(Value::from)))
            .bind(or_null(self.seed.clone().map(Value::from)))
            .bind(or_null(self.expires.map(Value::from)))
    }
}

/// A token that was right.
#[derive(Debug)]
pub struct Used {
    /// The token, to answer the client with.
    pub token: String,
    /// As they were read: a change meanwhile is noticed.
    read: [Slot; 2],
    /// Its own slot.
    slot: Slot,
}

/// Who shows a token.
#[derive(Clone, Copy, Debug)]
pub struct Bearer<'a> {
    /// Of which domain.
    pub host: &'a Host,
    /// Who it claims to be.
    pub local: &'a str,
    /// Of which device.
    pub agent: &'a Agent,
    /// How it proves the token.
    pub mechanism: TokenMechanism,
}

/// How a device has proved itself.
#[derive(Debug)]
pub enum Proof {
    /// With the password; the salt of the keys that it was checked with.
    Password(Vec<u8>),
    /// With a token.
    Token(Used),
}

/// What a sign-in means for the device.
#[derive(Debug)]
pub struct Visit<'a> {
    /// Which.
    pub agent: &'a Agent,
    /// How.
    pub proof: &'a Proof,
    /// XEP-0484 s.3.5: its tokens are to be forgotten.
    pub invalidate: bool,
    /// XEP-0484 s.3.2: it wants a token for this mechanism.
    pub request: Option<TokenMechanism>,
}

/// A device that has signed in.
#[derive(Debug, PartialEq, Eq)]
pub struct Welcome {
    /// Of the device.
    pub id: i64,
    /// A new token and the millisecond at which it expires.
    pub token: Option<(String, i64)>,
}

/// One device of an account, for its user and for operators.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Device {
    /// What it is ended by.
    pub id: String,
    /// It has a session, which may wait for it to come back.
    pub connected: bool,
    /// Milliseconds since 1970; `None`: it said too little to be remembered.
    pub first_seen: Option<i64>,
    /// The last time it signed in.
    pub last_seen: Option<i64>,
    /// It has shown the password that is still valid.
    pub password: bool,
    /// It has a token that is valid.
    pub token: bool,
    /// What it calls itself.
    pub software: Option<String>,
    /// What it says it runs on.
    pub device: Option<String>,
    /// Its connected resources.
    pub resources: Vec<String>,
}

/// Who ends a device.
#[derive(Debug)]
pub enum Ender<'a> {
    /// Its user, from this session, which stays.
    User(&'a Session),
    /// An operator: the entry of the audit log goes with the change.
    Operator(Statement),
}

/// What came of ending a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It can't come back.
    Gone,
    /// Its sessions and tokens are gone, but it has shown the password, and may again.
    KnowsPassword,
    /// There is none of that id.
    Unknown,
}

/// Statements for a new password (see `admin::accounts::set_password`): all tokens are gone and nobody has shown
/// the new one, but for the device that sets it. Binds domain, local part, and that device or 0.
pub(crate) fn forget_tokens() -> Statement {
    sql("UPDATE devices SET password = (id = ?3), mechanism = CASE id WHEN ?3 THEN mechanism END, \
         seed = CASE id WHEN ?3 THEN seed END, expires = CASE id WHEN ?3 THEN expires END, \
         next_mechanism = CASE id WHEN ?3 THEN next_mechanism END, \
         next_seed = CASE id WHEN ?3 THEN next_seed END, next_expires = CASE id WHEN ?3 THEN next_expires END \
         WHERE account = (SELECT accounts.id FROM accounts JOIN hosts ON hosts.id = accounts.host_id \
         WHERE hosts.name = ?1 AND accounts.local = ?2)")
}

impl Exchange {
    /// Checks a token. What is wrong is the same for a device, an account or a domain that does not exist, and costs
    /// the same.
    ///
    /// # Errors
    /// Those of the store; inside, why the login fails.
    pub(crate) async fn check_token(
        &self,
        bearer: &Bearer<'_>,
        proves: impl Fn(&str) -> bool + Send,
    ) -> Result<Result<Used, Failure>, StoreError> {
        let rows = self
            .db
            .read(
                sql("SELECT d.account, d.mechanism, d.seed, d.expires, d.next_mechanism, d.next_seed, \
                     d.next_expires FROM devices d JOIN accounts a ON a.id = d.account \
                     WHERE a.host_id = ?1 AND a.local = ?2 AND d.agent = ?3 AND a.disabled = 0")
                .bind(bearer.host.id)
                .bind(bearer.local)
                .bind(bearer.agent.id.to_vec()),
            )
            .await?;
        let (account, read) = match rows.first() {
            Some(row) => (row.int(0), [Slot::of(row, 1), Slot::of(row, 4)]),
            None => (0, [Slot::default(), Slot::default()]),
        };
        let now = self.clock().now();
        let mut outcome = Err(Failure::NotAuthorized);
        // The older one first: the newer one has the last word (s.5.1). Both are worked out in any case.
        for slot in &read {
            let seed = slot.seed.as_deref().unwrap_or(&[0; 16]);
            let token = self.mint.token((account, &bearer.agent.id), bearer.mechanism.name(), seed);
            let right = proves(&token);
            // s.3.3: a token is good for the mechanism that it was asked for, and no other.
            if right && slot.seed.is_some() && slot.mechanism.as_deref() == Some(bearer.mechanism.name()) {
                outcome = match slot.expires {
                    Some(expires) if expires > now => Ok((token, slot.clone())),
                    _ => Err(Failure::CredentialsExpired),
                };
            }
        }
        Ok(outcome.map(|(token, slot)| Used { token, read, slot }))
    }

    /// Notes that a device has signed in, and makes the tokens it is to have. Durable when it returns.
    ///
    /// # Errors
    /// [`StoreError::Conflict`]: the password or the tokens were changed meanwhile.
    pub(crate) async fn welcome(&self, account: &Account, visit: &Visit<'_>) -> Result<Welcome, StoreError> {
        let now = self.clock().now();
        let issued = self.issue(visit, now);
        let Agent { id: agent, software, device } = visit.agent;
        let or_null = |text: &Option<String>| text.clone().map_or(Value::Null, Value::from);
        let mut batch = Batch::new(Lane::Inside);
        match visit.proof {
            Proof::Password(salt) => {
                // A password that was changed since it was checked gives no token.
                batch.push(
                    sql("SELECT 1 FROM credentials WHERE account_id = ?1 AND salt = ?2")
                        .bind(account.id)
                        .bind(salt.clone())
                        .must_change(),
                );
                let statement =
                    sql("INSERT INTO devices (account, agent, handle, software, device, first_seen, \
                     last_seen, password, next_mechanism, next_seed, next_expires) \
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?6, 1, ?7, ?8, ?9) \
                     ON CONFLICT (account, agent) DO UPDATE SET software = excluded.software, \
                     device = excluded.device, last_seen = excluded.last_seen, password = 1, \
                     next_mechanism = COALESCE(excluded.next_mechanism, devices.next_mechanism), \
                     next_seed = COALESCE(excluded.next_seed, devices.next_seed), \
                     next_expires = COALESCE(excluded.next_expires, devices.next_expires)")
                    .bind(account.id)
                    .bind(agent.to_vec())
                    .bind(crate::ids::token(9))
                    .bind(or_null(software))
                    .bind(or_null(device))
                    .bind(now);
                batch.push(issued.clone().unwrap_or_default().bind(statement));
                batch.push(
                    sql("DELETE FROM devices WHERE account = ?1 AND id NOT IN (SELECT id FROM devices \
                         WHERE account = ?1 ORDER BY last_seen DESC, id DESC LIMIT ?2)")
                    .bind(account.id)
                    .bind(MOST),
                );
            }
            Proof::Token(used) => {
                // s.3.4: the used one is the current one now, and whatever was older is gone; one that was made and
                // never used goes when another is made.
                let (current, next) = match (visit.invalidate, issued.clone()) {
                    (true, issued) => (Slot::default(), issued.unwrap_or_default()),
                    (false, Some(issued)) => (used.slot.clone(), issued),
                    (false, None) if used.slot == used.read[1] => (used.slot.clone(), Slot::default()),
                    (false, None) => (used.slot.clone(), used.read[1].clone()),
                };
                let seed = |slot: &Slot| slot.seed.clone().map_or(Value::Null, Value::from);
                let statement = sql("UPDATE devices SET last_seen = ?3, software = ?4, device = ?5, \
                     mechanism = ?8, seed = ?9, expires = ?10, next_mechanism = ?11, next_seed = ?12, \
                     next_expires = ?13 WHERE account = ?1 AND agent = ?2 AND seed IS ?6 AND next_seed IS ?7")
                .bind(account.id)
                .bind(agent.to_vec())
                .bind(now)
                .bind(or_null(software))
                .bind(or_null(device))
                .bind(seed(&used.read[0]))
                .bind(seed(&used.read[1]));
                batch.push(next.bind(current.bind(statement)).must_change());
            }
        }
        batch.push(
            sql("SELECT id FROM devices WHERE account = ?1 AND agent = ?2")
                .bind(account.id)
                .bind(agent.to_vec()),
        );
        let rows = self.db.run(batch).await?;
        let id = rows.last().and_then(|rows| rows.first()).map_or(0, |row| row.int(0));
        let token = issued.and_then(|slot| {
            let (mechanism, seed) = (slot.mechanism?, slot.seed?);
            Some((self.mint.token((account.id, agent), &mechanism, &seed), slot.expires?))
        });
        Ok(Welcome { id, token })
    }

    /// A new token, when one was asked for or the used one is due (s.3.4); not for who signs out (s.3.5).
    fn issue(&self, visit: &Visit<'_>, now: i64) -> Option<Slot> {
        let lifetime = self.token_lifetime()?;
        let due = match visit.proof {
            Proof::Token(used) if !visit.invalidate => {
                let made = used.slot.expires.unwrap_or(now).saturating_sub(lifetime);
                (now - made >= ROTATE.min(lifetime / 2)).then(|| used.slot.mechanism.clone()).flatten()
            }
            _ => None,
        };
        let mechanism = visit.request.map(|mechanism| mechanism.name().to_owned()).or(due)?;
        let mut seed = vec![0; 16];
        getrandom::fill(&mut seed).ok()?;
        Some(Slot {
            mechanism: Some(mechanism),
            seed: Some(seed),
            expires: Some(now.saturating_add(lifetime)),
        })
    }

    /// How long a token is good for, in milliseconds; `None`: there are none.
    pub(crate) fn token_lifetime(&self) -> Option<i64> {
        let lifetime = self.config.load().clients.token_lifetime;
        i64::try_from(lifetime.as_millis()).ok().filter(|lifetime| *lifetime > 0)
    }

    /// The devices of an account, connected ones first.
    ///
    /// # Errors
    /// Those of the store.
    pub(crate) async fn devices(&self, account: &Account) -> Result<Vec<Device>, StoreError> {
        let rows = self
            .db
            .read(
                sql("SELECT id, handle, software, device, first_seen, last_seen, password, \
                     MAX(COALESCE(expires, 0), COALESCE(next_expires, 0)) FROM devices WHERE account = ?1 \
                     ORDER BY last_seen DESC, id DESC")
                .bind(account.id),
            )
            .await?;
        let mut sessions: HashMap<i64, Vec<Arc<Session>>> = HashMap::new();
        for resource in &account.state().resources {
            let device = resource.session.device.load(Ordering::Relaxed);
            sessions.entry(device).or_default().push(Arc::clone(&resource.session));
        }
        let names = |sessions: &[Arc<Session>]| sessions.iter().map(|it| it.resource().to_owned()).collect();
        let now = self.clock().now();
        let mut devices: Vec<Device> = rows
            .iter()
            .map(|row| {
                let open = sessions.remove(&row.int(0)).unwrap_or_default();
                Device {
                    id: row.text(1).to_owned(),
                    connected: !open.is_empty(),
                    first_seen: Some(row.int(4)),
                    last_seen: Some(row.int(5)),
                    password: row.int(6) != 0,
                    token: row.int(7) > now,
                    software: row.opt_text(2).map(str::to_owned),
                    device: row.opt_text(3).map(str::to_owned),
                    resources: names(&open),
                }
            })
            .collect();
        // Clients that don't say which installation they are.
        for session in sessions.into_values().flatten() {
            devices.push(Device {
                id: self.handle_of(&session),
                connected: true,
                first_seen: None,
                last_seen: None,
                password: true,
                token: false,
                software: None,
                device: None,
                resources: vec![session.resource().to_owned()],
            });
        }
        devices.sort_by_key(|device| !device.connected);
        Ok(devices)
    }

    /// What a session without a device is called.
    fn handle_of(&self, session: &Session) -> String {
        let parts: [&[u8]; 3] = [b"session", &session.serial.to_be_bytes(), &self.started.to_be_bytes()];
        URL_SAFE_NO_PAD.encode(&tag(&self.mint.0, &parts)[..9])
    }

    /// Ends a device of an account: its sessions and its tokens. Durable when it returns.
    ///
    /// # Errors
    /// Those of the store.
    pub(crate) async fn end_device(
        self: &Arc<Self>,
        account: &Account,
        handle: &str,
        by: Ender<'_>,
    ) -> Result<Ended, StoreError> {
        let mut batch = Batch::new(Lane::Inside);
        let device = sql("SELECT id, password FROM devices WHERE account = ?1 AND handle = ?2")
            .bind(account.id)
            .bind(handle);
        if let Ender::Operator(_) = &by {
            // What ends nothing leaves no entry in the audit log.
            let has_row = !self.db.read(device.clone()).await?.is_empty();
            let has_session =
                || account.state().resources.iter().any(|it| self.handle_of(&it.session) == handle);
            if !has_row && !has_session() {
                return Ok(Ended::Unknown);
            }
            batch.push(if has_row { device.must_change() } else { device });
        } else {
            batch.push(device);
        }
        batch.push(
            sql("UPDATE devices SET mechanism = NULL, seed = NULL, expires = NULL, next_mechanism = NULL, \
                 next_seed = NULL, next_expires = NULL WHERE account = ?1 AND handle = ?2")
            .bind(account.id)
            .bind(handle),
        );
        // Nor is it told any more what comes.
        batch.push(
            sql("DELETE FROM push_services WHERE account = ?1 AND device = (SELECT id FROM devices \
                 WHERE account = ?1 AND handle = ?2)")
            .bind(account.id)
            .bind(handle),
        );
        batch.push(
            sql("DELETE FROM devices WHERE account = ?1 AND handle = ?2 AND password = 0")
                .bind(account.id)
                .bind(handle),
        );
        let keep = match by {
            Ender::User(session) => Some(session.serial),
            Ender::Operator(audit) => {
                batch.push(audit);
                None
            }
        };
        let rows = match self.db.run(batch).await {
            // Its row went between the two looks at it.
            Err(StoreError::Conflict) => return Ok(Ended::Unknown),
            rows => rows?,
        };
        self.reload_pushes(account).await?;
        let found = rows.first().and_then(|rows| rows.first()).map(|row| (row.int(0), row.int(1) != 0));
        let of_device = |session: &Session| match found {
            Some((device, _)) => session.device.load(Ordering::Relaxed) == device,
            None => self.handle_of(session) == handle,
        };
        let sessions: Vec<Arc<Session>> = account
            .state()
            .resources
            .iter()
            .map(|resource| Arc::clone(&resource.session))
            .filter(|session| of_device(session))
            .collect();
        let known = found.is_some() || !sessions.is_empty();
        let error = StreamError::new(StreamCondition::Reset).text("This device was signed out.");
        for session in sessions.iter().filter(|session| keep != Some(session.serial)) {
            session.close(Close { error: Some(error.clone()), resumable: false });
            if !session.is_attached() {
                self.end_session(session, None);
            }
        }
        Ok(match found {
            Some((_, false)) => Ended::Gone,
            _ if known => Ended::KnowsPassword,
            _ => Ended::Unknown,
        })
    }

    /// Ends what is left of earlier sessions of a device that binds anew (XEP-0386 s.3.2), but for the one of the
    /// resource that it is about to bind: who comes second there is dealt with by binding.
    pub(crate) fn end_earlier(self: &Arc<Self>, account: &Account, device: i64, full: &Jid) {
        let earlier: Vec<Arc<Session>> = account
            .state()
            .resources
            .iter()
            .map(|resource| Arc::clone(&resource.session))
            .filter(|session| session.device.load(Ordering::Relaxed) == device && session.jid != *full)
            .collect();
        for session in earlier {
            let error = Some(StreamError::new(StreamCondition::Conflict));
            session.close(Close { error, resumable: false });
            self.end_session(&session, Some("Replaced by new connection"));
        }
    }

    /// Forgets devices that have not signed in for `accounts.device_age`, unless they are connected.
    ///
    /// # Errors
    /// Those of the store.
    pub(crate) async fn forget_devices(&self) -> Result<u64, StoreError> {
        let age = self.config.load().accounts.device_age;
        let Some(age) = i64::try_from(age.as_millis()).ok().filter(|age| *age > 0) else { return Ok(0) };
        let now = self.clock().now();
        let oldest = now.saturating_sub(age);
        let mut forgotten = 0;
        loop {
            let rows = self
                .db
                .read(sql("SELECT id FROM devices WHERE last_seen < ?1 LIMIT ?2").bind(oldest).bind(PAGE))
                .await?;
            if rows.is_empty() {
                return Ok(forgotten);
            }
            let connected: HashSet<i64> = self
                .accounts
                .all()
                .iter()
                .flat_map(|account| {
                    let state = account.state();
                    let devices = state.resources.iter().map(|it| it.session.device.load(Ordering::Relaxed));
                    devices.collect::<Vec<_>>()
                })
                .collect();
            let mut batch = Batch::new(Lane::Inside);
            for row in rows.iter() {
                let id = row.int(0);
                if connected.contains(&id) {
                    // It is in use: seen at this moment.
                    batch.push(sql("UPDATE devices SET last_seen = ?2 WHERE id = ?1").bind(id).bind(now));
                } else {
                    batch.push(
                        sql("DELETE FROM devices WHERE id = ?1 AND last_seen < ?2").bind(id).bind(oldest),
                    );
                    forgotten += 1;
                }
            }
            self.db.run(batch).await?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_installation_is_a_uuid() {
        let id = "d4565fa7-4d72-4749-b3d3-740edbf87770";
        let agent = Agent::new(id, Some("x".repeat(300)), Some("ä".repeat(300))).unwrap();
        assert_eq!(Agent::new(&id.to_uppercase(), None, None).unwrap().id, agent.id);
        assert_eq!(agent.software.as_ref().map(String::len), Some(128));
        assert_eq!(agent.device.as_ref().map(String::len), Some(128));
        for wrong in ["", "x", "d4565fa7-4d72-4749-b3d3-740edbf8777", "d4565fa714d72-4749-b3d3-740edbf87770"]
        {
            assert_eq!(Agent::new(wrong, None, None), None, "{wrong}");
        }
    }

    #[test]
    fn a_token_is_worth_nothing_elsewhere() {
        let mint = Mint::new(&[1; 32]);
        let token = mint.token((1, b"agent"), "HT-SHA-256-NONE", b"seed");
        assert_eq!(token.len(), 43);
        assert_eq!(mint.token((1, b"agent"), "HT-SHA-256-NONE", b"seed"), token);
        for other in [
            mint.token((2, b"agent"), "HT-SHA-256-NONE", b"seed"),
            mint.token((1, b"agenT"), "HT-SHA-256-NONE", b"seed"),
            mint.token((1, b"agent"), "HT-SHA-256-EXPR", b"seed"),
            mint.token((1, b"agent"), "HT-SHA-256-NONE", b"seeD"),
            Mint::new(&[2; 32]).token((1, b"agent"), "HT-SHA-256-NONE", b"seed"),
        ] {
            assert_ne!(other, token);
        }
    }
}
