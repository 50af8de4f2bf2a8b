//! Completions for shells, generated from the tables of commands and options. `msgbus __topics` gets the
//! topic names from the server; the completions pass the connection options on to it.

use crate::{
    args::Shell,
    commands::{COMMANDS, CommandSpec},
    options::{OPTIONS, OptionSpec},
};

const SHELLS: &str = "bash zsh fish";
const BENCHMARKS: &str = "pub sub pull fanout idle latency request";

pub(crate) fn script(shell: Shell) -> String {
    match shell {
        Shell::Bash => bash(),
        Shell::Zsh => zsh(),
        Shell::Fish => fish(),
    }
}

fn options_of(spec: &CommandSpec) -> impl Iterator<Item = &'static OptionSpec> {
    let command = spec.command;
    OPTIONS.iter().filter(move |option| option.belongs_to(command))
}

fn takes_file(option: &OptionSpec) -> bool {
    option.value == Some("FILE")
}

/// Options that take a value, as a pattern of `case`.
fn with_value(filter: impl Fn(&OptionSpec) -> bool) -> String {
    let options = OPTIONS.iter().filter(|option| option.value.is_some() && filter(option));
    let mut names: Vec<&str> = options.flat_map(OptionSpec::names).collect();
    names.sort_unstable();
    names.dedup();
    names.join("|")
}

/// The options that select the server and authenticate.
fn connection() -> String {
    with_value(|option| option.commands.is_empty())
}

