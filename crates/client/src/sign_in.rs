//! Signing in with everything in one request: XEP-0388 with Bind 2 (XEP-0386), tokens (XEP-0484), resumption, and,
//! when the features are known from the last time, without waiting for them (XEP-0509).

use std::collections::VecDeque;

use trunkline_xml::{Element, Node, escape_attr, escape_text};
use trunkline_xmpp::sasl::client::{Binding, Scram};
use trunkline_xmpp::sasl::{TokenMechanism, token_initial, token_verify};

use crate::acks::{self, Acks};
use crate::auth::{BINDINGS, EXPORTER, Mechanism};
use crate::client::{Client, Resumption, Session, secured, within};
use crate::stream::{STREAMS, Stream, unexpected};
use crate::{ClientError, Login, Target};

const NS: &str = "urn:xmpp:sasl:2";
const BIND: &str = "urn:xmpp:bind:0";
const FAST: &str = "urn:xmpp:fast:0";
const PIPELINING: &str = "urn:xmpp:iap:0";

/// One installation of a client, and what it keeps from one sign-in to the next.
#[derive(Clone, Debug)]
pub struct Device {
    id: String,
    name: String,
    token: Option<Token>,
    offer: Option<Offer>,
}

/// A token: as secret as a password.
#[derive(Clone)]
struct Token {
    text: String,
    mechanism: TokenMechanism,
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Token").field("mechanism", &self.mechanism).finish_non_exhaustive()
    }
}

/// What a server announced.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Offer {
    mechanisms: Vec<String>,
    types: Vec<String>,
    tokens: Vec<String>,
    version: Option<String>,
}

impl Device {
    /// A device that has not signed in yet. `id` is a UUID, `name` what its user calls it.
    pub fn new(id: &str, name: &str) -> Device {
        Device { id: id.to_owned(), name: name.to_owned(), token: None, offer: None }
    }

    /// It can sign in without the password.
    pub fn has_token(&self) -> bool {
        self.token.is_some()
    }

    /// Forgets what the server announced: the next sign-in waits for it.
    pub fn forget_features(&mut self) {
        self.offer = None;
    }

    /// Forgets the token: the next sign-in needs the password.
    pub fn forget_token(&mut self) {
        self.token = None;
    }
}

impl Offer {
    fn of(features: Node<'_>) -> Result<Offer, ClientError> {
        let list = features.child(NS, "authentication").ok_or(ClientError::NotOffered("SASL2"))?;
        let names = |node: Option<Node<'_>>| -> Vec<String> {
            let names = node.into_iter().flat_map(|it| it.children()).filter(|it| it.name() == "mechanism");
            names.map(|name| name.text().trim().to_owned()).collect()
        };
        let types = features.child(BINDINGS, "sasl-channel-binding").into_iter().flat_map(|it| it.children());
        let version = features.child(PIPELINING, "config-version");
        Ok(Offer {
            mechanisms: names(Some(list)),
            types: types.filter_map(|it| it.attr("type").map(|name| name.into_owned())).collect(),
            tokens: names(list.child(NS, "inline").and_then(|inline| inline.child(FAST, "fast"))),
            version: version.and_then(|it| it.attr("value").map(|value| value.into_owned())),
        })
    }
}

/// The proof under way.
enum Proof {
    Scram(Box<Scram>),
    Token { text: String, data: Vec<u8> },
}

impl Client {
    /// Connects and signs in as `device`: a session with carbons and stream management, in as few round trips as what
    /// the device knows allows. With a token if it has one; when that is refused it is forgotten.
    pub async fn sign_in(target: &Target, login: &Login, device: &mut Device) -> Result<Client, ClientError> {
        within("a session", target.timeout, async {
            match enter(target, (login, device), None).await? {
                Resumption::Resumed(client) | Resumption::Fresh { client, .. } => Ok(client),
            }
        })
        .await
    }

    /// Like [`Client::sign_in`], and takes up `session` where it was cut if the server still has it.
    pub async fn sign_in_again(
        target: &Target,
        (login, device): (&Login, &mut Device),
        session: Session,
    ) -> Result<Resumption, ClientError> {
        within("a resumed session", target.timeout, enter(target, (login, device), Some(session))).await
    }
}

