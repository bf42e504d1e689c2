//! What reading archives costs: CPU time of a whole server, with its client in the same process and without TLS.
//!
//!     cargo run --release -p trunkline-server --example archive -- 10000000
//!
//! The argument is the number of stored messages, in 1,000 accounts, interleaved as they would have come. The database
//! is written to a temporary directory and removed.

#![allow(missing_docs, reason = "a measurement")]
#![allow(clippy::print_stdout, reason = "its output")]

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use trunkline_server::config::Config;
use trunkline_server::config::overrides::Overrides;
use trunkline_server::ids::{Clock, LogId};
use trunkline_server::net::Transport;
use trunkline_server::schema::MIGRATIONS;
use trunkline_server::serve::{Parts, Server};
use trunkline_store::{Batch, Db, Lane, Options, sql};
use trunkline_xmpp::jid::Jid;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const DOMAIN: &str = "north.localhost";
const ACCOUNTS: i64 = 1000;
const PEERS: i64 = 40;
const BODY: &str =
    "Good night, good night! Parting is such sweet sorrow, that I shall say good night till it be morrow.";
/// Of the account whose catch-up is measured.
const CATCH_UP: i64 = 10_000;

fn main() {
    let messages: i64 = std::env::args()
        .nth(1)
        .map_or(1_000_000, |number| number.parse().expect("the argument is a number of messages"));
    let directory = tempfile::tempdir_in(".").expect("a temporary directory");
    let file = directory.path().join("archive.db");
    let started = Instant::now();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let server = start(&file).await;
        fill(&server.exchange().db, server.exchange().host(DOMAIN).expect("the domain is served").id, messages).await;
        println!(
            "{messages} messages in {ACCOUNTS} accounts, {} MB, written in {:.0} s",
            std::fs::metadata(&file).expect("the database is a file").len() >> 20,
            started.elapsed().as_secs_f64()
        );
        let last = "<set xmlns='http://jabber.org/protocol/rsm'><max>50</max><before/></set>";
        pages(&server, "the last 50", |_| last.to_owned()).await;
        pages(&server, "50 from the middle", |account| {
            let id = server.exchange().ids.uuid(id_of(messages / ACCOUNTS / 2 * ACCOUNTS + account));
            format!("<set xmlns='http://jabber.org/protocol/rsm'><max>50</max><after>{id}</after></set>")
        })
        .await;
        let with = |peer: &str| {
            format!(
                "<x xmlns='jabber:x:data' type='submit'><field var='FORM_TYPE'><value>urn:xmpp:mam:2</value></field>\
                 <field var='with'><value>{peer}</value></field></x>{last}"
            )
        };
        pages(&server, "the last 50 with a contact", |_| with("peer3@peer.example")).await;
        pages(&server, "with somebody never met", |_| with("nobody@peer.example")).await;
        catch_up(&server).await;
    });
}

async fn start(file: &Path) -> Arc<Server> {
    let mut presets = Overrides::default();
    for setting in [
        "domain=north.localhost",
        "data_dir=/nonexistent",
        "clients.listen=[]",
        "federation.listen=[]",
        "limits.enabled=false",
    ] {
        presets.set(setting).expect("the setting is known");
    }
    let text = trunkline_server::config::template(&presets);
    let config = Config::parse(&text, Path::new("archive.toml")).expect("the configuration is right");
    let parts = Parts { clock: Clock::System, in_memory: true, store: Some(Options::file(file, MIGRATIONS)) };
    Server::start(config, parts).await.expect("the server starts")
}

/// Ten messages a second, since 2020.
fn id_of(number: i64) -> LogId {
    LogId::first_of(1_577_836_800_000 + number * 100)
}

async fn fill(db: &Db, host: i64, messages: i64) {
    let mut batch = Batch::new(Lane::Inside);
    for account in 1..=ACCOUNTS + 1 {
        batch.push(
            sql("INSERT INTO accounts (id, host_id, local, created_at) VALUES (?1, ?2, 'user' || ?1, 0)")
                .bind(account)
                .bind(host),
        );
    }
    db.run(batch).await.expect("the store takes the rows");
    let row = |id: LogId, account: i64, number: i64| {
        let peer = format!("peer{}@peer.example", number % PEERS);
        let stanza = format!(
            "<message from='{peer}/phone' to='user{account}@{DOMAIN}' id='{number:012}' type='chat'>\
             <body>{BODY}</body><stanza-id xmlns='urn:xmpp:sid:0' by='user{account}@{DOMAIN}' \
             id='01900000-0000-7000-8000-000000000000'/></message>"
        );
        sql("INSERT INTO archive (id, account, peer, flags, size, stanza) VALUES (?1, ?2, ?3, 0, ?4, ?5)")
            .bind(id.0)
            .bind(account)
            .bind(peer)
            .bind(i64::try_from(stanza.len()).expect("a length fits"))
            .bind(stanza.into_bytes())
    };
    for part in 0..messages / ACCOUNTS / 20 {
        let mut batch = Batch::new(Lane::Inside);
        for round in part * 20..(part + 1) * 20 {
            for account in 1..=ACCOUNTS {
                batch.push(row(id_of(round * ACCOUNTS + account), account, round));
            }
        }
        db.run(batch).await.expect("the store takes the rows");
    }
    let mut batch = Batch::new(Lane::Inside);
    for number in 0..CATCH_UP {
        batch.push(row(id_of(messages + ACCOUNTS + number), ACCOUNTS + 1, number));
    }
    db.run(batch).await.expect("the store takes the rows");
}

