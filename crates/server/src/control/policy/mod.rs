//! The rules in force: those of the configuration, those set at run time, the preset behind them; and blocked domains.
//!
//! A change is one batch for the store, with its audit entry; what is in force is replaced as a whole when it is on disk.

mod desk;
mod operations;
mod preset;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use arc_swap::{ArcSwap, Guard};
use trunkline_store::{Batch, Lane, StoreError, sql};

use super::audit;
use super::blocks::Block;
use super::breaker::above;
use super::judge::{Armed, Blocked, is_below};
use super::lists::Lists;
use super::rule::{Direction, Rule};
use crate::admin::actor::{Actor, Face};
use crate::config::Config;
use crate::exchange::Exchange;
use operations::BlockView;
pub use operations::{Format, PolicyOp, PolicyView, RuleView, TestResult, run};
pub use preset::Preset;

/// Rules set at run time.
pub const MOST_RULES: usize = 1000;
/// Blocked domains that [`PolicyOp::Show`] shows; `export` has all.
const SHOWN_BLOCKS: usize = 1000;
/// Blocks that end in one batch for the store.
const ENDED: usize = 500;

/// The rules, ready to judge.
#[derive(Debug, Default)]
pub struct Policy {
    standing: ArcSwap<Standing>,
    /// Held by who changes them, from the decision to the store's answer.
    writes: tokio::sync::Mutex<()>,
}

/// What is in force, as a whole.
#[derive(Clone, Debug, Default)]
pub(super) struct Standing {
    configured: Vec<Arc<Armed>>,
    own: Vec<Arc<Armed>>,
    preset: Preset,
    preset_shadow: bool,
    /// Set at run time: what the configuration says does not matter.
    preset_set: bool,
    preset_rule: Option<Arc<Armed>>,
    configured_blocks: HashMap<String, Arc<SetBlock>>,
    blocks: Arc<HashMap<String, Arc<SetBlock>>>,
}

/// A block, and who set it.
#[derive(Debug)]
struct SetBlock {
    block: Block,
    blocked: Arc<Blocked>,
    set_by: String,
    set_at: i64,
}

impl SetBlock {
    fn new(block: Block, set_by: String, set_at: i64) -> Arc<SetBlock> {
        let blocked = Arc::new(Blocked { domain: block.domain.clone(), reason: block.reason.clone() });
        Arc::new(SetBlock { block, blocked, set_by, set_at })
    }

    fn holds(&self, now: i64) -> bool {
        self.block.until.is_none_or(|until| until > now)
    }

    fn view(&self, configured: bool) -> BlockView {
        BlockView { block: self.block.clone(), set_by: self.set_by.clone(), set_at: self.set_at, configured }
    }
}

impl Standing {
    pub(super) fn rules(&self) -> [&[Arc<Armed>]; 2] {
        [&self.configured, &self.own]
    }

    pub(super) fn preset_rule(&self) -> Option<&Arc<Armed>> {
        self.preset_rule.as_ref()
    }

    /// A rule on the way out asks how the two stand to each other.
    pub(super) fn asks_who_sends(&self) -> bool {
        let asks = |armed: &Arc<Armed>| armed.rule.direction != Direction::In && armed.needs_relation();
        self.rules().into_iter().flatten().any(asks)
    }

    /// The preset lets nobody in, whatever the rules say.
    pub(super) fn is_closed(&self) -> bool {
        self.preset == Preset::Closed && !self.preset_shadow
    }

    /// The block that holds for a domain.
    pub(super) fn blocked(&self, domain: &str, now: i64) -> Option<Arc<Blocked>> {
        if self.blocks.is_empty() && self.configured_blocks.is_empty() {
            return None;
        }
        let set = above(domain).find_map(|name| {
            let applies = |set: &&Arc<SetBlock>| (name == domain || set.block.subdomains) && set.holds(now);
            let configured = self.configured_blocks.get(name).filter(applies);
            configured.or_else(|| self.blocks.get(name).filter(applies))
        });
        set.map(|set| Arc::clone(&set.blocked))
    }

