//! The C side of [`TestDisk`](super::TestDisk): SQLite's `sqlite3_vfs` and `sqlite3_io_methods`, see
//! <https://sqlite.org/vfs.html>. Nothing but translation; what happens is in the parent module.
//!
//! The one place of the workspace with `unsafe`: SQLite calls these functions with pointers, and there is no other way
//! to give it a file system. Only tests compile it.
#![allow(unsafe_code)]

use std::{
    collections::HashMap,
    ffi::{CStr, CString, c_char, c_int, c_void},
    ptr,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering, fence},
    },
    time::{Duration, SystemTime},
};

use parking_lot::Mutex;
use rusqlite::ffi::{self, sqlite3_file, sqlite3_int64, sqlite3_io_methods, sqlite3_vfs};

use super::{Code, Disk, State};

/// Longest path, without its end.
const PATH: c_int = 1024;

/// Makes the disk known to SQLite under its name.
///
/// The VFS itself is never freed: connections keep pointers to it that outlive anything we could know of. It holds the
/// disk weakly, so what stays is some hundred bytes.
pub(super) fn register(disk: &Arc<Disk>) {
    let name = CString::new(disk.name.as_str()).expect("invariant: the name has no NUL");
    let vfs = Box::new(sqlite3_vfs {
        iVersion: 2,
        szOsFile: c_int::try_from(size_of::<Handle>()).expect("invariant: a handle is small"),
        mxPathname: PATH,
        pNext: ptr::null_mut(),
        zName: name.into_raw(),
        pAppData: Box::into_raw(Box::new(Arc::downgrade(disk))).cast(),
        xOpen: Some(open),
        xDelete: Some(delete),
        xAccess: Some(access),
        xFullPathname: Some(full_pathname),
        xDlOpen: None,
        xDlError: None,
        xDlSym: None,
        xDlClose: None,
        xRandomness: Some(randomness),
        xSleep: Some(sleep),
        xCurrentTime: Some(current_time),
        xGetLastError: None,
        xCurrentTimeInt64: Some(current_time_int64),
        xSetSystemCall: None,
        xGetSystemCall: None,
        xNextSystemCall: None,
    });
    // SAFETY: the structure and all it points to are leaked, so they live as long as SQLite can use them; each member
    // that is None is documented to be optional, or is only for loading extensions, which nobody does here.
    let code = unsafe { ffi::sqlite3_vfs_register(Box::into_raw(vfs), 0) };
    assert_eq!(code, ffi::SQLITE_OK, "SQLite refused the test disk");
}

/// What all who have one file open share: its locks and the memory of the log's index.
#[derive(Default)]
pub(super) struct Node {
    /// The level each handle has, by the handle's number.
    locks: Mutex<HashMap<u64, c_int>>,
    shm: Mutex<Shm>,
}

#[derive(Default)]
struct Shm {
    /// Atomics because SQLite's threads write there through pointers.
    regions: Vec<Box<[AtomicU64]>>,
    /// Bits of the locks each handle holds: shared, exclusive. Who is in here has the memory mapped.
    locks: HashMap<u64, (u32, u32)>,
}

/// What SQLite allocates for each open file: `szOsFile` bytes, of which it knows the first member.
#[repr(C)]
struct Handle {
    base: sqlite3_file,
    open: *mut Open,
}

struct Open {
    disk: Arc<Disk>,
    node: Arc<Node>,
    name: String,
    number: u64,
    generation: u64,
    temporary: bool,
    /// The next sync is also one of the directory, as in SQLite's VFS for Unix.
    new: AtomicBool,
}

/// Files whose first sync makes their name durable, too.
const JOURNALS: c_int = ffi::SQLITE_OPEN_MAIN_JOURNAL | ffi::SQLITE_OPEN_SUPER_JOURNAL | ffi::SQLITE_OPEN_WAL;

impl Open {
    /// Does something to the disk, if that has power and had it since this file was opened.
    fn with(&self, action: impl FnOnce(&mut State) -> Result<(), Code>) -> c_int {
        let mut state = self.disk.state.lock();
        code(state.powered(self.generation).and_then(|()| action(&mut state)))
    }
}

fn code(result: Result<(), Code>) -> c_int {
    result.err().unwrap_or(ffi::SQLITE_OK)
}

static METHODS: sqlite3_io_methods = sqlite3_io_methods {
    iVersion: 2,
    xClose: Some(close),
    xRead: Some(read),
    xWrite: Some(write),
    xTruncate: Some(truncate),
    xSync: Some(sync),
    xFileSize: Some(file_size),
    xLock: Some(lock),
    xUnlock: Some(unlock),
    xCheckReservedLock: Some(check_reserved_lock),
    xFileControl: Some(file_control),
    xSectorSize: Some(sector_size),
    xDeviceCharacteristics: Some(device_characteristics),
    xShmMap: Some(shm_map),
    xShmLock: Some(shm_lock),
    xShmBarrier: Some(shm_barrier),
    xShmUnmap: Some(shm_unmap),
    // Memory-mapped reads need version 3; the store does not use them.
    xFetch: None,
    xUnfetch: None,
};

