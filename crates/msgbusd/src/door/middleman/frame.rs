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
    /// The lines of the headers.
    head: &'a str,
    pub(crate) body: Cow<'a, str>,
}

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
        let (first, after_first) = line(text).ok_or(BadFrame::CommandLine)?;
        let (command, target) = first.split_once(' ').ok_or(BadFrame::CommandLine)?;
        let (mut rest, mut length) = (after_first, 0);
        loop {
            let (header, after) = line(rest).ok_or(BadFrame::EndOfHeaders)?;
            rest = after;
            if header.is_empty() {
                break;
            }
            let name = header.split_once(':').map(|(name, _)| name);
            let is_header = name.is_some_and(|name| !name.contains([' ', '\t']));
            if !(is_header || length > 0 && header.starts_with([' ', '\t'])) {
                return Err(BadFrame::HeaderLine);
            }
            length = after_first.len() - rest.len();
        }
        Ok(Self { command, target, head: &after_first[..length], body: body(rest)? })
    }

    /// The names of headers as received, and their values without white space around them. A line that begins with white
    /// space goes on with the value before it.
    pub(crate) fn each_header(&self) -> impl Iterator<Item = (&'a str, Cow<'a, str>)> + use<'a> {
        let mut lines = self.head.lines().peekable();
        iter::from_fn(move || {
            let (name, value) = lines.next()?.split_once(':')?;
            let mut value = Cow::Borrowed(trimmed(value));
            while let Some(more) = lines.next_if(|line| line.starts_with([' ', '\t'])) {
                value.to_mut().extend([" ", trimmed(more)]);
            }
            Some((name, value))
        })
    }

    /// The first header with this name in any case.
    pub(crate) fn header(&self, name: &str) -> Option<Cow<'a, str>> {
        self.each_header()
            .find(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
    }

    /// These headers, and then those of the message that have none of the names.
    pub(crate) fn headers(
        &self,
        first: &[(&'a str, &'a str)],
        without: &[&str],
    ) -> Result<Headers, HeaderError> {
        let first = first.iter().map(|(name, value)| (*name, Cow::Borrowed(*value)));
        let is_kept = |name: &str| !without.iter().any(|other| other.eq_ignore_ascii_case(name));
        Headers::new(first.chain(self.each_header().filter(|(name, _)| is_kept(name))))
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
    let first = text.starts_with('.').then_some(0);
    let dots = memmem::find_iter(text.as_bytes(), b"\n.").map(|feed| feed + 1);
    let is_end =
        |dot: &usize| matches!(text.as_bytes()[dot + 1..], [b'\n', ..] | [b'\r', b'\n', ..]);
    let end = first.into_iter().chain(dots).find(is_end).ok_or(BadFrame::EndOfBody)?;
    let body = text[..end].strip_suffix('\n').unwrap_or_default();
    let body = body.strip_suffix('\r').unwrap_or(body);
    let body = body.strip_prefix('.').unwrap_or(body);
    Ok(if body.contains("\n.") { body.replace("\n.", "\n").into() } else { body.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    type Parts<'a> = (&'a str, &'a str, Vec<(&'a str, String)>, String);

    fn parse(text: &str) -> Result<Parts<'_>, BadFrame> {
        let frame = Frame::parse(text)?;
        let headers = frame.each_header().map(|(name, value)| (name, value.into_owned()));
        Ok((frame.command, frame.target, headers.collect(), frame.body.into_owned()))
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
        assert_eq!((frame.header("REQID").as_deref(), frame.header("x")), (Some("x:y"), None));
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
        assert_eq!(of("PUB t\na/b: 1\n\n.\n"), Err(HeaderError::Name));
        // A value that is folded again and again is put together once.
        let folded = format!("PUB t\na: b\n{}\nbody\n.\n", " c\n".repeat(100_000));
        let frame = Frame::parse(&folded).unwrap();
        assert_eq!(frame.headers(&[], &[]), Err(HeaderError::TooLarge));
        assert_eq!(frame.body, "body");
    }
}
