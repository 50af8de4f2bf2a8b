//! What the daemon runs with: [`Config`], resolved from flags, environment, file and defaults, in
//! this order. Each setting is described once, in the table of `settings.rs`.

mod checks;
mod completion;
mod file;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod help;
mod keep_headers;
mod key;
mod layers;
mod reread;
mod settings;
mod values;

use std::{ffi::OsString, net::Ipv4Addr, num::NonZeroU32, time::Duration};

use msgbus_core::{Options, format_duration};
use pico_args::Arguments;
use thiserror::Error;

use self::{
    file::{File, Rules},
    layers::{Environment, Layer, Raw, put_below},
    settings::SETTINGS,
};
pub use self::{
    keep_headers::{HeaderPattern, KeepHeaders},
    reread::ConfigFile,
};
use crate::{
    Bind, CertificateFiles,
    auth::{KeyFile, NewKey},
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
    /// Names of this server beside `localhost`, its addresses and the hosts of allowed origins; in lower case, without ports.
    pub allowed_hosts: Vec<String>,
    /// The bounds of the bus, and the rules for its topics.
    pub bus: Options,
    /// Headers of a publish that are kept with its message besides the well-known ones.
    pub keep_headers: KeepHeaders,
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
            allowed_hosts: Vec::new(),
            bus: Options::default(),
            keep_headers: KeepHeaders::default(),
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
    Serve {
        /// What it runs with.
        config: Box<Config>,
        /// The file of `--config`, to be read again at SIGHUP.
        file: Option<ConfigFile>,
    },
    /// Print this: help, the version, a manual page or a completion script.
    Print(String),
    /// Print a new key.
    NewKey(NewKey),
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

/// Reads a command line (without the program's name) and the environment, and the files that they
/// name. Blocks for ten seconds at the most for each file.
///
/// # Errors
/// The first flag, variable or line of a file that is wrong.
pub fn parse(
    args: impl IntoIterator<Item = OsString>,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Invocation, ConfigError> {
    let args: Vec<OsString> = args.into_iter().collect();
    match args.first().and_then(|first| first.to_str()) {
        Some("key") => return key::parse(args[1..].to_vec()),
        Some("completion") => return completion::parse(&args[1..]),
        Some("man") if args.len() == 1 => return Ok(Invocation::Print(help::manual())),
        _ => {}
    }
    let mut args = Arguments::from_vec(layers::standard_form(args.into_iter())?);
    if args.contains(["-h", "--help"]) {
        return Ok(Invocation::Print(help::help()));
    }
    if args.contains(["-v", "--version"]) {
        let version = concat!("msgbusd ", env!("CARGO_PKG_VERSION"), "\n");
        return Ok(Invocation::Print(version.to_owned()));
    }
    let mut layer = layers::flags(&mut args)?;
    if let Some(error) = layers::unknown_flag(&args.finish()) {
        return Err(error);
    }
    let environment: Environment = environment.into_iter().collect();
    put_below(&mut layer, layers::variables(&environment)?);
    let file = with_file(&mut layer)?;
    let rules = file.as_ref().map_or(Rules::default(), |file| file.at_start.rules.clone());
    let mut config = resolve(&layer, rules)?;
    checks::read_files(&mut config, &layer)?;
    note_unknown(&mut config, &environment)?;
    Ok(Invocation::Serve { config: Box::new(config), file })
}

/// Puts the settings of the file that `--config` names, if it does, below what there is.
fn with_file(layer: &mut Layer) -> Result<Option<ConfigFile>, ConfigError> {
    let Some(path) = layer.get("config").and_then(|values| values.first()).cloned() else {
        return Ok(None);
    };
    let at_start = File::read(&path)?;
    let above = layer.clone();
    put_below(layer, at_start.settings.clone());
    Ok(Some(ConfigFile { path, above, at_start }))
}

/// The configuration that the values of all layers make. Reads no file.
fn resolve(layer: &Layer, rules: Rules) -> Result<Config, ConfigError> {
    let mut config = Config::default();
    config.bus.rules = rules.topics;
    config.keep_headers.rules = rules.keep_headers;
    if layer.contains_key("bind") {
        config.bind.clear();
    }
    for setting in SETTINGS {
        for Raw { value, origin } in layer.get(setting.name).into_iter().flatten() {
            (setting.apply)(&mut config, value)
                .map_err(|problem| ConfigError::new(origin, problem))?;
        }
    }
    checks::check(&mut config, layer)?;
    Ok(config)
}

/// Points out variables that are nearly settings.
fn note_unknown(config: &mut Config, environment: &Environment) -> Result<(), ConfigError> {
    for unknown in layers::unknown_variables(environment) {
        let near = unknown.near.filter(|near| near.name == "keys");
        if let Some(keys) = near.filter(|_| config.open && config.keys.is_none()) {
            let problem = format!(
                "unknown setting; {} is one, and without it --open lets anybody in: set it, or unset this",
                keys.variable()
            );
            return Err(ConfigError::new(unknown.name, problem));
        }
        config.notices.push(unknown.notice());
    }
    Ok(())
}
