//! Values as they were written, from each layer: flags, the environment, the file.

use std::{borrow::Cow, collections::HashMap, ffi::OsString, fmt};

use pico_args::Arguments;

use super::{
    ConfigError,
    credentials::is_credential,
    settings::{self, Kind, SETTINGS, Setting, VARIABLE_PREFIX},
    values,
};

/// A value as it was written, and its origin.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Raw {
    pub(super) value: String,
    pub(super) origin: String,
}

impl fmt::Debug for Raw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The value may be a URL with a password.
        f.debug_struct("Raw").field("origin", &self.origin).finish_non_exhaustive()
    }
}

/// The values of the settings in one layer.
pub(super) type Layer = HashMap<&'static str, Vec<Raw>>;

/// Variables by their names.
pub(super) type Environment = HashMap<OsString, OsString>;

/// Adds the values of a lower layer for settings that are not set yet.
pub(super) fn put_below(above: &mut Layer, below: Layer) {
    for (name, values) in below {
        above.entry(name).or_insert(values);
    }
}

/// The origin of a setting, for errors.
pub(super) fn origin<'a>(layer: &'a Layer, name: &str, flag: &'a str) -> &'a str {
    layer.get(name).and_then(|values| values.first()).map_or(flag, |raw| &raw.origin)
}

/// Converts flags in the notation of prologic/msgbus to the standard one.
pub(super) fn standard_form(
    args: impl Iterator<Item = OsString>,
) -> Result<Vec<OsString>, ConfigError> {
    args.map(with_two_dashes).filter_map(plain_switch).collect()
}

/// The flags of prologic/msgbus have one dash, also the long ones.
fn with_two_dashes(arg: OsString) -> OsString {
    let long = arg.to_str().and_then(|text| text.strip_prefix('-')).filter(|rest| {
        let name = rest.split('=').next().unwrap_or(rest);
        matches!(name, "help" | "version") || SETTINGS.iter().any(|setting| setting.name == name)
    });
    match long {
        Some(rest) => format!("--{rest}").into(),
        None => arg,
    }
}

/// Go's flags allow `-d=true` and `-d=false` for switches.
fn plain_switch(arg: OsString) -> Option<Result<OsString, ConfigError>> {
    let split = arg.to_str().and_then(|text| text.split_once('='));
    let Some((name, value)) = split else { return Some(Ok(arg)) };
    let is_switch = |setting: &&Setting| {
        setting.kind == Kind::Switch && (setting.flag() == name || setting.short == Some(name))
    };
    let Some(setting) = SETTINGS.iter().find(is_switch) else { return Some(Ok(arg)) };
    match values::switch(value) {
        Ok(true) => Some(Ok(setting.flag().into())),
        Ok(false) => None,
        Err(problem) => Some(Err(ConfigError::new(setting.flag(), problem))),
    }
}

/// Takes all flags from a command line.
pub(super) fn flags(args: &mut Arguments) -> Result<Layer, ConfigError> {
    let mut layer = Layer::new();
    for setting in SETTINGS {
        let flag = setting.flag();
        let values = match setting.kind {
            Kind::Switch => {
                // A repeated switch has no further effect.
                let mut given = Vec::new();
                while args.contains(flag) || setting.short.is_some_and(|s| args.contains(s)) {
                    given = vec!["true".to_owned()];
                }
                given
            }
            Kind::Value | Kind::List => args
                .values_from_str::<_, String>(flag)
                .map_err(|error| ConfigError::new(flag, describe(&error)))?,
        };
        if values.len() > 1 && setting.kind != Kind::List {
            return Err(ConfigError::new(flag, "given more than once"));
        }
        if !values.is_empty() {
            let raw = |value| Raw { value, origin: flag.to_owned() };
            layer.insert(setting.name, values.into_iter().map(raw).collect());
        }
    }
    Ok(layer)
}

pub(super) fn describe(error: &pico_args::Error) -> String {
    match error {
        pico_args::Error::OptionWithoutAValue(_) => "needs a value".to_owned(),
        pico_args::Error::NonUtf8Argument => "the value is not UTF-8".to_owned(),
        other => other.to_string(),
    }
}

/// An error for the first argument that is not part of a flag.
pub(super) fn unknown_flag(left: &[OsString]) -> Option<ConfigError> {
    let arg = without_password(left.first()?.to_string_lossy());
    if !arg.starts_with('-') {
        return Some(ConfigError::new(arg, "msgbusd takes flags only, see --help"));
    }
    let (name, value) = arg.split_once('=').unwrap_or((&arg, ""));
    let next = left.get(1).map(|next| next.to_string_lossy()).filter(|next| !next.starts_with('-'));
    let value = if value.is_empty() { next.as_deref().unwrap_or("") } else { value };
    let name = name.trim_start_matches('-');
    let hint = elsewhere(name, value).unwrap_or_else(|| match settings::nearest(name) {
        Some(near) => format!("no such flag; did you mean --{near}?"),
        None => "no such flag, see --help".to_owned(),
    });
    Some(ConfigError::new(&*arg, hint))
}

