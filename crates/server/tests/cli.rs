//! The program as people run it.

#![allow(clippy::unwrap_used, reason = "helpers of tests may fail like tests")]

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use trunkline_server::admin::actor::Actor;
use trunkline_server::admin::socket::ControlSocket;
use trunkline_server::admin::{Admin, OpError, Operation, Outcome, Status};

struct Home {
    directory: tempfile::TempDir,
}

impl Home {
    fn empty() -> Home {
        Home { directory: tempfile::tempdir().unwrap() }
    }

    /// A provider on loopback.
    fn init() -> Home {
        let home = Home::empty();
        let mut args = vec!["init", "--domain", "example.org", "--dev", "--dir", home.path()];
        for set in [
            "clients.listen=127.0.0.1:0",
            "clients.listen_tls=127.0.0.1:0",
            "federation.listen=127.0.0.1:0",
            "federation.listen_tls=127.0.0.1:0",
            "web.listen=127.0.0.1:0",
            "console.listen=127.0.0.1:0",
            "accounts.password_iterations=4096",
            "federation.routes.\"peer.example\"=127.0.0.1:1234",
        ] {
            args.extend(["--set", set]);
        }
        let output = trunkline(&args, "");
        assert!(output.status.success(), "{}", text(&output));
        home
    }

    fn path(&self) -> &str {
        self.directory.path().to_str().unwrap()
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("trunkline.toml")
    }

    /// Runs a command with `--config`.
    fn run(&self, args: &[&str], input: &str) -> Output {
        let file = self.file();
        let mut all = args.to_vec();
        all.extend(["--config", file.to_str().unwrap()]);
        trunkline(&all, input)
    }
}

