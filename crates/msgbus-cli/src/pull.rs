//! `msgbus pull`.

use std::{future::pending, time::Duration};

use msgbus_client::{
    Client, ClientError, GroupName, LeaseOptions, LeaseToken, Leased, Message, Position,
    PullOptions, Pulled, Settlement, TopicName,
};
use tokio::{
    select,
    time::{Instant, sleep_until, timeout},
};

use crate::{
    failure::{Exit, Failure},
    output::{Output, Style, note, print_token},
    reader::{Options, count, duration, lease, position},
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

#[derive(Debug)]
pub(crate) struct Pull {
    client: Client,
    topic: TopicName,
    group: Option<Group>,
    count: Option<u64>,
    /// The maximum number of messages per response.
    max: Option<u64>,
    wait: Option<Duration>,
    peek: bool,
    deadline: Option<Instant>,
    style: Style,
    fail_empty: bool,
    quiet: bool,
}

/// The options of a pull with a lease.
#[derive(Debug)]
struct Group {
    name: GroupName,
    lease: Duration,
    since: Option<Position>,
    /// Whether to acknowledge messages once they are printed.
    ack: bool,
}

impl Pull {
    pub(crate) fn parse(options: &mut Options, topic: TopicName) -> Result<Self, Failure> {
        let peek = options.switch("--peek");
        Ok(Self {
            topic,
            group: Group::parse(options, peek)?,
            count: options.value("--count", count)?,
            max: options.value("--max", count)?,
            wait: options.value("--wait", duration)?,
            peek,
            deadline: options.value("--timeout", duration)?.map(|timeout| Instant::now() + timeout),
            style: options.style()?,
            fail_empty: options.switch("--fail-empty"),
            quiet: options.quiet,
            client: options.client()?.0,
        })
    }
}

impl Group {
    fn parse(options: &mut Options, peek: bool) -> Result<Option<Self>, Failure> {
        let name = options.group()?;
        let ack = options.switch("--ack");
        let lease = options.value("--lease", lease)?;
        let since = options.value("--since", position)?;
        let given = [("--ack", ack), ("--lease", lease.is_some()), ("--since", since.is_some())];
        let other = given.iter().find(|(_, given)| *given).map(|(option, _)| option);
        match (name, other) {
            (None, Some(other)) => {
                Err(Failure::usage(format!("{other} is only for a group; add --group NAME")))
            }
            (Some(_), Some(other)) if peek => {
                Err(Failure::usage(format!("--peek takes nothing; omit {other}")))
            }
            _ if ack && lease.is_some() => Err(Failure::usage("give one of --ack and --lease")),
            (name, _) => Ok(name.map(|name| Self {
                name,
                lease: lease.unwrap_or(LeaseOptions::DEFAULT_LEASE),
                since,
                ack,
            })),
        }
    }
}

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
            Ok(taken) if taken.len() > 0 => {
                args.print(&taken, &mut output).await?;
                pulled += taken.len() as u64;
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

/// What a response contains.
enum Taken {
    Messages(Vec<Message>),
    Leased(Vec<Leased>),
}

impl Taken {
    fn len(&self) -> usize {
        match self {
            Self::Messages(messages) => messages.len(),
            Self::Leased(leased) => leased.len(),
        }
    }
}

/// The same before the messages have arrived. They have left the topic, unless they are leased.
enum Begun {
    Pulled(Option<Box<Pulled>>),
    Leased(Vec<Leased>),
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

    async fn out_of_time(&self) {
        match self.deadline {
            Some(deadline) => sleep_until(deadline).await,
            None => pending().await,
        }
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

impl Pull {
    /// Prints messages. Then acknowledges them, or prints the tokens of their leases.
    async fn print(&self, taken: &Taken, output: &mut Output) -> Result<(), Failure> {
        let leased = match taken {
            Taken::Messages(messages) => {
                for message in messages {
                    output.write(message).await?;
                }
                return output.flush().await;
            }
            Taken::Leased(leased) => leased,
        };
        let group = self.group.as_ref().filter(|group| group.ack);
        let mut unprinted = Vec::new();
        for lease in leased {
            if group.is_some() {
                output.write(&lease.message).await?;
            } else if !output.write_leased(lease).await? {
                unprinted.push(&lease.token);
            }
        }
        output.flush().await?;
        unprinted.into_iter().for_each(print_token);
        let Some(group) = group else { return Ok(()) };
        let tokens: Vec<LeaseToken> = leased.iter().map(|lease| lease.token.clone()).collect();
        self.acknowledge(group, &tokens).await
    }

    async fn acknowledge(&self, group: &Group, tokens: &[LeaseToken]) -> Result<(), Failure> {
        let unsettled = self.client.settle_all(tokens, &Settlement::Ack, group.lease).await?;
        let Some(first) = unsettled.first() else { return Ok(()) };
        let (count, of) = (unsettled.len(), tokens.len());
        Err(Failure::Other(format!(
            "{count} of {of} messages were printed, but not acknowledged: {}",
            first.error
        )))
    }

    async fn begin(&self, options: PullOptions) -> Result<Begun, ClientError> {
        let Some(Group { name, lease, since, .. }) = &self.group else {
            let pulled = self.client.begin_pull(&self.topic, options).await?;
            return Ok(Begun::Pulled(pulled.map(Box::new)));
        };
        let PullOptions { max, wait } = options;
        let options = LeaseOptions { lease: *lease, max: max.unwrap_or(1), wait, since: *since };
        self.client.lease(&self.topic, name, options).await.map(Begun::Leased)
    }

    /// Whether nothing is lost if a failed pull is repeated. A leased message whose response was lost comes
    /// again.
    fn is_repeatable(&self, error: &ClientError) -> bool {
        error.is_unreachable() || (self.group.is_some() && error.is_temporary())
    }

    /// How long to wait before a failed pull is repeated; `None` if it is not, because that is not safe or too late.
    fn retry_after(&self, error: &ClientError, until: Option<Instant>) -> Option<Duration> {
        let pause = match error {
            // A limit of a rate is over by itself. Everything else may last.
            ClientError::Busy { status: 429, retry_after, .. } if until.is_none() => {
                return Some(*retry_after);
            }
            ClientError::Busy { retry_after, .. } => *retry_after,
            error if self.is_repeatable(error) => RETRY_AFTER,
            _ => return None,
        };
        (until > Some(Instant::now() + pause)).then_some(pause)
    }
}

/// Pulls once. Within a given time it retries while no connection can be made, and while the server answers with
/// Retry-After. Both are safe: nothing has been taken.
async fn pull(
    args: &Pull,
    left: u64,
    wait_deadline: Option<Instant>,
    stop: &mut Stop,
) -> Result<Result<Taken, Ended>, Failure> {
    let until = wait_deadline.into_iter().chain(args.deadline).min();
    let mut is_told = args.quiet;
    loop {
        // Long polling on the server saves requests. prologic/msgbus ignores it and answers at once.
        let wait = until.map(|until| until.saturating_duration_since(Instant::now()));
        let options = PullOptions {
            max: args.max.map(|max| number(max.min(left))),
            wait: wait.map(|wait| wait.clamp(MIN_WAIT, MAX_WAIT)),
        };
        let mut begin = Box::pin(args.begin(options));
        let begun = select! {
            begun = &mut begin => begun,
            ended = end(args, stop) => match timeout(GRACE, begin).await {
                Ok(begun) => begun,
                Err(_) => return Ok(Err(ended)),
            },
        };
        let retry_after = match begun {
            // The messages have left the topic; wait for them regardless of deadline and signals.
            Ok(Begun::Pulled(Some(pulled))) => {
                return Ok(Ok(Taken::Messages(pulled.messages().await?)));
            }
            Ok(Begun::Pulled(None)) => return Ok(Ok(Taken::Messages(Vec::new()))),
            Ok(Begun::Leased(leased)) => return Ok(Ok(Taken::Leased(leased))),
            Err(error) => match args.retry_after(&error, until) {
                None => return Err(error.into()),
                Some(retry_after) => {
                    if matches!(error, ClientError::Busy { status: 503, .. }) && !is_told {
                        is_told = true;
                        note(&format!("{error} (retrying)"));
                    }
                    retry_after
                }
            },
        };
        if let Some(ended) = pause(args, stop, Instant::now() + retry_after).await {
            return Ok(Err(ended));
        }
    }
}

/// Prints the messages that would be pulled.
async fn peek(args: &Pull, output: &mut Output) -> Result<Exit, Failure> {
    let count = args.left(0).min(args.max.unwrap_or(u64::MAX));
    let messages = match &args.group {
        Some(group) => args.client.peek_group(&args.topic, &group.name, number(count)).await?,
        None => args.client.peek(&args.topic, None, number(count)).await?.messages,
    };
    for message in &messages {
        output.write(message).await?;
    }
    output.flush().await?;
    let nothing = messages.is_empty() && args.fail_empty;
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
