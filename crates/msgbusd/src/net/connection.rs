//! A connection with or without TLS.

use std::sync::Arc;

use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;

use crate::{net::raw_stream::RawStream, net::timeout_stream::TimeoutStream, net::tls};

/// The maximum number of concurrent requests, and thus subscriptions, on one HTTP/2 connection.
pub(crate) const MAX_STREAMS: u32 = 32;

/// The byte stream that doors use: unencrypted or TLS.
pub(crate) type Connection = Either<TimeoutStream, Box<TlsStream<TimeoutStream>>>;

/// Whether the client negotiated HTTP/2.
pub(crate) fn is_http2(connection: &Connection) -> bool {
    match connection {
        Either::Left(_) => false,
        Either::Right(stream) => stream.get_ref().1.alpn_protocol() == Some(tls::HTTP_2),
    }
}

/// The socket for writes that bypass the connection. `None` if the connection adds bytes of its own (TLS) or still
/// holds bytes that go out first.
pub(crate) fn direct(connection: &Connection) -> Option<Arc<RawStream>> {
    match connection {
        Either::Left(stream) => stream.direct(),
        Either::Right(_) => None,
    }
}
