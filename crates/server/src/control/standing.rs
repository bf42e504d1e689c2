//! A peer's standing: its administrators may ask, with an ad-hoc command (XEP-0050) from outside, how we see their
//! domain, why, what sanctions there are and when they end.
//!
//! Who asks is known by the domain that the stream has proved: that domain itself, or an address that it names as its
//! administrator's (XEP-0157). Everybody else gets one answer, whoever they are. Nobody learns about another domain.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use trunkline_xml::Writer;
use trunkline_xmpp::error::{Condition, ErrorType, StanzaError};
use trunkline_xmpp::forms::{Field, Form};
use trunkline_xmpp::jid::Jid;
use trunkline_xmpp::ns;

use super::blocks::Block;
use super::breaker::{BreakerOp, Level};
use super::policy::PolicyOp;
use super::rule::{Action, Rule};
use crate::admin::Outcome;
use crate::admin::actor::Actor;
use crate::exchange::Exchange;
use crate::modules::Request;

/// The command's node, and the FORM_TYPE of its result.
pub const NODE: &str = "https://trunkline.im/protocol/standing";
/// For people.
pub const NAME: &str = "How this server sees your domain";
/// Answers to one domain within [`WINDOW`].
const MOST_ASKED: u32 = 10;
/// Milliseconds.
const WINDOW: i64 = 60 * 60 * 1000;
/// Domains whose asking is counted.
const MOST_DOMAINS: usize = 10_000;
/// Questions that are being answered at once: of everybody, and of one domain.
const MOST_AT_ONCE: u32 = 64;
const MOST_OF_DOMAIN: u32 = 2;
/// Sanctions that are listed.
const MOST_SANCTIONS: usize = 100;

/// Which domains asked lately.
#[derive(Debug, Default)]
pub struct Standings {
    /// By domain: since when, and how often.
    asked: Mutex<HashMap<String, (i64, u32)>>,
    /// By domain: questions that are being answered. Never more than [`MOST_AT_ONCE`] domains.
    busy: Arc<Mutex<HashMap<String, u32>>>,
}

/// A question that is being answered.
#[derive(Debug)]
struct Place {
    busy: Arc<Mutex<HashMap<String, u32>>>,
    domain: String,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut busy = self.busy.lock();
        if let Some(count) = busy.get_mut(&self.domain) {
            *count -= 1;
            if *count == 0 {
                busy.remove(&self.domain);
            }
        }
    }
}

impl Standings {
    /// `None`: too many questions are being answered, of this domain or of all.
    fn enter(&self, domain: &str) -> Option<Place> {
        let mut busy = self.busy.lock();
        if busy.values().sum::<u32>() >= MOST_AT_ONCE {
            return None;
        }
        let own = busy.entry(domain.to_owned()).or_insert(0);
        if *own >= MOST_OF_DOMAIN {
            return None;
        }
        *own += 1;
        Some(Place { busy: Arc::clone(&self.busy), domain: domain.to_owned() })
    }

    /// False: this domain has asked enough.
    fn permit(&self, domain: &str, now: i64) -> bool {
        let mut asked = self.asked.lock();
        if asked.len() >= MOST_DOMAINS && !asked.contains_key(domain) {
            asked.retain(|_, (since, _)| now - *since < WINDOW);
            if asked.len() >= MOST_DOMAINS {
                return false;
            }
        }
        let (since, count) = asked.entry(domain.to_owned()).or_insert((now, 0));
        if now - *since >= WINDOW {
            (*since, *count) = (now, 0);
        }
        *count += 1;
        *count <= MOST_ASKED
    }
}

/// What everybody gets who may not know.
pub fn forbidden() -> StanzaError {
    StanzaError::new(Condition::Forbidden)
}

/// Answers in a task of its own: whether the asker is an administrator is asked of their domain, and that answer comes
/// the same way as the question did.
pub fn answer(request: &Request) {
    let exchange = Arc::clone(&request.exchange);
    let Some(place) = exchange.control.standings.enter(request.from.domain()) else {
        // Before it is known who asks: everybody gets this.
        let (peer, detail) = (request.from.domain(), "too many questions for a standing at once");
        exchange.refusals.report(crate::logging::Refusal { name: "standing-busy", peer, conn: 0, detail });
        let busy = StanzaError::new(Condition::ResourceConstraint).kind(ErrorType::Wait);
        exchange.bounce(&request.stanza, &busy);
        return;
    };
    let (stanza, from, host) = (request.stanza.clone(), request.from.clone(), Arc::clone(&request.host));
    Arc::clone(&exchange).spawn(async move {
        let _place = place;
        match standing(&exchange, &host.domain, &from).await {
            Ok(payload) => exchange.answer_with(stanza.reply().payload(payload).done()),
            Err(error) => exchange.bounce(&stanza, &error),
        }
    });
}

