//! The graded cut-off: by hand or by a trigger, for one domain or for all.
//!
//! What somebody set by hand and what triggers pulled stand beside each other: each has its own end, the strictest
//! holds, and no trigger can touch what was set by hand.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use trunkline_store::{Batch, Lane, Statement, StoreError, sql};

use super::triggers::Trigger;
use super::{announce, rule};
use crate::admin::actor::{Actor, Face};
use crate::admin::{OpError, Outcome};
use crate::config::Config;
use crate::exchange::Exchange;

/// Domains with a level that was set by hand. Triggers can't use these places up: theirs are others.
const MOST_LEVELS: usize = 10_000;
/// Levels of domains that triggers have pulled. Beyond it they pull no more, and say so.
const MOST_PULLED: usize = 10_000;
/// Audit entries about what triggers did, in an hour. What they do beyond that is counted in one entry: the log only
/// grows, and a peer that makes a trigger flutter must not decide how fast.
const MOST_ENTRIES: u32 = 100;
const HOUR: i64 = 3_600_000;
/// Levels that end in one batch for the store.
const ENDED: usize = 500;

/// The levels in force.
#[derive(Debug, Default)]
pub struct Breaker {
    levels: ArcSwap<Levels>,
    /// Held by who changes them, from the decision to the store's answer.
    writes: tokio::sync::Mutex<()>,
    diary: Mutex<Diary>,
}

#[derive(Clone, Debug, Default)]
struct Levels {
    /// `federation.enabled = false`.
    configured: Option<Arc<Set>>,
    all: Own,
    domains: HashMap<String, Own>,
    /// Of domains: how many were set by hand, how many by triggers.
    by_hand: usize,
    pulled: usize,
}

/// What is set for one domain, or for all. One for each who set it: by hand, and each trigger.
type Own = Vec<Arc<Set>>;

/// Who has set a level: its name in the store. Empty: somebody, by hand; otherwise a trigger of this name.
type Source = str;
const BY_HAND: &Source = "";

/// What the audit log was told of triggers.
#[derive(Debug, Default)]
struct Diary {
    /// When the hour began.
    since: i64,
    entries: u32,
    /// Levels pulled and ended that have no entry of their own.
    left_out: (u64, u64),
}

/// A level that is set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Set {
    pub(super) level: Level,
    pub(super) reason: String,
    pub(super) set_by: String,
    set_at: i64,
    pub(super) until: Option<i64>,
    /// Who may change it: [`Source`].
    #[serde(skip)]
    source: String,
}

impl Set {
    fn has_ended(&self, now: i64) -> bool {
        self.until.is_some_and(|until| until <= now)
    }

    fn view(&self, domain: Option<&str>) -> LevelView {
        LevelView {
            domain: domain.map(str::to_owned),
            level: self.level,
            reason: self.reason.clone(),
            set_by: self.set_by.clone(),
            set_at: self.set_at,
            until: self.until,
        }
    }
}

impl Breaker {
    /// What holds for a domain: the strictest of what is set for all, for it and for those above it.
    pub(super) fn of(&self, domain: &str, now: i64) -> Option<Arc<Set>> {
        let levels = self.levels.load();
        let mut found = levels.for_all(now).cloned();
        if levels.domains.is_empty() {
            return found;
        }
        for name in above(domain) {
            if let Some(set) = levels.domains.get(name).and_then(|own| strictest(own, now))
                && found.as_ref().is_none_or(|found| found.level < set.level)
            {
                found = Some(Arc::clone(set));
            }
        }
        found
    }

    /// What a trigger has pulled for exactly this: a domain, or all.
    pub(super) fn pulled(&self, domain: Option<&str>, trigger: &str, now: i64) -> Option<Arc<Set>> {
        let levels = self.levels.load();
        let own = levels.own(domain)?;
        own.iter().find(|set| set.source == trigger && !set.has_ended(now)).cloned()
    }

    /// The level in force for a domain, or for all.
    pub fn level(&self, domain: Option<&str>, now: i64) -> Level {
        let set = match domain {
            Some(domain) => self.of(domain, now),
            None => self.levels.load().for_all(now).cloned(),
        };
        set.map_or(Level::Normal, |set| set.level)
    }

