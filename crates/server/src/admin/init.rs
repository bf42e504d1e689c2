//! `trunkline init`: a directory with everything a provider needs, and the next steps in words.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use thiserror::Error;
use trunkline_store::{Db, OpenError, Options};

use crate::config::overrides::Overrides;
use crate::config::{Config, ConfigError, template};
use crate::net::pki::{self, Leaf, Pem, PkiError};
use crate::schema::MIGRATIONS;

/// What to set up.
#[derive(Clone, Debug)]
pub struct Init {
    /// The first domain.
    pub domain: String,
    /// Where `trunkline.toml` goes.
    pub directory: PathBuf,
    /// Whether to make a self-signed certificate.
    pub certificate: Certificate,
    /// Values for the configuration.
    pub presets: Overrides,
}

/// Where the certificate comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Certificate {
    /// A self-signed one is made, for tests.
    SelfSigned,
    /// The operator puts one there.
    Provided,
}

/// Why nothing was set up.
#[derive(Debug, Error)]
pub enum InitError {
    /// The operator's: a second init.
    #[error("{0} exists already: nothing was changed")]
    Exists(PathBuf),
    /// The operator's: presets that don't fit together.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The system's.
    #[error("{path}: {error}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The store's.
    #[error(transparent)]
    Store(#[from] OpenError),
    /// The operator's, as a rule: domains that no certificate can name.
    #[error(transparent)]
    Certificate(#[from] PkiError),
}

/// Sets everything up and returns the next steps. Refuses to overwrite anything.
pub fn run(init: Init) -> Result<String, InitError> {
    let file = init.directory.join("trunkline.toml");
    let own_certificate = init.presets.contains(&["tls", "certificate"]);
    let mut presets = init.presets.with(&["domain"], init.domain.as_str());
    if !own_certificate {
        presets = presets
            .with(&["tls", "certificate"], "tls/fullchain.pem")
            .with(&["tls", "key"], "tls/privkey.pem");
    }
    let text = template(&presets);
    let config = Config::parse(&text, &file)?;
    let self_signed =
        (init.certificate == Certificate::SelfSigned).then(|| self_signed(&config)).transpose()?;

    // Everything that must not be there yet, before the first byte is written.
    let database = config.database();
    let (certificate, key) = config
        .certificate(&config.domain)
        .expect("invariant: a certificate and its key are among the presets");
    let mut new = vec![file.as_path(), database.as_path()];
    if self_signed.is_some() {
        new.extend([certificate, key]);
    }
    if let Some(there) = new.iter().find(|path| path.symlink_metadata().is_ok()) {
        return Err(InitError::Exists((*there).to_owned()));
    }

    private_directory(&init.directory)?;
    private_directory(&config.data_dir)?;
    if !own_certificate || self_signed.is_some() {
        for path in [certificate, key] {
            private_directory(path.parent().unwrap_or(Path::new("")))?;
        }
    }
    if let Some(pem) = &self_signed {
        private_file(key, pem.key.as_bytes())?;
        private_file(certificate, pem.chain.as_bytes())?;
    }
    server_secret(&config)?;
    Db::open(Options::file(&database, MIGRATIONS))?.shutdown();
    // Last: who finds it finds everything.
    private_file(&file, text.as_bytes())?;
    Ok(next_steps(&config, init.certificate))
}

/// The secret that dialback keys and the salts of unknown users are derived from: 32 bytes in
/// `data_dir/server.secret`, made when it is not there.
pub fn server_secret(config: &Config) -> Result<[u8; 32], InitError> {
    let path = config.data_dir.join("server.secret");
    let failed = |error| InitError::Io { path: path.clone(), error };
    let mut secret = [0; 32];
    match fs::File::open(&path) {
        Ok(mut found) => found.read_exact(&mut secret).map_err(failed)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            getrandom::fill(&mut secret).map_err(|error| failed(io::Error::other(error)))?;
            private_file(&path, &secret)?;
        }
        Err(error) => return Err(failed(error)),
    }
    Ok(secret)
}

/// A certificate for all our domains, signed by itself.
fn self_signed(config: &Config) -> Result<Pem, PkiError> {
    let domains = config.domains().map(str::to_owned).collect();
    pki::self_signed(&Leaf { domains, ..Leaf::new(&config.domain, 365) })
}

fn private_directory(path: &Path) -> Result<(), InitError> {
    if path.as_os_str().is_empty() || path.is_dir() {
        return Ok(());
    }
    let failed = |error| InitError::Io { path: path.to_owned(), error };
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)
}

