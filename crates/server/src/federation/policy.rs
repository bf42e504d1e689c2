//! Whom we talk to: what [`crate::control`] decided, carried out on the streams. And the way back after everybody was cut
//! off: not everybody at once.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use trunkline_xmpp::error::StanzaError;
use trunkline_xmpp::jid::Jid;

use super::failure::Failure;
use super::shared::Shared;
use crate::control::rule::Direction;
use crate::control::traffic::Event;
use crate::control::{Access, Case, Verdict};
use crate::route::Mail;

/// How long an incoming connection waits for its turn after a reopening; who would wait longer is sent away.
const LONGEST_TURN: Duration = Duration::from_secs(30);
/// A reopening is over when nobody has asked for a turn for this long, ...
const QUIET: Duration = Duration::from_secs(60);
/// ... and at the latest after this: who waits then still has a turn, who comes goes at once.
const LONGEST_REOPENING: Duration = Duration::from_secs(3600);

/// Gives out turns, so many a second, while a reopening lasts. Otherwise everybody's turn is now.
///
/// Who waits is served in the round: one of each source, then the next of each. Nobody can take more than the others who
/// ask leave, and nothing that somebody wants is left unused.
#[derive(Debug)]
pub(super) struct Turns {
    pace: Mutex<Option<Pace>>,
    /// Somebody waits, or the pace is another one.
    changed: Notify,
    /// How long anybody waits.
    most: Duration,
}

#[derive(Debug)]
struct Pace {
    gap: Duration,
    began: Instant,
    /// When somebody asked last.
    asked: Instant,
    /// The next turn.
    next: Instant,
    /// Who waits, by source, in order; not more than there are turns in the longest wait.
    waiting: HashMap<Arc<str>, Line>,
    /// The sources in `waiting`: the first has the next turn.
    round: VecDeque<Arc<str>>,
    /// How many wait, all and by source, the most last.
    all: usize,
    lengths: BTreeSet<(usize, Arc<str>)>,
    serial: u64,
}

/// Who waits of one source.
type Line = VecDeque<(u64, oneshot::Sender<()>)>;

/// A place among those who wait; given back when it is dropped.
struct Place<'a> {
    turns: &'a Turns,
    whose: Arc<str>,
    serial: u64,
    turn: oneshot::Receiver<()>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if let Some(pace) = self.turns.pace.lock().as_mut() {
            pace.remove(&self.whose, |line| line.iter().position(|(serial, _)| *serial == self.serial));
        }
    }
}

impl Pace {
    fn new(per_second: u32, now: Instant) -> Pace {
        Pace {
            gap: Duration::from_secs(1) / per_second.max(1),
            began: now,
            asked: now,
            next: now,
            waiting: HashMap::new(),
            round: VecDeque::new(),
            all: 0,
            lengths: BTreeSet::new(),
            serial: 0,
        }
    }

    fn is_over(&self, now: Instant) -> bool {
        self.all == 0 && (now > self.asked + QUIET || now > self.began + LONGEST_REOPENING)
    }

    /// `whose` stands in the line. `None`: it is full, and nobody has more in it. Otherwise who has most gives way.
    fn add(&mut self, whose: Arc<str>, most: Duration) -> Option<(u64, oneshot::Receiver<()>)> {
        let places = usize::try_from(most.as_nanos() / self.gap.as_nanos().max(1)).unwrap_or(usize::MAX);
        if self.all >= places {
            let (longest, of) = self.lengths.last().cloned()?;
            if self.waiting.get(&whose).map_or(0, VecDeque::len) + 1 >= longest {
                return None;
            }
            self.remove(&of, |line| line.len().checked_sub(1));
        }
        self.serial += 1;
        let (turn, given) = oneshot::channel();
        let line = self.waiting.entry(Arc::clone(&whose)).or_default();
        line.push_back((self.serial, turn));
        let length = line.len();
        if length == 1 {
            self.round.push_back(Arc::clone(&whose));
        }
        self.all += 1;
        self.note_length(&whose, (length - 1, length));
        Some((self.serial, given))
    }

    /// The next one in the round.
    fn pop(&mut self) -> Option<oneshot::Sender<()>> {
        let first = self.round.pop_front()?;
        let turn = self.take_out(&first, |_| Some(0));
        if self.waiting.contains_key(&first) {
            // Behind all others.
            self.round.push_back(first);
        }
        turn
    }

    /// Takes one of a source out of the line, out of its turn.
    fn remove(&mut self, whose: &Arc<str>, which: impl FnOnce(&Line) -> Option<usize>) {
        if self.take_out(whose, which).is_some() && !self.waiting.contains_key(whose) {
            self.round.retain(|source| source != whose);
        }
    }

