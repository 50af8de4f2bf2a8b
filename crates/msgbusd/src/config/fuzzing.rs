//! The fuzz target for the daemon's configuration.

use std::{
    ffi::OsString,
    net::SocketAddr,
    str::{self, FromStr as _},
};

use super::{
    Config, ConfigError, Invocation,
    file::File,
    layers::{Layer, Raw},
    resolve,
    settings::{Kind, SETTINGS, Setting},
    values,
};
use crate::fuzzing::common::is_a_line;

/// Parses flags, one per line; after an empty line, variables; after another empty line, the file. An error is one line,
/// and a setting has the same effect wherever it is given.
///
/// # Panics
/// When a property does not hold.
pub fn config(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    let (flags, rest) = text.split_once("\n\n").unwrap_or((text, ""));
    let (variables, file) = rest.split_once("\n\n").unwrap_or((rest, ""));
    command_line(flags, variables);
    of_file(file);
    sizes(text);
}

fn command_line(flags: &str, variables: &str) {
    let flags = flags.lines().filter(|line| !asks_the_system(line)).map(OsString::from);
    let variables = variables
        .lines()
        .filter_map(|line| line.split_once('='))
        .filter(|(name, value)| !asks_the_system(&format!("{name}={value}")))
        .map(|(name, value)| (OsString::from(name), OsString::from(value)));
    match super::parse(flags, variables) {
        Ok(Invocation::Serve { config, .. }) => is_a_line(&config.summary(), 300),
        Ok(_) => {}
        Err(error) => is_a_line(&error, max_text(&error)),
    }
}

/// The maximum length of an error. It may quote its subject twice, with escapes.
fn max_text(error: &ConfigError) -> usize {
    300 + 10 * (error.origin.len() + error.problem.len())
}

/// Whether a flag or variable names a file, which would be read, or a host, which would be resolved.
fn asks_the_system(argument: &str) -> bool {
    let (name, value) = argument.split_once('=').unwrap_or((argument, ""));
    let name = name.trim_start_matches('-');
    SETTINGS
        .iter()
        .filter(|setting| setting.name == name || setting.variable() == name)
        .any(|setting| names_something(setting, value))
}

fn names_something(setting: &Setting, value: &str) -> bool {
    let is_host = |text: &str| SocketAddr::from_str(text).is_err() && !text.starts_with(':');
    match setting.name {
        "bind" => value.split(',').map(str::trim).any(is_host),
        _ => setting.placeholder == "FILE",
    }
}

fn of_file(text: &str) {
    let File { mut settings, rules } = match File::parse_text("bus.toml", text) {
        Ok(file) => file,
        Err(error) => {
            assert!(error.to_string().starts_with("bus.toml:"), "it names file and line: {error}");
            return is_a_line(&error, 300 + 10 * text.len());
        }
    };
    for setting in SETTINGS {
        if let Some(values) = settings.get_mut(setting.name) {
            values.retain(|raw| !names_something(setting, &raw.value));
        }
    }
    settings.retain(|_, values| !values.is_empty());
    let config = resolve(&settings, &rules);
    if let Err(error) = &config {
        is_a_line(error, max_text(error));
    }
    if let Some(flags) = as_flags(&settings) {
        is_same(super::parse(flags, []), &config, &rules);
    }
    if let Some(variables) = as_variables(&settings) {
        is_same(super::parse([], variables), &config, &rules);
    }
}

/// The same settings as flags; `None` if a value looks like a flag.
fn as_flags(settings: &Layer) -> Option<Vec<OsString>> {
    let mut flags = Vec::new();
    for setting in SETTINGS {
        for Raw { value, .. } in settings.get(setting.name).into_iter().flatten() {
            if setting.kind == Kind::Switch {
                flags.push(format!("{}={value}", setting.flag()));
            } else if value.is_empty() || value.starts_with('-') {
                return None;
            } else {
                flags.extend([setting.flag().to_owned(), value.clone()]);
            }
        }
    }
    Some(flags.into_iter().map(OsString::from).collect())
}

/// The same settings as variables; `None` if a value cannot be written as one.
fn as_variables(settings: &Layer) -> Option<Vec<(OsString, OsString)>> {
    let mut variables = Vec::new();
    for setting in SETTINGS {
        let values = settings.get(setting.name).map_or(&[][..], Vec::as_slice);
        let can_be_written = |raw: &Raw| {
            !raw.value.is_empty() && !raw.value.contains(',') && raw.value.trim() == raw.value
        };
        if !values.iter().all(can_be_written) {
            return None;
        }
        let values: Vec<_> = values.iter().map(|raw| &*raw.value).collect();
        if !values.is_empty() {
            variables.push((setting.variable().into(), values.join(",").into()));
        }
    }
    Some(variables)
}

fn is_same(
    given: Result<Invocation, ConfigError>,
    config: &Result<Config, ConfigError>,
    rules: &super::file::Rules,
) {
    match (given, config) {
        (Ok(Invocation::Serve { config: mut given, .. }), Ok(config)) => {
            given.bus.rules.clone_from(&rules.topics);
            given.keep_headers.rules.clone_from(&rules.keep_headers);
            assert_eq!(*given, *config);
        }
        (Err(given), Err(error)) => assert_eq!(given.problem, error.problem),
        (given, config) => panic!("{given:?}, but in the file {config:?}"),
    }
}

fn sizes(text: &str) {
    if let Ok(size) = values::size(text) {
        assert_eq!(values::size(&values::format_size(size)), Ok(size), "{size}");
    }
    if let Ok(origin) = values::origin(text) {
        assert_eq!(values::origin(&origin).as_ref(), Ok(&origin));
        is_a_line(&origin, text.len());
    }
}
