//! XEP-0402 PEP Native Bookmarks 1.2.0, in step with XEP-0048 Bookmarks 1.2 (one item in PEP, and by XEP-0049 in private XML),
//! as XEP-0411 Bookmarks Conversion 1.1.0 wants it.
//!
//! Private XML is no third copy: it reads and writes the item of XEP-0048.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use trunkline_store::{StoreError, sql};
use trunkline_xml::{Element, Node, Writer};
use trunkline_xmpp::error::{Condition, StanzaError};
use trunkline_xmpp::jid::Jid;
use trunkline_xmpp::ns;

use super::{Level, Module, Scope};
use crate::exchange::Exchange;
use crate::pubsub::along::{Also, Coming, Items, Take};
use crate::pubsub::config::NodeConfig;
use crate::pubsub::node::Item;
use crate::pubsub::{Desk, Happened, NewItem, Terms, errors};

/// The one item of XEP-0048.
const CURRENT: &str = "current";
/// What declarations around the elements of an item may add to them, beside as much as it has bytes.
const MOST_ADDED: usize = 4096;
/// Accounts that are read at once.
const AT_ONCE: i64 = 100;

/// Keeps the old and the new bookmarks in step.
pub fn module() -> Module {
    Module::new("bookmarks", "Keep bookmarks of all kinds in step")
        .xep(402, "1.2.0", Level::Complete)
        .xep(48, "1.2", Level::Complete)
        .xep(411, "1.1.0", Level::Complete)
        .feature(Scope::Account, ns::BOOKMARKS_COMPAT_PEP)
        .feature(Scope::Account, ns::BOOKMARKS_COMPAT)
        .feature(Scope::Account, ns::BOOKMARKS_CONVERSION)
        .made_as(ns::BOOKMARKS, NodeConfig::private)
        .made_as(ns::BOOKMARKS_LEGACY, NodeConfig::bookmarks_legacy)
        // The list is as long as the bookmarks, which count, and what is not a room is bounded as an item.
        .copy(ns::BOOKMARKS_LEGACY)
        .along(ns::BOOKMARKS, to_legacy)
        .along(ns::BOOKMARKS_LEGACY, from_legacy)
}

/// Why there are no bookmarks in an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum Unread {
    #[error("This node takes <storage xmlns='storage:bookmarks'/>.")]
    None,
    #[error("With what is declared around them the elements of these bookmarks are too long.")]
    TooLong,
}

impl From<Unread> for StanzaError {
    fn from(error: Unread) -> StanzaError {
        match error {
            Unread::None => invalid(&error.to_string()),
            Unread::TooLong => StanzaError::new(Condition::ResourceConstraint).text(error.to_string()),
        }
    }
}

/// What is nothing of ours is left out; what can't be written again is an error.
fn known<T>(read: Result<T, Unread>) -> Result<Option<T>, Unread> {
    match read {
        Err(Unread::None) => Ok(None),
        other => other.map(Some),
    }
}

/// Bytes that the elements of an item may have with all that is declared around them.
fn most_of(payload: &[u8]) -> usize {
    2 * payload.len() + MOST_ADDED
}

/// One bookmark, as it means the same in both.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Bookmark {
    /// The room, as addresses are compared: the item's id may be written otherwise.
    room: String,
    name: Option<String>,
    autojoin: bool,
    nick: Option<String>,
    password: Option<String>,
    /// What nobody here understands, each for itself.
    extensions: Vec<Vec<u8>>,
}

impl Bookmark {
    /// A `<conference/>` of either namespace; its extensions may take so many bytes from `left`.
    fn read(conference: Node<'_>, room: &str, left: &mut usize) -> Result<Bookmark, Unread> {
        let own = conference.ns();
        let text = |name| {
            conference.child(own, name).map(|child| child.text().into_owned()).filter(|text| !text.is_empty())
        };
        let within =
            conference.children().filter(|child| child.is(own, "extensions")).flat_map(Node::children);
        // Before there were extensions, clients put what was theirs beside the nick.
        let beside = conference.children().filter(|child| child.ns() != own);
        let extensions: Option<Vec<Vec<u8>>> =
            within.chain(beside).map(|child| child.to_standalone_within("", left)).collect();
        let autojoin = conference.attr("autojoin");
        Ok(Bookmark {
            room: room.to_owned(),
            name: conference.attr("name").map(|name| name.into_owned()),
            autojoin: autojoin.is_some_and(|value| matches!(value.trim(), "1" | "true")),
            nick: text("nick"),
            password: text("password"),
            extensions: extensions.ok_or(Unread::TooLong)?,
        })
    }

