//! A connection with or without TLS.

use std::sync::Arc;

use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;

use crate::{net::raw_stream::RawStream, net::timeout_stream::TimeoutStream};

/// The byte stream that doors use: unencrypted or TLS.
pub(crate) type Connection = Either<TimeoutStream, Box<TlsStream<TimeoutStream>>>;

/// The application protocol that the client negotiated (ALPN). `None` without TLS.
pub(crate) fn protocol(connection: &Connection) -> Option<&[u8]> {
    match connection {
        Either::Left(_) => None,
        Either::Right(stream) => stream.get_ref().1.alpn_protocol(),
    }
}

/// The socket for writes that bypass the connection. `None` if the connection adds bytes of its own (TLS).
pub(crate) fn direct(connection: &Connection) -> Option<Arc<RawStream>> {
    match connection {
        Either::Left(stream) => Some(Arc::clone(stream.socket())),
        Either::Right(_) => None,
    }
}
