//! What administration does to the tables of accounts, whether the server runs or not.
//!
//! Passwords are stored as SCRAM keys only (RFC 5802 s.2.2): who reads the database can't log in with what is there.

use trunkline_store::{Batch, Db, Lane, Statement, StoreError, Violation, sql};
use trunkline_xmpp::jid::Jid;
use trunkline_xmpp::sasl::{Hash, ScramKeys};

use super::{AccountView, Counts, OpError, PAGE, Password, User};
use crate::config::Config;

/// The bare address of an account on one of our domains. It need not exist.
pub fn address(text: &str, config: &Config) -> Result<Jid, OpError> {
    let jid = Jid::parse(text).map_err(|error| {
        OpError::BadAddress(format!("{} is not an address: {error}", text.escape_debug()))
    })?;
    if !jid.is_bare() || jid.local().is_none() {
        return Err(OpError::BadAddress(format!(
            "{} is not an account's address: write user@domain",
            text.escape_debug()
        )));
    }
    if config.is_our_domain(jid.domain()) {
        Ok(jid)
    } else {
        Err(OpError::UnknownDomain(jid.domain().to_owned()))
    }
}

/// The bare address for a new account on one of our domains.
pub fn new_address(text: &str, config: &Config) -> Result<Jid, OpError> {
    let jid = address(text, config)?;
    // Nodeprep makes one of names that are two under PRECIS (strasse, straße); only names that both read alike are
    // given out. What was written counts, not what nodeprep made of it.
    let written = text.split_once('@').map_or(text, |(local, _)| local);
    if Jid::new_local_part_ok(written) {
        Ok(jid)
    } else {
        Err(OpError::BadAddress(format!("{} can't be a new address: write it as {jid}", text.escape_debug())))
    }
}

/// Makes an account for somebody whom the operator knows (XEP-0489: `member`), with its entry of the audit log. Its
/// address comes from [`new_address`].
pub async fn add(db: &Db, new: NewAccount<'_>, audit: Option<Statement>) -> Result<(), OpError> {
    let member = sql("UPDATE accounts SET member = 1 WHERE local = ?2 AND \
                      host_id = (SELECT id FROM hosts WHERE name = ?1)");
    let behind = [on_account(member, new.jid)].into_iter().chain(audit).collect();
    insert(db, new, (Vec::new(), behind)).await
}

/// Makes an account together with `conditions`, all or nothing: [`OpError::NotPossible`] when one of them changes
/// nothing.
pub async fn add_with(db: &Db, new: NewAccount<'_>, conditions: Vec<Statement>) -> Result<(), OpError> {
    insert(db, new, (conditions, Vec::new())).await
}

/// Between the statements of the first list and those of the second.
async fn insert(
    db: &Db,
    new: NewAccount<'_>,
    (conditions, behind): (Vec<Statement>, Vec<Statement>),
) -> Result<(), OpError> {
    let keys = keys(new.password, new.iterations).await?;
    let mut batch = Batch::new(Lane::Inside);
    for condition in conditions {
        batch.push(condition);
    }
    batch.push(
        sql("INSERT INTO hosts (name) VALUES (?1) ON CONFLICT (name) DO NOTHING").bind(new.jid.domain()),
    );
    batch.push(
        sql("INSERT INTO accounts (host_id, local, created_at) SELECT id, ?2, ?3 FROM hosts WHERE name = ?1")
            .bind(new.jid.domain())
            .bind(new.jid.local().unwrap_or_default())
            .bind(new.now)
            .must_change(),
    );
    push_credentials(&mut batch, new.jid, keys);
    behind.into_iter().for_each(|statement| {
        batch.push(statement);
    });
    db.run(batch).await.map(drop).map_err(|error| match error {
        StoreError::Constraint(Violation::Unique, _) => OpError::Exists(new.jid.to_string()),
        StoreError::Conflict => OpError::NotPossible("the permission was used up meanwhile".into()),
        error => store(error),
    })
}