    pub(super) fn is_closed_for_all(&self, now: i64) -> bool {
        self.level(None, now) == Level::Closed
    }

    /// The old key `federation.enabled` is a part of the picture.
    pub(super) fn configured(&self, config: &Config, now: i64) {
        let mut levels = Levels::clone(&self.levels.load());
        levels.configured = (!config.federation.enabled).then(|| {
            Arc::new(Set {
                level: Level::Closed,
                reason: "federation.enabled is false".into(),
                set_by: "configuration".into(),
                set_at: now,
                until: None,
                source: BY_HAND.into(),
            })
        });
        self.levels.store(Arc::new(levels));
    }

    /// As it is.
    pub fn view(&self, now: i64) -> BreakerView {
        self.view_with(now, &[])
    }

    fn view_with(&self, now: i64, triggers: &[Trigger]) -> BreakerView {
        let levels = self.levels.load();
        let mut domains = Vec::new();
        let mut covered = Vec::new();
        for (domain, own) in &levels.domains {
            let Some(holds) = strictest(own, now) else { continue };
            domains.push(holds.view(Some(domain)));
            let rest = own.iter().filter(|set| !Arc::ptr_eq(set, holds) && !set.has_ended(now));
            covered.extend(rest.map(|set| set.view(Some(domain))));
        }
        let holds = levels.for_all(now);
        let same = |set: &Arc<Set>| holds.is_some_and(|holds| Arc::ptr_eq(set, holds));
        let rest = levels.all.iter().filter(|set| !same(set) && !set.has_ended(now));
        covered.extend(rest.map(|set| set.view(None)));
        domains.sort_by(|a, b| a.domain.cmp(&b.domain));
        covered.sort_by(|a, b| a.domain.cmp(&b.domain).then_with(|| a.set_by.cmp(&b.set_by)));
        BreakerView {
            all: holds.map_or_else(LevelView::default, |set| set.view(None)),
            domains,
            covered,
            triggers: triggers.iter().map(Trigger::words).collect(),
        }
    }
}

/// What holds of what is set for the same.
fn strictest(own: &[Arc<Set>], now: i64) -> Option<&Arc<Set>> {
    // Of two that are as strict, the one set by hand: its words are somebody's.
    let rank = |set: &&Arc<Set>| (set.level, set.source == BY_HAND);
    own.iter().filter(|set| !set.has_ended(now)).max_by_key(rank)
}

impl Levels {
    fn for_all(&self, now: i64) -> Option<&Arc<Set>> {
        self.configured.as_ref().or_else(|| strictest(&self.all, now))
    }

    fn own(&self, domain: Option<&str>) -> Option<&Own> {
        match domain {
            Some(domain) => self.domains.get(domain),
            None => Some(&self.all),
        }
    }

    /// Each level with its domain.
    fn each(&self) -> impl Iterator<Item = (Option<&str>, &Arc<Set>)> {
        let domains =
            self.domains.iter().flat_map(|(domain, own)| own.iter().map(|set| (Some(domain.as_str()), set)));
        self.all.iter().map(|set| (None, set)).chain(domains)
    }

    /// Puts a level in the place of the one that the same source has set for the same, or takes that away.
    fn put(&mut self, domain: Option<&str>, source: &Source, set: Option<Arc<Set>>) {
        let own = match domain {
            None => &mut self.all,
            Some(domain) => self.domains.entry(domain.to_owned()).or_default(),
        };
        let before = own.len();
        own.retain(|set| set.source != source);
        let removed = before - own.len();
        let added = usize::from(set.is_some());
        own.extend(set);
        if let Some(domain) = domain {
            if own.is_empty() {
                self.domains.remove(domain);
            }
            let count = if source == BY_HAND { &mut self.by_hand } else { &mut self.pulled };
            *count = *count + added - removed;
        }
    }
}

/// The domain, and every domain above it.
pub(super) fn above(domain: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(domain), |name| name.split_once('.').map(|(_, parent)| parent))
}

