//! What pulls the breaker by itself. None does unless the configuration says so: a server that cuts people off should do
//! so because its operator decided when.
//!
//! A trigger pulls when its measure is above its threshold at two looks in a row, and for a given time. While the
//! measure stays above half of the threshold when that time is nearly over, the time starts anew: a flood that goes on
//! does not get a break every ten minutes, and one around the threshold does not make the breaker flutter. What it
//! pulls stands beside what somebody set by hand and what other triggers pulled: the strictest holds, and each ends at
//! its own time.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::breaker::{self, Level, Wish};
use super::rule::RuleError;
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
    /// When a domain with a queue was seen closed for the last time. Only of those whose queue is measured.
    closed: HashMap<String, i64>,
}

impl Watch {
    /// Looks at every measure once, and pulls what is to be pulled.
    pub(super) async fn look(&mut self, exchange: &Arc<Exchange>) {
        let config = exchange.config.load_full();
        let triggers = &config.federation.triggers;
        if triggers.is_empty() {
            *self = Watch::default();
            return;
        }
        let mut above = HashMap::new();
        let mut pulls = 0;
        for (index, trigger) in triggers.iter().enumerate() {
            let mut pulled = Vec::new();
            for (domain, value) in measure(exchange, trigger, &mut self.closed) {
                let key = (index, domain);
                let is_set = breaker_of(exchange, trigger, &key.1);
                let mut pull = is_set == Pulled::ByThisAndNearlyOver && value > trigger.above / 2;
                if value > trigger.above {
                    let looks = self.above.get(&key).map_or(1, |looks| looks.saturating_add(1));
                    pull |= looks >= STEADY && is_set == Pulled::Less;
                    above.insert(key.clone(), looks);
                }
                if pull && pulls < MOST_PULLS {
                    pulls += 1;
                    pulled.push((key.1, value));
                }
            }
            pull(exchange, trigger, pulled).await;
        }
        self.above = above;
    }
}

/// The measure, for each domain that has one; all together have an empty name.
fn measure(exchange: &Exchange, trigger: &Trigger, closed: &mut HashMap<String, i64>) -> Vec<(String, u32)> {
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
            let mut still = HashMap::new();
            for peer in remote.status().peers {
                let Some(oldest) = peer.queue_oldest else { continue };
                // What can't leave because we are closed does not keep us closed: its age counts from then on.
                let level = exchange.control.breaker.level(Some(&peer.domain), now);
                let closed = if level == Level::Closed { Some(now) } else { closed.remove(&peer.domain) };
                let age = now.saturating_sub(oldest.max(closed.unwrap_or(oldest))) / 1000;
                if let Some(at) = closed {
                    still.insert(peer.domain.clone(), at);
                }
                found.push((peer.domain, u32::try_from(age.max(0)).unwrap_or(u32::MAX)));
            }
            *closed = still;
            if trigger.of == Scope::All {
                return vec![(String::new(), found.iter().map(|(_, age)| *age).max().unwrap_or(0))];
            }
        }
    }
    found
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Pulled {
    /// What holds is milder than what the trigger would set.
    Less,
    /// By this trigger, and its time is nearly over.
    ByThisAndNearlyOver,
    /// By this trigger, or somebody went as far or further.
    Enough,
}

fn breaker_of(exchange: &Exchange, trigger: &Trigger, domain: &str) -> Pulled {
    let breaker = &exchange.control.breaker;
    let now = exchange.control.now();
    let name = (!domain.is_empty()).then_some(domain);
    if let Some(own) = breaker.pulled(name, &trigger.name(), now) {
        let soon = i64::try_from(LOOK.as_millis() * 2).unwrap_or(i64::MAX);
        let over = own.until.is_some_and(|until| until.saturating_sub(now) <= soon);
        return if over { Pulled::ByThisAndNearlyOver } else { Pulled::Enough };
    }
    if breaker.level(name, now) < trigger.level { Pulled::Less } else { Pulled::Enough }
}

async fn pull(exchange: &Arc<Exchange>, trigger: &Trigger, domains: Vec<(String, u32)>) {
    if domains.is_empty() {
        return;
    }
    let lasts = i64::try_from(trigger.lasts).unwrap_or(i64::MAX).saturating_mul(1000);
    let wish = |domain: &str| Wish {
        domain: (!domain.is_empty()).then(|| domain.to_owned()),
        level: trigger.level,
        why: trigger.reason(),
        until: Some(exchange.control.now().saturating_add(lasts)),
    };
    let wishes = domains.iter().map(|(domain, _)| wish(domain)).collect();
    let (name, level) = (trigger.name(), trigger.level.name());
    match breaker::pull(exchange, &name, wishes).await {
        Ok(left_out) => {
            let (domain, value) =
                domains.first().map_or(("", 0), |(domain, value)| (domain.as_str(), *value));
            let count = domains.len() - left_out;
            tracing::warn!(domain, value, level, count, left_out, "{name}: the breaker was pulled");
        }
        Err(error) => tracing::error!(%error, "{name}: the breaker can't be pulled"),
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