async fn standing(exchange: &Arc<Exchange>, host: &Jid, from: &Jid) -> Result<Vec<u8>, StanzaError> {
    if !speaks_for_domain(exchange, host, from).await {
        return Err(forbidden());
    }
    if !exchange.control.standings.permit(from.domain(), exchange.clock().now()) {
        let peer = from.domain();
        let detail = "a domain has asked for its standing often";
        exchange.refusals.report(crate::logging::Refusal { name: "standing-rate", peer, conn: 0, detail });
        return Err(StanzaError::new(Condition::ResourceConstraint)
            .text(format!("{MOST_ASKED} times an hour, at most.")));
    }
    let form = describe(exchange, from.domain()).await;
    let mut w = Writer::new();
    w.open("command")
        .attr("xmlns", ns::COMMANDS)
        .attr("node", NODE)
        .attr("sessionid", &crate::ids::token(12))
        .attr("status", "completed");
    form.write(&mut w);
    w.close();
    Ok(w.finish())
}

/// The domain itself, or an address that it names as its administrator's.
async fn speaks_for_domain(exchange: &Arc<Exchange>, host: &Jid, from: &Jid) -> bool {
    if from.is_domain() {
        return true;
    }
    match exchange.profile(host, &from.domain_jid()).await {
        Ok(profile) => profile.addresses("admin").iter().any(|admin| admin.same_bare(from)),
        Err(_) => false,
    }
}

async fn describe(exchange: &Arc<Exchange>, domain: &str) -> Form {
    let actor = Actor::trigger("standing");
    let judged = exchange.control.reputation.judgement(domain);
    let lines = |field: Field, lines: Vec<String>| lines.iter().fold(field, |field, line| field.value(line));
    let reasons = judged.reasons.iter().map(|(points, words)| format!("{points:+} {words}")).collect();
    let mut sanctions = Vec::new();
    if let Ok(Outcome::Policy(policy)) = super::policy::run(exchange, &actor, PolicyOp::Show).await {
        let named = policy.rules.iter().filter(|view| is_about(&view.rule, domain) && !view.rule.shadow);
        sanctions.extend(named.take(MOST_SANCTIONS).filter_map(|view| sanction(&view.rule)));
    }
    let blocks = exchange.control.policy.blocks_about(domain, exchange.clock().now(), MOST_SANCTIONS);
    sanctions.extend(blocks.iter().map(blocked));
    if let Ok(Outcome::Breaker(breaker)) = super::breaker::run(exchange, &actor, BreakerOp::Show).await {
        let own = breaker.domains.iter().filter(|level| level.domain.as_deref() == Some(domain));
        for level in own.chain([&breaker.all]).filter(|level| level.level != Level::Normal) {
            let what = match level.level {
                Level::Normal => continue,
                Level::NoNewContacts => "no new contacts",
                Level::GrantedOnly => "only people who have consented to each other",
                Level::TextOnly => "only text between people who have consented to each other",
                Level::Closed => "closed",
            };
            sanctions.push(ended(format!("{what}: {}", level.reason), level.until));
        }
    }
    for (name, reason) in exchange.control.lists.listings(domain) {
        sanctions.push(format!("on the block list {name}: {reason}"));
    }
    Form::result(NODE)
        .title(NAME)
        .field(Field::jid_single("domain").label("Your domain").value(domain))
        .field(
            Field::text_single("score")
                .label("Score, 0 to 100; 50 is neutral")
                .value(&judged.score.to_string()),
        )
        .field(lines(Field::text_multi("reasons").label("Points, and why"), reasons))
        .field(lines(Field::text_multi("sanctions").label("Sanctions"), sanctions))
}

