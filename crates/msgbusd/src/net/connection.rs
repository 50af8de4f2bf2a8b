//! A connection with or without TLS.

use std::{io, sync::Arc};

use tokio_rustls::{rustls::ServerConfig, server::TlsStream};
use tokio_util::either::Either;

use crate::net::{raw_stream::RawStream, timeout_stream::TimeoutStream, tls};

/// The byte stream that doors use: unencrypted or TLS.
pub(crate) type Connection = Either<TimeoutStream, Box<TlsStream<TimeoutStream>>>;

/// Accepts a TLS handshake, if there are settings for one.
///
/// # Errors
/// When it fails or the connection breaks.
pub(crate) async fn encrypt(
    settings: Option<Arc<ServerConfig>>,
    stream: TimeoutStream,
) -> io::Result<Connection> {
    Ok(match settings {
        None => Either::Left(stream),
        Some(settings) => Either::Right(Box::new(tls::accept(settings, stream).await?)),
    })
}

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
