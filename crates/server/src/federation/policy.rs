//! Whom we talk to: what [`crate::control`] decided, carried out on the streams.

use std::sync::atomic::Ordering;

use trunkline_xmpp::error::StanzaError;
use trunkline_xmpp::jid::Jid;
use trunkline_xmpp::stanza::Stanza;

use super::failure::Failure;
use super::line::Line;
use super::shared::Shared;
use crate::control::rule::Direction;
use crate::control::traffic::Event;
use crate::control::{Access, Case, Verdict};
use crate::route::Mail;

impl Shared {
    /// Anything at all goes in or out.
    pub(super) fn is_open(&self) -> bool {
        self.exchange.control.is_open()
    }

    /// `domain` may be talked to.
    pub(super) fn may_talk(&self, domain: &str) -> bool {
        self.exchange.control.access(domain) == Access::Open
    }

    /// Why `domain` may not be talked to; `None`: it may.
    pub(super) fn forbidden(&self, domain: &str) -> Option<Failure> {
        match self.exchange.control.access(domain) {
            Access::Open => None,
            Access::Blocked(reason) => Some(Failure::Policy(reason)),
            Access::Closed(reason) => Some(Failure::CutOff(reason)),
        }
    }

    /// The edge, on the way out. The server's own answers are not judged: they are what the policy says.
    pub(super) fn judge_outgoing(&self, domain: &Jid, mail: Mail) -> Result<Option<Mail>, StanzaError> {
        if mail.is_answer() {
            return Ok(Some(mail));
        }
        let case =
            Case { direction: Direction::Out, domain: domain.as_str(), stanza: &mail.stanza, relation: None };
        let decision = self.exchange.control.judge(&case);
        let refused = |name| {
            self.exchange.metrics.refused(name);
            self.exchange.control.traffic.count(domain.as_str(), Event::Refused(name));
        };
        match decision.verdict {
            Verdict::Reject(error) => {
                refused("policy-rejected");
                Err(error)
            }
            // It vanishes: its sender is not to know.
            Verdict::Drop => {
                refused("policy-dropped");
                Ok(None)
            }
            Verdict::Allow | Verdict::Undecided | Verdict::Hold => {
                let stanza = decision.carried_out(mail.stanza.clone(), Direction::Out).inspect_err(|_| {
                    refused("policy-text-only");
                })?;
                Ok(Some(Mail { stanza, ..mail }))
            }
        }
    }

    /// Dialback may prove `domain`, and prove us to it.
    pub(super) fn dialback_with(&self, domain: &str) -> bool {
        self.exchange.config.load().federation.dialback_with(domain)
    }

    pub(super) fn policy_changed(&self) {
        self.epoch.fetch_add(1, Ordering::AcqRel);
        let lines: Vec<_> = self.lines.lock().values().cloned().collect();
        for line in lines {
            line.wake();
        }
        for peer in self.peers.all() {
            let pairs: Vec<_> = peer.pairs.lock().values().cloned().collect();
            for pair in pairs {
                pair.hurry();
            }
        }
    }

    pub(super) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }
}

/// What of a peer's stanza crosses into the inside.
pub(super) enum Judged {
    /// This.
    Pass(Stanza),
    /// Nothing: the sender gets this, if it is a stanza that is answered.
    Answer(Option<Stanza>),
}

impl Line {
    /// The edge: a stanza of a proved peer, before it crosses. Marks of others are taken off here.
    pub(super) fn judge(&self, stanza: Stanza) -> Judged {
        let stanza = crate::control::content::unmarked(stanza);
        let Some(from) = stanza.head.from.clone() else { return Judged::Answer(None) };
        let control = &self.shared.exchange.control;
        let case = Case { direction: Direction::In, domain: from.domain(), stanza: &stanza, relation: None };
        let decision = control.judge(&case);
        let refused = |name: &'static str, detail: &str| {
            self.refused(name, &format!("{}: {detail}", decision.by));
        };
        match &decision.verdict {
            // Whom a stanza may be held for, only the account knows.
            Verdict::Allow | Verdict::Undecided | Verdict::Hold => {
                match decision.carried_out(stanza.clone(), Direction::In) {
                    Ok(stanza) => Judged::Pass(stanza),
                    Err(error) => {
                        refused("policy-text-only", "nothing of it was text");
                        Judged::Answer(stanza.error(&error))
                    }
                }
            }
            Verdict::Reject(error) => {
                refused("policy-rejected", "a stanza was rejected");
                Judged::Answer(stanza.error(error))
            }
            Verdict::Drop => {
                refused("policy-dropped", "a stanza was dropped");
                Judged::Answer(None)
            }
        }
    }
}
