//! The vocabulary of XMPP: addresses, namespaces, errors, stanzas, authentication, forms.
//!
//! Nothing here does I/O or knows about a runtime. What needs to ask somebody (a credential store, a clock) hands
//! out a question and takes the answer.

pub mod caps;
pub mod classify;
pub mod disco;
pub mod error;
pub mod forms;
pub mod jid;
pub mod mam;
pub mod ns;
mod prep;
pub mod rsm;
pub mod sasl;
pub mod stanza;
pub mod time;

pub use jid::{Jid, JidError};
