//! A proxy in front of a server, whose connections can be cut.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    time::sleep,
};

/// A proxy that takes its time with what comes from the server, so that some of it is on its way when connections are cut.
#[derive(Debug)]
pub struct Proxy {
    /// The address that it listens on.
    pub address: SocketAddr,
    cut: watch::Sender<()>,
}

impl Proxy {
    /// Starts a proxy in front of a server on this port of this machine. What the server sends arrives by this much later.
    pub async fn to(port: u16, delay: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (cut, cuts) = watch::channel(());
        tokio::spawn(async move {
            loop {
                let Ok((near, _)) = listener.accept().await else { return };
                let mut cuts = cuts.clone();
                cuts.mark_unchanged();
                tokio::spawn(async move {
                    // While the server is down, the connection is closed at once.
                    let Ok(far) = TcpStream::connect(("127.0.0.1", port)).await else { return };
                    let (mut near_read, near_write) = near.into_split();
                    let (far_read, mut far_write) = far.into_split();
                    tokio::select! {
                        _ = copy(&mut near_read, &mut far_write) => {}
                        () = slowly(far_read, near_write, delay) => {}
                        // What is on its way is lost.
                        _ = cuts.changed() => {}
                    }
                });
            }
        });
        Self { address, cut }
    }

    /// Ends all connections.
    pub fn cut(&self) {
        self.cut.send_replace(());
    }
}

/// Copies until the end.
async fn slowly(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, delay: Duration) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(length) = from.read(&mut buffer).await {
        sleep(delay).await;
        if length == 0 || to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}
