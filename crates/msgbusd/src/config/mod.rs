//! What the daemon runs with: [`Config`], resolved from flags, environment, file and defaults, in
//! this order. Each setting is described once, in the table of `settings.rs`.

mod file;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod key;
mod settings;
mod values;

use std::{
    collections::HashMap, ffi::OsString, fmt::Write as _, net::Ipv4Addr, num::NonZeroU32,
    time::Duration,
};

use msgbus_core::{Options, TopicRule, format_duration};
use pico_args::Arguments;
use thiserror::Error;

use self::{
    file::File,
    settings::{Kind, SETTINGS, Setting},
};
use crate::{
    Bind, CertificateFiles,
    keys::{KeyFile, NewKey},
};

/// The resolved settings of a daemon. `Config::default()` is what a daemon runs with that is told
/// nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Where to listen; one place at least.
    pub bind: Vec<Bind>,
    /// What to speak TLS with on all addresses; in the clear if `None`.
    pub certificate: Option<CertificateFiles>,
    /// Whether anybody who can reach an address beyond loopback may use the bus.
    pub open: bool,
    /// Who may do what; everybody everything if `None`.
    pub keys: Option<KeyFile>,
    /// Foreign web origins that may use the bus, as a browser sends them: `https://example.com`.
    pub allowed_origins: Vec<String>,
    /// The bounds of the bus, and the rules for its topics.
    pub bus: Options,
    /// The largest payload, in bytes.
    pub max_payload: usize,
    /// The largest head of a request, in bytes.
    pub max_header: usize,
    /// The most connections at a time, websockets included.
    pub max_connections: usize,
    /// The most of one address; where nothing is said, 1000 but for loopback.
    pub max_connections_per_address: Option<usize>,
    /// The most websockets and streams at a time.
    pub max_subscriptions: usize,
    /// How many messages per second a key, or an address without one, may publish; any number if `None`.
    pub publish_rate: Option<NonZeroU32>,
    /// The most bytes of bodies, answers and frames on their way, over all connections.
    pub max_inflight_bytes: usize,
    /// The most topics with series of their own in the metrics.
    pub max_metric_topics: usize,
    /// How long the bounded waits are.
    pub timeouts: Timeouts,
    /// How many threads serve connections; as many as there are cores if `None`.
    pub threads: Option<usize>,
    /// How they share the work.
    pub scheduler: Scheduler,
    /// Whether to log each request.
    pub debug: bool,
    /// What to tell the operator at the start about how the daemon was called.
    pub notices: Vec<String>,
}

/// How threads share the work of the connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheduler {
    /// Each connection stays with one thread, and the threads take turns at new ones. What one has
    /// to do for its connections no other takes from it.
    Pinned,
    /// Whichever thread is free does what is to be done.
    Stealing,
}

/// The bounds on waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// For a whole head of a request, from its first byte, or from the connection's start.
    pub header: Duration,
    /// For the next bytes of a body.
    pub body: Duration,
    /// For the next request on a connection.
    pub idle: Duration,
    /// For a peer to take any bytes that wait to be written.
    pub write: Duration,
    /// For the end of what is under way when the daemon is told to stop.
    pub drain: Duration,
    /// How often a websocket is pinged; also the longest silence of a stream whose format has a keep-alive.
    pub ping: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            bind: vec![Bind::Tcp((Ipv4Addr::LOCALHOST, 8000).into())],
            certificate: None,
            open: false,
            keys: None,
            allowed_origins: Vec::new(),
            bus: Options::default(),
            max_payload: 1 << 20,
            max_header: 16 << 10,
            max_connections: 10_000,
            max_connections_per_address: None,
            max_subscriptions: 10_000,
            publish_rate: None,
            max_inflight_bytes: 256 << 20,
            max_metric_topics: 1_000,
            timeouts: Timeouts {
                header: Duration::from_secs(10),
                body: Duration::from_secs(30),
                idle: Duration::from_secs(75),
                write: Duration::from_secs(10),
                drain: Duration::from_secs(10),
                ping: Duration::from_secs(25),
            },
            threads: None,
            scheduler: Scheduler::Pinned,
            debug: false,
            notices: Vec::new(),
        }
    }
}

