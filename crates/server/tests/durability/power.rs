//! The power goes during a disk operation, at hundreds of points of a conversation. After each cut the server starts
//! on what the disk has kept, and an oracle compares that with what the server had acknowledged.
//!
//! `kill -9` alone would pass without a single sync; here unsynced writes are lost, kept or torn ([`Survival`]).

use std::collections::{BTreeMap, BTreeSet};

use trunkline_store::sql;
use trunkline_store::testvfs::Survival;
use trunkline_xmpp::stanza::Stanza;

use super::world::{DOMAIN, Person, World, is_delayed, paused, settle};

/// Cuts for each way of surviving: four times that many in all.
const CUTS: u64 = 100;
const ROUNDS: usize = 3;

#[test]
fn nothing_acknowledged_is_lost_when_the_disk_wrote_only_what_it_had_to() {
    cut_at_many_points(0, |_| Survival::Nothing);
}

#[test]
fn nothing_acknowledged_is_lost_when_the_disk_wrote_in_its_own_order() {
    cut_at_many_points(1, Survival::Some);
}

#[test]
fn nothing_acknowledged_is_lost_when_writes_are_torn() {
    cut_at_many_points(2, Survival::Torn);
}

#[test]
fn nothing_acknowledged_is_lost_when_only_the_process_dies() {
    cut_at_many_points(3, |_| Survival::Everything);
}

/// The oracle is no yes-man: without syncing, a cut loses what was acknowledged.
#[test]
fn without_syncing_the_oracle_finds_losses() {
    let all = operations();
    let cuts = 8;
    let lost = (1..=cuts).filter(|n| run(all * n / (cuts + 1), Survival::Nothing, true).is_err()).count();
    assert!(lost > cuts as usize / 2, "only {lost} of {cuts} cuts lost something");
}

fn cut_at_many_points(nth: u64, survival: fn(u64) -> Survival) {
    let all = operations();
    let (mut acknowledged, mut again, mut broken) = (0, 0, Vec::new());
    for n in 0..CUTS {
        // Each way of surviving at points of its own.
        let at = 1 + (4 * n + nth) * all / (4 * CUTS);
        match run(at, survival(at), false) {
            Ok(sums) => {
                acknowledged += sums.acknowledged;
                again += sums.again;
            }
            Err(why) => broken.push(format!("cut at operation {at} of {all}: {why}")),
        }
    }
    println!("{CUTS} cuts in {all} operations: {acknowledged} acknowledged, {again} came again, 0 lost");
    assert!(broken.is_empty(), "{} of {CUTS} cuts:\n{}", broken.len(), broken.join("\n"));
    assert!(acknowledged > 20 * CUTS as usize, "hardly anything was acknowledged: {acknowledged}");
}

/// How many disk operations the whole conversation takes.
fn operations() -> u64 {
    let mut operations = 0;
    paused(async {
        let mut stage = Stage::prepare(false).await;
        stage.play().await;
        operations = stage.operations + stage.world.disk.operations();
        let end = stage.curtain(Survival::Everything).await;
        assert!(end.is_ok(), "without a cut: {end:?}");
    });
    operations
}

/// One conversation with one cut.
fn run(cut_at: u64, survival: Survival, unsynced: bool) -> Result<Sums, String> {
    let mut outcome = Err("the run did not end".to_owned());
    paused(async {
        let mut stage = Stage::prepare(unsynced).await;
        stage.world.disk.cut_at(cut_at);
        stage.play().await;
        outcome = stage.curtain(survival).await;
    });
    outcome
}

#[derive(Debug, Default)]
struct Sums {
    /// Messages, subscriptions and changes that the server acknowledged before the cut.
    acknowledged: usize,
    /// Messages that came to somebody a second time, marked as delayed.
    again: usize,
}

struct Stage {
    world: World,
    romeo: Person,
    juliet: Person,
    nurse: Person,
    benvolio: Person,
    oracle: Oracle,
    next: u32,
    operations: u64,
}

/// Who sends in the conversation.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Who {
    Romeo,
    Juliet,
    Nurse,
    Benvolio,
}

use Who::{Benvolio, Juliet, Nurse, Romeo};

impl Stage {
    /// Accounts on a disk that has everything safely.
    async fn prepare(unsynced: bool) -> Stage {
        let mut world = World::new();
        world.start().await.unwrap();
        world.add(&["romeo", "juliet", "nurse", "benvolio"]).await;
        world.stop().await;
        world.disk.power_on(Survival::Everything);
        world.options.unsynced = unsynced;
        Stage {
            world,
            romeo: Person::new("romeo@north.localhost/orchard"),
            juliet: Person::new("juliet@north.localhost/balcony"),
            nurse: Person::new("nurse@north.localhost/hall"),
            benvolio: Person::new("benvolio@north.localhost/street"),
            oracle: Oracle::default(),
            next: 0,
            operations: 0,
        }
    }

