//! Who the peer is: SASL EXTERNAL for incoming streams, dialback (XEP-0220 Server Dialback 1.1.1) in all its roles, and
//! what is proved by them: pairs of domains.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::time::Instant;
use trunkline_xml::{Node, Writer};
use trunkline_xmpp::error::{Condition, StreamCondition};
use trunkline_xmpp::jid::Jid;
use trunkline_xmpp::ns;

use super::budget::{Most, Verification};
use super::dial;
use super::dialback::{self, Dialback, Kind, Outcome, Say};
use super::elements::printable;
use super::failure::{Failure, certificate_label};
use super::handle::{Command, Handle};
use super::line::{End, Line, Proved, Role, Stage};
use super::management::Sending;
use super::shared::Shared;
use crate::control::rule::Authentication;
use crate::exchange::Host;
use crate::metrics::Direction;
use crate::net::Verdict;
use crate::net::listen::network;

/// Domains that one stream may prove, and dialback requests that it may make.
const MOST_PAIRS: usize = 64;
/// Dialback requests of one stream that are checked at the same time.
const MOST_CHECKS: usize = 4;

impl Line {
    /// What the peer's certificate is worth for `domain`.
    pub(super) fn verdict(&self, domain: &Jid) -> Verdict {
        match self.tls() {
            Some(tls) => self.shared.verdict(&tls.peer_chain, domain.as_str()),
            None => Verdict::Missing,
        }
    }

    /// The peer may send from `domain` to `local`, from now on.
    pub(super) fn prove(&mut self, domain: &Jid, local: &Arc<Host>) -> Result<(), End> {
        if self.is_proved(domain, local.domain.as_str()) {
            return Ok(());
        }
        let place = match self.address() {
            Some(address) => {
                match self.shared.budgets.proofs.take(network(address), Most::each(super::MOST_PROOFS)) {
                    Ok(place) => Some(place),
                    Err(_) => {
                        self.refused("too-many-peers-of-address", "its address has proved too many domains");
                        return Err(StreamCondition::ResourceConstraint.into());
                    }
                }
            }
            None => None,
        };
        let Some(peer) = self.shared.peer(domain, super::MOST_INCOMING) else {
            self.refused("too-many-peers", "no room for another peer domain");
            return Err(StreamCondition::ResourceConstraint.into());
        };
        if peer.faults.lock().are_too_many(self.shared.now()) {
            self.refused("peer-faults", "what it sends has met bugs of this server, again and again");
            return Err(StreamCondition::InternalServerError.into());
        }
        if self.role == Role::In && !self.proved.iter().any(|proved| proved.peer.domain == *domain) {
            let Some(stream) = self.shared.another_stream(domain) else {
                self.refused("streams-per-domain", &format!("{domain} has too many streams to us"));
                return Err(StreamCondition::ResourceConstraint.into());
            };
            self.streams.push(stream);
        }
        self.footprint.belongs_to(&self.shared, domain);
        if self.proved.is_empty() {
            self.unproved = None;
            self.clocks.prove_by = None;
            self.scanner.set_limits(self.shared.scan_limits());
            *self.handle.peer.lock() = Some(domain.clone());
        }
        self.proved.push(Proved { peer: Arc::clone(&peer), local: Arc::clone(local), _place: place });
        let proof = if self.external { "external" } else { "dialback" };
        {
            let words = format!("{proof} ({})", self.verdict(domain));
            let mut status = self.handle.status.lock();
            status.us = local.domain.as_str().to_owned();
            status.they_proved = Some(words);
            if self.bidi {
                status.direction = "both".into();
            }
        }
        let chain = self.tls().map_or(&[][..], |tls| &tls.peer_chain);
        let by = if self.verdict(domain).is_valid() {
            Authentication::Certificate
        } else {
            Authentication::Dialback
        };
        self.shared.note_proof(domain, Some(by), chain);
        let tls = self.tls().map_or("none", |tls| tls.version);
        self.shared.exchange.metrics.federation_stream(Direction::In, proof, tls);
        tracing::info!(
            conn = self.handle.serial,
            peer = domain.as_str(),
            local = local.domain.as_str(),
            proof,
            tls,
            "peer proved its domain"
        );
        // The peer lives: whoever waits to try again need not wait any longer.
        let pair = peer.pair(local);
        // XEP-0288: what we have for it may go back on the same stream.
        if self.bidi && self.role == Role::In && self.carry(&pair) {
            self.handle.status.lock().we_proved = Some("the same stream".into());
            if self.carried.len() == 1 && self.ledger.is_none() {
                self.sending = Sending::Awaited(Instant::now());
            }
        }
        pair.hurry();
        Ok(())
    }

