//! A connection that does not wait for ever: the deadlines of reading and writing, and a close that
//! lets the peer read the last answer. One place for all doors.

use std::{
    io::{self, ErrorKind, IoSlice},
    mem::MaybeUninit,
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

/// What is expected of the peer, which decides how long it may be silent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Phase {
    /// The head of a request.
    Head,
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
    /// For asking whether the peer is still there.
    stream: Arc<Stream>,
    opened: Instant,
    phase: AtomicU8,
    /// When the phase began or, in [`Phase::Idle`], the peer last took bytes; in nanoseconds since
    /// `opened`.
    since: AtomicU64,
    /// Whether bytes wait for the peer to take them: then the deadline of writing is the one.
    writing: AtomicBool,
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
    fn new(stream: Arc<Stream>) -> Self {
        Self(Arc::new(State {
            stream,
            opened: Instant::now(),
            phase: AtomicU8::new(Phase::Head as u8),
            since: AtomicU64::new(0),
            writing: AtomicBool::new(false),
            untaken: AtomicU32::new(0),
            taken_at: AtomicU64::new(0),
            under_way: AtomicU32::new(0),
            is_multiplexed: AtomicBool::new(false),
        }))
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

    /// Bytes have been read or written.
    fn moves_to(&self, phase: Phase) {
        let is_idle = self.0.phase.load(Relaxed) == Phase::Idle as u8;
        if is_idle && !self.0.is_multiplexed.load(Relaxed) {
            self.enter(phase);
        }
    }

    fn peer_is_gone(&self) -> bool {
        let mut byte = [MaybeUninit::uninit()];
        match SockRef::from(&*self.0.stream).peek(&mut byte) {
            Ok(count) => count == 0,
            Err(error) => error.kind() != ErrorKind::WouldBlock,
        }
    }

    /// Waits until the peer is overdue with the head of a request, with the next request or with taking what
    /// it has asked for, or is gone while it is served (`None`): hyper does not look for that while it has bytes of the peer left to read.
    ///
    /// Nobody wakes this when the phase changes: it looks often enough that a deadline which begins
    /// between two looks lies behind the next one.
    pub(crate) async fn overdue(&self, timeouts: &Timeouts) -> Option<Deadline> {
        let look_every = timeouts.header.min(timeouts.idle).min(timeouts.write);
        loop {
            let now = Instant::now();
            let mut since = self.0.since.load(Relaxed);
            let patience = match self.0.phase.load(Relaxed) {
                _ if self.0.writing.load(Relaxed) => None,
                _ if self.0.untaken.load(Relaxed) > 0 => {
                    since = self.0.taken_at.load(Relaxed);
                    Some((Deadline::Write, timeouts.write))
                }
                phase if phase == Phase::Head as u8 => Some((Deadline::Header, timeouts.header)),
                phase if phase == Phase::Idle as u8 && self.0.under_way.load(Acquire) == 0 => {
                    Some((Deadline::Idle, timeouts.idle))
                }
                _ => None,
            };
            let since = self.0.opened + Duration::from_nanos(since);
            let deadline = patience.map(|(_, patience)| since + patience);
            if self.peer_is_gone() {
                return None;
            }
            if deadline.is_some_and(|deadline| deadline <= now) {
                return patience.map(|(which, _)| which);
            }
            let next_look = now + look_every;
            sleep_until(deadline.map_or(next_look, |deadline| deadline.min(next_look))).await;
        }
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
    linger: Option<Linger>,
    /// Counts the connection for as long as it is open, whatever it has become.
    _place: Place,
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
            conversation: Conversation::new(Arc::clone(&stream)),
            stream,
            write_timeout,
            write_timer: None,
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
        self.conversation.moves_to(Phase::Idle);
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.stream.poll_read(cx, buffer))?;
        self.conversation.moves_to(Phase::Head);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = self.stream.poll_write(cx, |stream| stream.try_write(bytes));
        self.watch_write(cx, result, |socket| socket.send(bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = self.stream.poll_write(cx, |stream| stream.try_write_vectored(slices));
        self.watch_write(cx, result, |socket| socket.send_vectored(slices))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// There is nothing between this and the system.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
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