/// The disk behind a VFS; `None` when the test dropped it.
///
/// # Safety
/// `vfs` was made by [`register`].
unsafe fn disk(vfs: *mut sqlite3_vfs) -> Option<Arc<Disk>> {
    // SAFETY: `register` put a leaked `Weak<Disk>` there.
    unsafe { &*(*vfs).pAppData.cast::<Weak<Disk>>() }.upgrade()
}

/// The open file behind SQLite's pointer.
///
/// # Safety
/// `file` was opened by [`open`] with success and not closed since; SQLite promises that for each of its methods.
unsafe fn opened<'a>(file: *mut sqlite3_file) -> &'a Open {
    // SAFETY: `file` points to a `Handle` (its first member), whose `open` came from `Box::into_raw`. Only shared
    // references are ever made of it, until `close`.
    unsafe { &*(*file.cast::<Handle>()).open }
}

/// # Safety
/// `path` is a C string.
unsafe fn text(path: *const c_char) -> String {
    // SAFETY: as above.
    unsafe { CStr::from_ptr(path) }.to_string_lossy().into_owned()
}

unsafe extern "C" fn open(
    vfs: *mut sqlite3_vfs,
    path: *const c_char,
    file: *mut sqlite3_file,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    // SAFETY: SQLite gives `szOsFile` bytes at `file`. Without methods it will not call `close` when this fails.
    unsafe { (*file).pMethods = ptr::null() };
    // SAFETY: this function is a member of a VFS that `register` made.
    let Some(disk) = (unsafe { disk(vfs) }) else { return ffi::SQLITE_CANTOPEN };
    // A temporary file has no name.
    let name = match path.is_null() {
        true => format!("temporary-{number}"),
        // SAFETY: SQLite gives a C string.
        false => unsafe { text(path) },
    };
    let (node, generation) = {
        let mut state = disk.state.lock();
        match state.open(&name, flags & ffi::SQLITE_OPEN_CREATE != 0) {
            Ok(node) => (node, state.generation),
            Err(code) => return code,
        }
    };
    let temporary = flags & ffi::SQLITE_OPEN_DELETEONCLOSE != 0;
    let new = AtomicBool::new(flags & ffi::SQLITE_OPEN_CREATE != 0 && flags & JOURNALS != 0);
    let open = Box::new(Open { disk, node, name, number, generation, temporary, new });
    // SAFETY: `file` has room for a `Handle`, and `out_flags` is a valid pointer unless null.
    unsafe {
        file.cast::<Handle>()
            .write(Handle { base: sqlite3_file { pMethods: &raw const METHODS }, open: Box::into_raw(open) });
        if !out_flags.is_null() {
            *out_flags = flags;
        }
    }
    ffi::SQLITE_OK
}

unsafe extern "C" fn close(file: *mut sqlite3_file) -> c_int {
    // SAFETY: `open` came from `Box::into_raw`, and SQLite closes a file once and uses it no more.
    let open = unsafe { Box::from_raw((*file.cast::<Handle>()).open) };
    forget(&open);
    open.node.locks.lock().remove(&open.number);
    if open.temporary {
        open.with(|state| state.delete(&open.name, true));
    }
    ffi::SQLITE_OK
}

unsafe extern "C" fn delete(vfs: *mut sqlite3_vfs, path: *const c_char, sync_directory: c_int) -> c_int {
    // SAFETY: `vfs` is ours and `path` a C string.
    let (disk, name) = unsafe { (disk(vfs), text(path)) };
    let Some(disk) = disk else { return ffi::SQLITE_IOERR_DELETE };
    let mut state = disk.state.lock();
    let generation = state.generation;
    code(state.powered(generation).and_then(|()| state.delete(&name, sync_directory != 0)))
}

unsafe extern "C" fn access(
    vfs: *mut sqlite3_vfs,
    path: *const c_char,
    _flags: c_int,
    out: *mut c_int,
) -> c_int {
    // SAFETY: `vfs` is ours and `path` a C string.
    let (disk, name) = unsafe { (disk(vfs), text(path)) };
    let Some(disk) = disk else { return ffi::SQLITE_IOERR_ACCESS };
    let exists = disk.state.lock().files.get(&name).is_some_and(|file| file.cache.is_some());
    // SAFETY: a valid pointer for the answer.
    unsafe { *out = c_int::from(exists) };
    ffi::SQLITE_OK
}

