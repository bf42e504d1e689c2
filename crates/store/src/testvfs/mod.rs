//! A disk for tests that can lose its power, run full and fail to sync.
//!
//! `kill -9` leaves the operating system's page cache, so it passes without a single sync. A [`TestDisk`] keeps apart
//! what was synced and what was only written; [`power_cut`](TestDisk::power_cut) forgets the latter, all of it or a
//! random part ([`Survival`]). It is a SQLite VFS: hand [`TestDisk::name`] to [`Options::vfs`](crate::Options::vfs)
//! and everything above the store runs as it is.
//!
//! ```
//! # use trunkline_store::{Batch, Db, Lane, Migration, Options, sql, testvfs::{Survival, TestDisk}};
//! # let migrations = [Migration { name: "t", sql: "CREATE TABLE t (i INTEGER) STRICT" }];
//! let disk = TestDisk::new();
//! let options = Options { vfs: Some(disk.name().into()), inline: true, ..Options::file("a.sqlite", &migrations) };
//! let db = Db::open(options.clone())?;
//! db.submit(Batch::new(Lane::Inside).with(sql("INSERT INTO t VALUES (1)")), |result| assert!(result.is_ok()));
//! disk.power_cut();
//! drop(db); // What was open keeps failing, as on a machine that is off.
//! disk.power_on(Survival::Nothing);
//! let db = Db::open(options)?; // Has the row: its commit was synced.
//! # Ok::<(), trunkline_store::OpenError>(())
//! ```
//!
//! What is modelled: writes and truncations are lost, kept or torn at 512-byte sectors one by one, in any
//! combination; the operation during which the power goes may itself survive in part; deletions come undone and new
//! files vanish unless the directory was synced, which SQLite does once for each journal and log it creates. What is
//! not: bytes outside of a write are never damaged (SQLite assumes that of disks too,
//! `SQLITE_IOCAP_POWERSAFE_OVERWRITE`), and what was synced never rots.

mod vfs;

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use parking_lot::Mutex;
use rusqlite::ffi;

/// Writes are torn at multiples of this: what disks write in one piece at least.
const SECTOR: usize = 512;

/// A disk in memory, registered with SQLite as a VFS under a name of its own. Clones are the same disk.
#[derive(Clone)]
pub struct TestDisk {
    disk: Arc<Disk>,
}

/// What is left of unsynced writes after a power cut. The numbers seed the choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Survival {
    /// None of them: the disk wrote nothing it was not forced to.
    Nothing,
    /// Each one or not, at random: the disk wrote in an order of its own.
    Some(u64),
    /// Each sector of each one or not, at random.
    Torn(u64),
    /// All of them, as after a `kill -9`.
    Everything,
}

impl TestDisk {
    /// An empty disk.
    #[expect(
        clippy::new_without_default,
        reason = "registers a VFS, which is more than a default value does"
    )]
    pub fn new() -> TestDisk {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let name = format!("test-disk-{}", NUMBER.fetch_add(1, Relaxed));
        let disk = Arc::new(Disk { name, state: Mutex::new(State { powered: true, ..State::default() }) });
        vfs::register(&disk);
        TestDisk { disk }
    }

    /// The name for [`Options::vfs`](crate::Options::vfs).
    pub fn name(&self) -> &str {
        &self.disk.name
    }

    /// Operations so far that change the disk: writes, truncations, syncs, deletions. A run of the same work has as
    /// many points at which it can be cut.
    pub fn operations(&self) -> u64 {
        self.disk.state.lock().operations
    }

    /// The power will go during the operation with this number, counted from 1 since the disk was made or powered on.
    pub fn cut_at(&self, operation: u64) {
        self.disk.state.lock().cut_at = Some(operation);
    }

    /// The power goes now: from now on each operation fails.
    pub fn power_cut(&self) {
        self.disk.state.lock().powered = false;
    }

    /// Whether the power is there.
    pub fn is_powered(&self) -> bool {
        self.disk.state.lock().powered
    }

    /// The power comes back, also without a cut before. What was opened earlier keeps failing; files hold what was
    /// synced and what `survival` left of the rest. The count of operations starts again.
    pub fn power_on(&self, survival: Survival) {
        let mut state = self.disk.state.lock();
        let mut random = Random::new(survival);
        // In the order of names, so that a seed means the same each time.
        let mut names: Vec<String> = state.files.keys().cloned().collect();
        names.sort_unstable();
        for name in names {
            let keep = state.files.get_mut(&name).is_none_or(|file| file.lose(survival, &mut random));
            if !keep {
                state.files.remove(&name);
            }
        }
        let (files, generation) = (std::mem::take(&mut state.files), state.generation + 1);
        *state = State { files, generation, powered: true, ..State::default() };
    }

    /// How many bytes all files together may have; a write beyond fails as on a full disk. `None`: no limit.
    pub fn set_capacity(&self, bytes: Option<usize>) {
        self.disk.state.lock().capacity = bytes;
    }

    /// Bytes of all files together.
    pub fn used(&self) -> usize {
        self.disk.state.lock().used()
    }

    /// What the disk does when it is told to sync.
    pub fn set_sync(&self, behaviour: Sync) {
        self.disk.state.lock().sync = behaviour;
    }

    /// What a program would read from a file now; `None` when there is none.
    pub fn content(&self, path: &str) -> Option<Vec<u8>> {
        self.disk.state.lock().files.get(path)?.cache.clone()
    }
}

