//! The command line: what people type, and what it answers.
//!
//! Commands that change a running provider go through the control socket; commands on accounts also work without a
//! running server, directly on the database. Passwords come from a prompt or from standard input, never from an
//! argument: arguments are visible to everybody on the machine.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use thiserror::Error;

use crate::admin::check::{self, Level};
use crate::admin::init::{self, Certificate, Init, InitError};
use crate::admin::socket::{CallError, Control};
use crate::admin::{OpError, Operation, Outcome, output};
use crate::config::overrides::{OverrideError, Overrides};
use crate::config::{self, Config, ConfigError};
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
    /// Other servers: status, close, open
    #[command(subcommand)]
    Federation(FederationCommand),
    /// Invitations: create
    #[command(subcommand)]
    Invite(InviteCommand),
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
enum FederationCommand {
    /// Show each peer domain: streams, proofs, TLS, queue, last error
    Status {
        #[command(flatten)]
        common: Common,
    },
    /// Cut off a domain, or the whole outside, until opened again or restarted
    Close {
        /// Without one: everybody
        domain: Option<String>,
        #[command(flatten)]
        common: Common,
    },
    /// Take a close back
    Open {
        /// Without one: everybody
        domain: Option<String>,
        #[command(flatten)]
        common: Common,
    },
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
    /// Anybody's.
    #[error(transparent)]
    Init(#[from] InitError),
    /// The server's, or it isn't there.
    #[error(transparent)]
    Call(#[from] CallError),
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
            CliError::Call(CallError::Refused(OpError::Config(_))) => 2,
            CliError::Call(CallError::NotRunning(_)) => 3,
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
        Command::Reload { common } => ask(&common, Operation::Reload),
        Command::Status { common } => ask(&common, Operation::Status),
        Command::Federation(FederationCommand::Status { common }) => {
            ask(&common, Operation::FederationStatus)
        }
        Command::Federation(FederationCommand::Close { domain, common }) => {
            ask(&common, Operation::FederationClose { domain })
        }
        Command::Federation(FederationCommand::Open { domain, common }) => {
            ask(&common, Operation::FederationOpen { domain })
        }
        Command::Invite(InviteCommand::Create { domain, common }) => {
            ask(&common, Operation::InviteCreate { domain })
        }
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
    let _log = crate::logging::init(&config.log)?;
    Err(CliError::Refused("this build can't serve yet"))
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
