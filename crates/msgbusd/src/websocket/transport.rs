//! One websocket on a connection. The library reads, and writes control frames; shared frames bypass it, because it would
//! copy each of them into its own buffer.

use std::{
    io::{self, ErrorKind, Read, Write},
    ops::Range,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::tungstenite::{
    Error, Message,
    error::ProtocolError,
    protocol::{CloseFrame, Role, WebSocketConfig, WebSocketContext},
};

use super::{
    inbox::{Inbox, Next},
    outgoing::Outgoing,
};

/// The maximum size of a frame and of a message from a client, in bytes. Data from clients is read and ignored.
const MAX_CLIENT_FRAME: usize = 64 << 10;
/// The size of the library's read buffer, in bytes.
const READ_BUFFER: usize = 128;
/// The maximum number of bytes of control frames that wait here. The library buffers as many again, and then keeps only
/// the latest pong.
const CONTROL_BUFFER: usize = 1 << 10;

/// The server's end of a websocket.
pub(crate) struct Transport<S> {
    connection: S,
    library: WebSocketContext,
    /// Control frames of the library.
    control: BytesMut,
    /// Whether the library holds control frames that did not fit into `control`.
    is_held_back: bool,
    needs_flush: bool,
    /// Whether reading has failed. Nothing can be read after that.
    is_over: bool,
    /// Reads data frames. `None` if data is ignored: then the library reads it.
    inbox: Option<Box<Inbox>>,
}

/// What a client has sent.
#[derive(Debug)]
pub(crate) enum Received {
    /// A text message, which is in the inbox.
    Text,
    Binary,
    Control(Message),
}

impl<S: AsyncRead + AsyncWrite + Unpin> Transport<S> {
    /// Takes over a connection whose client is expected to send nothing. `already_read` has the bytes that were read
    /// from it before.
    pub(crate) fn new(connection: S, already_read: Vec<u8>) -> Self {
        Self::with(connection, already_read, None)
    }

    /// Takes over a connection whose client sends text messages of up to `max` bytes.
    pub(crate) fn with_inbox(connection: S, already_read: Vec<u8>, max: usize) -> Self {
        Self::with(connection, Vec::new(), Some(Box::new(Inbox::new(already_read, max, false))))
    }

    /// Takes over a connection that is no websocket: a stream of bytes, which arrive as text messages, without frames.
    pub(crate) fn stream(connection: S) -> Self {
        Self::with(connection, Vec::new(), Some(Box::new(Inbox::new(Vec::new(), 0, true))))
    }

    pub(crate) fn is_stream(&self) -> bool {
        self.inbox.as_ref().is_some_and(|inbox| inbox.is_stream())
    }

    fn with(connection: S, already_read: Vec<u8>, inbox: Option<Box<Inbox>>) -> Self {
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER)
            .write_buffer_size(0)
            .max_write_buffer_size(CONTROL_BUFFER)
            .max_message_size(Some(MAX_CLIENT_FRAME))
            .max_frame_size(Some(MAX_CLIENT_FRAME));
        Self {
            connection,
            library: WebSocketContext::from_partially_read(
                already_read,
                Role::Server,
                Some(config),
            ),
            control: BytesMut::new(),
            is_held_back: false,
            needs_flush: false,
            is_over: false,
            inbox,
        }
    }

    pub(crate) fn connection(&self) -> &S {
        &self.connection
    }

    pub(crate) fn into_connection(self) -> S {
        self.connection
    }

    /// Polls for the next message of the client. Replies to pings and to a close frame are queued for writing.
    pub(crate) fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<Message, Error>> {
        if self.is_over {
            return Poll::Ready(Err(Error::AlreadyClosed));
        }
        if self.inbox.is_some() {
            // Data is ignored here, too.
            return self.poll_receive(cx).map_ok(|received| match received {
                Received::Control(message) => message,
                Received::Text | Received::Binary => Message::Binary(Bytes::new()),
            });
        }
        match self.with_library(cx, read) {
            Err(error) if is_waiting(&error) => Poll::Pending,
            result => {
                self.is_over = result.is_err();
                Poll::Ready(result)
            }
        }
    }

    /// Polls for the next message, with an inbox.
    pub(crate) fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<Result<Received, Error>> {
        loop {
            if let Some(received) = self.next_received().transpose() {
                return Poll::Ready(received);
            }
            ready!(self.poll_fill(cx))?;
        }
    }

    /// The next message that has arrived as a whole, if there is an inbox. Replies to pings and to a close frame are
    /// queued for writing.
    pub(crate) fn next_received(&mut self) -> Result<Option<Received>, Error> {
        let Some(inbox) = &mut self.inbox else { return Ok(None) };
        let next = if self.is_over { Err(Error::AlreadyClosed) } else { inbox.next() };
        let received = match next {
            Ok(Next::NeedsMore) => Ok(None),
            Ok(Next::Text) => Ok(Some(Received::Text)),
            Ok(Next::Binary) => Ok(Some(Received::Binary)),
            Ok(Next::Control(frame)) => self.read_control(frame).map(Received::Control).map(Some),
            Err(error) => Err(error),
        };
        self.is_over |= received.is_err();
        received
    }

    /// Lets the library read a control frame that is in the inbox.
    fn read_control(&mut self, frame: Range<usize>) -> Result<Message, Error> {
        let Self { inbox, library, control, is_held_back, is_over, .. } = self;
        let frame = inbox.as_ref().map_or(&[][..], |inbox| inbox.frame(frame));
        let source: Source<'_, '_, S> = Source::Frame(frame);
        let wire = &mut Wire { source, control, is_held_back };
        let message = read(library, wire)?;
        if message.is_close() {
            // The library is not asked to read again, at which it would queue its reply. Its error says that all is over.
            let _ = library.flush(wire);
            *is_over = true;
        }
        Ok(message)
    }

    /// Reads more into the inbox.
    pub(crate) fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let Self { connection, inbox: Some(inbox), .. } = self else { return Poll::Pending };
        let filled = match ready!(inbox.poll_fill(connection, cx)) {
            Ok(0) if inbox.is_stream() => Err(Error::ConnectionClosed),
            Ok(0) => Err(ProtocolError::ResetWithoutClosingHandshake.into()),
            Ok(_) => Ok(()),
            Err(error) => Err(error.into()),
        };
        self.is_over = filled.is_err();
        Poll::Ready(filled)
    }

    /// The inbox, if it has one.
    pub(crate) fn inbox(&mut self) -> Option<&mut Inbox> {
        self.inbox.as_deref_mut()
    }

    /// Queues a ping. It is skipped if too many control frames wait, and on a stream.
    pub(crate) fn ping(&mut self, cx: &mut Context<'_>, payload: String) -> Result<(), Error> {
        if self.is_stream() {
            return Ok(());
        }
        let ping = Message::Ping(payload.into());
        held_back(self.with_library(cx, |library, wire| library.write(wire, ping)))
    }

    /// Queues a close frame.
    pub(crate) fn close(&mut self, cx: &mut Context<'_>, frame: CloseFrame) -> Result<(), Error> {
        held_back(self.with_library(cx, |library, wire| library.close(wire, Some(frame))))
    }

    /// Whether control frames wait to be written.
    pub(crate) fn has_control(&self, outgoing: &Outgoing) -> bool {
        self.is_held_back || !self.control.is_empty() || !outgoing.control.is_empty()
    }

    /// Writes everything that waits, with as few system calls as possible.
    pub(crate) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        outgoing: &mut Outgoing,
    ) -> Poll<io::Result<()>> {
        loop {
            self.hand_over(cx, outgoing);
            if outgoing.is_empty() {
                break;
            }
            ready!(outgoing.poll_write(cx, &mut self.connection))?;
            self.needs_flush = true;
        }
        if self.needs_flush {
            // TLS may still buffer some bytes.
            ready!(Pin::new(&mut self.connection).poll_flush(cx))?;
            self.needs_flush = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Queues the control frames after the frame that is being written.
    fn hand_over(&mut self, cx: &mut Context<'_>, outgoing: &mut Outgoing) {
        if !outgoing.control.is_empty() {
            return;
        }
        if self.is_held_back && self.control.len() < CONTROL_BUFFER {
            self.is_held_back = false;
            // Errors show up when reading.
            let _ = self.with_library(cx, |library, wire| library.flush(wire));
        }
        outgoing.control = std::mem::take(&mut self.control);
    }

    fn with_library<T>(
        &mut self,
        cx: &mut Context<'_>,
        act: impl FnOnce(&mut WebSocketContext, &mut Wire<'_, '_, S>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let Self { connection, library, control, is_held_back, .. } = self;
        let source = Source::Connection(connection, cx);
        act(library, &mut Wire { source, control, is_held_back })
    }
}

fn read<S: AsyncRead + Unpin>(
    library: &mut WebSocketContext,
    wire: &mut Wire<'_, '_, S>,
) -> Result<Message, Error> {
    let message = library.read(wire)?;
    if message.is_ping() {
        // Without the flush, the pong would wait for the next read. Errors show up there, too.
        let _ = library.flush(wire);
    }
    Ok(message)
}

fn is_waiting(error: &Error) -> bool {
    matches!(error, Error::Io(error) if error.kind() == ErrorKind::WouldBlock)
}

/// Ignores the errors by which the library says that it holds a frame back.
fn held_back(result: Result<(), Error>) -> Result<(), Error> {
    match result {
        Err(Error::WriteBufferFull(_)) => Ok(()),
        Err(error) if is_waiting(&error) => Ok(()),
        result => result,
    }
}

/// The connection as the library sees it.
struct Wire<'a, 'b, S> {
    source: Source<'a, 'b, S>,
    control: &'a mut BytesMut,
    is_held_back: &'a mut bool,
}

/// Where the library reads.
enum Source<'a, 'b, S> {
    Connection(&'a mut S, &'a mut Context<'b>),
    /// One frame, which was read before.
    Frame(&'a [u8]),
}

impl<S: AsyncRead + Unpin> Read for Wire<'_, '_, S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let (connection, cx) = match &mut self.source {
            Source::Connection(connection, cx) => (connection, cx),
            Source::Frame([]) => return Err(ErrorKind::WouldBlock.into()),
            Source::Frame(frame) => return frame.read(buffer),
        };
        let mut buffer = ReadBuf::new(buffer);
        match Pin::new(&mut **connection).poll_read(cx, &mut buffer) {
            Poll::Ready(result) => result.map(|()| buffer.filled().len()),
            Poll::Pending => Err(ErrorKind::WouldBlock.into()),
        }
    }
}

impl<S> Write for Wire<'_, '_, S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.control.len() >= CONTROL_BUFFER {
            *self.is_held_back = true;
            return Err(ErrorKind::WouldBlock.into());
        }
        self.control.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
