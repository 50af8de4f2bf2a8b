//! What has to hold for any bytes from outside: the fuzz targets of this crate. `fuzz/` runs them with
//! bytes that it makes up, and the tests here with those that were worth keeping.

#[path = "../../../fuzz/common.rs"]
mod common;

use std::{str, sync::Arc, time::Duration};

use chrono::DateTime;

use self::common::is_a_line;
use crate::{
    Message, Position, TopicInfo, TopicName, TopicPattern, format_duration, json,
    model::{Headers, Wall},
    parse_duration,
};

/// The most bytes in an error, whatever it is about.
const LONGEST_ERROR: usize = 1000;

/// Names, patterns, positions and durations: what is printed is read back as the same, and where two
/// readers know a text they agree on it.
///
/// # Panics
/// When one of that is not so.
pub fn grammar(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    name(text);
    pattern(text);
    position(text);
    duration(text);
}

fn name(text: &str) {
    match TopicName::new(text) {
        Ok(name) => {
            assert_eq!(name.as_str(), text);
            match text.parse::<TopicPattern>() {
                Ok(pattern) => assert!(pattern.matches(&name)),
                Err(error) => assert!(text.contains('*'), "a name, and {error}"),
            }
        }
        Err(error) => is_a_line(&error, LONGEST_ERROR),
    }
}

fn pattern(text: &str) {
    let pattern = match text.parse::<TopicPattern>() {
        Ok(pattern) => pattern,
        Err(error) => return is_a_line(&error, LONGEST_ERROR),
    };
    assert_eq!(pattern.to_string(), text);
    let names = |rest| {
        let segment = |part| match part {
            "*" => "x",
            "**" => rest,
            literal => literal,
        };
        let name: Vec<_> = text.split('/').map(segment).collect();
        TopicName::new(&name.join("/")).ok()
    };
    assert!(names("x").is_some(), "there is a name that it stands for");
    for name in [names("x"), names("x/y")].into_iter().flatten() {
        assert!(pattern.matches(&name), "{name}");
        let own: TopicPattern = name.as_str().parse().expect("a name without a star");
        assert!(own <= pattern, "a name is more specific than what stands for it");
    }
}

fn position(text: &str) {
    let position = text.parse::<Position>();
    match position {
        Ok(position) => {
            let shown = position.to_string();
            assert_eq!(shown.parse(), Ok(position), "{shown}");
            if let Position::After { epoch, id } = position
                && let Some(next_id) = id.checked_add(1)
            {
                assert_eq!(Position::before(epoch, next_id), position);
            }
        }
        Err(error) => is_a_line(&error, LONGEST_ERROR),
    }
    match Position::from_event_id(text) {
        Ok(by_event_id) => assert_eq!(position, Ok(by_event_id)),
        Err(error) => is_a_line(&error, LONGEST_ERROR),
    }
    match Position::from_index(text) {
        Ok(Position::New) => assert_eq!(text, "-1"),
        Ok(by_index) => assert_eq!(position, Ok(by_index)),
        Err(error) => is_a_line(&error, LONGEST_ERROR),
    }
}

fn duration(text: &str) {
    match parse_duration(text) {
        Ok(duration) => {
            let shown = format_duration(duration);
            assert_eq!(parse_duration(&shown), Ok(duration), "{shown}");
            if text != "0" {
                assert_eq!(text.parse(), Ok(Position::Ago(duration)));
            }
        }
        Err(error) => is_a_line(&error, LONGEST_ERROR),
    }
}

/// The JSON of a message: of what can be read, and of any message that is made of these bytes, the
/// encoding is read back as the same message.
///
/// # Panics
/// When one of that is not so.
pub fn message(data: &[u8]) {
    match json::read_message(data) {
        Ok(message) => is_read_back(&message),
        Err(error) => is_a_line(&error, LONGEST_ERROR),
    }
    if let Some(message) = made_of(data) {
        is_read_back(&message);
    }
}

fn is_read_back(message: &Message) {
    let encode = |message| {
        let mut json = Vec::new();
        json::write_message(&mut json, message);
        json
    };
    let json = encode(message);
    let back = json::read_message(&json).expect("it was just written");
    assert_eq!(&back, message);
    assert_eq!(encode(&back), json);
}

/// A message of four numbers, a name and a payload, which is its headers too where the first number says so.
fn made_of(data: &[u8]) -> Option<Message> {
    let mut rest = data;
    let mut number = || {
        let (number, behind) = rest.split_first_chunk()?;
        rest = behind;
        Some(i64::from_le_bytes(*number))
    };
    let (id, created) = (number()?.cast_unsigned(), number()?);
    let (topic_created, ttl) = (number()?, number()?.cast_unsigned());
    let end = rest.iter().position(|byte| *byte == b'\n')?;
    let topic = TopicInfo {
        name: str::from_utf8(&rest[..end]).ok()?.parse().ok()?,
        epoch: 0,
        created: DateTime::from_timestamp_nanos(topic_created),
        ttl: Some(Duration::from_nanos(ttl >> 1)).filter(|ttl| !ttl.is_zero()),
    };
    let created = Wall::from(DateTime::from_timestamp_nanos(created));
    let ttl = (ttl != 0).then(|| Duration::from_nanos(ttl));
    let payload = rest[end + 1..].to_vec();
    let text = |is_there: bool| is_there.then(|| String::from_utf8_lossy(&payload).into());
    let headers = Headers { content_type: text(id % 2 == 1), content_encoding: text(id % 4 > 1) };
    let headers = (headers != Headers::default()).then(|| Arc::new(headers));
    let expires = created.after(ttl.into());
    Some(Message::new(Arc::new(topic), id, created, expires, payload.into(), headers))
}

#[cfg(test)]
mod tests {
    use super::common::replay;

    #[test]
    fn grammar() {
        replay("grammar", super::grammar);
    }

    #[test]
    fn message() {
        replay("message", super::message);
    }
}
