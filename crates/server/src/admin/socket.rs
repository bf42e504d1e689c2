//! The control socket: how the command line reaches a running server.
//!
//! A Unix socket in the data directory, mode 0600, for root and the server's own user. One JSON object on a line is a
//! request, one JSON object on a line is its answer. Requests, answers, connections and waiting times are bounded.

use std::fs::{self, File, Permissions};
use std::future::Future;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::actor::Actor;
use super::{Admin, OpError, Operation, Outcome};

/// The longest request: a file of blocks.
const REQUEST_BYTES: u64 = 8 * 1024 * 1024;
/// The longest answer that a client reads.
const ANSWER_BYTES: u64 = 16 * 1024 * 1024;
/// Connections at once; more wait in the kernel's queue.
const CONNECTIONS: usize = 16;
/// How long a connection may be silent.
const SILENCE: Duration = Duration::from_secs(30);

/// Why there is no control socket.
#[derive(Debug, Error)]
pub enum BindError {
    /// The operator's: a second server on the same data.
    #[error("another server is running on {0}: stop it first, or give this one its own data_dir")]
    Running(PathBuf),
    /// The operator's: something else has its name.
    #[error("{0} is not a socket: remove it")]
    NotASocket(PathBuf),
    /// The system's.
    #[error("{path}: {error}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}

/// A bound control socket.
#[derive(Debug)]
pub struct ControlSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl ControlSocket {
    /// Binds `path`, whose directory must exist. Needs a tokio runtime. Open the database first: its lock decides
    /// which of two servers that start at once may go on.
    pub fn bind(path: &Path) -> Result<ControlSocket, BindError> {
        let failed = |error| BindError::Io { path: path.to_owned(), error };
        match fs::symlink_metadata(path) {
            Ok(found) if !found.file_type().is_socket() => {
                return Err(BindError::NotASocket(path.to_owned()));
            }
            Ok(_) if short(path, |path| std::os::unix::net::UnixStream::connect(path)).is_ok() => {
                return Err(BindError::Running(path.parent().unwrap_or(path).to_owned()));
            }
            // Nobody answers: it was left by a server that was killed.
            Ok(_) => fs::remove_file(path).map_err(failed)?,
            Err(_) => {}
        }
        let listener = short(path, |path| UnixListener::bind(path)).map_err(failed)?;
        fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(failed)?;
        Ok(ControlSocket { listener, path: path.to_owned() })
    }

    /// Answers requests until `stop` is ready; requests under way are finished.
    pub async fn serve<A: Admin>(self, admin: Arc<A>, stop: impl Future<Output = ()>) {
        let room = Arc::new(Semaphore::new(CONNECTIONS));
        let accept = async {
            loop {
                let place =
                    room.clone().acquire_owned().await.expect("invariant: the semaphore is never closed");
                match self.listener.accept().await {
                    Ok((stream, _)) => {
                        let admin = admin.clone();
                        tokio::spawn(async move {
                            let _place = place;
                            if let Err(error) = converse(stream, &*admin).await {
                                tracing::debug!("control connection: {error}");
                            }
                        });
                    }
                    Err(error) => {
                        tracing::warn!("control socket: {error}");
                        tokio::time::sleep(Duration::from_secs(1)).await;
                    }
                }
            }
        };
        tokio::select! {
            () = stop => {}
            () = accept => {}
        }
        // Who connects from now on shall find no server; who is being answered gets the answer.
        let _ = fs::remove_file(&self.path);
        let all = u32::try_from(CONNECTIONS).unwrap_or(u32::MAX);
        let _ = timeout(Duration::from_secs(5), room.acquire_many(all)).await;
    }
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Answer {
    Ok(Outcome),
    Failed(OpError),
}

async fn converse<A: Admin>(mut stream: UnixStream, admin: &A) -> io::Result<()> {
    let peer = stream.peer_cred()?;
    if !allowed(peer.uid(), own_uid()?) {
        tracing::warn!(
            uid = peer.uid(),
            "control socket: refused a user who is neither root nor the server's own"
        );
        let text = "only root and the server's own user may use the control socket";
        return answer(&mut stream, &Answer::Failed(OpError::NotPossible(text.into()))).await;
    }
    let (reader, mut writer) = stream.split();
    let mut reader = BufReader::new(reader);
    loop {
        let mut line = Vec::new();
        let mut bounded = (&mut reader).take(REQUEST_BYTES);
        match timeout(SILENCE, bounded.read_until(b'\n', &mut line)).await {
            Ok(read) => read?,
            Err(_) => return Ok(()),
        };
        if line.is_empty() {
            return Ok(());
        }
        if line.last() != Some(&b'\n') {
            let text = format!("longer than {REQUEST_BYTES} bytes, or not finished by a newline");
            return answer(&mut writer, &Answer::Failed(OpError::BadRequest(text))).await;
        }
        let outcome = match serde_json::from_slice::<Operation>(&line) {
            Ok(operation) => admin.run(&Actor::command_line(), operation).await,
            Err(error) => Err(OpError::BadRequest(without_values(&error))),
        };
        let outcome = match outcome {
            Ok(outcome) => Answer::Ok(outcome),
            Err(error) => Answer::Failed(error),
        };
        answer(&mut writer, &outcome).await?;
    }
}

/// A JSON error without what was in the request: there may be a password in it.
fn without_values(error: &serde_json::Error) -> String {
    format!("{:?} error in line {} column {}", error.classify(), error.line(), error.column())
}

async fn answer(writer: &mut (impl AsyncWriteExt + Unpin), answer: &Answer) -> io::Result<()> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    timeout(SILENCE, writer.write_all(&line)).await.map_err(|_| io::ErrorKind::TimedOut)?
}

fn allowed(peer: u32, own: u32) -> bool {
    peer == 0 || peer == own
}

/// Our user: who owns what we are in /proc. (The call for it is not in the standard library.)
fn own_uid() -> io::Result<u32> {
    Ok(fs::metadata("/proc/self")?.uid())
}

/// Unix sockets have paths of at most 107 bytes; a longer one is named through its open directory.
fn short<T>(path: &Path, run: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
    if path.as_os_str().len() < 108 {
        return run(path);
    }
    let directory = File::open(path.parent().unwrap_or(Path::new(".")))?;
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    run(&Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name))
}

