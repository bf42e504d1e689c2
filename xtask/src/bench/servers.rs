//! Servers as processes: how they are started, known to be ready, and ended.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::field::Field;
use super::rows::Subject;
use super::{ejabberd, ours, prosody};

const PASSWORD: &str = "secret";

/// Where a server is, and how it is to run.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) subject: Subject,
    /// Names its directory.
    pub(super) name: String,
    pub(super) domain: String,
    pub(super) address: Ipv4Addr,
    pub(super) clients: u16,
    pub(super) federation: u16,
    pub(super) archive: bool,
    /// Instead of what makes figures comparable: as a provider would run it, with these settings on top.
    pub(super) as_shipped: Option<Vec<(String, String)>>,
    /// Domain, address and port of the other server, for the row between servers.
    pub(super) other: Option<(String, Ipv4Addr, u16)>,
}

impl Plan {
    /// `number` gives the server a loopback address of its own.
    pub(super) fn new(subject: Subject, name: &str, number: u8) -> Result<Plan, String> {
        let address = Ipv4Addr::new(127, 0, 8, number);
        let [clients, federation] = free_ports(address)?;
        let domain = format!("{name}.bench");
        Ok(Plan {
            subject,
            name: name.to_owned(),
            domain,
            address,
            clients,
            federation,
            archive: false,
            as_shipped: None,
            other: None,
        })
    }

    pub(super) fn directory(&self, field: &Field) -> PathBuf {
        field.work.join(&self.name)
    }

    /// For the generator.
    pub(super) fn options(&self, field: &Field) -> Vec<String> {
        let server = SocketAddr::from((self.address, self.clients)).to_string();
        let ca = field.authority.file().to_string_lossy().into_owned();
        let pairs = [("--server", &server), ("--domain", &self.domain), ("--ca", &ca)];
        let mut options: Vec<String> =
            pairs.into_iter().flat_map(|(name, value)| [name.to_owned(), value.clone()]).collect();
        options.extend(["--password".to_owned(), PASSWORD.to_owned()]);
        options
    }
}

/// A server that runs. Dropped, it is killed.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) plan: Plan,
    child: Child,
    /// From the start of the process until it was ready.
    pub(super) start: Duration,
}

impl Server {
    /// Writes the configuration, starts the server and waits until clients can connect.
    pub(super) fn start(plan: Plan, field: &Field) -> Result<Server, String> {
        let directory = plan.directory(field);
        fs::create_dir_all(&directory).map_err(|error| format!("{}: {error}", directory.display()))?;
        let mut command = match plan.subject {
            Subject::Prosody => prosody::command(&plan, field)?,
            Subject::Ejabberd => ejabberd::command(&plan, field)?,
            Subject::Ours | Subject::Floor => ours::command(&plan, field)?,
        };
        let console = directory.join("console.log");
        let log = File::create(&console).map_err(|error| format!("{}: {error}", console.display()))?;
        let errors = log.try_clone().map_err(|error| error.to_string())?;
        command.stdin(Stdio::null()).stdout(log).stderr(errors).current_dir(&directory);
        let ready = Ready::listen(&directory, (plan.subject, &mut command))?;
        let begin = Instant::now();
        let child = command.spawn().map_err(|error| format!("{}: {error}", plan.name))?;
        let mut server = Server { plan, child, start: Duration::ZERO };
        server.wait(&ready, &console)?;
        server.start = begin.elapsed();
        Ok(server)
    }

    fn wait(&mut self, ready: &Ready, console: &Path) -> Result<(), String> {
        let address = SocketAddr::from((self.plan.address, self.plan.clients));
        let end = Instant::now() + Duration::from_secs(90);
        while !ready.told(self.plan.subject, address) {
            let ended = self.child.try_wait().map_err(|error| error.to_string())?;
            if ended.is_some() || Instant::now() > end {
                let text = fs::read_to_string(console).unwrap_or_default();
                let tail: Vec<&str> = text.lines().rev().take(8).collect();
                let tail: Vec<&str> = tail.into_iter().rev().collect();
                return Err(format!("{} did not start: {}", self.plan.name, tail.join(" / ")));
            }
        }
        Ok(())
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Asks it to end, and makes it after 30 s.
    pub(super) fn stop(mut self) {
        signal(&self.child, "TERM");
        let end = Instant::now() + Duration::from_secs(30);
        while Instant::now() < end {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            signal(&self.child, "KILL");
            let _ = self.child.wait();
        }
    }
}

/// How we learn that a server is ready: ours tells it as it would tell systemd, the others are tried.
struct Ready(UnixDatagram);

impl Ready {
    fn listen(directory: &Path, (subject, command): (Subject, &mut Command)) -> Result<Ready, String> {
        let path = directory.join("notify.sock");
        let _ = fs::remove_file(&path);
        let socket = UnixDatagram::bind(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        socket.set_read_timeout(Some(Duration::from_millis(20))).map_err(|error| error.to_string())?;
        if subject == Subject::Ours {
            command.env("NOTIFY_SOCKET", &path);
        }
        Ok(Ready(socket))
    }

    fn told(&self, subject: Subject, address: SocketAddr) -> bool {
        let mut text = [0; 256];
        let length = self.0.recv(&mut text).unwrap_or(0);
        match subject {
            Subject::Ours => String::from_utf8_lossy(&text[..length]).lines().any(|line| line == "READY=1"),
            _ => TcpStream::connect_timeout(&address, Duration::from_millis(500)).is_ok(),
        }
    }
}

/// A program that gets as many files as it may and ends with us, however we end; in a process group of its own.
pub(super) fn tied(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    let shell = "ulimit -n \"$(ulimit -Hn)\"; exec \"$0\" \"$@\"";
    command.args(["--pdeathsig", "KILL", "--", "sh", "-c", shell]).arg(program).process_group(0);
    command
}

/// The group's id is the child's, which has not been waited for, so the number can't be another's.
pub(super) fn signal(child: &Child, name: &str) {
    let group = format!("-{}", child.id());
    let _ = Command::new("kill").args(["-s", name, "--", &group]).stderr(Stdio::null()).status();
}

/// How many files a process may have.
pub(super) fn files() -> u64 {
    let output = Command::new("sh").args(["-c", "ulimit -Hn"]).output();
    let text = output.map(|it| String::from_utf8_lossy(&it.stdout).trim().to_owned()).unwrap_or_default();
    if text == "unlimited" { u64::MAX } else { text.parse().unwrap_or(1024) }
}

pub(super) fn password() -> &'static str {
    PASSWORD
}

/// A port that nobody uses now.
pub(super) fn free_port(address: Ipv4Addr) -> Result<u16, String> {
    free_ports(address).map(|[port, _]| port)
}

fn free_ports(address: Ipv4Addr) -> Result<[u16; 2], String> {
    let bind = || TcpListener::bind((address, 0)).and_then(|it| Ok((it.local_addr()?.port(), it)));
    let first = bind().map_err(|error| format!("{address}: {error}"))?;
    let second = bind().map_err(|error| format!("{address}: {error}"))?;
    Ok([first.0, second.0])
}
