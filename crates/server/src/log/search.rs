//! The full-text index of archives (XEP-0431): bodies in plain text, account by account.
//!
//! Nothing is indexed when a message comes: who searches has the own archive indexed first, as far as that has not
//! happened. So those who never search cost nothing. A row of the index goes with its message, by a trigger, and is
//! overwritten when it goes.

use tokio::sync::{Semaphore, SemaphorePermit};
use trunkline_store::{Batch, Db, Lane, StoreError, sql};
use trunkline_xmpp::stanza::Stanza;

use crate::ids::LogId;

/// Words of one search.
const MOST_WORDS: usize = 16;
/// Messages and bytes that are indexed in one transaction, which holds up the writer.
const BATCH: (i64, i64) = (64, 64 << 10);
/// Bytes of one body that are indexed.
const MOST_BYTES: usize = 16 << 10;

/// Searches go one after another. What each costs depends on what people have written and look for: so one at a time holds a
/// connection of the store, and the reads of all others have the rest.
#[derive(Debug)]
pub struct Searches(Semaphore);

impl Default for Searches {
    fn default() -> Searches {
        Searches(Semaphore::new(1))
    }
}

impl Searches {
    /// Waits for one's turn, which ends when what this returns is dropped. Each connection waits for one at most, as it has
    /// one page at a time in the making.
    pub async fn turn(&self) -> SemaphorePermit<'_> {
        self.0.acquire().await.expect("invariant: the semaphore is never closed")
    }
}

/// Why nothing is looked for. The user's fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// More than [`MOST_WORDS`].
    #[error("A search may have {MOST_WORDS} words; this one has {0}.")]
    Words(usize),
}

/// What a user types, as a query to the index: every word has to be there, in any order. `None`: there is no word.
///
/// # Errors
/// Too many words.
pub fn query(text: &str) -> Result<Option<String>, QueryError> {
    let words = text.split_whitespace().filter(|word| word.chars().any(char::is_alphanumeric));
    let count = words.clone().count();
    if count > MOST_WORDS {
        return Err(QueryError::Words(count));
    }
    // Quoted: nothing in it is an operator.
    let quoted: Vec<String> = words.map(|word| format!("\"{}\"", word.replace('"', ""))).collect();
    Ok((!quoted.is_empty()).then(|| quoted.join(" AND ")))
}

/// The query, limited to one account's messages: the index is one for all, and a word of its own in each message says
/// whose it is.
pub(super) fn within(account: i64, query: &str) -> String {
    format!("owner : {} AND body : ({query})", owner(account))
}

fn owner(account: i64) -> String {
    format!("a{account}")
}

/// Brings the index of one account up to `end`; rows below are on the disk.
///
/// # Errors
/// Those of the store.
pub async fn keep_in_step(db: &Db, account: i64, end: LogId) -> Result<(), StoreError> {
    loop {
        let until = db
            .read(sql("SELECT indexed_until FROM archive_searched WHERE account = ?1").bind(account))
            .await?;
        let until = until.first().map_or(0, |row| row.int(0));
        let rows = db
            .read(
                super::page_of!("archive").bind(account).bind(until).bind(end.0).bind(BATCH.0).bind(BATCH.1),
            )
            .await?;
        let Some(last) = rows.iter().last() else { return Ok(()) };
        let mut batch = Batch::new(Lane::Inside);
        batch.push(
            sql("INSERT INTO archive_searched (account, indexed_until) SELECT id, ?2 FROM accounts WHERE id = ?1 \
                 ON CONFLICT (account) DO UPDATE SET indexed_until = excluded.indexed_until \
                 WHERE indexed_until = ?3")
            .bind(account)
            .bind(last.int(0))
            .bind(until)
            .must_change(),
        );
        for row in rows.iter().filter(|row| row.int(1) & super::HIDDEN == 0) {
            let Some(body) = plain_body(row.blob(2)) else { continue };
            // The message may have been deleted or retracted since it was read.
            batch.push(
                sql("INSERT INTO archive_words (rowid, owner, body) SELECT ?1, ?2, ?3 \
                     WHERE EXISTS (SELECT 1 FROM archive WHERE id = ?1 AND stanza = ?4)")
                .bind(row.int(0))
                .bind(owner(account))
                .bind(body)
                .bind(row.blob(2).to_vec()),
            );
        }
        match db.run(batch).await {
            // Another search of this account was faster, or the account is gone.
            Ok(_) | Err(StoreError::Conflict) => {}
            Err(error) => return Err(error),
        }
    }
}

