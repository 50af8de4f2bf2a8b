//! What was done and found, as text.

use std::io::{self, IsTerminal as _};

use super::{
    Options,
    books::{Book, Books},
    cost::{Cost, GROWTH_BYTES, GROWTH_PERCENT},
};

/// The tables, and the verdict.
pub(super) fn text(books: &Books, costs: &[Cost], options: &Options) -> String {
    let mut text = format!("{} minutes of load, seed {}\n\n", options.minutes, options.seed);
    for (what, times) in books.tally() {
        text.push_str(&format!("{times:>12}  {what}\n"));
    }
    let (published, pulled) = (books.all_published(), books.all_pulled());
    for (times, what) in [
        (books.received, "messages received by subscribers"),
        (published.unknown, "messages at most in publishes without an answer"),
        (pulled.unknown, "messages at most in pulls without an answer"),
    ] {
        text.push_str(&format!("{times:>12}  {what}\n"));
    }
    text.push_str("\nthe server at rest: before, and after each round\n");
    for Cost { memory, files } in costs {
        text.push_str(&format!("{:>9.1} MB  {files} open files\n", mega(*memory)));
    }
    text.push_str(&format!(
        "(memory may grow by {GROWTH_PERCENT} % and {:.1} MB from the first round on, files not at all)\n\n",
        mega(GROWTH_BYTES)
    ));
    for book in Book::ALL {
        text.push_str(&line(books, book));
    }
    if !books.balance() {
        text.push_str(&format!("\nNot all books balance. The seed was {}.\n", options.seed));
    }
    text
}

fn line(books: &Books, book: Book) -> String {
    let what = book.text();
    match books.standing(book) {
        None => format!("not checked               {what}\n"),
        Some(standing) if standing.faults == 0 => {
            format!("ok    {:>12} checks  {what}\n", standing.checks)
        }
        Some(standing) => {
            let head = format!("WRONG {:>5} of {:>10}  {what}\n", standing.faults, standing.checks);
            let examples = standing.examples.iter().map(|example| format!("      {example}\n"));
            head + &examples.collect::<String>()
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "shown with one digit")]
fn mega(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// Says what happens, where somebody looks.
pub(super) fn progress(books: &Books, what: &str) {
    let faults = if books.are_sound() { "" } else { ", some books do not balance" };
    let published = books.all_published().told;
    show(&format!("{what}: {published} published, {} received{faults}", books.received));
}

/// Makes room for the report.
pub(super) fn end_progress() {
    show("");
}

#[expect(clippy::print_stderr, reason = "this is a command")]
fn show(text: &str) {
    if io::stderr().is_terminal() {
        eprint!("\r\x1b[K{text}");
    }
}
