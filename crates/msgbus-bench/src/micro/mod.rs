//! The engine alone: what one operation takes, and what is kept costs.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

mod fan_out;
mod memory;
mod pace;
mod queue;
mod topics;

use pace::Bench;

/// What to measure.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Whether rough figures will do: a second or two in all.
    pub quick: bool,
    /// Only what has this text in its name is measured.
    pub filter: String,
}

/// One figure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measure {
    /// What was measured.
    pub name: String,
    /// What `value` and `min` count: `ns` for each operation, or `B` (bytes) for each thing kept.
    pub unit: String,
    /// The median of all batches.
    pub value: f64,
    /// The least of all batches: what it takes when nothing else disturbs the machine.
    pub min: f64,
}

/// Measures everything that was asked for.
pub fn run(options: &Options) -> Vec<Measure> {
    let mut bench = Bench::new(options);
    // Memory first, while the allocator has nothing that others have left.
    memory::measure(&mut bench);
    queue::measure(&mut bench);
    topics::measure(&mut bench);
    fan_out::measure(&mut bench);
    bench.into_measures()
}

/// The measures as a table for people.
pub fn table(measures: &[Measure]) -> String {
    let width = measures.iter().map(|measure| measure.name.len()).max().unwrap_or(0);
    let mut table = format!("{:width$}  {:>10}  {:>10}\n", "", "median", "min");
    for Measure { name, unit, value, min } in measures {
        // Writing to a String cannot fail.
        let _ = writeln!(table, "{name:width$}  {value:>10.1}  {min:>10.1}  {unit}");
    }
    table
}