impl fmt::Debug for TestDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TestDisk").field(&self.name()).finish()
    }
}

/// What a disk does when it is told to sync.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sync {
    /// What it should.
    #[default]
    Honest,
    /// Nothing, and says it did: some drives do.
    Lies,
    /// Nothing, and says so with an error.
    Fails,
}

struct Disk {
    name: String,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    files: HashMap<String, File>,
    /// How often the power came back: what was opened before does not work any more.
    generation: u64,
    powered: bool,
    operations: u64,
    cut_at: Option<u64>,
    capacity: Option<usize>,
    sync: Sync,
}

#[derive(Default)]
struct File {
    /// What is on the platter; `None`: no such file there.
    durable: Option<Vec<u8>>,
    /// What a program sees; `None`: deleted.
    cache: Option<Vec<u8>>,
    /// How `durable` becomes `cache`.
    unsynced: Vec<Change>,
    /// Locks and shared memory, which know no power cut: they are made anew then.
    node: Arc<vfs::Node>,
}

enum Change {
    Write { offset: usize, bytes: Vec<u8> },
    Truncate(usize),
}

/// A SQLite result code other than `SQLITE_OK`.
type Code = std::ffi::c_int;

impl State {
    fn powered(&self, generation: u64) -> Result<(), Code> {
        if self.powered && self.generation == generation { Ok(()) } else { Err(ffi::SQLITE_IOERR) }
    }

    /// Counts an operation that changes the disk. True: the power goes during this one.
    fn operation(&mut self) -> bool {
        self.operations += 1;
        let cut = self.cut_at.is_some_and(|at| self.operations >= at);
        self.powered &= !cut;
        cut
    }

    fn used(&self) -> usize {
        self.files.values().filter_map(|file| file.cache.as_ref()).map(Vec::len).sum()
    }

    fn file(&mut self, name: &str) -> Result<&mut File, Code> {
        self.files.get_mut(name).ok_or(ffi::SQLITE_IOERR)
    }

    /// Opens a file, making it if `create`; gives what all who have it open share.
    fn open(&mut self, name: &str, create: bool) -> Result<Arc<vfs::Node>, Code> {
        let generation = self.generation;
        self.powered(generation)?;
        match self.files.get_mut(name) {
            Some(file) if file.cache.is_some() => Ok(file.node.clone()),
            _ if !create => Err(ffi::SQLITE_CANTOPEN),
            Some(file) => {
                file.cache = Some(Vec::new());
                Ok(file.node.clone())
            }
            None => {
                let file = File { cache: Some(Vec::new()), ..File::default() };
                Ok(self.files.entry(name.to_owned()).or_insert(file).node.clone())
            }
        }
    }

    fn write(&mut self, name: &str, offset: usize, bytes: &[u8]) -> Result<(), Code> {
        let growth = (offset + bytes.len()).saturating_sub(self.size(name)?);
        if growth > 0 && self.capacity.is_some_and(|capacity| self.used() + growth > capacity) {
            return Err(ffi::SQLITE_FULL);
        }
        let cut = self.operation();
        self.file(name)?.change(Change::Write { offset, bytes: bytes.to_vec() });
        if cut { Err(ffi::SQLITE_IOERR_WRITE) } else { Ok(()) }
    }

    fn truncate(&mut self, name: &str, size: usize) -> Result<(), Code> {
        let cut = self.operation();
        self.file(name)?.change(Change::Truncate(size));
        if cut { Err(ffi::SQLITE_IOERR_TRUNCATE) } else { Ok(()) }
    }

