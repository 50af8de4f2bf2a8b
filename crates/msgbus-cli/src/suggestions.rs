//! Error texts with a suggestion, for likely mistakes on the command line.

use crate::commands::{COMMANDS, Command, CommandSpec};

/// Names of commands in other programs, and the command here.
const OTHER_NAMES: [(&str, &str); 29] = [
    ("list", "topics"),
    ("status", "topics"),
    ("stats", "info"),
    ("show", "info"),
    ("describe", "info"),
    ("delete", "rm"),
    ("del", "rm"),
    ("remove", "rm"),
    ("send", "pub"),
    ("produce", "pub"),
    ("consume", "pull"),
    ("receive", "pull"),
    ("follow", "sub"),
    ("watch", "sub"),
    ("clear", "purge"),
    ("empty", "purge"),
    ("worker", "work"),
    ("req", "request"),
    ("ask", "request"),
    ("call", "request"),
    ("rpc", "request"),
    ("reply", "serve"),
    ("respond", "serve"),
    ("responder", "serve"),
    ("service", "services"),
    ("consumer", "work"),
    ("acknowledge", "ack"),
    ("dlq", "dead"),
    ("requeue", "redrive"),
];

/// The error for a command that does not exist.
pub(crate) fn no_command(name: &str) -> String {
    let other = OTHER_NAMES.iter().find(|(other, _)| *other == name).map(|(_, meant)| *meant);
    let names = COMMANDS.iter().flat_map(CommandSpec::names);
    match other.or_else(|| nearest(name, names)) {
        Some(near) => format!("no such command: {name:?}; did you mean {near}?"),
        None => format!("no such command: {name:?}; see msgbus --help"),
    }
}

/// An option that does not exist, as typed.
pub(crate) struct Unknown<'a> {
    pub(crate) name: &'a str,
    /// Its value, or the next argument.
    pub(crate) value: Option<&'a str>,
    pub(crate) command: Option<Command>,
    pub(crate) topic: Option<&'a str>,
}

impl Unknown<'_> {
    /// The error, with a suggestion if possible. `known` are the options of the command.
    pub(crate) fn explain(&self, known: impl Iterator<Item = &'static str>) -> String {
        let (name, topic) = (self.name, self.topic.unwrap_or("TOPIC"));
        match (self.command, name) {
            (_, "-s" | "--server" | "--url" | "--host" | "--addr" | "--address" | "--broker") => {
                format!("no such option: {name}; did you mean --uri?")
            }
            (Some(Command::Sub | Command::Pull), "--tail" | "--last") => {
                let is_count = |text: &&str| text.parse::<u64>().is_ok();
                let count = self.value.filter(is_count).unwrap_or("N");
                format!("no such option: {name}; see msgbus tail -n {count} {topic}")
            }
            (Some(Command::Pub), "-m" | "--message" | "--data" | "--body" | "--payload") => {
                let message = self.value.unwrap_or("MESSAGE");
                format!("no option {name}: write msgbus pub {topic} \"{message}\"")
            }
            (Some(Command::Pub), "--file") => {
                let file = self.value.unwrap_or("FILE");
                format!("no option {name}: write msgbus pub {topic} < {file}")
            }
            _ => match nearest(name, known).filter(|_| name.starts_with("--")) {
                Some(near) => format!("no such option: {name}; did you mean {near}?"),
                None if self.command == Some(Command::Pub) => {
                    format!(
                        "no such option: {name}; use -- before a message that starts with a dash"
                    )
                }
                None => format!("no such option: {name}; see --help"),
            },
        }
    }
}

/// The error for an option of another command.
pub(crate) fn misplaced(name: &str, command: Command) -> String {
    let spec = command.spec();
    let prints_messages = matches!(command, Command::Sub | Command::Pull | Command::Tail);
    let hint = match name {
        "-t" | "--topic" if spec.takes_topic() => "give the topic as a plain argument".to_owned(),
        "-f" if command == Command::Pub => "write msgbus pub TOPIC < FILE".to_owned(),
        "--json" if prints_messages => "use -o json".to_owned(),
        "--raw" if prints_messages => "use -o raw".to_owned(),
        _ => format!("see msgbus {} --help", spec.name),
    };
    format!("{name} is not an option of {}; {hint}", spec.name)
}

/// A warning about the name of a topic or service that is probably a mistake. The name is used nevertheless.
pub(crate) fn about_name(kind: &str, name: &str) -> Option<String> {
    if name.split('/').any(|segment| matches!(segment, "#" | "+" | ">")) {
        Some(format!("no wildcards here: this is a {kind} named {name:?}"))
    } else if name.contains(',') {
        Some(format!("no lists here: this is a {kind} named {name:?}"))
    } else {
        None
    }
}

/// The error for a pattern that is written as in another system, or a topic with a slash at its end.
pub(crate) fn about_pattern(name: &str) -> Option<String> {
    if name.is_empty() {
        return Some("it is empty; is the variable set?".to_owned());
    }
    if let Some(topic) = name.strip_suffix('/') {
        return Some(format!(
            "it ends with a slash; write {topic} for the topic, {topic}/* or {topic}/** for those below it"
        ));
    }
    let segments: Vec<&str> = name.split('/').collect();
    let last = segments.len() - 1;
    let meant = segments.iter().enumerate().map(|(at, segment)| match *segment {
        "#" | ">" if at == last => "**",
        "#" | ">" | "+" => "*",
        other => other,
    });
    let meant = meant.collect::<Vec<_>>().join("/");
    (meant != name).then(|| {
        format!(
            "write {meant}: \"*\" stands for one segment, and \"**\" at the end for all that follow"
        )
    })
}

/// The name that is most similar to `name`, if any is similar enough.
pub(crate) fn nearest<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    names
        .map(|candidate| (strsim::damerau_levenshtein(name, candidate), candidate))
        .filter(|(distance, candidate)| {
            let letters = candidate.trim_start_matches('-').len();
            *distance <= 1 + letters / 4 || name.starts_with(candidate)
        })
        // Among equally distant names, prefer one that starts with `name`.
        .min_by_key(|(distance, candidate)| (*distance, !candidate.starts_with(name)))
        .map(|(_, candidate)| candidate)
}
