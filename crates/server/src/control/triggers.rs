//! What pulls the breaker by itself. None does unless the configuration says so: a server that cuts people off should do
//! so because its operator decided when.
//!
//! A trigger pulls when its measure is above its threshold at two looks in a row, and for a given time. While the
//! measure stays above half of the threshold when that time is nearly over, the time starts anew: a flood that goes on
//! does not get a break every ten minutes, and one around the threshold does not make the breaker flutter. It never
//! takes back or changes what somebody set by hand, and never lowers a level.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::breaker::{self, Level, Wish};
use super::rule::RuleError;
use crate::admin::actor::Actor;
use crate::exchange::Exchange;

/// How often measures are looked at.
pub(super) const LOOK: Duration = Duration::from_secs(5);
/// Looks in a row at which a measure must be above its threshold.
const STEADY: u32 = 2;
/// Domains for which triggers pull at one look. The others' turn is the next one.
const MOST_PULLS: usize = 100;
/// Below so many stanzas and refusals a minute a share says nothing.
const FEW: u32 = 100;

/// What pulls the breaker, when, and how far.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Trigger {
    /// What is measured.
    pub on: Measure,
    /// Stanzas a minute, per cent, or seconds.
    pub above: u32,
    /// Each domain for itself, or all together.
    #[serde(default)]
    pub of: Scope,
    /// How far it pulls.
    pub level: Level,
    /// For how many seconds.
    pub lasts: u64,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Measure {
    /// Stanzas from outside in the last minute.
    Rate,
    /// Per cent of them that were refused, with what else was refused to the domain. Below a hundred: 0.
    ErrorShare,
    /// Seconds since the oldest message waits for a peer.
    QueueAge,
}

/// Of whom it is measured, and who is cut off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// Each domain for itself.
    #[default]
    Domain,
    /// All together.
    All,
}

impl Trigger {
    /// The trigger, if it makes sense.
    ///
    /// # Errors
    /// What the one who wrote it has to mend.
    pub fn checked(self) -> Result<Trigger, RuleError> {
        let wrong = |field, text: &str| Err(RuleError { field, text: text.into() });
        match self {
            Trigger { level: Level::Normal, .. } => wrong("level", "\"normal\" cuts nobody off"),
            Trigger { above: 0, .. } => wrong("above", "0 would cut off everybody at once"),
            Trigger { on: Measure::ErrorShare, above: 100.., .. } => {
                wrong("above", "a share is below 100 per cent")
            }
            Trigger { lasts: 0..30, .. } => wrong("lasts", "at least 30 s"),
            Trigger { lasts: 2_592_001.., .. } => wrong("lasts", "30 days at most"),
            trigger => Ok(trigger),
        }
    }

    /// What it is called: who set a level that it pulled.
    pub fn name(&self) -> String {
        let (measure, unit) = match self.on {
            Measure::Rate => ("rate", " stanzas a minute"),
            Measure::ErrorShare => ("error share", " %"),
            Measure::QueueAge => ("queue age", " s"),
        };
        let of = if self.of == Scope::All { " of all" } else { "" };
        format!("trigger: {measure}{of} above {}{unit}", self.above)
    }

    /// For people.
    pub fn words(&self) -> String {
        format!(
            "{} -> {} for {} s",
            self.name().trim_start_matches("trigger: "),
            self.level.name(),
            self.lasts
        )
    }

    /// What local users read.
    fn reason(&self) -> String {
        match self.on {
            Measure::Rate => "unusually much comes from outside".into(),
            Measure::ErrorShare => "unusually much of what comes from outside had to be refused".into(),
            Measure::QueueAge => "messages can't be delivered there".into(),
        }
    }
}

/// What was seen at the looks before.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// Looks in a row above the threshold, by trigger and domain. Only of those that are above it.
    above: HashMap<(usize, String), u32>,
}

impl Watch {
    /// Looks at every measure once, and pulls what is to be pulled.
    pub(super) async fn look(&mut self, exchange: &Arc<Exchange>) {
        let config = exchange.config.load_full();
        let triggers = &config.federation.triggers;
        if triggers.is_empty() {
            self.above.clear();
            return;
        }
        let mut above = HashMap::new();
        let mut pulls = 0;
        for (index, trigger) in triggers.iter().enumerate() {
            for (domain, value) in measure(exchange, trigger) {
                let key = (index, domain);
                let pulled = breaker_of(exchange, trigger, &key.1);
                if value > trigger.above {
                    let looks = self.above.get(&key).map_or(1, |looks| looks.saturating_add(1));
                    if looks >= STEADY && pulled == Pulled::Less && pulls < MOST_PULLS {
                        pulls += 1;
                        pull(exchange, trigger, &key.1, value).await;
                    }
                    above.insert(key.clone(), looks);
                }
                if pulled == Pulled::ByThisAndNearlyOver && value > trigger.above / 2 && pulls < MOST_PULLS {
                    pulls += 1;
                    pull(exchange, trigger, &key.1, value).await;
                }
            }
        }
        self.above = above;
    }
}

