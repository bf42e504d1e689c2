//! Plays: scripted conversations with a server in this process, in memory, in virtual time.
//!
//! A play is a file in `tests/plays/`. Lines of a play:
//!
//! ```text
//! # what is shown, with its section
//! set federation.enabled = false        configuration, before anybody enters
//! Romeo is romeo@north.localhost/orchard
//! Iago is a stranger at north.localhost  connects without a login
//! Globe is the component globe.north.localhost with secret
//! Romeo connects                        an authenticated stream, the resource bound
//! Romeo is online                       the same, then initial presence; what that brings is passed over
//! Romeo has 10000 contacts               before he is there: `c0` and so on, subscribed both ways, none of whom exists
//! Romeo and Juliet are friends          each subscribes to the other; both are online
//! Romeo sends:                          indented XML follows, `$name` stands for what was captured
//! Romeo receives:                       indented XML follows: each element in this order, nothing between
//! Romeo receives in any order:
//! Romeo receives nothing
//! Romeo receives the bytes:             each indented line stands somewhere in what came, exactly
//! Romeo received the bytes in order:     the lines one after the other
//! Romeo received no bytes:              of that sort, in what came last
//! Romeo receives header:                the newest stream header
//! Romeo sends 300 times:                the same XML, `$#` stands for the number
//! Romeo sends at once:                  the same, and nobody waits for what comes of it; also `sends 300 times at once:`
//! Juliet receives at once:              as `receives`, and no time may have passed since somebody first sent at once
//! Romeo sends raw:                      indented lines without the breaks between them; `\xff` is a byte, `\|` cuts
//! Romeo sends a byte a second:
//! Iago dials                            connects without login and without a header; also `dials, TLS required`
//! Romeo opens a stream                  logged in, but no resource bound
//! Romeo seats himself                   logged in, and not even a header sent
//! Iago begins anew                      the next thing that comes is a new stream (after a login)
//! counted forged-from = 1               how often the server refused something by this name
//! measured trunkline_sessions            the metric is there and not 0
//! Romeo breaks                          the connection is gone without a word
//! Romeo leaves                          `</stream:stream>`
//! Romeo's stream ends
//! Romeo forgets                         whatever came is passed over
//! 61 seconds pass
//! ```
//!
//! What is expected says less than what comes: attributes not named may be there, and so may `<delay/>`,
//! `<stanza-id/>` and anything where `<any/>` stands. A value `*` is any, `$name` is captured the first time and
//! compared from then on, `-` means that the attribute is absent, `~text$name` captures a word behind a text.
//! In what is sent, `{{text*N}}` is that text N times, and `{{in N seconds}}` that time (XEP-0082).
//!
//! With `PLAY_SERVER=address:port` the plays that are portable run over TCP against another server, which must let
//! people register and log in without TLS. A play with settings, strangers, long waits or anything at once is not portable,
//! nor is one that says so: `# ours only: why`.

#![allow(clippy::unwrap_used, reason = "a play that cannot be read is a failed test")]

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::Instant;
use trunkline_server::config::overrides::Overrides;
use trunkline_server::config::{Config, TlsPolicy};
use trunkline_server::ids::Clock;
use trunkline_server::modules::Scope;
use trunkline_server::net::Transport;
use trunkline_server::route::roster::{self, Item};
use trunkline_server::route::subscription::Subscription;
use trunkline_server::serve::{Parts, Server};
use trunkline_server::session::component;
use trunkline_server::session::login::Entry;
use trunkline_store::{Batch, Lane, sql};
use trunkline_xml::{Element, Event, Header, Limits, Node, Scanner};
use trunkline_xmpp::jid::Jid;
use trunkline_xmpp::sasl::Hash;
use trunkline_xmpp::sasl::client::{Binding, Scram};
use trunkline_xmpp::stanza::IqType;

/// What may always be there beside what is expected: servers' additions, and words for people.
const IGNORED: [(&str, &str); 6] = [
    ("urn:xmpp:sid:0", "stanza-id"),
    // What stanza-id was before it was agreed upon; ejabberd still adds it.
    ("urn:xmpp:mam:tmp", "archived"),
    ("urn:xmpp:delay", "delay"),
    ("vcard-temp:x:update", "x"),
    ("urn:ietf:params:xml:ns:xmpp-stanzas", "text"),
    ("urn:ietf:params:xml:ns:xmpp-streams", "text"),
];

/// Differences of another server that are told of one play.
const MOST_DIFFERENCES: usize = 5;

