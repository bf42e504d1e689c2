//! The judgement: what becomes of a stanza, and which rule says so. First match wins.
//!
//! It is asked for twice. The *edge* (a federation thread) asks before a stanza crosses, when nobody knows yet how the
//! two people stand to each other; what depends on that is [`Verdict::Undecided`]. The *account* asks again with the
//! relation. What the edge has carried out already (a limit, a mark, links taken out) the account does not do again.
//!
//! | order | what decides |
//! |---|---|
//! | 1 | the breaker: closed; below that, who may still talk |
//! | 2 | blocks |
//! | 3 | the rules, those of the configuration first |
//! | 4 | what block lists do by themselves |
//! | 5 | the preset |
//!
//! `limit`, `mark` and `text-only` change how something passes and not whether: behind them the preset is asked, so that
//! a limited domain's strangers are still held for consent.

use std::cell::OnceCell;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use trunkline_xmpp::error::{Condition, ErrorType, StanzaError};
use trunkline_xmpp::jid::Jid;
use trunkline_xmpp::stanza::{Kind, Stanza};

use super::breaker::Level;
use super::content;
use super::policy::RuleView;
use super::rule::{Action, Authentication, Conditions, Direction, Kinds, Per, Relation, Rule, StanzaKind};
use super::text;

/// Domains that one limit counts one by one. Those beyond share one more place.
const MOST_LIMITED: usize = 10_000;
/// How long after one search for places in a full table the next may come, in milliseconds.
const SWEEP_EVERY: u64 = 1000;

/// What is to be judged.
#[derive(Clone, Copy, Debug)]
pub struct Case<'a> {
    /// Which way it goes: [`Direction::In`] or [`Direction::Out`].
    pub direction: Direction,
    /// The other provider's domain.
    pub domain: &'a str,
    /// With `from` and `to`.
    pub stanza: &'a Stanza,
    /// How the two people stand to each other; `None`: it is not known here.
    pub relation: Option<Relation>,
}

/// What becomes of a stanza.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// What is done.
    pub verdict: Verdict,
    /// What decided: `rule 3`, `configured rule 1`, `block bad.example`, `breaker no-new-contacts`, `preset careful`.
    pub by: Arc<str>,
    /// If it passes: only its text does. [`Decision::carried_out`] takes out the rest.
    pub text_only: bool,
    /// If it passes: with this mark. [`Decision::carried_out`] puts it on.
    pub mark: Option<String>,
}

impl Decision {
    /// The stanza as it passes: with the mark, or only its text.
    ///
    /// # Errors
    /// Nothing of it is text.
    pub fn carried_out(&self, stanza: Stanza, direction: Direction) -> Result<Stanza, StanzaError> {
        let ours = match direction {
            Direction::Out => stanza.head.from.clone(),
            Direction::In | Direction::Both => stanza.head.to.clone(),
        };
        // What servers ask each other is no text, and nobody reads it.
        let is_service = ours.as_ref().is_none_or(|ours| ours.local().is_none());
        let whole = !self.text_only || is_service && matches!(stanza.head.kind, Kind::Iq(_));
        let stanza = if whole { stanza } else { text::text_only(&stanza)? };
        Ok(match (&self.mark, ours) {
            (Some(text), Some(ours)) => content::mark(&stanza, ours.domain(), text),
            _ => stanza,
        })
    }
}

/// What is done with a stanza.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It passes.
    Allow,
    /// Its sender gets this error, if it is a stanza that is answered with one.
    Reject(StanzaError),
    /// It vanishes.
    Drop,
    /// It waits for consent.
    Hold,
    /// It depends on the relation: pass it on to who knows, and ask again there.
    Undecided,
}

/// What conditions ask about that is not in the stanza. Asked for every stanza: nothing here waits.
pub(super) trait Facts {
    /// When the domain was seen for the first time: milliseconds since 1970.
    fn first_seen(&self, domain: &str) -> Option<i64>;
    /// How the domain proved itself last.
    fn authentication(&self, domain: &str) -> Option<Authentication>;
    /// Stanzas from and to it in the last minute.
    fn rate(&self, domain: &str) -> u32;
    /// 0 to 100, where it is known.
    fn reputation(&self, domain: &str) -> Option<u8>;
    /// Is on the list of this name.
    fn is_listed(&self, list: &str, who: &str) -> bool;
}

