//! The server under siege as the kernel and its own metrics show it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::error::LoadError;
use crate::report::round;

/// How often its memory is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// Watches the server's processes.
#[derive(Debug)]
pub(super) struct Watch {
    pids: Vec<u32>,
    /// KiB, the most since it was reset.
    peak: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

/// Nanoseconds by thread, with its name.
pub(super) type Used = BTreeMap<(u32, u32), (String, u64)>;

impl Watch {
    pub(super) fn new(pids: &[u32]) -> Result<Watch, LoadError> {
        for pid in pids {
            if resident(*pid).is_none() {
                return Err(LoadError::Usage(format!("--server-pid {pid}: there is no such process")));
            }
        }
        let watch = Watch { pids: pids.to_vec(), peak: Arc::default(), stop: Arc::default() };
        let (pids, peak, stop) = (pids.to_vec(), Arc::clone(&watch.peak), Arc::clone(&watch.stop));
        std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let now = pids.iter().filter_map(|pid| resident(*pid)).sum();
                peak.fetch_max(now, Ordering::Relaxed);
                std::thread::sleep(LOOK);
            }
        });
        Ok(watch)
    }

    pub(super) fn memory_mib(&self) -> f64 {
        mib(self.pids.iter().filter_map(|pid| resident(*pid)).sum())
    }

    pub(super) fn reset_peak(&self) {
        self.peak.store(0, Ordering::Relaxed);
    }

    pub(super) fn peak_mib(&self) -> f64 {
        mib(self.peak.load(Ordering::Relaxed))
    }

    pub(super) fn used(&self) -> Used {
        let mut used = Used::new();
        for pid in &self.pids {
            let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
            for task in tasks {
                let read = |file: &str| fs::read_to_string(task.path().join(file)).unwrap_or_default();
                let thread = task.file_name().to_string_lossy().parse().unwrap_or(0);
                let nanoseconds =
                    read("schedstat").split_ascii_whitespace().next().and_then(|it| it.parse().ok());
                used.insert((*pid, thread), (read("comm").trim().to_owned(), nanoseconds.unwrap_or(0)));
            }
        }
        used
    }

    /// Per cent of a processor since `before`, by the names of threads. What threads did that have ended is not seen.
    pub(super) fn percent(&self, before: &Used, seconds: f64) -> Vec<(String, f64)> {
        let mut sums: BTreeMap<String, u64> = BTreeMap::new();
        for (thread, (name, now)) in self.used() {
            let earlier = before.get(&thread).map_or(0, |(_, nanoseconds)| *nanoseconds);
            *sums.entry(name).or_default() += now.saturating_sub(earlier);
        }
        sums.into_iter().map(|(name, sum)| (name, sum as f64 / 1e7 / seconds)).collect()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn mib(kib: u64) -> f64 {
    round(kib as f64 / 1024.0)
}

/// KiB.
fn resident(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

/// What has been refused, by name.
pub(super) fn refusals(metrics: SocketAddr) -> Result<BTreeMap<String, u64>, LoadError> {
    let failed = |error: std::io::Error| LoadError::Usage(format!("--metrics {metrics}: {error}"));
    let mut tcp = TcpStream::connect_timeout(&metrics, Duration::from_secs(5)).map_err(failed)?;
    tcp.set_read_timeout(Some(Duration::from_secs(10))).map_err(failed)?;
    write!(tcp, "GET /metrics HTTP/1.1\r\nHost: {metrics}\r\nConnection: close\r\n\r\n").map_err(failed)?;
    let mut text = String::new();
    tcp.read_to_string(&mut text).map_err(failed)?;
    Ok(named(&text))
}

fn named(text: &str) -> BTreeMap<String, u64> {
    let line = |line: &str| {
        let (name, value) = line.split_once("_refusals_total{name=\"")?.1.split_once("\"}")?;
        Some((name.to_owned(), value.trim().parse().ok()?))
    };
    text.lines().filter_map(line).collect()
}

/// What was refused in between.
pub(super) fn grown(before: &BTreeMap<String, u64>, after: &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    let grown = |(name, now): (&String, &u64)| (name.clone(), now - before.get(name).unwrap_or(&0).min(now));
    after.iter().map(grown).filter(|(_, count)| *count > 0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_read_by_name() {
        let text = "# TYPE trunkline_refusals counter\ntrunkline_refusals_total{name=\"peer-rate\"} 7\n\
                    trunkline_refusals_total{name=\"tls-timeout\"} 2\ntrunkline_sessions 4\n";
        let before = named(text);
        assert_eq!(before.get("peer-rate"), Some(&7));
        let after = named(&text.replace("} 7", "} 9"));
        assert_eq!(grown(&before, &after), BTreeMap::from([("peer-rate".to_owned(), 2)]));
    }
}
