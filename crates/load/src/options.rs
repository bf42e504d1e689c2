//! What can be asked for on the command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Makes load for an XMPP server and measures what it costs.
///
/// Works against any server: RFC 6120 and 6121, stream management (XEP-0198), registration (XEP-0077), rooms
/// (XEP-0045). Every delivery is verified: what was sent must arrive, once, in order; anything else is an error and
/// exit code 1. The figure that stays true on a busy machine is the server's CPU time per message: give --server-pid.
#[derive(Debug, Parser)]
#[command(name = "trunkline-load", version, arg_required_else_help = true, max_term_width = 110)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) work: Work,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Work {
    /// Complete logins: TCP, TLS, SASL, resource, presence, and out again
    Login(Login),
    /// Sessions that do nothing: memory of the server for each
    Idle(Idle),
    /// Pairs of users that write to each other: throughput, latency, CPU per message
    Chat(Chat),
    /// A presence change that many contacts see
    Fanout(Fanout),
    /// A room: people join, one speaks, all hear it
    Room(Room),
    /// Users of one server write to users of another: CPU of both
    S2s(S2s),
    /// Floods the server from outside, as other servers would, while its own users chat: what the users feel of it
    Siege(Siege),
    /// The limit of this machine: a bare TLS relay that forwards the messages of `chat` without looking at them
    Floor(Floor),
    /// A stand-in for an app's push service: a component that prints what servers publish to it (XEP-0357)
    PushService(PushService),
    #[command(hide = true)]
    FloorRelay(FloorRelay),
    #[command(hide = true)]
    SiegeAttack(SiegeAttack),
}

/// A push service.
#[derive(Args, Clone, Debug)]
pub(crate) struct PushService {
    /// Where the server takes components
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) component: String,
    /// The component's domain
    #[arg(long, value_name = "D")]
    pub(crate) domain: String,
    /// The component's secret
    #[arg(long, value_name = "S")]
    pub(crate) secret: String,
    /// What publishes are answered with: `result`, `silence`, or the name of an error such as `item-not-found`
    #[arg(long, value_name = "A", default_value = "result")]
    pub(crate) answer: String,
    /// End after so many publishes
    #[arg(long, value_name = "N")]
    pub(crate) count: Option<u32>,
}

/// Options of every run.
#[derive(Args, Clone, Debug)]
pub(crate) struct RunOptions {
    /// Process of the server: its CPU time and memory are measured, with all its children (repeatable)
    #[arg(long = "server-pid", value_name = "PID")]
    pub(crate) server_pids: Vec<u32>,
    /// How long to measure, after a second of warming up
    #[arg(long, value_name = "S", default_value_t = 10.0)]
    pub(crate) seconds: f64,
    /// Write the results as JSON to FILE; `-` is the standard output, and the table goes to standard error then
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Threads that make load (fanout and room use one)
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) threads: u32,
}

/// How to reach a server and log in.
#[derive(Args, Clone, Debug)]
pub(crate) struct ServerOptions {
    /// Where clients connect
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) server: String,
    /// The domain that the server serves
    #[arg(long, value_name = "D")]
    pub(crate) domain: String,
    #[command(flatten)]
    pub(crate) access: AccessOptions,
}

/// How to log in, at any server.
#[derive(Args, Clone, Debug)]
pub(crate) struct AccessOptions {
    /// How connections are protected
    #[arg(long, value_enum, default_value_t = Security::Starttls)]
    pub(crate) tls: Security,
    /// SASL mechanism: PLAIN, SCRAM-SHA-1, SCRAM-SHA-256, SCRAM-SHA-512, those with -PLUS, or auto for the best offered
    #[arg(long, value_name = "NAME", default_value = "auto")]
    pub(crate) mechanism: String,
    /// Accounts are called PREFIX0, PREFIX1 and so on
    #[arg(long, value_name = "PREFIX", default_value = "load")]
    pub(crate) users: String,
    /// The password of all accounts
    #[arg(long, value_name = "P", default_value = "load")]
    pub(crate) password: String,
    /// Make missing accounts first, by in-band registration (XEP-0077)
    #[arg(long)]
    pub(crate) register: bool,
    /// PEM file with the authority of the server's certificate; without it the system's authorities count
    #[arg(long, value_name = "FILE", conflicts_with = "insecure")]
    pub(crate) ca: Option<PathBuf>,
    /// Accept any certificate
    #[arg(long)]
    pub(crate) insecure: bool,
    /// Key exchange that is offered to the server for TLS 1.3
    #[arg(long, value_enum, default_value_t = KeyExchange::Hybrid)]
    pub(crate) key_exchange: KeyExchange,
    /// Logins and registrations under way at once, on each thread
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) at_once: u32,
}