    /// [`Unread::None`] also where its id is not a room's address (XEP-0402 s.3).
    fn of_item(item: &Item) -> Result<Bookmark, Unread> {
        let room = room_of(&item.id).ok_or(Unread::None)?;
        let element = Element::parse(item.payload.clone(), ns::CLIENT).map_err(|_| Unread::None)?;
        if !element.root().is(ns::BOOKMARKS, "conference") {
            return Err(Unread::None);
        }
        Bookmark::read(element.root(), &room, &mut most_of(&item.payload))
    }

    fn write(&self, w: &mut Writer, (namespace, jid): (Option<&str>, Option<&str>)) {
        w.open("conference").attr_opt("xmlns", namespace).attr_opt("jid", jid);
        w.attr_opt("name", self.name.as_deref());
        if self.autojoin {
            w.attr("autojoin", "true");
        }
        for (name, text) in [("nick", &self.nick), ("password", &self.password)] {
            if let Some(text) = text {
                w.text_element(name, text);
            }
        }
        if !self.extensions.is_empty() {
            w.open("extensions");
            for extension in &self.extensions {
                w.raw(extension);
            }
            w.close();
        }
        w.close();
    }

    /// `id`: as the user wrote it.
    fn to_item(&self, id: &str) -> NewItem {
        let mut w = Writer::new();
        self.write(&mut w, (Some(ns::BOOKMARKS), None));
        NewItem { id: Some(id.to_owned()), payload: w.finish() }
    }
}

/// The room that an item's id names: an address without a resource.
fn room_of(id: &str) -> Option<String> {
    let room = Jid::parse(id).ok().filter(|room| room.resource().is_none())?;
    Some(room.bare_str().to_owned())
}

/// XEP-0060 s.7.1.3.5
fn invalid(text: &str) -> StanzaError {
    errors::specific(Condition::BadRequest, "invalid-payload").text(text)
}

/// All of XEP-0048's `<storage/>`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Storage {
    bookmarks: Vec<Bookmark>,
    /// Web pages, and rooms without an address: XEP-0402 has nothing for them.
    others: Vec<Vec<u8>>,
}

impl Storage {
    fn read(payload: &[u8]) -> Result<Storage, Unread> {
        let element = Element::parse(payload.to_vec(), ns::CLIENT).map_err(|_| Unread::None)?;
        let root = element.root();
        if !root.is(ns::BOOKMARKS_LEGACY, "storage") {
            return Err(Unread::None);
        }
        let mut left = most_of(payload);
        let mut storage = Storage::default();
        let mut rooms = HashSet::new();
        for child in root.children() {
            let conference = child.is(ns::BOOKMARKS_LEGACY, "conference");
            let jid = child.attr("jid").filter(|_| conference);
            match jid.and_then(|jid| Jid::parse(&jid).ok()) {
                // Twice in the list: the first counts.
                Some(room) if rooms.insert(room.bare_str().to_owned()) => {
                    storage.bookmarks.push(Bookmark::read(child, room.bare_str(), &mut left)?);
                }
                Some(_) => {}
                None => {
                    let other = child.to_standalone_within(ns::BOOKMARKS_LEGACY, &mut left);
                    storage.others.push(other.ok_or(Unread::TooLong)?);
                }
            }
        }
        Ok(storage)
    }

    fn write(&self) -> Vec<u8> {
        let mut w = Writer::new();
        w.open("storage").attr("xmlns", ns::BOOKMARKS_LEGACY);
        for bookmark in &self.bookmarks {
            bookmark.write(&mut w, (None, Some(&bookmark.room)));
        }
        for other in &self.others {
            w.raw(other);
        }
        w.close();
        w.finish()
    }
}

