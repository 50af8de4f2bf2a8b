//! What the fuzz targets of all crates share. Each of their `fuzzing` modules has it as a module of its
//! own: there is no crate that all of them may depend on for it.

use std::fmt::Display;

/// Asserts that an error is one line, and of this many bytes at most.
pub(crate) fn is_a_line(error: &dyn Display, most: usize) {
    let text = error.to_string();
    assert!(!text.is_empty() && !text.contains(char::is_control), "not one line: {text:?}");
    assert!(text.len() <= most, "{} bytes: {text:.300?}", text.len());
}

/// Runs a target with each file of its corpus, and says which one it fails with.
#[cfg(test)]
pub(crate) fn replay(target: &str, run: fn(&[u8])) {
    use std::{fs, panic::catch_unwind, path::Path};

    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target);
    let mut files: Vec<_> = fs::read_dir(&corpus)
        .unwrap_or_else(|error| panic!("{}: {error}", corpus.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    assert!(!files.is_empty(), "nothing in {}", corpus.display());
    for file in files {
        let data = fs::read(&file).unwrap();
        assert!(catch_unwind(|| run(&data)).is_ok(), "{target} fails with {}", file.display());
    }
}
