//! The server says in its users' presence which picture they have (XEP-0398 s.4, XEP-0153).

use std::sync::Arc;

use trunkline_xmpp::jid::Jid;
use trunkline_xmpp::stanza::Stanza;

use super::account::{Account, AccountState};
use super::presence::{audience, devices, push_presence};
use crate::exchange::Exchange;
use crate::profile::avatar::{Avatar, Who};

impl AccountState {
    /// Presence that goes to those who see the user's, or to `to`, says which picture the user has.
    pub(super) fn show_avatar(&self, stanza: &mut Stanza, to: Option<&Jid>) {
        let Some(avatar) = &self.avatar else { return };
        // XEP-0398 s.7: a picture for contacts would tell others in a room who somebody is.
        if to.is_some_and(|to| avatar.who != Who::Everybody && !self.shows_presence_to(to)) {
            return;
        }
        if let Some(shown) = avatar.shown_in(stanza, None) {
            *stanza = shown;
        }
    }
}

impl Exchange {
    /// The account's picture, or who may see it, may be another now: contacts who go by presence are told.
    pub async fn refresh_avatar(self: &Arc<Self>, account: &Arc<Account>) {
        // What is read last is what is known in the end.
        let _writing = account.writes.lock().await;
        let rows = match self.db.read(Avatar::query(account.id)).await {
            Ok(rows) => rows,
            Err(error) => {
                tracing::error!(%error, "the hash of a picture can't be read");
                return;
            }
        };
        let after = rows.first().and_then(|row| Avatar::read(&row, 0));
        let mut state = account.state();
        let before = std::mem::replace(&mut state.avatar, after.clone());
        let Some(after) = after.filter(|after| before.as_ref() != Some(after)) else { return };
        let mut changed = Vec::new();
        for resource in &mut state.resources {
            let shown =
                resource.presence.as_ref().and_then(|stanza| after.shown_in(stanza, before.as_deref()));
            if let Some(shown) = shown {
                resource.presence = Some(shown.clone());
                changed.push(shown);
            }
        }
        let (contacts, devices) = (audience(&state), devices(&state));
        drop(state);
        for stanza in changed {
            for device in &devices {
                push_presence(device, &stanza, account.jid.clone(), false);
            }
            self.spread(&stanza, contacts.clone());
        }
    }
}
