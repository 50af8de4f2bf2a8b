//! Changes the key file, and makes the server reload it.

use std::{fs, io, rc::Rc, time::Duration};

use fastrand::Rng;
use tokio::time::{Instant, sleep};

use super::{Soak, credentials::bearer, invariants::Invariant, raw_client::send_request};
use crate::running::signal;

/// How long the server may take to reload the file.
const RELOAD_TIMEOUT: Duration = Duration::from_secs(20);
const POLL_INTERVAL: Duration = Duration::from_millis(2);
/// What the server logs if a file is invalid.
const RELOAD_FAILED: &str = "; the keys stay as they were";

/// Reloads the keys again and again, with valid files and sometimes with invalid ones.
pub(super) async fn reload(soak: Rc<Soak>, mut rng: Rng) {
    while soak.is_loading() {
        sleep(Duration::from_millis(rng.u64(20..500))).await;
        let done = match rng.u8(..5) {
            0 => reload_invalid(&soak, &mut rng).await,
            _ => reload_valid(&soak, &mut rng).await,
        };
        let mut invariants = soak.invariants.borrow_mut();
        invariants.check(Invariant::Reloads, done.is_ok(), || format!("a reload: {done:?}"));
    }
}

/// Reloads a valid file. It is in force as soon as the server accepts its new key.
async fn reload_valid(soak: &Soak, rng: &mut Rng) -> io::Result<()> {
    let before = soak.keys.borrow().newest_secret().to_owned();
    let text = {
        let mut keys = soak.keys.borrow_mut();
        keys.change(rng)?;
        keys.text(rng)
    };
    replace_key_file(soak, &text, rng)?;
    let newest = soak.keys.borrow().newest_secret().to_owned();
    let begin = Instant::now();
    while !is_known(soak, &newest).await? {
        check_timeout(begin)?;
        sleep(POLL_INTERVAL).await;
    }
    soak.keys.borrow_mut().record_reload();
    let is_known = is_known(soak, &before).await?;
    let mut invariants = soak.invariants.borrow_mut();
    invariants
        .check(Invariant::NotAllowed, !is_known, || "a removed key is still accepted".to_owned());
    invariants.count("reloads of the keys", 1);
    Ok(())
}

/// Reloads an invalid or missing file. The old keys must stay in force, which all other clients check.
async fn reload_invalid(soak: &Soak, rng: &mut Rng) -> io::Result<()> {
    let mistakes = || soak.server.borrow().log().matches(RELOAD_FAILED).count();
    let before = mistakes();
    match invalid_file(rng) {
        Some(text) => replace_key_file(soak, text, rng)?,
        None => {
            // The file may be missing already.
            let _ = fs::remove_file(&soak.key_file);
            send_hangup(soak, rng)?;
        }
    }
    let begin = Instant::now();
    while mistakes() == before {
        check_timeout(begin)?;
        sleep(POLL_INTERVAL).await;
    }
    let newest = soak.keys.borrow().newest_secret().to_owned();
    let is_known = is_known(soak, &newest).await?;
    let mut invariants = soak.invariants.borrow_mut();
    invariants.check(Invariant::StillAllowed, is_known, || {
        "the newest key is not accepted after an invalid file".to_owned()
    });
    invariants.count("reloads of an invalid or missing key file", 1);
    Ok(())
}

/// An invalid file that would visibly change permissions if any part of it took effect; `None` for a
/// missing file.
fn invalid_file(rng: &mut Rng) -> Option<&'static str> {
    match rng.u8(..5) {
        0 => Some("[anonymous]\nallow = [\"*:**\"]\n[keys.half\n"),
        1 => Some("[anonymous]\nallow = [\"*:**\"]\n[keys.a]\nhash = \"sha256:0\"\nallow = []\n"),
        2 => Some("[anonymous]\nallow = [\"*:**\", \"publsh:plain/*\"]\n"),
        3 => Some("[anonymous]\nallow = []\n[key.a]\n"),
        _ => None,
    }
}

/// Replaces the key file atomically, and sends SIGHUP.
fn replace_key_file(soak: &Soak, text: &str, rng: &mut Rng) -> io::Result<()> {
    let new = soak.key_file.with_extension("new");
    fs::write(&new, text)?;
    fs::rename(&new, &soak.key_file)?;
    send_hangup(soak, rng)
}

fn send_hangup(soak: &Soak, rng: &mut Rng) -> io::Result<()> {
    let pid = soak.server.borrow().pid();
    // Sometimes twice in a row.
    for _ in 0..rng.u8(1..3) {
        signal(pid, "HUP")?;
    }
    Ok(())
}

/// Whether the server accepts a key. The keys tested here have no grants, so it answers 403 or 401.
async fn is_known(soak: &Soak, secret: &str) -> io::Result<bool> {
    let request =
        format!("GET /-/stats HTTP/1.1\r\nHost: soak.localhost\r\n{}\r\n", bearer(secret));
    let begin = Instant::now();
    loop {
        match send_request(&soak.endpoint, request.as_bytes(), true).await {
            Ok((401, _)) => return Ok(false),
            Ok((403, _)) => return Ok(true),
            Ok((503, _)) => {}
            Ok((status, _)) => return Err(io::Error::other(format!("GET /-/stats: {status}"))),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => return Err(error),
            // A connection beyond the limit may be closed at once.
            Err(_) => {}
        }
        check_timeout(begin)?;
        sleep(POLL_INTERVAL).await;
    }
}

fn check_timeout(begin: Instant) -> io::Result<()> {
    if begin.elapsed() < RELOAD_TIMEOUT { Ok(()) } else { Err(io::ErrorKind::TimedOut.into()) }
}
