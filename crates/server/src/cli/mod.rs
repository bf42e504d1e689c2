//! The command line: what people type, and what it answers.
//!
//! Commands that change a running provider go through the control socket; commands on accounts also work without a
//! running server, directly on the database. Passwords come from a prompt or from standard input, never from an
//! argument: arguments are visible to everybody on the machine.

mod federation;
mod notices;
mod policy;
mod signals;
mod tokens;
mod users;

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use thiserror::Error;
use trunkline_store::OpenError;

use crate::admin::actor::Actor;
use crate::admin::check::{self, Level};
use crate::admin::init::{self, Certificate, Init, InitError};
use crate::admin::offline::Offline;
use crate::admin::socket::{CallError, Control};
use crate::admin::{Admin as _, OpError, Operation, Outcome, output};
use crate::config::overrides::{OverrideError, Overrides};
use crate::config::{self, Config, ConfigError};
use crate::demo::{self, Demo, DemoError};
use crate::logging::LogError;

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  it could not be done, or `check` found something that does not work
  2  wrong usage, or the configuration has errors
  3  the server is not running, and this needs one";

/// An XMPP server: messaging for your domain, connected with everybody else's.
#[derive(Debug, Parser)]
#[command(name = "trunkline", version, after_help = EXIT_CODES, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Args)]
struct Common {
    /// The configuration file [default: ./trunkline.toml, then /etc/trunkline/trunkline.toml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print JSON, for programs
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write a commented configuration, keys and the database into a directory
    Init(InitArgs),
    /// Run the server
    Serve {
        /// The configuration file [default: ./trunkline.toml, then /etc/trunkline/trunkline.toml]
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Find what is wrong with DNS, certificates, ports, files and the clock, and say what to do
    Check {
        #[command(flatten)]
        common: Common,
    },
    /// Accounts: add, passwd, disable, enable, remove, list, show, count, kick, and their devices
    #[command(subcommand)]
    User(users::UserCommand),
    /// Make the running server read its configuration and certificates again
    Reload {
        #[command(flatten)]
        common: Common,
    },
    /// Show how the running server is
    Status {
        #[command(flatten)]
        common: Common,
    },
    /// Other servers: status, close, open, policy, block, unblock, blocks, breaker, requests, reports, lists
    #[command(subcommand)]
    Federation(federation::FederationCommand),
    /// Who changed what about the outside, and why; newest first
    Audit(policy::AuditArgs),
    /// Invitations: create
    #[command(subcommand)]
    Invite(InviteCommand),
    /// Send a message to whoever is online, or to everybody
    Announce(notices::AnnounceArgs),
    /// The message of the day, which everybody gets once: show, set, edit, delete
    #[command(subcommand)]
    Motd(notices::MotdCommand),
    /// Tokens for programs that use the HTTP API: create, list, revoke
    #[command(subcommand)]
    Token(tokens::TokenCommand),
    /// Run two providers on this machine, let their users talk, and invite you to join
    Demo {
        /// Stop after the conversation; success means that everything expected has arrived
        #[arg(long)]
        once: bool,
        /// Keep data and logs in this directory
        #[arg(long)]
        dir: Option<PathBuf>,
    },
    /// Print the reference of the configuration
    #[command(hide = true)]
    ConfigReference,
}

#[derive(Debug, Args)]
struct InitArgs {
    /// The domain in your users' addresses
    #[arg(long)]
    domain: String,
    /// Where trunkline.toml, certificates and data go
    #[arg(long, default_value = ".")]
    dir: PathBuf,
    /// Make a self-signed certificate, for tests
    #[arg(long)]
    dev: bool,
    /// Preset an option, as often as needed: --set clients.listen=127.0.0.1:5222
    ///
    /// The value is TOML, or else text. Names with dots are quoted: --set 'federation.routes."peer.example"=127.0.0.1:5269'
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

#[derive(Debug, Subcommand)]
enum InviteCommand {
    /// Make a link with which one account can be registered
    Create {
        /// On this domain instead of the first
        #[arg(long)]
        domain: Option<String>,
        #[command(flatten)]
        common: Common,
    },
}

/// Why a command ended without success.
#[derive(Debug, Error)]
pub enum CliError {
    /// The operator's.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The operator's.
    #[error(
        "no configuration found in ./trunkline.toml or /etc/trunkline/trunkline.toml: use --config FILE, or write one with `trunkline init --domain example.org`"
    )]
    NoConfig,
    /// The operator's.
    #[error(transparent)]
    Override(#[from] OverrideError),
    /// Ours: the filter was checked with the configuration.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The machine's, or ours.
    #[error(transparent)]
    Demo(#[from] DemoError),
    /// Anybody's.
    #[error(transparent)]
    Init(#[from] InitError),
    /// The server's, or it isn't there.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The operator's, as a rule.
    #[error(transparent)]
    Start(#[from] crate::serve::StartError),
    /// The operation's.
    #[error(transparent)]
    Operation(#[from] OpError),
    /// The store's.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The system's, as a rule a closed pipe.
    #[error("input or output: {0}")]
    Io(#[from] io::Error),
    /// The operator's.
    #[error("{0}")]
    Refused(&'static str),
    /// `check` has printed what.
    #[error("")]
    CheckFailed,
}

impl CliError {
    fn exit_code(&self) -> u8 {
        match self {
            CliError::Config(_) | CliError::NoConfig | CliError::Override(_) => 2,
            CliError::Init(InitError::Config(_)) => 2,
            CliError::Operation(OpError::Config(_))
            | CliError::Call(CallError::Refused(OpError::Config(_))) => 2,
            CliError::Call(CallError::NotRunning(_)) | CliError::Operation(OpError::NotRunning) => 3,
            _ => 1,
        }
    }
}

/// Runs the program with the arguments of the process.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        // A reader that has seen enough (`| head`) is no error.
        Err(CliError::Io(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            let code = error.exit_code();
            let text = error.to_string();
            if !text.is_empty() {
                // Nothing is left to report a broken standard error to.
                let _ = writeln!(io::stderr(), "trunkline: {text}");
            }
            ExitCode::from(code)
        }
    }
}

fn run(command: Command) -> Result<(), CliError> {
    match command {
        Command::Init(args) => init(args),
        Command::Serve { config } => serve(&find_config(config)?),
        Command::Check { common } => check(&common),
        Command::User(command) => users::user(command),
        Command::Reload { common } => ask(&common, Operation::Reload),
        Command::Status { common } => ask(&common, Operation::Status),
        Command::Audit(args) => policy::audit(args),
        Command::Federation(command) => federation::federation(command),
        Command::Announce(args) => notices::announce(args),
        Command::Motd(command) => notices::motd(command),
        Command::Token(command) => tokens::token(command),
        Command::Invite(InviteCommand::Create { domain, common }) => {
            ask(&common, Operation::InviteCreate { domain })
        }
        Command::Demo { once, dir } => Ok(runtime()?.block_on(demo::run(Demo { once, directory: dir }))?),
        Command::ConfigReference => print(&config::reference()),
    }
}

fn init(args: InitArgs) -> Result<(), CliError> {
    let mut presets = Overrides::default();
    for set in &args.set {
        presets.set(set)?;
    }
    let certificate = if args.dev { Certificate::SelfSigned } else { Certificate::Provided };
    print(&init::run(Init { domain: args.domain, directory: args.dir, certificate, presets })?)
}

fn check(common: &Common) -> Result<(), CliError> {
    let file = find_config(common.config.clone())?;
    let findings = runtime()?.block_on(check::run(&file));
    if common.json {
        print_json(&findings)?;
    } else {
        print(&check::human(&findings))?;
    }
    if check::worst(&findings) == Level::Fail { Err(CliError::CheckFailed) } else { Ok(()) }
}

fn serve(file: &Path) -> Result<(), CliError> {
    let config = Config::load(file)?;
    config.missing_files()?;
    let log = crate::logging::init(&config.log, &config.traces)?;
    crate::serve::run(config, log)?;
    Ok(())
}

/// An operation that only a running server can do.
fn ask(common: &Common, operation: Operation) -> Result<(), CliError> {
    // The file may have errors just now; where the socket is must be known nevertheless. A reload reports them.
    let config = load(common)?;
    let outcome = runtime()?.block_on(async {
        let mut control = Control::connect(&config.control_socket()).await?;
        control.call(&operation).await
    })?;
    show(common, &outcome)
}

/// An operation that works with a running server and without.
fn run_anywhere(common: &Common, config: Config, operation: Operation) -> Result<(), CliError> {
    let outcome = runtime()?.block_on(async { Reached::find(config).await?.run(operation).await })?;
    show(common, &outcome)
}

/// Who runs an operation: the server, or this process in its absence.
enum Reached {
    Server(Control),
    Store(Box<Offline>),
}

impl Reached {
    async fn find(config: Config) -> Result<Reached, CliError> {
        // A server that starts or stops just now holds the database without a socket for a moment.
        let mut patience = 50;
        loop {
            match Control::connect(&config.control_socket()).await {
                Ok(control) => return Ok(Reached::Server(control)),
                Err(CallError::NotRunning(_)) => {}
                Err(error) => return Err(error.into()),
            }
            match Offline::open(config.clone()) {
                Ok(offline) => return Ok(Reached::Store(Box::new(offline))),
                Err(OpenError::InUse { .. }) if patience > 0 => {
                    patience -= 1;
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    async fn run(&mut self, operation: Operation) -> Result<Outcome, CliError> {
        match self {
            Reached::Server(control) => Ok(control.call(&operation).await?),
            Reached::Store(offline) => Ok(offline.run(&Actor::command_line(), operation).await?),
        }
    }
}

fn find_config(given: Option<PathBuf>) -> Result<PathBuf, CliError> {
    let default = [Path::new("trunkline.toml"), Path::new("/etc/trunkline/trunkline.toml")];
    let found = given.or_else(|| default.into_iter().find(|path| path.exists()).map(Path::to_owned));
    found.ok_or(CliError::NoConfig)
}

fn load(common: &Common) -> Result<Config, CliError> {
    Ok(Config::load(&find_config(common.config.clone())?)?)
}

fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

fn show(common: &Common, outcome: &Outcome) -> Result<(), CliError> {
    if common.json {
        print_json(outcome)
    } else {
        print(&output::human(outcome, jiff::Timestamp::now().as_millisecond()))
    }
}

fn print_json(value: &impl serde::Serialize) -> Result<(), CliError> {
    let mut text = serde_json::to_string_pretty(value).map_err(io::Error::from)?;
    text.push('\n');
    print(&text)
}

fn print(text: &str) -> Result<(), CliError> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

#[cfg(test)]
mod tests;