#[test]
fn every_play() {
    let other: Option<SocketAddr> = std::env::var("PLAY_SERVER")
        .ok()
        .map(|address| address.parse().expect("PLAY_SERVER is address:port"));
    let plays: Vec<(String, String)> = plays()
        .iter()
        .map(|path| {
            let name = path.file_stem().unwrap_or_default().display().to_string();
            (name, std::fs::read_to_string(path).unwrap())
        })
        .filter(|(_, text)| other.is_none() || is_portable(text))
        .collect();
    let played = plays.len();
    let outcomes: Vec<Result<(), String>> = match other {
        None => plays.iter().map(|(_, text)| in_memory(text)).collect(),
        // They mostly wait.
        Some(address) => std::thread::scope(|scope| {
            let running: Vec<_> = plays
                .iter()
                .enumerate()
                .map(|(number, (_, text))| scope.spawn(move || over_tcp(address, text, number)))
                .collect();
            running.into_iter().map(|play| play.join().unwrap()).collect()
        }),
    };
    let mut failed = Vec::new();
    for ((name, _), outcome) in plays.iter().zip(outcomes) {
        if other.is_some() {
            // The runner of the comparison reads this.
            let what = outcome.as_ref().err().map_or("as written", String::as_str);
            println!("play {name}: {}", what.replace('\n', "\n  | "));
        }
        if let Err(error) = outcome {
            failed.push(format!("{name}: {error}"));
        }
    }
    assert!(played > 0, "there are no plays");
    assert!(failed.is_empty(), "{} of {played} plays failed:\n\n{}", failed.len(), failed.join("\n\n"));
}

/// What a module answers, a play asks: of the same sort of address, with the same payload.
#[test]
fn every_request_of_every_module_is_in_a_play() {
    let texts: Vec<String> = every_file().iter().map(|path| std::fs::read_to_string(path).unwrap()).collect();
    let lines: Vec<&str> = texts.iter().flat_map(|text| text.lines()).map(str::trim).collect();
    let addresses = |line: &str, scope: Scope| {
        let to = line.split(" to='").nth(1).and_then(|rest| rest.split('\'').next());
        match (scope, to) {
            (Scope::Account, None) => true,
            (Scope::Account | Scope::Contact, Some(to)) => to.contains('@') && !to.contains('/'),
            (Scope::Host, Some(to)) => to == "north.localhost",
            (Scope::Service, Some(to)) => !to.contains('@') && to != "north.localhost",
            (_, None) => false,
        }
    };
    let mut missing = Vec::new();
    for module in trunkline_server::modules::all() {
        for (scope, kind, namespace, name) in module.requests() {
            let kind = if kind == IqType::Set { "type='set'" } else { "type='get'" };
            let payload = format!("<{name} xmlns='{namespace}'");
            let asks = |line: &&str| {
                line.starts_with("<iq ")
                    && line.contains(kind)
                    && line.contains(&payload)
                    && addresses(line, scope)
            };
            if !lines.iter().any(asks) {
                missing.push(format!("{}: {scope:?} {kind} {payload}", module.name()));
            }
        }
    }
    assert!(missing.is_empty(), "in no play:\n{}", missing.join("\n"));
}

fn in_memory(text: &str) -> Result<(), String> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(Play::new(None).run(text))
}

/// Everybody's name gets the play's number: the accounts are new to the server.
fn over_tcp(address: SocketAddr, text: &str, number: usize) -> Result<(), String> {
    let run = std::process::id();
    let text = text.replace("@north.localhost", &format!("-{run}-{number}@north.localhost"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(Play::new(Some(address)).run(&text))
}

fn is_portable(text: &str) -> bool {
    let ours = |line: &str| {
        line.starts_with("# ours only:")
            || line.starts_with("set ")
            || line.starts_with("counted ")
            || line.starts_with("measured ")
            || line.contains(" is a stranger at ")
            || line.ends_with(" at once:")
            || line
                .strip_suffix(" seconds pass")
                .is_some_and(|seconds| seconds.parse::<u64>().is_ok_and(|seconds| seconds > 2))
    };
    !text.lines().any(ours)
}

fn plays() -> Vec<PathBuf> {
    let only = std::env::var("PLAY").ok();
    let wanted = |path: &PathBuf| only.as_ref().is_none_or(|only| path.to_string_lossy().contains(only));
    every_file().into_iter().filter(wanted).collect()
}

fn every_file() -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/plays"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "play"))
            .collect();
    paths.sort();
    paths
}

/// What a person talks over.
trait Wire: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Wire for T {}

struct Play {
    /// Another server than ours.
    other: Option<SocketAddr>,
    server: Option<Arc<Server>>,
    settings: Vec<String>,
    people: BTreeMap<String, Person>,
    captured: HashMap<String, String>,
    /// When somebody began to send at once, if nothing has waited since.
    moment: Option<Instant>,
}

struct Person {
    jid: Jid,
    role: Role,
    stream: Option<Box<dyn Wire>>,
    header: Option<Header>,
    scanner: Scanner,
    input: Vec<u8>,
    /// What came last, as it came.
    raw: String,
    closed: bool,
    /// Came along with what was expected before.
    early: Vec<Element>,
}

/// How somebody enters.
#[derive(Clone)]
enum Role {
    /// Logged in, with a resource.
    User,
    /// Not logged in.
    Stranger,
    /// XEP-0114, with this secret.
    Component(String),
}

impl Role {
    fn content(&self) -> &'static str {
        match self {
            Role::User | Role::Stranger => "jabber:client",
            Role::Component(_) => "jabber:component:accept",
        }
    }
}

