//! Failed logins per address and per account, counted over ten minutes (twice five); and other things that an
//! address may do only so often. Bounded: beyond [`MOST`] entries strangers are counted in [`SHARED`] counters, each
//! for many of them: who floods the memory is not counted less for it, and meets few others.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, Hash, RandomState};
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use parking_lot::Mutex;
use trunkline_xmpp::jid::Jid;

use crate::ids::Clock;

/// How long a failed login counts, at most; at least half of it.
const WINDOW: Duration = Duration::from_secs(600);
/// Addresses and accounts remembered, each, per generation.
const MOST: usize = 50_000;
/// Counters for those who can't be remembered one by one, per generation.
const SHARED: usize = 1 << 14;

/// Counts failed logins.
#[derive(Debug)]
pub struct Attempts {
    clock: Clock,
    by_address: Mutex<Counts<IpAddr>>,
    by_account: Mutex<Counts<Jid>>,
    guessing: Mutex<Guessing>,
}

/// Passwords that are being checked. They count as failures until it is known: of many guesses at the same time none
/// slips through. No more entries than checks at once.
#[derive(Debug, Default)]
struct Guessing {
    addresses: HashMap<IpAddr, u32>,
    accounts: HashMap<Jid, u32>,
}

/// How many failures are too many.
#[derive(Clone, Copy, Debug)]
pub struct Most {
    /// From one address.
    pub per_address: u32,
    /// To one account.
    pub per_account: u32,
}

/// Why a password is not checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TooMany {
    /// Of its address.
    FromAddress,
    /// Of its account.
    ForAccount,
}

#[derive(Debug)]
struct Counts<K> {
    current: Generation<K>,
    previous: Generation<K>,
    /// Chooses the shared counter; random, so that nobody can choose whom to share one with.
    hasher: RandomState,
    began: i64,
    /// Half of the time that something counts, in milliseconds.
    generation: i64,
}

#[derive(Debug)]
struct Generation<K> {
    known: HashMap<K, u32>,
    /// Empty until `known` is full.
    shared: Vec<u32>,
}

impl Attempts {
    /// Nobody has failed yet.
    pub fn new(clock: Clock) -> Attempts {
        Attempts::over(clock, WINDOW)
    }

    /// Counts what happened within `window`, or at least within half of it.
    pub fn over(clock: Clock, window: Duration) -> Attempts {
        let began = clock.now();
        let generation = i64::try_from(window.as_millis() / 2).unwrap_or(i64::MAX / 2);
        let by_address = Mutex::new(Counts::new(began, generation));
        let by_account = Mutex::new(Counts::new(began, generation));
        Attempts { clock, by_address, by_account, guessing: Mutex::default() }
    }

    /// A password is about to be checked; [`Attempts::guessed`] is to be called when that is done, and, before, one of
    /// the others if it failed.
    ///
    /// # Errors
    /// There were too many failures. Nothing is to be called.
    pub fn guess(&self, address: IpAddr, account: &Jid, most: Most) -> Result<(), TooMany> {
        let mut guessing = self.guessing.lock();
        let Guessing { addresses, accounts } = &mut *guessing;
        let network = network(address);
        let under_way = |count: Option<&u32>| count.copied().unwrap_or(0);
        let from = self.from_address(address).saturating_add(under_way(addresses.get(&network)));
        if from >= most.per_address {
            return Err(TooMany::FromAddress);
        }
        if self.of_account(account).saturating_add(under_way(accounts.get(account))) >= most.per_account {
            return Err(TooMany::ForAccount);
        }
        *addresses.entry(network).or_insert(0) += 1;
        *accounts.entry(account.clone()).or_insert(0) += 1;
        Ok(())
    }

    /// The password is checked, or will not be.
    pub fn guessed(&self, address: IpAddr, account: &Jid) {
        let mut guessing = self.guessing.lock();
        take(&mut guessing.addresses, &network(address));
        take(&mut guessing.accounts, account);
    }

    /// Failures from the address in the last five to ten minutes.
    pub fn from_address(&self, address: IpAddr) -> u32 {
        self.by_address.lock().count(&network(address), self.clock.now())
    }

    /// Failures for the account in the last five to ten minutes.
    pub fn of_account(&self, account: &Jid) -> u32 {
        self.by_account.lock().count(account, self.clock.now())
    }

    /// Counts a failure from the address.
    pub fn failed_from(&self, address: IpAddr) {
        self.by_address.lock().add(network(address), self.clock.now());
    }

    /// Counts a failure for the account, which need not exist: known and unknown ones are treated alike.
    pub fn failed_for(&self, account: &Jid) {
        self.by_account.lock().add(account.clone(), self.clock.now());
    }
}

/// One less; who has none is not remembered.
fn take<K: Eq + Hash>(counts: &mut HashMap<K, u32>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

/// One customer's addresses: an IPv6 /64 counts as one.
fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => IpAddr::V4(v4),
            None => {
                let [a, b, c, d, ..] = v6.segments();
                IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
            }
        },
    }
}

