//! Invitations as a service: the table of tokens, and what a token is good for.
//!
//! A token is 120 random bits (XEP-0379 s.6.1); the store has only its hash, so that who reads the database can't use
//! it. It works once, until it expires, on one domain. What it is good for is fixed when it is made: to register an
//! account ([`Invite::creates_account`]), to become the inviter's contact ([`Invite::inviter`]), or both.

use std::fmt::Write as _;

use aws_lc_rs::digest;
use thiserror::Error;
use trunkline_store::{Batch, Lane, Statement, StoreError, sql};
use trunkline_xmpp::jid::Jid;

use crate::exchange::{Exchange, Host};

/// Unused invitations that one account may have.
const MOST_OPEN: i64 = 50;
/// How long used and expired ones stay, to be counted and shown.
const KEEP: i64 = 30 * 24 * 3600 * 1000;

/// What an invitation is to be good for.
#[derive(Clone, Debug, Default)]
pub struct Wish {
    /// Whose contact the invited becomes: the account's id and address. `None`: nobody's.
    pub inviter: Option<(i64, Jid)>,
    /// An account can be registered with it.
    pub creates_account: bool,
    /// Only this name can be registered; it is reserved until then.
    pub local: Option<String>,
    /// The entry of the audit log, for one that an operator makes.
    pub audit: Option<Statement>,
}

/// A new invitation. The token is nowhere else.
#[derive(Clone, PartialEq, Eq)]
pub struct Made {
    /// `xmpp:...;preauth=...`, the whole link.
    pub uri: String,
    /// Milliseconds since 1970.
    pub expires_at: i64,
}

/// An invitation that may be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invite {
    hash: Vec<u8>,
    /// Whose contact its user becomes.
    pub inviter: Option<Jid>,
    /// An account can be registered with it.
    pub creates_account: bool,
    /// The only name that can be registered with it.
    pub local: Option<String>,
}

/// Why no invitation was made.
#[derive(Debug, Error)]
pub enum InviteError {
    /// The inviter's: too many are open.
    #[error("{MOST_OPEN} invitations are open already; wait until some are used or expire")]
    TooMany,
    /// The inviter's: somebody has that name, or it is promised to somebody.
    #[error("the name {0} is taken")]
    Taken(String),
    /// Ours.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Exchange {
    /// Makes an invitation on `host`.
    ///
    /// # Errors
    /// See [`InviteError`].
    pub async fn invite(&self, host: &Host, wish: Wish) -> Result<Made, InviteError> {
        let now = self.clock().now();
        let lifetime = self.config.load().accounts.invite_lifetime;
        let expires_at = now.saturating_add(i64::try_from(lifetime.as_millis()).unwrap_or(i64::MAX));
        let token = token();
        let inviter = wish.inviter.as_ref().map(|(id, _)| *id);
        let mut batch = Batch::new(Lane::Inside);
        batch.push(sql("DELETE FROM invites WHERE expires_at < ?1").bind(now - KEEP));
        batch.push(
            sql("INSERT INTO invites (token_hash, host_id, inviter, local, creates_account, created_at, expires_at) \
                 SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7 WHERE ?3 IS NULL OR (SELECT COUNT(*) FROM invites \
                 WHERE inviter = ?3 AND used_at IS NULL AND expires_at > ?6) < ?8")
            .bind(hash(&token))
            .bind(host.id)
            .bind(inviter)
            .bind(wish.local.as_deref())
            .bind(wish.creates_account)
            .bind(now)
            .bind(expires_at)
            .bind(MOST_OPEN)
            .must_change(),
        );
        wish.audit.iter().for_each(|audit| {
            batch.push(audit.clone());
        });
        if let Some(local) = &wish.local
            && self.is_name_taken(host, local, None).await?
        {
            return Err(InviteError::Taken(local.clone()));
        }
        match self.db.run(batch).await {
            Ok(_) => Ok(Made { uri: uri(host, &wish, &token), expires_at }),
            Err(StoreError::Conflict) => Err(InviteError::TooMany),
            Err(error) => Err(InviteError::Store(error)),
        }
    }