/// What [`add`] needs.
#[derive(Clone, Copy, Debug)]
pub struct NewAccount<'a> {
    /// Bare, on a domain of ours.
    pub jid: &'a Jid,
    /// Of any length from 1 byte that SASLprep allows.
    pub password: &'a Password,
    /// PBKDF2 iterations.
    pub iterations: u32,
    /// Milliseconds since 1970.
    pub now: i64,
}

/// What [`set_password`] sets.
#[derive(Clone, Copy, Debug)]
pub struct NewPassword<'a> {
    /// Of any length from 1 byte that SASLprep allows.
    pub password: &'a Password,
    /// PBKDF2 iterations.
    pub iterations: u32,
    /// The device that sets it, whose tokens stay; 0: none.
    pub keep: i64,
    /// Its resource, if it is no device that is known; empty: none.
    pub keep_resource: &'a str,
}

/// Sets a new password. The tokens of devices that signed in with the old one are gone with it. `audit` is the entry
/// of the audit log, for a change that is not the owner's.
pub async fn set_password(
    db: &Db,
    jid: &Jid,
    new: NewPassword<'_>,
    audit: Option<Statement>,
) -> Result<(), OpError> {
    let keys = keys(new.password, new.iterations).await?;
    let mut batch = Batch::new(Lane::Inside);
    batch.push(exists(jid).must_change());
    batch.push(on_account(
        sql("DELETE FROM credentials WHERE account_id = (SELECT accounts.id FROM accounts \
             JOIN hosts ON hosts.id = accounts.host_id WHERE hosts.name = ?1 AND accounts.local = ?2)"),
        jid,
    ));
    push_credentials(&mut batch, jid, keys);
    batch.push(on_account(crate::devices::forget_tokens(), jid).bind(new.keep));
    // Who had the old password is not told any more what comes.
    batch.push(
        on_account(
            sql("DELETE FROM push_services WHERE account = (SELECT accounts.id FROM accounts \
                 JOIN hosts ON hosts.id = accounts.host_id WHERE hosts.name = ?1 AND accounts.local = ?2) \
                 AND NOT (device = ?3 AND (device <> 0 OR resource = ?4))"),
            jid,
        )
        .bind(new.keep)
        .bind(new.keep_resource),
    );
    extend(&mut batch, audit);
    db.run(batch).await.map(drop).map_err(|error| missing(error, jid))
}

/// Removes an account with everything that refers to it, also the tokens of the HTTP API that it made. `audit` is the
/// entry of the audit log, for a removal that is not the owner's.
pub async fn remove(db: &Db, jid: &Jid, audit: Option<Statement>) -> Result<(), OpError> {
    let statement = on_account(
        sql("DELETE FROM accounts WHERE local = ?2 AND host_id = (SELECT id FROM hosts WHERE name = ?1)"),
        jid,
    );
    let mut batch = Batch::new(Lane::Inside).with(statement.must_change());
    batch.push(sql("DELETE FROM api_tokens WHERE created_by = ?1").bind(jid.bare_str()));
    // Others' nodes know nothing of who is gone, and nobody who gets the address later inherits anything there.
    batch.push(sql("DELETE FROM pubsub_subscriptions WHERE owner = ?1").bind(jid.bare_str()));
    batch.push(sql("DELETE FROM pubsub_affiliations WHERE jid = ?1").bind(jid.bare_str()));
    batch.push(sql("UPDATE pubsub_items SET publisher = '' WHERE publisher = ?1").bind(jid.bare_str()));
    extend(&mut batch, audit);
    db.run(batch).await.map(drop).map_err(|error| missing(error, jid))
}

/// Whether an account can be used: a disabled one keeps everything it owns, but nobody can log in to it, and it is met
/// like one that does not exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// As usual.
    Enabled,
    /// Until it is enabled again.
    Disabled,
}