    /// Where an incoming stream comes from.
    fn address(&self) -> Option<IpAddr> {
        let address = self.handle.status.lock().address.parse::<SocketAddr>().ok()?;
        (self.role == Role::In).then(|| address.ip())
    }

    fn is_proved(&self, from: &Jid, to: &str) -> bool {
        self.proved.iter().any(|proved| proved.peer.domain == *from && proved.local.domain.as_str() == to)
    }
    /// XEP-0178 s.3: the peer's certificate is the proof; the element only says for which domain.
    pub(super) fn auth(&mut self, auth: Node<'_>) -> Result<(), End> {
        if self.role == Role::Out || self.external || !self.proved.is_empty() {
            self.refused("sasl-out-of-order", "auth where none is due");
            return Err(StreamCondition::PolicyViolation.into());
        }
        if auth.attr("mechanism").as_deref() != Some("EXTERNAL") {
            return self.fail("invalid-mechanism", "sasl-unknown-mechanism");
        }
        let text = auth.text();
        let text = text.trim();
        // RFC 6120 s.6.4.2: "=" is an empty answer. None at all asks for a challenge, which EXTERNAL doesn't need.
        let authzid = match text {
            "" | "=" => None,
            text => match STANDARD.decode(text).ok().and_then(|bytes| String::from_utf8(bytes).ok()) {
                Some(authzid) if authzid.is_empty() => None,
                Some(authzid) => Some(authzid),
                None => return self.fail("incorrect-encoding", "sasl-encoding"),
            },
        };
        let domain = match (&authzid, &self.claimed) {
            (None, Some(claimed)) => claimed.clone(),
            (None, None) => return self.fail("invalid-authzid", "sasl-without-domain"),
            (Some(authzid), claimed) => {
                let Ok(domain) = Jid::parse(authzid) else {
                    return self.fail("invalid-authzid", "sasl-bad-domain");
                };
                if !domain.is_domain() || claimed.as_ref().is_some_and(|claimed| *claimed != domain) {
                    return self.fail("invalid-authzid", "sasl-other-domain");
                }
                domain
            }
        };
        self.admit_domain(&domain)?;
        let verdict = self.verdict(&domain);
        if !verdict.is_valid() {
            self.refused(certificate_label(&verdict), &format!("{domain}: {verdict}"));
            return self.fail("not-authorized", "sasl-not-authorized");
        }
        let mut w = Writer::new();
        w.open("success").attr("xmlns", ns::SASL).close();
        self.out.extend_from_slice(&w.finish());
        self.claimed = Some(domain);
        self.external = true;
        // RFC 6120 s.6.4.6: a new stream; its header says for which of our domains.
        self.scanner.restart();
        self.stage = Stage::Header;
        Ok(())
    }

    /// RFC 6120 s.6.5. The stream goes on: dialback may follow.
    pub(super) fn fail(&mut self, condition: &'static str, name: &'static str) -> Result<(), End> {
        self.requests += 1;
        self.refused(name, condition);
        self.shared.exchange.metrics.login("EXTERNAL", condition);
        if self.requests > MOST_PAIRS {
            return Err(StreamCondition::PolicyViolation.into());
        }
        let mut w = Writer::new();
        w.open("failure").attr("xmlns", ns::SASL).empty(condition).close();
        self.out.extend_from_slice(&w.finish());
        Ok(())
    }

