use std::time::Duration;

use super::*;
use crate::metrics::StanzaKind;

const STANZA: Event = Event::Stanza { direction: Direction::In, kind: StanzaKind::Iq, bytes: 10 };

fn traffic() -> Traffic {
    Traffic::new(Clock::virtual_now(), Arc::default())
}

fn pass(seconds: u64) -> impl Future<Output = ()> {
    tokio::time::advance(Duration::from_secs(seconds))
}

#[tokio::test(start_paused = true)]
async fn only_what_a_domain_did_counts_in_the_share_of_its_refusals() {
    let traffic = traffic();
    traffic.proved("south.example", None, Vec::new());
    for _ in 0..3 {
        traffic.count("south.example", Event::Withheld("policy-rejected"));
    }
    assert_eq!(traffic.last_minute(), [("south.example".to_owned(), 0, 0)]);
    traffic.count("south.example", Event::Refused("policy-rejected"));
    assert_eq!(traffic.last_minute(), [("south.example".to_owned(), 0, 1)]);
}

#[tokio::test(start_paused = true)]
async fn only_proved_domains_have_a_row() {
    let traffic = traffic();
    traffic.count("claimed.example", STANZA);
    traffic.count("", Event::Refused("host-unknown"));
    assert_eq!((traffic.first_seen("claimed.example"), traffic.rate("claimed.example")), (None, 0));
    assert_eq!(traffic.authentication("claimed.example"), None);
    let start = traffic.now();
    traffic.proved("south.example", Some(Authentication::Dialback), Vec::new());
    pass(50).await;
    traffic.proved("south.example", None, Vec::new());
    assert_eq!(traffic.first_seen("south.example"), Some(start));
    assert_eq!(traffic.authentication("south.example"), Some(Authentication::Dialback));
    traffic.proved("south.example", Some(Authentication::Certificate), Vec::new());
    assert_eq!(traffic.authentication("south.example"), Some(Authentication::Certificate));
    assert_eq!(traffic.len(), 1);
    assert_eq!(traffic.refused_lately(), BTreeMap::from([("host-unknown".to_owned(), 1)]));
    pass(60).await;
    assert!(traffic.refused_lately().is_empty());
}

#[tokio::test(start_paused = true)]
async fn the_rate_is_that_of_the_last_minute_from_the_domain() {
    let traffic = traffic();
    traffic.proved("south.example", None, Vec::new());
    for _ in 0..6 {
        traffic.count("south.example", STANZA);
        let out = Event::Stanza { direction: Direction::Out, kind: StanzaKind::Message, bytes: 1 };
        traffic.count("south.example", out);
        pass(10).await;
    }
    // The oldest ten seconds have just passed out of the minute.
    assert_eq!(traffic.rate("south.example"), 5);
    assert_eq!(traffic.busiest(9), [("south.example".to_owned(), 10)]);
    pass(30).await;
    assert_eq!(traffic.rate("south.example"), 2);
    pass(7200).await;
    assert_eq!(traffic.rate("south.example"), 0);
    assert!(traffic.busiest(9).is_empty());
}

#[tokio::test(start_paused = true)]
async fn domains_are_bounded_and_newcomers_make_room_first() {
    let traffic = traffic();
    traffic.proved("old.example", None, Vec::new());
    traffic.row("old.example").unwrap().lock().stored = true;
    pass(90_000).await;
    for n in 0..MOST_DOMAINS + 5000 {
        traffic.proved(&format!("d{n}.example"), None, Vec::new());
        if n == 0 {
            traffic.row("d0.example").unwrap().lock().stored = true;
        }
    }
    assert!(traffic.len() <= MOST_DOMAINS, "{}", traffic.len());
    assert!(traffic.first_seen("old.example").is_some(), "a flood of names does not make us forget");
    assert!(traffic.first_seen(&format!("d{}.example", MOST_DOMAINS + 4999)).is_some());
    assert_eq!(traffic.take_gone(100), ["d0.example"], "what the store does not know need not be deleted");
}