/// Disables an account or enables it again. [`OpError::NotPossible`]: it is in that state already.
pub async fn set_state(db: &Db, jid: &Jid, state: State, audit: Statement) -> Result<(), OpError> {
    let disabled = state == State::Disabled;
    let change = sql("UPDATE accounts SET disabled = ?3 WHERE local = ?2 AND disabled <> ?3 AND \
                      host_id = (SELECT id FROM hosts WHERE name = ?1)");
    let mut batch = Batch::new(Lane::Inside).with(on_account(change, jid).bind(disabled).must_change());
    if disabled {
        // What would let a device go on where it was, after it is enabled again.
        for text in [
            "DELETE FROM session_snapshots WHERE account = (SELECT accounts.id FROM accounts \
             JOIN hosts ON hosts.id = accounts.host_id WHERE hosts.name = ?1 AND accounts.local = ?2)",
            "DELETE FROM present WHERE account = (SELECT accounts.id FROM accounts \
             JOIN hosts ON hosts.id = accounts.host_id WHERE hosts.name = ?1 AND accounts.local = ?2)",
        ] {
            batch.push(on_account(sql(text), jid));
        }
    }
    batch.push(audit);
    match db.run(batch).await {
        Ok(_) => Ok(()),
        // Either there is no such account, or nothing was to be changed.
        Err(StoreError::Conflict) => match db.read(exists(jid)).await.map_err(store)?.is_empty() {
            true => Err(OpError::NoSuchUser(jid.to_string())),
            false if disabled => Err(OpError::NotPossible(format!("{jid} is disabled already"))),
            false => Err(OpError::NotPossible(format!("{jid} is not disabled"))),
        },
        Err(error) => Err(store(error)),
    }
}

/// Whether an account exists and is not disabled.
pub async fn is_usable(db: &Db, jid: &Jid) -> Result<bool, StoreError> {
    let usable = sql("SELECT 1 FROM accounts JOIN hosts ON hosts.id = accounts.host_id \
                      WHERE hosts.name = ?1 AND accounts.local = ?2 AND accounts.disabled = 0");
    Ok(!db.read(on_account(usable, jid)).await?.is_empty())
}

fn extend(batch: &mut Batch, audit: Option<Statement>) {
    audit.into_iter().for_each(|audit| {
        batch.push(audit);
    });
}

/// One page of accounts in the order of their addresses (by domain, then local part), and whether there are more.
/// `sessions` of each is `None`.
pub async fn list(
    db: &Db,
    (domain, only_disabled): (Option<&str>, bool),
    after: Option<&Jid>,
) -> Result<(Vec<User>, bool), OpError> {
    let statement = sql("SELECT hosts.name, accounts.local, accounts.created_at, accounts.disabled FROM accounts \
         JOIN hosts ON hosts.id = accounts.host_id \
         WHERE (?1 IS NULL OR hosts.name = ?1) AND (hosts.name > ?2 OR (hosts.name = ?2 AND accounts.local > ?3)) \
         AND (?5 = 0 OR accounts.disabled <> 0) ORDER BY hosts.name, accounts.local LIMIT ?4")
    .bind(domain.map_or(trunkline_store::Value::Null, Into::into))
    .bind(after.map_or("", Jid::domain))
    .bind(after.and_then(Jid::local).unwrap_or_default())
    .bind(i64::try_from(PAGE + 1).unwrap_or(i64::MAX))
    .bind(only_disabled);
    let rows = db.read(statement).await.map_err(store)?;
    let users = rows.iter().take(PAGE).map(|row| User {
        address: format!("{}@{}", row.text(1), row.text(0)),
        created_at: row.int(2),
        disabled: row.int(3) != 0,
        sessions: None,
    });
    Ok((users.collect(), rows.len() > PAGE))
}

