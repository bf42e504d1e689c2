//! The command line: what people type, and what it answers.
//!
//! Commands that change a running provider go through the control socket; commands on accounts also work without a
//! running server, directly on the database. Passwords come from a prompt or from standard input, never from an
//! argument: arguments are visible to everybody on the machine.

mod policy;

use std::io::{self, BufRead as _, IsTerminal as _, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use thiserror::Error;
use trunkline_store::OpenError;

use crate::admin::actor::{Actor, Scope};
use crate::admin::check::{self, Level};
use crate::admin::init::{self, Certificate, Init, InitError};
use crate::admin::offline::Offline;
use crate::admin::socket::{CallError, Control};
use crate::admin::tokens::TokensOp;
use crate::admin::{Admin as _, OpError, Operation, Outcome, Password, User, output};
use crate::config::overrides::{OverrideError, Overrides};
use crate::config::{self, Config, ConfigError};
use crate::control::lists::ListsOp;
use crate::control::reports::{ReportAction, ReportsOp};
use crate::control::requests::RequestsOp;
use crate::control::rule::Action;
use crate::control::traffic::DomainsOp;
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
    /// Accounts: add, passwd, disable, enable, remove, list, kick, and their devices
    #[command(subcommand)]
    User(UserCommand),
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
    Federation(FederationCommand),
    /// Who changed what about the outside, and why; newest first
    Audit(policy::AuditArgs),
    /// Invitations: create
    #[command(subcommand)]
    Invite(InviteCommand),
    /// Tokens for programs that use the HTTP API: create, list, revoke
    #[command(subcommand)]
    Token(TokenCommand),
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
enum UserCommand {
    /// Make an account
    Add {
        /// Such as romeo@example.org
        address: String,
        #[command(flatten)]
        password: PasswordArgs,
        #[command(flatten)]
        common: Common,
    },
    /// Set a new password
    Passwd {
        /// Such as romeo@example.org
        address: String,
        #[command(flatten)]
        password: PasswordArgs,
        #[command(flatten)]
        common: Common,
    },
    /// Remove an account with everything it owns
    Remove {
        /// Such as romeo@example.org
        address: String,
        /// Don't ask
        #[arg(long, short)]
        yes: bool,
        #[command(flatten)]
        common: Common,
    },
    /// Disable an account: nobody can log in to it, what it owns stays
    Disable {
        /// Such as romeo@example.org
        address: String,
        #[command(flatten)]
        common: Common,
    },
    /// Enable a disabled account again
    Enable {
        /// Such as romeo@example.org
        address: String,
        #[command(flatten)]
        common: Common,
    },
    /// End the sessions of an account, or one of them; they may log in again
    Kick {
        /// Such as romeo@example.org, or romeo@example.org/orchard
        address: String,
        #[command(flatten)]
        common: Common,
    },
    /// Show the devices of an account
    Clients {
        /// Such as romeo@example.org
        address: String,
        #[command(flatten)]
        common: Common,
    },
    /// Sign a device out; if it has the password, set another one too
    ClientEnd {
        /// Such as romeo@example.org
        address: String,
        /// Its id, from `user clients`
        client: String,
        #[command(flatten)]
        common: Common,
    },
    /// The second factor of the console: reset
    #[command(subcommand)]
    Totp(TotpCommand),
    /// List accounts
    List {
        /// Of this domain only
        #[arg(long)]
        domain: Option<String>,
        #[command(flatten)]
        common: Common,
    },
}

#[derive(Debug, Args)]
struct PasswordArgs {
    /// Read the password from the first line of standard input instead of asking
    #[arg(long)]
    password_stdin: bool,
}

#[derive(Debug, Subcommand)]
enum FederationCommand {
    /// Show each peer domain: streams, proofs, TLS, queue, last error
    Status {
        #[command(flatten)]
        common: Common,
    },
    /// The rules for what comes from outside and goes there: show, preset, add, replace, move, remove, test
    #[command(subcommand)]
    Policy(Box<policy::PolicyCommand>),
    /// Block a domain: nothing to it or from it, its streams end at once
    Block(policy::BlockArgs),
    /// Take a block back
    Unblock(policy::UnblockArgs),
    /// Blocked domains as files: export, import
    #[command(subcommand)]
    Blocks(policy::BlocksCommand),
    /// Cut the outside off by degrees: show, set
    #[command(subcommand)]
    Breaker(policy::BreakerCommand),
    /// Cut off a domain, or the whole outside, until opened again: the breaker's last level
    Close {
        /// Which one
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        domain: Option<String>,
        /// Everybody
        #[arg(long)]
        all: bool,
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
    /// Show inside and outside at this moment
    Now {
        #[command(flatten)]
        common: Common,
    },
    /// List peer domains with what was counted of them
    Domains {
        /// Containing this text
        #[arg(long)]
        search: Option<String>,
        /// domain, first-seen, in, out, refused, held, reports, reputation, queue
        #[arg(long)]
        sort: Option<String>,
        /// From this place on
        #[arg(long, default_value_t = 0)]
        offset: u32,
        #[command(flatten)]
        common: Common,
    },
    /// Show all about one peer domain
    Domain {
        /// Which
        domain: String,
        #[command(flatten)]
        common: Common,
    },
    /// Show how it was: of one domain, or of all together
    History {
        /// Which
        domain: Option<String>,
        /// So many hours back, 720 at most
        #[arg(long, default_value_t = 24)]
        hours: u32,
        #[command(flatten)]
        common: Common,
    },
    /// First contacts that wait for the consent of whom they are for: list, drop
    #[command(subcommand)]
    Requests(RequestsCommand),
    /// What users reported: list, show, dismiss, warn, limit, block-sender, block-domain, forward
    #[command(subcommand)]
    Reports(ReportsCommand),
    /// Block lists: show, subscribe, unsubscribe, items, publish, retract
    #[command(subcommand)]
    Lists(ListsCommand),
}

#[derive(Debug, Subcommand)]
enum RequestsCommand {
    /// Who waits for whom, newest first; never what was written
    List {
        /// From this domain only
        #[arg(long)]
        domain: Option<String>,
        /// Older than this id: the last one of the page before
        #[arg(long)]
        before: Option<i64>,
        #[command(flatten)]
        common: Common,
    },
    /// Throw away what waits from an address or from a whole domain
    Drop {
        /// A bare address or a domain
        from: String,
        /// For the audit log
        #[arg(long)]
        why: String,
        #[command(flatten)]
        common: Common,
    },
}

#[derive(Debug, Subcommand)]
enum TotpCommand {
    /// Take it off an account whose owner has lost it
    Reset {
        /// Such as romeo@example.org
        address: String,
        #[command(flatten)]
        common: Common,
    },
}

#[derive(Debug, Subcommand)]
enum TokenCommand {
    /// Make a token; its secret is shown once
    Create {
        /// What it is for; it stands in the audit log
        name: String,
        /// What it permits: read, moderate, operate, accounts, audit; as often as needed
        #[arg(long = "scope", required = true)]
        scopes: Vec<ScopeArg>,
        /// How many days it is good for [default: for ever]
        #[arg(long)]
        days: Option<u32>,
        #[command(flatten)]
        common: Common,
    },
    /// List tokens, without their secrets
    List {
        #[command(flatten)]
        common: Common,
    },
    /// End a token at once
    Revoke {
        /// As it was created
        name: String,
        #[command(flatten)]
        common: Common,
    },
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum ScopeArg {
    Read,
    Moderate,
    Operate,
    Accounts,
    Audit,
}

impl From<ScopeArg> for Scope {
    fn from(scope: ScopeArg) -> Scope {
        match scope {
            ScopeArg::Read => Scope::Read,
            ScopeArg::Moderate => Scope::Moderate,
            ScopeArg::Operate => Scope::Operate,
            ScopeArg::Accounts => Scope::Accounts,
            ScopeArg::Audit => Scope::Audit,
        }
    }
}

#[derive(Debug, Subcommand)]
enum ReportsCommand {
    /// Reports that wait, newest first
    List {
        /// Handled ones too
        #[arg(long)]
        all: bool,
        /// About this domain only
        #[arg(long)]
        domain: Option<String>,
        /// Older than this one
        #[arg(long, value_name = "ID")]
        before: Option<i64>,
        #[command(flatten)]
        common: Common,
    },
    /// One report, with the reported messages
    Show {
        /// Its number
        id: i64,
        #[command(flatten)]
        common: Common,
    },
    /// Close a report: there is nothing in it
    Dismiss(DecideArgs),
    /// Send the reported address a message from your domain: the text of --why
    Warn(DecideArgs),
    /// Let the reported address send a little only, for 7 days or --for
    Limit(DecideArgs),
    /// Block the reported address for everybody here
    BlockSender(DecideArgs),
    /// Block the reported address's domain
    BlockDomain(DecideArgs),
    /// Send the report to the provider of the reported address, if the reporter agreed
    Forward(DecideArgs),
}

#[derive(Debug, Args)]
struct DecideArgs {
    /// The report's number
    id: i64,
    /// For the audit log; a warning says it
    #[arg(long, default_value = "")]
    why: String,
    /// How long a limit or block lasts, such as "7 days"
    #[arg(long = "for", value_name = "TIME")]
    lasts: Option<String>,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Subcommand)]
enum ListsCommand {
    /// All lists, and how they are
    Show {
        #[command(flatten)]
        common: Common,
    },
    /// Follow a list of another provider
    Subscribe {
        /// What rules know it by
        name: String,
        /// The address of its pubsub service
        service: String,
        /// As a rule muc_bans_sha256 or spam_source_domains
        node: String,
        /// What is done with those on it; without it only rules that name the list apply
        #[arg(long, value_parser = ["reject", "drop", "hold", "text-only"])]
        action: Option<String>,
        /// For the audit log
        #[arg(long, default_value = "")]
        why: String,
        #[command(flatten)]
        common: Common,
    },
    /// Stop following a list
    Unsubscribe {
        /// Its name here
        name: String,
        /// For the audit log
        #[arg(long, default_value = "")]
        why: String,
        #[command(flatten)]
        common: Common,
    },
    /// What is on a list
    Items {
        /// Its name here; "own" is the one that you publish
        name: String,
        /// After this entry
        #[arg(long, value_name = "ENTRY")]
        after: Option<String>,
        #[command(flatten)]
        common: Common,
    },
    /// Put an address or a domain on your own list
    Publish {
        /// An address is published as its SHA-256
        entry: String,
        /// Everybody can read it
        reason: String,
        #[command(flatten)]
        common: Common,
    },
    /// Take an address or a domain off your own list
    Retract {
        /// As it was published
        entry: String,
        /// For the audit log
        #[arg(long, default_value = "")]
        why: String,
        #[command(flatten)]
        common: Common,
    },
    /// Who follows your own list, and until when unless it is renewed
    Subscribers {
        #[command(flatten)]
        common: Common,
    },
    /// End the subscriptions of an address or of a whole domain
    RemoveSubscriber {
        /// An address or a domain
        address: String,
        /// For the audit log
        #[arg(long, default_value = "")]
        why: String,
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
        Command::User(command) => user(command),
        Command::Reload { common } => ask(&common, Operation::Reload),
        Command::Status { common } => ask(&common, Operation::Status),
        Command::Federation(FederationCommand::Status { common }) => {
            ask(&common, Operation::FederationStatus)
        }
        Command::Federation(FederationCommand::Policy(command)) => policy::policy(*command),
        Command::Federation(FederationCommand::Block(args)) => policy::block(args),
        Command::Federation(FederationCommand::Unblock(args)) => policy::unblock(args),
        Command::Federation(FederationCommand::Blocks(command)) => policy::blocks(command),
        Command::Federation(FederationCommand::Breaker(command)) => policy::breaker(command),
        Command::Audit(args) => policy::audit(args),
        Command::Federation(FederationCommand::Close { domain, all, common }) => {
            ask(&common, Operation::FederationClose { domain, all })
        }
        Command::Federation(FederationCommand::Open { domain, common }) => {
            ask(&common, Operation::FederationOpen { domain })
        }
        Command::Federation(FederationCommand::Requests(command)) => match command {
            RequestsCommand::List { domain, before, common } => {
                ask(&common, Operation::Requests(RequestsOp::List { domain, before }))
            }
            RequestsCommand::Drop { from, why, common } => {
                ask(&common, Operation::Requests(RequestsOp::Drop { from, why }))
            }
        },
        Command::Federation(FederationCommand::Now { common }) => {
            ask(&common, Operation::Domains(DomainsOp::Now))
        }
        Command::Federation(FederationCommand::Domains { search, sort, offset, common }) => {
            ask(&common, Operation::Domains(DomainsOp::List { search, sort, offset }))
        }
        Command::Federation(FederationCommand::Domain { domain, common }) => {
            ask(&common, Operation::Domains(DomainsOp::Show { domain }))
        }
        Command::Federation(FederationCommand::History { domain, hours, common }) => {
            ask(&common, Operation::Domains(DomainsOp::History { domain, hours }))
        }
        Command::Token(command) => token(command),
        Command::Federation(FederationCommand::Reports(command)) => reports(command),
        Command::Federation(FederationCommand::Lists(command)) => lists(command),
        Command::Invite(InviteCommand::Create { domain, common }) => {
            ask(&common, Operation::InviteCreate { domain })
        }
        Command::Demo { once, dir } => Ok(runtime()?.block_on(demo::run(Demo { once, directory: dir }))?),
        Command::ConfigReference => print(&config::reference()),
    }
}

fn reports(command: ReportsCommand) -> Result<(), CliError> {
    let (action, args) = match command {
        ReportsCommand::List { all, domain, before, common } => {
            return ask(&common, Operation::Reports(ReportsOp::List { open_only: !all, domain, before }));
        }
        ReportsCommand::Show { id, common } => {
            return ask(&common, Operation::Reports(ReportsOp::Show { id }));
        }
        ReportsCommand::Dismiss(args) => (ReportAction::Dismiss, args),
        ReportsCommand::Warn(args) => (ReportAction::Warn, args),
        ReportsCommand::Limit(args) => (ReportAction::Limit, args),
        ReportsCommand::BlockSender(args) => (ReportAction::BlockSender, args),
        ReportsCommand::BlockDomain(args) => (ReportAction::BlockDomain, args),
        ReportsCommand::Forward(args) => (ReportAction::Forward, args),
    };
    let until = args.lasts.as_deref().map(from_now).transpose()?;
    ask(&args.common, Operation::Reports(ReportsOp::Decide { id: args.id, action, why: args.why, until }))
}

/// The time after so long, milliseconds since 1970.
fn from_now(lasts: &str) -> Result<i64, CliError> {
    let span = config::value::span(lasts)
        .map_err(|_| CliError::Refused("this is not a length of time: write \"12 h\" or \"7 days\""))?;
    let span = i64::try_from(span.as_millis()).unwrap_or(i64::MAX);
    Ok(jiff::Timestamp::now().as_millisecond().saturating_add(span))
}

fn lists(command: ListsCommand) -> Result<(), CliError> {
    let (common, op) = match command {
        ListsCommand::Show { common } => (common, ListsOp::Show),
        ListsCommand::Subscribe { name, service, node, action, why, common } => {
            let action = action.map(|action| match action.as_str() {
                "drop" => Action::Drop,
                "hold" => Action::Hold,
                "text-only" => Action::TextOnly,
                _ => Action::Reject { condition: None, text: None },
            });
            (common, ListsOp::Subscribe { name, service, node, action, why })
        }
        ListsCommand::Unsubscribe { name, why, common } => (common, ListsOp::Unsubscribe { name, why }),
        ListsCommand::Items { name, after, common } => (common, ListsOp::Items { name, after }),
        ListsCommand::Publish { entry, reason, common } => (common, ListsOp::Publish { entry, reason }),
        ListsCommand::Retract { entry, why, common } => (common, ListsOp::Retract { entry, why }),
        ListsCommand::Subscribers { common } => (common, ListsOp::Subscribers),
        ListsCommand::RemoveSubscriber { address, why, common } => {
            (common, ListsOp::RemoveSubscriber { address, why })
        }
    };
    ask(&common, Operation::Lists(op))
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

fn user(command: UserCommand) -> Result<(), CliError> {
    match command {
        UserCommand::Add { address, password, common } => {
            let config = load(&common)?;
            let password = read_password(&password, &address)?;
            run_anywhere(&common, config, Operation::UserAdd { address, password })
        }
        UserCommand::Passwd { address, password, common } => {
            let config = load(&common)?;
            let password = read_password(&password, &address)?;
            run_anywhere(&common, config, Operation::UserPasswd { address, password })
        }
        UserCommand::Remove { address, yes, common } => {
            let config = load(&common)?;
            if !yes && io::stdin().is_terminal() && !confirm(&address)? {
                return Err(CliError::Refused("nothing was removed"));
            }
            run_anywhere(&common, config, Operation::UserRemove { address })
        }
        UserCommand::Disable { address, common } => {
            let config = load(&common)?;
            run_anywhere(&common, config, Operation::UserDisable { address })
        }
        UserCommand::Enable { address, common } => {
            let config = load(&common)?;
            run_anywhere(&common, config, Operation::UserEnable { address })
        }
        UserCommand::Kick { address, common } => ask(&common, Operation::Kick { address }),
        UserCommand::Totp(TotpCommand::Reset { address, common }) => {
            let config = load(&common)?;
            run_anywhere(&common, config, Operation::UserTotpReset { address })
        }
        UserCommand::Clients { address, common } => ask(&common, Operation::UserClients { address }),
        UserCommand::ClientEnd { address, client, common } => {
            ask(&common, Operation::UserClientEnd { address, client })
        }
        UserCommand::List { domain, common } => {
            let config = load(&common)?;
            let users = runtime()?.block_on(list(config, domain))?;
            if common.json { print_json(&users) } else { print(&output::user_table(&users)) }
        }
    }
}

fn token(command: TokenCommand) -> Result<(), CliError> {
    let (operation, common) = match command {
        TokenCommand::Create { name, scopes, days, common } => {
            let now = jiff::Timestamp::now().as_millisecond();
            let until = days.map(|days| now + i64::from(days) * 86_400_000);
            let scopes = scopes.into_iter().map(Scope::from).collect();
            (TokensOp::Create { name, scopes, until }, common)
        }
        TokenCommand::List { common } => (TokensOp::List, common),
        TokenCommand::Revoke { name, common } => (TokensOp::Revoke { name }, common),
    };
    ask(&common, Operation::Tokens(operation))
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

async fn list(config: Config, domain: Option<String>) -> Result<Vec<User>, CliError> {
    let mut reached = Reached::find(config).await?;
    let mut all: Vec<User> = Vec::new();
    loop {
        let after = all.last().map(|user| user.address.clone());
        match reached.run(Operation::UserList { domain: domain.clone(), after }).await? {
            Outcome::Users { users, more } => {
                let end = users.is_empty() || !more;
                all.extend(users);
                if end {
                    return Ok(all);
                }
            }
            other => {
                return Err(
                    CallError::Answer(format!("a list was asked for, but this came: {other:?}")).into()
                );
            }
        }
    }
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

/// Longer than any password.
const PASSWORD_LINE: u64 = 4096;

fn read_password(args: &PasswordArgs, address: &str) -> Result<Password, CliError> {
    if args.password_stdin {
        let mut line = String::new();
        io::stdin().lock().take(PASSWORD_LINE).read_line(&mut line)?;
        let password = line.strip_suffix('\n').unwrap_or(&line);
        return Ok(Password::new(password.strip_suffix('\r').unwrap_or(password)));
    }
    if !io::stdin().is_terminal() {
        return Err(CliError::Refused("standard input is no terminal: use --password-stdin"));
    }
    let password = rpassword::prompt_password(format!("Password for {address}: "))?;
    if rpassword::prompt_password("Again: ")? != password {
        return Err(CliError::Refused("the two passwords differ: nothing was changed"));
    }
    Ok(Password::new(password))
}

fn confirm(address: &str) -> Result<bool, CliError> {
    write!(io::stderr(), "Remove {address} with its contacts and messages? [y/N] ")?;
    let mut line = String::new();
    io::stdin().lock().take(16).read_line(&mut line)?;
    Ok(["y", "yes"].contains(&line.trim().to_lowercase().as_str()))
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
