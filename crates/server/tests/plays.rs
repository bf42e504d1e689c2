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
//! Romeo sends:                          indented XML follows, `$name` stands for what was captured
//! Romeo receives:                       indented XML follows: each element in this order, nothing between
//! Romeo receives in any order:
//! Romeo receives nothing
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

#![allow(clippy::unwrap_used, reason = "a play that cannot be read is a failed test")]

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use trunkline_server::config::overrides::Overrides;
use trunkline_server::config::{Config, TlsPolicy};
use trunkline_server::ids::Clock;
use trunkline_server::net::Transport;
use trunkline_server::serve::{Parts, Server};
use trunkline_server::session::component;
use trunkline_server::session::login::Entry;
use trunkline_store::{Batch, Lane, sql};
use trunkline_xml::{Element, Event, Limits, Node, Scanner};
use trunkline_xmpp::jid::Jid;

const IGNORED: [(&str, &str); 2] = [("urn:xmpp:sid:0", "stanza-id"), ("urn:xmpp:delay", "delay")];

#[test]
fn every_play() {
    let mut failed = Vec::new();
    let mut played = 0;
    for path in plays() {
        let text = std::fs::read_to_string(&path).unwrap();
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        played += 1;
        if let Err(error) = runtime.block_on(Play::run(&text)) {
            failed.push(format!("{}: {error}", path.file_name().unwrap_or_default().display()));
        }
    }
    assert!(played > 0, "there are no plays");
    assert!(failed.is_empty(), "{} of {played} plays failed:\n\n{}", failed.len(), failed.join("\n\n"));
}

fn plays() -> Vec<PathBuf> {
    let only = std::env::var("PLAY").ok();
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/plays"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "play"))
            .filter(|path| only.as_ref().is_none_or(|only| path.to_string_lossy().contains(only)))
            .collect();
    paths.sort();
    paths
}

struct Play {
    server: Option<Arc<Server>>,
    settings: Vec<String>,
    people: BTreeMap<String, Person>,
    captured: HashMap<String, String>,
}

struct Person {
    jid: Jid,
    role: Role,
    stream: Option<DuplexStream>,
    scanner: Scanner,
    input: Vec<u8>,
    closed: bool,
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
        if matches!(self, Role::Component(_)) { "jabber:component:accept" } else { "jabber:client" }
    }
}

impl Person {
    fn new(jid: Jid, role: Role) -> Person {
        Person {
            jid,
            role,
            stream: None,
            scanner: Scanner::new(Limits::default()),
            input: Vec::new(),
            closed: false,
        }
    }
}

