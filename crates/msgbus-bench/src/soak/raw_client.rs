//! A raw HTTP client that can also break the rules: send half a request, read slowly, reset.

use std::{collections::HashMap, io, mem, net::SocketAddr, time::Duration};

use bytes::{Bytes, BytesMut};
use memchr::memmem;
use msgbus_load::ResponseHead;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream, rustls::pki_types::ServerName};
use tokio_util::either::Either;

/// The time limit for every operation. A longer wait counts as no response.
const TIMEOUT: Duration = Duration::from_secs(20);
const READ_BUFFER_SIZE: usize = 64 << 10;

/// How a client disconnects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cut {
    /// With a reset.
    Reset,
    /// With an orderly close, regardless of requests in flight.
    Close,
}

/// The address of the server, and whether it uses TLS.
#[derive(Clone)]
pub(super) struct Endpoint {
    pub(super) address: SocketAddr,
    /// Connects with TLS, if set.
    pub(super) tls: Option<TlsConnector>,
}

type Stream = Either<TcpStream, TlsStream<TcpStream>>;

pub(super) struct RawClient {
    stream: Stream,
    /// The received bytes that have not been consumed.
    pub(super) input: BytesMut,
    /// The received bytes of a chunked body that have not been decoded into `input`.
    chunks: Option<BytesMut>,
    is_at_end: bool,
}

/// The head of a response.
pub(super) struct Head {
    pub(super) status: u16,
    headers: HashMap<String, String>,
}

impl From<&ResponseHead<'_>> for Head {
    fn from(head: &ResponseHead<'_>) -> Self {
        let owned = |(name, value): (&str, &str)| (name.to_ascii_lowercase(), value.to_owned());
        Self { status: head.status(), headers: head.headers().map(owned).collect() }
    }
}

impl Head {
    /// The value of a numeric header.
    pub(super) fn number(&self, name: &str) -> Option<u64> {
        self.text(name)?.parse().ok()
    }

    /// The value of a header.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.headers.contains_key(name)
    }

    /// Whether the connection stays open for another request.
    pub(super) fn keeps_alive(&self) -> bool {
        self.headers.get("connection").is_none_or(|value| !value.eq_ignore_ascii_case("close"))
    }
}

impl RawClient {
    pub(super) async fn open(endpoint: &Endpoint) -> io::Result<Self> {
        // The system chooses the size of the receive buffer. With 4 KiB, Linux sometimes sends only when it probes the
        // window, less than 2 KiB every 200 ms: what the server has written then takes minutes to arrive.
        let stream = with_timeout(TcpStream::connect(endpoint.address)).await?;
        stream.set_nodelay(true)?;
        let stream = match &endpoint.tls {
            None => Either::Left(stream),
            Some(tls) => {
                let name = ServerName::IpAddress(endpoint.address.ip().into());
                Either::Right(with_timeout(tls.connect(name, stream)).await?)
            }
        };
        Ok(Self { stream, input: BytesMut::new(), chunks: None, is_at_end: false })
    }

    /// The address of this client, by which the server lists its subscriptions.
    pub(super) fn local_address(&self) -> io::Result<String> {
        Ok(tcp(&self.stream).local_addr()?.to_string())
    }