    /// The conversation, until its end or until the power goes.
    async fn play(&mut self) {
        if self.world.start().await.is_err() {
            return;
        }
        let _ = self.scenes().await;
    }

    async fn scenes(&mut self) -> Option<()> {
        self.romeo.online(&self.world).await.then_some(())?;
        self.juliet.online(&self.world).await.then_some(())?;
        self.benvolio.connect(&self.world).await.then_some(())?;
        self.benvolio.send("<presence/>").await;
        for round in 0..ROUNDS {
            self.changes(round).await?;
            self.chat().await?;
            self.friends(round).await?;
            self.juliet_is_cut_off().await?;
            self.nurse_looks_in(round).await?;
        }
        self.restart().await
    }

    /// Roster, block list, vCard, private XML: each result says that it is on disk.
    async fn changes(&mut self, round: usize) -> Option<()> {
        let (this, before) =
            (format!("friend{round}@{DOMAIN}"), format!("friend{}@{DOMAIN}", round.max(1) - 1));
        for name in ["Friend", "Best friend"] {
            let item = format!("<item jid='{this}' name='{name}'/>");
            self.change(Romeo, &format!("roster {this}"), name, &roster(&item)).await?;
        }
        let text = format!("v{round}");
        let vcard = format!("<vCard xmlns='vcard-temp'><FN>{text}</FN></vCard>");
        self.change(Juliet, "vcard", &text, &vcard).await?;
        let private = format!("<query xmlns='jabber:iq:private'><notes xmlns='n'>{text}</notes></query>");
        self.change(Juliet, "private", &text, &private).await?;
        let block =
            |name: &str, jid: &str| format!("<{name} xmlns='urn:xmpp:blocking'><item jid='{jid}'/></{name}>");
        self.change(Romeo, &format!("block {this}"), "yes", &block("block", &this)).await?;
        if round > 0 {
            self.change(Romeo, &format!("block {before}"), "no", &block("unblock", &before)).await?;
            let gone = format!("<item jid='{before}' subscription='remove'/>");
            self.change(Romeo, &format!("roster {before}"), "no", &roster(&gone)).await?;
        }
        Some(())
    }

    /// To those who are there, in every form of address, and to somebody who is not.
    async fn chat(&mut self) -> Option<()> {
        self.message(Romeo, "juliet@north.localhost").await?;
        self.message(Romeo, "juliet@north.localhost/balcony").await?;
        self.message(Romeo, "nurse@north.localhost").await?;
        self.message(Juliet, "romeo@north.localhost").await?;
        self.message(Juliet, "benvolio@north.localhost").await?;
        self.message(Juliet, "nurse@north.localhost/hall").await?;
        self.ask(Romeo).await?;
        self.ask(Juliet).await
    }

    /// Subscriptions, one stage after the other.
    async fn friends(&mut self, round: usize) -> Option<()> {
        let pairs = [(Romeo, Juliet), (Juliet, Romeo), (Romeo, Nurse)];
        let (from, to) = pairs[round % pairs.len()];
        self.subscription(from, to, "subscribe").await?;
        self.ask(from).await?;
        if to != Nurse {
            self.subscription(to, from, "subscribed").await?;
            self.ask(to).await?;
        }
        Some(())
    }

    /// What comes while nobody is at the line waits for her to resume.
    async fn juliet_is_cut_off(&mut self) -> Option<()> {
        self.juliet.vanish().await;
        self.message(Romeo, "juliet@north.localhost").await?;
        self.message(Romeo, "juliet@north.localhost/balcony").await?;
        self.ask(Romeo).await?;
        self.juliet.resume(&self.world).await.ok()?;
        self.look(Juliet).await
    }

    async fn nurse_looks_in(&mut self, round: usize) -> Option<()> {
        self.nurse.online(&self.world).await.then_some(())?;
        self.look(Nurse).await?;
        self.message(Nurse, "romeo@north.localhost").await?;
        self.ask(Nurse).await?;
        if round.is_multiple_of(2) {
            self.nurse.write("</stream:stream>").await;
            self.look(Nurse).await?;
        }
        self.nurse.vanish().await;
        self.powered()
    }

