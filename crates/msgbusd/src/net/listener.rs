//! Listeners on TCP addresses and unix sockets.

use std::{
    fmt, fs,
    io::{self, ErrorKind},
    net::{Ipv4Addr, SocketAddr},
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use socket2::{Domain, Protocol, SockAddr, Socket as RawSocket, TcpKeepalive, Type};
use tokio::net::{TcpListener, UnixListener};

use crate::net::raw_stream::Accepted;

const BACKLOG: i32 = 1024;
/// Detects peers that vanished without closing their connection. A raw stream of a silent topic sends nothing, so
/// nothing else would detect it.
const KEEPALIVE: TcpKeepalive = TcpKeepalive::new()
    .with_time(Duration::from_secs(60))
    .with_interval(Duration::from_secs(15))
    .with_retries(4);

/// An endpoint to listen on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bind {
    /// An address; port 0 picks a free one.
    Tcp(SocketAddr),
    /// A unix socket at this path.
    Unix(PathBuf),
}

impl Bind {
    /// Whether other machines may be able to reach the endpoint.
    pub fn is_reachable(&self) -> bool {
        matches!(self, Self::Tcp(address) if !address.ip().is_loopback())
    }
}

impl fmt::Display for Bind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A listening socket.
#[derive(Debug)]
pub(crate) enum Listener {
    Tcp(TcpListener),
    Unix { listener: UnixListener, file: SocketFile },
}

impl Listener {
    /// # Errors
    /// When the endpoint cannot be listened on.
    ///
    /// # Panics
    /// When called outside a tokio runtime.
    pub(crate) fn new(bind: &Bind) -> io::Result<Self> {
        match bind {
            Bind::Tcp(address) => listen(*address).map(Self::Tcp),
            Bind::Unix(path) => {
                let listener = listen_at(path)?;
                Ok(Self::Unix { listener, file: SocketFile::new(path)? })
            }
        }
    }

    /// The endpoint it listens on. Port 0 is replaced by the port that the system picked.
    pub(crate) fn local_endpoint(&self) -> io::Result<Bind> {
        Ok(match self {
            Self::Tcp(listener) => Bind::Tcp(listener.local_addr()?),
            Self::Unix { file, .. } => Bind::Unix(file.path.clone()),
        })
    }

    /// Accepts the next connection. Returns the peer's address for TCP.
    pub(crate) async fn accept(&self) -> io::Result<(Accepted, Option<SocketAddr>)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                Ok((Accepted::Tcp(stream.into_std()?), Some(peer)))
            }
            Self::Unix { listener, .. } => {
                let (stream, _) = listener.accept().await?;
                Ok((Accepted::Unix(stream.into_std()?), None))
            }
        }
    }
}

/// The unspecified IPv6 address listens on all interfaces of both protocols, and of IPv4 alone on a system without
/// IPv6.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket =
        match RawSocket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP)) {
            Err(_) if address.is_ipv6() && address.ip().is_unspecified() => {
                return listen(SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port())));
            }
            socket => socket?,
        };
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    socket.set_reuse_address(true)?;
    // Accepted connections inherit the option, which saves a system call for each.
    socket.set_tcp_keepalive(&KEEPALIVE)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Binds a unix socket. It replaces a stale socket file, which a server that was killed leaves behind.
fn listen_at(path: &Path) -> io::Result<UnixListener> {
    match UnixListener::bind(path) {
        Err(error) if error.kind() == ErrorKind::AddrInUse && is_stale(path) => {
            fs::remove_file(path)?;
            UnixListener::bind(path)
        }
        result => result,
    }
}

fn is_stale(path: &Path) -> bool {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket());
    let connect = || {
        let socket = RawSocket::new(Domain::UNIX, Type::STREAM, None)?;
        // A listener whose backlog is full would block the connect; it is not stale.
        socket.set_nonblocking(true)?;
        socket.connect(&SockAddr::unix(path)?)
    };
    is_socket && connect().is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

/// The file of a unix socket. It is removed when this is dropped.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    /// Device and inode. A file that has replaced this one meanwhile is not removed.
    identity: (u64, u64),
}

impl SocketFile {
    fn new(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), identity: identity(path)? })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|identity| identity == self.identity) {
            // If it fails, the next server replaces the stale file.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let file = fs::symlink_metadata(path)?;
    Ok((file.dev(), file.ino()))
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, thread};

    use socket2::SockRef;
    use tokio::net::TcpStream;

    use super::*;

    #[tokio::test]
    async fn accepted_connections_have_keepalive() {
        for bind in ["127.0.0.1:0", "[::]:0"] {
            let listener = listen(bind.parse().unwrap()).unwrap();
            let port = listener.local_addr().unwrap().port();
            let _client = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            let (accepted, _) = listener.accept().await.unwrap();
            let accepted = SockRef::from(&accepted);
            assert!(accepted.keepalive().unwrap());
            assert_eq!(accepted.tcp_keepalive_time().unwrap(), Duration::from_secs(60));
            assert_eq!(accepted.tcp_keepalive_interval().unwrap(), Duration::from_secs(15));
            assert_eq!(accepted.tcp_keepalive_retries().unwrap(), 4);
        }
    }

    #[tokio::test]
    async fn a_socket_file_is_removed_with_its_listener_and_a_stale_one_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let bind = Bind::Unix(directory.path().join("bus.sock"));
        let Bind::Unix(path) = &bind else { unreachable!() };
        drop(UnixListener::bind(path).unwrap());
        assert!(path.exists(), "stale");

        let listener = Listener::new(&bind).unwrap();
        assert_eq!(Listener::new(&bind).unwrap_err().kind(), ErrorKind::AddrInUse);
        assert!(path.exists(), "it is in use");
        drop(listener);
        assert!(!path.exists());

        fs::write(path, "precious").unwrap();
        assert_eq!(Listener::new(&bind).unwrap_err().kind(), ErrorKind::AddrInUse);
        assert_eq!(fs::read(path).unwrap(), b"precious");
    }

    #[test]
    fn a_socket_whose_queue_is_full_is_in_use() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("bus.sock");
        let address = SockAddr::unix(&path).unwrap();
        let unix = || RawSocket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        let busy = unix();
        busy.bind(&address).unwrap();
        busy.listen(0).unwrap();
        let mut waiting = Vec::new();
        loop {
            let socket = unix();
            socket.set_nonblocking(true).unwrap();
            if socket.connect(&address).is_err() {
                break;
            }
            waiting.push(socket);
        }
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || sender.send(is_stale(&path)));
        assert_eq!(receiver.recv_timeout(Duration::from_secs(10)), Ok(false));
    }

    #[tokio::test]
    async fn a_socket_of_another_process_is_not_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("bus.sock");
        let listener = Listener::new(&Bind::Unix(path.clone())).unwrap();
        fs::remove_file(&path).unwrap();
        let other = UnixListener::bind(&path).unwrap();
        drop(listener);
        assert!(path.exists());
        drop(other);
    }
}
