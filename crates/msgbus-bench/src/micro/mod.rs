//! Benchmarks of the engine alone: the time per operation, and the memory of messages, topics and leases.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

mod fan_out;
mod groups;
mod memory;
mod pace;
mod patterns;
mod queue;
mod topics;

use pace::Bench;

/// The options of the benchmarks.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Whether to take only rough figures, within a second or two.
    pub quick: bool,
    /// Measures only operations whose name contains this text.
    pub filter: String,
}

/// One measured figure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measure {
    /// The name of the operation.
    pub name: String,
    /// The unit of `value` and `min`: `ns` per operation, or `B` (bytes) per stored item.
    pub unit: String,
    /// The median of all batches.
    pub value: f64,
    /// The minimum of all batches, which other load on the machine affects least.
    pub min: f64,
}

/// Runs the selected benchmarks.
pub fn run(options: &Options) -> Vec<Measure> {
    let mut bench = Bench::new(options);
    // Memory first, while the allocator holds no freed memory of other benchmarks.
    memory::measure(&mut bench);
    queue::measure(&mut bench);
    groups::measure(&mut bench);
    topics::measure(&mut bench);
    fan_out::measure(&mut bench);
    patterns::measure(&mut bench);
    bench.into_measures()
}

/// Formats the measures as a table.
pub fn table(measures: &[Measure]) -> String {
    let width = measures.iter().map(|measure| measure.name.len()).max().unwrap_or(0);
    let mut table = format!("{:width$}  {:>10}  {:>10}\n", "", "median", "min");
    for Measure { name, unit, value, min } in measures {
        // Writing to a String cannot fail.
        let _ = writeln!(table, "{name:width$}  {value:>10.1}  {min:>10.1}  {unit}");
    }
    table
}
