//! A clean restart keeps the sessions; after a crash they are gone, and everybody is told.

use std::time::Duration;

use trunkline_server::net::Transport;
use trunkline_store::testvfs::Survival;
use trunkline_store::{Batch, Db, Lane, sql};
use trunkline_xml::Element;

use super::acknowledgements::{send_many, verona};
use super::world::{Person, World, is_delayed, message_ids, paused, settle, show};

/// Romeo and Juliet see each other's presence.
async fn friends(romeo: &mut Person, juliet: &mut Person) {
    romeo.send("<presence type='subscribe' to='juliet@north.localhost'/>").await;
    juliet.look().await;
    juliet.send("<presence type='subscribed' to='romeo@north.localhost'/>").await;
    juliet.send("<presence type='subscribe' to='romeo@north.localhost'/>").await;
    juliet.look().await;
    romeo.send("<presence type='subscribed' to='juliet@north.localhost'/>").await;
    romeo.all().await;
    juliet.all().await;
}

fn presence_from<'a>(came: &'a [Element], jid: &str) -> Vec<&'a Element> {
    let from = |element: &&Element| {
        element.root().name() == "presence" && element.root().attr("from").as_deref() == Some(jid)
    };
    came.iter().filter(from).collect()
}

fn is_unavailable(element: &Element) -> bool {
    element.root().attr("type").as_deref() == Some("unavailable")
}

#[test]
fn a_clean_restart_keeps_sessions_with_all_they_had() {
    paused(async {
        let (mut world, mut romeo, mut juliet) = verona().await;
        assert!(romeo.online(&world).await && juliet.online(&world).await);
        friends(&mut romeo, &mut juliet).await;
        juliet.send("<iq type='set' id='c'><enable xmlns='urn:xmpp:carbons:2'/></iq>").await;
        juliet.all().await;
        // Acknowledged, seen and not acknowledged, not seen.
        let first = send_many(&mut romeo, "juliet", 0..3).await;
        assert_eq!(message_ids(&juliet.all().await), first);
        juliet.polite = false;
        let second = send_many(&mut romeo, "juliet", 3..5).await;
        assert_eq!(message_ids(&juliet.all().await), second);
        juliet.vanish().await;
        let third = send_many(&mut romeo, "juliet", 5..8).await;
        romeo
            .send("<message type='chat' to='juliet@north.localhost' id='late'><body>late</body></message>")
            .await;
        world.stop().await;
        let farewell = romeo.all().await;
        let error = farewell.iter().find(|element| element.root().name() == "error").expect("a stream error");
        assert!(show(error).contains("system-shutdown"), "{}", show(error));
        assert!(romeo.closed);
        assert!(!farewell.iter().any(is_unavailable), "she may come back");
        romeo.vanish().await;

        world.start().await.unwrap();
        romeo.resume(&world).await.unwrap();
        juliet.polite = true;
        juliet.resume(&world).await.unwrap();
        let again = juliet.all().await;
        assert_eq!(message_ids(&again), [third, vec!["late".into()]].concat());
        romeo.ask().await;
        romeo.look().await;
        assert_eq!(romeo.counts.as_ref().unwrap().unacked.len(), 0);
        // The counters go on.
        juliet.send("<message type='chat' to='romeo@north.localhost' id='j'><body>j</body></message>").await;
        juliet.ask().await;
        juliet.look().await;
        assert_eq!(juliet.counts.as_ref().unwrap().unacked.len(), 0);
        assert_eq!(message_ids(&romeo.all().await), ["j"]);
        // Carbons are on, presence is as it was: another device of hers sees it, and she sees what that one says.
        let mut tablet = Person::new("juliet@north.localhost/tablet");
        assert!(tablet.online(&world).await);
        let seen = tablet.all().await;
        assert_eq!(presence_from(&seen, "juliet@north.localhost/balcony").len(), 1);
        assert_eq!(presence_from(&seen, "romeo@north.localhost/orchard").len(), 1);
        tablet.send("<message type='chat' to='romeo@north.localhost' id='t'><body>t</body></message>").await;
        tablet.look().await;
        assert!(juliet.all().await.iter().any(|element| show(element).contains("urn:xmpp:carbons:2")));
        // Nobody is told after the time of grace that she was lost.
        romeo.all().await;
        for _ in 0..12 {
            tokio::time::sleep(Duration::from_secs(10)).await;
            for person in [&mut romeo, &mut juliet, &mut tablet] {
                person.look().await;
            }
        }
        assert!(!romeo.all().await.iter().any(is_unavailable));
    });
}

