//! The table of commands. Parsing, help, completions and the manual are all generated from it and from
//! the table of [options](crate::options), so they cannot disagree.

mod services;
mod table;

use self::table::TOPIC_NAMES;
pub(crate) use self::table::{COMMANDS, EXIT_CODES};

/// A command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Command {
    Pub,
    Sub,
    Pull,
    Ack,
    Nack,
    Extend,
    Work,
    Request,
    Serve,
    Services,
    Dead,
    Redrive,
    Group,
    Tail,
    Topics,
    Info,
    Purge,
    Rm,
    Ping,
    Bench,
    Completion,
    Man,
    Version,
    /// Prints topic names, one per line, for completions.
    TopicNames,
}

pub(crate) struct CommandSpec {
    pub(crate) command: Command,
    pub(crate) name: &'static str,
    /// The name of the command in prologic/msgbus.
    pub(crate) alias: Option<&'static str>,
    pub(crate) arguments: &'static str,
    pub(crate) about: &'static str,
    pub(crate) details: &'static str,
    pub(crate) examples: &'static [&'static str],
    /// The maximum number of arguments, as a number and in words.
    pub(crate) max_arguments: usize,
    pub(crate) takes: &'static str,
    /// Whether what follows the arguments is a command to run, with its own arguments.
    pub(crate) runs_a_command: bool,
    pub(crate) exit_codes: &'static [(u8, &'static str)],
}

impl Command {
    pub(crate) fn spec(self) -> &'static CommandSpec {
        COMMANDS.iter().find(|spec| spec.command == self).unwrap_or(&TOPIC_NAMES)
    }

    pub(crate) fn named(name: &str) -> Option<Self> {
        let mut all = COMMANDS.iter().chain([&TOPIC_NAMES]);
        all.find(|spec| spec.names().any(|known| known == name)).map(|spec| spec.command)
    }
}

impl CommandSpec {
    /// The name and the alias.
    pub(crate) fn names(&self) -> impl Iterator<Item = &'static str> + use<> {
        [Some(self.name), self.alias].into_iter().flatten()
    }

    /// The command line, for usage messages.
    pub(crate) fn usage(&self) -> String {
        format!("msgbus {} {}", self.name, self.arguments).trim_end().to_owned()
    }

    /// Whether all arguments are topics.
    pub(crate) fn takes_topics(&self) -> bool {
        self.arguments.starts_with("TOPIC...")
    }

    /// Whether the first argument is a topic name or a prefix of one.
    pub(crate) fn takes_topic(&self) -> bool {
        matches!(self.arguments.get(..5), Some("TOPIC")) || self.command == Command::Topics
    }
}