struct Client {
    stream: DuplexStream,
    buffer: Vec<u8>,
}

impl Client {
    async fn enter(server: &Arc<Server>, account: i64) -> Client {
        let jid = Jid::parse(&format!("user{account}@{DOMAIN}")).expect("a right address");
        let (ours, theirs) = tokio::io::duplex(256 * 1024);
        server.seat(Transport::from(theirs), &jid);
        let mut client = Client { stream: ours, buffer: Vec::new() };
        let enter = format!(
            "<stream:stream to='{DOMAIN}' version='1.0' xmlns='jabber:client' \
             xmlns:stream='http://etherx.jabber.org/streams'><iq type='set' id='bind'>\
             <bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/></iq>"
        );
        client.stream.write_all(enter.as_bytes()).await.expect("the stream is open");
        client.until(b"</bind></iq>").await;
        client
    }

    /// Asks and returns the end of the answer.
    async fn ask(&mut self, query: &str) -> String {
        let iq = format!("<iq type='set' id='q'><query xmlns='urn:xmpp:mam:2'>{query}</query></iq>");
        self.stream.write_all(iq.as_bytes()).await.expect("the stream is open");
        self.until(b"</fin></iq>").await
    }

    async fn until(&mut self, end: &[u8]) -> String {
        self.buffer.clear();
        loop {
            self.stream.read_buf(&mut self.buffer).await.expect("the stream is open");
            let tail = self.buffer.len().saturating_sub(600);
            if self.buffer.ends_with(end) {
                return String::from_utf8_lossy(&self.buffer[tail..]).into_owned();
            }
        }
    }
}

/// CPU time of this process.
fn cpu() -> Duration {
    let mut total = 0u64;
    for task in std::fs::read_dir("/proc/self/task").expect("Linux tells of threads") {
        let text = std::fs::read_to_string(task.expect("Linux tells of threads").path().join("schedstat"))
            .unwrap_or_default();
        total += text.split(' ').next().and_then(|nanos| nanos.parse::<u64>().ok()).unwrap_or(0);
    }
    Duration::from_nanos(total)
}

async fn pages(server: &Arc<Server>, what: &str, query: impl Fn(i64) -> String) {
    let mut clients = Vec::new();
    for account in 1..=200 {
        clients.push(Client::enter(server, account).await);
    }
    let mut walls = Vec::new();
    let (before, started) = (cpu(), Instant::now());
    for (client, account) in clients.iter_mut().zip(1..) {
        let asked = Instant::now();
        client.ask(&query(account)).await;
        walls.push(asked.elapsed());
    }
    let (cpu, wall) = (cpu() - before, started.elapsed());
    walls.sort();
    println!(
        "{what}: {:.2} ms CPU, {:.2} ms wall; median {:.2} ms, worst {:.2} ms",
        cpu.as_secs_f64() * 1000.0 / 200.0,
        wall.as_secs_f64() * 1000.0 / 200.0,
        walls[100].as_secs_f64() * 1000.0,
        walls[199].as_secs_f64() * 1000.0
    );
}

async fn catch_up(server: &Arc<Server>) {
    for round in 0..5 {
        let mut client = Client::enter(server, ACCOUNTS + 1).await;
        let (before, started) = (cpu(), Instant::now());
        let mut after = String::new();
        let mut asked = 0;
        loop {
            let page = format!("<set xmlns='http://jabber.org/protocol/rsm'><max>250</max>{after}</set>");
            let fin = client.ask(&page).await;
            asked += 1;
            if fin.contains("complete='true'") || fin.contains("complete=\"true\"") {
                break;
            }
            let last = fin
                .split_once("<last>")
                .expect("the page has an end")
                .1
                .split_once('<')
                .expect("the page has an end")
                .0;
            after = format!("<after>{last}</after>");
        }
        let (cpu, wall) = (cpu() - before, started.elapsed());
        println!(
            "catch-up {round}: {CATCH_UP} messages in {asked} pages: {:.0} messages per second of CPU, {:.0} of wall",
            CATCH_UP as f64 / cpu.as_secs_f64(),
            CATCH_UP as f64 / wall.as_secs_f64()
        );
    }
}
