//! What is published goes to subscribers: the limit for pushing.

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

/// Frames for one subscriber that is slow. What comes beyond is lost, and the accounts show it.
const BACKLOG: usize = 1 << 16;
/// Frames in one write.
const MOST_AT_ONCE: usize = 64;
const READ_AT_ONCE: usize = 16 << 10;

/// Whom what is published goes to.
#[derive(Debug)]
pub(super) struct Hub {
    push: Push,
    /// Replaced as a whole, so that publishers hold it without a lock.
    subscribers: RwLock<Arc<Vec<Arc<Subscriber>>>>,
    /// Held while somebody is added or a frame is given to all: frames stay whole, and in order.
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

    /// Lets somebody subscribe: all that is published after the answer will come.
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
        // Not before: somebody may have been added while it waited.
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

    /// Writes what is put, so many frames at a time, for ever.
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

    /// Reads until the client is gone: nothing that it says is for anybody.
    async fn until_gone(&self) -> io::Result<()> {
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

/// Serves a connection that publishes, or subscribes.
pub(super) async fn serve(stream: TcpStream, hub: Arc<Hub>) -> anyhow::Result<()> {
    let mut input = BytesMut::with_capacity(READ_AT_ONCE);
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
        Push::AtOnce => subscriber.until_gone().await,
        push => {
            let at_once = if push == Push::Batches { MOST_AT_ONCE } else { 1 };
            tokio::select! {
                ended = subscriber.until_gone() => ended,
                ended = subscriber.forward(at_once) => ended,
            }
        }
    };
    subscriber.is_gone.store(true, Relaxed);
    Ok(ended?)
}

/// What of a request matters.
struct Head {
    /// In bytes.
    length: usize,
    /// The length of what follows, in bytes.
    body: usize,
    /// The answer to the key of somebody who wants to subscribe.
    accept: Option<String>,
}

impl Head {
    /// `None` where it has not come whole.
    fn read(input: &[u8]) -> anyhow::Result<Option<Self>> {
        let mut headers = [EMPTY_HEADER; 16];
        let mut request = Request::new(&mut headers);
        let Status::Complete(length) = request.parse(input)? else { return Ok(None) };
        let header = |name: &str| {
            let header = request.headers.iter().find(|h| h.name.eq_ignore_ascii_case(name));
            header.map(|header| header.value)
        };
        let body = header("content-length").map_or(Ok("0"), str::from_utf8)?;
        let body = body.parse().context("Content-Length is no number")?;
        let accept = header("sec-websocket-key").map(derive_accept_key);
        if accept.is_none() && request.method == Some("GET") {
            bail!("nothing can be pulled here");
        }
        Ok(Some(Self { length, body, accept }))
    }
}

async fn read(stream: &TcpStream, input: &mut BytesMut) -> io::Result<()> {
    input.reserve(READ_AT_ONCE);
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

/// Writes frames, and leaves none.
async fn write_all(stream: &TcpStream, frames: &mut Vec<Bytes>) -> io::Result<()> {
    let mut slices = [IoSlice::new(&[]); MOST_AT_ONCE];
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
