//! A socket of the system: TCP or unix.

use std::{
    io::{self, ErrorKind},
    mem::MaybeUninit,
    net::TcpStream as StdTcpStream,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream as StdUnixStream,
    },
    task::{Context, Poll, ready},
};

use futures_util::FutureExt as _;
use socket2::SockRef;
use tokio::{
    io::{Interest, ReadBuf, Ready},
    net::{TcpStream, UnixStream},
};

/// An accepted connection that is not yet registered with the runtime that will serve it.
#[derive(Debug)]
pub(crate) enum Accepted {
    Tcp(StdTcpStream),
    Unix(StdUnixStream),
}

/// A connection registered with the runtime that serves it. It can be shared.
#[derive(Debug)]
pub(crate) enum RawStream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl RawStream {
    /// Registers a connection with the current runtime.
    ///
    /// # Errors
    /// When the registration fails.
    pub(crate) fn new(accepted: Accepted) -> io::Result<Self> {
        Ok(match accepted {
            Accepted::Tcp(stream) => {
                let stream = TcpStream::from_std(stream)?;
                // Low latency matters more than the few packets saved. The connection works also if this fails.
                let _ = stream.set_nodelay(true);
                Self::Tcp(stream)
            }
            Accepted::Unix(stream) => Self::Unix(UnixStream::from_std(stream)?),
        })
    }

    /// Peeks at the first byte from the peer. `None` if the peer has closed its side, or for a unix socket, which
    /// tokio cannot peek at.
    ///
    /// # Errors
    /// When the connection breaks.
    pub(crate) async fn first_byte(&self) -> io::Result<Option<u8>> {
        let Self::Tcp(stream) = self else { return Ok(None) };
        let mut byte = [0];
        let count = stream.peek(&mut byte).await?;
        Ok(byte.first().copied().filter(|_| count > 0))
    }

    /// Reads into `buffer`, like `AsyncRead`, but through a shared reference.
    #[inline]
    pub(crate) fn poll_read(
        &self,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        loop {
            ready!(self.poll_read_ready(cx))?;
            let result = self.try_io(Interest::READABLE, || {
                let count = self.try_read_buf(buffer)?;
                // If the buffer is not full, nothing more has arrived. Reporting that to tokio saves the system call
                // that would find it out at the next read.
                let is_drained = count > 0 && buffer.remaining() > 0;
                if is_drained { Err(ErrorKind::WouldBlock.into()) } else { Ok(()) }
            });
            match result {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if buffer.filled().len() > before {
                        return Poll::Ready(Ok(()));
                    }
                }
                result => return Poll::Ready(result),
            }
        }
    }

    /// Writes when the socket is writable.
    #[inline]
    pub(crate) fn poll_write(
        &self,
        cx: &mut Context<'_>,
        write: impl Fn(&Self) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.poll_write_ready(cx))?;
            match write(self) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    }

    /// Returns 1 if a byte can be read, and 0 if the peer has closed its side.
    ///
    /// # Errors
    /// [`ErrorKind::WouldBlock`] if nothing has arrived yet; another error if the connection is broken.
    pub(crate) fn peek_now(&self) -> io::Result<usize> {
        let mut byte = [MaybeUninit::uninit()];
        self.try_io(Interest::READABLE, || SockRef::from(self).peek(&mut byte))
    }

    /// Whether the peer is known to have closed its side, even if there are bytes left to read.
    pub(crate) fn is_read_closed(&self) -> bool {
        let ready = match self {
            Self::Tcp(stream) => stream.ready(Interest::READABLE).now_or_never(),
            Self::Unix(stream) => stream.ready(Interest::READABLE).now_or_never(),
        };
        ready.is_some_and(|ready| ready.is_ok_and(Ready::is_read_closed))
    }

    #[inline]
    pub(crate) fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(stream) => stream.poll_read_ready(cx),
            Self::Unix(stream) => stream.poll_read_ready(cx),
        }
    }

    #[inline]
    fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(stream) => stream.poll_write_ready(cx),
            Self::Unix(stream) => stream.poll_write_ready(cx),
        }
    }

    #[inline]
    fn try_io<R>(
        &self,
        interest: Interest,
        attempt: impl FnOnce() -> io::Result<R>,
    ) -> io::Result<R> {
        match self {
            Self::Tcp(stream) => stream.try_io(interest, attempt),
            Self::Unix(stream) => stream.try_io(interest, attempt),
        }
    }

    #[inline]
    fn try_read_buf(&self, buffer: &mut ReadBuf<'_>) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.try_read_buf(buffer),
            Self::Unix(stream) => stream.try_read_buf(buffer),
        }
    }

    pub(crate) fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.try_write(bytes),
            Self::Unix(stream) => stream.try_write(bytes),
        }
    }

    pub(crate) fn try_write_vectored(&self, slices: &[io::IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.try_write_vectored(slices),
            Self::Unix(stream) => stream.try_write_vectored(slices),
        }
    }
}

impl AsFd for RawStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Unix(stream) => stream.as_fd(),
        }
    }
}
