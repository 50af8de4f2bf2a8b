//! `msgbus sub`.

use std::{
    convert::Infallible,
    env,
    ffi::OsStr,
    future::{pending, poll_fn},
    ops::Range,
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
    tail::last,
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
        reached: false,
        connected: false,
    };
    let mut end = pin!(async {
        select! {
            () = stop.requested() => Ok(Ended::Stopped),
            () = sleep_until_some(deadline) => Ok(Ended::OutOfTime),
            () = output::closed(), if !runs_a_command => Err(Failure::ClosedPipe),
        }
    });
    if follower.args.poll || follower.args.back.is_some() {
        let shown = select! {
            biased;
            shown = follower.show(from) => shown,
            ended = &mut end => return follower.finish(ended).await,
        };
        match shown {
            Ok(place) if !follower.args.poll => {
                let Sub { client, topic, .. } = &follower.args;
                follower.subscription = client.subscribe(topic, place);
            }
            shown => return follower.finish(shown.map(|_| Ended::Counted)).await,
        }
    }
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
    /// Whether the server has answered.
    reached: bool,
    /// Whether the subscription has ever been connected.
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
        self.keep(position).await
    }

    /// Keeps the place when the messages before it are out, and not before.
    async fn keep(&mut self, place: Position) -> Result<(), Failure> {
        let Some(cursor) = &mut self.cursor else { return Ok(()) };
        self.output.flush().await?;
        cursor.save(place)
    }

    fn tell_missed(&mut self, count: u64) {
        self.missed = true;
        let topic = &self.args.topic;
        note(&format!("{topic}: {count} messages were gone at the server before they came here"));
    }

    /// Shows what is there by now, from a position or of the last ones, and says where to go on.
    async fn show(&mut self, from: Position) -> Result<Position, Failure> {
        const PAGE: usize = 1_000;
        let (client, topic) = (self.args.client.clone(), self.args.topic.clone());
        let mut from = match self.args.back {
            Some(count) => last(&client, &topic, count).await?,
            None => from,
        };
        let mut tail = None;
        loop {
            let left = self.args.count.map_or(u64::MAX, |count| count - self.handled);
            let page = PAGE.min(usize::try_from(left).unwrap_or(PAGE));
            if page == 0 {
                return Ok(from);
            }
            let seen = client.peek(&topic, Some(from), page).await?;
            self.reached = true;
            let (Some(epoch), Some(next_id)) = (seen.epoch, seen.next_id) else { return Ok(from) };
            if seen.restarted {
                self.handle(Event::Restarted).await?;
            }
            self.tell_gap(seen.missed);
            if tail.is_none_or(|(life, _)| life != epoch) && !seen.messages.is_empty() {
                // What is published from now on is for another time, or there might be no end.
                let now = client.peek(&topic, Some(Position::New), 1).await?;
                tail = now.epoch.zip(now.next_id);
            }
            let end = tail.filter(|(life, _)| *life == epoch).map_or(u64::MAX, |(_, end)| end);
            let next = self.show_page(&seen.messages, epoch, next_id..end).await?;
            from = Position::before(epoch, next);
            if next >= end || seen.messages.is_empty() {
                // Behind everything that is gone, too: it is not missed a second time.
                self.keep(from).await?;
                return Ok(from);
            }
        }
    }

    /// Shows those of the messages that are in a range of ids, and says how far it has come.
    async fn show_page(
        &mut self,
        messages: &[Message],
        epoch: u64,
        range: Range<u64>,
    ) -> Result<u64, Failure> {
        let mut next = range.start;
        for message in messages {
            // Those that expired before older ones leave gaps between.
            let reached = message.id().min(range.end).max(next);
            self.tell_gap(reached - next);
            next = reached;
            if message.id() >= range.end {
                break;
            }
            next = message.id() + 1;
            self.deal_with(message, Position::After { epoch, id: message.id() }).await?;
        }
        Ok(next)
    }

    /// Tells what was gone when it was asked for. tail asks for no more than there is.
    fn tell_gap(&mut self, count: u64) {
        if count > 0 && self.args.back.is_none() {
            self.tell_missed(count);
        }
    }

    fn greet(&mut self) -> Result<(), Failure> {
        if self.connected && !self.args.quiet {
            note("connected again");
        } else if self.args.debug {
            note(&format!("following {} at {}", self.args.topic, self.args.client.server()));
        }
        self.reached = true;
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
            Ended::OutOfTime if !self.reached => {
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
