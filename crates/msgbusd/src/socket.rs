//! A TCP connection that does not wait for ever: the deadlines of reading and writing, and a close
//! that lets the peer read the last answer. One place for all doors.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::OwnedSemaphorePermit,
    time::{Instant, Sleep, sleep_until},
};

use crate::config::Timeouts;

/// What is expected of the peer, which decides how long it may be silent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The head of a request.
    Head,
    /// Nothing: the next request, some time.
    Idle,
    /// Whatever the door that serves the request says; the socket sets no deadline.
    Served,
}

/// The phase of a connection, shared between the socket and whoever serves its requests.
#[derive(Debug, Clone)]
pub(crate) struct Conversation(Arc<AtomicU32>);

impl Conversation {
    const PHASE_BITS: u32 = 2;
    const PHASES: u32 = (1 << Self::PHASE_BITS) - 1;

    fn new() -> Self {
        Self(Arc::new(AtomicU32::new(Phase::Head as u32)))
    }

    /// A request has come whole with its head.
    pub(crate) fn request_begins(&self) {
        self.enter(Phase::Served);
    }

    /// The request has been answered.
    pub(crate) fn request_ends(&self) {
        self.enter(Phase::Idle);
    }

    /// The upper bits count the turns, so that the socket sees that a phase is a new one.
    fn enter(&self, phase: Phase) {
        let turn = (self.0.load(Relaxed) >> Self::PHASE_BITS).wrapping_add(1);
        self.0.store(turn << Self::PHASE_BITS | phase as u32, Relaxed);
    }

    fn turn(&self) -> u32 {
        self.0.load(Relaxed)
    }

    fn phase(turn: u32) -> Phase {
        match turn & Self::PHASES {
            0 => Phase::Head,
            1 => Phase::Idle,
            _ => Phase::Served,
        }
    }
}

/// A connection as the server uses it.
///
/// Reading fails with [`io::ErrorKind::TimedOut`] when a request's head or the next request is
/// overdue, writing when the peer takes no bytes. Shutting down sends what is left and then reads a
/// little of what the peer still sends: closing at once would reset the connection, and the peer
/// might never see the answer.
#[derive(Debug)]
pub(crate) struct Socket {
    stream: TcpStream,
    conversation: Conversation,
    timeouts: Timeouts,
    /// The turn that the reader waits in, and since when.
    waiting: (u32, Instant),
    read_timer: Timer,
    /// Set while the peer takes no bytes.
    write_timer: Option<Pin<Box<Sleep>>>,
    linger: Option<Linger>,
    /// Counts the connection for as long as it is open, whatever it has become.
    _permit: OwnedSemaphorePermit,
}

#[derive(Debug)]
struct Linger {
    timer: Pin<Box<Sleep>>,
    bytes_left: usize,
}

impl Linger {
    const TIME: Duration = Duration::from_secs(1);
    const BYTES: usize = 4 << 20;
}

impl Socket {
    pub(crate) fn new(stream: TcpStream, timeouts: Timeouts, permit: OwnedSemaphorePermit) -> Self {
        // Latency is worth more than the few packets saved; a socket that refuses still works.
        let _ = stream.set_nodelay(true);
        let conversation = Conversation::new();
        Self {
            stream,
            waiting: (conversation.turn(), Instant::now()),
            conversation,
            timeouts,
            read_timer: Timer::default(),
            write_timer: None,
            linger: None,
            _permit: permit,
        }
    }

    pub(crate) fn conversation(&self) -> Conversation {
        self.conversation.clone()
    }

    /// Hands the reading deadlines over to the door that has taken the connection.
    pub(crate) fn upgrade(&mut self) {
        self.conversation.request_begins();
        self.read_timer = Timer::default();
    }

    /// Whether reading is overdue.
    fn poll_overdue(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let turn = self.conversation.turn();
        if self.waiting.0 != turn {
            self.waiting = (turn, Instant::now());
        }
        let patience = match Conversation::phase(turn) {
            Phase::Head => self.timeouts.header,
            Phase::Idle => self.timeouts.idle,
            Phase::Served => return Poll::Pending,
        };
        self.read_timer.poll(cx, self.waiting.1 + patience)
    }

    /// Passes a write's result on, unless it has been pending for too long.
    fn watch_write<T>(
        &mut self,
        cx: &mut Context<'_>,
        result: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if result.is_ready() {
            self.write_timer = None;
            return result;
        }
        let patience = self.timeouts.write;
        let timer = self
            .write_timer
            .get_or_insert_with(|| Box::pin(sleep_until(Instant::now() + patience)));
        timer.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if result.is_ready() {
            if Conversation::phase(self.conversation.turn()) == Phase::Idle {
                self.conversation.enter(Phase::Head);
            }
            return result;
        }
        self.poll_overdue(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.watch_write(cx, result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.watch_write(cx, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { stream, linger, .. } = &mut *self;
        if linger.is_none() {
            ready!(Pin::new(&mut *stream).poll_shutdown(cx))?;
        }
        let linger = linger.get_or_insert_with(|| Linger {
            timer: Box::pin(sleep_until(Instant::now() + Linger::TIME)),
            bytes_left: Linger::BYTES,
        });
        let mut scratch = [0; 4096];
        while linger.timer.as_mut().poll(cx).is_pending() {
            let mut buffer = ReadBuf::new(&mut scratch);
            let read = ready!(Pin::new(&mut *stream).poll_read(cx, &mut buffer));
            let count = buffer.filled().len();
            if read.is_err() || count == 0 || count > linger.bytes_left {
                break;
            }
            linger.bytes_left -= count;
        }
        Poll::Ready(Ok(()))
    }
}

/// A timer that is cheap to postpone: it fires early, looks at the deadline again, and goes on.
#[derive(Debug, Default)]
struct Timer(Option<Pin<Box<Sleep>>>);

impl Timer {
    fn poll(&mut self, cx: &mut Context<'_>, deadline: Instant) -> Poll<()> {
        let sleep = self.0.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if sleep.deadline() > deadline {
            sleep.as_mut().reset(deadline);
        }
        loop {
            ready!(sleep.as_mut().poll(cx));
            if sleep.deadline() >= deadline {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(deadline);
        }
    }
}
