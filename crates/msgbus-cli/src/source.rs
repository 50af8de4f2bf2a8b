//! Taking work from a server for as long as it takes: once it has answered, also while it cannot be reached.

use std::time::Duration;

use msgbus_client::{ClientError, Outage, Reachability};
use tokio::time::sleep;

use crate::output::note;

/// Repeats takes, with notes about the connection unless they are suppressed.
#[derive(Debug)]
pub(crate) struct Source {
    reachability: Reachability,
    /// How long a take waits at the server. Nothing happens at its end: the next one follows.
    wait: Duration,
    quiet: bool,
}

impl Source {
    pub(crate) fn new(wait: Duration, quiet: bool) -> Self {
        Self { reachability: Reachability::default(), wait, quiet }
    }

    /// Calls `take`, with the time that it should wait at the server, until it returns something.
    pub(crate) async fn next<T>(
        &mut self,
        take: impl AsyncFn(Duration) -> Result<Option<T>, ClientError>,
    ) -> Result<T, ClientError> {
        loop {
            // Without a wait it is known at once whether the server answers.
            let wait = if self.reachability.is_reached() { self.wait } else { Duration::ZERO };
            match take(wait).await {
                Ok(taken) => {
                    if self.reachability.reached() && !self.quiet {
                        note("connected again");
                    }
                    if let Some(taken) = taken {
                        return Ok(taken);
                    }
                }
                Err(error) => {
                    let outage = self.reachability.failed(error)?;
                    self.say(&outage);
                    sleep(outage.pause).await;
                }
            }
        }
    }

    fn say(&self, outage: &Outage) {
        if outage.is_news && !self.quiet {
            let seconds = outage.pause.as_secs_f64();
            note(&format!("{}; trying again in {seconds:.1} s", outage.error));
        }
    }
}
