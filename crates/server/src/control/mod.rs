//! Control: what outsiders may do, who decided it, and what came of it.
//!
//! Decisions are made here and carried out elsewhere: the streams of `federation/` ask before a stanza crosses into the
//! inside or leaves for another provider, the accounts of `route/` ask again with what only they know: how the two
//! people stand to each other. Nothing here waits, nothing here takes an account's lock.
//!
//! | part | what |
//! |---|---|
//! | `rule` | the language: one rule, its conditions and its action |
//! | `policy` | the rules in force, presets, shadow; the judgement |
//! | `breaker` | the graded cut-off, for one domain and for all |
//! | `audit` | who changed what, and why; append-only |
//! | `requests` | first contacts that wait for consent |
//! | `reports`, `lists`, `reputation` | what users and others say about outsiders |
//! | `traffic` | counters for each peer domain, and their history |

pub mod audit;
pub mod breaker;
pub mod lists;
pub mod policy;
pub mod reports;
pub mod requests;
pub mod rule;
pub mod traffic;

use audit::Audit;
use breaker::Breaker;
use lists::Lists;
use policy::Policy;
use reports::Reports;
use requests::Requests;
use traffic::Traffic;

/// What all parts of the server ask about outsiders. One value for each server, made at start.
#[derive(Debug, Default)]
pub struct Control {
    /// The rules.
    pub policy: Policy,
    /// The graded cut-off.
    pub breaker: Breaker,
    /// Who changed what.
    pub audit: Audit,
    /// First contacts that wait for consent.
    pub requests: Requests,
    /// What users reported.
    pub reports: Reports,
    /// Block lists, others' and our own.
    pub lists: Lists,
    /// Counters for each peer domain.
    pub traffic: Traffic,
}

impl Control {
    /// As it is before anything was seen or read.
    pub fn new(clock: &crate::ids::Clock) -> Control {
        Control { traffic: Traffic::new(clock.clone()), ..Control::default() }
    }
}
