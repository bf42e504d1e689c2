//! The exchange: an XMPP provider server and federation edge.

pub mod admin;
pub mod cli;
pub mod config;
pub mod demo;
pub mod logging;
pub mod metrics;
pub mod net;
pub mod notify;
pub mod schema;
pub mod web;
