//! The report of a soak, and its progress.

use std::io::{self, IsTerminal as _};

use super::{
    Options,
    invariants::{Invariant, Invariants},
    resource_use::{GROWTH_BYTES, GROWTH_PERCENT, ResourceUse},
};

/// The tables of actions, of resource use and of invariants.
pub(super) fn text(
    invariants: &Invariants,
    all: &[Invariant],
    usage: &[ResourceUse],
    options: &Options,
) -> String {
    let mut text = format!("{} minutes of load, seed {}\n\n", options.minutes, options.seed);
    for (what, times) in invariants.actions() {
        text.push_str(&format!("{times:>12}  {what}\n"));
    }
    let (published, pulled) = (invariants.all_published(), invariants.all_pulled());
    for (times, what) in [
        (invariants.received, "messages received by subscribers"),
        (published.unconfirmed, "messages, at most, in publishes without a response"),
        (pulled.unconfirmed, "messages, at most, in pulls without a response"),
    ] {
        text.push_str(&format!("{times:>12}  {what}\n"));
    }
    text.push_str("\nthe idle server, before the first and after each round\n");
    for ResourceUse { memory, files } in usage {
        text.push_str(&format!("{:>9.1} MB  {} open files\n", mega(*memory), files.len()));
    }
    text.push_str(&format!(
        "(after the first round, memory may grow by {GROWTH_PERCENT} % plus {:.1} MB, open files not at all)\n\n",
        mega(GROWTH_BYTES)
    ));
    for invariant in all {
        text.push_str(&line(invariants, *invariant));
    }
    if !invariants.all_hold(all) {
        text.push_str(&format!("\nNot all invariants hold. The seed was {}.\n", options.seed));
    }
    text
}

fn line(invariants: &Invariants, invariant: Invariant) -> String {
    let what = invariant.text();
    match invariants.state(invariant) {
        None => format!("not checked               {what}\n"),
        Some(state) if state.violations == 0 => {
            format!("ok    {:>12} checks  {what}\n", state.checks)
        }
        Some(state) => {
            let head = format!("WRONG {:>5} of {:>10}  {what}\n", state.violations, state.checks);
            let examples = state.examples.iter().map(|example| format!("      {example}\n"));
            head + &examples.collect::<String>()
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "shown with one digit")]
fn mega(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// Shows the progress, on a terminal only.
pub(super) fn progress(invariants: &Invariants, what: &str) {
    let violations = if invariants.none_violated() { "" } else { ", some invariants are violated" };
    let published = invariants.all_published().confirmed;
    show(&format!("{what}: {published} published, {} received{violations}", invariants.received));
}

/// Clears the progress line.
pub(super) fn end_progress() {
    show("");
}

#[expect(clippy::print_stderr, reason = "this is a command")]
fn show(text: &str) {
    if io::stderr().is_terminal() {
        eprint!("\r\x1b[K{text}");
    }
}
