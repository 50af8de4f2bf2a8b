//! What a client speaks over: in the clear or in TLS.

use std::sync::Arc;

use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;

use crate::{net::raw_stream::RawStream, net::timeout_stream::TimeoutStream, net::tls};

/// The most requests at a time on one connection of HTTP/2, and so subscriptions.
pub(crate) const MOST_STREAMS: u32 = 32;

/// A connection as the doors use it: in the clear, or in TLS.
pub(crate) type Connection = Either<TimeoutStream, Box<TlsStream<TimeoutStream>>>;

/// Whether HTTP/2 was agreed upon.
pub(crate) fn is_http2(connection: &Connection) -> bool {
    match connection {
        Either::Left(_) => false,
        Either::Right(stream) => stream.get_ref().1.alpn_protocol() == Some(tls::HTTP_2),
    }
}

/// Where to write past the connection; `None` where something of its own may have to go first, or in between.
pub(crate) fn direct(connection: &Connection) -> Option<Arc<RawStream>> {
    match connection {
        Either::Left(socket) => socket.direct(),
        Either::Right(_) => None,
    }
}