unsafe extern "C" fn full_pathname(
    _vfs: *mut sqlite3_vfs,
    path: *const c_char,
    length: c_int,
    out: *mut c_char,
) -> c_int {
    // SAFETY: `path` is a C string.
    let path = unsafe { CStr::from_ptr(path) }.to_bytes_with_nul();
    if usize::try_from(length).is_ok_and(|length| path.len() > length) {
        return ffi::SQLITE_CANTOPEN;
    }
    // SAFETY: `out` has room for `length` bytes, which was just checked to be enough.
    unsafe { ptr::copy_nonoverlapping(path.as_ptr().cast(), out, path.len()) };
    ffi::SQLITE_OK
}

/// Gives nothing: SQLite seeds itself from its default VFS.
unsafe extern "C" fn randomness(_vfs: *mut sqlite3_vfs, _length: c_int, _out: *mut c_char) -> c_int {
    0
}

unsafe extern "C" fn sleep(_vfs: *mut sqlite3_vfs, microseconds: c_int) -> c_int {
    std::thread::sleep(Duration::from_micros(microseconds.unsigned_abs().into()));
    microseconds
}

/// Milliseconds since the Julian epoch.
fn julian() -> i64 {
    let since = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    210_866_760_000_000 + i64::try_from(since.as_millis()).unwrap_or_default()
}

unsafe extern "C" fn current_time(_vfs: *mut sqlite3_vfs, out: *mut f64) -> c_int {
    // SAFETY: a valid pointer for the answer.
    unsafe { *out = julian() as f64 / 86_400_000.0 };
    ffi::SQLITE_OK
}

unsafe extern "C" fn current_time_int64(_vfs: *mut sqlite3_vfs, out: *mut sqlite3_int64) -> c_int {
    // SAFETY: a valid pointer for the answer.
    unsafe { *out = julian() };
    ffi::SQLITE_OK
}

/// SQLite's numbers of bytes and offsets are signed but never negative.
fn size(number: impl TryInto<usize>) -> usize {
    number.try_into().unwrap_or_default()
}

unsafe extern "C" fn read(
    file: *mut sqlite3_file,
    out: *mut c_void,
    length: c_int,
    offset: sqlite3_int64,
) -> c_int {
    // SAFETY: `out` has `length` bytes, and they belong to this call.
    let (open, out) =
        unsafe { (opened(file), std::slice::from_raw_parts_mut(out.cast::<u8>(), size(length))) };
    open.with(|state| state.read(&open.name, size(offset), out))
}

unsafe extern "C" fn write(
    file: *mut sqlite3_file,
    bytes: *const c_void,
    length: c_int,
    offset: sqlite3_int64,
) -> c_int {
    // SAFETY: `bytes` has `length` bytes that nobody changes during this call.
    let (open, bytes) =
        unsafe { (opened(file), std::slice::from_raw_parts(bytes.cast::<u8>(), size(length))) };
    open.with(|state| state.write(&open.name, size(offset), bytes))
}

unsafe extern "C" fn truncate(file: *mut sqlite3_file, length: sqlite3_int64) -> c_int {
    // SAFETY: see `opened`.
    let open = unsafe { opened(file) };
    open.with(|state| state.truncate(&open.name, size(length)))
}

unsafe extern "C" fn sync(file: *mut sqlite3_file, _flags: c_int) -> c_int {
    // SAFETY: see `opened`.
    let open = unsafe { opened(file) };
    open.with(|state| {
        state.sync(&open.name)?;
        if open.new.swap(false, Ordering::Relaxed) {
            state.sync_directory();
        }
        Ok(())
    })
}

unsafe extern "C" fn file_size(file: *mut sqlite3_file, out: *mut sqlite3_int64) -> c_int {
    // SAFETY: see `opened`.
    let open = unsafe { opened(file) };
    let mut found = 0;
    let code = open.with(|state| state.size(&open.name).map(|size| found = size));
    // SAFETY: a valid pointer for the answer.
    unsafe { *out = sqlite3_int64::try_from(found).unwrap_or_default() };
    code
}

/// <https://sqlite.org/lockingv3.html>: many readers, one who means to write, who in the end keeps new readers out.
unsafe extern "C" fn lock(file: *mut sqlite3_file, wanted: c_int) -> c_int {
    // SAFETY: see `opened`.
    let open = unsafe { opened(file) };
    let mut locks = open.node.locks.lock();
    let mine = locks.get(&open.number).copied().unwrap_or(ffi::SQLITE_LOCK_NONE);
    let others = locks.iter().filter(|(number, _)| **number != open.number).map(|(_, level)| *level);
    let others = others.max().unwrap_or(ffi::SQLITE_LOCK_NONE);
    if mine >= wanted {
        return ffi::SQLITE_OK;
    }
    let (granted, code) = match wanted {
        ffi::SQLITE_LOCK_SHARED if others >= ffi::SQLITE_LOCK_PENDING => (mine, ffi::SQLITE_BUSY),
        ffi::SQLITE_LOCK_SHARED => (wanted, ffi::SQLITE_OK),
        _ if others >= ffi::SQLITE_LOCK_RESERVED => (mine, ffi::SQLITE_BUSY),
        ffi::SQLITE_LOCK_EXCLUSIVE if others >= ffi::SQLITE_LOCK_SHARED => {
            (ffi::SQLITE_LOCK_PENDING, ffi::SQLITE_BUSY)
        }
        _ => (wanted, ffi::SQLITE_OK),
    };
    locks.insert(open.number, granted);
    code
}

