//! STARTTLS (RFC 6120 s.5) and direct TLS (XEP-0368).

use trunkline_xml::Element;
use trunkline_xmpp::error::{StreamCondition, StreamError};
use trunkline_xmpp::jid::Jid;
use trunkline_xmpp::{ns, sasl};

use super::{Negotiation, Stop, features};
use crate::net::{Side, Transport};

impl Negotiation {
    /// RFC 6120 s.5: nothing but STARTTLS is offered and nothing else taken.
    pub(super) async fn require_tls(&mut self) -> Result<(), Stop> {
        self.send(&features::tls_only()).await?;
        let element = self.element().await?;
        let root = element.root();
        if !root.is(ns::TLS, "starttls") {
            return Err(self.too_early(&element));
        }
        self.start_tls().await
    }

    pub(super) async fn start_tls(&mut self) -> Result<(), Stop> {
        // RFC 6120 s.5.4.2.2 with the lesson of CVE-2021-38604 and its kin: what was sent along with
        // `<starttls/>` in the clear must not be read inside TLS.
        if !self.reader.is_empty() {
            self.desk.refused("plaintext-after-starttls", "bytes in the clear behind <starttls/>");
            return Err(StreamCondition::PolicyViolation.into());
        }
        self.send(b"<proceed xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>").await?;
        self.handshake().await?;
        self.reopen().await
    }

    pub(super) async fn handshake(&mut self) -> Result<(), Stop> {
        let Some(certificates) = self.certificates.clone() else { return Err(Stop::Lost) };
        let hint = self.host.as_ref().map(|host| host.domain.clone());
        // A stand-in while the socket is inside the handshake; if that fails the socket is gone.
        let plain = std::mem::replace(&mut self.transport, Transport::from(tokio::io::duplex(1).0));
        let handshake = plain.accept_tls(&certificates, Side::Clients, hint.as_ref().map(Jid::as_str));
        let outcome = match self.gate.clone() {
            Some(gate) => gate.handshake(self.address.ip(), handshake).await,
            None => Ok(handshake.await),
        };
        match outcome {
            Ok(Ok(encrypted)) => {
                self.transport = encrypted;
                Ok(())
            }
            Err(late) => {
                self.desk.refused("tls-timeout", &late.to_string());
                Err(Stop::Lost)
            }
            Ok(Err(error)) => {
                self.desk.refused(error.label(), &error.to_string());
                Err(Stop::Lost)
            }
        }
    }

    pub(super) fn channel_bindings(&self) -> sasl::ChannelBindings {
        let tls = self.transport.tls();
        sasl::ChannelBindings {
            exporter: tls.and_then(|tls| tls.exporter).map(|data| data.to_vec()),
            server_end_point: tls.and_then(|tls| tls.end_point.clone()),
            unique: None,
        }
    }

    /// What a client gets who sends something before it may: RFC 6120 s.4.9.3.12.
    pub(super) fn too_early(&self, element: &Element) -> Stop {
        let root = element.root();
        if root.ns() == ns::CLIENT {
            self.desk.refused("stanza-before-login", "a stanza before the login");
            return StreamCondition::NotAuthorized.into();
        }
        if root.ns() == ns::SASL || root.ns() == ns::SASL2 {
            self.desk.refused("sasl-before-tls", "a login without TLS");
            return Stop::Error(
                StreamError::new(StreamCondition::PolicyViolation).text("Use STARTTLS before you log in."),
            );
        }
        self.desk.refusal(StreamCondition::UnsupportedStanzaType, "an element that is not understood here")
    }
}
