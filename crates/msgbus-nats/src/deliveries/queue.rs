//! What was delivered to one reader, and how many messages it asks for.

use std::{task::Waker, time::Duration};

use async_nats::{Message, StatusCode, jetstream::message::Info};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use msgbus_core::{engine::EngineError, store::RecoveredMessage};

use crate::message::decode;

/// How many messages a reader asks for at first, and at most at a time. It asks for twice as many each time, unless they are
/// large, and for fewer when they have not come.
const FEW: usize = 4;
const MANY: usize = 500;
/// How many bytes a request brings if messages are as large as those before.
const USUAL_BYTES: usize = 1 << 20;

/// What was delivered to one reader, and what is to come.
#[derive(Debug)]
pub(super) struct Queue {
    pub(super) received: Received,
    /// How many messages were asked for, and have not come.
    pub(super) asked: usize,
    /// How many are asked for next.
    batch: usize,
    /// How many have come.
    count: u64,
    /// Their mean size of late.
    size: usize,
    /// When the consumer was heard last.
    pub(super) heard: DateTime<Utc>,
    /// How many connections there had been.
    pub(super) connects: u64,
    max_age: Option<Duration>,
    pub(super) waker: Option<Waker>,
}

/// What was delivered since it was looked at last.
#[derive(Debug, Default)]
pub(crate) struct Received {
    pub(crate) messages: Vec<RecoveredMessage>,
    /// The highest number of messages that were still to be delivered, and that after the last message.
    pub(crate) most: u64,
    pub(crate) left: u64,
    /// For how long this process has stood still, at least once.
    pub(crate) stood_still: Duration,
    /// Why nothing comes after the messages.
    pub(crate) failure: Option<EngineError>,
}

impl Queue {
    /// For a reader that has asked for nothing yet.
    pub(super) fn new(connects: u64, max_age: Option<Duration>) -> Self {
        Self {
            received: Received::default(),
            asked: 0,
            batch: FEW,
            count: 0,
            size: 0,
            heard: Utc::now(),
            connects,
            max_age,
            waker: None,
        }
    }

    pub(super) fn hear(&mut self, message: &Message, info: Option<&Info<'_>>, now: DateTime<Utc>) {
        self.heard = now;
        if self.received.failure.is_some() {
            return;
        }
        let heard = match (message.status, info) {
            // Also if its publisher has given it a status.
            (_, Some(info)) => self.add(message, info),
            // Without this, the loss of a last message would not be noticed before another one comes.
            (Some(StatusCode::IDLE_HEARTBEAT), _)
                if number(message, "Nats-Last-Consumer").is_none_or(|sent| sent <= self.count) =>
            {
                Ok(())
            }
            // A request is over. Since 2.10, the server says so also of one that was given all.
            (Some(StatusCode::TIMEOUT | StatusCode::REQUEST_TERMINATED), _) => {
                unused(message).map(|unused| self.end_request(unused))
            }
            _ => Err(EngineError::Unavailable),
        };
        self.received.failure = heard.err();
    }

    fn add(&mut self, message: &Message, info: &Info<'_>) -> Result<(), EngineError> {
        if info.consumer_sequence != self.count + 1 {
            // What was sent when the connection broke is lost.
            return Err(EngineError::Unavailable);
        }
        // The window does not keep what else was read from the connection.
        let payload = Bytes::copy_from_slice(&message.payload);
        let (id, published, headers) =
            (info.stream_sequence, info.published, message.headers.as_ref());
        self.received.messages.push(decode(id, published, headers, payload, self.max_age));
        (self.received.most, self.received.left) =
            (self.received.most.max(info.pending), info.pending);
        self.count += 1;
        self.size = (15 * self.size + message.length) / 16;
        self.asked = self.asked.saturating_sub(1);
        Ok(())
    }

    /// Asks for more, if there is room for so many. Returns for how many.
    pub(super) fn ask(&mut self, room: usize) -> usize {
        if self.asked == 0 {
            self.heard = Utc::now();
        }
        let usual = USUAL_BYTES / self.size.max(1);
        let wanted = self.batch.min(usual).max(FEW);
        let count = if wanted <= room { wanted } else { FEW };
        self.asked += count;
        self.batch = (2 * count).min(MANY);
        count
    }

    fn end_request(&mut self, unused: usize) {
        if unused > 0 {
            // At most half of what was asked for last.
            self.batch = (self.batch / 4).max(FEW);
            self.asked = self.asked.saturating_sub(unused);
        }
    }

    pub(super) fn is_due(&self) -> bool {
        self.asked <= self.batch / 4
    }

    pub(super) fn has_news(&self) -> bool {
        !self.received.messages.is_empty() || self.received.failure.is_some()
    }

    pub(super) fn take_waker(&mut self) -> Option<Waker> {
        if self.has_news() || self.is_due() { self.waker.take() } else { None }
    }
}

/// How many messages a request has not been given that is over. An older server may not say that.
fn unused(message: &Message) -> Result<usize, EngineError> {
    let unused = number(message, "Nats-Pending-Messages").map(usize::try_from);
    match unused.transpose() {
        Ok(Some(unused)) => Ok(unused),
        Ok(None) if message.status == Some(StatusCode::TIMEOUT) => Ok(MANY),
        // The consumer is gone.
        _ => Err(EngineError::Unavailable),
    }
}

fn number(message: &Message, header: &str) -> Option<u64> {
    message.headers.as_ref()?.get(header)?.as_str().parse().ok()
}