unsafe extern "C" fn unlock(file: *mut sqlite3_file, wanted: c_int) -> c_int {
    // SAFETY: see `opened`.
    let open = unsafe { opened(file) };
    let mut locks = open.node.locks.lock();
    let mine = locks.entry(open.number).or_insert(ffi::SQLITE_LOCK_NONE);
    *mine = wanted.min(*mine);
    ffi::SQLITE_OK
}

unsafe extern "C" fn check_reserved_lock(file: *mut sqlite3_file, out: *mut c_int) -> c_int {
    // SAFETY: see `opened`.
    let open = unsafe { opened(file) };
    let reserved = open.node.locks.lock().values().any(|level| *level >= ffi::SQLITE_LOCK_RESERVED);
    // SAFETY: a valid pointer for the answer.
    unsafe { *out = c_int::from(reserved) };
    ffi::SQLITE_OK
}

unsafe extern "C" fn file_control(_file: *mut sqlite3_file, _op: c_int, _argument: *mut c_void) -> c_int {
    ffi::SQLITE_NOTFOUND
}

/// The same answers as SQLite's VFS for Unix, so that SQLite takes the same ways.
unsafe extern "C" fn sector_size(_file: *mut sqlite3_file) -> c_int {
    4096
}

unsafe extern "C" fn device_characteristics(_file: *mut sqlite3_file) -> c_int {
    ffi::SQLITE_IOCAP_POWERSAFE_OVERWRITE
}

unsafe extern "C" fn shm_map(
    file: *mut sqlite3_file,
    region: c_int,
    length: c_int,
    extend: c_int,
    out: *mut *mut c_void,
) -> c_int {
    // SAFETY: see `opened`.
    let open = unsafe { opened(file) };
    let mut shm = open.node.shm.lock();
    shm.locks.entry(open.number).or_default();
    while extend != 0 && shm.regions.len() <= size(region) {
        shm.regions.push((0..size(length).div_ceil(8)).map(|_| AtomicU64::new(0)).collect());
    }
    let memory = shm.regions.get(size(region)).map_or(ptr::null_mut(), |region| region.as_ptr().cast_mut());
    // SAFETY: a valid pointer for the answer. The memory stays where it is until the last handle unmaps it; it is
    // made of atomics, so that writing through a pointer to it is allowed.
    unsafe { *out = memory.cast() };
    ffi::SQLITE_OK
}

unsafe extern "C" fn shm_lock(file: *mut sqlite3_file, offset: c_int, n: c_int, flags: c_int) -> c_int {
    // SAFETY: see `opened`.
    let open = unsafe { opened(file) };
    let bits = ((1_u32 << n) - 1) << offset;
    let mut shm = open.node.shm.lock();
    let others = shm.locks.iter().filter(|(number, _)| **number != open.number);
    let (shared, exclusive) = others.fold((0, 0), |all, (_, locks)| (all.0 | locks.0, all.1 | locks.1));
    let mine = shm.locks.entry(open.number).or_default();
    if flags & ffi::SQLITE_SHM_UNLOCK != 0 {
        *mine = (mine.0 & !bits, mine.1 & !bits);
    } else if flags & ffi::SQLITE_SHM_SHARED != 0 {
        if exclusive & bits != 0 {
            return ffi::SQLITE_BUSY;
        }
        mine.0 |= bits;
    } else {
        if (shared | exclusive) & bits != 0 {
            return ffi::SQLITE_BUSY;
        }
        mine.1 |= bits;
    }
    ffi::SQLITE_OK
}

unsafe extern "C" fn shm_barrier(_file: *mut sqlite3_file) {
    fence(Ordering::SeqCst);
}

unsafe extern "C" fn shm_unmap(file: *mut sqlite3_file, _delete: c_int) -> c_int {
    // SAFETY: see `opened`.
    forget(unsafe { opened(file) });
    ffi::SQLITE_OK
}

/// Ends a handle's share in the memory. The last one's end is the memory's: who comes then reads the log anew.
fn forget(open: &Open) {
    let mut shm = open.node.shm.lock();
    if shm.locks.remove(&open.number).is_some() && shm.locks.is_empty() {
        shm.regions.clear();
    }
}
