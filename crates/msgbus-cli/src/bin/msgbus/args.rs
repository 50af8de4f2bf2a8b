//! From the command line to a request: raw arguments are split by the table of options, then read
//! into [`Invocation`], whose values are all valid.

use std::{
    ffi::{OsStr, OsString},
    future::pending,
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use msgbus_client::{Client, Position, TopicName};
use pico_args::Arguments;
use tokio::time::{Instant, sleep_until};

use crate::{
    bench::Bench,
    failure::Failure,
    options::{COMMANDS, Command, OPTIONS, OptionSpec, nearest},
    output::Style,
    reader::{Options, coding, count, duration, media_type},
};

/// What the command line asks for.
#[derive(Debug)]
pub(crate) enum Invocation {
    Pub(Pub),
    Sub(Sub),
    Pull(Pull),
    Topics(Topics),
    Info(Info),
    Rm(Rm),
    Bench(Bench),
    Completion(Shell),
    Man,
    /// Of one command, or of all.
    Help(Option<Command>),
    Version,
}

#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "they are switches of the command line")]
pub(crate) struct Pub {
    pub(crate) client: Client,
    pub(crate) topic: TopicName,
    /// `None` for what comes on standard input.
    pub(crate) message: Option<OsString>,
    pub(crate) lines: bool,
    pub(crate) split: bool,
    pub(crate) ttl: Option<Duration>,
    pub(crate) content_type: Option<String>,
    pub(crate) content_encoding: Option<String>,
    pub(crate) timeout: Duration,
    pub(crate) quiet: bool,
    pub(crate) debug: bool,
}

#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "they are switches of the command line")]
pub(crate) struct Sub {
    pub(crate) client: Client,
    pub(crate) topic: TopicName,
    /// A program and its arguments, to be run for each message.
    pub(crate) command: Option<(OsString, Vec<OsString>)>,
    pub(crate) since: Position,
    /// Whether that is so whatever the cursor says.
    pub(crate) ignore_cursor: bool,
    /// Begin so many messages back, instead of at `since`.
    pub(crate) back: Option<u64>,
    /// End when everything that is there has been shown.
    pub(crate) poll: bool,
    pub(crate) strict: bool,
    pub(crate) cursor: Option<PathBuf>,
    pub(crate) count: Option<u64>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) style: Style,
    pub(crate) quiet: bool,
    pub(crate) debug: bool,
}

#[derive(Debug)]
pub(crate) struct Pull {
    pub(crate) client: Client,
    pub(crate) topic: TopicName,
    pub(crate) count: Option<u64>,
    /// The most in one answer.
    pub(crate) max: Option<u64>,
    pub(crate) wait: Option<Duration>,
    pub(crate) peek: bool,
    pub(crate) deadline: Option<Instant>,
    pub(crate) style: Style,
    pub(crate) fail_empty: bool,
}

