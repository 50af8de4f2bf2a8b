//! A stream with deadlines for reading and writing, and a close that lets the peer read the last response. All doors
//! use it.

mod activity;

use std::{
    cell::Cell,
    io::{self, ErrorKind, IoSlice},
    iter, mem,
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

pub(crate) use self::activity::{ConnectionActivity, DEADLINE_GRACE, RequestGuard, UnsentChunk};

/// A socket with a write deadline, response batching and a lingering close.
///
/// Writing fails with [`ErrorKind::TimedOut`] if the peer accepts no bytes within the write timeout.
/// [`ConnectionActivity::deadline_exceeded`] watches the reading side. Shutdown sends the remaining bytes and then
/// reads a limited amount of what the peer still sends: closing at once would reset the connection, and the peer
/// might never see the response.
#[derive(Debug)]
pub(crate) struct TimeoutStream {
    stream: Arc<RawStream>,
    activity: ConnectionActivity,
    write_timeout: Duration,
    /// Set while the peer accepts no bytes.
    write_timer: Option<Pin<Box<Sleep>>>,
    held: Held,
    linger: Option<Linger>,
    /// Counts the connection while it is open, also after it became a websocket.
    _permit: ConnectionPermit,
}

/// Responses that are held back to be written together.
#[derive(Debug, Default)]
struct Held {
    bytes: Vec<u8>,
    /// Whether bytes were added since the last flush.
    is_new: bool,
    /// The number of flushes that were deferred.
    flushes: u8,
}

impl Held {
    const MAX_BYTES: usize = 16 << 10;
    /// The number of requests that hyper answers before it yields.
    const MAX_FLUSHES: u8 = 16;
}

thread_local! {
    /// A buffer for the next connection of this thread that holds responses. A connection needs one only while it is
    /// polled.
    static SPARE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
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
        let stream = Arc::new(RawStream::new(accepted)?);
        Ok(Self {
            activity: ConnectionActivity::new(Some(Arc::clone(&stream))),
            stream,
            write_timeout,
            write_timer: None,
            held: Held::default(),
            linger: None,
            _permit: permit,
        })
    }

    pub(crate) fn activity(&self) -> ConnectionActivity {
        self.activity.clone()
    }

    pub(crate) fn stream(&self) -> &RawStream {
        &self.stream
    }

    /// The socket for writes that bypass this stream, after [`ConnectionActivity::hold_nothing`]. `None` if responses
    /// are still held.
    pub(crate) fn direct(&self) -> Option<Arc<RawStream>> {
        self.held.bytes.is_empty().then(|| Arc::clone(&self.stream))
    }

    /// Holds bytes back to be written later. Returns `false` if they have to be written now.
    fn hold<'a>(&mut self, size: usize, bytes: impl Iterator<Item = &'a [u8]>) -> bool {
        let is_small = self.held.bytes.len() + size <= Held::MAX_BYTES;
        let may_hold = self.activity.may_hold();
        if !may_hold || !is_small || self.write_timer.is_some() {
            return false;
        }
        if self.held.bytes.capacity() == 0 {
            self.held.bytes = SPARE.take();
        }
        bytes.for_each(|bytes| self.held.bytes.extend_from_slice(bytes));
        self.held.is_new = true;
        true
    }

    /// Writes the held bytes.
    #[inline]
    fn poll_release(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.held.bytes.is_empty() {
            return Poll::Ready(Ok(()));
        }
        self.poll_write_held(cx)
    }

    fn poll_write_held(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // From here on, the socket's readiness wakes the task.
        self.activity.set_holding(false);
        let mut bytes = mem::take(&mut self.held.bytes);
        while !bytes.is_empty() {
            let result = self.stream.poll_write(cx, |stream| stream.try_write(&bytes));
            let result = match self.limit_write(cx, result, |socket| socket.send(&bytes)) {
                Poll::Ready(Ok(0)) => Poll::Ready(Err(ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(count)) => {
                    bytes.drain(..count);
                    continue;
                }
                Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
                Poll::Pending => Poll::Pending,
            };
            self.held.bytes = bytes;
            return result;
        }
        SPARE.set(bytes);
        self.held = Held::default();
        Poll::Ready(Ok(()))
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
            self.end_write();
            return result;
        }
        if let Some(timer) = &mut self.write_timer {
            ready!(timer.as_mut().poll(cx));
        }
        match (attempt(SockRef::from(&*self.stream)), &self.write_timer) {
            (Err(error), None) if error.kind() == ErrorKind::WouldBlock => {
                self.activity.set_writing(true);
                let timer = Box::pin(sleep_until(Instant::now() + self.write_timeout));
                // The first poll registers the waker. The timer cannot have expired yet.
                let _ = self.write_timer.insert(timer).as_mut().poll(cx);
                Poll::Pending
            }
            (Err(error), Some(_)) if error.kind() == ErrorKind::WouldBlock => {
                Poll::Ready(Err(ErrorKind::TimedOut.into()))
            }
            (result, _) => {
                self.end_write();
                Poll::Ready(result)
            }
        }
    }

    fn end_write(&mut self) {
        if self.write_timer.take().is_some() {
            self.activity.set_writing(false);
        }
        self.activity.bytes_written();
    }
}

impl AsyncRead for TimeoutStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // A client may wait for these responses before it sends more.
        ready!(self.poll_release(cx))?;
        let result = self.stream.poll_read(cx, buffer);
        match &result {
            Poll::Ready(Ok(())) => self.activity.bytes_read(),
            Poll::Ready(Err(_)) => {}
            Poll::Pending => self.activity.nothing_to_read(),
        }
        result
    }
}

impl AsyncWrite for TimeoutStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.hold(bytes.len(), iter::once(bytes)) {
            return Poll::Ready(Ok(bytes.len()));
        }
        ready!(self.poll_release(cx))?;
        let result = self.stream.poll_write(cx, |stream| stream.try_write(bytes));
        self.limit_write(cx, result, |socket| socket.send(bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let size = slices.iter().map(|slice| slice.len()).sum();
        if self.hold(size, slices.iter().map(|slice| &**slice)) {
            return Poll::Ready(Ok(size));
        }
        ready!(self.poll_release(cx))?;
        let result = self.stream.poll_write(cx, |stream| stream.try_write_vectored(slices));
        self.limit_write(cx, result, |socket| socket.send_vectored(slices))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Only held responses are buffered here. A flush may be deferred to write several together.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { held, activity, .. } = &mut *self;
        let may_hold = activity.may_hold();
        if may_hold && held.is_new && held.flushes < Held::MAX_FLUSHES {
            held.is_new = false;
            held.flushes += 1;
            activity.set_holding(true);
            return Poll::Ready(Ok(()));
        }
        self.poll_release(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_release(cx))?;
        let Self { stream, linger, .. } = &mut *self;
        if linger.is_none() {
            match SockRef::from(&**stream).shutdown(Shutdown::Write) {
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
            let read = ready!(stream.poll_read(cx, &mut buffer));
            let count = buffer.filled().len();
            if read.is_err() || count == 0 || count > linger.bytes_left {
                break;
            }
            linger.bytes_left -= count;
        }
        Poll::Ready(Ok(()))
    }
}