/// A client takes more than a server does: a whole roster, for one.
fn limits() -> Limits {
    Limits { element_bytes: 16 << 20, nodes: 1 << 20, ..Limits::default() }
}

impl Person {
    fn new(jid: Jid, role: Role) -> Person {
        Person {
            jid,
            role,
            stream: None,
            header: None,
            scanner: Scanner::new(limits()),
            input: Vec::new(),
            raw: String::new(),
            closed: false,
            early: Vec::new(),
        }
    }

    /// Takes apart what came.
    fn scan(&mut self, elements: &mut Vec<Element>) -> Result<(), String> {
        let input = std::mem::take(&mut self.input);
        self.raw = String::from_utf8_lossy(&input).into_owned();
        let mut rest = input.as_slice();
        while let Some(event) = self.scanner.next(&mut rest).map_err(|error| error.to_string())? {
            match event {
                Event::Element(element) => elements.push(element),
                Event::Close => self.closed = true,
                Event::Open(header) => self.header = Some(header),
                Event::Whitespace => {}
            }
        }
        Ok(())
    }

    fn begin(&mut self, stream: Box<dyn Wire>) {
        self.stream = Some(stream);
        self.header = None;
        self.scanner = Scanner::new(limits());
        self.input.clear();
        self.closed = false;
    }
}

impl Play {
    fn new(other: Option<SocketAddr>) -> Play {
        Play {
            other,
            server: None,
            settings: Vec::new(),
            people: BTreeMap::new(),
            captured: HashMap::new(),
            moment: None,
        }
    }

    async fn run(mut self, text: &str) -> Result<(), String> {
        let lines: Vec<&str> = text.lines().collect();
        let mut at = 0;
        // Another server may go another way and come back.
        let most = if self.other.is_some() { MOST_DIFFERENCES } else { 1 };
        let mut differences = Vec::new();
        while at < lines.len() {
            let line = lines[at].trim_end();
            let number = at + 1;
            at += 1;
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let mut block = String::new();
            while at < lines.len()
                && (lines[at].starts_with(' ')
                    || (lines[at].is_empty() && at + 1 < lines.len() && lines[at + 1].starts_with(' ')))
            {
                block.push_str(lines[at].trim());
                block.push('\n');
                at += 1;
            }
            if let Err(error) = self.line(line, block.trim()).await {
                differences.push(format!("line {number}: {line}\n{error}"));
                if differences.len() == most {
                    break;
                }
            }
        }
        if differences.is_empty() { Ok(()) } else { Err(differences.join("\n")) }
    }

