//! Operations without a running server: on accounts, directly in the store.

use trunkline_store::{Db, OpenError, Options};

use super::accounts::{self, NewAccount};
use super::actor::Actor;
use super::{Admin, OpError, Operation, Outcome, totp};
use crate::config::Config;
use crate::schema::MIGRATIONS;

/// The store without the server. While it exists no server can start.
pub struct Offline {
    config: Config,
    db: Db,
}

impl std::fmt::Debug for Offline {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Offline").field("config", &self.config.file()).finish_non_exhaustive()
    }
}

impl Offline {
    /// Opens the database that `config` names.
    pub fn open(config: Config) -> Result<Offline, OpenError> {
        let db = Db::open(Options::file(config.database(), MIGRATIONS))?;
        Ok(Offline { config, db })
    }
}

impl Admin for Offline {
    async fn run(&self, _actor: &Actor, operation: Operation) -> Result<Outcome, OpError> {
        match operation {
            Operation::UserAdd { address, password } => {
                let jid = accounts::new_address(&address, &self.config)?;
                let iterations = self.config.accounts.password_iterations;
                let now = jiff::Timestamp::now().as_millisecond();
                accounts::add(&self.db, NewAccount { jid: &jid, password: &password, iterations, now })
                    .await?;
                Ok(Outcome::Done { text: format!("{jid} was added.") })
            }
            Operation::UserPasswd { address, password } => {
                let jid = accounts::address(&address, &self.config)?;
                let iterations = self.config.accounts.password_iterations;
                let new = accounts::NewPassword { password: &password, iterations, keep: 0 };
                accounts::set_password(&self.db, &jid, new).await?;
                Ok(Outcome::Done { text: format!("{jid} has a new password.") })
            }
            Operation::UserRemove { address } => {
                let jid = accounts::address(&address, &self.config)?;
                accounts::remove(&self.db, &jid).await?;
                Ok(Outcome::Done { text: format!("{jid} was removed, with everything it owned.") })
            }
            Operation::UserList { domain, after } => {
                let after = after.map(|after| accounts::address(&after, &self.config)).transpose()?;
                let (users, more) = accounts::list(&self.db, domain.as_deref(), after.as_ref()).await?;
                Ok(Outcome::Users { users, more })
            }
            Operation::UserTotpReset { address } => {
                let jid = accounts::address(&address, &self.config)?;
                match totp::reset(&self.db, &jid, None).await {
                    Ok(true) => Ok(Outcome::Done { text: format!("{jid} has no second factor any more.") }),
                    Ok(false) => Err(OpError::NotFound(format!("second factor of {jid}"))),
                    Err(error) => Err(OpError::Store(error.to_string())),
                }
            }
            Operation::Reload
            | Operation::Status
            | Operation::FederationStatus
            | Operation::FederationClose { .. }
            | Operation::FederationOpen { .. }
            | Operation::Kick { .. }
            | Operation::UserClients { .. }
            | Operation::UserClientEnd { .. }
            | Operation::InviteCreate { .. }
            | Operation::Policy(_)
            | Operation::Breaker(_)
            | Operation::Audit(_)
            | Operation::Requests(_)
            | Operation::Reports(_)
            | Operation::Lists(_)
            | Operation::Domains(_)
            | Operation::Tokens(_) => Err(OpError::NotRunning),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use trunkline_store::sql;
    use trunkline_xmpp::sasl::{Hash, ScramKeys};

    use super::super::Password;
    use super::*;

    struct Provider {
        offline: Offline,
        _directory: tempfile::TempDir,
    }

    impl Provider {
        fn new() -> Provider {
            let directory = tempfile::tempdir().unwrap();
            let text = "domain = \"example.org\"\nhosts.\"b.example\" = {}\n[accounts]\npassword_iterations = 4096\n";
            let config = Config::parse(text, &directory.path().join("trunkline.toml")).unwrap();
            std::fs::create_dir(&config.data_dir).unwrap();
            Provider { offline: Offline::open(config).unwrap(), _directory: directory }
        }

        async fn add(&self, address: &str, password: &str) -> Result<Outcome, OpError> {
            let password = Password::new(password);
            self.offline
                .run(&Actor::command_line(), Operation::UserAdd { address: address.into(), password })
                .await
        }

        async fn list(&self, domain: Option<&str>, after: Option<&str>) -> (Vec<String>, bool) {
            let operation =
                Operation::UserList { domain: domain.map(Into::into), after: after.map(Into::into) };
            match self.offline.run(&Actor::command_line(), operation).await.unwrap() {
                Outcome::Users { users, more } => {
                    (users.into_iter().map(|user| user.address).collect(), more)
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[tokio::test]
    async fn accounts_come_change_and_go() {
        let provider = Provider::new();
        assert_eq!(
            provider.add("Romeo@Example.org", "wherefore").await,
            Ok(Outcome::Done { text: "romeo@example.org was added.".into() })
        );
        assert_eq!(
            provider.add("romeo@example.org", "x").await,
            Err(OpError::Exists("romeo@example.org".into()))
        );
        provider.add("juliet@b.example", "x").await.unwrap();
        provider.add("benvolio@example.org", "x").await.unwrap();

        let all = ["juliet@b.example", "benvolio@example.org", "romeo@example.org"];
        assert_eq!(provider.list(None, None).await, (all.map(String::from).to_vec(), false));
        assert_eq!(provider.list(None, Some("benvolio@example.org")).await.0, ["romeo@example.org"]);
        assert_eq!(provider.list(Some("b.example"), None).await.0, ["juliet@b.example"]);

        let passwd =
            |address: &str| Operation::UserPasswd { address: address.into(), password: Password::new("new") };
        assert!(provider.offline.run(&Actor::command_line(), passwd("romeo@example.org")).await.is_ok());
        assert_eq!(
            provider.offline.run(&Actor::command_line(), passwd("nobody@example.org")).await,
            Err(OpError::NoSuchUser("nobody@example.org".into()))
        );
        let remove = || Operation::UserRemove { address: "romeo@example.org".into() };
        assert!(provider.offline.run(&Actor::command_line(), remove()).await.is_ok());
        assert_eq!(
            provider.offline.run(&Actor::command_line(), remove()).await,
            Err(OpError::NoSuchUser("romeo@example.org".into()))
        );
        assert_eq!(provider.list(Some("example.org"), None).await.0, ["benvolio@example.org"]);
        let rows = provider.offline.db.read(sql("SELECT count(*) FROM credentials")).await.unwrap();
        assert_eq!(rows.first().unwrap().int(0), 6, "credentials go with their account");
    }

    #[tokio::test]
    async fn the_password_is_not_in_the_database() {
        let provider = Provider::new();
        provider.add("romeo@example.org", "wherefore-art-thou").await.unwrap();
        let data = provider.offline.config.data_dir.clone();
        drop(provider.offline);
        let files = std::fs::read_dir(data).unwrap();
        let bytes: Vec<u8> = files.flat_map(|file| std::fs::read(file.unwrap().path()).unwrap()).collect();
        assert!(!bytes.windows(9).any(|window| window == b"wherefore"));
        assert!(bytes.windows(13).any(|window| window == b"SCRAM-SHA-256"));
    }

    #[tokio::test]
    async fn what_is_stored_verifies_the_password() {
        let provider = Provider::new();
        provider.add("romeo@example.org", "wherefore").await.unwrap();
        let all =
            sql("SELECT salt, iterations, stored_key, server_key FROM credentials WHERE mechanism = ?1");
        for hash in Hash::ALL {
            let rows = provider.offline.db.read(all.clone().bind(hash.mechanism())).await.unwrap();
            let row = rows.first().unwrap();
            let keys = ScramKeys {
                hash,
                salt: row.blob(0).to_vec(),
                iterations: u32::try_from(row.int(1)).unwrap(),
                stored_key: row.blob(2).to_vec(),
                server_key: row.blob(3).to_vec(),
            };
            assert!(keys.verify_password("wherefore") && !keys.verify_password("therefore"));
        }
    }

    #[tokio::test]
    async fn bad_requests_are_named() {
        let provider = Provider::new();
        assert!(matches!(provider.add("romeo", "x").await, Err(OpError::BadAddress(_))));
        assert!(matches!(provider.add("romeo@example.org/orchard", "x").await, Err(OpError::BadAddress(_))));
        assert!(matches!(provider.add("ro meo@example.org", "x").await, Err(OpError::BadAddress(_))));
        assert!(matches!(provider.add("romeo@other.example", "x").await, Err(OpError::UnknownDomain(_))));
        assert!(matches!(provider.add("romeo@example.org", "").await, Err(OpError::BadPassword(_))));
        assert!(matches!(provider.add("stra\u{df}e@example.org", "x").await, Err(OpError::BadAddress(_))));
        assert_eq!(
            provider.offline.run(&Actor::command_line(), Operation::Status).await,
            Err(OpError::NotRunning)
        );
    }

    #[tokio::test]
    async fn lists_have_pages() {
        let provider = Provider::new();
        let mut batch = trunkline_store::Batch::new(trunkline_store::Lane::Inside);
        batch.push(sql("INSERT INTO hosts (id, name) VALUES (1, 'example.org')"));
        for number in 0..super::super::PAGE + 3 {
            let statement = sql("INSERT INTO accounts (host_id, local, created_at) VALUES (1, ?1, 0)");
            batch.push(statement.bind(format!("user{number:05}")));
        }
        provider.offline.db.run(batch).await.unwrap();
        let (first, more) = provider.list(None, None).await;
        assert!(more && first.len() == super::super::PAGE);
        let (rest, more) = provider.list(None, first.last().map(String::as_str)).await;
        assert!(!more && rest.len() == 3);
    }

    #[test]
    fn a_database_in_use_is_refused() {
        let provider = Provider::new();
        let again = Offline::open(provider.offline.config.clone());
        assert!(matches!(again, Err(OpenError::InUse { .. })), "{again:?}");
        assert!(Path::new(&provider.offline.config.database()).exists());
    }
}
