//! `msgbus pub`.

use std::{io::IsTerminal as _, os::unix::ffi::OsStringExt as _, time::Duration};

use bytes::Bytes;
use msgbus_client::{ClientError, Draft};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader, stdin},
    time::{Instant, sleep, timeout_at},
};

use crate::{
    args::Pub,
    failure::{Exit, Failure},
    output::note,
};

/// The most lines, and about the most bytes, of one batch.
const BATCH_LINES: u64 = 1_000;
const BATCH_BYTES: usize = 256 << 10;
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
        let mut line = Vec::new();
        let mut limited = (&mut input).take(LARGEST);
        limited.read_until(b'\n', &mut line).await.map_err(unreadable)?;
        if line.is_empty() {
            break;
        }
        if line.pop_if(|byte| *byte == b'\n').is_some() {
            line.pop_if(|byte| *byte == b'\r');
        }
        if let Err(failure) = publish(args, line.into()).await {
            note(&format!("line {number} and what follows it have not been published"));
            return Err(failure);
        }
    }
    Ok(Exit::Done)
}

/// Publishes lines by the batch; of a failure it says where.
async fn batches(args: &Pub) -> Result<Exit, Failure> {
    let mut input = BufReader::with_capacity(64 << 10, stdin());
    let mut first = 1_u64;
    loop {
        let (mut batch, mut count) = (Vec::new(), 0);
        while count < BATCH_LINES && batch.len() < BATCH_BYTES {
            let mut limited = (&mut input).take(LARGEST);
            if limited.read_until(b'\n', &mut batch).await.map_err(unreadable)? == 0 {
                break;
            }
            count += 1;
        }
        if count == 0 {
            return Ok(Exit::Done);
        }
        if let Err(failure) = publish(args, batch.into()).await {
            note(&format!("line {first} and what follows it have not been published"));
            return Err(failure);
        }
        first += count;
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
            Err(_) => {
                return Err(Failure::Other(
                    "no answer within --timeout; the message may have been accepted".to_owned(),
                ));
            }
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