impl<K: Eq + Hash> Counts<K> {
    fn new(began: i64, generation: i64) -> Counts<K> {
        let (current, previous) = (Generation::default(), Generation::default());
        Counts { current, previous, hasher: RandomState::new(), began, generation }
    }

    fn turn(&mut self, now: i64) {
        if now - self.began >= 2 * self.generation || now < self.began {
            *self = Counts::new(now, self.generation);
        } else if now - self.began >= self.generation {
            self.previous = std::mem::take(&mut self.current);
            self.began = now;
        }
    }

    fn count(&mut self, key: &K, now: i64) -> u32 {
        self.turn(now);
        let shared = self.shared(key);
        self.current.count(key, shared).saturating_add(self.previous.count(key, shared))
    }

    fn add(&mut self, key: K, now: i64) {
        self.turn(now);
        let shared = self.shared(&key);
        self.current.add(key, shared);
    }

    /// Which of the shared counters is the key's.
    fn shared(&self, key: &K) -> usize {
        usize::try_from(self.hasher.hash_one(key) % SHARED as u64).unwrap_or_default()
    }
}

impl<K> Default for Generation<K> {
    fn default() -> Generation<K> {
        Generation { known: HashMap::new(), shared: Vec::new() }
    }
}

impl<K: Eq + Hash> Generation<K> {
    fn count(&self, key: &K, shared: usize) -> u32 {
        self.known.get(key).or_else(|| self.shared.get(shared)).copied().unwrap_or(0)
    }

    fn add(&mut self, key: K, shared: usize) {
        let count = if let Some(count) = self.known.get_mut(&key) {
            count
        } else if self.known.len() < MOST {
            self.known.entry(key).or_insert(0)
        } else {
            if self.shared.is_empty() {
                self.shared = vec![0; SHARED];
            }
            &mut self.shared[shared]
        };
        *count = count.saturating_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_when_the_memory_is_full_is_counted_nevertheless() {
        let attempts = Attempts::new(Clock::virtual_now());
        let account = |name: &str| Jid::from_parts(Some(name), "north.localhost", None).unwrap();
        for n in 0..MOST {
            attempts.failed_for(&account(&format!("u{n}")));
        }
        let romeo = account("romeo");
        assert_eq!(attempts.of_account(&romeo), 0);
        for _ in 0..20 {
            attempts.failed_for(&romeo);
        }
        assert!(attempts.of_account(&romeo) >= 20);
        assert_eq!(attempts.of_account(&account("u7")), 1, "the known keep their own count");
        let others = (0..1000).filter(|n| attempts.of_account(&account(&format!("x{n}"))) >= 20).count();
        assert!(others < 20, "{others} of 1000 strangers share the counter");
    }

    #[test]
    fn guesses_at_the_same_time_count_before_they_fail() {
        let attempts = Attempts::new(Clock::virtual_now());
        let address: IpAddr = "192.0.2.1".parse().unwrap();
        let account = |name: &str| Jid::from_parts(Some(name), "north.localhost", None).unwrap();
        let (romeo, juliet) = (account("romeo"), account("juliet"));
        let most = Most { per_address: 4, per_account: 2 };
        let guess = |who: &Jid| attempts.guess(address, who, most);
        assert_eq!([guess(&romeo), guess(&romeo), guess(&romeo)], [Ok(()), Ok(()), Err(TooMany::ForAccount)]);
        attempts.failed_for(&romeo);
        attempts.failed_from(address);
        attempts.guessed(address, &romeo);
        assert_eq!(guess(&romeo), Err(TooMany::ForAccount), "one failed and one is under way");
        attempts.guessed(address, &romeo);
        assert_eq!([guess(&romeo), guess(&juliet)], [Ok(()), Ok(())], "the other one was right");
        assert_eq!([guess(&juliet), guess(&juliet)], [Ok(()), Err(TooMany::FromAddress)]);
        for who in [&romeo, &juliet, &juliet] {
            attempts.guessed(address, who);
        }
        let guessing = attempts.guessing.lock();
        assert!(guessing.addresses.is_empty() && guessing.accounts.is_empty(), "{guessing:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn failures_are_forgotten_after_ten_minutes() {
        let attempts = Attempts::new(Clock::virtual_now());
        let (address, neighbour): (IpAddr, IpAddr) =
            ("2001:db8::1".parse().unwrap(), "2001:db8::ffff:1".parse().unwrap());
        attempts.failed_from(address);
        attempts.failed_from(neighbour);
        assert_eq!(attempts.from_address(address), 2, "one /64 is one customer");
        tokio::time::advance(Duration::from_secs(301)).await;
        attempts.failed_from(address);
        assert_eq!(attempts.from_address(address), 3);
        tokio::time::advance(Duration::from_secs(301)).await;
        assert_eq!(attempts.from_address(address), 1);
        tokio::time::advance(Duration::from_secs(601)).await;
        assert_eq!(attempts.from_address(address), 0);
    }
}
