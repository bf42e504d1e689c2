//! The operations of administration on a running server.

use std::sync::Arc;

use crate::admin::accounts::{self, NewAccount};
use crate::admin::{Admin, OpError, Operation, Outcome};
use crate::exchange::Exchange;

/// Runs operations on a running server.
#[derive(Clone, Debug)]
pub struct Operator(pub Arc<Exchange>);

impl Admin for Operator {
    async fn run(&self, operation: Operation) -> Result<Outcome, OpError> {
        let exchange = &self.0;
        let config = exchange.config.load_full();
        let said = |text: String| Ok(Outcome::Done { text });
        match operation {
            Operation::UserAdd { address, password } => {
                let jid = accounts::new_address(&address, &config)?;
                let new = NewAccount {
                    jid: &jid,
                    password: &password,
                    iterations: config.accounts.password_iterations,
                    now: exchange.clock().now(),
                };
                accounts::add(&exchange.db, new).await?;
                said(format!("{jid} was added."))
            }
            Operation::UserPasswd { address, password } => {
                let jid = accounts::address(&address, &config)?;
                accounts::set_password(&exchange.db, &jid, &password, config.accounts.password_iterations)
                    .await?;
                said(format!("{jid} has a new password."))
            }
            Operation::UserList { domain, after } => {
                let after = after.map(|after| accounts::address(&after, &config)).transpose()?;
                let (users, more) = accounts::list(&exchange.db, domain.as_deref(), after.as_ref()).await?;
                Ok(Outcome::Users { users, more })
            }
            _ => Err(OpError::NotPossible("this build can't do that yet".into())),
        }
    }
}
