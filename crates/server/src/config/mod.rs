//! The configuration: one TOML file that an operator can read.
//!
//! [`keys::KEYS`] is the one table of keys; the structs here are its typed form. Loading goes
//! text -> [`value::Kind`] checks with line numbers -> defaults filled in -> structs -> checks across keys.
//! A [`Config`] that exists is valid.

mod check;
pub mod keys;
pub mod overrides;
mod sections;
pub mod value;
mod write;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use toml::Value;

pub use keys::{Apply, KEYS};
pub use sections::{
    Accounts, Clients, Component, Components, Consent, Console, DataPolicy, Federation, FollowedList, Host,
    Http, Limits, Log, LogFormat, NodeMakers, PeerPolicy, Pubsub, Push, PushSummary, Registration, Route,
    Side, Store, Tls, TlsPolicy, Traces, Web, WhenClosed,
};
pub use write::{reference, template};

/// The whole configuration, complete and checked. Paths are absolute or relative to the working directory.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The first domain.
    pub domain: String,
    /// Where the database and the control socket live.
    pub data_dir: PathBuf,
    /// Further domains. See [`Config::domains`] for all of them.
    #[serde(default)]
    pub hosts: BTreeMap<String, Host>,
    /// The certificate for all hosts that have none of their own.
    pub tls: Tls,
    /// Listeners and limits for our users.
    pub clients: Clients,
    /// Who may have an account.
    pub accounts: Accounts,
    /// Other providers' servers.
    pub federation: Federation,
    /// First contacts.
    pub consent: Consent,
    /// Waking devices that sleep.
    pub push: Push,
    /// External components.
    pub components: Components,
    /// Publish-subscribe.
    pub pubsub: Pubsub,
    /// Metrics and health.
    pub web: Web,
    /// XMPP for browsers, and the web chat.
    pub http: Http,
    /// The console and the HTTP API.
    pub console: Console,
    /// The database.
    pub store: Store,
    /// Bounds.
    pub limits: Limits,
    /// Logging.
    pub log: Log,
    /// Traces.
    pub traces: Traces,
    /// How data is handled (XEP-0504).
    pub data_policy: DataPolicy,
    /// XEP-0157 contact addresses: kind (`abuse`, `admin` ...) to URIs.
    pub contact: BTreeMap<String, Vec<String>>,
    #[serde(skip)]
    source: Source,
}

/// Where a configuration came from.
#[derive(Clone, Default)]
struct Source {
    file: PathBuf,
    /// Every value, canonical, by its dotted key: what [`Config::diff`] compares.
    values: BTreeMap<String, (Vec<String>, Value)>,
    /// Lines of the keys that the file sets.
    lines: BTreeMap<String, usize>,
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the values: there are secrets among them.
        f.debug_struct("Source").field("file", &self.file).finish_non_exhaustive()
    }
}

/// Why a configuration can't be used: every problem found, not only the first.
#[derive(Debug)]
pub struct ConfigError {
    /// The file.
    pub file: PathBuf,
    /// In the order of the file.
    pub problems: Vec<Problem>,
}

/// One thing wrong with a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// From 1; `None` for what is missing.
    pub line: Option<usize>,
    /// The dotted key; empty for the file as a whole.
    pub key: String,
    /// What is wrong and what to do.
    pub text: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "{}", self.file.display())?;
            if let Some(line) = problem.line {
                write!(f, ":{line}")?;
            }
            if !problem.key.is_empty() {
                write!(f, ": {}", problem.key)?;
            }
            write!(f, ": {}", problem.text)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

impl Config {
    /// Reads and checks a file.
    pub fn load(file: &Path) -> Result<Config, ConfigError> {
        match std::fs::read_to_string(file) {
            Ok(text) => Config::parse(&text, file),
            Err(error) => Err(ConfigError {
                file: file.to_owned(),
                problems: vec![Problem {
                    line: None,
                    key: String::new(),
                    text: match error.kind() {
                        std::io::ErrorKind::NotFound => {
                            "no such file; `trunkline init --domain example.org` writes one".into()
                        }
                        _ => format!("can't be read: {error}"),
                    },
                }],
            }),
        }
    }

    /// Checks `text`, which stands in `file`; relative paths are relative to the directory of `file`.
    pub fn parse(text: &str, file: &Path) -> Result<Config, ConfigError> {
        let mut problems = Vec::new();
        let config = check::read(text, file, &mut problems);
        match config {
            Some(config) if problems.is_empty() => Ok(config),
            _ => {
                problems.sort_by_key(|problem| problem.line.unwrap_or(usize::MAX));
                Err(ConfigError { file: file.to_owned(), problems })
            }
        }
    }

    /// The file it was read from.
    pub fn file(&self) -> &Path {
        &self.source.file
    }

