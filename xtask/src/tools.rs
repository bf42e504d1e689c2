//! Installs what the tests need beside the Rust toolchain: Debian's servers and clients, a Python environment, and the
//! packages of the console and of the clients that are written for Node.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Place;
use crate::run::{has, say};

/// A program that must be there, and the Debian packages that bring it.
const NEEDED: [(&str, &[&str]); 11] = [
    ("prosody", &["prosody", "lua-unbound", "lua-sec"]),
    ("ejabberdctl", &["ejabberd"]),
    ("profanity", &["profanity"]),
    ("tmux", &["tmux"]),
    ("cc", &["build-essential"]),
    ("openssl", &["openssl"]),
    ("python3", &["python3", "python3-venv"]),
    // It looks into the C library.
    ("valgrind", &["valgrind", "libc6-dbg"]),
    ("node", &["nodejs"]),
    ("npm", &["npm"]),
    ("chromium", &["chromium"]),
];

/// Debian starts a service when it is installed, unless this program says no.
const POLICY: &str = "/usr/sbin/policy-rc.d";

pub(crate) fn install(place: &Place) -> Result<(), String> {
    packages(|_| true)?;
    components()?;
    python(place)?;
    npm(place, "web")?;
    npm(place, "tests/interop/xmppjs")?;
    npm(place, "tests/browser")
}

/// What builds the console.
pub(crate) fn console(place: &Place) -> Result<(), String> {
    packages(|program| ["node", "npm"].contains(&program))?;
    npm(place, "web")
}

/// Only the servers that ours is compared with.
pub(crate) fn servers() -> Result<(), String> {
    packages(|program| ["prosody", "ejabberdctl", "openssl"].contains(&program))
}

fn packages(wanted: fn(&str) -> bool) -> Result<(), String> {
    let needed = || NEEDED.iter().filter(|(program, _)| wanted(program));
    let mut missing: Vec<&str> =
        needed().filter(|(program, _)| !has(program)).flat_map(|(_, packages)| *packages).copied().collect();
    // Debian's python3 comes without what makes environments.
    let ensurepip = Command::new("python3").args(["-c", "import ensurepip, venv"]).output();
    if wanted("python3")
        && !missing.contains(&"python3-venv")
        && !ensurepip.is_ok_and(|it| it.status.success())
    {
        missing.push("python3-venv");
    }
    if !lua_unbound() && !missing.contains(&"lua-unbound") {
        missing.push("lua-unbound");
    }
    if missing.is_empty() {
        return Ok(());
    }
    if !has("apt-get") {
        return Err(format!(
            "these are missing and there is no apt-get to install them: {}",
            missing.join(" ")
        ));
    }
    say(&format!("installing {}", missing.join(" ")));
    let policy = !Path::new(POLICY).exists();
    if policy {
        root("sh", &["-c", &format!("printf '#!/bin/sh\\nexit 101\\n' > {POLICY} && chmod 755 {POLICY}")])?;
    }
    let arguments = [
        &["DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-y", "-q", "--no-install-recommends"],
        &missing[..],
    ]
    .concat();
    let done = root("apt-get", &["update", "-q"]).and_then(|()| root("env", &arguments));
    if policy {
        root("rm", &["-f", POLICY])?;
    }
    done?;
    if Path::new("/run/systemd/system").exists() {
        // They were installed for the tests only: not at the next boot either.
        for service in ["prosody", "ejabberd"].into_iter().filter(|it| missing.contains(it)) {
            root("systemctl", &["disable", "--now", service])?;
        }
    }
    match needed().find(|(program, _)| !has(program)) {
        Some((program, _)) => Err(format!("{program} is still missing after installing")),
        None => Ok(()),
    }
}

/// Prosody asks our name server only through this library.
fn lua_unbound() -> bool {
    ["/usr/lib", "/usr/share"].iter().any(|base| {
        fs::read_dir(base).into_iter().flatten().flatten().any(|entry| {
            let lua = entry.path().join("lua");
            fs::read_dir(lua).into_iter().flatten().flatten().any(|it| it.path().join("lunbound.so").exists())
        })
    })
}

fn components() -> Result<(), String> {
    for (program, component) in [("rustfmt", "rustfmt"), ("clippy-driver", "clippy")] {
        let there = Command::new(program).arg("--version").output().is_ok_and(|it| it.status.success());
        if !there {
            checked(Command::new("rustup").args(["component", "add", component]))?;
        }
    }
    Ok(())
}

