//! What people type to develop: `cargo xtask test`, `web`, `tidy`, `fuzz`, `bench`, `profile`, `install-tools`.

mod bench;
mod fuzz;
mod instructions;
mod profile;
mod run;
mod steps;
mod tidy;
mod tools;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about = "What people type to develop", disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run all that must be green before a change is finished; installs what it needs on Debian
    Test {
        /// Only these steps
        #[arg(long, value_delimiter = ',', value_parser = steps::names())]
        only: Vec<String>,
        /// How often the crash test kills a server
        #[arg(long, default_value_t = 60)]
        kills: u32,
        /// Show what the steps print while they run
        #[arg(long, short)]
        verbose: bool,
    },
    /// Build the console, which the server embeds; needs npm, and installs it on Debian
    Web,
    /// Check the house rules that compilers don't
    Tidy,
    /// Feed mutated input to every parser
    Fuzz {
        /// For how long, in seconds, for each target
        #[arg(long, default_value_t = 300)]
        seconds: u64,
    },
    /// Measure the server, and with --peers Prosody and ejabberd beside it
    Bench(Bench),
    /// Draw where the server's time goes while trunkline-load works: docs/profiles/NAME.svg and .txt
    Profile(profile::Profile),
    /// Install what the tests need beside Rust: servers, clients, npm, Chromium (Debian, Ubuntu)
    InstallTools,
}

#[derive(clap::Args)]
struct Bench {
    /// Count the instructions of scanning, routing, fan-out and the archive, beside the committed figures
    #[arg(long)]
    instructions: bool,
    /// Commit to what was counted: write benches/instructions.json
    #[arg(long, requires = "instructions")]
    update: bool,
    #[command(flatten)]
    figures: bench::Options,
}

fn main() -> ExitCode {
    let place = Place::find();
    match Arguments::parse().command {
        Command::Test { only, kills, verbose } => {
            steps::test(&place, &steps::Choice { only, kills, verbose })
        }
        Command::Web => steps::console(&place),
        Command::Tidy => {
            let found = tidy::check(&place.root);
            for problem in &found.problems {
                run::say(problem);
            }
            run::say(&format!("{} passed, {} failed", found.checked, found.problems.len()));
            if found.problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Command::Fuzz { seconds } => fuzz::run(&place, seconds),
        Command::Bench(Bench { instructions: true, update, .. }) => instructions::run(&place, update),
        Command::Bench(Bench { figures, .. }) => bench::run(&place, &figures),
        Command::Profile(profile) => profile::run(&place, &profile),
        Command::InstallTools => match tools::install(&place) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                run::say(&format!("error: {error}"));
                ExitCode::FAILURE
            }
        },
    }
}

/// The checkout to work on. Not the one that this binary was compiled in, where a target directory is shared: what
/// `cargo run` says comes first, then where one stands.
fn root() -> PathBuf {
    let said = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    let here = std::env::current_dir().ok();
    let found = [said, here].into_iter().flatten().find_map(|from| checkout(&from));
    found.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
}

/// The checkout that a directory is in.
fn checkout(from: &Path) -> Option<PathBuf> {
    from.ancestors().find(|place| place.join("xtask/Cargo.toml").is_file()).map(Path::to_owned)
}

/// Where things are.
struct Place {
    root: PathBuf,
    target: PathBuf,
    /// Logs of the steps and the Python environment.
    work: PathBuf,
}

impl Place {
    fn find() -> Place {
        let root = root();
        let target = match std::env::var_os("CARGO_TARGET_DIR") {
            Some(directory) => root.join(directory),
            None => root.join("target"),
        };
        Place { work: target.join("xtask"), root, target }
    }

    fn binary(&self, name: &str) -> PathBuf {
        self.target.join("debug").join(name)
    }

    fn python(&self) -> PathBuf {
        self.work.join("venv/bin/python")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkout_is_found_from_inside_and_nowhere_else() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is in a checkout");
        for inside in ["", "xtask", "crates/server/src"] {
            assert_eq!(checkout(&root.join(inside)).as_deref(), Some(root), "{inside}");
        }
        assert_eq!(checkout(Path::new("/")), None);
    }
}
