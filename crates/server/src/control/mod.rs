//! Control: what outsiders may do, who decided it, and what came of it.
//!
//! Decisions are made here and carried out elsewhere: the streams of `federation/` ask before a stanza crosses into the
//! inside or leaves for another provider, the accounts of `route/` ask again with what only they know: how the two
//! people stand to each other. Nothing here waits, nothing here takes an account's lock.
//!
//! | part | what |
//! |---|---|
//! | `rule` | the language: one rule, its conditions and its action |
//! | `judge`, `content`, `text` | the judgement; what is in a stanza, and marks; links, and text only |
//! | `policy`, `blocks` | the rules in force, presets, shadow; domains that are blocked, and files of them |
//! | `breaker`, `triggers`, `announce` | the graded cut-off, for one domain and for all; what pulls it by itself; who is told |
//! | `audit` | who changed what, and why; append-only |
//! | `requests` | first contacts that wait for consent |
//! | `reports`, `lists`, `reputation` | what users and others say about outsiders |
//! | `publication`, `standing`, `disclosure`, `affiliation` | what we say: our own list, a peer's standing, contacts and data policy, who our users are |
//! | `asking`, `profiles` | requests of our own to other domains; what these say about themselves |
//! | `traffic` | counters for each peer domain, and their history |

pub mod affiliation;
mod announce;
pub mod asking;
pub mod audit;
pub mod blocks;
pub mod breaker;
pub mod content;
pub mod disclosure;
pub mod judge;
pub mod lists;
pub mod policy;
pub mod profiles;
pub mod publication;
pub mod reports;
pub mod reputation;
pub mod requests;
pub mod rule;
pub mod standing;
pub mod text;
pub mod traffic;
pub mod triggers;

use std::sync::Arc;
use std::time::Duration;

use trunkline_store::StoreError;
use trunkline_xmpp::stanza::Stanza;

use crate::config::Config;
use crate::exchange::Exchange;
use crate::ids::Clock;

use asking::Asking;
use audit::Audit;
use breaker::Breaker;
use judge::{Bench, Facts, Trial};
pub use judge::{Case, Decision, Verdict};
use lists::Lists;
use policy::Policy;
use profiles::Profiles;
use publication::Publication;
use reports::Reports;
use reputation::Reputation;
use requests::Requests;
use rule::{Authentication, Direction};
use standing::Standings;
use traffic::Traffic;

/// How often what ends is looked for, whatever the clock did.
const KEEP: Duration = Duration::from_secs(60);

/// What all parts of the server ask about outsiders. One value for each server, made at start.
#[derive(Debug, Default)]
pub struct Control {
    /// The rules.
    pub policy: Policy,
    /// The graded cut-off.
    pub breaker: Breaker,
    /// Who changed what.
    pub audit: Audit,
    /// First contacts that wait for consent.
    pub requests: Requests,
    /// What users reported.
    pub reports: Reports,
    /// Block lists, others' and our own.
    pub lists: Lists,
    /// Who follows our own list.
    pub publication: Publication,
    /// What the reports, first contacts and refusals of a domain come to.
    pub reputation: Arc<Reputation>,
    /// Which peers asked for their standing lately.
    pub standings: Standings,
    /// Requests of our own to other domains.
    pub asking: Asking,
    /// What other domains say about themselves.
    pub profiles: Profiles,
    /// Counters for each peer domain.
    pub traffic: Traffic,
    clock: ControlClock,
    announcer: announce::Announcer,
    /// Held by who writes the outage file.
    file_turn: Arc<tokio::sync::Mutex<()>>,
    /// Something has changed that ends at some time.
    changed: tokio::sync::Notify,
}

/// The clock, which has no default of its own.
#[derive(Debug)]
struct ControlClock(Clock);

impl Default for ControlClock {
    fn default() -> ControlClock {
        ControlClock(Clock::System)
    }
}