impl Pull {
    pub(crate) async fn out_of_time(&self) {
        match self.deadline {
            Some(deadline) => sleep_until(deadline).await,
            None => pending().await,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Topics {
    pub(crate) client: Client,
    pub(crate) prefix: String,
    pub(crate) json: bool,
}

#[derive(Debug)]
pub(crate) struct Info {
    pub(crate) client: Client,
    pub(crate) topic: TopicName,
    pub(crate) json: bool,
}

#[derive(Debug)]
pub(crate) struct Rm {
    pub(crate) client: Client,
    pub(crate) topic: TopicName,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shell {
    Bash,
    Zsh,
    Fish,
}

impl FromStr for Shell {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "bash" => Ok(Self::Bash),
            "zsh" => Ok(Self::Zsh),
            "fish" => Ok(Self::Fish),
            _ => Err("the shells are bash, zsh and fish"),
        }
    }
}

const PUBLISH_TIMEOUT: Duration = Duration::from_secs(30);

pub(crate) fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Invocation, Failure> {
    let split = Split::new(args)?;
    let mut options = Options::new(Arguments::from_vec(split.options));
    let help = options.switch("--help") || split.wants_help;
    if options.switch("--version") {
        return Ok(Invocation::Version);
    }
    let Some(command) = split.command else {
        return if help {
            Ok(Invocation::Help(None))
        } else {
            Err(Failure::usage("no command given; see msgbus --help"))
        };
    };
    if help {
        return Ok(Invocation::Help(Some(command)));
    }
    let mut arguments = split.arguments.into_iter();
    let invocation = match command {
        Command::Pub => Invocation::Pub(options.publish(&mut arguments)?),
        Command::Sub => Invocation::Sub(options.subscribe(&mut arguments, split.own_command)?),
        Command::Pull => Invocation::Pull(options.pull(&mut arguments)?),
        Command::Tail => Invocation::Sub(options.tail(&mut arguments)?),
        Command::Topics => Invocation::Topics(Topics {
            prefix: arguments.next().map_or(Ok(String::new()), |prefix| text(Some(prefix), ""))?,
            json: options.switch("--json"),
            client: options.client()?.0,
        }),
        Command::Info => Invocation::Info(Info {
            topic: topic(&mut arguments)?,
            json: options.switch("--json"),
            client: options.client()?.0,
        }),
        Command::Rm => {
            Invocation::Rm(Rm { topic: topic(&mut arguments)?, client: options.client()?.0 })
        }
        Command::Bench => Invocation::Bench(Bench::parse(&mut options, arguments.next())?),
        Command::Completion => {
            let shell = text(arguments.next(), "which shell: bash, zsh or fish?")?;
            Invocation::Completion(shell.parse().map_err(Failure::usage)?)
        }
        Command::Man => Invocation::Man,
    };
    options.end()?;
    Ok(invocation)
}

/// The command line in its parts, each option known to the table.
#[derive(Default)]
struct Split {
    command: Option<Command>,
    /// `msgbus help pub` is `msgbus pub --help`.
    wants_help: bool,
    options: Vec<OsString>,
    arguments: Vec<OsString>,
    /// What `sub` is to run, with everything that follows it.
    own_command: Option<(OsString, Vec<OsString>)>,
}

impl Split {
    fn new(args: impl IntoIterator<Item = OsString>) -> Result<Self, Failure> {
        let mut split = Self::default();
        let mut args = args.into_iter();
        let mut only_arguments = false;
        while let Some(arg) = args.next() {
            if arg == "--" && !only_arguments {
                only_arguments = true;
                continue;
            }
            let option = arg
                .to_str()
                .filter(|text| !only_arguments && text.len() > 1 && text.starts_with('-'));
            if let Some(option) = option {
                let (spec, name, value) = find(option, split.command)?;
                match (spec.value, value) {
                    (None, Some(_)) => {
                        return Err(Failure::usage(format!("{name} takes no value")));
                    }
                    (Some(_), None) => {
                        let value = args.next();
                        let value =
                            value.ok_or_else(|| Failure::usage(format!("{name} needs a value")))?;
                        split.options.push(joined(spec, &value));
                    }
                    (Some(_), Some(value)) => split.options.push(joined(spec, value.as_ref())),
                    (None, None) => split.options.push(spec.long.into()),
                }
                continue;
            }
            match split.command {
                None if arg == "help" && !split.wants_help => split.wants_help = true,
                None => split.command = Some(command(&arg.to_string_lossy())?),
                Some(known) if split.arguments.len() < known.spec().most_arguments => {
                    split.arguments.push(arg);
                }
                Some(known) if known.spec().runs_a_command => {
                    split.own_command = Some((arg, args.by_ref().collect()));
                }
                Some(known) => return Err(too_many(known, &arg)),
            }
        }
        split.check_place()?;
        Ok(split)
    }

    /// Refuses options of another command.
    fn check_place(&self) -> Result<(), Failure> {
        let Some(command) = self.command else { return Ok(()) };
        let is_given = |spec: &OptionSpec| {
            self.options.iter().any(|option| {
                let option = option.to_string_lossy();
                option.split_once('=').map_or(&*option, |(name, _)| name) == spec.long
            })
        };
        // Two commands may have options of one name.
        let belongs = |spec: &OptionSpec| {
            OPTIONS.iter().any(|other| other.long == spec.long && other.belongs_to(command))
        };
        match OPTIONS.iter().find(|spec| !belongs(spec) && is_given(spec)) {
            Some(spec) => Err(Failure::usage(format!(
                "{} does not belong to msgbus {}; see msgbus {1} --help",
                spec.long,
                command.spec().name
            ))),
            None => Ok(()),
        }
    }
}

/// An option and its value in one, so that no value can be taken for an option.
fn joined(spec: &OptionSpec, value: &OsStr) -> OsString {
    let mut option = OsString::from(spec.long);
    option.push("=");
    option.push(value);
    option
}

fn command(name: &str) -> Result<Command, Failure> {
    let known = COMMANDS.iter().find(|spec| spec.name == name || spec.alias == Some(name));
    known.map(|spec| spec.command).ok_or_else(|| {
        let names = COMMANDS.iter().flat_map(|spec| [Some(spec.name), spec.alias]).flatten();
        Failure::usage(match nearest(name, names) {
            Some(near) => format!("no such command: {name:?}; did you mean {near}?"),
            None => format!("no such command: {name:?}; see msgbus --help"),
        })
    })
}

/// The option that an argument is, the name it has there, and the value that is part of it: after
/// an equals sign, or right behind a short name.
fn find(
    option: &str,
    command: Option<Command>,
) -> Result<(&'static OptionSpec, &str, Option<&str>), Failure> {
    let (name, value) = match option.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (option, None),
    };
    let fits = |spec: &&OptionSpec| command.is_none_or(|command| spec.belongs_to(command));
    let named = || OPTIONS.iter().filter(|o| o.long == name || o.short == Some(name));
    if let Some(spec) = named().find(fits).or_else(|| named().next()) {
        return Ok((spec, name, value));
    }
    let attached = OPTIONS.iter().filter(|spec| spec.value.is_some()).find_map(|spec| {
        let short = spec.short?;
        Some((spec, short, Some(option.strip_prefix(short)?)))
    });
    if let Some(found) = attached {
        return Ok(found);
    }
    let names = OPTIONS.iter().filter(fits).map(|spec| spec.long);
    Err(Failure::usage(match nearest(name, names).filter(|_| name.starts_with("--")) {
        Some(near) => format!("no such option: {name}; did you mean {near}?"),
        None if command == Some(Command::Pub) => {
            format!("no such option: {name}; a message that begins with a dash goes behind --")
        }
        None => format!("no such option: {name}; see --help"),
    }))
}

fn too_many(command: Command, arg: &OsString) -> Failure {
    let hint = match command {
        Command::Pub => "; put a message with spaces in quotes",
        _ => "",
    };
    Failure::usage(format!("one argument too many: {}{hint}", arg.to_string_lossy()))
}

fn text(arg: Option<OsString>, missing: &str) -> Result<String, Failure> {
    let arg = arg.ok_or_else(|| Failure::usage(missing))?;
    arg.into_string().map_err(|arg| Failure::usage(format!("not UTF-8: {}", arg.to_string_lossy())))
}

fn topic(arguments: &mut impl Iterator<Item = OsString>) -> Result<TopicName, Failure> {
    let name = text(arguments.next(), "no topic given")?;
    // As in a URL, the slashes around a name mean nothing.
    TopicName::new(name.trim_matches('/'))
        .map_err(|error| Failure::usage(format!("bad topic {name:?}: {error}")))
}

impl Options {
    fn publish(&mut self, arguments: &mut impl Iterator<Item = OsString>) -> Result<Pub, Failure> {
        let topic = topic(arguments)?;
        let message = arguments.next();
        let split = self.switch("--split");
        let lines = self.switch("--lines") || split;
        let from_input = message.as_ref().is_none_or(|message| message == "-");
        if lines && !from_input {
            return Err(Failure::usage(
                "--lines and --split read standard input; leave the message out",
            ));
        }
        // As the ancestor: it says nothing.
        self.switch("--wait");
        let (client, debug) = self.client()?;
        Ok(Pub {
            debug,
            topic,
            message: message.filter(|_| !from_input),
            lines,
            split,
            ttl: self.value("--ttl", duration)?,
            content_type: self.value("--content-type", media_type)?,
            content_encoding: self.value("--content-encoding", coding)?,
            quiet: self.quiet,
            timeout: self.value("--timeout", duration)?.unwrap_or(PUBLISH_TIMEOUT),
            client,
        })
    }

