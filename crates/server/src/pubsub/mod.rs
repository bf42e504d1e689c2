//! Publish-subscribe (XEP-0060): the engine behind people's own nodes (XEP-0163) and behind services of a domain of
//! their own. design/017-pubsub.md.
//!
//! | part | what |
//! |---|---|
//! | here | who asks, where, and what they may; the interface for modules |
//! | [`config`], [`options`] | a node's configuration and a subscription's options: tables and their forms |
//! | [`node`] | what the store knows |
//! | [`requests`] | an IQ request is read, done and answered |
//! | [`publish`], [`read`], [`subscribe`], [`owner`] | the use cases |
//! | [`along`] | what is kept in step with a node |
//! | [`notify`] | who is told, and how |
//! | [`turns`], [`approvals`] | who waits for whom, and whom owners were asked about |
//! | [`caps`], [`presence`] | who wants to be told of what (XEP-0115, +notify), and last items for who becomes available |
//! | [`describe`] | service discovery |
//!
//! For modules: [`Exchange::pep`] is an account's own desk: [`Desk::publish`], [`Desk::items`], [`Desk::retract`]; and
//! [`crate::modules::Module::published`] is called when a node of an account has changed.

pub mod along;
pub(crate) mod approvals;
pub mod caps;
pub mod config;
pub mod describe;
pub mod errors;
pub mod node;
pub mod notify;
pub mod options;
pub mod owner;
pub mod presence;
pub mod publish;
pub mod read;
pub mod requests;
pub mod services;
pub mod subscribe;
pub(crate) mod turns;

use std::collections::HashMap;
use std::sync::Arc;

use trunkline_store::Lane;
use trunkline_xmpp::error::{Condition, StanzaError};
use trunkline_xmpp::jid::Jid;

use self::config::{Access, Allowed, NodeConfig, Publishers};
use self::node::{Affiliation, Item, Node, Opened, Payer, Place, Service};
use crate::exchange::Exchange;
use crate::route::account::{Account, AccountState};
use crate::route::message::store_trouble;

/// Bytes of a node's name or of an item's id.
const MOST_NAME: usize = 1023;

/// What the engine has in memory. Nodes and items are in the store.
#[derive(Debug)]
pub struct Pubsub {
    /// What clients are known to want.
    pub(crate) caps: caps::Caps,
    /// Devices of contacts elsewhere that want to be told.
    pub(crate) watchers: presence::Watchers,
    /// Whom owners were asked about.
    approvals: approvals::Approvals,
    /// Taken while nodes and items are read and then written. See [`Desk::turn`].
    changing: turns::Turns,
    /// Taken while subscriptions to a node are counted and then written.
    subscribing: turns::Turns,
    services: HashMap<String, Arc<Service>>,
}

impl Pubsub {
    /// Nothing is known yet; these are the services.
    pub fn new(services: Vec<Arc<Service>>) -> Pubsub {
        Pubsub {
            caps: caps::Caps::default(),
            watchers: presence::Watchers::default(),
            approvals: approvals::Approvals::default(),
            changing: turns::Turns::default(),
            subscribing: turns::Turns::default(),
            services: services
                .into_iter()
                .map(|service| (service.host.domain.as_str().to_owned(), service))
                .collect(),
        }
    }

    /// The turn to change what is at a place, or a part of it. [`Desk::turn`] takes it for who may.
    async fn turn(&self, place: &str) -> turns::Turn<'_> {
        self.changing.take(place.to_owned()).await
    }

    /// The service at that domain.
    pub fn service(&self, domain: &str) -> Option<&Arc<Service>> {
        self.services.get(domain)
    }

    /// The services for the users of `host`.
    pub fn services_of(&self, host: &Jid) -> impl Iterator<Item = &Arc<Service>> {
        self.services.values().filter(move |service| service.parent == *host)
    }
}

/// Somebody at a place where nodes are.
#[derive(Clone, Debug)]
pub struct Desk {
    /// The server.
    pub exchange: Arc<Exchange>,
    /// Where.
    pub place: Place,
    /// Who.
    pub who: Jid,
    /// The store's lane.
    pub lane: Lane,
    /// The server acts for the account, not its user.
    pub ours: bool,
}

/// What a node is to be when somebody publishes.
#[derive(Clone, Debug, Default)]
pub enum Terms {
    /// Whatever it is.
    #[default]
    Any,
    /// As these options say (s.7.1.5): else the publication fails.
    Options(trunkline_xmpp::forms::Submission),
    /// What comes is nobody else's business: a node that others may read becomes private.
    Private,
}

