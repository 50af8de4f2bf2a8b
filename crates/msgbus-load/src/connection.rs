//! Connections to a server. All of them share one read buffer.

use std::{
    cell::RefCell,
    fmt::{self, Debug, Formatter},
    future::poll_fn,
    io,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf},
    net::TcpStream,
    time::timeout,
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// In bytes.
const READ_BUFFER_SIZE: usize = 256 << 10;

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; READ_BUFFER_SIZE]);
}

/// A byte stream in both directions.
pub trait Stream: AsyncRead + AsyncWrite + Debug + Unpin {}

impl<T: AsyncRead + AsyncWrite + Debug + Unpin> Stream for T {}

/// A connection attempt.
pub type Connecting<'a> = Pin<Box<dyn Future<Output = io::Result<Box<dyn Stream>>> + 'a>>;

/// Opens connections to a server. A [`SocketAddr`] connects with TCP.
pub trait Connect: Debug {
    /// Opens a connection.
    fn connect(&self) -> Connecting<'_>;
}

impl Connect for SocketAddr {
    fn connect(&self) -> Connecting<'_> {
        Box::pin(async move {
            let stream = TcpStream::connect(self).await?;
            stream.set_nodelay(true)?;
            Ok(Box::new(stream) as Box<dyn Stream>)
        })
    }
}

/// Opens connections by calling a function.
pub struct ConnectFn<F>(pub F);

impl<F> Debug for ConnectFn<F> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str("ConnectFn")
    }
}

impl<F, C, S> Connect for ConnectFn<F>
where
    F: Fn() -> C,
    C: Future<Output = io::Result<S>> + 'static,
    S: Stream + 'static,
{
    fn connect(&self) -> Connecting<'_> {
        let connect = (self.0)();
        Box::pin(async { Ok(Box::new(connect.await?) as Box<dyn Stream>) })
    }
}

#[derive(Debug)]
pub(crate) struct Connection {
    stream: Box<dyn Stream>,
    /// The incomplete end of the input so far.
    rest: Vec<u8>,
}

impl Connection {
    pub(crate) async fn open(server: &dyn Connect) -> io::Result<Self> {
        let stream = timeout(CONNECT_TIMEOUT, server.connect())
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        Ok(Self { stream, rest: Vec::new() })
    }

    pub(crate) async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await?;
        // TLS may buffer data.
        self.stream.flush().await
    }

    /// Reads once. `parse` consumes the complete frames and returns their length in bytes.
    pub(crate) async fn read(
        &mut self,
        mut parse: impl FnMut(&[u8]) -> io::Result<usize>,
    ) -> io::Result<()> {
        poll_fn(|cx| self.poll_read(cx, &mut parse)).await
    }

    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        parse: &mut impl FnMut(&[u8]) -> io::Result<usize>,
    ) -> Poll<io::Result<()>> {
        SCRATCH.with_borrow_mut(|scratch| {
            let mut buffer = ReadBuf::new(scratch);
            ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer))?;
            let input = buffer.filled();
            Poll::Ready(match input {
                [] => Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the server closed the connection",
                )),
                _ => self.take(input, parse),
            })
        })
    }

    fn take(
        &mut self,
        input: &[u8],
        parse: &mut impl FnMut(&[u8]) -> io::Result<usize>,
    ) -> io::Result<()> {
        if self.rest.is_empty() {
            let used = parse(input)?;
            self.rest.extend_from_slice(&input[used..]);
        } else {
            self.rest.extend_from_slice(input);
            let used = parse(&self.rest)?;
            self.rest.drain(..used);
        }
        if self.rest.is_empty() {
            // Frees the memory, because thousands of connections may be open.
            self.rest = Vec::new();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, BufStream, duplex};

    use super::*;

    #[tokio::test]
    async fn nothing_that_is_written_is_kept_back() {
        let (near, mut far) = duplex(64);
        let stream = Box::new(BufStream::new(near));
        let mut connection = Connection { stream, rest: Vec::new() };
        connection.write(b"x").await.unwrap();
        let read = timeout(Duration::ZERO, far.read_u8()).await;
        assert_eq!(read.expect("it should be there already").unwrap(), b'x');
    }
}
