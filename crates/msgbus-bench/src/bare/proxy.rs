//! A reverse proxy that only forwards, in front of a server that only answers: the limit for requests to services.

use std::net::{Ipv4Addr, SocketAddr};

use hyper::{client, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, TcpStream},
    select,
    sync::Mutex,
};

use super::requests;

/// Starts the server behind the proxy. Each of its connections is served where it is accepted.
pub(super) async fn start_backend() -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let _ = stream.set_nodelay(true);
            // A failed connection does not affect the server.
            tokio::spawn(requests::serve(stream, requests::ready_answer(0), None));
        }
    });
    Ok(address)
}

/// Forwards the requests of a connection, and their responses back.
pub(super) async fn serve(stream: TcpStream, backend: SocketAddr) -> anyhow::Result<()> {
    let upstream = TcpStream::connect(backend).await?;
    upstream.set_nodelay(true)?;
    let (sender, connection) = client::conn::http1::handshake(TokioIo::new(upstream)).await?;
    let sender = Mutex::new(sender);
    let forward = service_fn(async |request| sender.lock().await.send_request(request).await);
    let serving = http1::Builder::new()
        .header_read_timeout(None)
        .serve_connection(TokioIo::new(stream), forward);
    select! {
        ended = serving => ended?,
        ended = connection => ended?,
    }
    Ok(())
}