    fn sync(&mut self, name: &str) -> Result<(), Code> {
        if self.operation() || self.sync == Sync::Fails {
            return Err(ffi::SQLITE_IOERR_FSYNC);
        }
        if self.sync == Sync::Honest {
            let file = self.file(name)?;
            let durable = file.durable.get_or_insert_default();
            file.unsynced.drain(..).for_each(|change| change.apply(durable));
        }
        Ok(())
    }

    /// Syncs the directory: deletions stay done, and the names of new files are there.
    fn sync_directory(&mut self) {
        if self.sync == Sync::Honest {
            self.files.retain(|_, file| file.cache.is_some());
            for file in self.files.values_mut() {
                file.durable.get_or_insert_default();
            }
        }
    }

    fn delete(&mut self, name: &str, durably: bool) -> Result<(), Code> {
        let Some(file) = self.files.get(name) else { return Err(ffi::SQLITE_IOERR_DELETE_NOENT) };
        if file.cache.is_none() {
            return Err(ffi::SQLITE_IOERR_DELETE_NOENT);
        }
        if self.operation() {
            return Err(ffi::SQLITE_IOERR_DELETE);
        }
        if durably && self.sync == Sync::Honest {
            self.files.remove(name);
        } else {
            let file = self.file(name)?;
            file.change(Change::Truncate(0));
            file.cache = None;
        }
        Ok(())
    }

    fn size(&mut self, name: &str) -> Result<usize, Code> {
        Ok(self.file(name)?.cache.as_ref().map_or(0, Vec::len))
    }

    /// Fills `into`; what is beyond the end of the file is zero, and SQLite wants to know of it.
    fn read(&mut self, name: &str, offset: usize, into: &mut [u8]) -> Result<(), Code> {
        let cache = self.file(name)?.cache.as_deref().unwrap_or_default();
        let found = cache.get(offset..).unwrap_or_default();
        let length = found.len().min(into.len());
        into[..length].copy_from_slice(&found[..length]);
        into[length..].fill(0);
        if length < into.len() { Err(ffi::SQLITE_IOERR_SHORT_READ) } else { Ok(()) }
    }
}

impl File {
    fn change(&mut self, change: Change) {
        change.apply(self.cache.get_or_insert_default());
        self.unsynced.push(change);
    }

    /// The power was gone: what a program sees is again what is on the platter. False: no such file there.
    fn lose(&mut self, survival: Survival, random: &mut Random) -> bool {
        let deleted = self.cache.is_none() && random.keep();
        // A file that was never synced is there only if its name made it to the directory.
        let exists = self.durable.is_some() || random.keep();
        let mut content = self.durable.take().unwrap_or_default();
        for change in self.unsynced.drain(..) {
            match change {
                Change::Write { offset, bytes } if matches!(survival, Survival::Torn(_)) => {
                    for (offset, bytes) in sectors(offset, bytes) {
                        random.keep().then(|| Change::Write { offset, bytes }.apply(&mut content));
                    }
                }
                change => drop(random.keep().then(|| change.apply(&mut content))),
            }
        }
        self.node = Arc::default();
        self.cache = Some(content);
        self.durable.clone_from(&self.cache);
        exists && !deleted
    }
}

impl Change {
    fn apply(&self, content: &mut Vec<u8>) {
        match self {
            Change::Write { offset, bytes } => {
                let end = offset + bytes.len();
                if content.len() < end {
                    content.resize(end, 0);
                }
                content[*offset..end].copy_from_slice(bytes);
            }
            Change::Truncate(size) => content.truncate(*size),
        }
    }
}

/// A write in pieces that end at sector boundaries of the file.
fn sectors(offset: usize, mut bytes: Vec<u8>) -> Vec<(usize, Vec<u8>)> {
    let mut pieces = Vec::new();
    let mut at = offset;
    while !bytes.is_empty() {
        let length = (SECTOR - at % SECTOR).min(bytes.len());
        let rest = bytes.split_off(length);
        pieces.push((at, bytes));
        at += length;
        bytes = rest;
    }
    pieces
}

/// Decides what survives. SplitMix64: good enough for coins.
enum Random {
    Never,
    Always,
    Coin(u64),
}

impl Random {
    fn new(survival: Survival) -> Random {
        match survival {
            Survival::Nothing => Random::Never,
            Survival::Everything => Random::Always,
            Survival::Some(seed) | Survival::Torn(seed) => Random::Coin(seed),
        }
    }

    fn keep(&mut self) -> bool {
        match self {
            Random::Never => false,
            Random::Always => true,
            Random::Coin(state) => {
                *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
                let mut z = *state;
                z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
                (z ^ (z >> 31)) & 1 == 1
            }
        }
    }
}
