//! THE LIST: what this server can do, one value per capability.
//!
//! A module is data: the features it announces, the IQ requests it answers, the hooks it has in the way of
//! a message. [`all`] is the server's table of contents and the order within a step. What two modules need
//! is a service (`log`, `route`), not a module; modules do not import each other.

pub mod administration;
pub mod affiliation;
pub mod archive;
pub mod blocking;
pub mod bookmarks;
pub mod carbons;
pub mod client_access;
pub mod commands;
pub mod disco;
pub mod displayed;
pub mod history;
pub mod invitations;
pub mod pep;
pub mod ping;
pub mod private;
pub mod profile;
pub mod publication;
pub mod pubsub;
pub mod push;
pub mod registration;
pub mod retraction;
pub mod roster;
pub mod session;
pub mod stanza_ids;
pub mod time;
pub mod uptime;
pub mod version;

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use prometheus_client::metrics::counter::Counter;
use smallvec::SmallVec;
use trunkline_store::{Batch, Lane, Ticket};
use trunkline_xml::Writer;
use trunkline_xmpp::classify::Class;
use trunkline_xmpp::error::StanzaError;
use trunkline_xmpp::jid::Jid;
use trunkline_xmpp::ns;
use trunkline_xmpp::stanza::{IqType, Stanza};

use crate::commands::Command;
use crate::config::Config;
use crate::exchange::{Exchange, Host};
use crate::ids::LogId;
use crate::metrics::Metrics;
use crate::pubsub::Change;
use crate::pubsub::along::{Along, Also, Coming};
use crate::pubsub::config::NodeConfig;
use crate::push::Order;
use crate::route::Later;
use crate::route::account::{Account, AccountState};
use crate::session::Session;

/// Every module, in the order in which their hooks run within a step.
pub fn all() -> Vec<Module> {
    vec![
        disco::module(),
        ping::module(),
        time::module(),
        version::module(),
        uptime::module(),
        session::module(),
        roster::module(),
        blocking::module(),
        stanza_ids::module(),
        history::module(),
        archive::module(),
        retraction::module(),
        displayed::module(),
        carbons::module(),
        profile::module(),
        private::module(),
        bookmarks::module(),
        push::module(),
        client_access::module(),
        registration::module(),
        commands::module(),
        invitations::module(),
        administration::module(),
        affiliation::module(),
        publication::module(),
        pep::module(),
        pubsub::module(),
    ]
}

/// Whom an IQ request addresses, and where a feature is announced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// The sender's own account: no `to`, or the own bare JID.
    Account,
    /// Somebody else's account, by bare JID.
    Contact,
    /// The server, by its domain.
    Host,
    /// A service of ours with a domain of its own.
    Service,
}

/// How much of a specification is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// All of the server's part.
    Complete,
    /// A part; the text says which.
    Partial(&'static str),
}

/// The direction of a message with regard to the account whose hooks run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Way {
    /// The account's user sends it.
    Sent,
    /// The account receives it.
    Received,
}

/// The steps of a message's way through one account, in order. Hooks of one step must commute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Step {
    /// May refuse or drop.
    Filter,
    /// Adds ids and delays, strips forgeries.
    Stamp,
    /// Writes to the log.
    Store,
    /// What is to happen when it is on the disk: wakes devices that sleep, takes back what was said.
    Notify,
    /// Copies to the user's other devices.
    Copy,
}

impl Step {
    fn name(self) -> &'static str {
        match self {
            Step::Filter => "filter",
            Step::Stamp => "stamp",
            Step::Store => "store",
            Step::Notify => "notify",
            Step::Copy => "copy",
        }
    }
}

/// Number of [`Step`]s.
const STEPS: usize = 5;

