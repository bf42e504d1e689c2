//! XEP-0388 Extensible SASL Profile 1.0.4: the login with all that follows it in one request: tokens (XEP-0484),
//! resumption (XEP-0198) and binding with its features (XEP-0386).
//!
//! [`FEATURES`] and [`BIND_FEATURES`] are the tables of what may go inline. What is asked for is read completely before
//! anything is tried, and carried out only when the login has succeeded.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use trunkline_store::StoreError;
use trunkline_xml::{Element, Node, Writer};
use trunkline_xmpp::jid::Jid;
use trunkline_xmpp::sasl::{Hash, TokenLogin, TokenMechanism, token_answer};
use trunkline_xmpp::{ns, sasl, time};

use super::bind::{Resume, Wanted};
use super::features::Stage;
use super::sasl::{Attempt, Entered, Profile, Proved, address, unreadable};
use super::{Negotiation, Stop};
use crate::devices::{Agent, Bearer, Proof, Visit, Welcome};
use crate::exchange::{Exchange, Host};
use crate::route::account::Account;
use crate::session::client::Seat;
use crate::session::management;

/// Something that may go inline.
pub(super) struct Feature {
    /// Writes its announcement.
    pub(super) announce: fn(&Exchange, &sasl::ChannelBindings, &mut Writer),
    /// Its elements in `<authenticate/>`; none may be there twice.
    elements: &'static [(&'static str, &'static str)],
    /// Reads one of them.
    read: fn(&mut Request, &Node<'_>) -> Result<(), sasl::Failure>,
}

/// What is announced in `<inline/>`.
pub(super) const FEATURES: &[Feature] = &[
    Feature {
        announce: |_, _, w| {
            w.open("bind").attr("xmlns", ns::BIND2).open("inline");
            for feature in BIND_FEATURES {
                w.open("feature").attr("var", feature.var).close();
            }
            w.close().close();
        },
        elements: &[(ns::BIND2, "bind")],
        read: |request, node| {
            request.bind = Some(Bind::read(node));
            Ok(())
        },
    },
    Feature {
        announce: |_, _, w| {
            w.open("sm").attr("xmlns", ns::SM).close();
        },
        elements: &[(ns::SM, "resume")],
        read: |request, node| {
            request.resume = Some(Resume::of(node));
            Ok(())
        },
    },
    Feature {
        announce: |exchange, bindings, w| {
            if exchange.token_lifetime().is_some() {
                w.open("fast").attr("xmlns", ns::FAST);
                for mechanism in TokenMechanism::offered(bindings) {
                    w.open("mechanism").text(mechanism.name()).close();
                }
                w.close();
            }
        },
        elements: &[(ns::FAST, "fast"), (ns::FAST, "request-token")],
        read: |request, node| {
            if node.name() == "fast" {
                let invalidate = matches!(node.attr("invalidate").as_deref(), Some("true" | "1"));
                request.token = Some(Token { invalidate });
            } else {
                request.wants_token = node.attr("mechanism").and_then(|name| TokenMechanism::parse(&name));
            }
            Ok(())
        },
    },
];

/// Something that may go with binding (XEP-0386 s.3.1).
struct BindFeature {
    var: &'static str,
    element: (&'static str, &'static str),
    read: fn(&mut Bind, &Node<'_>),
}

const BIND_FEATURES: &[BindFeature] = &[
    BindFeature {
        var: ns::CARBONS,
        element: (ns::CARBONS, "enable"),
        read: |bind, _| bind.wanted.carbons = true,
    },
    BindFeature { var: ns::CSI, element: (ns::CSI, "inactive"), read: |bind, _| bind.wanted.inactive = true },
    BindFeature {
        var: ns::SM,
        element: (ns::SM, "enable"),
        read: |bind, node| bind.wanted.management = Some(management::Wish::of(node)),
    },
];

/// XEP-0480: the keys that a client may add, to an account that lacks them.
pub(super) const UPGRADES: [Hash; 2] = [Hash::Sha256, Hash::Sha512];

/// XEP-0480 s.3: what the task is called.
pub(super) fn task(hash: Hash) -> String {
    format!("UPGR-{}", hash.mechanism())
}

/// What `<authenticate/>` asks for.
#[derive(Default)]
pub(super) struct Request {
    mechanism: String,
    initial: Option<String>,
    agent: Option<Agent>,
    bind: Option<Bind>,
    resume: Option<Resume>,
    token: Option<Token>,
    wants_token: Option<TokenMechanism>,
    pub(super) upgrades: Vec<Hash>,
    /// XEP-0509.
    version: Option<String>,
}

/// `<fast/>`
struct Token {
    invalidate: bool,
}

/// `<bind/>`
#[derive(Default)]
struct Bind {
    tag: String,
    wanted: Wanted,
}

impl Bind {
    fn read(node: &Node<'_>) -> Bind {
        let tag = node.child(ns::BIND2, "tag").map(|tag| tag.text().trim().to_owned()).unwrap_or_default();
        let mut bind = Bind { tag, ..Bind::default() };
        for child in node.children() {
            let feature = BIND_FEATURES.iter().find(|it| child.is(it.element.0, it.element.1));
            if let Some(feature) = feature {
                (feature.read)(&mut bind, &child);
            }
        }
        bind
    }
}

impl Request {
    /// Reads all of it. What is there twice has no meaning: which one would be done?
    fn read(root: &Node<'_>) -> Result<Request, sasl::Failure> {
        let mut request = Request {
            mechanism: root.attr("mechanism").map(|name| name.into_owned()).unwrap_or_default(),
            ..Request::default()
        };
        let mut seen: Vec<(&str, &str)> = Vec::new();
        for child in root.children() {
            let name = (child.ns(), child.name());
            let feature = FEATURES.iter().find(|feature| feature.elements.contains(&name));
            let once = feature.is_some()
                || matches!(
                    name,
                    (ns::SASL2, "initial-response" | "user-agent") | (ns::PIPELINING, "config-version")
                );
            if once && seen.contains(&name) {
                return Err(sasl::Failure::MalformedRequest);
            }
            seen.push(name);
            if let Some(feature) = feature {
                (feature.read)(&mut request, &child)?;
                continue;
            }
            match name {
                (ns::SASL2, "initial-response") => request.initial = Some(child.text().trim().to_owned()),
                (ns::SASL2, "user-agent") => request.agent = agent(&child)?,
                (ns::SASL_UPGRADE, "upgrade") => {
                    let wanted = child.text();
                    let hash = UPGRADES.into_iter().find(|hash| task(*hash) == wanted.trim());
                    // One that was not offered, or comes again, is nothing.
                    request.upgrades.extend(hash.filter(|hash| !request.upgrades.contains(hash)));
                }
                (ns::PIPELINING, "config-version") => {
                    let opaque = child.attr("scheme").is_none_or(|scheme| scheme == "opaque");
                    let value = child.attr("value").filter(|_| opaque);
                    request.version = Some(value.map(|value| value.into_owned()).unwrap_or_default());
                }
                _ => {}
            }
        }
        Ok(request)
    }
}

/// `<user-agent/>`: without an id it says nothing to remember.
fn agent(node: &Node<'_>) -> Result<Option<Agent>, sasl::Failure> {
    let Some(id) = node.attr("id") else { return Ok(None) };
    let text = |name: &str| {
        let text = node.child(ns::SASL2, name).map(|it| it.text().trim().to_owned());
        text.filter(|text| !text.is_empty())
    };
    let agent = Agent::new(&id, text("software"), text("device"));
    agent.map(Some).ok_or(sasl::Failure::MalformedRequest)
}

/// How somebody has proved to be the user.
struct Shown {
    proved: Proved,
    proof: Proof,
}

impl Negotiation {
    /// XEP-0388 s.2: `<authenticate/>` and all that comes of it.
    pub(super) async fn authenticate_inline(
        &mut self,
        host: &Arc<Host>,
        element: &Element,
        bindings: &sasl::ChannelBindings,
    ) -> Result<Result<Entered, sasl::Failure>, Stop> {
        if !self.transport.is_encrypted() {
            return Ok(Err(sasl::Failure::EncryptionRequired));
        }
        let request = match Request::read(&element.root()) {
            Ok(request) => request,
            Err(failure) => return Ok(Err(failure)),
        };
        // XEP-0509 s.2.2: before anything is looked at.
        if request.version.as_ref().is_some_and(|version| *version != self.version) {
            return Ok(Err(sasl::Failure::OtherFeatures));
        }
        let shown = match &request.token {
            Some(_) => match self.show_token(host, &request, bindings).await {
                Ok(shown) => shown,
                Err(failure) => return Ok(Err(failure)),
            },
            None => {
                let initial = match request.initial.as_deref() {
                    None => "",
                    Some("") => "=",
                    Some(text) => text,
                };
                let mechanism = &request.mechanism;
                let attempt = Attempt { profile: Profile::Extensible, mechanism, initial };
                match self.attempt(host, &attempt, bindings).await? {
                    Ok(proved) => {
                        let proof = Proof::Password(proved.salt.clone());
                        Shown { proved, proof }
                    }
                    Err(failure) => return Ok(Err(failure)),
                }
            }
        };
        let Shown { mut proved, proof } = shown;
        // s.2.1.2: who asks in so many words to be somebody is the one the stream is from.
        let account = Arc::clone(&proved.account);
        if proved.named && self.from.as_ref().is_some_and(|from| !from.same_bare(&account.jid)) {
            return Ok(Err(sasl::Failure::InvalidAuthzid));
        }
        // XEP-0484 s.4.2: nothing more is asked of who has a token.
        if matches!(proof, Proof::Password(_))
            && let Err(failure) = self.run_tasks(&mut proved, &request).await?
        {
            return Ok(Err(failure));
        }
        let welcome = match self.visited(&account, &request, &proof, bindings).await {
            Ok(welcome) => welcome,
            Err(failure) => return Ok(Err(failure)),
        };
        self.settle(host, proved, (request, welcome)).await.map(Ok)
    }

