//! `msgbus sub`.

use std::{
    convert::Infallible,
    env,
    ffi::OsStr,
    future::{pending, poll_fn},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    pin::pin,
    process::{ExitStatus, Stdio},
    task::Poll,
    time::Duration,
};

use msgbus_client::{Event, Message, Position, Subscription};
use tokio::{
    io::AsyncWriteExt as _,
    process::Command,
    select,
    time::{Instant, sleep_until, timeout},
};

use crate::{
    args::Sub,
    cursor::Cursor,
    failure::{Exit, Failure},
    output::{self, Output, note, write_json},
    signals::Stop,
};

/// How long output that nobody takes is waited for at the end.
const LAST_FLUSH: Duration = Duration::from_secs(1);

pub(crate) async fn run(mut args: Sub, mut stop: Stop) -> Result<Exit, Failure> {
    if let Some((program, _)) = &args.command {
        check_program(program)?;
    }
    let cursor = match args.cursor.take() {
        Some(path) if args.ignore_cursor => Some(Cursor::anew(path)),
        path => path.map(Cursor::open).transpose()?,
    };
    if let Some(back) = args.back {
        args.since = before(&args, back).await?;
    }
    let from = cursor.as_ref().and_then(Cursor::saved).unwrap_or(args.since);
    let deadline = args.timeout.map(|timeout| Instant::now() + timeout);
    let runs_a_command = args.command.is_some();
    let mut follower = Follower {
        subscription: args.client.subscribe(&args.topic, from),
        output: Output::new(args.style),
        stop: stop.clone(),
        args,
        cursor,
        handled: 0,
        missed: false,
        connected: false,
    };
    if follower.args.poll {
        let ended = select! {
            biased;
            polled = follower.poll(from) => polled.map(|()| Ended::Counted),
            () = stop.requested() => Ok(Ended::Stopped),
            () = sleep_until_some(deadline) => Ok(Ended::OutOfTime),
        };
        return follower.finish(ended).await;
    }
    let mut end = pin!(async {
        select! {
            () = stop.requested() => Ok(Ended::Stopped),
            () = sleep_until_some(deadline) => Ok(Ended::OutOfTime),
            () = output::closed(), if !runs_a_command => Err(Failure::ClosedPipe),
        }
    });
    let ended = loop {
        if follower.args.count.is_some_and(|count| follower.handled >= count) {
            break Ok(Ended::Counted);
        }
        let event = select! {
            biased;
            ended = &mut end => break ended,
            event = follower.next() => event,
        };
        let handled = match event {
            // A command that runs is let finish.
            Ok(event) if runs_a_command => follower.handle(event).await,
            Ok(event) => select! {
                biased;
                handled = follower.handle(event) => handled,
                ended = &mut end => break ended,
            },
            Err(failure) => Err(failure),
        };
        if let Err(failure) = handled {
            break Err(failure);
        }
    };
    follower.finish(ended).await
}

/// Why it ends, when nothing is wrong.
enum Ended {
    Counted,
    Stopped,
    OutOfTime,
}

/// The position of the message that so many follow.
async fn before(args: &Sub, back: u64) -> Result<Position, Failure> {
    let Some(topic) = args.client.inspect(&args.topic).await? else { return Ok(Position::All) };
    let topic = topic.topic;
    Ok(Position::Id(topic.next_id.saturating_sub(back).max(topic.first_id)))
}

async fn sleep_until_some(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => pending().await,
    }
}

/// Says at the start, and not at the first message, that a program is not there.
fn check_program(program: &OsStr) -> Result<(), Failure> {
    let is_program = |path: &Path| {
        path.metadata().is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
    };
    let name = program.to_string_lossy();
    let path = env::var_os("PATH").unwrap_or_default();
    let is_there = if name.contains('/') {
        is_program(Path::new(program))
    } else {
        env::split_paths(&path).any(|folder| is_program(&folder.join(program)))
    };
    if is_there {
        return Ok(());
    }
    let hint = if name.contains(' ') { "; for a line of shell use sh -c" } else { "" };
    Err(Failure::Other(format!("cannot run {name}: there is no such program{hint}")))
}

