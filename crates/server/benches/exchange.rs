//! Instructions that messages and presence take inside the server, without TLS, with the store inline and in memory:
//! `cargo xtask bench --instructions`.
//!
//! One thread, paused time and fixed input: nothing but the random keys of hash tables differs from run to run.

#![allow(missing_docs, clippy::unwrap_used, reason = "benches")]

use std::path::Path;
use std::sync::Arc;

use gungraun::prelude::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::runtime::Runtime;
use trunkline_server::config::Config;
use trunkline_server::config::overrides::Overrides;
use trunkline_server::exchange::Exchange;
use trunkline_server::ids::Clock;
use trunkline_server::log;
use trunkline_server::net::Transport;
use trunkline_server::route::roster::{self, Item};
use trunkline_server::route::subscription::Subscription;
use trunkline_server::route::{Mail, Origin, Routed};
use trunkline_server::serve::{Parts, Server};
use trunkline_store::{Batch, Lane, sql};
use trunkline_xmpp::jid::Jid;
use trunkline_xmpp::stanza::Stanza;

// As in the server: what allocations take is part of the figure.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const DOMAIN: &str = "north.example";
const BODY: &str = "<body>Good night, good night! Parting is such sweet sorrow, that I shall say good night till it \
    be morrow.</body>";
const NO_STORE: &str = "<no-store xmlns='urn:xmpp:hints'/>";

/// A server and the clients that are connected to it.
struct Scene {
    runtime: Runtime,
    server: Arc<Server>,
    clients: Vec<Client>,
}

struct Client {
    jid: Jid,
    stream: DuplexStream,
    /// Read into again and again: filling new ones with zeros would be most of the figure.
    buffer: Box<[u8]>,
}

impl Scene {
    /// A server without anybody.
    fn new() -> Scene {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let mut settings = Overrides::default();
        for setting in [
            format!("domain={DOMAIN}").as_str(),
            "data_dir=/nonexistent",
            "clients.listen=[]",
            "federation.listen=[]",
            // The rate is looked at and never reached.
            "limits.client_stanzas_burst=1000000",
            "limits.client_bytes_burst=1000000000",
        ] {
            settings.set(setting).unwrap();
        }
        let text = trunkline_server::config::template(&settings);
        let config = Config::parse(&text, Path::new("bench.toml")).unwrap();
        let server = runtime.block_on(async {
            let parts = Parts { clock: Clock::virtual_now(), in_memory: true, ..Parts::default() };
            Server::start(config, parts).await.unwrap()
        });
        Scene { runtime, server, clients: Vec::new() }
    }

    fn exchange(&self) -> &Arc<Exchange> {
        self.server.exchange()
    }

    fn write(&self, batch: Batch) {
        self.runtime.block_on(self.exchange().db.run(batch)).unwrap();
    }

    /// Makes the account with that number.
    fn account(&self, id: i64, local: &str) {
        let host = self.exchange().host(DOMAIN).unwrap().id;
        self.write(
            Batch::new(Lane::Inside).with(
                sql("INSERT INTO accounts (id, host_id, local, created_at) VALUES (?1, ?2, ?3, 0)")
                    .bind(id)
                    .bind(host)
                    .bind(local),
            ),
        );
    }

    /// The account's client is connected and available; whatever that brings has been read.
    fn enter(&mut self, jid: &str) {
        let jid = Jid::parse(jid).unwrap();
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        let enter = format!(
            "<stream:stream to='{DOMAIN}' version='1.0' xmlns='jabber:client' \
             xmlns:stream='http://etherx.jabber.org/streams'><iq type='set' id='bind'>\
             <bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'><resource>{}</resource></bind></iq><presence/>",
            jid.resource().unwrap()
        );
        self.runtime.block_on(async {
            self.server.seat(Transport::from(theirs), &jid.bare());
            let mut client = Client { jid, stream: ours, buffer: vec![0; 8 * 1024].into() };
            client.say(&enter).await;
            let came = client.hear_all().await;
            assert!(came.contains("<presence"), "{came}");
            self.clients.push(client);
        });
    }

    fn forget_all(&mut self) {
        self.runtime.block_on(async {
            for client in &mut self.clients {
                client.hear_all().await;
            }
        });
    }
}

impl Client {
    async fn say(&mut self, xml: &str) {
        self.stream.write_all(xml.as_bytes()).await.unwrap();
    }

    /// Reads as many bytes as are expected, no more and no less.
    async fn hear(&mut self, bytes: usize) {
        let mut heard = 0;
        while heard < bytes {
            let read = self.stream.read(&mut self.buffer).await.unwrap();
            heard += read;
            assert!(read > 0 && heard <= bytes && self.buffer[read - 1] == b'>');
        }
    }

