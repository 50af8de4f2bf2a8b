//! Parses the command line into an [`Invocation`] with validated values.

use std::{ffi::OsString, str::FromStr, time::Duration};

use msgbus_client::{Client, Headers, PatternError, TopicName, TopicPattern};
use pico_args::Arguments;
use tokio::time::Instant;

use crate::{
    bench::Bench,
    commands::Command,
    dead_letters::{Dead, Redrive},
    failure::Failure,
    groups::GroupArgs,
    output::note,
    publish::Publisher,
    pull::Pull,
    reader::{Options, duration, group_name, text},
    request::Request,
    serve::Serve,
    services::Services,
    settle::Settle,
    split::Split,
    subscribe::Sub,
    suggestions,
    work::Work,
};

/// A parsed command line.
#[derive(Debug)]
pub(crate) enum Invocation {
    Pub(Pub),
    FromDump(Publisher),
    /// Follows one topic.
    Sub(TopicName, Sub),
    /// Follows several topics, or patterns.
    SubMany(Vec<TopicPattern>, Sub),
    Pull(Pull),
    Settle(Settle),
    Work(Box<Work>),
    Request(Box<Request>),
    Serve(Box<Serve>),
    Services(Services),
    Dead(Dead),
    Redrive(Redrive),
    Group(Box<GroupArgs>),
    Topics(Topics),
    Info(Info),
    Purge(Purge),
    Rm(Rm),
    Ping(Ping),
    Bench(Bench),
    Completion(Shell),
    Man,
    TopicNames(Topics),
    /// Help for one command, or the overview.
    Help(Option<Command>),
    Version,
}

#[derive(Debug)]
pub(crate) struct Pub {
    pub(crate) publisher: Publisher,
    pub(crate) topic: TopicName,
    /// `None` reads standard input.
    pub(crate) message: Option<OsString>,
    pub(crate) lines: bool,
    pub(crate) split: bool,
    pub(crate) ttl: Option<Duration>,
    pub(crate) headers: Headers,
}

#[derive(Debug)]
pub(crate) struct Topics {
    pub(crate) client: Client,
    pub(crate) prefix: String,
    /// Lists these instead of those with the prefix.
    pub(crate) pattern: Option<TopicPattern>,
    pub(crate) groups: bool,
    pub(crate) json: bool,
    pub(crate) quiet: bool,
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

#[derive(Debug)]
pub(crate) struct Purge {
    pub(crate) client: Client,
    pub(crate) topic: TopicName,
    pub(crate) quiet: bool,
}

#[derive(Debug)]
pub(crate) struct Ping {
    pub(crate) client: Client,
    pub(crate) deadline: Option<Instant>,
    pub(crate) quiet: bool,
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
    let understood = split.note();
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
    let invocation = options.invocation(command, split.arguments, split.own_command)?;
    let quiet = options.quiet;
    options.end()?;
    understood.filter(|_| !quiet).iter().for_each(|text| note(text));
    Ok(invocation)
}

impl Options {
    fn invocation(
        &mut self,
        command: Command,
        arguments: Vec<OsString>,
        own_command: Option<(OsString, Vec<OsString>)>,
    ) -> Result<Invocation, Failure> {
        let mut arguments = arguments.into_iter();
        let quiet = self.quiet;
        Ok(match command {
            Command::Pub if self.switch("--from-dump") => {
                Invocation::FromDump(self.dump_publisher(&mut arguments)?)
            }
            Command::Pub => Invocation::Pub(self.publish(&mut arguments)?),
            Command::Sub => self.subscribe(&mut arguments, own_command)?,
            Command::Ack | Command::Nack | Command::Extend => {
                Invocation::Settle(Settle::parse(self, command, arguments)?)
            }
            Command::Tail => self.tail(&mut arguments)?,
            Command::Request | Command::Serve => {
                self.about_service(command, arguments, own_command)?
            }
            Command::Services => Invocation::Services(self.services(&mut arguments)?),
            Command::Topics => Invocation::Topics(self.topics(&mut arguments)?),
            Command::TopicNames => Invocation::TopicNames(self.topics(&mut arguments)?),
            Command::Ping => {
                let deadline = self.value("--timeout", duration)?.map(|time| Instant::now() + time);
                Invocation::Ping(Ping { client: self.client()?.0, deadline, quiet })
            }
            Command::Bench => Invocation::Bench(Bench::parse(self, arguments.next())?),
            Command::Completion => {
                let shell = text(arguments.next(), "which shell: bash, zsh or fish?")?;
                Invocation::Completion(shell.parse().map_err(Failure::usage)?)
            }
            Command::Man => Invocation::Man,
            Command::Version => Invocation::Version,
            _ => self.about_topic(command, arguments, own_command)?,
        })
    }

