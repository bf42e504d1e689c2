//! XEP-0313 Message Archive Management 1.1.3: users read their archives. XEP-0441: they say what goes into them.
//! XEP-0431: they search them.
//!
//! A page is sent as its reader takes it: the ids of its messages are known at the start, the messages are read as
//! the client's queue has room. While a page is under way the connection that asked is not read, so a client has one
//! page at a time in the making, and who reads slowly holds up nobody else.

use std::sync::Arc;

use trunkline_store::Batch;
use trunkline_xml::Writer;
use trunkline_xmpp::error::{Condition, StanzaError};
use trunkline_xmpp::mam::{self, Fin, Offer, Preferences, Query};
use trunkline_xmpp::stanza::IqType::{Get, Set};
use trunkline_xmpp::stanza::{Kind, MessageType, Stanza};
use trunkline_xmpp::{ns, rsm};
use uuid::Uuid;

use super::{Answer, Level, Module, Reply, Request, Scope};
use crate::config::Config;
use crate::exchange::Exchange;
use crate::ids::LogId;
use crate::log::pages::{self, Filter, Place, Window};
use crate::log::search;
use crate::route::account::{Account, save_preferences};
use crate::route::message::store_trouble;
use crate::route::{Push, Queued, Session};

/// Messages of a page if the client does not say how many.
const USUAL_PAGE: usize = 50;
/// Pages of one account's archive in the making at once. A connection makes one at a time, but one that breaks leaves its page
/// to the session, which may be resumed and break again.
const MOST_PAGES: u8 = 32;
/// Addresses in the two lists of one user's preferences.
const MOST_RULES: usize = 1000;

/// Lets users read, search and configure their archives.
pub fn module() -> Module {
    let archives: fn(&Config) -> bool = |config| config.accounts.archive;
    Module::new("archive", "Let users read and search what was said")
        .xep(59, "1.0", Level::Complete)
        .xep(313, "1.1.3", Level::Complete)
        .xep(431, "0.2.0", Level::Complete)
        .xep(441, "0.2.0", Level::Partial("no ad-hoc command for more than the preferences"))
        .feature_if(Scope::Account, ns::MAM, archives)
        .feature_if(Scope::Account, ns::MAM_EXTENDED, archives)
        .feature_if(Scope::Account, ns::MAM_GROUPCHAT_FIELD, archives)
        .feature_if(Scope::Account, ns::FULLTEXT, |config| config.accounts.archive && config.accounts.search)
        .iq(Scope::Account, Set, (ns::MAM, "query"), query)
        .iq(Scope::Account, Get, (ns::MAM, "query"), form)
        .iq(Scope::Account, Get, (ns::MAM, "metadata"), metadata)
        .iq(Scope::Account, Get, (ns::MAM, "prefs"), preferences)
        .iq(Scope::Account, Set, (ns::MAM, "prefs"), set_preferences)
        .iq(Scope::Contact, Set, (ns::MAM, "query"), forbidden)
        .iq(Scope::Contact, Get, (ns::MAM, "query"), forbidden)
        .iq(Scope::Contact, Get, (ns::MAM, "metadata"), forbidden)
        .iq(Scope::Contact, Get, (ns::MAM, "prefs"), forbidden)
        .iq(Scope::Contact, Set, (ns::MAM, "prefs"), forbidden)
}

/// s.8.1: an archive is its owner's. Strangers from outside don't come this far.
async fn forbidden(_: Request) -> Answer {
    Err(StanzaError::new(Condition::Forbidden))
}

/// Whose archive it is, if there is one.
fn owner(request: &Request) -> Result<Arc<Account>, StanzaError> {
    if !request.exchange.config.load().accounts.archive {
        return Err(StanzaError::new(Condition::ServiceUnavailable).text("There are no archives here."));
    }
    request.account.clone().ok_or_else(|| StanzaError::new(Condition::Forbidden))
}

fn offer(exchange: &Exchange) -> Offer {
    let config = exchange.config.load();
    Offer { search: config.accounts.search, ids: config.limits.archive_page }
}

/// s.4.1.5.
async fn form(request: Request) -> Answer {
    owner(&request)?;
    let mut w = Writer::new();
    mam::write_form(&mut w, offer(&request.exchange));
    Ok(w.finish().into())
}

/// s.5.
async fn metadata(request: Request) -> Answer {
    let account = owner(&request)?;
    let exchange = &request.exchange;
    let metadata = pages::metadata(&exchange.db, &exchange.ids, &account).await;
    Ok(metadata.map_err(|error| store_trouble(&error))?.into())
}

fn uid(exchange: &Exchange, id: LogId) -> String {
    exchange.ids.uuid(id).hyphenated().to_string()
}

fn not_found() -> StanzaError {
    StanzaError::new(Condition::ItemNotFound).text("There is no such message in the archive.")
}

/// What a query names, as ids of the log.
struct Wanted {
    filter: Filter,
    window: Window,
    /// Messages that must be there (s.4.1.3, s.4.3.2).
    named: Vec<LogId>,
    /// XEP-0059 s.2.6.
    count_only: bool,
}