/// A rule in force, with what it counts.
#[derive(Debug)]
pub(super) struct Armed {
    /// Of the store's; `None`: of the configuration or a preset.
    pub(super) id: Option<i64>,
    pub(super) rule: Rule,
    /// As its author wrote it.
    pub(super) written: Rule,
    pub(super) set_by: String,
    pub(super) set_at: i64,
    by: Arc<str>,
    pub(super) hits: AtomicU64,
    pub(super) shadow_hits: AtomicU64,
    limiter: Limiter,
}

impl Armed {
    pub(super) fn new(id: Option<i64>, by: &str, mut rule: Rule, set: (String, i64)) -> Arc<Armed> {
        let written = rule.clone();
        // Who has consented has consented: only strangers can be held.
        if rule.then == Action::Hold && rule.when.relation.is_empty() {
            rule.when.relation = vec![Relation::Stranger];
        }
        Arc::new(Armed {
            id,
            rule,
            written,
            set_by: set.0,
            set_at: set.1,
            by: by.into(),
            hits: AtomicU64::new(0),
            shadow_hits: AtomicU64::new(0),
            limiter: Limiter::default(),
        })
    }

    /// What the judgement calls it.
    pub(super) fn name(&self) -> &Arc<str> {
        &self.by
    }

    pub(super) fn view(&self) -> RuleView {
        RuleView {
            id: self.id,
            rule: self.written.clone(),
            set_by: self.set_by.clone(),
            set_at: self.set_at,
            hits: self.hits.load(Ordering::Relaxed),
            shadow_hits: self.shadow_hits.load(Ordering::Relaxed),
        }
    }

    pub(super) fn needs_relation(&self) -> bool {
        !self.rule.when.relation.is_empty()
    }

    fn count(&self) {
        let counter = if self.rule.shadow { &self.shadow_hits } else { &self.hits };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// A domain that is blocked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Blocked {
    pub(super) domain: String,
    pub(super) reason: String,
}

/// Everything a judgement needs, taken at one moment.
pub(super) struct Bench<'a> {
    pub(super) level: Level,
    /// Why, for local users.
    pub(super) level_reason: &'a str,
    pub(super) blocked: Option<&'a Blocked>,
    pub(super) rules: [&'a [Arc<Armed>]; 3],
    /// `None`: everything passes.
    pub(super) preset: Option<&'a Arc<Armed>>,
    pub(super) facts: &'a dyn Facts,
    pub(super) now: i64,
}

/// One judgement.
pub(super) struct Trial<'a> {
    bench: &'a Bench<'a>,
    case: &'a Case<'a>,
    kinds: OnceCell<Kinds>,
    /// False: nothing is counted and no limit is used up.
    real: bool,
    trace: Vec<String>,
    reason: String,
    /// The edge stopped before the rule that is looked at, so nothing from here on was carried out there.
    edge_stopped: bool,
}

/// Whether a rule applies.
enum Fit {
    Yes,
    /// In everything but the relation, which is not known here.
    AllButRelation,
    /// What is not as the rule asks.
    No(&'static str),
}

const OTHER_RELATION: &str = "they stand otherwise to each other";

/// What a rule says.
enum Ruling {
    /// This is what becomes of it.
    Final(Verdict),
    /// It may pass so, as far as this rule goes.
    Passing { mark: Option<String>, text_only: bool },
}

/// Where a judgement takes place.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Before the crossing: a relation exists and is not known yet.
    Edge,
    /// There is no account of ours in it, so there is no relation.
    Service,
    /// At the account.
    Account,
}