/// Reads the levels.
pub(super) async fn load(exchange: &Arc<Exchange>) -> Result<(), StoreError> {
    let rows = exchange
        .db
        .read(sql("SELECT domain, source, level, reason, until, set_by, set_at FROM federation_levels"))
        .await?;
    let mut levels = Levels::clone(&exchange.control.breaker.levels.load());
    for row in rows.iter() {
        let source = row.text(1);
        let set = Arc::new(Set {
            // A level of a newer version than this: the strictest is the safe one.
            level: Level::parse(row.text(2)).unwrap_or(Level::Closed),
            reason: row.text(3).to_owned(),
            until: row.opt_int(4),
            set_by: row.text(5).to_owned(),
            set_at: row.int(6),
            source: source.to_owned(),
        });
        let domain = row.text(0);
        levels.put((!domain.is_empty()).then_some(domain), source, Some(set));
    }
    exchange.control.breaker.levels.store(Arc::new(levels));
    Ok(())
}

/// How far the outside is cut off. Each level includes those before it.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// As the policy says.
    #[default]
    Normal,
    /// First contacts are refused.
    NoNewContacts,
    /// Only people who have consented to each other.
    GrantedOnly,
    /// Of what they write, only text.
    TextOnly,
    /// No streams.
    Closed,
}

impl Level {
    /// Every level, the mildest first.
    pub const ALL: [Level; 5] =
        [Level::Normal, Level::NoNewContacts, Level::GrantedOnly, Level::TextOnly, Level::Closed];

    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Level::Normal => "normal",
            Level::NoNewContacts => "no-new-contacts",
            Level::GrantedOnly => "granted-only",
            Level::TextOnly => "text-only",
            Level::Closed => "closed",
        }
    }

    /// From its name.
    pub fn parse(name: &str) -> Option<Level> {
        Level::ALL.into_iter().find(|level| level.name() == name)
    }
}

/// What can be asked of the breaker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "do", rename_all = "kebab-case", deny_unknown_fields)]
pub enum BreakerOp {
    /// All levels that are not normal, and the triggers.
    Show,
    /// Sets a level. `normal` takes back what was set by hand and what triggers have pulled.
    Set {
        /// `None`: for all.
        #[serde(default)]
        domain: Option<String>,
        /// The level.
        level: Level,
        /// Local users with outside contacts are told.
        why: String,
        /// Milliseconds since 1970; `None`: until it is taken back.
        #[serde(default)]
        until: Option<i64>,
    },
}

/// The breaker as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BreakerView {
    /// For everybody outside.
    pub all: LevelView,
    /// Domains of their own level.
    pub domains: Vec<LevelView>,
    /// What is set as well, and covered by a stricter level of the same: it holds when that one ends.
    #[serde(default)]
    pub covered: Vec<LevelView>,
    /// What pulls it by itself, in words.
    pub triggers: Vec<String>,
}

/// A level in force.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LevelView {
    /// `None`: all.
    pub domain: Option<String>,
    /// The level.
    pub level: Level,
    /// Why.
    pub reason: String,
    /// Who set it; a trigger's name.
    pub set_by: String,
    /// Milliseconds since 1970.
    pub set_at: i64,
    /// When it ends.
    pub until: Option<i64>,
}

/// Runs an operation.
///
/// # Errors
/// What the caller did wrong, or the store's.
pub async fn run(exchange: &Arc<Exchange>, actor: &Actor, op: BreakerOp) -> Result<Outcome, OpError> {
    let breaker = &exchange.control.breaker;
    match op {
        BreakerOp::Show => {
            let triggers = &exchange.config.load().federation.triggers;
            Ok(Outcome::Breaker(breaker.view_with(exchange.control.now(), triggers)))
        }
        BreakerOp::Set { domain, level, why, until } => {
            set(exchange, actor, Wish { domain, level, why, until }).await?;
            Ok(Outcome::Breaker(breaker.view(exchange.control.now())))
        }
    }
}

/// A level somebody wants.
#[derive(Clone, Debug)]
pub(crate) struct Wish {
    pub(crate) domain: Option<String>,
    pub(crate) level: Level,
    pub(crate) why: String,
    pub(crate) until: Option<i64>,
}

