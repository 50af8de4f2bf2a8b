//! What is no message, in the form in which it goes out.

/// A gap between messages as JSON, where messages are JSON.
pub(crate) fn gap(missed: u64, next_id: u64) -> String {
    format!("{{\"event\":\"gap\",\"missed\":{missed},\"next_id\":{next_id}}}\n")
}
