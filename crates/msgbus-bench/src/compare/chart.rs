//! Bar charts, as SVG for light and dark pages.

use std::fmt::Write as _;

use msgbus_load::Report;

use super::{
    contender::Contender,
    figures::{count, growth, median, p50, p99, rate, server_cpu, time},
    work::Work,
};

const WIDTH: f64 = 720.0;
const NAMES: f64 = 150.0;
const FIGURES: f64 = 90.0;
const BAR: f64 = 18.0;
const STEP: f64 = 26.0;
const TOP: f64 = 30.0;

/// The chart of a work: its rate and processor time, its latency or its memory.
pub(super) fn svg(work: &Work, found: &[(Contender, Vec<Report>)]) -> String {
    let panels: Vec<Panel> = if work.is_about_memory() {
        vec![Panel::new("bytes of memory each (less is better)", found, growth, count)]
    } else if work.is_about_latency() {
        vec![
            Panel::new("p50 until received (less is better)", found, p50, time),
            Panel::new("p99 until received (less is better)", found, p99, time),
        ]
    } else {
        vec![
            Panel::new("in a second (more is better)", found, rate, count),
            Panel::new(
                "processor time of the server for each (less is better)",
                found,
                server_cpu,
                time,
            ),
        ]
    };
    let height: f64 = panels.iter().map(Panel::height).sum();
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"sans-serif\" font-size=\"13\">\n\
         <style>text{{fill:#555}}@media(prefers-color-scheme:dark){{text{{fill:#bbb}}}}</style>\n"
    );
    let mut top = 0.0;
    for panel in panels {
        panel.draw(top, &mut svg);
        top += panel.height();
    }
    svg.push_str("</svg>\n");
    svg
}

/// The bars of one figure.
struct Panel {
    title: &'static str,
    bars: Vec<(Contender, f64)>,
    show: fn(f64) -> String,
}

impl Panel {
    fn new(
        title: &'static str,
        found: &[(Contender, Vec<Report>)],
        figure: fn(&Report) -> f64,
        show: fn(f64) -> String,
    ) -> Self {
        let bars = found
            .iter()
            .map(|(who, reports)| {
                (*who, median(reports.iter().map(figure).filter(|value| !value.is_nan())).max(0.0))
            })
            .collect();
        Self { title, bars, show }
    }

    #[expect(clippy::cast_precision_loss, reason = "a handful of bars")]
    fn height(&self) -> f64 {
        TOP + self.bars.len() as f64 * STEP + 8.0
    }

    fn draw(&self, top: f64, svg: &mut String) {
        let longest = self.bars.iter().map(|(_, value)| *value).fold(f64::MIN_POSITIVE, f64::max);
        // Writing to a String cannot fail.
        let _ = writeln!(svg, "<text x=\"0\" y=\"{}\">{}</text>", top + 18.0, self.title);
        let mut y = top + TOP;
        for (who, value) in &self.bars {
            let length = value / longest * (WIDTH - NAMES - FIGURES);
            let color = match who {
                Contender::Msgbusd => "#d9534f",
                Contender::With(_) => "#e59a97",
                Contender::Bare(_) => "#999999",
                _ => "#5b8fc7",
            };
            let _ = writeln!(
                svg,
                "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>\
                 <rect x=\"{NAMES}\" y=\"{y}\" width=\"{length:.1}\" height=\"{BAR}\" \
                 fill=\"{color}\"/><text x=\"{:.1}\" y=\"{}\">{}</text>",
                NAMES - 8.0,
                y + 14.0,
                who.name(),
                NAMES + length + 6.0,
                y + 14.0,
                (self.show)(*value),
            );
            y += STEP;
        }
    }
}
