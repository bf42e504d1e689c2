//! Somebody who uses a client: writes to friends, answers requests, renames contacts, and logs in again after each cut.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use trunkline_client::{Client, ClientError, Login, Resumption, Session, Target};
use trunkline_xml::{Element, Node, escape_attr};

use crate::dice::Dice;
use crate::oracle::{Arrival, Oracle};

const DELAY: &str = "urn:xmpp:delay";
const ROSTER: &str = "jabber:iq:roster";
const PASSWORD: &str = "secret";

/// The id of the request for the roster at the very end.
const LAST: &str = "roster-last";

/// A pause between two attempts to log in.
const RETRY: Duration = Duration::from_millis(100);

/// Messages written and not acknowledged, at most; a person who is not answered waits.
const OPEN: usize = 100;

/// What the test tells people to do.
#[derive(Debug)]
pub(crate) enum Order {
    /// Subscribe to this address, and let it subscribe.
    Befriend(String),
    /// Log out.
    Sleep,
    /// Log in.
    Wake,
    /// Write nothing more of one's own accord.
    Quiet,
    /// Get the roster and have the oracle compare it for the last time.
    CompareRoster,
}

/// A handle on a person's task.
#[derive(Debug)]
pub(crate) struct Person {
    /// The bare address.
    pub(crate) jid: String,
    orders: mpsc::UnboundedSender<Order>,
}

impl Person {
    pub(crate) fn start(name: &str, target: Target, oracle: Arc<Oracle>, dice: Dice) -> Person {
        let (orders, receiver) = mpsc::unbounded_channel();
        let jid = format!("{name}@{}", target.domain());
        let body = Body {
            jid: jid.clone(),
            login: Login::new(name, PASSWORD),
            target,
            oracle,
            dice,
            orders: receiver,
            friends: Vec::new(),
            to_befriend: Vec::new(),
            outstanding: VecDeque::new(),
            awake: true,
            quiet: false,
            compare: false,
            written: 0,
            requests: 0,
        };
        tokio::spawn(body.live());
        Person { jid, orders }
    }

    /// Gives an order; it is carried out when the person is online.
    pub(crate) fn order(&self, order: Order) {
        // A task that has ended has told the oracle why.
        drop(self.orders.send(order));
    }
}

struct Body {
    jid: String,
    login: Login,
    target: Target,
    oracle: Arc<Oracle>,
    dice: Dice,
    orders: mpsc::UnboundedReceiver<Order>,
    /// Contacts with a subscription both ways.
    friends: Vec<String>,
    to_befriend: Vec<String>,
    /// Messages written and not acknowledged, in the order of sending.
    outstanding: VecDeque<Arc<str>>,
    awake: bool,
    quiet: bool,
    compare: bool,
    written: u64,
    requests: u64,
}

/// Why a time online has ended.
enum End {
    /// By order, with all acknowledged.
    Asleep,
    /// The connection broke.
    Cut(ClientError),
    /// The test is over.
    Over,
}

impl Body {
    async fn live(mut self) {
        let mut session: Option<Session> = None;
        loop {
            self.oracle.sleeps(&self.jid, !self.awake);
            while !self.awake {
                match self.orders.recv().await {
                    Some(order) => self.note(order),
                    None => return,
                }
            }
            self.oracle.sleeps(&self.jid, false);
            let mut client = match self.log_in(session.take()).await {
                Ok(client) => client,
                Err((error, kept)) => {
                    if let ClientError::LoginRefused { .. } | ClientError::Scan(_) = error {
                        self.oracle.problem("logins", format!("{}: {error}", self.jid));
                    }
                    session = kept;
                    sleep(RETRY).await;
                    continue;
                }
            };
            let end = self.be_online(&mut client).await;
            self.count_acks(&client);
            self.oracle.went_offline(&self.jid);
            match end {
                End::Over => return,
                End::Asleep => drop(client.close().await),
                End::Cut(error) => {
                    if let ClientError::Unexpected { .. } | ClientError::Scan(_) = error {
                        self.oracle.problem("logins", format!("{}: {error}", self.jid));
                    }
                    session = client.cut();
                }
            }
        }
    }