async fn enter(
    target: &Target,
    (login, device): (&Login, &mut Device),
    session: Option<Session>,
) -> Result<Resumption, ClientError> {
    let mut stream = secured(target).await?;
    stream.count_turns();
    let known = device.offer.take();
    stream.queue_header(&target.domain, Some(&format!("{}@{}", login.user, target.domain)));
    let mut proof = None;
    if let Some(offer) = &known {
        let (begun, request) = request(&stream, (login, device), (offer, session.as_ref()))?;
        stream.queue(request.as_bytes());
        proof = Some(begun);
    }
    let features = stream.next().await?;
    if !features.root().is(STREAMS, "features") {
        return Err(unexpected("stream features", &features));
    }
    let offer = Offer::of(features.root())?;
    device.offer = Some(offer.clone());
    let mut proof = match proof {
        Some(proof) if known.as_ref() == Some(&offer) => proof,
        early => {
            if early.is_some() {
                // XEP-0509 s.2.2: what was sent was for other features.
                let refused = stream.next().await?;
                if refused.root().child(PIPELINING, "config-version-mismatch").is_none() {
                    return Err(unexpected("a refusal of what is out of date", &refused));
                }
            }
            let (proof, request) = request(&stream, (login, device), (&offer, session.as_ref()))?;
            stream.send(request.as_bytes()).await?;
            proof
        }
    };
    let mut answer = stream.next().await?;
    if let (Proof::Scram(scram), true) = (&mut proof, answer.root().is(NS, "challenge")) {
        let response = scram.respond(answer.root().text().trim()).map_err(failed)?;
        stream.send(format!("<response xmlns='{NS}'>{response}</response>").as_bytes()).await?;
        answer = stream.next().await?;
    }
    let root = answer.root();
    if root.is(NS, "failure") {
        device.token = None;
        let condition =
            root.children().find(|it| it.name() != "text").map_or("not-authorized", |it| it.name());
        return Err(ClientError::LoginRefused { condition: condition.to_owned(), text: String::new() });
    }
    if !root.is(NS, "success") {
        return Err(unexpected("the end of the login", &answer));
    }
    let data = root.child(NS, "additional-data").map(|it| it.text().trim().to_owned()).unwrap_or_default();
    match proof {
        Proof::Scram(mut scram) => scram.verify(&data).map_err(failed)?,
        Proof::Token { text, data: binding } => {
            if !token_verify(&data, &text, &binding) {
                return Err(ClientError::Login("the server did not prove that it knows the token".into()));
            }
        }
    }
    if let Some(text) = root.child(FAST, "token").and_then(|it| it.attr("token")) {
        let mechanism = token_mechanism(&stream, &offer).unwrap_or(TokenMechanism::Unbound);
        device.token = Some(Token { text: text.into_owned(), mechanism });
    }
    let features = stream.next().await?;
    if !features.root().is(STREAMS, "features") {
        return Err(unexpected("stream features", &features));
    }
    settled(stream, &answer, session).await
}

/// What came of it, by `<success/>`.
async fn settled(
    mut stream: Stream,
    success: &Element,
    session: Option<Session>,
) -> Result<Resumption, ClientError> {
    let root = success.root();
    let turns = stream.turns();
    let jid = root.child(NS, "authorization-identifier").map(|it| it.text().trim().to_owned());
    let jid = jid.ok_or_else(|| unexpected("an address", success))?;
    let mut unacked = Vec::new();
    let (mut kept, mut next_id) = (VecDeque::new(), 1);
    if let Some(session) = session {
        let mut acks = session.acks;
        let answer =
            [root.child(acks::NS, "resumed"), root.child(acks::NS, "failed")].into_iter().flatten().next();
        if let Some(h) = answer.and_then(|answer| answer.attr("h")) {
            acks.acknowledged(&h)?;
        }
        if root.child(acks::NS, "resumed").is_some() {
            for stanza in acks.unacked() {
                stream.queue(stanza);
            }
            stream.flush().await?;
            let client =
                Client { stream, jid, acks: Some(acks), kept: session.kept, next_id: session.next_id, turns };
            return Ok(Resumption::Resumed(client));
        }
        unacked = acks.unacked().cloned().collect();
        (kept, next_id) = (session.kept, session.next_id);
    }
    let bound = root.child(BIND, "bound").ok_or_else(|| unexpected("a bound resource", success))?;
    let enabled = bound.child(acks::NS, "enabled").ok_or(ClientError::NotOffered("stream management"))?;
    let acks = Acks::new(enabled.attr("id").map(|id| id.into_owned()));
    let client = Client { stream, jid, acks: Some(acks), kept, next_id, turns };
    Ok(Resumption::Fresh { client, unacked })
}