/// The Python environment, made anew when the list of requirements has changed.
fn python(place: &Place) -> Result<(), String> {
    let list = place.root.join("tests/interop/requirements.txt");
    let wanted = fs::read_to_string(&list).map_err(|error| format!("{}: {error}", list.display()))?;
    let venv = place.work.join("venv");
    let marker = venv.join("installed.txt");
    if fs::read_to_string(&marker).is_ok_and(|it| it == wanted) && place.python().exists() {
        return Ok(());
    }
    say("installing the Python environment");
    drop(fs::remove_dir_all(&venv));
    fs::create_dir_all(&place.work).map_err(|error| format!("{}: {error}", place.work.display()))?;
    checked(Command::new("python3").args(["-m", "venv"]).arg(&venv))?;
    checked(
        Command::new(place.python())
            .args(["-m", "pip", "install", "-q", "--disable-pip-version-check", "-r"])
            .arg(&list),
    )?;
    fs::write(&marker, wanted).map_err(|error| format!("{}: {error}", marker.display()))
}

/// The packages of a directory, installed anew when its lock file has changed.
fn npm(place: &Place, directory: &str) -> Result<(), String> {
    let home = place.root.join(directory);
    let lock = home.join("package-lock.json");
    let wanted = fs::read_to_string(&lock).map_err(|error| format!("{}: {error}", lock.display()))?;
    let marker = home.join("node_modules/.installed.json");
    if fs::read_to_string(&marker).is_ok_and(|it| it == wanted) {
        return Ok(());
    }
    say(&format!("installing the packages of {directory}"));
    checked(Command::new("npm").args(["ci", "--no-audit", "--no-fund"]).current_dir(&home))?;
    fs::write(&marker, wanted).map_err(|error| format!("{}: {error}", marker.display()))
}

/// What runs the instruction counts, in the version that the benches are built with.
pub(crate) fn gungraun_runner(place: &Place) -> Result<PathBuf, String> {
    if !has("valgrind") {
        packages(|program| ["valgrind", "cc"].contains(&program))?;
    }
    let version = locked(place, "gungraun")?;
    // Unoptimised: it only starts valgrind, and builds in half the time.
    Ok(program(place, ("gungraun-runner", &version), &["--debug"])?.join("gungraun-runner"))
}

/// Where the programs are that draw flame graphs. A dependency of ours they can't be: their licence is the CDDL.
pub(crate) fn inferno(place: &Place) -> Result<PathBuf, String> {
    if !has("perf") {
        return Err("perf is not installed (apt-get install linux-perf)".into());
    }
    program(place, ("inferno", "0.12.8"), &[])
}

/// Installs a crate's programs under the target directory, if they are not there; returns their directory.
fn program(place: &Place, (name, version): (&str, &str), arguments: &[&str]) -> Result<PathBuf, String> {
    let directory = place.target.join("tools").join(format!("{name}-{version}"));
    // Written last by cargo.
    if !directory.join(".crates.toml").exists() {
        say(&format!("installing {name} {version}"));
        let scratch = place.target.join("tools/build");
        let mut install = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        install
            .args(["install", name, "--version", version, "--locked", "--quiet", "--root"])
            .arg(&directory);
        install.args(arguments).env("CARGO_TARGET_DIR", &scratch).env("CARGO_PROFILE_DEV_DEBUG", "false");
        checked(&mut install)?;
        drop(fs::remove_dir_all(scratch));
    }
    Ok(directory.join("bin"))
}

/// The version of a crate in our lock file.
fn locked(place: &Place, name: &str) -> Result<String, String> {
    let file = place.root.join("Cargo.lock");
    let text = fs::read_to_string(&file).map_err(|error| format!("{}: {error}", file.display()))?;
    let version = text
        .split_once(&format!("name = \"{name}\"\nversion = \""))
        .and_then(|(_, rest)| rest.split_once('"'))
        .map(|(version, _)| version.to_owned());
    version.ok_or_else(|| format!("{name} is not in Cargo.lock"))
}

/// Runs a command as root.
fn root(program: &str, arguments: &[&str]) -> Result<(), String> {
    let owner = fs::metadata("/proc/self").map(|it| std::os::unix::fs::MetadataExt::uid(&it));
    let mut command = match owner {
        Ok(0) => Command::new(program),
        _ => {
            let mut sudo = Command::new("sudo");
            sudo.args(["-n", program]);
            sudo
        }
    };
    checked(command.args(arguments))
}

fn checked(command: &mut Command) -> Result<(), String> {
    let shown = format!("{command:?}");
    let output = command.output().map_err(|error| format!("{shown}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let text = [output.stdout, output.stderr].concat();
    Err(format!("{shown}: {}\n{}", output.status, String::from_utf8_lossy(&text)))
}
