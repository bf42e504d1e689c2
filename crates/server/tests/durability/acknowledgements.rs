//! XEP-0198 in both directions: acknowledgements, resumption, clients that don't read and clients that don't
//! acknowledge.

use std::time::Duration;

use trunkline_server::ids::Clock;
use trunkline_store::{Batch, Lane, sql};
use trunkline_xml::Element;

use super::world::{Person, World, is_delayed, message_ids, paused, settle, show};

pub(crate) async fn verona() -> (World, Person, Person) {
    let mut world = World::new();
    world.start().await.unwrap();
    world.add(&["romeo", "juliet", "nurse"]).await;
    let romeo = Person::new("romeo@north.localhost/orchard");
    let juliet = Person::new("juliet@north.localhost/balcony");
    (world, romeo, juliet)
}

fn chat(to: &str, id: &str) -> String {
    let to = if to.contains('@') { to.to_owned() } else { format!("{to}@north.localhost") };
    format!("<message type='chat' to='{to}' id='{id}'><body>{id}</body></message>")
}

pub(crate) async fn send_many(sender: &mut Person, to: &str, range: std::ops::Range<u32>) -> Vec<String> {
    let ids: Vec<String> = range.map(|n| format!("m{n}")).collect();
    for id in &ids {
        sender.send(&chat(to, id)).await;
    }
    sender.look().await;
    ids
}

fn error_name(element: &Element) -> Option<String> {
    element.root().children().next().map(|child| child.name().to_owned())
}

#[test]
fn what_a_bug_loses_ends_the_stream_and_is_not_acknowledged() {
    paused(async {
        let (world, mut romeo, _) = verona().await;
        assert!(romeo.online(&world).await);
        send_many(&mut romeo, "juliet", 0..1).await;
        romeo.ask().await;
        settle().await;
        romeo.look().await;
        let handled = romeo.counts.as_ref().unwrap().acked;
        let session = {
            let account = world.server().exchange().accounts.online(&romeo.jid).unwrap();
            let state = account.state();
            std::sync::Arc::clone(&state.resources[0].session)
        };
        // As if a stanza's task had panicked; the hook would only print it.
        let receipt = session.ledger().unwrap().receive();
        let bug = std::thread::spawn(move || {
            let _working_on = receipt;
            std::panic::resume_unwind(Box::new("a bug in a handler"));
        });
        assert!(bug.join().is_err());
        let error = romeo.wait("the end", |element| element.root().name() == "error").await.unwrap();
        assert_eq!(error_name(&error).as_deref(), Some("internal-server-error"));
        settle().await;
        assert!(session.is_ended(), "nobody resumes behind a stanza that is lost");
        assert_eq!(session.ledger().unwrap().handled(), handled);
    });
}

#[test]
fn a_dropped_connection_is_taken_up_with_both_sides_unacknowledged() {
    paused(async {
        let (world, mut romeo, mut juliet) = verona().await;
        assert!(romeo.online(&world).await && juliet.online(&world).await);
        juliet.polite = false;
        let mut expected = send_many(&mut romeo, "juliet", 0..3).await;
        let mut got = message_ids(&juliet.all().await);
        // On its way when the line breaks, in both directions.
        romeo.send(&chat("juliet", "m3")).await;
        juliet.send(&chat("romeo", "j0")).await;
        romeo.vanish().await;
        juliet.vanish().await;
        juliet.polite = true;
        juliet.resume(&world).await.unwrap();
        romeo.resume(&world).await.unwrap();
        romeo.look().await;
        expected.push("m3".into());
        got.extend(message_ids(&juliet.all().await));
        assert_eq!(got, expected);
        let from_juliet: Vec<String> =
            message_ids(&romeo.all().await).into_iter().filter(|id| id.starts_with('j')).collect();
        assert_eq!(from_juliet, ["j0"]);
        for person in [&mut romeo, &mut juliet] {
            person.ask().await;
            person.look().await;
            assert_eq!(person.counts.as_ref().unwrap().unacked.len(), 0);
        }
        assert_eq!(world.read(sql("SELECT COUNT(*) FROM pending")).await.first().unwrap().int(0), 0);
    });
}