impl<'a> Trial<'a> {
    pub(super) fn new(bench: &'a Bench<'a>, case: &'a Case<'a>) -> Trial<'a> {
        Trial {
            bench,
            case,
            kinds: OnceCell::new(),
            real: true,
            trace: Vec::new(),
            reason: String::new(),
            edge_stopped: false,
        }
    }

    /// Only asks: nothing is counted. Returns the judgement, everything of it in one place, with what was looked at and
    /// the reason that the deciding rule gives.
    pub(super) fn rehearse(mut self) -> (Decision, Vec<String>, String) {
        self.real = false;
        self.edge_stopped = true;
        let decision = self.judge();
        (decision, self.trace, self.reason)
    }

    pub(super) fn judge(&mut self) -> Decision {
        let bench = self.bench;
        let mut undecided = false;
        match self.level() {
            Some(Verdict::Undecided) => undecided = true,
            Some(verdict) => return decision(verdict, &level_name(bench.level)),
            None => {}
        }
        if let Some(blocked) = bench.blocked {
            let by: Arc<str> = format!("block {}", blocked.domain).into();
            self.note(|| format!("{by}: applies"));
            let error = StanzaError::new(Condition::PolicyViolation).text(self.said(&blocked.reason));
            return decision(Verdict::Reject(error), &by);
        }
        let mut settled = self.settle();
        if settled.verdict == Verdict::Allow && undecided {
            settled.verdict = Verdict::Undecided;
            settled.by = level_name(bench.level);
        }
        // The edge takes it out; at the account it is out.
        settled.text_only |= bench.level == Level::TextOnly && (self.stage() != Stage::Account || !self.real);
        settled
    }

    /// Rules, and behind them the preset.
    fn settle(&mut self) -> Decision {
        let (mark, text_only, by) = match self.rules() {
            Some((Ruling::Final(verdict), by)) => return decision(verdict, &by),
            Some((Ruling::Passing { mark, text_only }, by)) => (mark, text_only, Some(by)),
            None => (None, false, None),
        };
        // A mark or a limit does not let a stranger in.
        match (self.preset(), by) {
            (Some((Ruling::Final(verdict), preset)), _) => {
                Decision { text_only, mark, ..decision(verdict, &preset) }
            }
            (_, Some(by)) => Decision { text_only, mark, ..decision(Verdict::Allow, &by) },
            (_, None) => decision(Verdict::Allow, &Arc::from("preset")),
        }
    }

    fn stage(&self) -> Stage {
        let ours = match self.case.direction {
            Direction::Out => &self.case.stanza.head.from,
            Direction::In | Direction::Both => &self.case.stanza.head.to,
        };
        match self.case.relation {
            Some(_) => Stage::Account,
            None if ours.as_ref().is_none_or(|ours| ours.local().is_none()) => Stage::Service,
            None => Stage::Edge,
        }
    }

    fn other(&self) -> Option<&'a Jid> {
        match self.case.direction {
            Direction::Out => self.case.stanza.head.to.as_ref(),
            Direction::In | Direction::Both => self.case.stanza.head.from.as_ref(),
        }
    }

    fn kinds(&self) -> Kinds {
        *self.kinds.get_or_init(|| content::kinds(self.case.stanza))
    }

    fn note(&mut self, line: impl FnOnce() -> String) {
        if !self.real {
            self.trace.push(line());
        }
    }

    /// What the breaker's level says; `None`: nothing.
    fn level(&mut self) -> Option<Verdict> {
        let level = self.bench.level;
        let refused = |text: &str| {
            let reason = self.bench.level_reason;
            let tail = match (self.case.direction, reason) {
                (Direction::Out, reason) if !reason.is_empty() => format!(": {reason}"),
                _ => ".".into(),
            };
            Verdict::Reject(StanzaError::new(Condition::PolicyViolation).text(format!("{text}{tail}")))
        };
        // On the way out the streams see to it: what may wait until it is over is queued.
        if level == Level::Closed && self.case.direction == Direction::Out && self.real {
            return None;
        }
        if level == Level::Closed {
            let error = refused("This server is cut off from other providers for the time being");
            self.note(|| "breaker closed: applies".into());
            return Some(error);
        }
        let contact_needed = level >= Level::GrantedOnly;
        if level == Level::Normal
            || self.stage() == Stage::Service
            || self.case.stanza.head.kind.is_response()
        {
            return None;
        }
        if !contact_needed && !self.kinds().include_any(FIRST_CONTACTS) {
            return None;
        }
        match self.case.relation {
            None => Some(Verdict::Undecided),
            Some(Relation::Contact) => None,
            Some(Relation::Conversation) if !contact_needed => None,
            Some(_) => {
                let error = refused(
                    "This server lets only people who know each other talk across providers just now",
                );
                let name = level_name(level);
                self.note(|| format!("{name}: applies"));
                Some(error)
            }
        }
    }

    /// The first rule that applies.
    fn rules(&mut self) -> Option<(Ruling, Arc<str>)> {
        let bench = self.bench;
        bench.rules.into_iter().flatten().find_map(|rule| self.try_rule(rule))
    }

    fn preset(&mut self) -> Option<(Ruling, Arc<str>)> {
        let preset = self.bench.preset?;
        self.try_rule(preset)
    }

    fn try_rule(&mut self, armed: &Arc<Armed>) -> Option<(Ruling, Arc<str>)> {
        let fit = match armed.rule.has_ended(self.bench.now) {
            true => Fit::No("its time is over"),
            false => self.fits(&armed.rule),
        };
        // What the edge has seen, it has counted and carried out.
        let mine = self.stage() != Stage::Account || self.edge_stopped || armed.needs_relation();
        match fit {
            Fit::No(why) => {
                self.note(|| format!("{}: {why}", armed.by));
                // Seen from the account: the edge did not know, and stopped here.
                self.edge_stopped |= why == OTHER_RELATION && !armed.rule.shadow;
                None
            }
            Fit::AllButRelation if armed.rule.shadow => None,
            Fit::AllButRelation => Some((Ruling::Final(Verdict::Undecided), Arc::clone(&armed.by))),
            Fit::Yes => {
                if self.real && mine {
                    armed.count();
                }
                let shadow = armed.rule.shadow;
                if !self.real && !shadow {
                    self.reason.clone_from(&armed.rule.reason);
                }
                self.note(|| match shadow {
                    true => format!("{}: would {}, but is in shadow", armed.by, armed.rule.then.name()),
                    false => format!("{}: applies", armed.by),
                });
                (!shadow).then(|| (self.ruling(armed, mine), Arc::clone(&armed.by)))
            }
        }
    }

    fn fits(&self, rule: &Rule) -> Fit {
        let (case, when) = (self.case, &rule.when);
        if rule.direction != Direction::Both && rule.direction != case.direction {
            return Fit::No("it is for the other direction");
        }
        if let Some(domain) = &when.domain
            && !(case.domain == domain || when.subdomains && is_below(case.domain, domain))
        {
            return Fit::No("another domain");
        }
        if let Some(address) = &when.address
            && self.other().is_none_or(|other| other.bare_str() != address)
        {
            return Fit::No("another address");
        }
        if !when.kind.is_empty() && !self.kinds().include_any(&when.kind) {
            return Fit::No("another kind of stanza");
        }
        if when.larger_than.is_some_and(|bytes| case.stanza.size() <= bytes) {
            return Fit::No("not that large");
        }
        if let Some(why) = self.unlike_facts(when) {
            return Fit::No(why);
        }
        if !when.has.iter().all(|content| content::has(case.stanza, *content)) {
            return Fit::No("no such content");
        }
        match (when.relation.as_slice(), case.relation) {
            ([], _) => Fit::Yes,
            (wanted, Some(relation)) if wanted.contains(&relation) => Fit::Yes,
            (_, Some(_)) => Fit::No(OTHER_RELATION),
            (_, None) if self.stage() == Stage::Service => Fit::No("no account of ours is in it"),
            (_, None) => Fit::AllButRelation,
        }
    }

    /// What is known about the domain and not as the rule asks. What is not known is not as it asks.
    fn unlike_facts(&self, when: &Conditions) -> Option<&'static str> {
        let (facts, domain) = (self.bench.facts, self.case.domain);
        if let Some(seconds) = when.first_seen_within {
            let span = i64::try_from(seconds).unwrap_or(i64::MAX).saturating_mul(1000);
            // A domain that nobody remembers is as new as can be: who fills our memory does not grow old by it.
            let young = facts.first_seen(domain).is_none_or(|at| self.bench.now.saturating_sub(at) < span);
            if !young {
                return Some("known for longer");
            }
        }
        if when.authentication.is_some() && facts.authentication(domain) != when.authentication {
            return Some("proved otherwise");
        }
        if when.faster_than.is_some_and(|most| facts.rate(domain) <= most) {
            return Some("not that fast");
        }
        if when
            .reputation_below
            .is_some_and(|below| facts.reputation(domain).is_none_or(|score| score >= below))
        {
            return Some("reputation not that low");
        }
        if let Some(list) = &when.listed_in {
            let listed = facts.is_listed(list, domain)
                || self.other().is_some_and(|other| facts.is_listed(list, other.bare_str()));
            if !listed {
                return Some("not listed");
            }
        }
        None
    }

    /// What a rule that applies says. `mine`: it is carried out here, and was not at the edge.
    fn ruling(&self, armed: &Armed, mine: bool) -> Ruling {
        match &armed.rule.then {
            Action::Allow => Ruling::Final(Verdict::Allow),
            Action::Drop => Ruling::Final(Verdict::Drop),
            Action::Hold => Ruling::Final(Verdict::Hold),
            Action::Reject { condition, text } => {
                let condition =
                    condition.as_deref().and_then(Condition::parse).unwrap_or(Condition::PolicyViolation);
                let text = text.clone().unwrap_or_else(|| self.said(&armed.rule.reason));
                Ruling::Final(Verdict::Reject(StanzaError::new(condition).text(text)))
            }
            Action::Limit { per_minute, per } => {
                let whose = match per {
                    Per::Domain => self.case.domain,
                    Per::Rule => TOGETHER,
                };
                let passes = !mine || !self.real || armed.limiter.take(whose, *per_minute, self.bench.now);
                if passes {
                    return Ruling::Passing { mark: None, text_only: false };
                }
                let error = StanzaError::new(Condition::ResourceConstraint).kind(ErrorType::Wait);
                Ruling::Final(Verdict::Reject(error.text("Too much at once. Try again later.")))
            }
            Action::Mark { text } => Ruling::Passing { mark: mine.then(|| text.clone()), text_only: false },
            Action::TextOnly => Ruling::Passing { mark: None, text_only: mine },
        }
    }

    /// What the sender reads: ours why, outsiders only that.
    fn said(&self, reason: &str) -> String {
        match self.case.direction {
            Direction::Out if !reason.is_empty() => {
                format!("This server's policy does not allow this with {}: {reason}", self.case.domain)
            }
            Direction::Out => format!("This server's policy does not allow this with {}.", self.case.domain),
            Direction::In | Direction::Both => "Refused by this server's policy.".into(),
        }
    }
}