    /// Takes up the old session, or makes a new one and repeats what the server has not acknowledged. With an error, the
    /// old session is still the one to take up: nothing has been received in another.
    async fn log_in(&mut self, session: Option<Session>) -> Result<Client, (ClientError, Option<Session>)> {
        let target = self.target.clone().timeout(Duration::from_secs(10));
        let Some(old) = session else {
            let mut client = Client::connect(&target, &self.login).await.map_err(|error| (error, None))?;
            client.enable_acks().await.map_err(|error| (error, None))?;
            self.begin(&mut client, &[]);
            return Ok(client);
        };
        match Client::resume(&target, &self.login, old.clone()).await {
            Err(error) => Err((error, Some(old))),
            Ok(Resumption::Resumed(mut client)) => {
                // It may have been cut while logging out.
                client.queue(b"<presence/>");
                self.count_acks(&client);
                self.oracle.came_online(&self.jid, true);
                Ok(client)
            }
            Ok(Resumption::Fresh { mut client, unacked }) => {
                client.enable_acks().await.map_err(|error| (error, Some(old)))?;
                self.begin(&mut client, &unacked);
                Ok(client)
            }
        }
    }

    /// What a client says first. It is only queued here: should the connection break, it is part of the new session.
    fn begin(&mut self, client: &mut Client, repeats: &[Bytes]) {
        self.ask_for_roster(client, "roster");
        client.queue(b"<presence/>");
        for stanza in repeats {
            if let Some(token) = token(stanza) {
                self.oracle.sent_again(token);
            }
            // An old session's presence and requests are not what this one is to say.
            if !stanza.starts_with(b"<presence/>") && !stanza.starts_with(b"<iq type='get'") {
                client.queue(stanza);
            }
        }
        self.count_acks(client);
        self.oracle.came_online(&self.jid, false);
    }

    fn ask_for_roster(&mut self, client: &mut Client, id: &str) {
        client.queue(format!("<iq type='get' id='{id}'><query xmlns='{ROSTER}'/></iq>").as_bytes());
    }

    async fn be_online(&mut self, client: &mut Client) -> End {
        match self.use_client(client).await {
            Ok(end) => end,
            Err(error) => End::Cut(error),
        }
    }

    async fn use_client(&mut self, client: &mut Client) -> Result<End, ClientError> {
        let mut next_word = Instant::now();
        let mut next_count = Instant::now();
        loop {
            while let Some(contact) = self.to_befriend.pop() {
                self.oracle.asking(&self.jid, &contact);
                client.send(format!("<presence type='subscribe' to='{contact}'/>").as_bytes()).await?;
            }
            if std::mem::take(&mut self.compare) {
                self.ask_for_roster(client, LAST);
            }
            tokio::select! {
                order = self.orders.recv() => match order {
                    Some(order) => self.note(order),
                    None => return Ok(End::Over),
                },
                stanza = client.recv() => {
                    let stanza = stanza?;
                    self.count_acks(client);
                    self.take(client, &stanza).await?;
                }
                () = sleep(Duration::from_millis(20)) => {}
            }
            self.count_acks(client);
            if !self.awake {
                client.send(b"<presence type='unavailable'/>").await?;
                client.all_acked(Duration::from_secs(10)).await?;
                // After this presence nothing is delivered here any more; what came before it is taken.
                while let Ok(stanza) = timeout(Duration::from_millis(200), client.recv()).await {
                    self.take(client, &stanza?).await?;
                }
                return Ok(End::Asleep);
            }
            if next_word < Instant::now() && !self.quiet && self.outstanding.len() < OPEN {
                next_word = Instant::now() + Duration::from_millis(self.dice.below(60));
                self.do_something(client).await?;
            }
            if next_count < Instant::now() && !self.outstanding.is_empty() {
                next_count = Instant::now() + Duration::from_millis(100);
                client.request_ack().await?;
            }
        }
    }

    fn note(&mut self, order: Order) {
        match order {
            Order::Befriend(contact) => self.to_befriend.push(contact),
            Order::Sleep => self.awake = false,
            Order::Wake => self.awake = true,
            Order::Quiet => self.quiet = true,
            Order::CompareRoster => self.compare = true,
        }
    }

