//! The way to other domains: federation, and components.

use std::sync::Arc;

use trunkline_xmpp::error::StanzaError;

use super::Mail;
use crate::exchange::Exchange;

/// Takes stanzas for domains that are not ours.
pub trait Remote: Send + Sync + 'static {
    /// Takes `mail`, keeping its receipt until what has to be durable is durable. Never waits.
    ///
    /// # Errors
    /// The error to bounce: nobody serves that domain, policy forbids it, a queue is full.
    fn send(&self, exchange: &Arc<Exchange>, mail: Mail) -> Result<(), StanzaError>;
}
