//! A server on a disk that can fail, and people with clients, in one process. Tests that pause tokio's clock see the
//! same run every time.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use trunkline_server::config::Config;
use trunkline_server::config::overrides::Overrides;
use trunkline_server::ids::Clock;
use trunkline_server::net::Transport;
use trunkline_server::serve::{Parts, Server, StartError};
use trunkline_store::testvfs::TestDisk;
use trunkline_store::{Batch, Db, Lane, Options, Rows, Statement, sql};
use trunkline_xml::{Element, Event, Limits, Scanner};
use trunkline_xmpp::jid::Jid;

pub(crate) const DOMAIN: &str = "north.localhost";
const SM: &str = "urn:xmpp:sm:3";

/// One machine: its disk stays, its servers come and go.
pub(crate) struct World {
    pub(crate) disk: TestDisk,
    pub(crate) options: Options,
    pub(crate) clock: Clock,
    pub(crate) settings: Vec<&'static str>,
    server: Option<Arc<Server>>,
}

impl World {
    /// With a disk in memory, everything on this thread, in paused time.
    pub(crate) fn new() -> World {
        World::with_clock(Clock::virtual_now())
    }

    pub(crate) fn with_clock(clock: Clock) -> World {
        let disk = TestDisk::new();
        let options = Options {
            vfs: Some(disk.name().into()),
            inline: true,
            ..Options::file("trunkline.sqlite", trunkline_server::schema::MIGRATIONS)
        };
        World { disk, options, clock, settings: Vec::new(), server: None }
    }

    pub(crate) async fn start(&mut self) -> Result<(), StartError> {
        let mut presets = Overrides::default();
        let common = [
            "domain=north.localhost",
            "data_dir=/nonexistent",
            "clients.listen=[]",
            "federation.listen=[]",
            "limits.enabled=false",
        ];
        for setting in common.iter().chain(&self.settings) {
            presets.set(setting).unwrap();
        }
        let text = trunkline_server::config::template(&presets);
        let config = Config::parse(&text, Path::new("durability.toml")).unwrap();
        let parts = Parts { clock: self.clock.clone(), in_memory: true, store: Some(self.options.clone()) };
        self.server = Some(Server::start(config, parts).await?);
        Ok(())
    }

    pub(crate) fn server(&self) -> &Arc<Server> {
        self.server.as_ref().expect("the server runs")
    }

    pub(crate) fn db(&self) -> &Db {
        &self.server().exchange().db
    }

    /// A clean stop.
    pub(crate) async fn stop(&mut self) {
        if let Some(server) = self.server.take() {
            server.stop().await;
        }
    }

    /// The process is gone without a word; so are its connections, as the people will notice.
    pub(crate) fn kill(&mut self) {
        self.disk.power_cut();
        self.server = None;
    }

    pub(crate) async fn add(&self, locals: &[&str]) {
        let host = self.server().exchange().host(DOMAIN).unwrap().id;
        for local in locals {
            let insert = sql("INSERT INTO accounts (host_id, local, created_at) VALUES (?1, ?2, 0)");
            self.db().run(Batch::new(Lane::Inside).with(insert.bind(host).bind(*local))).await.unwrap();
        }
    }

    pub(crate) async fn read(&self, statement: Statement) -> Rows {
        self.db().read(statement).await.unwrap()
    }
}

/// Lets the server do all it has to do: paused time moves on only when every task waits.
pub(crate) async fn settle() {
    tokio::time::sleep(Duration::from_millis(5)).await;
}

/// Stream management, as a client sees it.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) id: Option<String>,
    pub(crate) received: u32,
    pub(crate) acked: u32,
    pub(crate) unacked: VecDeque<String>,
    /// `h` of every `<a/>`.
    pub(crate) answers: Vec<u32>,
}

/// Somebody with a client.
pub(crate) struct Person {
    pub(crate) jid: Jid,
    stream: Option<DuplexStream>,
    scanner: Scanner,
    pub(crate) closed: bool,
    pub(crate) counts: Option<Counts>,
    /// Answers `<r/>`.
    pub(crate) polite: bool,
    /// What has come and was not looked at.
    pub(crate) inbox: Vec<Element>,
    /// Bytes the connection takes before it is full.
    pub(crate) pipe: usize,
}

impl Person {
    pub(crate) fn new(jid: &str) -> Person {
        Person {
            jid: Jid::parse(jid).unwrap(),
            stream: None,
            scanner: Scanner::new(Limits::default()),
            closed: true,
            counts: None,
            polite: true,
            inbox: Vec::new(),
            pipe: 64 * 1024,
        }
    }