/// How connections are protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Security {
    /// TCP that becomes TLS (RFC 6120 s.5)
    Starttls,
    /// TLS from the first byte (XEP-0368)
    Direct,
    /// No TLS
    None,
}

/// What is offered for the key exchange of TLS 1.3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum KeyExchange {
    /// X25519MLKEM768, as current clients do, and X25519 for servers without it
    Hybrid,
    /// Elliptic curves only: compares logins of servers with and without post-quantum key exchange
    Classic,
}

/// How messages are sent.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Messages {
    /// Pairs of users; each has a sender and a receiver
    #[arg(long, value_name = "P", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) pairs: u32,
    /// Messages of each pair under way: the sender sends the next when the receiver has received one
    #[arg(long, value_name = "W", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) window: u32,
    /// Bytes of a message's body
    #[arg(long, value_name = "B", default_value_t = 100, value_parser = clap::value_parser!(u32).range(46..=100_000))]
    pub(crate) body: u32,
    /// Open loop: R messages a second in all, whatever arrives; latency counts from when a message should have left
    #[arg(long, value_name = "R")]
    pub(crate) rate: Option<f64>,
}

#[derive(Args, Debug)]
pub(crate) struct Login {
    #[command(flatten)]
    pub(crate) server: ServerOptions,
    #[command(flatten)]
    pub(crate) run: RunOptions,
    /// Resume TLS sessions, as clients that return do; otherwise every handshake is a full one
    #[arg(long)]
    pub(crate) resume_tls: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Idle {
    #[command(flatten)]
    pub(crate) server: ServerOptions,
    #[command(flatten)]
    pub(crate) run: RunOptions,
    /// Sessions to hold
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) sessions: u32,
    /// Sessions of each account
    #[arg(long, value_name = "K", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) per_account: u32,
    /// Turn on stream management (XEP-0198)
    #[arg(long)]
    pub(crate) sm: bool,
    /// Send presence
    #[arg(long)]
    pub(crate) presence: bool,
    /// Hold the sessions that long after measuring
    #[arg(long, value_name = "S", default_value_t = 0.0)]
    pub(crate) hold: f64,
}

#[derive(Args, Debug)]
pub(crate) struct Chat {
    #[command(flatten)]
    pub(crate) server: ServerOptions,
    #[command(flatten)]
    pub(crate) run: RunOptions,
    #[command(flatten)]
    pub(crate) messages: Messages,
    /// Turn on stream management (XEP-0198), ask for an acknowledgement with each window
    #[arg(long)]
    pub(crate) sm: bool,
    /// Give each user a second device that nobody looks at: carbons (XEP-0280) on both devices, client state
    /// (XEP-0352) inactive on the second, which must see every message too, once, in order
    #[arg(long)]
    pub(crate) second_device: bool,
    /// Put each message into a TLS record of its own; otherwise messages that leave at once share one
    #[arg(long)]
    pub(crate) record_each: bool,
    /// Hold M idle sessions of further accounts meanwhile
    #[arg(long, value_name = "M", default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=10_000_000))]
    pub(crate) idle: u32,
}

#[derive(Args, Debug)]
pub(crate) struct Fanout {
    #[command(flatten)]
    pub(crate) server: ServerOptions,
    #[command(flatten)]
    pub(crate) run: RunOptions,
    /// Contacts of user 0 that are online
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) contacts: u32,
    /// Changes a second; without it the next change is made when all have seen the last one
    #[arg(long, value_name = "R")]
    pub(crate) rate: Option<f64>,
}

#[derive(Args, Debug)]
pub(crate) struct Room {
    #[command(flatten)]
    pub(crate) server: ServerOptions,
    #[command(flatten)]
    pub(crate) run: RunOptions,
    /// People in the room; the first one speaks
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) occupants: u32,
    /// Messages under way
    #[arg(long, value_name = "W", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) window: u32,
    /// Bytes of a message's body
    #[arg(long, value_name = "B", default_value_t = 100, value_parser = clap::value_parser!(u32).range(46..=100_000))]
    pub(crate) body: u32,
    /// Messages a second; without it the next one is said when all have heard the last one
    #[arg(long, value_name = "R")]
    pub(crate) rate: Option<f64>,
    /// The service of rooms; without it conference.DOMAIN
    #[arg(long, value_name = "DOMAIN")]
    pub(crate) service: Option<String>,
}