    /// A message to a friend, mostly; now and then a contact gets another name.
    async fn do_something(&mut self, client: &mut Client) -> Result<(), ClientError> {
        if self.friends.is_empty() {
            return Ok(());
        }
        let friend = self.friends[self.dice.below(self.friends.len() as u64) as usize].clone();
        if self.dice.below(20) == 0 {
            self.requests += 1;
            let name = format!("name {}", self.requests);
            self.oracle.renaming(&self.jid, &friend, &name);
            let id = format!("rename/{}/{friend}", self.requests);
            let item = format!("<item jid='{friend}' name='{name}'/>");
            let xml = format!("<iq type='set' id='{id}'><query xmlns='{ROSTER}'>{item}</query></iq>");
            return client.send(xml.as_bytes()).await;
        }
        self.written += 1;
        let token: Arc<str> = format!("{}/{}", self.jid, self.written).into();
        self.oracle.sent(&token, &friend);
        let xml = format!("<message to='{friend}' type='chat' id='{token}'><body>{token}</body></message>");
        self.outstanding.push_back(token);
        client.send(xml.as_bytes()).await
    }

    async fn take(&mut self, client: &mut Client, stanza: &Element) -> Result<(), ClientError> {
        let root = stanza.root();
        let from = root
            .attr("from")
            .map(|it| it.split('/').next().unwrap_or_default().to_owned())
            .unwrap_or_default();
        let kind = root.attr("type").unwrap_or_default();
        match (root.name(), &*kind) {
            ("message", "error") => self.oracle.bounced(&root.attr("id").unwrap_or_default()),
            ("message", _) => self.arrival(root),
            ("presence", "subscribe") => {
                client.send(format!("<presence type='subscribed' to='{from}'/>").as_bytes()).await?;
                if !self.friends.contains(&from) {
                    client.send(format!("<presence type='subscribe' to='{from}'/>").as_bytes()).await?;
                }
            }
            ("iq", "set") => {
                for item in root.child(ROSTER, "query").into_iter().flat_map(|it| it.children()) {
                    self.learn(item);
                }
                let id = root.attr("id").unwrap_or_default();
                client.send(format!("<iq type='result' id='{}'/>", escape_attr(&id)).as_bytes()).await?;
            }
            ("iq", "result") => {
                let id = root.attr("id").unwrap_or_default();
                if let Some(roster) = root.child(ROSTER, "query") {
                    self.compare_roster(roster, id == LAST);
                }
                let mut parts = id.splitn(3, '/');
                if let (Some("rename"), Some(number), Some(contact)) =
                    (parts.next(), parts.next(), parts.next())
                {
                    self.oracle.renamed(&self.jid, contact, &format!("name {number}"));
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn arrival(&self, root: Node<'_>) {
        let body = root.children().find(|it| it.name() == "body").map(|it| it.text().into_owned());
        if let Some(body) = body {
            self.oracle.arrived(Arrival {
                token: body.as_str().into(),
                id: root.attr("id").unwrap_or_default().into_owned(),
                delayed: root.child(DELAY, "delay").is_some(),
                at: self.jid.clone(),
            });
        }
    }

    /// Takes in one item of the roster.
    fn learn(&mut self, item: Node<'_>) {
        let contact = item.attr("jid").unwrap_or_default().into_owned();
        if item.attr("subscription").as_deref() == Some("both") {
            self.oracle.both(&self.jid, &contact);
            if !self.friends.contains(&contact) {
                self.friends.push(contact);
            }
        }
    }

    /// Takes in a roster and has the oracle compare it with what was acknowledged.
    fn compare_roster(&mut self, query: Node<'_>, last: bool) {
        let mut roster = Vec::new();
        for item in query.children() {
            self.learn(item);
            let text = |name| item.attr(name).map(|it| it.into_owned());
            let subscription = text("subscription").unwrap_or_else(|| "none".into());
            roster.push((text("jid").unwrap_or_default(), text("name"), subscription));
        }
        self.oracle.check_roster(&self.jid, &roster, last);
    }

    /// Messages are acknowledged in order: what stands before the first that the client still holds has been.
    fn count_acks(&mut self, client: &Client) {
        let first = client.acks().and_then(|acks| acks.unacked().find_map(|it| token(it)));
        while let Some(oldest) = self.outstanding.front()
            && first != Some(&**oldest)
        {
            self.oracle.acknowledged(oldest);
            self.outstanding.pop_front();
        }
    }
}

/// The token of a message as [`Body::do_something`] writes it.
fn token(stanza: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(stanza).ok()?.strip_prefix("<message ")?;
    text.split_once(" id='")?.1.split('\'').next()
}
