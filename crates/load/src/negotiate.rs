//! From a TCP connection to a session that can be used: RFC 6120 s.4 to s.7, XEP-0198, XEP-0077.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use tokio::time::timeout;
use trunkline_xml::{Element, Event, Limits, Node, Scanner, escape_attr, escape_text};
use trunkline_xmpp::ns;
use trunkline_xmpp::sasl::Hash;
use trunkline_xmpp::sasl::client::{Binding, Scram, plain};

use crate::connection::{Connection, excerpt};
use crate::error::LoadError;
use crate::options::Security;
use crate::place::Place;

/// For a login, and for any answer on the way.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// What a session is made for.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Wish {
    /// XEP-0198.
    pub(crate) acks: bool,
    /// Available.
    pub(crate) presence: bool,
    /// XEP-0280.
    pub(crate) carbons: bool,
    /// XEP-0352: nobody looks at this device.
    pub(crate) inactive: bool,
}

/// A connection on which one thing is said after the other.
#[derive(Debug)]
pub(crate) struct Dialog {
    pub(crate) connection: Connection,
    arrived: VecDeque<Vec<u8>>,
    requests: u32,
}

/// Logs in account `number` and makes the session ready; ends when the server has dealt with all of it.
pub(crate) async fn enter(place: &Place, number: u32, wish: Wish) -> Result<Dialog, LoadError> {
    in_time("a session", async {
        let mut dialog = login(place, number, &place.tls).await?;
        if wish.acks {
            dialog.enable_acks().await?;
        }
        if wish.carbons {
            dialog.request("set", "", &format!("<enable xmlns='{}'/>", ns::CARBONS), "carbons").await?;
        }
        if wish.presence {
            dialog.connection.queue_stanza(b"<presence/>");
        }
        dialog.sync(&place.domain).await?;
        if wish.inactive {
            dialog.say(format!("<inactive xmlns='{}'/>", ns::CSI))?;
        }
        Ok(dialog)
    })
    .await
}

/// TCP, TLS, SASL and a resource.
pub(crate) async fn login(
    place: &Place,
    number: u32,
    config: &Arc<ClientConfig>,
) -> Result<Dialog, LoadError> {
    let mut dialog = connect(place, &place.jid(number), config).await?;
    let features = dialog.features(&place.domain).await?;
    dialog.authenticate(place, number, &features).await?;
    dialog.connection.restart();
    let features = dialog.features(&place.domain).await?;
    dialog.bind(&features).await?;
    dialog.connection.go_live();
    Ok(dialog)
}

/// TCP, and TLS has begun; the next thing to do is to open a stream.
async fn connect(place: &Place, who: &str, config: &Arc<ClientConfig>) -> Result<Dialog, LoadError> {
    let tcp = place.dial().await?;
    let direct = match place.security {
        Security::Direct => Some(place.session(config)?),
        Security::Starttls | Security::None => None,
    };
    let connection = Connection::new(tcp, direct, who);
    let mut dialog = Dialog { connection, arrived: VecDeque::new(), requests: 0 };
    if place.security == Security::Starttls {
        let features = dialog.features(&place.domain).await?;
        if features.root().child(ns::TLS, "starttls").is_none() {
            let advice = ": with --tls none the run goes on in clear".to_owned();
            return Err(LoadError::NotOffered { what: "STARTTLS".into(), advice });
        }
        dialog.say(format!("<starttls xmlns='{}'/>", ns::TLS))?;
        let answer = dialog.next().await?;
        if !answer.root().is(ns::TLS, "proceed") {
            return Err(dialog.unexpected("leave to start TLS", &answer));
        }
        dialog.connection.start_tls(place.session(config)?);
    }
    Ok(dialog)
}

impl Dialog {
    /// A connection of one's own making.
    pub(crate) fn new(connection: Connection) -> Dialog {
        Dialog { connection, arrived: VecDeque::new(), requests: 0 }
    }

