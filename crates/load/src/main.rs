//! `trunkline-load`: makes load for any XMPP server and measures what the server needs for it.
//!
//! ```text
//! trunkline-load chat --server 127.0.0.1:5222 --domain example.org --insecure --register \
//!     --pairs 100 --window 1 --server-pid $(pidof trunkline)
//! ```
//!
//! | subcommand | what happens | what is measured |
//! |---|---|---|
//! | `login` | TCP, TLS, SASL, resource, presence, and out again | logins a second, server CPU per login |
//! | `idle` | sessions that do nothing | server memory per session |
//! | `chat` | pairs of users write to each other | messages a second, latency, server CPU per message |
//! | `fanout` | one changes presence, all contacts see it | server CPU per delivery, latency |
//! | `room` | people join a room, one speaks, all hear it | the same |
//! | `s2s` | users of one server write to users of another | CPU of both servers per message |
//! | `siege` | other servers attack while users write to each other | latency inside before, during and after, server memory |
//! | `push-service` | takes the pushes of a server, as an app's service would | nothing: it prints them |
//! | `floor` | a bare TLS relay instead of a server | what this machine needs at least |
//!
//! # What the figures mean
//!
//! Server CPU is what the kernel counted for the processes given by `--server-pid` and all their children, while load
//! was made and after a second of warming up, divided by the messages that arrived in that time. It changes little when
//! other programs use the machine; throughput and latency change a lot.
//!
//! In the closed loop each pair has `--window` messages under way and the next leaves when one arrives. In the open loop
//! (`--rate`) messages leave at fixed times, and latency counts from those times, so that a server that stalls can't
//! hide it by slowing the sender down.
//!
//! # How it is built
//!
//! Threads ([`crew`]) with a runtime each; a task for each [`connection`], which cuts what arrives into stanzas with a
//! [`framer`] and finds the [`marker`] in each; a [`verify`] for each flow of messages. Pairs stay on one thread, so
//! nothing is handed over between threads while messages flow. [`usage`] reads the kernel's accounts.

mod broadcast;
mod connection;
mod crew;
mod error;
mod framer;
mod marker;
mod negotiate;
mod options;
mod pace;
mod pairs;
mod place;
mod push_service;
mod relay;
mod report;
mod siege;
mod tls;
mod usage;
mod verify;
mod work;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser as _;
use options::{Cli, Work};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::error::LoadError;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    raise_file_limit();
    match run(&cli.work) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody is left to tell if this fails.
            let _ = writeln!(std::io::stderr(), "trunkline-load: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

fn run(work: &Work) -> Result<(), LoadError> {
    let (report, json): (_, &Option<PathBuf>) = match work {
        Work::Login(options) => (work::login::run(options)?, &options.run.json),
        Work::Idle(options) => (work::idle::run(options)?, &options.run.json),
        Work::Chat(options) => (work::chat::run(options)?, &options.run.json),
        Work::Fanout(options) => (work::fanout::run(options)?, &options.run.json),
        Work::Room(options) => (work::room::run(options)?, &options.run.json),
        Work::S2s(options) => (work::s2s::run(options)?, &options.run.json),
        Work::Floor(options) => (work::floor::run(options)?, &options.run.json),
        Work::PushService(options) => return push_service::run(options),
        Work::Siege(options) => return siege::run(options),
        Work::FloorRelay(options) => return relay::run(options.coalesce),
        Work::SiegeAttack(options) => return siege::attack::run(options),
    };
    report.publish(json.as_deref())
}

/// A connection is a file. Asks for as many as this process may have; what is missing shows when sockets do.
fn raise_file_limit() {
    let now = getrlimit(Resource::Nofile);
    let most = std::fs::read_to_string("/proc/sys/fs/nr_open").ok().and_then(|text| text.trim().parse().ok());
    // The administrator may raise the hard limit too.
    let raised = most.is_some_and(|most: u64| {
        setrlimit(Resource::Nofile, Rlimit { current: Some(most), maximum: Some(most) }).is_ok()
    });
    if !raised {
        // Without it the soft limit stays.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: now.maximum, maximum: now.maximum });
    }
}