impl Config {
    /// What an operator wants to know at a glance: how long messages live, and the bounds.
    pub fn bounds(&self) -> String {
        let topic = self.bus.topic;
        format!(
            "ttl {}, per topic {} messages and {}, in all {} topics and {}, payload {}, {} connections",
            topic.ttl.map_or("unlimited".to_owned(), format_duration),
            topic.max_messages,
            values::format_size(topic.max_bytes),
            self.bus.max_topics,
            values::format_size(self.bus.max_bytes),
            values::format_size(self.max_payload as u64),
            self.max_connections,
        )
    }
}

/// What a command line asks for.
#[derive(Debug)]
pub enum Invocation {
    /// Run the daemon.
    Serve(Box<Config>),
    /// Print [`help`].
    Help,
    /// Print the version.
    Version,
    /// Print a new key.
    NewKey(NewKey),
    /// Print [`key_help`].
    KeyHelp,
}

/// A wrong flag, variable or file: one line that names it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{}: {}", one_line(.origin), one_line(.problem))]
pub struct ConfigError {
    /// Where the fault is: a flag, a variable, or a file and line.
    origin: String,
    problem: String,
}

/// What came from outside may have line ends in it.
fn one_line(text: &str) -> String {
    let escape = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.into() };
    text.chars().map(escape).collect()
}

impl ConfigError {
    fn new(origin: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { origin: origin.into(), problem: problem.into() }
    }
}

