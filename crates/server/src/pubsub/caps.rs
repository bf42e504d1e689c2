//! XEP-0115 Entity Capabilities 1.6.0: which notifications a client wants (XEP-0163 s.4.3.2, +notify).
//!
//! What a verification string stands for is asked once, of whoever shows it first, and kept if the answer has that
//! string and nothing else can be read from it: so nobody can say it for others. Any other answer counts for the one
//! who gave it.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use trunkline_xml::Writer;
use trunkline_xmpp::caps;
use trunkline_xmpp::disco::Info;
use trunkline_xmpp::jid::Jid;
use trunkline_xmpp::ns;
use trunkline_xmpp::stanza::{IqType, Stanza};

use crate::control::asking::Question;
use crate::exchange::Exchange;

/// Verification strings that are known because devices of ours showed them, and because others did.
const MOST_KNOWN: usize = 1000;
/// Nodes that one client wants to be told of.
const MOST_NODES: usize = 200;
/// Bytes of their names.
const MOST_BYTES: usize = 8 * 1024;
/// Clients that are asked at once.
const MOST_ASKED: usize = 256;
/// Those that are not at home here.
const MOST_ASKED_OUTSIDE: usize = 128;
/// Those of one domain that is not ours.
const MOST_ASKED_OF_DOMAIN: usize = 32;
/// XEP-0163 s.4.3.2: what a feature ends in that asks for notifications.
const NOTIFY: &str = "+notify";
/// Bytes of a verification string and of a client's name.
const MOST_NAME: usize = 512;
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// The nodes that a client wants to be told of, in order.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Interests(Vec<Box<str>>);

impl Interests {
    fn of(info: &Info) -> Interests {
        let wanted = info.features().filter_map(|feature| feature.strip_suffix(NOTIFY));
        let mut nodes: Vec<&str> = wanted.filter(|node| !node.is_empty()).collect();
        // What is too much is cut off in an order that whoever answers has no say in: the hash knows none.
        nodes.sort_unstable();
        nodes.dedup();
        let mut bytes = 0;
        let fits = nodes.into_iter().take(MOST_NODES).take_while(|node| {
            bytes += node.len();
            bytes <= MOST_BYTES
        });
        Interests(fits.map(Box::from).collect())
    }

    /// Bytes in memory.
    pub(super) fn size(&self) -> usize {
        self.0.iter().map(|node| node.len() + size_of::<Box<str>>()).sum()
    }

    /// It wants to be told of `node`.
    pub fn wants(&self, node: &str) -> bool {
        self.0.binary_search_by(|known| (**known).cmp(node)).is_ok()
    }

    /// Nothing.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What is not in `before`.
    pub(crate) fn beyond<'a>(&'a self, before: Option<&Interests>) -> Vec<&'a str> {
        let new = |node: &&str| before.is_none_or(|before| !before.wants(node));
        self.0.iter().map(|node| &**node).filter(new).collect()
    }

    #[cfg(test)]
    pub(crate) fn with(nodes: &[&str]) -> Interests {
        let mut info = Info::new();
        nodes.iter().for_each(|node| info.feature(&format!("{node}+notify")));
        Interests::of(&info)
    }
}

/// What presence says of a client: its name and the verification string (s.4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shown {
    /// What to ask for.
    query: String,
    /// The string, if it can be checked.
    ver: Option<Arc<str>>,
}

impl Shown {
    /// What an available presence shows; nothing where there is nothing, or too much.
    pub(crate) fn of(presence: &Stanza) -> Option<Shown> {
        let c = presence.child(ns::CAPS, "c")?;
        let (node, ver) = (c.attr("node")?, c.attr("ver")?);
        if ver.is_empty() || node.len() > MOST_NAME || ver.len() > MOST_NAME {
            return None;
        }
        // s.4.1: without `hash`, or with another one, nobody can say whether an answer belongs to the string.
        let checked = c.attr("hash").is_some_and(|hash| hash == "sha-1");
        Some(Shown { query: format!("{node}#{ver}"), ver: checked.then(|| Arc::from(&*ver)) })
    }

    /// What tells it from others.
    pub(crate) fn key(&self) -> Arc<str> {
        self.ver.clone().unwrap_or_else(|| Arc::from(self.query.as_str()))
    }
}

/// What verification strings stand for.
#[derive(Debug, Default)]
pub(crate) struct Caps {
    /// What devices of ours showed first.
    ours: Mutex<Known>,
    /// What those elsewhere did: however many they show, the others stay.
    outside: Mutex<Known>,
    asked: Mutex<Asked>,
}