    fn with_preset(mut self, preset: Preset, shadow: bool, set: (String, i64)) -> Standing {
        if self.preset_rule.is_none() || self.preset != preset || self.preset_shadow != shadow {
            self.preset_rule = preset.rule(shadow).map(|rule| Armed::new(None, preset.by(), rule, set));
        }
        self.preset = preset;
        self.preset_shadow = shadow;
        self
    }
}

impl Policy {
    pub(super) fn standing(&self) -> Guard<Arc<Standing>> {
        self.standing.load()
    }

    /// What the configuration says is in force: its rules and blocks, and its preset unless one was set at run time.
    pub(super) fn configured(&self, config: &Config, now: i64) {
        let mut standing = Standing::clone(&self.standing.load());
        let said = || "configuration".to_owned();
        let old = std::mem::take(&mut standing.configured);
        standing.configured = (1..)
            .zip(&config.federation.rules)
            .map(|(number, rule)| {
                let by = format!("configured rule {number}");
                // The same rule at the same place goes on counting.
                let same = old.iter().find(|armed| **armed.name() == *by && armed.written == *rule);
                same.cloned().unwrap_or_else(|| Armed::new(None, &by, rule.clone(), (said(), now)))
            })
            .collect();
        let old = std::mem::take(&mut standing.configured_blocks);
        standing.configured_blocks = config
            .federation
            .domains
            .iter()
            .filter(|(_, peer)| peer.block)
            .map(|(domain, _)| {
                let block = Block {
                    domain: domain.clone(),
                    subdomains: true,
                    reason: "the configuration blocks this domain".into(),
                    until: None,
                };
                let at = old.get(domain).map_or(now, |set| set.set_at);
                (domain.clone(), SetBlock::new(block, said(), at))
            })
            .collect();
        if !standing.preset_set {
            standing = standing.with_preset(config.federation.preset, false, (said(), now));
        }
        self.standing.store(Arc::new(standing));
    }

    /// Whether a block holds for `domain`.
    pub fn is_blocked(&self, domain: &str, now: i64) -> bool {
        self.standing.load().blocked(domain, now).is_some()
    }

    /// Blocks that hold for `domain` or something below it: no more than `most`, those of the domain first.
    pub(super) fn blocks_about(&self, domain: &str, now: i64, most: usize) -> Vec<Block> {
        let standing = self.standing.load();
        let all = standing.configured_blocks.values().chain(standing.blocks.values());
        let concerns = |set: &&Arc<SetBlock>| {
            let name = set.block.domain.as_str();
            let covers = name == domain || (set.block.subdomains && is_below(domain, name));
            set.holds(now) && (covers || is_below(name, domain))
        };
        let mut blocks: Vec<Block> = all.filter(concerns).map(|set| set.block.clone()).collect();
        blocks.sort_by(|a, b| a.domain.len().cmp(&b.domain.len()).then_with(|| a.domain.cmp(&b.domain)));
        blocks.truncate(most);
        blocks
    }

    /// The block for `domain` that was set at run time, with the operator's reason, unless the configuration blocks it.
    pub(crate) fn reasoned_block(&self, domain: &str, now: i64) -> Option<Block> {
        let standing = self.standing.load();
        let holding = |blocks: &HashMap<String, Arc<SetBlock>>| {
            let mut names = above(domain);
            names.find_map(|name| {
                let set = blocks.get(name)?;
                ((name == domain || set.block.subdomains) && set.holds(now)).then(|| set.block.clone())
            })
        };
        match holding(&standing.configured_blocks) {
            Some(_) => None,
            None => holding(&standing.blocks),
        }
    }

    /// Rules that name `domain` or a domain above it, in their order.
    pub fn naming(&self, domain: &str) -> Vec<RuleView> {
        let standing = self.standing.load();
        let names = |armed: &&Arc<Armed>| {
            let when = &armed.rule.when;
            let by_domain = when
                .domain
                .as_deref()
                .is_some_and(|named| named == domain || when.subdomains && is_below(domain, named));
            let by_address =
                when.address.as_deref().is_some_and(|address| address.rsplit('@').next() == Some(domain));
            by_domain || by_address
        };
        standing.rules().into_iter().flatten().filter(names).map(|armed| armed.view()).collect()
    }

    /// Until what this gives is dropped, no rule comes or goes.
    pub(crate) async fn held(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.writes.lock().await
    }