    /// Sends something that is no stanza.
    pub(crate) fn say(&mut self, xml: impl AsRef<[u8]>) -> Result<(), LoadError> {
        self.connection.queue(xml.as_ref());
        self.connection.flush()
    }

    pub(crate) fn say_stanza(&mut self, xml: impl AsRef<[u8]>) -> Result<(), LoadError> {
        self.connection.queue_stanza(xml.as_ref());
        self.connection.flush()
    }

    /// The bytes of the next element.
    pub(crate) async fn next_bytes(&mut self) -> Result<Vec<u8>, LoadError> {
        let Dialog { connection, arrived, .. } = self;
        std::future::poll_fn(|cx| {
            loop {
                if let Some(element) = arrived.pop_front() {
                    return std::task::Poll::Ready(Ok(element));
                }
                let mut keep = |element: &[u8]| arrived.push_back(element.to_vec());
                match connection.poll_receive(cx, &mut keep) {
                    std::task::Poll::Ready(Ok(())) => {}
                    std::task::Poll::Ready(Err(error)) => {
                        // What came before the end counts.
                        match arrived.pop_front() {
                            Some(element) => return std::task::Poll::Ready(Ok(element)),
                            None => return std::task::Poll::Ready(Err(error)),
                        }
                    }
                    std::task::Poll::Pending => return std::task::Poll::Pending,
                }
            }
        })
        .await
    }

    pub(crate) async fn next(&mut self) -> Result<Element, LoadError> {
        let bytes = self.next_bytes().await?;
        parse(&bytes).map_err(|error| LoadError::Unexpected {
            who: self.connection.who().to_owned(),
            expected: "well-formed XML",
            got: format!("{} ({error})", excerpt(&bytes)),
        })
    }

    /// Opens a stream and returns its features.
    async fn features(&mut self, domain: &str) -> Result<Element, LoadError> {
        self.say(format!(
            "<?xml version='1.0'?><stream:stream to='{}' version='1.0' xml:lang='en' xmlns='jabber:client' \
             xmlns:stream='{}'>",
            escape_attr(domain),
            ns::STREAMS
        ))?;
        let features = self.next().await?;
        if features.root().is(ns::STREAMS, "features") {
            Ok(features)
        } else {
            Err(self.unexpected("stream features", &features))
        }
    }

    async fn authenticate(
        &mut self,
        place: &Place,
        number: u32,
        features: &Element,
    ) -> Result<(), LoadError> {
        let mechanism = choose(place, features.root(), self.exporter().is_some())?;
        let Some(hash) = mechanism.hash else {
            self.begin(mechanism.name, &plain(&place.user(number), &place.password))?;
            let answer = self.next().await?;
            return self.success(&answer).map(drop);
        };
        let who = self.connection.who().to_owned();
        let failed = |error| LoadError::Sasl { who: who.clone(), error };
        let binding = match self.exporter() {
            Some(data) if mechanism.bound => Binding::Bound { name: EXPORTER.to_owned(), data },
            _ => Binding::Unsupported,
        };
        let mut scram = Scram::new(hash, &place.user(number), &place.password, binding).map_err(failed)?;
        self.begin(mechanism.name, &scram.initial())?;
        let challenge = self.next().await?;
        if !challenge.root().is(ns::SASL, "challenge") {
            return self.success(&challenge).map(drop);
        }
        let mut keys = place.keys.lock().remove(&number);
        let response = scram.respond_with(challenge.root().text().trim(), &mut keys).map_err(failed)?;
        if let Some(keys) = keys {
            place.keys.lock().insert(number, keys);
        }
        self.say(format!("<response xmlns='{}'>{response}</response>", ns::SASL))?;
        let answer = self.next().await?;
        let proof = self.success(&answer)?;
        scram.verify(proof.trim()).map_err(failed)
    }

    fn begin(&mut self, mechanism: &str, initial: &str) -> Result<(), LoadError> {
        self.say(format!("<auth xmlns='{}' mechanism='{mechanism}'>{initial}</auth>", ns::SASL))
    }