    /// The commands whose first argument is a topic, and whose options are read elsewhere or are few.
    fn about_topic(
        &mut self,
        command: Command,
        mut arguments: impl Iterator<Item = OsString>,
        own_command: Option<(OsString, Vec<OsString>)>,
    ) -> Result<Invocation, Failure> {
        let topic = self.topic(command, &mut arguments)?;
        let quiet = self.quiet;
        Ok(match command {
            Command::Pull => Invocation::Pull(Pull::parse(self, topic)?),
            Command::Work => Invocation::Work(Box::new(Work::parse(self, topic, own_command)?)),
            Command::Dead => Invocation::Dead(Dead::parse(self, topic)?),
            Command::Redrive => Invocation::Redrive(Redrive::parse(self, topic)?),
            Command::Group => {
                let usage = command.spec().usage();
                let group = text(arguments.next(), &format!("no group given; usage: {usage}"))?;
                let group = group_name(&group).map_err(Failure::usage)?;
                Invocation::Group(Box::new(GroupArgs::parse(self, topic, group)?))
            }
            Command::Purge => Invocation::Purge(Purge { client: self.client()?.0, topic, quiet }),
            Command::Rm => Invocation::Rm(Rm { client: self.client()?.0, topic }),
            _ => {
                let json = self.switch("--json");
                Invocation::Info(Info { client: self.client()?.0, topic, json })
            }
        })
    }

    fn about_service(
        &mut self,
        command: Command,
        mut arguments: impl Iterator<Item = OsString>,
        own_command: Option<(OsString, Vec<OsString>)>,
    ) -> Result<Invocation, Failure> {
        let service = self.name("service", command, &mut arguments)?;
        Ok(if command == Command::Request {
            Invocation::Request(Box::new(Request::parse(self, service, arguments.next())?))
        } else {
            Invocation::Serve(Box::new(Serve::parse(self, service, own_command)?))
        })
    }

    /// Parses the topic, which is the first argument.
    fn topic(
        &self,
        command: Command,
        arguments: &mut impl Iterator<Item = OsString>,
    ) -> Result<TopicName, Failure> {
        self.name("topic", command, arguments)
    }

    /// Parses the topic or service, which is the first argument. Prints a note if it looks like a mistake.
    fn name(
        &self,
        kind: &str,
        command: Command,
        arguments: &mut impl Iterator<Item = OsString>,
    ) -> Result<TopicName, Failure> {
        let usage = || format!("no {kind} given; usage: {}", command.spec().usage());
        let given = text(arguments.next(), &usage())?;
        // Leading and trailing slashes have no meaning, as in a URL of the server.
        let name = given.trim_matches('/');
        if name.is_empty() {
            return Err(Failure::usage(format!(
                "bad {kind} {given:?}: it is empty; is the variable set?"
            )));
        }
        let topic = TopicName::new(name)
            .map_err(|error| Failure::usage(format!("bad {kind} {given:?}: {error}")))?;
        if !self.quiet {
            if given.ends_with('/') {
                note(&format!("using {topic}; a trailing slash means nothing"));
            }
            if let Some(odd) = suggestions::about_name(kind, name) {
                note(&odd);
            }
        }
        Ok(topic)
    }

