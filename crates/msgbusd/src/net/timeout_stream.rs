//! A byte stream with a deadline for writing, and a close that lets the peer read the last response. All doors use it.

use std::{
    io::{self, ErrorKind, IoSlice},
    net::Shutdown,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep_until},
};

use crate::{
    limits::connection_limit::ConnectionPermit,
    net::raw_stream::{Accepted, RawStream},
};

/// A socket with a write deadline and a lingering close. How long a peer may be silent depends on the protocol, so the
/// door decides that.
///
/// Writing fails with [`ErrorKind::TimedOut`] if the peer accepts no bytes within the write timeout; it is pending only
/// while the peer accepts none. Shutdown reads a limited amount of what the peer still sends: closing at once would
/// reset the connection, and the peer might never see the response.
#[derive(Debug)]
pub(crate) struct TimeoutStream {
    socket: Arc<RawStream>,
    write_timeout: Duration,
    /// Set while the peer accepts no bytes.
    write_timer: Option<Pin<Box<Sleep>>>,
    linger: Option<Linger>,
    /// Counts the connection while it is open, also after it became a websocket.
    _permit: ConnectionPermit,
}

/// The limits of the lingering close: how long and how much is read of a peer that still sends.
#[derive(Debug)]
pub(crate) struct Linger {
    timer: Pin<Box<Sleep>>,
    bytes_left: usize,
}

impl Linger {
    pub(crate) const TIMEOUT: Duration = Duration::from_secs(1);
    pub(crate) const MAX_BYTES: usize = 4 << 20;
}

impl TimeoutStream {
    /// Registers a connection with the current runtime.
    ///
    /// # Errors
    /// When the registration fails.
    pub(crate) fn new(
        accepted: Accepted,
        write_timeout: Duration,
        permit: ConnectionPermit,
    ) -> io::Result<Self> {
        let socket = Arc::new(RawStream::new(accepted)?);
        Ok(Self { socket, write_timeout, write_timer: None, linger: None, _permit: permit })
    }

    /// The socket itself. Nothing is buffered in between.
    pub(crate) fn socket(&self) -> &Arc<RawStream> {
        &self.socket
    }

    /// Applies the write deadline to the result of a write.
    ///
    /// The system reports a socket as writable only when a good part of its buffer is free, so a slow reader can look
    /// like one that reads nothing. Therefore `attempt` writes without asking for readiness: once when the timer
    /// starts, which fills the buffer, and once more before the write fails.
    fn limit_write(
        &mut self,
        cx: &mut Context<'_>,
        result: Poll<io::Result<usize>>,
        attempt: impl FnOnce(SockRef<'_>) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        if result.is_ready() {
            self.write_timer = None;
            return result;
        }
        if let Some(timer) = &mut self.write_timer {
            ready!(timer.as_mut().poll(cx));
        }
        match (attempt(SockRef::from(&*self.socket)), &self.write_timer) {
            (Err(error), None) if error.kind() == ErrorKind::WouldBlock => {
                let timer = Box::pin(sleep_until(Instant::now() + self.write_timeout));
                // The first poll registers the waker. The timer cannot have expired yet.
                let _ = self.write_timer.insert(timer).as_mut().poll(cx);
                Poll::Pending
            }
            (Err(error), Some(_)) if error.kind() == ErrorKind::WouldBlock => {
                Poll::Ready(Err(ErrorKind::TimedOut.into()))
            }
            (result, _) => {
                self.write_timer = None;
                Poll::Ready(result)
            }
        }
    }
}

impl AsyncRead for TimeoutStream {
    #[inline]
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.socket.poll_read(cx, buffer)
    }
}

impl AsyncWrite for TimeoutStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = self.socket.poll_write(cx, |socket| socket.try_write(bytes));
        self.limit_write(cx, result, |socket| socket.send(bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = self.socket.poll_write(cx, |socket| socket.try_write_vectored(slices));
        self.limit_write(cx, result, |socket| socket.send_vectored(slices))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Nothing is buffered here.
    #[inline]
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { socket, linger, .. } = &mut *self;
        if linger.is_none() {
            match SockRef::from(&**socket).shutdown(Shutdown::Write) {
                Err(error) if error.kind() != ErrorKind::NotConnected => {
                    return Poll::Ready(Err(error));
                }
                _ => {}
            }
        }
        let linger = linger.get_or_insert_with(|| Linger {
            timer: Box::pin(sleep_until(Instant::now() + Linger::TIMEOUT)),
            bytes_left: Linger::MAX_BYTES,
        });
        let mut scratch = [0; 4096];
        while linger.timer.as_mut().poll(cx).is_pending() {
            let mut buffer = ReadBuf::new(&mut scratch);
            let read = ready!(socket.poll_read(cx, &mut buffer));
            let count = buffer.filled().len();
            if read.is_err() || count == 0 || count > linger.bytes_left {
                break;
            }
            linger.bytes_left -= count;
        }
        Poll::Ready(Ok(()))
    }
}
