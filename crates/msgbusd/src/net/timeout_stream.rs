//! A connection that does not wait for ever: the deadlines of reading and writing, and a close that
//! lets the peer read the last answer. One place for all doors.

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

pub(crate) use self::activity::{ConnectionActivity, RequestGuard, SECOND_LOOK, UnsentChunk};

/// A connection as the server uses it.
///
/// Writing fails with [`ErrorKind::TimedOut`] when the peer takes no bytes for too long; reading
/// is watched by [`ConnectionActivity::overdue`]. Shutting down sends what is left and then reads a little
/// of what the peer still sends: closing at once would reset the connection, and the peer might
/// never see the answer.
#[derive(Debug)]
pub(crate) struct TimeoutStream {
    stream: Arc<RawStream>,
    activity: ConnectionActivity,
    write_timeout: Duration,
    /// Set while the peer takes no bytes.
    write_timer: Option<Pin<Box<Sleep>>>,
    held: Held,
    linger: Option<Linger>,
    /// Counts the connection for as long as it is open, whatever it has become.
    _permit: ConnectionPermit,
}

/// Answers that are to be written together.
#[derive(Debug, Default)]
struct Held {
    bytes: Vec<u8>,
    /// Whether some of them are of an answer that no flush was asked for yet.
    is_new: bool,
    /// How many flushes were put off.
    flushes: u8,
}

impl Held {
    const MOST_BYTES: usize = 16 << 10;
    /// As many requests as hyper answers before it lets others run.
    const MOST_FLUSHES: u8 = 16;
}

thread_local! {
    /// The buffer of whichever connection of this thread holds answers next: it needs one only while it is
    /// polled.
    static SPARE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// How much of a peer is read that has its answer and still sends.
#[derive(Debug)]
pub(crate) struct Linger {
    timer: Pin<Box<Sleep>>,
    bytes_left: usize,
}

impl Linger {
    pub(crate) const TIME: Duration = Duration::from_secs(1);
    pub(crate) const BYTES: usize = 4 << 20;
}

impl TimeoutStream {
    /// Ties a connection to the runtime that calls this.
    ///
    /// # Errors
    /// When the system refuses.
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

    /// Where to write past this, which is for one that [holds nothing](ConnectionActivity::hold_nothing); `None` where
    /// something is held all the same.
    pub(crate) fn direct(&self) -> Option<Arc<RawStream>> {
        self.held.bytes.is_empty().then(|| Arc::clone(&self.stream))
    }

    /// Takes bytes to be written later, unless they are too many.
    fn hold<'a>(&mut self, size: usize, bytes: impl Iterator<Item = &'a [u8]>) -> bool {
        let is_small = self.held.bytes.len() + size <= Held::MOST_BYTES;
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

    /// Writes what is held.
    #[inline]
    fn poll_release(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.held.bytes.is_empty() {
            return Poll::Ready(Ok(()));
        }
        self.poll_write_held(cx)
    }

    fn poll_write_held(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // From here on the system wakes whoever waits for the rest.
        self.activity.set_holding(false);
        let mut bytes = mem::take(&mut self.held.bytes);
        while !bytes.is_empty() {
            let result = self.stream.poll_write(cx, |stream| stream.try_write(&bytes));
            let result = match self.watch_write(cx, result, |socket| socket.send(&bytes)) {
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

    /// Passes a write's result on, unless it has been pending for too long.
    ///
    /// The system calls a socket writable only when a good part of its buffer is free, so a slow
    /// reader can look like none at all. Hence `attempt`, which writes without asking: once at the
    /// beginning, after which the buffer is full, and again before giving up.
    fn watch_write(
        &mut self,
        cx: &mut Context<'_>,
        result: Poll<io::Result<usize>>,
        attempt: impl FnOnce(SockRef<'_>) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        if result.is_ready() {
            self.write_ends();
            return result;
        }
        if let Some(timer) = &mut self.write_timer {
            ready!(timer.as_mut().poll(cx));
        }
        match (attempt(SockRef::from(&*self.stream)), &self.write_timer) {
            (Err(error), None) if error.kind() == ErrorKind::WouldBlock => {
                self.activity.set_writing(true);
                let timer = Box::pin(sleep_until(Instant::now() + self.write_timeout));
                // Polled, so that it wakes this. It cannot be over yet.
                let _ = self.write_timer.insert(timer).as_mut().poll(cx);
                Poll::Pending
            }
            (Err(error), Some(_)) if error.kind() == ErrorKind::WouldBlock => {
                Poll::Ready(Err(ErrorKind::TimedOut.into()))
            }
            (result, _) => {
                self.write_ends();
                Poll::Ready(result)
            }
        }
    }

    fn write_ends(&mut self) {
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
        // Whoever waits for more has to have the answers first.
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
        self.watch_write(cx, result, |socket| socket.send(bytes))
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
        self.watch_write(cx, result, |socket| socket.send_vectored(slices))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// There is nothing between this and the system but answers that are held.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { held, activity, .. } = &mut *self;
        let may_hold = activity.may_hold();
        if may_hold && held.is_new && held.flushes < Held::MOST_FLUSHES {
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
            timer: Box::pin(sleep_until(Instant::now() + Linger::TIME)),
            bytes_left: Linger::BYTES,
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
