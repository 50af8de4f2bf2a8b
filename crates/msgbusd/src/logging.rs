//! The log: lines are queued, and a separate thread writes them to standard error.
//!
//! Whatever happens to standard error (a closed pipe, a pipe without a reader, a full disk), no other thread blocks,
//! fails or panics because of a line. The queue is bounded. A line that does not fit, or cannot be written, is dropped
//! and counted, and a later line reports the number.

use std::{
    env, fmt,
    io::{self, ErrorKind, IsTerminal as _, Write},
    mem, panic,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use parking_lot::{Condvar, Mutex};
use tracing::{
    Level, error,
    field::{Field, Visit},
};
use tracing_subscriber::{
    field::RecordFields,
    filter::Targets,
    fmt::{
        FormatFields, MakeWriter,
        format::Writer,
        time::{FormatTime as _, SystemTime},
    },
    layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

/// The maximum size of the queued lines, in bytes.
const QUEUE: usize = 1 << 20;
/// The memory that the empty queue keeps allocated, in bytes.
const IDLE_QUEUE: usize = 16 << 10;
/// The maximum size of one field, in bytes. Longer values are truncated.
const MAX_FIELD: usize = 1 << 10;
/// How long the process waits for the last lines when it exits.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);
/// The pause before writing again when standard error is non-blocking and full.
const RETRY: Duration = Duration::from_millis(20);

/// Lines that were dropped since the start of the process.
static DROPPED: AtomicU64 = AtomicU64::new(0);

/// A count with its noun, in the plural unless it is 1.
pub fn counted(count: u64, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// The number of log lines that were dropped since the start of the process.
pub(crate) fn dropped() -> u64 {
    DROPPED.load(Relaxed)
}

/// A handle to the log. Writing to it never blocks and never fails.
#[derive(Debug, Clone)]
pub struct Log(Arc<Queue>);

#[derive(Debug, Default)]
struct Queue {
    state: Mutex<State>,
    /// Notified when lines are queued.
    filled: Condvar,
    /// Notified when everything is written.
    idle: Condvar,
}

#[derive(Debug, Default)]
struct State {
    lines: Vec<u8>,
    /// Lines that did not fit since the writer last took the queue.
    dropped: u64,
    is_writing: bool,
}

impl Log {
    /// Starts the thread that writes to standard error.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn to_stderr() -> io::Result<Self> {
        Self::to(io::stderr())
    }

    fn to(out: impl Write + Send + 'static) -> io::Result<Self> {
        let log = Self(Arc::default());
        let writer = LogWriter { queue: Arc::clone(&log.0), out, unreported: 0, is_torn: false };
        thread::Builder::new().name("log".to_owned()).spawn(move || writer.run())?;
        Ok(log)
    }

    /// Installs this as the log of the process, for events and panics.
    ///
    /// # Panics
    /// When a log is installed already.
    pub fn install(&self, debug: bool) {
        let level = if debug { Level::DEBUG } else { Level::INFO };
        // Only the daemon's own events and those of engines: the libraries log every frame.
        let ours = [env!("CARGO_PKG_NAME"), "msgbus_nats", "msgbus_redis"];
        let ours = Targets::new().with_targets(ours.map(|target| (target, level)));
        tracing_subscriber::fmt()
            .with_writer(self.clone())
            .fmt_fields(Fields)
            .log_internal_errors(false)
            .with_max_level(level)
            .with_target(false)
            .with_ansi(wants_colour())
            .finish()
            .with(ours)
            .init();
        // The default hook writes to standard error directly, and could block.
        let log = self.clone();
        panic::set_hook(Box::new(move |panic| {
            error!("{panic}");
            // The process exits with the main thread.
            if thread::current().name() == Some("main") {
                log.flush();
            }
        }));
    }

    /// Queues one line. The line end is added.
    pub fn line(&self, text: &str) {
        self.push(format!("{text}\n").as_bytes());
    }

    /// Waits until everything is written, for at most one second. Call it before the process exits.
    pub fn flush(&self) {
        let Queue { state, idle, .. } = &*self.0;
        let waits = |state: &mut State| state.is_writing || !state.lines.is_empty();
        let _ = idle.wait_while_for(&mut state.lock(), waits, FLUSH_TIMEOUT);
    }

    fn push(&self, line: &[u8]) {
        let mut state = self.0.state.lock();
        if state.lines.len() + line.len() > QUEUE {
            state.dropped += 1;
            DROPPED.fetch_add(1, Relaxed);
            return;
        }
        state.lines.extend_from_slice(line);
        drop(state);
        self.0.filled.notify_one();
    }
}

/// The formatter writes each event with a single call.
impl Write for &Log {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = &'a Self;

    fn make_writer(&'a self) -> Self::Writer {
        self
    }
}

/// Respects <https://no-color.org>, and terminals that cannot show colours.
fn wants_colour() -> bool {
    let is_set = |name| env::var_os(name).is_some_and(|value| !value.is_empty());
    io::stderr().is_terminal()
        && !is_set("NO_COLOR")
        && env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// The thread that writes. No other thread waits for standard error.
struct LogWriter<W> {
    queue: Arc<Queue>,
    out: W,
    /// Dropped lines that are not reported yet.
    unreported: u64,
    /// Whether the last line was written only in part.
    is_torn: bool,
}

impl<W: Write> LogWriter<W> {
    fn run(mut self) {
        let mut lines = Vec::new();
        loop {
            lines.clear();
            lines.shrink_to(IDLE_QUEUE);
            let dropped = self.next(&mut lines);
            self.report();
            self.write(&lines);
            self.unreported += dropped;
            self.report();
        }
    }

    /// Waits for lines. Returns how many were dropped after them.
    fn next(&self, lines: &mut Vec<u8>) -> u64 {
        let Queue { state, filled, idle } = &*self.queue;
        let mut state = state.lock();
        state.is_writing = false;
        if state.lines.is_empty() {
            idle.notify_all();
        }
        filled.wait_while(&mut state, |state| state.lines.is_empty());
        mem::swap(&mut state.lines, lines);
        state.is_writing = true;
        mem::take(&mut state.dropped)
    }

    /// Writes lines, and drops those that cannot be written.
    fn write(&mut self, lines: &[u8]) {
        let left = self.put(lines);
        let lost = left.split(|byte| *byte == b'\n').count() as u64 - 1;
        self.unreported += lost;
        DROPPED.fetch_add(lost, Relaxed);
    }

    fn report(&mut self) {
        if self.unreported == 0 {
            return;
        }
        let mut line = String::new();
        // Writing to a String cannot fail.
        let _ = SystemTime.format_time(&mut Writer::new(&mut line));
        line.push_str(&format!("  WARN dropped {} lines of the log\n", self.unreported));
        if self.put(line.as_bytes()).is_empty() {
            self.unreported = 0;
        }
    }

    /// Writes as much as possible, and returns the rest.
    fn put<'a>(&mut self, text: &'a [u8]) -> &'a [u8] {
        let mut left = text;
        while !left.is_empty() {
            let next = if self.is_torn { b"\n" } else { left };
            match self.out.write(next) {
                Ok(0) => return left,
                Ok(_) if self.is_torn => self.is_torn = false,
                Ok(count) => left = &left[count..],
                Err(error) => match error.kind() {
                    ErrorKind::Interrupted => {}
                    ErrorKind::WouldBlock => thread::sleep(RETRY),
                    _ => {
                        let written = &text[..text.len() - left.len()];
                        self.is_torn |= written.last().is_some_and(|byte| *byte != b'\n');
                        return left;
                    }
                },
            }
        }
        left
    }
}

/// Writes fields so that a value cannot be mistaken for another field or another line: a value with special characters
/// is quoted and escaped.
#[derive(Debug, Clone, Copy)]
struct Fields;

impl<'w> FormatFields<'w> for Fields {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'w>, fields: R) -> fmt::Result {
        let mut line = Line { writer, is_begun: false, result: Ok(()) };
        fields.record(&mut line);
        line.result
    }
}

