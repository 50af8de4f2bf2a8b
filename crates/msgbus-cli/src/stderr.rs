//! Standard error of a command: passed on, and its last line kept.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use msgbus_core::LeaseToken;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    process::ChildStderr,
    task::JoinHandle,
    time::timeout,
};

/// How long to wait for the rest of the output after the command has ended. What it has started may keep
/// the pipe open for longer.
const REST_TIMEOUT: Duration = Duration::from_millis(500);

/// Standard error of a running command. It is passed on as long as any process has it open.
pub(crate) struct PassedOn {
    lines: Arc<Mutex<Lines>>,
    copying: JoinHandle<()>,
}

impl PassedOn {
    pub(crate) fn start(mut stderr: ChildStderr) -> Self {
        let lines = Arc::<Mutex<Lines>>::default();
        let seen = Arc::clone(&lines);
        let copying = tokio::spawn(async move {
            let (mut out, mut buffer) = (tokio::io::stderr(), [0; 8192]);
            while let Ok(count @ 1..) = stderr.read(&mut buffer).await {
                let bytes = buffer.get(..count).unwrap_or_default();
                seen.lock().unwrap_or_else(PoisonError::into_inner).add(bytes);
                // A closed standard error is not a reason to fail.
                let _ = out.write_all(bytes).await;
                let _ = out.flush().await;
            }
        });
        Self { lines, copying }
    }

    /// The last line that is not empty, cut to the length of a reason.
    pub(crate) async fn last_line(self) -> Option<String> {
        let _ = timeout(REST_TIMEOUT, self.copying).await;
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).last()
    }
}

/// The beginnings of the last two lines that are not empty.
#[derive(Default)]
struct Lines {
    last: Vec<u8>,
    /// The line whose end has not been read.
    open: Vec<u8>,
}

impl Lines {
    fn add(&mut self, bytes: &[u8]) {
        // A progress bar ends its lines with a carriage return.
        let mut pieces = bytes.split(|byte| matches!(byte, b'\n' | b'\r'));
        self.extend(pieces.next().unwrap_or_default());
        for piece in pieces {
            self.end_line();
            self.extend(piece);
        }
    }

    fn extend(&mut self, piece: &[u8]) {
        let left = LeaseToken::MAX_REASON.saturating_sub(self.open.len());
        self.open.extend_from_slice(piece.get(..left).unwrap_or(piece));
    }

    fn end_line(&mut self) {
        if !self.open.trim_ascii().is_empty() {
            std::mem::swap(&mut self.last, &mut self.open);
        }
        self.open.clear();
    }

    fn last(&mut self) -> Option<String> {
        self.end_line();
        let text = String::from_utf8_lossy(&self.last);
        let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        Some(text.trim().to_owned()).filter(|text| !text.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_is_found_in_pieces() {
        for (pieces, last) in [
            (&[""][..], None),
            (&["\n \n"], None),
            (&["a"], Some("a")),
            (&["a\nb"], Some("b")),
            (&["a\nb\n\n  \n"], Some("b")),
            (&["a\nb", "c\r\n"], Some("bc")),
            (&["10 %\r50 %\r100 %\n"], Some("100 %")),
            (&["a\n", "\x1b[31mred\x1b[0m\n"], Some("[31mred [0m")),
        ] {
            let mut lines = Lines::default();
            for piece in pieces {
                lines.add(piece.as_bytes());
            }
            assert_eq!(lines.last().as_deref(), last, "{pieces:?}");
        }
        let mut lines = Lines::default();
        for _ in 0..1000 {
            lines.add(&b"x".repeat(1000));
        }
        assert_eq!(lines.last(), Some("x".repeat(LeaseToken::MAX_REASON)));
    }
}
