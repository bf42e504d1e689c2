//! The file around the database: who may read it, who has it open, whether its disk is full.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use crate::error::OpenError;

/// Held as long as the database is open; the system releases it with the process, however that ends.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

/// Takes the lock file next to the database. Not the database itself: SQLite's own locks on it are POSIX locks,
/// and those are lost when any descriptor of the file is closed.
pub(crate) fn lock(database: &Path) -> Result<Lock, OpenError> {
    let path = beside(database, ".lock");
    let fail = |error| OpenError::Io { path: path.clone(), error };
    let mut file =
        private(OpenOptions::new().read(true).write(true).create(true)).open(&path).map_err(fail)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            // The text only helps the operator; the lock is what counts.
            let _ = Read::by_ref(&mut file).take(256).read_to_string(&mut holder);
            let holder = match holder.trim() {
                "" => "another process".to_owned(),
                text => text.to_owned(),
            };
            return Err(OpenError::InUse { path: database.to_owned(), holder });
        }
        Err(TryLockError::Error(error)) => return Err(fail(error)),
    }
    file.set_len(0).and_then(|()| file.write_all(holder().as_bytes())).map_err(fail)?;
    Ok(Lock { _file: file })
}

fn holder() -> String {
    let program = std::env::current_exe().ok();
    let program =
        program.as_deref().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
    format!("process {} ({})\n", std::process::id(), program.as_deref().unwrap_or("unknown program"))
}

/// Creates the database file, readable by its owner only, unless it exists. SQLite gives its `-wal` and `-shm` files
/// the same mode.
pub(crate) fn create(database: &Path) -> Result<(), OpenError> {
    let fail = |error| OpenError::Io { path: database.to_owned(), error };
    match private(OpenOptions::new().write(true).create_new(true)).open(database) {
        Ok(_) => sync_directory(database).map_err(fail),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(fail(error)),
    }
}

/// A new file's name is on disk only when its directory was synced; SQLite does that for the log, not for this file.
fn sync_directory(database: &Path) -> io::Result<()> {
    match database.parent() {
        _ if cfg!(not(unix)) => Ok(()),
        Some(directory) if !directory.as_os_str().is_empty() => File::open(directory)?.sync_all(),
        _ => File::open(".")?.sync_all(),
    }
}

/// Whether writing near `database` fails for want of room. SQLite reports ENOSPC as such, but an exceeded quota and
/// some failures to grow a file as a plain write error; so ask the system itself.
pub(crate) fn is_full(database: &Path) -> bool {
    let path = beside(database, ".probe");
    let probe = || {
        let mut file = private(OpenOptions::new().write(true).create(true).truncate(true)).open(&path)?;
        file.write_all(&[0; 64 * 1024])?;
        file.sync_all()
    };
    let result: io::Result<()> = probe();
    // Left behind it would be overwritten by the next probe.
    let _ = std::fs::remove_file(&path);
    result
        .is_err_and(|error| matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
}

fn beside(database: &Path, suffix: &str) -> PathBuf {
    let mut name = database.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

fn private(options: &mut OpenOptions) -> &mut OpenOptions {
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(options, 0o600);
    options
}
