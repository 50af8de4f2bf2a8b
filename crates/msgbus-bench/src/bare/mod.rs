//! Servers that do nothing but move bytes: the limit for anything that makes the same system calls.
//!
//! What is published is answered by hyper where it goes nowhere, as msgbusd answers it, and by
//! `push` without a library where it goes to subscribers: there hyper is a small part of the work,
//! and a limit has none that could be left out.

mod frame;
mod push;
mod requests;

use std::{net::SocketAddr, str::FromStr, sync::Arc};

use msgbusd::Workers;
use tokio::net::{TcpListener, TcpStream};

use self::push::Hub;

/// What a bare server does with what is published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Push {
    /// Nothing.
    Nowhere,
    /// A frame for every subscriber, made once, written by itself, by the subscriber's own task.
    Each,
    /// The same, as many frames in one write as there are, up to 64.
    Batches,
    /// The publisher's task writes the frame to all subscribers, and then answers: nobody is woken.
    AtOnce,
}

impl Push {
    /// What it is called on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nowhere => "nowhere",
            Self::Each => "each",
            Self::Batches => "batches",
            Self::AtOnce => "at-once",
        }
    }
}

impl FromStr for Push {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> anyhow::Result<Self> {
        [Self::Nowhere, Self::Each, Self::Batches, Self::AtOnce]
            .into_iter()
            .find(|push| push.name() == name)
            .ok_or_else(|| anyhow::anyhow!("nowhere, each, batches or at-once, not {name}"))
    }
}

/// Serves for ever; a pull is answered with a message of `size` bytes.
///
/// # Errors
/// When the address cannot be listened on.
pub async fn serve(
    address: SocketAddr,
    push: Push,
    size: usize,
    workers: Workers,
) -> anyhow::Result<()> {
    let listener = TcpListener::bind(address).await?;
    let hub = Arc::new(Hub::new(push));
    let ready = requests::ready_answer(size);
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let stream = stream.into_std()?;
        let (hub, ready) = (Arc::clone(&hub), ready.clone());
        workers.next().spawn(async move {
            // A connection that fails is the client's affair.
            let Ok(stream) = TcpStream::from_std(stream) else { return };
            let _ = match push {
                Push::Nowhere => requests::serve(stream, ready).await.map_err(anyhow::Error::from),
                _ => push::serve(stream, hub).await,
            };
        });
    }
}