/// What people wrote, unless it only stands in for what is encrypted.
fn plain_body(stanza: &[u8]) -> Option<String> {
    let stanza = Stanza::parse(stanza).ok()?;
    let body = trunkline_xmpp::classify::plain_body(&stanza)?;
    let mut end = body.len().min(MOST_BYTES);
    while !body.is_char_boundary(end) {
        end -= 1;
    }
    Some(body[..end].to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::MIGRATIONS;
    use trunkline_store::Options;

    #[test]
    fn what_people_type_is_no_program() {
        assert_eq!(query("  "), Ok(None));
        assert_eq!(query("\"\" * -"), Ok(None));
        assert_eq!(query("rose OR (name*"), Ok(Some("\"rose\" AND \"OR\" AND \"(name*\"".to_owned())));
        assert_eq!(query("a\"b"), Ok(Some("\"ab\"".to_owned())));
        assert_eq!(query(&"w - ".repeat(16)).unwrap().unwrap().matches("AND").count(), 15);
        assert_eq!(query(&"w ".repeat(17)), Err(QueryError::Words(17)));
    }

    #[test]
    fn what_is_encrypted_is_not_indexed() {
        let body =
            |children: &str| plain_body(format!("<message><body>text</body>{children}</message>").as_bytes());
        assert_eq!(body("").as_deref(), Some("text"));
        for encrypted in [
            "<encrypted xmlns='eu.siacs.conversations.axolotl'/>",
            "<encrypted xmlns='urn:xmpp:omemo:2'/>",
            "<openpgp xmlns='urn:xmpp:openpgp:0'/>",
            "<x xmlns='jabber:x:encrypted'/>",
            "<encryption xmlns='urn:xmpp:eme:0' namespace='urn:x'/>",
        ] {
            assert_eq!(body(encrypted), None, "{encrypted}");
        }
        let long = format!("<message><body>{}</body></message>", "ä".repeat(20_000));
        assert_eq!(plain_body(long.as_bytes()).unwrap().len(), MOST_BYTES);
    }

    async fn matches(db: &Db, account: i64, text: &str) -> Vec<i64> {
        let words = within(account, &query(text).unwrap().unwrap());
        let rows = db
            .read(
                sql("SELECT rowid FROM archive_words WHERE archive_words MATCH ?1 ORDER BY rowid")
                    .bind(words),
            )
            .await
            .unwrap();
        rows.iter().map(|row| row.int(0)).collect()
    }

    #[tokio::test]
    async fn the_index_keeps_in_step_and_forgets_with_the_archive() {
        let db = Db::open(Options::memory(MIGRATIONS)).unwrap();
        let mut batch = Batch::new(Lane::Inside).with(sql("INSERT INTO hosts (id, name) VALUES (1, 'h')"));
        for account in [1, 2] {
            batch.push(
                sql("INSERT INTO accounts (id, host_id, local, created_at) VALUES (?1, 1, 'u' || ?1, 0)")
                    .bind(account),
            );
        }
        let mut add = |id: i64, account: i64, flags: i64, body: &str| {
            let stanza = format!("<message><body>{body}</body></message>");
            batch.push(
                sql("INSERT INTO archive (id, account, peer, flags, size, stanza) VALUES (?1, ?2, 'p', ?3, ?4, ?5)")
                    .bind(id)
                    .bind(account)
                    .bind(flags)
                    .bind(i64::try_from(stanza.len()).unwrap())
                    .bind(stanza.into_bytes()),
            );
        };
        for id in 1..=200 {
            add(id, 1, 0, if id % 50 == 0 { "A Rose by any name" } else { "nothing" });
        }
        add(201, 2, 0, "another rose");
        add(202, 1, super::super::HIDDEN, "hidden rose");
        add(203, 1, 0, "late rose");
        db.run(batch).await.unwrap();
        keep_in_step(&db, 1, LogId(203)).await.unwrap();
        assert_eq!(matches(&db, 1, "rose").await, [50, 100, 150, 200]);
        assert_eq!(matches(&db, 1, "name ROSE").await, [50, 100, 150, 200]);
        assert!(matches(&db, 1, "rose nothing").await.is_empty());
        assert!(matches(&db, 1, "a1").await.is_empty(), "the mark of the owner is no word");
        keep_in_step(&db, 1, LogId(i64::MAX)).await.unwrap();
        assert_eq!(matches(&db, 1, "rose").await.last(), Some(&203));
        keep_in_step(&db, 2, LogId(i64::MAX)).await.unwrap();
        assert_eq!(matches(&db, 2, "rose").await, [201]);

        let gone = Batch::new(Lane::Inside).with(sql("DELETE FROM archive WHERE id = 50"));
        db.run(gone).await.unwrap();
        assert_eq!(matches(&db, 1, "rose").await, [100, 150, 200, 203]);
        let gone = Batch::new(Lane::Inside).with(sql("DELETE FROM accounts WHERE id = 1"));
        db.run(gone).await.unwrap();
        let left = db.read(sql("SELECT rowid FROM archive_words")).await.unwrap();
        assert_eq!(left.iter().map(|row| row.int(0)).collect::<Vec<_>>(), [201]);
        // Overwritten too: no page of the index has the word any more.
        let pages = db.read(sql("SELECT block FROM archive_words_data")).await.unwrap();
        assert!(pages.iter().all(|row| !row.blob(0).windows(4).any(|part| part == b"late")));
    }
}