    /// The rules that ask for the list of that name, in words.
    pub(super) fn rules_on(&self, list: &str) -> Vec<String> {
        let standing = self.standing.load();
        let asks = |armed: &&Arc<Armed>| armed.rule.when.listed_in.as_deref() == Some(list);
        standing.rules().into_iter().flatten().filter(asks).map(|armed| armed.name().to_string()).collect()
    }

    /// The lists that rules of the run time ask for.
    pub(super) fn lists_asked_for(&self) -> BTreeSet<String> {
        let standing = self.standing.load();
        standing.own.iter().filter_map(|armed| armed.rule.when.listed_in.clone()).collect()
    }

    /// Rules that ask for a list that is not there, in words: they never match.
    pub(super) fn without_list(&self, lists: &Lists) -> Vec<String> {
        let standing = self.standing.load();
        let missing = |armed: &Arc<Armed>| {
            let list = armed.rule.when.listed_in.as_deref().filter(|list| !lists.exists(list))?;
            Some(format!("{} never matches: the list {} is not followed", armed.name(), list.escape_debug()))
        };
        standing.rules().into_iter().flatten().filter_map(missing).collect()
    }

    /// As it is.
    pub fn view(&self, now: i64) -> PolicyView {
        let standing = self.standing.load();
        let count = |shadow: bool| {
            standing.preset_rule.as_ref().map_or(0, |rule| {
                if shadow {
                    rule.shadow_hits.load(Ordering::Relaxed)
                } else {
                    rule.hits.load(Ordering::Relaxed)
                }
            })
        };
        let mut blocks: Vec<BlockView> =
            standing.configured_blocks.values().map(|set| set.view(true)).collect();
        let own = standing.blocks.values().filter(|set| set.holds(now));
        blocks.extend(own.map(|set| set.view(false)));
        blocks.sort_by(|a, b| b.set_at.cmp(&a.set_at).then_with(|| a.block.domain.cmp(&b.block.domain)));
        let blocks_total = blocks.len() as u64;
        blocks.truncate(SHOWN_BLOCKS);
        PolicyView {
            preset: standing.preset,
            preset_shadow: standing.preset_shadow,
            preset_hits: count(false),
            preset_shadow_hits: count(true),
            rules: standing.rules().into_iter().flatten().map(|armed| armed.view()).collect(),
            blocks,
            blocks_total,
            warnings: Vec::new(),
        }
    }
}

/// Reads what was set at run time.
pub(super) async fn load(exchange: &Arc<Exchange>) -> Result<(), StoreError> {
    let results = exchange
        .db
        .read_all(
            Lane::Inside,
            vec![
                sql("SELECT id, rule, set_by, set_at FROM federation_rules ORDER BY position, id"),
                sql("SELECT domain, subdomains, reason, until, set_by, set_at FROM federation_blocks"),
                sql("SELECT preset, shadow, set_by, set_at FROM federation_preset"),
            ],
        )
        .await?;
    let [rules, blocks, preset] = results.as_slice() else {
        return Err(StoreError::Other("invariant: three statements, three answers".into()));
    };
    let policy = &exchange.control.policy;
    let mut standing = Standing::clone(&policy.standing.load());
    for row in rules.iter() {
        let (id, set) = (row.int(0), (row.text(2).to_owned(), row.int(3)));
        match serde_json::from_str::<Rule>(row.text(1)) {
            Ok(rule) => standing.own.push(arm(id, rule, set)),
            Err(error) => tracing::error!(id, %error, "a stored rule can't be read: it is not in force"),
        }
    }
    let mut read = HashMap::new();
    for row in blocks.iter() {
        let block = Block {
            domain: row.text(0).to_owned(),
            subdomains: row.bool(1),
            reason: row.text(2).to_owned(),
            until: row.opt_int(3),
        };
        read.insert(block.domain.clone(), SetBlock::new(block, row.text(4).to_owned(), row.int(5)));
    }
    standing.blocks = Arc::new(read);
    if let Some(row) = preset.first() {
        // A preset of a newer version than this: the default is the careful one.
        let preset = Preset::parse(row.text(0)).unwrap_or_default();
        standing.preset_set = true;
        standing = standing.with_preset(preset, row.bool(1), (row.text(2).to_owned(), row.int(3)));
    }
    policy.standing.store(Arc::new(standing));
    Ok(())
}

