//! The activity of an HTTP connection: which request phase it is in, and which deadline the peer has exceeded.

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

/// The extra time that the server waits after a deadline. A process that was suspended and resumes (SIGSTOP, machine
/// sleep) sees its timers expire before it sees the bytes that arrived meanwhile.
pub(super) const DEADLINE_GRACE: Duration = Duration::from_millis(100);

/// What the server expects from the peer. It decides how long the peer may be silent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Phase {
    /// The head of a request.
    Head,
    /// The rest of a head whose first bytes have just been read. It has usually arrived already.
    NewHead,
    /// The next request, within the idle timeout.
    Idle,
    /// A handler serves a request and applies its own deadlines.
    Served,
}

/// The activity of one connection. It is shared by the [`Transport`](super::transport::Transport), which sees bytes, and
/// the HTTP server, which sees requests.
#[derive(Debug, Clone)]
pub(crate) struct ConnectionActivity(Arc<State>);

#[derive(Debug)]
struct State {
    /// Used to detect that the peer has closed; `None` in tests without a socket.
    socket: Option<Arc<RawStream>>,
    opened: Instant,
    phase: AtomicU8,
    /// When the phase began or, in [`Phase::Idle`], when bytes were last written; in nanoseconds since `opened`.
    since: AtomicU64,
    /// Whether a write is blocked. The write deadline applies then, and no other.
    writing: AtomicBool,
    /// Whether responses may be held back, see [`ConnectionActivity::hold_responses`].
    may_hold: AtomicBool,
    /// Whether some are held back now.
    is_holding: AtomicBool,
    /// Whether the last request was read to its end.
    is_read_whole: AtomicBool,
    /// Chunks of HTTP/2 responses that are not sent yet. A peer can block one response by flow control and still
    /// accept all bytes of the connection.
    unsent: AtomicU32,
    /// When a chunk was last sent, or when the first became ready; in nanoseconds since `opened`.
    progress_at: AtomicU64,
    /// Requests that have been received and are not fully answered.
    active_requests: AtomicU32,
    /// Whether the connection is HTTP/2: several requests at a time, and bytes that belong to none. Only a whole
    /// head ends [`Phase::Idle`] then.
    is_multiplexed: AtomicBool,
}

/// An active request. It ends when this is dropped.
#[derive(Debug)]
pub(crate) struct RequestGuard(ConnectionActivity);

impl Drop for RequestGuard {
    fn drop(&mut self) {
        // Another request may begin concurrently. Only the counter says whether any is active; it is decremented
        // last, so that a reader that sees zero also sees the new phase and its time.
        self.0.enter(Phase::Idle);
        self.0.0.active_requests.fetch_sub(1, Release);
    }
}

/// A chunk of an HTTP/2 response that is not sent yet. It is dropped when it has been sent.
#[derive(Debug)]
pub(crate) struct UnsentChunk(ConnectionActivity);

impl Drop for UnsentChunk {
    fn drop(&mut self) {
        self.0.0.progress_at.store(self.0.now(), Relaxed);
        self.0.0.unsent.fetch_sub(1, Relaxed);
    }
}

impl ConnectionActivity {
    pub(super) fn new(socket: Arc<RawStream>) -> Self {
        Self::with(Some(socket))
    }

    #[cfg(any(test, fuzzing))]
    pub(super) fn without_socket() -> Self {
        Self::with(None)
    }

    fn with(socket: Option<Arc<RawStream>>) -> Self {
        Self(Arc::new(State {
            socket,
            opened: Instant::now(),
            phase: AtomicU8::new(Phase::Head as u8),
            since: AtomicU64::new(0),
            writing: AtomicBool::new(false),
            may_hold: AtomicBool::new(false),
            is_holding: AtomicBool::new(false),
            is_read_whole: AtomicBool::new(true),
            unsent: AtomicU32::new(0),
            progress_at: AtomicU64::new(0),
            active_requests: AtomicU32::new(0),
            is_multiplexed: AtomicBool::new(false),
        }))
    }

