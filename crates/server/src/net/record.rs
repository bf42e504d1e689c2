//! The records of a TLS 1.3 connection that we accepted (RFC 8446 s.5), after its handshake.
//!
//! rustls does the handshake and hands its keys over; aws-lc-rs encrypts. What is left is framing, and done here it needs
//! no buffer while a connection is idle, and no copy and no allocation for a record. Why, and what it must do in return
//! (key updates, limits, alerts): `design/007-transport.md`.

use std::cell::RefCell;
use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use rustls::crypto::cipher::{AeadKey, Iv, Nonce as RecordNonce, make_tls13_aad};
use rustls::crypto::tls13::OkmBlock;
use rustls::{
    AlertDescription, ConnectionTrafficSecrets, ContentType, Error, ExtractedSecrets, InvalidMessage,
    PeerMisbehaved, Tls13CipherSuite,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::stream::{Socket, TLS_WRITE_BUFFER};

/// Type, version and length.
const HEADER: usize = 5;
/// RFC 8446 s.5.1: the most plaintext of a record.
const MOST_PLAIN: usize = 1 << 14;
/// RFC 8446 s.5.2: the most of an encrypted record.
const MOST_SEALED: usize = MOST_PLAIN + 256;
const TAG: usize = 16;
/// What a record adds to its plaintext: header, inner type, tag.
const OVERHEAD: usize = HEADER + 1 + TAG;
/// Bytes read from a socket at once: an incomplete record and two more.
const RAW: usize = 3 * (HEADER + MOST_SEALED);
/// As rustls has it (and BoringSSL): what a peer may send without sending data.
const IDLE_TALK: u8 = 32;

thread_local! {
    // Buffers belong to threads: an idle connection has none.
    static INCOMING: RefCell<Box<[u8]>> = RefCell::new(vec![0; RAW].into_boxed_slice());
    static OUTGOING: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The traffic secrets of both directions, from which the keys of an update come (RFC 8446 s.7.2).
pub(super) struct Secrets {
    pub(super) client: OkmBlock,
    pub(super) server: OkmBlock,
}

/// One connection's records: its socket, two keys, and what is on its way.
pub(super) struct Records {
    socket: Socket,
    suite: &'static Tls13CipherSuite,
    reading: Key,
    writing: Key,
    /// Encrypted bytes that came and are no whole record yet.
    sealed: Vec<u8>,
    /// Data that was decrypted and had no room at the caller's.
    plain: Vec<u8>,
    /// Records that the socket has not taken, up to [`TLS_WRITE_BUFFER`] of plaintext.
    unsent: Vec<u8>,
    /// The first error of reading; it stays.
    failed: Option<Box<Error>>,
    /// The peer sent its closing alert or closed the socket.
    ended: bool,
    /// Our closing alert is behind all data in `unsent`.
    closed: bool,
    /// The peer wants new keys from us too: before the next data (RFC 8446 s.4.6.3).
    owes_update: bool,
    /// Key updates and empty records that the peer may still send before it sends data.
    patience: u8,
}

/// One direction's key, with its generation's secret.
struct Key {
    aead: LessSafeKey,
    iv: Iv,
    seq: u64,
    secret: OkmBlock,
}

impl fmt::Debug for Records {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Records").field("socket", &self.socket).finish_non_exhaustive()
    }
}

/// What a connection begins with after its handshake.
pub(super) struct Beginning {
    pub(super) socket: Socket,
    pub(super) suite: &'static Tls13CipherSuite,
    pub(super) secrets: Secrets,
    pub(super) keys: ExtractedSecrets,
    /// What came behind the handshake.
    pub(super) sealed: Vec<u8>,
    /// The handshake's last records, for the socket.
    pub(super) unsent: Vec<u8>,
}

impl Records {
    pub(super) fn new(beginning: Beginning) -> Result<Records, Error> {
        let Beginning { socket, suite, secrets, keys, sealed, unsent } = beginning;
        let (read_seq, read) = keys.rx;
        let (write_seq, write) = keys.tx;
        Ok(Records {
            socket,
            suite,
            reading: Key::new(read, read_seq, secrets.client)?,
            writing: Key::new(write, write_seq, secrets.server)?,
            sealed,
            plain: Vec::new(),
            unsent,
            failed: None,
            ended: false,
            closed: false,
            owes_update: false,
            patience: IDLE_TALK,
        })
    }

    pub(super) fn socket(&self) -> &Socket {
        &self.socket
    }

    // ---- reading

    /// Reads what is there into `buf`: nothing at the end. An end without a closing alert is one too.
    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.plain.is_empty() {
            let taken = self.plain.len().min(buf.remaining());
            buf.put_slice(&self.plain[..taken]);
            if taken == self.plain.len() {
                self.plain = Vec::new();
            } else {
                self.plain.drain(..taken);
            }
            return Poll::Ready(Ok(()));
        }
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        INCOMING.with_borrow_mut(|raw| {
            let before = buf.filled().len();
            loop {
                if let Some(error) = &self.failed {
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, (**error).clone())));
                }
                if self.ended {
                    return Poll::Ready(Ok(()));
                }
                ready!(self.fill(cx, raw, buf))?;
                if buf.filled().len() > before {
                    return Poll::Ready(Ok(()));
                }
            }
        })
    }

    /// One read from the socket, unless a whole record is there already; then decrypts all whole records.
    fn fill(&mut self, cx: &mut Context<'_>, raw: &mut [u8], buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        // An incomplete record, or what the handshake read beyond its end: shorter than RAW.
        let kept = self.sealed.len();
        let mut filled = kept;
        let incomplete = match header(&self.sealed) {
            Ok(Some(length)) => kept < HEADER + length,
            Ok(None) => true,
            Err(_) => false,
        };
        if incomplete {
            // Read behind the place of what is kept, which is copied only if something came.
            let mut read = ReadBuf::new(&mut raw[kept..]);
            ready!(Pin::new(&mut self.socket).poll_read(cx, &mut read))?;
            if read.filled().is_empty() {
                self.ended = true;
                self.sealed = Vec::new();
                return Poll::Ready(Ok(()));
            }
            filled += read.filled().len();
        }
        raw[..kept].copy_from_slice(&self.sealed);
        let used = match self.open_all(&mut raw[..filled], buf) {
            Ok(used) => used,
            Err(refusal) => {
                self.refuse(cx, refusal);
                filled
            }
        };
        if used == 0 {
            self.sealed.extend_from_slice(&raw[kept..filled]);
        } else if used == filled || self.ended {
            self.sealed = Vec::new();
        } else {
            self.sealed = raw[used..filled].to_vec();
        }
        Poll::Ready(Ok(()))
    }

    /// Decrypts the whole records at the beginning of `raw` and returns their length.
    fn open_all(&mut self, raw: &mut [u8], buf: &mut ReadBuf<'_>) -> Result<usize, Refusal> {
        let mut used = 0;
        while !self.ended {
            let Some(length) = header(&raw[used..])? else { break };
            let end = used + HEADER + length;
            if end > raw.len() {
                break;
            }
            self.open(&mut raw[used + HEADER..end], buf)?;
            used = end;
        }
        Ok(used)
    }

    /// Decrypts one record and does what it says.
    fn open(&mut self, payload: &mut [u8], buf: &mut ReadBuf<'_>) -> Result<(), Refusal> {
        let inner = self.reading.open(payload)?;
        // RFC 8446 s.5.4: the type is the last byte that is not padding.
        let Some(at) = inner.iter().rposition(|byte| *byte != 0) else {
            return Err(Refusal::misbehaved(PeerMisbehaved::IllegalTlsInnerPlaintext));
        };
        let (content, kind) = (&inner[..at], inner[at]);
        if content.len() > MOST_PLAIN {
            return Err(Refusal::oversized());
        }
        match ContentType::from(kind) {
            ContentType::ApplicationData if content.is_empty() => {
                self.spend(PeerMisbehaved::TooManyEmptyFragments)
            }
            ContentType::ApplicationData => {
                self.patience = IDLE_TALK;
                let room = if self.plain.is_empty() { buf.remaining().min(content.len()) } else { 0 };
                buf.put_slice(&content[..room]);
                self.plain.extend_from_slice(&content[room..]);
                Ok(())
            }
            ContentType::Alert => self.alert(content),
            ContentType::Handshake => self.key_update(content),
            _ => Err(Refusal::unexpected("content type")),
        }
    }

    /// RFC 8446 s.6.
    fn alert(&mut self, content: &[u8]) -> Result<(), Refusal> {
        let &[_level, description] = content else {
            return Err(Refusal::new(AlertDescription::DecodeError, InvalidMessage::MessageTooShort));
        };
        match AlertDescription::from(description) {
            AlertDescription::CloseNotify => {
                // What comes behind it is ignored.
                self.ended = true;
                Ok(())
            }
            // A closing alert follows.
            AlertDescription::UserCanceled => self.spend(PeerMisbehaved::TooManyWarningAlertsReceived),
            // Whatever their level says, all others are fatal; they are not answered.
            description => Err(Refusal { alert: None, error: Error::AlertReceived(description) }),
        }
    }

    /// The only message that a client may send after its handshake, because we never ask it for a certificate then.
    /// It ends its record (RFC 8446 s.5.1), and nobody cuts five bytes in two.
    fn key_update(&mut self, content: &[u8]) -> Result<(), Refusal> {
        let &[24, 0, 0, 1, request] = content else {
            return Err(Refusal::unexpected("handshake message after the handshake"));
        };
        if request > 1 {
            return Err(Refusal::new(AlertDescription::IllegalParameter, InvalidMessage::InvalidKeyUpdate));
        }
        self.spend(PeerMisbehaved::TooManyKeyUpdateRequests)?;
        self.reading.update(self.suite).map_err(Refusal::internal)?;
        self.owes_update |= request == 1;
        Ok(())
    }

    /// A record that brings no data. A peer that sends only such makes us work for nothing.
    fn spend(&mut self, limit: PeerMisbehaved) -> Result<(), Refusal> {
        self.patience = self.patience.checked_sub(1).ok_or_else(|| Refusal::misbehaved(limit))?;
        Ok(())
    }

    /// Reading has failed for good: the peer is told, if the socket takes it at once.
    fn refuse(&mut self, cx: &mut Context<'_>, refusal: Refusal) {
        self.failed = Some(Box::new(refusal.error));
        if let Some(alert) = refusal.alert.filter(|_| !self.closed) {
            const FATAL: u8 = 2;
            let mut unsent = std::mem::take(&mut self.unsent);
            if self.seal(ContentType::Alert, &[FATAL, alert.into()], &mut unsent).is_ok() {
                self.unsent = unsent;
                let _ = self.poll_flush(cx);
            }
        }
        self.closed = true;
    }

    // ---- writing

    /// Encrypts as much of `data` as may wait and hands it to the socket in one call.
    pub(super) fn poll_write(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        if self.closed {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if data.is_empty() {
            return Poll::Ready(Ok(0));
        }
        while self.unsent.len() >= TLS_WRITE_BUFFER {
            ready!(self.send_unsent(cx))?;
        }
        let taken = data.len().min(TLS_WRITE_BUFFER - self.unsent.len());
        if !self.unsent.is_empty() {
            // Behind what waits, and all in one call.
            let mut unsent = std::mem::take(&mut self.unsent);
            let sealed = self.seal_data(&data[..taken], &mut unsent);
            self.unsent = unsent;
            sealed.map_err(io::Error::other)?;
            return match self.send_unsent(cx) {
                Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
                _ => Poll::Ready(Ok(taken)),
            };
        }
        OUTGOING.with_borrow_mut(|out| {
            out.clear();
            self.seal_data(&data[..taken], out).map_err(io::Error::other)?;
            let sent = match Pin::new(&mut self.socket).poll_write(cx, out) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(sent)) => sent,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => 0,
            };
            if sent < out.len() {
                self.unsent = out[sent..].to_vec();
            }
            Poll::Ready(Ok(taken))
        })
    }

    /// Until the socket has taken everything.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.unsent.is_empty() {
            ready!(self.send_unsent(cx))?;
        }
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    /// Sends the closing alert behind all data, then closes the socket's writing side.
    pub(super) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.closed {
            const WARNING: u8 = 1;
            self.closed = true;
            let mut unsent = std::mem::take(&mut self.unsent);
            let alert = [WARNING, AlertDescription::CloseNotify.into()];
            let sealed = self.seal(ContentType::Alert, &alert, &mut unsent);
            self.unsent = unsent;
            sealed.map_err(io::Error::other)?;
        }
        ready!(self.poll_flush(cx))?;
        match ready!(Pin::new(&mut self.socket).poll_shutdown(cx)) {
            Err(error) if error.kind() != io::ErrorKind::NotConnected => Poll::Ready(Err(error)),
            _ => Poll::Ready(Ok(())),
        }
    }

    /// One call. Ready when the socket took some.
    fn send_unsent(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let sent = ready!(Pin::new(&mut self.socket).poll_write(cx, &self.unsent))?;
        if sent == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        if sent == self.unsent.len() {
            self.unsent = Vec::new();
        } else {
            self.unsent.drain(..sent);
        }
        Poll::Ready(Ok(()))
    }

    fn seal_data(&mut self, data: &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
        for chunk in data.chunks(MOST_PLAIN) {
            // RFC 8446 s.5.5: a key is replaced before it has protected too much. The update itself is its last record.
            let worn_out = self.writing.seq + 1 >= self.suite.common.confidentiality_limit;
            if worn_out || self.owes_update {
                const NOT_REQUESTED: u8 = 0;
                self.seal(ContentType::Handshake, &[24, 0, 0, 1, NOT_REQUESTED], out)?;
                self.writing.update(self.suite)?;
                self.owes_update = false;
            }
            self.seal(ContentType::ApplicationData, chunk, out)?;
        }
        Ok(())
    }

    /// Appends one record to `out`.
    fn seal(&mut self, kind: ContentType, content: &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
        let start = out.len();
        out.resize(start + OVERHEAD + content.len(), 0);
        self.writing.seal(kind, content, &mut out[start..])
    }
}

