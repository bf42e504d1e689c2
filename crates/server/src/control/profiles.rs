//! What other domains say about themselves in service discovery: whom to contact (XEP-0157), and whether they want to
//! be named in server information (XEP-0485). Asked when somebody wants to know, remembered for a while.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use trunkline_xmpp::jid::Jid;
use trunkline_xmpp::ns;
use trunkline_xmpp::stanza::{IqType, Stanza};

use super::asking::{AskError, Question, disco_info, short, xmpp_address};
use crate::exchange::Exchange;

/// Domains that are remembered.
const MOST: usize = 5000;
/// Milliseconds for which an answer is good.
const FRESH: i64 = 60 * 60 * 1000;
/// Milliseconds for which a domain that did not answer is not asked again.
const SULK: i64 = 5 * 60 * 1000;
/// How long a domain may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long who looks at a domain waits for it.
const MOMENT: Duration = Duration::from_secs(1);
/// Addresses of one kind that are looked at.
const MOST_ADDRESSES: usize = 16;
/// Characters of one address.
const MOST_LETTERS: usize = 300;

/// What is remembered.
#[derive(Debug, Default)]
pub struct Profiles {
    known: Mutex<HashMap<String, Known>>,
    /// Held by who asks a domain: one question at a time to each. No more entries than askers.
    turns: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

/// A place among those who want to ask one domain.
struct Turn<'a> {
    profiles: &'a Profiles,
    domain: &'a str,
    /// `None` only while it is dropped.
    lock: Option<Arc<tokio::sync::Mutex<()>>>,
}

impl Turn<'_> {
    async fn comes(&self) -> Option<tokio::sync::MutexGuard<'_, ()>> {
        match &self.lock {
            Some(lock) => Some(lock.lock().await),
            None => None,
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut turns = self.profiles.turns.lock();
        self.lock = None;
        // The table's own is the last one.
        if turns.get(self.domain).is_some_and(|lock| Arc::strong_count(lock) == 1) {
            turns.remove(self.domain);
        }
    }
}

#[derive(Clone, Debug)]
struct Known {
    at: i64,
    said: Result<Arc<Profile>, AskError>,
}

impl Known {
    fn is_good(&self, now: i64) -> bool {
        now - self.at < if self.said.is_ok() { FRESH } else { SULK }
    }
}

/// What a domain says about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Profile {
    /// XEP-0157: kind (`abuse`, `admin` ...) to URIs.
    pub contacts: BTreeMap<String, Vec<String>>,
    /// XEP-0485: it agrees to be named.
    pub named: bool,
}

impl Profile {
    fn read(answer: &Stanza) -> Option<Profile> {
        let query = answer.child(ns::DISCO_INFO, "query")?;
        let mut profile = Profile::default();
        for child in query.children() {
            if child.is(ns::DISCO_INFO, "feature") {
                profile.named |= child.attr("var").is_some_and(|var| var == ns::PUBSUB_SERVER_INFO);
                continue;
            }
            if !child.is(ns::DATA_FORMS, "x") {
                continue;
            }
            let fields: Vec<_> = child.children().filter(|node| node.is(ns::DATA_FORMS, "field")).collect();
            let values = |field: trunkline_xml::Node<'_>| {
                let values = field.children().filter(|node| node.is(ns::DATA_FORMS, "value"));
                values
                    .take(MOST_ADDRESSES)
                    .map(|value| short(&value.text(), MOST_LETTERS))
                    .collect::<Vec<_>>()
            };
            let var = |field: trunkline_xml::Node<'_>| field.attr("var").unwrap_or_default().into_owned();
            let of_server =
                fields.iter().any(|field| var(*field) == "FORM_TYPE" && values(*field) == [ns::SERVER_INFO]);
            if !of_server {
                continue;
            }
            for kind in KINDS {
                let name = format!("{kind}-addresses");
                if let Some(field) = fields.iter().find(|field| var(**field) == name) {
                    profile.contacts.insert(kind.to_owned(), values(*field));
                }
            }
        }
        Some(profile)
    }

    /// The XMPP addresses of one kind.
    pub fn addresses(&self, kind: &str) -> Vec<Jid> {
        let uris = self.contacts.get(kind).map(Vec::as_slice).unwrap_or_default();
        uris.iter().filter_map(|uri| xmpp_address(uri)).collect()
    }
}

/// The kinds of XEP-0157 s.3.
const KINDS: [&str; 7] = ["abuse", "admin", "feedback", "sales", "security", "status", "support"];

impl Profiles {
    /// Whom to contact there, as far as it is known: `abuse: mailto:...`.
    pub fn contacts(&self, domain: &str) -> Vec<String> {
        let known = self.known.lock();
        let Some(Known { said: Ok(profile), .. }) = known.get(domain) else { return Vec::new() };
        let all = profile.contacts.iter();
        all.flat_map(|(kind, uris)| uris.iter().map(move |uri| format!("{kind}: {uri}"))).collect()
    }

    /// Whether it is known to agree to be named (XEP-0485).
    pub(crate) fn is_named(&self, domain: &str) -> bool {
        matches!(self.known.lock().get(domain), Some(Known { said: Ok(profile), .. }) if profile.named)
    }