    /// All our domains, the first one first.
    pub fn domains(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.domain.as_str()).chain(self.hosts.keys().map(String::as_str))
    }

    /// Whether `domain` (canonical) is ours.
    pub fn is_our_domain(&self, domain: &str) -> bool {
        self.domains().any(|ours| ours == domain)
    }

    /// The addresses to listen on, by key.
    pub(crate) fn listeners(&self) -> [(&'static str, &[SocketAddr]); 9] {
        [
            ("clients.listen", &self.clients.listen),
            ("clients.listen_tls", &self.clients.listen_tls),
            ("federation.listen", &self.federation.listen),
            ("federation.listen_tls", &self.federation.listen_tls),
            ("components.listen", &self.components.listen),
            ("web.listen", &self.web.listen),
            ("http.listen", &self.http.listen),
            ("http.listen_tls", &self.http.listen_tls),
            ("console.listen", &self.console.listen),
        ]
    }

    /// Certificate and key of one of our domains: its own, or the common one.
    pub fn certificate(&self, domain: &str) -> Option<(&Path, &Path)> {
        match self.hosts.get(domain).filter(|host| host.certificate.is_some()) {
            Some(own) => Some((own.certificate.as_deref()?, own.key.as_deref()?)),
            None => Some((self.tls.certificate.as_deref()?, self.tls.key.as_deref()?)),
        }
    }

    /// How long and how much an archive of that domain keeps: the age, zero for ever, and the bytes.
    pub fn retention(&self, domain: &str) -> (Duration, usize) {
        let host = self.hosts.get(domain);
        let age = host.and_then(|host| host.history_age).unwrap_or(self.accounts.history_age);
        let bytes = host.and_then(|host| host.archive_bytes).unwrap_or(self.limits.archive_bytes);
        (age, bytes)
    }

    /// The certificates and keys that the file names, with the section they stand in.
    pub(crate) fn certificates(&self) -> Vec<(String, Option<&Path>, Option<&Path>)> {
        let common = ("tls".to_owned(), self.tls.certificate.as_deref(), self.tls.key.as_deref());
        let own = self.hosts.iter().map(|(name, host)| {
            (format!("hosts.{}", check::quoted(name)), host.certificate.as_deref(), host.key.as_deref())
        });
        std::iter::once(common).chain(own).collect()
    }

    /// The SQLite file.
    pub fn database(&self) -> PathBuf {
        self.data_dir.join(self.store.url.strip_prefix("sqlite:").unwrap_or(&self.store.url))
    }

    /// The control socket.
    pub fn control_socket(&self) -> PathBuf {
        self.data_dir.join("control.sock")
    }

    /// What can't be seen in the file itself: certificates and other files that are missing. `serve` and `reload`
    /// refuse to go on with any of these; commands that don't need them do.
    pub fn missing_files(&self) -> Result<(), ConfigError> {
        let problems = check::missing_files(self);
        if problems.is_empty() {
            Ok(())
        } else {
            Err(ConfigError { file: self.source.file.clone(), problems })
        }
    }

    /// What changed from `old` to `new`, and what of it a reload can apply.
    pub fn diff(old: &Config, new: &Config) -> Reload {
        let mut reload = Reload::default();
        let names: BTreeSet<&String> = old.source.values.keys().chain(new.source.values.keys()).collect();
        for name in names {
            let (before, after) = (old.source.values.get(name), new.source.values.get(name));
            if before == after {
                continue;
            }
            let path = after.or(before).map(|(path, _)| path.as_slice()).unwrap_or_default();
            // A key of a table that comes or goes shares the table's fate.
            let added = |end: usize| {
                let table = check::dotted(&path[..end]);
                old.source.values.contains_key(&table) != new.source.values.contains_key(&table)
            };
            let rows = (1..path.len()).filter(|end| added(*end)).chain([path.len()]);
            let restart =
                rows.filter_map(|end| keys::find(&path[..end])).any(|key| key.apply == Apply::Restart);
            if restart {
                reload.needs_restart.push(name.clone());
            } else {
                reload.applied.push(name.clone());
            }
        }
        reload
    }

    /// Reads the file again. Returns what is in effect from now on, and what changed; on an error nothing changes.
    pub fn reread(&self) -> Result<(Config, Reload), ConfigError> {
        let new = Config::load(&self.source.file)?;
        new.missing_files()?;
        Ok((new.with_restart_keys_of(self), Config::diff(self, &new)))
    }

    /// What is in effect after a reload from `old` to this: keys that need a restart keep their old value.
    pub fn with_restart_keys_of(&self, old: &Config) -> Config {
        let needs_restart = Config::diff(old, self).needs_restart;
        let mut values = self.source.values.clone();
        for name in needs_restart {
            match old.source.values.get(&name) {
                Some(value) => values.insert(name, value.clone()),
                None => values.remove(&name),
            };
        }
        let mut config =
            check::build(&values).expect("invariant: each value is canonical, from a valid configuration");
        config.source = Source { values, ..self.source.clone() };
        check::resolve_paths(&mut config, self.source.file.parent().unwrap_or(Path::new("")));
        config
    }
}

/// What a reload does with each changed key. Certificates are read again in any case.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, Deserialize, schemars::JsonSchema)]
pub struct Reload {
    /// Keys with a new value that is in effect.
    pub applied: Vec<String>,
    /// Keys with a new value that waits for a restart.
    pub needs_restart: Vec<String>,
}

#[cfg(test)]
mod tests;
