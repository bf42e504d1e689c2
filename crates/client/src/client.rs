//! One logged-in client.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, timeout, timeout_at};
use trunkline_xml::{Element, Node, escape_attr};

use crate::acks::{self, Acks};
use crate::stream::{Stream, unexpected};
use crate::{ClientError, Login, Security, Target, auth};

const TLS: &str = "urn:ietf:params:xml:ns:xmpp-tls";
const BIND: &str = "urn:ietf:params:xml:ns:xmpp-bind";

/// A session on a connection.
#[derive(Debug)]
pub struct Client {
    pub(crate) stream: Stream,
    pub(crate) jid: String,
    pub(crate) acks: Option<Acks>,
    /// Stanzas that [`Client::expect`] passed over.
    pub(crate) kept: VecDeque<Element>,
    pub(crate) next_id: u64,
    /// Round trips that signing in took.
    pub(crate) turns: u32,
}

/// What remains of a session whose connection is gone, to be taken up by [`Client::resume`].
#[derive(Clone, Debug)]
pub struct Session {
    /// The full address.
    pub jid: String,
    /// Counters and unacknowledged stanzas.
    pub acks: Acks,
    /// Stanzas received, and counted, but not taken by the program: the next [`Client::recv`] gives them.
    pub(crate) kept: VecDeque<Element>,
    pub(crate) next_id: u64,
}

/// How [`Client::resume`] went.
#[derive(Debug)]
pub enum Resumption {
    /// The old session goes on; what the server had not received has been sent again.
    Resumed(Client),
    /// The server no longer knows the session: this is a new one, without stream management as yet.
    Fresh {
        /// The new session.
        client: Client,
        /// What the server has not acknowledged of the old one, oldest first. Send it again under the same ids, or
        /// tell the user.
        unacked: Vec<Bytes>,
    },
}

impl Client {
    /// Connects, logs in and binds a resource. Sends no presence.
    pub async fn connect(target: &Target, login: &Login) -> Result<Client, ClientError> {
        within("a session", target.timeout, async {
            let (mut stream, _) = authenticated(target, login).await?;
            let jid = bind(&mut stream, login).await?;
            Ok(Client { stream, jid, acks: None, kept: VecDeque::new(), next_id: 1, turns: 0 })
        })
        .await
    }

    /// Connects, logs in and takes up `session` where it was cut (XEP-0198 s.5).
    pub async fn resume(target: &Target, login: &Login, session: Session) -> Result<Resumption, ClientError> {
        within("a resumed session", target.timeout, async {
            let Session { jid, mut acks, kept, next_id } = session;
            let (mut stream, features) = authenticated(target, login).await?;
            let mut resumed = false;
            if let (Some(id), true) = (&acks.id, features.root().child(acks::NS, "sm").is_some()) {
                let h = acks.handled();
                let resume = format!("<resume xmlns='{}' h='{h}' previd='{}'/>", acks::NS, escape_attr(id));
                stream.send(resume.as_bytes()).await?;
                let answer = stream.next().await?;
                let root = answer.root();
                resumed = root.is(acks::NS, "resumed");
                if !resumed && !root.is(acks::NS, "failed") {
                    return Err(unexpected("an answer to resumption", &answer));
                }
                if let Some(h) = root.attr("h") {
                    acks.acknowledged(&h)?;
                }
            }
            if resumed {
                for stanza in acks.unacked() {
                    stream.queue(stanza);
                }
                stream.flush().await?;
                let client = Client { stream, jid, acks: Some(acks), kept, next_id, turns: 0 };
                return Ok(Resumption::Resumed(client));
            }
            let jid = bind(&mut stream, login).await?;
            let client = Client { stream, jid, acks: None, kept, next_id, turns: 0 };
            Ok(Resumption::Fresh { client, unacked: acks.unacked().cloned().collect() })
        })
        .await
    }

    /// The full address that the server gave us.
    pub fn jid(&self) -> &str {
        &self.jid
    }

    /// How many times [`Client::sign_in`] waited for the server, from the end of the TLS handshake on.
    pub fn round_trips(&self) -> u32 {
        self.turns
    }

    /// The address without the resource.
    pub fn bare_jid(&self) -> &str {
        self.jid.split('/').next().unwrap_or(&self.jid)
    }

