//! Whom owners were asked about (s.8.6), so that they are not asked again and again: whoever may ask to subscribe can
//! come, go and come again, or come by many names.

use std::collections::{HashMap, VecDeque};

use parking_lot::Mutex;
use trunkline_xmpp::jid::Jid;

/// People whom owners were asked about within [`ONCE_IN`].
const MOST: usize = 20_000;
/// Those who are not at home here.
const MOST_OUTSIDE: usize = 10_000;
/// Those of one domain that is not ours.
const MOST_OF_DOMAIN: usize = 500;
/// Nodes of others that one person who is at home here wants to subscribe to.
const MOST_OF_PERSON: usize = 200;
/// Those of one domain who want to subscribe to one node.
const MOST_OF_DOMAIN_AT_NODE: usize = 20;
/// Owners are asked about a person once in so many milliseconds.
const ONCE_IN: i64 = 24 * 3600 * 1000;

/// Whom owners were asked about lately.
#[derive(Debug, Default)]
pub(crate) struct Approvals(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    asked: HashMap<Person, i64>,
    /// Oldest first.
    order: VecDeque<(i64, Person)>,
    outside: usize,
    /// By domain that is not ours, at all nodes under 0, which is no node's number; by person who is at home here.
    of: HashMap<(i64, Box<str>), usize>,
}

/// Who wants to subscribe to which node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Person {
    /// The store's key of the node.
    pub(crate) node: i64,
    /// The bare address.
    pub(crate) who: Jid,
    /// Not at home here.
    pub(crate) outside: bool,
}

/// What is to be done about somebody who wants to subscribe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asking {
    /// The owners are to be asked.
    Now,
    /// They were asked: the request waits for their answer.
    Asked,
    /// So many want to subscribe that nobody is asked about one more.
    Full,
}

impl Approvals {
    /// Notes that the owners are asked.
    pub(crate) fn ask(&self, person: &Person, now: i64) -> Asking {
        let mut table = self.0.lock();
        table.forget(now);
        if table.asked.contains_key(person) {
            return Asking::Asked;
        }
        let share_full = person.shares().any(|(key, most)| table.of.get(&key).is_some_and(|of| *of >= most));
        let outside_full = person.outside && table.outside >= MOST_OUTSIDE;
        if table.asked.len() >= MOST || outside_full || share_full {
            return Asking::Full;
        }
        table.outside += usize::from(person.outside);
        for (key, _) in person.shares() {
            *table.of.entry(key).or_default() += 1;
        }
        table.asked.insert(person.clone(), now);
        table.order.push_back((now, person.clone()));
        Asking::Now
    }

    /// They are not asked after all.
    pub(crate) fn take_back(&self, person: &Person) {
        let mut table = self.0.lock();
        // It was noted a moment ago.
        let Some(at) = table.order.iter().rposition(|(_, noted)| noted == person) else { return };
        table.order.remove(at);
        table.remove(person);
    }
}

impl Person {
    /// Under what they are counted, and how many there may be.
    fn shares(&self) -> impl Iterator<Item = ((i64, Box<str>), usize)> + use<> {
        let shares = if self.outside {
            let domain: Box<str> = self.who.domain().into();
            let at_node = ((self.node, domain.clone()), MOST_OF_DOMAIN_AT_NODE);
            [Some(((0, domain), MOST_OF_DOMAIN)), Some(at_node)]
        } else {
            [Some(((0, self.who.bare_str().into()), MOST_OF_PERSON)), None]
        };
        shares.into_iter().flatten()
    }
}

impl Table {
    fn forget(&mut self, now: i64) {
        while self.order.front().is_some_and(|(at, _)| at.saturating_add(ONCE_IN) <= now) {
            let Some((_, person)) = self.order.pop_front() else { return };
            self.remove(&person);
        }
    }

    fn remove(&mut self, person: &Person) {
        self.asked.remove(person);
        self.outside -= usize::from(person.outside);
        for (key, _) in person.shares() {
            let Some(count) = self.of.get_mut(&key) else { continue };
            *count -= 1;
            if *count == 0 {
                self.of.remove(&key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn person(node: i64, who: &str) -> Person {
        Person { node, who: Jid::parse(who).unwrap(), outside: !who.ends_with("@here.example") }
    }

    #[test]
    fn owners_are_asked_about_somebody_once_a_day() {
        let approvals = Approvals::default();
        let ask = |node, who: &str, now| approvals.ask(&person(node, who), now);
        assert_eq!(ask(1, "a@x.example", 0), Asking::Now);
        assert_eq!(ask(1, "a@x.example", ONCE_IN - 1), Asking::Asked);
        assert_eq!(ask(2, "a@x.example", 1), Asking::Now);
        assert_eq!(ask(1, "b@here.example", 1), Asking::Now);
        assert_eq!(ask(1, "a@x.example", ONCE_IN), Asking::Now);
        assert_eq!(ask(3, "c@here.example", 3 * ONCE_IN), Asking::Now);
        let table = approvals.0.lock();
        assert_eq!((table.asked.len(), table.order.len(), table.outside, table.of.len()), (1, 1, 0, 1));
    }

    #[test]
    fn no_domain_elsewhere_asks_without_end() {
        let approvals = Approvals::default();
        let ask = |node, who: &str| approvals.ask(&person(node, who), 0);
        let of_node: Vec<Asking> = (0..30).map(|n| ask(1, &format!("{n}@x.example"))).collect();
        assert_eq!(of_node.iter().filter(|it| **it == Asking::Now).count(), MOST_OF_DOMAIN_AT_NODE);
        assert_eq!(ask(1, "0@x.example"), Asking::Asked);
        assert_eq!(ask(1, "a@y.example"), Asking::Now);
        for n in 0..MOST_OF_DOMAIN - MOST_OF_DOMAIN_AT_NODE {
            assert_eq!(ask(100 + n as i64, "a@x.example"), Asking::Now);
        }
        assert_eq!(ask(9, "a@x.example"), Asking::Full);
        // Ours are many, and have room of their own.
        let asked = |who: &str| {
            let ask = |n: usize| ask(n as i64 + 1, &who.replace('#', &n.to_string()));
            (0..MOST).filter(|n| ask(*n) == Asking::Now).count()
        };
        assert_eq!(asked("a@#.example"), MOST_OUTSIDE - MOST_OF_DOMAIN - 1);
        assert_eq!(asked("a@here.example"), MOST_OF_PERSON);
        assert_eq!(asked("b#@here.example"), MOST - MOST_OUTSIDE - MOST_OF_PERSON);
    }

    #[test]
    fn who_is_not_asked_about_leaves_nothing_behind() {
        let approvals = Approvals::default();
        for who in ["a@x.example", "a@here.example"] {
            let person = person(1, who);
            assert_eq!(approvals.ask(&person, 0), Asking::Now);
            approvals.take_back(&person);
            approvals.take_back(&person);
            let table = approvals.0.lock();
            assert_eq!((table.asked.len(), table.order.len(), table.outside, table.of.len()), (0, 0, 0, 0));
        }
    }
}
