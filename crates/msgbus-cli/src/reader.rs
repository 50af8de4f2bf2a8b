//! Reads the options of a command line, one by one.

use std::{ffi::OsString, fs, ops::RangeInclusive, path::PathBuf, time::Duration};

use msgbus_client::{
    Client, GroupName, Headers, Key, LeaseOptions, NewRequest, Position, Roots, TopicName,
};
use msgbus_core::{format_duration, parse_duration};
use pico_args::Arguments;

use crate::{
    config::{self, Given},
    failure::Failure,
    output::{Style, note},
};

const DEFAULT_URI: &str = "http://localhost:8000";

/// The options that have not been read yet.
pub(crate) struct Options {
    arguments: Arguments,
    /// Whether to suppress warnings and notices.
    pub(crate) quiet: bool,
}

impl Options {
    pub(crate) fn new(arguments: Arguments) -> Self {
        let mut options = Self { arguments, quiet: false };
        options.quiet = options.switch("--quiet");
        options
    }

    pub(crate) fn style(&mut self) -> Result<Style, Failure> {
        Ok(Style {
            format: self.value("--output", str::parse)?,
            newline: !self.switch("--no-newline"),
            color: self.value("--color", str::parse)?.unwrap_or_default(),
        })
    }

    /// The group of --group.
    pub(crate) fn group(&mut self) -> Result<Option<GroupName>, Failure> {
        self.value("--group", group_name)
    }

    /// The client of the server that the option, the environment, the file or the default names, in this
    /// order; and whether to debug.
    pub(crate) fn client(&mut self) -> Result<(Client, bool), Failure> {
        let path = self.value("--config", |path| Ok(PathBuf::from(path)))?;
        let file = config::read(path, self.quiet)?;
        if !self.quiet {
            config::warn_of_other_variables();
        }
        let variable = config::variable("MSGBUS_DEBUG")?;
        let by_variable = variable.map(|given| matches!(&given.value[..], "1" | "true"));
        let debug = self.switch("--debug") || by_variable.unwrap_or(file.debug);
        let server = self.server(&file)?;
        let uri = server.uri.unwrap_or_else(|| Given::new(DEFAULT_URI, "--uri"));
        let mut client = Client::new(&uri.value)
            .map_err(|error| Failure::usage(format!("{}: {error}", uri.origin)))?;
        let ca_file = self.given("--ca-file", "MSGBUS_CA_FILE")?.or(server.ca_file);
        if let Some(ca_file) = ca_file
            && client.server().is_encrypted()
        {
            client = client.with_roots(roots(&ca_file)?);
        }
        if let Some(key) = self.key(server.key, server.key_file)? {
            let server = client.server();
            if !(self.quiet || server.is_encrypted() || server.is_local()) {
                note(&format!("the key is sent to {server} unencrypted"));
            }
            client = client.with_key(key);
        }
        Ok((client, debug))
    }

    /// The server's URI and its settings in the file. A key in the file is used only with the server
    /// that it is listed with.
    fn server(&mut self, file: &config::File) -> Result<config::Server, Failure> {
        let Some(uri) = self.given("--uri", "MSGBUS_URI")? else { return Ok(file.default.clone()) };
        let Some(name) = uri.value.strip_prefix('@') else {
            let ca_file = file.default.ca_file.clone();
            return Ok(config::Server { uri: Some(uri), ca_file, ..config::Server::default() });
        };
        let server = file.server(name, &uri.origin)?;
        if server.uri.is_none() {
            return Err(Failure::usage(format!("{}: server {name:?} has no uri", uri.origin)));
        }
        let ca_file = server.ca_file.clone().or_else(|| file.default.ca_file.clone());
        Ok(config::Server { ca_file, ..server.clone() })
    }

    /// The value of an option, or else of a variable.
    fn given(&mut self, option: &'static str, variable: &str) -> Result<Option<Given>, Failure> {
        let value = self.value(option, |text| Ok(text.to_owned()))?;
        // An option overrides the variable, which is then not read: it may even be empty.
        value
            .map_or_else(|| config::variable(variable), |value| Ok(Some(Given::new(value, option))))
    }