    async fn open(&mut self, world: &World) {
        let (ours, theirs) = tokio::io::duplex(self.pipe);
        self.stream = Some(ours);
        self.scanner = Scanner::new(Limits::default());
        self.closed = false;
        self.inbox.retain(|element| element.root().ns() == "jabber:client");
        world.server().seat(Transport::from(theirs), &self.jid.bare());
        self.write(&format!(
            "<stream:stream to='{DOMAIN}' version='1.0' xmlns='jabber:client' \
             xmlns:stream='http://etherx.jabber.org/streams'>"
        ))
        .await;
        self.wait("features", |element| element.root().name() == "features").await;
    }

    /// A new session. False: the server did not give one.
    pub(crate) async fn connect(&mut self, world: &World) -> bool {
        self.counts = None;
        self.inbox.clear();
        self.open(world).await;
        self.write(&format!(
            "<iq type='set' id='bind'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'>\
             <resource>{}</resource></bind></iq>",
            self.jid.resource().unwrap()
        ))
        .await;
        self.wait("to be bound", |element| element.root().attr("id").as_deref() == Some("bind"))
            .await
            .is_some()
    }

    /// XEP-0198 s.3.
    pub(crate) async fn enable(&mut self) {
        self.write(&format!("<enable xmlns='{SM}' resume='true'/>")).await;
        if let Some(enabled) = self.wait("<enabled/>", |element| element.root().name() == "enabled").await {
            let id = enabled.root().attr("id").map(|id| id.into_owned());
            self.counts = Some(Counts { id, ..Counts::default() });
        }
    }

    /// A new session with stream management and initial presence.
    pub(crate) async fn online(&mut self, world: &World) -> bool {
        if !self.connect(world).await {
            return false;
        }
        self.enable().await;
        self.send("<presence/>").await;
        self.look().await;
        true
    }

    /// XEP-0198 s.5: takes up the session, sends again what was not acknowledged. The server's `h`, or the element
    /// that came instead of `<resumed/>`.
    pub(crate) async fn resume(&mut self, world: &World) -> Result<u32, Option<Element>> {
        let counts = self.counts.as_ref().expect("stream management was on");
        let (id, h) = (counts.id.clone().expect("a resumable session"), counts.received);
        self.resume_as(world, &id, h).await
    }

    pub(crate) async fn resume_as(
        &mut self,
        world: &World,
        id: &str,
        h: u32,
    ) -> Result<u32, Option<Element>> {
        self.open(world).await;
        self.write(&format!("<resume xmlns='{SM}' previd='{id}' h='{h}'/>")).await;
        let answer = self.wait("an answer to <resume/>", |element| {
            ["resumed", "failed", "error"].contains(&element.root().name())
        });
        let answer = answer.await;
        let resumed = answer.as_ref().filter(|element| element.root().name() == "resumed");
        let Some(h) = resumed.and_then(|element| element.root().attr("h")?.parse().ok()) else {
            return Err(answer);
        };
        self.acknowledged(h);
        let again = self.counts.as_ref().map(|counts| counts.unacked.clone()).unwrap_or_default();
        for stanza in again {
            self.write(&stanza).await;
        }
        Ok(h)
    }

    /// Asks to resume and does not wait for the answer.
    pub(crate) async fn half_resume(&mut self, world: &World) {
        let counts = self.counts.as_ref().expect("stream management was on");
        let (id, h) = (counts.id.clone().expect("a resumable session"), counts.received);
        self.open(world).await;
        // The answer does not fit.
        self.write(&format!("<resume xmlns='{SM}' previd='{id}' h='{h}'/>")).await;
    }

    /// Reads until the last `<a/>` that came since the call says `h`.
    pub(crate) async fn wait_for_answer(&mut self, h: u32) {
        let before = self.counts.as_ref().map_or(0, |counts| counts.answers.len());
        loop {
            let answers = self.counts.as_ref().map_or(&[][..], |counts| &counts.answers[..]);
            if answers.len() > before {
                assert_eq!(answers.last(), Some(&h));
                return;
            }
            assert!(self.read(Duration::from_secs(20)).await, "no <a/>");
        }
    }

    /// Sends a stanza.
    pub(crate) async fn send(&mut self, stanza: &str) {
        if let Some(counts) = &mut self.counts {
            counts.unacked.push_back(stanza.to_owned());
        }
        self.write(stanza).await;
    }

