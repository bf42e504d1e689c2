//! XML for XMPP: bytes in, elements out, and back.
//!
//! - [`Scanner`] turns the bytes of one stream into [`Event`]s; it may be fed at any granularity.
//! - [`Element`] is one complete element: its bytes, exactly as they came, and a tape of offsets into them.
//! - [`Node`] is a cursor over an element. It borrows, it never builds a tree.
//! - [`Writer`] writes well-formed XML.
//!
//! What is accepted is the strict subset of RFC 6120 s.11.1: XML 1.0 and Namespaces in XML 1.0, in UTF-8,
//! without document type, processing instructions, comments and entities other than the five predefined ones.
//! Everything a peer can make grow has a limit in [`Limits`]. This crate knows what a stream is (a header,
//! children, a closing tag) and nothing of what is said on it.
//!
//! What is deliberately absent: a tree, mutable elements, I/O, and any trust in the input.

mod chars;
mod element;
mod error;
mod names;
mod parse;
mod scanner;
mod scope;
mod writer;

pub use element::{Attr, Element, Header, Node, NsDecl};
pub use error::{Limits, ScanError};
pub use scanner::{Event, Scanner};
pub use writer::{Writer, escape_attr, escape_text};

/// The namespace of the prefix `xml`, as in `xml:lang`.
pub const XML_NS: &str = "http://www.w3.org/XML/1998/namespace";

/// The namespace of declarations themselves. Nothing may be bound to it.
pub(crate) const XMLNS_NS: &str = "http://www.w3.org/2000/xmlns/";
