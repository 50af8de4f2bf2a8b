//! The system clock is set while the server runs: the real binary under libfaketime. docs/protocol.md, sections 2
//! and 4.

use std::{
    env, fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant, SystemTime},
};

use crate::binary::{Running, msgbusd};

/// Long enough for anything that a test waits for.
const TEST_TIMEOUT: Duration = Duration::from_secs(60);
const HOUR: i64 = 3600;

/// The library, of the Debian package of this name; `None` where it is not installed.
fn libfaketime() -> Option<PathBuf> {
    let name = "faketime/libfaketimeMT.so.1";
    let here = |folder: PathBuf| Some(folder.join(name)).filter(|path| path.exists());
    let folders = fs::read_dir("/usr/lib").ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    let library = folders.chain(["/usr/lib".into()]).find_map(here);
    // Set by .ci/run.
    let is_needed = env::var_os("MSGBUS_TEST_ALL").is_some();
    assert!(library.is_some() || !is_needed, "install libfaketime");
    library
}

/// A server whose clock can be set.
struct Clocked {
    server: Running,
    offset: tempfile::NamedTempFile,
}

impl Clocked {
    fn start(library: &Path, args: &[&str]) -> Self {
        let offset = tempfile::NamedTempFile::new().unwrap();
        set(offset.path(), "+0");
        let mut command = msgbusd(&["--bind", "127.0.0.1:0", "--threads", "1"]);
        command
            .args(args)
            .env("LD_PRELOAD", library)
            .env("FAKETIME_TIMESTAMP_FILE", offset.path())
            .env("FAKETIME_NO_CACHE", "1")
            // Only the wall clock is set.
            .env("DONT_FAKE_MONOTONIC", "1");
        Self { server: Running::start(&mut command), offset }
    }

    fn set(&self, offset: &str) {
        set(self.offset.path(), offset);
    }

    /// How far a header with a time is ahead of the real clock, in seconds.
    fn ahead(answer: &str, header: &str) -> i64 {
        let line = answer.lines().find_map(|line| line.strip_prefix(header));
        let text = line.unwrap_or_else(|| panic!("no {header:?} in {answer}")).trim();
        let seconds = |time: SystemTime| {
            i64::try_from(time.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()).unwrap()
        };
        let time = match httpdate::parse_http_date(text) {
            Ok(time) => seconds(time),
            Err(_) => text.parse::<chrono::DateTime<chrono::Utc>>().unwrap().timestamp(),
        };
        time - seconds(SystemTime::now())
    }

    /// Waits until the `Date` of answers is this many seconds ahead of the real clock.
    fn await_date(&self, ahead: i64) {
        let start = Instant::now();
        loop {
            let is = Self::ahead(&self.server.say("GET /healthz"), "date:");
            if (is - ahead).abs() < 60 {
                return;
            }
            assert!(start.elapsed() < TEST_TIMEOUT, "Date is {is} s ahead, not {ahead}");
            thread::sleep(Duration::from_millis(10));
        }
    }
}

fn set(file: &Path, offset: &str) {
    // In one step: the server may read it at any time, and libfaketime exits if it is empty.
    let new = file.with_extension("new");
    fs::write(&new, offset).unwrap();
    fs::rename(new, file).unwrap();
}

#[test]
fn date_follows_a_clock_that_is_set_back() {
    let Some(library) = libfaketime() else { return };
    let server = Clocked::start(&library, &[]);
    server.await_date(0);
    server.set("+8h");
    server.await_date(8 * HOUR);
    server.set("+0");
    server.await_date(0);
    server.set("-8h");
    server.await_date(-8 * HOUR);
}

#[test]
fn after_the_clock_is_set_back_created_stands_still_and_expires_is_correct() {
    let Some(library) = libfaketime() else { return };
    let server = Clocked::start(&library, &["--ttl", "1h"]);
    let put = || {
        let answer = server.server.say_with("PUT /c", "Content-Length: 0");
        assert!(answer.starts_with("HTTP/1.1 202 "), "{answer}");
    };
    let times = |answer: &str| {
        ["msgbus-created:", "msgbus-expires:"].map(|header| Clocked::ahead(answer, header))
    };
    let is_near = |times: [i64; 2], hours: [i64; 2]| {
        let near = |(is, hours): (i64, i64)| (is - hours * HOUR).abs() < 120;
        times.into_iter().zip(hours).all(near)
    };
    put();
    server.set("+2h");
    server.await_date(2 * HOUR);
    put();
    server.set("+0");
    server.await_date(0);
    put();
    for hours in [[0, 1], [2, 3], [2, 1]] {
        let answer = server.server.say("GET /c?raw");
        assert!(
            answer.starts_with("HTTP/1.1 200 "),
            "a clock that is set ends no message: {answer}"
        );
        assert!(is_near(times(&answer), hours), "not {hours:?} hours ahead: {answer}");
    }
}