struct Line<'w> {
    writer: Writer<'w>,
    is_begun: bool,
    result: fmt::Result,
}

impl Line<'_> {
    fn add(&mut self, field: &Field, value: &str) -> fmt::Result {
        if mem::replace(&mut self.is_begun, true) {
            self.writer.write_char(' ')?;
        }
        let (value, rest) = cut(value);
        if field.name() == "message" {
            for c in value.chars() {
                if c.is_control() {
                    write!(self.writer, "{}", c.escape_debug())?;
                } else {
                    self.writer.write_char(c)?;
                }
            }
        } else if !value.is_empty() && value.chars().all(is_plain) {
            write!(self.writer, "{}={value}", field.name())?;
        } else {
            write!(self.writer, "{}={value:?}", field.name())?;
        }
        self.writer.write_str(rest)
    }
}

impl Visit for Line<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        if self.result.is_ok() {
            self.result = self.add(field, value);
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }
}

/// Truncates a value. Returns the beginning, and "..." if there was more.
fn cut(value: &str) -> (&str, &'static str) {
    if value.len() <= MAX_FIELD {
        return (value, "");
    }
    let end = (0..=MAX_FIELD).rev().find(|end| value.is_char_boundary(*end)).unwrap_or(0);
    (&value[..end], "...")
}

fn is_plain(c: char) -> bool {
    (c.is_ascii_graphic() && !matches!(c, '"' | '\\' | '='))
        || (!c.is_ascii() && c.is_alphanumeric())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A writer with a limited capacity, which tests change.
    #[derive(Clone, Default)]
    struct Disk(Arc<Mutex<(usize, Vec<u8>)>>);

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let (free, written) = &mut *self.0.lock();
            if *free == 0 {
                return Err(ErrorKind::StorageFull.into());
            }
            let taken = &bytes[..bytes.len().min(*free)];
            *free -= taken.len();
            written.extend_from_slice(taken);
            Ok(taken.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn say(log: &Log, line: &str) {
        log.line(line);
        let state = || log.0.state.lock();
        while state().is_writing || !state().lines.is_empty() {
            log.flush();
        }
    }

    #[test]
    fn lines_lost_to_a_full_disk_are_reported_later() {
        let disk = Disk::default();
        let log = Log::to(disk.clone()).unwrap();
        disk.0.lock().0 = 10;
        say(&log, "one");
        say(&log, "twothree");
        say(&log, "four");
        disk.0.lock().0 = usize::MAX;
        say(&log, "five");
        let text = String::from_utf8(disk.0.lock().1.clone()).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[..2], ["one", "twothr"]);
        assert!(lines[2].ends_with("  WARN dropped 2 lines of the log"), "{text}");
        assert_eq!(lines[3..], ["five"]);
        assert!(dropped() >= 2);
    }

    #[test]
    fn a_value_is_cut_at_a_character() {
        let long = format!("{}é", "a".repeat(MAX_FIELD - 1));
        assert_eq!(cut(&long), (&long[..MAX_FIELD - 1], "..."));
        assert_eq!(cut("é"), ("é", ""));
    }
}
