//! Ctrl-C, SIGTERM and SIGHUP: the first signal shuts down gracefully, the second one exits at once.

use std::{fs, future::pending, io, process, time::Duration};

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
        let mut signals = Signals::install()?;
        let (sender, receiver) = watch::channel(0);
        tokio::spawn(async move {
            signals.next().await;
            sender.send_replace(1);
            signals.another().await;
            sender.send_replace(2);
            let _ = timeout(grace, signals.another()).await;
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

/// The signals that ask to stop.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    /// The end of the terminal. `None` if it is ignored, as under `nohup`.
    hangup: Option<Signal>,
}

impl Signals {
    fn install() -> io::Result<Self> {
        let hangup = (!ignores_hangup()).then(|| signal(SignalKind::hangup())).transpose()?;
        let terminate = signal(SignalKind::terminate())?;
        Ok(Self { terminate, interrupt: signal(SignalKind::interrupt())?, hangup })
    }

    async fn next(&mut self) {
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => hangup.recv().await,
                None => pending().await,
            }
        };
        select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
            _ = hangup => {}
        }
    }

    /// Waits for a signal that counts as another one. Some programs signal a process and also its group; that
    /// is one request.
    async fn another(&mut self) {
        let before = Instant::now();
        while before.elapsed() < DEBOUNCE {
            self.next().await;
        }
    }
}

/// Whether SIGHUP was ignored when the process began, as far as the system tells. A handler would undo that.
fn ignores_hangup() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    // Bit 0 is signal 1.
    mask.is_some_and(|mask| mask & 1 != 0)
}