    /// A clean restart; the sessions go on.
    async fn restart(&mut self) -> Option<()> {
        self.message(Romeo, "nurse@north.localhost").await?;
        self.world.stop().await;
        self.look(Romeo).await?;
        self.look(Juliet).await?;
        // Without stream management, what is written to the connection is delivered.
        self.look(Benvolio).await?;
        self.benvolio.vanish().await;
        self.world.start().await.ok()?;
        self.romeo.resume(&self.world).await.ok()?;
        self.juliet.resume(&self.world).await.ok()?;
        self.chat().await
    }

    fn person(&mut self, who: Who) -> &mut Person {
        match who {
            Romeo => &mut self.romeo,
            Juliet => &mut self.juliet,
            Nurse => &mut self.nurse,
            Benvolio => &mut self.benvolio,
        }
    }

    fn powered(&self) -> Option<()> {
        self.world.disk.is_powered().then_some(())
    }

    fn id(&mut self, prefix: &str) -> String {
        self.next += 1;
        format!("{prefix}{}", self.next)
    }

    async fn message(&mut self, who: Who, to: &str) -> Option<()> {
        let id = self.id("m");
        let from = self.person(who).jid.bare_str().to_owned();
        self.oracle.messages.insert(id.clone(), (from, to.split('/').next().unwrap_or_default().to_owned()));
        let stanza = format!("<message type='chat' to='{to}' id='{id}'><body>{id}</body></message>");
        self.person(who).send(&stanza).await;
        settle().await;
        self.powered()
    }

    async fn subscription(&mut self, who: Who, with: Who, kind: &'static str) -> Option<()> {
        let id = self.id("s");
        let (from, to) = (self.person(who).jid.bare(), self.person(with).jid.bare());
        self.oracle.subscriptions.insert(id.clone(), (kind, from.to_string(), to.to_string()));
        self.person(who).send(&format!("<presence type='{kind}' to='{to}' id='{id}'/>")).await;
        settle().await;
        self.powered()
    }

    /// An IQ that changes what `key` names to `value`.
    async fn change(&mut self, who: Who, key: &str, value: &str, payload: &str) -> Option<()> {
        let id = self.id("q");
        let fact = self.oracle.facts.entry(key.to_owned()).or_default();
        fact.perhaps.push(value.to_owned());
        let person = self.person(who);
        person.send(&format!("<iq type='set' id='{id}'>{payload}</iq>")).await;
        let answer = person.wait("a result", |element| {
            element.root().name() == "iq" && element.root().attr("id").as_deref() == Some(id.as_str())
        });
        let answer = answer.await?;
        if answer.root().attr("type").as_deref() == Some("result") {
            self.oracle.facts.insert(key.to_owned(), Fact { sure: value.to_owned(), perhaps: Vec::new() });
            self.oracle.results += 1;
        }
        self.powered()
    }

    async fn ask(&mut self, who: Who) -> Option<()> {
        self.person(who).ask().await;
        self.look(who).await
    }

    async fn look(&mut self, who: Who) -> Option<()> {
        let came = self.person(who).all().await;
        let owner = self.person(who).jid.bare_str().to_owned();
        self.oracle.take_in(&owner, &came);
        self.powered()
    }

    /// The power is gone. What did each of them see, and what is there when it is back?
    async fn curtain(mut self, survival: Survival) -> Result<Sums, String> {
        self.operations += self.world.disk.operations();
        for who in [Romeo, Juliet, Nurse, Benvolio] {
            let _ = self.look(who).await;
        }
        self.world.kill();
        let mut unacked = Vec::new();
        for who in [Romeo, Juliet, Nurse, Benvolio] {
            self.person(who).vanish().await;
            let person = self.person(who);
            let rest = person.counts.as_ref().map(|counts| counts.unacked.clone()).unwrap_or_default();
            unacked.push((who, rest));
        }
        settle().await;
        for stanza in unacked.iter().flat_map(|(_, rest)| rest) {
            if let Some(id) = Stanza::parse(stanza.as_bytes()).ok().and_then(|stanza| stanza.head.id.clone())
            {
                self.oracle.open.insert(id.to_string());
            }
        }
        self.world.disk.power_on(survival);
        // It goes once more while the server starts.
        self.world.disk.cut_at(1 + self.operations % 25);
        let _ = self.world.start().await;
        settle().await;
        self.world.kill();
        settle().await;
        self.world.disk.power_on(survival);
        self.world.start().await.map_err(|error| format!("does not start: {error}"))?;
        self.world.db().check().await.map_err(|error| format!("damaged: {error}"))?;
        self.archives().await?;
        for who in [Romeo, Juliet, Nurse, Benvolio] {
            if !self.person_mut_online(who).await {
                return Err("an account is gone".into());
            }
            let _ = self.look(who).await;
        }
        let acknowledged = self.oracle.acknowledged();
        self.arrived(&acknowledged)?;
        self.facts().await?;
        self.subscriptions().await?;
        // What was not acknowledged is sent again, under the same id: then everything has arrived.
        for (who, rest) in unacked {
            for stanza in rest.iter().filter(|stanza| stanza.starts_with("<message")) {
                self.person(who).send(stanza).await;
            }
            let _ = self.look(who).await;
        }
        for who in [Romeo, Juliet, Nurse, Benvolio] {
            let _ = self.look(who).await;
        }
        let all: Vec<String> =
            self.oracle.messages.keys().filter(|id| !self.oracle.refused.contains(*id)).cloned().collect();
        self.arrived(&all)?;
        let again = self.oracle.repeats()?;
        Ok(Sums { acknowledged: acknowledged.len() + self.oracle.results, again })
    }

