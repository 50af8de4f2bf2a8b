//! What a `msgbus.v1` websocket does with the messages of its client.

use std::{iter, task::Waker};

use memchr::memchr;

use super::{Client, FRAME_SIZE, activities::Activities, operations::Operations, output::Output};
use crate::{
    net::connection::Connection,
    websocket::{
        end::End,
        session::{Dialogue, Session as OfSocket},
        transport::{Outgoing, Transport},
    },
    worker::Worker,
};

/// One websocket.
pub(crate) type Session = OfSocket<Operations>;

/// The maximum size of a frame from a client, in bytes: an operation with the largest payload in base64.
fn max_frame(worker: &Worker) -> usize {
    const FIELDS: usize = 64 << 10;
    worker.config.max_payload.div_ceil(3).saturating_mul(4).saturating_add(FIELDS)
}

/// Takes over a connection after the handshake. `already_read` has the bytes that were read since then.
pub(crate) fn session(client: Client, connection: Connection, already_read: Vec<u8>) -> Session {
    let transport = Transport::with_inbox(connection, already_read, max_frame(&client.worker));
    let (worker, peer) = (client.worker.clone(), client.peer);
    Session::new(Operations::new(client), transport, &worker, peer)
}

impl Dialogue for Operations {
    const NAME: &'static str = "msgbus.v1";
    const TEXT_ONLY: &'static str = "msgbus.v1 is text: a JSON object in each line";
    type Rest = Activities;

    fn begin(
        &mut self,
        text: &str,
        outgoing: &mut Outgoing,
        allowed: &mut usize,
    ) -> Result<usize, End> {
        // The answers to one frame are in one frame.
        let mut output = Output::new(outgoing);
        let mut handled = 0;
        for line in lines(text) {
            if *allowed == 0 || !Dialogue::may_begin(self, output.waiting()) {
                break;
            }
            handled += line.len();
            *allowed -= 1;
            let line = line.trim_ascii();
            if !line.is_empty() {
                self.begin(line, &mut output);
            }
        }
        Ok(handled)
    }

    fn may_begin(&self, unwritten: usize) -> bool {
        self.may_begin(unwritten)
    }

    fn has_published(&mut self) -> bool {
        std::mem::take(&mut self.has_published)
    }

    fn register(&self, task: &Waker) {
        self.activities.register(task);
    }

    fn run(&mut self, outgoing: &mut Outgoing) -> bool {
        let mut output = Output::new(outgoing);
        let mut has_run = false;
        while output.waiting() < FRAME_SIZE && self.activities.run_next(&mut output) {
            has_run = true;
        }
        has_run
    }

    fn run_blocked(&mut self, outgoing: &mut Outgoing) {
        self.activities.run_blocked(&mut Output::new(outgoing));
    }

    fn pinged(&mut self, outgoing: &mut Outgoing) {
        self.activities.say_feeds(&mut Output::new(outgoing));
    }

    fn drain(&mut self, outgoing: &mut Outgoing) {
        self.activities.drain(&mut Output::new(outgoing));
    }

    fn outstanding(&self) -> usize {
        self.activities.outstanding()
    }

    fn end(&mut self) -> Activities {
        let activities = self.end();
        activities.log_end("websocket");
        activities
    }
}

/// The lines of a text, each with its line feed, found with vector instructions.
fn lines(mut text: &str) -> impl Iterator<Item = &str> {
    iter::from_fn(move || {
        let end = memchr(b'\n', text.as_bytes()).map_or(text.len(), |feed| feed + 1);
        let (line, rest) = text.split_at(end);
        text = rest;
        (!line.is_empty()).then_some(line)
    })
}