/// Rejoins the words up to the cursor, which bash splits at colons and equals signs.
const BASH_HEAD: &str = "\
# bash completion for msgbus
_msgbus() {
    local command= arguments=0 i part glue=
    local -a words=() connection=()
    for part in \"${COMP_WORDS[@]:0:COMP_CWORD+1}\"; do
        if [[ -n $glue || $part == [:=] ]] && ((${#words[@]})); then
            words[-1]+=$part
        else
            words+=(\"$part\")
        fi
        glue=
        [[ $part != [:=] ]] || glue=yes
    done
    local last=$((${#words[@]} - 1))
    local word=${words[last]} before=${words[last-1]}
    for ((i = 1; i < last; i++)); do
        case ${words[i]} in
";
const BASH_WORDS: &str = "            -*) ;;
            *)
                if [[ -z $command ]]; then command=${words[i]}; else ((arguments++)); fi ;;
        esac
    done
    COMPREPLY=()
    case $before in
";
/// Quotes names if necessary, and omits the part before a colon, which bash has already split off.
const BASH_TOPICS: &str = "
# Adds the topics that begin with a word.
_msgbus_topics() {
    local word=$1 name
    shift
    while IFS= read -r name; do
        printf -v name %q \"$name\"
        COMPREPLY+=(\"${name#\"${word%\"${word##*:}\"}\"}\")
    done < <(msgbus \"$@\" __topics -- \"$word\" 2>/dev/null)
}
complete -F _msgbus msgbus
";

/// Quotes a text for bash and zsh.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// Quotes a text for fish.
fn quoted_for_fish(text: &str) -> String {
    format!("'{}'", text.replace('\\', r"\\").replace('\'', r"\'"))
}

fn bash() -> String {
    let mut script = BASH_HEAD.to_owned();
    script.push_str(&format!(
        "            {}) connection+=(\"${{words[i]}}\" \"${{words[i+1]}}\"); ((i++)) ;;\n",
        connection()
    ));
    let joined = format!("{}=*", connection().replace('|', "=*|"));
    script.push_str(&format!("            {joined}) connection+=(\"${{words[i]}}\") ;;\n"));
    script.push_str(&format!("            {}) ((i++)) ;;\n{BASH_WORDS}", with_value(|_| true)));
    for option in OPTIONS.iter().filter(|option| !option.values.is_empty()) {
        let pattern: Vec<&str> = option.names().collect();
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
    let all: Vec<&str> = COMMANDS.iter().flat_map(CommandSpec::names).collect();
    script.push_str(&format!(
        "        '') COMPREPLY=($(compgen -W '{}' -- \"$word\")) ;;\n",
        all.join(" ")
    ));
    script.extend(COMMANDS.iter().map(bash_command));
    script.push_str("    esac\n}\n");
    script.push_str(BASH_TOPICS);
    script
}

/// The branch for the words that follow a command: its options, and its fixed arguments or the topics.
fn bash_command(spec: &CommandSpec) -> String {
    let pattern: Vec<&str> = spec.names().collect();
    let words: Vec<&str> = options_of(spec).map(|option| option.long).collect();
    let fixed = match spec.name {
        "completion" => format!("{SHELLS} "),
        "bench" => format!("{BENCHMARKS} "),
        _ => String::new(),
    };
    let past = if spec.takes_topics() { "" } else { " || $arguments -gt 0" };
    let topics = if spec.takes_topic() {
        format!(
            "\n            [[ $word == -*{past} ]] || _msgbus_topics \"$word\" \"${{connection[@]}}\""
        )
    } else {
        String::new()
    };
    format!(
        "        {}) COMPREPLY=($(compgen -W '{fixed}{}' -- \"$word\")){topics} ;;\n",
        pattern.join("|"),
        words.join(" ")
    )
}

/// zsh stores the connection options that were typed in `opt_args`.
const ZSH_TOPICS: &str = "
_msgbus_topics() {
    local option
    local -a connection topics
    for option in CONNECTION; do
        (( $+opt_args[$option] )) && connection+=($option \"${(Q)opt_args[$option]}\")
    done
    topics=(${(f)\"$(msgbus $connection __topics -- \"${(Q)PREFIX}\" 2>/dev/null)\"})
    compadd -a topics
}
";

fn zsh() -> String {
    let topics = ZSH_TOPICS.replace("CONNECTION", &connection().replace('|', " "));
    let mut script = format!(
        "#compdef msgbus\n{topics}\n_msgbus() {{\n    local -A opt_args\n    local -a commands=(\n"
    );
    for spec in &COMMANDS {
        for name in spec.names() {
            script.push_str(&format!("        {}\n", quoted(&format!("{name}:{}", spec.about))));
        }
    }
    script.push_str(
        "    )\n    if (( CURRENT == 2 )); then\n        _describe command commands\n        return\n    fi\n    \
         local command=$words[2]\n    shift words; (( CURRENT-- ))\n    case $command in\n",
    );
    for spec in &COMMANDS {
        let pattern: Vec<&str> = spec.names().collect();
        script.push_str(&format!("        {})\n            _arguments \\\n", pattern.join("|")));
        for option in options_of(spec) {
            let help = option.help.replace('[', "(").replace(']', ")");
            let action = match option.value {
                Some(_) if !option.values.is_empty() => {
                    format!(":value:({})", option.values.join(" "))
                }
                Some("FILE") => ":file:_files".to_owned(),
                Some(value) => format!(":{value}:"),
                None => String::new(),
            };
            for name in option.names() {
                let spec = quoted(&format!("{name}[{help}]{action}"));
                script.push_str(&format!("                {spec} \\\n"));
            }
        }
        let argument = match spec.name {
            "completion" => format!("1:shell:({SHELLS})"),
            "bench" => format!("1:benchmark:({BENCHMARKS})"),
            _ if spec.takes_topics() => "*:topic:_msgbus_topics".to_owned(),
            _ if spec.takes_topic() => "1:topic:_msgbus_topics".to_owned(),
            _ => "*:argument:".to_owned(),
        };
        let has_rest = spec.takes_topic()
            && !spec.takes_topics()
            && (spec.runs_a_command || spec.max_arguments > 1);
        let rest = if has_rest { " '*:argument:'" } else { "" };
        script.push_str(&format!("                '{argument}'{rest} ;;\n"));
    }
    script.push_str("    esac\n}\n_msgbus \"$@\"\n");
    script
}

const FISH_TOPICS: &str = "
function __msgbus_topics
    set -l words (commandline -opc)
    set -l connection
    for i in (seq 2 (count $words))
        if contains -- $words[$i] CONNECTION
            set -a connection $words[$i] $words[(math $i + 1)]
        end
    end
    msgbus $connection __topics -- (commandline -ct) 2>/dev/null
end
";

fn fish() -> String {
    let topics = FISH_TOPICS.replace("CONNECTION", &connection().replace('|', " "));
    let mut script = format!("# fish completion for msgbus\n{topics}\ncomplete -c msgbus -f\n");
    for spec in &COMMANDS {
        for name in spec.names() {
            script.push_str(&format!(
                "complete -c msgbus -n __fish_use_subcommand -a {name} -d {}\n",
                quoted_for_fish(spec.about)
            ));
        }
    }
    for option in &OPTIONS {
        let commands = COMMANDS.iter().filter(|spec| option.belongs_to(spec.command));
        let place: Vec<&str> = commands.flat_map(CommandSpec::names).collect();
        let short =
            option.short.map_or(String::new(), |s| format!(" -s {}", s.trim_start_matches('-')));
        let value = match option.value {
            Some(_) if !option.values.is_empty() => format!(" -x -a '{}'", option.values.join(" ")),
            Some("FILE") => " -r -F".to_owned(),
            Some(_) => " -x".to_owned(),
            None => String::new(),
        };
        script.push_str(&format!(
            "complete -c msgbus -n '__fish_seen_subcommand_from {}' -l {}{short}{value} -d {}\n",
            place.join(" "),
            option.long.trim_start_matches('-'),
            quoted_for_fish(option.help)
        ));
    }
    let commands = COMMANDS.iter().filter(|spec| spec.takes_topic());
    let place: Vec<&str> = commands.flat_map(CommandSpec::names).collect();
    script.push_str(&format!(
        "complete -c msgbus -n '__fish_seen_subcommand_from {}' -a '(__msgbus_topics)'\n\
         complete -c msgbus -n '__fish_seen_subcommand_from completion' -a '{SHELLS}'\n\
         complete -c msgbus -n '__fish_seen_subcommand_from bench' -a '{BENCHMARKS}'\n",
        place.join(" ")
    ));
    script
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_end_no_text() {
        assert_eq!(quoted("a topic's \\ end"), r"'a topic'\''s \ end'");
        assert_eq!(quoted_for_fish("a topic's \\ end"), r"'a topic\'s \\ end'");
    }
}