    /// Turns on stream management, resumable (XEP-0198 s.3). Call it once, right after connecting.
    pub async fn enable_acks(&mut self) -> Result<(), ClientError> {
        self.stream.send(format!("<enable xmlns='{}' resume='true'/>", acks::NS).as_bytes()).await?;
        loop {
            let element = self.stream.next().await?;
            let root = element.root();
            if root.is(acks::NS, "enabled") {
                let id = root.attr("id").map(|id| id.into_owned());
                self.acks = Some(Acks::new(id));
                return Ok(());
            }
            if root.is(acks::NS, "failed") {
                return Err(ClientError::NotOffered("stream management"));
            }
            // Stanzas from before `<enabled/>` are not counted.
            self.kept.push_back(element);
        }
    }

    /// Counters of stream management, if it is on.
    pub fn acks(&self) -> Option<&Acks> {
        self.acks.as_ref()
    }

    /// Sends one element. With stream management, a stanza is kept until the server acknowledges it.
    pub async fn send(&mut self, xml: &[u8]) -> Result<(), ClientError> {
        self.queue(xml);
        self.stream.flush().await
    }

    /// Like [`Client::send`], but written only by the next call that writes or receives: to send many at once.
    pub fn queue(&mut self, xml: &[u8]) {
        if let Some(acks) = &mut self.acks
            && is_stanza(xml)
        {
            acks.sent(xml);
        }
        self.stream.queue(xml);
    }

    /// Asks the server what it has received (XEP-0198 s.4); the answer is taken in by whatever receives next.
    pub async fn request_ack(&mut self) -> Result<(), ClientError> {
        self.stream.send(format!("<r xmlns='{}'/>", acks::NS).as_bytes()).await
    }

    /// Waits until the server has acknowledged all that was sent; stanzas that come meanwhile are kept.
    pub async fn all_acked(&mut self, wait: Duration) -> Result<(), ClientError> {
        within("acknowledgement of everything", wait, async {
            self.request_ack().await?;
            while self.acks.as_ref().is_some_and(|acks| acks.unacked().len() > 0) {
                if let Some(stanza) = self.receive_one().await? {
                    self.kept.push_back(stanza);
                }
            }
            Ok(())
        })
        .await
    }

    /// The next stanza. Acknowledgements are counted and answered on the way.
    pub async fn recv(&mut self) -> Result<Element, ClientError> {
        if let Some(stanza) = self.kept.pop_front() {
            return Ok(stanza);
        }
        loop {
            if let Some(stanza) = self.receive_one().await? {
                return Ok(stanza);
            }
        }
    }

    /// The next stanza, if one comes within `wait`.
    pub async fn recv_within(&mut self, wait: Duration) -> Result<Option<Element>, ClientError> {
        match timeout(wait, self.recv()).await {
            Ok(stanza) => stanza.map(Some),
            Err(_) => Ok(None),
        }
    }

    /// The next stanza for which `matches` holds. Others are kept for later, in order. `what` is for the error.
    pub async fn expect(
        &mut self,
        what: &str,
        wait: Duration,
        matches: impl Fn(&Element) -> bool,
    ) -> Result<Element, ClientError> {
        if let Some(at) = self.kept.iter().position(&matches) {
            return Ok(self.kept.remove(at).expect("invariant: the position was just found"));
        }
        let end = Instant::now() + wait;
        loop {
            let Ok(stanza) = timeout_at(end, self.receive_one()).await else {
                return Err(ClientError::Timeout { what: what.to_owned(), after: wait });
            };
            match stanza? {
                Some(stanza) if matches(&stanza) => return Ok(stanza),
                Some(stanza) => self.kept.push_back(stanza),
                None => {}
            }
        }
    }

    /// Sends an IQ of `kind` (`get` or `set`) and returns the answer: result or error. `to` empty: one's own account.
    pub async fn iq(&mut self, kind: &str, to: &str, payload: &str) -> Result<Element, ClientError> {
        self.iq_within(kind, to, payload, Duration::from_secs(30)).await
    }

    /// Like [`Client::iq`], with a limit of time.
    pub async fn iq_within(
        &mut self,
        kind: &str,
        to: &str,
        payload: &str,
        wait: Duration,
    ) -> Result<Element, ClientError> {
        let id = self.new_id();
        let to = if to.is_empty() { String::new() } else { format!(" to='{}'", escape_attr(to)) };
        self.send(format!("<iq type='{kind}' id='{id}'{to}>{payload}</iq>").as_bytes()).await?;
        self.expect(&format!("an answer to {payload}"), wait, |it| {
            let root = it.root();
            root.name() == "iq"
                && root.attr("id").is_some_and(|it| it == id)
                && root.attr("type").is_some_and(|it| it == "result" || it == "error")
        })
        .await
    }

