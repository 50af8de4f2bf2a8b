//! Servers that do nothing but move bytes: the limit for anything built on the same library and the
//! same system calls.

use std::{io::IoSlice, net::SocketAddr, str::FromStr, sync::Arc};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{self, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use msgbusd::Workers;
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpListener, TcpStream},
    sync::broadcast::{self, error::RecvError},
};
use tokio_tungstenite::tungstenite::{
    handshake::derive_accept_key,
    protocol::frame::{
        FrameHeader,
        coding::{Data, OpCode},
    },
};

/// What a bare server does with what is published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Push {
    /// Nothing.
    Nowhere,
    /// A frame for every subscriber, made once, written by itself.
    Each,
    /// The same, as many frames in one write as there are, up to 64.
    Batches,
}

/// Room for everything that is published while a subscriber is slow: nothing is to be lost here.
const BACKLOG: usize = 1 << 16;
const MOST_AT_ONCE: usize = 64;

#[derive(Debug)]
struct Bare {
    push: Push,
    frames: broadcast::Sender<Bytes>,
    /// What a pull is answered with.
    ready: Bytes,
}

/// Serves for ever.
///
/// # Errors
/// When the address cannot be listened on.
pub async fn serve(address: SocketAddr, push: Push, workers: Workers) -> anyhow::Result<()> {
    let listener = TcpListener::bind(address).await?;
    let ready = json(&[b'x'; 128]).into();
    let bare = Arc::new(Bare { push, frames: broadcast::channel(BACKLOG).0, ready });
    loop {
        let (stream, _) = listener.accept().await?;
        let stream = stream.into_std()?;
        let bare = Arc::clone(&bare);
        workers.next().spawn(async move {
            // A connection that fails is the client's affair.
            let _ = connection(stream, bare).await;
        });
    }
}

async fn connection(stream: std::net::TcpStream, bare: Arc<Bare>) -> anyhow::Result<()> {
    let stream = TcpStream::from_std(stream)?;
    stream.set_nodelay(true)?;
    let service = service_fn(move |request| answer(request, Arc::clone(&bare)));
    http1::Builder::new()
        .header_read_timeout(None)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await?;
    Ok(())
}

async fn answer(
    request: Request<Incoming>,
    bare: Arc<Bare>,
) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let mut answer = Response::new(Full::default());
    if request.headers().contains_key(header::UPGRADE) {
        *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let key = request.headers().get(header::SEC_WEBSOCKET_KEY);
        let accept = derive_accept_key(key.map_or(b"", HeaderValue::as_bytes));
        let headers = answer.headers_mut();
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        headers.extend(HeaderValue::try_from(accept).map(|v| (header::SEC_WEBSOCKET_ACCEPT, v)));
        let frames = bare.frames.subscribe();
        tokio::spawn(follow(request, frames, bare.push));
    } else if request.method() == Method::GET {
        let has_no_topics = request.uri().path() == "/";
        let body = if has_no_topics { Bytes::from_static(b"{}") } else { bare.ready.clone() };
        *answer.body_mut() = Full::new(body);
    } else {
        let payload = request.into_body().collect().await?.to_bytes();
        if bare.push != Push::Nowhere {
            // Without subscribers there is nothing to do.
            let _ = bare.frames.send(frame(&json(&payload)));
        }
        *answer.status_mut() = StatusCode::ACCEPTED;
    }
    Ok(answer)
}

/// What msgbusd would say of such a message, byte for byte as long.
fn json(payload: &[u8]) -> Vec<u8> {
    format!(
        "{{\"id\":100000,\"topic\":{{\"name\":\"bench-00000000\",\"ttl\":3600000000000,\
         \"seq\":100001,\"created\":\"2026-01-01T00:00:00.000000000Z\"}},\"payload\":\"{}\",\
         \"expires\":\"2026-01-01T00:00:00.000000000Z\",\
         \"created\":\"2026-01-01T00:00:00.000000000Z\"}}\n",
        BASE64_STANDARD.encode(payload)
    )
    .into()
}

fn frame(payload: &[u8]) -> Bytes {
    let header = FrameHeader { opcode: OpCode::Data(Data::Text), ..FrameHeader::default() };
    let mut frame = Vec::with_capacity(payload.len() + 10);
    // Writing to a Vec cannot fail.
    let _ = header.format(payload.len() as u64, &mut frame);
    frame.extend_from_slice(payload);
    frame.into()
}

async fn follow(
    request: Request<Incoming>,
    mut frames: broadcast::Receiver<Bytes>,
    push: Push,
) -> anyhow::Result<()> {
    let upgraded = hyper::upgrade::on(request).await?;
    let Ok(parts) = upgraded.downcast::<TokioIo<TcpStream>>() else { return Ok(()) };
    let mut stream = parts.io.into_inner();
    let mut batch = Vec::with_capacity(MOST_AT_ONCE);
    loop {
        match frames.recv().await {
            Ok(frame) => batch.push(frame),
            Err(RecvError::Lagged(_)) => continue,
            Err(RecvError::Closed) => return Ok(()),
        }
        while push == Push::Batches && batch.len() < MOST_AT_ONCE {
            match frames.try_recv() {
                Ok(frame) => batch.push(frame),
                Err(_) => break,
            }
        }
        write_all(&mut stream, &batch).await?;
        batch.clear();
    }
}

async fn write_all(stream: &mut TcpStream, frames: &[Bytes]) -> std::io::Result<()> {
    let mut slices = [IoSlice::new(&[]); MOST_AT_ONCE];
    for (slice, frame) in slices.iter_mut().zip(frames) {
        *slice = IoSlice::new(frame);
    }
    let mut rest = &mut slices[..frames.len()];
    while !rest.is_empty() {
        let count = stream.write_vectored(rest).await?;
        IoSlice::advance_slices(&mut rest, count);
    }
    Ok(())
}

impl FromStr for Push {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> anyhow::Result<Self> {
        match name {
            "nowhere" => Ok(Self::Nowhere),
            "each" => Ok(Self::Each),
            "batches" => Ok(Self::Batches),
            _ => anyhow::bail!("nowhere, each or batches, not {name}"),
        }
    }
}
