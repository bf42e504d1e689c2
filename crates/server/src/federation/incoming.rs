//! What a peer's elements mean on a stream: headers, SASL EXTERNAL, dialback in both roles, acknowledgements, stanzas.
//!
//! | element | before a proof | after |
//! |---|---|---|
//! | `<auth/>` | incoming, when EXTERNAL was offered | `policy-violation` |
//! | `<bidi/>` | incoming | refused |
//! | `<db:result>` | request: checked; answer: to a request of ours only | the same |
//! | `<db:verify>` | answered: it asks about our own keys | the same |
//! | `<enable/>` | `<failed/>` | once |
//! | stanza | `not-authorized` | when its pair is proved |

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::time::Instant;
use trunkline_xml::{Element, Event, Header, Node, Writer, XML_NS};
use trunkline_xmpp::error::{Condition, StanzaError, StreamCondition, StreamError};
use trunkline_xmpp::jid::Jid;
use trunkline_xmpp::ns;
use trunkline_xmpp::stanza::{Stanza, StanzaRefusal};

use super::dialback::{self, Dialback, Kind, Outcome, Say};
use super::failure::{Failure, certificate_label};
use super::line::{End, Line, Proved, Role, Sending, Stage, Unacked, kind_of};
use super::management;
use super::wire::{self, Offers};
use crate::exchange::Host;
use crate::metrics::{Direction, Side};
use crate::net::Verdict;
use crate::route::{Mail, Origin};
use crate::session::ledger::Ledger;

/// Domains that one stream may prove, and dialback requests that it may make.
const MOST_PAIRS: usize = 64;
/// Dialback requests of one stream that are checked at the same time.
const MOST_CHECKS: usize = 4;

impl Line {
    pub(super) fn event(&mut self, event: Event) -> Result<(), End> {
        match (self.stage, event) {
            (_, Event::Whitespace) => Ok(()),
            (_, Event::Close) => Err(End::Closed),
            (Stage::Header, Event::Open(header)) => self.header(&header),
            (Stage::Open, Event::Element(element)) => self.element(element),
            (Stage::Header, Event::Element(_)) | (Stage::Open, Event::Open(_)) => {
                self.refused("stream-out-of-order", "a header or an element where the other is due");
                Err(StreamCondition::InvalidXml.into())
            }
        }
    }

    // ---- headers and features

    /// The peer's header on an incoming stream; answered with ours and the features.
    fn header(&mut self, header: &Header) -> Result<(), End> {
        let head = read_header(header).map_err(|condition| {
            self.refused("stream-header", condition.as_str());
            End::from(condition)
        })?;
        self.id = crate::ids::token(18);
        self.lang = head.lang;
        let local = self.shared.exchange.served(&head.to);
        self.local = local.clone();
        if let Some(from) = &head.from
            && !self.proved.is_empty()
            && !self.proved.iter().any(|proved| proved.peer.domain == *from)
        {
            self.refused("from-changed", "the stream's from changed after it was proved");
            return Err(StreamCondition::InvalidFrom.into());
        }
        self.claimed = head.from.or_else(|| self.claimed.take());
        let hello = wire::header(&wire::Greeting {
            from: local.as_ref().map(|local| &local.domain),
            to: self.claimed.as_ref(),
            id: Some(&self.id),
        });
        self.out.extend_from_slice(&hello);
        self.opened = true;
        self.stage = Stage::Open;
        let Some(local) = local else {
            self.refused("host-unknown", &format!("asked for {}", printable(&head.to)));
            return Err(StreamCondition::HostUnknown.into());
        };
        if let Some(domain) = &self.claimed {
            self.admit_domain(domain)?;
        }
        if self.external && self.proved.is_empty() {
            // SASL succeeded before this header; now it is known for which pair.
            let from = self.claimed.clone().ok_or(StreamCondition::ImproperAddressing)?;
            self.prove(&from, &local)?;
        }
        let offers = self.offers();
        if self.proved.is_empty() && !offers.external && !offers.dialback {
            return Err(self.no_way_in());
        }
        self.out.extend_from_slice(&offers.write());
        Ok(())
    }