    /// What is known and still good.
    pub(crate) fn fresh(&self, domain: &str, now: i64) -> Option<Result<Arc<Profile>, AskError>> {
        let known = self.known.lock();
        known.get(domain).filter(|known| known.is_good(now)).map(|known| known.said.clone())
    }

    fn turn<'a>(&'a self, domain: &'a str) -> Turn<'a> {
        let lock = Arc::clone(self.turns.lock().entry(domain.to_owned()).or_default());
        Turn { profiles: self, domain, lock: Some(lock) }
    }

    fn remember(&self, domain: &str, now: i64, said: Result<Arc<Profile>, AskError>) {
        let mut known = self.known.lock();
        if known.len() >= MOST && !known.contains_key(domain) {
            known.retain(|_, known| known.is_good(now));
            // All are fresh: the oldest goes.
            if known.len() >= MOST
                && let Some(oldest) =
                    known.iter().min_by_key(|(_, known)| known.at).map(|(name, _)| name.clone())
            {
                known.remove(&oldest);
            }
        }
        known.insert(domain.to_owned(), Known { at: now, said });
    }
}

impl Exchange {
    /// Asks a domain about itself, unless it is known, and waits a moment for the answer, which may also come later.
    pub(crate) async fn hear_of(self: &Arc<Self>, domain: &str) {
        let (Some(from), Ok(domain)) = (self.voice(""), Jid::parse(domain)) else { return };
        let exchange = Arc::clone(self);
        let asking = self.runtime.spawn(async move { exchange.profile(&from, &domain).await.is_ok() });
        let _ = tokio::time::timeout(MOMENT, asking).await;
    }

    /// What a domain says about itself, asked by `from`, one of ours, unless it is known.
    ///
    /// # Errors
    /// See [`AskError`]; an error is remembered for some minutes too.
    pub(crate) async fn profile(
        self: &Arc<Self>,
        from: &Jid,
        domain: &Jid,
    ) -> Result<Arc<Profile>, AskError> {
        let profiles = &self.control.profiles;
        if let Some(said) = profiles.fresh(domain.as_str(), self.clock().now()) {
            return said;
        }
        let turn = profiles.turn(domain.as_str());
        let _now = turn.comes().await;
        // Somebody else may have asked meanwhile.
        if let Some(said) = profiles.fresh(domain.as_str(), self.clock().now()) {
            return said;
        }
        let question = Question {
            from: from.clone(),
            to: domain.clone(),
            kind: IqType::Get,
            payload: disco_info(),
            patience: PATIENCE,
        };
        let said = match self.ask(question).await {
            Ok(answer) => match Profile::read(&answer) {
                Some(profile) => Ok(Arc::new(profile)),
                None => Err(AskError::Odd(domain.to_string())),
            },
            // Our own trouble is nobody's profile.
            Err(AskError::TooMany) => return Err(AskError::TooMany),
            Err(error) => Err(error),
        };
        profiles.remember(domain.as_str(), self.clock().now(), said.clone());
        said
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(inner: &str) -> Stanza {
        Stanza::parse(
            format!("<iq type='result' id='1'><query xmlns='{}'>{inner}</query></iq>", ns::DISCO_INFO)
                .as_bytes(),
        )
        .unwrap()
    }

    fn form(form_type: &str, fields: &str) -> String {
        format!(
            "<x xmlns='jabber:x:data' type='result'><field var='FORM_TYPE' type='hidden'><value>{form_type}</value>\
             </field>{fields}</x>"
        )
    }

    #[test]
    fn contacts_are_read_and_bounded() {
        let many = "<value>xmpp:a@b.example</value>".repeat(100);
        let fields = format!(
            "<field var='abuse-addresses'><value>mailto:a@b.example</value>{many}</field>\
             <field var='other-addresses'><value>xmpp:c@b.example</value></field>"
        );
        let other =
            form("urn:other", "<field var='admin-addresses'><value>xmpp:evil@b.example</value></field>");
        let text = format!("{other}{}", form(ns::SERVER_INFO, &fields));
        let profile = Profile::read(&answer(&text)).unwrap();
        assert_eq!(profile.contacts.keys().collect::<Vec<_>>(), ["abuse"]);
        assert_eq!(profile.contacts["abuse"].len(), MOST_ADDRESSES);
        assert_eq!(profile.addresses("abuse")[0].as_str(), "a@b.example");
        assert!(!profile.named);
        assert!(Profile::read(&answer("<feature var='urn:xmpp:serverinfo:0'/>")).unwrap().named);
    }

    #[test]
    fn memory_is_bounded_and_the_oldest_goes() {
        let profiles = Profiles::default();
        for n in 0..=MOST {
            let said = Ok(Arc::default());
            profiles.remember(&format!("d{n}"), i64::try_from(n).unwrap(), said);
        }
        assert_eq!(profiles.known.lock().len(), MOST);
        assert!(profiles.fresh("d0", 0).is_none());
        assert!(profiles.fresh("d1", 0).is_some());
        assert!(profiles.fresh("d1", FRESH + 1).is_none());
    }
}
