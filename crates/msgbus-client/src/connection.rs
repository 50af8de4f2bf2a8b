//! Connections to a server, of whatever kind: the only place that makes them.

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
    uri::{Place, ServerUri},
};

/// A connection to a server.
#[derive(Debug)]
pub struct Connection(Stream);

#[derive(Debug)]
enum Stream {
    /// In the clear.
    Tcp {
        stream: TcpStream,
        /// Whether anything has come.
        heard: bool,
    },
    /// Encrypted, to a server that has proved its name.
    Tls(Box<TlsStream<TcpStream>>),
    /// Within this machine.
    Unix(UnixStream),
}

/// Makes connections to one server.
#[derive(Debug, Clone)]
pub struct Connector(Kind);

#[derive(Debug, Clone)]
enum Kind {
    Host { route: Route, tls: Option<Tls> },
    Socket(Arc<Path>),
}

#[derive(Debug, Clone)]
enum Route {
    /// Tries all addresses of a name, those of both families at nearly the same time.
    Name {
        tcp: HttpConnector,
        uri: Uri,
    },
    Address(SocketAddr),
}

impl Connector {
    /// How long a connection may take to be made.
    const PATIENCE: Duration = Duration::from_secs(10);

    pub(crate) fn new(server: &ServerUri) -> Self {
        Self(match server.place() {
            Place::Host { secure, host, port } => {
                Kind::Host { route: Route::to(host, *port), tls: secure.then(|| Tls::new(host)) }
            }
            Place::Socket(path) => Kind::Socket(path.as_path().into()),
        })
    }

    /// The same with other roots than the system's, where TLS is spoken at all.
    pub(crate) fn with_roots(mut self, roots: Roots) -> Self {
        if let Kind::Host { tls: Some(tls), .. } = &mut self.0 {
            tls.trust(roots);
        }
        self
    }

    /// Connects, and returns a connector that goes to the same address ever after, without asking
    /// for the name again.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub async fn settled(self) -> io::Result<Self> {
        Ok(match (self.connect().await?.peer()?, self.0) {
            (Some(address), Kind::Host { tls, .. }) => {
                Self(Kind::Host { route: Route::Address(address), tls })
            }
            (_, kind) => Self(kind),
        })
    }

    /// Makes a connection. The text of an error is for people, and says what may help.
    ///
    /// # Errors
    /// When there is nobody, when nobody answers for 10 s, or when the server does not prove its
    /// name to those who are trusted.
    pub async fn connect(&self) -> io::Result<Connection> {
        let silence = |_| io::Error::new(io::ErrorKind::TimedOut, "it does not answer");
        timeout(Self::PATIENCE, self.reach()).await.map_err(silence)?
    }

    async fn reach(&self) -> io::Result<Connection> {
        match &self.0 {
            Kind::Host { route, tls: None } => {
                let stream = route.reach().await?;
                Ok(Connection(Stream::Tcp { stream, heard: false }))
            }
            Kind::Host { route, tls: Some(tls) } => {
                let stream = tls.handshake(route.reach().await?).await?;
                Ok(Connection(Stream::Tls(Box::new(stream))))
            }
            Kind::Socket(path) => {
                let stream = UnixStream::connect(path).await.map_err(no_socket)?;
                Ok(Connection(Stream::Unix(stream)))
            }
        }
    }
}

fn no_socket(error: io::Error) -> io::Error {
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
    /// The host is as in a URI.
    fn to(host: &str, port: u16) -> Self {
        let mut tcp = HttpConnector::new();
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(Connector::PATIENCE));
        // The address is all that is asked of this connector; TLS comes on top.
        let uri = Uri::builder().scheme("http").authority(format!("{host}:{port}"));
        // What was part of a URI is good for another one.
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
                // A socket that refuses still works.
                let _ = stream.set_nodelay(true);
                Ok(stream)
            }
        }
    }
}

/// Only what the system said.
fn cause(error: &(dyn Error + 'static), host: &str) -> io::Error {
    let cause = root_cause(error);
    // The connector says no more of what failed.
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

    /// The URI is one of the server's; there is no other.
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
    /// The address at the other end, where there is one.
    fn peer(&self) -> io::Result<Option<SocketAddr>> {
        match &self.0 {
            Stream::Tcp { stream, .. } => stream.peer_addr().map(Some),
            Stream::Tls(stream) => stream.get_ref().0.peer_addr().map(Some),
            Stream::Unix(_) => Ok(None),
        }
    }
}

/// The first bytes that come in the clear must not be TLS.
fn check_beginning(bytes: &[u8]) -> io::Result<()> {
    // RFC 8446, section 5.1: an alert, in any version. No HTTP begins like that.
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
            Stream::Tcp { stream, heard: true } => Pin::new(stream).poll_read(cx, buffer),
            Stream::Tcp { stream, heard } => {
                let before = buffer.filled().len();
                ready!(Pin::new(stream).poll_read(cx, buffer))?;
                *heard = true;
                Poll::Ready(check_beginning(&buffer.filled()[before..]))
            }
            Stream::Tls(stream) => match ready!(Pin::new(stream).poll_read(cx, buffer)) {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    Poll::Ready(Err(io::Error::new(error.kind(), "closed in the middle of it")))
                }
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
