//! Positions at which a subscription starts. The only parser of `since` and `index`, for servers and clients.

use std::{fmt, str::FromStr, time::Duration};

use chrono::{DateTime, Datelike as _, SecondsFormat, Utc};
use thiserror::Error;

use super::duration::{format_duration, parse_duration};

/// A position in a topic's log at which a subscription starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Position {
    /// Messages published from now on.
    #[default]
    New,
    /// All retained messages.
    All,
    /// Messages from this id on.
    Id(u64),
    /// Messages after `id` of the topic's epoch `epoch`. Keep this position to resume after a restart: ids start
    /// again with each epoch.
    After {
        /// The epoch of the topic in which `id` was received.
        epoch: u64,
        /// The last id received.
        id: u64,
    },
    /// All messages of the topic's epoch `epoch`. Keep this position to resume before the first message was
    /// received.
    Start {
        /// The epoch of the topic.
        epoch: u64,
    },
    /// Retained messages created within this time before now.
    Ago(Duration),
    /// Retained messages created at this time or later.
    At(DateTime<Utc>),
}

/// Why a text is not a valid position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum PositionError {
    /// Not a value of `since`.
    #[error(
        "not a position: use all, new, an id, <epoch>-<id>, a duration back (10m) or an RFC 3339 time"
    )]
    Since,
    /// Not a value of `index`.
    #[error("not an index: use -1 for new messages, or the first id wanted")]
    Index,
    /// Not a value of `Last-Event-ID`.
    #[error("not an event id: use <epoch>-<id>, as the server sent it")]
    EventId,
}

impl Position {
    /// Parses a position as prologic/msgbus writes it: `-1` for new messages, or the first id.
    ///
    /// # Errors
    /// When `text` is neither.
    pub fn from_index(text: &str) -> Result<Self, PositionError> {
        match text {
            "-1" => Ok(Self::New),
            _ => number(text).map(Self::Id).ok_or(PositionError::Index),
        }
    }

    /// The position of a subscriber that has received every message of `epoch` before `next_id`.
    pub fn before(epoch: u64, next_id: u64) -> Self {
        match next_id.checked_sub(1) {
            Some(id) => Self::After { epoch, id },
            None => Self::Start { epoch },
        }
    }

    /// Parses `<epoch>-<id>`, with which a subscriber resumes after that message, or `<epoch>-start`, before it
    /// has received one.
    ///
    /// # Errors
    /// When `text` has another form.
    pub fn from_event_id(text: &str) -> Result<Self, PositionError> {
        text.split_once('-')
            .and_then(|(epoch, id)| match (number(epoch)?, id) {
                (epoch, "start") => Some(Self::Start { epoch }),
                (epoch, id) => Some(Self::After { epoch, id: number(id)? }),
            })
            .ok_or(PositionError::EventId)
    }
}

/// Parses a value of `since`: `all`, `new`, an id, `<epoch>-<id>`, a duration back or an RFC 3339
/// time.
impl FromStr for Position {
    type Err = PositionError;

    fn from_str(text: &str) -> Result<Self, PositionError> {
        match text {
            "all" => return Ok(Self::All),
            "new" => return Ok(Self::New),
            _ => {}
        }
        if let Some(id) = number(text) {
            return Ok(Self::Id(id));
        }
        Self::from_event_id(text)
            .ok()
            .or_else(|| parse_duration(text).ok().map(Self::Ago))
            .or_else(|| time(text).map(Self::At))
            .ok_or(PositionError::Since)
    }
}

/// Writes a value of `since` that parses to the same position.
impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::New => f.write_str("new"),
            Self::All => f.write_str("all"),
            Self::Id(id) => write!(f, "{id}"),
            Self::After { epoch, id } => write!(f, "{epoch}-{id}"),
            Self::Start { epoch } => write!(f, "{epoch}-start"),
            Self::Ago(ago) => f.write_str(&format_duration(*ago)),
            Self::At(time) => f.write_str(&time.to_rfc3339_opts(SecondsFormat::AutoSi, true)),
        }
    }
}

/// Digits only: `u64::from_str` alone would take a leading `+`.
fn number(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

fn time(text: &str) -> Option<DateTime<Utc>> {
    DateTime::parse_from_rfc3339(text)
        // In a query string an unescaped `+02:00` arrives as ` 02:00`.
        .or_else(|_| DateTime::parse_from_rfc3339(&text.replace(' ', "+")))
        .ok()
        .map(|time| time.to_utc())
        // In UTC it may fall in a year that RFC 3339 cannot write.
        .filter(|time| (0..=9999).contains(&time.year()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn since_has_six_forms() {
        let noon = "2026-11-21T12:00:00Z".parse().unwrap();
        for (text, position) in [
            ("all", Position::All),
            ("new", Position::New),
            ("0", Position::Id(0)),
            ("18446744073709551615", Position::Id(u64::MAX)),
            ("17-4", Position::After { epoch: 17, id: 4 }),
            ("17-start", Position::Start { epoch: 17 }),
            ("10m", Position::Ago(Duration::from_secs(600))),
            ("2026-11-21T12:00:00Z", Position::At(noon)),
            ("2026-11-21T14:00:00+02:00", Position::At(noon)),
            ("2026-11-21T14:00:00 02:00", Position::At(noon)),
        ] {
            assert_eq!(text.parse(), Ok(position), "{text}");
            assert_eq!(position.to_string().parse(), Ok(position), "{text}");
        }
    }

    #[test]
    fn since_refuses_the_rest() {
        for text in [
            "",
            "-1",
            "+1",
            "1-",
            "-",
            "1-2-3",
            "18446744073709551616",
            "ALL",
            "yesterday",
            "1.5",
            // In the years 10000 and -1 of UTC.
            "9999-12-31T23:59:59-01:00",
            "0000-01-01T00:00:00+01:00",
        ] {
            assert_eq!(text.parse::<Position>(), Err(PositionError::Since), "{text}");
        }
    }

    #[test]
    fn index_is_an_id_or_minus_one() {
        assert_eq!(Position::from_index("-1"), Ok(Position::New));
        assert_eq!(Position::from_index("7"), Ok(Position::Id(7)));
        for text in ["", "-2", "all", "+1", "1-2"] {
            assert_eq!(Position::from_index(text), Err(PositionError::Index), "{text}");
        }
    }
}
