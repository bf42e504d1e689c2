//! The exchange: an XMPP provider server and federation edge.

pub mod config;
