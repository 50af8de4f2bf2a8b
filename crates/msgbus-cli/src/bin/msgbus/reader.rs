//! The options of a command line, read one by one.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use msgbus_client::{Client, Key, Roots};
use msgbus_core::parse_duration;
use pico_args::Arguments;

use crate::{
    config,
    failure::Failure,
    output::{Style, note},
};

const DEFAULT_URI: &str = "http://localhost:8000";

/// The options that are left to be read.
pub(crate) struct Options {
    arguments: Arguments,
    /// Whether nothing is to be said that does not end the command.
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

    /// The client of the server that option, environment, file or default name, in this order; and
    /// whether to debug.
    pub(crate) fn client(&mut self) -> Result<(Client, bool), Failure> {
        let file = self.value("--config", |path| Ok(PathBuf::from(path)))?;
        let defaults = config::read(file)?;
        let debug = self.switch("--debug") || defaults.debug;
        let uri = self.value("--uri", |text| Ok(text.to_owned()))?;
        let (uri, origin) = match (uri, defaults.uri) {
            (Some(uri), _) => (uri, "--uri".to_owned()),
            (None, Some(default)) => default,
            (None, None) => (DEFAULT_URI.to_owned(), "--uri".to_owned()),
        };
        let mut client =
            Client::new(&uri).map_err(|error| Failure::usage(format!("{origin}: {error}")))?;
        let ca_file = self.value("--ca-file", |path| Ok(PathBuf::from(path)))?;
        let ca_file = ca_file.map(|path| (path, "--ca-file".to_owned())).or(defaults.ca_file);
        if let Some((path, origin)) = ca_file
            && client.server().is_encrypted()
        {
            client = client.with_roots(roots(&path, &origin)?);
        }
        if let Some(key) = self.key()? {
            let server = client.server();
            if !(self.quiet || server.is_encrypted() || server.is_local()) {
                note(&format!("the key goes to {server} in the clear, for all on the way to read"));
            }
            client = client.with_key(key);
        }
        Ok((client, debug))
    }

    /// The key that option, file or environment name. No error repeats any of it.
    fn key(&mut self) -> Result<Option<Key>, Failure> {
        let read = |text: &str| text.parse::<Key>().map_err(|error| error.to_string());
        let given = self.value("--key", read)?;
        let from_file = self.value("--key-file", |path| {
            let text = fs::read_to_string(path);
            read(text.map_err(|error| format!("cannot read {path}: {error}"))?.trim())
        })?;
        match (given, from_file) {
            (Some(_), Some(_)) => Err(Failure::usage("give one of --key and --key-file")),
            (None, None) => config::key(),
            (given, from_file) => Ok(given.or(from_file)),
        }
    }

    pub(crate) fn switch(&mut self, name: &'static str) -> bool {
        let mut given = false;
        while self.arguments.contains(name) {
            given = true;
        }
        given
    }

    pub(crate) fn value<T>(
        &mut self,
        name: &'static str,
        read: impl Fn(&str) -> Result<T, String>,
    ) -> Result<Option<T>, Failure> {
        let values: Vec<String> = self
            .arguments
            .values_from_str(name)
            .map_err(|_| Failure::usage(format!("{name}: the value is not UTF-8")))?;
        match &values[..] {
            [] => Ok(None),
            [value] => read(value)
                .map(Some)
                .map_err(|problem| Failure::usage(format!("{name}: {problem}"))),
            _ => Err(Failure::usage(format!("{name} is given more than once"))),
        }
    }

    /// Whatever is left was meant for nothing: the table and the reading above disagree.
    pub(crate) fn end(self) -> Result<(), Failure> {
        match self.arguments.finish().first() {
            Some(left) => {
                Err(Failure::usage(format!("{} is of no use here", left.to_string_lossy())))
            }
            None => Ok(()),
        }
    }
}

fn roots(path: &Path, origin: &str) -> Result<Roots, Failure> {
    let name = path.display();
    let pem = fs::read(path)
        .map_err(|error| Failure::usage(format!("{origin}: cannot read {name}: {error}")))?;
    Roots::from_pem(&pem).map_err(|error| Failure::usage(format!("{origin}: {name}: {error}")))
}

pub(crate) fn count(text: &str) -> Result<u64, String> {
    let wrong = || format!("not a whole number, 1 or more: {text:?}");
    text.parse().ok().filter(|count| *count > 0).ok_or_else(wrong)
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

/// A coding of HTTP, or several: the server decides which it keeps.
pub(crate) fn coding(text: &str) -> Result<String, String> {
    let fits = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~, ".contains(&b));
    if fits { Ok(text.to_owned()) } else { Err(format!("not a content coding: {text:?}")) }
}