/// What a hook decides.
#[derive(Debug)]
pub enum Flow {
    /// Go on.
    Pass,
    /// The sender gets this error.
    Refuse(StanzaError),
    /// The message vanishes; the name is for the counter.
    Drop(&'static str),
}

/// A message on its way through one account; the account is locked.
pub struct Passage<'a> {
    /// The server.
    pub exchange: &'a Arc<Exchange>,
    /// Whose hooks run.
    pub account: &'a Arc<Account>,
    /// The account's state, locked.
    pub state: &'a mut AccountState,
    /// Sent or received.
    pub way: Way,
    /// The message.
    pub stanza: Stanza,
    /// What it is.
    pub class: Class,
    /// The client that sent it, when `way` is [`Way::Sent`].
    pub session: Option<&'a Arc<Session>>,
    /// It came from another provider.
    pub outside: bool,
    /// Sessions it is delivered to.
    pub targets: SmallVec<[Arc<Session>; 2]>,
    /// Its id in this account's log, once given.
    pub id: Option<LogId>,
    /// The row that says that it waits for its delivery goes under this ticket.
    pub waits: Option<Arc<Ticket>>,
    /// Pushes to be made when that is on the disk.
    pub orders: Vec<Order>,
    /// What is to be done before a sent message goes on its way: it waits for that, and so does what its client sends next.
    pub before: Option<Later>,
    /// It takes an older message back: its id, and the lane in which the row goes that says so.
    pub retraction: Option<(LogId, Lane)>,
    /// What the store is to write; submitted at the end, under the lock.
    pub batch: &'a mut Batch,
}

impl fmt::Debug for Passage<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Passage")
            .field("account", &self.account)
            .field("way", &self.way)
            .finish_non_exhaustive()
    }
}

impl Passage<'_> {
    /// The message is for the archive, the operator keeps one, and the user wants it there.
    pub fn archives(&self) -> bool {
        if !(self.class.store.yes && self.exchange.config.load().accounts.archive) {
            return false;
        }
        let head = &self.stanza.head;
        let peer = match self.way {
            Way::Sent => head.to.as_ref(),
            Way::Received => head.from.as_ref(),
        };
        let peer = peer.unwrap_or(&self.account.jid);
        // XEP-0313 s.6.1.1: once in an archive. What one sends to oneself is there as received.
        !(self.way == Way::Sent && peer.same_bare(&self.account.jid)) && self.state.archives(peer)
    }

    /// The `<stanza-id/>` (XEP-0359) by which the message is found in this account's archive.
    pub fn stanza_id(&self) -> Option<Vec<u8>> {
        let id = self.id.filter(|_| self.archives())?;
        let uuid = self.exchange.ids.uuid(id).hyphenated();
        let mut w = Writer::with_buf(Vec::with_capacity(128 + self.account.jid.as_str().len()));
        w.open("stanza-id")
            .attr("xmlns", ns::STANZA_ID)
            .attr("by", self.account.jid.as_str())
            .attr("id", uuid.encode_lower(&mut uuid::Uuid::encode_buffer()))
            .close();
        Some(w.finish())
    }
}

