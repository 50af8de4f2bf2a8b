//! Help and the manual, from the table of options.

use crate::options::{COMMANDS, Command, ENVIRONMENT, EXIT_CODES, OPTIONS, OptionSpec};

const PROGRAM: &str = "msgbus: publish to, pull from and follow topics of a msgbus server";

/// The text of `--help`: of one command, or of all.
pub(crate) fn help(command: Option<Command>) -> String {
    let mut text = String::new();
    match command {
        None => {
            text.push_str(&format!(
                "{PROGRAM}\n\nUsage: msgbus COMMAND [OPTIONS] ...\n\nCommands:\n"
            ));
            for spec in &COMMANDS {
                let alias = spec.alias.map_or(String::new(), |alias| format!(" (or {alias})"));
                let usage = format!("{} {}", spec.name, spec.arguments);
                text.push_str(&format!("  {:<33} {}{alias}\n", usage.trim_end(), spec.about));
            }
            text.push_str("\nOptions:\n");
            options(&mut text, |option| option.commands.is_empty());
            text.push_str("\nmsgbus COMMAND --help has the rest.\n");
        }
        Some(command) => {
            let spec = command.spec();
            text.push_str(&format!("{}\n\nUsage: ", spec.about));
            let usage = format!("msgbus {} [OPTIONS] {}", spec.name, spec.arguments);
            text.push_str(&format!("{}\n", usage.trim_end()));
            if let Some(alias) = spec.alias {
                text.push_str(&format!("Alias: {alias}\n"));
            }
            text.push_str(&format!("\n{}\n\nOptions:\n", spec.details));
            options(&mut text, |option| option.belongs_to(command));
        }
    }
    text.push_str("\nEnvironment:\n");
    for (name, help) in ENVIRONMENT {
        text.push_str(&format!("  {name:<33} {help}\n"));
    }
    text.push_str("\nExit codes:\n");
    for (code, help) in EXIT_CODES {
        text.push_str(&format!("  {code:<5} {help}\n"));
    }
    text
}

fn options(text: &mut String, shown: impl Fn(&OptionSpec) -> bool) {
    for option in OPTIONS.iter().filter(|option| shown(option)) {
        let short = option.short.map_or("    ".to_owned(), |short| format!("{short}, "));
        let name = format!("{short}{} {}", option.long, option.value.unwrap_or_default());
        text.push_str(&format!("  {:<33} {}\n", name.trim_end(), option.help));
    }
}

/// The manual page, in roff (man(7)).
pub(crate) fn manual() -> String {
    let mut page = format!(
        ".TH MSGBUS 1 \"\" \"msgbus {}\"\n.SH NAME\nmsgbus \\- {}\n.SH SYNOPSIS\n",
        env!("CARGO_PKG_VERSION"),
        roff(PROGRAM.trim_start_matches("msgbus: ")),
    );
    for spec in &COMMANDS {
        let usage = format!("[OPTIONS] {}", spec.arguments);
        page.push_str(&format!(".B msgbus {}\n{}\n.br\n", spec.name, roff(usage.trim_end())));
    }
    page.push_str(".SH COMMANDS\n");
    for spec in &COMMANDS {
        let alias = spec.alias.map_or(String::new(), |alias| format!(" (or {alias})"));
        page.push_str(&format!(
            ".SS {} {}\n{}{alias}.\n.PP\n.nf\n{}\n.fi\n",
            spec.name,
            roff(spec.arguments),
            roff(spec.about),
            roff(spec.details)
        ));
    }
    page.push_str(".SH OPTIONS\n");
    for option in &OPTIONS {
        let short = option.short.map_or(String::new(), |short| format!("{}, ", roff(short)));
        let value = option.value.map_or(String::new(), |value| format!(" \\fI{value}\\fR"));
        let commands: Vec<&str> = option.commands.iter().map(|c| c.spec().name).collect();
        let place = match &commands[..] {
            [] => String::new(),
            names => format!(" ({})", names.join(", ")),
        };
        page.push_str(&format!(
            ".TP\n\\fB{short}{}\\fR{value}\n{}{place}\n",
            roff(option.long),
            roff(option.help)
        ));
    }
    page.push_str(".SH ENVIRONMENT\n");
    for (name, help) in ENVIRONMENT {
        page.push_str(&format!(".TP\n.B {name}\n{}\n", roff(help)));
    }
    page.push_str(".SH EXIT STATUS\n");
    for (code, help) in EXIT_CODES {
        page.push_str(&format!(".TP\n.B {code}\n{}\n", roff(help)));
    }
    page
}

/// Text in which nothing is a command to roff.
fn roff(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-");
    let lines = text.lines().map(|line| match line.chars().next() {
        Some('.' | '\'') => format!("\\&{line}"),
        _ => line.to_owned(),
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_names_everything_and_fits_the_screen() {
        for command in COMMANDS.iter().map(|spec| Some(spec.command)).chain([None]) {
            let text = help(command);
            for option in OPTIONS.iter().filter(|o| command.is_some_and(|c| o.belongs_to(c))) {
                assert!(text.contains(option.long), "{command:?} {}", option.long);
            }
            for line in text.lines() {
                assert!(line.chars().count() <= 100, "{line}");
            }
        }
        for spec in &COMMANDS {
            assert!(help(None).contains(spec.about));
        }
    }

    #[test]
    fn no_line_of_the_manual_is_a_stray_command() {
        for line in manual().lines().filter(|line| line.starts_with('.')) {
            let known = [".TH", ".SH", ".SS", ".TP", ".PP", ".B ", ".br", ".nf", ".fi"];
            assert!(known.iter().any(|macro_name| line.starts_with(macro_name)), "{line}");
        }
    }
}
