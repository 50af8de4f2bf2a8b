//! Completion scripts for shells, from the table of settings.

use std::{ffi::OsString, fmt::Write as _, str::FromStr};

use super::{
    ConfigError, Invocation,
    settings::{Kind, SETTINGS, Setting},
};

#[derive(Clone, Copy)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

const SHELLS: &str = "bash zsh fish";
const COMMANDS: [(&str, &str); 5] = [
    ("key", "create a key for the file of --keys"),
    ("data", "look after a directory of --data"),
    ("drs-ipc", "drs on standard input and output"),
    ("completion", "print a completion script for a shell"),
    ("man", "print the manual page"),
];
const OTHERS: [(&str, &str, &str); 2] =
    [("-v", "--version", "print the version"), ("-h", "--help", "print help")];

impl FromStr for Shell {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "bash" => Ok(Self::Bash),
            "zsh" => Ok(Self::Zsh),
            "fish" => Ok(Self::Fish),
            _ => Err(format!("expected bash, zsh or fish, not {name:?}")),
        }
    }
}

/// Parses the arguments after `completion`.
pub(super) fn parse(args: &[OsString]) -> Result<Invocation, ConfigError> {
    const USAGE: &str = "usage: msgbusd completion bash|zsh|fish";
    let names: Vec<_> = args.iter().map(|arg| arg.to_string_lossy()).collect();
    match &names[..] {
        [help] if help == "-h" || help == "--help" => Ok(Invocation::Print(HELP.to_owned())),
        [name] => match name.parse() {
            Ok(shell) => Ok(Invocation::Print(script(shell))),
            Err(problem) => Err(ConfigError::new("completion", problem)),
        },
        _ => Err(ConfigError::new("completion", USAGE)),
    }
}

const HELP: &str = "\
Print a completion script for a shell

Usage: msgbusd completion bash|zsh|fish

Examples:
  msgbusd completion bash > /etc/bash_completion.d/msgbusd
  msgbusd completion fish > ~/.config/fish/completions/msgbusd.fish
";

fn script(shell: Shell) -> String {
    match shell {
        Shell::Bash => bash(),
        Shell::Zsh => zsh(),
        Shell::Fish => fish(),
    }
}

/// The possible values of a setting that has only a few.
fn choices(setting: &Setting) -> Option<&'static str> {
    match setting.name {
        "overflow" => Some("drop-oldest reject"),
        "scheduler" => Some("pinned stealing"),
        _ => None,
    }
}

fn flags_where(is_so: impl Fn(&Setting) -> bool) -> String {
    let flags: Vec<_> =
        SETTINGS.iter().filter(|setting| is_so(setting)).map(Setting::flag).collect();
    flags.join("|")
}

fn names_file(setting: &Setting) -> bool {
    setting.placeholder == "FILE"
}

fn bash() -> String {
    // Writing to a String cannot fail.
    let mut script = "\
# bash completion for msgbusd
_msgbusd() {
    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]}
    COMPREPLY=()
    case $before in
"
    .to_owned();
    for setting in SETTINGS {
        if let Some(choices) = choices(setting) {
            let _ = writeln!(
                script,
                "        {}) COMPREPLY=($(compgen -W '{choices}' -- \"$word\")); return ;;",
                setting.flag()
            );
        }
    }
    let files = flags_where(names_file);
    let free = flags_where(|setting| {
        setting.kind != Kind::Switch && choices(setting).is_none() && !names_file(setting)
    });
    let _ = write!(
        script,
        "        {files}) COMPREPLY=($(compgen -f -- \"$word\")); return ;;\n        \
                 {free}|--allow) return ;;\n        \
                 completion) COMPREPLY=($(compgen -W '{SHELLS}' -- \"$word\")); return ;;\n        \
                 key) COMPREPLY=($(compgen -W 'new --help' -- \"$word\")); return ;;\n    esac\n    \
             case ${{COMP_WORDS[1]}} in\n        \
                 key) COMPREPLY=($(compgen -W '--allow --help' -- \"$word\")); return ;;\n        \
                 completion|man) return ;;\n    esac\n"
    );
    let mut words: Vec<&str> = SETTINGS.iter().map(Setting::flag).collect();
    words.extend(OTHERS.map(|(_, long, _)| long));
    let commands = COMMANDS.map(|(name, _)| name).join(" ");
    let _ = write!(
        script,
        "    local words='{}'\n    [ \"$COMP_CWORD\" = 1 ] && words=\"{commands} $words\"\n    \
             COMPREPLY=($(compgen -W \"$words\" -- \"$word\"))\n}}\ncomplete -F _msgbusd msgbusd\n",
        words.join(" ")
    );
    script
}

