//! What the outside may use: places and bytes, for each source address, for each peer domain, and for all together.
//!
//! | what | for one address | for one domain | for all |
//! |---|---|---|---|
//! | connections | `federation.max_connections_per_address` | | `federation.max_connections` |
//! | of these, without a proof | `federation.max_unproved_per_address` | | `federation.max_unproved` |
//! | of these, in a TLS handshake | `federation.max_handshakes_per_address` | | `federation.max_handshakes` |
//! | domains | `MOST_PROOFS` | | `MOST_INCOMING` |
//! | streams with a proof | | `federation.max_streams_per_domain` | |
//! | dialback keys being checked | `federation.max_verifications_per_address` | `.._per_domain` | `federation.max_verifications` |
//! | buffers of streams | `federation.memory_per_address` | `federation.memory_per_domain` | `federation.memory` |
//! | the crossing | | `limits.crossing_peer_stanzas`, `limits.crossing_peer_bytes` | `limits.crossing_*` |
//! | queues in memory | | `federation.queue_stanzas`, `federation.queue_bytes` | `federation.queue_memory` |

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use parking_lot::Mutex;
use trunkline_xmpp::jid::Jid;

use super::shared::Shared;
use crate::net::listen::network;

/// Bytes that a stream may have in its buffers whatever others have: the beginning of a stanza, or an answer. A stream is
/// not ended for what others use.
pub(super) const ALLOWANCE: usize = 16 * 1024;
/// Changes below this are not worth a look at the accounts.
const GRAIN: usize = 2048;

/// How much of something one key may have, and all together.
#[derive(Clone, Copy, Debug)]
pub(super) struct Most {
    pub(super) one: usize,
    pub(super) all: usize,
}

impl Most {
    /// A bound for each, none for all.
    pub(super) fn each(one: usize) -> Most {
        Most { one, all: usize::MAX }
    }

    /// A bound for all, none for each.
    pub(super) fn together(all: usize) -> Most {
        Most { one: usize::MAX, all }
    }
}

/// Which bound is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Over {
    /// That of the key.
    One,
    /// That of all together.
    All,
}

/// What each of many has of something that all of them share. Who has nothing is not remembered.
#[derive(Debug)]
pub(super) struct Quota<K: Eq + Hash> {
    held: Mutex<Held<K>>,
}

#[derive(Debug)]
struct Held<K> {
    all: usize,
    of: HashMap<K, usize>,
}

/// What one has; dropped, it is free again.
#[derive(Debug)]
pub(super) struct Claim<K: Eq + Hash> {
    quota: Arc<Quota<K>>,
    key: K,
    amount: usize,
}

impl<K: Eq + Hash + Clone> Quota<K> {
    pub(super) fn new() -> Arc<Quota<K>> {
        Arc::new(Quota { held: Mutex::new(Held { all: 0, of: HashMap::new() }) })
    }

    /// One more for `key`, if it may have it.
    pub(super) fn take(self: &Arc<Self>, key: K, most: Most) -> Result<Claim<K>, Over> {
        let mut held = self.held.lock();
        let now = held.of.get(&key).copied().unwrap_or(0);
        if now >= most.one {
            return Err(Over::One);
        }
        if held.all >= most.all {
            return Err(Over::All);
        }
        held.all += 1;
        held.of.insert(key.clone(), now + 1);
        Ok(Claim { quota: Arc::clone(self), key, amount: 1 })
    }

    /// Nothing yet.
    pub(super) fn nothing(self: &Arc<Self>, key: K) -> Claim<K> {
        Claim { quota: Arc::clone(self), key, amount: 0 }
    }

    /// What all have.
    pub(super) fn all(&self) -> usize {
        self.held.lock().all
    }

    /// How many have something.
    #[cfg(test)]
    pub(super) fn keys(&self) -> usize {
        self.held.lock().of.len()
    }
}

impl<K: Eq + Hash + Clone> Claim<K> {
    /// Has `amount` from now on. It is counted in any case; the error says that it is more than it should be.
    pub(super) fn set(&mut self, amount: usize, most: Most) -> Result<(), Over> {
        let grows = amount > self.amount;
        let (one, all) = self.quota.change(&self.key, self.amount, amount);
        self.amount = amount;
        match (grows, one > most.one, all > most.all) {
            (true, true, _) => Err(Over::One),
            (true, _, true) => Err(Over::All),
            _ => Ok(()),
        }
    }

