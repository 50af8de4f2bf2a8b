//! A proxy in front of a server, whose connections can be cut, or fall silent.

use std::{net::SocketAddr, ops::RangeInclusive, pin::pin, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinHandle,
    time::sleep,
};

/// Which connections are silent, by the order in which they were accepted.
type Silence = Option<RangeInclusive<usize>>;

/// A proxy that takes its time with what comes from the server, so that some of it is on its way when connections are cut.
#[derive(Debug)]
pub struct Proxy {
    /// The address that it listens on.
    pub address: SocketAddr,
    cut: watch::Sender<()>,
    silence: watch::Sender<Silence>,
    accepted: watch::Receiver<usize>,
    /// Accepts connections.
    task: JoinHandle<()>,
}

impl Proxy {
    /// Starts a proxy in front of a server on this port of this machine. What the server sends arrives by this much later.
    pub async fn to(port: u16, delay: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (cut, cuts) = watch::channel(());
        let (silence, silences) = watch::channel(None);
        let (count, accepted) = watch::channel(0);
        let task = tokio::spawn(async move {
            loop {
                let Ok((near, _)) = listener.accept().await else { return };
                let index = *count.borrow();
                count.send_replace(index + 1);
                let (mut cuts, silences) = (cuts.clone(), silences.clone());
                cuts.mark_unchanged();
                tokio::spawn(async move {
                    // While the server is down, the connection is closed at once.
                    let Ok(far) = TcpStream::connect(("127.0.0.1", port)).await else { return };
                    tokio::select! {
                        () = forward(near, far, delay, index, silences) => {}
                        // What is on its way is lost.
                        _ = cuts.changed() => {}
                    }
                });
            }
        });
        Self { address, cut, silence, accepted, task }
    }

    /// How many connections were accepted.
    pub fn accepted(&self) -> usize {
        *self.accepted.borrow()
    }

    /// Forwards nothing any longer on these connections, which stay open, as if a firewall had forgotten them. The first one
    /// that was accepted is 0.
    pub fn silence(&self, connections: RangeInclusive<usize>) {
        self.silence.send_replace(Some(connections));
    }

    /// Forwards on all connections again, also what has come meanwhile.
    pub fn resume(&self) {
        self.silence.send_replace(None);
    }

    /// Ends all connections, and accepts no others.
    pub fn stop(&self) {
        self.task.abort();
        self.cut();
    }

    /// Ends all connections.
    pub fn cut(&self) {
        self.cut.send_replace(());
    }
}

/// Forwards until the end.
async fn forward(
    near: TcpStream,
    far: TcpStream,
    delay: Duration,
    index: usize,
    mut silences: watch::Receiver<Silence>,
) {
    let (near_read, near_write) = near.into_split();
    let (far_read, far_write) = far.into_split();
    let is_silent =
        |silence: &Silence| silence.as_ref().is_some_and(|silent| silent.contains(&index));
    let mut both = pin!(async {
        tokio::select! {
            () = slowly(near_read, far_write, Duration::ZERO) => {}
            () = slowly(far_read, near_write, delay) => {}
        }
    });
    loop {
        // While it is silent, nothing is read: what has come waits.
        if silences.wait_for(|silence| !is_silent(silence)).await.is_err() {
            return;
        }
        tokio::select! {
            () = &mut both => return,
            silent = silences.wait_for(is_silent) => drop(silent),
        }
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