#[cfg(test)]
mod tests {
    use async_nats::{HeaderMap, Subject};

    use super::{
        super::{MAX_BYTES, MOST},
        *,
    };

    fn queue() -> Queue {
        Queue { asked: FEW, batch: 2 * FEW, ..Queue::new(1, None) }
    }

    fn message(status: Option<StatusCode>, header: &str, value: u64) -> Message {
        let mut headers = HeaderMap::new();
        headers.insert(header, value.to_string().as_str());
        let (subject, payload) = (Subject::from("topic"), Bytes::from_static(b"x"));
        let (reply, description) = (None, None);
        Message { subject, reply, payload, headers: Some(headers), status, description, length: 1 }
    }

    fn hear_message(queue: &mut Queue, consumer_sequence: u64) {
        let info = Info {
            domain: None,
            acc_hash: None,
            stream: "msgbus",
            consumer: "reader",
            stream_sequence: 10 * consumer_sequence,
            consumer_sequence,
            delivered: 1,
            pending: 0,
            published: DateTime::UNIX_EPOCH,
            token: None,
        };
        queue.hear(&message(None, "X", 0), Some(&info), Utc::now());
    }

    #[test]
    fn a_message_that_was_lost_is_noticed_at_the_next_one() {
        let mut queue = queue();
        hear_message(&mut queue, 1);
        assert_eq!((queue.received.failure, queue.asked), (None, FEW - 1));
        hear_message(&mut queue, 3);
        assert_eq!(queue.received.failure, Some(EngineError::Unavailable));
        hear_message(&mut queue, 2);
        let ids: Vec<u64> = queue.received.messages.iter().map(|message| message.id).collect();
        assert_eq!(ids, [10], "nothing is delivered after it");
    }

    #[test]
    fn a_last_message_that_was_lost_is_noticed_at_a_heartbeat() {
        let mut queue = queue();
        hear_message(&mut queue, 1);
        let beat = |sent| message(Some(StatusCode::IDLE_HEARTBEAT), "Nats-Last-Consumer", sent);
        queue.hear(&beat(1), None, Utc::now());
        assert_eq!(queue.received.failure, None);
        queue.hear(&beat(2), None, Utc::now());
        assert_eq!(queue.received.failure, Some(EngineError::Unavailable));
    }

    #[test]
    fn what_a_request_was_not_given_is_asked_for_again() {
        let mut queue = queue();
        let over = |status, unused| message(Some(status), "Nats-Pending-Messages", unused);
        queue.hear(&over(StatusCode::REQUEST_TERMINATED, 3), None, Utc::now());
        assert!(queue.is_due() && queue.asked == 1, "{queue:?}");
        assert_eq!(queue.ask(MOST), FEW);
        queue.hear(&message(Some(StatusCode::TIMEOUT), "X", 0), None, Utc::now());
        assert_eq!((queue.asked, queue.received.failure), (0, None), "an older server");
        queue.hear(&message(Some(StatusCode::REQUEST_TERMINATED), "X", 0), None, Utc::now());
        assert_eq!(queue.received.failure, Some(EngineError::Unavailable));
    }

    #[test]
    fn who_gets_much_asks_for_more_if_there_is_room() {
        let (mut queue, mut next) = (queue(), 1);
        for asked in [8, 16, 32, 64, 128, 256, MANY, MANY] {
            while !queue.is_due() {
                hear_message(&mut queue, next);
                next += 1;
            }
            assert_eq!(queue.ask(MOST), asked);
        }
        assert_eq!(queue.ask(MANY - 1), FEW);
    }

    #[test]
    fn a_request_that_was_given_all_does_not_make_the_next_one_smaller() {
        let (mut queue, mut next) = (queue(), 1);
        for asked in [8, 16, 32] {
            while queue.asked > 0 {
                hear_message(&mut queue, next);
                next += 1;
            }
            let over = message(Some(StatusCode::REQUEST_TERMINATED), "Nats-Pending-Messages", 0);
            queue.hear(&over, None, Utc::now());
            assert_eq!(queue.ask(MOST), asked);
        }
        let over = message(Some(StatusCode::REQUEST_TERMINATED), "Nats-Pending-Messages", 1);
        queue.hear(&over, None, Utc::now());
        assert_eq!(queue.ask(MOST), 16, "{queue:?}");
    }

    #[test]
    fn who_gets_large_messages_asks_for_fewer() {
        let mut queue = queue();
        (queue.batch, queue.size) = (MANY, 8 << 10);
        assert_eq!(queue.ask(MOST), 128);
        // In the end only small ones come.
        for number in 1..1000 {
            hear_message(&mut queue, number);
        }
        queue.batch = MANY;
        assert_eq!(queue.ask(MOST), MANY);
        queue.size = MAX_BYTES;
        assert_eq!(queue.ask(MOST), FEW);
        // There is room for as many as it asks for.
        (queue.batch, queue.size) = (MANY, 8 << 10);
        assert_eq!((queue.ask(128), queue.ask(127)), (128, FEW));
    }

    #[test]
    fn who_gets_nothing_asks_for_less() {
        let mut queue = queue();
        queue.batch = MANY;
        for asked in [MANY, 125, 62, 31, 15, 7, FEW, FEW] {
            queue.asked = 0;
            assert_eq!(queue.ask(MOST), asked);
            let asked = u64::try_from(asked).unwrap();
            let over = message(Some(StatusCode::TIMEOUT), "Nats-Pending-Messages", asked);
            queue.hear(&over, None, Utc::now());
        }
    }
}
