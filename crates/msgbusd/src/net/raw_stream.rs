//! A connection as the system gives it: TCP, or a unix socket.

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

/// A connection that no runtime has yet: it belongs to the one that will serve it.
#[derive(Debug)]
pub(crate) enum Accepted {
    Tcp(StdTcpStream),
    Unix(StdUnixStream),
}

/// A connection on the runtime that serves it, to be used by several at a time.
#[derive(Debug)]
pub(crate) enum RawStream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl RawStream {
    /// Ties a connection to the runtime that calls this.
    ///
    /// # Errors
    /// When the system refuses.
    pub(crate) fn new(accepted: Accepted) -> io::Result<Self> {
        Ok(match accepted {
            Accepted::Tcp(stream) => {
                let stream = TcpStream::from_std(stream)?;
                // Latency is worth more than the few packets saved; a socket that refuses still works.
                let _ = stream.set_nodelay(true);
                Self::Tcp(stream)
            }
            Accepted::Unix(stream) => Self::Unix(UnixStream::from_std(stream)?),
        })
    }

    /// The first byte from the peer, which stays to be read. `None` when there will be none, or where it
    /// cannot be seen beforehand, as on a unix socket.
    ///
    /// # Errors
    /// When the connection breaks.
    pub(crate) async fn first_byte(&self) -> io::Result<Option<u8>> {
        let Self::Tcp(stream) = self else { return Ok(None) };
        let mut byte = [0];
        let count = stream.peek(&mut byte).await?;
        Ok(byte.first().copied().filter(|_| count > 0))
    }

    /// As the system's own stream, which wants to be the only one.
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
                // Where there is room left, nothing more has come: to say so saves the call that would
                // find it out the next time.
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

    /// Writes when the system says that there is room.
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

    /// How many bytes there are to be read, 1 at most; none when the peer has closed its side.
    ///
    /// # Errors
    /// [`ErrorKind::WouldBlock`] when there are none yet, or when the connection is broken.
    pub(crate) fn peek_now(&self) -> io::Result<usize> {
        let mut byte = [MaybeUninit::uninit()];
        self.try_io(Interest::READABLE, || SockRef::from(self).peek(&mut byte))
    }

    /// Whether the peer has closed its side, even if there is still something to read. It may be seen late.
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
