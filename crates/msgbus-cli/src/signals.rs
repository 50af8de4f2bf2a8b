//! Ctrl-C and SIGTERM: the first signal shuts down gracefully, the second one exits at once.

use std::{io, process, time::Duration};

use tokio::{
    select,
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
    time::{Instant, timeout},
};

use crate::failure::Exit;

/// Signals within this time count as one.
const DEBOUNCE: Duration = Duration::from_millis(200);
/// The usual time between the second signal and the exit.
pub(crate) const GRACE: Duration = Duration::from_millis(200);

/// Notifies of the request to stop.
#[derive(Debug, Clone)]
pub(crate) struct Stop(watch::Receiver<u8>);

impl Stop {
    /// Installs the signal handlers. The process exits `grace` after the second signal, or at the third
    /// one.
    pub(crate) fn listen(grace: Duration) -> io::Result<Self> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let (sender, receiver) = watch::channel(0);
        tokio::spawn(async move {
            next(&mut terminate, &mut interrupt).await;
            sender.send_replace(1);
            another(&mut terminate, &mut interrupt).await;
            sender.send_replace(2);
            let _ = timeout(grace, another(&mut terminate, &mut interrupt)).await;
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

    /// Whether there was a second signal.
    pub(crate) fn is_requested_again(&self) -> bool {
        *self.0.borrow() >= 2
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

/// Waits for a signal that counts as another one. Some programs signal a process and also its group; that
/// is one request.
async fn another(terminate: &mut Signal, interrupt: &mut Signal) {
    let before = Instant::now();
    while before.elapsed() < DEBOUNCE {
        next(terminate, interrupt).await;
    }
}
