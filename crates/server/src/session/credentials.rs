//! What logins are checked with: stored keys, stand-ins for users who don't exist, and threads for passwords.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use trunkline_store::{StoreError, sql};
use trunkline_xmpp::jid::Jid;
use trunkline_xmpp::sasl;

use super::login::Stage;
use crate::config::Config;
use crate::exchange::{Exchange, Host};

/// How long the iteration counts of a host's accounts are remembered, in milliseconds: reading them costs a look at
/// some two thousand accounts.
const REMEMBERED: i64 = 10 * 60 * 1000;

/// Which counts the accounts of a host have, and how many each: of the 64 accounts behind each of 37 places in the
/// order of names. So it costs the same with a million accounts as with two thousand. The places are always the same, so
/// that the answer is too; names say nothing about when a password was set. A count that fewer than one account in a
/// thousand has may be missed, as one beyond the most frequent 16 is.
const COUNTS: &str = "\
    WITH place (start) AS (VALUES (''), \
        ('0'), ('1'), ('2'), ('3'), ('4'), ('5'), ('6'), ('7'), ('8'), ('9'), ('a'), ('b'), ('c'), ('d'), ('e'), \
        ('f'), ('g'), ('h'), ('i'), ('j'), ('k'), ('l'), ('m'), ('n'), ('o'), ('p'), ('q'), ('r'), ('s'), ('t'), \
        ('u'), ('v'), ('w'), ('x'), ('y'), ('z')), \
    chosen (id) AS (SELECT DISTINCT a.id FROM place JOIN accounts a ON a.id IN ( \
        SELECT next.id FROM accounts next WHERE next.host_id = ?1 AND next.local >= place.start \
        ORDER BY next.local LIMIT 64)) \
    SELECT c.iterations, COUNT(*) FROM chosen JOIN accounts a ON a.id = chosen.id \
    JOIN credentials c ON c.account_id = chosen.id AND c.mechanism = ?2 \
    WHERE a.disabled = 0 GROUP BY c.iterations ORDER BY 2 DESC LIMIT 16";

/// What the logins of all connections share.
#[derive(Debug)]
pub struct Credentials {
    /// By host: when the iteration counts were read, and what they are with how many accounts have each.
    counts: Mutex<HashMap<i64, (i64, Counts)>>,
    /// The features after login, with the configuration that they are made of: what the server can do is hashed
    /// in them, at some cost.
    features: Mutex<Option<Features>>,
    /// Turns for deriving keys of passwords.
    turns: Arc<Semaphore>,
}

/// Leave to occupy a processor for one password.
pub(super) struct Turn {
    /// None only when the semaphore were closed, which nobody does.
    _permit: Option<OwnedSemaphorePermit>,
}

type Features = (Arc<Config>, [Arc<[u8]>; Stage::ALL.len()]);

type Counts = Arc<[(u32, u32)]>;

impl Default for Credentials {
    fn default() -> Credentials {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Credentials {
            counts: Mutex::default(),
            features: Mutex::default(),
            turns: Arc::new(Semaphore::new(processors)),
        }
    }
}

impl Credentials {
    /// What was written for this configuration, or what `write` writes, for each stage.
    pub(super) fn features(
        &self,
        config: &Arc<Config>,
        stage: Stage,
        write: impl FnOnce() -> [Vec<u8>; Stage::ALL.len()],
    ) -> Arc<[u8]> {
        let mut features = self.features.lock();
        if let Some((of, written)) = &*features
            && Arc::ptr_eq(of, config)
        {
            return Arc::clone(&written[stage as usize]);
        }
        let written = write().map(Arc::from);
        let wanted = Arc::clone(&written[stage as usize]);
        *features = Some((Arc::clone(config), written));
        wanted
    }
}

impl Exchange {
    /// The SCRAM keys of an account, for one hash; `None` for who does not exist.
    pub(crate) async fn credentials(
        &self,
        host: &Host,
        jid: Option<&Jid>,
        hash: sasl::Hash,
    ) -> Result<Option<sasl::ScramKeys>, StoreError> {
        let local = jid.and_then(Jid::local).unwrap_or_default();
        let rows = self
            .db
            .read(
                sql("SELECT c.salt, c.iterations, c.stored_key, c.server_key FROM credentials c \
                     JOIN accounts a ON a.id = c.account_id \
                     WHERE a.host_id = ?1 AND a.local = ?2 AND c.mechanism = ?3 AND a.disabled = 0")
                .bind(host.id)
                .bind(local)
                .bind(hash.mechanism()),
            )
            .await?;
        Ok(rows.iter().next().map(|row| sasl::ScramKeys {
            hash,
            salt: row.blob(0).to_vec(),
            iterations: u32::try_from(row.int(1)).unwrap_or(0),
            stored_key: row.blob(2).to_vec(),
            server_key: row.blob(3).to_vec(),
        }))
    }

    /// What the users of this host who don't exist are answered with.
    pub(crate) async fn decoys(&self, host: &Host) -> Result<sasl::Decoys, StoreError> {
        let counts = self.iteration_counts(host).await?;
        let configured = self.config.load().accounts.password_iterations;
        Ok(sasl::Decoys::new(&host.secret, configured).among(&counts))
    }

    async fn iteration_counts(&self, host: &Host) -> Result<Counts, StoreError> {
        let now = self.clock().now();
        let known = self.logging_in.counts.lock().get(&host.id).cloned();
        if let Some((read, counts)) = known
            && (read..read + REMEMBERED).contains(&now)
        {
            return Ok(counts);
        }
        // An account has the same count for each hash.
        let rows = self.db.read(sql(COUNTS).bind(host.id).bind(sasl::Hash::Sha256.mechanism())).await?;
        let number = |value: i64| u32::try_from(value).unwrap_or(u32::MAX);
        let counts: Counts = rows.iter().map(|row| (number(row.int(0)), number(row.int(1)))).collect();
        self.logging_in.counts.lock().insert(host.id, (now, Arc::clone(&counts)));
        Ok(counts)
    }

    /// Waits for a turn to check a password that a PLAIN login brought.
    pub(super) async fn password_turn(&self) -> Turn {
        Turn { _permit: Arc::clone(&self.logging_in.turns).acquire_owned().await.ok() }
    }

    /// Checks the password that a PLAIN login brought. Deriving its keys takes milliseconds: that is done on
    /// threads that serve nobody, for so many at once as there are processors.
    pub(super) async fn check_password(
        &self,
        turn: Turn,
        mut login: sasl::Server,
        keys: Option<sasl::ScramKeys>,
    ) -> Result<sasl::Server, sasl::Failure> {
        let check = move || {
            // Held here: the work goes on when its connection is gone.
            let _turn = turn;
            login.credentials(keys);
            login
        };
        tokio::task::spawn_blocking(check).await.map_err(|_| sasl::Failure::TemporaryAuthFailure)
    }
}