impl Key {
    fn new(secrets: ConnectionTrafficSecrets, seq: u64, secret: OkmBlock) -> Result<Key, Error> {
        let (algorithm, key, iv): (_, AeadKey, Iv) = match secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (&CHACHA20_POLY1305, key, iv),
            _ => return Err(Error::General("an unknown cipher".into())),
        };
        let key = UnboundKey::new(algorithm, key.as_ref()).map_err(|_| Error::EncryptError)?;
        Ok(Key { aead: LessSafeKey::new(key), iv, seq, secret })
    }

    /// RFC 8446 s.7.2 and s.7.3: the next generation.
    fn update(&mut self, suite: &'static Tls13CipherSuite) -> Result<(), Error> {
        let mut secret = [0; OkmBlock::MAX_LEN];
        let secret = &mut secret[..self.secret.as_ref().len()];
        expand(suite, &self.secret, b"traffic upd", secret)?;
        let next = OkmBlock::new(secret);
        secret.fill(0);
        let algorithm = self.aead.algorithm();
        let mut key = [0; 32];
        let key = &mut key[..algorithm.key_len()];
        expand(suite, &next, b"key", key)?;
        let mut iv = [0; 12];
        expand(suite, &next, b"iv", &mut iv)?;
        let unbound = UnboundKey::new(algorithm, key).map_err(|_| Error::EncryptError);
        key.fill(0);
        *self = Key { aead: LessSafeKey::new(unbound?), iv: Iv::from(iv), seq: 0, secret: next };
        Ok(())
    }

    /// The next record's nonce (RFC 8446 s.5.3): used for one record only.
    fn nonce(&mut self) -> Result<Nonce, Error> {
        let nonce = RecordNonce::new(&self.iv, self.seq);
        self.seq = self.seq.checked_add(1).ok_or(Error::EncryptError)?;
        Ok(Nonce::assume_unique_for_key(nonce.0))
    }

    fn open<'a>(&mut self, payload: &'a mut [u8]) -> Result<&'a [u8], Refusal> {
        let aad = Aad::from(make_tls13_aad(payload.len()));
        let nonce = self.nonce().map_err(Refusal::internal)?;
        match self.aead.open_in_place(nonce, aad, payload) {
            Ok(inner) => Ok(inner),
            Err(_) => Err(Refusal::new(AlertDescription::BadRecordMac, Error::DecryptError)),
        }
    }

    /// Writes a record of `content` to `out`, which has just its length.
    fn seal(&mut self, kind: ContentType, content: &[u8], out: &mut [u8]) -> Result<(), Error> {
        let sealed = out.len() - HEADER;
        let aad = make_tls13_aad(sealed);
        out[..HEADER].copy_from_slice(&aad);
        let (body, rest) = out[HEADER..].split_at_mut(content.len());
        let nonce = self.nonce()?;
        self.aead
            .seal_out_of_place_scatter(nonce, Aad::from(aad), content, body, &[kind.into()], rest)
            .map_err(|_| Error::EncryptError)
    }
}

