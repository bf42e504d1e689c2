//! What is offered at each step of a stream's beginning.

use std::sync::Arc;
use std::time::Duration;

use trunkline_xml::Writer;
use trunkline_xmpp::{ns, sasl};

use super::Negotiation;
use crate::config::{Config, Registration};
use crate::exchange::Exchange;

impl Negotiation {
    /// Features before login: mechanisms, channel-binding types (XEP-0440), registration, limits.
    pub(super) fn login_features(&self, bindings: &sasl::ChannelBindings) -> Vec<u8> {
        let mut w = Writer::new();
        w.open("stream:features");
        if !self.transport.is_encrypted() && self.certificates.is_some() {
            w.open("starttls").attr("xmlns", ns::TLS).close();
        }
        w.open("mechanisms").attr("xmlns", ns::SASL);
        for name in self.mechanisms(bindings).names() {
            w.open("mechanism").text(name).close();
        }
        w.close();
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
        w.close();
        w.finish()
    }

    /// Features after login.
    pub(super) fn session_features(&self) -> Arc<[u8]> {
        let exchange = &self.desk.exchange;
        let config = exchange.config.load_full();
        exchange.logging_in.features(&config, || exchange.write_session_features(&config))
    }
}

impl Exchange {
    fn write_session_features(&self, config: &Config) -> Vec<u8> {
        let mut w = Writer::new();
        w.open("stream:features");
        w.open("bind").attr("xmlns", ns::BIND).close();
        // RFC 3921's session: optional, as draft-cridland-xmpp-session says.
        w.open("session").attr("xmlns", ns::SESSION).empty("optional").close();
        w.open("sm").attr("xmlns", ns::SM).close();
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
