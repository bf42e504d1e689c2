//! Statements and batches: writes as data, complete before they are handed over.

use std::sync::{
    Arc,
    atomic::{AtomicU8, Ordering::SeqCst},
};

use crate::value::Value;

/// Who a batch works for. The lanes have queues of their own, so neither can take the other's room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// Accounts, rooms, operators: goes first.
    Inside,
    /// Federation: holds the writer at most 5 ms at a time.
    Outside,
}

/// One SQL statement with its parameters. Build it with [`sql`].
#[derive(Clone, Debug)]
pub struct Statement {
    pub(crate) sql: &'static str,
    pub(crate) params: Vec<Value>,
    pub(crate) expect: Expect,
    pub(crate) ticket: Option<Arc<Ticket>>,
}

/// Whether statements that were handed over are still wanted. Until the writer comes to the first of them they can be
/// withdrawn: a row that would be deleted again at once need never be written.
#[derive(Debug, Default)]
pub struct Ticket(AtomicU8);

impl Ticket {
    const TAKEN: u8 = 1;
    const WITHDRAWN: u8 = 2;

    /// The statements are not wanted any more. False: it is too late, they were run or are being run.
    pub fn withdraw(&self) -> bool {
        !matches!(self.0.compare_exchange(0, Self::WITHDRAWN, SeqCst, SeqCst), Err(Self::TAKEN))
    }

    /// From now on it is too late to withdraw. False: that has happened.
    fn take(&self) -> bool {
        !matches!(self.0.compare_exchange(0, Self::TAKEN, SeqCst, SeqCst), Err(Self::WITHDRAWN))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expect {
    Any,
    Change,
}

/// A statement with this text. Parameters are `?1`, `?2`, ... and are bound in that order.
///
/// The text is `&'static str` on purpose: values cannot be pasted into it, and the writer keeps it prepared.
pub fn sql(text: &'static str) -> Statement {
    Statement { sql: text, params: Vec::new(), expect: Expect::Any, ticket: None }
}

impl Statement {
    /// Binds the next parameter.
    pub fn bind(mut self, value: impl Into<Value>) -> Statement {
        self.params.push(value.into());
        self
    }

    /// The batch fails with [`StoreError::Conflict`](crate::StoreError::Conflict), as a whole, unless this statement
    /// changes a row (or, for a query, finds one). This is how a read-modify-write notices that somebody was faster.
    pub fn must_change(mut self) -> Statement {
        self.expect = Expect::Change;
        self
    }

    /// The statement is skipped if `ticket` is withdrawn before the writer comes to it.
    pub fn under(mut self, ticket: &Arc<Ticket>) -> Statement {
        self.ticket = Some(Arc::clone(ticket));
        self
    }

    /// It has not been withdrawn.
    pub(crate) fn is_wanted(&self) -> bool {
        self.ticket.as_ref().is_none_or(|ticket| ticket.0.load(SeqCst) != Ticket::WITHDRAWN)
    }

    /// It is to be run, and can't be withdrawn any more.
    pub(crate) fn take(&self) -> bool {
        self.ticket.as_ref().is_none_or(|ticket| ticket.take())
    }

    pub(crate) fn weight(&self) -> usize {
        64 + self.params.iter().map(Value::weight).sum::<usize>()
    }
}

/// Statements that happen together or not at all.
#[derive(Clone, Debug)]
pub struct Batch {
    pub(crate) lane: Lane,
    pub(crate) statements: Vec<Statement>,
}

impl Batch {
    /// An empty batch. Running it empty is allowed and touches nothing.
    pub fn new(lane: Lane) -> Batch {
        Batch { lane, statements: Vec::new() }
    }

    /// Adds a statement; returns its index in the rows that [`Db::run`](crate::Db::run) gives.
    pub fn push(&mut self, statement: Statement) -> usize {
        self.statements.push(statement);
        self.statements.len() - 1
    }

    /// [`push`](Batch::push), for chains.
    pub fn with(mut self, statement: Statement) -> Batch {
        self.statements.push(statement);
        self
    }

    /// Adds all of another batch's statements behind this one's. The lane stays.
    pub fn append(&mut self, other: Batch) {
        self.statements.extend(other.statements);
    }

    /// The lane it was made for.
    pub fn lane(&self) -> Lane {
        self.lane
    }

    /// How many statements it has.
    pub fn len(&self) -> usize {
        self.statements.len()
    }

    /// Whether it has no statements.
    pub fn is_empty(&self) -> bool {
        self.statements.is_empty()
    }
}
