//! The rules in force: those of the configuration, those set at run time, the preset behind them; and blocked domains.
//!
//! A change is one batch for the store, with its audit entry; what is in force is replaced as a whole when it is on disk.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use arc_swap::{ArcSwap, Guard};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use trunkline_store::{Batch, Lane, Statement, StoreError, sql};
use trunkline_xmpp::stanza::Stanza;

use super::audit;
use super::blocks::{self, Block, MOST_BLOCKS};
use super::breaker::above;
use super::judge::{Armed, Blocked, Case, Verdict, is_below};
use super::lists::Lists;
use super::rule::{self, Action, Conditions, Direction, Relation, Rule};
use crate::admin::actor::{Actor, Face};
use crate::admin::{OpError, Outcome};
use crate::config::Config;
use crate::exchange::Exchange;

/// Rules set at run time.
pub const MOST_RULES: usize = 1000;
/// Blocked domains that [`PolicyOp::Show`] shows; `export` has all.
const SHOWN_BLOCKS: usize = 1000;
/// Blocks that end in one batch for the store.
const ENDED: usize = 500;
/// Domains of an import that its audit entry names.
const NAMED: usize = 200;

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

impl Preset {
    /// Every preset.
    pub const ALL: [Preset; 4] = [Preset::Open, Preset::Careful, Preset::AllowListOnly, Preset::Closed];

    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Preset::Open => "open",
            Preset::Careful => "careful",
            Preset::AllowListOnly => "allow-list-only",
            Preset::Closed => "closed",
        }
    }

    /// From its name.
    pub fn parse(name: &str) -> Option<Preset> {
        Preset::ALL.into_iter().find(|preset| preset.name() == name)
    }

    fn by(self) -> &'static str {
        match self {
            Preset::Open => "preset open",
            Preset::Careful => "preset careful",
            Preset::AllowListOnly => "preset allow-list-only",
            Preset::Closed => "preset closed",
        }
    }

    /// The rule that the preset is.
    pub(super) fn rule(self, shadow: bool) -> Option<Rule> {
        let rule = |when, direction, then, reason: &str| {
            Some(Rule { when, direction, then, reason: reason.into(), until: None, shadow })
        };
        let reject = Action::Reject { condition: None, text: None };
        match self {
            Preset::Open => None,
            Preset::Careful => {
                // Of every kind: what can't wait gets an answer that says nothing (design/011-consent.md).
                let when = Conditions { relation: vec![Relation::Stranger], ..Conditions::default() };
                rule(when, Direction::In, Action::Hold, "first contacts wait for consent")
            }
            Preset::AllowListOnly => rule(
                Conditions::default(),
                Direction::Both,
                reject,
                "only providers that are on this server's list",
            ),
            Preset::Closed => rule(
                Conditions::default(),
                Direction::Both,
                reject,
                "this server does not talk to other providers",
            ),
        }
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

    /// Tells of rules that ask for a list that is not there (any more): they never match.
    pub(super) fn tell_of_missing(&self, lists: &Lists) {
        for armed in self.standing.load().rules().into_iter().flatten() {
            let missing = armed.rule.when.listed_in.as_deref().filter(|list| !lists.exists(list));
            if let Some(list) = missing {
                tracing::error!(rule = %armed.name(), list, "the rule never matches: that list is not followed");
            }
        }
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

/// A ready-made set of rules; it stands behind the operator's own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Preset {
    /// Everything passes.
    Open,
    /// First contacts wait for consent.
    #[default]
    Careful,
    /// Only domains that a rule allows.
    AllowListOnly,
    /// Nothing passes.
    Closed,
}

/// What can be asked of the policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "do", rename_all = "kebab-case", deny_unknown_fields)]
pub enum PolicyOp {
    /// The preset and all rules, with their counts.
    Show,
    /// Changes the preset.
    SetPreset {
        /// The new one.
        preset: Preset,
        /// Only decide and count, as a whole.
        #[serde(default)]
        shadow: bool,
        /// For the audit log.
        why: String,
    },
    /// Adds a rule.
    Add {
        /// The rule.
        rule: Rule,
        /// Its place, from 0; `None`: after all others.
        #[serde(default)]
        position: Option<u32>,
    },
    /// Replaces a rule.
    Replace {
        /// Which.
        id: i64,
        /// The new one.
        rule: Rule,
    },
    /// Moves a rule.
    Move {
        /// Which.
        id: i64,
        /// Its new place, from 0.
        position: u32,
        /// For the audit log.
        why: String,
    },
    /// Removes a rule.
    Remove {
        /// Which.
        id: i64,
        /// For the audit log.
        why: String,
    },
    /// Says what would become of a stanza. Changes nothing.
    Test {
        /// The stanza's XML, with `from` and `to`.
        stanza: String,
        /// Which way it goes.
        direction: Direction,
        /// How the domain is proved, and how the two stand to each other: `None` as it is in truth.
        #[serde(default)]
        relation: Option<super::rule::Relation>,
    },
    /// Blocks a domain: nothing to or from it, its streams end at once.
    Block {
        /// The domain.
        domain: String,
        /// What is below it too.
        #[serde(default)]
        subdomains: bool,
        /// Local users are told.
        reason: String,
        /// Milliseconds since 1970; `None`: until it is taken back.
        #[serde(default)]
        until: Option<i64>,
    },
    /// Takes a block back.
    Unblock {
        /// The domain.
        domain: String,
        /// For the audit log.
        why: String,
    },
    /// All blocks as a file.
    Export {
        /// Of which kind.
        format: Format,
    },
    /// Blocks from a file: all of it or nothing.
    Import {
        /// Of which kind.
        format: Format,
        /// The file.
        text: String,
        /// For the audit log.
        why: String,
    },
}

/// A file of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// `domain,subdomains,reason,until`
    Csv,
    /// An array of objects with the same names.
    Json,
}

