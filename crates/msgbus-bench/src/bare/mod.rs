//! Servers that only move bytes: the limit for any server that makes the same system calls.
//!
//! Without subscribers, requests are served by hyper, like in msgbusd. With subscribers, `push` serves
//! them without a library: hyper would be avoidable work, which a limit must not include.

mod frame;
mod proxy;
mod push;
mod requests;
mod synced;

use std::{net::SocketAddr, str::FromStr, sync::Arc};

use msgbusd::Workers;
use tokio::net::{TcpListener, TcpStream};

use self::{push::Hub, synced::SyncedLog};

/// What a bare server does with published messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Push {
    /// Discards them.
    Nowhere,
    /// Forwards each request to another server, which discards them, and the response back.
    Proxy,
    /// Appends them to a file, and responds when they survive a power cut.
    Synced,
    /// Encodes a frame once. Each subscriber's task writes it with a separate system call.
    Each,
    /// The same, but a task writes up to 64 frames with one system call.
    Batches,
    /// The publisher's task writes the frame to all subscribers before it responds. No task is woken.
    AtOnce,
}

impl Push {
    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nowhere => "nowhere",
            Self::Proxy => "proxy",
            Self::Synced => "synced",
            Self::Each => "each",
            Self::Batches => "batches",
            Self::AtOnce => "at-once",
        }
    }
}

impl FromStr for Push {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> anyhow::Result<Self> {
        [Self::Nowhere, Self::Proxy, Self::Synced, Self::Each, Self::Batches, Self::AtOnce]
            .into_iter()
            .find(|push| push.name() == name)
            .ok_or_else(|| {
                anyhow::anyhow!(
                    "expected nowhere, proxy, synced, each, batches or at-once, not {name}"
                )
            })
    }
}

/// Serves without end. Answers pulls with a message of `size` bytes.
///
/// # Errors
/// The server cannot listen on the address.
pub async fn serve(
    address: SocketAddr,
    push: Push,
    size: usize,
    workers: Workers,
) -> anyhow::Result<()> {
    let listener = TcpListener::bind(address).await?;
    let hub = Arc::new(Hub::new(push));
    let ready = requests::ready_answer(size);
    let log = (push == Push::Synced).then(SyncedLog::start).transpose()?;
    let backend = if push == Push::Proxy { Some(proxy::start_backend().await?) } else { None };
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let stream = stream.into_std()?;
        let (hub, ready, log) = (Arc::clone(&hub), ready.clone(), log.clone());
        workers.next().spawn(async move {
            // A failed connection does not affect the server.
            let Ok(stream) = TcpStream::from_std(stream) else { return };
            let _ = match push {
                Push::Proxy => match backend {
                    Some(backend) => proxy::serve(stream, backend).await,
                    None => Ok(()),
                },
                Push::Nowhere | Push::Synced => {
                    requests::serve(stream, ready, log).await.map_err(anyhow::Error::from)
                }
                _ => push::serve(stream, hub).await,
            };
        });
    }
}