/// XEP-0352 s.5: a resumed stream is active, whatever it was before.
#[test]
fn a_client_that_was_inactive_is_active_when_it_resumes() {
    for restart in [false, true] {
        paused(async {
            let (mut world, mut romeo, mut juliet) = verona().await;
            assert!(romeo.online(&world).await && juliet.online(&world).await);
            friends(&mut romeo, &mut juliet).await;
            juliet.write("<inactive xmlns='urn:xmpp:csi:0'/>").await;
            romeo.send("<presence><show>dnd</show></presence>").await;
            assert_eq!(juliet.all().await.len(), 0, "presence is held back");
            juliet.vanish().await;
            if restart {
                world.stop().await;
                romeo.vanish().await;
                world.start().await.unwrap();
                romeo.resume(&world).await.unwrap();
            }
            juliet.resume(&world).await.unwrap();
            assert_eq!(presence_from(&juliet.all().await, "romeo@north.localhost/orchard").len(), 1);
            romeo.send("<presence><show>xa</show></presence>").await;
            romeo.look().await;
            assert_eq!(presence_from(&juliet.all().await, "romeo@north.localhost/orchard").len(), 1);
        });
    }
}

#[test]
fn a_session_that_was_behind_goes_on_reading_after_a_restart() {
    paused(async {
        let (mut world, mut romeo, mut juliet) = verona().await;
        juliet.pipe = 4096;
        assert!(romeo.online(&world).await && juliet.online(&world).await);
        juliet.all().await;
        juliet.vanish().await;
        let mut sent = send_many(&mut romeo, "juliet", 0..700).await;
        world.stop().await;
        romeo.vanish().await;
        world.start().await.unwrap();
        romeo.resume(&world).await.unwrap();
        sent.extend(send_many(&mut romeo, "juliet", 700..720).await);
        juliet.resume(&world).await.unwrap();
        assert_eq!(message_ids(&juliet.all().await), sent);
    });
}

/// Federation hands in what it has while the server stops, after the sessions were saved.
#[test]
fn what_was_kept_after_the_session_was_saved_comes_when_it_resumes() {
    paused(async {
        let (mut world, mut romeo, mut juliet) = verona().await;
        assert!(romeo.online(&world).await && juliet.online(&world).await);
        let sent = send_many(&mut romeo, "juliet", 0..2).await;
        assert_eq!(message_ids(&juliet.all().await), sent);
        world.stop().await;
        juliet.vanish().await;
        let late = "<message type='chat' from='a@peer.example' id='late'><body>late</body></message>";
        let id = (world.clock.now() << 20) + 1000;
        let store = Db::open(world.options.clone()).unwrap();
        let rows = Batch::new(Lane::Inside)
            .with(
                sql("INSERT INTO archive (id, account, peer, flags, stanza) VALUES \
                     (?1, (SELECT id FROM accounts WHERE local = 'juliet'), 'a@peer.example', 0, ?2)")
                .bind(id)
                .bind(late.as_bytes().to_vec()),
            )
            .with(
                sql("INSERT INTO pending (account, id, size) VALUES ((SELECT id FROM accounts WHERE local = 'juliet'), ?1, 90)")
                    .bind(id),
            );
        store.run(rows).await.unwrap();
        store.shutdown();
        world.start().await.unwrap();
        juliet.resume(&world).await.unwrap();
        assert_eq!(message_ids(&juliet.all().await), ["late"]);
    });
}

#[test]
fn a_session_nobody_resumes_after_a_restart_ends() {
    paused(async {
        let (mut world, mut romeo, mut juliet) = verona().await;
        assert!(romeo.online(&world).await && juliet.online(&world).await);
        friends(&mut romeo, &mut juliet).await;
        world.stop().await;
        romeo.vanish().await;
        juliet.vanish().await;
        world.start().await.unwrap();
        romeo.resume(&world).await.unwrap();
        let sent = send_many(&mut romeo, "juliet", 0..2).await;
        assert!(!romeo.all().await.iter().any(is_unavailable));
        for _ in 0..70 {
            tokio::time::sleep(Duration::from_secs(10)).await;
            romeo.look().await;
        }
        let gone = romeo.all().await;
        assert_eq!(presence_from(&gone, "juliet@north.localhost/balcony").len(), 1);
        assert!(gone.iter().any(is_unavailable));
        assert!(
            matches!(juliet.resume(&world).await, Err(Some(failed)) if show(&failed).contains("item-not-found"))
        );
        juliet.vanish().await;
        assert!(juliet.online(&world).await);
        let came = juliet.all().await;
        assert_eq!(message_ids(&came), sent);
        assert!(came.iter().filter(|element| element.root().name() == "message").all(is_delayed));
    });
}

