//! The attackers: a process of its own on one core with the lowest priority, so that what it takes from the server is
//! what nobody else wants.
//!
//! It prepares (proves its domains), says `ready`, attacks from the first line on its standard input to the next, and
//! prints what it did.

use std::io::{BufRead as _, Write as _};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::thread::{CpuSet, sched_setaffinity};
use thread_priority::ThreadPriority;
use thread_priority::unix::{
    NormalThreadSchedulePolicy, ThreadSchedulePolicy, set_thread_priority_and_policy, thread_native_id,
};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::timeout;

use super::names;
use super::wire::{self, Counts, Ear, Heard, Outsider, Stopped, Target, one};
use crate::error::LoadError;
use crate::options::{Attack, SiegeAttack};

/// Streams and workers: fewer do with one domain, more don't fit into what a server lets in.
const STREAMS: std::ops::RangeInclusive<u32> = 8..=250;
/// Attackers that prove their domains at once.
const PROVING: usize = 16;
/// How long all of them have.
const PREPARATION: Duration = Duration::from_secs(60);
/// Sockets that are held open.
const HELD: usize = 3000;
/// Before an attacker that was thrown out tries again.
const PAUSE: Duration = Duration::from_millis(100);
/// Bytes written at once.
const BATCH: usize = 16 * 1024;

/// Where the attack is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Signal {
    Wait,
    Go,
    Stop,
}

/// What all attackers share.
struct Camp {
    target: Target,
    counts: Arc<Counts>,
    signal: watch::Receiver<Signal>,
    options: AttackOptions,
    next: AtomicU32,
}

struct AttackOptions {
    attack: Attack,
    domains: u32,
    zone: String,
    users: String,
    accounts: u32,
}

pub(crate) fn run(options: &SiegeAttack) -> Result<(), LoadError> {
    step_back(options.outside.core)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| LoadError::Machine(format!("no runtime: {error}")))?;
    let done = runtime.block_on(besiege(options));
    runtime.shutdown_background();
    done
}

/// One core, and of that what is left.
fn step_back(core: Option<usize>) -> Result<(), LoadError> {
    let failed = |error: &dyn std::fmt::Display| LoadError::Machine(format!("priority and core: {error}"));
    rustix::process::nice(19).map_err(|error| failed(&error))?;
    let mut set = CpuSet::new();
    set.set(self::core(core));
    sched_setaffinity(None, &set).map_err(|error| failed(&error))?;
    // Below niceness 19: it never makes a thread of others wait for the end of its slice.
    let idle = ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Idle);
    set_thread_priority_and_policy(thread_native_id(), ThreadPriority::Min, idle)
        .map_err(|error| failed(&format!("{error:?}")))
}

/// The core the attackers are on: the last one if none is named.
pub(super) fn core(named: Option<usize>) -> usize {
    named.unwrap_or_else(|| std::thread::available_parallelism().map_or(0, |cores| cores.get() - 1))
}

async fn besiege(options: &SiegeAttack) -> Result<(), LoadError> {
    let machine = |error: std::io::Error| LoadError::Machine(error.to_string());
    let counts = Arc::new(Counts::default());
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(machine)?;
    let own = listener.local_addr().map_err(machine)?;
    tokio::spawn(wire::serve(listener, wire::acceptor(&options.outside)?, Arc::clone(&counts)));
    if let (Some(_), Some(at)) = (options.target, options.outside.dns) {
        let socket =
            UdpSocket::bind(at).await.map_err(|error| LoadError::Usage(format!("--dns {at}: {error}")))?;
        tokio::spawn(names::serve(socket, options.outside.zone.clone(), own));
    }
    let (signals, signal) = watch::channel(Signal::Wait);
    let camp = Arc::new(Camp {
        target: Target::new(options.target.unwrap_or(own), &options.domain, &options.outside)?,
        counts: Arc::clone(&counts),
        signal,
        options: AttackOptions {
            attack: options.attack,
            domains: options.domains,
            zone: options.outside.zone.clone(),
            users: options.users.clone(),
            accounts: options.accounts.max(1),
        },
        next: AtomicU32::new(0),
    });
    let mut prepared = camp.set_up();
    // Who can't prove a domain goes on trying, as it would.
    let _ = timeout(PREPARATION, async { while prepared.recv().await.is_some() {} }).await;
    say("ready")?;
    let mut orders = orders(signals);
    while orders.recv().await.is_some() {}
    say(&counts.json().to_string())
}