    fn take_out(
        &mut self,
        whose: &Arc<str>,
        which: impl FnOnce(&Line) -> Option<usize>,
    ) -> Option<oneshot::Sender<()>> {
        let line = self.waiting.get_mut(whose)?;
        let (_, turn) = line.remove(which(line)?)?;
        let length = line.len();
        if length == 0 {
            self.waiting.remove(whose);
        }
        self.all -= 1;
        self.note_length(whose, (length + 1, length));
        Some(turn)
    }

    fn note_length(&mut self, whose: &Arc<str>, (before, now): (usize, usize)) {
        self.lengths.remove(&(before, Arc::clone(whose)));
        if now > 0 {
            self.lengths.insert((now, Arc::clone(whose)));
        }
    }

    /// Gives the turns that have come. When the next thing happens.
    fn give(&mut self, now: Instant) -> Instant {
        while self.next <= now && self.all > 0 {
            // Who has gone meanwhile takes no turn.
            if self.pop().is_some_and(|turn| turn.send(()).is_ok()) {
                self.next += self.gap;
            }
        }
        match self.all {
            // A moment later, so that it is over then.
            0 => (self.asked + QUIET).min(self.began + LONGEST_REOPENING) + Duration::from_millis(1),
            _ => self.next,
        }
    }
}

impl Turns {
    fn new(most: Duration) -> Arc<Turns> {
        Arc::new(Turns { pace: Mutex::default(), changed: Notify::new(), most })
    }

    /// Turns of connections that come in.
    pub(super) fn of_incoming() -> Arc<Turns> {
        Turns::new(LONGEST_TURN)
    }

    /// Turns of connections that are made.
    pub(super) fn of_outgoing() -> Arc<Turns> {
        Turns::new(LONGEST_REOPENING)
    }

    /// A reopening begins. True: somebody has to [`Turns::serve`].
    fn begin(&self, per_second: u32, now: Instant) -> bool {
        let mut pace = self.pace.lock();
        if let Some(current) = pace.as_mut() {
            // Who waits since the last one goes on to wait.
            let Pace { gap, began, asked, next, .. } = Pace::new(per_second, now);
            (current.gap, current.began, current.asked, current.next) = (gap, began, asked, next);
            drop(pace);
            self.changed.notify_one();
            return false;
        }
        *pace = Some(Pace::new(per_second, now));
        true
    }

    /// Gives turns until the reopening is over.
    async fn serve(self: Arc<Self>) {
        loop {
            let next = {
                let now = Instant::now();
                let mut pace = self.pace.lock();
                let Some(current) = pace.as_mut() else { return };
                let next = current.give(now);
                if current.is_over(now) {
                    *pace = None;
                    return;
                }
                next
            };
            tokio::select! {
                () = tokio::time::sleep_until(next) => {}
                () = self.changed.notified() => {}
            }
        }
    }

    /// Waits for the next turn that `whose` may have. False: there is none in time.
    async fn take(&self, whose: &str) -> bool {
        let (gap, place) = {
            let now = Instant::now();
            let mut pace = self.pace.lock();
            let Some(current) = pace.as_mut() else { return true };
            if now > current.began + LONGEST_REOPENING || current.is_over(now) {
                return true;
            }
            current.asked = now;
            if current.all == 0 && current.next <= now {
                current.next = now + current.gap;
                (current.gap, None)
            } else {
                let whose: Arc<str> = whose.into();
                let Some((serial, turn)) = current.add(Arc::clone(&whose), self.most) else { return false };
                (current.gap, Some(Place { turns: self, whose, serial, turn }))
            }
        };
        if let Some(mut place) = place {
            self.changed.notify_one();
            if !matches!(tokio::time::timeout(self.most + gap, &mut place.turn).await, Ok(Ok(()))) {
                return false;
            }
        }
        // Within its gap at any moment: what others do at the full second, we don't.
        let mut random = [0u8; 1];
        // Without randomness it is the beginning of the gap.
        let _ = getrandom::fill(&mut random);
        tokio::time::sleep(gap.mul_f64(f64::from(random[0]) / 256.0)).await;
        true
    }
}

/// Who an address is as far as turns go: of IPv6 its /64, which is what one machine has.
fn whose(address: &str) -> String {
    match address.parse::<SocketAddr>().map(|address| address.ip().to_canonical()) {
        Ok(IpAddr::V6(ip)) => {
            let [a, b, c, d, ..] = ip.segments();
            format!("{a:x}:{b:x}:{c:x}:{d:x}")
        }
        Ok(ip) => ip.to_string(),
        Err(_) => address.to_owned(),
    }
}

