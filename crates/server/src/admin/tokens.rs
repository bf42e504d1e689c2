//! Tokens for programs that use the HTTP API: a name, scopes, an end. The secret is shown once; the store has its hash.

use std::sync::Arc;

use aws_lc_rs::digest;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use trunkline_store::{Batch, Lane, StoreError, Violation, sql};
use trunkline_xmpp::jid::Jid;

use super::actor::{Actor, Face, Scope};
use super::{OpError, Outcome, accounts};
use crate::exchange::Exchange;

/// Tokens at once.
pub const MOST: i64 = 100;
/// What a token begins with, so that it is recognised where it does not belong.
const PREFIX: &str = "trunkline_";
/// Milliseconds between two notes of a token's use.
const NOTE_EVERY: i64 = 60_000;
/// Letters of a name.
const LONGEST_NAME: usize = 64;

/// What can be asked about tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "do", rename_all = "kebab-case", deny_unknown_fields)]
pub enum TokensOp {
    /// Makes a token; its secret is in the answer and nowhere else.
    Create {
        /// For the audit log: what it is for.
        name: String,
        /// What it permits.
        scopes: Vec<Scope>,
        /// When it ends: milliseconds since 1970. `None`: never.
        #[serde(default)]
        until: Option<i64>,
    },
    /// All tokens, without their secrets.
    List,
    /// Ends a token at once.
    Revoke {
        /// Which.
        name: String,
    },
}

/// A token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TokenView {
    /// What it is for.
    pub name: String,
    /// What it permits.
    pub scopes: Vec<Scope>,
    /// Who made it.
    pub created_by: String,
    /// Milliseconds since 1970.
    pub created_at: i64,
    /// When it ends; `None`: never.
    pub until: Option<i64>,
    /// When it was used last, to the minute.
    pub last_used_at: Option<i64>,
}

/// Runs an operation.
///
/// # Errors
/// What the caller did wrong, or the store's.
pub async fn run(exchange: &Arc<Exchange>, actor: &Actor, op: TokensOp) -> Result<Outcome, OpError> {
    match op {
        TokensOp::Create { name, scopes, until } => create(exchange, actor, (name, scopes, until)).await,
        TokensOp::List => {
            let all = "SELECT name, scopes, created_by, created_at, until, last_used_at FROM api_tokens ORDER BY name";
            let rows = exchange.db.read(sql(all)).await.map_err(store)?;
            let tokens = rows.iter().map(|row| TokenView {
                name: row.text(0).to_owned(),
                scopes: scopes(row.text(1)),
                created_by: row.text(2).to_owned(),
                created_at: row.int(3),
                until: row.opt_int(4),
                last_used_at: row.opt_int(5),
            });
            Ok(Outcome::Tokens { tokens: tokens.collect() })
        }
        TokensOp::Revoke { name } => {
            let mut batch = Batch::new(Lane::Inside)
                .with(sql("DELETE FROM api_tokens WHERE name = ?1").bind(name.as_str()).must_change());
            batch.push(exchange.control.audit.entry(actor, "tokens revoke", "", (Some(name.clone()), None)));
            match exchange.db.run(batch).await {
                Ok(_) => Ok(Outcome::Done { text: format!("The token {name} is revoked.") }),
                Err(StoreError::Conflict) => Err(OpError::NotFound(format!("token {name}"))),
                Err(error) => Err(store(error)),
            }
        }
    }
}

