//! Ctrl-C and SIGTERM: the first signal shuts down gracefully, the second one exits at once.

use std::{io, process, time::Duration};

use tokio::{
    select,
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
    time::{Instant, sleep},
};

use crate::failure::Exit;

/// Signals within this time count as one. Also the grace period between the second signal and the exit.
const DEBOUNCE: Duration = Duration::from_millis(200);

/// Notifies of the request to stop.
#[derive(Debug, Clone)]
pub(crate) struct Stop(watch::Receiver<u8>);

impl Stop {
    /// Installs the signal handlers.
    pub(crate) fn listen() -> io::Result<Self> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let (sender, receiver) = watch::channel(0);
        tokio::spawn(async move {
            next(&mut terminate, &mut interrupt).await;
            sender.send_replace(1);
            // Some programs signal a process and also its group; that counts as one request.
            let first = Instant::now();
            while first.elapsed() < DEBOUNCE {
                next(&mut terminate, &mut interrupt).await;
            }
            sender.send_replace(2);
            sleep(DEBOUNCE).await;
            process::exit(Exit::SecondSignal as i32);
        });
        Ok(Self(receiver))
    }

    /// Waits for the first signal.
    pub(crate) async fn requested(&mut self) {
        self.count(1).await;
    }

    /// Waits for the second signal. The process exits shortly after it, whatever it is doing.
    pub(crate) async fn requested_again(&mut self) {
        self.count(2).await;
    }

    async fn count(&mut self, signals: u8) {
        // Cannot fail: the sender lives until the process exits.
        let _ = self.0.wait_for(|count| *count >= signals).await;
    }
}

async fn next(terminate: &mut Signal, interrupt: &mut Signal) {
    select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}
