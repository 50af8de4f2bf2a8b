//! Ctrl-C and SIGTERM: the first one ends in order, the second at once.

use std::{io, process};

use tokio::{
    select,
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
};

use crate::failure::Exit;

/// Tells whether it is time to end.
#[derive(Debug, Clone)]
pub(crate) struct Stop(watch::Receiver<bool>);

impl Stop {
    /// Takes the signals over from the system.
    pub(crate) fn listen() -> io::Result<Self> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let (tell, told) = watch::channel(false);
        tokio::spawn(async move {
            next(&mut terminate, &mut interrupt).await;
            tell.send_replace(true);
            next(&mut terminate, &mut interrupt).await;
            process::exit(Exit::SecondSignal as i32);
        });
        Ok(Self(told))
    }

    /// Waits for the first signal.
    pub(crate) async fn requested(&mut self) {
        // The sender lives until the process ends.
        let _ = self.0.wait_for(|stop| *stop).await;
    }

    pub(crate) fn is_requested(&self) -> bool {
        *self.0.borrow()
    }
}

async fn next(terminate: &mut Signal, interrupt: &mut Signal) {
    select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}
