//! The graded cut-off: by hand or by a trigger, for one domain or for all.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use trunkline_store::{Batch, Lane, StoreError, sql};

use super::{announce, rule};
use crate::admin::actor::Actor;
use crate::admin::{OpError, Outcome};
use crate::config::Config;
use crate::exchange::Exchange;

/// Domains with a level of their own.
const MOST_LEVELS: usize = 10_000;

/// The levels in force.
#[derive(Debug, Default)]
pub struct Breaker {
    levels: ArcSwap<Levels>,
    /// Held by who changes them, from the decision to the store's answer.
    writes: tokio::sync::Mutex<()>,
}

#[derive(Clone, Debug, Default)]
struct Levels {
    /// `federation.enabled = false`.
    configured: Option<Arc<Set>>,
    all: Option<Arc<Set>>,
    domains: HashMap<String, Arc<Set>>,
}

/// A level that is set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Set {
    pub(super) level: Level,
    pub(super) reason: String,
    pub(super) set_by: String,
    set_at: i64,
    pub(super) until: Option<i64>,
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
            if let Some(set) = levels.domains.get(name).filter(|set| !set.has_ended(now))
                && found.as_ref().is_none_or(|found| found.level < set.level)
            {
                found = Some(Arc::clone(set));
            }
        }
        found
    }

    /// What was set for exactly this: a domain, or all.
    pub(super) fn own(&self, domain: Option<&str>, now: i64) -> Option<Arc<Set>> {
        let levels = self.levels.load();
        let set = match domain {
            Some(domain) => levels.domains.get(domain),
            None => levels.for_all(now),
        };
        set.filter(|set| !set.has_ended(now)).cloned()
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
            })
        });
        self.levels.store(Arc::new(levels));
    }

    /// As it is.
    pub fn view(&self, now: i64) -> BreakerView {
        self.view_with(now, &[])
    }

    fn view_with(&self, now: i64, triggers: &[super::triggers::Trigger]) -> BreakerView {
        let levels = self.levels.load();
        let mut domains: Vec<LevelView> = levels
            .domains
            .iter()
            .filter(|(_, set)| !set.has_ended(now))
            .map(|(domain, set)| set.view(Some(domain)))
            .collect();
        domains.sort_by(|a, b| a.domain.cmp(&b.domain));
        BreakerView {
            all: levels.for_all(now).map_or_else(LevelView::default, |set| set.view(None)),
            domains,
            triggers: triggers.iter().map(super::triggers::Trigger::words).collect(),
        }
    }
}