impl Play {
    async fn run(text: &str) -> Result<(), String> {
        let mut play =
            Play { server: None, settings: Vec::new(), people: BTreeMap::new(), captured: HashMap::new() };
        let lines: Vec<&str> = text.lines().collect();
        let mut at = 0;
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
            play.line(line, block.trim()).await.map_err(|error| format!("line {number}: {line}\n{error}"))?;
        }
        Ok(())
    }

    async fn line(&mut self, line: &str, block: &str) -> Result<(), String> {
        if let Some(setting) = line.strip_prefix("set ") {
            self.settings.push(setting.to_owned());
            return Ok(());
        }
        if let Some(seconds) = line.strip_suffix(" seconds pass") {
            let seconds: u64 = seconds.parse().map_err(|_| "not a number")?;
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            return Ok(());
        }
        let (name, action) = line.split_once(' ').ok_or("not a line of a play")?;
        if let Some(jid) = action.strip_prefix("is ").filter(|rest| rest.contains('@')) {
            let jid = Jid::parse(jid).map_err(|error| error.to_string())?;
            self.start(&jid).await?;
            self.people.insert(name.to_owned(), Person::new(jid, Role::User));
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
        let name = name.trim_end_matches("'s");
        match action {
            "connects" => self.connect(name).await,
            "is online" => {
                self.connect(name).await?;
                self.send(name, "<presence/>").await?;
                self.arrived(name).await.map(drop)
            }
            "sends:" => {
                let xml = self.fill(block);
                self.send(name, &xml).await
            }
            "receives:" => self.receive(name, block, false).await,
            "receives in any order:" => self.receive(name, block, true).await,
            "receives nothing" => match self.arrived(name).await?.first() {
                None => Ok(()),
                Some(element) => Err(format!("received {}", show(element))),
            },
            "breaks" => {
                self.person(name)?.stream = None;
                settle().await;
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
            _ => Err("not a line of a play".into()),
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
        let server = Arc::clone(self.server.as_ref().ok_or("no server")?);
        let person = self.person(name)?;
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        person.stream = Some(ours);
        person.scanner = Scanner::new(Limits::default());
        person.input.clear();
        person.closed = false;
        let (jid, role) = (person.jid.clone(), person.role.clone());
        let nowhere = SocketAddr::from(([192, 0, 2, 1], 40_000));
        match &role {
            Role::User => server.seat(Transport::from(theirs), &jid.bare()),
            Role::Stranger => {
                server.accept(Transport::from(theirs), nowhere, Entry::StartTls(TlsPolicy::Optional));
            }
            Role::Component(_) => {
                let exchange = Arc::clone(server.exchange());
                tokio::spawn(component::serve(exchange, theirs, nowhere));
            }
        }
        let open = format!(
            "<stream:stream to='{}' version='1.0' xmlns='{}' xmlns:stream='http://etherx.jabber.org/streams'>",
            jid.domain(),
            role.content()
        );
        self.send(name, &open).await?;
        match role {
            Role::User => drop(self.arrived(name).await?),
            Role::Stranger => return self.arrived(name).await.map(drop),
            Role::Component(secret) => return self.shake_hands(name, &secret).await,
        }
        let bind = format!(
            "<iq type='set' id='bind'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'><resource>{}</resource></bind></iq>",
            jid.resource().unwrap_or_default()
        );
        self.send(name, &bind).await?;
        let answer = self.arrived(name).await?;
        match answer.first() {
            Some(element) if element.root().attr("type").as_deref() == Some("result") => Ok(()),
            other => Err(format!("not bound: {:?}", other.map(show))),
        }
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

    async fn send(&mut self, name: &str, xml: &str) -> Result<(), String> {
        let person = self.person(name)?;
        let stream = person.stream.as_mut().ok_or("not connected")?;
        stream.write_all(xml.as_bytes()).await.map_err(|error| error.to_string())?;
        settle().await;
        Ok(())
    }

    /// Everything that has come until nobody moves any more.
    async fn arrived(&mut self, name: &str) -> Result<Vec<Element>, String> {
        settle().await;
        let person = self.person(name)?;
        let mut elements = Vec::new();
        let Some(stream) = person.stream.as_mut() else { return Ok(elements) };
        loop {
            let mut buffer = [0; 4096];
            match tokio::time::timeout(Duration::from_millis(1), stream.read(&mut buffer)).await {
                Err(_) => break,
                Ok(Ok(0)) | Ok(Err(_)) => {
                    person.closed = true;
                    break;
                }
                Ok(Ok(read)) => person.input.extend_from_slice(&buffer[..read]),
            }
        }
        let input = std::mem::take(&mut person.input);
        let mut rest = input.as_slice();
        while let Some(event) = person.scanner.next(&mut rest).map_err(|error| error.to_string())? {
            match event {
                Event::Element(element) => elements.push(element),
                Event::Close => person.closed = true,
                Event::Open(_) | Event::Whitespace => {}
            }
        }
        Ok(elements)
    }

    async fn receive(&mut self, name: &str, block: &str, any_order: bool) -> Result<(), String> {
        let mut arrived = self.arrived(name).await?;
        let expected = elements(block, self.person(name)?.role.content())?;
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
        text
    }
}

/// Lets the server do all it has to do: paused time moves on only when every task waits.
async fn settle() {
    tokio::time::sleep(Duration::from_millis(5)).await;
}

fn elements(block: &str, content: &str) -> Result<Vec<Element>, String> {
    let document =
        format!("<stream:stream xmlns='{content}' xmlns:stream='http://etherx.jabber.org/streams'>{block}");
    let mut scanner = Scanner::new(Limits::default());
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
