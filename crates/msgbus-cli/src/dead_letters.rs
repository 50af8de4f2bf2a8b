//! `msgbus dead` and `redrive`.

use std::{collections::BTreeSet, time::Duration};

use msgbus_client::{
    Client, ClientError, Delivery, GroupName, Headers, Message, NewMessage, Position, TopicName,
};
use tokio::select;

use crate::{
    failure::{Exit, Failure},
    output::{Output, Style, note, print},
    publish::Publisher,
    reader::{Options, count, topic_name},
    signals::Stop,
};

/// The group of dead-letter topics that takes what is published again.
const GROUP: &str = "redrive";
/// The prefix of the headers that a dead letter has beside those of its message.
const PREFIX: &str = "dead-letter-";
/// The header with the topic of the message.
const ORIGIN: &str = "dead-letter-topic";
const DEFAULT_SHOWN: u64 = 100;
/// How many messages that cannot be published again are passed over.
const MAX_PASSED: usize = 100;

#[derive(Debug)]
pub(crate) struct Dead {
    client: Client,
    source: Source,
    count: u64,
    style: Style,
}

#[derive(Debug)]
pub(crate) struct Redrive {
    publisher: Publisher,
    source: Source,
    count: u64,
}

/// Where the dead letters of a topic are.
#[derive(Debug)]
struct Source {
    topic: TopicName,
    /// The value of --dead-letters.
    dead_letters: Option<TopicName>,
}

impl Source {
    fn parse(options: &mut Options, topic: TopicName) -> Result<Self, Failure> {
        Ok(Self { topic, dead_letters: options.value("--dead-letters", topic_name)? })
    }

    /// The dead-letter topics: those of the groups, and the default, where letters from before may be.
    async fn topics(&self, client: &Client) -> Result<BTreeSet<TopicName>, Failure> {
        if let Some(topic) = &self.dead_letters {
            return Ok(BTreeSet::from([topic.clone()]));
        }
        let groups = match client.inspect(&self.topic).await {
            Ok(details) => details.map(|details| details.groups).unwrap_or_default(),
            // The key may not inspect.
            Err(ClientError::Refused { status: 403, .. }) => Vec::new(),
            Err(error) => return Err(error.into()),
        };
        let mut topics: BTreeSet<TopicName> =
            groups.iter().filter_map(|group| group.dead_letters.as_ref()?.parse().ok()).collect();
        let name = format!("{}/dead-letters", self.topic);
        match TopicName::new(&name) {
            Ok(topic) => drop(topics.insert(topic)),
            Err(error) if topics.is_empty() => {
                return Err(Failure::Other(format!("bad topic {name:?}: {error}")));
            }
            // The groups name others because of that.
            Err(_) => {}
        }
        Ok(topics)
    }
}

impl Dead {
    pub(crate) fn parse(options: &mut Options, topic: TopicName) -> Result<Self, Failure> {
        Ok(Self {
            source: Source::parse(options, topic)?,
            count: options.value("--count", count)?.unwrap_or(DEFAULT_SHOWN),
            style: options.style()?,
            client: options.client()?.0,
        })
    }
}

impl Redrive {
    pub(crate) fn parse(options: &mut Options, topic: TopicName) -> Result<Self, Failure> {
        Ok(Self {
            source: Source::parse(options, topic)?,
            count: options.value("--count", count)?.unwrap_or(u64::MAX),
            publisher: options.publisher()?,
        })
    }
}

fn group() -> Result<GroupName, Failure> {
    GROUP.parse().map_err(|error| Failure::Other(format!("bad group {GROUP}: {error}")))
}

/// Shows the dead letters of a topic.
pub(crate) async fn list(args: Dead) -> Result<Exit, Failure> {
    let (group, mut output) = (group()?, Output::new(args.style));
    let mut left = args.count;
    for topic in args.source.topics(&args.client).await? {
        if left == 0 {
            break;
        }
        let max = usize::try_from(left).unwrap_or(usize::MAX);
        let messages = args.client.peek_group(&topic, &group, max).await?;
        for message in &messages {
            output.write(message).await?;
        }
        left = left.saturating_sub(messages.len() as u64);
    }
    output.flush().await?;
    Ok(Exit::Done)
}