#[derive(Args, Debug)]
pub(crate) struct S2s {
    #[command(flatten)]
    pub(crate) server: ServerOptions,
    #[command(flatten)]
    pub(crate) run: RunOptions,
    #[command(flatten)]
    pub(crate) messages: Messages,
    /// Where clients of the other server connect
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) peer_server: String,
    /// The domain that the other server serves
    #[arg(long, value_name = "D")]
    pub(crate) peer_domain: String,
    /// Both ends of each pair send; otherwise users of the first server write to those of the second
    #[arg(long)]
    pub(crate) both_ways: bool,
    /// Turn on stream management (XEP-0198)
    #[arg(long)]
    pub(crate) sm: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Floor {
    #[command(flatten)]
    pub(crate) run: RunOptions,
    #[command(flatten)]
    pub(crate) messages: Messages,
    /// The relay forwards what it has read at once in one write; otherwise one record and one write for each message
    #[arg(long)]
    pub(crate) coalesce: bool,
}

#[derive(Args, Debug)]
pub(crate) struct FloorRelay {
    #[arg(long)]
    pub(crate) coalesce: bool,
}

/// What is done to a server from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Attack {
    /// Messages to addresses that exist and to made-up ones, on streams whose domains were proved
    Stanzas,
    /// TCP connections that say nothing, or little
    Connections,
    /// STARTTLS and TLS handshakes: abandoned, stalled, completed
    Handshakes,
    /// Dialback requests for domains that are not there, don't answer, lie, or exist; questions about keys
    Dialback,
    /// Subscription requests, probes and presence to addresses that exist and to made-up ones
    Presence,
}

impl Attack {
    /// As on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Attack::Stanzas => "stanzas",
            Attack::Connections => "connections",
            Attack::Handshakes => "handshakes",
            Attack::Dialback => "dialback",
            Attack::Presence => "presence",
        }
    }
}

#[derive(Args, Debug)]
pub(crate) struct Siege {
    #[command(flatten)]
    pub(crate) server: ServerOptions,
    #[command(flatten)]
    pub(crate) run: RunOptions,
    /// What is done, one after the other; without it everything
    #[arg(long, value_enum, value_delimiter = ',')]
    pub(crate) attacks: Vec<Attack>,
    /// From how many domains, one after the other
    #[arg(long, value_delimiter = ',', default_value = "1,100,10000", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) domains: Vec<u32>,
    #[command(flatten)]
    pub(crate) outside: OutsideOptions,
    /// Where the server takes the streams of other servers, with STARTTLS
    #[arg(long, value_name = "IP:PORT")]
    pub(crate) federation: std::net::SocketAddr,
    /// Where the server shows its metrics in clear (Prometheus): what it refused, by name
    #[arg(long, value_name = "IP:PORT")]
    pub(crate) metrics: Option<std::net::SocketAddr>,
    /// Pairs of users that write to each other
    #[arg(long, value_name = "P", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) pairs: u32,
    /// Messages a second of all pairs, open loop
    #[arg(long, value_name = "R", default_value_t = 400.0)]
    pub(crate) rate: f64,
    /// Further accounts that messages from outside go to; half of them are online
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(0..=10_000))]
    pub(crate) victims: u32,
}

/// Who attacks.
#[derive(Args, Clone, Debug)]
pub(crate) struct OutsideOptions {
    /// The attackers are d0.ZONE, d1.ZONE and so on
    #[arg(long, value_name = "DOMAIN", default_value = "siege.test")]
    pub(crate) zone: String,
    /// PEM file with a certificate for *.ZONE that the server trusts, and its chain
    #[arg(long, value_name = "FILE")]
    pub(crate) certificate: PathBuf,
    /// PEM file with its key
    #[arg(long, value_name = "FILE")]
    pub(crate) key: PathBuf,
    /// Answer the server's DNS queries for ZONE here: for dialback
    #[arg(long, value_name = "IP:PORT")]
    pub(crate) dns: Option<std::net::SocketAddr>,
    /// The processor that the attackers use, with the lowest priority; without it the last one
    #[arg(long, value_name = "N")]
    pub(crate) core: Option<usize>,
}

/// A process of its own that attacks when its standard input says so.
#[derive(Args, Debug)]
pub(crate) struct SiegeAttack {
    #[arg(long, value_enum)]
    pub(crate) attack: Attack,
    #[arg(long)]
    pub(crate) domains: u32,
    /// Without it the attack goes to a server of its own that takes everything
    #[arg(long)]
    pub(crate) target: Option<std::net::SocketAddr>,
    #[arg(long)]
    pub(crate) domain: String,
    #[arg(long)]
    pub(crate) users: String,
    /// Accounts that exist
    #[arg(long)]
    pub(crate) accounts: u32,
    #[command(flatten)]
    pub(crate) outside: OutsideOptions,
}
