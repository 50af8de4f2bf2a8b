//! `msgbus pull`.

use std::time::Duration;

use msgbus_client::{ClientError, Message};
use tokio::{
    select,
    time::{Instant, sleep_until, timeout},
};

use crate::{
    args::Pull,
    failure::{Exit, Failure},
    output::Output,
    signals::Stop,
};

/// How often to look for messages that are waited for.
const POLL_EVERY: Duration = Duration::from_millis(100);
/// How long a request that is under way is let finish when the time is over: given up earlier, it
/// might lose a message.
const GRACE: Duration = Duration::from_secs(1);

pub(crate) async fn run(args: Pull, mut stop: Stop) -> Result<Exit, Failure> {
    let mut output = Output::new(args.style);
    let mut pulled = 0;
    let ended = loop {
        if pulled == args.count {
            break Ended::Counted;
        }
        let next = Instant::now() + POLL_EVERY;
        match pull(&args, &mut stop).await? {
            Ok(Some(message)) => {
                output.write(&message).await?;
                output.flush().await?;
                pulled += 1;
            }
            Ok(None) if args.deadline.is_none() => break Ended::Empty,
            Ok(None) => {
                if let Some(ended) = pause(&args, &mut stop, next).await {
                    break ended;
                }
            }
            Err(ended) => break ended,
        }
    };
    Ok(match ended {
        Ended::OutOfTime => Exit::Nothing,
        Ended::Empty if pulled == 0 && args.fail_empty => Exit::Nothing,
        Ended::Counted | Ended::Empty | Ended::Stopped => Exit::Done,
    })
}

/// Why no more is pulled.
enum Ended {
    Counted,
    Empty,
    OutOfTime,
    Stopped,
}

/// Pulls once. While the server asks to come back later, that is done.
async fn pull(args: &Pull, stop: &mut Stop) -> Result<Result<Option<Message>, Ended>, Failure> {
    loop {
        let mut begin = Box::pin(args.client.begin_pull(&args.topic));
        let begun = select! {
            begun = &mut begin => begun,
            ended = end(args, stop) => match timeout(GRACE, begin).await {
                Ok(begun) => begun,
                Err(_) => return Ok(Err(ended)),
            },
        };
        match begun {
            // It is on its way: from here on it is waited for, whatever happens.
            Ok(Some(pulled)) => return Ok(Ok(Some(pulled.message().await?))),
            Ok(None) => return Ok(Ok(None)),
            Err(ClientError::Busy { retry_after, .. }) => {
                if let Some(ended) = pause(args, stop, Instant::now() + retry_after).await {
                    return Ok(Err(ended));
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Waits until then, unless everything ends before.
async fn pause(args: &Pull, stop: &mut Stop, until: Instant) -> Option<Ended> {
    select! {
        () = sleep_until(until) => None,
        ended = end(args, stop) => Some(ended),
    }
}

/// Waits for the end of the time, or for a signal.
async fn end(args: &Pull, stop: &mut Stop) -> Ended {
    select! {
        () = args.out_of_time() => Ended::OutOfTime,
        () = stop.requested() => Ended::Stopped,
    }
}