    async fn line(&mut self, line: &str, block: &str) -> Result<(), String> {
        if line.ends_with(" at once:") {
            self.moment.get_or_insert_with(Instant::now);
        } else {
            self.moment = None;
        }
        if let Some(setting) = line.strip_prefix("set ") {
            self.settings.push(setting.to_owned());
            return Ok(());
        }
        if let Some(seconds) = line.strip_suffix(" seconds pass") {
            let seconds: u64 = seconds.parse().map_err(|_| "not a number")?;
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            return Ok(());
        }
        if let Some((name, wanted)) = line.strip_prefix("counted ").and_then(|rest| rest.split_once(" = ")) {
            return self.counted(name, wanted);
        }
        if let Some(series) = line.strip_prefix("measured ") {
            return self.measured(series);
        }
        let (name, action) = line.split_once(' ').ok_or("not a line of a play")?;
        if let Some(jid) = action.strip_prefix("is ").filter(|rest| rest.contains('@')) {
            let jid = Jid::parse(jid).map_err(|error| error.to_string())?;
            self.start(&jid).await?;
            self.people.insert(name.to_owned(), Person::new(jid, Role::User));
            if let Some(address) = self.other {
                // Makes the account.
                self.open_over_tcp(name, address).await?;
                self.person(name)?.stream = None;
            }
            return Ok(());
        }
        let role = match action.strip_prefix("is a stranger at ") {
            Some(domain) => Some((domain, Role::Stranger)),
            None => action
                .strip_prefix("is the component ")
                .and_then(|rest| rest.split_once(" with "))
                .map(|(domain, secret)| (domain, Role::Component(secret.to_owned()))),
        };
        if let Some((domain, role)) = role {
            self.start_server().await?;
            let jid = Jid::parse(domain).map_err(|error| error.to_string())?;
            self.people.insert(name.to_owned(), Person::new(jid, role));
            return Ok(());
        }
        if let Some(other) = action.strip_prefix("and ").and_then(|rest| rest.strip_suffix(" are friends")) {
            return self.befriend(name, other).await;
        }
        let name = name.trim_end_matches("'s");
        match action {
            "connects" => self.connect(name).await,
            "dials" => self.dial(name, TlsPolicy::Optional).await,
            "dials, TLS required" => self.dial(name, TlsPolicy::Required).await,
            "opens a stream" => {
                self.open(name).await?;
                self.arrived(name).await.map(drop)
            }
            "opens a stream for its features" => self.open(name).await,
            "seats himself" | "seats herself" => {
                let server = Arc::clone(self.server.as_ref().ok_or("no server")?);
                let account = self.person(name)?.jid.bare();
                server.seat(self.plug(name)?, &account);
                Ok(())
            }
            "begins anew" => {
                self.person(name)?.scanner.restart();
                Ok(())
            }
            "is online and keeps what comes" => {
                self.connect(name).await?;
                self.send(name, "<presence/>").await
            }
            "is online" => {
                self.connect(name).await?;
                self.send(name, "<presence/>").await?;
                self.arrived(name).await.map(drop)
            }
            "sends:" => {
                let xml = self.fill(block);
                self.send(name, &xml).await
            }
            "sends raw:" => {
                for piece in raw(&self.fill(block))? {
                    self.send_bytes(name, &piece).await?;
                }
                Ok(())
            }
            "sends a byte a second:" => {
                for byte in self.fill(block).bytes() {
                    if self.send_bytes(name, &[byte]).await.is_err() {
                        break;
                    }
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
                Ok(())
            }
            "sends at once:" => {
                let xml = self.fill(block);
                self.write(name, xml.as_bytes()).await
            }
            "receives at once:" => self.receive_at_once(name, block).await,
            "receives:" => self.receive(name, block, false).await,
            "receives in any order:" => self.receive(name, block, true).await,
            "receives the bytes:" => {
                let mut raw = String::new();
                for _ in 0..if self.other.is_some() { 20 } else { 1 } {
                    self.arrived(name).await?;
                    raw.push_str(&self.person(name)?.raw);
                    if self.person(name)?.closed || block.lines().all(|line| raw.contains(line)) {
                        break;
                    }
                }
                match block.lines().find(|line| !raw.contains(line)) {
                    None => Ok(()),
                    Some(line) => Err(format!("{line}\n  is not in {raw}")),
                }
            }
            "received the bytes in order:" => {
                self.arrived(name).await?;
                let mut raw = self.person(name)?.raw.as_str();
                for line in block.lines() {
                    raw = raw.split_once(line).ok_or_else(|| format!("{line}\n  is not in {raw}"))?.1;
                }
                Ok(())
            }
            "received no bytes:" => {
                let raw = &self.person(name)?.raw;
                if raw.contains(block) { Err(format!("it did: {raw}")) } else { Ok(()) }
            }
            "receives header:" => self.receive_header(name, block).await,
            "receives nothing" => match self.arrived(name).await?.first() {
                None => Ok(()),
                Some(element) => Err(format!("received {}", show(element))),
            },
            "breaks" => {
                self.person(name)?.stream = None;
                self.settle().await;
                Ok(())
            }
            "leaves" => {
                self.send(name, "</stream:stream>").await?;
                self.arrived(name).await.map(drop)
            }
            "stream ends" => {
                self.arrived(name).await?;
                if self.person(name)?.closed { Ok(()) } else { Err("the stream is open".into()) }
            }
            "forgets" => self.arrived(name).await.map(drop),
            _ if action.ends_with(" contacts") => self.know_many(name, action).await,
            _ => {
                let (times, how) = action
                    .strip_prefix("sends ")
                    .and_then(|rest| rest.split_once(' '))
                    .ok_or("not a line of a play")?;
                let xml = self.fill(block);
                for time in 0..times.parse::<usize>().map_err(|_| "not a number")? {
                    let xml = xml.replace("$#", &time.to_string());
                    match how {
                        "times:" => self.send(name, &xml).await?,
                        "times at once:" => self.write(name, xml.as_bytes()).await?,
                        _ => return Err("not a line of a play".into()),
                    }
                }
                Ok(())
            }
        }
    }

    async fn befriend(&mut self, one: &str, two: &str) -> Result<(), String> {
        let (first, second) = (self.person(one)?.jid.bare(), self.person(two)?.jid.bare());
        for (who, to) in [(one, &second), (two, &first)] {
            self.send(who, &format!("<presence to='{to}' type='subscribe'/>")).await?;
        }
        for (who, to) in [(one, &second), (two, &first)] {
            self.send(who, &format!("<presence to='{to}' type='subscribed'/>")).await?;
        }
        self.arrived(one).await?;
        self.arrived(two).await.map(drop)
    }

    async fn know_many(&mut self, name: &str, action: &str) -> Result<(), String> {
        let count = action.strip_prefix("has ").and_then(|rest| rest.strip_suffix(" contacts"));
        let count: usize = count.and_then(|count| count.parse().ok()).ok_or("how many?")?;
        let jid = self.person(name)?.jid.bare();
        let exchange = self.server.as_ref().ok_or("no server")?.exchange();
        let id = sql("SELECT id FROM accounts WHERE local = ?1").bind(jid.local().unwrap_or_default());
        let rows = exchange.db.read(id).await.map_err(|error| error.to_string())?;
        let id = rows.first().ok_or("no account")?.int(0);
        let item = Item {
            subscription: Subscription { to: true, from: true, ..Subscription::default() },
            listed: true,
            ..Item::default()
        };
        let mut batch = Batch::new(Lane::Inside);
        for n in 0..count {
            let contact = Jid::parse(&format!("c{n}@{}", jid.domain())).map_err(|error| error.to_string())?;
            roster::save(&mut batch, id, &contact, Some(&item), 1);
        }
        exchange.db.run(batch).await.map(drop).map_err(|error| error.to_string())
    }

    /// The series is there and not zero.
    fn measured(&self, series: &str) -> Result<(), String> {
        let text = self.server.as_ref().ok_or("no server")?.exchange().metrics.encode();
        let value = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        match value {
            None => Err("there is no such series".into()),
            Some("0" | "0.0") => Err("it is 0".into()),
            Some(_) => Ok(()),
        }
    }

    fn counted(&self, name: &str, wanted: &str) -> Result<(), String> {
        let server = self.server.as_ref().ok_or("no server")?;
        let got = server.exchange().metrics.refusals(Box::leak(name.to_owned().into_boxed_str()));
        if got.to_string() == wanted || (wanted == "*" && got > 0) {
            Ok(())
        } else {
            Err(format!("it was {got}"))
        }
    }

    fn person(&mut self, name: &str) -> Result<&mut Person, String> {
        self.people.get_mut(name).ok_or_else(|| format!("who is {name}?"))
    }

    /// Starts the server on first use.
    async fn start_server(&mut self) -> Result<(), String> {
        if self.server.is_none() {
            let mut presets = Overrides::default();
            let common = [
                "domain=north.localhost",
                "data_dir=/nonexistent",
                "clients.listen=[]",
                "federation.listen=[]",
            ];
            for setting in common.iter().copied().chain(self.settings.iter().map(String::as_str)) {
                presets.set(setting).map_err(|error| error.to_string())?;
            }
            let text = trunkline_server::config::template(&presets);
            let config = Config::parse(&text, Path::new("play.toml")).map_err(|error| error.to_string())?;
            let parts = Parts { clock: Clock::virtual_now(), in_memory: true, ..Parts::default() };
            self.server = Some(Server::start(config, parts).await.map_err(|error| error.to_string())?);
        }
        Ok(())
    }

    /// Starts the server on first use and makes the account.
    async fn start(&mut self, jid: &Jid) -> Result<(), String> {
        if self.other.is_some() {
            return Ok(());
        }
        self.start_server().await?;
        let server = self.server.as_ref().ok_or("no server")?;
        let exchange = server.exchange();
        let host = exchange.host(jid.domain()).ok_or("not a host of this server")?;
        let mut batch = Batch::new(Lane::Inside);
        batch.push(
            sql(
                "INSERT INTO accounts (host_id, local, created_at) VALUES (?1, ?2, 0) ON CONFLICT DO NOTHING",
            )
            .bind(host.id)
            .bind(jid.local().unwrap_or_default()),
        );
        exchange.db.run(batch).await.map(drop).map_err(|error| error.to_string())
    }

    async fn connect(&mut self, name: &str) -> Result<(), String> {
        self.open(name).await?;
        if matches!(self.person(name)?.role, Role::Component(_)) {
            return Ok(());
        }
        self.arrived_at_least(name, 1).await?;
        let person = self.person(name)?;
        if !matches!(person.role, Role::User) {
            return Ok(());
        }
        let bind = format!(
            "<iq type='set' id='bind'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'><resource>{}</resource></bind></iq>",
            person.jid.resource().unwrap_or_default()
        );
        self.send(name, &bind).await?;
        let answer = self.arrived_at_least(name, 1).await?;
        match answer.first() {
            Some(element) if element.root().attr("type").as_deref() == Some("result") => Ok(()),
            other => Err(format!("not bound: {:?}", other.map(show))),
        }
    }

    /// A stream, with its login if the person has an account.
    async fn open(&mut self, name: &str) -> Result<(), String> {
        if let Some(address) = self.other {
            return self.open_over_tcp(name, address).await;
        }
        let server = Arc::clone(self.server.as_ref().ok_or("no server")?);
        let person = self.person(name)?;
        let (jid, role) = (person.jid.clone(), person.role.clone());
        match role {
            Role::User => {
                let theirs = self.plug(name)?;
                server.seat(theirs, &jid.bare());
            }
            Role::Stranger => self.dial(name, TlsPolicy::Optional).await?,
            Role::Component(secret) => {
                let (ours, theirs) = tokio::io::duplex(64 * 1024);
                self.person(name)?.begin(Box::new(ours));
                let nowhere = SocketAddr::from(([192, 0, 2, 1], 40_000));
                tokio::spawn(component::serve(Arc::clone(server.exchange()), theirs, nowhere));
                self.send_header(name).await?;
                return self.shake_hands(name, &secret).await;
            }
        }
        self.send_header(name).await
    }

    async fn open_over_tcp(&mut self, name: &str, address: SocketAddr) -> Result<(), String> {
        let stream = tokio::net::TcpStream::connect(address).await.map_err(|error| error.to_string())?;
        let person = self.person(name)?;
        let local = person.jid.local().unwrap_or_default().to_owned();
        person.begin(Box::new(stream));
        self.send_header(name).await?;
        self.arrived_at_least(name, 1).await?;
        // The account may be there already.
        let register = format!(
            "<iq type='set' id='register'><query xmlns='jabber:iq:register'>\
             <username>{local}</username><password>secret</password></query></iq>"
        );
        self.send(name, &register).await?;
        self.arrived_at_least(name, 1).await?;
        let mut login = Scram::new(Hash::Sha1, &local, "secret", Binding::Unsupported)
            .map_err(|error| error.to_string())?;
        self.send(
            name,
            &format!(
                "<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='SCRAM-SHA-1'>{}</auth>",
                login.initial()
            ),
        )
        .await?;
        let challenge = self.arrived_at_least(name, 1).await?;
        let challenge = challenge.first().map(|element| element.root().text().into_owned());
        let response = login
            .respond(&challenge.unwrap_or_default())
            .map_err(|error| format!("not logged in: {error}"))?;
        self.send(name, &format!("<response xmlns='urn:ietf:params:xml:ns:xmpp-sasl'>{response}</response>"))
            .await?;
        match self.arrived_at_least(name, 1).await?.first() {
            Some(element) if element.root().name() == "success" => {}
            other => return Err(format!("not logged in: {:?}", other.map(show))),
        }
        self.person(name)?.scanner.restart();
        self.send_header(name).await
    }

    /// XEP-0114 s.3.
    async fn shake_hands(&mut self, name: &str, secret: &str) -> Result<(), String> {
        let person = self.person(name)?;
        let stream = person.stream.as_mut().ok_or("not connected")?;
        let mut buffer = [0; 4096];
        let read = stream.read(&mut buffer).await.map_err(|error| error.to_string())?;
        let mut rest = &buffer[..read];
        let Some(Event::Open(header)) = person.scanner.next(&mut rest).map_err(|error| error.to_string())?
        else {
            return Err("no header".into());
        };
        let id = header.root().attr("id").map(|id| id.into_owned()).unwrap_or_default();
        person.input = rest.to_vec();
        if person.input.is_empty() {
            let hash = aws_lc_rs::digest::digest(
                &aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY,
                format!("{id}{secret}").as_bytes(),
            );
            let hex: String = hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
            self.send(name, &format!("<handshake>{hex}</handshake>")).await?;
        }
        Ok(())
    }

    /// Without a header and without a login.
    async fn dial(&mut self, name: &str, policy: TlsPolicy) -> Result<(), String> {
        let server = Arc::clone(self.server.as_ref().ok_or("no server")?);
        let theirs = self.plug(name)?;
        server.accept(theirs, SocketAddr::from(([192, 0, 2, 1], 40_000)), Entry::StartTls(policy));
        Ok(())
    }

    /// Gives the person one end of a connection in memory.
    fn plug(&mut self, name: &str) -> Result<Transport, String> {
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        self.person(name)?.begin(Box::new(ours));
        Ok(Transport::from(theirs))
    }

    async fn send_header(&mut self, name: &str) -> Result<(), String> {
        let person = self.person(name)?;
        let open = format!(
            "<stream:stream to='{}' version='1.0' xmlns='{}' xmlns:stream='http://etherx.jabber.org/streams'>",
            person.jid.domain(),
            person.role.content()
        );
        self.send(name, &open).await
    }

    async fn send(&mut self, name: &str, xml: &str) -> Result<(), String> {
        self.send_bytes(name, xml.as_bytes()).await
    }

    async fn send_bytes(&mut self, name: &str, bytes: &[u8]) -> Result<(), String> {
        self.write(name, bytes).await?;
        self.settle().await;
        Ok(())
    }

    async fn write(&mut self, name: &str, bytes: &[u8]) -> Result<(), String> {
        let stream = self.person(name)?.stream.as_mut().ok_or("not connected")?;
        match tokio::time::timeout(Duration::from_secs(600), stream.write_all(bytes)).await {
            Ok(written) => written.map_err(|error| error.to_string()),
            Err(_) => Err("the server does not read".into()),
        }
    }

    /// Everything that has come until nobody moves any more.
    async fn arrived(&mut self, name: &str) -> Result<Vec<Element>, String> {
        self.settle().await;
        let patience = Duration::from_millis(if self.other.is_some() { 400 } else { 1 });
        let person = self.person(name)?;
        let mut elements = std::mem::take(&mut person.early);
        let Some(stream) = person.stream.as_mut() else { return Ok(elements) };
        loop {
            let mut buffer = [0; 4096];
            match tokio::time::timeout(patience, stream.read(&mut buffer)).await {
                Err(_) => break,
                Ok(Ok(0)) | Ok(Err(_)) => {
                    person.closed = true;
                    break;
                }
                Ok(Ok(read)) => person.input.extend_from_slice(&buffer[..read]),
            }
        }
        person.scan(&mut elements)?;
        Ok(elements)
    }

    /// The same; another server may be slow, and is waited for while it owes something.
    async fn arrived_at_least(&mut self, name: &str, count: usize) -> Result<Vec<Element>, String> {
        let mut elements = self.arrived(name).await?;
        for _ in 0..if self.other.is_some() { 20 } else { 0 } {
            if elements.len() >= count || self.person(name)?.closed {
                break;
            }
            elements.extend(self.arrived(name).await?);
        }
        Ok(elements)
    }

    /// Paused time moves on only when every task waits: until then what comes has come without waiting for anything.
    async fn receive_at_once(&mut self, name: &str, block: &str) -> Result<(), String> {
        let moment = self.moment;
        let expected = elements(block, self.person(name)?.role.content())?;
        let person = self.person(name)?;
        let mut arrived = std::mem::take(&mut person.early);
        while arrived.len() < expected.len() {
            let stream = person.stream.as_mut().ok_or("not connected")?;
            let mut buffer = [0; 4096];
            match tokio::time::timeout(Duration::from_millis(1), stream.read(&mut buffer)).await {
                Err(_) => return Err(format!("only {} came before everybody waited", arrived.len())),
                Ok(Ok(0)) | Ok(Err(_)) => return Err("the stream is closed".into()),
                Ok(Ok(read)) => person.input.extend_from_slice(&buffer[..read]),
            }
            person.scan(&mut arrived)?;
        }
        if moment != Some(Instant::now()) {
            return Err("time has passed".into());
        }
        for (wanted, got) in expected.iter().zip(&arrived) {
            matches(wanted.root(), got.root(), &mut self.captured)
                .map_err(|why| format!("{why}\n  expected {}\n  received {}", show(wanted), show(got)))?;
        }
        self.person(name)?.early = arrived.split_off(expected.len());
        Ok(())
    }

    async fn receive_header(&mut self, name: &str, block: &str) -> Result<(), String> {
        let arrived = self.arrived(name).await?;
        let wanted = elements(block, "jabber:client")?;
        let person = self.people.get_mut(name).ok_or("who?")?;
        let header = person.header.take().ok_or("no header came")?;
        let wanted = wanted.first().ok_or("what header?")?;
        matches(wanted.root(), header.root(), &mut self.captured)?;
        self.person(name)?.early = arrived;
        Ok(())
    }

    /// Lets the server do all it has to do: paused time moves on only when every task waits.
    async fn settle(&self) {
        tokio::time::sleep(Duration::from_millis(if self.other.is_some() { 100 } else { 5 })).await;
    }

    async fn receive(&mut self, name: &str, block: &str, any_order: bool) -> Result<(), String> {
        let expected = elements(block, self.person(name)?.role.content())?;
        let mut arrived = self.arrived_at_least(name, expected.len()).await?;
        for wanted in &expected {
            let place = if any_order {
                let mut captured = self.captured.clone();
                let place = arrived
                    .iter()
                    .position(|element| matches(wanted.root(), element.root(), &mut captured).is_ok());
                self.captured = captured;
                place
            } else {
                match arrived.first() {
                    Some(element) => {
                        if let Err(why) = matches(wanted.root(), element.root(), &mut self.captured) {
                            return Err(format!(
                                "{why}\n  expected {}\n  received {}",
                                show(wanted),
                                show(element)
                            ));
                        }
                        Some(0)
                    }
                    None => None,
                }
            };
            let Some(place) = place else {
                let others: Vec<String> = arrived.iter().map(show).collect();
                return Err(format!("did not receive {}\n  but {}", show(wanted), others.join("\n      ")));
            };
            arrived.remove(place);
        }
        match arrived.first() {
            None => Ok(()),
            Some(element) => Err(format!("also received {}", show(element))),
        }
    }

    fn fill(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for (name, value) in &self.captured {
            text = text.replace(&format!("${name}"), value);
        }
        while let Some((before, after)) = text.split_once("{{in ") {
            let Some((seconds, after)) = after.split_once(" seconds}}") else { break };
            let now = self.server.as_ref().map_or(0, |server| server.exchange().clock().now());
            let at = now + seconds.parse::<i64>().unwrap_or(0) * 1000;
            text = format!("{before}{}{after}", trunkline_xmpp::time::format_millis(at));
        }
        repeat(&text)
    }
}

/// The pieces of a raw block.
fn raw(block: &str) -> Result<Vec<Vec<u8>>, String> {
    let text: String = block.lines().collect();
    let mut pieces = vec![Vec::new()];
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        let mut bytes = [0; 4];
        let piece: &[u8] = if c != '\\' {
            c.encode_utf8(&mut bytes).as_bytes()
        } else {
            match chars.next() {
                Some('|') => {
                    pieces.push(Vec::new());
                    continue;
                }
                Some('n') => b"\n",
                Some('x') => {
                    let hex: String = chars.by_ref().take(2).collect();
                    bytes[0] = u8::from_str_radix(&hex, 16).map_err(|_| "\\x needs two digits")?;
                    &bytes[..1]
                }
                _ => return Err("an unknown escape".into()),
            }
        };
        pieces.last_mut().ok_or("no piece")?.extend_from_slice(piece);
    }
    Ok(pieces)
}