/// Reads a command line (without the program's name) and the environment, and the file that they
/// name.
///
/// # Errors
/// The first flag, variable or line of the file that is wrong.
pub fn parse(
    args: impl IntoIterator<Item = OsString>,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Invocation, ConfigError> {
    let mut args = args.into_iter().peekable();
    if args.next_if(|arg| arg == "key").is_some() {
        return key::parse(args.collect());
    }
    let args: Result<Vec<_>, _> = args.map(with_two_dashes).filter_map(plain_switch).collect();
    let mut args = Arguments::from_vec(args?);
    if args.contains(["-h", "--help"]) {
        return Ok(Invocation::Help);
    }
    if args.contains(["-v", "--version"]) {
        return Ok(Invocation::Version);
    }
    let environment: HashMap<OsString, OsString> = environment.into_iter().collect();
    let flags = read_flags(&mut args)?;
    if let Some(unknown) = args.finish().first() {
        return Err(unknown_flag(&unknown.to_string_lossy()));
    }
    let mut raw: HashMap<&str, Vec<Raw>> = HashMap::new();
    for (setting, values) in flags {
        raw.insert(setting.name, values);
    }
    for setting in SETTINGS {
        if let Some(values) = from_environment(setting, &environment)? {
            raw.entry(setting.name).or_insert(values);
        }
    }
    let mut rules = Vec::new();
    if let Some(path) = raw.get("config").and_then(|values| values.first()) {
        let file = File::read(path)?;
        for (name, values) in file.settings {
            raw.entry(name).or_insert(values);
        }
        rules = file.rules;
    }
    let mut config = resolve(&raw, rules)?;
    for (name, near) in misspelt(&environment) {
        if near.name == "keys" && config.open && config.keys.is_none() {
            let problem = format!(
                "is no setting; {} is, and without it --open lets anybody in: set it, or unset this",
                near.variable()
            );
            return Err(ConfigError::new(name, problem));
        }
        let notice = format!("{name} is no setting; did you mean {}?", near.variable());
        config.notices.push(notice);
    }
    Ok(Invocation::Serve(Box::new(config)))
}

/// Others set variables of such names too (as for a service of the name msgbusd), so an unknown one
/// is no error; but one that is nearly a setting was probably meant as one.
fn misspelt(environment: &HashMap<OsString, OsString>) -> Vec<(&str, &'static Setting)> {
    let unknown = environment.keys().filter_map(|key| key.to_str()).filter(|name| {
        name.starts_with(settings::VARIABLE_PREFIX)
            && SETTINGS.iter().all(|setting| setting.variable() != **name)
    });
    let mut misspelt: Vec<_> = unknown
        .filter_map(|name| {
            let plain =
                name[settings::VARIABLE_PREFIX.len()..].to_ascii_lowercase().replace('_', "-");
            let near = settings::closest(&plain, SETTINGS.iter().map(|setting| setting.name))?;
            Some((name, SETTINGS.iter().find(|setting| setting.name == near)?))
        })
        .collect();
    misspelt.sort_unstable_by_key(|(name, _)| *name);
    misspelt
}

/// A value as it was written, and where.
#[derive(Debug, Clone)]
struct Raw {
    value: String,
    origin: String,
}

/// The ancestor's flags have one dash, whatever their length.
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

/// Go's flags take `-d=true` and `-d=false` for switches: the first is the switch, the second
/// nothing.
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

fn read_flags(args: &mut Arguments) -> Result<Vec<(&'static Setting, Vec<Raw>)>, ConfigError> {
    let mut flags = Vec::new();
    for setting in SETTINGS {
        let flag = setting.flag();
        let values = match setting.kind {
            Kind::Switch => {
                // Given twice it is no more than given.
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
            flags.push((setting, values.into_iter().map(raw).collect()));
        }
    }
    Ok(flags)
}

fn describe(error: &pico_args::Error) -> String {
    match error {
        pico_args::Error::OptionWithoutAValue(_) => "needs a value".to_owned(),
        pico_args::Error::NonUtf8Argument => "the value is not UTF-8".to_owned(),
        other => other.to_string(),
    }
}

fn unknown_flag(arg: &str) -> ConfigError {
    if !arg.starts_with('-') {
        return ConfigError::new(arg, "msgbusd takes flags only, see --help");
    }
    let name = arg.trim_start_matches('-').split('=').next().unwrap_or_default();
    let hint = match settings::nearest(name) {
        Some(near) => format!("no such flag; did you mean --{near}?"),
        None => "no such flag, see --help".to_owned(),
    };
    ConfigError::new(arg, hint)
}

fn from_environment(
    setting: &Setting,
    environment: &HashMap<OsString, OsString>,
) -> Result<Option<Vec<Raw>>, ConfigError> {
    let variable = setting.variable();
    // To lose the name of such a file is not to open the server, or to let others read along.
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

fn resolve(raw: &HashMap<&str, Vec<Raw>>, rules: Vec<TopicRule>) -> Result<Config, ConfigError> {
    let mut config = Config::default();
    config.bus.rules = rules;
    if raw.contains_key("bind") {
        config.bind.clear();
    }
    for setting in SETTINGS {
        for Raw { value, origin } in raw.get(setting.name).into_iter().flatten() {
            (setting.apply)(&mut config, value)
                .map_err(|problem| ConfigError::new(origin, problem))?;
        }
    }
    check_reach(&config, raw)?;
    check_certificate(&mut config, raw)?;
    check_inflight(&config, raw)?;
    Ok(config)
}

/// Where a setting is from, for naming what is wrong with it.
fn origin<'a>(raw: &'a HashMap<&str, Vec<Raw>>, name: &str, flag: &'a str) -> &'a str {
    raw.get(name).and_then(|values| values.first()).map_or(flag, |raw| &raw.origin)
}

/// Nobody opens a server to other machines without saying for whom.
fn check_reach(config: &Config, raw: &HashMap<&str, Vec<Raw>>) -> Result<(), ConfigError> {
    let reachable = config.bind.iter().find(|bind| bind.is_reachable());
    match reachable {
        Some(bind) if !config.open && config.keys.is_none() => Err(ConfigError::new(
            origin(raw, "bind", "--bind"),
            format!(
                "{bind} can be reached from other machines, and anybody there may publish and read; \
                 say who may with --keys, or --open if that is meant"
            ),
        )),
        _ => Ok(()),
    }
}

/// A payload that is allowed can be received.
fn check_inflight(config: &Config, raw: &HashMap<&str, Vec<Raw>>) -> Result<(), ConfigError> {
    if config.max_inflight_bytes >= config.max_payload {
        return Ok(());
    }
    let said =
        ["max-inflight-bytes", "max-payload-size"].into_iter().find(|name| raw.contains_key(name));
    Err(ConfigError::new(
        origin(raw, said.unwrap_or_default(), "--max-inflight-bytes"),
        format!(
            "--max-inflight-bytes ({}) must be at least --max-payload-size ({})",
            values::format_size(config.max_inflight_bytes as u64),
            values::format_size(config.max_payload as u64)
        ),
    ))
}

/// Both files, and they belong together: what is wrong shows before the server runs.
fn check_certificate(
    config: &mut Config,
    raw: &HashMap<&str, Vec<Raw>>,
) -> Result<(), ConfigError> {
    let Some(files) = &config.certificate else { return Ok(()) };
    let (chain, key) = (origin(raw, "tls-cert", "--tls-cert"), origin(raw, "tls-key", "--tls-key"));
    if files.key.as_os_str().is_empty() {
        return Err(ConfigError::new(chain, "its private key is missing: name it with --tls-key"));
    }
    if files.chain.as_os_str().is_empty() {
        return Err(ConfigError::new(key, "the certificate is missing: name it with --tls-cert"));
    }
    files.read().map_err(|error| {
        ConfigError::new(if error.is_of(&files.key) { key } else { chain }, error.to_string())
    })?;
    if !config.bind.iter().any(|bind| matches!(bind, Bind::Tcp(_))) {
        config.notices.push("--tls-cert does nothing: unix sockets speak no TLS".to_owned());
    }
    Ok(())
}

/// The text of `key --help`.
pub fn key_help() -> String {
    key::HELP.to_owned()
}

/// The text of `--help`.
pub fn help() -> String {
    /// Of the column of flags.
    const WIDTH: usize = 34;
    let mut text = String::from(
        "msgbusd: the message bus you can curl\n\n\
         Usage: msgbusd [FLAGS]\n       \
         msgbusd key new NAME --allow ACTION:TOPIC...\n\n\
         Publish with PUT or POST /<topic>, pull with GET /<topic>, subscribe with a websocket on\n\
         /<topic>, list with GET /.\n\nFlags:\n",
    );
    for setting in SETTINGS {
        let short = setting.short.map_or("    ".to_owned(), |short| format!("{short}, "));
        let flag = format!("{short}{} {}", setting.flag(), setting.placeholder);
        let mut flag = flag.trim_end().to_owned();
        if flag.len() >= WIDTH {
            // It has a line of its own.
            flag.push_str("\n  ");
            flag.push_str(&" ".repeat(WIDTH));
        }
        // Writing to a String cannot fail.
        let _ = write!(text, "  {flag:<WIDTH$}{}", setting.help);
        let _ = match setting.default {
            "" => writeln!(text),
            default => writeln!(text, " [{default}]"),
        };
    }
    text.push_str(
        "  -v, --version                     print the version\n  \
           -h, --help                        print this\n\n\
         Sizes are bytes, or have a unit: 64KiB, 1MiB, 2GiB. Durations: 500ms, 30s, 10m, 1h30m.\n\
         Long flags may have one dash, as in the Go msgbusd. Each is also a variable of the\n\
         environment (--max-topics: MSGBUSD_MAX_TOPICS) and a key of the file (max-topics = 10).\n\
         A flag wins over a variable, a variable over the file.\n\n\
         Exit codes: 0 stopped in order, 1 could not run or had to cut connections,\n\
         2 wrong usage, 130 stopped by a second signal.\n",
    );
    text
}