/// What the store knows of an account.
pub async fn show(db: &Db, jid: &Jid) -> Result<AccountView, OpError> {
    let statement = sql("SELECT accounts.created_at, accounts.disabled, accounts.last_login, \
         (SELECT COUNT(*) FROM roster WHERE roster.account = accounts.id) FROM accounts \
         JOIN hosts ON hosts.id = accounts.host_id WHERE hosts.name = ?1 AND accounts.local = ?2");
    let rows = db.read(on_account(statement, jid)).await.map_err(store)?;
    let row = rows.first().ok_or_else(|| OpError::NoSuchUser(jid.to_string()))?;
    Ok(AccountView {
        address: jid.to_string(),
        created_at: row.int(0),
        disabled: row.int(1) != 0,
        last_login: row.opt_int(2),
        contacts: u64::try_from(row.int(3)).unwrap_or(0),
        resources: Vec::new(),
    })
}

/// How many accounts there are of a domain or of all, and how many of them are disabled.
pub async fn counts(db: &Db, domain: Option<&str>) -> Result<Counts, OpError> {
    let statement = sql("SELECT COUNT(*), COALESCE(SUM(accounts.disabled <> 0), 0) FROM accounts \
         JOIN hosts ON hosts.id = accounts.host_id WHERE ?1 IS NULL OR hosts.name = ?1")
    .bind(domain.map_or(trunkline_store::Value::Null, Into::into));
    let rows = db.read(statement).await.map_err(store)?;
    let count = |column| rows.first().and_then(|row| u64::try_from(row.int(column)).ok()).unwrap_or(0);
    Ok(Counts { registered: count(0), disabled: count(1), ..Counts::default() })
}

/// How many accounts there are.
pub async fn count(db: &Db) -> Result<u64, OpError> {
    let rows = db.read(sql("SELECT count(*) FROM accounts")).await.map_err(store)?;
    Ok(rows.first().and_then(|row| u64::try_from(row.int(0)).ok()).unwrap_or(0))
}

/// SCRAM keys of a password for every mechanism that clients may choose. Deriving takes a while, so not here but on
/// a thread that may be held up.
async fn keys(password: &Password, iterations: u32) -> Result<Vec<ScramKeys>, OpError> {
    let password = password.clone();
    let derive = move || {
        let keys = Hash::ALL.into_iter().map(|hash| ScramKeys::new(hash, password.expose(), iterations));
        keys.collect::<Result<Vec<_>, _>>().map_err(|error| OpError::BadPassword(error.to_string()))
    };
    tokio::task::spawn_blocking(derive).await.unwrap_or(Err(OpError::Closing))
}

fn push_credentials(batch: &mut Batch, jid: &Jid, keys: Vec<ScramKeys>) {
    for keys in keys {
        let statement =
            sql("INSERT INTO credentials (account_id, mechanism, salt, iterations, stored_key, server_key) \
             SELECT accounts.id, ?3, ?4, ?5, ?6, ?7 FROM accounts JOIN hosts ON hosts.id = accounts.host_id \
             WHERE hosts.name = ?1 AND accounts.local = ?2");
        batch.push(
            on_account(statement, jid)
                .bind(keys.hash.mechanism())
                .bind(keys.salt)
                .bind(i64::from(keys.iterations))
                .bind(keys.stored_key)
                .bind(keys.server_key)
                .must_change(),
        );
    }
}

fn exists(jid: &Jid) -> Statement {
    on_account(
        sql("SELECT accounts.id FROM accounts JOIN hosts ON hosts.id = accounts.host_id \
             WHERE hosts.name = ?1 AND accounts.local = ?2"),
        jid,
    )
}

/// Binds `?1` and `?2`.
fn on_account(statement: Statement, jid: &Jid) -> Statement {
    statement.bind(jid.domain()).bind(jid.local().unwrap_or_default())
}

fn missing(error: StoreError, jid: &Jid) -> OpError {
    match error {
        StoreError::Conflict => OpError::NoSuchUser(jid.to_string()),
        error => store(error),
    }
}

fn store(error: StoreError) -> OpError {
    OpError::Store(error.to_string())
}
