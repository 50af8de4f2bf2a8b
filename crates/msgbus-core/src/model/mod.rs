//! Values: messages with their headers, names, patterns, positions, durations, times. The only parsers of their
//! texts.

mod duration;
mod event;
mod group;
mod headers;
mod message;
mod name;
mod pattern;
mod position;
mod request;
mod time;
mod token;

pub(crate) use self::message::WeakMessage;
pub use self::{
    duration::{DurationError, format_duration, parse_duration},
    event::{Event, Peek, StartPosition},
    group::{GroupName, GroupNameError, GroupSettings, Leased, SettledBatch, Settlement},
    headers::{HeaderError, Headers},
    message::{Message, NewMessage, Published, PublishedBatch, TopicInfo},
    name::{NameError, TopicName},
    pattern::{PatternError, TopicPattern},
    position::{Position, PositionError},
    request::{NewRequest, Reply, ReplyNotWanted, ReplyToken, ReplyTokenError, RequestError},
    token::{LeaseToken, TokenError},
};
pub(crate) use self::{
    request::RequestKey,
    time::{MonotonicTime, Nanos, Now, WallTime},
    token::{LeaseKey, TokenScope},
};
