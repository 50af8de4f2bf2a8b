//! beanstalkd.

use std::io;

use msgbus_load::{Body, Follower, Outcome, Protocol, Requester, Worker};

use super::{beanstalk_worker::BeanstalkWorker, line, unexpected};

/// beanstalkd, with its default tube.
/// <https://github.com/beanstalkd/beanstalkd/blob/master/doc/protocol.txt>
#[derive(Debug)]
pub(in crate::compare) struct Beanstalk;

impl Protocol for Beanstalk {
    fn requester(&self) -> Box<dyn Requester> {
        Box::new(Client)
    }

    fn follower(&self, _: &str) -> Box<dyn Follower> {
        unreachable!("beanstalkd does not push");
    }

    fn worker(&self) -> Option<Box<dyn Worker>> {
        Some(Box::new(BeanstalkWorker::default()))
    }

    fn publishes_lines(&self) -> bool {
        false
    }
}

struct Client;

impl Requester for Client {
    fn publish(&self, _: &str, body: Body<'_>, out: &mut Vec<u8>) {
        let (Body::Message(bytes) | Body::Lines(bytes)) = body;
        // Priority, delay, and time to run.
        out.extend_from_slice(format!("put 0 0 60 {}\r\n", bytes.len()).as_bytes());
        out.extend_from_slice(bytes);
        out.extend_from_slice(b"\r\n");
    }

    fn pull(&self, _: &str, _: &mut Vec<u8>) {
        unreachable!("a pull takes two requests");
    }

    fn decode(&mut self, input: &[u8], each: &mut dyn FnMut(Outcome)) -> io::Result<usize> {
        let mut used = 0;
        while let Some(line) = line(&input[used..]) {
            match line {
                _ if line.starts_with(b"INSERTED ") => each(Outcome::Done),
                b"OUT_OF_MEMORY\r\n" | b"DRAINING\r\n" => each(Outcome::Refused),
                _ => return Err(unexpected(line)),
            }
            used += line.len();
        }
        Ok(used)
    }
}
