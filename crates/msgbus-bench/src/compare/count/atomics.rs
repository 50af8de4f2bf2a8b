//! Finds the atomic instructions of a program, and which of them take a lock.

use std::{collections::BTreeMap, process::Command};

use anyhow::{Context as _, ensure};

/// The purpose of an atomic instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// It takes a mutex or a reader-writer lock.
    Lock,
    /// Anything else: it releases a lock, counts, or transfers ownership.
    Other,
}

/// Finds the atomic instructions of an object file, by address. Which of them take locks is known only
/// if the file has line tables.
pub(super) fn find(object: &str, has_lines: bool) -> anyhow::Result<BTreeMap<u64, Kind>> {
    let listing = output(Command::new("objdump").args(["-d", "--no-show-raw-insn", object]));
    // Objects that are not files, like the vDSO, contain no locks of this project.
    let Ok(listing) = listing else { return Ok(BTreeMap::new()) };
    let addresses = listing.lines().filter_map(atomic);
    let mut kinds: BTreeMap<u64, Kind> = addresses.map(|at| (at, Kind::Other)).collect();
    if has_lines {
        let mut command = Command::new("addr2line");
        command.args(["-a", "-i", "-f", "-C", "-e", object]);
        command.args(kinds.keys().map(|address| format!("{address:#x}")));
        for address in locks(&output(&mut command)?) {
            kinds.insert(address, Kind::Lock);
        }
    }
    Ok(kinds)
}

fn output(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output().context("cannot run it")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The address in a line of a listing, if the line is an atomic instruction: one with a lock prefix, or an
/// exchange with memory, which is implicitly locked.
fn atomic(line: &str) -> Option<u64> {
    let (address, instruction) = line.split_once(":\t")?;
    let mut words = instruction.split_whitespace();
    let is_atomic = match words.next()? {
        "lock" => true,
        name if name.starts_with("xchg") => words.next()?.contains('('),
        _ => false,
    };
    is_atomic.then(|| u64::from_str_radix(address.trim(), 16).ok())?
}

/// The addresses that belong to a function that takes a lock. The text lists each address with its inlined
/// functions, from the inside out.
fn locks(text: &str) -> Vec<u64> {
    let mut found = Vec::new();
    let mut address = None;
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if let Some(digits) = line.strip_prefix("0x") {
            address = u64::from_str_radix(digits, 16).ok();
            continue;
        }
        let file = lines.next().unwrap_or_default();
        if takes_lock(line, file)
            && let Some(address) = address.take()
        {
            found.push(address);
        }
    }
    found
}

fn takes_lock(function: &str, file: &str) -> bool {
    const FILES: [&str; 4] =
        ["/raw_mutex.rs", "/raw_rwlock.rs", "/sync/mutex/futex.rs", "/sync/rwlock/futex.rs"];
    const FUNCTIONS: [&str; 8] = [
        "lock",
        "try_lock",
        "lock_shared",
        "try_lock_shared",
        "lock_exclusive",
        "try_lock_exclusive",
        "read",
        "write",
    ];
    let name = function.rsplit("::").next().unwrap_or_default();
    FILES.iter().any(|known| file.contains(known)) && FUNCTIONS.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn atomic_instructions_are_known() {
        assert_eq!(
            atomic("    1180:\tlock addl $0x1,0x2e94(%rip)        # 401c <x>"),
            Some(0x1180)
        );
        assert_eq!(atomic("  4a2b0:\txchg   %al,(%rdi)"), Some(0x4a2b0));
        assert_eq!(atomic("  4a2b0:\txchg   %ax,%ax"), None);
        assert_eq!(atomic("  4a2b0:\tmov    %al,(%rdi)"), None);
        assert_eq!(atomic("0000000000001180 <f>:"), None);
    }

    #[test]
    fn a_lock_is_known_by_the_function_that_takes_it() {
        let text = "0x0000000000000010\n\
            core::sync::atomic::atomic_compare_exchange_weak\natomic.rs:1\n\
            <parking_lot::raw_mutex::RawMutex as lock_api::mutex::RawMutex>::lock\n\
            /p/parking_lot-0.12.5/src/raw_mutex.rs:70\nmsgbus::f\nf.rs:1\n\
            0x0000000000000020\nmsgbus::g\ng.rs:1\n\
            0x0000000000000030\ncore::x\natomic.rs:1\nstd::sys::sync::mutex::futex::Mutex::lock\n\
            /s/std/src/sys/sync/mutex/futex.rs:4\n\
            0x0000000000000040\n<parking_lot::raw_mutex::RawMutex as lock_api::mutex::RawMutex>::unlock\n\
            /p/parking_lot-0.12.5/src/raw_mutex.rs:90\n";
        assert_eq!(locks(text), [0x10, 0x30]);
    }
}