/// The bookmarks of XEP-0402 change: the item of XEP-0048 is written anew.
async fn to_legacy(coming: Coming) -> Result<Vec<Also>, StanzaError> {
    let mut items = coming.desk.items_here(ns::BOOKMARKS).await?;
    match &coming.what {
        Happened::Published(new) => {
            // What the list can't show would be known to one kind of client only.
            for item in new {
                Bookmark::of_item(item).map_err(|error| match error {
                    Unread::None => invalid(
                        "This node takes <conference xmlns='urn:xmpp:bookmarks:1'/>, with the room's address as the item's id.",
                    ),
                    error => error.into(),
                })?;
            }
            items.retain(|item| {
                !coming.gone.contains(&item.id) && new.iter().all(|newer| newer.id != item.id)
            });
            items.extend(new.iter().cloned());
        }
        Happened::Retracted(ids) => items.retain(|item| !ids.contains(&item.id)),
        Happened::Purged | Happened::Deleted => items.clear(),
        Happened::Configured => return Ok(Vec::new()),
    }
    let legacy = coming.desk.items_here(ns::BOOKMARKS_LEGACY).await?;
    let before = storage_of(legacy.last())?;
    // Ids that are one address, written in several ways: the newest counts. What can't be read is in no list.
    let mut rooms = HashSet::new();
    let newest = items.iter().rev().filter_map(|item| Bookmark::of_item(item).ok());
    let mut bookmarks: Vec<Bookmark> =
        newest.filter(|bookmark| rooms.insert(bookmark.room.clone())).collect();
    bookmarks.reverse();
    // In the order that the user knows, what is new at the end.
    bookmarks.sort_by_key(|bookmark| {
        before.bookmarks.iter().position(|old| old.room == bookmark.room).unwrap_or(usize::MAX)
    });
    if bookmarks == before.bookmarks {
        return Ok(Vec::new());
    }
    let after = Storage { bookmarks, others: before.others };
    Ok(vec![Also::Items(Box::new(Items {
        node: ns::BOOKMARKS_LEGACY,
        made_as: NodeConfig::bookmarks_legacy(),
        put: vec![NewItem { id: Some(CURRENT.to_owned()), payload: after.write() }],
        take: Take::Others,
    }))])
}

/// The item of XEP-0048 changes: so do the bookmarks that differ (XEP-0402 s.5.1: the others are not told of).
async fn from_legacy(coming: Coming) -> Result<Vec<Also>, StanzaError> {
    let storage = match &coming.what {
        Happened::Published(items) => {
            let payload = items.last().map(|item| item.payload.clone()).unwrap_or_default();
            Storage::read(&payload)?
        }
        Happened::Retracted(ids) => {
            let left = coming.desk.items_here(ns::BOOKMARKS_LEGACY).await?;
            // What was not there takes nothing with it.
            match left.iter().rev().find(|item| !ids.contains(&item.id)) {
                Some(item) => storage_of(Some(item))?,
                None if left.is_empty() => return Ok(Vec::new()),
                None => Storage::default(),
            }
        }
        Happened::Purged | Happened::Deleted => Storage::default(),
        Happened::Configured => return Ok(Vec::new()),
    };
    let items = coming.desk.items_here(ns::BOOKMARKS).await?;
    // The newest of those that are one room's, as in the list; what is no bookmark was never in the list.
    let read: Vec<(&str, Bookmark)> =
        items.iter().filter_map(|item| Some((item.id.as_str(), Bookmark::of_item(item).ok()?))).collect();
    let known: HashMap<&str, (&str, &Bookmark)> =
        read.iter().map(|(id, bookmark)| (bookmark.room.as_str(), (*id, bookmark))).collect();
    let listed: HashSet<&str> = storage.bookmarks.iter().map(|bookmark| bookmark.room.as_str()).collect();
    let stays = |id: &str, room: &str| {
        listed.contains(room) && known.get(room).is_some_and(|(newest, _)| *newest == id)
    };
    let take = read.iter().filter(|(id, bookmark)| !stays(id, &bookmark.room));
    let take: Vec<String> = take.map(|(id, _)| (*id).to_owned()).collect();
    let mut put = Vec::new();
    for bookmark in &storage.bookmarks {
        let before = known.get(bookmark.room.as_str());
        let (id, before) = before.map_or((bookmark.room.as_str(), None), |(id, before)| (*id, Some(*before)));
        let mut after = bookmark.clone();
        // Who does not know extensions has not meant to remove them.
        if let Some(before) = before.filter(|_| after.extensions.is_empty()) {
            after.extensions.clone_from(&before.extensions);
        }
        if before != Some(&after) {
            put.push(after.to_item(id));
        }
    }
    // From before bookmarks were kept here.
    let old = sql("DELETE FROM private_xml WHERE account = ?1 AND ns = ?2 AND name = 'storage'")
        .bind(coming.desk.place.account().map_or(0, |account| account.id))
        .bind(ns::BOOKMARKS_LEGACY);
    Ok(vec![
        Also::Items(Box::new(Items {
            node: ns::BOOKMARKS,
            made_as: NodeConfig::private(),
            put,
            take: Take::Ids(take),
        })),
        Also::Rows(vec![old]),
    ])
}

/// What an item of XEP-0048 says; one that is none says nothing.
fn storage_of(item: Option<&Item>) -> Result<Storage, Unread> {
    let read = item.map(|item| known(Storage::read(&item.payload))).transpose()?;
    Ok(read.flatten().unwrap_or_default())
}

