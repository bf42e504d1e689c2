//! What processes use, from the kernel's accounting in /proc.
//!
//! CPU time is summed over all threads of a process and of its descendants, to the nanosecond where the kernel keeps
//! `schedstat`. Where it does not, or where a thread or process ended in between and took its figure with it, the ticks
//! of `stat` are used, in which the ended are included.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::LoadError;

/// The processes of servers.
#[derive(Clone, Debug)]
pub(crate) struct Meter {
    proc: PathBuf,
    roots: Vec<u32>,
    tick: Duration,
}

/// What had been used at one moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Usage {
    /// Nanoseconds by process and thread; `None` where the kernel does not say.
    threads: BTreeMap<(u32, u32), Option<u64>>,
    /// Ticks of whole processes, ended threads and children that were waited for included.
    ticks: BTreeMap<u32, u64>,
}

/// What a difference of CPU times was computed from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// Nanoseconds.
    Schedstat,
    /// Hundredths of a second.
    Stat,
}

/// Memory of all processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Memory {
    pub(crate) kib: u64,
    /// `Pss` or `Rss`.
    pub(crate) kind: &'static str,
}

impl Meter {
    /// Watches the trees of processes under `roots`. `None` if there are none to watch.
    pub(crate) fn new(roots: &[u32]) -> Result<Option<Meter>, LoadError> {
        if roots.is_empty() {
            return Ok(None);
        }
        let hertz = rustix::param::clock_ticks_per_second().max(1);
        let tick = Duration::from_nanos(1_000_000_000 / hertz);
        let meter = Meter { proc: PathBuf::from("/proc"), roots: roots.to_vec(), tick };
        for root in roots {
            if stat(&meter.proc, *root).is_none() {
                return Err(LoadError::Usage(format!("--server-pid {root}: there is no such process")));
            }
        }
        Ok(Some(meter))
    }

    /// The processes there are now.
    fn tree(&self) -> BTreeSet<u32> {
        let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
        for pid in numbers(&self.proc) {
            if let Some(stat) = stat(&self.proc, pid) {
                children.entry(stat.parent).or_default().push(pid);
            }
        }
        let mut found = BTreeSet::new();
        let mut open = self.roots.clone();
        while let Some(pid) = open.pop() {
            if found.insert(pid) {
                open.extend(children.get(&pid).into_iter().flatten());
            }
        }
        found
    }

    /// What has been used up to now.
    pub(crate) fn usage(&self) -> Usage {
        let mut usage = Usage::default();
        for pid in self.tree() {
            let Some(stat) = stat(&self.proc, pid) else { continue };
            usage.ticks.insert(pid, stat.ticks);
            let tasks = self.proc.join(pid.to_string()).join("task");
            for thread in numbers(&tasks) {
                let line = fs::read_to_string(tasks.join(thread.to_string()).join("schedstat"));
                let nanoseconds =
                    line.ok().and_then(|line| line.split_ascii_whitespace().next()?.parse().ok());
                usage.threads.insert((pid, thread), nanoseconds);
            }
        }
        usage
    }

    /// Memory used now.
    pub(crate) fn memory(&self) -> Result<Memory, LoadError> {
        let tree = self.tree();
        let pss: Option<u64> = tree.iter().map(|pid| self.kib(*pid, "smaps_rollup", "Pss:")).sum();
        if let Some(kib) = pss.filter(|kib| *kib > 0) {
            return Ok(Memory { kib, kind: "Pss" });
        }
        let rss: Option<u64> = tree.iter().map(|pid| self.kib(*pid, "status", "VmRSS:")).sum();
        match rss.filter(|kib| *kib > 0) {
            Some(kib) => Ok(Memory { kib, kind: "Rss" }),
            None => Err(LoadError::Usage(
                "the server's memory can't be read from /proc: has it ended, or does it belong to somebody else?"
                    .into(),
            )),
        }
    }

    fn kib(&self, pid: u32, file: &str, field: &str) -> Option<u64> {
        let text = fs::read_to_string(self.proc.join(pid.to_string()).join(file)).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix(field))?;
        line.split_ascii_whitespace().next()?.parse().ok()
    }

    /// CPU time used from `before` to `after`.
    pub(crate) fn between(&self, before: &Usage, after: &Usage) -> (Duration, Source) {
        match nanoseconds(before, after) {
            Some(nanoseconds) => (Duration::from_nanos(nanoseconds), Source::Schedstat),
            None => {
                let sum = |usage: &Usage| usage.ticks.values().sum::<u64>();
                let ticks = sum(after).saturating_sub(sum(before));
                (self.tick * u32::try_from(ticks).unwrap_or(u32::MAX), Source::Stat)
            }
        }
    }
}

/// `None` if the figure of some thread is not known at both times.
fn nanoseconds(before: &Usage, after: &Usage) -> Option<u64> {
    if before.threads.keys().any(|thread| !after.threads.contains_key(thread)) {
        return None;
    }
    let mut sum = 0;
    for (thread, used) in &after.threads {
        let earlier = before.threads.get(thread).copied().unwrap_or(Some(0));
        sum += used.as_ref()?.saturating_sub(earlier?);
    }
    Some(sum)
}