    /// Sends `<r/>`.
    pub(crate) async fn ask(&mut self) {
        self.write(&format!("<r xmlns='{SM}'/>")).await;
    }

    /// Sends what is no stanza, or is not to be counted. That nobody takes it shows elsewhere.
    pub(crate) async fn write(&mut self, bytes: &str) {
        if let Some(stream) = &mut self.stream {
            let _ = stream.write_all(bytes.as_bytes()).await;
        }
    }

    /// The connection is gone without a word.
    pub(crate) async fn vanish(&mut self) {
        self.stream = None;
        self.closed = true;
        settle().await;
    }

    /// Reads all that comes until nobody moves any more; it goes to the inbox.
    pub(crate) async fn look(&mut self) {
        settle().await;
        while self.read(Duration::from_millis(2)).await {}
    }

    /// Everything that came.
    pub(crate) async fn all(&mut self) -> Vec<Element> {
        self.look().await;
        std::mem::take(&mut self.inbox)
    }

    /// Reads until an element comes that is `wanted`; it is taken out of the inbox.
    pub(crate) async fn wait(&mut self, what: &str, wanted: impl Fn(&Element) -> bool) -> Option<Element> {
        let mut seen = 0;
        loop {
            if let Some(at) = self.inbox[seen..].iter().position(&wanted) {
                return Some(self.inbox.remove(seen + at));
            }
            seen = self.inbox.len();
            if self.closed || !self.read(Duration::from_secs(20)).await {
                if !self.closed {
                    let got: Vec<String> = self.inbox.iter().map(show).collect();
                    panic!("{} waits for {what} and got {got:?}", self.jid);
                }
                if self.inbox.len() == seen {
                    return None;
                }
            }
        }
    }

    /// Reads once. False: nothing came, or it is over.
    async fn read(&mut self, within: Duration) -> bool {
        let Some(stream) = self.stream.as_mut() else { return false };
        let mut buffer = vec![0; 16 * 1024];
        let read = match tokio::time::timeout(within, stream.read(&mut buffer)).await {
            Err(_) => return false,
            Ok(Ok(0)) | Ok(Err(_)) => {
                self.closed = true;
                return false;
            }
            Ok(Ok(read)) => read,
        };
        let mut rest = &buffer[..read];
        while let Some(event) = self.scanner.next(&mut rest).unwrap() {
            match event {
                Event::Element(element) => self.take_in(element).await,
                Event::Close => self.closed = true,
                Event::Open(_) | Event::Whitespace => {}
            }
        }
        true
    }

    async fn take_in(&mut self, element: Element) {
        let root = element.root();
        match (root.ns(), root.name()) {
            (SM, "r") if self.polite => {
                let h = self.counts.as_ref().map_or(0, |counts| counts.received);
                self.write(&format!("<a xmlns='{SM}' h='{h}'/>")).await;
            }
            (SM, "r") => {}
            (SM, "a") => {
                let h = root.attr("h").unwrap().parse().unwrap();
                self.acknowledged(h);
                if let Some(counts) = &mut self.counts {
                    counts.answers.push(h);
                }
            }
            ("jabber:client", _) => {
                if let Some(counts) = &mut self.counts {
                    counts.received = counts.received.wrapping_add(1);
                }
                self.inbox.push(element);
            }
            _ => self.inbox.push(element),
        }
    }

    fn acknowledged(&mut self, h: u32) {
        let Some(counts) = &mut self.counts else { return };
        let newly = h.wrapping_sub(counts.acked) as usize;
        assert!(newly <= counts.unacked.len(), "{}: h={h} is more than was sent: {counts:?}", self.jid);
        counts.unacked.drain(..newly);
        counts.acked = h;
    }
}

pub(crate) fn show(element: &Element) -> String {
    String::from_utf8_lossy(element.bytes()).into_owned()
}

/// The ids of the messages among these, in order.
pub(crate) fn message_ids(elements: &[Element]) -> Vec<String> {
    elements
        .iter()
        .filter(|element| element.root().name() == "message")
        .filter_map(|element| element.root().attr("id").map(|id| id.into_owned()))
        .collect()
}

/// It carries a delay (XEP-0203).
pub(crate) fn is_delayed(element: &Element) -> bool {
    element.root().child("urn:xmpp:delay", "delay").is_some()
}

/// Runs a test in paused time on one thread.
pub(crate) fn paused(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap()
        .block_on(test);
}
