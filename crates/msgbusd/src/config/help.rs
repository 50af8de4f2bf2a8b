//! Help and the manual page, from the table of settings.

use std::fmt::Write as _;

use super::settings::{SETTINGS, Setting};

/// The width of the column of flags.
const WIDTH: usize = 34;

const ABOUT: &str = "the message bus you can curl";

const SYNOPSES: [&str; 6] = [
    "msgbusd [FLAGS]",
    "msgbusd key new NAME --allow ACTION:TOPIC...",
    "msgbusd data check|dump|backup|compact DIR",
    "msgbusd drs-ipc [tcp://HOST:PORT]",
    "msgbusd completion bash|zsh|fish",
    "msgbusd man",
];

const DESCRIPTION: &str = "\
Publish with PUT or POST /TOPIC, pull with GET /TOPIC, subscribe with a websocket on /TOPIC,
list topics with GET /. Messages are in memory, with --data also on disk, and with --engine in an
engine that several servers share, such as NATS.
";

const FORMS: &str = "\
Sizes are bytes, or have a unit: 64KiB, 1MiB, 2GiB. Durations: 500ms, 30s, 10m, 1h30m.
Long flags may have one dash, as in the Go msgbusd. Each is also a variable of the
environment (--max-topics: MSGBUSD_MAX_TOPICS) and a key of the file (max-topics = 10).
A flag overrides a variable, a variable overrides the file.
";

/// Signals and what they do.
const SIGNALS: [(&str, &str); 2] = [
    ("SIGTERM, SIGINT", "stop accepting, finish active requests, exit; repeat to exit immediately"),
    ("SIGHUP", "reload the keys and the certificate, check the file of --config"),
];

const EXIT_CODES: [(&str, &str); 4] = [
    ("0", "stopped in order, or printed the output"),
    ("1", "could not run, had to cut connections, or could not print"),
    ("2", "wrong usage or configuration"),
    ("130", "stopped by a second signal"),
];

const EXAMPLES: [(&str, &str); 3] = [
    ("msgbusd --ttl 2h --max-total-bytes 4GiB", "for this machine only"),
    ("msgbusd --data /var/lib/msgbus", "keep messages through restarts"),
    ("msgbusd --bind :8000 --keys keys.toml", "for clients with a key"),
];

/// The text of `--help`.
pub(super) fn help() -> String {
    // Writing to a String cannot fail.
    let mut text = format!("msgbusd: {ABOUT}\n\n");
    for (index, synopsis) in SYNOPSES.iter().enumerate() {
        let _ = writeln!(text, "{} {synopsis}", if index == 0 { "Usage:" } else { "      " });
    }
    let _ = write!(text, "\n{DESCRIPTION}\nFlags:\n");
    for setting in SETTINGS {
        text.push_str(&line(setting));
    }
    let _ = writeln!(text, "  {:<WIDTH$}print the version", "-v, --version");
    let _ = write!(text, "  {:<WIDTH$}print this help\n\n{FORMS}\n", "-h, --help");
    for (title, lines) in [("Signals", &SIGNALS[..]), ("Exit codes", &EXIT_CODES)] {
        let width = if title == "Signals" { 16 } else { 4 };
        let _ = writeln!(text, "{title}:");
        for (name, meaning) in lines {
            let _ = writeln!(text, "  {name:<width$} {meaning}");
        }
        text.push('\n');
    }
    text.push_str("Examples:\n");
    for (command, comment) in EXAMPLES {
        let _ = writeln!(text, "  {command:<42} # {comment}");
    }
    text
}

fn line(setting: &Setting) -> String {
    let short = setting.short.map_or("    ".to_owned(), |short| format!("{short}, "));
    let flag = format!("{short}{} {}", setting.flag(), setting.placeholder);
    let mut flag = flag.trim_end().to_owned();
    if flag.len() >= WIDTH {
        // A long flag gets its own line.
        flag.push_str("\n  ");
        flag.push_str(&" ".repeat(WIDTH));
    }
    format!("  {flag:<WIDTH$}{}\n", described(setting))
}

/// The help of a setting, with its default.
fn described(setting: &Setting) -> String {
    match setting.default {
        "" => setting.help.to_owned(),
        default => format!("{} [{default}]", setting.help),
    }
}

/// The manual page, in roff (man(7)).
pub(super) fn manual() -> String {
    let mut page = format!(
        ".TH MSGBUSD 8 \"\" \"msgbusd {}\"\n.SH NAME\nmsgbusd \\- {ABOUT}\n.SH SYNOPSIS\n",
        env!("CARGO_PKG_VERSION"),
    );
    for synopsis in SYNOPSES {
        let _ = write!(page, ".B {}\n.br\n", roff(synopsis));
    }
    let _ = write!(page, ".SH DESCRIPTION\n{}.SH OPTIONS\n", roff(DESCRIPTION));
    for setting in SETTINGS {
        let short = setting.short.map_or(String::new(), |short| format!("{}, ", roff(short)));
        let value = match setting.placeholder {
            "" => String::new(),
            value => format!(" \\fI{value}\\fR"),
        };
        let _ = write!(
            page,
            ".TP\n\\fB{short}{}\\fR{value}\n{}\n",
            roff(setting.flag()),
            roff(&described(setting))
        );
    }
    let _ = write!(
        page,
        ".TP\n\\fB\\-v, \\-\\-version\\fR\nprint the version\n\
         .TP\n\\fB\\-h, \\-\\-help\\fR\nprint help\n.PP\n{}",
        roff(FORMS)
    );
    for (title, entries) in
        [("SIGNALS", &SIGNALS[..]), ("EXIT STATUS", &EXIT_CODES), ("EXAMPLES", &EXAMPLES)]
    {
        let _ = writeln!(page, ".SH {title}");
        for (name, meaning) in entries {
            let _ = write!(page, ".TP\n.B {}\n{}\n", roff(name), roff(meaning));
        }
    }
    page
}

/// Escapes text for roff.
fn roff(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-");
    text.split('\n')
        .map(|line| match line.chars().next() {
            Some('.' | '\'') => format!("\\&{line}"),
            _ => line.to_owned(),
        })
        .collect::<Vec<_>>()
        .join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_and_manual_name_every_setting() {
        let (help, manual) = (help(), manual());
        for setting in SETTINGS {
            assert!(help.contains(setting.flag()), "{}", setting.name);
            assert!(manual.contains(&roff(setting.flag())), "{}", setting.name);
        }
        assert!(help.lines().all(|line| line.chars().count() <= 100), "{help}");
        for line in manual.lines().filter(|line| line.starts_with('.')) {
            let known = [".TH", ".SH", ".TP", ".PP", ".B ", ".br"];
            assert!(known.iter().any(|macro_name| line.starts_with(macro_name)), "{line}");
        }
    }
}