/// Sets a level by hand: in the store with its audit entry, then in force.
///
/// # Errors
/// What the caller did wrong, or the store's.
pub(crate) async fn set(exchange: &Arc<Exchange>, actor: &Actor, wish: Wish) -> Result<(), OpError> {
    let control = &exchange.control;
    let domain = wish.domain.as_deref().map(rule::domain).transpose().map_err(OpError::BadAddress)?;
    rule::short(&wish.why).map_err(|text| OpError::NotPossible(format!("why: {text}")))?;
    if wish.until.is_some_and(|until| until <= control.now()) {
        return Err(OpError::NotPossible("until: that time is over".into()));
    }
    let wish = Wish { domain, ..wish };
    let breaker = &control.breaker;
    let writing = breaker.writes.lock().await;
    let levels = breaker.levels.load_full();
    let own = levels.own(wish.domain.as_deref()).map_or(&[][..], Vec::as_slice);
    let is_new = !own.iter().any(|set| set.source == BY_HAND);
    if wish.level != Level::Normal && wish.domain.is_some() && is_new && levels.by_hand >= MOST_LEVELS {
        return Err(OpError::NotPossible(format!("{MOST_LEVELS} domains have a level of their own already")));
    }
    let mut changes = Vec::new();
    if wish.level == Level::Normal {
        // Who opens by hand opens: a trigger that sees a reason again pulls again.
        let pulled = own.iter().filter(|set| set.source != BY_HAND);
        changes.extend(pulled.map(|set| Change::end(&wish, &set.source)));
    }
    if wish.level != Level::Normal || !is_new || changes.is_empty() {
        changes.push(Change { wish, source: BY_HAND.into() });
    }
    apply(exchange, actor, changes).await?;
    drop(writing);
    Ok(())
}

/// Sets levels for a trigger: all of them or none. What it has no place for it leaves out; how many these are.
///
/// # Errors
/// The store's.
pub(crate) async fn pull(
    exchange: &Arc<Exchange>,
    trigger: &str,
    wishes: Vec<Wish>,
) -> Result<usize, OpError> {
    let breaker = &exchange.control.breaker;
    let writing = breaker.writes.lock().await;
    let levels = breaker.levels.load_full();
    let mut room = MOST_PULLED.saturating_sub(levels.pulled);
    let all = wishes.len();
    let mut changes = Vec::new();
    for wish in wishes {
        let own = levels.own(wish.domain.as_deref());
        let has_place =
            wish.domain.is_none() || own.is_some_and(|own| own.iter().any(|set| set.source == trigger));
        if !has_place && room == 0 {
            continue;
        }
        room -= usize::from(!has_place);
        changes.push(Change { wish, source: trigger.to_owned() });
    }
    let left_out = all - changes.len();
    apply(exchange, &Actor::trigger(trigger), changes).await?;
    drop(writing);
    Ok(left_out)
}

/// One level that is set or, as `normal`, taken away.
#[derive(Debug)]
struct Change {
    wish: Wish,
    /// Whose level it is.
    source: String,
}

impl Change {
    /// Takes away what `source` has set for what the wish is about.
    fn end(wish: &Wish, source: &Source) -> Change {
        Change { wish: Wish { level: Level::Normal, until: None, ..wish.clone() }, source: source.to_owned() }
    }

    fn what(&self) -> String {
        match &self.wish.domain {
            Some(domain) => format!("breaker set {domain} {}", self.wish.level.name()),
            None => format!("breaker set {}", self.wish.level.name()),
        }
    }

    fn statement(&self, after: Option<&Set>) -> Statement {
        let key = self.wish.domain.clone().unwrap_or_default();
        let Some(set) = after else {
            return sql("DELETE FROM federation_levels WHERE domain = ?1 AND source = ?2")
                .bind(key)
                .bind(&self.source);
        };
        sql("INSERT INTO federation_levels (domain, source, level, reason, until, set_by, set_at) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) ON CONFLICT (domain, source) DO UPDATE SET \
             level = excluded.level, reason = excluded.reason, until = excluded.until, \
             set_by = excluded.set_by, set_at = excluded.set_at")
        .bind(key)
        .bind(&self.source)
        .bind(set.level.name())
        .bind(&set.reason)
        .bind(set.until)
        .bind(&set.set_by)
        .bind(set.set_at)
    }
}