#[test]
fn after_a_crash_sessions_are_gone_and_their_contacts_are_told() {
    paused(async {
        let (mut world, mut romeo, mut juliet) = verona().await;
        let mut nurse = Person::new("nurse@north.localhost/hall");
        assert!(romeo.online(&world).await && juliet.online(&world).await && nurse.online(&world).await);
        friends(&mut romeo, &mut juliet).await;
        friends(&mut nurse, &mut juliet).await;
        juliet.polite = false;
        let seen = send_many(&mut romeo, "juliet", 0..2).await;
        assert_eq!(message_ids(&juliet.all().await), seen);
        juliet.vanish().await;
        let unseen = send_many(&mut romeo, "juliet", 2..4).await;
        crash(&mut world, &mut [&mut romeo, &mut nurse]).await;

        world.start().await.unwrap();
        // Romeo takes up what he can: nothing.
        let failed = romeo.resume(&world).await.unwrap_err().expect("an answer");
        assert!(show(&failed).contains("item-not-found"), "{}", show(&failed));
        romeo.vanish().await;
        assert!(romeo.online(&world).await && nurse.online(&world).await);
        let early = romeo.all().await;
        assert!(!early.iter().any(is_unavailable), "she has time to come back");
        nurse.all().await;
        for _ in 0..8 {
            tokio::time::sleep(Duration::from_secs(10)).await;
            romeo.look().await;
            nurse.look().await;
        }
        let told = romeo.all().await;
        assert_eq!(presence_from(&told, "juliet@north.localhost/balcony").len(), 1);
        assert!(is_unavailable(presence_from(&told, "juliet@north.localhost/balcony")[0]));
        // The nurse did come back: nobody is told that she is gone.
        juliet.polite = true;
        assert!(juliet.online(&world).await);
        let came = juliet.all().await;
        assert_eq!(message_ids(&came), [seen, unseen].concat());
        assert!(came.iter().filter(|element| element.root().name() == "message").all(is_delayed));
        assert!(!came.iter().any(is_unavailable));
        // Told once: another crash and start has nothing to say of her old session.
        juliet.write("</stream:stream>").await;
        juliet.look().await;
        juliet.vanish().await;
        crash(&mut world, &mut [&mut romeo, &mut nurse]).await;
        world.start().await.unwrap();
        assert!(romeo.online(&world).await);
        romeo.all().await;
        for _ in 0..8 {
            tokio::time::sleep(Duration::from_secs(10)).await;
            romeo.look().await;
        }
        assert_eq!(presence_from(&romeo.all().await, "juliet@north.localhost/balcony").len(), 0);
    });
}

/// The process is killed: what it wrote is in the system's cache.
async fn crash(world: &mut World, people: &mut [&mut Person]) {
    world.kill();
    for person in people {
        person.vanish().await;
    }
    settle().await;
    world.disk.power_on(Survival::Everything);
}

/// A session is snapshot with what is committed; clients that talk until the last moment send the rest again.
#[test]
fn what_comes_while_the_server_stops_is_not_lost() {
    for after in [0, 1, 3, 5, 10, 20] {
        paused(async {
            let (mut world, mut romeo, mut juliet) = verona().await;
            assert!(romeo.online(&world).await && juliet.online(&world).await);
            let mut sent = send_many(&mut romeo, "juliet", 0..5).await;
            let (talk, stop) = (
                async {
                    for n in 5..30 {
                        let id = format!("m{n}");
                        romeo
                            .send(&format!(
                                "<message type='chat' to='juliet@north.localhost' id='{id}'><body>x</body></message>"
                            ))
                            .await;
                        sent.push(id);
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                },
                async {
                    tokio::time::sleep(Duration::from_millis(after)).await;
                    world.stop().await;
                },
            );
            tokio::join!(talk, stop);
            let mut got = message_ids(&juliet.all().await);
            romeo.look().await;
            romeo.vanish().await;
            juliet.vanish().await;
            world.start().await.unwrap();
            romeo.resume(&world).await.unwrap();
            juliet.resume(&world).await.unwrap();
            romeo.look().await;
            got.extend(message_ids(&juliet.all().await));
            assert_eq!(got, sent, "stopped after {after} ms");
        });
    }
}

/// A connection that arrives while the server stops gets no session that would be lost.
#[test]
fn a_stopped_server_gives_no_sessions() {
    paused(async {
        let (mut world, _, mut juliet) = verona().await;
        let server = std::sync::Arc::clone(world.server());
        world.stop().await;
        let (ours, theirs) = tokio::io::duplex(4096);
        server.seat(Transport::from(theirs), &juliet.jid.bare());
        drop(ours);
        settle().await;
        world.start().await.unwrap();
        assert!(juliet.online(&world).await);
    });
}