    /// XEP-0484 s.3.3: a login with a token. What is not there is not told apart from what is wrong.
    async fn show_token(
        &mut self,
        host: &Arc<Host>,
        request: &Request,
        bindings: &sasl::ChannelBindings,
    ) -> Result<Shown, sasl::Failure> {
        self.may_try()?;
        let mechanism = TokenMechanism::parse(&request.mechanism).ok_or(sasl::Failure::InvalidMechanism)?;
        let offered = self.desk.exchange.token_lifetime().is_some();
        let data = mechanism.data(bindings).filter(|_| offered).ok_or(sasl::Failure::InvalidMechanism)?;
        let agent = request.agent.as_ref().ok_or(sasl::Failure::MalformedRequest)?;
        let login = TokenLogin::parse(request.initial.as_deref().unwrap_or_default())?;
        let jid = address(login.user(), host);
        self.may_try_for(jid.as_ref())?;
        if let Some(jid) = &jid {
            self.guess(jid.clone())?;
        }
        let local = jid.as_ref().and_then(Jid::local).unwrap_or_default();
        let bearer = Bearer { host, local, agent, mechanism };
        let checked = self.desk.exchange.check_token(&bearer, |token| login.proves(token, data)).await;
        let used = match (checked, jid) {
            (Err(error), _) => return Err(unreadable(&error)),
            (Ok(Ok(used)), Some(jid)) => (used, jid),
            (Ok(outcome), jid) => {
                if let Some(jid) = &jid {
                    self.desk.exchange.logins.failed_for(jid);
                }
                return Err(outcome.err().unwrap_or(sasl::Failure::NotAuthorized));
            }
        };
        let (used, jid) = used;
        let account = self.account(&jid).await?;
        let data = Some(token_answer(&used.token, data));
        let proved = Proved { account, data, salt: Vec::new(), iterations: 0, named: false };
        Ok(Shown { proved, proof: Proof::Token(used) })
    }

