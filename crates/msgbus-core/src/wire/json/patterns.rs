//! The JSON of patterns.

use serde::Serialize;

use super::{CountersObject, write};
use crate::{model::Position, stats::TopicSums};

/// Adds the position in the order of a pattern to the object of a message that was appended last, as its last field.
pub fn add_position(out: &mut Vec<u8>, epoch: u64, id: u64) {
    out.pop();
    let position = Position::After { epoch, id };
    out.extend_from_slice(format!(r#","position":"{position}"}}"#).as_bytes());
}

/// Appends the sums of the topics that match a pattern as one JSON object, with the number of those who follow the pattern.
pub fn write_sums(out: &mut Vec<u8>, pattern: &str, sums: &TopicSums, followers: usize) {
    #[derive(Serialize)]
    struct Sums<'a> {
        pattern: &'a str,
        topics: usize,
        retained: u64,
        unpulled: u64,
        bytes: u64,
        subscribers: usize,
        waiters: usize,
        #[serde(flatten)]
        counters: CountersObject,
        followers: usize,
    }
    let &TopicSums { topics, counters, retained, unpulled, bytes, subscribers, waiters } = sums;
    let counters = counters.into();
    let wire = Sums {
        pattern,
        topics,
        retained,
        unpulled,
        bytes,
        subscribers,
        waiters,
        counters,
        followers,
    };
    write(out, &wire);
}