fn decision(verdict: Verdict, by: &Arc<str>) -> Decision {
    Decision { verdict, by: Arc::clone(by), text_only: false, mark: None }
}

fn level_name(level: Level) -> Arc<str> {
    format!("breaker {}", level.name()).into()
}

/// What makes a new contact, as opposed to what follows from one or goes on without.
const FIRST_CONTACTS: &[StanzaKind] =
    &[StanzaKind::Message, StanzaKind::Subscribe, StanzaKind::Call, StanzaKind::Invitation];

/// `name` is a domain below `parent`.
pub(super) fn is_below(name: &str, parent: &str) -> bool {
    name.strip_suffix(parent).is_some_and(|rest| rest.ends_with('.'))
}

/// The name of the bucket for all of a rule; no domain is called so.
const TOGETHER: &str = "";

/// What passes in a minute, for each domain or for all together: a bucket that holds a minute's worth and fills steadily.
#[derive(Debug, Default)]
struct Limiter {
    table: Mutex<Buckets>,
}

#[derive(Debug, Default)]
struct Buckets {
    of: HashMap<String, Bucket>,
    /// When the full table was last looked through, in milliseconds since 1970.
    swept: i64,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    /// In thousandths of a stanza.
    left: u64,
    /// Milliseconds since 1970.
    at: i64,
}