fn say(line: &str) -> Result<(), LoadError> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).map_err(|error| LoadError::Machine(error.to_string()))
}

/// The first line says go, the second stop. The channel ends with the attack.
fn orders(signals: watch::Sender<Signal>) -> mpsc::Receiver<()> {
    let (alive, ended) = mpsc::channel(1);
    std::thread::spawn(move || {
        let mut lines = std::io::stdin().lock().lines();
        for signal in [Signal::Go, Signal::Stop] {
            if !matches!(lines.next(), Some(Ok(_))) {
                break;
            }
            signals.send_replace(signal);
        }
        drop(alive);
        // Their tasks watch the sender: it lives as long as the process.
        std::mem::forget(signals);
    });
    ended
}

impl Camp {
    /// Starts everybody. The channel ends when all are prepared.
    fn set_up(self: &Arc<Self>) -> mpsc::Receiver<()> {
        let (busy, prepared) = mpsc::channel(1);
        let workers = self.options.domains.clamp(*STREAMS.start(), *STREAMS.end());
        let turn = Arc::new(Semaphore::new(PROVING));
        for worker in 0..workers {
            let (camp, busy, turn) = (Arc::clone(self), busy.clone(), Arc::clone(&turn));
            tokio::spawn(async move {
                match camp.options.attack {
                    Attack::Stanzas | Attack::Presence => camp.flood((worker, workers), turn, busy).await,
                    Attack::Connections => camp.connect(busy).await,
                    Attack::Handshakes => camp.shake(busy).await,
                    Attack::Dialback => camp.dial_back(worker, busy).await,
                }
            });
        }
        prepared
    }

    async fn is_on(&self) {
        // Its sender is never dropped.
        let _ = self.signal.clone().wait_for(|signal| *signal >= Signal::Go).await;
    }

    /// The address number of whoever speaks for the domain with this number.
    fn source(&self, number: u32) -> u32 {
        number % self.options.domains
    }

    fn next(&self) -> u32 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    // ---- stanzas, presence

    async fn flood(&self, (worker, workers): (u32, u32), turn: Arc<Semaphore>, busy: mpsc::Sender<()>) {
        let Camp { target, counts, options, .. } = self;
        let mut domains: Vec<String> = (worker..options.domains)
            .step_by(workers as usize)
            .map(|number| format!("d{number}.{}", options.zone))
            .collect();
        if domains.is_empty() {
            domains.push(format!("d{}.{}", worker % options.domains, options.zone));
        }
        let mut pen = Pen::new(self, worker);
        let mut busy = Some(busy);
        loop {
            let place = turn.acquire().await;
            let stream = target.prove(self.source(worker), &domains).await;
            drop(place);
            busy.take();
            let end = match stream {
                Ok(stream) => {
                    counts.proved.fetch_add(domains.len() as u64, Ordering::Relaxed);
                    self.is_on().await;
                    pour(stream, counts, || pen.batch(&domains)).await
                }
                Err(stopped) => stopped,
            };
            counts.end(&end.label());
            tokio::time::sleep(PAUSE).await;
        }
    }

    // ---- connections

    async fn connect(&self, busy: mpsc::Sender<()>) {
        drop(busy);
        self.is_on().await;
        let most = HELD / *STREAMS.start() as usize;
        let most = most.min(HELD / self.options.domains.clamp(*STREAMS.start(), *STREAMS.end()) as usize);
        let mut held = std::collections::VecDeque::new();
        loop {
            let number = self.next();
            match self.target.dial(self.source(number)).await {
                Ok(mut tcp) => {
                    one(&self.counts.connections);
                    if number.is_multiple_of(3) {
                        // The beginning of a stream that never goes on.
                        let _ = tcp.write_all(b"<?xml version='1.0'?><stream:stream xmlns='jabber:ser").await;
                    }
                    held.push_back(tcp);
                }
                Err(stopped) => {
                    self.counts.end(&stopped.label());
                    tokio::time::sleep(PAUSE).await;
                }
            }
            if held.len() > most {
                held.pop_front();
            }
            tokio::task::yield_now().await;
        }
    }

