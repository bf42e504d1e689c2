//! Failed logins per address and per account, counted over ten minutes (twice five); and other things that an
//! address may do only so often. Bounded: beyond
//! [`MOST`] entries nothing new is counted, and an address or account that is not counted may try.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use parking_lot::Mutex;
use trunkline_xmpp::jid::Jid;

use crate::ids::Clock;

/// How long a failed login counts, at most; at least half of it.
const WINDOW: Duration = Duration::from_secs(600);
/// Addresses and accounts remembered, each, per generation.
const MOST: usize = 50_000;

/// Counts failed logins.
#[derive(Debug)]
pub struct Attempts {
    clock: Clock,
    by_address: Mutex<Counts<IpAddr>>,
    by_account: Mutex<Counts<Jid>>,
}

#[derive(Debug)]
struct Counts<K> {
    current: HashMap<K, u32>,
    previous: HashMap<K, u32>,
    began: i64,
    /// Half of the time that something counts, in milliseconds.
    generation: i64,
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
        Attempts { clock, by_address, by_account: Mutex::new(Counts::new(began, generation)) }
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
        Counts { current: HashMap::new(), previous: HashMap::new(), began, generation }
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
        let of = |map: &HashMap<K, u32>| map.get(key).copied().unwrap_or(0);
        of(&self.current) + of(&self.previous)
    }

    fn add(&mut self, key: K, now: i64) {
        self.turn(now);
        if let Some(count) = self.current.get_mut(&key) {
            *count += 1;
        } else if self.current.len() < MOST {
            self.current.insert(key, 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
