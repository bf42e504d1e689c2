//! Programs with a time limit, and what they printed.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Prints one line. Nobody to read it is no reason to stop.
pub(crate) fn say(line: &str) {
    let mut out = io::stdout().lock();
    drop(writeln!(out, "{line}"));
    drop(out.flush());
}

/// How a program ended.
pub(crate) struct Ended {
    pub(crate) success: bool,
    pub(crate) timed_out: bool,
    pub(crate) output: String,
}

/// Runs `command` in a process group of its own, with all output to the file `log`. After `limit` the group is asked
/// to end, and 20 s later made to.
pub(crate) fn limited(mut command: Command, limit: Duration, log: &Path, verbose: bool) -> io::Result<Ended> {
    if let Some(parent) = log.parent() {
        fs::create_dir_all(parent)?;
    }
    let file = File::create(log)?;
    command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).process_group(0);
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            let output = format!("{}: {error}", command.get_program().to_string_lossy());
            return Ok(Ended { success: false, timed_out: false, output });
        }
    };
    let mut shown = 0;
    let mut show = |last: bool| {
        if verbose {
            shown = follow(log, shown, last).unwrap_or(shown);
        }
    };
    let status = wait(&mut child, limit, &mut show)?;
    let timed_out = status.is_none();
    if timed_out {
        signal(&child, "TERM");
        if wait(&mut child, Duration::from_secs(20), &mut show)?.is_none() {
            signal(&child, "KILL");
            child.wait()?;
        }
    }
    show(true);
    let output = String::from_utf8_lossy(&fs::read(log)?).into_owned();
    Ok(Ended { success: status.is_some_and(|it| it.success()), timed_out, output })
}

fn wait(child: &mut Child, limit: Duration, show: &mut impl FnMut(bool)) -> io::Result<Option<ExitStatus>> {
    let end = Instant::now() + limit;
    while Instant::now() < end {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        show(false);
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(None)
}

/// The group's id is the child's, which has not been waited for, so the number can't be another's.
fn signal(child: &Child, name: &str) {
    let group = format!("-{}", child.id());
    drop(Command::new("kill").args(["-s", name, "--", &group]).status());
}

fn follow(log: &Path, from: u64, last: bool) -> io::Result<u64> {
    let mut file = File::open(log)?;
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let whole =
        if last { bytes.len() } else { bytes.iter().rposition(|it| *it == b'\n').map_or(0, |at| at + 1) };
    io::stdout().write_all(&bytes[..whole])?;
    Ok(from + whole as u64)
}

/// Whether a program can be found.
pub(crate) fn has(program: &str) -> bool {
    // erl and friends live in directories that a plain user's PATH may lack.
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/usr/bin", "/sbin", "/bin", "/usr/games"].map(Into::into);
    std::env::split_paths(&path).chain(system).any(|directory| directory.join(program).is_file())
}
