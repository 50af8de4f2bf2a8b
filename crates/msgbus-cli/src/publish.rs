//! `msgbus pub`.

use std::{
    collections::VecDeque,
    io::{self, IsTerminal as _},
    os::unix::ffi::OsStringExt as _,
    time::Duration,
};

use bytes::Bytes;
use futures_util::{Stream, stream};
use msgbus_client::{Client, ClientError, NewMessage, Published, TopicName};
use msgbus_core::format_duration;
use tokio::{
    select,
    sync::mpsc,
    time::{Instant, sleep, timeout, timeout_at},
};

use crate::{
    args::Pub,
    failure::{Exit, Failure},
    input::{Chunk, Input, Piece, without_end},
    output::note,
    pull::RETRY_AFTER,
};

/// The maximum number of lines, and the approximate maximum number of bytes, in a batch.
pub(crate) const BATCH_LINES: usize = 1_000;
pub(crate) const BATCH_BYTES: usize = 256 << 10;
/// How many chunks of a streamed message may be queued between the input and the connection.
const CHUNKS: usize = 2;
/// The status code for a message or a batch that is too large.
pub(crate) const TOO_LARGE: u16 = 413;

/// Publishes to one server, and tries again while that is safe.
#[derive(Debug)]
pub(crate) struct Publisher {
    pub(crate) client: Client,
    pub(crate) timeout: Duration,
    pub(crate) quiet: bool,
    pub(crate) debug: bool,
}

pub(crate) async fn run(args: Pub) -> Result<Exit, Failure> {
    if let Some(message) = &args.message {
        publish(&args, Bytes::from(message.clone().into_vec())).await?;
        return Ok(Exit::Done);
    }
    if io::stdin().is_terminal() {
        note("reading the message from the terminal; end it with Ctrl-D");
    }
    let mut input = Input::new();
    if args.split {
        return batches(&args, &mut input).await;
    }
    if args.lines {
        return lines(&args, &mut input).await;
    }
    match input.all().await? {
        Piece::Whole(payload) => publish(&args, payload.into()).await?,
        Piece::Long(head) => publish_long(&args, head, &mut input).await?,
    }
    Ok(Exit::Done)
}

/// Publishes each line as a message. An error names the line.
async fn lines(args: &Pub, input: &mut Input) -> Result<Exit, Failure> {
    for number in 1_u64.. {
        let line = input.line().await.map_err(|failure| at_line(number, failure))?;
        let published = match line {
            None => break,
            Some(Piece::Whole(line)) => publish(args, without_end(line).into()).await,
            Some(Piece::Long(head)) => publish_long(args, head, input).await,
        };
        published.map_err(|failure| at_line(number, failure))?;
    }
    Ok(Exit::Done)
}

/// Publishes lines in batches. Halves the batch size while the server rejects a batch as too large. An
/// error names the first line that was not published.
async fn batches(args: &Pub, input: &mut Input) -> Result<Exit, Failure> {
    let mut lines = VecDeque::new();
    let (mut first, mut size, mut most) = (1_u64, 0, BATCH_LINES);
    loop {
        // No line can be read after a long one until the rest of that line has been read.
        while lines.len() < most
            && size < BATCH_BYTES
            && !matches!(lines.back(), Some(Piece::Long(_)))
        {
            let Some(line) = input.line().await.map_err(|failure| at_line(first, failure))? else {
                break;
            };
            size += line.len();
            lines.push_back(line);
        }
        if matches!(lines.front(), Some(Piece::Long(_)))
            && let Some(Piece::Long(head)) = lines.pop_front()
        {
            size -= head.len();
            publish_long(args, head, input).await.map_err(|failure| at_line(first, failure))?;
            first += 1;
            continue;
        }
        let (batch, count) = batch(&lines, most);
        if count == 0 {
            return Ok(Exit::Done);
        }
        match publish(args, batch.into()).await {
            Ok(()) => {
                size -= lines.drain(..count).map(|line| line.len()).sum::<usize>();
                first += count as u64;
            }
            Err(Failure::Client(ClientError::Refused { status: TOO_LARGE, .. })) if count > 1 => {
                most = count / 2;
            }
            Err(failure) => return Err(at_line(first, failure)),
        }
    }
}

/// Joins the first lines, and returns how many they are. A streamed line is never in a batch.
fn batch(lines: &VecDeque<Piece>, most: usize) -> (Vec<u8>, usize) {
    let (mut batch, mut count) = (Vec::new(), 0);
    for line in lines.iter().take(most) {
        let Piece::Whole(line) = line else { break };
        if count > 0 && batch.len() + line.len() > BATCH_BYTES {
            break;
        }
        batch.extend_from_slice(line);
        count += 1;
    }
    if count == 1 {
        // A final line break has no meaning, but would count towards the server's limit.
        batch.pop_if(|byte| *byte == b'\n');
    }
    (batch, count)
}

/// Adds the number of the first line that was not accepted to a failure.
fn at_line(first: u64, failure: Failure) -> Failure {
    let before = match first {
        1 => String::new(),
        2 => "; line 1 was".to_owned(),
        _ => format!("; lines 1 to {} were", first - 1),
    };
    let verb = if is_known(&failure) { "were not" } else { "may not have been" };
    let progress = format!("line {first} and those after it {verb} published{before}");
    Failure::Partial { failure: Box::new(failure), progress }
}