fn trunkline(args: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_trunkline"))
        .args(args)
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that reads nothing may be gone already.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

/// Both streams.
fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn assert_says(output: &Output, code: i32, part: &str) {
    assert_eq!(output.status.code(), Some(code), "{}", text(output));
    assert!(text(output).contains(part), "`{part}` is missing in:\n{}", text(output));
}

fn replace(file: &Path, from: &str, to: &str) {
    let before = std::fs::read_to_string(file).unwrap();
    assert!(before.contains(from), "{from} is missing in {before}");
    std::fs::write(file, before.replace(from, to)).unwrap();
}

#[test]
fn accounts_without_a_server() {
    let home = Home::init();
    let add = ["user", "add", "romeo@example.org", "--password-stdin"];
    assert_says(&home.run(&add, "wherefore\n"), 0, "romeo@example.org was added");
    assert_says(&home.run(&add, "wherefore\n"), 1, "romeo@example.org exists already");
    let elsewhere = home.run(&["user", "add", "romeo@other.example", "--password-stdin"], "x\n");
    assert_says(&elsewhere, 1, "not a domain of this server");
    let empty = home.run(&["user", "add", "juliet@example.org", "--password-stdin"], "\n");
    assert_says(&empty, 1, "the password is empty");
    let passwd = |address: &str| home.run(&["user", "passwd", address, "--password-stdin"], "new\r\n");
    assert_says(&passwd("romeo@example.org"), 0, "new password");
    assert_says(&passwd("nobody@example.org"), 1, "there is no account");
    assert_says(&home.run(&["user", "list"], ""), 0, "romeo@example.org");
    assert_says(&home.run(&["user", "list", "--json"], ""), 0, "\"address\": \"romeo@example.org\"");
    assert_says(&home.run(&["user", "remove", "romeo@example.org"], ""), 0, "was removed");
    assert_says(&home.run(&["user", "list"], ""), 0, "No accounts.");
}

#[test]
fn passwords_are_never_arguments() {
    let home = Home::init();
    assert_says(&home.run(&["user", "add", "romeo@example.org", "secret"], ""), 2, "unexpected argument");
    assert_says(&home.run(&["user", "add", "romeo@example.org"], "secret\n"), 1, "--password-stdin");
}

#[test]
fn errors_name_file_line_and_key() {
    let home = Home::init();
    replace(&home.file(), "[web]\n", "[web]\nlissten = 1\n");
    let lines = std::fs::read_to_string(home.file()).unwrap();
    let line = lines.lines().position(|line| line == "lissten = 1").unwrap() + 1;
    let file = home.file();
    let expected =
        format!("{}:{line}: web.lissten: there is no such key; the nearest is `web.listen`", file.display());
    assert_says(&home.run(&["user", "list"], ""), 2, &expected);
    assert_says(&home.run(&["reload"], ""), 2, &expected);
    assert_says(&home.run(&["check"], ""), 1, "web.lissten");
}

#[test]
fn a_foreign_database_is_refused() {
    let home = Home::init();
    std::fs::write(home.directory.path().join("data/trunkline.db"), "this is something else entirely")
        .unwrap();
    let output = home.run(&["user", "list"], "");
    assert_says(&output, 1, "trunkline.db");
}
#[test]
fn a_second_init_changes_nothing() {
    let home = Home::init();
    let before = std::fs::read(home.file()).unwrap();
    let again = trunkline(&["init", "--domain", "other.example", "--dev", "--dir", home.path()], "");
    assert_says(&again, 1, "exists already: nothing was changed");
    assert_eq!(std::fs::read(home.file()).unwrap(), before);
}

#[test]
fn bad_presets_are_usage_errors() {
    let home = Home::empty();
    let init =
        |set: &str| trunkline(&["init", "--domain", "example.org", "--dir", home.path(), "--set", set], "");
    assert_says(&init("clients.lissten=[]"), 2, "the nearest is `clients.listen`");
    assert_says(&init("clients.tls=optional"), 2, "accepted on loopback only");
    assert_says(&init("federation.routes.peer.example=127.0.0.1:1"), 2, "there is no such key");
    assert_eq!(std::fs::read_dir(home.directory.path()).unwrap().count(), 0);
}

#[test]
fn commands_that_need_a_server_say_so() {
    let home = Home::init();
    for args in [&["status"][..], &["reload"], &["federation", "status"], &["invite", "create"]] {
        assert_says(&home.run(args, ""), 3, "the server is not running");
    }
}

#[test]
fn check_finds_nothing_broken_after_init() {
    let home = Home::init();
    let output = home.run(&["check"], "");
    assert_says(&output, 0, "covers example.org");
    assert_says(&output, 0, "self-signed");
    assert_says(&output, 0, "schema version");
    std::fs::remove_file(home.directory.path().join("tls/fullchain.pem")).unwrap();
    let output = home.run(&["check", "--json"], "");
    assert_says(&output, 1, "\"level\": \"fail\"");
}

#[test]
fn help_everywhere() {
    for args in [
        &["--help"][..],
        &["init", "--help"],
        &["serve", "--help"],
        &["check", "--help"],
        &["reload", "--help"],
        &["status", "--help"],
        &["federation", "status", "--help"],
        &["invite", "create", "--help"],
        &["demo", "--help"],
    ] {
        assert_says(&trunkline(args, ""), 0, "Usage: trunkline");
    }
    assert_says(&trunkline(&["--help"], ""), 0, "Exit codes:");
    assert_says(&trunkline(&["--version"], ""), 0, env!("CARGO_PKG_VERSION"));
}

#[test]
fn no_configuration_says_how_to_get_one() {
    let home = Home::empty();
    let output = home.run(&["status"], "");
    assert_says(&output, 2, "trunkline init --domain example.org");
}

/// What answers on the control socket in place of a server.
struct Fake;

impl Admin for Fake {
    async fn run(&self, _actor: &Actor, operation: Operation) -> Result<Outcome, OpError> {
        match operation {
            Operation::UserAdd { address, password } => {
                assert_eq!(password.expose(), "wherefore");
                Ok(Outcome::Done { text: format!("the server added {address}") })
            }
            Operation::UserRemove { address } => Err(OpError::NoSuchUser(address)),
            Operation::UserList { .. } => Ok(Outcome::Users { users: Vec::new(), more: false }),
            Operation::Status => {
                let problems = vec!["store: the disk is full".to_owned()];
                let status = Status {
                    version: "9.9.9".into(),
                    pid: std::process::id(),
                    problems,
                    ..Status::default()
                };
                Ok(Outcome::Status(Box::new(status)))
            }
            Operation::Reload => Err(OpError::Config("trunkline.toml:3: broken".into())),
            _ => Err(OpError::Closing),
        }
    }
}

#[test]
fn with_a_server_everything_goes_through_its_socket() {
    let home = Home::init();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let socket = {
        let _inside = runtime.enter();
        ControlSocket::bind(&home.directory.path().join("data/control.sock")).unwrap()
    };
    runtime.spawn(socket.serve(Arc::new(Fake), std::future::pending()));

    let add = home.run(&["user", "add", "romeo@example.org", "--password-stdin"], "wherefore\n");
    assert_says(&add, 0, "the server added romeo@example.org");
    assert_says(
        &home.run(&["user", "remove", "romeo@example.org"], ""),
        1,
        "there is no account romeo@example.org",
    );
    assert_says(&home.run(&["user", "list"], ""), 0, "No accounts.");
    assert_says(&home.run(&["status"], ""), 0, "9.9.9");
    assert_says(&home.run(&["status", "--json"], ""), 0, "\"version\": \"9.9.9\"");
    assert_says(&home.run(&["reload"], ""), 2, "trunkline.toml:3: broken");
    assert_says(&home.run(&["federation", "status"], ""), 1, "shutting down");
    let check = home.run(&["check"], "");
    assert_says(&check, 1, "is running (pid");
    assert_says(&check, 1, "FAIL  server");
}
