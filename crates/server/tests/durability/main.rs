//! Promise 1 at the level of XMPP: what the server acknowledges is on disk, and what is on disk arrives.

// Clippy's exception for tests does not reach helper functions.
#![allow(clippy::unwrap_used)]

mod acknowledgements;
mod full_disk;
mod power;
mod restart;
mod world;