    pub(super) async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        with_timeout(async {
            self.stream.write_all(bytes).await?;
            self.stream.flush().await
        })
        .await
    }

    /// Shuts down the sending side. Responses still arrive.
    pub(super) async fn end_sending(&mut self) -> io::Result<()> {
        with_timeout(self.stream.shutdown()).await
    }

    /// Reads once; returns 0 at the end. Cancel safe.
    pub(super) async fn read_more(&mut self) -> io::Result<usize> {
        if self.is_at_end {
            return Ok(0);
        }
        let buffer = self.chunks.as_mut().unwrap_or(&mut self.input);
        buffer.reserve(READ_BUFFER_SIZE);
        let count = self.stream.read_buf(buffer).await?;
        self.take_chunks()?;
        Ok(count)
    }

    /// The number of bytes that were read and not consumed.
    pub(super) fn undecoded(&self) -> usize {
        self.input.len() + self.chunks.as_ref().map_or(0, BytesMut::len)
    }

    /// Treats everything after the head as a chunked body.
    pub(super) fn expect_chunks(&mut self) -> io::Result<()> {
        self.chunks = Some(mem::take(&mut self.input));
        self.take_chunks()
    }

    /// Moves the content of complete chunks to `input`.
    fn take_chunks(&mut self) -> io::Result<()> {
        let Some(chunks) = &mut self.chunks else { return Ok(()) };
        while let Some(head) = memmem::find(chunks, b"\r\n") {
            let length = str::from_utf8(&chunks[..head]).map_err(invalid)?;
            let length = usize::from_str_radix(length, 16).map_err(invalid)?;
            let begin = head + 2;
            if chunks.len() < begin + length + 2 {
                break;
            }
            let chunk = chunks.split_to(begin + length + 2);
            if !chunk.ends_with(b"\r\n") {
                return Err(invalid("a chunk without an end"));
            }
            self.input.extend_from_slice(&chunk[begin..begin + length]);
            self.is_at_end |= length == 0;
        }
        Ok(())
    }

    /// Reads the head of a response. What follows it stays in `input`.
    pub(super) async fn read_head(&mut self) -> io::Result<Head> {
        loop {
            if let Some(head) = ResponseHead::parse(&self.input)? {
                let (length, head) = (head.length(), Head::from(&head));
                let _ = self.input.split_to(length);
                return Ok(head);
            }
            self.wait_for_more().await?;
        }
    }

    /// Reads a response with `Content-Length`.
    pub(super) async fn read_response(&mut self, has_body: bool) -> io::Result<(Head, Bytes)> {
        let head = self.read_head().await?;
        let length = if has_body { head.number("content-length").unwrap_or(0) } else { 0 };
        let length = usize::try_from(length).map_err(invalid)?;
        while self.input.len() < length {
            self.wait_for_more().await?;
        }
        Ok((head, self.input.split_to(length).freeze()))
    }

    async fn wait_for_more(&mut self) -> io::Result<()> {
        match with_timeout(self.read_more()).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }

    pub(super) fn cut(self, how: Cut) {
        if how == Cut::Reset {
            // Fails if the server has already closed the connection.
            let _ = tcp(&self.stream).set_zero_linger();
        }
    }
}

/// The TCP stream, below TLS or not.
fn tcp(stream: &Stream) -> &TcpStream {
    match stream {
        Either::Left(stream) => stream,
        Either::Right(stream) => stream.get_ref().0,
    }
}

/// Sends one request on a new connection. Returns the status and the body of the response.
pub(super) async fn send_request(
    endpoint: &Endpoint,
    request: &[u8],
    has_body: bool,
) -> io::Result<(u16, Bytes)> {
    let mut client = RawClient::open(endpoint).await?;
    // The server may reject a request before it has read all of it, which makes the write fail.
    let _ = client.send(request).await;
    let (head, body) = client.read_response(has_body).await?;
    client.cut(Cut::Close);
    Ok((head.status, body))
}

async fn with_timeout<T>(work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(TIMEOUT, work).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

pub(super) fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// Unless the receive buffer is as small as 4 KiB: these writes leave Linux with a window that it uses only when it
    /// probes it.
    #[tokio::test]
    async fn a_client_that_reads_late_catches_up() {
        const WRITES: [usize; 3] = [562, 2010, 1 << 20];
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = Endpoint { address: listener.local_addr().unwrap(), tls: None };
        let mut client = RawClient::open(&endpoint).await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        server.set_nodelay(true).unwrap();
        // It runs while the client waits for the first bytes, and so writes them all before any is read.
        let writer = tokio::spawn(async move {
            for size in WRITES {
                server.write_all(&vec![0; size]).await.unwrap();
            }
            server
        });
        let all = WRITES.iter().sum();
        let reader = async {
            while client.input.len() < all {
                client.read_more().await?;
            }
            Ok(())
        };
        with_timeout(reader).await.unwrap();
        writer.await.unwrap();
    }
}