/// What of an outsider's stanza crosses into the inside.
#[derive(Debug)]
pub(crate) enum Edge {
    /// This.
    Pass(Stanza),
    /// Nothing.
    Refused {
        /// The name of the refusal.
        name: &'static str,
        /// What decided.
        by: Arc<str>,
        /// For the sender, if it is a stanza that is answered.
        answer: Option<Stanza>,
    },
}

/// Whether a domain is talked to at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// Stanzas are judged one by one.
    Open,
    /// The domain is blocked, for this reason.
    Blocked(String),
    /// The breaker is pulled, for this reason.
    Closed(String),
}

impl Control {
    /// As it is before anything was seen or read.
    pub fn new(clock: &Clock) -> Control {
        let reputation = Arc::new(Reputation::new(clock.clone()));
        Control {
            traffic: Traffic::new(clock.clone(), Arc::clone(&reputation)),
            reputation,
            audit: Audit::new(clock.clone()),
            clock: ControlClock(clock.clone()),
            ..Control::default()
        }
    }

    /// Reads what the store remembers. Called once, before anybody from outside is let in.
    ///
    /// # Errors
    /// The store's.
    pub async fn start(exchange: &Arc<Exchange>) -> Result<(), StoreError> {
        let control = &exchange.control;
        let config = exchange.config.load_full();
        policy::load(exchange).await?;
        breaker::load(exchange).await?;
        control.reputation.load(exchange).await?;
        exchange.load_lists().await?;
        control.configured(&config);
        exchange.db.run(policy::note_configuration(exchange, &config).await?).await?;
        announce::write_file(exchange, &control.breaker.view(control.now()).all);
        Ok(())
    }

    fn configured(&self, config: &Config) {
        self.policy.configured(config, self.now());
        for warning in self.warnings() {
            tracing::warn!("{warning}");
        }
        self.breaker.configured(config, self.now());
    }

