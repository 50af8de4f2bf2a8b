//! The series of engines, and of the windows of their topics.

use std::cmp::Reverse;

use msgbus_core::{MessageBus, engine::WindowStats};

use super::Page;
use crate::engines::{EngineReport, Engines};

/// A metric with one series for each engine: its name, help, type and value.
type Family = (&'static str, &'static str, &'static str, fn(&EngineReport<'_>) -> u64);

const FAMILIES: [Family; 6] = [
    ("msgbus_engine_up", "Whether the engine can be used.", "gauge", |engine| {
        engine.health.is_up().into()
    }),
    (
        "msgbus_engine_warning",
        "Whether topics of the engine may lose messages because of a setting of its server.",
        "gauge",
        |engine| engine.health.warning.is_some().into(),
    ),
    (
        "msgbus_engine_reconnects_total",
        "Connections to the engine that were made again.",
        "counter",
        |engine| engine.health.reconnects,
    ),
    (
        "msgbus_engine_operations_in_flight",
        "Operations that the engine has not answered.",
        "gauge",
        |engine| engine.usage.in_flight as u64,
    ),
    (
        "msgbus_engine_failures_total",
        "Operations that failed because the engine was away, busy or silent.",
        "counter",
        |engine| engine.usage.failed,
    ),
    ("msgbus_engine_windows", "Topics of the engine that are followed.", "gauge", |engine| {
        engine.windows as u64
    }),
];

/// The series of all engines, and those of at most `max_windows` windows: those that lag most.
pub(crate) fn render(bus: &MessageBus, engines: &Engines, max_windows: usize) -> String {
    let mut page = Page::default();
    let mut windows = bus.engine_windows();
    let reports = engines.reports(bus, &windows);
    for (name, help, kind, value) in FAMILIES {
        page.head(name, help, kind);
        for report in &reports {
            page.sample(name, &[("engine", report.name)], value(report));
        }
    }
    let name = "msgbus_engine_operation_seconds";
    page.head(name, "Time of operations of the engine that do not wait for messages.", "summary");
    for EngineReport { name: engine, usage, .. } in &reports {
        let label = [("engine", *engine)];
        page.sample(&format!("{name}_sum"), &label, usage.time.as_secs_f64());
        page.sample(&format!("{name}_count"), &label, usage.answered);
    }
    if windows.len() > max_windows {
        windows.sort_unstable_by_key(|window| Reverse(window.pending));
        windows.truncate(max_windows);
    }
    windows.sort_unstable_by(|a, b| a.topic.cmp(&b.topic));
    write_windows(&mut page, &windows);
    page.into_text()
}

fn write_windows(page: &mut Page, windows: &[WindowStats]) {
    if windows.is_empty() {
        return;
    }
    let lag = "msgbus_engine_window_lag";
    page.head(lag, "Messages that the engine had not delivered to this server.", "gauge");
    for window in windows {
        page.sample(lag, &[("topic", window.topic.as_str())], window.pending);
    }
    let stalled = "msgbus_engine_window_stalled";
    page.head(stalled, "Whether the engine does not deliver.", "gauge");
    for window in windows {
        let value = u8::from(window.stalled.is_some());
        page.sample(stalled, &[("topic", window.topic.as_str())], value);
    }
}
