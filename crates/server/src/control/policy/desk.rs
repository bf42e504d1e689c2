//! Changes at run time: each is one batch with its audit entry, and in force when that is on disk.

use std::collections::HashMap;
use std::sync::Arc;

use trunkline_store::{Batch, Lane, Rows, Statement, sql};

use super::operations::Format;
use super::preset::Preset;
use super::{MOST_RULES, SetBlock, Standing, arm};
use crate::admin::OpError;
use crate::admin::actor::Actor;
use crate::control::blocks::{self, Block, MOST_BLOCKS};
use crate::control::rule::{self, Rule};
use crate::exchange::Exchange;

/// Domains of an import that its audit entry names.
const NAMED: usize = 200;

/// One change by one actor, with what was in force before.
pub(super) struct Desk<'a> {
    pub(super) exchange: &'a Arc<Exchange>,
    pub(super) actor: &'a Actor,
    pub(super) old: Arc<Standing>,
}

impl Desk<'_> {
    fn now(&self) -> i64 {
        self.exchange.control.now()
    }

    /// In the store with its audit entry, then in force. Returns the id that the first statement gave.
    async fn change(&self, statements: Vec<Statement>, entry: Statement) -> Result<i64, OpError> {
        let mut batch = Batch::new(Lane::Inside);
        for statement in statements {
            batch.push(statement);
        }
        let batch = batch.with(entry);
        let results = self.exchange.db.run(batch).await.map_err(|error| OpError::Store(error.to_string()))?;
        Ok(results.first().map_or(0, Rows::last_id))
    }

    fn entry(&self, what: &str, why: &str, change: (Option<String>, Option<String>)) -> Statement {
        self.exchange.control.audit.entry(self.actor, what, why, change)
    }

    /// What the configuration says may have changed meanwhile: only what is ours is replaced.
    fn put(&self, change: impl FnOnce(Standing) -> Standing) {
        let policy = &self.exchange.control.policy;
        let standing = Standing::clone(&policy.standing.load());
        policy.standing.store(Arc::new(change(standing)));
    }

    pub(super) async fn set_preset(
        &self,
        preset: Preset,
        shadow: bool,
        why: &str,
    ) -> Result<String, OpError> {
        checked_why(why)?;
        let (now, name) = (self.now(), self.actor.name.clone());
        let statement = sql("INSERT INTO federation_preset (one, preset, shadow, set_by, set_at) \
             VALUES (1, ?1, ?2, ?3, ?4) ON CONFLICT (one) DO UPDATE SET preset = excluded.preset, \
             shadow = excluded.shadow, set_by = excluded.set_by, set_at = excluded.set_at")
        .bind(preset.name())
        .bind(shadow)
        .bind(&name)
        .bind(now);
        let json = |preset: Preset, shadow: bool| {
            Some(format!("{{\"preset\":\"{}\",\"shadow\":{shadow}}}", preset.name()))
        };
        let change = (json(self.old.preset, self.old.preset_shadow), json(preset, shadow));
        self.change(vec![statement], self.entry("policy set-preset", why, change)).await?;
        self.put(|standing| Standing {
            preset_set: true,
            ..standing.with_preset(preset, shadow, (name, now))
        });
        Ok(match shadow {
            true => format!("The preset is \"{}\", in shadow.", preset.name()),
            false => format!("The preset is \"{}\".", preset.name()),
        })
    }

    /// A rule in canonical form that is not over already.
    fn checked(&self, rule: Rule) -> Result<Rule, OpError> {
        let rule = rule.checked().map_err(|error| OpError::NotPossible(error.to_string()))?;
        if rule.has_ended(self.now()) {
            return Err(OpError::NotPossible("until: that time is over".into()));
        }
        // It would never match, and nobody would notice.
        if let Some(list) =
            rule.when.listed_in.as_deref().filter(|list| !self.exchange.control.lists.exists(list))
        {
            return Err(OpError::NotPossible(format!(
                "when.listed_in: no list \"{}\" is followed: subscribe to it first, or use \"own\"",
                list.escape_debug()
            )));
        }
        Ok(rule)
    }

    fn place_of(&self, id: i64) -> Result<usize, OpError> {
        let at = self.old.own.iter().position(|armed| armed.id == Some(id));
        at.ok_or_else(|| OpError::NotFound(format!("rule {id}")))
    }

    pub(super) async fn add(&self, rule: Rule, position: Option<u32>) -> Result<String, OpError> {
        let rule = self.checked(rule)?;
        if self.old.own.len() >= MOST_RULES {
            return Err(OpError::NotPossible(format!("there are {MOST_RULES} rules already")));
        }
        let last = self.old.own.len();
        let at = position.and_then(|at| usize::try_from(at).ok()).map_or(last, |at| at.min(last));
        let (now, name) = (self.now(), self.actor.name.clone());
        let json = serde_json::to_string(&rule).map_err(|error| OpError::BadRequest(error.to_string()))?;
        let place = i64::try_from(at).unwrap_or(i64::MAX);
        let insert =
            sql("INSERT INTO federation_rules (position, rule, set_by, set_at) VALUES (?1, ?2, ?3, ?4)")
                .bind(place)
                .bind(&json)
                .bind(&name)
                .bind(now);
        // The new one has the highest id of those at its place.
        let shift = sql("UPDATE federation_rules SET position = position + 1 WHERE position >= ?1 \
             AND id < (SELECT max(id) FROM federation_rules)")
        .bind(place);
        let entry = self.entry("policy add", &rule.reason, (None, Some(json)));
        let id = self.change(vec![insert, shift], entry).await?;
        self.put(|mut standing| {
            standing.own.insert(at, arm(id, rule, (name, now)));
            standing
        });
        Ok(format!("Rule {id} is in force."))
    }

    pub(super) async fn replace(&self, id: i64, rule: Rule) -> Result<String, OpError> {
        let rule = self.checked(rule)?;
        let at = self.place_of(id)?;
        let (now, name) = (self.now(), self.actor.name.clone());
        let json = serde_json::to_string(&rule).map_err(|error| OpError::BadRequest(error.to_string()))?;
        let update = sql("UPDATE federation_rules SET rule = ?1, set_by = ?2, set_at = ?3 WHERE id = ?4")
            .bind(&json)
            .bind(&name)
            .bind(now)
            .bind(id)
            .must_change();
        let before = serde_json::to_string(&self.old.own[at].written).ok();
        let entry = self.entry(&format!("policy replace {id}"), &rule.reason, (before, Some(json)));
        self.change(vec![update], entry).await?;
        self.put(|mut standing| {
            if let Some(place) = standing.own.get_mut(at) {
                *place = arm(id, rule, (name, now));
            }
            standing
        });
        Ok(format!("Rule {id} was replaced."))
    }

    pub(super) async fn place(&self, id: i64, position: u32, why: &str) -> Result<String, OpError> {
        checked_why(why)?;
        let from = self.place_of(id)?;
        let to = usize::try_from(position).unwrap_or(usize::MAX).min(self.old.own.len() - 1);
        let mut own = self.old.own.clone();
        let armed = own.remove(from);
        own.insert(to, armed);
        let order: Vec<i64> = own.iter().filter_map(|armed| armed.id).collect();
        let order = serde_json::to_string(&order).map_err(|error| OpError::BadRequest(error.to_string()))?;
        let update = sql("UPDATE federation_rules SET position = \
             (SELECT key FROM json_each(?1) WHERE value = federation_rules.id)")
        .bind(order);
        let entry =
            self.entry(&format!("policy move {id}"), why, (Some(from.to_string()), Some(to.to_string())));
        self.change(vec![update], entry).await?;
        self.put(|standing| Standing { own, ..standing });
        Ok(format!("Rule {id} is at place {to} now."))
    }

    pub(super) async fn remove(&self, id: i64, why: &str) -> Result<String, OpError> {
        checked_why(why)?;
        let at = self.place_of(id)?;
        let delete = sql("DELETE FROM federation_rules WHERE id = ?1").bind(id).must_change();
        let shift = sql("UPDATE federation_rules SET position = position - 1 WHERE position > ?1")
            .bind(i64::try_from(at).unwrap_or(i64::MAX));
        let before = serde_json::to_string(&self.old.own[at].written).ok();
        self.change(vec![delete, shift], self.entry(&format!("policy remove {id}"), why, (before, None)))
            .await?;
        self.put(|mut standing| {
            standing.own.retain(|armed| armed.id != Some(id));
            standing
        });
        Ok(format!("Rule {id} was removed."))
    }

    pub(super) async fn block(&self, block: Block) -> Result<String, OpError> {
        let block = block.checked().map_err(OpError::NotPossible)?;
        if self.exchange.config.load().is_our_domain(&block.domain) {
            return Err(OpError::NotPossible(format!("{} is a domain of this server", block.domain)));
        }
        if block.until.is_some_and(|until| until <= self.now()) {
            return Err(OpError::NotPossible("until: that time is over".into()));
        }
        let before = self.old.blocks.get(&block.domain);
        if before.is_none() && self.old.blocks.len() >= MOST_BLOCKS {
            return Err(OpError::NotPossible(format!("{MOST_BLOCKS} domains are blocked already")));
        }
        let (now, name) = (self.now(), self.actor.name.clone());
        let before = before.and_then(|set| serde_json::to_string(&set.block).ok());
        let after = serde_json::to_string(&block).map_err(|error| OpError::BadRequest(error.to_string()))?;
        let statement = insert_blocks(&format!("[{after}]"), &name, now);
        let entry =
            self.entry(&format!("policy block {}", block.domain), &block.reason, (before, Some(after)));
        self.change(vec![statement], entry).await?;
        let text = match block.subdomains {
            true => format!("{} is blocked, with everything below it.", block.domain),
            false => format!("{} is blocked.", block.domain),
        };
        self.put_blocks(|blocks| {
            blocks.insert(block.domain.clone(), SetBlock::new(block, name, now));
        });
        Ok(text)
    }

    fn put_blocks(&self, change: impl FnOnce(&mut HashMap<String, Arc<SetBlock>>)) {
        let mut blocks = HashMap::clone(&self.old.blocks);
        change(&mut blocks);
        self.put(|standing| Standing { blocks: Arc::new(blocks), ..standing });
    }

    pub(super) async fn unblock(&self, domain: &str, why: &str) -> Result<String, OpError> {
        checked_why(why)?;
        let domain = rule::domain(domain).map_err(OpError::BadAddress)?;
        let Some(set) = self.old.blocks.get(&domain) else {
            return Err(match self.old.configured_blocks.contains_key(&domain) {
                true => OpError::NotPossible(format!(
                    "{domain} is blocked in the configuration (federation.domains): change it there"
                )),
                false => OpError::NotFound(format!("block of {domain}")),
            });
        };
        let delete = sql("DELETE FROM federation_blocks WHERE domain = ?1").bind(&domain).must_change();
        let before = serde_json::to_string(&set.block).ok();
        self.change(vec![delete], self.entry(&format!("policy unblock {domain}"), why, (before, None)))
            .await?;
        self.put_blocks(|blocks| {
            blocks.remove(&domain);
        });
        let control = &self.exchange.control;
        Ok(match control.policy.is_blocked(&domain, control.now()) {
            true => format!("The block of {domain} is gone, but another one still covers it."),
            false => format!("{domain} is not blocked any more."),
        })
    }

    pub(super) async fn import(&self, format: Format, text: &str, why: &str) -> Result<String, OpError> {
        checked_why(why)?;
        let refuse = |text: String| OpError::NotPossible(format!("nothing was imported:\n{text}"));
        let blocks = blocks::read(text, format).map_err(refuse)?;
        let now = self.now();
        let config = self.exchange.config.load_full();
        for block in &blocks {
            if config.is_our_domain(&block.domain) {
                return Err(refuse(format!("{} is a domain of this server", block.domain)));
            }
        }
        let (mut added, mut changed) = (Vec::new(), Vec::new());
        for block in &blocks {
            match self.old.blocks.get(&block.domain) {
                None => added.push(block.domain.as_str()),
                Some(set) if set.block != *block => changed.push(block.domain.as_str()),
                Some(_) => {}
            }
        }
        if self.old.blocks.len() + added.len() > MOST_BLOCKS {
            return Err(refuse(format!("more than {MOST_BLOCKS} domains would be blocked")));
        }
        let json = serde_json::to_string(&blocks).map_err(|error| OpError::BadRequest(error.to_string()))?;
        let before = serde_json::json!({ "blocks": self.old.blocks.len() });
        let after = serde_json::json!({
            "blocks": self.old.blocks.len() + added.len(),
            "added": added.len(), "changed": changed.len(),
            "domains": added.iter().chain(&changed).take(NAMED).collect::<Vec<_>>(),
        });
        let entry = self.entry("policy import", why, (Some(before.to_string()), Some(after.to_string())));
        let text = format!(
            "{} blocks were read: {} are new, {} were changed.",
            blocks.len(),
            added.len(),
            changed.len()
        );
        let name = self.actor.name.clone();
        // One statement, whatever the size of the file: all of it or nothing.
        self.change(vec![insert_blocks(&json, &name, now)], entry).await?;
        self.put_blocks(|old| {
            for block in blocks {
                old.insert(block.domain.clone(), SetBlock::new(block, name.clone(), now));
            }
        });
        Ok(text)
    }
}

/// Blocks from a JSON array of [`Block`].
fn insert_blocks(json: &str, set_by: &str, set_at: i64) -> Statement {
    // `WHERE true`: without it SQLite takes ON for a part of the join.
    sql("INSERT INTO federation_blocks (domain, subdomains, reason, until, set_by, set_at) \
         SELECT json_extract(value, '$.domain'), json_extract(value, '$.subdomains'), \
         json_extract(value, '$.reason'), json_extract(value, '$.until'), ?2, ?3 FROM json_each(?1) WHERE true \
         ON CONFLICT (domain) DO UPDATE SET subdomains = excluded.subdomains, reason = excluded.reason, \
         until = excluded.until, set_by = excluded.set_by, set_at = excluded.set_at")
    .bind(json)
    .bind(set_by)
    .bind(set_at)
}

fn checked_why(why: &str) -> Result<(), OpError> {
    rule::short(why).map_err(|text| OpError::NotPossible(format!("why: {text}")))
}
