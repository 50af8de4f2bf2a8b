//! Reads a `pub` as most clients write it, without the JSON library: in a frame of many, parsing costs more than all else.
//!
//! It reads `{"op":"pub"` followed by `topic`, `text` and `rid`, in any order, without spaces and escapes. Whatever else a
//! line has, [`operation::parse`](super::operation::parse) reads it with the library. So this has no refusals: what it
//! reads, the library would read alike.

use std::borrow::Cow;

use memchr::memchr;

use super::{
    identifier::Identifier,
    operation::{Field, Operation, Publish, Request, Text},
};

/// The number of digits up to which every integer is a `rid`.
const RID_DIGITS: usize = 15;

/// Reads a `pub`; `None` if the library has to.
pub(super) fn publish(line: &str) -> Option<Request<'_>> {
    let mut rest = line.strip_prefix(r#"{"op":"pub""#)?;
    if has_escape_or_control(line.as_bytes()) {
        return None;
    }
    let (mut topic, mut text, mut rid) = (None, None, None);
    while rest != "}" {
        if let Some(value) = rest.strip_prefix(r#","topic":""#) {
            rest = read_text(value, &mut topic)?;
        } else if let Some(value) = rest.strip_prefix(r#","text":""#) {
            rest = read_text(value, &mut text)?;
        } else {
            rest = read_rid(rest.strip_prefix(r#","rid":"#)?, &mut rid)?;
        }
    }
    let field = |text: Option<_>| Field::from(text.map(|text| Text(Cow::Borrowed(text))));
    let mut fields = Publish::default();
    (fields.topic, fields.text) = (field(topic), field(text));
    Some(Request { rid, operation: Operation::Publish(fields) })
}

/// Whether a string may end elsewhere than at the next quotation mark, or must not be in JSON.
fn has_escape_or_control(line: &[u8]) -> bool {
    let is_special = |byte: u8| u8::from(byte == b'\\') | u8::from(byte < b' ');
    // Not ended early, so that the compiler uses vector instructions.
    line.iter().fold(0, |found, byte| found | is_special(*byte)) != 0
}

/// Reads a text after its first quotation mark, unless the field was there before. Returns the rest.
fn read_text<'a>(value: &'a str, field: &mut Option<&'a str>) -> Option<&'a str> {
    let (text, rest) = split_text(value)?;
    field.replace(text).is_none().then_some(rest)
}

fn read_rid<'a>(value: &'a str, field: &mut Option<Identifier<'a>>) -> Option<&'a str> {
    let (rid, rest) = match value.strip_prefix('"') {
        Some(text) => {
            let (text, rest) = split_text(text)?;
            (Identifier::of_text(text)?, rest)
        }
        None => read_number(value)?,
    };
    field.replace(rid).is_none().then_some(rest)
}

/// Reads an integer that is certainly small enough, if nothing makes it another number.
fn read_number(value: &str) -> Option<(Identifier<'_>, &str)> {
    let digits = value.bytes().take_while(u8::is_ascii_digit).count();
    let (number, rest) = value.split_at(digits);
    let is_canonical = digits == 1 || !number.starts_with('0');
    let is_whole = rest.starts_with([',', '}']);
    if digits > RID_DIGITS || !is_canonical || !is_whole {
        return None;
    }
    Some((Identifier::Number(number.parse().ok()?), rest))
}

/// The text before the next quotation mark, and what follows that.
fn split_text(value: &str) -> Option<(&str, &str)> {
    let end = memchr(b'"', value.as_bytes())?;
    Some((&value[..end], &value[end + 1..]))
}

#[cfg(test)]
mod tests {
    use super::{super::operation::parse_json, *};

    /// Whether the line is read without the library. If so, the library reads the same.
    fn is_plain(line: &str) -> bool {
        let Some(plain) = publish(line) else { return false };
        let parsed = parse_json(line).expect(line);
        assert_eq!(format!("{plain:?}"), format!("{parsed:?}"), "{line}");
        true
    }

    #[test]
    fn what_most_clients_write_is_read_without_the_library() {
        for line in [
            r#"{"op":"pub"}"#,
            r#"{"op":"pub","topic":"orders/eu","text":"hi there"}"#,
            r#"{"op":"pub","rid":1,"topic":"t","text":""}"#,
            r#"{"op":"pub","topic":"","text":"{\u{7f}é\u{1f600}}","rid":"a/b"}"#,
            r#"{"op":"pub","rid":999999999999999,"text":"{},:"}"#,
            r#"{"op":"pub","rid":0}"#,
            r#"{"op":"pub","topic":"é","text":"','","rid":"é"}"#,
        ] {
            let line = line.replace("\\u{7f}", "\u{7f}").replace("\\u{1f600}", "\u{1f600}");
            assert!(is_plain(&line), "{line}");
        }
    }

    #[test]
    fn the_library_reads_everything_else() {
        for line in [
            r#"{"op":"pub","topic":"t","topic":"t"}"#,
            r#"{"op":"pub","text":"","text":""}"#,
            r#"{"op":"pub","rid":1,"rid":2}"#,
            r#"{"op":"pub","op":"pub"}"#,
            r#"{"op":"pub","rid":01}"#,
            r#"{"op":"pub","rid":}"#,
            r#"{"op":"pub","rid":-1}"#,
            r#"{"op":"pub","rid":1.0}"#,
            r#"{"op":"pub","rid":1e2}"#,
            r#"{"op":"pub","rid":1 }"#,
            r#"{"op":"pub","rid":9007199254740992}"#,
            r#"{"op":"pub","rid":""}"#,
            r#"{"op":"pub","rid":null}"#,
            r#"{"op":"pub","rid":1"#,
            r#"{"op":"pub","text":"a\n"}"#,
            r#"{"op":"pub","text":"a\"b"}"#,
            "{\"op\":\"pub\",\"text\":\"a\u{1}\"}",
            "{\"op\":\"pub\",\"text\":\"a\t\"}",
            r#"{"op":"pub","text":"a""#,
            r#"{"op":"pub","text":"a"#,
            r#"{"op":"pub","text":"a"}}"#,
            r#"{"op":"pub","text":"a",}"#,
            r#"{"op":"pub","text":"a"} "#,
            r#"{"op":"pub", "text":"a"}"#,
            r#"{"op":"pub","text" :"a"}"#,
            r#"{"op":"pub","text":1}"#,
            r#"{"op":"pub","ttl":"1s"}"#,
            r#"{"op":"pub""topic":"t"}"#,
            r#"{"op":"pubs","topic":"t"}"#,
            r#"{"op":"sub","topic":"t"}"#,
            r#"{"topic":"t","op":"pub"}"#,
            r#" {"op":"pub"}"#,
            "",
        ] {
            assert!(!is_plain(line), "{line}");
        }
        let rid = format!(r#"{{"op":"pub","rid":"{}"}}"#, "x".repeat(65));
        assert!(!is_plain(&rid));
    }

    /// Pieces of operations in random order, with single characters replaced.
    #[test]
    fn seeded_lines_are_read_as_the_library_reads_them() {
        const PIECES: [&str; 24] = [
            r#","topic":"t""#,
            r#","topic":"a/b""#,
            r#","topic":"""#,
            r#","text":"hello {\"x\":[1]}""#,
            r#","text":"plain""#,
            r#","text":"é\u00e9""#,
            r#","text":"é""#,
            r#","rid":7"#,
            r#","rid":0"#,
            r#","rid":00"#,
            r#","rid":"x""#,
            r#","rid":123456789012345"#,
            r#","rid":1234567890123456"#,
            r#","rid":99999999999999999"#,
            r#","json":{"text":"a"}"#,
            r#","base64":"aGk=""#,
            r#","ttl":"1s""#,
            r#","unknown":1"#,
            r#","op":"pub""#,
            ",",
            " ",
            "}",
            "\"",
            "\\",
        ];
        const CHARACTERS: [&str; 14] =
            ["\"", "\\", "{", "}", ",", ":", "0", "é", " ", "\t", "\0", "\u{7f}", "", "p"];
        let mut plain = 0;
        for seed in 0..50_000 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut line = r#"{"op":"pub""#.to_owned();
            for _ in 0..random.usize(..5) {
                line.push_str(PIECES[random.usize(..PIECES.len())]);
            }
            line.push('}');
            if random.u8(..4) == 0 {
                let at = random.usize(..line.len());
                if line.is_char_boundary(at) && line.is_char_boundary(at + 1) {
                    let character = CHARACTERS[random.usize(..CHARACTERS.len())];
                    line.replace_range(at..=at, character);
                }
            }
            plain += usize::from(is_plain(&line));
        }
        assert!(plain > 2_500, "{plain}");
    }
}
