//! What the servers have acknowledged, and what has come of it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Shared by all people; see the crate's text.
#[derive(Debug, Default)]
pub(crate) struct Oracle(Mutex<State>);

#[derive(Debug, Default)]
pub(crate) struct State {
    kills: usize,
    messages: HashMap<Arc<str>, Message>,
    /// Who is online: the bare address.
    pub(crate) online: HashSet<String>,
    /// Who is offline by order, and expects nothing.
    asleep: HashSet<String>,
    /// Per owner and contact.
    contacts: BTreeMap<(String, String), Contact>,
    pub(crate) rosters_compared: usize,
    rosters_checked: usize,
    roster_changes: usize,
    subscriptions: BTreeMap<(String, String), Friendship>,
    logins: usize,
    resumed: usize,
    problems: Vec<(&'static str, String)>,
    duplicates_delayed: usize,
    duplicates_same_id: usize,
}

#[derive(Debug)]
struct Message {
    to: String,
    acknowledged: bool,
    /// How often somebody sent it anew, under the same id, because it had not been acknowledged.
    repeats: usize,
    arrivals: usize,
    /// How often servers had been killed when it was written.
    kills_before: usize,
    bounced: bool,
}

/// A name given to a contact in a roster.
#[derive(Debug, Default)]
struct Contact {
    acknowledged: Option<String>,
    /// Asked for afterwards, without an answer as yet: each of them may be in the roster.
    open: Vec<String>,
}

/// A subscription both ways: which side has seen in its roster that it stands.
#[derive(Debug, Default)]
struct Friendship {
    one_knows: bool,
    other_knows: bool,
}

/// One arrival of a message.
#[derive(Debug)]
pub(crate) struct Arrival {
    /// From the body.
    pub(crate) token: Arc<str>,
    pub(crate) id: String,
    pub(crate) delayed: bool,
    /// The receiver's bare address.
    pub(crate) at: String,
}

impl Oracle {
    pub(crate) fn sent(&self, token: &Arc<str>, to: &str) {
        let mut state = self.0.lock();
        let message = Message {
            to: to.to_owned(),
            acknowledged: false,
            repeats: 0,
            arrivals: 0,
            kills_before: state.kills,
            bounced: false,
        };
        state.messages.insert(token.clone(), message);
    }

    pub(crate) fn sent_again(&self, token: &str) {
        if let Some(message) = self.0.lock().messages.get_mut(token) {
            message.repeats += 1;
        }
    }

    pub(crate) fn acknowledged(&self, token: &str) {
        if let Some(message) = self.0.lock().messages.get_mut(token) {
            message.acknowledged = true;
        }
    }

    pub(crate) fn bounced(&self, token: &str) {
        if let Some(message) = self.0.lock().messages.get_mut(token) {
            message.bounced = true;
        }
    }

    pub(crate) fn arrived(&self, arrival: Arrival) {
        let mut state = self.0.lock();
        let kills = state.kills;
        let Arrival { token, id, delayed, at } = arrival;
        let Some(message) = state.messages.get_mut(&token) else {
            state.problems.push(("messages", format!("{token} arrived and was never sent")));
            return;
        };
        let mut problem = None;
        if message.to != at {
            problem = Some(format!("{token} to {} arrived at {at}", message.to));
        } else if id != *token {
            problem = Some(format!("{token} arrived under another id: {id}"));
        }
        message.arrivals += 1;
        let again = message.arrivals > 1;
        // Marked as delayed, or a repeat under the same id: the sender's, or after a kill a server's.
        let explained = delayed || message.repeats > 0 || message.kills_before < kills;
        if again && !explained {
            problem = Some(format!(
                "{token} arrived twice with no kill since it was written, not marked as delayed"
            ));
        }
        if again && delayed {
            state.duplicates_delayed += 1;
        } else if again {
            state.duplicates_same_id += 1;
        }
        state.problems.extend(problem.map(|it| ("messages", it)));
    }

    /// Messages acknowledged and not arrived.
    pub(crate) fn acknowledged_so_far(&self) -> Vec<Arc<str>> {
        let state = self.0.lock();
        let open = state.messages.iter().filter(|(_, it)| it.acknowledged && it.arrivals == 0 && !it.bounced);
        open.map(|(token, _)| token.clone()).collect()
    }

    /// Those of `due` that are still missing although their receiver is not asleep.
    pub(crate) fn missing_of(&self, due: &[Arc<str>]) -> Vec<Arc<str>> {
        let state = self.0.lock();
        let missing = |token: &&Arc<str>| {
            state
                .messages
                .get(*token)
                .is_some_and(|it| it.arrivals == 0 && !it.bounced && !state.asleep.contains(&it.to))
        };
        due.iter().filter(missing).cloned().collect()
    }

    /// Everything sent is acknowledged and has arrived, and every subscription asked for stands both ways.
    pub(crate) fn settled(&self) -> bool {
        let state = self.0.lock();
        state.messages.values().all(|it| it.acknowledged && (it.arrivals > 0 || it.bounced))
            && state.subscriptions.values().all(|it| it.one_knows && it.other_knows)
    }

    /// A message in words.
    pub(crate) fn describe(&self, token: &str) -> String {
        let state = self.0.lock();
        let Some(it) = state.messages.get(token) else { return format!("{token}, unknown") };
        let online = if state.online.contains(&it.to) { "online" } else { "offline" };
        let acknowledged = if it.acknowledged { "acknowledged" } else { "not acknowledged" };
        format!("{token} to {}, who is {online}: {acknowledged}, arrived {} times", it.to, it.arrivals)
    }

