//! Connections to a server: TCP, TLS or a unix socket. No other module opens connections.

use std::{
    error::Error,
    future::poll_fn,
    io::{self, IoSlice},
    net::SocketAddr,
    path::Path,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use hyper::Uri;
use hyper_util::{
    client::legacy::connect::{self, Connected, HttpConnector},
    rt::TokioIo,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream},
    time::timeout,
};
use tokio_rustls::client::TlsStream;
use tower_service::Service;

use crate::{
    error::root_cause,
    tls::{Roots, Tls},
    uri::{Endpoint, ServerUri},
};

/// A connection to a server.
#[derive(Debug)]
pub struct Connection(Stream);

#[derive(Debug)]
enum Stream {
    /// Unencrypted.
    Tcp {
        stream: TcpStream,
        /// Whether any byte has been received.
        has_received: bool,
    },
    /// Encrypted; the server's certificate has been verified.
    Tls(Box<TlsStream<TcpStream>>),
    Unix(UnixStream),
}

/// Opens connections to one server.
#[derive(Debug, Clone)]
pub struct Connector(Kind);

#[derive(Debug, Clone)]
enum Kind {
    Host { route: Route, tls: Option<Tls> },
    Socket(Arc<Path>),
}

#[derive(Debug, Clone)]
enum Route {
    /// Resolves a name and tries its addresses, IPv6 and IPv4 in parallel (Happy Eyeballs).
    Name {
        tcp: HttpConnector,
        uri: Uri,
    },
    Address(SocketAddr),
}

impl Connector {
    /// The time limit for opening a connection, including the TLS handshake.
    const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

    pub(crate) fn new(server: &ServerUri) -> Self {
        Self(match server.endpoint() {
            Endpoint::Host { secure, host, port } => {
                Kind::Host { route: Route::to(host, *port), tls: secure.then(|| Tls::new(host)) }
            }
            Endpoint::Socket(path) => Kind::Socket(path.as_path().into()),
        })
    }

    /// Replaces the system's root certificates. Does nothing without TLS.
    pub(crate) fn with_roots(mut self, roots: Roots) -> Self {
        if let Kind::Host { tls: Some(tls), .. } = &mut self.0 {
            tls.trust(roots);
        }
        self
    }

    /// Connects once, and returns a connector that keeps using the resolved address.
    ///
    /// # Errors
    /// See [`connect`](Self::connect).
    pub async fn resolved(self) -> io::Result<Self> {
        Ok(match (self.connect().await?.peer()?, self.0) {
            (Some(address), Kind::Host { tls, .. }) => {
                Self(Kind::Host { route: Route::Address(address), tls })
            }
            (_, kind) => Self(kind),
        })
    }

    /// Opens a connection. Errors have a text for people, with a hint where there is one.
    ///
    /// # Errors
    /// The server cannot be reached, does not answer within 10 s, or its certificate cannot be
    /// verified.
    pub async fn connect(&self) -> io::Result<Connection> {
        let timed_out = |_| io::Error::new(io::ErrorKind::TimedOut, "no response within 10 s");
        timeout(Self::CONNECT_TIMEOUT, self.reach()).await.map_err(timed_out)?
    }

    async fn reach(&self) -> io::Result<Connection> {
        match &self.0 {
            Kind::Host { route, tls: None } => {
                let stream = route.reach().await?;
                Ok(Connection(Stream::Tcp { stream, has_received: false }))
            }
            Kind::Host { route, tls: Some(tls) } => {
                let stream = tls.handshake(route.reach().await?).await?;
                Ok(Connection(Stream::Tls(Box::new(stream))))
            }
            Kind::Socket(path) => {
                let stream = UnixStream::connect(path).await.map_err(socket_error)?;
                Ok(Connection(Stream::Unix(stream)))
            }
        }
    }
}

fn socket_error(error: io::Error) -> io::Error {
    let text = match error.kind() {
        io::ErrorKind::NotFound => "there is no such socket; is msgbusd running?",
        io::ErrorKind::PermissionDenied => {
            "permission denied; the socket is for other users of this machine"
        }
        _ => return error,
    };
    io::Error::new(error.kind(), text)
}

