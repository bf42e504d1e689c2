//! What is on a list: addresses by their SHA-256, and domains.

use std::collections::HashMap;

use aws_lc_rs::digest;
use trunkline_xml::Node;
use trunkline_xmpp::jid::Jid;
use trunkline_xmpp::ns;

use crate::control::asking::short;

/// Characters of a reason.
const MOST_REASON: usize = 200;

/// What is on a list, by what it is compared with.
#[derive(Clone, Debug, Default)]
pub(in crate::control) struct Entries {
    hashes: HashMap<[u8; 32], Box<str>>,
    domains: HashMap<Box<str>, Box<str>>,
}

/// What an item's id stands for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(in crate::control) enum Entry {
    /// The SHA-256 of a bare address, or of a domain.
    Hash([u8; 32]),
    /// A domain.
    Domain(Box<str>),
}

/// A change of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Add(Entry, Box<str>),
    Remove(Entry),
    Purge,
}

impl Entry {
    /// Reads an item's id: a hash in hex, a domain, or an address, which counts as its hash.
    pub(in crate::control) fn parse(id: &str) -> Option<Entry> {
        if let Some(hash) = unhex(id) {
            return Some(Entry::Hash(hash));
        }
        let jid = Jid::parse(id).ok()?;
        match jid.local() {
            None if jid.is_domain() => Some(Entry::Domain(jid.as_str().into())),
            None => None,
            Some(_) => Some(Entry::Hash(sha256(jid.bare_str()))),
        }
    }

    /// As an item's id.
    pub(in crate::control) fn id(&self) -> String {
        match self {
            Entry::Hash(hash) => hex(hash),
            Entry::Domain(domain) => domain.to_string(),
        }
    }
}

impl Entries {
    pub(in crate::control) fn len(&self) -> usize {
        self.hashes.len() + self.domains.len()
    }

    pub(super) fn reason_of(&self, entry: &Entry) -> Option<&str> {
        match entry {
            Entry::Hash(hash) => self.hashes.get(hash),
            Entry::Domain(domain) => self.domains.get(domain),
        }
        .map(|reason| &**reason)
    }

    pub(in crate::control) fn add(&mut self, entry: Entry, reason: Box<str>) {
        match entry {
            Entry::Hash(hash) => self.hashes.insert(hash, reason),
            Entry::Domain(domain) => self.domains.insert(domain, reason),
        };
    }

    pub(in crate::control) fn remove(&mut self, entry: &Entry) -> bool {
        match entry {
            Entry::Hash(hash) => self.hashes.remove(hash).is_some(),
            Entry::Domain(domain) => self.domains.remove(domain).is_some(),
        }
    }

    /// Whether somebody is listed: by the domain, its hash, or the hash of the bare address.
    pub(super) fn lists(&self, bare: Option<&str>, domain: &str) -> bool {
        if self.domains.contains_key(domain) {
            return true;
        }
        !self.hashes.is_empty()
            && (bare.is_some_and(|bare| self.hashes.contains_key(&sha256(bare)))
                || self.hashes.contains_key(&sha256(domain)))
    }

    /// Why a domain as a whole is listed.
    pub(super) fn reason(&self, domain: &str) -> Option<String> {
        let reason = self.domains.get(domain).or_else(|| self.hashes.get(&sha256(domain)));
        reason.map(|reason| reason.to_string())
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Entry, &str)> {
        let hashes = self.hashes.iter().map(|(hash, reason)| (Entry::Hash(*hash), &**reason));
        let domains = self.domains.iter().map(|(domain, reason)| (Entry::Domain(domain.clone()), &**reason));
        hashes.chain(domains)
    }
}

/// The bare address, if it is one, and the domain.
pub(super) fn parts(who: &str) -> (Option<&str>, &str) {
    let bare = who.split_once('/').map_or(who, |(bare, _)| bare);
    match bare.split_once('@') {
        Some((_, domain)) => (Some(bare), domain),
        None => (None, bare),
    }
}

pub(in crate::control) fn sha256(text: &str) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest::digest(&digest::SHA256, text.as_bytes()).as_ref());
    hash
}

pub(super) fn hex(hash: &[u8; 32]) -> String {
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    let mut hash = [0; 32];
    for (byte, digits) in hash.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(hash)
}

/// Why the list says so: the text of a report (XEP-0377), or its reason.
pub(super) fn reason_of(item: Node<'_>) -> Box<str> {
    let Some(report) = item.child(ns::REPORTING, "report") else { return "".into() };
    let text = report.child(ns::REPORTING, "text").map(|text| text.text().trim().to_owned());
    let reason = text.filter(|text| !text.is_empty()).unwrap_or_else(|| {
        let reason = report.attr("reason").unwrap_or_default();
        reason.rsplit(':').next().unwrap_or_default().to_owned()
    });
    short(&reason, MOST_REASON).into()
}