    /// What comes until nobody moves any more.
    async fn hear_all(&mut self) -> String {
        let mut all = Vec::new();
        let pause = std::time::Duration::from_millis(5);
        while let Ok(read) = tokio::time::timeout(pause, self.stream.read(&mut self.buffer)).await {
            let read = read.unwrap();
            assert_ne!(read, 0, "the server has closed the stream");
            all.extend_from_slice(&self.buffer[..read]);
        }
        String::from_utf8(all).unwrap()
    }
}

/// A hundred parsed messages from one account to another that is online, to be routed.
struct Post {
    scene: Scene,
    mails: Vec<Mail>,
}

fn post() -> Post {
    let scene = couple();
    let exchange = scene.exchange();
    let session = {
        let romeo = exchange.accounts.online(&scene.clients[0].jid).unwrap();
        let state = romeo.state();
        Arc::clone(&state.resources[0].session)
    };
    let (from, to) = (&scene.clients[0].jid, &scene.clients[1].jid);
    let mut mails: Vec<Mail> = (0..101)
        .map(|n| {
            let xml = format!(
                "<message xmlns='jabber:client' from='{from}' to='{to}' type='chat' id='m{n:03}'>\
                 {BODY}{NO_STORE}</message>"
            );
            let origin = Origin::Client(Arc::clone(&session));
            Mail::new(Stanza::parse(xml.as_bytes()).unwrap(), origin)
        })
        .collect();
    let first = mails.remove(0);
    let mut scene = scene;
    scene.runtime.block_on(async { assert!(matches!(scene.server.exchange().route(first), Routed::Done)) });
    scene.forget_all();
    Post { scene, mails }
}

fn couple() -> Scene {
    let mut scene = Scene::new();
    scene.account(1, "romeo");
    scene.account(2, "juliet");
    scene.enter(&format!("romeo@{DOMAIN}/orchard"));
    scene.enter(&format!("juliet@{DOMAIN}/balcony"));
    scene
}

/// Two clients; the first writes messages, some at a time, to the second.
struct Chat {
    scene: Scene,
    bursts: Vec<String>,
    /// What arrives of each burst.
    bytes: usize,
}

fn chat(hint: &str, window: usize, times: usize) -> Chat {
    let mut scene = couple();
    let to = scene.clients[1].jid.clone();
    let message = |n: usize| format!("<message to='{to}' type='chat' id='m{n:03}'>{BODY}{hint}</message>");
    let bursts = (0..times / window).map(|burst| (0..window).map(|n| message(burst * window + n)).collect());
    let bursts: Vec<String> = bursts.collect();
    let Scene { runtime, clients, .. } = &mut scene;
    let heard = runtime.block_on(async {
        clients[0].say(&bursts[0]).await;
        clients[1].hear_all().await
    });
    assert_eq!(heard.matches("</message>").count(), window, "{heard}");
    Chat { bytes: heard.len(), scene, bursts }
}

fn converse(chat: &mut Chat) {
    let [romeo, juliet] = &mut chat.scene.clients[..] else { return };
    chat.scene.runtime.block_on(async {
        for burst in &chat.bursts {
            romeo.say(burst).await;
            juliet.hear(chat.bytes).await;
        }
    });
}

/// The first client says something that reaches each of the others.
struct News {
    scene: Scene,
    text: String,
    /// What arrives at each.
    bytes: usize,
}

impl News {
    fn new(mut scene: Scene, text: String) -> News {
        scene.forget_all();
        let Scene { runtime, clients, .. } = &mut scene;
        let mut arrived = runtime.block_on(async {
            clients[0].say(&text).await;
            let mut arrived = Vec::new();
            for client in &mut clients[1..] {
                arrived.push(client.hear_all().await);
            }
            // Presence comes back to the one who sent it.
            clients[0].hear_all().await;
            arrived
        });
        arrived.dedup_by_key(|heard| heard.len());
        assert!(matches!(&arrived[..], [heard] if !heard.is_empty()), "{arrived:?}");
        News { bytes: arrived[0].len(), scene, text }
    }
}

fn spread(news: &mut News) {
    let Some((first, others)) = news.scene.clients.split_first_mut() else { return };
    news.scene.runtime.block_on(async {
        first.say(&news.text).await;
        for other in others {
            other.hear(news.bytes).await;
        }
    });
}