impl Levels {
    fn for_all(&self, now: i64) -> Option<&Arc<Set>> {
        self.configured.as_ref().or_else(|| self.all.as_ref().filter(|set| !set.has_ended(now)))
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
        .read(sql("SELECT domain, level, reason, until, set_by, set_at FROM federation_levels"))
        .await?;
    let mut levels = Levels::clone(&exchange.control.breaker.levels.load());
    for row in rows.iter() {
        // A level of a newer version than this: the strictest is the safe one.
        let set = Arc::new(Set {
            level: Level::parse(row.text(1)).unwrap_or(Level::Closed),
            reason: row.text(2).to_owned(),
            until: row.opt_int(3),
            set_by: row.text(4).to_owned(),
            set_at: row.int(5),
        });
        match row.text(0) {
            "" => levels.all = Some(set),
            domain => {
                levels.domains.insert(domain.to_owned(), set);
            }
        }
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
    /// Sets a level.
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

/// Sets a level: in the store with its audit entry, then in force.
///
/// # Errors
/// What the caller did wrong, or the store's.
pub(crate) async fn set(exchange: &Arc<Exchange>, actor: &Actor, wish: Wish) -> Result<(), OpError> {
    let control = &exchange.control;
    let breaker = &control.breaker;
    let domain = wish.domain.as_deref().map(rule::domain).transpose().map_err(OpError::BadAddress)?;
    rule::short(&wish.why).map_err(|text| OpError::NotPossible(format!("why: {text}")))?;
    let now = control.now();
    if wish.until.is_some_and(|until| until <= now) {
        return Err(OpError::NotPossible("until: that time is over".into()));
    }
    let _writing = breaker.writes.lock().await;
    let before = {
        let levels = breaker.levels.load();
        match &domain {
            None => levels.all.clone(),
            Some(domain) => levels.domains.get(domain).cloned(),
        }
    };
    if before.is_none() && domain.is_some() && breaker.levels.load().domains.len() >= MOST_LEVELS {
        return Err(OpError::NotPossible(format!("{MOST_LEVELS} domains have a level of their own already")));
    }
    let after = (wish.level != Level::Normal).then(|| {
        Arc::new(Set {
            level: wish.level,
            reason: wish.why.clone(),
            set_by: actor.name.clone(),
            set_at: now,
            until: wish.until,
        })
    });
    let view = after.as_ref().map_or_else(LevelView::default, |set| set.view(None));
    let moved = before.as_ref().map_or(Level::Normal, |set| set.level) != wish.level;
    let view = LevelView { domain: domain.clone(), ..view };
    let key = domain.clone().unwrap_or_default();
    let change = match &after {
        Some(set) => sql("INSERT INTO federation_levels (domain, level, reason, until, set_by, set_at) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT (domain) DO UPDATE SET level = excluded.level, \
             reason = excluded.reason, until = excluded.until, set_by = excluded.set_by, set_at = excluded.set_at")
        .bind(key)
        .bind(set.level.name())
        .bind(&set.reason)
        .bind(set.until)
        .bind(&set.set_by)
        .bind(set.set_at),
        None => sql("DELETE FROM federation_levels WHERE domain = ?1").bind(key),
    };
    let what = match &domain {
        Some(domain) => format!("breaker set {domain} {}", wish.level.name()),
        None => format!("breaker set {}", wish.level.name()),
    };
    let json = |set: &Option<Arc<Set>>| set.as_ref().and_then(|set| serde_json::to_string(&**set).ok());
    let entry = control.audit.entry(actor, &what, &wish.why, (json(&before), json(&after)));
    let batch = Batch::new(Lane::Inside).with(change).with(entry);
    exchange.db.run(batch).await.map_err(|error| OpError::Store(error.to_string()))?;
    let mut levels = Levels::clone(&breaker.levels.load());
    match (domain, after) {
        (None, after) => levels.all = after,
        (Some(domain), Some(after)) => {
            levels.domains.insert(domain, after);
        }
        (Some(domain), None) => {
            levels.domains.remove(&domain);
        }
    }
    breaker.levels.store(Arc::new(levels));
    control.in_force(exchange);
    // While the configuration closes everything, what is set for all changes nothing.
    if moved && (view.domain.is_some() || exchange.config.load().federation.enabled) {
        announce::moved(exchange, view);
    } else if view.domain.is_none() {
        announce::write_file(exchange, &breaker.view(now).all);
    }
    Ok(())
}

/// Takes back what is over. When the next one ends: milliseconds since 1970.
pub(super) async fn end(exchange: &Arc<Exchange>) -> Option<i64> {
    let control = &exchange.control;
    let now = control.now();
    let (over, next): (Vec<Option<String>>, Option<i64>) = {
        let levels = control.breaker.levels.load();
        let domains = levels.domains.iter().map(|(domain, set)| (Some(domain.clone()), set));
        let all: Vec<_> = levels.all.iter().map(|set| (None, set)).chain(domains).collect();
        let next = all.iter().filter_map(|(_, set)| set.until).filter(|until| *until > now).min();
        (all.into_iter().filter(|(_, set)| set.has_ended(now)).map(|(domain, _)| domain).collect(), next)
    };
    let actor = Actor::trigger("end time");
    for domain in over {
        let wish = Wish { domain, level: Level::Normal, why: "its time is over".into(), until: None };
        if let Err(error) = set(exchange, &actor, wish).await {
            // It holds no more all the same; its row is looked at again.
            tracing::error!(%error, "a level of the breaker that is over can't be removed");
        }
    }
    next
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