/// Publishes dead letters to the topics that they come from.
pub(crate) async fn redrive(args: Redrive, stop: Stop) -> Result<Exit, Failure> {
    let publisher = &args.publisher;
    let origin = &args.source.topic;
    let mut run =
        Run { publisher, origin, stop, left: args.count, published: 0, passed: Vec::new() };
    let mut ended = Ok(());
    for topic in args.source.topics(&publisher.client).await? {
        ended = run.topic(&topic).await;
        run.give_back().await;
        if ended.is_err() {
            break;
        }
    }
    let published = match run.published {
        1 => "1 message was published again".to_owned(),
        count => format!("{count} messages were published again"),
    };
    match ended {
        Ok(()) if publisher.quiet => Ok(Exit::Done),
        Ok(()) => print(&format!("{published}\n")).map(|()| Exit::Done),
        Err(failure) => Err(Failure::Partial { failure: Box::new(failure), progress: published }),
    }
}

struct Run<'a> {
    publisher: &'a Publisher,
    /// Only dead letters of this topic are published: a header that anybody could write must not choose where.
    origin: &'a TopicName,
    /// A signal ends the run between two messages.
    stop: Stop,
    left: u64,
    published: u64,
    /// Messages that are no dead letters of the topic. Their leases are kept until the end, so that they do not come again.
    passed: Vec<Delivery>,
}

impl Run<'_> {
    async fn topic(&mut self, topic: &TopicName) -> Result<(), Failure> {
        let client = &self.publisher.client;
        // What becomes a dead letter meanwhile is left for the next time, or this might never end. Without
        // the permission to peek, the end is unknown.
        let seen = client.peek(topic, Some(Position::New), 1).await;
        let end = seen.ok().and_then(|seen| seen.next_id).unwrap_or(u64::MAX);
        let group = client.group(topic, &group()?);
        while self.left > 0 {
            let delivery = select! {
                biased;
                () = self.stop.requested() => break,
                delivery = group.try_take() => delivery?,
            };
            let Some(delivery) = delivery else { break };
            if delivery.message().id() >= end {
                self.passed.push(delivery);
                break;
            }
            match origin(delivery.message()) {
                Some(origin) if origin == *self.origin => self.message(delivery).await?,
                other => self.pass_over(topic, delivery, other)?,
            }
        }
        Ok(())
    }

    /// Leaves a message that does not come from the topic.
    fn pass_over(
        &mut self,
        topic: &TopicName,
        delivery: Delivery,
        origin: Option<TopicName>,
    ) -> Result<(), Failure> {
        let id = delivery.message().id();
        self.passed.push(delivery);
        if self.passed.len() > MAX_PASSED {
            return Err(Failure::Other(format!(
                "{topic} has more than {MAX_PASSED} messages that are no dead letters of {}",
                self.origin
            )));
        }
        note(&match origin {
            Some(origin) => {
                format!("{topic}: message {id} comes from {origin}: use msgbus redrive {origin}")
            }
            None => format!("{topic}: message {id} is no dead letter: no header {ORIGIN}"),
        });
        Ok(())
    }

    /// Publishes one message, and acknowledges it.
    async fn message(&mut self, delivery: Delivery) -> Result<(), Failure> {
        let message = delivery.message();
        let (id, again) = (message.id(), again(message)?);
        if let Err(failure) = self.publisher.publish(self.origin, again, false).await {
            self.passed.push(delivery);
            return Err(failure);
        }
        self.published += 1;
        self.left -= 1;
        delivery.ack().await.map_err(|error| {
            let text =
                format!("message {id} was published again, and is still a dead letter: {error}");
            Failure::Other(text)
        })
    }

    async fn give_back(&mut self) {
        for delivery in self.passed.drain(..) {
            // If it fails, the message is redelivered when its lease is over.
            let _ = delivery.nack(Duration::ZERO, None).await;
        }
    }
}

/// The topic that a dead letter comes from. The server encodes spaces and percent signs.
fn origin(message: &Message) -> Option<TopicName> {
    let name = message.headers().get(ORIGIN)?;
    name.replace("%20", " ").replace("%25", "%").parse().ok()
}

/// The message as it was before it became a dead letter.
fn again(message: &Message) -> Result<NewMessage, Failure> {
    let is_added = |name: &str| {
        name.get(..PREFIX.len()).is_some_and(|start| start.eq_ignore_ascii_case(PREFIX))
    };
    let headers = message.headers().iter().filter(|(name, _)| !is_added(name));
    // It was valid with more headers.
    let headers = Headers::new(headers).map_err(|error| Failure::Other(error.to_string()))?;
    Ok(NewMessage::new(message.payload().clone()).headers(headers))
}
