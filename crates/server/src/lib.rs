//! The exchange: an XMPP provider server and federation edge.

pub mod admin;
pub mod cli;
pub mod commands;
pub mod config;
pub mod control;
pub mod demo;
pub mod devices;
pub mod exchange;
pub mod federation;
pub mod ids;
pub mod invites;
pub mod log;
pub mod logging;
pub mod metrics;
pub mod modules;
pub mod net;
pub mod notify;
pub mod operations;
pub mod protocols;
pub mod retention;
pub mod route;
pub mod schema;
pub mod serve;
pub mod session;
pub mod traces;
pub mod web;
