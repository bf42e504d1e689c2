//! What people say about themselves, kept in step: the vCard of XEP-0054 is a row; the vCard4 (XEP-0292) and the picture
//! (XEP-0084) are nodes. Whichever a client writes, the others follow in the same batch. design/017-pubsub.md.
//!
//! | part | what |
//! |---|---|
//! | here | who follows whom |
//! | [`card`] | the two cards: a table of properties |
//! | [`avatar`] | pictures, and what presence says of them |

pub mod avatar;
pub mod card;

use std::sync::Arc;

use bytes::Bytes;
use trunkline_store::{Lane, Statement, StoreError, sql};
use trunkline_xml::Element;
use trunkline_xmpp::error::{Condition, StanzaError};
use trunkline_xmpp::jid::Jid;
use trunkline_xmpp::ns;

use self::avatar::Image;
use self::card::TooLong;
use crate::exchange::Exchange;
use crate::pubsub::along::{Also, Coming, Items, Take};
use crate::pubsub::config::NodeConfig;
use crate::pubsub::{Desk, Happened, NewItem, errors};
use crate::route::account::Account;
use crate::route::message::store_trouble;

/// Accounts that are read at once.
const AT_ONCE: i64 = 100;
/// The one item of a vCard4.
const CURRENT: &str = "current";

/// What the store has beside the nodes.
struct Stored {
    card: Option<Bytes>,
    /// The picture's hash, as presence says it; empty: there is none.
    avatar: String,
}

impl Stored {
    async fn read(desk: &Desk) -> Result<Stored, StanzaError> {
        let statements = vec![
            sql("SELECT xml FROM vcards WHERE account = ?1").bind(id(desk)),
            sql("SELECT avatar FROM accounts WHERE id = ?1").bind(id(desk)),
        ];
        let results = desk.exchange.db.read_all(desk.lane, statements).await;
        let results = results.map_err(|error| store_trouble(&error))?;
        let first = |at: usize| results.get(at).and_then(|rows| rows.first());
        Ok(Stored {
            card: first(0).map(|row| row.blob(0).clone()),
            avatar: first(1).and_then(|row| row.opt_text(0).map(str::to_owned)).unwrap_or_default(),
        })
    }
}

fn id(desk: &Desk) -> i64 {
    desk.place.account().map_or(0, |account| account.id)
}

fn save_card(desk: &Desk, card: &[u8]) -> Statement {
    sql("INSERT INTO vcards (account, xml) VALUES (?1, ?2) ON CONFLICT (account) DO UPDATE SET xml = excluded.xml")
        .bind(id(desk))
        .bind(card.to_vec())
}

/// Who never had a picture has nothing to take back in presence.
fn save_avatar(desk: &Desk, image: Option<&Image>) -> Statement {
    sql("UPDATE accounts SET avatar = ?2 WHERE id = ?1 AND (?2 <> '' OR avatar IS NOT NULL)")
        .bind(id(desk))
        .bind(image.map_or("", |image| image.hash.as_str()))
}

impl From<TooLong> for StanzaError {
    fn from(error: TooLong) -> StanzaError {
        StanzaError::new(Condition::ResourceConstraint).text(error.to_string())
    }
}

impl Exchange {
    /// A user's vCard (XEP-0054) becomes this one; what the nodes say follows (XEP-0398 s.3.2).
    ///
    /// # Errors
    /// Quotas of the nodes; the store's.
    pub async fn set_card(
        self: &Arc<Self>,
        account: &Arc<Account>,
        card: Vec<u8>,
    ) -> Result<(), StanzaError> {
        self.pep(account).together(|desk| from_card(desk, card)).await?;
        self.refresh_avatar(account).await;
        Ok(())
    }