/// What is to be published.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewItem {
    /// Its id; `None`: any.
    pub id: Option<String>,
    /// One element that stands for itself, or nothing.
    pub payload: Vec<u8>,
}

/// A node of an account has changed. For [`crate::modules::Module::published`].
#[derive(Clone, Debug)]
pub struct Change {
    /// The server.
    pub exchange: Arc<Exchange>,
    /// Whose node.
    pub account: Arc<Account>,
    /// Its name.
    pub node: String,
    /// What happened.
    pub what: Happened,
    /// Not its user but the server did it, by [`Exchange::pep`]: what keeps two things in step must not answer its own
    /// changes.
    pub ours: bool,
}

/// What happened to a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Happened {
    /// These items are new or changed.
    Published(Vec<Item>),
    /// The items with these ids are gone.
    Retracted(Vec<String>),
    /// All items are gone.
    Purged,
    /// The node is gone.
    Deleted,
    /// It has another configuration. Nothing changes along with that but the items that it leaves no room for, which
    /// are [`Happened::Retracted`] before.
    Configured,
}

/// Why somebody may not read. Each has its error in XEP-0060.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Barred {
    /// s.6.1.3.8: by affiliation.
    Affiliation,
    /// s.6.1.3.2
    Presence,
    /// s.6.1.3.3
    Group,
    /// s.6.5.9.3
    Subscription,
    /// s.6.1.3.4
    Whitelist,
}

impl From<Barred> for StanzaError {
    fn from(barred: Barred) -> StanzaError {
        match barred {
            Barred::Affiliation => StanzaError::new(Condition::Forbidden),
            Barred::Presence => errors::specific(Condition::NotAuthorized, "presence-subscription-required"),
            Barred::Group => errors::specific(Condition::NotAuthorized, "not-in-roster-group"),
            Barred::Subscription => errors::specific(Condition::NotAuthorized, "not-subscribed"),
            Barred::Whitelist => errors::specific(Condition::NotAllowed, "closed-node"),
        }
    }
}

/// Whether somebody may read; `state` is that of the account whose node it is.
pub(crate) fn may_read(
    config: &NodeConfig,
    (affiliation, subscribed): (Affiliation, bool),
    contact: (Option<&AccountState>, &Jid),
) -> Result<(), Barred> {
    match affiliation {
        Affiliation::Owner | Affiliation::Publisher | Affiliation::Member => return Ok(()),
        Affiliation::Outcast | Affiliation::PublishOnly => return Err(Barred::Affiliation),
        Affiliation::None => {}
    }
    let (state, who) = contact;
    match config.access {
        Access::Open => Ok(()),
        Access::Presence if state.is_some_and(|state| state.shows_presence_to(who)) => Ok(()),
        Access::Presence => Err(Barred::Presence),
        Access::Roster => {
            let item = state.and_then(|state| state.roster.get(who)).filter(|item| item.listed);
            let within =
                item.is_some_and(|item| item.groups.iter().any(|group| config.groups.contains(group)));
            if within { Ok(()) } else { Err(Barred::Group) }
        }
        Access::Authorize if subscribed => Ok(()),
        Access::Authorize => Err(Barred::Subscription),
        Access::Whitelist => Err(Barred::Whitelist),
    }
}

impl Exchange {
    /// An account's own desk, for the server's modules: what is done there the server does for the account's user.
    pub fn pep(self: &Arc<Self>, account: &Arc<Account>) -> Desk {
        Desk {
            exchange: Arc::clone(self),
            place: Place::Account(Arc::clone(account)),
            who: account.jid.clone(),
            lane: Lane::Inside,
            ours: true,
        }
    }

    /// What a place allows.
    pub(crate) fn pubsub_allowed(&self, place: &Place) -> Allowed {
        let limits = &self.config.load().limits;
        Allowed {
            items: limits.pubsub_items,
            payload: limits.pubsub_item_bytes,
            contacts: place.account().is_some(),
        }
    }
}

impl Desk {
    /// What the place allows.
    pub fn allowed(&self) -> Allowed {
        self.exchange.pubsub_allowed(&self.place)
    }

    fn now(&self) -> i64 {
        self.exchange.clock().now()
    }

