//! The way to other domains: federation, and components.

use std::sync::Arc;

use trunkline_xmpp::error::StanzaError;

use super::{Later, Mail};
use crate::admin::FederationStatus;
use crate::config::Config;
use crate::exchange::Exchange;

/// Takes stanzas for domains that are not ours.
pub trait Remote: Send + Sync + 'static {
    /// Takes `mail`, keeping its receipt until what has to be durable is durable. Never waits.
    ///
    /// # Errors
    /// The error to bounce: nobody serves that domain, policy forbids it, a queue is full.
    fn send(&self, exchange: &Arc<Exchange>, mail: Mail) -> Result<(), StanzaError>;

    /// How the streams to other servers are.
    fn status(&self) -> FederationStatus {
        FederationStatus::default()
    }

    /// Who may be talked to may have changed: streams that must not be end at once.
    fn policy_changed(&self) {}

    /// The bounded way from outside to inside, for one source that is not a stream of federation's own: a component on
    /// the outside. `None`: there is no federation, hence nothing to be bounded together with.
    fn entrance(&self) -> Option<Arc<dyn Entrance>> {
        None
    }

    /// A new configuration is in effect.
    fn reload(&self, _config: &Config) {}
}

/// One source's way from outside to inside.
pub trait Entrance: Send + Sync + 'static {
    /// Brings a stanza of [`super::Origin::Outside`] in; ready when there was room for it.
    fn enter(&self, mail: Mail) -> Later;
}
