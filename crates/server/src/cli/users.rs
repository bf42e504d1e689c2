//! `trunkline user`: accounts, with a running server and without.

use std::io::{self, BufRead as _, IsTerminal as _, Read as _, Write as _};

use clap::{Args, Subcommand, ValueEnum};

use super::{CliError, Common, Reached, ask, load, print, print_json, run_anywhere, runtime};
use crate::admin::socket::CallError;
use crate::admin::{Only, Operation, Outcome, Password, User, output};
use crate::config::Config;

#[derive(Debug, Subcommand)]
pub(super) enum UserCommand {
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
        /// Not all of them
        #[arg(long, value_enum)]
        only: Option<OnlyArg>,
        #[command(flatten)]
        common: Common,
    },
    /// Show what is known of an account
    Show {
        /// Such as romeo@example.org
        address: String,
        #[command(flatten)]
        common: Common,
    },
    /// Count accounts
    Count {
        /// Of this domain only
        #[arg(long)]
        domain: Option<String>,
        #[command(flatten)]
        common: Common,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum OnlyArg {
    /// Nobody can log in to them
    Disabled,
    /// A device is available
    Online,
    /// A device is available and not away
    Active,
    /// Devices are available, and all are away
    Idle,
}

impl From<OnlyArg> for Only {
    fn from(only: OnlyArg) -> Only {
        match only {
            OnlyArg::Disabled => Only::Disabled,
            OnlyArg::Online => Only::Online,
            OnlyArg::Active => Only::Active,
            OnlyArg::Idle => Only::Idle,
        }
    }
}

#[derive(Debug, Args)]
pub(super) struct PasswordArgs {
    /// Read the password from the first line of standard input instead of asking
    #[arg(long)]
    password_stdin: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum TotpCommand {
    /// Take it off an account whose owner has lost it
    Reset {
        /// Such as romeo@example.org
        address: String,
        #[command(flatten)]
        common: Common,
    },
}

pub(super) fn user(command: UserCommand) -> Result<(), CliError> {
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
        UserCommand::Show { address, common } => {
            let config = load(&common)?;
            run_anywhere(&common, config, Operation::UserShow { address })
        }
        UserCommand::Count { domain, common } => ask(&common, Operation::UserCount { domain }),
        UserCommand::List { domain, only, common } => {
            let config = load(&common)?;
            let users = runtime()?.block_on(list(config, domain, only.map(Only::from)))?;
            if common.json { print_json(&users) } else { print(&output::user_table(&users)) }
        }
    }
}

async fn list(config: Config, domain: Option<String>, only: Option<Only>) -> Result<Vec<User>, CliError> {
    let mut reached = Reached::find(config).await?;
    let mut all: Vec<User> = Vec::new();
    loop {
        let after = all.last().map(|user| user.address.clone());
        match reached.run(Operation::UserList { domain: domain.clone(), after, only }).await? {
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
