//! What an idle session costs is a promise (design/008): what lives as long as a session may not grow unnoticed.

use std::mem::size_of;

use super::client::Connection;
use super::login::{self, Arrival};
use super::*;
use crate::net::Transport;
use crate::route::account::{AccountState, Resource};
use trunkline_xmpp::stanza::Stanza;

/// The size of the future that a function returns.
fn future<A, B, F>(_: fn(A, B) -> F) -> usize {
    size_of::<F>()
}

#[test]
fn what_lives_as_long_as_a_session_is_small() {
    let sizes = [
        ("a client's task", future(login::serve as fn(_, Arrival) -> _), 512),
        ("its connection", size_of::<Connection>(), 448),
        ("Transport", size_of::<Transport>(), 64),
        ("Scanner", size_of::<trunkline_xml::Scanner>(), 144),
        ("Session", size_of::<Session>(), 480),
        ("Outbox", size_of::<Outbox>(), 256),
        ("Life", size_of::<Life>(), 80),
        ("Ledger", size_of::<Ledger>(), 96),
        ("Account", size_of::<Account>(), 544),
        ("AccountState", size_of::<AccountState>(), 392),
        ("Resource", size_of::<Resource>(), 256),
        ("Stanza", size_of::<Stanza>(), 208),
        ("Queued", size_of::<Queued>(), 232),
    ];
    let grown: Vec<_> = sizes.iter().filter(|(_, size, most)| size > most).collect();
    assert!(grown.is_empty(), "{grown:#?}");
}