    /// The invitation behind `token`, if it can still be used on `host`.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn find_invite(&self, host: &Host, token: &str) -> Result<Option<Invite>, StoreError> {
        let rows = self
            .db
            .read(
                sql("SELECT i.token_hash, i.creates_account, i.local, a.local, h.name FROM invites i \
                     LEFT JOIN accounts a ON a.id = i.inviter LEFT JOIN hosts h ON h.id = a.host_id \
                     WHERE i.token_hash = ?1 AND i.host_id = ?2 AND i.used_at IS NULL AND i.expires_at > ?3")
                .bind(hash(token))
                .bind(host.id)
                .bind(self.clock().now()),
            )
            .await?;
        Ok(rows.first().map(|row| Invite {
            hash: row.blob(0).to_vec(),
            creates_account: row.bool(1),
            local: row.opt_text(2).map(str::to_owned),
            inviter: row
                .opt_text(3)
                .zip(row.opt_text(4))
                .and_then(|(local, domain)| Jid::parse(&format!("{local}@{domain}")).ok()),
        }))
    }

    /// Somebody has the name, or a reservation for it that is not `mine` (XEP-0401 s.6: it holds until the token
    /// expires).
    ///
    /// # Errors
    /// Those of the store.
    pub async fn is_name_taken(
        &self,
        host: &Host,
        local: &str,
        mine: Option<&Invite>,
    ) -> Result<bool, StoreError> {
        let rows = self
            .db
            .read(
                sql("SELECT 1 FROM accounts WHERE host_id = ?1 AND local = ?2 UNION ALL SELECT 1 FROM invites \
                     WHERE host_id = ?1 AND local = ?2 AND used_at IS NULL AND expires_at > ?3 AND token_hash <> ?4")
                .bind(host.id)
                .bind(local)
                .bind(self.clock().now())
                .bind(mine.map(|invite| invite.hash.clone()).unwrap_or_default()),
            )
            .await?;
        Ok(!rows.is_empty())
    }

    /// Uses up an invitation to become the contact of `inviter`. False when the token is not good for that.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn redeem_contact(&self, inviter: i64, token: &str) -> Result<bool, StoreError> {
        let now = self.clock().now();
        let batch = Batch::new(Lane::Inside).with(
            sql(
                "UPDATE invites SET used_at = ?3 WHERE token_hash = ?1 AND inviter = ?2 AND used_at IS NULL \
                 AND expires_at > ?3 AND local IS NULL",
            )
            .bind(hash(token))
            .bind(inviter)
            .bind(now)
            .must_change(),
        );
        match self.db.run(batch).await {
            Ok(_) => Ok(true),
            Err(StoreError::Conflict) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

impl Invite {
    /// The statement that uses the invitation up; its batch fails with [`StoreError::Conflict`] when somebody else was
    /// faster. XEP-0445 s.4: expiry was checked when the token was shown and is not checked again.
    pub fn redeem(&self, now: i64) -> Statement {
        sql("UPDATE invites SET used_at = ?2 WHERE token_hash = ?1 AND used_at IS NULL")
            .bind(self.hash.clone())
            .bind(now)
            .must_change()
    }
}

/// XEP-0445 s.2: the three forms of a link.
fn uri(host: &Host, wish: &Wish, token: &str) -> String {
    let domain = host.domain.as_str();
    match (&wish.inviter, &wish.local) {
        (_, Some(local)) => format!("xmpp:{}@{domain}?register;preauth={token}", escaped(local)),
        (Some((_, inviter)), None) => {
            let local = inviter.local().map(escaped).unwrap_or_default();
            let ibr = if wish.creates_account { ";ibr=y" } else { "" };
            format!("xmpp:{local}@{}?roster;preauth={token}{ibr}", inviter.domain())
        }
        (None, None) => format!("xmpp:{domain}?register;preauth={token}"),
    }
}

/// RFC 5122 s.2.2: what may stand in the node part of the URI as it is.
fn escaped(local: &str) -> String {
    let mut text = String::with_capacity(local.len());
    for byte in local.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~!$()*+,=".contains(&byte) {
            text.push(char::from(byte));
        } else {
            let _ = write!(text, "%{byte:02X}");
        }
    }
    text
}

/// Letters and digits that nobody confuses, 5 bits each.
fn token() -> String {
    const ALPHABET: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
    let mut random = [0u8; 24];
    getrandom::fill(&mut random).expect("invariant: the operating system gives randomness");
    random.iter().map(|byte| char::from(ALPHABET[usize::from(byte & 31)])).collect()
}

fn hash(token: &str) -> Vec<u8> {
    digest::digest(&digest::SHA256, token.as_bytes()).as_ref().to_vec()
}

/// Without the link: whoever has it has the invitation.
impl std::fmt::Debug for Made {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Made").field("expires_at", &self.expires_at).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> Host {
        Host { id: 1, domain: Jid::parse("north.example").unwrap(), secret: [0; 32] }
    }

    #[test]
    fn links_have_the_three_forms_of_xep_0445() {
        let inviter = Some((1, Jid::parse("fleur#lis@north.example").unwrap()));
        let wish = |inviter, creates_account, local: Option<&str>| Wish {
            audit: None,
            inviter,
            creates_account,
            local: local.map(str::to_owned),
        };
        let uri = |wish| super::uri(&host(), &wish, "T");
        assert_eq!(uri(wish(None, true, None)), "xmpp:north.example?register;preauth=T");
        assert_eq!(uri(wish(None, true, Some("juliet"))), "xmpp:juliet@north.example?register;preauth=T");
        assert_eq!(
            uri(wish(inviter.clone(), true, None)),
            "xmpp:fleur%23lis@north.example?roster;preauth=T;ibr=y"
        );
        assert_eq!(uri(wish(inviter, false, None)), "xmpp:fleur%23lis@north.example?roster;preauth=T");
    }

    #[test]
    fn tokens_are_long_and_differ() {
        let (one, two) = (token(), token());
        assert_eq!(one.len(), 24);
        assert!(one.bytes().all(|byte| byte.is_ascii_alphanumeric()));
        assert_ne!(one, two);
        assert_ne!(hash(&one), hash(&two));
    }
}
