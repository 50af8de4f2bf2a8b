//! Who changes the file of keys, and has the server read it again.

use std::{fs, io, rc::Rc, time::Duration};

use fastrand::Rng;
use tokio::time::{Instant, sleep};

use super::{Soak, books::Book, show::bearer, wire::ask};
use crate::compare::servers::signal;

/// How long the server may take to read a file.
const PATIENCE: Duration = Duration::from_secs(20);
const LOOK_EVERY: Duration = Duration::from_millis(2);
/// What the server logs when a file is wrong.
const STAYED: &str = "; the keys stay as they were";

/// Has the keys read again and again: those of a file that is right, and now and then none.
pub(super) async fn reload(soak: Rc<Soak>, mut rng: Rng) {
    while soak.is_loading() {
        sleep(Duration::from_millis(rng.u64(20..500))).await;
        let done = match rng.u8(..5) {
            0 => mistake(&soak, &mut rng).await,
            _ => change(&soak, &mut rng).await,
        };
        let mut books = soak.books.borrow_mut();
        books.check(Book::Reloads, done.is_ok(), || format!("a reload: {done:?}"));
    }
}

/// A file that is right. It is in force as soon as the key is known that was in none before.
async fn change(soak: &Soak, rng: &mut Rng) -> io::Result<()> {
    let before = soak.keys.borrow().newest_secret().to_owned();
    let text = {
        let mut keys = soak.keys.borrow_mut();
        keys.change(rng)?;
        keys.text(rng)
    };
    hand_over(soak, &text, rng)?;
    let newest = soak.keys.borrow().newest_secret().to_owned();
    let begin = Instant::now();
    while !is_known(soak, &newest).await? {
        out_of_patience(begin)?;
        sleep(LOOK_EVERY).await;
    }
    soak.keys.borrow_mut().settle();
    let is_known = is_known(soak, &before).await?;
    let mut books = soak.books.borrow_mut();
    books.check(Book::NotAllowed, !is_known, || "a key that is no longer in the file".to_owned());
    books.count("reloads of the keys", 1);
    Ok(())
}

/// A file that is wrong, or none. All others hold the server to what it said before.
async fn mistake(soak: &Soak, rng: &mut Rng) -> io::Result<()> {
    let mistakes = || soak.server.borrow().log().matches(STAYED).count();
    let before = mistakes();
    match wrong(rng) {
        Some(text) => hand_over(soak, text, rng)?,
        None => {
            // The last mistake may have been this one.
            let _ = fs::remove_file(&soak.key_file);
            hang_up(soak, rng)?;
        }
    }
    let begin = Instant::now();
    while mistakes() == before {
        out_of_patience(begin)?;
        sleep(LOOK_EVERY).await;
    }
    let newest = soak.keys.borrow().newest_secret().to_owned();
    let is_known = is_known(soak, &newest).await?;
    let mut books = soak.books.borrow_mut();
    books.check(Book::StillAllowed, is_known, || "the newest key, after a wrong file".to_owned());
    books.count("reloads of a file that is wrong, or not there", 1);
    Ok(())
}

/// If any of it counted, everybody would notice.
fn wrong(rng: &mut Rng) -> Option<&'static str> {
    match rng.u8(..5) {
        0 => Some("[anonymous]\nallow = [\"*:**\"]\n[keys.half\n"),
        1 => Some("[anonymous]\nallow = [\"*:**\"]\n[keys.a]\nhash = \"sha256:0\"\nallow = []\n"),
        2 => Some("[anonymous]\nallow = [\"*:**\", \"publsh:plain/*\"]\n"),
        3 => Some("[anonymous]\nallow = []\n[key.a]\n"),
        _ => None,
    }
}

/// Puts the file where the server finds it, all at once.
fn hand_over(soak: &Soak, text: &str, rng: &mut Rng) -> io::Result<()> {
    let new = soak.key_file.with_extension("new");
    fs::write(&new, text)?;
    fs::rename(&new, &soak.key_file)?;
    hang_up(soak, rng)
}

fn hang_up(soak: &Soak, rng: &mut Rng) -> io::Result<()> {
    let pid = soak.server.borrow().pid();
    // Some say everything twice.
    for _ in 0..rng.u8(1..3) {
        signal(pid, "HUP")?;
    }
    Ok(())
}

/// Whether a key is in force. Those asked for here allow nothing.
async fn is_known(soak: &Soak, secret: &str) -> io::Result<bool> {
    let request =
        format!("GET /-/stats HTTP/1.1\r\nHost: soak.localhost\r\n{}\r\n", bearer(secret));
    let begin = Instant::now();
    loop {
        match ask(&soak.place, request.as_bytes(), true).await {
            Ok((401, _)) => return Ok(false),
            Ok((403, _)) => return Ok(true),
            Ok((503, _)) => {}
            Ok((status, _)) => return Err(io::Error::other(format!("GET /-/stats: {status}"))),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => return Err(error),
            // Who is one too many may be closed at once.
            Err(_) => {}
        }
        out_of_patience(begin)?;
        sleep(LOOK_EVERY).await;
    }
}

fn out_of_patience(begin: Instant) -> io::Result<()> {
    if begin.elapsed() < PATIENCE { Ok(()) } else { Err(io::ErrorKind::TimedOut.into()) }
}
