//! A connection that does as it is told, also what no decent client does.

use std::{collections::HashMap, io, mem, net::SocketAddr, time::Duration};

use bytes::{Bytes, BytesMut};
use memchr::memmem;
use msgbus_load::ResponseHead;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream, rustls::pki_types::ServerName};
use tokio_util::either::Either;

/// How long the server may take for anything before that counts as no answer.
const PATIENCE: Duration = Duration::from_secs(20);
/// What a slow reader's system takes for it, in bytes.
const SMALL_BUFFER: u32 = 4 << 10;
const READ_AT_ONCE: usize = 64 << 10;

/// How a client leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cut {
    /// The connection is reset.
    Reset,
    /// It is closed in order, whatever was under way.
    Close,
}

/// Where the server is, and what is spoken there.
#[derive(Clone)]
pub(super) struct Place {
    pub(super) address: SocketAddr,
    /// Begins TLS, where it is spoken.
    pub(super) tls: Option<TlsConnector>,
}

type Stream = Either<TcpStream, TlsStream<TcpStream>>;

pub(super) struct Wire {
    stream: Stream,
    /// What has come and was not taken yet.
    pub(super) input: BytesMut,
    /// What has come of a body in chunks and is not in `input` yet.
    chunks: Option<BytesMut>,
    is_at_end: bool,
}

/// The head of an answer.
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
    /// A header's number.
    pub(super) fn number(&self, name: &str) -> Option<u64> {
        self.headers.get(name)?.parse().ok()
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.headers.contains_key(name)
    }

    /// Whether the connection takes another request.
    pub(super) fn goes_on(&self) -> bool {
        self.headers.get("connection").is_none_or(|value| !value.eq_ignore_ascii_case("close"))
    }
}

impl Wire {
    pub(super) async fn open(place: &Place) -> io::Result<Self> {
        Self::with(TcpSocket::new_v4()?, place).await
    }

    /// One that the server finds full soon.
    pub(super) async fn open_narrow(place: &Place) -> io::Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.set_recv_buffer_size(SMALL_BUFFER)?;
        Self::with(socket, place).await
    }

    async fn with(socket: TcpSocket, place: &Place) -> io::Result<Self> {
        let stream = patiently(socket.connect(place.address)).await?;
        stream.set_nodelay(true)?;
        let stream = match &place.tls {
            None => Either::Left(stream),
            Some(tls) => {
                let name = ServerName::IpAddress(place.address.ip().into());
                Either::Right(patiently(tls.connect(name, stream)).await?)
            }
        };
        Ok(Self { stream, input: BytesMut::new(), chunks: None, is_at_end: false })
    }

    /// How the server calls this client.
    pub(super) fn name(&self) -> io::Result<String> {
        Ok(tcp(&self.stream).local_addr()?.to_string())
    }

    pub(super) async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        patiently(async {
            self.stream.write_all(bytes).await?;
            self.stream.flush().await
        })
        .await
    }

    /// Says that nothing more will be sent. What was sent is still to be answered.
    pub(super) async fn end_sending(&mut self) -> io::Result<()> {
        patiently(self.stream.shutdown()).await
    }

    /// Reads once; 0 is the end. Nothing is lost when it is dropped.
    pub(super) async fn more(&mut self) -> io::Result<usize> {
        if self.is_at_end {
            return Ok(0);
        }
        let buffer = self.chunks.as_mut().unwrap_or(&mut self.input);
        buffer.reserve(READ_AT_ONCE);
        let count = self.stream.read_buf(buffer).await?;
        self.take_chunks()?;
        Ok(count)
    }

    /// Takes what comes from now on, and has come behind the head, for a body in chunks.
    pub(super) fn expect_chunks(&mut self) -> io::Result<()> {
        self.chunks = Some(mem::take(&mut self.input));
        self.take_chunks()
    }

    /// Moves the content of whole chunks to `input`.
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

    /// The head of an answer. What follows it stays in `input`.
    pub(super) async fn head(&mut self) -> io::Result<Head> {
        loop {
            if let Some(head) = ResponseHead::parse(&self.input)? {
                let (length, head) = (head.length(), Head::from(&head));
                let _ = self.input.split_to(length);
                return Ok(head);
            }
            self.wait_for_more().await?;
        }
    }

    /// An answer whose length is known.
    pub(super) async fn answer(&mut self, has_body: bool) -> io::Result<(Head, Bytes)> {
        let head = self.head().await?;
        let length = if has_body { head.number("content-length").unwrap_or(0) } else { 0 };
        let length = usize::try_from(length).map_err(invalid)?;
        while self.input.len() < length {
            self.wait_for_more().await?;
        }
        Ok((head, self.input.split_to(length).freeze()))
    }

    async fn wait_for_more(&mut self) -> io::Result<()> {
        match patiently(self.more()).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }

    pub(super) fn cut(self, how: Cut) {
        if how == Cut::Reset {
            // Where the server was faster there is nothing left to reset.
            let _ = tcp(&self.stream).set_zero_linger();
        }
    }
}

/// What is below, in the clear or not.
fn tcp(stream: &Stream) -> &TcpStream {
    match stream {
        Either::Left(stream) => stream,
        Either::Right(stream) => stream.get_ref().0,
    }
}

/// One request on a connection of its own: the status and the body of the answer.
pub(super) async fn ask(place: &Place, request: &[u8], has_body: bool) -> io::Result<(u16, Bytes)> {
    let mut wire = Wire::open(place).await?;
    // What is refused is answered before all of it is sent.
    let _ = wire.send(request).await;
    let (head, body) = wire.answer(has_body).await?;
    wire.cut(Cut::Close);
    Ok((head.status, body))
}

async fn patiently<T>(work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(PATIENCE, work).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

pub(super) fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