    pub(crate) fn pattern(&self, given: &str) -> Result<TopicPattern, Failure> {
        let bad = |problem: &str| Failure::usage(format!("bad topic {given:?}: {problem}"));
        // A leading slash has no meaning, as in a URL of the server.
        let name = given.trim_start_matches('/');
        if let Some(problem) = suggestions::about_pattern(name) {
            return Err(bad(&problem));
        }
        if !self.quiet && name.contains(',') {
            note(&format!("no lists here: this is a topic named {name:?}; give several arguments"));
        }
        name.parse().map_err(|error: PatternError| bad(&error.to_string()))
    }

    fn topics(
        &mut self,
        arguments: &mut impl Iterator<Item = OsString>,
    ) -> Result<Topics, Failure> {
        let (prefix, pattern) = self.listed(arguments)?;
        let (groups, json) = (self.switch("--groups"), self.switch("--json"));
        let (client, quiet) = (self.client()?.0, self.quiet);
        Ok(Topics { client, prefix, pattern, groups, json, quiet })
    }

    fn services(
        &mut self,
        arguments: &mut impl Iterator<Item = OsString>,
    ) -> Result<Services, Failure> {
        let (prefix, pattern) = self.listed(arguments)?;
        Ok(Services { prefix, pattern, json: self.switch("--json"), client: self.client()?.0 })
    }

    /// Parses the prefix of the names to list, or the pattern that they match.
    fn listed(
        &self,
        arguments: &mut impl Iterator<Item = OsString>,
    ) -> Result<(String, Option<TopicPattern>), Failure> {
        let prefix = arguments.next().map_or(Ok(String::new()), |prefix| text(Some(prefix), ""))?;
        let pattern = if prefix.contains('*') { Some(self.pattern(&prefix)?) } else { None };
        Ok((prefix, pattern))
    }

    fn publish(&mut self, arguments: &mut impl Iterator<Item = OsString>) -> Result<Pub, Failure> {
        let topic = self.topic(Command::Pub, arguments)?;
        let message = arguments.next();
        let split = self.switch("--split");
        let lines = self.switch("--lines") || split;
        let from_input = message.as_ref().is_none_or(|message| message == "-");
        if lines && !from_input {
            return Err(Failure::usage(
                "--lines and --split read standard input; omit the message",
            ));
        }
        Ok(Pub {
            topic,
            message: message.filter(|_| !from_input),
            lines,
            split,
            ttl: self.value("--ttl", duration)?,
            headers: self.message_headers()?,
            publisher: self.publisher()?,
        })
    }

    fn dump_publisher(
        &mut self,
        arguments: &mut impl Iterator<Item = OsString>,
    ) -> Result<Publisher, Failure> {
        const OTHERS: [&str; 6] =
            ["--lines", "--split", "--ttl", "--header", "--content-type", "--content-encoding"];
        if let Some(argument) = arguments.next() {
            let argument = argument.to_string_lossy();
            return Err(Failure::usage(format!(
                "unexpected argument {argument:?}; --from-dump reads topics and messages from \
                 standard input"
            )));
        }
        if let Some(other) = OTHERS.into_iter().find(|other| self.is_given(other)) {
            return Err(Failure::usage(format!(
                "--from-dump does not go with {other}: each line is a message with its own ttl and \
                 headers; omit {other}"
            )));
        }
        self.publisher()
    }

    pub(crate) fn publisher(&mut self) -> Result<Publisher, Failure> {
        // Accepted for compatibility with prologic/msgbus.
        self.switch("--wait");
        let timeout = self.value("--timeout", duration)?.unwrap_or(PUBLISH_TIMEOUT);
        let (client, debug) = self.client()?;
        Ok(Publisher { client, timeout, quiet: self.quiet, debug })
    }
}
