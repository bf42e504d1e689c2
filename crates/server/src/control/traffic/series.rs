//! The counters of peer domains for Prometheus: the busiest have series of their own, all others one together.

use std::fmt;
use std::sync::Weak;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use super::row::Series;
use crate::exchange::Exchange;
use crate::metrics::{DIRECTIONS, KINDS};

/// What the rest is called. No domain is: it has no dot.
const OTHER: &str = "other";

/// Reads the counters at each scrape.
pub(crate) struct PeerSeries(pub(crate) Weak<Exchange>);

impl fmt::Debug for PeerSeries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PeerSeries")
    }
}

impl Collector for PeerSeries {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Some(exchange) = self.0.upgrade() else { return Ok(()) };
        let series = exchange.control.traffic.series();
        let named: Vec<(&str, &Series)> =
            series.iter().map(|(domain, series, _)| (domain.as_deref().unwrap_or(OTHER), series)).collect();

        for (name, help, read) in [
            ("peer_stanzas", "Stanzas of peer domains by kind and direction", 0),
            ("peer_bytes", "Bytes of stanzas of peer domains by kind and direction", 1),
        ] {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (domain, series) in &named {
                let counts = if read == 0 { &series.tally.stanzas } else { &series.tally.bytes };
                for (kind, counts) in KINDS.iter().zip(counts) {
                    for (direction, count) in DIRECTIONS.iter().zip(counts) {
                        let labels = [("domain", *domain), ("kind", *kind), ("direction", *direction)];
                        ConstCounter::new(*count).encode(family.encode_family(&labels)?)?;
                    }
                }
            }
        }
        type Read = fn(&Series) -> u64;
        let sums: [(&str, &str, Read); 5] = [
            ("peer_handshakes", "Streams that peer domains have proved", |series| series.tally.handshakes),
            ("peer_held", "First contacts of peer domains that were held", |series| series.tally.held),
            ("peer_accepted", "First contacts of peer domains that were accepted", |series| {
                series.tally.accepted
            }),
            ("peer_declined", "First contacts of peer domains that were declined", |series| {
                series.tally.declined
            }),
            ("peer_reports", "Reports about users of peer domains", |series| series.tally.reported),
        ];
        for (name, help, read) in sums {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (domain, series) in &named {
                ConstCounter::new(read(series)).encode(family.encode_family(&[("domain", *domain)])?)?;
            }
        }
        for (name, help, what) in [
            ("peer_refusals", "What was refused to peer domains, by the name of the refusal", "refused"),
            ("peer_failures", "Streams and attempts that failed, by the name of the failure", "failed"),
        ] {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (domain, series) in &named {
                for ((_, label), count) in series.names.iter().filter(|((kind, _), _)| *kind == what) {
                    let labels = [("domain", *domain), ("name", *label)];
                    ConstCounter::new(*count).encode(family.encode_family(&labels)?)?;
                }
            }
        }
        let help = "Seconds until peer domains acknowledge (XEP-0198), of late";
        let mut family =
            encoder.encode_descriptor("peer_acknowledge_seconds", help, None, MetricType::Gauge)?;
        for (domain, _, late) in &series {
            let (Some(domain), Some((median, late))) = (domain, late) else { continue };
            for (quantile, millis) in [("0.5", median), ("0.99", late)] {
                let labels = [("domain", domain.as_str()), ("quantile", quantile)];
                ConstGauge::new(millis / 1000.0).encode(family.encode_family(&labels)?)?;
            }
        }
        let Some(remote) = exchange.remote.get() else { return Ok(()) };
        let now = exchange.clock().now();
        let peers = remote.status().peers;
        let oldest = |peer: &crate::admin::PeerStatus| peer.queue_oldest.map(|since| (now - since).max(0));
        let help = "Seconds for which the oldest message to peer domains has waited";
        let mut family =
            encoder.encode_descriptor("peer_queue_age_seconds", help, None, MetricType::Gauge)?;
        let mut rest = 0;
        for peer in &peers {
            let Some(age) = oldest(peer) else { continue };
            if named.iter().any(|(domain, _)| *domain == peer.domain) {
                let labels = [("domain", peer.domain.as_str())];
                ConstGauge::new(age as f64 / 1000.0).encode(family.encode_family(&labels)?)?;
            } else {
                rest = rest.max(age);
            }
        }
        ConstGauge::new(rest as f64 / 1000.0).encode(family.encode_family(&[("domain", OTHER)])?)
    }
}