    /// The key from options, variables or the file, in this order. Errors never contain it.
    fn key(
        &mut self,
        in_file: Option<Given>,
        file_in_file: Option<Given>,
    ) -> Result<Option<Key>, Failure> {
        let mut option = |name| {
            let value = self.value(name, |text| Ok(text.to_owned()))?;
            Ok::<_, Failure>(value.map(|value| Given::new(value, name)))
        };
        let options = (option("--key")?, option("--key-file")?);
        let variables = match &options {
            (None, None) => (config::variable("MSGBUS_KEY")?, config::variable("MSGBUS_KEY_FILE")?),
            _ => (None, None),
        };
        let levels = [options, variables, (in_file, file_in_file)];
        let level = levels.into_iter().find(|level| *level != (None, None));
        match level.unwrap_or_default() {
            (Some(key), Some(file)) => {
                Err(Failure::usage(format!("give one of {} and {}", key.origin, file.origin)))
            }
            (Some(key), None) => read_key(&key.value, &key.origin).map(Some),
            (None, Some(file)) => {
                let text = fs::read_to_string(file.path()).map_err(|error| {
                    let (origin, path) = (&file.origin, &file.value);
                    Failure::usage(format!("{origin}: cannot read {path}: {error}"))
                })?;
                read_key(text.trim(), &file.origin).map(Some)
            }
            (None, None) => Ok(None),
        }
    }

    pub(crate) fn switch(&mut self, name: &'static str) -> bool {
        let mut given = false;
        while self.arguments.contains(name) {
            given = true;
        }
        given
    }

    /// Whether an option is given, with or without a value. Only for an error: it may take what follows.
    pub(crate) fn is_given(&mut self, name: &'static str) -> bool {
        let values = self.arguments.values_from_str::<_, String>(name);
        values.map_or(true, |values| !values.is_empty())
    }

    pub(crate) fn value<T>(
        &mut self,
        name: &'static str,
        read: impl Fn(&str) -> Result<T, String>,
    ) -> Result<Option<T>, Failure> {
        let values: Vec<String> = self
            .arguments
            .values_from_str(name)
            .map_err(|_| Failure::usage(format!("{name} is not UTF-8")))?;
        match &values[..] {
            [] => Ok(None),
            [value] => read(value).map(Some).map_err(|problem| {
                // A problem that starts with "must" reads as one sentence: "--count must be at least 1".
                let colon = if problem.starts_with("must ") { "" } else { ":" };
                Failure::usage(format!("{name}{colon} {problem}"))
            }),
            _ => Err(Failure::usage(format!("{name} is given more than once"))),
        }
    }

    /// The headers of a message: `--content-type`, `--content-encoding` and each `--header`.
    pub(crate) fn message_headers(&mut self) -> Result<Headers, Failure> {
        let media_type = self.value("--content-type", media_type)?;
        let coding = self.value("--content-encoding", coding)?;
        let others = self.headers("--header")?;
        let own = [(Headers::CONTENT_TYPE, media_type), (Headers::CONTENT_ENCODING, coding)];
        let own = own.iter().filter_map(|(name, value)| Some((*name, value.as_deref()?)));
        Headers::new(own.chain(&others)).map_err(|error| Failure::usage(error.to_string()))
    }

    /// The values of a repeatable option, each of the form `name: value`.
    pub(crate) fn headers(&mut self, name: &'static str) -> Result<Headers, Failure> {
        let values: Vec<String> = self
            .arguments
            .values_from_str(name)
            .map_err(|_| Failure::usage(format!("{name} is not UTF-8")))?;
        let headers: Option<Vec<_>> = values.iter().map(|text| text.split_once(':')).collect();
        let headers =
            headers.ok_or_else(|| Failure::usage(format!("{name}: expected 'name: value'")))?;
        let headers = headers.iter().map(|(name, value)| (name.trim(), value.trim()));
        Headers::new(headers).map_err(|error| Failure::usage(format!("{name}: {error}")))
    }

