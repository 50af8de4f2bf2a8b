//! Messages on standard output, notes on standard error.

use std::{fmt::Write as _, io::IsTerminal as _, str::FromStr};

use anstyle::{AnsiColor, Style as Ink};
use chrono::Local;
use msgbus_client::{Headers, LeaseToken, Leased, Message};
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
    /// `None` selects pretty on a terminal, JSON otherwise.
    pub(crate) format: Option<Format>,
    pub(crate) newline: bool,
    pub(crate) color: Color,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// One JSON object per line.
    Json,
    /// The payload.
    Raw,
    /// One line for people.
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
    /// On a terminal that supports colors, unless `NO_COLOR` is set.
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
    /// Whether the topic is in front of a raw payload.
    names_topics: bool,
    /// A reused buffer for one encoded message.
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
            names_topics: false,
            line: Vec::new(),
        }
    }

    /// Writes the topic and a tab in front of raw payloads. The other formats have the topic anyway.
    pub(crate) fn with_topics(self) -> Self {
        Self { names_topics: true, ..self }
    }

    /// Writes a message. It may stay in the buffer until [`flush`](Self::flush).
    pub(crate) async fn write(&mut self, message: &Message) -> Result<(), Failure> {
        self.line.clear();
        match self.format {
            Format::Json => write_json(&mut self.line, message),
            Format::Raw => {
                if self.names_topics {
                    self.line.extend_from_slice(message.topic().name.as_str().as_bytes());
                    self.line.push(b'\t');
                }
                self.line.extend_from_slice(message.payload());
                if self.newline {
                    self.line.push(b'\n');
                }
            }
            Format::Pretty => self.line.extend_from_slice(pretty(message, self.color).as_bytes()),
        }
        Ok(self.stdout.write_all(&self.line).await?)
    }

    /// Writes a message and its lease. Returns whether that includes the token: only JSON has a field for it.
    pub(crate) async fn write_leased(&mut self, leased: &Leased) -> Result<bool, Failure> {
        if self.format != Format::Json {
            self.write(&leased.message).await?;
            return Ok(false);
        }
        self.line.clear();
        json::write_leased(&mut self.line, leased);
        self.line.push(b'\n');
        self.stdout.write_all(&self.line).await?;
        Ok(true)
    }

    pub(crate) async fn flush(&mut self) -> Result<(), Failure> {
        Ok(self.stdout.flush().await?)
    }
}

/// Waits until the reader of standard output closes the pipe.
#[cfg(target_os = "linux")]
pub(crate) async fn closed() {
    let fd = std::io::stdout().as_fd().try_clone_to_owned().ok();
    // Unchecked, because it need not be a pipe and must not become non-blocking; it is only watched.
    match fd.and_then(|fd| Sender::from_owned_fd_unchecked(fd).ok()) {
        Some(pipe) => {
            // On an error there is nothing left to wait for.
            let _ = pipe.ready(Interest::ERROR).await;
        }
        // Not a pipe, for example a file: it is never closed.
        None => std::future::pending().await,
    }
}

/// On other systems only the next write detects a closed pipe.
#[cfg(not(target_os = "linux"))]
pub(crate) async fn closed() {
    std::future::pending().await
}

/// Writes a message as JSON, with a line break.
pub(crate) fn write_json(out: &mut Vec<u8>, message: &Message) {
    json::write_message(out, message);
    out.push(b'\n');
}

/// Prints help, the manual or completions.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    print_bytes(text.as_bytes())
}

/// Prints bytes as they are.
pub(crate) fn print_bytes(bytes: &[u8]) -> Result<(), Failure> {
    use std::io::Write as _;
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(bytes)?;
    Ok(stdout.flush()?)
}

/// Prints a note on standard error.
pub(crate) fn note(text: &str) {
    use std::io::Write as _;
    // A closed standard error is not a reason to fail.
    let _ = writeln!(std::io::stderr(), "msgbus: {}", printable(text));
}

/// Prints the token of a lease on standard error, alone on its line, so that a script can read it.
pub(crate) fn print_token(token: &LeaseToken) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr(), "{token}");
}

/// Formats time, topic, id and payload as one line.
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

/// Escapes control characters and characters that change the text direction, so that the text
/// cannot manipulate a terminal.
pub(crate) fn printable(text: &str) -> String {
    let is_odd = |c: char| {
        // Controls, zero-width characters, line and paragraph separators, direction marks.
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

/// Formats a payload that is not text: its size, its content type and encoding, its first bytes.
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
