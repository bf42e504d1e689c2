//! One provider: a directory, certificates, and a process that is killed and started.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use trunkline_client::{Target, Trust};

/// A server for one domain.
#[derive(Debug)]
pub(crate) struct Provider {
    pub(crate) domain: String,
    program: PathBuf,
    directory: PathBuf,
    clients: SocketAddr,
    federation: SocketAddr,
    ca: PathBuf,
    process: Option<Child>,
}

/// Two that know each other's address and trust one certificate authority.
pub(crate) async fn pair(directory: &Path, program: &Path) -> Result<Vec<Provider>, String> {
    let program = fs::canonicalize(program).map_err(|error| format!("{}: {error}", program.display()))?;
    let ca = directory.join("ca.pem");
    fs::create_dir_all(directory).map_err(|error| format!("{}: {error}", directory.display()))?;
    let authority = Authority::new(&ca)?;
    let mut providers = Vec::new();
    for (n, domain) in ["north.example", "south.example"].into_iter().enumerate() {
        let here = directory.join(domain);
        fs::create_dir_all(&here).map_err(|error| format!("{}: {error}", here.display()))?;
        authority.issue(domain, &here)?;
        let address = Ipv4Addr::new(127, 0, 9, n as u8 + 1);
        providers.push(Provider {
            domain: domain.to_owned(),
            program: program.clone(),
            clients: free(address)?,
            federation: free(address)?,
            directory: here,
            ca: ca.clone(),
            process: None,
        });
    }
    let [north, south] = <[Provider; 2]>::try_from(providers).map_err(|_| "two providers".to_owned())?;
    north.init(&south).await?;
    south.init(&north).await?;
    Ok(vec![north, south])
}

impl Provider {
    pub(crate) fn target(&self) -> Target {
        let trust = Trust::pem_file(&self.ca).unwrap_or_else(|_| Trust::none());
        Target::new(self.clients, &self.domain).trust(trust)
    }

    async fn init(&self, peer: &Provider) -> Result<(), String> {
        let file = |name: &str| self.directory.join(name).display().to_string();
        let settings = [
            ("clients.listen".to_owned(), self.clients.to_string()),
            ("clients.listen_tls".to_owned(), "[]".to_owned()),
            ("federation.listen".to_owned(), self.federation.to_string()),
            ("federation.listen_tls".to_owned(), "[]".to_owned()),
            ("federation.trust".to_owned(), self.ca.display().to_string()),
            ("federation.dialback".to_owned(), "false".to_owned()),
            // A peer that was killed is back within a second.
            ("federation.retry_max".to_owned(), "1 s".to_owned()),
            // They write to each other without being introduced.
            ("federation.preset".to_owned(), "open".to_owned()),
            (format!("federation.routes.\"{}\"", peer.domain), peer.federation.to_string()),
            // Those who sleep long get more than most people do.
            ("limits.offline_messages".to_owned(), "1000000".to_owned()),
            ("web.listen".to_owned(), "[]".to_owned()),
            ("console.listen".to_owned(), "[]".to_owned()),
            ("tls.certificate".to_owned(), file("certificate.pem")),
            ("tls.key".to_owned(), file("key.pem")),
            ("limits.enabled".to_owned(), "false".to_owned()),
        ];
        let mut command = Command::new(&self.program);
        command.args(["init", "--domain", &self.domain, "--dir"]).arg(self.data());
        for (key, value) in settings {
            command.arg("--set").arg(format!("{key}={value}"));
        }
        run(command, "").await
    }

    fn data(&self) -> PathBuf {
        self.directory.join("data")
    }

    fn config(&self) -> PathBuf {
        self.data().join("trunkline.toml")
    }

    /// An account with the password of all.
    pub(crate) async fn add_user(&self, name: &str) -> Result<(), String> {
        let mut command = Command::new(&self.program);
        command.args(["user", "add", &format!("{name}@{}", self.domain), "--password-stdin", "--config"]);
        command.arg(self.config());
        run(command, "secret\n").await
    }