/// Whether the server has certainly not accepted the message. Without a response this is unknown.
pub(crate) fn is_known(failure: &Failure) -> bool {
    match failure {
        Failure::NoAnswer => false,
        Failure::Client(ClientError::Busy { .. } | ClientError::Connect { .. }) => true,
        Failure::Client(error) => !error.is_temporary(),
        _ => true,
    }
}

async fn publish(args: &Pub, payload: Bytes) -> Result<(), Failure> {
    args.publisher.publish(&args.topic, draft(args, payload), args.split).await
}

impl Publisher {
    /// Publishes one message, or each line of its payload as one. Within `--timeout` it is sent again only
    /// if the server has certainly not accepted it: while no connection can be made, and while the server
    /// answers with Retry-After.
    pub(crate) async fn publish(
        &self,
        topic: &TopicName,
        draft: NewMessage,
        split: bool,
    ) -> Result<(), Failure> {
        let deadline = Instant::now() + self.timeout;
        let mut outage = Outage::default();
        loop {
            let once = async {
                if split {
                    return self.client.publish_lines(topic, draft.clone()).await.map(|()| None);
                }
                self.client.publish(topic, draft.clone()).await.map(Some)
            };
            match timeout_at(deadline, once).await {
                Ok(Ok(published)) => {
                    self.say_published(topic, published);
                    return Ok(());
                }
                Ok(Err(error)) => outage.wait(self.quiet, error, deadline).await?,
                Err(_) => return Err(Failure::NoAnswer),
            }
        }
    }

    fn say_published(&self, topic: &TopicName, published: Option<Published>) {
        if let (true, Some(id)) = (self.debug, published.and_then(|published| published.id)) {
            note(&format!("{topic}: published as message {id}"));
        }
    }
}

/// Publishes a message that is too large to buffer: streams it up to the end of the input or of the
/// line. It cannot be sent again. `--timeout` limits how long the server may read nothing.
async fn publish_long(args: &Pub, head: Vec<u8>, input: &mut Input) -> Result<(), Failure> {
    let publisher = &args.publisher;
    // The message cannot be sent twice, so first wait until the server can be reached.
    let (deadline, mut outage) = (Instant::now() + publisher.timeout, Outage::default());
    loop {
        match timeout_at(deadline, publisher.client.ping()).await {
            Ok(Err(error)) if error.is_unreachable() => {
                outage.wait(publisher.quiet, error, deadline).await?;
            }
            // Any other result shows that the server can be reached.
            Ok(_) => break,
            Err(_) => {
                let text = "no answer within --timeout; nothing was published";
                return Err(Failure::Other(text.to_owned()));
            }
        }
    }
    let (sender, receiver) = mpsc::channel(CHUNKS);
    let draft = draft(args, head.into());
    let mut request =
        Box::pin(publisher.client.publish_stream(&args.topic, draft, message_of(receiver)));
    let is_line = args.lines || args.split;
    let response = select! {
        biased;
        // A response before the end of the message is a refusal.
        response = &mut request => response,
        passed_on = input.pass_on(is_line, &sender, publisher.timeout) => {
            passed_on?;
            timeout(publisher.timeout, request).await.map_err(|_| Failure::NoAnswer)?
        }
    };
    publisher.say_published(&args.topic, Some(response?));
    Ok(())
}

/// The chunks of a message as a request body. If the end is missing, the request is aborted and nothing
/// is published.
fn message_of(
    chunks: mpsc::Receiver<Chunk>,
) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    stream::unfold(chunks, |mut chunks| async {
        match chunks.recv().await {
            Some(Chunk::Data(data)) => Some((Ok(data), chunks)),
            Some(Chunk::End) => None,
            None => Some((Err(io::Error::other("the input has not ended")), chunks)),
        }
    })
}

fn draft(args: &Pub, payload: Bytes) -> NewMessage {
    let draft = NewMessage::new(payload).headers(args.headers.clone());
    match args.ttl {
        Some(ttl) => draft.ttl(ttl),
        None => draft,
    }
}

/// Retries while the server cannot be reached or is busy, with one note at the start.
#[derive(Default)]
pub(crate) struct Outage {
    is_told: bool,
}

impl Outage {
    /// Waits before the next attempt.
    ///
    /// # Errors
    /// Returns `error` if no time is left, or if another attempt would not be safe or would not help.
    pub(crate) async fn wait(
        &mut self,
        quiet: bool,
        error: ClientError,
        deadline: Instant,
    ) -> Result<(), Failure> {
        // An attempt needs enough time to finish: if it were cut off, the result would be unknown.
        let (pause, needed) = match &error {
            ClientError::Busy { retry_after, .. } => (*retry_after, *retry_after),
            error if error.is_unreachable() => (RETRY_AFTER, 2 * RETRY_AFTER),
            _ => return Err(error.into()),
        };
        if needed > deadline.saturating_duration_since(Instant::now()) {
            return Err(error.into());
        }
        if !(self.is_told || quiet || matches!(error, ClientError::Busy { .. })) {
            self.is_told = true;
            let time = format_duration(rounded(deadline - Instant::now()));
            note(&format!("{error} (retrying for up to {time})"));
        }
        sleep(pause).await;
        Ok(())
    }
}

/// Rounds to seconds for display, if it is more than one second.
fn rounded(time: Duration) -> Duration {
    let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    match millis {
        ..1_000 => Duration::from_millis(millis),
        _ => Duration::from_secs(millis.div_ceil(1_000)),
    }
}
