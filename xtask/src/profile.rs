//! `cargo xtask profile NAME`: where the server's time goes under `trunkline-load`, as docs/profiles/NAME.svg (a flame
//! graph) and NAME.txt (the functions in which it was found most often).

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use crate::Place;
use crate::run::say;
use crate::tools;

/// Samples a second. Not a round number, so that nothing periodic keeps step.
const FREQUENCY: &str = "997";
/// Of the stack at each sample: what the unwinder needs for the deepest calls.
const STACK: &str = "dwarf,32768";
/// A flame graph is committed: narrow frames are left out until it is no larger.
const MOST_BYTES: u64 = 300_000;
const FUNCTIONS: usize = 30;
const DOMAIN: &str = "profile.localhost";

#[derive(clap::Args)]
pub(crate) struct Profile {
    /// What the files are called
    name: String,
    /// Of this server instead of the one built here
    #[arg(long)]
    server: Option<PathBuf>,
    /// With this load generator instead of the one built here
    #[arg(long)]
    load: Option<PathBuf>,
    /// How long it is watched
    #[arg(long, default_value_t = 10)]
    seconds: u32,
    /// What trunkline-load does [default: chat --pairs 100 --window 1 --body 100]
    #[arg(last = true)]
    work: Vec<String>,
}

pub(crate) fn run(place: &Place, profile: &Profile) -> ExitCode {
    match make(place, profile) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("error: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn make(place: &Place, profile: &Profile) -> Result<(), String> {
    let inferno = tools::inferno(place)?;
    let server = built(place, profile.server.as_deref(), ("trunkline-server", "trunkline"))?;
    let generator = built(place, profile.load.as_deref(), ("trunkline-load", "trunkline-load"))?;
    let work: Vec<String> = match &profile.work[..] {
        [] => ["chat", "--pairs", "100", "--window", "1", "--body", "100"].map(Into::into).into(),
        work => work.to_vec(),
    };

    let directory = place.work.join("profile");
    drop(fs::remove_dir_all(&directory));
    let server = Server::start(&server, &directory)?;
    let load = |seconds: u32| {
        let mut load = Command::new(&generator);
        load.args(&work).args(["--domain", DOMAIN, "--insecure", "--server"]).arg(server.address.to_string());
        load.args(["--seconds", &seconds.to_string()]);
        load
    };
    say("making the accounts");
    finished(load(1).arg("--register"))?;
    say(&format!("watching: trunkline-load {}", work.join(" ")));
    let data = directory.join("perf.data");
    let perf = Command::new("perf")
        .args(["record", "--quiet", "--event", "cpu-clock", "--freq", FREQUENCY, "--call-graph", STACK])
        .args(["--pid", &server.process.id().to_string(), "--output"])
        .arg(&data)
        .stdin(Stdio::null())
        .spawn();
    let perf = Running(perf.map_err(|error| format!("perf: {error}"))?);
    let worked = finished(&mut load(profile.seconds));
    perf.interrupt()?;
    worked?;
    drop(server);

    say("folding the stacks");
    let folded = directory.join("folded.txt");
    let script = directory.join("script.txt");
    // Who is inlined where would be asked of addr2line, for hours.
    finished(
        Command::new("perf").args(["script", "--no-inline", "--input"]).arg(&data).stdout(create(&script)?),
    )?;
    let mut collapse = Command::new(inferno.join("inferno-collapse-perf"));
    finished(collapse.arg("--kernel").arg(&script).stdout(create(&folded)?))?;
    let stacks = fs::read_to_string(&folded).map_err(|error| format!("{}: {error}", folded.display()))?;
    // Where a stack is deeper than what was kept of it.
    let stacks = stacks.replace(";[unknown];", ";");
    fs::write(&folded, &stacks).map_err(|error| format!("{}: {error}", folded.display()))?;
    let profiles = place.root.join("docs/profiles");
    fs::create_dir_all(&profiles).map_err(|error| format!("{}: {error}", profiles.display()))?;
    let title = format!("{}: server under trunkline-load {}", profile.name, work.join(" "));
    let graph = profiles.join(format!("{}.svg", profile.name));
    draw(&inferno.join("inferno-flamegraph"), &folded, &graph, &title)?;
    let text = profiles.join(format!("{}.txt", profile.name));
    let mut costs = Costs::default();
    stacks.lines().for_each(|line| costs.add(line));
    fs::write(&text, costs.table(&title)).map_err(|error| format!("{}: {error}", text.display()))?;
    drop(fs::remove_dir_all(&directory));
    say(&format!("{} and {}", graph.display(), text.display()));
    Ok(())
}

/// The program that was given, or else ours.
fn built(place: &Place, given: Option<&Path>, (package, binary): (&str, &str)) -> Result<PathBuf, String> {
    if let Some(given) = given {
        return Ok(given.to_owned());
    }
    let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    build.args(["build", "--release", "--quiet", "-p", package, "--bin", binary]);
    finished(build.current_dir(&place.root))?;
    Ok(place.target.join("release").join(binary))
}

fn draw(program: &Path, folded: &Path, graph: &Path, title: &str) -> Result<(), String> {
    let mut narrowest = 0.1;
    loop {
        let mut draw = Command::new(program);
        draw.args(["--hash", "--title", title, "--countname", "ns", "--minwidth", &narrowest.to_string()]);
        finished(draw.arg(folded).stdout(create(graph)?))?;
        let size = fs::metadata(graph).map_err(|error| format!("{}: {error}", graph.display()))?.len();
        if size <= MOST_BYTES || narrowest > 5.0 {
            return Ok(());
        }
        narrowest *= 1.5;
    }
}

/// Nanoseconds of CPU time, by where they went.
#[derive(Default)]
struct Costs {
    all: u64,
    threads: BTreeMap<String, u64>,
    /// In the function itself.
    own: BTreeMap<String, u64>,
    /// In it and in what it called.
    total: BTreeMap<String, u64>,
}

impl Costs {
    /// A line `thread;outer;inner 12`.
    fn add(&mut self, line: &str) {
        let Some((stack, count)) = line.rsplit_once(' ') else { return };
        let Ok(count) = count.parse::<u64>() else { return };
        let mut frames = stack.split(';');
        let thread = frames.next().unwrap_or_default();
        let mut frames: Vec<&str> = frames.collect();
        self.all += count;
        *self.threads.entry(thread.to_owned()).or_default() += count;
        *self.own.entry((*frames.last().unwrap_or(&"?")).to_owned()).or_default() += count;
        // One that calls itself counts once.
        frames.sort_unstable();
        frames.dedup();
        for frame in frames {
            *self.total.entry(frame.to_owned()).or_default() += count;
        }
    }

    fn table(&self, title: &str) -> String {
        let share = |count: u64| count as f64 * 100.0 / self.all.max(1) as f64;
        let seconds = Duration::from_nanos(self.all).as_secs_f64();
        let mut text = format!("{title}\n{seconds:.2} s of its CPU time\n\nby thread\n");
        for (name, count) in largest(&self.threads, FUNCTIONS) {
            let _ = writeln!(text, "{:6.2} %  {name}", share(count));
        }
        let _ = writeln!(text, "\n    self     total  by time in the function itself ([k]: in the kernel)");
        for (name, count) in largest(&self.own, FUNCTIONS) {
            let total = self.total.get(name).copied().unwrap_or(count);
            let _ = writeln!(text, "{:6.2} %  {:6.2} %  {}", share(count), share(total), short(name));
        }
        text
    }
}

fn largest(counts: &BTreeMap<String, u64>, most: usize) -> Vec<(&str, u64)> {
    let mut sorted: Vec<_> = counts.iter().map(|(name, count)| (name.as_str(), *count)).collect();
    sorted.sort_by(|one, other| other.1.cmp(&one.1).then(one.0.cmp(other.0)));
    sorted.truncate(most);
    sorted
}

/// Generic functions have names as long as a page.
fn short(name: &str) -> String {
    const MOST: usize = 140;
    if name.chars().count() <= MOST {
        name.to_owned()
    } else {
        name.chars().take(MOST).chain("...".chars()).collect()
    }
}

/// A server in a directory of its own.
struct Server {
    process: Running,
    address: SocketAddr,
}

impl Server {
    fn start(program: &Path, directory: &Path) -> Result<Server, String> {
        fs::create_dir_all(directory).map_err(|error| format!("{}: {error}", directory.display()))?;
        let address = free()?;
        let mut init = Command::new(program);
        init.args(["init", "--dev", "--domain", DOMAIN, "--dir"]).arg(directory);
        for setting in [
            &format!("clients.listen={address}"),
            "clients.listen_tls=[]",
            "federation.enabled=false",
            "federation.listen=[]",
            "federation.listen_tls=[]",
            "web.listen=[]",
            "console.listen=[]",
            "limits.enabled=false",
            "accounts.registration=open",
            "accounts.registrations_per_address=1000000",
        ] {
            init.args(["--set", setting]);
        }
        finished(init.stdout(Stdio::null()))?;
        let mut serve = Command::new(program);
        serve.args(["serve", "--config"]).arg(directory.join("trunkline.toml"));
        let log = create(&directory.join("server.log"))?;
        serve.stdin(Stdio::null()).stderr(log.try_clone().map_err(|error| error.to_string())?).stdout(log);
        let process = Running(serve.spawn().map_err(|error| format!("{}: {error}", program.display()))?);
        let end = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(address).is_err() {
            if Instant::now() > end {
                let log = fs::read_to_string(directory.join("server.log")).unwrap_or_default();
                return Err(format!("the server does not listen\n{log}"));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(Server { process, address })
    }
}

/// A process that does not outlive us.
struct Running(Child);

impl Running {
    fn id(&self) -> u32 {
        self.0.id()
    }

    /// As Ctrl-C does, for one that has to write something yet.
    fn interrupt(mut self) -> Result<(), String> {
        finished(Command::new("kill").args(["-s", "INT", &self.0.id().to_string()]))?;
        self.0.wait().map(drop).map_err(|error| error.to_string())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn free() -> Result<SocketAddr, String> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(|error| error.to_string())?;
    listener.local_addr().map_err(|error| error.to_string())
}

fn create(file: &Path) -> Result<File, String> {
    File::create(file).map_err(|error| format!("{}: {error}", file.display()))
}

fn finished(command: &mut Command) -> Result<(), String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let status = command.stdin(Stdio::null()).status().map_err(|error| format!("{name}: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("{name}: {status}")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_are_of_the_innermost_function() {
        let mut costs = Costs::default();
        for line in ["inside;main;poll;poll;scan 3", "inside;main;write_[k] 5", "store;main;poll 2"] {
            costs.add(line);
        }
        assert_eq!(costs.all, 10);
        assert_eq!((costs.own["scan"], costs.own["poll"], costs.own["write_[k]"]), (3, 2, 5));
        assert_eq!((costs.total["main"], costs.total["poll"]), (10, 5));
        assert_eq!(largest(&costs.threads, 1), [("inside", 8)]);
    }
}