    pub(super) fn amount(&self) -> usize {
        self.amount
    }
}

impl<K: Eq + Hash + Clone> Quota<K> {
    /// What the key and all have then.
    fn change(&self, key: &K, before: usize, after: usize) -> (usize, usize) {
        let mut held = self.held.lock();
        held.all = held.all - before + after;
        let one = held.of.get(key).copied().unwrap_or(0) - before + after;
        match (one, held.of.get_mut(key)) {
            (0, _) => drop(held.of.remove(key)),
            (one, Some(known)) => *known = one,
            (one, None) => drop(held.of.insert(key.clone(), one)),
        }
        (one, held.all)
    }
}

impl<K: Eq + Hash> Drop for Claim<K> {
    fn drop(&mut self) {
        if self.amount == 0 {
            return;
        }
        let mut held = self.quota.held.lock();
        held.all -= self.amount;
        if let Some(known) = held.of.get_mut(&self.key) {
            *known -= self.amount;
            if *known == 0 {
                held.of.remove(&self.key);
            }
        }
    }
}

/// Everything that is counted.
#[derive(Debug)]
pub(super) struct Budgets {
    /// Pairs of domains that the streams from one address (IPv6: one /64) have proved.
    pub(super) proofs: Arc<Quota<IpAddr>>,
    /// Incoming connections on which no domain is proved yet.
    pub(super) unproved: Arc<Quota<IpAddr>>,
    /// Incoming streams on which a domain is proved.
    pub(super) streams: Arc<Quota<Jid>>,
    /// Dialback keys that are being checked, by who asked.
    pub(super) verifying: Arc<Quota<IpAddr>>,
    /// The same, by the domain that is asked.
    pub(super) verified: Arc<Quota<Jid>>,
    /// Bytes in buffers of streams, by address.
    pub(super) memory: Arc<Quota<IpAddr>>,
    /// The same, by domain.
    pub(super) memory_of_domains: Arc<Quota<Jid>>,
    /// Bytes that wait in memory for peer domains.
    pub(super) queued: Arc<Quota<()>>,
    /// Pairs of domains for which an account's stanzas wait, without a stream.
    pub(super) waiting_for: Arc<Quota<Jid>>,
}

impl Budgets {
    pub(super) fn new() -> Budgets {
        Budgets {
            proofs: Quota::new(),
            unproved: Quota::new(),
            streams: Quota::new(),
            verifying: Quota::new(),
            verified: Quota::new(),
            memory: Quota::new(),
            memory_of_domains: Quota::new(),
            queued: Quota::new(),
            waiting_for: Quota::new(),
        }
    }
}

/// A place among connections that have not proved a domain.
pub(super) type Unproved = Claim<IpAddr>;

/// A dialback key that is being checked: by whom it was brought, and whose it is to be.
#[derive(Debug)]
pub(super) struct Verification {
    _by: Claim<IpAddr>,
    _of: Claim<Jid>,
}

impl Shared {
    /// A connection from `address` comes in. The error is the refusal's name.
    pub(super) fn let_in(&self, address: IpAddr) -> Result<Unproved, &'static str> {
        let config = self.exchange.config.load();
        let one = if config.limits.enabled { config.federation.max_unproved_per_address } else { usize::MAX };
        let most = Most { one, all: config.federation.max_unproved };
        self.budgets.unproved.take(network(address), most).map_err(|over| match over {
            Over::One => "unproved-per-address",
            Over::All => "unproved-connections",
        })
    }

    /// A further stream of a domain that was proved.
    pub(super) fn another_stream(&self, domain: &Jid) -> Option<Claim<Jid>> {
        let config = self.exchange.config.load();
        let one = if config.limits.enabled { config.federation.max_streams_per_domain } else { usize::MAX };
        self.budgets.streams.take(domain.clone(), Most::each(one)).ok()
    }

    /// A key that `domain` is to be asked about, brought by `address`. The error is the refusal's name.
    pub(super) fn may_verify(&self, address: IpAddr, domain: &Jid) -> Result<Verification, &'static str> {
        let config = self.exchange.config.load();
        let enabled = config.limits.enabled;
        let each = |bound: usize| if enabled { bound } else { usize::MAX };
        let federation = &config.federation;
        let most =
            Most { one: each(federation.max_verifications_per_address), all: federation.max_verifications };
        let by = self.budgets.verifying.take(network(address), most).map_err(|over| match over {
            Over::One => "verifications-per-address",
            Over::All => "verifications",
        })?;
        let most = Most::each(each(federation.max_verifications_per_domain));
        let of = self.budgets.verified.take(domain.clone(), most).map_err(|_| "verifications-per-domain")?;
        Ok(Verification { _by: by, _of: of })
    }

    /// Bytes that are about to wait for a peer domain.
    pub(super) fn note_queued(&self, bytes: usize) -> Claim<()> {
        let mut claim = self.budgets.queued.nothing(());
        // Whether there is room was decided before ([`Shared::queue_bounds`]).
        let _ = claim.set(bytes, Most::together(usize::MAX));
        claim
    }
}

