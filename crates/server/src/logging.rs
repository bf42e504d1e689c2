//! What the server writes about itself: never message content, never passwords.
//!
//! A flood must not become a flood of lines: refusals go through [`Refusals`], which counts every one and writes one
//! line per name and peer in a while.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use thiserror::Error;
use tokio::time::Instant;
use tracing::Subscriber;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, reload};

use crate::config::{Log, LogFormat, Traces};
use crate::metrics::Metrics;
use crate::traces::Exporter;

/// Why logging can't be set up.
#[derive(Debug, Error)]
pub enum LogError {
    /// The operator's: not a filter.
    #[error("log.level: {0}")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    /// The operator's.
    #[error(transparent)]
    Traces(#[from] crate::traces::TraceError),
    /// A second set-up in one process.
    #[error("logging is set up already")]
    Twice,
    /// The subscriber is gone.
    #[error("the log filter can't be replaced: {0}")]
    Gone(#[from] reload::Error),
}

/// Changes the filter of a running server.
#[derive(Clone, Debug)]
pub struct LogHandle(reload::Handle<EnvFilter, Registry>, Option<Exporter>);

impl LogHandle {
    /// Applies a new `log.level`.
    pub fn set_level(&self, level: &str) -> Result<(), LogError> {
        Ok(self.0.reload(filter(level)?)?)
    }

    /// Sends the traces that wait. May take seconds.
    pub fn flush(&self) {
        if let Some(exporter) = &self.1 {
            exporter.flush();
        }
    }
}

/// Sets logging up for this process, to standard error. `RUST_LOG` is not read: one place says what is logged.
pub fn init(config: &Log, traces: &Traces) -> Result<LogHandle, LogError> {
    let exporter =
        traces.endpoint.as_deref().map(|endpoint| Exporter::new(endpoint, traces.one_in)).transpose()?;
    let (filter, handle) = reload::Layer::new(filter(&config.level)?);
    match &exporter {
        None => tracing_subscriber::registry().with(filter).with(lines(config)).try_init(),
        // Each its own filter: what is logged does not decide what is traced.
        Some(exporter) => {
            let lines =
                lines(config).with_filter(filter).with_filter(filter_fn(|metadata| !metadata.is_span()));
            tracing_subscriber::registry().with(lines).with(exporter.layer()).try_init()
        }
    }
    .map_err(|_| LogError::Twice)?;
    Ok(LogHandle(handle, exporter))
}

/// What writes the lines.
fn lines<S: Subscriber + for<'a> LookupSpan<'a>>(config: &Log) -> Box<dyn Layer<S> + Send + Sync> {
    // Terminals get colours, files and the journal don't.
    let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let layer = fmt::layer().with_writer(std::io::stderr).with_ansi(ansi);
    match config.format {
        LogFormat::Text => Box::new(layer),
        LogFormat::Journal => Box::new(layer.without_time()),
        LogFormat::Json => Box::new(fmt::layer().with_writer(std::io::stderr).json().flatten_event(true)),
    }
}

fn filter(level: &str) -> Result<EnvFilter, LogError> {
    Ok(EnvFilter::builder().parse(level)?)
}

/// One refusal: something a remote party wanted and did not get.
#[derive(Clone, Copy, Debug)]
pub struct Refusal<'a> {
    /// Its name: the label of its counter.
    pub name: &'static str,
    /// Whose fault it is: an IP address or a domain. Lines are limited per name and peer.
    pub peer: &'a str,
    /// The connection, for finding its other lines; 0 for none.
    pub conn: u64,
    /// For the operator, in words. Never content, never a password.
    pub detail: &'a str,
}

/// Counts refusals and logs them at a limited rate.
#[derive(Debug)]
pub struct Refusals {
    metrics: Arc<Metrics>,
    hasher: RandomState,
    lines: Mutex<Lines>,
}

#[derive(Debug, Default)]
struct Lines {
    // By the hash of name and peer: a peer's name of any length costs nothing here. Two that collide share a line.
    recent: HashMap<u64, Recent>,
    /// Refusals without a place in `recent`, since the last line about them.
    crowded_out: u64,
    crowded_line: Option<Instant>,
}

#[derive(Debug)]
struct Recent {
    name: &'static str,
    since: Instant,
    suppressed: u64,
}

/// One line for each name and peer in this time.
const INTERVAL: Duration = Duration::from_secs(60);
/// Names and peers that have a line of their own; beyond it there is one common line.
const PLACES: usize = 1024;

impl Refusals {
    /// Counts into `metrics`.
    pub fn new(metrics: Arc<Metrics>) -> Refusals {
        Refusals { metrics, hasher: RandomState::new(), lines: Mutex::default() }
    }