    /// From now on the connection is HTTP/2.
    pub(super) fn multiplex(&self) {
        self.0.is_multiplexed.store(true, Relaxed);
    }

    /// Begins a request whose head has been received. It ends when the guard is dropped; its response may not be
    /// written by then.
    pub(super) fn begin(self) -> RequestGuard {
        self.0.active_requests.fetch_add(1, Relaxed);
        self.0.phase.store(Phase::Served as u8, Relaxed);
        RequestGuard(self)
    }

    /// Tracks a chunk that is ready to be sent.
    pub(super) fn track_chunk(&self) -> UnsentChunk {
        if self.0.unsent.load(Relaxed) == 0 {
            self.0.progress_at.store(self.now(), Relaxed);
        }
        self.0.unsent.fetch_add(1, Relaxed);
        UnsentChunk(self.clone())
    }

    /// Whether there is no active request, and in HTTP/2 all responses are sent.
    pub(super) fn is_idle(&self) -> bool {
        self.0.active_requests.load(Relaxed) == 0 && self.0.unsent.load(Relaxed) == 0
    }

    /// The nanoseconds since the connection was opened.
    fn now(&self) -> u64 {
        u64::try_from(self.0.opened.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn enter(&self, phase: Phase) {
        self.0.since.store(self.now(), Relaxed);
        self.0.phase.store(phase as u8, Relaxed);
    }

    /// Begins a request of HTTP/1.1, which is the only one on its connection.
    pub(super) fn begin_only(&self) {
        self.0.phase.store(Phase::Served as u8, Relaxed);
    }

    /// Ends a request of HTTP/1.1. Its response is about to be written; the idle time counts from that write.
    pub(super) fn end_only(&self) {
        self.0.phase.store(Phase::Idle as u8, Relaxed);
    }

    /// Records whether the request that was answered has been read to its end, so that the next byte begins another.
    pub(super) fn is_between_requests(&self, is: bool) {
        self.0.is_read_whole.store(is, Relaxed);
    }

    /// Records that bytes have been read. On an idle connection they begin the next head.
    pub(super) fn bytes_read(&self) {
        if self.is_idle_between_requests() {
            self.0.phase.store(Phase::NewHead as u8, Relaxed);
        }
    }

    /// Records that no more bytes are available for now.
    pub(super) fn nothing_to_read(&self) {
        if self.0.phase.load(Relaxed) == Phase::NewHead as u8 {
            self.enter(Phase::Head);
        }
    }

    /// Records the result of a write. While it is pending, the peer accepts no bytes.
    #[inline]
    pub(super) fn polled_write<T>(&self, polled: Poll<T>) -> Poll<T> {
        self.0.writing.store(polled.is_pending(), Relaxed);
        if polled.is_ready() && self.is_idle_between_requests() {
            self.enter(Phase::Idle);
        }
        polled
    }

    fn is_idle_between_requests(&self) -> bool {
        let is_idle = self.0.phase.load(Relaxed) == Phase::Idle as u8;
        is_idle && !self.0.is_multiplexed.load(Relaxed)
    }

    /// From now on, responses to pipelined requests are written together: a flush is deferred until there is nothing
    /// left to read, or nothing new to write. hyper's own `pipeline_flush` would hold a response back while only a
    /// part of the next request has arrived, and has no limit.
    pub(super) fn hold_responses(&self) {
        self.0.may_hold.store(true, Relaxed);
    }

    /// From now on, nothing more is held back.
    pub(super) fn hold_nothing(&self) {
        self.0.may_hold.store(false, Relaxed);
    }

    /// Whether responses may be held back.
    pub(super) fn may_hold(&self) -> bool {
        self.0.may_hold.load(Relaxed)
    }

    /// Records whether responses are held back.
    pub(super) fn set_holding(&self, is: bool) {
        self.0.is_holding.store(is, Relaxed);
    }

    /// Whether a write is blocked because the peer accepts no bytes.
    pub(super) fn is_writing(&self) -> bool {
        self.0.writing.load(Relaxed)
    }

    /// Whether responses are held back that only another poll of the connection writes.
    pub(super) fn holds_responses(&self) -> bool {
        self.0.is_holding.load(Relaxed)
    }

    /// Ready when an HTTP/1.1 peer has closed its side of the connection, or the connection is broken. Handlers that
    /// wait for messages use it. It stays pending in HTTP/2, where the connection ends its requests.
    ///
    /// While bytes from the peer are unread, this does not wake the task; poll it again from time to time.
    pub(super) fn poll_peer_left(&self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(socket) = &self.0.socket else { return Poll::Pending };
        if self.0.is_multiplexed.load(Relaxed) {
            return Poll::Pending;
        }
        loop {
            if ready!(socket.poll_read_ready(cx)).is_err() {
                return Poll::Ready(());
            }
            match socket.peek_now() {
                // Another request has arrived; the peer may have closed its side after it.
                Ok(1..) if !socket.is_read_closed() => return Poll::Pending,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                _ => return Poll::Ready(()),
            }
        }
    }

    /// Waits until the peer exceeds the deadline for a request head, for the next request, or for accepting response
    /// bytes.
    pub(super) async fn deadline_exceeded(&self, timeouts: &Timeouts) -> Deadline {
        self.deadline_exceeded_or_idle(timeouts, None).await.unwrap_or(Deadline::Idle)
    }

    /// Like [`deadline_exceeded`](Self::deadline_exceeded), but returns `None` when the connection has been idle for
    /// `idle`. That is noticed at the first check after it.
    ///
    /// Phase changes do not wake this. The check interval is so short that a deadline which starts between two checks
    /// ends after the second.
    pub(super) async fn deadline_exceeded_or_idle(
        &self,
        timeouts: &Timeouts,
        idle: Option<Duration>,
    ) -> Option<Deadline> {
        let check_interval = timeouts.header.min(timeouts.idle).min(timeouts.write);
        let mut missed_deadline = None;
        loop {
            let now = Instant::now();
            let mut next_check = now + check_interval;
            if let Some((which, since, timeout)) = self.awaited(timeouts) {
                let deadline = since + timeout;
                if deadline <= now {
                    if missed_deadline == Some(deadline) {
                        return Some(which);
                    }
                    missed_deadline = Some(deadline);
                    sleep_until(now + DEADLINE_GRACE).await;
                    continue;
                }
                next_check = next_check.min(deadline);
                if let (Deadline::Idle, Some(idle)) = (which, idle)
                    && self.0.is_read_whole.load(Relaxed)
                {
                    if since + idle <= now {
                        return None;
                    }
                    next_check = next_check.min(since + idle);
                }
            }
            sleep_until(next_check).await;
        }
    }

    /// Records that the first bytes of the next head were received together with the previous request.
    pub(super) fn expect_rest_of_head(&self) {
        self.0.phase.store(Phase::Head as u8, Relaxed);
    }

    /// Waits until bytes can be read, or the connection is closed or broken.
    pub(super) async fn readable(&self) {
        if let Some(socket) = &self.0.socket {
            // If the connection is broken, the next read reports it.
            let _ = poll_fn(|cx| socket.poll_read_ready(cx)).await;
        }
    }

    /// What the server waits for, since when, and with which timeout.
    fn awaited(&self, timeouts: &Timeouts) -> Option<(Deadline, Instant, Duration)> {
        let mut since = self.0.since.load(Relaxed);
        let phase = self.0.phase.load(Relaxed);
        let (which, timeout) = if self.0.writing.load(Relaxed) {
            return None;
        } else if self.0.unsent.load(Relaxed) > 0 {
            since = self.0.progress_at.load(Relaxed);
            (Deadline::Write, timeouts.write)
        } else if phase == Phase::Head as u8 {
            (Deadline::Header, timeouts.header)
        } else if phase == Phase::Idle as u8 && self.0.active_requests.load(Acquire) == 0 {
            (Deadline::Idle, timeouts.idle)
        } else {
            return None;
        };
        Some((which, self.0.opened + Duration::from_nanos(since), timeout))
    }
}