/// Changes in one batch with their audit entries, then in force. The caller holds [`Breaker::writes`].
async fn apply(exchange: &Arc<Exchange>, actor: &Actor, changes: Vec<Change>) -> Result<(), OpError> {
    if changes.is_empty() {
        return Ok(());
    }
    let control = &exchange.control;
    let breaker = &control.breaker;
    let now = control.now();
    let old = breaker.levels.load_full();
    let mut levels = Levels::clone(&old);
    let mut batch = Batch::new(Lane::Inside);
    let json = |set: Option<&Arc<Set>>| set.and_then(|set| serde_json::to_string(&**set).ok());
    for change in &changes {
        let wish = &change.wish;
        let domain = wish.domain.as_deref();
        let before = old.own(domain).and_then(|own| own.iter().find(|set| set.source == change.source));
        let after = (wish.level != Level::Normal).then(|| {
            Arc::new(Set {
                level: wish.level,
                reason: wish.why.clone(),
                set_by: actor.name.clone(),
                set_at: now,
                until: wish.until,
                source: change.source.clone(),
            })
        });
        batch.push(change.statement(after.as_deref()));
        // What people do is always written.
        let line = match actor.face == Face::Trigger && change.source != BY_HAND {
            true => breaker.diary.lock().line(now, after.is_some()),
            false => Line::Written,
        };
        match line {
            Line::Written => {
                let pair = (json(before), json(after.as_ref()));
                batch.push(control.audit.entry(actor, &change.what(), &wish.why, pair));
            }
            Line::LastWritten => {
                let why =
                    "triggers set levels so often that what follows in this hour is counted, not listed";
                batch.push(control.audit.entry(actor, "breaker set, many times", why, (None, None)));
            }
            Line::Counted => {}
        }
        levels.put(domain, &change.source, after);
    }
    exchange.db.run(batch).await.map_err(|error| OpError::Store(error.to_string()))?;
    // What the configuration says may have changed meanwhile.
    levels.configured.clone_from(&breaker.levels.load().configured);
    let levels = Arc::new(levels);
    breaker.levels.store(Arc::clone(&levels));
    control.in_force(exchange);
    let mut told = HashSet::new();
    for change in &changes {
        let domain = change.wish.domain.as_deref();
        if told.insert(domain) {
            tell(exchange, domain, (&old, &levels));
        }
    }
    Ok(())
}

/// Tells of what holds for a domain or for all now, if it is something else than before.
fn tell(exchange: &Arc<Exchange>, domain: Option<&str>, (old, new): (&Levels, &Levels)) {
    let now = exchange.control.now();
    // The level before may have ended already: that is what is told.
    let before = old.own(domain).and_then(|own| own.iter().map(|set| set.level).max());
    let after = new.own(domain).and_then(|own| strictest(own, now));
    let moved = before.unwrap_or_default() != after.map_or(Level::Normal, |set| set.level);
    // While the configuration closes everything, what is set for all changes nothing.
    if moved && (domain.is_some() || exchange.config.load().federation.enabled) {
        let view = after.map_or_else(LevelView::default, |set| set.view(None));
        announce::moved(exchange, LevelView { domain: domain.map(str::to_owned), ..view });
    } else if domain.is_none() {
        announce::write_file(exchange, &exchange.control.breaker.view(now).all);
    }
}

/// What is written about one change by a trigger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Line {
    Written,
    /// That what follows is not.
    LastWritten,
    Counted,
}

impl Diary {
    fn line(&mut self, now: i64, pulled: bool) -> Line {
        if self.left_out == (0, 0) && now.saturating_sub(self.since) >= HOUR {
            *self = Diary { since: now, ..Diary::default() };
        }
        if self.entries < MOST_ENTRIES {
            self.entries += 1;
            return Line::Written;
        }
        let is_first = self.left_out == (0, 0);
        let count = if pulled { &mut self.left_out.0 } else { &mut self.left_out.1 };
        *count += 1;
        if is_first { Line::LastWritten } else { Line::Counted }
    }

