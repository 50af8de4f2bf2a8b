//! Finds the commands in JSON objects that follow each other, with or without white space between them.

use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use crate::{code::Code, websocket::end::End};

/// The deepest nesting of objects and arrays in a command.
pub(super) const MAX_DEPTH: usize = 128;

/// A stream that cannot be read any further. The text is for the peer.
pub(super) fn malformed(code: Code, why: impl Into<String>) -> End {
    End::malformed(CloseCode::Policy, code, why.into())
}

/// How far a command was looked at: each byte is looked at once, also when they arrive one by one.
#[derive(Debug, Default)]
pub(super) struct Split {
    /// The bytes before this were looked at.
    at: usize,
    depth: usize,
    is_in_string: bool,
    is_escaped: bool,
}

impl Split {
    /// Drops the white space before a command that has not begun.
    pub(super) fn trim<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        if self.at == 0 { bytes.trim_ascii_start() } else { bytes }
    }

    /// The length of the command at the beginning, of at most `max` bytes, if all of it has arrived.
    pub(super) fn next(&mut self, bytes: &[u8], max: usize) -> Result<Option<usize>, End> {
        if bytes.first().is_some_and(|first| *first != b'{') {
            return Err(malformed(Code::BadJson, "Malformed command: expected a JSON object"));
        }
        // One byte more than there may be shows that a command is too large, however its bytes arrive.
        let is_whole = self.run(&bytes[..bytes.len().min(max.saturating_add(1))])?;
        if self.at > max {
            let why = format!("Command too large: at most {max} bytes are read");
            return Err(malformed(Code::PayloadTooLarge, why));
        }
        Ok(is_whole.then(|| std::mem::take(self).at))
    }

    /// Looks at the bytes up to the end of a command, and returns whether it has arrived.
    fn run(&mut self, bytes: &[u8]) -> Result<bool, End> {
        for byte in &bytes[self.at..] {
            self.at += 1;
            match (byte, self.is_in_string) {
                _ if self.is_escaped => self.is_escaped = false,
                (b'\\', true) => self.is_escaped = true,
                (b'"', _) => self.is_in_string = !self.is_in_string,
                (b'{' | b'[', false) if self.depth == MAX_DEPTH => {
                    let why =
                        format!("Command nested too deeply: at most {MAX_DEPTH} levels are read");
                    return Err(malformed(Code::BadJson, why));
                }
                (b'{' | b'[', false) => self.depth += 1,
                (b'}' | b']', false) => {
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

    fn texts(text: &[u8], piece: usize) -> Result<Vec<String>, String> {
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
            ("x", "expected a JSON object"),
            ("{} [", "expected a JSON object"),
            ("null", "expected a JSON object"),
            (&deep(MAX_DEPTH), "nested too deeply"),
            (&long, "at most 300 bytes"),
        ] {
            for piece in [1, 7, 1000] {
                let why = texts(text.as_bytes(), piece).expect_err(text);
                assert!(why.contains(expected), "{why}");
            }
        }
        assert_eq!(texts(deep(MAX_DEPTH - 1).as_bytes(), 1), Ok(Vec::new()));
    }
}