fn failed(error: trunkline_xmpp::sasl::client::ClientError) -> ClientError {
    ClientError::Login(error.to_string())
}

/// The best that both sides can. This client sees the exporter of its connection, and nothing else of it.
fn token_mechanism(stream: &Stream, offer: &Offer) -> Option<TokenMechanism> {
    let offered = |it: &TokenMechanism| offer.tokens.iter().any(|name| name == it.name());
    let bound = Some(TokenMechanism::Exporter).filter(|_| stream.exporter().is_some());
    bound.into_iter().chain([TokenMechanism::Unbound]).find(offered)
}

/// `<authenticate/>`
fn request(
    stream: &Stream,
    (login, device): (&Login, &Device),
    (offer, session): (&Offer, Option<&Session>),
) -> Result<(Proof, String), ClientError> {
    let exporter = stream.exporter().filter(|_| offer.types.iter().any(|kind| kind == EXPORTER));
    let (name, initial, proof, token) = match &device.token {
        Some(token) => {
            let data = match token.mechanism {
                TokenMechanism::Exporter => stream.exporter().unwrap_or_default(),
                _ => Vec::new(),
            };
            let initial = token_initial(&login.user, &token.text, &data);
            let proof = Proof::Token { text: token.text.clone(), data };
            (token.mechanism.name(), initial, proof, format!("<fast xmlns='{FAST}'/>"))
        }
        None => {
            let offers = |it: &Mechanism| offer.mechanisms.iter().any(|name| name == it.name());
            let (mechanism, hash) = Mechanism::ALL
                .into_iter()
                .filter(|it| login.mechanism.is_none_or(|wanted| wanted == *it))
                .filter(|it| offers(it) && (exporter.is_some() || !it.is_bound()))
                .find_map(|it| Some((it, it.hash()?)))
                .ok_or(ClientError::NotOffered("a mechanism for the login"))?;
            let binding = match exporter {
                Some(data) if mechanism.is_bound() => Binding::Bound { name: EXPORTER.to_owned(), data },
                _ => Binding::Unsupported,
            };
            let names = |list: &[String]| list.to_vec();
            let (mechanisms, types) = (names(&offer.mechanisms), names(&offer.types));
            let scram = Scram::new(hash, &login.user, &login.password, binding).map_err(failed)?.announced(
                &mechanisms.iter().map(String::as_str).collect::<Vec<_>>(),
                &types.iter().map(String::as_str).collect::<Vec<_>>(),
            );
            let wish = token_mechanism(stream, offer)
                .map(|it| format!("<request-token xmlns='{FAST}' mechanism='{}'/>", it.name()))
                .unwrap_or_default();
            (mechanism.name(), scram.initial(), Proof::Scram(Box::new(scram)), wish)
        }
    };
    let resume = session.and_then(|session| {
        let (id, h) = (session.acks.id.as_deref()?, session.acks.handled());
        Some(format!("<resume xmlns='{}' h='{h}' previd='{}'/>", acks::NS, escape_attr(id)))
    });
    let version = offer.version.as_ref().map(|version| {
        format!("<config-version xmlns='{PIPELINING}' scheme='opaque' value='{}'/>", escape_attr(version))
    });
    let request = format!(
        "<authenticate xmlns='{NS}' mechanism='{name}'><initial-response>{initial}</initial-response>\
         <user-agent id='{}'><software>trunkline-client</software><device>{}</device></user-agent>\
         {token}{}{}<bind xmlns='{BIND}'><tag>{}</tag><enable xmlns='urn:xmpp:carbons:2'/>\
         <enable xmlns='{}' resume='true'/></bind></authenticate>",
        escape_attr(&device.id),
        escape_text(&device.name),
        resume.unwrap_or_default(),
        version.unwrap_or_default(),
        escape_text(login.resource.as_deref().unwrap_or("trunkline-client")),
        acks::NS,
    );
    Ok((proof, request))
}