    // ---- handshakes

    async fn shake(&self, busy: mpsc::Sender<()>) {
        drop(busy);
        self.is_on().await;
        let mut held: std::collections::VecDeque<TcpStream> = std::collections::VecDeque::new();
        loop {
            let number = self.next();
            if let Err(stopped) = self.one_handshake(number, &mut held).await {
                self.counts.end(&stopped.label());
                tokio::task::yield_now().await;
            }
            if held.len() > 8 {
                held.pop_front();
            }
        }
    }

    async fn one_handshake(
        &self,
        number: u32,
        held: &mut std::collections::VecDeque<TcpStream>,
    ) -> Result<(), Stopped> {
        let domain = format!("d{}.{}", self.source(number), self.options.zone);
        let mut tcp = self.target.before_tls(self.source(number), &domain).await?;
        one(&self.counts.connections);
        match number % 3 {
            0 => drop(self.target.handshake(tcp, &self.target.without).await?),
            kind => {
                // The head of a record that would hold a ClientHello, and no more.
                tcp.write_all(&[22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3]).await?;
                if kind == 1 {
                    held.push_back(tcp);
                }
            }
        }
        one(&self.counts.handshakes);
        Ok(())
    }

    // ---- dialback

    async fn dial_back(&self, worker: u32, busy: mpsc::Sender<()>) {
        drop(busy);
        self.is_on().await;
        loop {
            let end = self.ask_around(worker).await;
            if let Err(stopped) = end {
                self.counts.end(&stopped.label());
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// One stream's worth of requests.
    async fn ask_around(&self, worker: u32) -> Result<(), Stopped> {
        let Camp { target, counts, options, .. } = self;
        let zone = &options.zone;
        let mut stream = target.open(self.source(worker), &format!("d{worker}.{zone}")).await?;
        one(&counts.connections);
        for _ in 0..16 {
            let mut text = String::new();
            for _ in 0..4 {
                let number = self.next();
                let kind = ["", "void.", "mute.", "liar."][number as usize % 4];
                let domain = format!("d{}.{kind}{zone}", number / 4 % options.domains);
                text.push_str(&format!(
                    "<db:result from='{domain}' to='{to}'>{number:064x}</db:result>\
                     <db:verify from='{domain}' to='{to}' id='{number:x}'>{number:064x}</db:verify>",
                    to = target.domain
                ));
            }
            stream.socket.write_all(text.as_bytes()).await?;
            counts.requests.fetch_add(8, Ordering::Relaxed);
            // Half of the answers come at once, and those about the mute and the liars late.
            for _ in 0..5 {
                let Outsider { socket, ear } = &mut stream;
                let heard = timeout(Duration::from_secs(2), ear.next(socket)).await;
                let Ok(heard) = heard else { break };
                if let Heard::Element(element) = heard?
                    && let Some(kind) = wire::attribute(&element, "type")
                {
                    counts.end(&format!("dialback {kind}"));
                }
            }
        }
        Ok(())
    }
}

/// Writes what `batch` gives for as long as the server takes it, and reads what it says.
async fn pour(stream: Outsider, counts: &Counts, mut batch: impl FnMut() -> (Vec<u8>, u64)) -> Stopped {
    let Outsider { socket, mut ear } = stream;
    let (mut reader, mut writer) = tokio::io::split(socket);
    let write = async {
        loop {
            let (bytes, stanzas) = batch();
            if let Err(error) = writer.write_all(&bytes).await {
                return Stopped::Io(error);
            }
            counts.stanzas.fetch_add(stanzas, Ordering::Relaxed);
            counts.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            // A server that takes everything must not keep the others from writing.
            tokio::task::yield_now().await;
        }
    };
    let read = async {
        loop {
            match listen(&mut ear, &mut reader, counts).await {
                Ok(()) => {}
                Err(stopped) => return stopped,
            }
        }
    };
    tokio::select! {
        // What the server says last tells more than that the pipe is broken.
        biased;
        stopped = read => stopped,
        stopped = write => stopped,
    }
}

async fn listen(
    ear: &mut Ear,
    reader: &mut (impl tokio::io::AsyncRead + Unpin),
    counts: &Counts,
) -> Result<(), Stopped> {
    if let Heard::Element(element) = ear.next(reader).await? {
        let kind = wire::attribute(&element, "type").unwrap_or_default();
        if kind == "error" {
            counts.end("a stanza came back as an error");
        } else if matches!(kind.as_str(), "subscribed" | "unsubscribed") {
            counts.end("a subscription was answered");
        }
    }
    Ok(())
}

/// Writes stanzas.
struct Pen {
    attack: Attack,
    domain: String,
    users: String,
    accounts: u32,
    /// Marsaglia's xorshift: what is random here need not be more than different.
    state: u32,
}

impl Pen {
    fn new(camp: &Camp, worker: u32) -> Pen {
        let AttackOptions { attack, users, accounts, .. } = &camp.options;
        Pen {
            attack: *attack,
            domain: camp.target.domain.clone(),
            users: users.clone(),
            accounts: *accounts,
            state: worker.wrapping_mul(0x9e37_79b9) | 1,
        }
    }

    fn random(&mut self) -> u32 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 17;
        self.state ^= self.state << 5;
        self.state
    }

    /// Stanzas of all `domains`, and how many they are.
    fn batch(&mut self, domains: &[String]) -> (Vec<u8>, u64) {
        use std::io::Write as _;
        let mut out = Vec::with_capacity(BATCH + 512);
        let mut count = 0;
        while out.len() < BATCH {
            let random = self.random();
            let from = &domains[random as usize % domains.len()];
            let sender = random >> 8 & 15;
            // Half of the addresses exist.
            let to = if random & 0x10_0000 == 0 {
                let number = self.random() % self.accounts;
                format!("{}{number}", self.users)
            } else {
                format!("x{:x}", self.random())
            };
            // Writing to memory does not fail.
            let _ = match (self.attack, random >> 12 & 3) {
                (Attack::Presence, 0) => write!(
                    out,
                    "<presence from='u{sender}@{from}' to='{to}@{}' type='subscribe'/>",
                    self.domain
                ),
                (Attack::Presence, 1) => {
                    write!(out, "<presence from='u{sender}@{from}' to='{to}@{}' type='probe'/>", self.domain)
                }
                (Attack::Presence, 2) => write!(
                    out,
                    "<presence from='u{sender}@{from}/r' to='{to}@{}'><show>chat</show><status>buy</status>\
                     <priority>5</priority></presence>",
                    self.domain
                ),
                (Attack::Presence, _) => write!(
                    out,
                    "<presence from='u{sender}@{from}' to='{to}@{}' type='unsubscribe'/>",
                    self.domain
                ),
                _ => write!(
                    out,
                    "<message from='u{sender}@{from}/r' to='{to}@{}' type='chat' id='{random:08x}'><body>\
                     Cheap watches, and medicine without a prescription: https://{from}/{random:x}</body></message>",
                    self.domain
                ),
            };
            count += 1;
        }
        (out, count)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn batches_are_stanzas_of_all_domains() {
        let mut pen = Pen {
            attack: Attack::Stanzas,
            domain: "a.test".into(),
            users: "load".into(),
            accounts: 3,
            state: 1,
        };
        let domains = ["d0.siege.test".to_owned(), "d1.siege.test".to_owned()];
        for attack in [Attack::Stanzas, Attack::Presence] {
            pen.attack = attack;
            let (bytes, count) = pen.batch(&domains);
            let text = String::from_utf8(bytes).unwrap();
            let mut framer = crate::framer::Framer::headless();
            let mut seen = 0;
            framer.push(text.as_bytes(), |_| seen += 1);
            assert_eq!(seen, count);
            for part in ["@d0.siege.test", "@d1.siege.test", "to='load2@a.test'", "to='x"] {
                assert!(text.contains(part), "{part}");
            }
        }
    }
}
