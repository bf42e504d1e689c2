//! This machine: files and who may read them, the database, the clock, the ports.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, SystemTime};

use tokio::net::TcpStream;

use super::super::output::span;
use super::Finding;
use crate::config::Config;
use crate::schema::MIGRATIONS;

pub(super) fn files(config: &Config) -> Vec<Finding> {
    let mut findings = Vec::new();
    let secret = |path: &Path, what: &str, allowed: u32| -> Option<Finding> {
        let mode = fs::metadata(path).ok()?.permissions().mode() & 0o777;
        let shown = path.display();
        Some(if mode & !allowed == 0 {
            Finding::ok("files", format!("{shown}: {what}, mode {mode:03o}"))
        } else {
            let text =
                format!("{shown}: {what}, but other users of this machine may read it (mode {mode:03o})");
            let todo = format!("chmod {:03o} {shown}", mode & allowed);
            if what.contains("key") || what.contains("database") {
                Finding::fail("files", text, todo)
            } else {
                Finding::warn("files", text, todo)
            }
        })
    };
    // Groups may read configuration and keys: that is how root keeps them and the server reads them.
    findings.extend(secret(config.file(), "the configuration, with secrets", 0o750));
    for domain in config.domains() {
        findings.extend(config.certificate(domain).and_then(|(_, key)| secret(key, "a private key", 0o750)));
    }
    findings.dedup();
    findings.extend(secret(&config.data_dir, "the data directory", 0o700));
    findings.extend(secret(&config.database(), "the database", 0o600));
    findings.extend(secret(&config.data_dir.join("server.secret"), "the server's secret key", 0o600));
    if let Some(trust) = &config.federation.trust
        && let Err(error) = fs::File::open(trust)
    {
        let text = format!("federation.trust: {} can't be read: {error}", trust.display());
        findings.push(Finding::fail("files", text, "correct the path or its permissions"));
    }
    findings.push(writable(&config.data_dir));
    findings
}