impl Wanted {
    fn of(exchange: &Exchange, query: &Query, end: LogId) -> Result<Wanted, StanzaError> {
        let mut named = Vec::new();
        let mut name = |text: &str| {
            let id = exchange.ids.parse(text).ok_or_else(not_found)?;
            named.push(id);
            Ok::<LogId, StanzaError>(id)
        };
        let mut after = LogId::ZERO;
        let mut before = end;
        if let Some(id) = &query.after_id {
            after = name(id)?;
        }
        if let Some(id) = &query.before_id {
            before = before.min(name(id)?);
        }
        // s.4.1.2: both ends are included.
        if let Some(start) = query.start {
            after = after.max(LogId(LogId::first_of(start).0.saturating_sub(1)));
        }
        if let Some(last) = query.end {
            before = before.min(LogId::first_of(last.saturating_add(1)));
        }
        let only = query.ids.as_ref().map(|ids| ids.iter().map(|id| name(id)).collect()).transpose()?;
        let page = &query.page;
        let mut window = Window {
            after: LogId::ZERO,
            before: LogId(i64::MAX),
            backward: page.is_backward(),
            skip: page.index.unwrap_or(0),
            most: page.max.unwrap_or(USUAL_PAGE).min(exchange.config.load().limits.archive_page),
        };
        if let Some(id) = &page.after {
            window.after = name(id)?;
        }
        if let Some(id) = page.before.as_deref().filter(|id| !id.is_empty()) {
            window.before = name(id)?;
        }
        let words = query.words.as_ref().map(|text| search::query(text)).transpose();
        let words =
            words.map_err(|error| StanzaError::new(Condition::ResourceConstraint).text(error.to_string()))?;
        // Only signs and no word: nothing matches.
        let only = if words == Some(None) { Some(Vec::new()) } else { only };
        let filter = Filter { after, before, with: query.with.clone(), words: words.flatten(), only };
        Ok(Wanted { filter, window, named, count_only: page.max == Some(0) })
    }
}

/// A page in the making, counted.
struct Making(Arc<Account>);

impl Making {
    fn begin(account: &Arc<Account>) -> Result<Making, StanzaError> {
        let mut state = account.state();
        if state.pages >= MOST_PAGES {
            return Err(StanzaError::new(Condition::ResourceConstraint)
                .text(format!("{MOST_PAGES} pages may be under way, and none is left: read them first.")));
        }
        state.pages += 1;
        Ok(Making(Arc::clone(account)))
    }
}

impl Drop for Making {
    fn drop(&mut self) {
        self.0.state().pages -= 1;
    }
}

/// s.4.
async fn query(request: Request) -> Answer {
    let account = owner(&request)?;
    let _making = Making::begin(&account)?;
    let Some(session) = request.session.clone() else { return Err(StanzaError::new(Condition::Forbidden)) };
    let exchange = &request.exchange;
    let node = request.stanza.first_child().ok_or_else(|| StanzaError::new(Condition::BadRequest))?;
    let query = Query::parse(node, offer(exchange)).map_err(|error| StanzaError::from(&error))?;
    let end = pages::settle(&account, || exchange.ids.next()).await;
    let wanted = Wanted::of(exchange, &query, end)?;
    let (page, complete) = found(exchange, &account, &wanted, &session, &query).await?;
    let mut w = Writer::new();
    Fin { complete, page }.write(&mut w);
    Ok(w.finish().into())
}

/// Sends the messages, and returns what page they were.
async fn found(
    exchange: &Arc<Exchange>,
    account: &Arc<Account>,
    wanted: &Wanted,
    session: &Arc<Session>,
    query: &Query,
) -> Result<(rsm::Page, bool), StanzaError> {
    let (db, filter, window) = (&exchange.db, &wanted.filter, wanted.window);
    let trouble = |error| store_trouble(&error);
    if !pages::has_all(db, account.id, &wanted.named).await.map_err(trouble)? {
        return Err(not_found());
    }
    let mut turn = None;
    if filter.words.is_some() {
        // A whole archive can be to index: nobody else's search waits for that.
        search::keep_in_step(db, account.id, filter.before).await.map_err(trouble)?;
        turn = Some(exchange.searches.turn().await);
    }
    if wanted.count_only {
        let count = pages::count(db, account.id, filter).await.map_err(trouble)?;
        return Ok((rsm::Page { count: Some(count), ..rsm::Page::default() }, count == 0));
    }
    let found = pages::find(db, account.id, filter, window).await.map_err(trouble)?;
    let ends = found.places.first().zip(found.places.last()).map(|(first, last)| (first.id, last.id));
    let known = pages::count_for_page(db, account.id, filter, ends.map(|(first, _)| first)).await;
    let known = known.map_err(trouble)?;
    // Before anything waits for the client.
    drop(turn);
    let dense = filter.with.is_none() && filter.words.is_none() && filter.only.is_none();
    let mut places = found.places;
    if query.flipped {
        places.reverse();
    }
    send(exchange, session, &places, &Sending { query, dense }).await?;
    let page = rsm::Page {
        ends: ends.map(|(first, last)| (uid(exchange, first), uid(exchange, last))),
        index: query.page.index.or(known.map(|(_, before)| before)),
        count: known.map(|(count, _)| count),
    };
    Ok((page, found.complete))
}