/// The policy as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PolicyView {
    /// What stands behind the rules.
    pub preset: Preset,
    /// The preset only decides and counts.
    pub preset_shadow: bool,
    /// Stanzas that the preset decided since it was set.
    #[serde(default)]
    pub preset_hits: u64,
    /// Stanzas that it would have decided, while in shadow.
    #[serde(default)]
    pub preset_shadow_hits: u64,
    /// In order: first match wins. Those of the configuration come first and have no id.
    pub rules: Vec<RuleView>,
    /// Blocked domains, the latest first; 1000 at most.
    #[serde(default)]
    pub blocks: Vec<BlockView>,
    /// How many there are.
    #[serde(default)]
    pub blocks_total: u64,
}

/// A blocked domain as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BlockView {
    /// The block.
    pub block: Block,
    /// Who set it.
    pub set_by: String,
    /// Milliseconds since 1970.
    pub set_at: i64,
    /// It stands in the configuration and is changed there.
    pub configured: bool,
}

/// One rule as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RuleView {
    /// `None`: it stands in the configuration and is changed there.
    pub id: Option<i64>,
    /// The rule.
    pub rule: Rule,
    /// Who set it.
    pub set_by: String,
    /// Milliseconds since 1970.
    pub set_at: i64,
    /// Stanzas that it decided since the start.
    pub hits: u64,
    /// Stanzas that it would have decided, while in shadow.
    pub shadow_hits: u64,
}

/// What would become of a stanza.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TestResult {
    /// `allow`, `reject`, `drop`, `hold`, `limit`, `mark`, `text-only`.
    pub action: String,
    /// The rule that decides: its id, or its place in the configuration, or the preset's or breaker's name, in words.
    pub by: String,
    /// Its reason.
    pub reason: String,
    /// Rules that were asked before and why they did not apply, and shadow rules that would have.
    pub trace: Vec<String>,
}

/// Runs an operation.
///
/// # Errors
/// What the caller did wrong, or the store's.
pub async fn run(exchange: &Arc<Exchange>, actor: &Actor, op: PolicyOp) -> Result<Outcome, OpError> {
    let control = &exchange.control;
    match op {
        PolicyOp::Show => return Ok(Outcome::Policy(control.policy.view(control.now()))),
        PolicyOp::Test { stanza, direction, relation } => {
            return test(exchange, &stanza, direction, relation).await;
        }
        PolicyOp::Export { format } => return Ok(export(exchange, format)),
        _ => {}
    }
    let writing = control.policy.writes.lock().await;
    let old = control.policy.standing.load_full();
    let desk = Desk { exchange, actor, old };
    let text = match op {
        PolicyOp::SetPreset { preset, shadow, why } => desk.set_preset(preset, shadow, &why).await?,
        PolicyOp::Add { rule, position } => desk.add(rule, position).await?,
        PolicyOp::Replace { id, rule } => desk.replace(id, rule).await?,
        PolicyOp::Move { id, position, why } => desk.place(id, position, &why).await?,
        PolicyOp::Remove { id, why } => desk.remove(id, &why).await?,
        PolicyOp::Block { domain, subdomains, reason, until } => {
            desk.block(Block { domain, subdomains, reason, until }).await?
        }
        PolicyOp::Unblock { domain, why } => desk.unblock(&domain, &why).await?,
        PolicyOp::Import { format, text, why } => desk.import(format, &text, &why).await?,
        PolicyOp::Show | PolicyOp::Test { .. } | PolicyOp::Export { .. } => {
            return Err(OpError::BadRequest("this changes nothing".into()));
        }
    };
    drop(writing);
    control.in_force(exchange);
    Ok(Outcome::Done { text })
}

