//! Requests that hyper only answers: the limit for publishing and pulling.

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{
    Method, Request, Response, StatusCode, body::Incoming, server::conn::http1, service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::{frame::json, synced::SyncedLog};

/// The response body of a pull: a message of `size` bytes.
pub(super) fn ready_answer(size: usize) -> Bytes {
    json(&vec![b'x'; size]).into()
}

pub(super) async fn serve(
    stream: TcpStream,
    ready: Bytes,
    log: Option<Arc<SyncedLog>>,
) -> hyper::Result<()> {
    let log = log.as_deref();
    http1::Builder::new()
        .header_read_timeout(None)
        // Writes the responses to pipelined requests together, as msgbusd does.
        .pipeline_flush(true)
        .serve_connection(TokioIo::new(stream), service_fn(|request| answer(request, &ready, log)))
        .await
}

async fn answer(
    request: Request<Incoming>,
    ready: &Bytes,
    log: Option<&SyncedLog>,
) -> Result<Response<Full<Bytes>>, hyper::Error> {
    if request.method() == Method::GET {
        let has_no_topics = request.uri().path() == "/";
        let body = if has_no_topics { Bytes::from_static(b"{}") } else { ready.clone() };
        return Ok(Response::new(Full::new(body)));
    }
    let payload = request.into_body().collect().await?.to_bytes();
    // The body must be read, and the compiler must not remove that.
    std::hint::black_box(&payload);
    if let Some(log) = log {
        log.append(&payload).await;
    }
    let mut answer = Response::new(Full::default());
    *answer.status_mut() = StatusCode::ACCEPTED;
    Ok(answer)
}