/// Bookmarks of the time when private XML was kept as it came go where they are kept now, before anybody signs in
/// (XEP-0411 s.4). What can't be taken over stays where it is.
///
/// # Errors
/// The store's.
pub async fn adopt(exchange: &Arc<Exchange>) -> Result<(), StoreError> {
    let mut last = 0;
    loop {
        let rows = exchange
            .db
            .read(
                sql("SELECT p.account, a.local, h.name, p.xml FROM private_xml p JOIN accounts a ON a.id = p.account \
                     JOIN hosts h ON h.id = a.host_id WHERE p.ns = ?1 AND p.name = 'storage' AND p.account > ?2 \
                     ORDER BY p.account LIMIT ?3")
                .bind(ns::BOOKMARKS_LEGACY)
                .bind(last)
                .bind(AT_ONCE),
            )
            .await?;
        if rows.is_empty() {
            return Ok(());
        }
        for row in rows.iter() {
            last = row.int(0);
            let Ok(jid) = Jid::parse(&format!("{}@{}", row.text(1), row.text(2))) else { continue };
            let Some(account) = exchange.accounts.load(&exchange.db, &jid).await? else { continue };
            let desk = exchange.pep(&account);
            // With what is published goes the row it was read from ([`from_legacy`]).
            if let Err(error) = take_over(&desk, row.blob(3)).await {
                tracing::warn!(%error, account = last, "old bookmarks could not be taken over");
            }
        }
    }
}

