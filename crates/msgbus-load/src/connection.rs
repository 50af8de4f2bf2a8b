//! A connection that is read with one buffer for all of them; and how it is made.

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

const CONNECT_PATIENCE: Duration = Duration::from_secs(10);
/// In bytes.
const READ_AT_ONCE: usize = 256 << 10;

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; READ_AT_ONCE]);
}

/// What bytes go through, both ways.
pub trait Stream: AsyncRead + AsyncWrite + Debug + Unpin {}

impl<T: AsyncRead + AsyncWrite + Debug + Unpin> Stream for T {}

/// A stream that is being made.
pub type Dialing<'a> = Pin<Box<dyn Future<Output = io::Result<Box<dyn Stream>>> + 'a>>;

/// How a server is reached. An address is reached by TCP.
pub trait Dial: Debug {
    /// Makes a connection.
    fn dial(&self) -> Dialing<'_>;
}

impl Dial for SocketAddr {
    fn dial(&self) -> Dialing<'_> {
        Box::pin(async move {
            let stream = TcpStream::connect(self).await?;
            stream.set_nodelay(true)?;
            Ok(Box::new(stream) as Box<dyn Stream>)
        })
    }
}

/// A server that is reached by calling a function.
pub struct DialFn<F>(pub F);

impl<F> Debug for DialFn<F> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str("DialFn")
    }
}

impl<F, C, S> Dial for DialFn<F>
where
    F: Fn() -> C,
    C: Future<Output = io::Result<S>> + 'static,
    S: Stream + 'static,
{
    fn dial(&self) -> Dialing<'_> {
        let connect = (self.0)();
        Box::pin(async { Ok(Box::new(connect.await?) as Box<dyn Stream>) })
    }
}

#[derive(Debug)]
pub(crate) struct Connection {
    stream: Box<dyn Stream>,
    /// The beginning of something that has not come whole.
    rest: Vec<u8>,
}

impl Connection {
    pub(crate) async fn open(server: &dyn Dial) -> io::Result<Self> {
        let stream = timeout(CONNECT_PATIENCE, server.dial())
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        Ok(Self { stream, rest: Vec::new() })
    }

    pub(crate) async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await?;
        // What is encrypted may have been kept back.
        self.stream.flush().await
    }

    /// Reads once, and lets `parse` take of it what is whole: it says how many bytes that is.
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
                [] => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the server has closed")),
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
            // Thousands of these are open at a time.
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