    /// At the end of an hour: what was left out, and when it began.
    fn sum(&mut self, now: i64) -> Option<(i64, (u64, u64))> {
        if self.left_out == (0, 0) || now.saturating_sub(self.since) < HOUR {
            return None;
        }
        let before = std::mem::replace(self, Diary { since: now, ..Diary::default() });
        Some((before.since, before.left_out))
    }
}

/// The entry for what triggers did beyond [`MOST_ENTRIES`] in the hour that is over.
async fn write_sum(exchange: &Arc<Exchange>) {
    let control = &exchange.control;
    let Some((since, (pulled, ended))) = control.breaker.diary.lock().sum(control.now()) else { return };
    let after = serde_json::json!({ "since": since, "pulled": pulled, "ended": ended }).to_string();
    let entry = control.audit.entry(
        &Actor::trigger("triggers"),
        "breaker set, many times",
        "so often in one hour that it was counted",
        (None, Some(after)),
    );
    if let Err(error) = exchange.db.run(Batch::new(Lane::Inside).with(entry)).await {
        tracing::error!(%error, pulled, ended, "what triggers did can't be written to the audit log");
    }
}

/// Takes back what is over. When the next one ends: milliseconds since 1970.
pub(super) async fn end(exchange: &Arc<Exchange>) -> Option<i64> {
    write_sum(exchange).await;
    let control = &exchange.control;
    let writing = control.breaker.writes.lock().await;
    let now = control.now();
    let levels = control.breaker.levels.load_full();
    let next = levels.each().filter_map(|(_, set)| set.until).filter(|until| *until > now).min();
    let over = levels.each().filter(|(_, set)| set.has_ended(now));
    let mut changes: Vec<Change> = over
        .map(|(domain, set)| {
            let (domain, why) = (domain.map(str::to_owned), "its time is over".into());
            let wish = Wish { domain, level: Level::Normal, why, until: None };
            Change { wish, source: set.source.clone() }
        })
        .collect();
    let more = changes.len() > ENDED;
    changes.truncate(ENDED);
    if let Err(error) = apply(exchange, &Actor::trigger("end time"), changes).await {
        // They hold no more all the same; their rows are looked at again.
        tracing::error!(%error, "levels of the breaker that are over can't be removed");
        return next;
    }
    drop(writing);
    if more { Some(now) } else { next }
}

/// `federation close`: the breaker's last level.
///
/// # Errors
/// What the caller did wrong, or the store's.
pub(crate) async fn close(
    exchange: &Arc<Exchange>,
    actor: &Actor,
    domain: Option<String>,
) -> Result<Outcome, OpError> {
    let said = match &domain {
        Some(domain) => format!("{domain} is cut off until it is opened again."),
        None => "The outside is cut off until it is opened again.".into(),
    };
    let why = "closed by an administrator".into();
    set(exchange, actor, Wish { domain, level: Level::Closed, why, until: None }).await?;
    Ok(Outcome::Done { text: said })
}

/// `federation open`: takes a close back, or whatever level is set.
///
/// # Errors
/// What the caller did wrong, or the store's.
pub(crate) async fn open(
    exchange: &Arc<Exchange>,
    actor: &Actor,
    domain: Option<String>,
) -> Result<Outcome, OpError> {
    let control = &exchange.control;
    if let Some(name) = &domain {
        let canonical = rule::domain(name).map_err(OpError::BadAddress)?;
        if !control.breaker.levels.load().domains.contains_key(&canonical) {
            return Err(OpError::NotPossible(format!("{canonical} was not closed")));
        }
    }
    let why = "opened by an administrator".into();
    set(exchange, actor, Wish { domain: domain.clone(), level: Level::Normal, why, until: None }).await?;
    let text = match domain {
        Some(domain) => match control.access(&domain) {
            super::Access::Open => format!("{domain} is open."),
            super::Access::Blocked(_) => format!("{domain} is open, but it is blocked."),
            super::Access::Closed(_) => format!("{domain} is open, but the outside as a whole is cut off."),
        },
        None if exchange.config.load().federation.enabled => "Federation is open.".into(),
        None => "Federation is open, but federation.enabled is false.".into(),
    };
    Ok(Outcome::Done { text })
}
