//! `msgbus sub`.

use std::{
    future::{pending, poll_fn},
    io,
    pin::pin,
    process::{ExitStatus, Stdio},
    task::Poll,
};

use msgbus_client::{Event, Message, Position, Subscription};
use tokio::{
    io::AsyncWriteExt as _,
    process::Command,
    select,
    time::{Instant, sleep_until},
};

use crate::{
    args::Sub,
    cursor::Cursor,
    failure::{Exit, Failure},
    output::{Output, note, write_json},
    signals::Stop,
};

pub(crate) async fn run(mut args: Sub, mut stop: Stop) -> Result<Exit, Failure> {
    let cursor = args.cursor.take().map(Cursor::open).transpose()?;
    let from = cursor.as_ref().and_then(Cursor::saved).unwrap_or(args.since);
    let subscription = args.client.subscribe(&args.topic, from);
    let deadline = args.timeout.map(|timeout| Instant::now() + timeout);
    let output = Output::new(args.style);
    let mut follower =
        Follower { args, subscription, output, cursor, handled: 0, place: None, connected: false };
    let mut timeout = pin!(async move {
        match deadline {
            Some(deadline) => sleep_until(deadline).await,
            None => pending().await,
        }
    });
    let exit = loop {
        if follower.args.count.is_some_and(|count| follower.handled >= count) {
            break Ok(Exit::Done);
        }
        let event = select! {
            biased;
            () = stop.requested() => break Ok(Exit::Done),
            () = &mut timeout => break Ok(follower.out_of_time()),
            event = follower.next() => event,
        };
        let handled = match event {
            Ok(event) => follower.handle(event).await,
            Err(failure) => Err(failure),
        };
        if let Err(failure) = handled {
            break Err(failure);
        }
    };
    let flushed = follower.settle().await;
    follower.subscription.close().await;
    // What ended it counts more than what failed at the end.
    exit.and_then(|exit| flushed.map(|()| exit))
}

struct Follower {
    args: Sub,
    subscription: Subscription,
    output: Output,
    cursor: Option<Cursor>,
    handled: u64,
    /// The position after the last message that was dealt with.
    place: Option<Position>,
    /// Whether there has been a connection before.
    connected: bool,
}

impl Follower {
    /// The next event. Output waits for company, but not for events that are still to come.
    async fn next(&mut self) -> Result<Event, Failure> {
        let mut next = pin!(self.subscription.next());
        // The same future goes on: a connection that it has begun is not begun twice.
        let at_once = poll_fn(|cx| Poll::Ready(next.as_mut().poll(cx))).await;
        if let Poll::Ready(event) = at_once {
            return Ok(event?);
        }
        self.output.flush().await?;
        Ok(next.await?)
    }

    async fn handle(&mut self, event: Event) -> Result<(), Failure> {
        let topic = &self.args.topic;
        match event {
            Event::Message(message) => {
                match &self.args.command {
                    Some(_) => self.run_command(&message).await?,
                    None => self.output.write(&message).await?,
                }
                self.handled += 1;
                self.place = Some(self.subscription.position());
                if self.cursor.is_some() {
                    self.settle().await?;
                }
            }
            Event::Missed(count) => {
                note(&format!(
                    "{topic}: {count} messages were gone at the server before they came here"
                ));
            }
            Event::Restarted => {
                note(&format!(
                    "{topic}: the topic has begun anew at the server; ids start at 0 again"
                ));
            }
            Event::Connected => self.greet()?,
            Event::Disconnected { error, retry_in } if !self.args.quiet => {
                let seconds = retry_in.as_secs_f64();
                note(&format!("{error}; trying again in {seconds:.1} s"));
            }
            _ => {}
        }
        Ok(())
    }

    fn greet(&mut self) -> Result<(), Failure> {
        if self.connected && !self.args.quiet {
            note("connected again");
        } else if self.args.debug {
            note(&format!("following {} at {}", self.args.topic, self.args.client.server()));
        }
        self.connected = true;
        match &mut self.cursor {
            // From here on nothing is missed, even if this is ended before a message comes.
            Some(cursor) if cursor.saved().is_none() => cursor.save(self.subscription.position()),
            _ => Ok(()),
        }
    }

    /// Brings out what has been printed, and then, not before, keeps the place.
    async fn settle(&mut self) -> Result<(), Failure> {
        self.output.flush().await?;
        match (&mut self.cursor, self.place) {
            (Some(cursor), Some(place)) => cursor.save(place),
            _ => Ok(()),
        }
    }

    fn out_of_time(&self) -> Exit {
        if self.args.count.is_some() { Exit::Nothing } else { Exit::Done }
    }

    /// Runs the user's command for one message. A signal does not interrupt it: it ends, and then
    /// so does this.
    async fn run_command(&mut self, message: &Message) -> Result<(), Failure> {
        let Some((program, arguments)) = &self.args.command else { return Ok(()) };
        let name = program.to_string_lossy().into_owned();
        let mut child = Command::new(program)
            .args(arguments)
            .env("MSGBUS_ID", message.id().to_string())
            .env("MSGBUS_TOPIC", message.topic().name.as_str())
            .stdin(Stdio::piped())
            .spawn()
            .map_err(|error| Failure::Other(format!("cannot run {name}: {error}")))?;
        let mut json = Vec::new();
        write_json(&mut json, message);
        let input = child.stdin.take();
        let feed = async {
            if let Some(mut input) = input {
                // A command need not read its input.
                let _ = input.write_all(&json).await;
            }
        };
        let work = async { tokio::join!(feed, child.wait()).1 };
        let status = select! {
            status = work => status,
            never = self.subscription.keep_alive() => match never {},
        };
        self.judge(&name, message.id(), status)
    }

    fn judge(&self, name: &str, id: u64, status: io::Result<ExitStatus>) -> Result<(), Failure> {
        let problem = match status {
            Ok(status) if status.success() => return Ok(()),
            Ok(status) => format!("{name} failed on message {id}: {status}"),
            Err(error) => format!("cannot wait for {name}: {error}"),
        };
        if self.cursor.is_some() {
            return Err(Failure::Other(format!("{problem}; it is the first one the next time")));
        }
        note(&problem);
        Ok(())
    }
}