/// One change by one actor, with what was in force before.
struct Desk<'a> {
    exchange: &'a Arc<Exchange>,
    actor: &'a Actor,
    old: Arc<Standing>,
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
        Ok(results.first().map_or(0, trunkline_store::Rows::last_id))
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

    async fn set_preset(&self, preset: Preset, shadow: bool, why: &str) -> Result<String, OpError> {
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

    async fn add(&self, rule: Rule, position: Option<u32>) -> Result<String, OpError> {
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

    async fn replace(&self, id: i64, rule: Rule) -> Result<String, OpError> {
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

    async fn place(&self, id: i64, position: u32, why: &str) -> Result<String, OpError> {
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

    async fn remove(&self, id: i64, why: &str) -> Result<String, OpError> {
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

    async fn block(&self, block: Block) -> Result<String, OpError> {
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

    async fn unblock(&self, domain: &str, why: &str) -> Result<String, OpError> {
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

    async fn import(&self, format: Format, text: &str, why: &str) -> Result<String, OpError> {
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

fn export(exchange: &Exchange, format: Format) -> Outcome {
    let now = exchange.control.now();
    let standing = exchange.control.policy.standing.load();
    let configured = standing.configured_blocks.values();
    let own = standing.blocks.values().filter(|set| set.holds(now));
    let mut blocks: Vec<Block> = configured.chain(own).map(|set| set.block.clone()).collect();
    blocks.sort_by(|a, b| a.domain.cmp(&b.domain));
    blocks.dedup_by(|a, b| a.domain == b.domain);
    let media_type = match format {
        Format::Csv => "text/csv",
        Format::Json => "application/json",
    };
    Outcome::File { media_type: media_type.into(), text: blocks::write(&blocks, format) }
}

/// What would become of a stanza.
async fn test(
    exchange: &Arc<Exchange>,
    stanza: &str,
    direction: Direction,
    relation: Option<Relation>,
) -> Result<Outcome, OpError> {
    let bad = |text: &str| OpError::NotPossible(text.to_owned());
    let stanza = Stanza::parse(stanza.as_bytes())
        .map_err(|error| OpError::NotPossible(format!("this is not a stanza: {error}")))?;
    let (Some(from), Some(to)) = (&stanza.head.from, &stanza.head.to) else {
        return Err(bad("the stanza needs `from` and `to`"));
    };
    let (ours, other) = match direction {
        Direction::In => (to, from),
        Direction::Out => (from, to),
        Direction::Both => return Err(bad("direction: \"in\" or \"out\"")),
    };
    if exchange.served(ours.domain()).is_none() {
        return Err(OpError::UnknownDomain(ours.domain().to_owned()));
    }
    if exchange.served(other.domain()).is_some() {
        return Err(bad("both addresses are on this server: no rule is asked"));
    }
    let relation = match relation {
        None if ours.local().is_some() && exchange.host(ours.domain()).is_some() => {
            Some(exchange.relation(ours, other).await.map_err(|error| OpError::Store(error.to_string()))?)
        }
        relation => relation,
    };
    let domain = other.domain().to_owned();
    let case = Case { direction, domain: &domain, stanza: &stanza, relation };
    let (decision, trace, reason) = exchange.control.rehearse(&case);
    let action = match &decision.verdict {
        Verdict::Allow if decision.text_only => "text-only",
        Verdict::Allow if decision.mark.is_some() => "mark",
        Verdict::Allow => "allow",
        Verdict::Reject(_) => "reject",
        Verdict::Drop => "drop",
        Verdict::Hold => "hold",
        Verdict::Undecided => "undecided",
    };
    Ok(Outcome::Tested(TestResult { action: action.into(), by: decision.by.to_string(), reason, trace }))
}