/// Why a request had no answer.
#[derive(Debug, Error)]
pub enum CallError {
    /// Nobody listens.
    #[error("the server is not running (no answer on {0})")]
    NotRunning(PathBuf),
    /// The operator's: another user.
    #[error("{0}: permission denied: run this as root or as the server's user")]
    Denied(PathBuf),
    /// The connection broke.
    #[error("{path}: {error}")]
    Io {
        /// The socket.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A server of another version, as a rule.
    #[error("the server's answer was not understood: is it of another version? {0}")]
    Answer(String),
    /// The server answered: no.
    #[error(transparent)]
    Refused(#[from] OpError),
}

/// The client side: a connection to a running server.
#[derive(Debug)]
pub struct Control {
    stream: BufReader<UnixStream>,
    path: PathBuf,
}

impl Control {
    /// Connects to the socket at `path`.
    pub async fn connect(path: &Path) -> Result<Control, CallError> {
        let stream = short(path, |path| {
            let stream = std::os::unix::net::UnixStream::connect(path)?;
            stream.set_nonblocking(true)?;
            UnixStream::from_std(stream)
        });
        match stream {
            Ok(stream) => Ok(Control { stream: BufReader::new(stream), path: path.to_owned() }),
            Err(error) => Err(match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                    CallError::NotRunning(path.to_owned())
                }
                io::ErrorKind::PermissionDenied => CallError::Denied(path.to_owned()),
                _ => CallError::Io { path: path.to_owned(), error },
            }),
        }
    }