    /// Notes the device, and gives it the token it is to have.
    async fn visited(
        &self,
        account: &Account,
        request: &Request,
        proof: &Proof,
        bindings: &sasl::ChannelBindings,
    ) -> Result<Option<Welcome>, sasl::Failure> {
        let Some(agent) = &request.agent else { return Ok(None) };
        let visit = Visit {
            agent,
            proof,
            invalidate: request.token.as_ref().is_some_and(|token| token.invalidate),
            request: request.wants_token.filter(|mechanism| mechanism.data(bindings).is_some()),
        };
        match self.desk.exchange.welcome(account, &visit).await {
            Ok(welcome) => Ok(Some(welcome)),
            // The password or the token was changed since it was checked: another try will tell.
            Err(StoreError::Conflict) => Err(sasl::Failure::TemporaryAuthFailure),
            Err(error) => Err(unreadable(&error)),
        }
    }

    /// XEP-0388 s.2.6.1: resumption, or else binding, and `<success/>` with what came of it.
    async fn settle(
        &mut self,
        host: &Host,
        proved: Proved,
        (request, welcome): (Request, Option<Welcome>),
    ) -> Result<Entered, Stop> {
        let Request { agent, bind, resume, .. } = request;
        let account = proved.account;
        let device = welcome.as_ref().map_or(0, |welcome| welcome.id);
        let mut results = Vec::new();
        let mut seat = None;
        // XEP-0386 s.3.2: resumption first; after it nothing is left to bind.
        if let Some(resume) = resume {
            let (resumed, answer) = self.resume(&account, &resume).await?;
            results.extend_from_slice(&answer);
            seat = resumed;
        }
        if let Some(seat) = &seat {
            seat.session().device.store(device, Ordering::Relaxed);
        } else if let Some(bind) = bind {
            let (bound, answer) = self.bind_inline(host, &account, (bind, agent.as_ref(), device)).await;
            results.extend_from_slice(&answer);
            seat = bound;
        }
        let mut w = Writer::new();
        w.open("success").attr("xmlns", ns::SASL2);
        if let Some(data) = &proved.data {
            w.text_element("additional-data", data);
        }
        let identity = seat.as_ref().map_or(&account.jid, |seat| &seat.session().jid);
        w.text_element("authorization-identifier", identity.as_str());
        w.raw(&results);
        if let Some((token, expires)) = welcome.and_then(|welcome| welcome.token) {
            w.open("token")
                .attr("xmlns", ns::FAST)
                .attr("token", &token)
                .attr("expiry", &time::format_millis(expires))
                .close();
        }
        w.close();
        let mut out = w.finish();
        let stage = match &seat {
            None => Stage::Unbound,
            Some(seat) if seat.session().management().is_some() => Stage::Managed,
            Some(_) => Stage::Bound,
        };
        // s.2.6.1: the features follow at once, on the same stream.
        out.extend_from_slice(&self.session_features(stage));
        self.send(&out).await?;
        Ok(match seat {
            Some(seat) => Entered::Bound(seat),
            None => Entered::Unbound(account),
        })
    }

