//! The table of commands and options. Parsing, help, completions and the manual are all made from
//! it, so that none can know what the others do not.

/// A command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Command {
    Pub,
    Sub,
    Pull,
    Tail,
    Topics,
    Info,
    Rm,
    Bench,
    Completion,
    Man,
}

pub(crate) struct CommandSpec {
    pub(crate) command: Command,
    pub(crate) name: &'static str,
    /// The ancestor's other name for it.
    pub(crate) alias: Option<&'static str>,
    pub(crate) arguments: &'static str,
    pub(crate) about: &'static str,
    pub(crate) details: &'static str,
    /// How many arguments it takes, and whether anything after them belongs to a command of the
    /// user's.
    pub(crate) most_arguments: usize,
    pub(crate) runs_a_command: bool,
}

pub(crate) const COMMANDS: [CommandSpec; 10] = [
    CommandSpec {
        command: Command::Pub,
        name: "pub",
        alias: Some("put"),
        arguments: "TOPIC [MESSAGE|-]",
        about: "Publish a message",
        details: "Without MESSAGE, or with -, the message is what comes on standard input.\n\
                  A MESSAGE that begins with a dash goes behind --.",
        most_arguments: 2,
        runs_a_command: false,
    },
    CommandSpec {
        command: Command::Sub,
        name: "sub",
        alias: Some("reg"),
        arguments: "TOPIC [COMMAND [ARG...]]",
        about: "Follow a topic, or run a command for each message",
        details: "Reconnects by itself, and goes on where it was: nothing that the server still has\n\
                  is lost or repeated, and what it no longer has is said on standard error.\n\n\
                  COMMAND is run once for each message, one at a time, in order, without a shell. It\n\
                  finds the message as JSON on standard input, and MSGBUS_ID and MSGBUS_TOPIC in its\n\
                  environment. Everything after COMMAND belongs to it, dashes included. When it fails,\n\
                  that is said, and the next message is taken; with --cursor, msgbus ends instead, and\n\
                  begins with that message when it is started again.",
        most_arguments: 1,
        runs_a_command: true,
    },
    CommandSpec {
        command: Command::Pull,
        name: "pull",
        alias: Some("get"),
        arguments: "TOPIC",
        about: "Take the next message that nobody has taken",
        details: "When there is none, nothing is printed, and that is no error but with --fail-empty.\n\
                  With --timeout it waits that long for --count messages.",
        most_arguments: 1,
        runs_a_command: false,
    },
    CommandSpec {
        command: Command::Tail,
        name: "tail",
        alias: None,
        arguments: "TOPIC",
        about: "Show the last messages, then follow the topic",
        details: "As sub, but it begins with the last --count messages there are.",
        most_arguments: 1,
        runs_a_command: false,
    },
    CommandSpec {
        command: Command::Topics,
        name: "topics",
        alias: Some("ls"),
        arguments: "[PREFIX]",
        about: "List the topics, with what is in them",
        details: "With PREFIX, only those whose names begin with it.",
        most_arguments: 1,
        runs_a_command: false,
    },
    CommandSpec {
        command: Command::Info,
        name: "info",
        alias: None,
        arguments: "TOPIC",
        about: "Show everything about a topic, and who follows it",
        details: "lag is how many messages a subscriber has still before it.",
        most_arguments: 1,
        runs_a_command: false,
    },
    CommandSpec {
        command: Command::Rm,
        name: "rm",
        alias: None,
        arguments: "TOPIC",
        about: "Delete a topic with its messages",
        details: "Those who follow it are told.",
        most_arguments: 1,
        runs_a_command: false,
    },
    CommandSpec {
        command: Command::Bench,
        name: "bench",
        alias: None,
        arguments: "pub|sub|pull|fanout|idle|latency",
        about: "Measure a server, and account for every message",
        details: "pub      clients publish\n\
                  pull     clients pull what has been published before\n\
                  fanout   subscribers receive what clients publish\n\
                  latency  the same at a rate [1000] that leaves the server time\n\
                  idle     subscribers to whom nothing comes; what they cost shows with --pid\n\
                  sub      subscribers receive what another msgbus bench pub publishes\n\n\
                  Latency is the time until the answer, and where there are subscribers until they\n\
                  have the message; with --rate, from the time at which the request was due. It works\n\
                  on topics of its own, and deletes them at the end, unless --topic names one.\n\
                  It uses one thread, and shares the machine with a local server: start several for\n\
                  more. Lost messages make the exit code 6.",
        most_arguments: 1,
        runs_a_command: false,
    },
    CommandSpec {
        command: Command::Completion,
        name: "completion",
        alias: None,
        arguments: "bash|zsh|fish",
        about: "Print completions for a shell",
        details: "bash:  source <(msgbus completion bash)\n\
                  zsh:   msgbus completion zsh > \"${fpath[1]}/_msgbus\"\n\
                  fish:  msgbus completion fish > ~/.config/fish/completions/msgbus.fish",
        most_arguments: 1,
        runs_a_command: false,
    },
    CommandSpec {
        command: Command::Man,
        name: "man",
        alias: None,
        arguments: "",
        about: "Print the manual page",
        details: "Read it with: msgbus man | man -l -",
        most_arguments: 0,
        runs_a_command: false,
    },
];

