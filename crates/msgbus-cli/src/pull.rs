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

/// How often to look for messages that are waited for.
const POLL_EVERY: Duration = Duration::from_millis(100);
/// How long to wait before another try while the server cannot be reached.
pub(crate) const RETRY_AFTER: Duration = Duration::from_millis(250);
/// What a server may be asked to wait.
const SHORTEST_WAIT: Duration = Duration::from_millis(1);
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// How long a request that is under way is let finish when the time is over: given up earlier, it
/// might lose a message.
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
    let mut patience = args.patience();
    let ended = loop {
        let left = args.left(pulled);
        if left == 0 {
            break Ended::Counted;
        }
        let next = Instant::now() + POLL_EVERY;
        match pull(&args, left, patience, &mut stop).await? {
            Ok(messages) if !messages.is_empty() => {
                for message in &messages {
                    output.write(message).await?;
                }
                output.flush().await?;
                pulled += messages.len() as u64;
                patience = args.patience();
            }
            Ok(_) => {
                if patience.is_none_or(|end| end <= Instant::now()) {
                    if args.deadline.is_none() {
                        break Ended::Empty;
                    }
                    patience = args.patience();
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

/// Why no more is pulled.
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
    /// When a wait for the next message that begins now is over.
    fn patience(&self) -> Option<Instant> {
        self.wait.map(|wait| Instant::now() + wait)
    }

    /// How many more are wanted. Without `--count` it is one answer, however many are in it.
    fn left(&self, pulled: u64) -> u64 {
        match self.count {
            Some(count) => count.saturating_sub(pulled),
            None if pulled > 0 => 0,
            None => self.max.unwrap_or(1),
        }
    }
}

/// Pulls once. Retries for as long as the server answers with Retry-After, and, where there is a
/// time to wait, while no connection can be made: nothing has been taken then.
async fn pull(
    args: &Pull,
    left: u64,
    patience: Option<Instant>,
    stop: &mut Stop,
) -> Result<Result<Vec<Message>, Ended>, Failure> {
    let until = patience.into_iter().chain(args.deadline).min();
    loop {
        // A server that waits spares both sides the asking. One of another make answers at once.
        let wait = until.map(|until| until.saturating_duration_since(Instant::now()));
        let options = PullOptions {
            max: args.max.map(|max| number(max.min(left))),
            wait: wait.map(|wait| wait.clamp(SHORTEST_WAIT, LONGEST_WAIT)),
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
            // It is on its way: from here on it is waited for, whatever happens.
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

/// Shows what would be pulled.
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

fn number(count: u64) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}
