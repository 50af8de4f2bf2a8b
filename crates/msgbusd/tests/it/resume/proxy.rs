//! A proxy that cuts the connections of one subscriber.

use std::{
    sync::{Arc, atomic::Ordering::SeqCst},
    time::Duration,
};

use fastrand::Rng;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpSocket, TcpStream},
    time::sleep,
};

use super::World;

/// What the proxy does to one connection.
struct Fate {
    /// The number of bytes that pass to the server, and from it.
    up: usize,
    down: usize,
    time: Duration,
    /// After how many bytes from the server reading pauses, and for how long.
    pause: (usize, Duration),
    /// Whether each side sees a reset instead of an orderly end.
    reset_near: bool,
    reset_far: bool,
}

impl Fate {
    const ENDLESS: Duration = Duration::from_secs(3600);

    fn calm() -> Self {
        Self {
            up: usize::MAX,
            down: usize::MAX,
            time: Self::ENDLESS,
            pause: (usize::MAX, Duration::ZERO),
            reset_near: false,
            reset_far: false,
        }
    }

    fn draw(rng: &mut Rng) -> Self {
        let mut fate = Self {
            time: Duration::from_millis(rng.u64(50..250)),
            reset_near: rng.bool(),
            reset_far: rng.bool(),
            ..Self::calm()
        };
        match rng.u8(0..10) {
            // In the head of the request or the response, and anywhere in frames and chunks.
            0 => fate.up = rng.usize(0..250),
            1 => fate.down = rng.usize(0..350),
            2..=6 => {
                let magnitude = rng.u8(4..18);
                fate.down = 250 + rng.usize(0..1 << magnitude);
            }
            _ => fate.time = Duration::from_micros(rng.u64(0..100_000)),
        }
        if rng.u8(0..4) == 0 {
            fate.pause = (rng.usize(0..20_000), Duration::from_millis(rng.u64(10..200)));
            fate.time += fate.pause.1;
        }
        fate
    }
}

/// A proxy for one subscriber. What it does depends only on the seed.
pub(super) async fn proxy(world: Arc<World>, listener: TcpListener, mut rng: Rng) {
    loop {
        let (near, _) = listener.accept().await.unwrap();
        let server = *world.server.lock().unwrap();
        let fate = if world.calm.load(SeqCst) { Fate::calm() } else { Fate::draw(&mut rng) };
        // While the server is down, the connection ends at once.
        let Some(server) = server else { continue };
        let socket = TcpSocket::new_v4().unwrap();
        // Small, so that a pause blocks the server.
        socket.set_recv_buffer_size(4 << 10).unwrap();
        let Ok(far) = socket.connect(server).await else { continue };
        pass(&world, near, far, fate).await;
    }
}

async fn pass(world: &World, mut near: TcpStream, mut far: TcpStream, fate: Fate) {
    let (mut near_read, mut near_write) = near.split();
    let (mut far_read, mut far_write) = far.split();
    let never = (usize::MAX, Duration::ZERO);
    let is_cut = tokio::select! {
        is_cut = carry(&mut near_read, &mut far_write, fate.up, never) => is_cut,
        is_cut = carry(&mut far_read, &mut near_write, fate.down, fate.pause) => is_cut,
        () = sleep(fate.time) => true,
    };
    if !is_cut {
        return;
    }
    for (socket, reset) in [(&mut near, fate.reset_near), (&mut far, fate.reset_far)] {
        if reset {
            socket.set_zero_linger().unwrap();
        } else {
            // The other side may have closed first.
            let _ = socket.shutdown().await;
        }
    }
    world.cuts.fetch_add(1, SeqCst);
}

/// Forwards a number of bytes. Returns whether that number was reached, and neither side ended before.
async fn carry(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    most: usize,
    pause: (usize, Duration),
) -> bool {
    let mut buffer = [0; 4 << 10];
    let mut passed = 0;
    let mut is_paused = false;
    while passed < most {
        if passed >= pause.0 && !is_paused {
            is_paused = true;
            sleep(pause.1).await;
        }
        let space = buffer.len().min(most - passed);
        let Ok(count @ 1..) = from.read(&mut buffer[..space]).await else { return false };
        if to.write_all(&buffer[..count]).await.is_err() {
            return false;
        }
        passed += count;
    }
    true
}