    async fn person_mut_online(&mut self, who: Who) -> bool {
        let Stage { world, romeo, juliet, nurse, benvolio, .. } = self;
        let person = match who {
            Romeo => romeo,
            Juliet => juliet,
            Nurse => nurse,
            Benvolio => benvolio,
        };
        person.connect(world).await && {
            person.enable().await;
            person.send("<presence/>").await;
            true
        }
    }

    /// Both sides have each acknowledged message in their archive.
    async fn archives(&self) -> Result<(), String> {
        let rows = self.world.read(sql(
            "SELECT a.local, r.flags, r.stanza FROM archive r JOIN accounts a ON a.id = r.account",
        ));
        let mut kept = BTreeSet::new();
        for row in rows.await.iter() {
            let stanza = Stanza::parse(row.blob(2)).map_err(|error| format!("archive: {error}"))?;
            let id = stanza.head.id.as_deref().unwrap_or_default().to_owned();
            kept.insert((format!("{}@{DOMAIN}", row.text(0)), row.int(1) & 1 != 0, id));
        }
        for id in self.oracle.acknowledged() {
            let Some((from, to)) = self.oracle.messages.get(&id) else { continue };
            for (owner, sent) in [(from, true), (to, false)] {
                if !kept.contains(&(owner.clone(), sent, id.clone())) {
                    return Err(format!("{id} was acknowledged and is not in the archive of {owner}"));
                }
            }
        }
        Ok(())
    }

    fn arrived(&self, ids: &[String]) -> Result<(), String> {
        for id in ids {
            let Some((_, to)) = self.oracle.messages.get(id) else { continue };
            let got = self.oracle.received.get(to).is_some_and(|got| got.iter().any(|got| got.id == *id));
            if !got {
                return Err(format!("{id} did not arrive at {to}"));
            }
        }
        Ok(())
    }

    async fn facts(&mut self) -> Result<(), String> {
        let roster = self.get(Romeo, "<query xmlns='jabber:iq:roster'/>").await?;
        let blocked = self.get(Romeo, "<blocklist xmlns='urn:xmpp:blocking'/>").await?;
        let vcard = self.get(Juliet, "<vCard xmlns='vcard-temp'/>").await?;
        let private = self.get(Juliet, "<query xmlns='jabber:iq:private'><notes xmlns='n'/></query>").await?;
        let between = |text: &str, before: &str, after: &str| {
            let rest = text.split(before).nth(1)?;
            rest.split(after).next().map(str::to_owned)
        };
        for (key, fact) in &self.oracle.facts {
            let now = match key.split_once(' ') {
                Some(("roster", jid)) => roster
                    .split("<item")
                    .find(|item| item.contains(jid))
                    .and_then(|item| between(item, "name='", "'"))
                    .unwrap_or_else(|| "no".into()),
                Some((_, jid)) => if blocked.contains(jid) { "yes" } else { "no" }.into(),
                None if key == "vcard" => between(&vcard, "<FN>", "<").unwrap_or_default(),
                None => between(&private, "<notes xmlns='n'>", "<").unwrap_or_default(),
            };
            let nothing = fact.sure.is_empty() && (now.is_empty() || now == "no");
            if now != fact.sure && !fact.perhaps.contains(&now) && !nothing {
                return Err(format!("{key} is '{now}', acknowledged was '{}'", fact.sure));
            }
        }
        Ok(())
    }