async fn create(
    exchange: &Arc<Exchange>,
    actor: &Actor,
    (name, scopes, until): (String, Vec<Scope>, Option<i64>),
) -> Result<Outcome, OpError> {
    let name = name.trim().to_owned();
    if name.is_empty() || name.chars().count() > LONGEST_NAME || name.chars().any(char::is_control) {
        return Err(OpError::BadRequest(format!("name: 1 to {LONGEST_NAME} letters")));
    }
    if scopes.is_empty() {
        return Err(OpError::BadRequest("scopes: at least one".into()));
    }
    // A token that leaked must not outlive its end by making others, and nobody gives what they don't have.
    if actor.face == Face::Api {
        return Err(OpError::NotPossible("a token can't make tokens: sign in".into()));
    }
    if let Some(scope) = scopes.iter().find(|scope| !actor.may(**scope)) {
        return Err(OpError::Forbidden(scope.name().into()));
    }
    let now = exchange.clock().now();
    if until.is_some_and(|until| until <= now) {
        return Err(OpError::BadRequest("until: this has passed".into()));
    }
    let token = format!("{PREFIX}{}", crate::ids::token(24));
    let names: Vec<&str> =
        Scope::ALL.iter().filter(|scope| scopes.contains(scope)).map(|scope| scope.name()).collect();
    let insert = sql("INSERT INTO api_tokens (name, hash, scopes, created_by, created_at, until) \
         SELECT ?1, ?2, ?3, ?4, ?5, ?6 WHERE (SELECT COUNT(*) FROM api_tokens) < ?7")
    .bind(name.as_str())
    .bind(hash(&token))
    .bind(names.join(" "))
    .bind(actor.name.as_str())
    .bind(now)
    .bind(until.map_or(trunkline_store::Value::Null, Into::into))
    .bind(MOST)
    .must_change();
    let after = serde_json::json!({ "name": name, "scopes": names, "until": until }).to_string();
    let audit = exchange.control.audit.entry(actor, "tokens create", "", (None, Some(after)));
    match exchange.db.run(Batch::new(Lane::Inside).with(insert).with(audit)).await {
        Ok(_) => Ok(Outcome::Token { name, token }),
        Err(StoreError::Conflict) => Err(OpError::NotPossible(format!("there are {MOST} tokens already"))),
        Err(StoreError::Constraint(Violation::Unique, _)) => {
            Err(OpError::Exists(format!("the token {name}")))
        }
        Err(error) => Err(store(error)),
    }
}

/// Who shows this token, if it is good. A token permits no more than whoever made it may do now: with their role it
/// loses its scopes, and while their account is disabled it is no good at all.
pub(super) async fn actor(exchange: &Arc<Exchange>, token: &str) -> Result<Option<Actor>, OpError> {
    if !token.starts_with(PREFIX) {
        return Ok(None);
    }
    let now = exchange.clock().now();
    let hash = hash(token);
    let good = sql(
        "SELECT name, scopes, last_used_at, created_by FROM api_tokens WHERE hash = ?1 AND (until IS NULL OR until > ?2)",
    );
    let rows = exchange.db.read(good.bind(hash.clone()).bind(now)).await.map_err(store)?;
    let Some(row) = rows.first() else { return Ok(None) };
    let mut scopes = scopes(row.text(1));
    // Otherwise it was made on the command line: whoever could do that could do everything.
    if let Some(maker) = Jid::parse(row.text(3)).ok().filter(|maker| maker.local().is_some()) {
        if !accounts::is_usable(&exchange.db, &maker).await.map_err(store)? {
            return Ok(None);
        }
        let may = exchange.scopes_of(&maker);
        scopes.retain(|scope| may.contains(scope));
    }
    if scopes.is_empty() {
        return Ok(None);
    }
    if row.opt_int(2).is_none_or(|used| now - used >= NOTE_EVERY) {
        let note = sql("UPDATE api_tokens SET last_used_at = ?2 WHERE hash = ?1").bind(hash).bind(now);
        // For people only: nobody waits for it.
        exchange.db.submit(Batch::new(Lane::Inside).with(note), |_| {});
    }
    Ok(Some(Actor { name: row.text(0).to_owned(), face: Face::Api, scopes }))
}

/// A token has 192 random bits: no salt, no stretching.
pub(super) fn hash(token: &str) -> Vec<u8> {
    digest::digest(&digest::SHA256, token.as_bytes()).as_ref().to_vec()
}

fn scopes(text: &str) -> Vec<Scope> {
    Scope::ALL.into_iter().filter(|scope| text.split(' ').any(|name| name == scope.name())).collect()
}

fn store(error: StoreError) -> OpError {
    OpError::Store(error.to_string())
}
