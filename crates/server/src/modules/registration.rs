//! XEP-0077 In-Band Registration: refused.

use std::net::IpAddr;
use std::sync::Arc;

use trunkline_xmpp::error::{Condition, StanzaError};
use trunkline_xmpp::stanza::Stanza;

use super::Answer;
use crate::exchange::{Exchange, Host};

/// What a connection has shown before it registers.
#[derive(Debug, Default)]
pub struct Preauth;

/// Who wants to register.
#[derive(Debug)]
pub struct Asker<'a> {
    /// Where.
    pub host: &'a Arc<Host>,
    /// From where.
    pub address: IpAddr,
}

/// Answers an IQ before login.
///
/// # Errors
/// What the client is told.
pub async fn before_login(_: &Arc<Exchange>, _: Asker<'_>, _: &mut Preauth, _: &Stanza) -> Answer {
    Err(StanzaError::new(Condition::NotAllowed))
}
