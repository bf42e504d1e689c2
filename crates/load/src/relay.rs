//! The relay of `floor`: the leanest honest forwarder of TLS records there is.
//!
//! One thread, epoll, edge-triggered. Both ends of a pair name its number in their first line. From then on what one
//! sends is decrypted, encrypted and written to the other: each record of its own in a write of its own, or, coalesced,
//! all that was read at once. Nothing is parsed, nothing is routed, nothing is kept. A server can't be cheaper than
//! this with the same TLS library and the same system calls for each message.

use std::collections::HashMap;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use rustls::crypto::aws_lc_rs;
use rustls::{ServerConfig, ServerConnection};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::error::LoadError;

const LISTENER: Token = Token(usize::MAX);
const READ: usize = 64 * 1024;
/// Said to both ends when they have found each other.
const JOINED: &[u8] = b"<joined/>";

/// Serves until the process is killed or its standard input ends, which it does with the parent.
pub(crate) fn run(coalesce: bool) -> Result<(), LoadError> {
    let failed = |error: io::Error| LoadError::Machine(format!("the relay: {error}"));
    let listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).map_err(failed)?;
    writeln!(io::stdout(), "{}", listener.local_addr().map_err(failed)?).map_err(failed)?;
    io::stdout().flush().map_err(failed)?;
    std::thread::spawn(|| {
        // Only its end matters.
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        std::process::exit(0);
    });
    let mut relay = Relay {
        poll: Poll::new().map_err(failed)?,
        listener,
        config: Arc::new(config()?),
        ends: Vec::new(),
        alone: HashMap::new(),
        coalesce,
        raw: vec![0; READ],
        plain: vec![0; READ],
    };
    relay.serve().map_err(failed)
}

fn config() -> Result<ServerConfig, LoadError> {
    let failed =
        |error: &dyn std::fmt::Display| LoadError::Machine(format!("the relay's certificate: {error}"));
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(|error| failed(&error))?;
    let certificate = rcgen::CertificateParams::new(vec!["floor.localhost".to_owned()])
        .and_then(|parameters| parameters.self_signed(&key))
        .map_err(|error| failed(&error))?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(LoadError::Tls)?
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .map_err(LoadError::Tls)?;
    config.alpn_protocols = vec![b"xmpp-client".to_vec()];
    Ok(config)
}

struct Relay {
    poll: Poll,
    listener: TcpListener,
    config: Arc<ServerConfig>,
    ends: Vec<Option<End>>,
    /// Ends whose other has not come yet, by number of the pair.
    alone: HashMap<u64, usize>,
    coalesce: bool,
    raw: Vec<u8>,
    plain: Vec<u8>,
}

/// One connection.
struct End {
    tcp: TcpStream,
    tls: ServerConnection,
    /// The first line, until it is complete.
    line: Vec<u8>,
    peer: Option<usize>,
}