/// `{{text*N}}` is that text N times.
fn repeat(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("{{") {
        let Some((inside, after)) = after.split_once("}}") else { break };
        out.push_str(before);
        if let Some((what, times)) = inside.rsplit_once('*') {
            out.push_str(&what.repeat(times.parse().unwrap_or(1)));
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

fn elements(block: &str, content: &str) -> Result<Vec<Element>, String> {
    let document =
        format!("<stream:stream xmlns='{content}' xmlns:stream='http://etherx.jabber.org/streams'>{block}");
    let mut scanner = Scanner::new(limits());
    let mut rest = document.as_bytes();
    let mut elements = Vec::new();
    while let Some(event) = scanner.next(&mut rest).map_err(|error| format!("the play: {error}"))? {
        if let Event::Element(element) = event {
            elements.push(element);
        }
    }
    if scanner.buffered() > 0 {
        return Err("the play: an element is not closed".into());
    }
    Ok(elements)
}

fn show(element: &Element) -> String {
    String::from_utf8_lossy(element.bytes()).into_owned()
}

fn matches(wanted: Node<'_>, got: Node<'_>, captured: &mut HashMap<String, String>) -> Result<(), String> {
    if wanted.name() != got.name() || wanted.ns() != got.ns() {
        return Err(format!(
            "<{} xmlns='{}'> is not <{} xmlns='{}'>",
            got.name(),
            got.ns(),
            wanted.name(),
            wanted.ns()
        ));
    }
    for attr in wanted.attrs() {
        let value =
            if attr.ns().is_empty() { got.attr(attr.name()) } else { got.attr_ns(attr.ns(), attr.name()) };
        same_text(&attr.value(), value.as_deref(), captured)
            .map_err(|why| format!("attribute {} of <{}>: {why}", attr.name(), wanted.name()))?;
    }
    let text = wanted.text();
    if !text.trim().is_empty() {
        same_text(text.trim(), Some(got.text().trim()), captured)
            .map_err(|why| format!("text of <{}>: {why}", wanted.name()))?;
    }
    let mut rest: Vec<Node<'_>> = got.children().collect();
    let mut any = false;
    for child in wanted.children() {
        if child.name() == "any" {
            any = true;
            continue;
        }
        let mut why = format!("<{} xmlns='{}'/> is missing", child.name(), child.ns());
        let mut found = None;
        for (index, candidate) in rest.iter().enumerate() {
            let mut attempt = captured.clone();
            match matches(child, *candidate, &mut attempt) {
                Ok(()) => {
                    *captured = attempt;
                    found = Some(index);
                    break;
                }
                Err(reason) if candidate.name() == child.name() => why = reason,
                Err(_) => {}
            }
        }
        rest.remove(found.ok_or(why)?);
    }
    let extra = rest.iter().find(|node| !IGNORED.iter().any(|(ns, name)| node.is(ns, name)));
    match extra {
        Some(node) if !any => Err(format!("<{} xmlns='{}'/> was not expected", node.name(), node.ns())),
        _ => Ok(()),
    }
}

fn same_text(wanted: &str, got: Option<&str>, captured: &mut HashMap<String, String>) -> Result<(), String> {
    match (wanted, got) {
        ("-", None) | ("*", Some(_)) => Ok(()),
        ("-", Some(got)) => Err(format!("'{got}' should be absent")),
        (_, None) => Err("absent".into()),
        (wanted, Some(got)) if wanted.starts_with('~') => {
            // `~text$name` or `~text$name;text`: the name stands for a word within the text.
            let (start, rest) = wanted[1..].split_once('$').ok_or("~ without a name")?;
            let end = rest.find(|c: char| !c.is_alphanumeric()).unwrap_or(rest.len());
            let word = got.strip_prefix(start).and_then(|got| got.strip_suffix(&rest[end..]));
            let word = word.ok_or_else(|| format!("'{got}' is not '{wanted}'"))?;
            captured.insert(rest[..end].to_owned(), word.to_owned());
            Ok(())
        }
        (wanted, Some(got)) => {
            if let Some(name) = wanted.strip_prefix('$') {
                let known = captured.entry(name.to_owned()).or_insert_with(|| got.to_owned());
                return if known == got { Ok(()) } else { Err(format!("'{got}' is not '{known}'")) };
            }
            if wanted == got { Ok(()) } else { Err(format!("'{got}' is not '{wanted}'")) }
        }
    }
}
