//! What a client speaks over: in the clear or in TLS.

use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;

use crate::{socket::Socket, tls};

/// The most requests at a time on one connection of HTTP/2, and so subscriptions.
pub(crate) const MOST_STREAMS: u32 = 32;

/// A connection as the doors use it: in the clear, or in TLS.
pub(crate) type Connection = Either<Socket, Box<TlsStream<Socket>>>;

/// Whether HTTP/2 was agreed upon.
pub(crate) fn is_http2(connection: &Connection) -> bool {
    match connection {
        Either::Left(_) => false,
        Either::Right(stream) => stream.get_ref().1.alpn_protocol() == Some(tls::HTTP_2),
    }
}
