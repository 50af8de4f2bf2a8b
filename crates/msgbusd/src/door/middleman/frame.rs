//! Reads the messages of clients: a command line, headers, an empty line, the body and a line with a dot.

use std::{borrow::Cow, iter};

use memchr::{memchr, memmem};
use msgbus_core::{HeaderError, Headers};
use thiserror::Error;

/// One message of a client.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Frame<'a> {
    pub(crate) command: &'a str,
    pub(crate) target: &'a str,
    /// Names as received, values without white space around them. What is beyond the limits is missing.
    pub(crate) headers: Vec<(&'a str, Cow<'a, str>)>,
    /// Which limit that is.
    excess: Option<HeaderError>,
    pub(crate) body: Cow<'a, str>,
}

/// How many headers of a message are kept: those that the server replaces do not count.
pub(crate) const MAX_LINES: usize = Headers::MAX_COUNT + 3;
/// The maximum size of their names and values, in bytes.
const MAX_BYTES: usize = 2 * Headers::MAX_BYTES;

/// Why a message cannot be read.
#[derive(Debug, Error, PartialEq, Eq)]
pub(crate) enum BadFrame {
    #[error("the first line is a command, a space and a target")]
    CommandLine,
    #[error("an empty line is missing after the headers")]
    EndOfHeaders,
    #[error("a header is a name without spaces, a colon and a value")]
    HeaderLine,
    #[error("the line with a dot that ends the body is missing")]
    EndOfBody,
}

impl<'a> Frame<'a> {
    /// Reads a message. What comes after its last line is ignored.
    pub(crate) fn parse(text: &'a str) -> Result<Self, BadFrame> {
        let (first, mut rest) = line(text).ok_or(BadFrame::CommandLine)?;
        let (command, target) = first.split_once(' ').ok_or(BadFrame::CommandLine)?;
        let (mut headers, mut size, mut excess) = (Vec::new(), 0, None);
        loop {
            let (header, after) = line(rest).ok_or(BadFrame::EndOfHeaders)?;
            rest = after;
            if header.is_empty() {
                break;
            }
            size += header.len();
            if size > MAX_BYTES {
                excess = Some(HeaderError::TooLarge);
            } else if headers.len() >= MAX_LINES {
                excess = Some(HeaderError::TooMany);
            }
            if header.starts_with([' ', '\t']) {
                let (_, value): &mut (_, Cow<'_, str>) =
                    headers.last_mut().ok_or(BadFrame::HeaderLine)?;
                if excess.is_none() {
                    value.to_mut().extend([" ", trimmed(header)]);
                }
                continue;
            }
            let (name, value) = header.split_once(':').ok_or(BadFrame::HeaderLine)?;
            if name.contains([' ', '\t']) {
                return Err(BadFrame::HeaderLine);
            }
            if excess.is_none() {
                headers.push((name, trimmed(value).into()));
            }
        }
        Ok(Self { command, target, headers, excess, body: body(rest)? })
    }

    /// The first header with this name in any case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let header = self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        header.map(|(_, value)| &**value)
    }

    /// These headers, and then those of the message that have none of the names.
    pub(crate) fn headers(
        &self,
        first: &[(&str, &str)],
        without: &[&str],
    ) -> Result<Headers, HeaderError> {
        if let Some(excess) = self.excess {
            return Err(excess);
        }
        let own = self.headers.iter().map(|(name, value)| (*name, &**value));
        let is_kept = |name: &str| !without.iter().any(|other| other.eq_ignore_ascii_case(name));
        let kept = own.filter(|(name, _)| is_kept(name));
        Headers::new(first.iter().copied().chain(kept))
    }
}

fn trimmed(value: &str) -> &str {
    value.trim_matches([' ', '\t'])
}

/// The first line without its end, and the rest.
fn line(text: &str) -> Option<(&str, &str)> {
    let feed = memchr(b'\n', text.as_bytes())?;
    let line = &text[..feed];
    Some((line.strip_suffix('\r').unwrap_or(line), &text[feed + 1..]))
}

/// The body: what is before the line with a dot, without the end of its last line, and without the first dot of each line
/// that begins with one.
fn body(text: &str) -> Result<Cow<'_, str>, BadFrame> {
    let mut lines = Vec::new();
    let first = text.starts_with('.').then_some(0);
    let dots = memmem::find_iter(text.as_bytes(), b"\n.").map(|feed| feed + 1);
    for dot in first.into_iter().chain(dots) {
        if !matches!(text.as_bytes()[dot + 1..], [b'\n', ..] | [b'\r', b'\n', ..]) {
            lines.push(dot);
            continue;
        }
        let body = text[..dot].strip_suffix('\n').unwrap_or_default();
        let body = body.strip_suffix('\r').unwrap_or(body);
        return Ok(if lines.is_empty() { body.into() } else { unstuffed(body, &lines).into() });
    }
    Err(BadFrame::EndOfBody)
}