fn arm(id: i64, rule: Rule, set: (String, i64)) -> Arc<Armed> {
    Armed::new(Some(id), &format!("rule {id}"), rule, set)
}

/// Removes rules and blocks that are over. When the next one ends: milliseconds since 1970.
pub(super) async fn end(exchange: &Arc<Exchange>) -> Option<i64> {
    let control = &exchange.control;
    let writing = control.policy.writes.lock().await;
    let now = control.now();
    let old = control.policy.standing.load_full();
    let rules = old.own.iter().map(|armed| armed.rule.until);
    let blocks = old.blocks.values().map(|set| set.block.until);
    let next = rules.chain(blocks).flatten().filter(|until| *until > now).min();
    let rules: Vec<&Arc<Armed>> = old.own.iter().filter(|armed| armed.rule.has_ended(now)).collect();
    let blocks: Vec<&Arc<SetBlock>> = old.blocks.values().filter(|set| !set.holds(now)).collect();
    if rules.is_empty() && blocks.is_empty() {
        return next;
    }
    let actor = Actor::trigger("end time");
    let mut batch = Batch::new(Lane::Inside);
    let entry = |what: String, before: Option<String>| {
        control.audit.entry(&actor, &what, "its time is over", (before, None))
    };
    for armed in &rules {
        let id = armed.id.unwrap_or_default();
        batch.push(sql("DELETE FROM federation_rules WHERE id = ?1").bind(id));
        batch.push(entry(format!("policy remove {id}"), serde_json::to_string(&armed.written).ok()));
    }
    for set in blocks.iter().take(ENDED) {
        batch.push(sql("DELETE FROM federation_blocks WHERE domain = ?1").bind(&set.block.domain));
        let what = format!("policy unblock {}", set.block.domain);
        batch.push(entry(what, serde_json::to_string(&set.block).ok()));
    }
    let ended: HashSet<&str> = blocks.iter().take(ENDED).map(|set| set.block.domain.as_str()).collect();
    let more = blocks.len() > ENDED;
    if let Err(error) = exchange.db.run(batch).await {
        // They hold no more all the same; their rows are looked at again.
        tracing::error!(%error, "rules and blocks that are over can't be removed");
        return next;
    }
    let mut standing = Standing::clone(&control.policy.standing.load());
    standing.own.retain(|armed| !armed.rule.has_ended(now));
    let mut left = HashMap::clone(&standing.blocks);
    left.retain(|domain, _| !ended.contains(domain.as_str()));
    standing.blocks = Arc::new(left);
    control.policy.standing.store(Arc::new(standing));
    drop(writing);
    control.in_force(exchange);
    if more { Some(now) } else { next }
}

/// The audit entry for a configuration that says something else than the last one did; nothing if it does not.
pub(super) async fn note_configuration(exchange: &Exchange, config: &Config) -> Result<Batch, StoreError> {
    let blocked: Vec<&String> =
        config.federation.domains.iter().filter(|(_, peer)| peer.block).map(|(domain, _)| domain).collect();
    let said = serde_json::json!({
        "enabled": config.federation.enabled,
        "preset": config.federation.preset,
        "rules": config.federation.rules,
        "blocked": blocked,
        "triggers": config.federation.triggers,
    });
    // As it is found again: what was cut is compared with what was cut.
    let said = audit::recorded(&said.to_string());
    let rows = exchange
        .db
        .read(sql("SELECT after FROM audit WHERE what = 'configuration' ORDER BY id DESC LIMIT 1"))
        .await?;
    let before = rows.first().and_then(|row| row.opt_text(0)).map(str::to_owned);
    let mut batch = Batch::new(Lane::Inside);
    if before.as_deref() != Some(&said) {
        let file = config.file().display().to_string();
        let actor = Actor { name: file, face: Face::Configuration, scopes: Vec::new() };
        let entry = exchange.control.audit.entry(
            &actor,
            "configuration",
            "the configuration was read",
            (before, Some(said)),
        );
        batch.push(entry);
    }
    Ok(batch)
}
