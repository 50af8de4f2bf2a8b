//! Delivers published messages to subscribers: the limit for pushing.

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use anyhow::{Context as _, bail};
use bytes::{Buf as _, Bytes, BytesMut};
use httparse::{EMPTY_HEADER, Request, Status};
use parking_lot::{Mutex, RwLock};
use tokio::{
    io::Interest,
    net::TcpStream,
    sync::{Mutex as AsyncMutex, Notify},
};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::{
    Push,
    frame::{frame, json},
};

/// The maximum number of queued frames for a slow subscriber. Further frames are lost, which the message
/// counts show.
const BACKLOG: usize = 1 << 16;
/// The maximum number of frames per write.
const MAX_BATCH: usize = 64;
const READ_BUFFER_SIZE: usize = 16 << 10;

/// The subscribers.
#[derive(Debug)]
pub(super) struct Hub {
    push: Push,
    /// Replaced as a whole, so that publishers can iterate over it without the lock.
    subscribers: RwLock<Arc<Vec<Arc<Subscriber>>>>,
    /// Held while a subscriber is added or a frame is written to all, so that frames do not interleave.
    writing: AsyncMutex<()>,
}

#[derive(Debug)]
struct Subscriber {
    stream: TcpStream,
    queue: Mutex<VecDeque<Bytes>>,
    filled: Notify,
    is_gone: AtomicBool,
}

impl Hub {
    pub(super) fn new(push: Push) -> Self {
        Self { push, subscribers: RwLock::default(), writing: AsyncMutex::default() }
    }

    /// Adds a subscriber. It receives all messages that are published after the response.
    async fn subscribe(&self, stream: TcpStream, accept: &str) -> io::Result<Arc<Subscriber>> {
        let answer = format!(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Accept: {accept}\r\n\r\n"
        );
        let _writing = self.writing.lock().await;
        write(&stream, answer.as_bytes()).await?;
        let subscriber = Arc::new(Subscriber {
            stream,
            queue: Mutex::default(),
            filled: Notify::new(),
            is_gone: AtomicBool::new(false),
        });
        let mut subscribers = self.subscribers.write();
        let there = subscribers.iter().filter(|subscriber| !subscriber.is_gone.load(Relaxed));
        *subscribers = Arc::new(there.cloned().chain([Arc::clone(&subscriber)]).collect());
        Ok(subscriber)
    }

    async fn publish(&self, payload: &[u8]) {
        let frame = frame(&json(payload));
        let _writing = self.writing.lock().await;
        // After the lock: a subscriber may have been added while this waited for it.
        let subscribers = Arc::clone(&self.subscribers.read());
        for subscriber in subscribers.iter().filter(|s| !s.is_gone.load(Relaxed)) {
            if self.push == Push::AtOnce {
                if write(&subscriber.stream, &frame).await.is_err() {
                    subscriber.is_gone.store(true, Relaxed);
                }
            } else {
                subscriber.put(frame.clone());
            }
        }
    }
}

impl Subscriber {
    fn put(&self, frame: Bytes) {
        let mut queue = self.queue.lock();
        let was_empty = queue.is_empty();
        if queue.len() < BACKLOG {
            queue.push_back(frame);
        }
        drop(queue);
        if was_empty {
            self.filled.notify_one();
        }
    }

    /// Writes queued frames without end, up to `at_once` per write.
    async fn forward(&self, at_once: usize) -> io::Result<()> {
        let mut batch = Vec::with_capacity(at_once);
        loop {
            {
                let mut queue = self.queue.lock();
                let count = queue.len().min(at_once);
                batch.extend(queue.drain(..count));
            }
            if batch.is_empty() {
                self.filled.notified().await;
            } else {
                write_all(&self.stream, &mut batch).await?;
            }
        }
    }

    /// Reads and discards input until the client closes the connection.
    async fn until_closed(&self) -> io::Result<()> {
        let mut ignored = [0; 256];
        loop {
            self.stream.readable().await?;
            match self.stream.try_read(&mut ignored) {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Serves a connection that publishes or subscribes.
pub(super) async fn serve(stream: TcpStream, hub: Arc<Hub>) -> anyhow::Result<()> {
    let mut input = BytesMut::with_capacity(READ_BUFFER_SIZE);
    loop {
        let Some(head) = Head::read(&input)? else {
            read(&stream, &mut input).await?;
            continue;
        };
        if let Some(accept) = head.accept {
            drop(input);
            return follow(stream, &accept, &hub).await;
        }
        let whole = head.length + head.body;
        if input.len() < whole {
            read(&stream, &mut input).await?;
            continue;
        }
        hub.publish(&input[head.length..whole]).await;
        input.advance(whole);
        write(&stream, b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n").await?;
    }
}

async fn follow(stream: TcpStream, accept: &str, hub: &Hub) -> anyhow::Result<()> {
    let subscriber = hub.subscribe(stream, accept).await?;
    let ended = match hub.push {
        Push::AtOnce => subscriber.until_closed().await,
        push => {
            let at_once = if push == Push::Batches { MAX_BATCH } else { 1 };
            tokio::select! {
                ended = subscriber.until_closed() => ended,
                ended = subscriber.forward(at_once) => ended,
            }
        }
    };
    subscriber.is_gone.store(true, Relaxed);
    Ok(ended?)
}

/// The relevant parts of a request head.
struct Head {
    /// The length of the head, in bytes.
    length: usize,
    /// The length of the body, in bytes.
    body: usize,
    /// The value of `Sec-WebSocket-Accept`, for a subscriber.
    accept: Option<String>,
}

impl Head {
    /// Parses a head; `None` if it is incomplete.
    fn read(input: &[u8]) -> anyhow::Result<Option<Self>> {
        let mut headers = [EMPTY_HEADER; 16];
        let mut request = Request::new(&mut headers);
        let Status::Complete(length) = request.parse(input)? else { return Ok(None) };
        let header = |name: &str| {
            let header = request.headers.iter().find(|h| h.name.eq_ignore_ascii_case(name));
            header.map(|header| header.value)
        };
        let body = header("content-length").map_or(Ok("0"), str::from_utf8)?;
        let body = body.parse().context("Content-Length is not a number")?;
        let accept = header("sec-websocket-key").map(derive_accept_key);
        if accept.is_none() && request.method == Some("GET") {
            bail!("this server does not support pulls");
        }
        Ok(Some(Self { length, body, accept }))
    }
}

async fn read(stream: &TcpStream, input: &mut BytesMut) -> io::Result<()> {
    input.reserve(READ_BUFFER_SIZE);
    loop {
        stream.readable().await?;
        match stream.try_read_buf(input) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

async fn write(stream: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match stream.try_write(bytes) {
            Ok(count) => bytes.advance(count),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                stream.ready(Interest::WRITABLE).await?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Writes all frames, and clears the list.
async fn write_all(stream: &TcpStream, frames: &mut Vec<Bytes>) -> io::Result<()> {
    let mut slices = [IoSlice::new(&[]); MAX_BATCH];
    for (slice, frame) in slices.iter_mut().zip(frames.iter()) {
        *slice = IoSlice::new(frame);
    }
    let mut rest = &mut slices[..frames.len()];
    while !rest.is_empty() {
        match stream.try_write_vectored(rest) {
            Ok(count) => IoSlice::advance_slices(&mut rest, count),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                stream.writable().await?;
            }
            Err(error) => return Err(error),
        }
    }
    frames.clear();
    Ok(())
}
