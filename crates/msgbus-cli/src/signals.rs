//! Ctrl-C and SIGTERM: the first one ends in order, the second at once.

use std::{io, process, time::Duration};

use tokio::{
    select,
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
    time::{Instant, sleep},
};

use crate::failure::Exit;

/// How close signals are that mean the same, and how long the last orders after a second one take.
const ONE_WISH: Duration = Duration::from_millis(200);

/// Tells whether it is time to end.
#[derive(Debug, Clone)]
pub(crate) struct Stop(watch::Receiver<u8>);

impl Stop {
    /// Takes the signals over from the system.
    pub(crate) fn listen() -> io::Result<Self> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let (tell, told) = watch::channel(0);
        tokio::spawn(async move {
            next(&mut terminate, &mut interrupt).await;
            tell.send_replace(1);
            // Some senders signal a process and its group: that is one wish, not two.
            let first = Instant::now();
            while first.elapsed() < ONE_WISH {
                next(&mut terminate, &mut interrupt).await;
            }
            tell.send_replace(2);
            sleep(ONE_WISH).await;
            process::exit(Exit::SecondSignal as i32);
        });
        Ok(Self(told))
    }

    /// Waits for the first signal.
    pub(crate) async fn requested(&mut self) {
        self.count(1).await;
    }

    /// Waits for the second signal. Soon after it the process ends, wherever it is.
    pub(crate) async fn insisted(&mut self) {
        self.count(2).await;
    }

    async fn count(&mut self, signals: u8) {
        // The sender lives until the process ends.
        let _ = self.0.wait_for(|count| *count >= signals).await;
    }
}

async fn next(terminate: &mut Signal, interrupt: &mut Signal) {
    select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}