impl Command {
    pub(crate) fn spec(self) -> &'static CommandSpec {
        // Every command is in the table, as a test makes sure.
        COMMANDS.iter().find(|spec| spec.command == self).unwrap_or(&COMMANDS[0])
    }
}

/// An option.
pub(crate) struct OptionSpec {
    pub(crate) long: &'static str,
    pub(crate) short: Option<&'static str>,
    /// What its value is called; `None` where it takes none.
    pub(crate) value: Option<&'static str>,
    /// The values there are, where they are few.
    pub(crate) values: &'static [&'static str],
    pub(crate) help: &'static str,
    /// Where it belongs; everywhere if empty.
    pub(crate) commands: &'static [Command],
}

impl OptionSpec {
    const fn new(long: &'static str, help: &'static str) -> Self {
        Self { long, short: None, value: None, values: &[], help, commands: &[] }
    }

    const fn short(mut self, short: &'static str) -> Self {
        self.short = Some(short);
        self
    }

    const fn value(mut self, name: &'static str) -> Self {
        self.value = Some(name);
        self
    }

    const fn one_of(mut self, values: &'static [&'static str]) -> Self {
        self.values = values;
        self
    }

    const fn only(mut self, commands: &'static [Command]) -> Self {
        self.commands = commands;
        self
    }

    pub(crate) fn belongs_to(&self, command: Command) -> bool {
        self.commands.is_empty() || self.commands.contains(&command)
    }
}

use Command::{Bench, Info, Pub, Pull, Sub, Tail, Topics};