impl Shared {
    /// Anything at all goes in or out. Who looks first after everybody was cut off begins the reopening.
    pub(super) fn is_open(&self) -> bool {
        let open = self.exchange.control.is_open();
        if !open {
            self.was_closed.store(true, Ordering::Release);
        } else if self.was_closed.load(Ordering::Acquire) && self.was_closed.swap(false, Ordering::AcqRel) {
            let per_second = self.exchange.config.load().federation.reopen_per_second;
            let now = Instant::now();
            for turns in [&self.turns_in, &self.turns_out] {
                if turns.begin(per_second, now) {
                    self.runtime.spawn(Arc::clone(turns).serve());
                }
            }
            tracing::info!(
                per_second,
                "the outside is open again: connections come back one after the other"
            );
        }
        open
    }

    /// Waits for the turn of an incoming connection. False: there are too many, it is to try again later.
    pub(super) async fn turn_in(&self, address: &str) -> bool {
        self.turns_in.take(&whose(address)).await
    }

    /// Waits for the turn of an outgoing connection to a domain; an empty name: of one that only answers, whatever the
    /// domain. Others could make us want as many of those as they like.
    pub(super) async fn turn_out(&self, domain: &str) {
        let latest = Instant::now() + LONGEST_REOPENING;
        if !self.turns_out.take(domain).await {
            tokio::time::sleep_until(latest).await;
        }
    }

    /// Ready when `domain` (`None`: anybody) may not be talked to.
    pub(super) async fn until_forbidden(&self, domain: Option<&str>) -> Option<Failure> {
        loop {
            let changed = self.policy.notified();
            tokio::pin!(changed);
            // From here on no change is missed.
            changed.as_mut().enable();
            if !self.is_open() {
                return domain.and_then(|domain| self.forbidden(domain));
            }
            if let Some(failure) = domain.and_then(|domain| self.forbidden(domain)) {
                return Some(failure);
            }
            changed.await;
        }
    }

    /// `domain` may be talked to.
    pub(super) fn may_talk(&self, domain: &str) -> bool {
        self.exchange.control.access(domain) == Access::Open
    }

    /// Why `domain` may not be talked to; `None`: it may.
    pub(super) fn forbidden(&self, domain: &str) -> Option<Failure> {
        match self.exchange.control.access(domain) {
            Access::Open => None,
            Access::Blocked(reason) => Some(Failure::Policy(reason)),
            Access::Closed(reason) => Some(Failure::CutOff(reason)),
        }
    }

    /// The edge, on the way out. The server's own answers are not judged: they are what the policy says.
    pub(super) fn judge_outgoing(&self, domain: &Jid, mail: Mail) -> Result<Option<Mail>, StanzaError> {
        if mail.is_answer() {
            return Ok(Some(mail));
        }
        let case =
            Case { direction: Direction::Out, domain: domain.as_str(), stanza: &mail.stanza, relation: None };
        let decision = self.exchange.control.judge(&case);
        let refused = |name| {
            self.exchange.metrics.refused(name);
            self.exchange.control.traffic.count(domain.as_str(), Event::Withheld(name));
        };
        match decision.verdict {
            Verdict::Reject(error) => {
                refused("policy-rejected");
                Err(error)
            }
            // It vanishes: its sender is not to know.
            Verdict::Drop => {
                refused("policy-dropped");
                Ok(None)
            }
            Verdict::Allow | Verdict::Undecided | Verdict::Hold => {
                let stanza = decision.carried_out(mail.stanza.clone(), Direction::Out).inspect_err(|_| {
                    refused("policy-text-only");
                })?;
                Ok(Some(Mail { stanza, ..mail }))
            }
        }
    }

    /// Dialback may prove `domain`, and prove us to it.
    pub(super) fn dialback_with(&self, domain: &str) -> bool {
        self.exchange.config.load().federation.dialback_with(domain)
    }

    pub(super) fn policy_changed(&self) {
        // A reopening begins before anybody is woken.
        self.is_open();
        self.epoch.fetch_add(1, Ordering::AcqRel);
        self.policy.notify_waiters();
        let lines: Vec<_> = self.lines.lock().values().cloned().collect();
        for line in lines {
            line.wake();
        }
        for peer in self.peers.all() {
            let pairs: Vec<_> = peer.pairs.lock().values().cloned().collect();
            for pair in pairs {
                pair.hurry();
            }
        }
    }

    pub(super) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::task::JoinHandle;

    const GAP: Duration = Duration::from_millis(50);

    /// A reopening with twenty turns a second.
    fn reopening() -> Arc<Turns> {
        let turns = Turns::of_incoming();
        assert!(turns.begin(20, Instant::now()));
        tokio::spawn(Arc::clone(&turns).serve());
        turns
    }