/// What one stream has in its buffers.
#[derive(Debug)]
pub(super) struct Footprint {
    address: Claim<IpAddr>,
    domain: Option<Claim<Jid>>,
}

impl Footprint {
    /// `address` is where the stream comes from or goes to, as people read it.
    pub(super) fn new(shared: &Shared, address: &str) -> Footprint {
        let ip = address.parse::<SocketAddr>().map_or(IpAddr::V6(Ipv6Addr::UNSPECIFIED), |it| it.ip());
        Footprint { address: shared.budgets.memory.nothing(network(ip)), domain: None }
    }

    /// From here on it counts for `domain` too.
    pub(super) fn belongs_to(&mut self, shared: &Shared, domain: &Jid) {
        self.domain.get_or_insert_with(|| shared.budgets.memory_of_domains.nothing(domain.clone()));
    }

    /// Counts `bytes`. The error is the name of a refusal: the stream has more than it may.
    pub(super) fn set(&mut self, shared: &Shared, bytes: usize) -> Result<(), &'static str> {
        let before = self.address.amount();
        if before.abs_diff(bytes) < GRAIN && (bytes > 0 || before == 0) {
            return Ok(());
        }
        let config = shared.exchange.config.load();
        let federation = &config.federation;
        let each = |bound: usize| if config.limits.enabled { bound } else { usize::MAX };
        let most = Most { one: each(federation.memory_per_address), all: federation.memory };
        let of_address = self.address.set(bytes, most);
        let of_domain = match &mut self.domain {
            Some(domain) => domain.set(bytes, Most::each(each(federation.memory_per_domain))),
            None => Ok(()),
        };
        match (of_address, of_domain) {
            _ if bytes <= ALLOWANCE => Ok(()),
            (_, Err(_)) => Err("memory-per-domain"),
            (Err(Over::One), _) => Err("memory-per-address"),
            (Err(Over::All), _) => Err("memory"),
            (Ok(()), Ok(())) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_does_not_take_all_places() {
        let quota = Quota::new();
        let most = Most { one: 2, all: 3 };
        let [flood, neighbour, other] =
            ["2001:db8::1", "2001:db8::2", "192.0.2.1"].map(|ip| network(ip.parse::<IpAddr>().unwrap()));
        let (first, _second) = (quota.take(flood, most).unwrap(), quota.take(neighbour, most).unwrap());
        assert_eq!(quota.take(flood, most).unwrap_err(), Over::One);
        let third = quota.take(other, most).unwrap();
        assert_eq!(quota.take(other, most).unwrap_err(), Over::All);
        drop(first);
        let again = quota.take(neighbour, most).unwrap();
        assert_eq!(quota.take(flood, most).unwrap_err(), Over::One);
        drop((third, again));
        assert_eq!((quota.keys(), quota.all()), (1, 1));
    }

    #[test]
    fn amounts_grow_and_shrink_and_go() {
        let quota = Quota::new();
        let most = Most { one: 100, all: 150 };
        let (mut a, mut b) = (quota.nothing("a"), quota.nothing("b"));
        let mut again = quota.nothing("a");
        assert_eq!(quota.keys(), 0, "nothing is not remembered");
        assert_eq!((a.set(60, most), b.set(80, most)), (Ok(()), Ok(())));
        assert_eq!(again.set(41, most), Err(Over::One), "two of one key count together");
        assert_eq!(a.set(20, most), Ok(()), "less is always allowed");
        assert_eq!(b.set(95, most), Err(Over::All));
        assert_eq!(quota.all(), 20 + 95 + 41);
        assert_eq!(b.set(0, most), Ok(()));
        assert_eq!((quota.keys(), quota.all()), (1, 61));
        drop((a, again));
        assert_eq!((quota.keys(), quota.all()), (0, 0));
    }
}
