//! XEP-0388 s.2.6.3: what is still to be done between a proof and `<success/>`: XEP-0480 SASL Upgrade Tasks 0.2.0.

use trunkline_store::{Batch, Lane, sql};
use trunkline_xml::Writer;
use trunkline_xmpp::error::StreamCondition;
use trunkline_xmpp::{ns, sasl};

use super::inline::{Request, task};
use super::sasl::{Proved, unreadable};
use super::{Negotiation, Stop};

impl Negotiation {
    /// Has the client make the keys that it offers to make and that the account lacks. When it returns, what the
    /// mechanism had to say at its end has been said, if there was a task.
    pub(super) async fn run_tasks(
        &mut self,
        proved: &mut Proved,
        request: &Request,
    ) -> Result<Result<(), sasl::Failure>, Stop> {
        if request.upgrades.is_empty() {
            return Ok(Ok(()));
        }
        let rows = self
            .desk
            .exchange
            .db
            .read(sql("SELECT mechanism FROM credentials WHERE account_id = ?1").bind(proved.account.id))
            .await;
        let lacking: Vec<sasl::Hash> = match rows {
            Ok(rows) => {
                let has = |hash: &sasl::Hash| rows.iter().any(|row| row.text(0) == hash.mechanism());
                request.upgrades.iter().copied().filter(|hash| !has(hash)).collect()
            }
            Err(error) => return Ok(Err(unreadable(&error))),
        };
        for hash in lacking {
            if let Err(failure) = self.upgrade(proved, hash).await? {
                return Ok(Err(failure));
            }
        }
        Ok(Ok(()))
    }

    /// XEP-0480 s.4: one set of keys.
    async fn upgrade(
        &mut self,
        proved: &mut Proved,
        hash: sasl::Hash,
    ) -> Result<Result<(), sasl::Failure>, Stop> {
        let name = task(hash);
        let mut w = Writer::new();
        w.open("continue").attr("xmlns", ns::SASL2);
        if let Some(data) = proved.data.take() {
            w.text_element("additional-data", &data);
        }
        w.open("tasks").text_element("task", &name).close();
        w.close();
        self.send(&w.finish()).await?;
        let element = match self.task_element("next").await? {
            Ok(element) => element,
            Err(failure) => return Ok(Err(failure)),
        };
        if element.root().attr("task").as_deref() != Some(&name) {
            return Ok(Err(sasl::Failure::MalformedRequest));
        }
        // As many iterations as the account's other keys have: see design/002 about what would tell who exists.
        let Ok(salt) = sasl::Salt::new(proved.iterations) else {
            return Ok(Err(sasl::Failure::TemporaryAuthFailure));
        };
        let mut w = Writer::new();
        w.open("task-data").attr("xmlns", ns::SASL2);
        w.open("salt")
            .attr("xmlns", ns::SCRAM_UPGRADE)
            .attr("iterations", &salt.iterations().to_string())
            .text(&salt.text())
            .close();
        w.close();
        self.send(&w.finish()).await?;
        let element = match self.task_element("task-data").await? {
            Ok(element) => element,
            Err(failure) => return Ok(Err(failure)),
        };
        let salted =
            element.root().child(ns::SCRAM_UPGRADE, "hash").map(|hash| hash.text().trim().to_owned());
        let keys = salted
            .ok_or(sasl::Failure::MalformedRequest)
            .and_then(|salted| sasl::ScramKeys::upgraded(hash, &salt, &salted));
        let keys = match keys {
            Ok(keys) => keys,
            Err(failure) => return Ok(Err(failure)),
        };
        let mut batch = Batch::new(Lane::Inside);
        // A password that was set meanwhile has brought keys of its own for every hash: those stay.
        batch.push(
            sql("INSERT INTO credentials (account_id, mechanism, salt, iterations, stored_key, server_key) \
                 SELECT ?1, ?2, ?3, ?4, ?5, ?6 WHERE EXISTS (SELECT 1 FROM accounts WHERE id = ?1) \
                 ON CONFLICT (account_id, mechanism) DO NOTHING")
            .bind(proved.account.id)
            .bind(hash.mechanism())
            .bind(keys.salt)
            .bind(i64::from(keys.iterations))
            .bind(keys.stored_key)
            .bind(keys.server_key),
        );
        match self.desk.exchange.db.run(batch).await {
            Ok(_) => Ok(Ok(())),
            Err(error) => Ok(Err(unreadable(&error))),
        }
    }

    /// The next element of a task. XEP-0388 s.2.3: anything else ends the stream.
    async fn task_element(
        &mut self,
        name: &str,
    ) -> Result<Result<trunkline_xml::Element, sasl::Failure>, Stop> {
        let element = self.element().await?;
        let root = element.root();
        if root.is(ns::SASL2, "abort") {
            return Ok(Err(sasl::Failure::Aborted));
        }
        if !root.is(ns::SASL2, name) {
            return Err(self.desk.refusal(StreamCondition::NotAuthorized, "no step of the task under way"));
        }
        Ok(Ok(element))
    }
}