    /// Starts the server and waits until clients, and if `federated` servers, can connect.
    pub(crate) async fn start(&mut self, federated: bool) -> Result<(), String> {
        let log = self.directory.join("server.log");
        let open =
            || fs::OpenOptions::new().create(true).append(true).open(&log).map_err(|error| error.to_string());
        let mut command = Command::new(&self.program);
        command.arg("serve").arg("--config").arg(self.config());
        command
            .env("RUST_LOG", "info")
            .stdin(Stdio::null())
            .stdout(open()?)
            .stderr(open()?)
            .kill_on_drop(true);
        let mut child = command.spawn().map_err(|error| error.to_string())?;
        let end = Instant::now() + Duration::from_secs(30);
        let addresses = [Some(self.clients), federated.then_some(self.federation)];
        for address in addresses.into_iter().flatten() {
            while TcpStream::connect(address).await.is_err() {
                let ended = child.try_wait().map_err(|error| error.to_string())?;
                if ended.is_some() || Instant::now() > end {
                    let text = fs::read_to_string(&log).unwrap_or_default();
                    let tail: Vec<_> = text.lines().rev().take(15).collect();
                    return Err(format!("{} did not start:\n{}", self.domain, tail.join("\n")));
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        self.process = Some(child);
        Ok(())
    }

    /// SIGKILL.
    pub(crate) async fn kill(&mut self) -> Result<(), String> {
        if let Some(mut child) = self.process.take() {
            if let Ok(Some(status)) = child.try_wait() {
                return Err(format!("{} had ended by itself: {status}", self.domain));
            }
            child.kill().await.map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    /// Opens a copy of the database as the kill left it, so that recovery itself stays the server's business.
    pub(crate) fn check_database(&self) -> Result<Vec<String>, String> {
        let copy = self.directory.join("copy");
        drop(fs::remove_dir_all(&copy));
        fs::create_dir_all(&copy).map_err(|error| error.to_string())?;
        let mut found = None;
        for entry in fs::read_dir(self.data().join("data")).map_err(|error| error.to_string())?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            // Without the shared memory: it is rebuilt from the log, as after a power cut.
            if name.ends_with(".db") || name.ends_with(".db-wal") {
                fs::copy(entry.path(), copy.join(&name)).map_err(|error| error.to_string())?;
                if name.ends_with(".db") {
                    found = Some(copy.join(name));
                }
            }
        }
        let database = found.ok_or_else(|| format!("no database in {}", self.data().display()))?;
        let mut problems = Vec::new();
        for pragma in ["PRAGMA integrity_check", "PRAGMA foreign_key_check"] {
            match rows(&database, pragma) {
                Ok(rows) if rows.is_empty() || rows == ["ok"] => {}
                Ok(rows) => problems.push(format!("{}: {pragma}: {}", self.domain, rows.join("; "))),
                Err(error) => problems.push(format!("{}: {pragma}: {error}", self.domain)),
            }
        }
        Ok(problems)
    }
}

impl Provider {
    /// In which tables of the running server's database a message stands: to tell what is lost from what is stuck.
    pub(crate) fn whereabouts(&self, token: &str) -> String {
        let database = self.data().join("data/trunkline.db");
        let like = format!("CAST(stanza AS TEXT) LIKE '%>{token}<%'");
        let tables = [
            ("archive", format!("SELECT id FROM archive WHERE {like}")),
            ("pending", format!("SELECT id FROM pending WHERE id IN (SELECT id FROM archive WHERE {like})")),
            ("outbound", format!("SELECT id FROM outbound WHERE {like}")),
        ];
        let found = tables.iter().filter(|(_, sql)| ids(&database, sql).is_ok_and(|ids| ids > 0));
        let names: Vec<_> = found.map(|(name, _)| *name).collect();
        format!("{}: {}", self.domain, names.join(", "))
    }
}

fn ids(database: &Path, sql: &str) -> rusqlite::Result<usize> {
    let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
    let connection = rusqlite::Connection::open_with_flags(database, flags)?;
    let mut statement = connection.prepare(sql)?;
    let mut rows = statement.query([])?;
    let mut count = 0;
    while rows.next()?.is_some() {
        count += 1;
    }
    Ok(count)
}

fn rows(database: &Path, sql: &str) -> rusqlite::Result<Vec<String>> {
    let connection = rusqlite::Connection::open(database)?;
    let mut statement = connection.prepare(sql)?;
    let rows = statement.query_map([], |row| row.get::<_, String>(0))?;
    rows.collect()
}

async fn run(mut command: Command, input: &str) -> Result<(), String> {
    let shown = format!("{:?}", command.as_std());
    let failed = |error: std::io::Error| format!("{shown}: {error}");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that does not read its input says why in its output.
        drop(stdin.write_all(input.as_bytes()).await);
    }
    let output = tokio::time::timeout(Duration::from_secs(30), child.wait_with_output())
        .await
        .map_err(|_| format!("{shown}: not done within 30 s"))?
        .map_err(failed)?;
    if output.status.success() {
        return Ok(());
    }
    let text = [output.stdout, output.stderr].concat();
    Err(format!("{shown}: {}\n{}", output.status, String::from_utf8_lossy(&text)))
}

fn free(address: Ipv4Addr) -> Result<SocketAddr, String> {
    let listener = TcpListener::bind((address, 0)).map_err(|error| error.to_string())?;
    listener.local_addr().map_err(|error| error.to_string())
}

/// The certificate authority of one run.
struct Authority(Issuer<'static, KeyPair>);

impl Authority {
    fn new(file: &Path) -> Result<Authority, String> {
        let key = KeyPair::generate().map_err(|error| error.to_string())?;
        let mut parameters = CertificateParams::new(Vec::new()).map_err(|error| error.to_string())?;
        parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        parameters.distinguished_name.push(DnType::CommonName, "Crash test CA");
        let certificate = parameters.self_signed(&key).map_err(|error| error.to_string())?;
        fs::write(file, certificate.pem()).map_err(|error| error.to_string())?;
        Ok(Authority(Issuer::new(parameters, key)))
    }

    fn issue(&self, domain: &str, directory: &Path) -> Result<(), String> {
        let key = KeyPair::generate().map_err(|error| error.to_string())?;
        let mut parameters =
            CertificateParams::new(vec![domain.to_owned()]).map_err(|error| error.to_string())?;
        parameters.distinguished_name.push(DnType::CommonName, domain);
        let certificate = parameters.signed_by(&key, &self.0).map_err(|error| error.to_string())?;
        fs::write(directory.join("certificate.pem"), certificate.pem()).map_err(|error| error.to_string())?;
        let file = directory.join("key.pem");
        fs::write(&file, key.serialize_pem()).map_err(|error| error.to_string())?;
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).map_err(|error| error.to_string())
    }
}