    /// XEP-0386 s.3.2. The answer is `<bound/>`, or why not.
    async fn bind_inline(
        &self,
        host: &Host,
        account: &Arc<Account>,
        (bind, agent, device): (Bind, Option<&Agent>, i64),
    ) -> (Option<Seat>, Vec<u8>) {
        let exchange = &self.desk.exchange;
        let own = agent
            .filter(|_| device != 0)
            .map_or_else(|| crate::ids::token(9), |agent| agent.resource(host, account, &bind.tag));
        // s.3.3: the tag in front, if it can stand there.
        let tagged = format!("{}/{own}", bind.tag);
        let full = account.jid.with_resource(if bind.tag.is_empty() { &own } else { &tagged });
        let full = full.or_else(|_| account.jid.with_resource(&own));
        let mut w = Writer::new();
        let Ok(full) = full else {
            w.open("failed").attr("xmlns", ns::BIND2).close();
            return (None, w.finish());
        };
        if device != 0 {
            exchange.end_earlier(account, device, &full);
        }
        let wanted = Wanted { device, ..bind.wanted };
        match exchange.bind(Arc::clone(account), (full, self.desk.serial), wanted) {
            Ok((session, begun)) => {
                // Before anything is waited for: whatever happens to this connection, the session is let go.
                let seat = Seat::new(exchange, &session, self.desk.serial);
                w.open("bound").attr("xmlns", ns::BIND2);
                if exchange.config.load().accounts.archive {
                    // What comes from now on is on its way to the session, so what the archive has until here is all
                    // that there is to catch up with.
                    match crate::log::pages::metadata(&exchange.db, &exchange.ids, account).await {
                        Ok(metadata) => {
                            w.raw(&metadata);
                        }
                        Err(error) => tracing::warn!(%error, "how far an archive goes can't be read"),
                    }
                }
                if let Some(begun) = begun {
                    w.raw(&begun.enabled);
                }
                w.close();
                (Some(seat), w.finish())
            }
            Err(error) => {
                w.open("failed").attr("xmlns", ns::BIND2);
                w.open(error.condition.as_str()).attr("xmlns", ns::STANZA_ERRORS).close();
                w.close();
                (None, w.finish())
            }
        }
    }
}