/// A request is answered though the disk takes its time: first with what is committed, then with the rest, unasked.
#[test]
fn an_acknowledgement_waits_for_the_disk_but_not_for_ever() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let mut world = World::with_clock(Clock::System);
        world.options.inline = false;
        world.start().await.unwrap();
        world.add(&["romeo", "juliet"]).await;
        let mut romeo = Person::new("romeo@north.localhost/orchard");
        assert!(romeo.online(&world).await);
        romeo.send(&chat("juliet", "m1")).await;
        romeo.ask().await;
        romeo.wait_for_answer(2).await;
        // The writer stands still after a commit.
        let (release, released) = std::sync::mpsc::channel::<()>();
        let still = Batch::new(Lane::Inside).with(sql("UPDATE hosts SET name = name WHERE id = -1"));
        world.db().submit(still, move |_| {
            let _ = released.recv();
        });
        romeo.send(&chat("juliet", "m2")).await;
        for _ in 0..3 {
            romeo.ask().await;
        }
        // The committed prefix, within half a second.
        romeo.wait_for_answer(2).await;
        assert_eq!(romeo.counts.as_ref().unwrap().unacked.len(), 1);
        romeo.ask().await;
        romeo.wait_for_answer(2).await;
        drop(release);
        // Nobody asks again.
        romeo.wait_for_answer(3).await;
        assert_eq!(romeo.counts.as_ref().unwrap().unacked.len(), 0);
    });
}

#[test]
fn more_acknowledged_than_sent_is_an_error_with_the_numbers() {
    paused(async {
        let (world, _, mut juliet) = verona().await;
        assert!(juliet.online(&world).await);
        juliet.write("<a xmlns='urn:xmpp:sm:3' h='77'/>").await;
        let error = juliet.wait("a stream error", |element| element.root().name() == "error").await.unwrap();
        assert_eq!(error_name(&error).as_deref(), Some("undefined-condition"));
        let told = error.root().child("urn:xmpp:sm:3", "handled-count-too-high").unwrap();
        assert_eq!(told.attr("h").as_deref(), Some("77"));
        assert!(told.attr("send-count").is_some_and(|count| count != "77"));
        juliet.look().await;
        assert!(juliet.closed);
    });
}

#[test]
fn a_resumption_with_a_wrong_count_fails_and_the_session_can_still_be_taken_up() {
    paused(async {
        let (world, mut romeo, mut juliet) = verona().await;
        assert!(romeo.online(&world).await && juliet.online(&world).await);
        juliet.vanish().await;
        let id = juliet.counts.as_ref().unwrap().id.clone().unwrap();
        let refused = juliet.resume_as(&world, &id, 4_000_000).await.unwrap_err().unwrap();
        assert_eq!(error_name(&refused).as_deref(), Some("undefined-condition"));
        assert!(refused.root().child("urn:xmpp:sm:3", "handled-count-too-high").is_some());
        let sent = send_many(&mut romeo, "juliet", 0..2).await;
        juliet.resume(&world).await.unwrap();
        assert_eq!(message_ids(&juliet.all().await), sent);
        // The same with a connection that breaks before it hears of its success.
        juliet.vanish().await;
        juliet.half_resume(&world).await;
        juliet.vanish().await;
        tokio::time::sleep(Duration::from_secs(700)).await;
        let resources = world.server().exchange().accounts.all();
        let left: Vec<_> = resources
            .iter()
            .flat_map(|account| {
                account.state().resources.iter().map(|it| it.name().to_owned()).collect::<Vec<_>>()
            })
            .collect();
        assert_eq!(left, ["orchard"], "a session nobody serves goes on for ever");
    });
}

#[test]
fn nobody_takes_up_somebody_elses_session() {
    paused(async {
        let (world, mut romeo, mut juliet) = verona().await;
        assert!(romeo.online(&world).await && juliet.online(&world).await);
        let id = juliet.counts.as_ref().unwrap().id.clone().unwrap();
        juliet.vanish().await;
        let mut thief = Person::new("romeo@north.localhost/thief");
        let failed = thief.resume_as(&world, &id, 0).await.unwrap_err().unwrap();
        assert_eq!(error_name(&failed).as_deref(), Some("item-not-found"), "{}", show(&failed));
        let failed = thief.resume_as(&world, "no such session", 0).await.unwrap_err().unwrap();
        assert_eq!(error_name(&failed).as_deref(), Some("item-not-found"));
        juliet.resume(&world).await.unwrap();
    });
}

