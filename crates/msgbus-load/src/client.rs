//! A connection that publishes or pulls.

use std::{collections::VecDeque, io, rc::Rc, time::Duration};

use tokio::{
    select,
    time::{Instant, sleep_until},
};

use crate::{
    connection::Connection,
    load::{Load, Target},
    plan::{Payload, Schedule, TopicCycle},
    protocol::{Outcome, Requester},
    run_state::{RunState, Work},
};

/// A connection that publishes or pulls.
pub(crate) struct Client {
    index: usize,
    connection: Connection,
    requester: Box<dyn Requester>,
    out: Vec<u8>,
    topic_cycle: TopicCycle,
    topics: Rc<[String]>,
    in_flight: VecDeque<PendingRequest>,
    /// The number of consecutive pulls without a message.
    empty_in_a_row: usize,
}

/// What a client sends, and when.
struct Sending {
    work: Work,
    schedule: Option<Schedule>,
    payload: Payload,
    /// When the connection last became able to send.
    idle_since: Instant,
}

/// A request in flight.
struct PendingRequest {
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
        let mut connection = Connection::open(&*target.connector).await?;
        let mut out = Vec::new();
        requester.open(&mut out);
        connection.write(&out).await?;
        Ok(Self {
            index,
            connection,
            requester,
            out,
            topic_cycle: TopicCycle::new(index, load),
            topics,
            in_flight: VecDeque::new(),
            empty_in_a_row: 0,
        })
    }

    /// Runs until no messages are left, or the time is over.
    pub(crate) async fn run(
        mut self,
        load: &Load,
        state: &RunState,
        work: Work,
        begin: Instant,
    ) -> io::Result<()> {
        let end = load.duration.map(|duration| begin + duration);
        let mut sending = Sending {
            work,
            schedule: load.rate.map(|rate| Schedule::new(begin, rate, self.index, load)),
            payload: Payload::new(load.size, load.batch),
            idle_since: begin,
        };
        loop {
            let now = Instant::now();
            let has_ended = end.is_some_and(|end| now >= end);
            self.out.clear();
            if !has_ended {
                self.request_due(load, state, &mut sending, now);
            }
            if !self.out.is_empty()
                && let Err(error) = self.connection.write(&self.out).await
            {
                // A response of the server may explain the error.
                self.read_responses(load, state).await?;
                return Err(error);
            }
            if self.in_flight.is_empty() {
                if has_ended || state.left.get() == 0 {
                    return Ok(());
                }
                if let Some(schedule) = &sending.schedule {
                    select! {
                        () = sleep_until(end.map_or(schedule.due, |end| end.min(schedule.due))) => {}
                        () = state.none_left.notified() => {}
                    }
                }
                continue;
            }
            self.read_responses(load, state).await?;
            sending.idle_since = Instant::now();
        }
    }

    /// Adds the requests that are due, as many as fit into the pipeline.
    fn request_due(&mut self, load: &Load, state: &RunState, sending: &mut Sending, now: Instant) {
        while self.in_flight.len() < load.pipeline {
            let due = sending.schedule.as_ref().map_or(now, |schedule| schedule.due);
            if due > now {
                break;
            }
            let messages = state.take(load.batch);
            if messages == 0 {
                break;
            }
            if let Some(schedule) = &mut sending.schedule {
                schedule.advance();
            }
            // If the connection was busy, the latency counts from the due time. If only the timer
            // was late, the server is not to blame.
            let since = if due < sending.idle_since { due } else { now };
            state.requested.set(state.requested.get() + 1);
            self.send_request(sending.work, messages, &mut sending.payload, now - since, since);
        }
    }

    async fn read_responses(&mut self, load: &Load, state: &RunState) -> io::Result<()> {
        let Self { connection, requester, in_flight, empty_in_a_row, .. } = self;
        connection
            .read(|input| record_outcomes(requester, in_flight, empty_in_a_row, load, state, input))
            .await
    }

    fn send_request(
        &mut self,
        work: Work,
        messages: usize,
        payload: &mut Payload,
        late: Duration,
        since: Instant,
    ) {
        let (topic, round) = self.topic_cycle.next();
        let name = &self.topics[topic];
        match work {
            Work::Publish => {
                let body = payload.traced(self.index, round, late, messages);
                self.requester.publish(name, body, &mut self.out);
            }
            Work::Pull => self.requester.pull(name, &mut self.out),
        }
        self.in_flight.push_back(PendingRequest { since, topic, messages: messages as u64 });
    }
}

/// Records the outcomes of the responses in `input`.
fn record_outcomes(
    requester: &mut Box<dyn Requester>,
    in_flight: &mut VecDeque<PendingRequest>,
    empty_in_a_row: &mut usize,
    load: &Load,
    state: &RunState,
    input: &[u8],
) -> io::Result<usize> {
    let now = Instant::now();
    let mut latencies = state.latencies.borrow_mut();
    let mut accounts = state.accounts.get();
    let mut unexpected = false;
    let used = requester.decode(input, &mut |outcome| {
        let Some(request) = in_flight.pop_front() else {
            unexpected = true;
            return;
        };
        let time = now.saturating_duration_since(request.since);
        latencies.record(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
        state.answered.set(state.answered.get() + 1);
        if outcome != Outcome::Empty {
            load.progress.add(request.messages);
        }
        match outcome {
            Outcome::Done => {
                *empty_in_a_row = 0;
                accounts.published += request.messages;
                let topic = &state.by_topic[request.topic];
                topic.set(topic.get() + request.messages);
            }
            Outcome::Empty => {
                accounts.empty += 1;
                *empty_in_a_row += 1;
                // Another topic may still have messages, unless this client has visited all of them.
                if *empty_in_a_row < load.topics.len() {
                    state.left.set(state.left.get() + request.messages);
                } else {
                    state.left.set(0);
                    state.none_left.notify_waiters();
                }
            }
            Outcome::Refused => accounts.refused += 1,
        }
    })?;
    state.accounts.set(accounts);
    if unexpected {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a response without a request"));
    }
    Ok(used)
}
