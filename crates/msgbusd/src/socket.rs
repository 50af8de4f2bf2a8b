//! A connection that does not wait for ever: the deadlines of reading and writing, and a close that
//! lets the peer read the last answer. One place for all doors.

use std::{
    cell::Cell,
    future::poll_fn,
    io::{self, ErrorKind, IoSlice},
    iter, mem,
    net::Shutdown,
    pin::Pin,
    sync::{
        Arc,
        atomic::{
            AtomicBool, AtomicU8, AtomicU32, AtomicU64,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep_until},
};

use crate::{
    config::Timeouts,
    metrics::Deadline,
    places::Place,
    stream::{Accepted, Stream},
};

/// How long the server still waits at a deadline. A process that was stopped and goes on (SIGSTOP, a suspended
/// machine) sees its timers before it sees the bytes that have come meanwhile.
pub(crate) const SECOND_LOOK: Duration = Duration::from_millis(100);

/// What is expected of the peer, which decides how long it may be silent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Phase {
    /// The head of a request.
    Head,
    /// The rest of a head whose first bytes have just been read: it most often is there already.
    NewHead,
    /// Nothing: the next request, some time.
    Idle,
    /// Whatever the door that serves the request says.
    Served,
}

/// Where a connection is between its requests, shared by the socket, which sees bytes, and the
/// server, which sees requests.
#[derive(Debug, Clone)]
pub(crate) struct Conversation(Arc<State>);

#[derive(Debug)]
struct State {
    /// For asking whether the peer is still there; `None` where there is no socket.
    stream: Option<Arc<Stream>>,
    opened: Instant,
    phase: AtomicU8,
    /// When the phase began or, in [`Phase::Idle`], the peer last took bytes; in nanoseconds since
    /// `opened`.
    since: AtomicU64,
    /// Whether bytes wait for the peer to take them: then the deadline of writing is the one.
    writing: AtomicBool,
    /// Whether answers may be held, see [`Conversation::hold_answers`].
    may_hold: AtomicBool,
    /// Whether some are.
    is_holding: AtomicBool,
    /// Whether the last request was read whole.
    is_read_whole: AtomicBool,
    /// Parts of answers in HTTP/2 that the peer has not taken: there it can leave an answer alone and still
    /// take all bytes that are sent.
    untaken: AtomicU32,
    /// When it took one, or the first was ready for it; in nanoseconds since `opened`.
    taken_at: AtomicU64,
    /// Requests that have come and have no whole answer yet.
    under_way: AtomicU32,
    /// Whether there may be several, and bytes that are no part of any (HTTP/2): then only a whole head ends
    /// [`Phase::Idle`].
    is_multiplexed: AtomicBool,
}

/// A request under way, until this is dropped.
#[derive(Debug)]
pub(crate) struct Exchange(Conversation);

impl Drop for Exchange {
    fn drop(&mut self) {
        // Another may begin meanwhile on another thread: whether any is under way the count alone says, and
        // who sees that none is sees since when.
        self.0.enter(Phase::Idle);
        self.0.0.under_way.fetch_sub(1, Release);
    }
}

/// A part of an answer in HTTP/2, until this is dropped.
#[derive(Debug)]
pub(crate) struct Untaken(Conversation);

impl Drop for Untaken {
    fn drop(&mut self) {
        self.0.0.taken_at.store(self.0.now(), Relaxed);
        self.0.0.untaken.fetch_sub(1, Relaxed);
    }
}

impl Conversation {
    fn new(stream: Option<Arc<Stream>>) -> Self {
        Self(Arc::new(State {
            stream,
            opened: Instant::now(),
            phase: AtomicU8::new(Phase::Head as u8),
            since: AtomicU64::new(0),
            writing: AtomicBool::new(false),
            may_hold: AtomicBool::new(false),
            is_holding: AtomicBool::new(false),
            is_read_whole: AtomicBool::new(true),
            untaken: AtomicU32::new(0),
            taken_at: AtomicU64::new(0),
            under_way: AtomicU32::new(0),
            is_multiplexed: AtomicBool::new(false),
        }))
    }

