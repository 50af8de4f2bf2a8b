//! A connection as HTTP uses it. It records the activity, holds responses back so that several are written together,
//! and can return bytes so that they are read a second time.

use std::{
    cell::Cell,
    future::poll_fn,
    io::{self, ErrorKind, IoSlice},
    iter, mem,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::activity::ConnectionActivity;
use crate::net::connection::Connection;

/// The stream that hyper reads and writes.
#[derive(Debug)]
pub(super) struct Transport {
    connection: Connection,
    activity: ConnectionActivity,
    /// Bytes that are read once more, before those of the connection.
    unread: Bytes,
    held: Held,
}

/// Responses that are held back to be written together: until there is nothing left to read, or nothing new to write.
#[derive(Debug, Default)]
struct Held {
    /// Has no capacity while nothing is held.
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

impl Transport {
    pub(super) fn new(connection: Connection, activity: ConnectionActivity) -> Self {
        Self { connection, activity, unread: Bytes::new(), held: Held::default() }
    }

    /// Returns bytes that were read, so that they are read once more.
    pub(super) fn unread(&mut self, bytes: Bytes) {
        self.unread = bytes;
    }

    /// Whether bytes that were returned are still to be read.
    pub(super) fn has_unread(&self) -> bool {
        !self.unread.is_empty()
    }

    /// Writes what is held back, and returns the connection. Call it when no returned bytes are left: they would be
    /// lost.
    ///
    /// # Errors
    /// When the connection breaks.
    pub(super) async fn into_connection(mut self) -> io::Result<Connection> {
        poll_fn(|cx| self.poll_release(cx)).await?;
        Ok(self.connection)
    }

    /// Holds bytes back to be written later. Returns `false` if they have to be written now.
    fn hold<'a>(&mut self, size: usize, bytes: impl Iterator<Item = &'a [u8]>) -> bool {
        let is_small = self.held.bytes.len() + size <= Held::MAX_BYTES;
        if !self.activity.may_hold() || !is_small || self.activity.is_writing() {
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
        if self.held.bytes.capacity() == 0 {
            return Poll::Ready(Ok(()));
        }
        self.poll_write_held(cx)
    }

    fn poll_write_held(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // From here on, the socket's readiness wakes the task.
        self.activity.set_holding(false);
        self.held.is_new = false;
        while !self.held.bytes.is_empty() {
            let polled = Pin::new(&mut self.connection).poll_write(cx, &self.held.bytes);
            match ready!(self.activity.polled_write(polled))? {
                0 => return Poll::Ready(Err(ErrorKind::WriteZero.into())),
                count => drop(self.held.bytes.drain(..count)),
            }
        }
        ready!(self.poll_flush_connection(cx))?;
        SPARE.set(mem::take(&mut self.held).bytes);
        Poll::Ready(Ok(()))
    }

    /// Writes what TLS has buffered.
    fn poll_flush_connection(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.connection).poll_flush(cx);
        if polled.is_ready() && !self.activity.is_writing() {
            return polled;
        }
        self.activity.polled_write(polled)
    }
}

impl AsyncRead for Transport {
    #[inline]
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // A client may wait for these responses before it sends more.
        ready!(self.poll_release(cx))?;
        if self.has_unread() {
            let count = self.unread.len().min(buffer.remaining());
            buffer.put_slice(&self.unread[..count]);
            self.unread.advance(count);
            if self.unread.is_empty() {
                // An empty slice would keep the whole read buffer alive.
                self.unread = Bytes::new();
            }
            return Poll::Ready(Ok(()));
        }
        let result = Pin::new(&mut self.connection).poll_read(cx, buffer);
        match &result {
            Poll::Ready(Ok(())) => self.activity.bytes_read(),
            Poll::Ready(Err(_)) => {}
            Poll::Pending => self.activity.nothing_to_read(),
        }
        result
    }
}

impl AsyncWrite for Transport {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.hold(bytes.len(), iter::once(bytes)) {
            return Poll::Ready(Ok(bytes.len()));
        }
        ready!(self.poll_release(cx))?;
        let polled = Pin::new(&mut self.connection).poll_write(cx, bytes);
        self.activity.polled_write(polled)
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
        let polled = Pin::new(&mut self.connection).poll_write_vectored(cx, slices);
        self.activity.polled_write(polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.connection.is_write_vectored()
    }

    /// Defers the flush if there are new responses, to write several together.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { held, activity, .. } = &mut *self;
        if held.is_new && held.flushes < Held::MAX_FLUSHES {
            held.is_new = false;
            held.flushes += 1;
            activity.set_holding(true);
            return Poll::Ready(Ok(()));
        }
        ready!(self.poll_release(cx))?;
        self.poll_flush_connection(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_release(cx))?;
        Pin::new(&mut self.connection).poll_shutdown(cx)
    }
}
