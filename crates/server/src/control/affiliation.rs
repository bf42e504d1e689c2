//! XEP-0489 Reporting Account Affiliations: how well this server knows an account.

use trunkline_store::{StoreError, sql};

use crate::exchange::Exchange;
use crate::route::account::Account;

/// What the server says about an account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Affiliation {
    /// s.3: `admin`, `member` (made by the operator) or `registered` (made by its user).
    pub name: &'static str,
    /// When the account was made, to the day (s.8.1): milliseconds since 1970.
    pub since: i64,
}

const DAY: i64 = 86_400_000;

impl Exchange {
    /// How well this server knows `account`.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn affiliation(&self, account: &Account) -> Result<Affiliation, StoreError> {
        let rows = self
            .db
            .read(sql("SELECT member, created_at FROM accounts WHERE id = ?1").bind(account.id))
            .await?;
        let (member, since) = rows.first().map_or((false, 0), |row| (row.bool(0), row.int(1)));
        let name = match member {
            _ if self.is_admin(&account.jid) => "admin",
            true => "member",
            false => "registered",
        };
        Ok(Affiliation { name, since: since - since.rem_euclid(DAY) })
    }
}