    /// Without a socket.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn without_socket() -> Self {
        Self::new(None)
    }

    /// From now on requests come as they do in HTTP/2.
    pub(crate) fn multiplex(&self) {
        self.0.is_multiplexed.store(true, Relaxed);
    }

    /// A request has come, with a whole head. It ends when it has its answer, which may still have to be
    /// written.
    pub(crate) fn begin(self) -> Exchange {
        self.0.under_way.fetch_add(1, Relaxed);
        self.0.phase.store(Phase::Served as u8, Relaxed);
        Exchange(self)
    }

    /// A part of an answer is ready for the peer.
    pub(crate) fn offer(&self) -> Untaken {
        if self.0.untaken.load(Relaxed) == 0 {
            self.0.taken_at.store(self.now(), Relaxed);
        }
        self.0.untaken.fetch_add(1, Relaxed);
        Untaken(self.clone())
    }

    /// Whether nothing is asked, and in HTTP/2 all answers are taken.
    pub(crate) fn is_quiet(&self) -> bool {
        self.0.under_way.load(Relaxed) == 0 && self.0.untaken.load(Relaxed) == 0
    }

    /// In nanoseconds since it was opened.
    fn now(&self) -> u64 {
        u64::try_from(self.0.opened.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn enter(&self, phase: Phase) {
        self.0.since.store(self.now(), Relaxed);
        self.0.phase.store(phase as u8, Relaxed);
    }

    /// A request has come that is alone on its connection, as in HTTP/1.1.
    pub(crate) fn begin_only(&self) {
        self.0.phase.store(Phase::Served as u8, Relaxed);
    }

    /// It has its answer, which is about to be written: since when nothing is asked is seen then.
    pub(crate) fn end_only(&self) {
        self.0.phase.store(Phase::Idle as u8, Relaxed);
    }

    /// The request has its answer. Whether all of it was read says whether what comes next is another.
    pub(crate) fn is_between_requests(&self, is: bool) {
        self.0.is_read_whole.store(is, Relaxed);
    }

    /// Bytes have been read: of the next head, if nothing else is awaited.
    fn bytes_read(&self) {
        if self.is_idle_between_requests() {
            self.0.phase.store(Phase::NewHead as u8, Relaxed);
        }
    }

    /// All bytes there were have been read.
    fn nothing_to_read(&self) {
        if self.0.phase.load(Relaxed) == Phase::NewHead as u8 {
            self.enter(Phase::Head);
        }
    }

    /// Bytes have been written.
    fn bytes_written(&self) {
        if self.is_idle_between_requests() {
            self.enter(Phase::Idle);
        }
    }

    fn is_idle_between_requests(&self) -> bool {
        let is_idle = self.0.phase.load(Relaxed) == Phase::Idle as u8;
        is_idle && !self.0.is_multiplexed.load(Relaxed)
    }

    /// From now on the answers to requests that came together are written together: a flush is put off until
    /// there is nothing left to read, or nothing new to write. hyper's own `pipeline_flush` would keep an
    /// answer back for as long as part of another request is there, and has no bound.
    pub(crate) fn hold_answers(&self) {
        self.0.may_hold.store(true, Relaxed);
    }

    /// From now on everything is written at once again. What is held is written by the next read, write or
    /// flush.
    pub(crate) fn hold_nothing(&self) {
        self.0.may_hold.store(false, Relaxed);
    }

    /// Whether the socket holds answers back that nothing else will make it write.
    pub(crate) fn holds_answers(&self) -> bool {
        self.0.is_holding.load(Relaxed)
    }

    /// Ready when the peer of HTTP/1.1 has closed its side of the connection, or the connection is broken: for
    /// whoever waits for something to answer. In HTTP/2 the connection itself ends then.
    ///
    /// While the peer has sent more than was read this is not woken, and to be polled again by and by.
    pub(crate) fn poll_peer_left(&self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(stream) = &self.0.stream else { return Poll::Pending };
        if self.0.is_multiplexed.load(Relaxed) {
            return Poll::Pending;
        }
        loop {
            if ready!(stream.poll_read_ready(cx)).is_err() {
                return Poll::Ready(());
            }
            match stream.peek_now() {
                // A request behind this one: the end of the stream may be behind that.
                Ok(1..) if !stream.is_read_closed() => return Poll::Pending,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                _ => return Poll::Ready(()),
            }
        }
    }

    /// Waits until the peer is overdue with the head of a request, with the next request or with taking what
    /// it has asked for.
    pub(crate) async fn overdue(&self, timeouts: &Timeouts) -> Deadline {
        self.overdue_or_idle(timeouts, None).await.unwrap_or(Deadline::Idle)
    }

    /// The same, or `None` when nothing has been asked for `idle`; that is seen at the next look behind it.
    ///
    /// Nobody wakes this when the phase changes: it looks often enough that a deadline which begins
    /// between two looks lies behind the next one.
    pub(crate) async fn overdue_or_idle(
        &self,
        timeouts: &Timeouts,
        idle: Option<Duration>,
    ) -> Option<Deadline> {
        let look_every = timeouts.header.min(timeouts.idle).min(timeouts.write);
        let mut missed = None;
        loop {
            let now = Instant::now();
            let mut next_look = now + look_every;
            if let Some((which, since, patience)) = self.awaited(timeouts) {
                let deadline = since + patience;
                if deadline <= now {
                    if missed == Some(deadline) {
                        return Some(which);
                    }
                    missed = Some(deadline);
                    sleep_until(now + SECOND_LOOK).await;
                    continue;
                }
                next_look = next_look.min(deadline);
                if let (Deadline::Idle, Some(idle)) = (which, idle)
                    && self.0.is_read_whole.load(Relaxed)
                {
                    if since + idle <= now {
                        return None;
                    }
                    next_look = next_look.min(since + idle);
                }
            }
            sleep_until(next_look).await;
        }
    }

    /// What came last was the beginning of a head, though nothing has told it from the request before.
    pub(crate) fn is_in_a_head(&self) {
        self.0.phase.store(Phase::Head as u8, Relaxed);
    }

    /// Waits until there is something to read, or the connection is over.
    pub(crate) async fn readable(&self) {
        if let Some(stream) = &self.0.stream {
            // If it is broken, reading says so.
            let _ = poll_fn(|cx| stream.poll_read_ready(cx)).await;
        }
    }

    /// What is awaited of the peer now, since when, and for how long.
    fn awaited(&self, timeouts: &Timeouts) -> Option<(Deadline, Instant, Duration)> {
        let mut since = self.0.since.load(Relaxed);
        let phase = self.0.phase.load(Relaxed);
        let (which, patience) = if self.0.writing.load(Relaxed) {
            return None;
        } else if self.0.untaken.load(Relaxed) > 0 {
            since = self.0.taken_at.load(Relaxed);
            (Deadline::Write, timeouts.write)
        } else if phase == Phase::Head as u8 {
            (Deadline::Header, timeouts.header)
        } else if phase == Phase::Idle as u8 && self.0.under_way.load(Acquire) == 0 {
            (Deadline::Idle, timeouts.idle)
        } else {
            return None;
        };
        Some((which, self.0.opened + Duration::from_nanos(since), patience))
    }
}

/// A connection as the server uses it.
///
/// Writing fails with [`ErrorKind::TimedOut`] when the peer takes no bytes for too long; reading
/// is watched by [`Conversation::overdue`]. Shutting down sends what is left and then reads a little
/// of what the peer still sends: closing at once would reset the connection, and the peer might
/// never see the answer.
#[derive(Debug)]
pub(crate) struct Socket {
    stream: Arc<Stream>,
    conversation: Conversation,
    write_timeout: Duration,
    /// Set while the peer takes no bytes.
    write_timer: Option<Pin<Box<Sleep>>>,
    held: Held,
    linger: Option<Linger>,
    /// Counts the connection for as long as it is open, whatever it has become.
    _place: Place,
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

impl Socket {
    /// Ties a connection to the runtime that calls this.
    ///
    /// # Errors
    /// When the system refuses.
    pub(crate) fn new(
        accepted: Accepted,
        write_timeout: Duration,
        place: Place,
    ) -> io::Result<Self> {
        let stream = Arc::new(Stream::new(accepted)?);
        Ok(Self {
            conversation: Conversation::new(Some(Arc::clone(&stream))),
            stream,
            write_timeout,
            write_timer: None,
            held: Held::default(),
            linger: None,
            _place: place,
        })
    }

    pub(crate) fn conversation(&self) -> Conversation {
        self.conversation.clone()
    }

    pub(crate) fn stream(&self) -> &Stream {
        &self.stream
    }

    /// Takes bytes to be written later, unless they are too many.
    fn hold<'a>(&mut self, size: usize, bytes: impl Iterator<Item = &'a [u8]>) -> bool {
        let is_small = self.held.bytes.len() + size <= Held::MOST_BYTES;
        let may_hold = self.conversation.0.may_hold.load(Relaxed);
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
        self.conversation.0.is_holding.store(false, Relaxed);
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
                self.conversation.0.writing.store(true, Relaxed);
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
            self.conversation.0.writing.store(false, Relaxed);
        }
        self.conversation.bytes_written();
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // Whoever waits for more has to have the answers first.
        ready!(self.poll_release(cx))?;
        let result = self.stream.poll_read(cx, buffer);
        match &result {
            Poll::Ready(Ok(())) => self.conversation.bytes_read(),
            Poll::Ready(Err(_)) => {}
            Poll::Pending => self.conversation.nothing_to_read(),
        }
        result
    }
}

impl AsyncWrite for Socket {
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
        let Self { held, conversation, .. } = &mut *self;
        let may_hold = conversation.0.may_hold.load(Relaxed);
        if may_hold && held.is_new && held.flushes < Held::MOST_FLUSHES {
            held.is_new = false;
            held.flushes += 1;
            conversation.0.is_holding.store(true, Relaxed);
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