    /// What is not as the operator meant it, in words.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let mut warnings = self.policy.without_list(&self.lists);
        warnings.extend(self.lists.kept().into_iter().map(|list| {
            let rules = self.policy.rules_on(&list);
            match rules.is_empty() {
                true => format!(
                    "the list {list} is followed, which the configuration has no longer; no rule asks for it any more: \
                     unsubscribe from it"
                ),
                false => format!(
                    "the list {list} is followed, which the configuration has no longer: {} asks for it",
                    rules.join(", ")
                ),
            }
        }));
        warnings
    }

    /// The configuration was read again: its rules, blocks and preset are in force, and the audit log knows.
    pub fn reloaded(exchange: &Arc<Exchange>, config: &Arc<Config>) {
        let control = &exchange.control;
        let before = control.breaker.level(None, control.now());
        control.configured(config);
        let view = control.breaker.view(control.now()).all;
        if view.level != before {
            announce::moved(exchange, view);
        }
        let (told, config) = (Arc::clone(exchange), Arc::clone(config));
        exchange.spawn(async move {
            let noted = match policy::note_configuration(&told, &config).await {
                Ok(batch) => told.db.run(batch).await.map(drop),
                Err(error) => Err(error),
            };
            if let Err(error) = noted {
                tracing::error!(%error, "the audit log does not know of the new configuration");
            }
        });
    }

    /// Looks after what ends by itself and what pulls the breaker by itself, until the server stops.
    pub async fn keep(exchange: Arc<Exchange>) {
        let mut watch = triggers::Watch::default();
        loop {
            let changed = exchange.control.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let ends = [policy::end(&exchange).await, breaker::end(&exchange).await];
            watch.look(&exchange).await;
            let mut pause = match exchange.config.load().federation.triggers.is_empty() {
                true => KEEP,
                false => triggers::LOOK,
            };
            for at in ends.into_iter().flatten() {
                let wait = u64::try_from(at.saturating_sub(exchange.control.now())).unwrap_or(0);
                pause = pause.min(Duration::from_millis(wait.max(10)));
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = changed => {}
            }
        }
    }

    /// What becomes of a stanza. Never waits.
    pub fn judge(&self, case: &Case<'_>) -> Decision {
        self.with_bench(case, |bench| Trial::new(bench, case).judge())
    }

    /// The edge: a stanza from outside, before it crosses. Marks of others are taken off here.
    pub(crate) fn edge(&self, stanza: Stanza) -> Edge {
        let stanza = content::unmarked(stanza);
        let Some(from) = &stanza.head.from else { return Edge::Pass(stanza) };
        let case = Case { direction: Direction::In, domain: from.domain(), stanza: &stanza, relation: None };
        let decision = self.judge(&case);
        let (name, answer) = match &decision.verdict {
            // Whom a stanza may be held for, only the account knows.
            Verdict::Allow | Verdict::Undecided | Verdict::Hold => {
                match decision.carried_out(stanza.clone(), Direction::In) {
                    Ok(stanza) => return Edge::Pass(stanza),
                    Err(error) => ("policy-text-only", stanza.error(&error)),
                }
            }
            Verdict::Reject(error) => ("policy-rejected", stanza.error(error)),
            Verdict::Drop => ("policy-dropped", None),
        };
        Edge::Refused { name, by: decision.by, answer }
    }

    /// [`Control::judge`] without any effect, and what was looked at.
    pub(crate) fn rehearse(&self, case: &Case<'_>) -> (Decision, Vec<String>, String) {
        self.with_bench(case, |bench| Trial::new(bench, case).rehearse())
    }

    fn with_bench<T>(&self, case: &Case<'_>, judge: impl FnOnce(&Bench<'_>) -> T) -> T {
        let now = self.now();
        let standing = self.policy.standing();
        let set = self.breaker.of(case.domain, now);
        let blocked = standing.blocked(case.domain, now);
        let [configured, own] = standing.rules();
        let lists = self.lists.rules();
        judge(&Bench {
            level: set.as_ref().map_or(breaker::Level::Normal, |set| set.level),
            level_reason: set.as_ref().map_or("", |set| &set.reason),
            blocked: blocked.as_deref(),
            rules: [configured, own, &lists],
            preset: standing.preset_rule(),
            facts: self,
            now,
        })
    }

    /// What one of our users sends to `domain` is to be judged with how the two stand to each other.
    pub(crate) fn asks_who_sends(&self, domain: &str) -> bool {
        self.policy.standing().asks_who_sends() || self.breaker.of(domain, self.now()).is_some()
    }

    /// What was decided is carried out on the streams.
    pub(crate) fn in_force(&self, exchange: &Exchange) {
        self.changed.notify_one();
        if let Some(remote) = exchange.remote.get() {
            remote.policy_changed();
        }
    }

    /// Whether `domain` (canonical) is talked to at all.
    pub fn access(&self, domain: &str) -> Access {
        let now = self.now();
        match self.breaker.of(domain, now) {
            Some(set) if set.level == breaker::Level::Closed => return Access::Closed(set.reason.clone()),
            _ => {}
        }
        let standing = self.policy.standing();
        match standing.blocked(domain, now) {
            Some(blocked) => Access::Blocked(blocked.reason.clone()),
            None if standing.is_closed() => Access::Blocked("the preset is \"closed\"".into()),
            None => Access::Open,
        }
    }

    /// Anything at all goes in or out.
    pub fn is_open(&self) -> bool {
        !self.breaker.is_closed_for_all(self.now()) && !self.policy.standing().is_closed()
    }

    pub(crate) fn now(&self) -> i64 {
        self.clock.0.now()
    }
}

impl Facts for Control {
    fn first_seen(&self, domain: &str) -> Option<i64> {
        self.traffic.first_seen(domain)
    }

    fn authentication(&self, domain: &str) -> Option<Authentication> {
        self.traffic.authentication(domain)
    }

    fn rate(&self, domain: &str) -> u32 {
        self.traffic.rate(domain)
    }

    fn reputation(&self, domain: &str) -> Option<u8> {
        Some(self.reputation.score(domain))
    }

    fn is_listed(&self, list: &str, who: &str) -> bool {
        self.lists.lists(list, who)
    }
}