    /// Blocked, cut off, or ourselves: not admitted.
    fn admit_domain(&self, domain: &Jid) -> Result<(), End> {
        if self.shared.exchange.served(domain.as_str()).is_some() {
            self.refused("own-domain", &format!("claims to be {domain}, which is ours"));
            return Err(StreamCondition::InvalidFrom.into());
        }
        if !self.shared.may_talk(domain.as_str()) {
            self.refused("peer-blocked", &format!("{domain} is blocked"));
            return Err(End::Error(
                StreamError::new(StreamCondition::PolicyViolation)
                    .text("This server does not talk to your domain."),
            ));
        }
        Ok(())
    }

    /// THE TABLE of what an incoming stream is offered.
    fn offers(&self) -> Offers {
        let proved = !self.proved.is_empty();
        let dialback = match &self.claimed {
            Some(domain) => self.shared.dialback_with(domain.as_str()),
            None => self.shared.dialback_with(""),
        };
        Offers {
            starttls: false,
            external: !proved && self.claimed.as_ref().is_some_and(|domain| self.verdict(domain).is_valid()),
            dialback,
            dialback_errors: dialback,
            bidi: !proved && !self.bidi,
            // Dialback has no second set of features, so acknowledgements are announced before the proof.
            management: self.ledger.is_none(),
        }
    }

    /// The refusal by name of a peer that can prove nothing.
    fn no_way_in(&self) -> End {
        let Some(domain) = &self.claimed else { return StreamCondition::ImproperAddressing.into() };
        let verdict = self.verdict(domain);
        self.refused(certificate_label(&verdict), &format!("{verdict}; dialback is not allowed"));
        End::Error(StreamError::new(StreamCondition::NotAuthorized).text(format!(
            "Your certificate does not prove {domain}: {verdict}. Dialback is not accepted here."
        )))
    }

    /// What the peer's certificate is worth for `domain`.
    pub(super) fn verdict(&self, domain: &Jid) -> Verdict {
        match self.tls() {
            Some(tls) => self.shared.verdict(&tls.peer_chain, domain.as_str()),
            None => Verdict::Missing,
        }
    }

