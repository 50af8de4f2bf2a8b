//! `msgbus pub`.

use std::{
    collections::VecDeque, io::IsTerminal as _, os::unix::ffi::OsStringExt as _, time::Duration,
};

use bytes::Bytes;
use msgbus_client::{ClientError, Draft};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader, Stdin, stdin},
    time::{Instant, sleep, timeout_at},
};

use crate::{
    args::Pub,
    failure::{Exit, Failure},
    output::note,
};

/// The most lines, and about the most bytes, of one batch.
const BATCH_LINES: usize = 1_000;
const BATCH_BYTES: usize = 256 << 10;
/// The status that says so of a message, or of a batch.
const TOO_LARGE: u16 = 413;
/// The most that is read for one message, in bytes: more than any server takes.
const LARGEST: u64 = 1 << 30;

pub(crate) async fn run(args: Pub) -> Result<Exit, Failure> {
    if let Some(message) = &args.message {
        publish(&args, Bytes::from(message.clone().into_vec())).await?;
        return Ok(Exit::Done);
    }
    if std::io::stdin().is_terminal() {
        note("reading the message from the terminal; end it with Ctrl-D");
    }
    if args.split {
        return batches(&args).await;
    }
    if args.lines {
        return lines(&args).await;
    }
    let mut payload = Vec::new();
    stdin().take(LARGEST + 1).read_to_end(&mut payload).await.map_err(unreadable)?;
    if payload.len() as u64 > LARGEST {
        return Err(Failure::Other("the message is larger than 1 GiB".to_owned()));
    }
    publish(&args, payload.into()).await?;
    Ok(Exit::Done)
}

/// Publishes each line; of a failure it says which one.
async fn lines(args: &Pub) -> Result<Exit, Failure> {
    let mut input = BufReader::new(stdin());
    for number in 1_u64.. {
        let read = line(&mut input, number).await;
        let Some(mut line) = read.map_err(|failure| at_line(number, failure))? else { break };
        if line.pop_if(|byte| *byte == b'\n').is_some() {
            line.pop_if(|byte| *byte == b'\r');
        }
        publish(args, line.into()).await.map_err(|failure| at_line(number, failure))?;
    }
    Ok(Exit::Done)
}

/// Publishes lines by the batch, and by the smaller batch where the server takes no larger one; of
/// a failure it says where.
async fn batches(args: &Pub) -> Result<Exit, Failure> {
    let mut input = BufReader::with_capacity(64 << 10, stdin());
    let mut lines = VecDeque::new();
    let (mut first, mut size, mut most) = (1_u64, 0, BATCH_LINES);
    loop {
        while lines.len() < most && size < BATCH_BYTES {
            let read = line(&mut input, first + lines.len() as u64).await;
            let Some(line) = read.map_err(|failure| at_line(first, failure))? else { break };
            size += line.len();
            lines.push_back(line);
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

/// The first lines in one, and how many they are. A line that is too long for that goes apart.
fn batch(lines: &VecDeque<Vec<u8>>, most: usize) -> (Vec<u8>, usize) {
    let (mut batch, mut count) = (Vec::new(), 0);
    for line in lines.iter().take(most) {
        if count > 0 && batch.len() + line.len() > BATCH_BYTES {
            break;
        }
        batch.extend_from_slice(line);
        count += 1;
    }
    if count == 1 {
        // It means nothing there, and would count for the server's limit.
        batch.pop_if(|byte| *byte == b'\n');
    }
    (batch, count)
}

/// The next line with its end; `None` at the end of the input.
async fn line(input: &mut BufReader<Stdin>, number: u64) -> Result<Option<Vec<u8>>, Failure> {
    let mut line = Vec::new();
    let mut limited = input.take(LARGEST + 1);
    limited.read_until(b'\n', &mut line).await.map_err(unreadable)?;
    if line.len() as u64 > LARGEST {
        return Err(Failure::Other(format!("line {number} is larger than 1 GiB")));
    }
    Ok(if line.is_empty() { None } else { Some(line) })
}

/// A failure, with the line from which on nothing has been accepted.
fn at_line(first: u64, failure: Failure) -> Failure {
    let before = match first {
        1 => String::new(),
        2 => "; line 1 has been".to_owned(),
        _ => format!("; lines 1 to {} have been", first - 1),
    };
    let verb = if is_known(&failure) { "have not" } else { "may not have" };
    let progress = format!("line {first} and what follows {verb} been published{before}");
    Failure::Partial { failure: Box::new(failure), progress }
}

/// Whether what failed has certainly not been accepted: where no answer came, nobody knows.
fn is_known(failure: &Failure) -> bool {
    match failure {
        Failure::NoAnswer => false,
        Failure::Client(ClientError::Busy { .. }) => true,
        Failure::Client(error) => !error.is_temporary(),
        _ => true,
    }
}

/// Publishes one message. While the server asks to come back later, that is done.
async fn publish(args: &Pub, payload: Bytes) -> Result<(), Failure> {
    let deadline = Instant::now() + args.timeout;
    let mut draft = Draft::from(payload);
    if let Some(ttl) = args.ttl {
        draft = draft.ttl(ttl);
    }
    if let Some(media_type) = &args.content_type {
        draft = draft.content_type(media_type);
    }
    loop {
        let once = async {
            if args.split {
                return args.client.publish_lines(&args.topic, draft.clone()).await.map(|()| None);
            }
            args.client.publish(&args.topic, draft.clone()).await.map(|published| published.id)
        };
        match timeout_at(deadline, once).await {
            Ok(Ok(id)) => {
                if let (true, Some(id)) = (args.debug, id) {
                    note(&format!("{}: published as message {id}", args.topic));
                }
                return Ok(());
            }
            Ok(Err(ClientError::Busy { text, retry_after })) => {
                wait_for_room(deadline, text, retry_after).await?;
            }
            Ok(Err(error)) => return Err(error.into()),
            Err(_) => return Err(Failure::NoAnswer),
        }
    }
}

/// Waits as long as the server asks for, if there is that much time.
async fn wait_for_room(
    deadline: Instant,
    text: String,
    retry_after: Duration,
) -> Result<(), Failure> {
    if retry_after > deadline.saturating_duration_since(Instant::now()) {
        return Err(ClientError::Busy { text, retry_after }.into());
    }
    sleep(retry_after).await;
    Ok(())
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn unreadable(error: std::io::Error) -> Failure {
    Failure::Other(format!("cannot read standard input: {error}"))
}