    /// An id that this client has not used.
    pub fn new_id(&mut self) -> String {
        self.next_id += 1;
        format!("c{:x}", self.next_id)
    }

    /// Ends the stream properly; the server ends the session.
    pub async fn close(mut self) -> Result<(), ClientError> {
        if let Some(acks) = &self.acks {
            // XEP-0198 s.4: a last count, so that the server does not keep what we have.
            self.stream.queue(format!("<a xmlns='{}' h='{}'/>", acks::NS, acks.handled()).as_bytes());
        }
        within("the end of the stream", Duration::from_secs(10), self.stream.close()).await
    }

    /// Drops the connection without a word, as when the network goes away. With stream management on, returns what
    /// [`Client::resume`] needs.
    pub fn cut(self) -> Option<Session> {
        self.acks.map(|acks| Session { jid: self.jid, acks, kept: self.kept, next_id: self.next_id })
    }

    /// One element: `None` if it was not a stanza.
    async fn receive_one(&mut self) -> Result<Option<Element>, ClientError> {
        let element = self.stream.next().await?;
        let root = element.root();
        if root.ns() == acks::NS {
            match (root.name(), &mut self.acks) {
                ("r", Some(acks)) => {
                    // Written by the next call that receives or sends, which makes this one cancel-safe.
                    let answer = format!("<a xmlns='{}' h='{}'/>", acks::NS, acks.handled());
                    self.stream.queue(answer.as_bytes());
                    if !self.stream.has_next() {
                        self.stream.flush().await?;
                    }
                }
                ("a", Some(acks)) => acks.acknowledged(&root.attr("h").unwrap_or_default())?,
                _ => return Err(unexpected("a stanza", &element)),
            }
            return Ok(None);
        }
        if let Some(acks) = &mut self.acks {
            acks.received();
        }
        Ok(Some(element))
    }
}

/// A stream after TLS, no header sent.
pub(crate) async fn secured(target: &Target) -> Result<Stream, ClientError> {
    let mut stream = Stream::connect(target).await?;
    if target.security == Security::StartTls {
        let features = stream.open(&target.domain).await?;
        if features.root().child(TLS, "starttls").is_none() {
            return Err(ClientError::NotOffered("STARTTLS"));
        }
        stream.send(format!("<starttls xmlns='{TLS}'/>").as_bytes()).await?;
        let answer = stream.next().await?;
        if !answer.root().is(TLS, "proceed") {
            return Err(unexpected("leave to start TLS", &answer));
        }
        stream.start_tls(target).await?;
    }
    Ok(stream)
}

/// A stream after TLS and login, with the features that came then.
async fn authenticated(target: &Target, login: &Login) -> Result<(Stream, Element), ClientError> {
    let mut stream = secured(target).await?;
    let mut features = stream.open(&target.domain).await?;
    auth::authenticate(&mut stream, features.root(), login).await?;
    features = stream.open(&target.domain).await?;
    Ok((stream, features))
}

async fn bind(stream: &mut Stream, login: &Login) -> Result<String, ClientError> {
    let resource = match &login.resource {
        Some(name) => format!("<resource>{}</resource>", trunkline_xml::escape_text(name)),
        None => String::new(),
    };
    let request = format!("<iq type='set' id='bind'><bind xmlns='{BIND}'>{resource}</bind></iq>");
    stream.send(request.as_bytes()).await?;
    let answer = stream.next().await?;
    let jid = answer.root().child(BIND, "bind").and_then(|bind| bind.child(BIND, "jid"));
    jid.map(|jid: Node<'_>| jid.text().into_owned()).ok_or_else(|| unexpected("a bound address", &answer))
}

/// XEP-0198 s.4 counts messages, presences and IQs only.
fn is_stanza(xml: &[u8]) -> bool {
    [&b"<message"[..], b"<presence", b"<iq"]
        .iter()
        .any(|name| xml.starts_with(name) && xml.get(name.len()).is_some_and(|it| b" \t\r\n/>".contains(it)))
}

pub(crate) async fn within<T>(
    what: &str,
    wait: Duration,
    work: impl Future<Output = Result<T, ClientError>>,
) -> Result<T, ClientError> {
    match timeout(wait, work).await {
        Ok(done) => done,
        Err(_) => Err(ClientError::Timeout { what: what.to_owned(), after: wait }),
    }
}