fn zsh() -> String {
    let mut script = "\
#compdef msgbusd
_msgbusd() {
    case $words[2] in
        key) _arguments '2:command:(new)' '3:name:' '*--allow[what the key allows]:grant:'; return ;;
"
    .to_owned();
    let _ = write!(
        script,
        "        completion) _arguments '2:shell:({SHELLS})'; return ;;\n        man) return ;;\n    \
             esac\n    _arguments \\\n"
    );
    for setting in SETTINGS {
        let help = setting.help.replace('[', "(").replace(']', ")").replace('\'', "");
        let action = match (choices(setting), setting.placeholder) {
            (Some(choices), _) => format!(":value:({choices})"),
            (None, "") => String::new(),
            (None, "FILE") => ":file:_files".to_owned(),
            (None, value) => format!(":{}:", value.to_ascii_lowercase()),
        };
        let again = if setting.kind == Kind::List { "*" } else { "" };
        for flag in [Some(setting.flag()), setting.short].into_iter().flatten() {
            let _ = writeln!(script, "        '{again}{flag}[{help}]{action}' \\");
        }
    }
    for (short, long, help) in OTHERS {
        let _ = writeln!(script, "        '{short}[{help}]' '{long}[{help}]' \\");
    }
    let commands = COMMANDS.map(|(name, _)| name).join(" ");
    let _ = write!(script, "        '1::command:({commands})'\n}}\n_msgbusd \"$@\"\n");
    script
}

fn fish() -> String {
    let mut script = "# fish completion for msgbusd\ncomplete -c msgbusd -f\n".to_owned();
    let none = "-n 'not __fish_seen_subcommand_from key completion man'";
    for (name, help) in COMMANDS {
        let _ =
            writeln!(script, "complete -c msgbusd -n __fish_use_subcommand -a {name} -d '{help}'");
    }
    for setting in SETTINGS {
        let short = setting.short.map_or("", |short| short.trim_start_matches('-'));
        let short = if short.is_empty() { String::new() } else { format!(" -s {short}") };
        let value = match (choices(setting), setting.kind) {
            (Some(choices), _) => format!(" -x -a '{choices}'"),
            (None, Kind::Switch) => String::new(),
            (None, _) if names_file(setting) => " -r -F".to_owned(),
            (None, _) => " -x".to_owned(),
        };
        let help = setting.help.replace('\'', "");
        let _ = writeln!(
            script,
            "complete -c msgbusd {none} -l {}{short}{value} -d '{help}'",
            setting.name
        );
    }
    for (short, long, help) in OTHERS {
        let (short, long) = (short.trim_start_matches('-'), long.trim_start_matches('-'));
        let _ = writeln!(script, "complete -c msgbusd {none} -s {short} -l {long} -d '{help}'");
    }
    let _ = write!(
        script,
        "complete -c msgbusd -n '__fish_seen_subcommand_from completion' -a '{SHELLS}'\n\
         complete -c msgbusd -n '__fish_seen_subcommand_from key' -a new\n\
         complete -c msgbusd -n '__fish_seen_subcommand_from key' -l allow -x -d 'what the key allows'\n"
    );
    script
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shell_completes_every_flag() {
        for shell in SHELLS.split(' ') {
            let script = script(shell.parse().unwrap());
            for setting in SETTINGS {
                assert!(script.contains(setting.name), "{shell}: {}", setting.name);
            }
        }
    }
}