/// The measure, for each domain that has one; all together have an empty name.
fn measure(exchange: &Exchange, trigger: &Trigger) -> Vec<(String, u32)> {
    let share = |rate: u32, refused: u32| {
        let whole = rate.max(refused);
        if whole < FEW {
            0
        } else {
            u32::try_from(u64::from(refused) * 100 / u64::from(whole)).unwrap_or(100)
        }
    };
    let mut found: Vec<(String, u32)> = Vec::new();
    match trigger.on {
        Measure::Rate | Measure::ErrorShare => {
            let minute = exchange.control.traffic.last_minute();
            let value = |rate, refused| if trigger.on == Measure::Rate { rate } else { share(rate, refused) };
            if trigger.of == Scope::All {
                let sum = minute.iter().fold((0u32, 0u32), |sum, (_, rate, refused)| {
                    (sum.0.saturating_add(*rate), sum.1.saturating_add(*refused))
                });
                return vec![(String::new(), value(sum.0, sum.1))];
            }
            found.extend(minute.into_iter().map(|(domain, rate, refused)| (domain, value(rate, refused))));
        }
        Measure::QueueAge => {
            let now = exchange.control.now();
            let Some(remote) = exchange.remote.get() else { return found };
            let ages = remote.status().peers.into_iter().filter_map(|peer| {
                let age = now.saturating_sub(peer.queue_oldest?) / 1000;
                Some((peer.domain, u32::try_from(age.max(0)).unwrap_or(u32::MAX)))
            });
            if trigger.of == Scope::All {
                return vec![(String::new(), ages.map(|(_, age)| age).max().unwrap_or(0))];
            }
            found.extend(ages);
        }
    }
    found
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Pulled {
    /// The level is below that of the trigger.
    Less,
    /// By this trigger, and its time is nearly over.
    ByThisAndNearlyOver,
    /// As far as the trigger would, or further.
    Enough,
}

fn breaker_of(exchange: &Exchange, trigger: &Trigger, domain: &str) -> Pulled {
    let now = exchange.control.now();
    let name = (!domain.is_empty()).then_some(domain);
    let Some(own) = exchange.control.breaker.own(name, now) else {
        let level = exchange.control.breaker.level(name, now);
        return if level < trigger.level { Pulled::Less } else { Pulled::Enough };
    };
    if own.set_by == trigger.name() {
        let soon = i64::try_from(LOOK.as_millis() * 2).unwrap_or(i64::MAX);
        let over = own.until.is_some_and(|until| until.saturating_sub(now) <= soon);
        return if over { Pulled::ByThisAndNearlyOver } else { Pulled::Enough };
    }
    if own.level < trigger.level { Pulled::Less } else { Pulled::Enough }
}

async fn pull(exchange: &Arc<Exchange>, trigger: &Trigger, domain: &str, value: u32) {
    let lasts = i64::try_from(trigger.lasts).unwrap_or(i64::MAX).saturating_mul(1000);
    let wish = Wish {
        domain: (!domain.is_empty()).then(|| domain.to_owned()),
        level: trigger.level,
        why: trigger.reason(),
        until: Some(exchange.control.now().saturating_add(lasts)),
    };
    let (name, level) = (trigger.name(), trigger.level.name());
    match breaker::set(exchange, &Actor::trigger(name.clone()), wish).await {
        Ok(()) => tracing::warn!(domain, value, level, "{name}: the breaker was pulled"),
        Err(error) => tracing::error!(domain, %error, "{name}: the breaker can't be pulled"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn triggers_that_make_no_sense_are_refused() {
        let trigger = |json: &str| serde_json::from_str::<Trigger>(json).unwrap().checked();
        assert!(trigger(r#"{"on":"rate","above":600,"level":"closed","lasts":600}"#).is_ok());
        for (json, field) in [
            (r#"{"on":"rate","above":0,"level":"closed","lasts":600}"#, "above"),
            (r#"{"on":"error-share","above":100,"level":"closed","lasts":600}"#, "above"),
            (r#"{"on":"rate","above":600,"level":"normal","lasts":600}"#, "level"),
            (r#"{"on":"rate","above":600,"level":"closed","lasts":29}"#, "lasts"),
        ] {
            assert_eq!(trigger(json).unwrap_err().field, field, "{json}");
        }
    }
}
