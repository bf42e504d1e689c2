//! XEP-0049 Private XML Storage 1.2.

use std::sync::Arc;

use trunkline_store::{Batch, Lane, sql};
use trunkline_xml::{Node, Writer};
use trunkline_xmpp::error::{Condition, StanzaError};
use trunkline_xmpp::ns;
use trunkline_xmpp::stanza::IqType::{Get, Set};

use super::{Answer, Level, Module, Reply, Request, Scope};
use crate::pubsub::{NewItem, Terms};
use crate::route::account::Account;
use crate::route::message::store_trouble;

/// Elements one account may store.
const MOST_ELEMENTS: i64 = 100;

/// Keeps XML for its owner.
pub fn module() -> Module {
    Module::new("private", "Keep private XML for clients")
        .xep(49, "1.2", Level::Complete)
        .feature(Scope::Host, ns::PRIVATE)
        .feature(Scope::Account, ns::PRIVATE)
        .iq(Scope::Account, Get, (ns::PRIVATE, "query"), get)
        .iq(Scope::Account, Set, (ns::PRIVATE, "query"), set)
        .iq(Scope::Contact, Get, (ns::PRIVATE, "query"), forbidden)
        .iq(Scope::Contact, Set, (ns::PRIVATE, "query"), forbidden)
}

async fn get(request: Request) -> Answer {
    let Some(account) = &request.account else { return Err(StanzaError::new(Condition::Forbidden)) };
    let query = request.stanza.first_child().ok_or_else(|| StanzaError::new(Condition::BadRequest))?;
    // Example 6: a query without an element is `bad-request`; only one is asked for at a time.
    let mut wanted = query.children();
    let element = wanted.next().ok_or_else(|| StanzaError::new(Condition::BadRequest))?;
    if wanted.next().is_some() {
        return Err(StanzaError::new(Condition::BadRequest).text("Ask for one element at a time."));
    }
    if is_bookmarks(element) {
        let items = request.exchange.pep(account).items_here(ns::BOOKMARKS_LEGACY).await?;
        if let Some(item) = items.last() {
            let mut w = Writer::new();
            w.open("query").attr("xmlns", ns::PRIVATE).raw(&item.payload).close();
            return Ok(w.finish().into());
        }
    }
    let (name, namespace) = (element.name().to_owned(), element.ns().to_owned());
    let rows = request
        .exchange
        .db
        .read(
            sql("SELECT xml FROM private_xml WHERE account = ?1 AND ns = ?2 AND name = ?3")
                .bind(account.id)
                .bind(namespace.as_str())
                .bind(name.as_str()),
        )
        .await
        .map_err(|error| store_trouble(&error))?;
    let mut w = Writer::new();
    w.open("query").attr("xmlns", ns::PRIVATE);
    match rows.iter().next() {
        Some(row) => {
            w.raw(row.blob(0));
        }
        None => {
            w.open(&name).attr("xmlns", &namespace).close();
        }
    }
    w.close();
    Ok(w.finish().into())
}

async fn set(request: Request) -> Answer {
    let Some(account) = &request.account else { return Err(StanzaError::new(Condition::Forbidden)) };
    let query = request.stanza.first_child().ok_or_else(|| StanzaError::new(Condition::BadRequest))?;
    if let Some(storage) = query.children().find(|element| is_bookmarks(*element)) {
        if query.children().count() > 1 {
            return Err(StanzaError::new(Condition::BadRequest).text("Store bookmarks by themselves."));
        }
        return set_bookmarks(&request, account, storage.to_standalone(ns::PRIVATE)).await;
    }
    let mut batch = Batch::new(Lane::Inside);
    let most = request.exchange.config.load().limits.private_bytes;
    // For all of them: what is declared around them is written with each.
    let mut left = most;
    for element in query.children() {
        // s.3: the element has a namespace of its own.
        if element.ns().is_empty() || element.ns() == ns::PRIVATE || element.ns() == ns::CLIENT {
            return Err(
                StanzaError::new(Condition::NotAcceptable).text("The element needs a namespace of its own.")
            );
        }
        let xml = element.to_standalone_within(ns::PRIVATE, &mut left).ok_or_else(|| {
            StanzaError::new(Condition::ResourceConstraint)
                .text(format!("An account may store {most} bytes all together; these elements have more."))
        })?;
        let room = i64::try_from(most - xml.len()).unwrap_or(i64::MAX);
        batch.push(
            sql("INSERT INTO private_xml (account, ns, name, xml) SELECT ?1, ?2, ?3, ?4 \
                 WHERE (SELECT COUNT(*) FROM private_xml WHERE account = ?1 AND NOT (ns = ?2 AND name = ?3)) < ?5 \
                 AND (SELECT COALESCE(SUM(LENGTH(xml)), 0) FROM private_xml \
                 WHERE account = ?1 AND NOT (ns = ?2 AND name = ?3)) <= ?6 \
                 ON CONFLICT (account, ns, name) DO UPDATE SET xml = excluded.xml")
            .bind(account.id)
            .bind(element.ns())
            .bind(element.name())
            .bind(xml)
            .bind(MOST_ELEMENTS)
            .bind(room)
            .must_change(),
        );
    }
    if batch.is_empty() {
        return Err(StanzaError::new(Condition::BadRequest).text("There is nothing to store."));
    }
    match request.exchange.db.run(batch).await {
        Ok(_) => Ok(Reply::Empty),
        Err(trunkline_store::StoreError::Conflict) => Err(full(&request, account, most).await),
        Err(error) => Err(store_trouble(&error)),
    }
}

/// Says how much there may be, and how much of it is left.
async fn full(request: &Request, account: &Account, most: usize) -> StanzaError {
    let used = sql("SELECT COUNT(*), COALESCE(SUM(LENGTH(xml)), 0) FROM private_xml WHERE account = ?1");
    match request.exchange.db.read(used.bind(account.id)).await {
        Ok(rows) => {
            let (elements, bytes) = rows.first().map_or((0, 0), |row| (row.int(0), row.int(1)));
            let bytes = most.saturating_sub(usize::try_from(bytes).unwrap_or(0));
            StanzaError::new(Condition::ResourceConstraint).text(format!(
                "An account may store {MOST_ELEMENTS} elements and {most} bytes all together; {} and {bytes} are left.",
                (MOST_ELEMENTS - elements).max(0)
            ))
        }
        Err(error) => store_trouble(&error),
    }
}

/// XEP-0411: bookmarks are kept as a node's item, where they are kept in step with those of other kinds.
fn is_bookmarks(element: Node<'_>) -> bool {
    element.is(ns::BOOKMARKS_LEGACY, "storage")
}

async fn set_bookmarks(request: &Request, account: &Arc<Account>, payload: Vec<u8>) -> Answer {
    let mut desk = request.exchange.pep(account);
    desk.ours = false;
    let item = NewItem { id: Some("current".to_owned()), payload };
    // What private XML had before goes with it.
    desk.publish(ns::BOOKMARKS_LEGACY, vec![item], Terms::Private).await?;
    Ok(Reply::Empty)
}

async fn forbidden(_: Request) -> Answer {
    Err(StanzaError::new(Condition::Forbidden))
}