#[test]
fn the_last_connection_to_resume_has_the_session() {
    paused(async {
        let (world, mut romeo, mut juliet) = verona().await;
        assert!(romeo.online(&world).await && juliet.online(&world).await);
        let id = juliet.counts.as_ref().unwrap().id.clone().unwrap();
        let mut second = Person::new("juliet@north.localhost/balcony");
        for h in 1..3 {
            let mut third = Person::new("juliet@north.localhost/balcony");
            third.counts = Some(Default::default());
            third.counts.as_mut().unwrap().received = h;
            third.counts.as_mut().unwrap().acked = 1;
            third.resume_as(&world, &id, h).await.unwrap();
            let old = if h == 1 { &mut juliet } else { &mut second };
            let error = old.wait("a stream error", |element| element.root().name() == "error").await.unwrap();
            assert_eq!(error_name(&error).as_deref(), Some("conflict"));
            assert!(send_many(&mut romeo, "juliet", h..h + 1).await == message_ids(&third.all().await));
            assert_eq!(message_ids(&old.all().await), [""; 0]);
            second = third;
        }
    });
}

#[test]
fn requests_in_the_queue_of_a_session_that_dies_are_answered() {
    paused(async {
        let (world, mut romeo, mut juliet) = verona().await;
        assert!(romeo.online(&world).await && juliet.online(&world).await);
        juliet.vanish().await;
        romeo
            .send("<iq type='get' id='q' to='juliet@north.localhost/balcony'><query xmlns='jabber:iq:version'/></iq>")
            .await;
        assert_eq!(romeo.all().await.len(), 1, "his own presence only");
        for _ in 0..70 {
            tokio::time::sleep(Duration::from_secs(10)).await;
            romeo.look().await;
        }
        let answers = romeo.all().await;
        let error = answers.iter().find(|element| element.root().name() == "iq").expect("an answer");
        assert_eq!(error.root().attr("type").as_deref(), Some("error"));
        assert!(error.root().attr("id").as_deref() == Some("q"));
    });
}

/// RFC 6120 has no word for it, DESIGN.md does: the queue overflows, the log is read as the socket drains.
#[test]
fn a_client_that_does_not_read_gets_all_in_order_later() {
    for managed in [true, false] {
        paused(async {
            let (world, mut romeo, mut juliet) = verona().await;
            juliet.pipe = 4096;
            assert!(romeo.online(&world).await);
            if managed {
                assert!(juliet.online(&world).await);
            } else {
                assert!(juliet.connect(&world).await);
                juliet.send("<presence/>").await;
                juliet.look().await;
            }
            let sent = send_many(&mut romeo, "juliet", 0..1000).await;
            romeo.ask().await;
            romeo.look().await;
            assert_eq!(
                romeo.counts.as_ref().unwrap().unacked.len(),
                0,
                "the sender never waits for the receiver"
            );
            assert_eq!(message_ids(&juliet.all().await), sent);
            // And it is over: live messages come at once.
            let more = send_many(&mut romeo, "juliet", 1000..1010).await;
            let live = juliet.all().await;
            assert_eq!(message_ids(&live), more);
            assert!(!live.iter().any(is_delayed));
            settle().await;
            assert_eq!(world.read(sql("SELECT COUNT(*) FROM pending")).await.first().unwrap().int(0), 0);
        });
    }
}

#[test]
fn a_client_that_never_reads_is_closed_after_a_minute_and_can_come_back() {
    paused(async {
        let (world, mut romeo, mut juliet) = verona().await;
        juliet.pipe = 4096;
        assert!(romeo.online(&world).await && juliet.online(&world).await);
        juliet.all().await;
        let sent = send_many(&mut romeo, "juliet", 0..400).await;
        tokio::time::sleep(Duration::from_secs(75)).await;
        let session = session_of(&world, &juliet);
        assert!(!session.is_attached() && !session.is_ended());
        // What was in the pipe was never seen.
        juliet.vanish().await;
        juliet.resume(&world).await.unwrap();
        assert_eq!(message_ids(&juliet.all().await), sent);
    });
}

