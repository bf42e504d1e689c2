//! What a session gets after its initial presence, and what it missed.

use std::sync::Arc;

use trunkline_xml::Writer;
use trunkline_xmpp::classify::classify;
use trunkline_xmpp::ns;
use trunkline_xmpp::stanza::Stanza;

use super::push_presence;
use crate::exchange::Exchange;
use crate::ids::LogId;
use crate::log::Page;
use crate::route::account::{AccountState, Resource, Waiting};
use crate::session::{CatchUp, Greeting, Queued, Session};

impl Exchange {
    /// What a client gets after its initial presence: its other devices, its contacts, the requests that
    /// wait for an answer (RFC 6121 s.4.2.2, s.3.1.3).
    pub(super) async fn greet(self: &Arc<Self>, session: &Arc<Session>, greeting: Greeting) {
        let account = &session.account;
        let (others, contacts, requests) = {
            let state = account.state();
            let others: Vec<Stanza> = state
                .resources
                .iter()
                .filter(|resource| resource.session.serial != session.serial)
                .filter_map(|resource| resource.presence.clone())
                .collect();
            let mut contacts = Vec::new();
            let mut requests = Vec::new();
            for (jid, item) in state.roster.iter() {
                if item.subscription.to && !state.blocks(jid) {
                    contacts.push(jid.clone());
                }
                if item.subscription.pending_in && !state.blocks(jid) {
                    requests.extend(item.request.clone());
                }
            }
            (others, contacts, requests)
        };
        for stanza in others {
            if !session.room_for(&greeting).await {
                return;
            }
            push_presence(session, &stanza, account.jid.clone(), false);
        }
        for stanza in requests {
            if !session.room_for(&greeting).await {
                return;
            }
            session.push(Queued::plain(stanza));
        }
        for contact in contacts {
            if !session.room_for(&greeting).await {
                return;
            }
            if self.host(contact.domain()).is_none() {
                self.probe(&account.jid, &contact);
                continue;
            }
            let Some(peer) = self.accounts.online(&contact) else { continue };
            let presences: Vec<Stanza> = {
                let state = peer.state();
                if !state.shows_presence_to(&account.jid) || state.blocks(&account.jid) {
                    continue;
                }
                state.resources.iter().filter_map(|resource| resource.presence.clone()).collect()
            };
            for stanza in presences {
                push_presence(session, &stanza, account.jid.clone(), false);
            }
        }
    }

    /// Feeds a session that is behind from the log until it has caught up.
    pub(crate) async fn catch_up(self: Arc<Self>, session: Arc<Session>) {
        // The outbox takes a page when it is three quarters empty.
        let bytes = i64::try_from(self.bounds().bytes / 4).unwrap_or(i64::MAX);
        let rows = Page { stanzas: 50, bytes };
        // What is younger is no replay: it came while the session was reading what is older.
        let began = self.clock().now();
        let account = Arc::clone(&session.account);
        loop {
            session.room().await;
            if session.is_ended() {
                return;
            }
            let Some(from) = session.with_outbox(|outbox| outbox.catch_up()) else { return };
            let mark = account.state().last_kept;
            let page = match from {
                CatchUp::Pending { after, until } => {
                    crate::log::pending(&self.db, &account, after..until, rows).await
                }
                CatchUp::Archive(after) => {
                    // Younger ids may still be on their way in either lane; none: all there is was there at the start.
                    let end = mark.map_or(LogId(i64::MAX), |mark| LogId(mark.0 + 1));
                    crate::log::since(&self.db, &account, after..end, rows).await
                }
            };
            let page = match page {
                Ok(page) => page,
                Err(error) => {
                    tracing::error!(%error, conn = session.serial, "stored messages can't be read");
                    tokio::time::sleep(std::time::Duration::from_secs(5)).await;
                    continue;
                }
            };
            let mut state = account.state();
            let next = match (page.last().map(|logged| logged.id), from) {
                (Some(last), CatchUp::Pending { until, .. }) => Some(CatchUp::Pending { after: last, until }),
                (Some(last), CatchUp::Archive(_)) => Some(CatchUp::Archive(last)),
                (None, CatchUp::Pending { until, .. }) => Some(CatchUp::Archive(until)),
                // Something may have been kept since the log was read.
                (None, CatchUp::Archive(_)) if state.last_kept != mark => Some(from),
                (None, CatchUp::Archive(_)) => None,
            };
            session.with_outbox(|outbox| {
                if outbox.catch_up() != Some(from) {
                    // The connection before this one has read the same page.
                    return;
                }
                for logged in page {
                    if matches!(from, CatchUp::Archive(_)) && !was_for(&logged, &state, &session) {
                        continue;
                    }
                    let stanza = match logged.id.millis() < began {
                        true => delayed(&logged.stanza, account.jid.domain(), logged.id),
                        false => logged.stanza,
                    };
                    outbox.refill(Queued { stanza, kept: Some(logged.id), outside: false, lazy: false });
                }
                outbox.set_catch_up(next);
            });
            if next.is_none() {
                // Whatever had waited is on its way to a client.
                state.waiting = Waiting::default();
            }
            drop(state);
            session.wake();
        }
    }
}

/// A message in the archive would have been pushed to `session` when it came, had there been room.
fn was_for(logged: &crate::log::Logged, state: &AccountState, session: &Session) -> bool {
    if logged.flags & crate::log::SENT != 0 || !classify(&logged.stanza).offline.yes {
        return false;
    }
    let to = logged.stanza.head.to.as_ref().and_then(|to| to.resource());
    match to.filter(|name| state.resource(name).is_some()) {
        Some(name) => name == session.resource(),
        None => state.resource(session.resource()).is_some_and(Resource::takes_messages),
    }
}

/// XEP-0203: when the server got the stanza.
pub(crate) fn delayed(stanza: &Stanza, domain: &str, id: LogId) -> Stanza {
    let ours = |node: trunkline_xml::Node<'_>| {
        node.is(ns::DELAY, "delay") && node.attr("from").is_some_and(|from| from == domain)
    };
    if stanza.children().any(ours) {
        return stanza.clone();
    }
    let mut w = Writer::new();
    w.open("delay")
        .attr("xmlns", ns::DELAY)
        .attr("from", domain)
        .attr("stamp", &trunkline_xmpp::time::format_millis(id.millis()))
        .close();
    stanza.with_appended(&w.finish())
}
