//! The exchange: an XMPP provider server and federation edge.

pub mod config;
pub mod logging;
pub mod metrics;
pub mod web;