struct Follower {
    args: Sub,
    subscription: Subscription,
    output: Output,
    stop: Stop,
    cursor: Option<Cursor>,
    /// Messages dealt with.
    handled: u64,
    /// Whether anything was gone before it came here.
    missed: bool,
    /// Whether there has been a connection.
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
                let position = self.subscription.position();
                self.deal_with(&message, position).await?;
            }
            Event::Missed(count) => self.tell_missed(count),
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

    async fn deal_with(&mut self, message: &Message, position: Position) -> Result<(), Failure> {
        match &self.args.command {
            Some(_) => self.run_command(message).await?,
            None => self.output.write(message).await?,
        }
        self.handled += 1;
        if let Some(cursor) = &mut self.cursor {
            // The place is kept when the message is out, and not before.
            self.output.flush().await?;
            cursor.save(position)?;
        }
        Ok(())
    }

    fn tell_missed(&mut self, count: u64) {
        self.missed = true;
        let topic = &self.args.topic;
        note(&format!("{topic}: {count} messages were gone at the server before they came here"));
    }

    /// Shows everything that is there, without waiting for more.
    async fn poll(&mut self, mut from: Position) -> Result<(), Failure> {
        const PAGE: usize = 1_000;
        self.connected = true;
        loop {
            let left = self.args.count.map_or(u64::MAX, |count| count - self.handled);
            let page = PAGE.min(usize::try_from(left).unwrap_or(PAGE));
            if page == 0 {
                return Ok(());
            }
            let seen = self.args.client.peek(&self.args.topic, Some(from), page).await?;
            if seen.restarted {
                self.handle(Event::Restarted).await?;
            }
            if seen.missed > 0 {
                self.tell_missed(seen.missed);
            }
            let mut expected = match from {
                _ if seen.restarted => Some(seen.missed),
                Position::Id(id) => Some(id + seen.missed),
                Position::After { id, .. } => Some(id + 1 + seen.missed),
                _ => None,
            };
            let (Some(last), Some(epoch)) = (seen.messages.last(), seen.epoch) else {
                return Ok(());
            };
            from = Position::After { epoch, id: last.id() };
            for message in &seen.messages {
                // Those that expired before older ones leave gaps between.
                let gap = message.id().saturating_sub(expected.unwrap_or(message.id()));
                if gap > 0 {
                    self.tell_missed(gap);
                }
                expected = Some(message.id() + 1);
                let position = Position::After { epoch, id: message.id() };
                self.deal_with(message, position).await?;
            }
        }
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

    async fn finish(mut self, ended: Result<Ended, Failure>) -> Result<Exit, Failure> {
        let flushed = match &ended {
            Ok(_) => timeout(LAST_FLUSH, self.output.flush()).await.unwrap_or(Ok(())),
            // What could not be written is not tried again.
            Err(_) => Ok(()),
        };
        self.subscription.close().await;
        let ended = ended?;
        flushed?;
        Ok(match ended {
            Ended::OutOfTime if !self.connected => {
                note("there was no connection within --timeout");
                Exit::NoConnection
            }
            _ if self.missed && self.args.strict => Exit::Missed,
            Ended::OutOfTime if self.args.count.is_some() => Exit::Nothing,
            Ended::Counted | Ended::Stopped | Ended::OutOfTime => Exit::Done,
        })
    }

    /// Runs the user's command for one message. It has a process group of its own: Ctrl-C is for us,
    /// and we let it finish.
    async fn run_command(&mut self, message: &Message) -> Result<(), Failure> {
        let Some((program, arguments)) = &self.args.command else { return Ok(()) };
        let name = program.to_string_lossy().into_owned();
        let mut child = Command::new(program)
            .args(arguments)
            .env("MSGBUS_ID", message.id().to_string())
            .env("MSGBUS_TOPIC", message.topic().name.as_str())
            .stdin(Stdio::piped())
            .process_group(0)
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
            pending::<Infallible>().await
        };
        let status = select! {
            status = child.wait() => status.map_err(Failure::Output)?,
            never = feed => match never {},
            never = self.subscription.keep_alive() => match never {},
            () = self.stop.insisted() => {
                // The process ends in a moment.
                let _ = child.start_kill();
                pending().await
            }
        };
        self.judge(&name, message.id(), status)
    }

    fn judge(&self, name: &str, id: u64, status: ExitStatus) -> Result<(), Failure> {
        if status.success() {
            return Ok(());
        }
        let problem = format!("{name} failed on message {id}: {status}");
        if self.cursor.is_some() {
            return Err(Failure::Other(format!("{problem}; it is the first one the next time")));
        }
        note(&problem);
        Ok(())
    }
}