    /// A user's vCard, as far as `who` may see it: the fields as those at the node of the vCard4, the picture as that at the
    /// nodes of pictures (XEP-0398 s.7). `None`: there is none for them.
    ///
    /// # Errors
    /// The store's.
    pub async fn card_for(
        self: &Arc<Self>,
        account: &Arc<Account>,
        (who, lane): (&Jid, Lane),
    ) -> Result<Option<Bytes>, StanzaError> {
        let desk = Desk { who: who.clone(), lane, ours: false, ..self.pep(account) };
        let Some(card) = Stored::read(&desk).await?.card else { return Ok(None) };
        if desk.is_own() {
            return Ok(Some(card));
        }
        let fields = desk.shows(ns::VCARD4_NODE).await?;
        let photo = desk.shows(ns::AVATAR_DATA).await? && desk.shows(ns::AVATAR_METADATA).await?;
        if fields && photo {
            return Ok(Some(card));
        }
        // A card that can't be written again is none for those who may not see all of it.
        let shown = card::shown(&card, (fields, photo)).ok();
        Ok(shown.filter(|shown| !card::is_empty(shown)).map(Bytes::from))
    }
}

/// What follows from a vCard of XEP-0054 that its user sets.
async fn from_card(desk: Desk, card: Vec<u8>) -> Result<Vec<Also>, StanzaError> {
    // What can't be written again is refused here, where its user sees it.
    card::shown(&card, (true, true))?;
    let stored = Stored::read(&desk).await?;
    let element = Element::parse(card.clone(), ns::CLIENT).ok();
    // XEP-0398 s.3.2: "with a valid photo attached to it".
    let image = element.as_ref().and_then(Image::of_card);
    let mut all = vec![Also::Rows(vec![save_card(&desk, &card)])];
    // One that the nodes can't have takes nothing away there.
    let other = image.is_none() && element.as_ref().is_some_and(avatar::has_photo);
    if !other {
        all.push(Also::Rows(vec![save_avatar(&desk, image.as_ref())]));
        if image.as_ref().map_or("", |image| &image.hash) != stored.avatar {
            all.extend(to_nodes(image.as_ref()));
        }
    }
    all.extend(to_vcard4(&desk, &card).await?);
    Ok(all)
}

/// The picture's nodes, with another one.
fn to_nodes(image: Option<&Image>) -> [Also; 2] {
    let items = |node, put| {
        Also::Items(Box::new(Items { node, made_as: NodeConfig::public(), put, take: Take::Others }))
    };
    [
        items(ns::AVATAR_DATA, image.map(Image::data_item).into_iter().collect()),
        items(ns::AVATAR_METADATA, vec![image.map_or_else(avatar::no_metadata_item, Image::metadata_item)]),
    ]
}

/// The vCard4, if it is to be another one.
async fn to_vcard4(desk: &Desk, card: &[u8]) -> Result<Option<Also>, StanzaError> {
    let before = desk.newest(ns::VCARD4_NODE).await?;
    let after = card::to_new(Some(card), before.as_ref().map(|item| &*item.payload))?;
    let same = match &before {
        Some(before) => before.payload == after,
        None => after == card::to_new(None, None)?,
    };
    if same {
        return Ok(None);
    }
    let most = desk.allowed().payload;
    if after.len() > most {
        return Err(StanzaError::new(Condition::ResourceConstraint)
            .text(format!("A vCard4 may have {most} bytes; this would have {}.", after.len())));
    }
    Ok(Some(Also::Items(Box::new(Items {
        node: ns::VCARD4_NODE,
        made_as: NodeConfig::public(),
        put: vec![NewItem { id: Some(CURRENT.to_owned()), payload: after }],
        take: Take::Others,
    }))))
}