#[derive(Debug, Default)]
struct Known {
    interests: HashMap<Arc<str>, Arc<Interests>>,
    /// Oldest first.
    order: VecDeque<Arc<str>>,
}

/// Clients that are being asked.
#[derive(Debug, Default)]
struct Asked {
    all: usize,
    outside: usize,
    /// Of those domains that are not ours.
    of: HashMap<Box<str>, usize>,
}

/// One of them, until it has answered.
struct Asking<'a> {
    asked: &'a Mutex<Asked>,
    /// If it is not ours.
    domain: Option<&'a str>,
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        let mut asked = self.asked.lock();
        asked.all -= 1;
        let Some(domain) = self.domain else { return };
        asked.outside -= 1;
        if let Some(count) = asked.of.get_mut(domain) {
            *count -= 1;
            if *count == 0 {
                asked.of.remove(domain);
            }
        }
    }
}

impl Caps {
    /// If it is known.
    pub(crate) fn get(&self, shown: &Shown) -> Option<Arc<Interests>> {
        let ver = shown.ver.as_ref()?;
        let find = |known: &Mutex<Known>| known.lock().interests.get(ver).cloned();
        find(&self.ours).or_else(|| find(&self.outside))
    }

    /// A place among those that are asked, if there is one. `domain`: it is not at home here.
    fn begin<'a>(&'a self, domain: Option<&'a str>) -> Option<Asking<'a>> {
        let mut asked = self.asked.lock();
        let of = domain.and_then(|domain| asked.of.get(domain)).copied().unwrap_or(0);
        let outside_full =
            domain.is_some() && (asked.outside >= MOST_ASKED_OUTSIDE || of >= MOST_ASKED_OF_DOMAIN);
        if asked.all >= MOST_ASKED || outside_full {
            return None;
        }
        asked.all += 1;
        if let Some(domain) = domain {
            asked.outside += 1;
            *asked.of.entry(domain.into()).or_default() += 1;
        }
        drop(asked);
        Some(Asking { asked: &self.asked, domain })
    }

    fn learn(&self, ver: &Arc<str>, interests: &Arc<Interests>, ours: bool) {
        let mut known = if ours { self.ours.lock() } else { self.outside.lock() };
        if known.interests.insert(Arc::clone(ver), Arc::clone(interests)).is_some() {
            return;
        }
        known.order.push_back(Arc::clone(ver));
        if known.order.len() > MOST_KNOWN
            && let Some(oldest) = known.order.pop_front()
        {
            known.interests.remove(&oldest);
        }
    }
}

