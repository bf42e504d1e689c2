//! The way to other domains: federation, and components.

use std::sync::Arc;

use trunkline_xmpp::error::StanzaError;

use super::Mail;
use crate::admin::{FederationStatus, OpError};
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

    /// Cuts off one domain, or all; the answer is for the operator.
    ///
    /// # Errors
    /// What the operator did wrong.
    fn close(&self, _domain: Option<&str>) -> Result<String, OpError> {
        Err(OpError::NotPossible("there is nothing to close".into()))
    }

    /// Takes a close back.
    ///
    /// # Errors
    /// What the operator did wrong.
    fn open(&self, _domain: Option<&str>) -> Result<String, OpError> {
        Err(OpError::NotPossible("there is nothing to open".into()))
    }

    /// A new configuration is in effect.
    fn reload(&self, _config: &Config) {}
}