    /// The peer may send from `domain` to `local`, from now on.
    fn prove(&mut self, domain: &Jid, local: &Arc<Host>) -> Result<(), End> {
        if self.is_proved(domain, local.domain.as_str()) {
            return Ok(());
        }
        let place = match self.address() {
            Some(address) => match self.shared.sources.take(address) {
                Some(place) => Some(place),
                None => {
                    self.refused("too-many-peers-of-address", "its address has proved too many domains");
                    return Err(StreamCondition::ResourceConstraint.into());
                }
            },
            None => None,
        };
        let Some(peer) = self.shared.peer(domain, super::MOST_INCOMING) else {
            self.refused("too-many-peers", "no room for another peer domain");
            return Err(StreamCondition::ResourceConstraint.into());
        };
        if self.proved.is_empty() {
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

    // ---- elements

    fn element(&mut self, element: Element) -> Result<(), End> {
        let root = element.root();
        match (root.ns(), root.name()) {
            (ns::SERVER, _) => self.stanza(element),
            (ns::DIALBACK, _) => self.dialback(root),
            (ns::SM, _) => self.management(root),
            (ns::SASL, "auth") => self.auth(root),
            (ns::SASL, "abort") => self.fail("aborted", "sasl-aborted"),
            (ns::BIDI, "bidi") => self.take_bidi(),
            (ns::STREAMS, "error") => {
                let error = StreamError::parse(root);
                Err(End::Peer(peer_failure(&error)))
            }
            // Features that come late, after dialback: nothing in them is needed any more.
            (ns::STREAMS, "features") if self.role == Role::Out => Ok(()),
            _ => {
                self.refused(
                    "unknown-element",
                    &format!("{} {}", printable(root.ns()), printable(root.name())),
                );
                Err(StreamCondition::UnsupportedStanzaType.into())
            }
        }
    }

    fn take_bidi(&mut self) -> Result<(), End> {
        if self.role == Role::Out || !self.proved.is_empty() || self.external {
            self.refused("bidi-too-late", "bidi after the proof");
            return Err(StreamCondition::UnsupportedStanzaType.into());
        }
        self.bidi = true;
        Ok(())
    }

    /// XEP-0178 s.3: the peer's certificate is the proof; the element only says for which domain.
    fn auth(&mut self, auth: Node<'_>) -> Result<(), End> {
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
    fn fail(&mut self, condition: &'static str, name: &'static str) -> Result<(), End> {
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

    fn dialback(&mut self, node: Node<'_>) -> Result<(), End> {
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
        self.checking += 1;
        let question = Dialback {
            kind: Kind::Verify(self.id.clone()),
            from: element.to.clone(),
            to: element.from.clone(),
            say: Say::Key(key),
        };
        self.shared.verify(Arc::clone(&self.handle), question);
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

    // ---- XEP-0198

    fn management(&mut self, node: Node<'_>) -> Result<(), End> {
        match node.name() {
            "enable" if self.role == Role::In && !self.proved.is_empty() && self.ledger.is_none() => {
                self.count_received();
                self.out.extend_from_slice(&management::enabled());
                // From here on both sides count both ways. Nothing of ours is on its way: what was written
                // before is delivered.
                if matches!(self.sending, Sending::Unmanaged) {
                    self.sending = Sending::Managed(Unacked::default());
                }
                self.handle.status.lock().acks = true;
                Ok(())
            }
            "enable" => {
                self.out.extend_from_slice(&management::failed(Condition::UnexpectedRequest));
                Ok(())
            }
            "enabled" if matches!(self.sending, Sending::Enabling(_)) => {
                self.sending = Sending::Managed(Unacked::default());
                self.count_received();
                self.handle.status.lock().acks = true;
                Ok(())
            }
            "failed" if matches!(self.sending, Sending::Enabling(_)) => {
                self.sending = Sending::Unmanaged;
                Ok(())
            }
            "r" if self.ledger.is_some() => {
                self.asked_for_acknowledgement();
                Ok(())
            }
            "a" => match node.attr("h").and_then(|h| h.parse::<u32>().ok()) {
                Some(h) => self.acknowledged(h),
                None => Err(StreamCondition::InvalidXml.into()),
            },
            "resume" => {
                self.out.extend_from_slice(&management::failed(Condition::ItemNotFound));
                Ok(())
            }
            _ => {
                self.refused("management-out-of-order", printable(node.name()).as_str());
                Err(StreamCondition::UnsupportedStanzaType.into())
            }
        }
    }

    fn count_received(&mut self) {
        let settled = Arc::new(AtomicBool::new(false));
        let (flag, handle) = (Arc::clone(&settled), Arc::downgrade(&self.handle));
        self.settled = settled;
        self.ledger = Some(Ledger::new(0, move || {
            flag.store(true, Ordering::Release);
            if let Some(handle) = handle.upgrade() {
                handle.wake();
            }
        }));
    }

    // ---- stanzas

    fn stanza(&mut self, element: Element) -> Result<(), End> {
        if self.proved.is_empty() {
            self.refused("stanza-before-proof", "a stanza before any domain was proved");
            return Err(StreamCondition::NotAuthorized.into());
        }
        self.clocks.stanza = Instant::now();
        let receipt = self.ledger.as_ref().map(|ledger| ledger.receive());
        let stanza = match Stanza::from_element(element, ns::SERVER, self.lang.as_deref()) {
            Ok(stanza) => stanza,
            Err(refusal) => return self.refuse_stanza(&refusal),
        };
        // RFC 6120 s.8.1.1.2 and s.8.1.2.2: between servers both are required.
        let (Some(from), Some(to)) = (&stanza.head.from, &stanza.head.to) else {
            self.refused("stanza-addressing", "a stanza without to or from");
            return Err(StreamCondition::ImproperAddressing.into());
        };
        let Some(peer) = self.check_pair(from, to)? else { return Ok(()) };
        self.shared.exchange.metrics.stanza(kind_of(stanza.head.kind), Direction::In, Side::Outside);
        let mail = Mail { stanza, origin: Origin::Outside, receipt };
        if let Err(no_room) = self.shared.crossing.push(&peer, mail) {
            self.refused("crossing-full", "the inside did not take stanzas of this peer in time");
            let error =
                StanzaError::new(Condition::ResourceConstraint).text("Too much at once. Try again later.");
            if let Some(answer) = no_room.0.error(&error) {
                self.shared.reply(answer);
            }
        }
        Ok(())
    }

    /// The pair of domains is one that was proved on this stream; the load of its peer.
    fn check_pair(&self, from: &Jid, to: &Jid) -> Result<Option<Arc<super::crossing::Load>>, End> {
        let proved = self.proved.iter().find(|proved| {
            proved.peer.domain.as_str() == from.domain() && proved.local.domain.as_str() == to.domain()
        });
        if let Some(proved) = proved {
            return Ok(Some(Arc::clone(&proved.peer.load)));
        }
        if self.shared.exchange.served(to.domain()).is_none() {
            self.refused("stanza-host-unknown", &format!("to {}, which is not served here", to.domain()));
            return Err(StreamCondition::HostUnknown.into());
        }
        // RFC 6120 s.4.9.3.9.
        self.refused(
            "forged-from",
            &format!("from {}, which was not proved for {}", from.domain(), to.domain()),
        );
        Err(StreamCondition::InvalidFrom.into())
    }

    fn refuse_stanza(&mut self, refusal: &StanzaRefusal) -> Result<(), End> {
        self.refused(refusal.why.label(), &refusal.to_string());
        if let Some(condition) = refusal.stream_condition() {
            return Err(condition.into());
        }
        let Some(mut answer) = refusal.error_reply() else { return Ok(()) };
        let Some(to) = answer.head.to.clone() else {
            return Err(StreamCondition::ImproperAddressing.into());
        };
        // It goes to whom the peer named as sender: only if the peer may speak for that domain.
        let proved = self.proved.iter().find(|proved| proved.peer.domain.as_str() == to.domain());
        let Some(proved) = proved else {
            self.refused("forged-from", &format!("from {}, which was not proved", to.domain()));
            return Err(StreamCondition::InvalidFrom.into());
        };
        if answer.head.from.is_none() {
            answer.head.from = Some(proved.local.domain.clone());
        }
        self.shared.reply(answer);
        Ok(())
    }
}

/// What a stream header between servers says.
pub(super) struct Head {
    /// As written, canonical if it is an address.
    pub(super) to: String,
    pub(super) from: Option<Jid>,
    pub(super) id: Option<String>,
    pub(super) lang: Option<Arc<str>>,
}

/// RFC 6120 s.4.7 and s.4.8.
pub(super) fn read_header(header: &Header) -> Result<Head, StreamCondition> {
    let root = header.root();
    if root.ns() != ns::STREAMS || root.name() != "stream" {
        return Err(StreamCondition::InvalidNamespace);
    }
    if header.default_ns() != ns::SERVER {
        return Err(StreamCondition::InvalidNamespace);
    }
    // s.4.7.5: a version below 1.0 knows no features, so no TLS.
    let version = root.attr("version");
    let major =
        version.as_deref().and_then(|version| version.split('.').next()).and_then(|n| n.parse::<u32>().ok());
    if major.is_none_or(|major| major < 1) {
        return Err(StreamCondition::UnsupportedVersion);
    }
    let from = match root.attr("from") {
        Some(from) => {
            Some(Jid::parse(&from).ok().filter(Jid::is_domain).ok_or(StreamCondition::InvalidFrom)?)
        }
        None => None,
    };
    let to = root.attr("to").unwrap_or_default();
    Ok(Head {
        to: Jid::parse(&to).map_or_else(|_| to.into_owned(), |to| to.as_str().to_owned()),
        from,
        id: root.attr("id").map(|id| id.into_owned()),
        lang: root.attr_ns(XML_NS, "lang").as_deref().map(Arc::from),
    })
}

/// The peer's stream error, for status and log. `see-other-host` is shown, never followed: it would let a peer that is
/// not authenticated yet send us anywhere (RFC 6120 s.4.9.3.19 asks for the same checks again).
pub(super) fn peer_failure(error: &StreamError) -> Failure {
    let mut text = error.peer_text().map(printable);
    if let Some(host) = error.other_host() {
        text = Some(format!("points to {}, which is not followed", printable(host)));
    }
    Failure::Peer { condition: error.condition(), text }
}

/// A text of the peer's, fit for a log line.
pub(super) fn printable(text: &str) -> String {
    text.chars().take(200).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}