impl Route {
    /// `host` is in URI form: an IPv6 address is in brackets.
    fn to(host: &str, port: u16) -> Self {
        let mut tcp = HttpConnector::new();
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(Connector::CONNECT_TIMEOUT));
        // The connector only opens the TCP connection; TLS is added separately.
        let uri = Uri::builder().scheme("http").authority(format!("{host}:{port}"));
        // Cannot fail: the host comes from a parsed URI.
        Self::Name { tcp, uri: uri.path_and_query("/").build().unwrap_or_default() }
    }

    async fn reach(&self) -> io::Result<TcpStream> {
        match self {
            Self::Name { tcp, uri } => {
                let mut tcp = tcp.clone();
                let connected = async {
                    poll_fn(|cx| tcp.poll_ready(cx)).await?;
                    tcp.call(uri.clone()).await
                };
                let host = uri.host().unwrap_or_default();
                connected.await.map(TokioIo::into_inner).map_err(|error| cause(&error, host))
            }
            Self::Address(address) => {
                let stream = TcpStream::connect(address).await?;
                // An optimization only; the connection works without it.
                let _ = stream.set_nodelay(true);
                Ok(stream)
            }
        }
    }
}

/// Reduces an error of the connector to the system's error.
fn cause(error: &(dyn Error + 'static), host: &str) -> io::Error {
    let cause = root_cause(error);
    // The connector identifies a failed name resolution by its text only.
    if error.to_string().starts_with("dns error") {
        return match cause.to_string() {
            text if text.contains("Temporary failure") => {
                let text = format!("cannot resolve {host}: temporary failure in name resolution");
                io::Error::new(io::ErrorKind::HostUnreachable, text)
            }
            _ => io::Error::other(format!("unknown host {host}")),
        };
    }
    let system = cause.downcast_ref::<io::Error>();
    io::Error::new(system.map_or(io::ErrorKind::Other, io::Error::kind), cause.to_string())
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Connection>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// Ignores the URI: the connector serves one server only.
    fn call(&mut self, _: Uri) -> Self::Future {
        let connector = self.clone();
        Box::pin(async move { connector.connect().await.map(TokioIo::new) })
    }
}

impl connect::Connection for Connection {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl Connection {
    /// The address of the server; `None` for a unix socket.
    fn peer(&self) -> io::Result<Option<SocketAddr>> {
        match &self.0 {
            Stream::Tcp { stream, .. } => stream.peer_addr().map(Some),
            Stream::Tls(stream) => stream.get_ref().0.peer_addr().map(Some),
            Stream::Unix(_) => Ok(None),
        }
    }
}

/// Detects a TLS server behind an unencrypted connection by the first bytes it sends.
fn reject_tls_alert(bytes: &[u8]) -> io::Result<()> {
    // RFC 8446, section 5.1: an alert record of any version. No HTTP response begins like this.
    const ALERT: [u8; 2] = [21, 3];
    if bytes.starts_with(&ALERT) {
        let text = "it speaks TLS; is it https:// and not http://?";
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    Ok(())
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.get_mut().0 {
            Stream::Tcp { stream, has_received: true } => Pin::new(stream).poll_read(cx, buffer),
            Stream::Tcp { stream, has_received } => {
                let before = buffer.filled().len();
                ready!(Pin::new(stream).poll_read(cx, buffer))?;
                *has_received = true;
                Poll::Ready(reject_tls_alert(&buffer.filled()[before..]))
            }
            Stream::Tls(stream) => match ready!(Pin::new(stream).poll_read(cx, buffer)) {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Poll::Ready(Err(
                    io::Error::new(error.kind(), "closed without TLS close_notify"),
                )),
                read => Poll::Ready(read),
            },
            Stream::Unix(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().0 {
            Stream::Tcp { stream, .. } => Pin::new(stream).poll_write(cx, bytes),
            Stream::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
            Stream::Unix(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().0 {
            Stream::Tcp { stream, .. } => Pin::new(stream).poll_write_vectored(cx, parts),
            Stream::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, parts),
            Stream::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, parts),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.0 {
            Stream::Tcp { stream, .. } => stream.is_write_vectored(),
            Stream::Tls(stream) => stream.is_write_vectored(),
            Stream::Unix(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().0 {
            Stream::Tcp { stream, .. } => Pin::new(stream).poll_flush(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().0 {
            Stream::Tcp { stream, .. } => Pin::new(stream).poll_shutdown(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