/// Somebody with a thousand contacts, each with one device.
fn popular() -> News {
    const CONTACTS: i64 = 1000;
    let mut scene = Scene::new();
    let hub = Jid::parse(&format!("hub@{DOMAIN}")).unwrap();
    let contact = |n: i64| Jid::parse(&format!("contact{n:04}@{DOMAIN}")).unwrap();
    let both = Subscription { to: true, from: true, ..Subscription::default() };
    let item = Item { listed: true, subscription: both, version: 1, ..Item::default() };
    scene.account(1, "hub");
    for n in 0..CONTACTS {
        let (id, jid) = (n + 2, contact(n));
        scene.account(id, jid.local().unwrap());
        let mut batch = Batch::new(Lane::Inside);
        roster::save(&mut batch, id, &hub, Some(&item), 1);
        roster::save(&mut batch, 1, &jid, Some(&item), 1);
        scene.write(batch);
    }
    scene.enter(&format!("{hub}/desk"));
    for n in 0..CONTACTS {
        scene.enter(&format!("{}/phone", contact(n)));
    }
    News::new(scene, "<presence><show>away</show></presence>".to_owned())
}

/// Romeo, and Juliet with eight devices.
fn devices() -> News {
    let mut scene = Scene::new();
    scene.account(1, "romeo");
    scene.account(2, "juliet");
    scene.enter(&format!("romeo@{DOMAIN}/orchard"));
    for device in 0..8 {
        scene.enter(&format!("juliet@{DOMAIN}/device{device}"));
    }
    News::new(scene, format!("<message to='juliet@{DOMAIN}' type='chat' id='m'>{BODY}{NO_STORE}</message>"))
}

/// A hundred messages to be kept for their sender and their receiver.
struct Archive {
    scene: Scene,
    stanzas: Vec<Stanza>,
    romeo: Jid,
    juliet: Jid,
}

fn archive() -> Archive {
    let scene = Scene::new();
    scene.account(1, "romeo");
    scene.account(2, "juliet");
    let jid = |name: &str| Jid::parse(&format!("{name}@{DOMAIN}")).unwrap();
    let (romeo, juliet) = (jid("romeo"), jid("juliet"));
    let stanzas = (0..101)
        .map(|n| {
            let xml = format!(
                "<message xmlns='jabber:client' from='{romeo}/orchard' to='{juliet}/balcony' type='chat' \
                 id='m{n:03}'>{BODY}</message>"
            );
            Stanza::parse(xml.as_bytes()).unwrap()
        })
        .collect();
    let mut archive = Archive { scene, stanzas, romeo, juliet };
    let first = archive.stanzas.remove(0);
    keep(&archive, &first);
    archive
}

/// The rows of a message between two accounts of ours: the sender's, and the receiver's with the note that it waits.
fn keep(archive: &Archive, stanza: &Stanza) {
    let exchange = archive.scene.exchange();
    let submit = |batch| exchange.db.submit(batch, |result| drop(result.unwrap()));
    let mut batch = Batch::new(Lane::Inside);
    let id = exchange.ids.next();
    let sent = log::Entry { id, account: 1, peer: &archive.juliet, flags: log::SENT, stanza };
    log::archive(&mut batch, &sent);
    submit(batch);
    let mut batch = Batch::new(Lane::Inside);
    let id = exchange.ids.next();
    let received = log::Entry { id, account: 2, peer: &archive.romeo, flags: 0, stanza };
    log::await_delivery(&mut batch, &received);
    submit(batch);
}

// `Exchange::route` to the receiver's outbox.
#[library_benchmark]
#[bench::message_x100(setup = post)]
fn route(post: Post) -> Scene {
    let Post { scene, mails } = post;
    scene.runtime.block_on(async {
        for mail in mails {
            assert!(matches!(scene.server.exchange().route(mail), Routed::Done));
        }
    });
    scene
}

// Socket to socket: scan, admit, route, outbox, write, and the runtime's share.
#[library_benchmark]
#[bench::unstored_x100(args = (NO_STORE, 1, 100), setup = chat)]
#[bench::unstored_window_16_x96(args = (NO_STORE, 16, 96), setup = chat)]
#[bench::archived_x100(args = ("", 1, 100), setup = chat)]
fn message(mut chat: Chat) -> Chat {
    converse(&mut chat);
    chat
}

// Socket to sockets, as above.
#[library_benchmark]
#[bench::presence_to_contacts_x1000(setup = popular)]
#[bench::message_to_devices_x8(setup = devices)]
fn fan_out(mut news: News) -> News {
    spread(&mut news);
    news
}

// Each message in two transactions of its own, as when nobody else writes.
#[library_benchmark]
#[bench::message_x100(setup = archive)]
fn archive_write(archive: Archive) -> Archive {
    for stanza in &archive.stanzas {
        keep(&archive, stanza);
    }
    archive
}

library_benchmark_group!(name = exchange, benchmarks = [route, message, fan_out, archive_write]);
main!(library_benchmark_groups = exchange);