    async fn subscriptions(&mut self) -> Result<(), String> {
        let mut rosters = BTreeMap::new();
        for who in [Romeo, Juliet, Nurse] {
            let roster = self.get(who, "<query xmlns='jabber:iq:roster'/>").await?;
            rosters.insert(self.person(who).jid.bare_str().to_owned(), roster);
        }
        let item = |owner: &str, contact: &str| {
            rosters[owner].split("<item").find(|item| item.contains(contact)).unwrap_or_default().to_owned()
        };
        let has = |item: &str, kind: &str| {
            item.contains(&format!("subscription='{kind}'")) || item.contains("subscription='both'")
        };
        for id in self.oracle.acknowledged() {
            let Some((kind, from, to)) = self.oracle.subscriptions.get(&id) else { continue };
            let (ours, theirs) = (item(from, to), item(to, from));
            let right = match *kind {
                "subscribe" => {
                    let waits = self.oracle.requests.contains(&(to.clone(), from.clone()));
                    (ours.contains("ask='subscribe'") || has(&ours, "to")) && (waits || has(&theirs, "from"))
                }
                _ => has(&ours, "from") && has(&theirs, "to"),
            };
            if !right {
                return Err(format!("{kind} {id} from {from} to {to}: {ours} / {theirs}"));
            }
        }
        Ok(())
    }

    async fn get(&mut self, who: Who, payload: &str) -> Result<String, String> {
        let id = self.id("g");
        let person = self.person(who);
        person.send(&format!("<iq type='get' id='{id}'>{payload}</iq>")).await;
        let answer = person.wait("an answer", |element| {
            element.root().name() == "iq" && element.root().attr("id").as_deref() == Some(id.as_str())
        });
        let answer = answer.await.ok_or("no answer")?;
        Ok(String::from_utf8_lossy(answer.bytes()).replace('"', "'"))
    }
}

fn roster(item: &str) -> String {
    format!("<query xmlns='jabber:iq:roster'>{item}</query>")
}

/// What the people know.
#[derive(Default)]
struct Oracle {
    /// By id: from, to.
    messages: BTreeMap<String, (String, String)>,
    /// By id: kind, from, to.
    subscriptions: BTreeMap<String, (&'static str, String, String)>,
    facts: BTreeMap<String, Fact>,
    /// Results of changes.
    results: usize,
    /// Ids that came back as errors.
    refused: BTreeSet<String>,
    /// Ids that were not acknowledged at the cut.
    open: BTreeSet<String>,
    received: BTreeMap<String, Vec<Got>>,
    /// Who has seen a request, and from whom.
    requests: BTreeSet<(String, String)>,
}

/// What a key stands for: the last acknowledged value, or one that was asked for later.
#[derive(Default)]
struct Fact {
    sure: String,
    perhaps: Vec<String>,
}

struct Got {
    id: String,
    stanza_id: String,
    delayed: bool,
}

impl Oracle {
    fn take_in(&mut self, owner: &str, came: &[trunkline_xml::Element]) {
        for element in came {
            let root = element.root();
            let id = root.attr("id").unwrap_or_default().into_owned();
            let from = root.attr("from").unwrap_or_default().into_owned();
            match (root.name(), root.attr("type").as_deref()) {
                (_, Some("error")) => drop(self.refused.insert(id)),
                ("presence", Some("subscribe")) => drop(self.requests.insert((owner.to_owned(), from))),
                ("message", _) => {
                    let stanza_id = root.child("urn:xmpp:sid:0", "stanza-id").and_then(|it| it.attr("id"));
                    let stanza_id = stanza_id.unwrap_or_default().into_owned();
                    let got = Got { id, stanza_id, delayed: is_delayed(element) };
                    self.received.entry(owner.to_owned()).or_default().push(got);
                }
                _ => {}
            }
        }
    }

    /// Ids of messages and subscriptions that the server took over.
    fn acknowledged(&self) -> Vec<String> {
        let all = self.messages.keys().chain(self.subscriptions.keys());
        all.filter(|id| !self.open.contains(*id) && !self.refused.contains(*id)).cloned().collect()
    }

    /// Nothing came twice without being marked, or under another id than before, unless its sender sent it again.
    fn repeats(&self) -> Result<usize, String> {
        let mut again = 0;
        for (owner, got) in &self.received {
            let mut seen: BTreeMap<&str, &Got> = BTreeMap::new();
            for one in got {
                let Some(first) = seen.get(one.id.as_str()) else {
                    seen.insert(&one.id, one);
                    continue;
                };
                again += 1;
                if self.open.contains(&one.id) {
                    continue;
                }
                if !one.delayed || one.stanza_id != first.stanza_id {
                    return Err(format!("{} came to {owner} twice and unmarked", one.id));
                }
            }
        }
        Ok(again)
    }
}
