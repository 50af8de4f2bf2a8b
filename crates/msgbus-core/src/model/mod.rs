//! What travels and how it is named: values without behaviour beyond their own rules.

mod duration;
mod event;
mod message;
mod name;
mod pattern;
mod position;
mod time;

pub use self::{
    duration::{DurationError, format_duration, parse_duration},
    event::{Event, Peek, StartPosition},
    message::{Message, NewMessage, Published, PublishedBatch, TopicInfo},
    name::{NameError, TopicName},
    pattern::{PatternError, TopicPattern},
    position::{Position, PositionError},
};
pub(crate) use self::{
    message::Headers,
    time::{MonotonicTime, Nanos, Now, WallTime},
};