    fn subscribe(
        &mut self,
        arguments: &mut impl Iterator<Item = OsString>,
        command: Option<(OsString, Vec<OsString>)>,
    ) -> Result<Sub, Failure> {
        let topic = topic(arguments)?;
        let (client, debug) = self.client()?;
        let (since, ignore_cursor) = self.since()?;
        let cursor = self.value("--cursor", |path| Ok(PathBuf::from(path)))?;
        let poll = self.switch("--poll");
        if poll && command.is_some() {
            return Err(Failure::usage("--poll shows messages; it runs no command"));
        }
        Ok(Sub {
            topic,
            command,
            // Polling for what is new would never show anything.
            since: if poll && since == Position::New { Position::All } else { since },
            ignore_cursor,
            back: None,
            poll,
            strict: self.switch("--strict"),
            cursor,
            count: self.value("--count", count)?,
            timeout: self.value("--timeout", duration)?,
            style: self.style()?,
            quiet: self.quiet,
            debug,
            client,
        })
    }

    /// Where to begin, of three ways to say it; and whether that is so whatever the cursor says.
    fn since(&mut self) -> Result<(Position, bool), Failure> {
        let position = |text: &str| text.parse::<Position>().map_err(|error| error.to_string());
        let since = self.value("--since", position)?;
        match (since, self.switch("--all"), self.switch("--new")) {
            (since, false, false) => Ok((since.unwrap_or_default(), false)),
            (None, true, false) => Ok((Position::All, false)),
            (None, false, true) => Ok((Position::New, true)),
            _ => Err(Failure::usage("give one of --since, --all and --new")),
        }
    }

    fn tail(&mut self, arguments: &mut impl Iterator<Item = OsString>) -> Result<Sub, Failure> {
        const BACK: u64 = 10;
        let topic = topic(arguments)?;
        let (client, debug) = self.client()?;
        Ok(Sub {
            topic,
            command: None,
            since: Position::New,
            ignore_cursor: false,
            back: Some(self.value("--count", count)?.unwrap_or(BACK)),
            poll: false,
            strict: self.switch("--strict"),
            cursor: None,
            count: None,
            timeout: self.value("--timeout", duration)?,
            style: self.style()?,
            quiet: self.quiet,
            debug,
            client,
        })
    }

    fn pull(&mut self, arguments: &mut impl Iterator<Item = OsString>) -> Result<Pull, Failure> {
        let topic = topic(arguments)?;
        let (client, _) = self.client()?;
        Ok(Pull {
            topic,
            count: self.value("--count", count)?,
            max: self.value("--max", count)?,
            wait: self.value("--wait", duration)?,
            peek: self.switch("--peek"),
            deadline: self.value("--timeout", duration)?.map(|timeout| Instant::now() + timeout),
            style: self.style()?,
            fail_empty: self.switch("--fail-empty"),
            client,
        })
    }
}
