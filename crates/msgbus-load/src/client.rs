//! A connection that publishes or pulls.

use std::{collections::VecDeque, io, rc::Rc, time::Duration};

use tokio::{
    select,
    time::{Instant, sleep_until},
};

use crate::{
    connection::Connection,
    load::{Load, Target},
    plan::{Payload, Schedule, Turn},
    protocol::{Outcome, Requester},
    sent::{Sent, Work},
};

/// A connection at work.
pub(crate) struct Client {
    index: usize,
    connection: Connection,
    requester: Box<dyn Requester>,
    out: Vec<u8>,
    turn: Turn,
    topics: Rc<[String]>,
    under_way: VecDeque<Asked>,
    /// Pulls in a row that found nothing.
    fruitless: usize,
}

/// A request under way.
struct Asked {
    since: Instant,
    topic: usize,
    messages: u64,
}

impl Client {
    pub(crate) async fn connect(
        target: &Target,
        load: &Load,
        index: usize,
        topics: Rc<[String]>,
    ) -> io::Result<Self> {
        let requester = target.protocol.requester();
        let mut connection = Connection::open(&*target.dial).await?;
        let mut out = Vec::new();
        requester.open(&mut out);
        connection.write(&out).await?;
        Ok(Self {
            index,
            connection,
            requester,
            out,
            turn: Turn::new(index, load),
            topics,
            under_way: VecDeque::new(),
            fruitless: 0,
        })
    }

    /// Works until there is nothing left to do, or the time is over.
    pub(crate) async fn run(
        mut self,
        load: &Load,
        sent: &Sent,
        work: Work,
        begin: Instant,
    ) -> io::Result<()> {
        let end = load.duration.map(|duration| begin + duration);
        let mut schedule = load.rate.map(|rate| Schedule::new(begin, rate, self.index, load));
        let mut payload = Payload::new(load.size, load.batch);
        // Since when the connection has been able to send.
        let mut free = begin;
        loop {
            let now = Instant::now();
            let is_over = end.is_some_and(|end| now >= end);
            self.out.clear();
            while self.under_way.len() < load.pipeline && !is_over {
                let due = schedule.as_ref().map_or(now, |schedule| schedule.due);
                if due > now {
                    break;
                }
                let messages = sent.take(load.batch);
                if messages == 0 {
                    break;
                }
                if let Some(schedule) = &mut schedule {
                    schedule.advance();
                }
                // A timer that is late is not the server's fault; a connection in use is.
                let since = if due < free { due } else { now };
                sent.asked.set(sent.asked.get() + 1);
                self.ask(work, messages, &mut payload, now - since, since);
            }
            if !self.out.is_empty()
                && let Err(error) = self.connection.write(&self.out).await
            {
                // The server may have said why it takes no more.
                self.hear(load, sent).await?;
                return Err(error);
            }
            if self.under_way.is_empty() {
                if is_over || sent.left.get() == 0 {
                    return Ok(());
                }
                if let Some(schedule) = &schedule {
                    select! {
                        () = sleep_until(end.map_or(schedule.due, |end| end.min(schedule.due))) => {}
                        () = sent.none_left.notified() => {}
                    }
                }
                continue;
            }
            self.hear(load, sent).await?;
            free = Instant::now();
        }
    }

    async fn hear(&mut self, load: &Load, sent: &Sent) -> io::Result<()> {
        let Self { connection, requester, under_way, fruitless, .. } = self;
        connection.read(|input| answers(requester, under_way, fruitless, load, sent, input)).await
    }

    fn ask(
        &mut self,
        work: Work,
        messages: usize,
        payload: &mut Payload,
        late: Duration,
        since: Instant,
    ) {
        let (topic, round) = self.turn.next();
        let name = &self.topics[topic];
        match work {
            Work::Publish => {
                let body = payload.stamped(self.index, round, late, messages);
                self.requester.publish(name, body, &mut self.out);
            }
            Work::Pull => self.requester.pull(name, &mut self.out),
        }
        self.under_way.push_back(Asked { since, topic, messages: messages as u64 });
    }
}

/// Enters the answers that have come.
fn answers(
    requester: &mut Box<dyn Requester>,
    under_way: &mut VecDeque<Asked>,
    fruitless: &mut usize,
    load: &Load,
    sent: &Sent,
    input: &[u8],
) -> io::Result<usize> {
    let now = Instant::now();
    let mut latencies = sent.latencies.borrow_mut();
    let mut accounts = sent.accounts.get();
    let mut unasked = false;
    let used = requester.answers(input, &mut |outcome| {
        let Some(asked) = under_way.pop_front() else {
            unasked = true;
            return;
        };
        let time = now.saturating_duration_since(asked.since);
        latencies.record(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
        sent.answered.set(sent.answered.get() + 1);
        if outcome != Outcome::Empty {
            load.progress.add(asked.messages);
        }
        match outcome {
            Outcome::Done => {
                *fruitless = 0;
                accounts.published += asked.messages;
                let topic = &sent.by_topic[asked.topic];
                topic.set(topic.get() + asked.messages);
            }
            Outcome::Empty => {
                accounts.empty += 1;
                *fruitless += 1;
                // Another topic may still have it, unless this client has been to all of them.
                if *fruitless < load.topics.len() {
                    sent.left.set(sent.left.get() + asked.messages);
                } else {
                    sent.left.set(0);
                    sent.none_left.notify_waiters();
                }
            }
            Outcome::Refused => accounts.refused += 1,
        }
    })?;
    sent.accounts.set(accounts);
    if unasked {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "an answer to no question"));
    }
    Ok(used)
}