/// The rule names this domain, one above it with its subdomains, or somebody there.
fn is_about(rule: &Rule, domain: &str) -> bool {
    let named = rule.when.domain.as_deref().is_some_and(|name| {
        name == domain
            || (rule.when.subdomains && domain.strip_suffix(name).is_some_and(|rest| rest.ends_with('.')))
    });
    let somebody = rule.when.address.as_deref().and_then(|address| Jid::parse(address).ok());
    named || somebody.is_some_and(|jid| jid.domain() == domain)
}

/// A rule in words; what allows is no sanction.
fn sanction(rule: &Rule) -> Option<String> {
    let what = match &rule.then {
        Action::Allow => return None,
        Action::Reject { .. } => "rejected".to_owned(),
        Action::Drop => "dropped".to_owned(),
        Action::Hold => "held for consent".to_owned(),
        Action::Limit { per_minute, .. } => format!("limited to {per_minute} stanzas a minute"),
        Action::Mark { .. } => "marked".to_owned(),
        Action::TextOnly => "text only".to_owned(),
    };
    let whom = rule.when.address.as_deref().map_or(String::new(), |address| format!("{address}: "));
    let why = if rule.reason.is_empty() { String::new() } else { format!(" ({})", rule.reason) };
    Some(ended(format!("{whom}{what}{why}"), rule.until))
}

fn blocked(block: &Block) -> String {
    let below = if block.subdomains { " and what is below it" } else { "" };
    let why = if block.reason.is_empty() { String::new() } else { format!(" ({})", block.reason) };
    ended(format!("{}{below}: blocked{why}", block.domain), block.until)
}

fn ended(text: String, until: Option<i64>) -> String {
    match until {
        Some(until) => format!("{text}, until {}", trunkline_xmpp::time::format_millis(until)),
        None => format!("{text}, without an end"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::rule::{Conditions, Direction, Per};

    #[test]
    fn asking_is_bounded_by_domain_and_starts_anew() {
        let standings = Standings::default();
        for _ in 0..MOST_ASKED {
            assert!(standings.permit("a.example", 0));
        }
        assert!(!standings.permit("a.example", 1));
        assert!(standings.permit("b.example", 1));
        assert!(standings.permit("a.example", WINDOW));
        for n in 0..2 * MOST_DOMAINS {
            standings.permit(&format!("d{n}"), WINDOW);
        }
        assert_eq!(standings.asked.lock().len(), MOST_DOMAINS);
    }

    #[test]
    fn places_are_bounded_by_domain_and_in_all() {
        let standings = Standings::default();
        let mut places: Vec<Place> = (0..2).map(|_| standings.enter("a.example").unwrap()).collect();
        assert!(standings.enter("a.example").is_none());
        let others = (0..62).map(|n| standings.enter(&format!("d{}.example", n / 2)).unwrap());
        places.extend(others);
        assert!(standings.enter("z.example").is_none());
        assert_eq!(standings.busy.lock().len(), 32, "who is refused takes no room");
        places.remove(0);
        assert!(standings.enter("a.example").is_some(), "it gives its own place back at once");
        places.clear();
        assert!(standings.busy.lock().is_empty());
    }

    #[test]
    fn only_rules_about_the_domain_are_told() {
        let rule = |when: Conditions| Rule {
            when,
            direction: Direction::In,
            then: Action::Limit { per_minute: 3, per: Per::Domain },
            reason: "spam".into(),
            until: Some(0),
            shadow: false,
        };
        let domain = |name: &str, subdomains| {
            rule(Conditions { domain: Some(name.into()), subdomains, ..Conditions::default() })
        };
        let address =
            |address: &str| rule(Conditions { address: Some(address.into()), ..Conditions::default() });
        for about in [domain("a.example", false), domain("example", true), address("x@a.example")] {
            assert!(is_about(&about, "a.example"), "{about:?}");
        }
        for other in [
            domain("b.example", false),
            domain("example", false),
            domain("ba.example", true),
            address("x@b.example"),
            rule(Conditions::default()),
        ] {
            assert!(!is_about(&other, "a.example"), "{other:?}");
        }
        assert_eq!(
            sanction(&address("x@a.example")).unwrap(),
            "x@a.example: limited to 3 stanzas a minute (spam), until 1970-01-01T00:00:00.000Z"
        );
        assert_eq!(sanction(&Rule { then: Action::Allow, ..address("x@a.example") }), None);
    }
}