/// An argument that is repeated in an error: a URL may have a password.
fn without_password(arg: Cow<'_, str>) -> Cow<'_, str> {
    let begin = arg.split_once('=').map_or("", |(name, _)| name);
    if arg.contains('@') { format!("{begin}...").into() } else { arg }
}

/// A hint for a flag of other servers.
fn elsewhere(name: &str, value: &str) -> Option<String> {
    let bind = |address: &str| Some(format!("no such flag; use --bind {address}"));
    match name {
        "port" | "p" if value.is_empty() => bind(":PORT"),
        "port" | "p" => bind(&format!(":{}", value.trim_start_matches(':'))),
        "listen" | "addr" | "address" | "l" if value.is_empty() => bind("HOST:PORT"),
        "listen" | "addr" | "address" | "l" => bind(value),
        "data-dir" | "datadir" | "store-dir" | "store" if value.is_empty() => {
            Some("no such flag; use --data DIR".to_owned())
        }
        "data-dir" | "datadir" | "store-dir" | "store" => {
            Some(format!("no such flag; use --data {value}"))
        }
        "log-level" | "loglevel" | "verbose" | "verbosity" => {
            Some("no such flag; use -d to log each request".to_owned())
        }
        _ => None,
    }
}

/// Reads the settings from environment variables.
pub(super) fn variables(environment: &Environment) -> Result<Layer, ConfigError> {
    let mut layer = Layer::new();
    for setting in SETTINGS {
        if let Some(values) = variable(setting, environment)? {
            layer.insert(setting.name, values);
        }
    }
    Ok(layer)
}

fn variable(setting: &Setting, environment: &Environment) -> Result<Option<Vec<Raw>>, ConfigError> {
    let variable = setting.variable();
    // An empty value must not silently disable keys or TLS.
    let is_guard = matches!(setting.name, "keys" | "tls-cert" | "tls-key");
    let counts = |text: &&OsString| !text.is_empty() || is_guard;
    let Some(value) = environment.get(&OsString::from(&variable)).filter(counts) else {
        return Ok(None);
    };
    let text = value.to_str().ok_or_else(|| ConfigError::new(&variable, "not UTF-8"))?;
    let values = match setting.kind {
        Kind::List => text.split(',').map(str::trim).collect(),
        Kind::Value | Kind::Switch => vec![text],
    };
    let raw = |value: &str| Raw { value: value.to_owned(), origin: variable.clone() };
    Ok(Some(values.into_iter().map(raw).collect()))
}

/// A variable that was probably meant as a setting.
pub(super) struct UnknownVariable<'a> {
    pub(super) name: &'a str,
    /// The setting that was probably meant.
    pub(super) near: Option<&'static Setting>,
}

impl UnknownVariable<'_> {
    /// A notice about the variable, one line.
    pub(super) fn notice(&self) -> String {
        let name = self.name;
        match self.near {
            Some(near) => format!("unknown setting {name}; did you mean {}?", near.variable()),
            None => format!("unknown setting {name}; msgbusd --help lists them"),
        }
    }
}

/// Variables that are probably misspelt settings. They are not errors, because other programs also set such variables.
/// Those that Docker and Kubernetes set for a service named msgbusd are left out.
pub(super) fn unknown_variables(environment: &Environment) -> Vec<UnknownVariable<'_>> {
    let mut unknown: Vec<_> = environment
        .iter()
        .filter_map(|(name, value)| Some((name.to_str()?, value.to_str().unwrap_or_default())))
        .filter(|(name, value)| {
            name.strip_prefix(VARIABLE_PREFIX).is_some_and(|rest| !is_of_a_service(rest, value))
                && !is_credential(name)
                && SETTINGS.iter().all(|setting| setting.variable() != *name)
        })
        .map(|(name, _)| UnknownVariable { name, near: near(name) })
        .collect();
    unknown.sort_unstable_by_key(|unknown| unknown.name);
    unknown
}

/// Whether a variable is one that describes the service msgbusd to a container: `MSGBUSD_SERVICE_HOST`,
/// `MSGBUSD_PORT=tcp://…`, `MSGBUSD_PORT_8000_TCP_ADDR` and so on.
fn is_of_a_service(rest: &str, value: &str) -> bool {
    rest.starts_with("SERVICE_")
        || rest == "NAME"
        || rest.starts_with("ENV_")
        || (rest == "PORT" && value.contains("://"))
        || rest
            .strip_prefix("PORT_")
            .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
}

fn near(variable: &str) -> Option<&'static Setting> {
    let plain = variable[VARIABLE_PREFIX.len()..].to_ascii_lowercase().replace('_', "-");
    let name = match &*plain {
        "port" | "listen" | "host" | "addr" | "address" => "bind",
        _ => settings::closest(&plain, SETTINGS.iter().map(|setting| setting.name))?,
    };
    SETTINGS.iter().find(|setting| setting.name == name)
}
