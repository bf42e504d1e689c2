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

use std::sync::Arc;

use tokio::time::Instant;
use trunkline_xml::{Element, Event, Header, XML_NS};
use trunkline_xmpp::error::{Condition, StanzaError, StreamCondition, StreamError};
use trunkline_xmpp::jid::Jid;
use trunkline_xmpp::ns;
use trunkline_xmpp::stanza::{Stanza, StanzaRefusal};

use super::crossing::Load;
use super::failure::{Failure, certificate_label};
use super::line::{End, Line, Role, Stage, kind_of};
use super::management::Sending;
use super::wire::{self, Offers};
use crate::control::Edge;
use crate::control::traffic;
use crate::metrics::{Direction, Side};
use crate::route::consent::Threshold;
use crate::route::{Mail, Origin};
use crate::session::ledger::Receipt;
use crate::traces;

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
    pub(super) fn admit_domain(&self, domain: &Jid) -> Result<(), End> {
        if self.shared.exchange.served(domain.as_str()).is_some() {
            self.refused("own-domain", &format!("claims to be {domain}, which is ours"));
            return Err(StreamCondition::InvalidFrom.into());
        }
        if !self.shared.may_talk(domain.as_str()) {
            self.refused("peer-blocked", &format!("{domain} is blocked"));
            return Err(End::Error(
                StreamError::new(StreamCondition::PolicyViolation).text(self.why_refused(domain)),
            ));
        }
        Ok(())
    }

    /// What a refused domain is told: a blocked one can't ask for its standing. Nobody learns about another domain, so
    /// why and until when is said only to who has shown a certificate for it.
    fn why_refused(&self, domain: &Jid) -> String {
        let mut text = "This server does not talk to your domain.".to_owned();
        if !self.verdict(domain).is_valid() {
            return text;
        }
        let exchange = &self.shared.exchange;
        let block = exchange.control.policy.reasoned_block(domain.as_str(), exchange.clock().now());
        if let Some(block) = block {
            if !block.reason.is_empty() {
                text.push_str(&format!(" Why: {}.", block.reason.trim_end_matches('.')));
            }
            if let Some(until) = block.until {
                text.push_str(&format!(" Until: {}.", trunkline_xmpp::time::format_millis(until)));
            }
        }
        text
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

    // ---- stanzas

    fn stanza(&mut self, element: Element) -> Result<(), End> {
        if self.proved.is_empty() {
            self.refused("stanza-before-proof", "a stanza before any domain was proved");
            return Err(StreamCondition::NotAuthorized.into());
        }
        self.clocks.stanza = Instant::now();
        if matches!(self.sending, Sending::Awaited(_)) {
            self.sending = Sending::Unmanaged;
        }
        let receipt = self.ledger.as_ref().map(|ledger| ledger.receive());
        let stanza = match Stanza::from_element(element, ns::SERVER, self.lang.as_deref()) {
            Ok(stanza) => stanza,
            Err(refusal) => return self.refuse_stanza(&refusal),
        };
        let span = traces::stanza("outside-in", &stanza);
        let _traced = span.enter();
        // RFC 6120 s.8.1.1.2 and s.8.1.2.2: between servers both are required.
        let (Some(from), Some(to)) = (&stanza.head.from, &stanza.head.to) else {
            self.refused("stanza-addressing", "a stanza without to or from");
            return Err(StreamCondition::ImproperAddressing.into());
        };
        let Some(peer) = self.check_pair(from, to)? else { return Ok(()) };
        let kind = kind_of(stanza.head.kind);
        self.shared.exchange.metrics.stanza(kind, Direction::In, Side::Outside);
        let event = traffic::Event::Stanza { direction: Direction::In, kind, bytes: stanza.size() };
        self.shared.exchange.control.traffic.count(from.domain(), event);
        let stanza = match self.shared.exchange.control.edge(stanza) {
            Edge::Pass(stanza) => stanza,
            Edge::Refused { name, by, answer } => {
                self.refused(name, &by);
                let answered = answer.is_none_or(|answer| self.shared.reply(answer));
                // As below: what was neither taken nor answered is not acknowledged.
                return if answered { Ok(()) } else { lose(receipt) };
            }
        };
        let mail = Mail { receipt, ..Mail::new(stanza, Origin::Outside) };
        let threshold = match peer.has(&mail.stanza) {
            false => self.shared.exchange.meet_at_threshold(mail),
            true => Threshold::Cross(mail),
        };
        let pushed = match threshold {
            // Promise 1: what was neither kept nor answered ends the stream before anything else is taken from it.
            Threshold::Done => return self.check_lost(),
            Threshold::Cross(mail) => self.shared.crossing.push(&peer, mail),
            Threshold::Through(mail) => self.shared.crossing.push_through(&peer, mail),
        };
        if let Err(no_room) = pushed {
            self.refused("crossing-full", "the inside did not take stanzas of this peer in time");
            let error =
                StanzaError::new(Condition::ResourceConstraint).text("Too much at once. Try again later.");
            let answered = no_room.0.stanza.error(&error).is_none_or(|answer| self.shared.reply(answer));
            // Promise 1: what was neither taken nor answered is not acknowledged. The peer still has it.
            if !answered {
                return lose(no_room.0.receipt);
            }
        }
        Ok(())
    }

    /// The pair of domains is one that was proved on this stream; the load of its peer.
    fn check_pair(&self, from: &Jid, to: &Jid) -> Result<Option<Arc<Load>>, End> {
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

/// Ends the stream, with a stanza that the peer still has to have.
fn lose(receipt: Option<Receipt>) -> Result<(), End> {
    if let Some(receipt) = receipt {
        receipt.turn_away();
    }
    Err(StreamCondition::ResourceConstraint.into())
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
