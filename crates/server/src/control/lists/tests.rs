use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use trunkline_store::{Batch, Lane, sql};
use trunkline_xmpp::ns;
use trunkline_xmpp::stanza::Stanza;

use super::entries::{Change, Entries, Entry, hex, parts, sha256};
use super::following::{Page, Reading, changes, configured};
use super::{List, MOST_ENTRIES, Origin};
use crate::config::Config;
use crate::ids::Clock;
use crate::serve::{Parts, Server};

fn list() -> Arc<List> {
    List::new("l", "rtbl.example".parse().unwrap(), "n", (None, Origin::RunTime))
}

fn event(inner: &str) -> BTreeMap<String, Vec<Change>> {
    let xml = format!("<message><event xmlns='{}'>{inner}</event></message>", ns::PUBSUB_EVENT);
    let stanza = Stanza::parse(xml.as_bytes()).unwrap();
    changes(stanza.child(ns::PUBSUB_EVENT, "event").unwrap())
}

#[test]
fn entries_are_what_they_look_like() {
    let hash = hex(&sha256("spammer@bad.example"));
    assert_eq!(hash.len(), 64);
    assert_eq!(Entry::parse(&hash), Entry::parse("Spammer@BAD.example/phone"));
    assert_eq!(Entry::parse(&hash.to_uppercase()), Entry::parse(&hash));
    assert_eq!(Entry::parse("Bad.Example"), Some(Entry::Domain("bad.example".into())));
    assert_eq!(Entry::parse("bad.example/x"), None);
    assert_eq!(Entry::parse(""), None);
    // Known from elsewhere: `printf abc | sha256sum`.
    assert_eq!(hex(&sha256("abc")), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

#[test]
fn addresses_and_domains_are_found() {
    let mut entries = Entries::default();
    entries.add(Entry::parse("spammer@bad.example").unwrap(), "".into());
    entries.add(Entry::parse("worse.example").unwrap(), "".into());
    entries.add(Entry::Hash(sha256("worst.example")), "".into());
    let listed = |who| {
        let (bare, domain) = parts(who);
        entries.lists(bare, domain)
    };
    for who in [
        "spammer@bad.example",
        "spammer@bad.example/x",
        "a@worse.example",
        "worse.example",
        "b@worst.example",
    ] {
        assert!(listed(who), "{who}");
    }
    for who in ["bad.example", "other@bad.example", "sub.worse.example", "a@sub.worse.example"] {
        assert!(!listed(who), "{who}");
    }
}

#[test]
fn events_are_read() {
    let found = event(
        "<items node='n'><item id='bad.example'><report xmlns='urn:xmpp:reporting:1' \
         reason='urn:xmpp:reporting:spam'><text> much\n of it </text></report></item><item id='/'/>\
         <retract id='good.example'/></items><purge node='m'/><delete node='o'/>",
    );
    let domain = |name: &str| Entry::Domain(name.into());
    assert_eq!(
        found["n"],
        [Change::Add(domain("bad.example"), "much  of it".into()), Change::Remove(domain("good.example"))]
    );
    assert_eq!(found["m"], [Change::Purge]);
    assert!(found["o"].is_empty());
}

#[test]
fn what_comes_while_a_list_is_read_is_not_lost() {
    let list = list();
    let domain = |name: &str| Entry::Domain(name.into());
    list.apply(&[Change::Add(domain("old.example"), "".into())]);
    let during = [Change::Add(domain("new.example"), "".into()), Change::Remove(domain("gone.example"))];
    list.state.lock().journal = Some(during.to_vec());
    list.apply(&during);
    let read = ["kept.example", "gone.example"].map(|name| (domain(name), Box::from("")));
    let changed = list.replace(HashMap::from(read));
    let mut left: Vec<String> = list.entries.read().iter().map(|(entry, _)| entry.id()).collect();
    left.sort();
    assert_eq!(left, ["kept.example", "new.example"]);
    assert!(changed >= 4, "old goes, kept and gone come, gone goes: {changed}");
    assert_eq!(list.state.lock().words, "subscribed");
}

#[test]
fn a_list_is_bounded() {
    let list = list();
    let add = |n: usize| Change::Add(Entry::Domain(format!("d{n}").into()), "".into());
    let many: Vec<Change> = (0..=MOST_ENTRIES).map(add).collect();
    list.apply(&many);
    assert_eq!(list.entries.read().len(), MOST_ENTRIES);
    // Whoever is on it can still be changed.
    let again = Change::Add(Entry::Domain("d3".into()), "worse".into());
    assert_eq!(list.apply(&[again]), 1);
    assert_eq!(list.apply(&[add(MOST_ENTRIES)]), 0);
}

#[test]
fn pages_go_on_while_they_say_so() {
    let answer = |rest: &str| {
        let xml = format!(
            "<iq type='result' id='1'><pubsub xmlns='{}'><items node='n'><item id='a.example'/></items>{rest}\
             </pubsub></iq>",
            ns::PUBSUB
        );
        Stanza::parse(xml.as_bytes()).unwrap()
    };
    let page =
        Page::read(&answer("<set xmlns='http://jabber.org/protocol/rsm'><last>x</last></set>"), "n").unwrap();
    assert_eq!((page.items.len(), page.last.as_deref()), (1, Some("x")));
    assert_eq!(Page::read(&answer(""), "n").unwrap().last, None);
    assert!(Page::read(&answer(""), "other").is_none());
}

#[tokio::test(start_paused = true)]
async fn a_list_that_moved_begins_with_nothing() {
    let config = |service: &str, node: &str| {
        let text = format!(
            "domain = \"north.example\"\ndata_dir = \"/nonexistent\"\n\
             [federation.lists.spam]\nservice = \"{service}\"\nnode = \"{node}\"\n"
        );
        Config::parse(&text, std::path::Path::new("trunkline.toml")).unwrap()
    };
    let first = config("lists.example", "n");
    let parts = Parts { clock: Clock::virtual_now(), in_memory: true, ..Parts::default() };
    let server = Server::start(first, parts).await.unwrap();
    let db = &server.exchange().db;
    for (service, node, left) in
        [("lists.example", "n", 1), ("lists.example", "m", 0), ("elsewhere.example", "m", 0)]
    {
        let entry = sql("INSERT OR IGNORE INTO list_entries (list, entry, reason) \
                         VALUES ('spam', 'bad.example', '')");
        db.run(Batch::new(Lane::Inside).with(entry)).await.unwrap();
        db.run(configured(&config(service, node), Batch::new(Lane::Inside))).await.unwrap();
        let rows = db.read(sql("SELECT entry FROM list_entries")).await.unwrap();
        assert_eq!(rows.iter().count(), left, "{service} {node}");
    }
}

#[test]
fn unreadable_and_known_items_do_not_end_a_reading() {
    let page = |ids: &[&str], all: usize, last: &str| {
        let items = ids.iter().filter_map(|id| Some((Entry::parse(id)?, Box::from("")))).collect();
        Page { items, all, last: Some(last.to_owned()) }
    };
    let mut reading = Reading::default();
    assert!(reading.take(page(&[], 3, "a")), "none can be read");
    assert!(reading.take(page(&["one.example"], 1, "b")));
    assert!(reading.take(page(&["one.example"], 1, "c")), "known");
    assert!(reading.take(page(&["two.example"], 1, "d")));
    assert_eq!(reading.read.len(), 2);
    assert!(!reading.take(page(&["three.example"], 1, "d")), "it does not go on");
    assert!(!Reading::default().take(page(&[], 0, "e")), "no items at all");
}

#[test]
fn a_reading_that_ends_too_late_changes_nothing() {
    let list = list();
    list.state.lock().ended = true;
    let read = HashMap::from([(Entry::Domain("late.example".into()), Box::from(""))]);
    assert_eq!(list.replace(read), 0);
    assert!(list.take_unwritten().is_none(), "nothing for the rows of another list of that name");
}

#[test]
fn a_changed_reason_is_written_and_what_was_not_written_is_tried_again() {
    let list = list();
    let read = |reason: &str| HashMap::from([(Entry::Domain("bad.example".into()), Box::from(reason))]);
    assert_eq!(list.replace(read("old")), 1);
    let taken = list.take_unwritten().unwrap();
    assert!(list.take_unwritten().is_none());
    list.give_back(taken.entries, taken.whole);
    assert_eq!(list.replace(read("old")), 0);
    assert_eq!(list.take_unwritten().unwrap().entries.len(), 1, "it was given back");
    assert!(list.take_unwritten().is_none());
    assert_eq!(list.replace(read("new")), 1);
    assert_eq!(list.take_unwritten().unwrap().entries.len(), 1);
}