#[test]
fn a_client_that_reads_and_never_acknowledges_is_closed_after_a_minute_and_can_come_back() {
    paused(async {
        let (world, mut romeo, mut juliet) = verona().await;
        assert!(romeo.online(&world).await && juliet.online(&world).await);
        juliet.all().await;
        juliet.polite = false;
        let sent = send_many(&mut romeo, "juliet", 0..1200).await;
        let mut got = message_ids(&juliet.all().await);
        assert_eq!(got.len(), 500, "no more than the ring holds");
        // The client says something from time to time, so it is not silent.
        for _ in 0..15 {
            tokio::time::sleep(Duration::from_secs(5)).await;
            juliet.write(" ").await;
        }
        juliet.look().await;
        assert!(juliet.closed, "it may not hold the server's memory for ever");
        juliet.vanish().await;
        juliet.polite = true;
        juliet.resume(&world).await.unwrap();
        got.extend(message_ids(&juliet.all().await));
        assert_eq!(got, sent);
    });
}

/// Many offline messages, contacts who are online, and a client that acknowledges properly: the server has to read the
/// acknowledgements while it still writes what initial presence brought.
#[test]
fn more_offline_messages_than_the_ring_holds() {
    paused(async {
        let (world, mut romeo, mut juliet) = verona().await;
        assert!(romeo.online(&world).await && juliet.online(&world).await);
        romeo.send("<presence type='subscribe' to='juliet@north.localhost'/>").await;
        juliet.look().await;
        juliet.send("<presence type='subscribed' to='romeo@north.localhost'/>").await;
        juliet.send("<presence type='subscribe' to='romeo@north.localhost'/>").await;
        juliet.look().await;
        romeo.send("<presence type='subscribed' to='juliet@north.localhost'/>").await;
        romeo.look().await;
        juliet.write("</stream:stream>").await;
        juliet.look().await;
        juliet.vanish().await;
        let sent = send_many(&mut romeo, "juliet", 0..900).await;
        assert!(juliet.connect(&world).await);
        juliet.enable().await;
        juliet.send("<presence/>").await;
        let came = juliet.all().await;
        assert_eq!(message_ids(&came), sent);
        assert!(came.iter().filter(|element| element.root().name() == "message").all(is_delayed));
        assert!(
            came.iter().any(|element| element.root().attr("from").as_deref()
                == Some("romeo@north.localhost/orchard")
                && element.root().name() == "presence"),
            "his presence came too"
        );
    });
}

/// The same knot, tied tighter: what initial presence brings waits for room in a queue that waits for an `<a/>`.
#[test]
fn initial_presence_while_the_ring_is_full() {
    paused(async {
        let (world, mut romeo, mut juliet) = verona().await;
        assert!(romeo.online(&world).await && juliet.connect(&world).await);
        for (contact, kind) in [("romeo", "subscribe"), ("romeo", "subscribed")] {
            juliet.send(&format!("<presence type='{kind}' to='{contact}@north.localhost'/>")).await;
        }
        romeo.look().await;
        romeo.send("<presence type='subscribed' to='juliet@north.localhost'/>").await;
        romeo.look().await;
        juliet.enable().await;
        juliet.polite = false;
        let sent = send_many(&mut romeo, "juliet@north.localhost/balcony", 0..600).await;
        let mut got = message_ids(&juliet.all().await);
        assert_eq!(got.len(), 500);
        juliet.send("<presence/>").await;
        settle().await;
        let h = juliet.counts.as_ref().unwrap().received;
        juliet.polite = true;
        juliet.write(&format!("<a xmlns='urn:xmpp:sm:3' h='{h}'/>")).await;
        let came = juliet.all().await;
        got.extend(message_ids(&came));
        assert_eq!(got, sent, "each once, though all of it still waited when the client became available");
        assert!(
            came.iter().any(|it| it.root().attr("from").as_deref() == Some("romeo@north.localhost/orchard"))
        );
    });
}

/// Each time somebody becomes available they are greeted; who does it all the time, with no room, is greeted once.
#[test]
fn a_client_that_comes_and_goes_does_not_pile_up_work() {
    paused(async {
        let (world, mut romeo, mut juliet) = verona().await;
        assert!(romeo.online(&world).await && juliet.online(&world).await);
        for kind in ["subscribe", "subscribed"] {
            juliet.send(&format!("<presence type='{kind}' to='romeo@north.localhost'/>")).await;
        }
        romeo.look().await;
        romeo.send("<presence type='subscribed' to='juliet@north.localhost'/>").await;
        romeo.look().await;
        juliet.all().await;
        juliet.polite = false;
        send_many(&mut romeo, "juliet", 0..600).await;
        juliet.all().await;
        let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
        let before = tasks();
        for _ in 0..100 {
            juliet.send("<presence type='unavailable'/>").await;
            juliet.send("<presence/>").await;
            settle().await;
        }
        assert!(tasks() <= before + 2, "{} tasks more", tasks() - before);
        juliet.polite = true;
        let h = juliet.counts.as_ref().unwrap().received;
        juliet.write(&format!("<a xmlns='urn:xmpp:sm:3' h='{h}'/>")).await;
        let came = juliet.all().await;
        assert!(
            came.iter().any(|it| it.root().attr("from").as_deref() == Some("romeo@north.localhost/orchard"))
        );
    });
}

