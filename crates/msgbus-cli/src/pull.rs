//! `msgbus pull`.

use std::time::Duration;

use msgbus_client::{ClientError, Message, PullOptions};
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

/// The interval between pulls while waiting for messages.
const POLL_EVERY: Duration = Duration::from_millis(100);
/// The delay before the next attempt while the server cannot be reached.
pub(crate) const RETRY_AFTER: Duration = Duration::from_millis(250);
/// The range of `?wait=` that servers accept.
const MIN_WAIT: Duration = Duration::from_millis(1);
const MAX_WAIT: Duration = Duration::from_secs(60);
/// How long a request in flight may take to finish after the deadline. Cancelling it at once might lose
/// a message.
const GRACE: Duration = Duration::from_secs(1);

pub(crate) async fn run(args: Pull, mut stop: Stop) -> Result<Exit, Failure> {
    let mut output = Output::new(args.style);
    if args.peek {
        return select! {
            biased;
            shown = peek(&args, &mut output) => shown,
            ended = end(&args, &mut stop) => Ok(ended.exit()),
        };
    }
    let mut pulled = 0;
    let mut wait_deadline = args.wait_deadline();
    let ended = loop {
        let left = args.left(pulled);
        if left == 0 {
            break Ended::Counted;
        }
        let next = Instant::now() + POLL_EVERY;
        match pull(&args, left, wait_deadline, &mut stop).await? {
            Ok(messages) if !messages.is_empty() => {
                for message in &messages {
                    output.write(message).await?;
                }
                output.flush().await?;
                pulled += messages.len() as u64;
                wait_deadline = args.wait_deadline();
            }
            Ok(_) => {
                if wait_deadline.is_none_or(|end| end <= Instant::now()) {
                    if args.deadline.is_none() {
                        break Ended::Empty;
                    }
                    wait_deadline = args.wait_deadline();
                }
                if let Some(ended) = pause(&args, &mut stop, next).await {
                    break ended;
                }
            }
            Err(ended) => break ended,
        }
    };
    Ok(match ended {
        Ended::Empty if pulled == 0 && args.fail_empty => Exit::Nothing,
        ended => ended.exit(),
    })
}

/// Why pulling has ended.
enum Ended {
    Counted,
    Empty,
    OutOfTime,
    Stopped,
}

impl Ended {
    fn exit(self) -> Exit {
        match self {
            Self::OutOfTime => Exit::Nothing,
            Self::Counted | Self::Empty | Self::Stopped => Exit::Done,
        }
    }
}

impl Pull {
    /// The end of a wait for the next message that starts now.
    fn wait_deadline(&self) -> Option<Instant> {
        self.wait.map(|wait| Instant::now() + wait)
    }

    /// How many messages are still to be pulled. Without `--count`, one response is enough.
    fn left(&self, pulled: u64) -> u64 {
        match self.count {
            Some(count) => count.saturating_sub(pulled),
            None if pulled > 0 => 0,
            None => self.max.unwrap_or(1),
        }
    }
}

/// Pulls once. Retries as long as the server answers with Retry-After and, within a given time, while no
/// connection can be made. Both are safe: nothing has been taken.
async fn pull(
    args: &Pull,
    left: u64,
    wait_deadline: Option<Instant>,
    stop: &mut Stop,
) -> Result<Result<Vec<Message>, Ended>, Failure> {
    let until = wait_deadline.into_iter().chain(args.deadline).min();
    loop {
        // Long polling on the server saves requests. prologic/msgbus ignores it and answers at once.
        let wait = until.map(|until| until.saturating_duration_since(Instant::now()));
        let options = PullOptions {
            max: args.max.map(|max| number(max.min(left))),
            wait: wait.map(|wait| wait.clamp(MIN_WAIT, MAX_WAIT)),
        };
        let mut begin = Box::pin(args.client.begin_pull(&args.topic, options));
        let begun = select! {
            begun = &mut begin => begun,
            ended = end(args, stop) => match timeout(GRACE, begin).await {
                Ok(begun) => begun,
                Err(_) => return Ok(Err(ended)),
            },
        };
        let retry_after = match begun {
            // The messages have left the topic; wait for them regardless of deadline and signals.
            Ok(Some(pulled)) => return Ok(Ok(pulled.messages().await?)),
            Ok(None) => return Ok(Ok(Vec::new())),
            Err(ClientError::Busy { retry_after, .. }) => retry_after,
            Err(error) if error.is_unreachable() && until > Some(Instant::now() + RETRY_AFTER) => {
                RETRY_AFTER
            }
            Err(error) => return Err(error.into()),
        };
        if let Some(ended) = pause(args, stop, Instant::now() + retry_after).await {
            return Ok(Err(ended));
        }
    }
}

/// Prints the messages that would be pulled.
async fn peek(args: &Pull, output: &mut Output) -> Result<Exit, Failure> {
    let count = args.left(0).min(args.max.unwrap_or(u64::MAX));
    let seen = args.client.peek(&args.topic, None, number(count)).await?;
    for message in &seen.messages {
        output.write(message).await?;
    }
    output.flush().await?;
    let nothing = seen.messages.is_empty() && args.fail_empty;
    Ok(if nothing { Exit::Nothing } else { Exit::Done })
}

/// Waits until `until`, unless the deadline or a signal comes first.
async fn pause(args: &Pull, stop: &mut Stop, until: Instant) -> Option<Ended> {
    select! {
        () = sleep_until(until) => None,
        ended = end(args, stop) => Some(ended),
    }
}

/// Waits for the deadline or a signal.
async fn end(args: &Pull, stop: &mut Stop) -> Ended {
    select! {
        () = args.out_of_time() => Ended::OutOfTime,
        () = stop.requested() => Ended::Stopped,
    }
}

fn number(count: u64) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}
