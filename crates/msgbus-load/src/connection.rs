//! A connection that is read with one buffer for all of them.

use std::{
    cell::RefCell,
    future::poll_fn,
    io,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWriteExt as _, ReadBuf},
    net::TcpStream,
    time::timeout,
};

const CONNECT_PATIENCE: Duration = Duration::from_secs(10);
/// In bytes.
const READ_AT_ONCE: usize = 256 << 10;

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; READ_AT_ONCE]);
}

#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    /// The beginning of something that has not come whole.
    rest: Vec<u8>,
}

impl Connection {
    pub(crate) async fn open(address: SocketAddr) -> io::Result<Self> {
        let stream = timeout(CONNECT_PATIENCE, TcpStream::connect(address))
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        stream.set_nodelay(true)?;
        Ok(Self { stream, rest: Vec::new() })
    }

    pub(crate) async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await
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
