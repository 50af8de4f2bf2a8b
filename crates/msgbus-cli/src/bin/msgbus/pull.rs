//! `msgbus pull`.

use std::time::Duration;

use msgbus_client::ClientError;
use tokio::{
    select,
    time::{Instant, sleep, sleep_until},
};

use crate::{
    args::Pull,
    failure::{Exit, Failure},
    output::Output,
    signals::Stop,
};

/// How often to look for messages that are waited for.
const POLL_EVERY: Duration = Duration::from_millis(100);
/// How long an answer may take when nothing else was said.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) async fn run(args: Pull, mut stop: Stop) -> Result<Exit, Failure> {
    let mut output = Output::new(args.style);
    let deadline = args.timeout.map(|timeout| Instant::now() + timeout);
    let mut pulled = 0;
    while pulled < args.count {
        // A pull that is under way is not given up: its message would be lost.
        match pull(&args).await? {
            Some(message) => {
                output.write(&message).await?;
                output.flush().await?;
                pulled += 1;
            }
            None => match deadline {
                Some(deadline) if Instant::now() < deadline => {
                    select! {
                        () = sleep_until(deadline.min(Instant::now() + POLL_EVERY)) => {}
                        () = stop.requested() => break,
                    }
                }
                _ => break,
            },
        }
        if stop.is_requested() {
            return Ok(Exit::Done);
        }
    }
    let too_few = pulled < args.count && deadline.is_some();
    let nothing = pulled == 0 && args.fail_empty;
    Ok(if too_few || nothing { Exit::Nothing } else { Exit::Done })
}

/// Pulls once. While the server asks to come back later, that is done, within the timeout.
async fn pull(args: &Pull) -> Result<Option<msgbus_client::Message>, Failure> {
    let deadline = Instant::now() + args.timeout.unwrap_or(PATIENCE).max(PATIENCE);
    loop {
        let pulled = tokio::time::timeout_at(deadline, args.client.pull(&args.topic)).await;
        match pulled {
            Ok(Err(ClientError::Busy { retry_after, .. }))
                if Instant::now() + retry_after < deadline =>
            {
                sleep(retry_after).await;
            }
            Ok(result) => return Ok(result?),
            Err(_) => return Err(Failure::Other("the server does not answer".to_owned())),
        }
    }
}