    // ---- XEP-0220

    pub(super) fn dialback(&mut self, node: Node<'_>) -> Result<(), End> {
        let element = match Dialback::parse(node) {
            Ok(element) => element,
            Err(why) => {
                self.refused(why.label(), &why.to_string());
                return Err(StreamCondition::ImproperAddressing.into());
            }
        };
        match (&element.kind, &element.say) {
            (Kind::Verify(id), Say::Key(key)) => {
                let outcome = self.authority(&element, id, key);
                self.out.extend_from_slice(&element.answer(outcome).write());
                self.count_request()
            }
            (Kind::Result, Say::Key(key)) => {
                self.count_request()?;
                self.dialback_request(&element, key.clone())
            }
            (Kind::Result, Say::Outcome(outcome)) => {
                self.dialback_answer(&element, outcome);
                Ok(())
            }
            // We ask on connections of their own only.
            (Kind::Verify(_), Say::Outcome(_)) => {
                self.refused("dialback-unsolicited", "an answer to no question of ours");
                Ok(())
            }
        }
    }

    fn count_request(&mut self) -> Result<(), End> {
        self.requests += 1;
        if self.requests > MOST_PAIRS && self.proved.is_empty() {
            self.refused("dialback-flood", "too many dialback requests without a proof");
            return Err(StreamCondition::PolicyViolation.into());
        }
        Ok(())
    }

    /// The authoritative server's role: is this key ours?
    fn authority(&self, element: &Dialback, id: &str, key: &str) -> Outcome {
        let Some(host) = self.shared.exchange.served(element.to.as_str()) else {
            return Outcome::Error(Some(Condition::ItemNotFound));
        };
        let expected = dialback::key(&host.secret, &element.from, &element.to, id);
        if dialback::is_key(&expected, key) {
            return Outcome::Valid;
        }
        self.refused(
            "dialback-foreign-key",
            &format!(
                "{} asks about a key for {} that is not ours: somebody pretends to be us",
                element.from, element.to
            ),
        );
        Outcome::Invalid
    }

    /// The receiving server's role: the peer wants to send from a domain.
    fn dialback_request(&mut self, element: &Dialback, key: String) -> Result<(), End> {
        let refusal = self.refuse_dialback(element);
        if let Some((condition, name, detail)) = refusal {
            self.refused(name, &detail);
            let answer = element.answer(Outcome::Error(Some(condition)));
            self.out.extend_from_slice(&answer.write());
            return Ok(());
        }
        let Some(local) = self.shared.exchange.served(element.to.as_str()) else { return Ok(()) };
        let known = self.is_proved(&element.from, element.to.as_str());
        // The certificate proves the domain as well as its server's word would; nobody needs to be asked.
        if known || self.verdict(&element.from).is_valid() {
            self.out.extend_from_slice(&element.answer(Outcome::Valid).write());
            return self.prove(&element.from, &local);
        }
        let address = self.address().unwrap_or(IpAddr::V6(Ipv6Addr::UNSPECIFIED));
        let verification = match self.shared.may_verify(address, &element.from) {
            Ok(verification) => verification,
            Err(name) => {
                self.refused(name, &format!("too many keys are being checked: {} must wait", element.from));
                let answer = element.answer(Outcome::Error(Some(Condition::ResourceConstraint)));
                self.out.extend_from_slice(&answer.write());
                return Ok(());
            }
        };
        self.checking += 1;
        let question = Dialback {
            kind: Kind::Verify(self.id.clone()),
            from: element.to.clone(),
            to: element.from.clone(),
            say: Say::Key(key),
        };
        self.shared.verify(Arc::clone(&self.handle), question, verification);
        Ok(())
    }