#[tokio::test(start_paused = true)]
async fn detail_is_bounded_and_all_together_loses_nothing() {
    let traffic = traffic();
    for n in 0..MOST_DETAILED + 50 {
        traffic.proved(&format!("d{n}.example"), None, Vec::new());
        traffic.count(&format!("d{n}.example"), STANZA);
    }
    traffic.count("nobody.example", STANZA);
    pass(10).await;
    traffic.tick([100, 50, 0, 0]);
    let detailed = traffic.rows().iter().filter(|(_, row)| !row.lock().recent.is_empty()).count();
    assert_eq!(detailed, MOST_DETAILED);
    let total = traffic.total.lock().recent.back().copied().unwrap().1;
    assert_eq!(total.stanzas[0], MOST_DETAILED as u64 + 51);
    pass(10).await;
    traffic.tick([150, 50, 20, 0]);
    assert_eq!(traffic.total.lock().rates, [5.0, 0.0, 2.0]);
    pass(3600).await;
    traffic.tick([150, 50, 20, 0]);
    assert!(
        traffic.rows().iter().all(|(_, row)| row.lock().recent.is_empty()),
        "an hour later it is forgotten"
    );
}

#[tokio::test(start_paused = true)]
async fn a_busier_domain_takes_the_place_of_one_far_below() {
    let traffic = traffic();
    let named =
        || -> Vec<String> { traffic.series().into_iter().filter_map(|(domain, ..)| domain).collect() };
    let busy = |who: std::ops::Range<usize>, much: usize| {
        for n in who {
            traffic.proved(&format!("d{n}.example"), None, Vec::new());
            (0..much).for_each(|_| traffic.count(&format!("d{n}.example"), STANZA));
        }
    };
    busy(0..MOST_SERIES, 1);
    traffic.choose_series();
    let first = named();
    assert_eq!(first.len(), MOST_SERIES);
    for minute in 1..=SERIES_QUIET {
        pass(60).await;
        busy(0..MOST_SERIES, 1);
        // One less than twice as many: nobody moves.
        busy(MOST_SERIES..3 * MOST_SERIES - 1, 5);
        traffic.choose_series();
        assert_eq!(named(), first, "minute {minute}");
    }
    for minute in 1..=SERIES_QUIET {
        pass(60).await;
        busy(0..MOST_SERIES, 1);
        busy(MOST_SERIES..3 * MOST_SERIES, 5);
        traffic.choose_series();
        assert_eq!(named() == first, minute < SERIES_QUIET, "minute {minute}");
    }
    assert_eq!(named().len(), MOST_SERIES);
    assert!(!named().iter().any(|name| first.contains(name)));
}

#[tokio::test(start_paused = true)]
async fn the_busiest_have_series_of_their_own_and_no_counter_goes_back() {
    let traffic = traffic();
    let sum = |traffic: &Traffic| {
        traffic.series().iter().map(|(_, series, _)| series.tally.stanzas(Direction::In)).sum::<u64>()
    };
    for n in 0..100u32 {
        traffic.proved(&format!("d{n}.example"), None, Vec::new());
        (0..=n).for_each(|_| traffic.count(&format!("d{n}.example"), STANZA));
    }
    let before = sum(&traffic);
    traffic.choose_series();
    traffic.choose_series();
    assert_eq!(sum(&traffic), before);
    let named: Vec<String> = traffic.series().into_iter().filter_map(|(domain, ..)| domain).collect();
    assert_eq!(named.len(), MOST_SERIES);
    assert!(named.contains(&"d99.example".to_owned()) && !named.contains(&"d79.example".to_owned()));
    traffic.count("d99.example", STANZA);
    traffic.count("d0.example", Event::Refused("peer-rate"));
    let series = traffic.series();
    let of =
        |name: Option<&str>| series.iter().find(|(domain, ..)| domain.as_deref() == name).unwrap().1.clone();
    assert_eq!(of(Some("d99.example")).tally.stanzas(Direction::In), 1);
    assert_eq!(of(None).names.get(&("refused", "peer-rate")), Some(&1));
    // Others get a series only when there is room: here when one has been silent for an hour.
    pass(600).await;
    (0..500).for_each(|_| traffic.count("d1.example", STANZA));
    traffic.choose_series();
    assert!(!traffic.series().iter().any(|(domain, ..)| domain.as_deref() == Some("d1.example")));
    pass(3000).await;
    (0..500).for_each(|_| traffic.count("d1.example", STANZA));
    traffic.choose_series();
    let named: Vec<String> = traffic.series().into_iter().filter_map(|(domain, ..)| domain).collect();
    assert_eq!(named, ["d1.example"]);
}
