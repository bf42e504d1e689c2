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

async fn start(file: Option<&Path>) -> Arc<Server> {
    let mut presets = Overrides::default();
    for setting in [
        "domain=north.localhost",
        "data_dir=/nonexistent",
        "clients.listen=[]",
        "federation.listen=[]",
        "limits.enabled=false",
        "accounts.search=true",
    ] {
        presets.set(setting).unwrap();
    }
    let config =
        Config::parse(&trunkline_server::config::template(&presets), Path::new("archive.toml")).unwrap();
    let store = file.map(|file| Options::file(file, MIGRATIONS));
    let parts = Parts { clock: Clock::System, in_memory: true, store };
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
    let server = start(Some(&directory.path().join("archive.db"))).await;
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

/// An expensive search holds up other searches, and nothing else: not the pages of others, not what they say.
#[tokio::test(start_paused = true)]
async fn searches_go_one_after_another_and_nobody_else_waits() {
    let server = start(None).await;
    let mut romeo = enter(&server, "romeo").await;
    let mut juliet = enter(&server, "juliet").await;
    let note = "<message to='juliet@north.localhost' type='chat' id='m1'><body>a rose</body></message>";
    romeo.write_all(note.as_bytes()).await.unwrap();
    let search = "<iq type='set' id='s1'><query xmlns='urn:xmpp:mam:2'><x xmlns='jabber:x:data' type='submit'>\
         <field var='FORM_TYPE' type='hidden'><value>urn:xmpp:mam:2</value></field>\
         <field var='{urn:xmpp:fulltext:0}fulltext'><value>rose</value></field></x></query></iq>";
    // Somebody's search is under way.
    let turn = server.exchange().searches.turn().await;
    juliet.write_all(search.as_bytes()).await.unwrap();
    let mut buffer = vec![0; 64 << 10];
    let waits = tokio::time::timeout(std::time::Duration::from_secs(5), juliet.read(&mut buffer)).await;
    assert!(waits.is_err(), "the search did not wait for its turn");
    romeo.write_all(b"<iq type='set' id='q1'><query xmlns='urn:xmpp:mam:2'/></iq>").await.unwrap();
    assert!(until(&mut romeo, "</fin></iq>").await.contains("a rose"));
    drop(turn);
    assert!(until(&mut juliet, "</fin></iq>").await.contains("a rose"));
    server.stop().await;
}
