//! TLS in rustls' buffers: for TLS 1.2, and for connections that we made.

use std::cell::RefCell;
use std::fmt;
use std::io::{self, BufRead, Write};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustls::Connection;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::stream::Socket;

/// Bytes read at once: a record.
const READ: usize = 18 * 1024;

thread_local! {
    static INCOMING: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ].into_boxed_slice());
}

/// A socket and rustls' connection on it, its handshake done.
pub(super) struct Buffered {
    socket: Socket,
    connection: Connection,
    /// Bytes that rustls has not got: it takes no more while there is data to read.
    input: Vec<u8>,
    ended: bool,
}

impl fmt::Debug for Buffered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffered").field("socket", &self.socket).finish_non_exhaustive()
    }
}

impl Buffered {
    /// `input` came behind the handshake.
    pub(super) fn new(socket: Socket, connection: Connection, input: Vec<u8>) -> Buffered {
        Buffered { socket, connection, input, ended: false }
    }

    pub(super) fn socket(&self) -> &Socket {
        &self.socket
    }

    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Reads what is there into `buf`: nothing at the end. An end without a closing alert is one too.
    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut reader = self.connection.reader();
            match reader.fill_buf() {
                Ok(data) => {
                    let taken = data.len().min(buf.remaining());
                    buf.put_slice(&data[..taken]);
                    reader.consume(taken);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Poll::Ready(Err(error)),
                Err(_) if self.ended => return Poll::Ready(Ok(())),
                Err(_) => {}
            }
            if self.input.is_empty() {
                ready!(self.fill(cx))?;
            } else {
                let input = std::mem::take(&mut self.input);
                self.feed(cx, &input)?;
            }
        }
    }

    fn fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        INCOMING.with_borrow_mut(|buffer| {
            let mut read = ReadBuf::new(buffer);
            ready!(Pin::new(&mut self.socket).poll_read(cx, &mut read))?;
            if read.filled().is_empty() {
                self.ended = true;
                return Poll::Ready(Ok(()));
            }
            Poll::Ready(self.feed(cx, read.filled()))
        })
    }

    /// Gives rustls what it takes until it has data for us, and keeps the rest.
    fn feed(&mut self, cx: &mut Context<'_>, mut input: &[u8]) -> io::Result<()> {
        while !input.is_empty() && self.connection.wants_read() {
            if self.connection.read_tls(&mut input)? == 0 {
                return Err(io::ErrorKind::InvalidData.into());
            }
            if let Err(error) = self.connection.process_new_packets() {
                // The alert, if the socket takes it.
                let _ = self.poll_send(cx);
                return Err(io::Error::new(io::ErrorKind::InvalidData, error));
            }
        }
        self.input = input.to_vec();
        Ok(())
    }

    pub(super) fn poll_write(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            // As much as its buffer's limit allows.
            let taken = self.connection.writer().write(data)?;
            match self.poll_send(cx) {
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                _ if taken > 0 || data.is_empty() => return Poll::Ready(Ok(taken)),
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(())) => {}
            }
        }
    }

    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.connection.writer().flush()?;
        ready!(self.poll_send(cx))?;
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    pub(super) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Once, however often it is called.
        self.connection.send_close_notify();
        ready!(self.poll_send(cx))?;
        match ready!(Pin::new(&mut self.socket).poll_shutdown(cx)) {
            Err(error) if error.kind() != io::ErrorKind::NotConnected => Poll::Ready(Err(error)),
            _ => Poll::Ready(Ok(())),
        }
    }

    /// Until the socket has taken everything.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.connection.wants_write() {
            let mut writer = Writer { socket: &mut self.socket, cx };
            match self.connection.write_tls(&mut writer) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// A socket as rustls wants it.
struct Writer<'a, 'b> {
    socket: &'a mut Socket,
    cx: &'a mut Context<'b>,
}

fn would_block<T>(poll: Poll<io::Result<T>>) -> io::Result<T> {
    match poll {
        Poll::Ready(outcome) => outcome,
        Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
    }
}

impl Write for Writer<'_, '_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        would_block(Pin::new(&mut *self.socket).poll_write(self.cx, buf))
    }

    fn write_vectored(&mut self, bufs: &[io::IoSlice<'_>]) -> io::Result<usize> {
        would_block(Pin::new(&mut *self.socket).poll_write_vectored(self.cx, bufs))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