/// The node of the vCard4 changes: the vCard of XEP-0054 follows.
///
/// # Errors
/// What is no vCard4; the store's.
pub async fn from_vcard4(coming: Coming) -> Result<Vec<Also>, StanzaError> {
    let desk = &coming.desk;
    check(&coming.what, (ns::VCARD4, "vcard"))?;
    let new = newest_after(&coming).await?;
    let stored = Stored::read(desk).await?;
    let card = card::to_old(stored.card.as_deref(), new.as_deref())?;
    let limits = &desk.exchange.config.load().limits;
    // What an old client could never send, and a picture.
    let most = limits.vcard_bytes + limits.pubsub_item_bytes;
    if card.len() > most {
        return Err(StanzaError::new(Condition::ResourceConstraint)
            .text(format!("A vCard may have {most} bytes; this would have {}.", card.len())));
    }
    let same = stored.card.as_ref().map_or(card::is_empty(&card), |before| *before == card);
    Ok(if same { Vec::new() } else { vec![Also::Rows(vec![save_card(desk, &card)])] })
}

/// A node of the picture changes: the vCard and what presence says follow (XEP-0398 s.3.1).
///
/// What is no picture, or has another hash than its id, is shown by neither (s.3.1: "SHOULD verify").
///
/// # Errors
/// What does not belong there; the store's.
pub async fn from_nodes(coming: Coming) -> Result<Vec<Also>, StanzaError> {
    let desk = &coming.desk;
    let of_data = coming.node == ns::AVATAR_DATA;
    let metadata = match of_data {
        true => {
            check(&coming.what, (ns::AVATAR_DATA, "data"))?;
            desk.newest(ns::AVATAR_METADATA).await?.map(|item| item.payload)
        }
        false => {
            check(&coming.what, (ns::AVATAR_METADATA, "metadata"))?;
            newest_after(&coming).await?
        }
    };
    let wanted = metadata.and_then(|metadata| avatar::wanted(&metadata));
    let data = match (&wanted, of_data, &coming.what) {
        (Some(id), false, _) => data_of(desk, id).await?,
        // The data come first, and the metadata that speak of them later (XEP-0084 s.3): nothing has changed yet. Nor is
        // what those data push out taken away by anybody.
        (Some(id), true, Happened::Published(items)) => match items.iter().find(|item| item.id == *id) {
            Some(item) => Some(item.payload.clone()),
            None => return Ok(Vec::new()),
        },
        (Some(id), true, Happened::Retracted(ids)) if !ids.contains(id) => return Ok(Vec::new()),
        (_, true, Happened::Configured) | (None, true, _) => return Ok(Vec::new()),
        _ => None,
    };
    let image = wanted.zip(data).and_then(|(id, data)| image_of(&id, data));
    follow(desk, image).await
}

/// The data of that id.
async fn data_of(desk: &Desk, id: &str) -> Result<Option<Bytes>, StanzaError> {
    match desk.item(ns::AVATAR_DATA, id).await {
        Err(error) if error.condition == Condition::Gone => Ok(None),
        other => Ok(other?.map(|item| item.payload)),
    }
}

fn image_of(id: &str, data: Bytes) -> Option<Image> {
    let element = Element::parse(data, ns::CLIENT).ok()?;
    let data = Some(element.root()).filter(|root| root.is(ns::AVATAR_DATA, "data"))?;
    Image::read(&data.text()).filter(|image| image.hash.eq_ignore_ascii_case(id))
}

/// The vCard with the picture of the nodes.
async fn follow(desk: &Desk, image: Option<Image>) -> Result<Vec<Also>, StanzaError> {
    let stored = Stored::read(desk).await?;
    if image.as_ref().map_or("", |image| &image.hash) == stored.avatar {
        return Ok(Vec::new());
    }
    let card = card::with_photo(stored.card.as_deref(), image.as_ref())?;
    Ok(vec![Also::Rows(vec![save_card(desk, &card), save_avatar(desk, image.as_ref())])])
}

/// Other things do not go where this is expected.
fn check(what: &Happened, (namespace, name): (&str, &str)) -> Result<(), StanzaError> {
    let Happened::Published(items) = what else { return Ok(()) };
    let fits = |payload: &Bytes| {
        Element::parse(payload.clone(), ns::CLIENT).is_ok_and(|payload| payload.root().is(namespace, name))
    };
    if items.iter().all(|item| fits(&item.payload)) {
        return Ok(());
    }
    // XEP-0060 s.7.1.3.5
    let text = format!("This node takes <{name} xmlns='{namespace}'/>.");
    Err(errors::specific(Condition::BadRequest, "invalid-payload").text(text))
}