    /// Counts a refusal and writes its line, if it is its turn.
    pub fn report(&self, refusal: Refusal<'_>) {
        self.metrics.refused(refusal.name);
        let place = self.hasher.hash_one((refusal.name, refusal.peer));
        match self.lines.lock().turn(place, refusal.name, Instant::now()) {
            Turn::Line { suppressed: 0 } => {
                tracing::info!(target: "refused", name = refusal.name, peer = refusal.peer, conn = refusal.conn, "{}", refusal.detail);
            }
            Turn::Line { suppressed } => {
                tracing::info!(target: "refused", name = refusal.name, peer = refusal.peer, conn = refusal.conn, suppressed, "{}", refusal.detail);
            }
            Turn::Crowd { count } => {
                tracing::warn!(target: "refused", count, "refusals of very many peers: only counted, not logged one by one");
            }
            Turn::Silent => {}
        }
    }

    /// Writes what was held back and forgets peers that went quiet. Call it about once a minute.
    pub fn sweep(&self) {
        for (name, suppressed) in self.lines.lock().sweep(Instant::now()) {
            tracing::info!(target: "refused", name, suppressed, "refused again, in the last minute or so");
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Turn {
    Line { suppressed: u64 },
    Crowd { count: u64 },
    Silent,
}

impl Lines {
    fn turn(&mut self, place: u64, name: &'static str, now: Instant) -> Turn {
        if let Some(recent) = self.recent.get_mut(&place) {
            if now.duration_since(recent.since) < INTERVAL {
                recent.suppressed += 1;
                return Turn::Silent;
            }
            let suppressed = std::mem::take(&mut recent.suppressed);
            recent.since = now;
            return Turn::Line { suppressed };
        }
        if self.recent.len() < PLACES {
            self.recent.insert(place, Recent { name, since: now, suppressed: 0 });
            return Turn::Line { suppressed: 0 };
        }
        self.crowded_out += 1;
        match self.crowded_line {
            Some(since) if now.duration_since(since) < INTERVAL => Turn::Silent,
            _ => {
                self.crowded_line = Some(now);
                Turn::Crowd { count: std::mem::take(&mut self.crowded_out) }
            }
        }
    }

    /// Removes what is over; returns, per name, what had no line.
    fn sweep(&mut self, now: Instant) -> Vec<(&'static str, u64)> {
        let mut held: Vec<(&'static str, u64)> = Vec::new();
        self.recent.retain(|_, recent| {
            if now.duration_since(recent.since) < INTERVAL {
                return true;
            }
            if recent.suppressed > 0 {
                match held.iter_mut().find(|(name, _)| *name == recent.name) {
                    Some((_, count)) => *count += recent.suppressed,
                    None => held.push((recent.name, recent.suppressed)),
                }
            }
            false
        });
        held
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_for_each_name_and_peer() {
        let mut lines = Lines::default();
        let start = Instant::now();
        assert_eq!(lines.turn(1, "flood", start), Turn::Line { suppressed: 0 });
        for _ in 0..500 {
            assert_eq!(lines.turn(1, "flood", start), Turn::Silent);
        }
        assert_eq!(lines.turn(2, "flood", start), Turn::Line { suppressed: 0 });
        assert_eq!(lines.turn(1, "flood", start + INTERVAL), Turn::Line { suppressed: 500 });
    }

    #[test]
    fn many_peers_have_one_line_and_a_bounded_table() {
        let mut lines = Lines::default();
        let start = Instant::now();
        let own = (0..100_000)
            .filter(|peer| matches!(lines.turn(*peer, "flood", start), Turn::Line { .. }))
            .count();
        assert_eq!(own, PLACES);
        assert_eq!(lines.recent.len(), PLACES);
        assert_eq!(lines.turn(200_000, "flood", start + INTERVAL), Turn::Crowd { count: 98_976 });
    }

    #[test]
    fn a_sweep_tells_what_was_held_back() {
        let mut lines = Lines::default();
        let start = Instant::now();
        for place in [1, 1, 1, 2, 2, 3] {
            lines.turn(place, "flood", start);
        }
        assert_eq!(lines.sweep(start), []);
        assert_eq!(lines.sweep(start + INTERVAL), [("flood", 3)]);
        assert!(lines.recent.is_empty());
    }

    #[test]
    fn every_refusal_is_counted() {
        let metrics = Metrics::new();
        let refusals = Refusals::new(metrics.clone());
        for _ in 0..10 {
            refusals.report(Refusal {
                name: "restricted-xml",
                peer: "192.0.2.1",
                conn: 7,
                detail: "a comment",
            });
        }
        assert_eq!(metrics.refusals("restricted-xml"), 10);
    }
}