    /// Fails if an option is left. This happens only if the table accepts an option that no code reads.
    pub(crate) fn end(self) -> Result<(), Failure> {
        match self.arguments.finish().first() {
            Some(left) => {
                Err(Failure::usage(format!("{} has no effect here", left.to_string_lossy())))
            }
            None => Ok(()),
        }
    }
}

fn read_key(text: &str, origin: &str) -> Result<Key, Failure> {
    text.parse::<Key>().map_err(|error| Failure::usage(format!("{origin}: {error}")))
}

fn roots(file: &Given) -> Result<Roots, Failure> {
    let (name, origin) = (&file.value, &file.origin);
    let pem = fs::read(file.path())
        .map_err(|error| Failure::usage(format!("{origin}: cannot read {name}: {error}")))?;
    Roots::from_pem(&pem).map_err(|error| Failure::usage(format!("{origin}: {name}: {error}")))
}

pub(crate) fn count(text: &str) -> Result<u64, String> {
    match text.parse() {
        Ok(0) => Err("must be at least 1".to_owned()),
        Ok(count) => Ok(count),
        Err(_) => Err(format!("not a whole number: {text:?}")),
    }
}

pub(crate) fn bounded(text: &str, range: RangeInclusive<u64>) -> Result<u64, String> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse() {
        Ok(number) if range.contains(&number) => Ok(number),
        _ if is_number => Err(format!("must be {} to {}", range.start(), range.end())),
        _ => Err(format!("not a whole number: {text:?}")),
    }
}

/// Parses the length of a lease.
pub(crate) fn lease(text: &str) -> Result<Duration, String> {
    within(text, LeaseOptions::MIN_LEASE..=LeaseOptions::MAX_LEASE)
}

/// Parses how long a requester waits.
pub(crate) fn timeout(text: &str) -> Result<Duration, String> {
    within(text, NewRequest::TIMEOUTS)
}

/// Parses the delay before a message is redelivered. Its maximum is that of a lease.
pub(crate) fn delay(text: &str) -> Result<Duration, String> {
    within(text, Duration::ZERO..=LeaseOptions::MAX_LEASE)
}

fn within(text: &str, range: RangeInclusive<Duration>) -> Result<Duration, String> {
    let duration = parse_duration(text).map_err(|error| error.to_string())?;
    if range.contains(&duration) {
        return Ok(duration);
    }
    Err(format!("must be {} to {}", format_duration(*range.start()), format_duration(*range.end())))
}

pub(crate) fn position(text: &str) -> Result<Position, String> {
    text.parse::<Position>().map_err(|error| error.to_string())
}

pub(crate) fn topic_name(text: &str) -> Result<TopicName, String> {
    TopicName::new(text.trim_matches('/')).map_err(|error| format!("bad topic {text:?}: {error}"))
}

pub(crate) fn group_name(text: &str) -> Result<GroupName, String> {
    text.parse::<GroupName>().map_err(|error| format!("bad group {text:?}: {error}"))
}

/// An argument as text.
pub(crate) fn text(arg: Option<OsString>, missing: &str) -> Result<String, Failure> {
    let arg = arg.ok_or_else(|| Failure::usage(missing))?;
    arg.into_string().map_err(|arg| Failure::usage(format!("not UTF-8: {}", arg.to_string_lossy())))
}

pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    match parse_duration(text) {
        Ok(Duration::ZERO) => Err("must be longer than 0".to_owned()),
        Ok(duration) => Ok(duration),
        Err(error) => Err(error.to_string()),
    }
}

pub(crate) fn media_type(text: &str) -> Result<String, String> {
    let fits = text.contains('/') && text.bytes().all(|b| b.is_ascii_graphic() || b == b' ');
    if fits { Ok(text.to_owned()) } else { Err(format!("not a media type: {text:?}")) }
}

/// Checks the syntax of one or more HTTP content codings; the server decides which it accepts.
pub(crate) fn coding(text: &str) -> Result<String, String> {
    let fits = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~, ".contains(&b));
    if fits { Ok(text.to_owned()) } else { Err(format!("not a content coding: {text:?}")) }
}