/// The newest item when what comes has come.
async fn newest_after(coming: &Coming) -> Result<Option<Bytes>, StanzaError> {
    match &coming.what {
        Happened::Published(items) => Ok(items.last().map(|item| item.payload.clone())),
        Happened::Retracted(ids) => {
            let items = match coming.desk.items(&coming.node).await {
                Err(error) if error.condition == Condition::Gone => Vec::new(),
                other => other?,
            };
            let stays = items.into_iter().rev().find(|item| !ids.contains(&item.id));
            Ok(stays.map(|item| item.payload))
        }
        Happened::Configured => Ok(coming.desk.newest(&coming.node).await?.map(|item| item.payload)),
        Happened::Purged | Happened::Deleted => Ok(None),
    }
}

/// Cards and nodes of the time before they were kept in step, before anybody signs in. What the nodes say wins. What can't
/// be taken over is tried again at the next start.
///
/// # Errors
/// The store's.
pub async fn adopt(exchange: &Arc<Exchange>) -> Result<(), StoreError> {
    let mut last = 0;
    loop {
        let rows = exchange
            .db
            .read(
                sql("SELECT p.account, a.local, h.name FROM profiles_to_adopt p JOIN accounts a ON a.id = p.account \
                     JOIN hosts h ON h.id = a.host_id WHERE p.account > ?1 ORDER BY p.account LIMIT ?2")
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
            match exchange.pep(&account).together(take_over).await {
                Ok(()) => exchange.refresh_avatar(&account).await,
                Err(error) => tracing::warn!(%error, account = last, "an old vCard could not be taken over"),
            }
        }
    }
}

