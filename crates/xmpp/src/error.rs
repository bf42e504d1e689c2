//! RFC 6120 s.4.9.3 stream errors and s.8.3.3 stanza errors.
//!
//! An error has two texts: the one the peer sees and the one for the log. They are separate because what an operator
//! needs to know is often what a peer must not.

use std::fmt;

use bytes::Bytes;
use trunkline_xml::{Node, ScanError, Writer};

use crate::jid::{Jid, JidError};
use crate::ns;

/// Bytes of an application-specific condition that is read.
const MOST_APP: usize = 4096;

macro_rules! conditions {
    ($(#[$doc:meta])* $type:ident { $($(#[$variant_doc:meta])* $variant:ident = $name:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $type { $($(#[$variant_doc])* $variant,)* }

        impl $type {
            /// All of them, in the RFC's order.
            pub const ALL: &[$type] = &[$($type::$variant,)*];

            /// The element's name on the wire; also a stable label for counters.
            pub fn as_str(self) -> &'static str {
                match self { $($type::$variant => $name,)* }
            }

            /// The condition with this name.
            pub fn parse(name: &str) -> Option<$type> {
                match name { $($name => Some($type::$variant),)* _ => None }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

conditions! {
    /// RFC 6120 s.8.3.3: what went wrong with a stanza.
    Condition {
        /// The stanza is malformed or can't be processed as it is.
        BadRequest = "bad-request",
        /// Something of that name exists.
        Conflict = "conflict",
        /// Understood, but not built.
        FeatureNotImplemented = "feature-not-implemented",
        /// The sender lacks the permission.
        Forbidden = "forbidden",
        /// The address is not in use any more; may carry the new one.
        Gone = "gone",
        /// A fault of this server.
        InternalServerError = "internal-server-error",
        /// The address or item does not exist.
        ItemNotFound = "item-not-found",
        /// An address is not one.
        JidMalformed = "jid-malformed",
        /// Understood, but the recipient's criteria are not met.
        NotAcceptable = "not-acceptable",
        /// Nobody may do that.
        NotAllowed = "not-allowed",
        /// The sender has to log in first.
        NotAuthorized = "not-authorized",
        /// A local policy is violated.
        PolicyViolation = "policy-violation",
        /// The recipient is not there just now.
        RecipientUnavailable = "recipient-unavailable",
        /// Ask somebody else; carries the address.
        Redirect = "redirect",
        /// The sender has to register first.
        RegistrationRequired = "registration-required",
        /// The recipient's domain can't be found.
        RemoteServerNotFound = "remote-server-not-found",
        /// The recipient's domain can't be reached in time.
        RemoteServerTimeout = "remote-server-timeout",
        /// A bound is reached.
        ResourceConstraint = "resource-constraint",
        /// Not offered here, or not to this sender.
        ServiceUnavailable = "service-unavailable",
        /// The sender needs a subscription.
        SubscriptionRequired = "subscription-required",
        /// None of the others; an application-specific condition says more.
        UndefinedCondition = "undefined-condition",
        /// Understood, but not now.
        UnexpectedRequest = "unexpected-request",
    }
}

conditions! {
    /// RFC 6120 s.8.3.2: what the sender of the stanza should do.
    ErrorType {
        /// Authenticate, or get permission, and try again.
        Auth = "auth",
        /// Give up.
        Cancel = "cancel",
        /// Go on: it was a warning only.
        Continue = "continue",
        /// Change the stanza and try again.
        Modify = "modify",
        /// Wait and try again.
        Wait = "wait",
    }
}

conditions! {
    /// RFC 6120 s.4.9.3: why a stream is closed.
    StreamCondition {
        /// XML that can't be processed, such as text between stanzas.
        BadFormat = "bad-format",
        /// A prefix that must not be used there.
        BadNamespacePrefix = "bad-namespace-prefix",
        /// A new stream took the place of this one.
        Conflict = "conflict",
        /// The peer has not been heard of for too long.
        ConnectionTimeout = "connection-timeout",
        /// The domain is not served any more.
        HostGone = "host-gone",
        /// The domain is not served here.
        HostUnknown = "host-unknown",
        /// A stanza between servers lacks `to` or `from`, or has a wrong one.
        ImproperAddressing = "improper-addressing",
        /// A fault of this server.
        InternalServerError = "internal-server-error",
        /// The `from` is not the peer's to use.
        InvalidFrom = "invalid-from",
        /// A wrong stream or content namespace.
        InvalidNamespace = "invalid-namespace",
        /// XML that is invalid against a schema the server checks.
        InvalidXml = "invalid-xml",
        /// Data before the stream was authenticated, or without permission.
        NotAuthorized = "not-authorized",
        /// Not XML, or not namespaced XML.
        NotWellFormed = "not-well-formed",
        /// A local policy is violated, such as a limit of size.
        PolicyViolation = "policy-violation",
        /// A server needed for the login can't be reached.
        RemoteConnectionFailed = "remote-connection-failed",
        /// The stream has to be negotiated anew.
        Reset = "reset",
        /// The server lacks the resources.
        ResourceConstraint = "resource-constraint",
        /// A comment, processing instruction, document type or entity.
        RestrictedXml = "restricted-xml",
        /// Connect elsewhere; carries the host.
        SeeOtherHost = "see-other-host",
        /// The server goes down.
        SystemShutdown = "system-shutdown",
        /// None of the others; an application-specific condition says more.
        UndefinedCondition = "undefined-condition",
        /// Not UTF-8.
        UnsupportedEncoding = "unsupported-encoding",
        /// A mandatory feature that the peer does not support.
        UnsupportedFeature = "unsupported-feature",
        /// A child of the stream that is not understood.
        UnsupportedStanzaType = "unsupported-stanza-type",
        /// A version of XMPP that is not supported.
        UnsupportedVersion = "unsupported-version",
    }
}

impl Condition {
    /// The error type RFC 6120 s.8.3.3 recommends; where it names two, the first.
    pub fn default_type(self) -> ErrorType {
        use Condition::*;
        match self {
            Forbidden | NotAuthorized | RegistrationRequired | SubscriptionRequired => ErrorType::Auth,
            BadRequest | JidMalformed | NotAcceptable | PolicyViolation | Redirect => ErrorType::Modify,
            RecipientUnavailable | RemoteServerTimeout | ResourceConstraint | UnexpectedRequest => {
                ErrorType::Wait
            }
            Conflict
            | FeatureNotImplemented
            | Gone
            | InternalServerError
            | ItemNotFound
            | NotAllowed
            | RemoteServerNotFound
            | ServiceUnavailable
            | UndefinedCondition => ErrorType::Cancel,
        }
    }
}

/// RFC 6120 s.8.3: the error a stanza is answered with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{condition}{}", tail(text.as_deref(), log.as_deref()))]
pub struct StanzaError {
    /// What went wrong.
    pub condition: Condition,
    /// What the sender should do.
    pub kind: ErrorType,
    /// For the peer's user, in English.
    pub text: Option<String>,
    /// For our log, never sent.
    pub log: Option<String>,
    /// Who found the fault (`by`), if not the addressee.
    pub by: Option<Jid>,
    /// s.8.3.3.5 and s.8.3.3.14: the other address, an IRI, of `gone` and `redirect`.
    pub uri: Option<String>,
    /// s.8.3.4: application-specific conditions, as well-formed XML with their namespaces declared.
    pub app: Option<Bytes>,
}

impl StanzaError {
    /// An error of the condition's usual type, without text.
    pub fn new(condition: Condition) -> StanzaError {
        StanzaError {
            condition,
            kind: condition.default_type(),
            text: None,
            log: None,
            by: None,
            uri: None,
            app: None,
        }
    }

    /// Says something to the peer's user.
    pub fn text(mut self, text: impl Into<String>) -> StanzaError {
        self.text = Some(text.into());
        self
    }

    /// Says something to our operator.
    pub fn log(mut self, text: impl Into<String>) -> StanzaError {
        self.log = Some(text.into());
        self
    }

    /// Asks for another reaction than the condition's usual one.
    pub fn kind(mut self, kind: ErrorType) -> StanzaError {
        self.kind = kind;
        self
    }

    /// Names who found the fault.
    pub fn by(mut self, by: Jid) -> StanzaError {
        self.by = Some(by);
        self
    }

    /// Names the other address, an IRI such as `xmpp:romeo@montague.example`.
    pub fn uri(mut self, uri: impl Into<String>) -> StanzaError {
        self.uri = Some(uri.into());
        self
    }

    /// Adds an application-specific condition: one well-formed element that declares its namespace.
    pub fn app(mut self, xml: impl Into<Bytes>) -> StanzaError {
        self.app = Some(xml.into());
        self
    }

    /// Writes the `<error/>` child.
    pub fn write(&self, w: &mut Writer) {
        w.open("error").attr("type", self.kind.as_str()).attr_opt("by", self.by.as_ref().map(Jid::as_str));
        w.open(self.condition.as_str()).attr("xmlns", ns::STANZA_ERRORS);
        if let Some(uri) = &self.uri {
            w.text(uri);
        }
        w.close();
        write_text(w, ns::STANZA_ERRORS, self.text.as_deref());
        if let Some(app) = &self.app {
            w.raw(app);
        }
        w.close();
    }

    /// Reads an `<error/>` child. What is missing or unknown is read as the RFC says: an unknown condition is
    /// `undefined-condition` (s.8.3.2), a missing type is the condition's usual one.
    pub fn parse(error: Node<'_>) -> StanzaError {
        let mut parsed = StanzaError::new(Condition::UndefinedCondition);
        let mut app = None;
        for child in error.children() {
            if child.ns() != ns::STANZA_ERRORS {
                app.get_or_insert_with(|| condition_of(child, error.ns()));
            } else if child.name() == "text" {
                parsed.text.get_or_insert_with(|| child.text().into_owned());
            } else if let Some(condition) = Condition::parse(child.name()) {
                parsed.condition = condition;
                parsed.kind = condition.default_type();
                parsed.uri = Some(child.text().trim().to_owned()).filter(|uri| !uri.is_empty());
            }
        }
        if let Some(kind) = error.attr("type").and_then(|kind| ErrorType::parse(&kind)) {
            parsed.kind = kind;
        }
        parsed.by = error.attr("by").and_then(|by| Jid::parse(&by).ok());
        parsed.app = app.flatten();
        parsed
    }
}

impl From<Condition> for StanzaError {
    fn from(condition: Condition) -> StanzaError {
        StanzaError::new(condition)
    }
}

impl From<JidError> for StanzaError {
    fn from(error: JidError) -> StanzaError {
        StanzaError::new(Condition::JidMalformed).text(error.to_string())
    }
}

/// RFC 6120 s.4.9: the error a stream ends with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{condition}{}", tail(text.as_deref(), log.as_deref()))]
pub struct StreamError {
    condition: StreamCondition,
    text: Option<String>,
    log: Option<String>,
    host: Option<String>,
    app: Option<Bytes>,
}

impl StreamError {
    /// An error without text.
    pub fn new(condition: StreamCondition) -> StreamError {
        StreamError { condition, text: None, log: None, host: None, app: None }
    }

    /// s.4.9.3.19: tells the peer to connect to `host`, a domain or address with an optional port.
    pub fn see_other_host(host: impl Into<String>) -> StreamError {
        StreamError { host: Some(host.into()), ..StreamError::new(StreamCondition::SeeOtherHost) }
    }

    /// Says something to the peer.
    pub fn text(mut self, text: impl Into<String>) -> StreamError {
        self.text = Some(text.into());
        self
    }

    /// Says something to our operator.
    pub fn log(mut self, text: impl Into<String>) -> StreamError {
        self.log = Some(text.into());
        self
    }

    /// Adds an application-specific condition: one well-formed element that declares its namespace.
    pub fn app(mut self, xml: impl Into<Bytes>) -> StreamError {
        self.app = Some(xml.into());
        self
    }

    /// Why.
    pub fn condition(&self) -> StreamCondition {
        self.condition
    }

    /// The text for the peer.
    pub fn peer_text(&self) -> Option<&str> {
        self.text.as_deref()
    }

    /// The text for the log.
    pub fn log_text(&self) -> Option<&str> {
        self.log.as_deref()
    }

    /// Where to connect to instead.
    pub fn other_host(&self) -> Option<&str> {
        self.host.as_deref()
    }

    /// Writes `<stream:error/>`; the stream header has to bind the prefix `stream`.
    pub fn write(&self, w: &mut Writer) {
        w.open("stream:error");
        self.write_children(w);
        w.close();
    }

    /// Like `write`, for a stream whose header does not bind the prefix (RFC 7395 s.3.3.3).
    pub fn write_declared(&self, w: &mut Writer) {
        w.open("stream:error").attr("xmlns:stream", ns::STREAMS);
        self.write_children(w);
        w.close();
    }

    fn write_children(&self, w: &mut Writer) {
        w.open(self.condition.as_str()).attr("xmlns", ns::STREAM_ERRORS);
        if let Some(host) = &self.host {
            w.text(host);
        }
        w.close();
        write_text(w, ns::STREAM_ERRORS, self.text.as_deref());
        if let Some(app) = &self.app {
            w.raw(app);
        }
    }

    /// Reads `<stream:error/>`.
    pub fn parse(error: Node<'_>) -> StreamError {
        let mut parsed = StreamError::new(StreamCondition::UndefinedCondition);
        let mut app = None;
        for child in error.children() {
            if child.ns() != ns::STREAM_ERRORS {
                app.get_or_insert_with(|| condition_of(child, error.ns()));
            } else if child.name() == "text" {
                parsed.text.get_or_insert_with(|| child.text().into_owned());
            } else if let Some(condition) = StreamCondition::parse(child.name()) {
                parsed.condition = condition;
                parsed.host = Some(child.text().trim().to_owned()).filter(|host| !host.is_empty());
            }
        }
        parsed.app = app.flatten();
        parsed
    }
}

impl From<StreamCondition> for StreamError {
    fn from(condition: StreamCondition) -> StreamError {
        StreamError::new(condition)
    }
}

impl From<&ScanError> for StreamCondition {
    fn from(error: &ScanError) -> StreamCondition {
        match error {
            // RFC 6120 s.4.9.3.13: covers XML and Namespaces in XML alike.
            ScanError::NotWellFormed(_) | ScanError::BadPrefix | ScanError::BadNamespace(_) => {
                StreamCondition::NotWellFormed
            }
            ScanError::Restricted(_) => StreamCondition::RestrictedXml,
            // s.4.9.3.22: another encoding, or UTF-8 whose rules are violated.
            ScanError::Utf8 | ScanError::Encoding => StreamCondition::UnsupportedEncoding,
            ScanError::StrayText => StreamCondition::BadFormat,
            // s.4.9.3.14: "such as a limit of size".
            ScanError::TooLarge { .. }
            | ScanError::TooDeep { .. }
            | ScanError::TooManyAttributes { .. }
            | ScanError::TooManyNamespaces { .. }
            | ScanError::NameTooLong { .. }
            | ScanError::TooManyNodes { .. } => StreamCondition::PolicyViolation,
        }
    }
}

impl From<&ScanError> for StreamError {
    fn from(error: &ScanError) -> StreamError {
        StreamError::new(error.into()).text(error.to_string())
    }
}

/// An application-specific condition as a peer sent it; too long to be one: none. An error has one of them (RFC 6120
/// s.4.9.4, s.8.3.4): those behind it are not read.
fn condition_of(child: Node<'_>, ns: &str) -> Option<Bytes> {
    child.to_standalone_within(ns, &mut { MOST_APP }).map(Bytes::from)
}

fn write_text(w: &mut Writer, ns: &str, text: Option<&str>) {
    if let Some(text) = text {
        w.open("text").attr("xmlns", ns).attr("xml:lang", "en").text(text).close();
    }
}

fn tail(text: Option<&str>, log: Option<&str>) -> String {
    match (text, log) {
        (None, None) => String::new(),
        (Some(text), None) | (None, Some(text)) => format!(": {text}"),
        (Some(text), Some(log)) => format!(": {text} ({log})"),
    }
}

#[cfg(test)]
mod tests {
    use trunkline_xml::Element;

    use super::*;

    fn written(error: &StanzaError) -> String {
        let mut w = Writer::new();
        error.write(&mut w);
        String::from_utf8(w.finish()).unwrap()
    }

    #[test]
    fn all_of_the_rfc() {
        assert_eq!((Condition::ALL.len(), StreamCondition::ALL.len(), ErrorType::ALL.len()), (22, 25, 5));
        for condition in Condition::ALL {
            assert_eq!(Condition::parse(condition.as_str()), Some(*condition));
        }
        for condition in StreamCondition::ALL {
            assert_eq!(StreamCondition::parse(condition.as_str()), Some(*condition));
        }
    }

    #[test]
    fn stanza_error_as_written_and_read() {
        let error = StanzaError::new(Condition::Gone)
            .uri("xmpp:romeo@afterlife.example")
            .by(Jid::parse("example.net").unwrap())
            .text("He <is> gone.")
            .app(&b"<tomb xmlns='urn:example:verona'/>"[..]);
        assert_eq!(
            written(&error),
            "<error type='cancel' by='example.net'>\
             <gone xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'>xmpp:romeo@afterlife.example</gone>\
             <text xmlns='urn:ietf:params:xml:ns:xmpp-stanzas' xml:lang='en'>He &lt;is&gt; gone.</text>\
             <tomb xmlns='urn:example:verona'/></error>"
        );
        let element = Element::parse(written(&error), ns::CLIENT).unwrap();
        assert_eq!(StanzaError::parse(element.root()), error);
    }

    #[test]
    fn what_a_peer_declares_once_is_not_multiplied() {
        let children = |long: usize, many: usize| {
            let (ns, child) = ("u".repeat(long), "<a:x/>");
            format!("<error xmlns:a='{ns}'>{}</error>", child.repeat(many))
        };
        for (long, many, kept) in [(100, 5000, true), (MOST_APP, 1, false), (100_000, 5000, false)] {
            let element = Element::parse(children(long, many), ns::CLIENT).unwrap();
            let read = [StanzaError::parse(element.root()).app, StreamError::parse(element.root()).app];
            for app in read {
                let one = format!("<a:x xmlns:a='{}'/>", "u".repeat(long));
                assert_eq!(app, kept.then(|| Bytes::from(one)), "{long} {many}");
            }
        }
    }

    #[test]
    fn the_log_text_is_not_sent() {
        let error = StanzaError::new(Condition::InternalServerError).text("Try later.").log("disk 3 is dead");
        assert!(!written(&error).contains("disk"));
        assert_eq!(error.to_string(), "internal-server-error: Try later. (disk 3 is dead)");
    }

    #[test]
    fn odd_errors_are_read_leniently() {
        for (xml, condition, kind) in [
            ("<error/>", Condition::UndefinedCondition, ErrorType::Cancel),
            (
                "<error type='wait'><x xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></error>",
                Condition::UndefinedCondition,
                ErrorType::Wait,
            ),
            (
                "<error type='?'><forbidden xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></error>",
                Condition::Forbidden,
                ErrorType::Auth,
            ),
        ] {
            let element = Element::parse(xml, ns::CLIENT).unwrap();
            let error = StanzaError::parse(element.root());
            assert_eq!((error.condition, error.kind), (condition, kind), "{xml}");
        }
    }

    #[test]
    fn stream_error_as_written_and_read() {
        let error = StreamError::see_other_host("[2001:41D0:1:A49b::1]:9222").text("Moved.");
        let mut w = Writer::new();
        error.write_declared(&mut w);
        let xml = w.finish();
        assert_eq!(
            String::from_utf8_lossy(&xml),
            "<stream:error xmlns:stream='http://etherx.jabber.org/streams'>\
             <see-other-host xmlns='urn:ietf:params:xml:ns:xmpp-streams'>[2001:41D0:1:A49b::1]:9222</see-other-host>\
             <text xmlns='urn:ietf:params:xml:ns:xmpp-streams' xml:lang='en'>Moved.</text></stream:error>"
        );
        let element = Element::parse(xml, ns::CLIENT).unwrap();
        assert_eq!(StreamError::parse(element.root()), error);
    }
}