/// What is in PEP already wins.
async fn take_over(desk: &Desk, old: &[u8]) -> Result<(), StanzaError> {
    let old = Storage::read(old)?;
    let legacy = desk.items_here(ns::BOOKMARKS_LEGACY).await?;
    let mut storage = storage_of(legacy.last())?;
    let new = desk.items_here(ns::BOOKMARKS).await?;
    for bookmark in new.iter().filter_map(|item| Bookmark::of_item(item).ok()).chain(old.bookmarks) {
        if !storage.bookmarks.iter().any(|known| known.room == bookmark.room) {
            storage.bookmarks.push(bookmark);
        }
    }
    let unknown = old.others.into_iter().filter(|other| !storage.others.contains(other));
    let unknown: Vec<Vec<u8>> = unknown.collect();
    storage.others.extend(unknown);
    let item = NewItem { id: Some(CURRENT.to_owned()), payload: storage.write() };
    desk.publish(ns::BOOKMARKS_LEGACY, vec![item], Terms::Private).await.map(|_| ())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use trunkline_store::{Batch, Lane};

    use super::*;
    use crate::admin::Password;
    use crate::admin::accounts::{self, NewAccount};
    use crate::config::Config;
    use crate::ids::Clock;
    use crate::serve::{Parts, Server};

    const STORAGE: &str = "<storage xmlns='storage:bookmarks'>\
        <conference jid='Coven@chat.example' name='A &amp; B' autojoin='1'><nick>Puck</nick><password>x</password>\
        <mine xmlns='urn:mine' a='1'/></conference>\
        <conference jid='coven@chat.example' name='again'/>\
        <url url='https://example.org/' name='E'/><conference name='nowhere'/></storage>";

    #[test]
    fn nothing_is_lost_on_the_way() {
        let storage = Storage::read(STORAGE.as_bytes()).unwrap();
        let [bookmark] = storage.bookmarks.as_slice() else { panic!("{storage:?}") };
        assert_eq!((bookmark.room.as_str(), bookmark.autojoin), ("coven@chat.example", true));
        assert_eq!(bookmark.name.as_deref(), Some("A & B"));
        assert_eq!((bookmark.nick.as_deref(), bookmark.password.as_deref()), (Some("Puck"), Some("x")));
        assert_eq!(bookmark.extensions, vec![b"<mine xmlns='urn:mine' a='1'/>".to_vec()]);
        assert_eq!(storage.others.len(), 2);
        assert_eq!(Storage::read(&storage.write()), Ok(storage.clone()));
        let item = bookmark.to_item("Coven@chat.example");
        let item =
            Item { id: item.id.unwrap(), payload: item.payload.into(), publisher: String::new(), at: 0 };
        assert_eq!(Bookmark::of_item(&item).as_ref(), Ok(bookmark));
        for id in ["coven@chat.example/nick", "no room", ""] {
            let item = Item { id: id.to_owned(), ..item.clone() };
            assert_eq!(Bookmark::of_item(&item), Err(Unread::None), "{id}");
        }
        assert_eq!(Storage::read(b"<storage xmlns='urn:other'/>"), Err(Unread::None));
    }

    #[test]
    fn what_is_declared_once_is_not_multiplied() {
        let storage = |long: usize, child: &str| {
            let (ns, children) = ("u".repeat(long), child.repeat(100));
            let xml = format!("<storage xmlns='storage:bookmarks' xmlns:a='{ns}'>{children}</storage>");
            Storage::read(xml.as_bytes())
        };
        for child in ["<a:x/>", "<conference jid='r@chat.example'><a:x/></conference>"] {
            assert!(storage(10, child).is_ok());
        }
        assert_eq!(storage(10_000, "<a:x/>"), Err(Unread::TooLong));
        let bookmark = |long: usize, child: &str| {
            let (ns, children) = ("u".repeat(long), child.repeat(1000));
            let xml =
                format!("<conference xmlns='urn:xmpp:bookmarks:1' xmlns:a='{ns}'>{children}</conference>");
            let item = Item { id: "r@x".into(), payload: xml.into(), publisher: String::new(), at: 0 };
            Bookmark::of_item(&item).map(|bookmark| bookmark.extensions.len())
        };
        assert_eq!(bookmark(1, "<a:x/>"), Err(Unread::TooLong), "a few bytes a thousand times");
        for child in ["<a:x/>", "<extensions><a:x/></extensions>"] {
            assert_eq!(bookmark(10_000, child), Err(Unread::TooLong), "{child}");
        }
        assert_eq!(bookmark(10, "<a:x>0123456789</a:x>"), Ok(1000));
    }

    /// What was kept before goes where it is kept now, beside what is there, and once.
    #[tokio::test(start_paused = true)]
    async fn old_private_xml_is_taken_over() {
        let text = "domain = \"north.example\"\ndata_dir = \"/nonexistent\"\n[accounts]\npassword_iterations = 4096\n";
        let config = Config::parse(text, Path::new("/nonexistent/trunkline.toml")).unwrap();
        let parts = Parts { clock: Clock::virtual_now(), in_memory: true, ..Parts::default() };
        let server = Server::start(config, parts).await.unwrap();
        let exchange = server.exchange();
        let mut desks = Vec::new();
        for (name, old) in [("a", STORAGE), ("b", STORAGE), ("c", "<storage xmlns='urn:other'/>")] {
            let jid = Jid::parse(&format!("{name}@north.example")).unwrap();
            let new = NewAccount { jid: &jid, password: &Password::new("x"), iterations: 4096, now: 0 };
            accounts::add(&exchange.db, new, None).await.unwrap();
            let account = exchange.accounts.load(&exchange.db, &jid).await.unwrap().unwrap();
            let row = sql("INSERT INTO private_xml (account, ns, name, xml) VALUES (?1, ?2, 'storage', ?3)")
                .bind(account.id)
                .bind(ns::BOOKMARKS_LEGACY)
                .bind(old.as_bytes().to_vec());
            exchange.db.run(Batch::new(Lane::Inside).with(row)).await.unwrap();
            desks.push(exchange.pep(&account));
        }
        let b = &desks[1];
        let mine = |room: &str, name: &str| {
            let payload = format!("<conference xmlns='urn:xmpp:bookmarks:1' name='{name}'/>");
            NewItem { id: Some(room.to_owned()), payload: payload.into_bytes() }
        };
        let newer = mine("coven@chat.example", "newer");
        b.publish(ns::BOOKMARKS, vec![newer, mine("z@chat.example", "z")], Terms::Any).await.unwrap();
        let names = async |desk: &Desk| -> Vec<String> {
            let items = desk.items(ns::BOOKMARKS).await.unwrap();
            items.iter().filter_map(|item| Bookmark::of_item(item).ok()?.name).collect()
        };
        for _ in 0..2 {
            adopt(exchange).await.unwrap();
            assert_eq!(names(&desks[0]).await, ["A & B"]);
            assert_eq!(names(b).await, ["newer", "z"]);
            let legacy = b.items(ns::BOOKMARKS_LEGACY).await.unwrap();
            let storage = Storage::read(&legacy[0].payload).unwrap();
            assert_eq!((storage.bookmarks.len(), storage.others.len()), (2, 2));
            let rows = exchange.db.read(sql("SELECT xml FROM private_xml")).await.unwrap();
            let left: Vec<_> = rows.iter().map(|row| row.blob(0).to_vec()).collect();
            assert_eq!(left, [b"<storage xmlns='urn:other'/>".to_vec()], "what can't be read stays");
        }
    }
}