    /// Why a request is not even looked into.
    fn refuse_dialback(&self, element: &Dialback) -> Option<(Condition, &'static str, String)> {
        let (from, to) = (element.from.as_str(), element.to.as_str());
        if self.shared.exchange.served(to).is_none() {
            return Some((
                Condition::ItemNotFound,
                "host-unknown",
                format!("dialback for {}", printable(to)),
            ));
        }
        if self.shared.exchange.served(from).is_some() {
            return Some((
                Condition::NotAcceptable,
                "own-domain",
                format!("claims to be {from}, which is ours"),
            ));
        }
        if self.role == Role::Out && !self.bidi {
            return Some((
                Condition::NotAcceptable,
                "dialback-wrong-way",
                "on a stream of ours, without bidi".into(),
            ));
        }
        if !self.shared.may_talk(from) {
            return Some((Condition::PolicyViolation, "peer-blocked", format!("{from} is blocked")));
        }
        let verdict = self.verdict(&element.from);
        if !verdict.is_valid() && !self.shared.dialback_with(from) {
            let detail = format!("{from}: {verdict}; dialback is not allowed");
            return Some((Condition::NotAuthorized, certificate_label(&verdict), detail));
        }
        if self.proved.len() >= MOST_PAIRS || self.checking >= MOST_CHECKS {
            return Some((Condition::ResourceConstraint, "dialback-too-many", format!("{from} must wait")));
        }
        None
    }

    /// The authoritative server has answered.
    pub(super) fn verified(&mut self, from: &Jid, to: &Jid, outcome: Result<bool, Failure>) {
        self.checking = self.checking.saturating_sub(1);
        let answer = |outcome| Dialback {
            kind: Kind::Result,
            from: to.clone(),
            to: from.clone(),
            say: Say::Outcome(outcome),
        };
        let outcome = match outcome {
            Ok(true) => Outcome::Valid,
            Ok(false) => {
                self.refused("dialback-invalid", &format!("{from} says that the key is not its own"));
                Outcome::Invalid
            }
            Err(failure) => {
                self.refused("dialback-unverified", &format!("{from} can't be asked: {failure}"));
                Outcome::Error(Some(failure.dialback_condition()))
            }
        };
        let valid = outcome == Outcome::Valid;
        self.out.extend_from_slice(&answer(outcome).write());
        if valid
            && let Some(local) = self.shared.exchange.served(to.as_str())
            && self.prove(from, &local).is_err()
        {
            self.out.extend_from_slice(&answer(Outcome::Error(Some(Condition::ResourceConstraint))).write());
        }
    }

    /// The receiving server has answered a request of ours for a further pair.
    fn dialback_answer(&mut self, element: &Dialback, outcome: &Outcome) {
        let at = self
            .asking
            .iter()
            .position(|(pair, _)| pair.peer == element.from && pair.local.domain == element.to);
        let Some(at) = at else {
            // XEP-0288 s.4: believing this would let a peer choose where our stanzas go.
            self.refused("dialback-unsolicited", "an answer to no question of ours");
            return;
        };
        let (pair, answer) = self.asking.remove(at);
        let valid = *outcome == Outcome::Valid;
        if valid {
            self.carry(&pair);
            if self.bidi
                && let Some(peer) = self.shared.peer(&pair.peer, super::MOST_PEERS)
            {
                self.proved.push(Proved { peer, local: Arc::clone(&pair.local), _place: None });
            }
        }
        let _ = answer.send(valid);
    }
}

impl Shared {
    /// Checks a dialback key with its domain and tells the stream.
    pub(super) fn verify(
        self: &Arc<Self>,
        handle: Arc<Handle>,
        question: Dialback,
        verification: Verification,
    ) {
        let tell = move |question: &Dialback, outcome| {
            handle.ask(Command::Verified { from: question.to.clone(), to: question.from.clone(), outcome });
        };
        debug_assert!(matches!((&question.kind, &question.say), (Kind::Verify(_), Say::Key(_))));
        let shared = Arc::clone(self);
        self.runtime.spawn(async move {
            let outcome = dial::ask(&shared, &question).await;
            drop(verification);
            tell(&question, outcome);
        });
    }
}
