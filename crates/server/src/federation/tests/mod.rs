//! Two and more providers in one process, in memory, in virtual time; and rogues.

mod bad;
mod budgets;
mod components;
mod consent;
mod control;
mod eyes;
mod invitations;
mod limits;
mod lists;
mod proofs;
mod push;
mod queues;
mod signals;
mod stage;

pub(crate) use stage::Wires;