impl Exchange {
    /// What the client `of` wants to be told of; `None`: it does not say. It is asked in the name of `asker`, one of our
    /// addresses. Who waits for this must not stand in the way of the answer.
    pub(crate) async fn interests(
        self: &Arc<Self>,
        shown: &Shown,
        (asker, of): (&Jid, &Jid),
    ) -> Option<Arc<Interests>> {
        if let Some(interests) = self.pubsub.caps.get(shown) {
            return Some(interests);
        }
        let elsewhere = self.host(of.domain()).is_none().then(|| of.domain());
        let Some(_place) = self.pubsub.caps.begin(elsewhere) else {
            self.metrics.refused("caps-too-many");
            return None;
        };
        let mut w = Writer::new();
        w.open("query").attr("xmlns", ns::DISCO_INFO).attr("node", &shown.query).close();
        let question = Question {
            from: asker.clone(),
            to: of.clone(),
            kind: IqType::Get,
            payload: w.finish(),
            patience: PATIENCE,
        };
        let answer = match self.ask(question).await {
            Ok(answer) => answer,
            Err(error) => {
                tracing::debug!(client = %of, %error, "a client does not say what it wants");
                return None;
            }
        };
        let info = Info::parse(answer.first_child()?).ok()?;
        let interests = Arc::new(Interests::of(&info));
        match &shown.ver {
            Some(ver) if **ver == *info.verification() => {
                if caps::settles(&info, NOTIFY) {
                    self.pubsub.caps.learn(ver, &interests, elsewhere.is_none());
                } else {
                    self.metrics.refused("caps-ambiguous");
                }
            }
            // s.5.4: it counts for nobody else.
            _ => self.metrics.refused("caps-not-verified"),
        }
        Some(interests)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn presence(c: &str) -> Option<Shown> {
        let text = format!(
            "<presence from='a@b.example/c' xmlns='jabber:client'><c xmlns='{}' {c}/></presence>",
            ns::CAPS
        );
        Shown::of(&Stanza::parse(text.as_bytes()).unwrap())
    }

    #[test]
    fn what_presence_shows() {
        let shown = presence("node='urn:x' ver='abc' hash='sha-1'").unwrap();
        assert_eq!((shown.query.as_str(), &*shown.key()), ("urn:x#abc", "abc"));
        for unchecked in ["node='urn:x' ver='abc'", "node='urn:x' ver='abc' hash='md5'"] {
            let shown = presence(unchecked).unwrap();
            assert_eq!((shown.ver.clone(), &*shown.key()), (None, "urn:x#abc"), "{unchecked}");
        }
        assert_eq!(presence("node='urn:x'"), None);
        assert_eq!(presence(&format!("node='urn:x' ver='{}' hash='sha-1'", "x".repeat(513))), None);
    }

    #[test]
    fn interests() {
        let some = Interests::with(&["b", "a", ""]);
        assert!(some.wants("a") && some.wants("b") && !some.wants("c") && !some.wants(""));
        let more = Interests::with(&["a", "c"]);
        assert_eq!(more.beyond(Some(&some)), ["c"]);
        assert_eq!(more.beyond(None), ["a", "c"]);
        let long = "x".repeat(MOST_BYTES);
        assert!(Interests::with(&["a", &long]).wants("a") && !Interests::with(&["a", &long]).wants(&long));
        let many: Vec<String> = (0..=MOST_NODES).map(|n| n.to_string()).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(Interests::with(&many).0.len(), MOST_NODES);
    }

    #[test]
    fn what_is_cut_off_does_not_depend_on_the_order() {
        let names: Vec<String> = (0..MOST_NODES + 100).map(|n| format!("{n:04}")).collect();
        let mut names: Vec<&str> = names.iter().map(String::as_str).collect();
        let sorted = Interests::with(&names);
        names.reverse();
        assert_eq!(Interests::with(&names), sorted);
        assert_eq!(sorted.size(), MOST_NODES * (4 + size_of::<Box<str>>()));
    }

    #[test]
    fn nobody_elsewhere_takes_all_places() {
        let caps = Caps::default();
        let domains: Vec<String> = (0..8).map(|n| format!("{n}.example")).collect();
        let mut places: Vec<Asking<'_>> = Vec::new();
        for _ in 0..MOST_ASKED_OF_DOMAIN {
            places.push(caps.begin(Some(&domains[0])).unwrap());
        }
        assert!(caps.begin(Some(&domains[0])).is_none());
        for domain in &domains[1..] {
            places.extend((0..MOST_ASKED_OF_DOMAIN).filter_map(|_| caps.begin(Some(domain))));
        }
        assert_eq!(places.len(), MOST_ASKED_OUTSIDE);
        let ours: Vec<_> = (0..MOST_ASKED).map_while(|_| caps.begin(None)).collect();
        assert_eq!(ours.len(), MOST_ASKED - MOST_ASKED_OUTSIDE);
        places.truncate(1);
        assert!(caps.begin(Some(&domains[0])).is_some());
        drop((places, ours));
        let asked = caps.asked.lock();
        assert_eq!((asked.all, asked.outside, asked.of.len()), (0, 0, 0));
    }

    #[test]
    fn the_oldest_is_forgotten() {
        let caps = Caps::default();
        let shown = |n: usize| presence(&format!("node='urn:x' ver='{n}' hash='sha-1'")).unwrap();
        let learn = |n: usize, ours| caps.learn(&shown(n).key(), &Arc::new(Interests::with(&["a"])), ours);
        for n in 0..=MOST_KNOWN {
            learn(n, false);
        }
        assert!(caps.get(&shown(0)).is_none());
        assert!(caps.get(&shown(1)).is_some() && caps.get(&shown(MOST_KNOWN)).is_some());
        assert_eq!(caps.outside.lock().order.len(), MOST_KNOWN);
        // Neither side makes what the other one shows be forgotten.
        learn(0, true);
        assert!(caps.get(&shown(1)).is_some());
        for n in 0..=MOST_KNOWN {
            learn(MOST_KNOWN + n, false);
        }
        assert!(caps.get(&shown(0)).is_some() && caps.get(&shown(1)).is_none());
        assert_eq!((caps.ours.lock().order.len(), caps.outside.lock().order.len()), (1, MOST_KNOWN));
    }
}