struct Stat {
    parent: u32,
    ticks: u64,
}

/// proc(5), `/proc/[pid]/stat`: the name may have spaces and brackets in it, so fields are counted from its end.
fn stat(proc: &Path, pid: u32) -> Option<Stat> {
    let text = fs::read_to_string(proc.join(pid.to_string()).join("stat")).ok()?;
    let fields: Vec<&str> = text[text.rfind(')')? + 1..].split_ascii_whitespace().collect();
    let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
    // Of utime, stime, cutime, cstime.
    let ticks = (11..15).map(number).sum::<Option<u64>>()?;
    Some(Stat { parent: u32::try_from(number(1)?).ok()?, ticks })
}

fn numbers(directory: &Path) -> Vec<u32> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// CPU time of this process.
pub(crate) fn own() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    struct Machine(tempfile::TempDir);

    impl Machine {
        fn process(&self, pid: u32, parent: u32, ticks: u64, threads: &[(u32, Option<u64>)]) {
            let directory = self.0.path().join(pid.to_string());
            drop(fs::remove_dir_all(&directory));
            fs::create_dir_all(directory.join("task")).unwrap();
            let stat =
                format!("{pid} (a ) b) S {parent} 1 1 0 -1 4194560 1 0 0 0 {ticks} 2 3 4 20 0 1 0 1 1 1");
            fs::write(directory.join("stat"), stat).unwrap();
            fs::write(directory.join("status"), format!("Name:\tx\nVmRSS:\t  {pid} kB\n")).unwrap();
            for (thread, nanoseconds) in threads {
                let task = directory.join("task").join(thread.to_string());
                fs::create_dir_all(&task).unwrap();
                if let Some(nanoseconds) = nanoseconds {
                    fs::write(task.join("schedstat"), format!("{nanoseconds} 17 3\n")).unwrap();
                }
            }
        }

        fn meter(&self, root: u32) -> Meter {
            let proc = self.0.path().to_owned();
            Meter { proc, roots: vec![root], tick: Duration::from_millis(10) }
        }
    }

    #[test]
    fn cpu_is_that_of_the_whole_tree_and_of_nobody_else() {
        let machine = Machine(tempfile::tempdir().unwrap());
        let meter = machine.meter(10);
        machine.process(10, 1, 100, &[(10, Some(1_000)), (11, Some(2_000))]);
        machine.process(20, 10, 100, &[(20, Some(500))]);
        machine.process(30, 1, 100, &[(30, Some(9_000))]);
        let before = meter.usage();
        machine.process(10, 1, 100, &[(10, Some(1_100)), (11, Some(2_010)), (12, Some(7))]);
        machine.process(20, 10, 100, &[(20, Some(501))]);
        machine.process(21, 20, 100, &[(21, Some(40_000))]);
        machine.process(30, 1, 900, &[(30, Some(99_000))]);
        let after = meter.usage();
        assert_eq!(meter.between(&before, &after), (Duration::from_nanos(40_118), Source::Schedstat));
    }

    #[test]
    fn a_thread_that_ended_is_counted_in_ticks() {
        let machine = Machine(tempfile::tempdir().unwrap());
        let meter = machine.meter(10);
        machine.process(10, 1, 100, &[(10, Some(1_000)), (11, Some(2_000))]);
        let before = meter.usage();
        machine.process(10, 1, 150, &[(10, Some(1_100))]);
        let after = meter.usage();
        assert_eq!(meter.between(&before, &after), (Duration::from_millis(500), Source::Stat));
        machine.process(10, 1, 160, &[(10, None)]);
        let later = meter.usage();
        assert_eq!(meter.between(&after, &later), (Duration::from_millis(100), Source::Stat));
    }

    #[test]
    fn memory_is_that_of_the_whole_tree() {
        let machine = Machine(tempfile::tempdir().unwrap());
        machine.process(10, 1, 1, &[]);
        machine.process(20, 10, 1, &[]);
        machine.process(30, 1, 1, &[]);
        assert_eq!(machine.meter(10).memory().unwrap(), Memory { kib: 30, kind: "Rss" });
        for (pid, pss) in [(10, 5), (20, 6)] {
            let file = machine.0.path().join(pid.to_string()).join("smaps_rollup");
            fs::write(file, format!("0-1 ---p 0 00:00 0 [rollup]\nRss: 99 kB\nPss:   {pss} kB\n")).unwrap();
        }
        assert_eq!(machine.meter(10).memory().unwrap(), Memory { kib: 11, kind: "Pss" });
    }

    #[test]
    fn our_own_process_can_be_read() {
        let meter = Meter::new(&[std::process::id()]).unwrap().unwrap();
        let before = meter.usage();
        assert!(!before.ticks.is_empty());
        assert!(meter.memory().unwrap().kib > 0);
        assert!(Meter::new(&[u32::MAX]).is_err());
        assert!(Meter::new(&[]).unwrap().is_none());
        assert!(own() > Duration::ZERO);
    }
}