    /// Connections that come one behind the other; each says when it had its turn, after the first of them.
    async fn come(turns: &Arc<Turns>, whose: &str, many: usize) -> Vec<JoinHandle<Option<Duration>>> {
        let began = Instant::now();
        let mut tasks = Vec::new();
        for _ in 0..many {
            let (turns, whose) = (Arc::clone(turns), whose.to_owned());
            tasks.push(tokio::spawn(async move { turns.take(&whose).await.then(|| began.elapsed()) }));
        }
        // All of them stand in the line.
        tokio::time::sleep(Duration::from_micros(1)).await;
        tasks
    }

    /// When they had their turns, sorted; without those who had none.
    async fn turns_of(tasks: Vec<JoinHandle<Option<Duration>>>) -> Vec<Duration> {
        let mut had = Vec::new();
        for task in tasks {
            had.extend(task.await.unwrap());
        }
        had.sort();
        had
    }

    fn waiting(turns: &Turns) -> usize {
        turns.pace.lock().as_ref().map_or(0, |pace| pace.all)
    }

    #[tokio::test(start_paused = true)]
    async fn one_alone_has_every_turn() {
        let turns = reopening();
        let had = turns_of(come(&turns, "192.0.2.1", 100).await).await;
        assert_eq!(had.len(), 100);
        for (n, had) in (0..).zip(&had) {
            let due = GAP * n;
            assert!((due..due + GAP + Duration::from_millis(3)).contains(had), "{n}: {had:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_comes_with_many_leaves_turns_to_others() {
        let turns = reopening();
        let flood = come(&turns, "192.0.2.1", 300).await;
        // Ten with one connection each: nine go to them before the flood has ten.
        let mut others = Vec::new();
        for n in 0..10 {
            others.extend(come(&turns, &format!("198.51.100.{n}"), 1).await);
        }
        let others = turns_of(others).await;
        assert_eq!(others.len(), 10);
        assert!(others[9] < GAP * 13, "{others:?}");
        // One with many shares with the flood, turn by turn.
        let second = come(&turns, "198.51.100.50", 20).await;
        let second = turns_of(second).await;
        assert!(second[19] < GAP * 43, "{second:?}");
        assert_eq!(turns_of(flood).await.len(), 300, "and nobody is forgotten");
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_line_has_room_for_who_has_little_in_it() {
        let turns = reopening();
        let flood = come(&turns, "192.0.2.1", 2000).await;
        assert_eq!(waiting(&turns), 600, "the turns of half a minute");
        let other = come(&turns, "198.51.100.1", 2).await;
        assert_eq!(waiting(&turns), 600);
        let other = turns_of(other).await;
        assert_eq!(other.len(), 2);
        assert!(other[1] < GAP * 6, "{other:?}");
        // The first, 600 that waited, less the last two, who gave way.
        assert_eq!(turns_of(flood).await.len(), 599);
        assert_eq!(waiting(&turns), 0);
        let pace = turns.pace.lock();
        let pace = pace.as_ref().unwrap();
        assert!(pace.waiting.is_empty() && pace.round.is_empty() && pace.lengths.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn who_goes_takes_no_turn() {
        let turns = reopening();
        let mut gone = come(&turns, "192.0.2.1", 100).await;
        let there = come(&turns, "192.0.2.1", 1).await;
        gone.drain(1..).for_each(|task| task.abort());
        assert!(turns_of(there).await[0] < GAP * 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_reopening_ends_when_nobody_asks_and_begins_again() {
        let turns = reopening();
        assert!(turns.take("192.0.2.1").await);
        assert!(turns.pace.lock().is_some());
        tokio::time::sleep(QUIET + Duration::from_secs(1)).await;
        assert!(turns.pace.lock().is_none());
        assert!(turns.begin(20, Instant::now()), "somebody has to serve it again");
    }

    #[tokio::test(start_paused = true)]
    async fn a_second_reopening_keeps_who_waits() {
        let turns = reopening();
        let flood = come(&turns, "192.0.2.1", 10).await;
        assert!(!turns.begin(2, Instant::now()));
        let had = turns_of(flood).await;
        assert_eq!(had.len(), 10);
        assert!(had[9] > Duration::from_secs(3), "at the new pace: {had:?}");
    }

    #[test]
    fn a_machine_has_many_addresses() {
        assert_eq!(whose("192.0.2.1:5000"), whose("192.0.2.1:6000"));
        assert_ne!(whose("192.0.2.1:5000"), whose("192.0.2.2:5000"));
        assert_eq!(whose("[2001:db8::1]:1"), whose("[2001:db8::ffff:1]:2"));
        assert_ne!(whose("[2001:db8::1]:1"), whose("[2001:db8:0:1::1]:1"));
        assert_eq!(whose("[::ffff:192.0.2.1]:1"), whose("192.0.2.1:2"));
    }
}