async fn take_over(desk: Desk) -> Result<Vec<Also>, StanzaError> {
    let stored = Stored::read(&desk).await?;
    let mut all = Vec::new();
    let metadata = desk.newest(ns::AVATAR_METADATA).await?;
    let shown = match metadata.and_then(|item| avatar::wanted(&item.payload)) {
        Some(id) => data_of(&desk, &id).await?.and_then(|data| image_of(&id, data)),
        None => None,
    };
    let own = stored.card.clone().and_then(|card| Element::parse(card, ns::CLIENT).ok());
    let image = shown.clone().or_else(|| own.as_ref().and_then(Image::of_card));
    if shown.is_none() && image.is_some() {
        all.extend(to_nodes(image.as_ref()));
    }
    let mut card = stored.card.map(|card| card.to_vec());
    if shown.is_some() {
        card = Some(card::with_photo(card.as_deref(), shown.as_ref())?);
    }
    match desk.newest(ns::VCARD4_NODE).await? {
        Some(new) => card = Some(card::to_old(card.as_deref(), Some(&new.payload))?),
        None => {
            if let Some(card) = &card {
                all.extend(to_vcard4(&desk, card).await?);
            }
        }
    }
    let mut rows = vec![
        save_avatar(&desk, image.as_ref()),
        sql("DELETE FROM profiles_to_adopt WHERE account = ?1").bind(id(&desk)),
    ];
    rows.extend(card.map(|card| save_card(&desk, &card)));
    all.push(Also::Rows(rows));
    Ok(all)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use trunkline_store::Batch;

    use super::*;
    use crate::admin::Password;
    use crate::admin::accounts::{self, NewAccount};
    use crate::config::Config;
    use crate::ids::Clock;
    use crate::pubsub::Terms;
    use crate::serve::{Parts, Server};

    const GIF: &str = "R0lGODlhAQABAA==";

    /// What was kept apart is brought together once, and what the nodes say wins.
    #[tokio::test(start_paused = true)]
    async fn old_cards_and_pictures_are_taken_over() {
        let text = "domain = \"north.example\"\ndata_dir = \"/nonexistent\"\n[accounts]\npassword_iterations = 4096\n";
        let config = Config::parse(text, Path::new("/nonexistent/trunkline.toml")).unwrap();
        let parts = Parts { clock: Clock::virtual_now(), in_memory: true, ..Parts::default() };
        let server = Server::start(config, parts).await.unwrap();
        let exchange = server.exchange();
        let image = Image::read(GIF).unwrap();
        let card = format!(
            "<vCard xmlns='vcard-temp'><FN>Old</FN><MAILER>m</MAILER><PHOTO><BINVAL>{GIF}</BINVAL></PHOTO></vCard>"
        );
        let mut accounts = Vec::new();
        for name in ["card", "nodes", "both"] {
            let jid = Jid::parse(&format!("{name}@north.example")).unwrap();
            let new = NewAccount { jid: &jid, password: &Password::new("x"), iterations: 4096, now: 0 };
            accounts::add(&exchange.db, new, None).await.unwrap();
            let account = exchange.accounts.load(&exchange.db, &jid).await.unwrap().unwrap();
            let desk = exchange.pep(&account);
            if name != "card" {
                let vcard =
                    "<vcard xmlns='urn:ietf:params:xml:ns:vcard-4.0'><fn><text>New</text></fn></vcard>";
                let item = NewItem { id: None, payload: vcard.into() };
                desk.publish(ns::VCARD4_NODE, vec![item], Terms::Any).await.unwrap();
                desk.publish(ns::AVATAR_DATA, vec![image.data_item()], Terms::Any).await.unwrap();
                desk.publish(ns::AVATAR_METADATA, vec![image.metadata_item()], Terms::Any).await.unwrap();
            }
            // As it was before there was anything in step.
            let mut batch = Batch::new(Lane::Inside);
            batch.push(sql("DELETE FROM vcards WHERE account = ?1").bind(account.id));
            batch.push(sql("UPDATE accounts SET avatar = NULL WHERE id = ?1").bind(account.id));
            batch.push(sql("INSERT INTO profiles_to_adopt (account) VALUES (?1)").bind(account.id));
            let old = match name {
                "card" => card.clone(),
                _ => card.replace(GIF, "R0lGODlhAQABAQ=="),
            };
            if name != "nodes" {
                let row = sql("INSERT INTO vcards (account, xml) VALUES (?1, ?2)").bind(account.id);
                batch.push(row.bind(old.into_bytes()));
            }
            exchange.db.run(batch).await.unwrap();
            accounts.push(account);
        }
        for _ in 0..2 {
            adopt(exchange).await.unwrap();
            for (account, name) in accounts.iter().zip(["Old", "New", "New"]) {
                let desk = exchange.pep(account);
                let stored = Stored::read(&desk).await.unwrap();
                assert_eq!(stored.avatar, image.hash, "{account:?}");
                let card = String::from_utf8(stored.card.unwrap().to_vec()).unwrap();
                assert!(card.contains(&format!("<FN>{name}</FN>")) && card.contains(GIF), "{card}");
                assert_eq!(card.contains("<MAILER>"), !account.jid.as_str().starts_with("nodes"), "{card}");
                let vcard = desk.newest(ns::VCARD4_NODE).await.unwrap().unwrap();
                assert!(String::from_utf8_lossy(&vcard.payload).contains(&format!("<text>{name}</text>")));
                let metadata = desk.newest(ns::AVATAR_METADATA).await.unwrap().unwrap();
                assert_eq!(avatar::wanted(&metadata.payload).as_deref(), Some(image.hash.as_str()));
                assert!(desk.item(ns::AVATAR_DATA, &image.hash).await.unwrap().is_some());
                assert_eq!(
                    account.state().avatar.as_ref().map(|avatar| &*avatar.hash),
                    Some(image.hash.as_str())
                );
            }
            let left = exchange.db.read(sql("SELECT COUNT(*) FROM profiles_to_adopt")).await.unwrap();
            assert_eq!(left.first().unwrap().int(0), 0);
        }
    }
}
