//! Errors of XEP-0060: a condition of XMPP with a more specific one beside it.

use trunkline_xml::Writer;
use trunkline_xmpp::error::{Condition, StanzaError};
use trunkline_xmpp::ns;

/// A condition with the specific one of XEP-0060.
pub fn specific(condition: Condition, specific: &str) -> StanzaError {
    let mut w = Writer::new();
    w.open(specific).attr("xmlns", ns::PUBSUB_ERRORS).close();
    StanzaError::new(condition).app(w.finish())
}

/// What is not offered, by the name of its feature.
pub fn unsupported(feature: &str) -> StanzaError {
    let mut w = Writer::new();
    w.open("unsupported").attr("xmlns", ns::PUBSUB_ERRORS).attr("feature", feature).close();
    StanzaError::new(Condition::FeatureNotImplemented).app(w.finish())
}

/// The request names no node.
pub fn node_required() -> StanzaError {
    specific(Condition::BadRequest, "nodeid-required")
}

/// There is no such node, or none that may be known of.
pub fn no_node() -> StanzaError {
    StanzaError::new(Condition::ItemNotFound)
}

/// The request makes no sense.
pub fn bad(text: &str) -> StanzaError {
    StanzaError::new(Condition::BadRequest).text(text)
}