/// HKDF-Expand-Label of RFC 8446 s.7.1, without a context.
fn expand(suite: &Tls13CipherSuite, secret: &OkmBlock, label: &[u8], out: &mut [u8]) -> Result<(), Error> {
    const PREFIX: &[u8] = b"tls13 ";
    let length = u16::try_from(out.len()).map_err(|_| Error::EncryptError)?.to_be_bytes();
    let label_length = u8::try_from(PREFIX.len() + label.len()).map_err(|_| Error::EncryptError)?;
    suite
        .hkdf_provider
        .expander_for_okm(secret)
        .expand_slice(&[&length, &[label_length], PREFIX, label, &[0]], out)
        .map_err(|_| Error::EncryptError)
}

/// The length of the record at the beginning of `raw`; None if its header is not complete. The version is not looked at
/// (RFC 8446 s.5.1).
fn header(raw: &[u8]) -> Result<Option<usize>, Refusal> {
    let &[kind, _, _, high, low, ..] = raw else { return Ok(None) };
    if ContentType::from(kind) != ContentType::ApplicationData {
        // After the handshake everything is encrypted.
        return Err(Refusal::unexpected("record in the clear"));
    }
    let length = usize::from(u16::from_be_bytes([high, low]));
    if length > MOST_SEALED {
        return Err(Refusal::oversized());
    }
    Ok(Some(length))
}

/// Why reading ends, and what the peer is told.
#[derive(Debug)]
struct Refusal {
    alert: Option<AlertDescription>,
    error: Error,
}

impl Refusal {
    fn new(alert: AlertDescription, error: impl Into<Error>) -> Refusal {
        Refusal { alert: Some(alert), error: error.into() }
    }

    fn unexpected(what: &'static str) -> Refusal {
        Refusal::new(AlertDescription::UnexpectedMessage, InvalidMessage::UnexpectedMessage(what))
    }

    fn misbehaved(how: PeerMisbehaved) -> Refusal {
        Refusal::new(AlertDescription::UnexpectedMessage, how)
    }

    fn oversized() -> Refusal {
        Refusal::new(AlertDescription::RecordOverflow, Error::PeerSentOversizedRecord)
    }

    fn internal(error: Error) -> Refusal {
        Refusal::new(AlertDescription::InternalError, error)
    }
}