fn writable(directory: &Path) -> Finding {
    let shown = directory.display();
    let probe = directory.join(".check");
    let tried = fs::write(&probe, [0; 4096]);
    // It may not be there.
    let _ = fs::remove_file(&probe);
    match tried {
        Ok(()) => Finding::ok("files", format!("{shown} can be written by this user")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Finding::fail(
            "files",
            format!("{shown} does not exist"),
            format!("mkdir -m 700 {shown}, owned by the server's user"),
        ),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Finding::warn(
            "files",
            format!("{shown} can't be written by this user"),
            "run this check as the server's user; if it says the same there, chown the directory to it",
        ),
        Err(error) => Finding::fail(
            "files",
            format!("{shown} can't be written: {error}"),
            "make room, or repair the disk",
        ),
    }
}

pub(super) fn store(config: &Config, running: bool) -> Vec<Finding> {
    let path = config.database();
    let shown = path.display();
    if !path.exists() {
        return vec![Finding::note(
            "database",
            format!("{shown} does not exist yet: the server makes it at its first start"),
        )];
    }
    vec![match trunkline_store::inspect(&path, MIGRATIONS) {
        Ok(version) if version == MIGRATIONS.len() => {
            Finding::ok("database", format!("{shown} has schema version {version}, as this program"))
        }
        Ok(version) => Finding::note(
            "database",
            format!("{shown} has schema version {version}; the next start brings it to {}", MIGRATIONS.len()),
        ),
        Err(error) if running => Finding::note("database", format!("{shown} was not looked into: {error}")),
        Err(error) => {
            Finding::fail("database", error.to_string(), "see the text; a backup helps in the worst case")
        }
    }]
}

/// The clock can't be compared with another one without asking somebody, so this looks at what is here: files that
/// can't be from the future, and whether something keeps the clock right.
pub(super) fn clock(config: &Config) -> Vec<Finding> {
    let now = SystemTime::now();
    let program = std::env::current_exe().ok();
    let files = [program.as_deref(), Some(config.file())];
    let behind = files.into_iter().flatten().find_map(|file| {
        let ahead = fs::metadata(file).ok()?.modified().ok()?.duration_since(now).ok()?;
        (ahead > Duration::from_secs(300)).then(|| (file.display().to_string(), ahead))
    });
    if let Some((file, ahead)) = behind {
        let ahead = span(i64::try_from(ahead.as_millis()).unwrap_or(i64::MAX));
        let text = format!("the clock is wrong: {file} was written {ahead} from now");
        return vec![Finding::fail("clock", text, "set it: `timedatectl set-ntp true`, or install chrony")];
    }
    // systemd-timesyncd touches the file at each synchronisation; chronyd and ntpd have their pid files.
    let synchronised = Path::new("/run/systemd/timesync/synchronized").exists();
    let daemon = ["/run/chrony/chronyd.pid", "/run/chronyd.pid", "/run/ntpd.pid", "/run/openntpd.pid"]
        .into_iter()
        .find(|path| Path::new(path).exists());
    vec![match (synchronised, daemon) {
        (true, _) => Finding::ok("clock", "systemd-timesyncd has synchronised it"),
        (false, Some(daemon)) => Finding::ok("clock", format!("a time service runs ({daemon})")),
        (false, None) => Finding::warn(
            "clock",
            "plausible, but nothing on this machine seems to keep it right (in a container the host does)",
            "`timedatectl set-ntp true`, or install chrony: certificates and archives need the right time",
        ),
    }]
}

/// Each connection is an open file: the limit of the running server, or of what would be started from here.
pub(super) fn descriptors(config: &Config, pid: Option<u32>) -> Vec<Finding> {
    let process = pid.map_or("self".to_owned(), |pid| pid.to_string());
    let Some(limit) =
        fs::read_to_string(format!("/proc/{process}/limits")).ok().and_then(|text| open_files(&text))
    else {
        return vec![Finding::note(
            "limits",
            "how many files the server may open can't be seen by this user",
        )];
    };
    let wanted =
        config.clients.max_connections.saturating_add(config.federation.max_connections) as u64 + 100;
    vec![match (limit >= wanted, pid) {
        (true, _) => {
            Finding::ok("limits", format!("{limit} open files are allowed, enough for all connections"))
        }
        (false, Some(_)) => Finding::warn(
            "limits",
            format!("the server may open {limit} files, but the configuration allows {wanted} connections"),
            format!(
                "LimitNOFILE={wanted} in its unit (contrib/trunkline.service has it), or lower max_connections"
            ),
        ),
        (false, None) => Finding::note(
            "limits",
            format!(
                "started from this shell the server could open {limit} files only; the systemd unit sets its own limit"
            ),
        ),
    }]
}

fn open_files(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    match line.split_whitespace().next()? {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    }
}

pub(super) async fn ports(config: &Config, running: bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (key, addresses) in config.listeners() {
        if addresses.is_empty() {
            findings.push(Finding::note("ports", format!("{key} is empty: nothing listens")));
        }
        for address in addresses.iter().filter(|address| address.port() != 0) {
            findings.push(if running { connect(key, *address).await } else { bind(key, *address) });
        }
    }
    if config.web.listen.iter().any(|address| !address.ip().is_loopback()) {
        let text = "web.listen is reachable from other machines, and /metrics has no login";
        findings.push(Finding::warn(
            "ports",
            text,
            "listen on loopback, or let a firewall decide who may ask",
        ));
    }
    if config.http.listen.iter().any(|address| !address.ip().is_loopback())
        && config.http.trusted_proxies.is_empty()
    {
        let text =
            "http.listen is without TLS, and no proxy is trusted to speak it: nobody can sign in there";
        findings.push(Finding::warn(
            "ports",
            text,
            "use http.listen_tls, or name the reverse proxy in http.trusted_proxies",
        ));
    }
    let public = [&config.clients.listen, &config.federation.listen];
    if public.into_iter().flatten().any(|address| !address.ip().is_loopback()) {
        let text = "whether a firewall lets others in can't be seen from here";
        findings.push(Finding::note("ports", text));
    }
    findings
}

fn bind(key: &str, address: SocketAddr) -> Finding {
    match std::net::TcpListener::bind(address) {
        Ok(_) => Finding::ok("ports", format!("{address} ({key}) is free")),
        Err(error) => match error.kind() {
            io::ErrorKind::AddrInUse => Finding::fail(
                "ports",
                format!("{address} ({key}) is taken by another program"),
                format!(
                    "`ss -ltnp 'sport = :{}'` shows which; stop it or choose another port",
                    address.port()
                ),
            ),
            io::ErrorKind::AddrNotAvailable => Finding::fail(
                "ports",
                format!("{address} ({key}): this machine doesn't have that address"),
                "`ip address` shows which it has; \"[::]\" means all",
            ),
            io::ErrorKind::PermissionDenied => Finding::fail(
                "ports",
                format!("{address} ({key}): this user may not listen there"),
                "ports below 1024 need AmbientCapabilities=CAP_NET_BIND_SERVICE in the unit",
            ),
            _ if address.is_ipv6() && address.ip().is_unspecified() => Finding::fail(
                "ports",
                format!("{address} ({key}): {error}"),
                format!("if this machine has no IPv6, write {key} = \"0.0.0.0:{}\"", address.port()),
            ),
            _ => Finding::fail("ports", format!("{address} ({key}): {error}"), "choose another address"),
        },
    }
}

async fn connect(key: &str, address: SocketAddr) -> Finding {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    let target = SocketAddr::new(ip, address.port());
    match tokio::time::timeout(Duration::from_secs(3), TcpStream::connect(target)).await {
        Ok(Ok(_)) => Finding::ok("ports", format!("{address} ({key}) answers")),
        Ok(Err(error)) => Finding::fail(
            "ports",
            format!("{address} ({key}) does not answer: {error}"),
            "if it was added to the configuration just now, restart the server; else see its log",
        ),
        Err(_) => Finding::fail(
            "ports",
            format!("{address} ({key}) does not answer"),
            "a firewall, as a rule: see `nft list ruleset`",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    fn config(directory: &Path, rest: &str) -> Config {
        let text = format!("domain = \"example.org\"\n{rest}");
        let file = directory.join("trunkline.toml");
        fs::write(&file, &text).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        Config::parse(&text, &file).unwrap()
    }

    #[test]
    fn readable_files() {
        let directory = tempfile::tempdir().unwrap();
        let config = config(directory.path(), "");
        fs::create_dir(&config.data_dir).unwrap();
        fs::write(config.database(), "").unwrap();
        fs::set_permissions(config.database(), fs::Permissions::from_mode(0o666)).unwrap();
        let findings = files(&config);
        let todo = |part: &str| {
            let finding = findings.iter().find(|finding| finding.text.contains(part)).unwrap();
            (finding.level, finding.todo.clone().unwrap_or_default())
        };
        assert_eq!(
            todo("the configuration"),
            (Level::Warn, format!("chmod 640 {}", config.file().display()))
        );
        assert_eq!(todo("the database"), (Level::Fail, format!("chmod 600 {}", config.database().display())));
        assert_eq!(todo("can be written").0, Level::Ok);
    }

    #[tokio::test]
    async fn ports_in_use() {
        let directory = tempfile::tempdir().unwrap();
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let rest = format!("[clients]\nlisten = \"127.0.0.1:{port}\"\nlisten_tls = []\n");
        let config = config(directory.path(), &rest);
        let about = |findings: Vec<Finding>| {
            findings.into_iter().find(|finding| finding.text.contains("(clients.listen)")).unwrap()
        };
        assert!(about(ports(&config, false).await).text.contains("is taken by another program"));
        assert_eq!(about(ports(&config, true).await).level, Level::Ok);
        drop(taken);
        assert_eq!(about(ports(&config, true).await).level, Level::Fail);
    }

    #[test]
    fn a_clock_that_is_behind() {
        let directory = tempfile::tempdir().unwrap();
        let config = config(directory.path(), "");
        let future = SystemTime::now() + Duration::from_secs(86_400);
        fs::File::options().append(true).open(config.file()).unwrap().set_modified(future).unwrap();
        assert!(clock(&config)[0].text.contains("the clock is wrong"));
    }

    #[test]
    fn open_file_limits() {
        let text = "Limit                     Soft Limit           Hard Limit           Units     \n\
                    Max open files            1024                 524288               files     \n";
        assert_eq!(open_files(text), Some(1024));
        assert_eq!(open_files(&text.replace("1024  ", "unlimited")), Some(u64::MAX));
        assert_eq!(open_files(""), None);
        let directory = tempfile::tempdir().unwrap();
        let few =
            config(directory.path(), "[clients]\nmax_connections = 1\n[federation]\nmax_connections = 1\n");
        assert_eq!(descriptors(&few, Some(std::process::id()))[0].level, Level::Ok);
        let many = config(directory.path(), "[clients]\nmax_connections = 99999999999\n");
        assert_eq!(descriptors(&many, Some(std::process::id()))[0].level, Level::Warn);
        assert_eq!(descriptors(&many, None)[0].level, Level::Note);
    }

    #[test]
    fn databases() {
        let directory = tempfile::tempdir().unwrap();
        let config = config(directory.path(), "");
        fs::create_dir(&config.data_dir).unwrap();
        assert_eq!(store(&config, false)[0].level, Level::Note);
        let options = trunkline_store::Options::file(config.database(), MIGRATIONS);
        trunkline_store::Db::open(options).unwrap().shutdown();
        assert_eq!(store(&config, false)[0].level, Level::Ok, "{:?}", store(&config, false));
        fs::write(config.database(), "x".repeat(8192)).unwrap();
        assert_eq!(store(&config, false)[0].level, Level::Fail);
    }
}
