//! Whom we talk to: the configuration, and what an administrator has cut off for the time being.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use trunkline_xmpp::jid::Jid;

use super::shared::Shared;
use crate::admin::OpError;

/// What an administrator has cut off for the time being.
#[derive(Debug, Default)]
pub(super) struct Cut {
    all: bool,
    domains: BTreeSet<String>,
}

impl Shared {
    /// Also what is below the domain, until opened again.
    pub(super) fn close(&self, domain: Option<&str>) -> Result<String, OpError> {
        let said = match known_domain(domain)? {
            Some(domain) => {
                let said =
                    format!("{domain} is cut off until it is opened again, or the server starts again.");
                self.cut.lock().domains.insert(domain);
                said
            }
            None => {
                self.cut.lock().all = true;
                "The outside is cut off until it is opened again, or the server starts again.".into()
            }
        };
        self.policy_changed();
        Ok(said)
    }

    pub(super) fn open(&self, domain: Option<&str>) -> Result<String, OpError> {
        let config = self.exchange.config.load_full();
        let said = match known_domain(domain)? {
            Some(domain) => {
                if !self.cut.lock().domains.remove(&domain) {
                    return Err(OpError::NotPossible(format!("{domain} was not closed")));
                }
                match config.federation.blocked(&domain) {
                    true => format!("{domain} is open, but federation.domains blocks it."),
                    false => format!("{domain} is open."),
                }
            }
            None => {
                self.cut.lock().all = false;
                match config.federation.enabled {
                    true => "Federation is open.".into(),
                    false => "Federation is open, but federation.enabled is false.".into(),
                }
            }
        };
        self.policy_changed();
        Ok(said)
    }

    /// Anything at all goes in or out.
    pub(super) fn is_open(&self) -> bool {
        self.exchange.config.load().federation.enabled && !self.cut.lock().all
    }

    /// `domain` may be talked to.
    pub(super) fn may_talk(&self, domain: &str) -> bool {
        let config = self.exchange.config.load();
        if !config.federation.enabled || config.federation.blocked(domain) {
            return false;
        }
        let cut = self.cut.lock();
        !cut.all
            && !cut
                .domains
                .iter()
                .any(|cut| domain == cut || domain.strip_suffix(cut).is_some_and(|rest| rest.ends_with('.')))
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

fn known_domain(domain: Option<&str>) -> Result<Option<String>, OpError> {
    let Some(name) = domain else { return Ok(None) };
    match Jid::parse(name) {
        Ok(jid) if jid.is_domain() => Ok(Some(jid.as_str().to_owned())),
        _ => Err(OpError::NotPossible(format!("{name} is not a domain"))),
    }
}
