//! Asking for presence (RFC 6121 s.4.3), and asking anew.

use std::sync::Arc;
use std::time::Duration;

use trunkline_xmpp::jid::Jid;
use trunkline_xmpp::stanza::{Kind, PresenceType, Stanza};

use crate::exchange::Exchange;
use crate::route::Mail;
use crate::route::account::Loaded;
use crate::route::roster::Item;

/// Stanzas in one go when presence is refreshed, ...
const REFRESHED: usize = 50;
/// ... and how long until the next ones.
const REFRESH_PAUSE: Duration = Duration::from_millis(100);

impl Exchange {
    /// RFC 6121 s.4.3.1: from the user's bare JID.
    pub(super) fn probe(self: &Arc<Self>, from: &Jid, contact: &Jid) {
        self.send(probe_of(from, contact));
    }

    /// RFC 6121 s.4.3.2. Whoever may not know gets `unsubscribed`, whether the account exists or not.
    pub(super) async fn receive_probe(self: &Arc<Self>, mail: Mail) {
        let (Some(to), Some(from)) = (mail.stanza.head.to.clone(), mail.stanza.head.from.clone()) else {
            return;
        };
        let loaded = match self.accounts.load_in(mail.lane(), &self.db, &to).await {
            Ok(loaded) => loaded,
            Err(error) => {
                tracing::warn!(%error, "a presence probe could not be answered");
                return;
            }
        };
        // XEP-0191 s.3.2: no answer to a contact who is blocked; `unsubscribed` would end a subscription that is
        // only covered for now.
        let hidden = |account: &Loaded| {
            let state = account.state();
            state.shows_presence_to(&from) && state.blocks(&from)
        };
        if loaded.as_ref().is_some_and(hidden) {
            return;
        }
        let answers: Option<Vec<Stanza>> = loaded.as_ref().and_then(|account| {
            let state = account.state();
            state.shows_presence_to(&from).then(|| {
                state
                    .resources
                    .iter()
                    .filter(|resource| to.resource().is_none_or(|name| resource.name() == name))
                    .filter_map(|resource| resource.presence.clone())
                    .collect()
            })
        });
        match answers {
            None => self.answer_with(
                Stanza::build(Kind::Presence(PresenceType::Unsubscribed))
                    .from(to.bare())
                    .to(from.bare())
                    .done(),
            ),
            // s.4.3.2.3: nobody is there; an answer is a courtesy that lets the peer drop what it believed.
            Some(presences) if presences.is_empty() => {
                self.answer_with(
                    Stanza::build(Kind::Presence(PresenceType::Unavailable)).from(to).to(from).done(),
                );
            }
            Some(presences) => {
                for mut stanza in presences {
                    stanza.head.to = Some(from.clone());
                    self.answer_with(stanza);
                }
            }
        }
    }

    /// The way to some contacts is open again: users who are online ask for their presence and send their own anew (RFC
    /// 6121 s.4.2.2, s.4.3), since neither side has heard of what changed meanwhile. A few at a time, until `goes_on`
    /// says otherwise.
    pub(crate) async fn refresh_presence(
        self: &Arc<Self>,
        concerns: impl Fn(&Jid) -> bool,
        goes_on: impl Fn() -> bool,
    ) {
        let mut sent = 0;
        for account in self.accounts.all() {
            let (presences, ask, tell) = {
                let state = account.state();
                let presences: Vec<Stanza> =
                    state.resources.iter().filter_map(|resource| resource.presence.clone()).collect();
                let of = |holds: fn(&Item) -> bool| -> Vec<Jid> {
                    let open = state.roster.iter().filter(|(jid, item)| {
                        !presences.is_empty() && holds(item) && concerns(jid) && !state.blocks(jid)
                    });
                    open.map(|(jid, _)| jid.clone()).collect()
                };
                let (ask, tell) = (of(|item| item.subscription.to), of(|item| item.subscription.from));
                (presences, ask, tell)
            };
            let probes = ask.iter().map(|contact| probe_of(&account.jid, contact));
            let own = tell.iter().flat_map(|contact| {
                presences.iter().map(|presence| {
                    let mut presence = presence.clone();
                    presence.head.to = Some(contact.clone());
                    presence
                })
            });
            for stanza in probes.chain(own).collect::<Vec<_>>() {
                self.send(stanza);
                sent += 1;
                if sent % REFRESHED == 0 {
                    tokio::time::sleep(REFRESH_PAUSE).await;
                    if !goes_on() {
                        return;
                    }
                }
            }
        }
    }
}

fn probe_of(from: &Jid, contact: &Jid) -> Stanza {
    Stanza::build(Kind::Presence(PresenceType::Probe)).from(from.clone()).to(contact.clone()).done()
}
