//! Writes a stream over HTTP/1.1, from its head to its last chunk. hyper has read the request, and no longer serves the
//! connection: it would keep two buffers of 8 KiB for as long as the stream lasts, and copy shared frames.

use std::{
    collections::VecDeque,
    future::poll_fn,
    io::{self, ErrorKind, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf as _, Bytes};
use hyper::{
    Response, Version,
    header::{self, HeaderValue},
    http::response,
};
use tokio::{
    io::{AsyncWrite, AsyncWriteExt as _},
    time::{Sleep, sleep},
};

use crate::{door::http::stream::StreamingBody, net::connection::Connection};

/// The maximum number of pieces in one write.
const MAX_SLICES: usize = 64;
/// How long a stream may take to end when its key is revoked.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// The size of most heads, in bytes.
const TYPICAL_HEAD: usize = 512;
const END_OF_CHUNK: Bytes = Bytes::from_static(b"\r\n");
const LAST_CHUNK: Bytes = Bytes::from_static(b"0\r\n\r\n");

/// Writes the response until it or the connection ends, and closes the connection.
///
/// # Errors
/// When the connection breaks; with [`ErrorKind::TimedOut`] when the peer accepts no bytes within the write timeout;
/// with [`ErrorKind::PermissionDenied`] when it accepts none and the keys no longer allow the stream.
pub(super) async fn serve(
    mut connection: Connection,
    response: Response<Box<StreamingBody>>,
) -> io::Result<()> {
    let (head, mut live) = response.into_parts();
    let is_chunked = head.version == Version::HTTP_11;
    if is_chunked {
        wrap(live.pieces());
    }
    live.pieces().push_front(encode(head).into());
    let mut stream = Stream { live, is_chunked, needs_flush: false, cut: None };
    poll_fn(|cx| stream.poll(cx, Pin::new(&mut connection))).await?;
    connection.shutdown().await
}

struct Stream {
    /// The body, with the pieces that wait to be written.
    live: Box<StreamingBody>,
    /// Not in HTTP/1.0, where the end of the connection ends the response.
    is_chunked: bool,
    needs_flush: bool,
    /// Set when the keys no longer allow the stream and the peer accepts no bytes.
    cut: Option<Pin<Box<Sleep>>>,
}

impl Stream {
    /// Writes and polls the body until both have to wait, or the stream is over.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        mut connection: Pin<&mut Connection>,
    ) -> Poll<io::Result<()>> {
        loop {
            if self.poll_write(cx, connection.as_mut())?.is_pending() {
                ready!(self.poll_cut(cx));
                return Poll::Ready(Err(ErrorKind::PermissionDenied.into()));
            }
            if self.live.is_over() {
                return Poll::Ready(Ok(()));
            }
            ready!(self.live.poll_more(cx));
            if self.is_chunked {
                wrap(self.live.pieces());
                if self.live.is_over() {
                    self.live.pieces().push_back(LAST_CHUNK);
                }
            }
        }
    }

    /// Writes everything that waits, with as few system calls as possible.
    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        mut connection: Pin<&mut Connection>,
    ) -> Poll<io::Result<()>> {
        let pieces = self.live.pieces();
        while !pieces.is_empty() {
            let mut slices = [IoSlice::new(&[]); MAX_SLICES];
            let count = pieces.len().min(MAX_SLICES);
            for (slice, piece) in slices.iter_mut().zip(&*pieces) {
                *slice = IoSlice::new(piece);
            }
            match ready!(connection.as_mut().poll_write_vectored(cx, &slices[..count]))? {
                0 => return Poll::Ready(Err(ErrorKind::WriteZero.into())),
                written => advance(pieces, written),
            }
            self.needs_flush = true;
        }
        // Streams are idle most of the time, so the queue's memory is freed.
        pieces.shrink_to_fit();
        if self.needs_flush {
            // TLS may still buffer some bytes.
            ready!(connection.poll_flush(cx))?;
            self.needs_flush = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Ready [`CLOSE_TIMEOUT`] after the keys stopped allowing the stream, so that a peer that accepts no bytes cannot
    /// keep it open.
    fn poll_cut(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let cut = match &mut self.cut {
            Some(cut) => cut,
            None => {
                ready!(self.live.poll_revoked(cx));
                self.cut.insert(Box::pin(sleep(CLOSE_TIMEOUT)))
            }
        };
        cut.as_mut().poll(cx)
    }
}

/// Wraps all pieces into one chunk (RFC 9112, section 7.1), if there are any.
fn wrap(pieces: &mut VecDeque<Bytes>) {
    let size: usize = pieces.iter().map(Bytes::len).sum();
    if size > 0 {
        pieces.push_front(format!("{size:x}\r\n").into());
        pieces.push_back(END_OF_CHUNK);
    }
}

/// Drops the first `count` bytes, which have been written.
fn advance(pieces: &mut VecDeque<Bytes>, mut count: usize) {
    while let Some(piece) = pieces.front_mut() {
        if count < piece.len() {
            return piece.advance(count);
        }
        count -= piece.len();
        pieces.pop_front();
    }
}

/// Encodes the status line and the headers (RFC 9112, sections 4 and 5).
fn encode(mut head: response::Parts) -> Vec<u8> {
    if head.version == Version::HTTP_11 {
        let chunked = HeaderValue::from_static("chunked");
        head.headers.insert(header::TRANSFER_ENCODING, chunked);
    }
    head.headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    let mut bytes = Vec::with_capacity(TYPICAL_HEAD);
    bytes.extend_from_slice(format!("{:?} {}\r\n", head.version, head.status).as_bytes());
    for (name, value) in &head.headers {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            bytes.extend_from_slice(part);
        }
    }
    bytes.extend_from_slice(b"\r\n");
    bytes
}
