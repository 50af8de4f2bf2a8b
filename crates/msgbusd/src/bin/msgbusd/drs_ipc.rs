//! `msgbusd drs-ipc`: passes the commands on standard input to a server, and its commands to standard output.

use std::{pin::pin, process::ExitCode};

use anyhow::Context as _;
use msgbusd::Bind;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, copy, stdin, stdout},
    net::{TcpStream, UnixStream},
    runtime, select,
};

/// Connects to a server and runs until its connection ends. The end of standard input is passed on.
///
/// # Errors
/// When the server cannot be reached, or the connection breaks.
pub(crate) fn run(server: &Bind) -> anyhow::Result<ExitCode> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    let passed = runtime.block_on(async {
        let unreachable = || format!("cannot connect to {server}");
        match server {
            Bind::Tcp(address) => {
                let stream = TcpStream::connect(address).await.with_context(unreachable)?;
                stream.set_nodelay(true)?;
                pass(stream.into_split()).await
            }
            Bind::Unix(path) => {
                pass(UnixStream::connect(path).await.with_context(unreachable)?.into_split()).await
            }
        }
    });
    // A read of standard input may block for ever.
    runtime.shutdown_background();
    passed.context("the connection broke")?;
    Ok(ExitCode::SUCCESS)
}

async fn pass(
    (mut from, mut to): (impl AsyncRead + Unpin, impl AsyncWrite + Unpin),
) -> anyhow::Result<()> {
    let mut out = stdout();
    let mut receiving = pin!(async {
        copy(&mut from, &mut out).await?;
        out.flush().await
    });
    let sending = async {
        copy(&mut stdin(), &mut to).await?;
        to.shutdown().await
    };
    select! {
        received = &mut receiving => received?,
        sent = sending => {
            sent?;
            // The server ends the connection, after its last commands.
            receiving.await?;
        }
    }
    Ok(())
}
