//! What is known of accounts, and of who is there.

use std::sync::Arc;

use trunkline_xmpp::jid::Jid;
use trunkline_xmpp::ns;

use crate::admin::{Counts, Only, OpError, Outcome, PAGE, User, accounts};
use crate::exchange::Exchange;
use crate::route::account::{Account, AccountState};

/// How somebody is there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum There {
    Active,
    Idle,
}

/// `None`: no device is available.
fn there(state: &AccountState) -> Option<There> {
    let mut shown = state.resources.iter().filter_map(|resource| resource.presence.as_ref()).peekable();
    shown.peek()?;
    // RFC 6121 s.4.7.2.1
    let away = |stanza: &trunkline_xmpp::stanza::Stanza| {
        let show = stanza.child(ns::CLIENT, "show");
        show.is_some_and(|show| matches!(show.text().trim(), "away" | "xa"))
    };
    Some(if shown.all(away) { There::Idle } else { There::Active })
}

fn is_of(account: &Account, domain: Option<&str>) -> bool {
    domain.is_none_or(|domain| domain == account.jid.domain())
}

/// A page of accounts in the order of their addresses.
pub(super) async fn list(
    exchange: &Arc<Exchange>,
    (domain, only): (Option<&str>, Option<Only>),
    after: Option<&Jid>,
) -> Result<Outcome, OpError> {
    if let Some(only @ (Only::Online | Only::Active | Only::Idle)) = only {
        return list_present(exchange, (domain, only), after).await;
    }
    let (mut users, more) = accounts::list(&exchange.db, (domain, only.is_some()), after).await?;
    for user in &mut users {
        let online = Jid::parse(&user.address).ok().and_then(|jid| exchange.accounts.online(&jid));
        let sessions = online.map_or(0, |account| account.state().resources.len());
        user.sessions = Some(u32::try_from(sessions).unwrap_or(u32::MAX));
    }
    Ok(Outcome::Users { users, more })
}

/// Those who are there are in memory.
async fn list_present(
    exchange: &Arc<Exchange>,
    (domain, only): (Option<&str>, Only),
    after: Option<&Jid>,
) -> Result<Outcome, OpError> {
    let key = |jid: &Jid| (jid.domain().to_owned(), jid.local().unwrap_or_default().to_owned());
    let wanted = |account: &Arc<Account>| {
        let there = there(&account.state());
        let fits = match only {
            Only::Active => there == Some(There::Active),
            Only::Idle => there == Some(There::Idle),
            Only::Online | Only::Disabled => there.is_some(),
        };
        fits && is_of(account, domain) && after.is_none_or(|after| key(&account.jid) > key(after))
    };
    let mut found: Vec<Arc<Account>> = exchange.accounts.all().into_iter().filter(wanted).collect();
    found.sort_by_cached_key(|account| key(&account.jid));
    let more = found.len() > PAGE;
    let mut users = Vec::new();
    for account in found.into_iter().take(PAGE) {
        let sessions = account.state().resources.len();
        // Who was removed a moment ago is left out.
        let Ok(view) = accounts::show(&exchange.db, &account.jid).await else { continue };
        users.push(User {
            address: view.address,
            created_at: view.created_at,
            disabled: view.disabled,
            sessions: Some(u32::try_from(sessions).unwrap_or(u32::MAX)),
        });
    }
    Ok(Outcome::Users { users, more })
}

/// What is known of one account.
pub(super) async fn show(exchange: &Exchange, jid: &Jid) -> Result<Outcome, OpError> {
    let mut view = accounts::show(&exchange.db, jid).await?;
    if let Some(account) = exchange.accounts.online(jid) {
        let state = account.state();
        view.resources = state.resources.iter().map(|resource| resource.name().to_owned()).collect();
    }
    Ok(Outcome::Account(Box::new(view)))
}

/// How many there are.
pub(super) async fn count(exchange: &Exchange, domain: Option<&str>) -> Result<Outcome, OpError> {
    if let Some(domain) = domain.filter(|domain| exchange.host(domain).is_none()) {
        return Err(OpError::UnknownDomain(domain.to_owned()));
    }
    let mut counts: Counts = accounts::counts(&exchange.db, domain).await?;
    for account in exchange.accounts.all().iter().filter(|account| is_of(account, domain)) {
        match there(&account.state()) {
            Some(There::Active) => counts.active += 1,
            Some(There::Idle) => counts.idle += 1,
            None => {}
        }
    }
    counts.online = counts.active + counts.idle;
    Ok(Outcome::Counts(counts))
}