impl Relay {
    fn serve(&mut self) -> io::Result<()> {
        self.poll.registry().register(&mut self.listener, LISTENER, Interest::READABLE)?;
        let mut events = Events::with_capacity(1024);
        loop {
            match self.poll.poll(&mut events, None) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => other?,
            }
            for event in &events {
                match event.token() {
                    LISTENER => self.accept()?,
                    Token(number) => {
                        // An end that breaks is dropped; the load generator finds out by itself.
                        let done = self.ready(number, event.is_readable());
                        if done.is_err() || event.is_read_closed() {
                            self.ends[number] = None;
                        }
                    }
                }
            }
        }
    }

    fn accept(&mut self) -> io::Result<()> {
        loop {
            let mut tcp = match self.listener.accept() {
                Ok((tcp, _)) => tcp,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            };
            tcp.set_nodelay(true)?;
            let token = Token(self.ends.len());
            self.poll.registry().register(&mut tcp, token, Interest::READABLE | Interest::WRITABLE)?;
            let mut tls = ServerConnection::new(self.config.clone()).map_err(io::Error::other)?;
            tls.set_buffer_limit(None);
            self.ends.push(Some(End { tcp, tls, line: Vec::new(), peer: None }));
        }
    }

    fn ready(&mut self, number: usize, readable: bool) -> io::Result<()> {
        let Some(end) = &mut self.ends[number] else { return Ok(()) };
        if end.tls.wants_write() {
            end.flush()?;
        }
        if !readable {
            return Ok(());
        }
        loop {
            let Some(end) = &mut self.ends[number] else { return Ok(()) };
            let read = match end.tcp.read(&mut self.raw) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            };
            self.forward(number, read)?;
            // epoll(7): a short read has drained a stream socket, so another would be in vain.
            if read < self.raw.len() {
                return Ok(());
            }
        }
    }

    /// Takes in the first `read` bytes of the buffer.
    fn forward(&mut self, number: usize, read: usize) -> io::Result<()> {
        let mut rest = 0;
        while rest < read {
            let Some(end) = &mut self.ends[number] else { return Ok(()) };
            let mut raw = &self.raw[rest..read];
            let before = raw.len();
            end.tls.read_tls(&mut raw)?;
            rest += before - raw.len();
            let state = end.tls.process_new_packets().map_err(io::Error::other)?;
            if end.tls.wants_write() {
                end.flush()?;
            }
            if state.plaintext_bytes_to_read() > 0 {
                match end.peer {
                    Some(peer) => self.pass_on(number, peer)?,
                    None => self.join(number)?,
                }
            }
        }
        let peer = self.ends[number].as_ref().and_then(|end| end.peer);
        if self.coalesce
            && let Some(peer) = peer
            && let Some(other) = &mut self.ends[peer]
        {
            other.flush()?;
        }
        Ok(())
    }

    fn pass_on(&mut self, number: usize, peer: usize) -> io::Result<()> {
        let Ok([Some(end), Some(other)]) = self.ends.get_disjoint_mut([number, peer]) else { return Ok(()) };
        if self.coalesce {
            loop {
                let read = match end.tls.reader().read(&mut self.plain) {
                    Ok(read) if read > 0 => read,
                    Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
                    _ => return Ok(()),
                };
                other.tls.writer().write_all(&self.plain[..read])?;
            }
        }
        loop {
            let length = {
                let chunk = match end.tls.reader().into_first_chunk() {
                    Ok(chunk) if !chunk.is_empty() => chunk,
                    Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
                    _ => return Ok(()),
                };
                // What one record brought.
                other.tls.writer().write_all(chunk)?;
                chunk.len()
            };
            std::io::BufRead::consume(&mut end.tls.reader(), length);
            other.flush()?;
        }
    }

    /// Reads the first line and looks for the other end.
    fn join(&mut self, number: usize) -> io::Result<()> {
        let Some(end) = &mut self.ends[number] else { return Ok(()) };
        let read = end.tls.reader().read(&mut self.plain)?;
        end.line.extend_from_slice(&self.plain[..read]);
        if !end.line.ends_with(b"\n") {
            return if end.line.len() < 32 { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) };
        }
        let line = std::str::from_utf8(&end.line).map_err(io::Error::other)?;
        let pair: u64 = line.trim().parse().map_err(io::Error::other)?;
        end.line = Vec::new();
        let Some(peer) = self.alone.remove(&pair) else {
            self.alone.insert(pair, number);
            return Ok(());
        };
        for (one, other) in [(number, peer), (peer, number)] {
            if let Some(end) = &mut self.ends[one] {
                end.peer = Some(other);
                end.tls.writer().write_all(JOINED)?;
                end.flush()?;
            }
        }
        Ok(())
    }
}

impl End {
    /// Writes what the socket takes; the rest goes when it is ready again.
    fn flush(&mut self) -> io::Result<()> {
        while self.tls.wants_write() {
            match self.tls.write_tls(&mut Socket(&mut self.tcp)) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// One piece goes by the plain call, which is cheaper.
struct Socket<'a>(&'a mut TcpStream);

impl io::Write for Socket<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn write_vectored(&mut self, parts: &[io::IoSlice<'_>]) -> io::Result<usize> {
        match parts {
            [one] => self.0.write(one),
            _ => self.0.write_vectored(parts),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
