//! Finds the commands in JSON objects that follow each other, with or without white space between them.

use memchr::memchr2;
use thiserror::Error;

use crate::service::code::Code;

/// The deepest nesting of objects and arrays in a command.
pub(super) const MAX_DEPTH: usize = 128;

/// Why a stream cannot be read any further. The text is for the peer.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(super) enum Malformed {
    #[error("Malformed command: expected a JSON object")]
    NotAnObject,
    #[error("Malformed command: {0}")]
    Json(String),
    #[error("Command too large: at most {max} bytes are read")]
    TooLarge { max: usize },
    #[error("Command nested too deeply: at most {MAX_DEPTH} levels are read")]
    TooDeep,
}

impl Malformed {
    pub(super) fn code(&self) -> Code {
        match self {
            Self::NotAnObject | Self::Json(_) | Self::TooDeep => Code::BadJson,
            Self::TooLarge { .. } => Code::PayloadTooLarge,
        }
    }
}

/// How far a command was looked at: each byte is looked at once, also when they arrive one by one.
#[derive(Debug, Default)]
pub(super) struct Split {
    /// The bytes before this were looked at.
    at: usize,
    depth: usize,
    is_in_string: bool,
}

impl Split {
    /// Drops the white space before a command that has not begun.
    pub(super) fn trim<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        if self.at == 0 { bytes.trim_ascii_start() } else { bytes }
    }

    /// The length of the command at the beginning, of at most `max` bytes, if all of it has arrived.
    pub(super) fn next(&mut self, bytes: &[u8], max: usize) -> Result<Option<usize>, Malformed> {
        if bytes.first().is_some_and(|first| *first != b'{') {
            return Err(Malformed::NotAnObject);
        }
        // One byte more than there may be shows that a command is too large, however its bytes arrive.
        let bytes = &bytes[..bytes.len().min(max.saturating_add(1))];
        let is_whole = self.run(bytes)?;
        if (if is_whole { self.at } else { bytes.len() }) > max {
            return Err(Malformed::TooLarge { max });
        }
        Ok(is_whole.then(|| std::mem::take(self).at))
    }

    /// Looks at the bytes up to the end of a command, and returns whether it has arrived.
    fn run(&mut self, bytes: &[u8]) -> Result<bool, Malformed> {
        while let Some(byte) = bytes.get(self.at) {
            if self.is_in_string {
                let Some(next) = memchr2(b'"', b'\\', &bytes[self.at..]) else {
                    self.at = bytes.len();
                    break;
                };
                self.at += next;
                if bytes[self.at] == b'"' {
                    self.is_in_string = false;
                    self.at += 1;
                } else if self.at + 1 == bytes.len() {
                    break;
                } else {
                    self.at += 2;
                }
                continue;
            }
            self.at += 1;
            match byte {
                b'"' => self.is_in_string = true,
                b'{' | b'[' if self.depth == MAX_DEPTH => return Err(Malformed::TooDeep),
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => {
                    self.depth -= 1;
                    if self.depth == 0 {
                        return Ok(true);
                    }
                }
                _ => {}
            }
        }
        Ok(false)
    }
}

/// Whether valid JSON has at most [`MAX_DEPTH`] levels.
pub(super) fn is_shallow(json: &[u8]) -> bool {
    // One level is the command around it.
    Split { depth: 1, ..Split::default() }.run(json).is_ok()
}

#[cfg(test)]
mod tests {
    use super::{super::fuzzing::split, *};

    fn texts(text: &[u8], piece: usize) -> Result<Vec<String>, Malformed> {
        let (found, malformed) = split(text, piece, 300);
        malformed.map_or(Ok(()), Err)?;
        Ok(found.into_iter().map(|command| String::from_utf8(command).unwrap()).collect())
    }

    #[test]
    fn commands_are_found_however_they_arrive() {
        let text = br#" {"a":"}\"\\"}{}
            {"b":[{"c":"["},1]}  {"half":"\"#;
        for piece in 1..text.len() {
            let found = texts(text, piece).unwrap();
            assert_eq!(found, [r#"{"a":"}\"\\"}"#, "{}", r#"{"b":[{"c":"["},1]}"#], "{piece}");
        }
    }

    #[test]
    fn what_cannot_be_a_command_is_refused_early() {
        let deep = |depth: usize| "{\"a\":".to_owned() + &"[".repeat(depth);
        let long = format!("{{\"a\":\"{}", "x".repeat(300));
        for (text, expected) in [
            ("x", Malformed::NotAnObject),
            ("{} [", Malformed::NotAnObject),
            ("null", Malformed::NotAnObject),
            (&deep(MAX_DEPTH), Malformed::TooDeep),
            (&long, Malformed::TooLarge { max: 300 }),
        ] {
            for piece in [1, 7, 1000] {
                assert_eq!(texts(text.as_bytes(), piece), Err(expected.clone()), "{text}");
            }
        }
        assert_eq!(texts(deep(MAX_DEPTH - 1).as_bytes(), 1), Ok(Vec::new()));
    }
}
