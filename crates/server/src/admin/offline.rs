//! Operations without a running server: on accounts, directly in the store.

use trunkline_store::{Db, OpenError, Options};
use trunkline_xmpp::jid::Jid;

use super::accounts::{self, NewAccount, State};
use super::actor::Actor;
use super::{Admin, Only, OpError, Operation, Outcome, totp};
use crate::config::Config;
use crate::control::audit::Audit;
use crate::schema::MIGRATIONS;

/// The store without the server. While it exists no server can start.
pub struct Offline {
    config: Config,
    db: Db,
    audit: Audit,
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
        Ok(Offline { config, db, audit: Audit::default() })
    }
}

impl Admin for Offline {
    async fn run(&self, actor: &Actor, operation: Operation) -> Result<Outcome, OpError> {
        let note = |what, before: Option<&Jid>, after: Option<&Jid>| {
            self.audit.entry(actor, what, "", (before.map(Jid::to_string), after.map(Jid::to_string)))
        };
        match operation {
            Operation::UserAdd { address, password } => {
                let jid = accounts::new_address(&address, &self.config)?;
                let iterations = self.config.accounts.password_iterations;
                let now = jiff::Timestamp::now().as_millisecond();
                let new = NewAccount { jid: &jid, password: &password, iterations, now };
                accounts::add(&self.db, new, Some(note("user add", None, Some(&jid)))).await?;
                Ok(Outcome::Done { text: format!("{jid} was added.") })
            }
            Operation::UserPasswd { address, password } => {
                let jid = accounts::address(&address, &self.config)?;
                let iterations = self.config.accounts.password_iterations;
                let new =
                    accounts::NewPassword { password: &password, iterations, keep: 0, keep_resource: "" };
                let audit = note("user passwd", None, Some(&jid));
                accounts::set_password(&self.db, &jid, new, Some(audit)).await?;
                Ok(Outcome::Done { text: format!("{jid} has a new password.") })
            }
            Operation::UserRemove { address } => {
                let jid = accounts::address(&address, &self.config)?;
                accounts::remove(&self.db, &jid, Some(note("user remove", Some(&jid), None))).await?;
                Ok(Outcome::Done { text: format!("{jid} was removed, with everything it owned.") })
            }
            Operation::UserDisable { address } => {
                let jid = accounts::address(&address, &self.config)?;
                let audit = note("user disable", None, Some(&jid));
                accounts::set_state(&self.db, &jid, State::Disabled, audit).await?;
                Ok(Outcome::Done { text: format!("{jid} is disabled.") })
            }
            Operation::UserEnable { address } => {
                let jid = accounts::address(&address, &self.config)?;
                let audit = note("user enable", Some(&jid), None);
                accounts::set_state(&self.db, &jid, State::Enabled, audit).await?;
                Ok(Outcome::Done { text: format!("{jid} can be used again.") })
            }
            Operation::UserList { only: Some(Only::Online | Only::Active | Only::Idle), .. } => {
                Err(OpError::NotRunning)
            }
            Operation::UserShow { address } => {
                let jid = accounts::address(&address, &self.config)?;
                accounts::show(&self.db, &jid).await.map(|view| Outcome::Account(Box::new(view)))
            }
            Operation::UserList { domain, after, only } => {
                let after = after.map(|after| accounts::address(&after, &self.config)).transpose()?;
                let (users, more) =
                    accounts::list(&self.db, (domain.as_deref(), only.is_some()), after.as_ref()).await?;
                Ok(Outcome::Users { users, more })
            }
            Operation::UserTotpReset { address } => {
                let jid = accounts::address(&address, &self.config)?;
                match totp::reset(&self.db, &jid, note("user totp reset", Some(&jid), None)).await {
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
            | Operation::UserCount { .. }
            | Operation::Announce { .. }
            | Operation::Motd(_)
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
            let operation = Operation::UserList {
                domain: domain.map(Into::into),
                after: after.map(Into::into),
                only: None,
            };
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

    /// What is done without a running server is in the audit log too; what is refused is not.
    #[tokio::test]
    async fn what_changes_accounts_leaves_one_entry() {
        let provider = Provider::new();
        let entries = async || {
            let rows = provider.offline.db.read(sql("SELECT what, who, face FROM audit ORDER BY id")).await;
            let rows = rows.unwrap();
            rows.iter().map(|row| [0, 1, 2].map(|n| row.text(n).to_owned()).join("/")).collect::<Vec<_>>()
        };
        let address = || "romeo@example.org".to_owned();
        let operations = || {
            [
                ("user add", Operation::UserAdd { address: address(), password: Password::new("x") }),
                ("user passwd", Operation::UserPasswd { address: address(), password: Password::new("y") }),
                ("user disable", Operation::UserDisable { address: address() }),
                ("user enable", Operation::UserEnable { address: address() }),
                ("user totp reset", Operation::UserTotpReset { address: address() }),
                ("user remove", Operation::UserRemove { address: address() }),
            ]
        };
        let run = async |operation| provider.offline.run(&Actor::command_line(), operation).await;
        for (_, operation) in operations().into_iter().skip(1) {
            assert!(run(operation).await.is_err());
        }
        assert_eq!(entries().await, [""; 0]);
        for (what, operation) in operations() {
            if what == "user totp reset" {
                let factor = "INSERT INTO totp (account, secret, enrolled_at, last_step) \
                     SELECT id, x'00', 0, 0 FROM accounts";
                let batch = trunkline_store::Batch::new(trunkline_store::Lane::Inside).with(sql(factor));
                provider.offline.db.run(batch).await.unwrap();
            }
            run(operation).await.unwrap();
            assert_eq!(entries().await.last().unwrap(), &format!("{what}/command line/command-line"));
        }
        assert_eq!(entries().await.len(), operations().len());
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
