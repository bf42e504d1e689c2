//! What is offered at each step of a stream's beginning.

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest;
use base64::Engine as _;
use trunkline_xml::Writer;
use trunkline_xmpp::{ns, sasl};

use super::{Negotiation, inline};
use crate::config::{Config, Registration};
use crate::exchange::Exchange;

/// How far somebody has come who has logged in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::session) enum Stage {
    /// A resource is to be bound.
    Unbound,
    /// The session is there.
    Bound,
    /// The same, and its stream management is on.
    Managed,
}

impl Stage {
    /// Every stage, in the order of its number.
    pub(in crate::session) const ALL: [Stage; 3] = [Stage::Unbound, Stage::Bound, Stage::Managed];
}

impl Negotiation {
    /// Features before login: mechanisms in both profiles with what goes inline, channel-binding types (XEP-0440),
    /// registration, limits, and a name for all of it (XEP-0509).
    pub(super) fn login_features(&mut self, bindings: &sasl::ChannelBindings) -> Vec<u8> {
        let mut w = Writer::new();
        let encrypted = self.transport.is_encrypted();
        if !encrypted && self.certificates.is_some() {
            w.open("starttls").attr("xmlns", ns::TLS).close();
        }
        let offer = self.mechanisms(bindings);
        w.open("mechanisms").attr("xmlns", ns::SASL);
        for name in offer.names() {
            w.open("mechanism").text(name).close();
        }
        w.close();
        // XEP-0388 s.3: inside TLS only.
        if encrypted {
            w.open("authentication").attr("xmlns", ns::SASL2);
            for name in offer.names() {
                w.open("mechanism").text(name).close();
            }
            w.open("inline");
            for feature in inline::FEATURES {
                (feature.announce)(&self.desk.exchange, bindings, &mut w);
            }
            w.close();
            for hash in inline::UPGRADES {
                w.open("upgrade").attr("xmlns", ns::SASL_UPGRADE).text(&inline::task(hash)).close();
            }
            w.close();
        }
        let types = bindings.types();
        if !types.is_empty() {
            w.open("sasl-channel-binding").attr("xmlns", ns::SASL_CB);
            for name in types {
                w.open("channel-binding").attr("type", name).close();
            }
            w.close();
        }
        let config = self.desk.exchange.config.load();
        if config.accounts.registration != Registration::Closed {
            w.open("register").attr("xmlns", ns::REGISTER_FEATURE).close();
            w.open("register").attr("xmlns", ns::IBR_TOKEN).close();
        }
        write_limits(&mut w, config.limits.stanza_bytes_unauthenticated, config.clients.login_timeout);
        let offered = w.finish();
        let mut w = Writer::new();
        w.open("stream:features").raw(&offered);
        if encrypted {
            // XEP-0509 s.2.3.1: other features, another name.
            let hash = digest::digest(&digest::SHA256, &offered);
            self.version = base64::engine::general_purpose::STANDARD.encode(&hash.as_ref()[..18]);
            w.open("config-version")
                .attr("xmlns", ns::PIPELINING)
                .attr("scheme", "opaque")
                .attr("value", &self.version)
                .close();
        }
        w.close();
        w.finish()
    }

    /// Features after login.
    pub(super) fn session_features(&self, stage: Stage) -> Arc<[u8]> {
        let exchange = &self.desk.exchange;
        let config = exchange.config.load_full();
        exchange.logging_in.features(&config, stage, || {
            Stage::ALL.map(|stage| exchange.write_session_features(&config, stage))
        })
    }
}

impl Exchange {
    fn write_session_features(&self, config: &Config, stage: Stage) -> Vec<u8> {
        let mut w = Writer::new();
        w.open("stream:features");
        if stage == Stage::Unbound {
            w.open("bind").attr("xmlns", ns::BIND).close();
            // RFC 3921's session: optional, as draft-cridland-xmpp-session says.
            w.open("session").attr("xmlns", ns::SESSION).empty("optional").close();
        }
        // XEP-0388 s.2.6.1: what is applicable. Offered again, it is asked for again, and the refusal makes clients
        // forget the session that they could have resumed.
        if stage != Stage::Managed {
            w.open("sm").attr("xmlns", ns::SM).close();
        }
        w.open("csi").attr("xmlns", ns::CSI).close();
        w.open("ver").attr("xmlns", ns::ROSTER_VERSIONING).close();
        w.open("sub").attr("xmlns", ns::PRE_APPROVAL).close();
        w.raw(&crate::modules::disco::caps_feature(self));
        write_limits(&mut w, config.limits.stanza_bytes, config.clients.idle_check);
        w.close();
        w.finish()
    }
}

/// RFC 6120 s.5: until TLS is there nothing else is offered.
pub(super) fn tls_only() -> Vec<u8> {
    let mut w = Writer::new();
    w.open("stream:features");
    w.open("starttls").attr("xmlns", ns::TLS).empty("required").close();
    w.close();
    w.finish()
}

/// XEP-0478.
fn write_limits(w: &mut Writer, bytes: usize, idle: Duration) {
    w.open("limits").attr("xmlns", ns::STREAM_LIMITS);
    w.open("max-bytes").text(&bytes.to_string()).close();
    w.open("idle-seconds").text(&idle.as_secs().to_string()).close();
    w.close();
}
