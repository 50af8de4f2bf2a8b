//! What people and pipes see: messages on standard output, notes on standard error.

use std::{fmt::Write as _, io::IsTerminal as _, str::FromStr};

use anstyle::{AnsiColor, Style as Ink};
use chrono::Local;
use msgbus_client::{Headers, Message};
use msgbus_core::json;
use tokio::io::{AsyncWriteExt as _, BufWriter, Stdout};
#[cfg(target_os = "linux")]
use {
    std::os::fd::AsFd as _,
    tokio::{io::Interest, net::unix::pipe::Sender},
};

use crate::failure::Failure;

/// How messages are printed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Style {
    /// `None` to decide by what standard output is.
    pub(crate) format: Option<Format>,
    pub(crate) newline: bool,
    pub(crate) color: Color,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// One JSON object a line.
    Json,
    /// The payload.
    Raw,
    /// For reading at a glance.
    Pretty,
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "json" => Ok(Self::Json),
            "raw" => Ok(Self::Raw),
            "pretty" => Ok(Self::Pretty),
            _ => Err(format!("must be json, raw or pretty, not {text:?}")),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Color {
    /// On a terminal that has colors, unless `NO_COLOR` says otherwise.
    #[default]
    Auto,
    Always,
    Never,
}

impl FromStr for Color {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "always" => Ok(Self::Always),
            "never" => Ok(Self::Never),
            _ => Err(format!("must be auto, always or never, not {text:?}")),
        }
    }
}

impl Color {
    fn is_on(self) -> bool {
        match self {
            Self::Auto => {
                anstream::AutoStream::choice(&std::io::stdout()) != anstream::ColorChoice::Never
            }
            Self::Always => true,
            Self::Never => false,
        }
    }
}

/// Standard output, for messages.
#[derive(Debug)]
pub(crate) struct Output {
    stdout: BufWriter<Stdout>,
    format: Format,
    newline: bool,
    color: bool,
    /// One message, encoded.
    line: Vec<u8>,
}

impl Output {
    pub(crate) fn new(style: Style) -> Self {
        let by_terminal = || {
            if std::io::stdout().is_terminal() { Format::Pretty } else { Format::Json }
        };
        Self {
            stdout: BufWriter::with_capacity(64 << 10, tokio::io::stdout()),
            format: style.format.unwrap_or_else(by_terminal),
            newline: style.newline,
            color: style.color.is_on(),
            line: Vec::new(),
        }
    }

    /// Prints a message; it may stay in the buffer until [`flush`](Self::flush).
    pub(crate) async fn write(&mut self, message: &Message) -> Result<(), Failure> {
        self.line.clear();
        match self.format {
            Format::Json => write_json(&mut self.line, message),
            Format::Raw => {
                self.line.extend_from_slice(message.payload());
                if self.newline {
                    self.line.push(b'\n');
                }
            }
            Format::Pretty => self.line.extend_from_slice(pretty(message, self.color).as_bytes()),
        }
        Ok(self.stdout.write_all(&self.line).await?)
    }

    pub(crate) async fn flush(&mut self) -> Result<(), Failure> {
        Ok(self.stdout.flush().await?)
    }
}

/// Waits until nobody reads standard output any more, as far as that can be known: for a pipe.
#[cfg(target_os = "linux")]
pub(crate) async fn closed() {
    let fd = std::io::stdout().as_fd().try_clone_to_owned().ok();
    // Unchecked: it is only watched, and need neither be a pipe nor be made non-blocking for that.
    match fd.and_then(|fd| Sender::from_owned_fd_unchecked(fd).ok()) {
        Some(pipe) => {
            // Whatever it says, there is nothing to wait for any more.
            let _ = pipe.ready(Interest::ERROR).await;
        }
        // A file or the like: it is never closed.
        None => std::future::pending().await,
    }
}

/// Elsewhere the next write finds out.
#[cfg(not(target_os = "linux"))]
pub(crate) async fn closed() {
    std::future::pending().await
}

/// A message as JSON, with a line end.
pub(crate) fn write_json(out: &mut Vec<u8>, message: &Message) {
    json::write_message(out, message);
    out.push(b'\n');
}

/// Prints text that was asked for: help, a manual, completions.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    use std::io::Write as _;
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    Ok(stdout.flush()?)
}

/// Says something to the person who runs this, beside the output.
pub(crate) fn note(text: &str) {
    use std::io::Write as _;
    // Where nobody listens nothing needs to be said.
    let _ = writeln!(std::io::stderr(), "msgbus: {}", printable(text));
}

/// Time, topic, id and payload in one line.
fn pretty(message: &Message, color: bool) -> String {
    let ink = |style: Ink| if color { style } else { Ink::new() };
    let (dim, name) = (ink(Ink::new().dimmed()), ink(AnsiColor::Cyan.on_default()));
    let time = message.created().with_timezone(&Local).format("%H:%M:%S%.3f");
    let topic = printable(message.topic().name.as_str());
    let id = message.id();
    let mut line = format!("{dim}{time}{dim:#} {name}{topic}{name:#} {dim}#{id}{dim:#} ");
    // What the payload is, is shown where it is not text.
    let is_shown = |name: &str| {
        !name.eq_ignore_ascii_case(Headers::CONTENT_TYPE)
            && !name.eq_ignore_ascii_case(Headers::CONTENT_ENCODING)
    };
    for (name, value) in message.headers().iter().filter(|(name, _)| is_shown(name)) {
        line.push_str(&format!("{dim}{name}={}{dim:#} ", printable(value)));
    }
    match std::str::from_utf8(message.payload()) {
        Ok("") => line.push_str(&format!("{dim}(empty){dim:#}")),
        Ok(text) => line.push_str(&printable(text)),
        Err(_) => line.push_str(&hex(message)),
    }
    line.push('\n');
    line
}

/// Text that cannot do anything to a terminal: control characters, and those that turn the
/// direction of what follows, are written out.
pub(crate) fn printable(text: &str) -> String {
    let is_odd = |c: char| {
        // Controls, invisible spaces, ends of lines and paragraphs, marks of direction.
        c.is_control()
            || matches!(
                c,
                '\u{61c}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}'
                    | '\u{2060}'..='\u{206f}' | '\u{feff}'
            )
    };
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        if is_odd(c) {
            safe.extend(c.escape_default());
        } else {
            safe.push(c);
        }
    }
    safe
}

/// The beginning of a payload that is not text, and what it is said to be.
fn hex(message: &Message) -> String {
    const SHOWN: usize = 32;
    let bytes = message.payload();
    let headers = [message.content_encoding(), message.content_type()].into_iter().flatten();
    let mut text = format!("({} bytes", bytes.len());
    for value in headers {
        text.push_str(&format!(", {}", printable(value)));
    }
    text.push(')');
    for byte in bytes.iter().take(SHOWN) {
        // Writing to a String cannot fail.
        let _ = write!(text, " {byte:02x}");
    }
    if bytes.len() > SHOWN {
        text.push_str(" …");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_a_terminal_obeys_gets_through() {
        assert_eq!(printable("größe 日本\tx"), "größe 日本\\tx");
        assert_eq!(printable("\x1b[31mred\x07\n"), "\\u{1b}[31mred\\u{7}\\n");
        assert_eq!(printable("a\u{9b}b\u{202e}c"), "a\\u{9b}b\\u{202e}c");
    }
}