    /// The data that came with success.
    fn success(&self, answer: &Element) -> Result<String, LoadError> {
        let root = answer.root();
        if root.is(ns::SASL, "success") {
            return Ok(root.text().into_owned());
        }
        if !root.is(ns::SASL, "failure") {
            return Err(self.unexpected("the end of the login", answer));
        }
        Err(LoadError::LoginRefused {
            who: self.connection.who().to_owned(),
            condition: condition(root, ns::SASL),
        })
    }

    /// RFC 9266; for TLS 1.3 only, as before that it would need the extended master secret.
    fn exporter(&self) -> Option<Vec<u8>> {
        let tls = self.connection.tls()?;
        if tls.protocol_version() != Some(rustls::ProtocolVersion::TLSv1_3) {
            return None;
        }
        tls.export_keying_material(vec![0; 32], b"EXPORTER-Channel-Binding", None).ok()
    }

    async fn bind(&mut self, features: &Element) -> Result<(), LoadError> {
        let payload = format!("<bind xmlns='{}'/>", ns::BIND);
        self.request("set", "", &payload, "a resource").await?;
        // RFC 3921 s.3: only an old server still requires it.
        let session = features.root().child(ns::SESSION, "session");
        if session.is_some_and(|it| it.child(ns::SESSION, "optional").is_none()) {
            self.request("set", "", &format!("<session xmlns='{}'/>", ns::SESSION), "a session").await?;
        }
        Ok(())
    }

    async fn enable_acks(&mut self) -> Result<(), LoadError> {
        self.say(format!("<enable xmlns='{}' resume='true'/>", ns::SM))?;
        let answer = self.next().await?;
        if !answer.root().is(ns::SM, "enabled") {
            let advice = ": leave --sm out, or turn it on in the server".to_owned();
            return Err(LoadError::NotOffered { what: "stream management (XEP-0198)".into(), advice });
        }
        self.connection.count_stanzas();
        Ok(())
    }

    /// Returns when the server has dealt with everything sent so far: stanzas are processed in order (RFC 6120 s.10.1).
    pub(crate) async fn sync(&mut self, domain: &str) -> Result<(), LoadError> {
        let id = self.new_id();
        let to = escape_attr(domain);
        self.say_stanza(format!("<iq type='get' id='{id}' to='{to}'><ping xmlns='{}'/></iq>", ns::PING))?;
        // An error is an answer too.
        self.answer(&id).await.map(drop)
    }

    /// Sends an IQ and gives the result; `what` is for the error.
    pub(crate) async fn request(
        &mut self,
        kind: &str,
        to: &str,
        payload: &str,
        what: &str,
    ) -> Result<Element, LoadError> {
        let id = self.new_id();
        let to = if to.is_empty() { String::new() } else { format!(" to='{}'", escape_attr(to)) };
        self.say_stanza(format!("<iq type='{kind}' id='{id}'{to}>{payload}</iq>"))?;
        let answer = self.answer(&id).await?;
        let root = answer.root();
        if root.attr("type").is_some_and(|it| it == "result") {
            return Ok(answer);
        }
        let error = root.child(ns::CLIENT, "error");
        let condition = error.map_or_else(String::new, |it| condition(it, ns::STANZA_ERRORS));
        Err(LoadError::Refused {
            what: format!("{what} for {}", self.connection.who()),
            condition,
            advice: "",
        })
    }

    fn new_id(&mut self) -> String {
        self.requests += 1;
        format!("q{}", self.requests)
    }

    /// The answer to a request; everything before it is passed over.
    async fn answer(&mut self, id: &str) -> Result<Element, LoadError> {
        loop {
            let bytes = self.next_bytes().await?;
            if !bytes.starts_with(b"<iq") {
                continue;
            }
            let Ok(element) = parse(&bytes) else { continue };
            if element.root().attr("id").is_some_and(|it| it == id) {
                return Ok(element);
            }
        }
    }

