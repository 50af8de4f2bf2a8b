//! Splits the command line into command, options and arguments, by the tables of commands and options.

use std::ffi::{OsStr, OsString};

use crate::{
    commands::Command,
    execute,
    failure::Failure,
    options::{OPTIONS, OptionSpec},
    suggestions,
};

/// The parts of the command line. All options are in the table.
#[derive(Default)]
pub(crate) struct Split {
    pub(crate) command: Option<Command>,
    /// `msgbus help pub` is `msgbus pub --help`.
    pub(crate) wants_help: bool,
    /// Long names; a value follows after an equals sign.
    pub(crate) options: Vec<OsString>,
    pub(crate) arguments: Vec<OsString>,
    /// The command that `sub` runs, with its arguments.
    pub(crate) own_command: Option<(OsString, Vec<OsString>)>,
    /// Whether what follows is the command that `sub` runs: `--` was given after a topic.
    has_command_mark: bool,
    /// The long names of the options, and the names as typed.
    given: Vec<(&'static str, String)>,
}

impl Split {
    pub(crate) fn new(args: impl IntoIterator<Item = OsString>) -> Result<Self, Failure> {
        let mut split = Self::default();
        let mut args = args.into_iter();
        let mut only_arguments = false;
        while let Some(arg) = args.next() {
            if arg == "--" && !only_arguments {
                only_arguments = true;
                split.has_command_mark = !split.arguments.is_empty();
                continue;
            }
            let option = arg
                .to_str()
                .filter(|text| !only_arguments && text.len() > 1 && text.starts_with('-'));
            match option {
                Some(option) => split.option(option, &mut args)?,
                None => split.argument(arg, &mut args)?,
            }
        }
        split.check_place()?;
        Ok(split)
    }

    fn option(
        &mut self,
        option: &str,
        args: &mut impl Iterator<Item = OsString>,
    ) -> Result<(), Failure> {
        let Some((spec, name, value)) = find(option, self.command) else {
            return Err(Failure::usage(self.unknown(option, args.next())));
        };
        self.given.push((spec.long, name.to_owned()));
        let value = match (spec.value, value) {
            (None, Some(_)) => return Err(Failure::usage(format!("{name} takes no value"))),
            (None, None) => {
                self.options.push(spec.long.into());
                return Ok(());
            }
            (Some(_), Some(value)) => value.into(),
            (Some(_), None) => {
                let value = args.next();
                value.ok_or_else(|| Failure::usage(format!("{name} needs a value")))?
            }
        };
        if value.is_empty() {
            return Err(Failure::usage(format!("{name} is empty; is the variable set?")));
        }
        self.options.push(joined(spec, &value));
        Ok(())
    }

    fn argument(
        &mut self,
        arg: OsString,
        args: &mut impl Iterator<Item = OsString>,
    ) -> Result<(), Failure> {
        match self.command {
            None if arg == "help" && !self.wants_help => self.wants_help = true,
            None => {
                let name = arg.to_string_lossy();
                let command = Command::named(&name);
                let unknown = || Failure::usage(suggestions::no_command(&name));
                self.command = Some(command.ok_or_else(unknown)?);
            }
            Some(Command::Sub) if self.is_command(&arg) => {
                self.own_command = Some((arg, args.collect()));
            }
            Some(known) if self.arguments.len() < known.spec().max_arguments => {
                self.arguments.push(arg);
            }
            Some(known) if known.spec().runs_a_command => {
                self.own_command = Some((arg, args.collect()));
            }
            Some(known) => return Err(too_many(known, &arg)),
        }
        Ok(())
    }

    /// Whether an argument of `sub` is the command to run: it is behind `--`, or is the second one and a program.
    fn is_command(&self, arg: &OsStr) -> bool {
        match self.arguments.len() {
            0 => false,
            _ if self.has_command_mark => true,
            1 => execute::is_program(arg) || execute::cannot_be_a_topic(arg),
            _ => false,
        }
    }

    /// A note on how the arguments of `sub` were understood, if it may be a mistake.
    pub(crate) fn note(&self) -> Option<String> {
        let is_clear = self.has_command_mark || self.arguments.len() < 2;
        (self.command == Some(Command::Sub) && !is_clear).then(|| {
            let count = self.arguments.len();
            format!("following {count} topics; a command to run goes behind --")
        })
    }

    fn unknown(&self, option: &str, next: Option<OsString>) -> String {
        let (name, value) = match option.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (option, next.and_then(|next| next.into_string().ok())),
        };
        let command = self.command;
        let unknown = suggestions::Unknown {
            name,
            value: value.as_deref(),
            command,
            topic: self.arguments.first().and_then(|topic| topic.to_str()),
        };
        let fits = |spec: &&OptionSpec| command.is_none_or(|command| spec.belongs_to(command));
        unknown.explain(OPTIONS.iter().filter(fits).map(|spec| spec.long))
    }

    /// Rejects options of another command.
    fn check_place(&self) -> Result<(), Failure> {
        let Some(command) = self.command else { return Ok(()) };
        let belongs =
            |long: &str| OPTIONS.iter().any(|spec| spec.long == long && spec.belongs_to(command));
        match self.given.iter().find(|(long, _)| !belongs(long)) {
            Some((_, name)) => Err(Failure::usage(suggestions::misplaced(name, command))),
            None => Ok(()),
        }
    }
}

/// Joins an option and its value, so that a value cannot be mistaken for an option.
fn joined(spec: &OptionSpec, value: &OsStr) -> OsString {
    let mut option = OsString::from(spec.long);
    option.push("=");
    option.push(value);
    option
}

/// Finds the option in an argument: its entry in the table, the name as typed, and a value that is part
/// of the argument, after an equals sign or directly after a short name.
fn find(
    option: &str,
    command: Option<Command>,
) -> Option<(&'static OptionSpec, &str, Option<&str>)> {
    let (name, value) = match option.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (option, None),
    };
    let fits = |spec: &&OptionSpec| command.is_none_or(|command| spec.belongs_to(command));
    let named = || OPTIONS.iter().filter(|spec| spec.names().any(|known| known == name));
    if let Some(spec) = named().find(fits).or_else(|| named().next()) {
        return Some((spec, name, value));
    }
    OPTIONS.iter().filter(|spec| spec.value.is_some()).find_map(|spec| {
        let short = spec.short?;
        Some((spec, short, Some(option.strip_prefix(short)?)))
    })
}

fn too_many(command: Command, arg: &OsStr) -> Failure {
    let spec = command.spec();
    let hint = match command {
        Command::Pub => "put a message with spaces in quotes".to_owned(),
        _ => format!("{} takes {}", spec.name, spec.takes),
    };
    Failure::usage(format!("unexpected argument \"{}\"; {hint}", arg.to_string_lossy()))
}
