//! Transcripts of a dialogue, byte by byte, on real sockets.
//!
//! Each line of a transcript is the name of a connection, what happens on it, and the bytes, with `\r`, `\n` and `\\`:
//!
//! - `one > BYTES`: it sends this, on a websocket in one text frame;
//! - `one < BYTES`: it receives exactly this next;
//! - `one |`: the server has closed it, without a close frame;
//! - `one close CODE`: the server has closed it with this close frame.
//!
//! `{name}` is what the server chooses: letters and digits that are the same wherever the name is.

use std::collections::HashMap;

use crate::support::{Connection, soon};

/// A connection whose bytes are compared.
pub(crate) struct Wire {
    pub(crate) connection: Connection,
    pub(crate) is_websocket: bool,
}

impl Wire {
    async fn send(&mut self, text: &str) {
        let length = u16::try_from(text.len()).unwrap();
        let mut bytes = Vec::new();
        if self.is_websocket {
            let [high, low] = length.to_be_bytes();
            // Masked with zeros, which changes nothing.
            match length {
                0..126 => bytes.extend([0x81, 0x80 | low, 0, 0, 0, 0]),
                _ => bytes.extend([0x81, 0xfe, high, low, 0, 0, 0, 0]),
            }
        }
        bytes.extend_from_slice(text.as_bytes());
        self.connection.write(&bytes).await;
    }

    async fn receive(&mut self) -> String {
        let bytes = if self.is_websocket {
            let (first, payload) = self.connection.frame().await;
            assert_eq!(first, 0x81, "a text frame: {payload:?}");
            payload
        } else {
            self.connection.read_until(b"\n").await
        };
        String::from_utf8(bytes).unwrap()
    }
}

/// Plays a transcript. `connect` makes a connection at the first line of each name.
pub(crate) async fn play(text: &str, connect: impl AsyncFn(&str) -> Wire) {
    let mut wires: HashMap<&str, Wire> = HashMap::new();
    let mut chosen = HashMap::new();
    for line in text.lines().map(str::trim_start) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (name, rest) = line.split_once(' ').expect(line);
        let (verb, bytes) = rest.split_once(' ').unwrap_or((rest, ""));
        if !wires.contains_key(name) {
            wires.insert(name, connect(name).await);
        }
        let wire = wires.get_mut(name).unwrap();
        let bytes = bytes.replace(r"\r", "\r").replace(r"\n", "\n").replace(r"\\", r"\");
        match verb {
            ">" => wire.send(&filled(&bytes, &chosen)).await,
            "<" => compare(&wire.receive().await, &bytes, &mut chosen, line),
            "|" => assert!(wire.connection.rest().await.is_empty(), "{line}"),
            "close" => {
                let (first, payload) = soon(wire.connection.frame()).await;
                let code = u16::from_be_bytes([payload[0], payload[1]]).to_string();
                assert_eq!((first, code), (0x88, bytes), "{line}");
            }
            _ => panic!("{line}"),
        }
    }
}

/// The first transcript after a heading of docs/compatibility.md.
pub(crate) fn of_documentation(heading: &str) -> &'static str {
    let text = include_str!("../../../../docs/compatibility.md");
    let (_, section) = text.split_once(&format!("\n{heading}\n")).unwrap();
    let (_, transcript) = section.split_once("```transcript\n").unwrap();
    transcript.split_once("```").unwrap().0
}

fn filled(text: &str, chosen: &HashMap<String, String>) -> String {
    chosen.iter().fold(text.to_owned(), |text, (name, value)| text.replace(name, value))
}

/// Compares what was received, and remembers what the server has chosen.
fn compare(received: &str, expected: &str, chosen: &mut HashMap<String, String>, line: &str) {
    let (mut rest, mut left) = (received, expected);
    while let Some((before, name)) = next_name(left) {
        let after = rest.strip_prefix(before).unwrap_or_else(|| panic!("{line}\n{received:?}"));
        let end = after.find(|one: char| !one.is_ascii_alphanumeric()).unwrap_or(after.len());
        let value = chosen.entry(name.to_owned()).or_insert_with(|| after[..end].to_owned());
        assert_eq!(&after[..end], value, "{line}\n{received:?}");
        (rest, left) = (&after[end..], &left[before.len() + name.len()..]);
    }
    assert_eq!(rest, left, "{line}\n{received:?}");
}

/// What is before the first `{name}`, and that. JSON has no such names: theirs are quoted.
fn next_name(text: &str) -> Option<(&str, &str)> {
    let is_name = |text: &str| text.starts_with(|first: char| first.is_ascii_lowercase());
    let start = text.match_indices('{').find(|(at, _)| is_name(&text[at + 1..]))?.0;
    let end = start + text[start..].find('}')? + 1;
    Some((&text[..start], &text[start..end]))
}