/// A text without the dots at these places.
fn unstuffed(text: &str, dots: &[usize]) -> String {
    let starts = iter::once(0).chain(dots.iter().map(|dot| dot + 1));
    let ends = dots.iter().copied().chain([text.len()]);
    starts.zip(ends).map(|(start, end)| &text[start..end]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    type Parts<'a> = (&'a str, &'a str, Vec<(&'a str, String)>, String);

    fn parse(text: &str) -> Result<Parts<'_>, BadFrame> {
        let Frame { command, target, headers, body, .. } = Frame::parse(text)?;
        let headers = headers.into_iter().map(|(name, value)| (name, value.into_owned()));
        Ok((command, target, headers.collect(), body.into_owned()))
    }

    #[test]
    fn lines_end_with_or_without_a_carriage_return() {
        for text in [
            "PUB Chat\r\ncmd: Say\r\nroom:  red \r\n\r\nhi\r\n.\r\n",
            "PUB Chat\ncmd:Say\nroom:\tred\n\nhi\n.\n",
            "PUB Chat\ncmd:Say\nroom:red\n\nhi\r\n.\r\nignored",
        ] {
            let headers = vec![("cmd", "Say".to_owned()), ("room", "red".to_owned())];
            assert_eq!(parse(text), Ok(("PUB", "Chat", headers, "hi".to_owned())), "{text:?}");
        }
    }

    #[test]
    fn the_first_space_ends_the_command() {
        for (text, command, target) in [
            ("INT UID\n\n.\n", "INT", "UID"),
            ("PUB a b c \n\n.\n", "PUB", "a b c "),
            ("PUB  x\n\n.\n", "PUB", " x"),
            ("PUB \n\n.\n", "PUB", ""),
            (" x\n\n.\n", "", "x"),
        ] {
            assert_eq!(parse(text), Ok((command, target, vec![], String::new())), "{text:?}");
        }
    }

    #[test]
    fn headers_are_as_in_mime() {
        let text = "PUB t\nA: 1\na:2\nReqID: x:y\nlong: one\n  two\n\tthree \nnone:\n\n.\n";
        let headers =
            [("A", "1"), ("a", "2"), ("ReqID", "x:y"), ("long", "one two three"), ("none", "")];
        let headers = headers.map(|(name, value)| (name, value.to_owned())).to_vec();
        assert_eq!(parse(text), Ok(("PUB", "t", headers, String::new())));
        let frame = Frame::parse(text).unwrap();
        assert_eq!((frame.header("REQID"), frame.header("x")), (Some("x:y"), None));
        let kept = frame.headers(&[("Cid", "c")], &["A", "none"]).unwrap();
        let kept: Vec<_> = kept.iter().collect();
        assert_eq!(kept, [("Cid", "c"), ("ReqID", "x:y"), ("long", "one two three")]);
    }

    #[test]
    fn one_line_end_before_the_dot_is_not_of_the_body() {
        for (body, read) in [
            (".\r\n", ""),
            ("\r\n.\r\n", ""),
            ("\n.\n", ""),
            ("\n\n.\n", "\n"),
            ("a\r\nb\r\n.\r\n", "a\r\nb"),
            ("a\n\r\n.\n", "a\n"),
            ("..\n.\n", "."),
            ("..x\n...y\n.z\n\n.\n", ".x\n..y\nz\n"),
            ("a.b\n.\n", "a.b"),
            ("a\r.\n\n.\n", "a\r.\n"),
            (".\n.\n", ""),
        ] {
            let text = format!("PUB t\n\n{body}");
            assert_eq!(parse(&text).unwrap().3, read, "{body:?}");
        }
    }

    #[test]
    fn errors_say_what_is_missing() {
        for (text, why) in [
            ("", BadFrame::CommandLine),
            ("PUB t", BadFrame::CommandLine),
            ("PUB\n\n.\n", BadFrame::CommandLine),
            ("PUB t\n", BadFrame::EndOfHeaders),
            ("PUB t\na: 1\n", BadFrame::EndOfHeaders),
            ("PUB t\n.\n", BadFrame::HeaderLine),
            ("PUB t\nno colon\n\n.\n", BadFrame::HeaderLine),
            ("PUB t\n a: 1\n\n.\n", BadFrame::HeaderLine),
            ("PUB t\n\n", BadFrame::EndOfBody),
            ("PUB t\n\nbody", BadFrame::EndOfBody),
            ("PUB t\n\nbody\n.", BadFrame::EndOfBody),
            ("PUB t\n\nbody\n. \n", BadFrame::EndOfBody),
            ("PUB t\n\nbody\n.\r.", BadFrame::EndOfBody),
        ] {
            assert_eq!(parse(text), Err(why), "{text:?}");
        }
        assert_eq!(parse("PUB t\na b: 1\n\n.\n"), Err(BadFrame::HeaderLine));
    }

    #[test]
    fn limits_of_headers_are_no_errors_of_reading() {
        let of = |text: &str| Frame::parse(text).unwrap().headers(&[], &["x"]).map(|_| ());
        for (count, ok) in
            [(Headers::MAX_COUNT, Ok(())), (Headers::MAX_COUNT + 1, Err(HeaderError::TooMany))]
        {
            // What the server replaces does not count.
            let text = format!("PUB t\n{}{}\n.\n", "X: 1\n".repeat(3), "a: 1\n".repeat(count));
            assert_eq!(of(&text), ok);
        }
        let many = format!("PUB t\n{}\n.\n", "x: 1\n".repeat(MAX_LINES + 1));
        assert_eq!(of(&many), Err(HeaderError::TooMany));
        assert_eq!(of("PUB t\na/b: 1\n\n.\n"), Err(HeaderError::Name));
        // A value that is folded again and again is read once, and not kept.
        let folded = format!("PUB t\na: b\n{}\nbody\n.\n", " c\n".repeat(MAX_BYTES));
        let frame = Frame::parse(&folded).unwrap();
        assert_eq!(frame.headers(&[], &[]), Err(HeaderError::TooLarge));
        assert!(frame.headers[0].1.len() <= MAX_BYTES);
        assert_eq!(frame.body, "body");
    }
}