    /// The place is the person's own.
    pub fn is_own(&self) -> bool {
        self.place.account().is_some_and(|account| account.jid.same_bare(&self.who))
    }

    /// A new node here is at first.
    pub fn default_config(&self) -> NodeConfig {
        match self.place {
            Place::Account(_) => NodeConfig::default(),
            Place::Service(_) => NodeConfig::of_service(),
        }
    }

    /// A new node of that name is at first: as the module that cares for it says (XEP-0223: bookmarks are private).
    fn config_of_new(&self, name: &str) -> NodeConfig {
        let special = self.place.account().and_then(|_| self.exchange.modules.made_as(name));
        special.unwrap_or_else(|| self.default_config())
    }

    /// The turn to change nodes and items, for who may: `may` says so, and who pays for the node, and is not
    /// asked of those whose place it is. Who may not takes no turn, so that nobody waits for them; and at a service,
    /// one waits for those whose nodes the same account or domain pays for, as the quotas are theirs together.
    async fn turn(
        &self,
        may: impl Future<Output = Result<Payer, StanzaError>>,
    ) -> Result<turns::Turn<'_>, StanzaError> {
        let payer = if self.is_own() { None } else { Some(may.await?) };
        let key = match (&self.place, payer) {
            (Place::Account(_), _) | (_, None) => self.place.key(),
            (Place::Service(_), Some(payer)) => format!("{} {payer}", self.place.key()),
        };
        Ok(self.exchange.pubsub.turn(&key).await)
    }

    /// The turn to count and change subscriptions of a node: everybody elsewhere waits for each other, and nobody here
    /// for them.
    async fn turn_of_subscribers(&self, name: &str) -> turns::Turn<'_> {
        let key = format!("{:?} {} {name}", self.lane, self.place.key());
        self.exchange.pubsub.subscribing.take(key).await
    }

    /// The node, if there is one and it is not gone.
    ///
    /// # Errors
    /// `gone` where to look instead (s.8.4.1), to those who might read it; the store's.
    async fn look(&self, name: &str) -> Result<Option<Opened>, StanzaError> {
        let Some(opened) = self.find(name).await? else { return Ok(None) };
        if opened.node.redirect.is_some() && self.may_read(&opened).is_err() {
            return Err(errors::no_node());
        }
        match opened.node.redirect {
            Some(redirect) => Err(StanzaError::new(Condition::Gone).uri(redirect)),
            None => Ok(Some(opened)),
        }
    }

    /// [`Desk::look`], for who wants to change the node. Whoever has no right at somebody else's address gets the same
    /// for what is private and gone as for what never was.
    async fn look_to_change(&self, name: &str) -> Result<Option<Opened>, StanzaError> {
        match self.look(name).await {
            Err(error) if error.condition == Condition::ItemNotFound && self.place.account().is_some() => {
                Err(StanzaError::new(Condition::Forbidden))
            }
            looked => looked,
        }
    }

    /// [`Desk::look`], also what is gone.
    async fn find(&self, name: &str) -> Result<Option<Opened>, StanzaError> {
        let key = self.place.key();
        let opened = node::open(&self.exchange.db, self.lane, (&key, name), (&self.who, self.now())).await;
        let opened = opened.map_err(|error| store_trouble(&error))?;
        Ok(opened.map(|opened| Opened { affiliation: self.affiliation(opened.affiliation), ..opened }))
    }

    /// [`Desk::look`]; who has no node gets `item-not-found`.
    async fn open(&self, name: &str) -> Result<Opened, StanzaError> {
        self.look(name).await?.ok_or_else(errors::no_node)
    }

    /// The node, for its owner.
    async fn open_owned(&self, name: &str) -> Result<Opened, StanzaError> {
        // Who owns nothing here learns nothing of what there is.
        if self.place.account().is_some() && !self.is_own() {
            let opened = self.look_to_change(name).await?;
            return opened
                .filter(|opened| opened.affiliation == Affiliation::Owner)
                .ok_or_else(|| StanzaError::new(Condition::Forbidden));
        }
        let opened = self.open(name).await?;
        if opened.affiliation != Affiliation::Owner {
            return Err(StanzaError::new(Condition::Forbidden));
        }
        Ok(opened)
    }

    /// For [`Desk::turn`]: who pays for a node, asked by its owner.
    async fn payer_of_owned(&self, name: &str) -> Result<Payer, StanzaError> {
        Ok(self.open_owned(name).await?.node.payer)
    }

    /// What the store says, and what goes without saying.
    fn affiliation(&self, stored: Affiliation) -> Affiliation {
        let owner = match &self.place {
            Place::Account(_) => self.is_own(),
            Place::Service(_) => self.exchange.is_admin(&self.who),
        };
        if owner { Affiliation::Owner } else { stored }
    }

    fn may_read(&self, opened: &Opened) -> Result<(), Barred> {
        let standing = (opened.affiliation, opened.is_subscribed());
        match self.place.account() {
            Some(account) => {
                let state = account.state();
                may_read(&opened.node.config, standing, (Some(&state), &self.who))
            }
            None => may_read(&opened.node.config, standing, (None, &self.who)),
        }
    }

    fn may_publish(&self, opened: &Opened) -> bool {
        match opened.affiliation {
            Affiliation::Owner | Affiliation::Publisher | Affiliation::PublishOnly => true,
            Affiliation::Outcast => false,
            Affiliation::Member | Affiliation::None => match opened.node.config.publishers {
                Publishers::Publishers => false,
                Publishers::Subscribers => opened.is_subscribed(),
                Publishers::Open => self.may_read(opened).is_ok(),
            },
        }
    }

    /// The modules that want to know are told. Never under a lock of the engine: they publish themselves.
    async fn changed(&self, node: &Node, what: Happened) {
        let Place::Account(account) = &self.place else { return };
        let change = Change {
            exchange: Arc::clone(&self.exchange),
            account: Arc::clone(account),
            node: node.name.clone(),
            what,
            ours: self.ours,
        };
        for told in self.exchange.modules.published(&node.name, &change) {
            told.await;
        }
    }
}