impl Limiter {
    fn take(&self, domain: &str, per_minute: u32, now: i64) -> bool {
        let full = u64::from(per_minute) * 1000;
        let filled = |bucket: &Bucket| {
            let passed = u64::try_from(now.saturating_sub(bucket.at)).unwrap_or(0);
            bucket.left.saturating_add(passed.saturating_mul(u64::from(per_minute)) / 60).min(full)
        };
        let mut table = self.table.lock();
        let Buckets { of: buckets, swept } = &mut *table;
        // A crowd of domains must not make every one of its stanzas a walk through the whole table, under a lock that
        // our own users' stanzas take too. A clock that is set back doesn't end the sweeping.
        let is_due = now.abs_diff(*swept) >= SWEEP_EVERY;
        if is_due && buckets.len() >= MOST_LIMITED && !buckets.contains_key(domain) {
            *swept = now;
            // Who is full again is as one who was never here.
            buckets.retain(|_, bucket| filled(bucket) < full);
        }
        let has_place = buckets.len() < MOST_LIMITED || buckets.contains_key(domain);
        let name = if has_place { domain } else { TOGETHER };
        let bucket = match buckets.get_mut(name) {
            Some(bucket) => bucket,
            None => buckets.entry(name.to_owned()).or_insert(Bucket { left: full, at: now }),
        };
        let left = filled(bucket);
        // Less than a millisecond's worth would be lost if the time moved on with every refusal.
        if left < 1000 {
            return false;
        }
        *bucket = Bucket { left: left - 1000, at: now };
        true
    }
}

#[cfg(test)]
#[path = "judge_tests.rs"]
mod tests;