    /// Passes over everything until the server ends the stream.
    pub(crate) async fn until_closed(&mut self) -> Result<(), LoadError> {
        while !self.connection.is_closed() {
            match self.next_bytes().await {
                Ok(_) => {}
                Err(LoadError::Closed { .. }) => break,
                // A server that closes with unread data in its socket resets the connection.
                Err(LoadError::Io { error, .. }) if error.kind() == std::io::ErrorKind::ConnectionReset => {
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn unexpected(&self, expected: &'static str, element: &Element) -> LoadError {
        let who = self.connection.who().to_owned();
        LoadError::Unexpected { who, expected, got: excerpt(element.bytes()) }
    }
}

const EXPORTER: &str = "tls-exporter";

#[derive(Clone, Copy)]
struct Mechanism {
    name: &'static str,
    hash: Option<Hash>,
    bound: bool,
}

/// Best first.
const MECHANISMS: [Mechanism; 7] = [
    Mechanism { name: "SCRAM-SHA-512-PLUS", hash: Some(Hash::Sha512), bound: true },
    Mechanism { name: "SCRAM-SHA-256-PLUS", hash: Some(Hash::Sha256), bound: true },
    Mechanism { name: "SCRAM-SHA-1-PLUS", hash: Some(Hash::Sha1), bound: true },
    Mechanism { name: "SCRAM-SHA-512", hash: Some(Hash::Sha512), bound: false },
    Mechanism { name: "SCRAM-SHA-256", hash: Some(Hash::Sha256), bound: false },
    Mechanism { name: "SCRAM-SHA-1", hash: Some(Hash::Sha1), bound: false },
    Mechanism { name: "PLAIN", hash: None, bound: false },
];

/// The names of all mechanisms that we can use.
pub(crate) fn mechanisms() -> impl Iterator<Item = &'static str> {
    MECHANISMS.into_iter().map(|it| it.name)
}

fn choose(place: &Place, features: Node<'_>, exporter: bool) -> Result<Mechanism, LoadError> {
    let offered: Vec<String> = features
        .child(ns::SASL, "mechanisms")
        .map(|list| list.children().map(|it| it.text().trim().to_owned()).collect())
        .unwrap_or_default();
    // XEP-0440: some servers offer -PLUS with binding types of TLS 1.2 only, so one that does not say is not asked.
    let announced = features.child(ns::SASL_CB, "sasl-channel-binding");
    let announced = announced
        .is_some_and(|it| it.children().any(|binding| binding.attr("type").as_deref() == Some(EXPORTER)));
    MECHANISMS
        .into_iter()
        .filter(|it| match &place.mechanism {
            Some(wanted) => wanted == it.name,
            None => !it.bound || announced,
        })
        .find(|it| offered.iter().any(|offer| offer == it.name) && (exporter || !it.bound))
        .ok_or_else(|| LoadError::NotOffered {
            what: place.mechanism.clone().unwrap_or_else(|| "a login mechanism that we know".into()),
            advice: format!(
                ": it offers {}",
                if offered.is_empty() { "none".into() } else { offered.join(", ") }
            ),
        })
}

/// Makes those of the accounts that do not exist (XEP-0077 s.3.1), one connection for as many as the server lets.
/// `done` is called for each.
pub(crate) async fn register(
    place: &Place,
    numbers: impl Iterator<Item = u32>,
    mut done: impl FnMut(),
) -> Result<(), LoadError> {
    let mut dialog: Option<Dialog> = None;
    for number in numbers {
        // Some servers take one registration, or a few, on each connection: then it is tried again on a new one.
        let result = match &mut dialog {
            Some(dialog) => in_time("a registration", register_one(dialog, place, number)).await,
            None => Err(LoadError::Usage(String::new())),
        };
        if result.is_err() {
            let mut fresh = in_time("a connection", async {
                let mut dialog = connect(place, &place.jid(number), &place.tls).await?;
                dialog.features(&place.domain).await?;
                Ok(dialog)
            })
            .await?;
            in_time("a registration", register_one(&mut fresh, place, number)).await?;
            dialog = Some(fresh);
        }
        done();
    }
    if let Some(mut dialog) = dialog {
        dialog.connection.say_goodbye()?;
    }
    Ok(())
}

async fn register_one(dialog: &mut Dialog, place: &Place, number: u32) -> Result<(), LoadError> {
    let jid = place.jid(number);
    let query = format!("<query xmlns='{}'/>", ns::REGISTER);
    let what = "registration";
    let form = dialog.request("get", &place.domain, &query, what).await.map_err(no_registration)?;
    let query = form.root().child(ns::REGISTER, "query");
    let user = escape_text(&place.user(number)).into_owned();
    let password = escape_text(&place.password).into_owned();
    // The fields of the form come first: who has one means it (XEP-0077 s.4).
    let payload = match query.and_then(|query| query.child(ns::DATA_FORMS, "x")) {
        Some(x) => filled(x, &user, &password),
        None => format!("<username>{user}</username><password>{password}</password>"),
    };
    let payload = format!("<query xmlns='{}'>{payload}</query>", ns::REGISTER);
    match dialog.request("set", &place.domain, &payload, &format!("to register {jid}")).await {
        Ok(_) => Ok(()),
        Err(LoadError::Refused { condition, .. }) if condition.starts_with("conflict") => Ok(()),
        Err(error) => Err(no_registration(error)),
    }
}

fn no_registration(error: LoadError) -> LoadError {
    match error {
        LoadError::Refused { what, condition, .. } => LoadError::Refused {
            what,
            condition,
            advice: ": --register needs open registration without limits (Prosody: allow_registration = true; \
                     ejabberd: mod_register with registration_timeout: infinity; Trunkline: accounts.registration \
                     = \"open\" and limits.enabled = false). Or make the accounts with the server's own tool",
        },
        other => other,
    }
}

/// The form with the two fields that we can answer; hidden ones and defaults go back as they came.
fn filled(x: Node<'_>, user: &str, password: &str) -> String {
    let mut text = format!("<x xmlns='{}' type='submit'>", ns::DATA_FORMS);
    for field in x.children().filter(|it| it.is(ns::DATA_FORMS, "field")) {
        let Some(var) = field.attr("var") else { continue };
        let value = match var.as_ref() {
            "username" => user.to_owned(),
            "password" | "password2" | "verify" => password.to_owned(),
            _ => match field.child(ns::DATA_FORMS, "value") {
                Some(value) => escape_text(&value.text()).into_owned(),
                None => continue,
            },
        };
        text.push_str(&format!("<field var='{}'><value>{value}</value></field>", escape_attr(&var)));
    }
    text.push_str("</x>");
    text
}

/// The condition of an error element, with its text.
pub(crate) fn condition(error: Node<'_>, namespace: &str) -> String {
    let name = error.children().find(|it| it.ns() == namespace && it.name() != "text");
    let name = name.map_or("undefined-condition", |it| it.name());
    match error.children().find(|it| it.name() == "text") {
        Some(text) => format!("{name} ({})", text.text().trim()),
        None => name.to_owned(),
    }
}

/// Parses one element of a stream whose header declares what all servers' headers do.
pub(crate) fn parse(bytes: &[u8]) -> Result<Element, trunkline_xml::ScanError> {
    const HEADER: &[u8] =
        b"<stream:stream xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams'>";
    let mut scanner = Scanner::new(Limits { element_bytes: 1 << 28, nodes: 1 << 24, ..Limits::default() });
    let mut header = HEADER;
    scanner.next(&mut header)?;
    let mut rest = bytes;
    while let Some(event) = scanner.next(&mut rest)? {
        if let Event::Element(element) = event {
            return Ok(element);
        }
    }
    Err(trunkline_xml::ScanError::NotWellFormed("not an element"))
}

/// With a bound on time.
pub(crate) async fn in_time<T>(
    what: &str,
    work: impl Future<Output = Result<T, LoadError>>,
) -> Result<T, LoadError> {
    match timeout(PATIENCE, work).await {
        Ok(done) => done,
        Err(_) => Err(LoadError::Timeout { what: what.to_owned(), seconds: PATIENCE.as_secs() }),
    }
}