/// Two devices, one slow: what comes while the slow one still reads what had waited is for it too, though the fast one
/// has acknowledged it by then.
#[test]
fn a_device_that_catches_up_misses_nothing_that_a_faster_one_has_acknowledged() {
    paused(async {
        let (world, mut romeo, mut juliet) = verona().await;
        assert!(romeo.online(&world).await);
        let waited = send_many(&mut romeo, "juliet", 0..300).await;
        let mut tablet = Person::new("juliet@north.localhost/tablet");
        tablet.pipe = 4096;
        assert!(tablet.connect(&world).await);
        tablet.enable().await;
        tablet.send("<presence/>").await;
        settle().await;
        // Now the phone: it gets what waits, too, and is done with it at once.
        assert!(juliet.online(&world).await);
        juliet.all().await;
        let live = send_many(&mut romeo, "juliet", 300..320).await;
        assert!(juliet.all().await.iter().any(|it| it.root().attr("id").as_deref() == Some("m319")));
        let on_tablet = message_ids(&tablet.all().await);
        assert_eq!(on_tablet[on_tablet.len() - 20..], live);
        assert!(on_tablet.len() <= waited.len() + live.len());
    });
}

/// The line broke within an element: the new connection has nothing to do with that.
#[test]
fn a_resumed_client_may_be_silent() {
    paused(async {
        let (world, _, mut juliet) = verona().await;
        assert!(juliet.online(&world).await);
        juliet.write("<message to='romeo@north").await;
        juliet.vanish().await;
        juliet.resume(&world).await.unwrap();
        tokio::time::sleep(Duration::from_secs(120)).await;
        juliet.look().await;
        assert!(!juliet.closed);
    });
}

/// The stanza was read and the store is being asked when the line breaks: it is handled, or it is not counted.
#[test]
fn a_stanza_under_way_when_the_line_breaks_is_not_dropped() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let mut world = World::with_clock(Clock::System);
        world.options.inline = false;
        world.start().await.unwrap();
        world.add(&["romeo", "juliet"]).await;
        let mut romeo = Person::new("romeo@north.localhost/orchard");
        assert!(romeo.online(&world).await);
        let (release, released) = std::sync::mpsc::channel::<()>();
        let still = Batch::new(Lane::Inside).with(sql("UPDATE hosts SET name = name WHERE id = -1"));
        world.db().submit(still, move |_| {
            let _ = released.recv();
        });
        // A roster change waits for the writer.
        let set = "<query xmlns='jabber:iq:roster'><item jid='juliet@north.localhost' name='J'/></query>";
        romeo.send(&format!("<iq type='set' id='set'>{set}</iq>")).await;
        let account = world.server().exchange().accounts.online(&romeo.jid).unwrap();
        while account.writes.try_lock().is_ok() {
            settle().await;
        }
        romeo.vanish().await;
        // The new connection replaces the old one, and with it what that was about.
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(100)).await;
            drop(release);
        });
        romeo.resume(&world).await.unwrap();
        assert_eq!(romeo.counts.as_ref().unwrap().unacked.len(), 0, "counted as handled");
        assert!(
            account.state().roster.get(&"juliet@north.localhost".parse().unwrap()).is_some(),
            "and not done"
        );
        // The result comes with the resumed stream.
        romeo
            .wait("the result", |element| element.root().attr("id").as_deref() == Some("set"))
            .await
            .unwrap();
    });
}

fn session_of(world: &World, person: &Person) -> std::sync::Arc<trunkline_server::session::Session> {
    let account = world.server().exchange().accounts.online(&person.jid).expect("is in memory");
    let state = account.state();
    let resource = state.resource(person.jid.resource().unwrap()).expect("has a session");
    std::sync::Arc::clone(&resource.session)
}
