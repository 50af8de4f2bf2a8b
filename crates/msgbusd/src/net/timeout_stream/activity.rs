//! Where a connection is between its requests, and what is overdue.

use std::{
    future::poll_fn,
    io::ErrorKind,
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

use tokio::time::{Instant, sleep_until};

use crate::{config::Timeouts, metrics::Deadline, net::raw_stream::RawStream};

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
pub(crate) struct ConnectionActivity(Arc<State>);

#[derive(Debug)]
struct State {
    /// For asking whether the peer is still there; `None` where there is no socket.
    stream: Option<Arc<RawStream>>,
    opened: Instant,
    phase: AtomicU8,
    /// When the phase began or, in [`Phase::Idle`], the peer last took bytes; in nanoseconds since
    /// `opened`.
    since: AtomicU64,
    /// Whether bytes wait for the peer to take them: then the deadline of writing is the one.
    writing: AtomicBool,
    /// Whether answers may be held, see [`ConnectionActivity::hold_answers`].
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
pub(crate) struct RequestGuard(ConnectionActivity);

impl Drop for RequestGuard {
    fn drop(&mut self) {
        // Another may begin meanwhile on another thread: whether any is under way the count alone says, and
        // who sees that none is sees since when.
        self.0.enter(Phase::Idle);
        self.0.0.under_way.fetch_sub(1, Release);
    }
}

/// A part of an answer in HTTP/2, until this is dropped.
#[derive(Debug)]
pub(crate) struct UnsentChunk(ConnectionActivity);

impl Drop for UnsentChunk {
    fn drop(&mut self) {
        self.0.0.taken_at.store(self.0.now(), Relaxed);
        self.0.0.untaken.fetch_sub(1, Relaxed);
    }
}

impl ConnectionActivity {
    pub(super) fn new(stream: Option<Arc<RawStream>>) -> Self {
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
    pub(crate) fn begin(self) -> RequestGuard {
        self.0.under_way.fetch_add(1, Relaxed);
        self.0.phase.store(Phase::Served as u8, Relaxed);
        RequestGuard(self)
    }

    /// A part of an answer is ready for the peer.
    pub(crate) fn offer(&self) -> UnsentChunk {
        if self.0.untaken.load(Relaxed) == 0 {
            self.0.taken_at.store(self.now(), Relaxed);
        }
        self.0.untaken.fetch_add(1, Relaxed);
        UnsentChunk(self.clone())
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
    pub(super) fn bytes_read(&self) {
        if self.is_idle_between_requests() {
            self.0.phase.store(Phase::NewHead as u8, Relaxed);
        }
    }

    /// All bytes there were have been read.
    pub(super) fn nothing_to_read(&self) {
        if self.0.phase.load(Relaxed) == Phase::NewHead as u8 {
            self.enter(Phase::Head);
        }
    }

    /// Bytes have been written.
    pub(super) fn bytes_written(&self) {
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

    /// Whether the socket may hold answers back.
    pub(super) fn may_hold(&self) -> bool {
        self.0.may_hold.load(Relaxed)
    }

    /// Whether it does now.
    pub(super) fn set_holding(&self, is: bool) {
        self.0.is_holding.store(is, Relaxed);
    }

    /// Whether bytes wait now for the peer to take them.
    pub(super) fn set_writing(&self, is: bool) {
        self.0.writing.store(is, Relaxed);
    }

    /// Whether they do.
    pub(crate) fn is_writing(&self) -> bool {
        self.0.writing.load(Relaxed)
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