fn private_file(path: &Path, bytes: &[u8]) -> Result<(), InitError> {
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::AlreadyExists => InitError::Exists(path.to_owned()),
        _ => InitError::Io { path: path.to_owned(), error },
    };
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(failed)
}

fn next_steps(config: &Config, certificate: Certificate) -> String {
    let file = config.file().display();
    let domain = &config.domain;
    let mut steps = Vec::new();
    if certificate == Certificate::Provided {
        let (chain, key) = config.certificate(domain).unwrap_or((Path::new("-"), Path::new("-")));
        if chain.exists() {
            steps.push(format!("The certificate is {}.", chain.display()));
        } else {
            let (chain, key) = (chain.display(), key.display());
            let names: String = config.domains().map(|domain| format!(" -d {domain}")).collect();
            steps.push(format!(
                "Put the certificate with its chain into {chain}\n   and its key into {key}. With certbot, renewals included:\n\n     \
                 certbot certonly --standalone{names} --deploy-hook '\\\n       \
                 install -m 600 \"$RENEWED_LINEAGE/fullchain.pem\" {chain}; \\\n       \
                 install -m 600 \"$RENEWED_LINEAGE/privkey.pem\" {key}; \\\n       \
                 trunkline reload --config {file}'\n\n   \
                 (add `-o trunkline` to both `install`s when the server runs as the user trunkline)"
            ));
        }
    } else {
        steps.push(
            "The certificate is self-signed, for tests: clients will warn, and other servers accept it by dialback only."
                .to_owned(),
        );
    }
    steps.push(format!("Look through {file}."));
    steps.push(format!("Test it:           trunkline check --config {file}"));
    steps.push(format!(
        "Make an account:   trunkline user add {name} --config {file}",
        name = format_args!("you@{domain}")
    ));
    steps.push(format!("Start the server:  trunkline serve --config {file}"));
    let mut out = format!(
        "{domain} is set up in {}.\n\nNext:\n",
        config.file().parent().unwrap_or(Path::new(".")).display()
    );
    for (number, step) in steps.iter().enumerate() {
        out.push_str(&format!("{}. {step}\n", number + 1));
    }
    out
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn init(directory: &Path, certificate: Certificate, sets: &[&str]) -> Result<String, InitError> {
        let mut presets = Overrides::default();
        for set in sets {
            presets.set(set).unwrap();
        }
        run(Init { domain: "example.org".into(), directory: directory.to_owned(), certificate, presets })
    }

    #[test]
    fn what_init_writes_can_be_loaded() {
        let directory = tempfile::tempdir().unwrap();
        let home = directory.path().join("new/home");
        let sets = [
            "clients.listen=127.0.0.1:15222",
            "hosts.\"b.example\"={}",
            "federation.routes.\"p.example\"=127.0.0.1:1",
        ];
        let steps = init(&home, Certificate::SelfSigned, &sets).unwrap();
        assert!(steps.contains("trunkline serve --config"), "{steps}");
        let config = Config::load(&home.join("trunkline.toml")).unwrap();
        config.missing_files().unwrap();
        assert_eq!(config.clients.listen, ["127.0.0.1:15222".parse().unwrap()]);
        assert_eq!(config.federation.routes["p.example"].port, 1);

        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&home.join("trunkline.toml")), 0o600);
        assert_eq!(mode(&config.data_dir), 0o700);
        assert_eq!(mode(&config.database()), 0o600);
        assert_eq!(mode(config.certificate("b.example").unwrap().1), 0o600);
        assert_eq!(server_secret(&config).unwrap(), server_secret(&config).unwrap());
        assert_eq!(mode(&config.data_dir.join("server.secret")), 0o600);

        assert!(matches!(init(&home, Certificate::SelfSigned, &[]), Err(InitError::Exists(_))));
    }

    #[test]
    fn without_a_certificate_it_says_how_to_get_one() {
        let directory = tempfile::tempdir().unwrap();
        let steps = init(directory.path(), Certificate::Provided, &[]).unwrap();
        assert!(steps.contains("certbot certonly --standalone -d example.org"), "{steps}");
        let config = Config::load(&directory.path().join("trunkline.toml")).unwrap();
        let missing = config.missing_files().unwrap_err().to_string();
        assert!(missing.contains("trunkline.toml:") && missing.contains("tls.certificate"), "{missing}");
    }

    #[test]
    fn a_wrong_preset_leaves_nothing_behind() {
        let directory = tempfile::tempdir().unwrap();
        let error = init(directory.path(), Certificate::SelfSigned, &["clients.tls=optional"]).unwrap_err();
        assert!(matches!(error, InitError::Config(_)));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
