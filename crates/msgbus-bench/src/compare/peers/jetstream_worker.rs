//! A worker of NATS `JetStream`: a pull consumer, with acknowledgements that the server confirms.

use std::io;

use msgbus_load::{Step, Worker};

use super::{line, number, unexpected};

/// <https://docs.nats.io/reference/reference-protocols/nats_api_reference>
#[derive(Debug)]
pub(super) struct JetStreamWorker {
    /// The subject of messages and confirmations.
    inbox: String,
    wanted: u64,
    /// The subjects of the acknowledgements of the messages so far.
    acks: Vec<String>,
    /// The number of confirmations that are still to come.
    unconfirmed: u64,
}

/// The name of the stream, and of the consumer that all workers share.
pub(super) const NAME: &str = "bench";

impl JetStreamWorker {
    pub(super) fn new(inbox: String) -> Self {
        Self { inbox, wanted: 0, acks: Vec::new(), unconfirmed: 0 }
    }

    fn taken(&self) -> Step {
        match self.acks.len() as u64 {
            0 => Step::Empty,
            count => Step::Taken(count),
        }
    }

    fn record_message(&mut self, reply: Option<&str>, each: &mut dyn FnMut(Step)) {
        if self.unconfirmed > 0 {
            self.unconfirmed -= 1;
            if self.unconfirmed == 0 {
                each(Step::Done(self.acks.len() as u64));
            }
        } else if let Some(reply) = reply {
            self.acks.push(reply.to_owned());
            if self.acks.len() as u64 == self.wanted {
                each(self.taken());
            }
        }
    }
}

impl Worker for JetStreamWorker {
    fn open(&self, out: &mut Vec<u8>) {
        let text = format!(
            "CONNECT {{\"verbose\":false,\"pedantic\":false,\"headers\":true,\"no_responders\":true}}\r\n\
             SUB {} 1\r\n",
            self.inbox
        );
        out.extend_from_slice(text.as_bytes());
    }

    fn take(&mut self, _: &str, most: usize, out: &mut Vec<u8>) {
        self.wanted = most as u64;
        self.acks.clear();
        let body = format!("{{\"batch\":{most},\"no_wait\":true}}");
        let text = format!(
            "PUB $JS.API.CONSUMER.MSG.NEXT.{NAME}.{NAME} {} {}\r\n{body}\r\n",
            self.inbox,
            body.len()
        );
        out.extend_from_slice(text.as_bytes());
    }

    fn ack(&mut self, out: &mut Vec<u8>) {
        self.unconfirmed = self.acks.len() as u64;
        for ack in &self.acks {
            out.extend_from_slice(format!("PUB {ack} {} 4\r\n+ACK\r\n", self.inbox).as_bytes());
        }
    }

    fn decode(&mut self, input: &[u8], each: &mut dyn FnMut(Step)) -> io::Result<usize> {
        let mut used = 0;
        while let Some(line) = line(&input[used..]) {
            let text = std::str::from_utf8(line).unwrap_or_default();
            let words: Vec<&str> = text.split_ascii_whitespace().collect();
            let whole = match &words[..] {
                ["INFO" | "PING", ..] => line.len(),
                // The subject, the subscription, and the subject for a reply.
                ["MSG" | "HMSG", .., size] => line.len() + number(size.as_bytes())? + 2,
                _ => return Err(unexpected(line)),
            };
            let Some(message) = input.get(used..used + whole) else { break };
            match &words[..] {
                ["MSG", _, _, reply, _] => self.record_message(Some(reply), each),
                ["MSG", ..] => self.record_message(None, each),
                // A status: there are no more messages.
                ["HMSG", ..] if message[line.len()..].starts_with(b"NATS/1.0 404") => {
                    each(self.taken());
                }
                ["HMSG", ..] => return Err(unexpected(message)),
                _ => {}
            }
            used += whole;
        }
        Ok(used)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_confirmed_one_by_one() {
        let mut worker = JetStreamWorker::new("i".to_owned());
        let (mut out, mut steps) = (Vec::new(), Vec::new());
        worker.take("t", 2, &mut out);
        let messages = b"INFO {}\r\nMSG t 1 $JS.ACK.1 1\r\nx\r\nMSG t 1 $JS.ACK.2 1\r\ny\r\n";
        let used = worker.decode(messages, &mut |step| steps.push(step)).unwrap();
        assert_eq!((used, &*steps), (messages.len(), &[Step::Taken(2)][..]));
        out.clear();
        worker.ack(&mut out);
        assert_eq!(out, b"PUB $JS.ACK.1 i 4\r\n+ACK\r\nPUB $JS.ACK.2 i 4\r\n+ACK\r\n");
        let confirmed = b"MSG i 1 0\r\n\r\n";
        worker.decode(confirmed, &mut |step| steps.push(step)).unwrap();
        assert_eq!(steps.len(), 1);
        worker.decode(confirmed, &mut |step| steps.push(step)).unwrap();
        worker.take("t", 2, &mut out);
        let none = b"HMSG i 1 28 28\r\nNATS/1.0 404 No Messages\r\n\r\n\r\n";
        worker.decode(none, &mut |step| steps.push(step)).unwrap();
        assert_eq!(steps[1..], [Step::Done(2), Step::Empty]);
    }
}