    pub(crate) fn killed(&self) {
        self.0.lock().kills += 1;
    }

    pub(crate) fn came_online(&self, jid: &str, resumed: bool) {
        let mut state = self.0.lock();
        state.online.insert(jid.to_owned());
        state.logins += 1;
        state.resumed += usize::from(resumed);
    }

    pub(crate) fn went_offline(&self, jid: &str) {
        self.0.lock().online.remove(jid);
    }

    pub(crate) fn sleeps(&self, jid: &str, asleep: bool) {
        let mut state = self.0.lock();
        if asleep {
            state.asleep.insert(jid.to_owned())
        } else {
            state.asleep.remove(jid)
        };
    }

    pub(crate) fn renaming(&self, owner: &str, contact: &str, name: &str) {
        let mut state = self.0.lock();
        let entry = state.contacts.entry((owner.to_owned(), contact.to_owned())).or_default();
        entry.open.push(name.to_owned());
    }

    pub(crate) fn renamed(&self, owner: &str, contact: &str, name: &str) {
        let mut state = self.0.lock();
        state.roster_changes += 1;
        let entry = state.contacts.entry((owner.to_owned(), contact.to_owned())).or_default();
        entry.acknowledged = Some(name.to_owned());
        // One after the other: what was asked for earlier has been overwritten.
        if let Some(at) = entry.open.iter().position(|it| it == name) {
            entry.open.drain(..=at);
        }
    }

    /// Compares what `owner` got as its roster: contact, name, subscription.
    pub(crate) fn check_roster(&self, owner: &str, roster: &[(String, Option<String>, String)], last: bool) {
        let mut state = self.0.lock();
        let mut problems = Vec::new();
        state.rosters_checked += 1;
        let own = state.contacts.iter().filter(|((it, _), _)| it == owner);
        for ((_, contact), expected) in own {
            let Some(acknowledged) = &expected.acknowledged else { continue };
            let found =
                roster.iter().find(|(jid, _, _)| jid == contact).and_then(|(_, name, _)| name.clone());
            let fine = found.as_ref().is_some_and(|it| it == acknowledged || expected.open.contains(it));
            if !fine {
                problems.push((
                    "rosters",
                    format!("{owner}: {contact} is {found:?}, acknowledged was {acknowledged}"),
                ));
            }
        }
        if last {
            state.rosters_compared += 1;
            for (a, b) in state.subscriptions.keys() {
                let contact = if a == owner { b } else { a };
                if a != owner && b != owner {
                    continue;
                }
                let found = roster.iter().find(|(jid, _, _)| jid == contact).map(|it| it.2.as_str());
                if found != Some("both") {
                    problems.push(("subscriptions", format!("{owner}: {contact} is {found:?}, not both")));
                }
            }
        }
        state.problems.extend(problems);
    }

    pub(crate) fn asking(&self, one: &str, other: &str) {
        self.0.lock().subscriptions.entry((one.to_owned(), other.to_owned())).or_default();
    }

    /// `owner` sees `contact` in the roster with a subscription both ways.
    pub(crate) fn both(&self, owner: &str, contact: &str) {
        for ((one, other), it) in &mut self.0.lock().subscriptions {
            it.one_knows |= one == owner && other == contact;
            it.other_knows |= other == owner && one == contact;
        }
    }

    /// Waits until `holds`, for at most `wait`.
    pub(crate) async fn wait_for(&self, wait: Duration, holds: impl Fn(&State) -> bool) -> bool {
        let end = Instant::now() + wait;
        loop {
            if holds(&self.0.lock()) {
                return true;
            }
            if Instant::now() > end {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// What was found, by subject; nothing in it is good.
    pub(crate) fn verdict(&self) -> Vec<(&'static str, Vec<String>)> {
        let state = self.0.lock();
        let lost: Vec<String> = state
            .messages
            .iter()
            .filter(|(_, it)| it.arrivals == 0 && !it.bounced)
            .map(|(token, it)| {
                let word = if it.acknowledged { "LOST" } else { "never acknowledged" };
                format!("{word}: {token} to {}", it.to)
            })
            .collect();
        let of = |subject: &str| {
            state.problems.iter().filter(|it| it.0 == subject).map(|it| it.1.clone()).collect::<Vec<_>>()
        };
        vec![
            ("lost", lost),
            ("messages", of("messages")),
            ("rosters", of("rosters")),
            ("subscriptions", of("subscriptions")),
            ("logins", of("logins")),
        ]
    }

    pub(crate) fn problem(&self, subject: &'static str, text: String) {
        self.0.lock().problems.push((subject, text));
    }

    /// One line of counts.
    pub(crate) fn totals(&self) -> String {
        let state = self.0.lock();
        let count = |holds: fn(&Message) -> bool| state.messages.values().filter(|it| holds(it)).count();
        format!(
            "{} kills; messages: {} sent, {} acknowledged, {} arrived, {} bounced, {} outstanding; repeats: {} marked as \
             delayed, {} under the same id; {} roster changes acknowledged, {} rosters compared; {} subscriptions; {} logins, \
             {} resumed, {} online",
            state.kills,
            state.messages.len(),
            count(|it| it.acknowledged),
            count(|it| it.arrivals > 0),
            count(|it| it.bounced),
            count(|it| it.acknowledged && it.arrivals == 0 && !it.bounced),
            state.duplicates_delayed,
            state.duplicates_same_id,
            state.roster_changes,
            state.rosters_checked,
            state.subscriptions.values().filter(|it| it.one_knows && it.other_knows).count(),
            state.logins,
            state.resumed,
            state.online.len(),
        )
    }
}
