//! Help and the manual, generated from the tables of commands and options.

use crate::{
    commands::{COMMANDS, Command, CommandSpec, EXIT_CODES},
    options::{ENVIRONMENT, OPTIONS, OptionSpec},
};

const PROGRAM: &str = "msgbus: publish to, pull from and follow topics of a msgbus server, and ask and serve services";

/// The text of `--help` for one command, or the overview.
pub(crate) fn help(command: Option<Command>) -> String {
    command.map_or_else(overview, |command| page(command.spec()))
}

fn overview() -> String {
    let mut text = format!("{PROGRAM}\n\nUsage: msgbus COMMAND [OPTIONS] ...\n\nCommands:\n");
    for spec in &COMMANDS {
        let alias = spec.alias.map_or(String::new(), |alias| format!(" (or {alias})"));
        let usage = format!("{} {}", spec.name, spec.arguments);
        text.push_str(&format!("  {:<33} {}{alias}\n", usage.trim_end(), spec.about));
    }
    text.push_str("\nOptions of every command:\n");
    options(&mut text, |option| option.commands.is_empty());
    text.push_str("\nEach command has more: msgbus COMMAND --help\n\nEnvironment:\n");
    for (name, help) in ENVIRONMENT {
        text.push_str(&format!("  {name:<33} {help}\n"));
    }
    exit_codes(&mut text, &EXIT_CODES);
    text
}

fn page(spec: &CommandSpec) -> String {
    let usage = format!("msgbus {} [OPTIONS] {}", spec.name, spec.arguments);
    let mut text = format!("{}\n\nUsage: {}\n", spec.about, usage.trim_end());
    if let Some(alias) = spec.alias {
        text.push_str(&format!("Alias: {alias}\n"));
    }
    text.push_str(&format!("\n{}\n\nExamples:\n", spec.details));
    for example in spec.examples {
        text.push_str(&format!("  {example}\n"));
    }
    if OPTIONS.iter().any(|option| option.is_own_of(spec.command)) {
        text.push_str("\nOptions:\n");
        options(&mut text, |option| option.is_own_of(spec.command));
    }
    text.push_str("\nThe server, the key and other options of every command: msgbus --help\n");
    exit_codes(&mut text, spec.exit_codes);
    text
}

fn options(text: &mut String, shown: impl Fn(&OptionSpec) -> bool) {
    for option in OPTIONS.iter().filter(|option| shown(option)) {
        let short = option.short.map_or("    ".to_owned(), |short| format!("{short}, "));
        let name = format!("{short}{} {}", option.long, option.value.unwrap_or_default());
        text.push_str(&format!("  {:<33} {}\n", name.trim_end(), option.help));
    }
}

fn exit_codes(text: &mut String, codes: &[(u8, &str)]) {
    text.push_str("\nExit codes:\n");
    for (code, help) in codes {
        text.push_str(&format!("  {code:<5} {help}\n"));
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
        let (name, about) = (format!("{} {}", spec.name, spec.arguments), roff(spec.about));
        let details = format!("{}\n\n{}", spec.details, spec.examples.join("\n"));
        page.push_str(&format!(
            ".SS {}\n{about}{alias}.\n.PP\n.nf\n{}\n.fi\n",
            roff(name.trim_end()),
            roff(&details)
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

/// Escapes everything that roff would interpret.
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
        for spec in &COMMANDS {
            let text = help(Some(spec.command));
            for option in &OPTIONS {
                let is_shown =
                    text.contains(&format!("{} ", option.long)) && text.contains(option.help);
                assert_eq!(
                    is_shown,
                    option.is_own_of(spec.command),
                    "{} {}",
                    spec.name,
                    option.long
                );
            }
            assert!(help(None).contains(spec.about));
        }
        for command in COMMANDS.iter().map(|spec| Some(spec.command)).chain([None]) {
            for line in help(command).lines() {
                assert!(line.chars().count() <= 100, "{line}");
            }
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