struct Sending<'a> {
    query: &'a Query,
    dense: bool,
}

/// Queues the messages as the client takes them.
async fn send(
    exchange: &Exchange,
    session: &Arc<Session>,
    places: &[Place],
    sending: &Sending<'_>,
) -> Result<(), StanzaError> {
    let account = &session.account;
    let mut rest = places;
    while !rest.is_empty() {
        // Read only what there is room for.
        session.room().await;
        let (stanzas, later) = pages::read(&exchange.db, account.id, rest, sending.dense)
            .await
            .map_err(|error| store_trouble(&error))?;
        rest = later;
        for (id, stanza) in stanzas {
            let result = result(exchange, session, sending.query, (id, &stanza));
            loop {
                match session.push(Queued::plain(result.clone())) {
                    Push::Queued | Push::Held | Push::Behind => break,
                    // Others have filled the queue meanwhile.
                    Push::Refused(_) if !session.is_ended() => session.room().await,
                    Push::Refused(_) => return Err(StanzaError::new(Condition::RecipientUnavailable)),
                }
            }
            if !session.with_outbox(|outbox| outbox.wants_more()) {
                session.room().await;
            }
        }
    }
    Ok(())
}

/// s.4.2.
fn result(exchange: &Exchange, session: &Session, query: &Query, (id, stanza): (LogId, &[u8])) -> Stanza {
    let mut w = Writer::with_buf(Vec::with_capacity(stanza.len() + 320));
    let uuid = exchange.ids.uuid(id).hyphenated();
    let mut buffer = Uuid::encode_buffer();
    let kept = mam::Kept { id: uuid.encode_lower(&mut buffer), millis: id.millis(), stanza };
    mam::write_result(&mut w, query.id.as_deref(), kept);
    Stanza::build(Kind::Message(MessageType::Normal))
        .from(session.account.jid.clone())
        .to(session.jid.clone())
        .payload(w.into_bytes())
        .done()
}

/// XEP-0441 s.2.1.
async fn preferences(request: Request) -> Answer {
    let account = owner(&request)?;
    let preferences = account.state().archiving.as_deref().cloned().unwrap_or_default();
    Ok(written(&preferences))
}

fn written(preferences: &Preferences) -> Reply {
    let mut w = Writer::new();
    preferences.write(&mut w);
    w.finish().into()
}

async fn set_preferences(request: Request) -> Answer {
    let account = owner(&request)?;
    let prefs = request.stanza.first_child().ok_or_else(|| StanzaError::new(Condition::BadRequest))?;
    let preferences = Preferences::parse(prefs).map_err(|error| StanzaError::from(&error))?;
    let rules = preferences.always.len() + preferences.never.len();
    if rules > MOST_RULES {
        return Err(StanzaError::new(Condition::ResourceConstraint)
            .text(format!("The lists may have {MOST_RULES} addresses; these have {rules}.")));
    }
    // Memory and store move together.
    let writing = account.writes.lock().await;
    if account.state().removed {
        return Err(StanzaError::new(Condition::ItemNotFound));
    }
    let mut batch = Batch::new(request.lane());
    save_preferences(&mut batch, account.id, &preferences);
    request.exchange.db.run(batch).await.map_err(|error| store_trouble(&error))?;
    account.state().archiving =
        (preferences != Preferences::default()).then(|| Box::new(preferences.clone()));
    drop(writing);
    Ok(written(&preferences))
}

#[cfg(test)]
mod tests {
    use super::*;
    use trunkline_store::{Db, Lane, Options, sql};
    use trunkline_xmpp::jid::Jid;

    #[tokio::test]
    async fn an_account_has_so_many_pages_in_the_making_and_no_more() {
        let db = Db::open(Options::memory(crate::schema::MIGRATIONS)).unwrap();
        let setup = Batch::new(Lane::Inside)
            .with(sql("INSERT INTO hosts (id, name) VALUES (1, 'here.example')"))
            .with(sql("INSERT INTO accounts (id, host_id, local, created_at) VALUES (1, 1, 'juliet', 0)"));
        db.run(setup).await.unwrap();
        let juliet = Jid::parse("juliet@here.example").unwrap();
        let account = crate::route::account::Accounts::new().load(&db, &juliet).await.unwrap().unwrap();
        let mut making: Vec<Making> = (0..MOST_PAGES).map(|_| Making::begin(&account).unwrap()).collect();
        let refused = Making::begin(&account).err().unwrap();
        assert_eq!(refused.condition, Condition::ResourceConstraint);
        making.pop();
        assert!(Making::begin(&account).is_ok());
    }
}