/// The name of a node or an item, if it is one.
fn name_of(text: &str) -> Result<&str, StanzaError> {
    if text.is_empty() || text.len() > MOST_NAME {
        let text = format!("Names of nodes and ids of items have 1 to {MOST_NAME} bytes.");
        return Err(StanzaError::new(Condition::NotAcceptable).text(text));
    }
    Ok(text)
}

#[cfg(test)]
mod stage;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::roster::Item as Contact;
    use crate::route::subscription::Subscription;

    fn jid(text: &str) -> Jid {
        Jid::parse(text).unwrap()
    }

    #[test]
    fn who_may_read() {
        let mut state = AccountState::default();
        let contact = |from, group: &str| Contact {
            subscription: Subscription { from, ..Subscription::default() },
            groups: vec![group.to_owned()],
            listed: true,
            ..Contact::default()
        };
        state.roster.apply(&jid("friend@a.example"), Some(contact(true, "Friends")), 1);
        state.roster.apply(&jid("boss@a.example"), Some(contact(false, "Work")), 2);
        let read = |access: Access, affiliation: Affiliation, subscribed: bool, who: &str| {
            let config = NodeConfig { access, groups: vec!["Work".into()], ..NodeConfig::default() };
            may_read(&config, (affiliation, subscribed), (Some(&state), &jid(who)))
        };
        use Affiliation::{Member, None, Outcast, Owner, PublishOnly, Publisher};
        let (friend, boss, other) = ("friend@a.example/x", "boss@a.example/x", "other@a.example/x");
        for access in [Access::Open, Access::Presence, Access::Roster, Access::Authorize, Access::Whitelist] {
            for affiliation in [Owner, Publisher, Member] {
                assert_eq!(read(access, affiliation, false, other), Ok(()));
            }
            for affiliation in [Outcast, PublishOnly] {
                assert_eq!(read(access, affiliation, true, friend), Err(Barred::Affiliation));
            }
        }
        assert_eq!(read(Access::Open, None, false, other), Ok(()));
        assert_eq!(read(Access::Presence, None, false, friend), Ok(()));
        assert_eq!(read(Access::Presence, None, true, boss), Err(Barred::Presence));
        assert_eq!(read(Access::Roster, None, false, boss), Ok(()));
        assert_eq!(read(Access::Roster, None, true, friend), Err(Barred::Group));
        assert_eq!(read(Access::Roster, None, true, other), Err(Barred::Group));
        assert_eq!(read(Access::Authorize, None, true, other), Ok(()));
        assert_eq!(read(Access::Authorize, None, false, friend), Err(Barred::Subscription));
        assert_eq!(read(Access::Whitelist, None, true, friend), Err(Barred::Whitelist));
    }
}
