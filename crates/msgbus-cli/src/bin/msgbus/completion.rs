//! Completions for shells, from the table of options.

use crate::{
    args::Shell,
    options::{COMMANDS, CommandSpec, OPTIONS, OptionSpec},
};

pub(crate) fn script(shell: Shell) -> String {
    match shell {
        Shell::Bash => bash(),
        Shell::Zsh => zsh(),
        Shell::Fish => fish(),
    }
}

/// Both names of a command.
fn names(spec: &CommandSpec) -> impl Iterator<Item = &'static str> {
    [Some(spec.name), spec.alias].into_iter().flatten()
}

fn options_of(spec: &CommandSpec) -> impl Iterator<Item = &'static OptionSpec> {
    let command = spec.command;
    OPTIONS.iter().filter(move |option| option.belongs_to(command))
}

fn takes_file(option: &OptionSpec) -> bool {
    option.value == Some("FILE")
}

/// The options that take a value, as a pattern of `case`.
fn with_value(filter: impl Fn(&OptionSpec) -> bool) -> String {
    let names = OPTIONS
        .iter()
        .filter(|option| option.value.is_some() && filter(option))
        .flat_map(|option| [Some(option.long), option.short])
        .flatten();
    names.collect::<Vec<_>>().join("|")
}

const BASH_HEAD: &str = "\
# bash completion for msgbus
_msgbus() {
    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} command= i
    for ((i = 1; i < COMP_CWORD; i++)); do
        case ${COMP_WORDS[i]} in
";

fn bash() -> String {
    let mut script = BASH_HEAD.to_owned();
    script.push_str(&format!("            {}) ((i++)) ;;\n", with_value(|_| true)));
    script.push_str(
        "            -*) ;;\n            *) command=${COMP_WORDS[i]}; break ;;\n        esac\n    done\n\
         \x20   COMPREPLY=()\n    case $before in\n",
    );
    for option in OPTIONS.iter().filter(|option| !option.values.is_empty()) {
        let pattern: Vec<&str> = [Some(option.long), option.short].into_iter().flatten().collect();
        script.push_str(&format!(
            "        {}) COMPREPLY=($(compgen -W '{}' -- \"$word\")); return ;;\n",
            pattern.join("|"),
            option.values.join(" ")
        ));
    }
    script.push_str(&format!(
        "        {}) COMPREPLY=($(compgen -f -- \"$word\")); return ;;\n",
        with_value(takes_file)
    ));
    let free = with_value(|option| option.values.is_empty() && !takes_file(option));
    script.push_str(&format!("        {free}) return ;;\n    esac\n    case $command in\n"));
    let all: Vec<&str> = COMMANDS.iter().flat_map(names).collect();
    script.push_str(&format!(
        "        '') COMPREPLY=($(compgen -W '{}' -- \"$word\")) ;;\n",
        all.join(" ")
    ));
    for spec in &COMMANDS {
        let pattern: Vec<&str> = names(spec).collect();
        let words: Vec<&str> = options_of(spec).map(|option| option.long).collect();
        let shells = if spec.arguments.contains('|') && spec.name == "completion" {
            "bash zsh fish "
        } else {
            ""
        };
        script.push_str(&format!(
            "        {}) COMPREPLY=($(compgen -W '{shells}{}' -- \"$word\")) ;;\n",
            pattern.join("|"),
            words.join(" ")
        ));
    }
    script.push_str("    esac\n}\ncomplete -F _msgbus msgbus\n");
    script
}

fn zsh() -> String {
    let mut script = "#compdef msgbus\n_msgbus() {\n    local -a commands=(\n".to_owned();
    for spec in &COMMANDS {
        for name in names(spec) {
            script.push_str(&format!("        '{name}:{}'\n", spec.about));
        }
    }
    script.push_str(
        "    )\n    if (( CURRENT == 2 )); then\n        _describe command commands\n        return\n    fi\n    \
         local command=$words[2]\n    shift words; (( CURRENT-- ))\n    case $command in\n",
    );
    for spec in &COMMANDS {
        let pattern: Vec<&str> = names(spec).collect();
        script.push_str(&format!("        {})\n            _arguments \\\n", pattern.join("|")));
        for option in options_of(spec) {
            let help = option.help.replace('[', "(").replace(']', ")").replace('\'', "");
            let action = match option.value {
                Some(_) if !option.values.is_empty() => {
                    format!(":value:({})", option.values.join(" "))
                }
                Some("FILE") => ":file:_files".to_owned(),
                Some(value) => format!(":{value}:"),
                None => String::new(),
            };
            for name in [Some(option.long), option.short].into_iter().flatten() {
                script.push_str(&format!("                '{name}[{help}]{action}' \\\n"));
            }
        }
        let argument =
            if spec.name == "completion" { "1:shell:(bash zsh fish)" } else { "*:argument:" };
        script.push_str(&format!("                '{argument}' ;;\n"));
    }
    script.push_str("    esac\n}\n_msgbus \"$@\"\n");
    script
}

fn fish() -> String {
    let mut script = "# fish completion for msgbus\ncomplete -c msgbus -f\n".to_owned();
    for spec in &COMMANDS {
        for name in names(spec) {
            script.push_str(&format!(
                "complete -c msgbus -n __fish_use_subcommand -a {name} -d '{}'\n",
                spec.about
            ));
        }
    }
    for option in &OPTIONS {
        let place: Vec<&str> = COMMANDS
            .iter()
            .filter(|spec| option.belongs_to(spec.command))
            .flat_map(names)
            .collect();
        let short =
            option.short.map_or(String::new(), |s| format!(" -s {}", s.trim_start_matches('-')));
        let value = match option.value {
            Some(_) if !option.values.is_empty() => format!(" -x -a '{}'", option.values.join(" ")),
            Some("FILE") => " -r -F".to_owned(),
            Some(_) => " -x".to_owned(),
            None => String::new(),
        };
        script.push_str(&format!(
            "complete -c msgbus -n '__fish_seen_subcommand_from {}' -l {}{short}{value} -d '{}'\n",
            place.join(" "),
            option.long.trim_start_matches('-'),
            option.help.replace('\'', "")
        ));
    }
    script.push_str(
        "complete -c msgbus -n '__fish_seen_subcommand_from completion' -a 'bash zsh fish'\n",
    );
    script
}