pub(crate) const OPTIONS: [OptionSpec; 45] = [
    OptionSpec::new("--count", "end after so many messages [pull: 1]; tail: the last ones [10]")
        .short("-n")
        .value("N")
        .only(&[Sub, Pull, Tail]),
    OptionSpec::new("--timeout", "end after this time, as in 30s [pub: 30s]")
        .value("DURATION")
        .only(&[Pub, Sub, Pull, Tail]),
    OptionSpec::new("--output", "json, raw (the payload) or pretty [terminal: pretty, else json]")
        .short("-o")
        .value("FORMAT")
        .one_of(&["json", "raw", "pretty"])
        .only(&[Sub, Pull, Tail]),
    OptionSpec::new("--no-newline", "no line end after a raw payload")
        .short("-N")
        .only(&[Sub, Pull, Tail]),
    OptionSpec::new("--wait", "wait so long for a message that is not there yet, as in 20s")
        .value("DURATION")
        .only(&[Pull]),
    OptionSpec::new("--max", "take up to so many at once").value("N").only(&[Pull]),
    OptionSpec::new("--peek", "look, and take nothing").only(&[Pull]),
    OptionSpec::new("--fail-empty", "exit with 5 when there was no message").only(&[Pull]),
    OptionSpec::new("--since", "begin at all, new, an id, <epoch>-<id>, 10m ago or a time [new]")
        .value("POSITION")
        .only(&[Sub]),
    OptionSpec::new("--all", "as --since all").only(&[Sub]),
    OptionSpec::new("--new", "as --since new, and whatever --cursor says").only(&[Sub]),
    OptionSpec::new("--poll", "end when everything that is there has been shown; begins at all")
        .only(&[Sub]),
    OptionSpec::new("--strict", "exit with 6 when anything was missed").only(&[Sub, Tail]),
    OptionSpec::new("--cursor", "keep the position in FILE, and go on from it the next time")
        .value("FILE")
        .only(&[Sub]),
    OptionSpec::new("--lines", "publish each line of standard input as a message")
        .short("-l")
        .only(&[Pub]),
    OptionSpec::new("--split", "as --lines, but in batches that arrive whole or not at all")
        .only(&[Pub]),
    OptionSpec::new("--ttl", "let the message expire earlier than its topic says, as in 10m")
        .value("DURATION")
        .only(&[Pub]),
    OptionSpec::new("--content-type", "say what the message is, as in text/plain")
        .short("-t")
        .value("TYPE")
        .only(&[Pub]),
    OptionSpec::new("--content-encoding", "say how the message is compressed, as in gzip")
        .value("CODING")
        .only(&[Pub]),
    OptionSpec::new("--wait", "accepted as it was by the Go msgbus, where it did nothing")
        .short("-w")
        .only(&[Pub]),
    OptionSpec::new("--json", "one JSON object a line").only(&[Topics, Info, Bench]),
    OptionSpec::new("--csv", "a line of names, and a line of values").only(&[Bench]),
    OptionSpec::new("--clients", "connections that publish or pull [16; fanout, latency: 1]")
        .value("N")
        .only(&[Bench]),
    OptionSpec::new("--subs", "subscribers [fanout: 100, idle: 1000, otherwise 1]")
        .value("N")
        .only(&[Bench]),
    OptionSpec::new("--msgs", "messages in all [100000; pull: 50000, fanout: 10000]")
        .value("N")
        .only(&[Bench]),
    OptionSpec::new("--size", "bytes of a payload [128]").value("BYTES").only(&[Bench]),
    OptionSpec::new("--rate", "messages in a second, in all [as many as the server takes]")
        .value("N")
        .only(&[Bench]),
    OptionSpec::new("--duration", "end after this time [latency: 5s, idle: 1s]")
        .value("DURATION")
        .only(&[Bench]),
    OptionSpec::new("--topics", "spread over so many topics [1]").value("N").only(&[Bench]),
    OptionSpec::new("--topic", "the topic, or what is before the numbers of several")
        .value("TOPIC")
        .only(&[Bench]),
    OptionSpec::new("--pipeline", "requests under way on each connection [1]")
        .value("N")
        .only(&[Bench]),
    OptionSpec::new("--batch", "messages in each request, with ?split=lines [1]")
        .value("N")
        .only(&[Bench]),
    OptionSpec::new("--raw", "subscribe to payloads instead of JSON").only(&[Bench]),
    OptionSpec::new("--pid", "the server's process, to measure what it uses (Linux)")
        .value("PID")
        .only(&[Bench]),
    OptionSpec::new("--no-progress", "no progress on a terminal").only(&[Bench]),
    OptionSpec::new("--uri", "http://HOST:PORT, https:// or unix:/PATH [http://localhost:8000]")
        .short("-u")
        .value("URI"),
    OptionSpec::new("--key", "the key that the server wants; others may see it here").value("KEY"),
    OptionSpec::new("--key-file", "a file with nothing but the key").value("FILE"),
    OptionSpec::new("--ca-file", "certificates to trust at https, instead of the system's (PEM)")
        .value("FILE"),
    OptionSpec::new("--config", "a file with defaults [~/.msgbus.yaml]").value("FILE"),
    OptionSpec::new("--quiet", "say nothing of connections, nor of a key that others may read")
        .short("-q"),
    OptionSpec::new("--debug", "say what happens").short("-d"),
    OptionSpec::new("--color", "auto, always or never [auto]")
        .value("WHEN")
        .one_of(&["auto", "always", "never"])
        .only(&[Sub, Pull, Tail]),
    OptionSpec::new("--version", "print the version").short("-v"),
    OptionSpec::new("--help", "print this").short("-h"),
];

/// What a script can tell from the exit code.
pub(crate) const EXIT_CODES: [(u8, &str); 7] = [
    (0, "done"),
    (
        1,
        "an error: the server refused, a command failed with --cursor, output could not be written",
    ),
    (2, "wrong usage"),
    (3, "cannot connect"),
    (5, "nothing there (with --fail-empty), or --timeout before --count"),
    (6, "something was missed (with --strict, and by bench)"),
    (130, "ended by a second signal"),
];

pub(crate) const ENVIRONMENT: [(&str, &str); 4] = [
    ("MSGBUS_URI", "the server, where --uri does not say it"),
    ("MSGBUS_KEY", "the key, where neither --key nor --key-file says it"),
    ("MSGBUS_CA_FILE", "the certificates, where --ca-file does not say them"),
    ("MSGBUS_DEBUG", "1 or true, as --debug"),
];

/// The name among `names` that somebody may have meant.
pub(crate) fn nearest<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    names
        .map(|candidate| (strsim::damerau_levenshtein(name, candidate), candidate))
        .filter(|(distance, candidate)| {
            *distance <= 1 + candidate.len() / 4 || name.starts_with(candidate)
        })
        // Of equals, the one of which it is the beginning.
        .min_by_key(|(distance, candidate)| (*distance, !candidate.starts_with(name)))
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_are_whole() {
        use Command::{Completion, Man, Rm};
        for command in [Pub, Sub, Pull, Tail, Topics, Info, Rm, Bench, Completion, Man] {
            assert_eq!(command.spec().command, command);
        }
        for command in COMMANDS {
            let options = OPTIONS.iter().filter(|option| option.belongs_to(command.command));
            let mut names: Vec<&str> =
                options.flat_map(|o| [Some(o.long), o.short]).flatten().collect();
            let count = names.len();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), count, "each name once in {}", command.name);
        }
    }
}