    /// Asks for one operation and waits for its end.
    pub async fn call(&mut self, operation: &Operation) -> Result<Outcome, CallError> {
        let path = self.path.clone();
        let failed = |error| CallError::Io { path: path.clone(), error };
        let mut line = serde_json::to_vec(operation).map_err(|error| CallError::Answer(error.to_string()))?;
        line.push(b'\n');
        self.stream.get_mut().write_all(&line).await.map_err(failed)?;
        let mut line = Vec::new();
        (&mut self.stream).take(ANSWER_BYTES).read_until(b'\n', &mut line).await.map_err(failed)?;
        if line.is_empty() {
            return Err(failed(io::ErrorKind::UnexpectedEof.into()));
        }
        match serde_json::from_slice(&line) {
            Ok(Answer::Ok(outcome)) => Ok(outcome),
            Ok(Answer::Failed(error)) => Err(CallError::Refused(error)),
            Err(error) => Err(CallError::Answer(error.to_string())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Password;
    use super::*;

    struct Fake;

    impl Admin for Fake {
        async fn run(&self, _actor: &Actor, operation: Operation) -> Result<Outcome, OpError> {
            match operation {
                Operation::UserAdd { address, password } if password.expose() == "secret" => {
                    Ok(Outcome::Done { text: format!("{address} was added") })
                }
                Operation::UserAdd { address, .. } => Err(OpError::Exists(address)),
                Operation::Status => Ok(Outcome::Status(Box::default())),
                _ => Err(OpError::Closing),
            }
        }
    }

    struct Running {
        directory: tempfile::TempDir,
        stop: tokio::sync::oneshot::Sender<()>,
        server: tokio::task::JoinHandle<()>,
    }

    impl Running {
        fn start(directory: tempfile::TempDir) -> Running {
            let socket = ControlSocket::bind(&directory.path().join("control.sock")).unwrap();
            let (stop, stopped) = tokio::sync::oneshot::channel();
            let server = tokio::spawn(socket.serve(Arc::new(Fake), async {
                let _ = stopped.await;
            }));
            Running { directory, stop, server }
        }

        fn path(&self) -> PathBuf {
            self.directory.path().join("control.sock")
        }
    }

    #[tokio::test]
    async fn a_round_trip() {
        let running = Running::start(tempfile::tempdir().unwrap());
        let mode = fs::metadata(running.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let mut control = Control::connect(&running.path()).await.unwrap();
        let add = |password: &str| Operation::UserAdd {
            address: "romeo@example.org".into(),
            password: Password::new(password),
        };
        let outcome = control.call(&add("secret")).await.unwrap();
        assert_eq!(outcome, Outcome::Done { text: "romeo@example.org was added".into() });
        let error = control.call(&add("other")).await.unwrap_err();
        assert!(matches!(error, CallError::Refused(OpError::Exists(_))), "{error}");
        assert!(matches!(control.call(&Operation::Status).await.unwrap(), Outcome::Status(_)));

        running.stop.send(()).unwrap();
        drop(control);
        running.server.await.unwrap();
        let error = Control::connect(&running.directory.path().join("control.sock")).await.unwrap_err();
        assert!(matches!(error, CallError::NotRunning(_)), "{error}");
    }

    #[tokio::test]
    async fn bad_requests_are_answered_without_repeating_them() {
        let running = Running::start(tempfile::tempdir().unwrap());
        for request in
            ["{\"op\":\"user-add\",\"password\":\"hunter2\"}\n", "hunter2\n", &"x".repeat(9_000_000)]
        {
            let mut stream = UnixStream::connect(running.path()).await.unwrap();
            // The server may close before the last byte of an endless line is written.
            let _ = stream.write_all(request.as_bytes()).await;
            let mut answer = String::new();
            let _ = BufReader::new(stream).read_line(&mut answer).await;
            assert!(answer.contains("bad-request"), "{answer}");
            assert!(!answer.contains("hunter2"), "{answer}");
        }
    }

    #[tokio::test]
    async fn a_second_server_is_refused_and_a_dead_ones_socket_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control.sock");
        let first = ControlSocket::bind(&path).unwrap();
        assert!(matches!(ControlSocket::bind(&path), Err(BindError::Running(_))));
        // As after a kill: nobody listens, the socket is still there.
        drop(first);
        assert!(path.exists());
        let again = ControlSocket::bind(&path).unwrap();
        drop(again);
        fs::remove_file(&path).unwrap();
        fs::write(&path, "notes").unwrap();
        assert!(matches!(ControlSocket::bind(&path), Err(BindError::NotASocket(_))));
        assert_eq!(fs::read_to_string(&path).unwrap(), "notes");
    }

    #[tokio::test]
    async fn long_paths_work() {
        let directory = tempfile::Builder::new().prefix(&"long".repeat(40)).tempdir().unwrap();
        let running = Running::start(directory);
        assert!(running.path().as_os_str().len() > 150);
        let mut control = Control::connect(&running.path()).await.unwrap();
        assert!(control.call(&Operation::Status).await.is_ok());
    }

    #[test]
    fn root_and_the_own_user_are_allowed() {
        assert!(allowed(0, 1000));
        assert!(allowed(1000, 1000));
        assert!(!allowed(1001, 1000));
        assert!(!allowed(1001, 0));
    }
}