/// A hook: runs under the account's lock, must not block.
pub type Hook = fn(&mut Passage<'_>) -> Flow;

/// An IQ request for a module.
pub struct Request {
    /// The server.
    pub exchange: Arc<Exchange>,
    /// The host that is addressed, or whose account is.
    pub host: Arc<Host>,
    /// Who asks; stamped by the server.
    pub from: Jid,
    /// The asking client, when it is one of ours.
    pub session: Option<Arc<Session>>,
    /// The addressed account, for [`Scope::Account`] and [`Scope::Contact`].
    pub account: Option<Arc<Account>>,
    /// The asker is another provider's.
    pub outside: bool,
    /// The request.
    pub stanza: Stanza,
}

impl Request {
    /// The store's lane for what it causes.
    pub fn lane(&self) -> Lane {
        if self.outside { Lane::Outside } else { Lane::Inside }
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request").field("from", &self.from).finish_non_exhaustive()
    }
}

/// A positive answer.
#[derive(Debug)]
pub enum Reply {
    /// `<iq type='result'/>`.
    Empty,
    /// With this payload.
    Payload(Bytes),
    /// The handler has answered already, or will.
    Sent,
}

impl From<Vec<u8>> for Reply {
    fn from(payload: Vec<u8>) -> Reply {
        Reply::Payload(payload.into())
    }
}

/// What an IQ handler returns.
pub type Answer = Result<Reply, StanzaError>;
type Answering = Pin<Box<dyn Future<Output = Answer> + Send>>;
type Handler = Arc<dyn Fn(Request) -> Answering + Send + Sync>;

/// A hook behind changes of nodes.
type Published = Arc<dyn Fn(Change) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

/// How a node is made.
type MadeAs = fn() -> NodeConfig;

/// Whether something is announced with this configuration.
type Condition = fn(&Config) -> bool;

/// One capability.
pub struct Module {
    name: &'static str,
    summary: &'static str,
    xeps: Vec<(u16, &'static str, Level)>,
    features: Vec<(Scope, &'static str, Option<Condition>)>,
    requests: Vec<(Scope, IqType, (&'static str, &'static str), Handler)>,
    hooks: Vec<(Way, Step, Hook)>,
    commands: Vec<Command>,
    published: Vec<(&'static str, Published)>,
    along: Vec<(&'static str, Along)>,
    made_as: Vec<(&'static str, MadeAs)>,
    copies: Vec<&'static str>,
}

impl Module {
    /// A module that does nothing yet.
    pub fn new(name: &'static str, summary: &'static str) -> Module {
        Module {
            name,
            summary,
            xeps: Vec::new(),
            features: Vec::new(),
            requests: Vec::new(),
            hooks: Vec::new(),
            commands: Vec::new(),
            published: Vec::new(),
            along: Vec::new(),
            made_as: Vec::new(),
            copies: Vec::new(),
        }
    }

    /// The specification it implements: number, version, how much.
    #[must_use]
    pub fn xep(mut self, number: u16, version: &'static str, level: Level) -> Module {
        self.xeps.push((number, version, level));
        self
    }

    /// A feature to announce in service discovery.
    #[must_use]
    pub fn feature(mut self, scope: Scope, feature: &'static str) -> Module {
        self.features.push((scope, feature, None));
        self
    }

    /// A feature to announce in service discovery if the configuration is such.
    #[must_use]
    pub fn feature_if(mut self, scope: Scope, feature: &'static str, when: fn(&Config) -> bool) -> Module {
        self.features.push((scope, feature, Some(when)));
        self
    }

    /// An IQ request to answer: by namespace and name of the payload.
    #[must_use]
    pub fn iq<F, Fut>(
        mut self,
        scope: Scope,
        kind: IqType,
        payload: (&'static str, &'static str),
        handler: F,
    ) -> Module
    where
        F: Fn(Request) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Answer> + Send + 'static,
    {
        self.requests.push((scope, kind, payload, Arc::new(move |request| Box::pin(handler(request)))));
        self
    }

    /// A hook in the way of messages.
    #[must_use]
    pub fn on(mut self, way: Way, step: Step, hook: Hook) -> Module {
        self.hooks.push((way, step, hook));
        self
    }

    /// What is done when `node` of an account has changed, by whomever: after it is on disk and told, before its publisher
    /// is answered. [`Change::ours`] tells what the server has done itself.
    #[must_use]
    pub fn published<F, Fut>(mut self, node: &'static str, hook: F) -> Module
    where
        F: Fn(Change) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        self.published.push((node, Arc::new(move |change| Box::pin(hook(change)))));
        self
    }

    /// What is to be written in the same batch when `node` of an account changes. It may refuse the change.
    #[must_use]
    pub fn along<F, Fut>(mut self, node: &'static str, hook: F) -> Module
    where
        F: Fn(Coming) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Vec<Also>, StanzaError>> + Send + 'static,
    {
        self.along.push((node, Arc::new(move |coming| Box::pin(hook(coming)))));
        self
    }

    /// How `node` of an account is made, unless its user says otherwise.
    #[must_use]
    pub fn made_as(mut self, node: &'static str, config: MadeAs) -> Module {
        self.made_as.push((node, config));
        self
    }

    /// `node` of an account says what others say that are kept in step with it: its bytes count there.
    #[must_use]
    pub fn copy(mut self, node: &'static str) -> Module {
        self.copies.push(node);
        self
    }

    /// An ad-hoc command on the domain (XEP-0050).
    #[must_use]
    pub fn command(mut self, command: Command) -> Module {
        self.commands.push(command);
        self
    }

    /// The ad-hoc commands it brings.
    pub fn commands(&self) -> &[Command] {
        &self.commands
    }

    /// The module's name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The IQ requests it answers: whom they address, get or set, namespace and name of the payload.
    pub fn requests(&self) -> impl Iterator<Item = (Scope, IqType, &'static str, &'static str)> {
        self.requests.iter().map(|(scope, kind, (namespace, name), _)| (*scope, *kind, *namespace, *name))
    }

    /// One line for people.
    pub fn summary(&self) -> &'static str {
        self.summary
    }

    /// Number, version and level of the XEPs it implements.
    pub fn xeps(&self) -> &[(u16, &'static str, Level)] {
        &self.xeps
    }
}

impl fmt::Debug for Module {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Module").field("name", &self.name).finish_non_exhaustive()
    }
}

/// The modules, arranged for look-up.
#[derive(Debug)]
pub struct Modules {
    list: Vec<Module>,
    requests: HashMap<Key, (usize, usize)>,
    hooks: [[Vec<(Hook, Counter)>; STEPS]; 2],
}

type Key = (Scope, bool, &'static str, &'static str);

impl Modules {
    /// Arranges `list`; its steps are counted in `metrics`.
    pub fn new(list: Vec<Module>, metrics: &Metrics) -> Modules {
        let mut requests = HashMap::new();
        let mut hooks: [[Vec<(Hook, Counter)>; STEPS]; 2] = Default::default();
        for (at, module) in list.iter().enumerate() {
            for (index, (scope, kind, (namespace, name), _)) in module.requests.iter().enumerate() {
                let before = requests.insert((*scope, *kind == IqType::Set, *namespace, *name), (at, index));
                debug_assert!(before.is_none(), "two modules answer {name} {namespace}");
            }
            for (way, step, hook) in &module.hooks {
                let counter = metrics.step(step.name(), module.name);
                hooks[*way as usize][*step as usize].push((*hook, counter));
            }
        }
        Modules { list, requests, hooks }
    }

    /// All modules.
    pub fn list(&self) -> &[Module] {
        &self.list
    }

    /// The features announced in `scope`, in the order of the list.
    pub fn features(&self, scope: Scope, config: &Config) -> impl Iterator<Item = &'static str> {
        let announced = move |(of, _, when): &&(Scope, &'static str, Option<Condition>)| {
            *of == scope && when.is_none_or(|when| when(config))
        };
        self.list
            .iter()
            .flat_map(move |module| module.features.iter().filter(announced).map(|(_, feature, _)| *feature))
    }

    /// The ad-hoc commands, in the order of the list.
    pub fn commands(&self) -> impl Iterator<Item = &Command> {
        self.list.iter().flat_map(|module| &module.commands)
    }

    /// What is to be done because a node of an account has changed, in the order of the list.
    pub fn published(&self, node: &str, change: &Change) -> Vec<Pin<Box<dyn Future<Output = ()> + Send>>> {
        let hooks = self.list.iter().flat_map(|module| &module.published);
        hooks.filter(|(of, _)| *of == node).map(|(_, hook)| hook(change.clone())).collect()
    }

    /// What changes along with a node of an account, in the order of the list.
    pub fn along(&self, node: &str) -> Vec<Along> {
        let hooks = self.list.iter().flat_map(|module| &module.along);
        hooks.filter(|(of, _)| *of == node).map(|(_, hook)| Arc::clone(hook)).collect()
    }

    /// How a node of an account is made, if a module has a say in that.
    pub fn made_as(&self, node: &str) -> Option<NodeConfig> {
        let mut all = self.list.iter().flat_map(|module| &module.made_as);
        all.find(|(of, _)| *of == node).map(|(_, config)| config())
    }

    /// A node of an account whose bytes count elsewhere.
    pub fn is_copy(&self, node: &str) -> bool {
        self.list.iter().any(|module| module.copies.contains(&node))
    }

    /// Runs the hooks of one step.
    pub fn run(&self, step: Step, passage: &mut Passage<'_>) -> Flow {
        for (hook, counter) in &self.hooks[passage.way as usize][step as usize] {
            counter.inc();
            match hook(passage) {
                Flow::Pass => {}
                other => return other,
            }
        }
        Flow::Pass
    }

    /// The answer of the module that is responsible, if there is one.
    pub fn answer(&self, scope: Scope, request: Request) -> Option<Answering> {
        let set = request.stanza.head.kind == trunkline_xmpp::stanza::Kind::Iq(IqType::Set);
        let payload = request.stanza.first_child()?;
        // The key borrows for 'static; look up with the payload's shorter-lived names.
        let (at, index) = lookup(&self.requests, (scope, set, payload.ns(), payload.name()))?;
        let handler = Arc::clone(&self.list[at].requests[index].3);
        Some(handler(request))
    }
}

fn lookup<'a>(
    map: &HashMap<Key, (usize, usize)>,
    key: (Scope, bool, &'a str, &'a str),
) -> Option<(usize, usize)> {
    // Covariance: a map keyed by 'static strings may be read as one keyed by shorter-lived ones.
    let map: &HashMap<(Scope, bool, &'a str, &'a str), (usize, usize)> = map;
    map.get(&key).copied()
}
