//! The archive on a disk, with the store's threads: what was sent a moment ago is in it.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::Path;
use std::sync::Arc;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use trunkline_server::config::Config;
use trunkline_server::config::overrides::Overrides;
use trunkline_server::ids::Clock;
use trunkline_server::net::Transport;
use trunkline_server::schema::MIGRATIONS;
use trunkline_server::serve::{Parts, Server};
use trunkline_store::{Batch, Lane, Options, sql};
use trunkline_xmpp::jid::Jid;

async fn start(file: &Path) -> Arc<Server> {
    let mut presets = Overrides::default();
    for setting in [
        "domain=north.localhost",
        "data_dir=/nonexistent",
        "clients.listen=[]",
        "federation.listen=[]",
        "limits.enabled=false",
    ] {
        presets.set(setting).unwrap();
    }
    let config =
        Config::parse(&trunkline_server::config::template(&presets), Path::new("archive.toml")).unwrap();
    let parts = Parts { clock: Clock::System, in_memory: true, store: Some(Options::file(file, MIGRATIONS)) };
    Server::start(config, parts).await.unwrap()
}

async fn enter(server: &Arc<Server>, local: &str) -> DuplexStream {
    let host = server.exchange().host("north.localhost").unwrap().id;
    let account = sql("INSERT INTO accounts (host_id, local, created_at) VALUES (?1, ?2, 0)");
    let batch = Batch::new(Lane::Inside).with(account.bind(host).bind(local));
    server.exchange().db.run(batch).await.unwrap();
    let (mut ours, theirs) = tokio::io::duplex(1 << 20);
    server.seat(Transport::from(theirs), &Jid::parse(&format!("{local}@north.localhost")).unwrap());
    let enter = "<stream:stream to='north.localhost' version='1.0' xmlns='jabber:client' \
         xmlns:stream='http://etherx.jabber.org/streams'><iq type='set' id='bind'>\
         <bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/></iq>";
    ours.write_all(enter.as_bytes()).await.unwrap();
    until(&mut ours, "</bind></iq>").await;
    ours
}

async fn until(stream: &mut DuplexStream, end: &str) -> String {
    let mut text = String::new();
    let mut buffer = vec![0; 64 << 10];
    while !text.contains(end) {
        let read = stream.read(&mut buffer).await.unwrap();
        assert!(read > 0, "the stream ended after {text}");
        text.push_str(std::str::from_utf8(&buffer[..read]).unwrap());
    }
    text
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_is_in_the_archive_as_soon_as_its_sender_asks() {
    let directory = tempfile::tempdir().unwrap();
    let server = start(&directory.path().join("archive.db")).await;
    let mut romeo = enter(&server, "romeo").await;
    let _juliet = enter(&server, "juliet").await;
    for round in 0..20 {
        // To somebody here, to another provider, and to oneself: each has another way to the disk.
        for to in ["juliet@north.localhost", "nurse@south.example", "romeo@north.localhost"] {
            let ask = format!(
                "<message to='{to}' type='chat' id='m{round}'><body>{to} {round}</body></message>\
                 <iq type='set' id='q{round}'><query xmlns='urn:xmpp:mam:2'>\
                 <set xmlns='http://jabber.org/protocol/rsm'><max>1</max><before/></set></query></iq>"
            );
            romeo.write_all(ask.as_bytes()).await.unwrap();
            let answer = until(&mut romeo, "</fin></iq>").await;
            let result = answer.split_once("<result").unwrap().1;
            assert!(result.contains(&format!("<body>{to} {round}</body>")), "{answer}");
        }
    }
    server.stop().await;
}
