//! The configuration of the daemon: [`Config`], resolved from flags, environment, file and defaults, in this order.
//! Each setting is described once, in the table of `settings.rs`.

mod checks;
mod completion;
mod credentials;
mod data;
mod doors;
mod drs_ipc;
mod durable;
mod engines;
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

use std::{ffi::OsString, net::Ipv4Addr, num::NonZeroU32, path::PathBuf, time::Duration};

use msgbus_core::{Options, format_duration, store::Promise};
use pico_args::Arguments;
use thiserror::Error;

pub(crate) use self::values::format_size;
pub use self::{
    credentials::{Credential, Secret},
    data::DataCommand,
    doors::{DoorBind, DrsOptions, MiddlemanOptions, Protocol},
    engines::{EngineConfig, EngineTopics},
    keep_headers::{HeaderPattern, KeepHeaders},
    reread::ConfigFile,
};
use self::{
    file::{File, Rules},
    layers::{Environment, Layer, Raw, put_below},
    settings::SETTINGS,
};
use crate::{
    Bind, CertificateFiles,
    auth::{KeyFile, NewKey},
};

/// The resolved settings of a daemon. `Config::default()` has the defaults of all settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The endpoints to listen on; at least one.
    pub bind: Vec<Bind>,
    /// The endpoints of other protocols than HTTP.
    pub doors: Vec<DoorBind>,
    /// How commands of drs are served.
    pub drs: DrsOptions,
    /// How clients of middleman are served.
    pub middleman: MiddlemanOptions,
    /// The certificate for TLS on all TCP addresses; `None` for unencrypted connections.
    pub certificate: Option<CertificateFiles>,
    /// Whether to listen on addresses beyond loopback without keys.
    pub open: bool,
    /// The keys and their grants; `None` if every client may do everything.
    pub keys: Option<KeyFile>,
    /// Foreign web origins that may use the bus, as a browser sends them: `https://example.com`.
    pub allowed_origins: Vec<String>,
    /// Host names of this server, in addition to `localhost`, IP addresses and the hosts of allowed origins; in lower
    /// case, without ports.
    pub allowed_hosts: Vec<String>,
    /// The limits of the bus, and the rules for its topics.
    pub bus: Options,
    /// The directory of the durable topics; `None` if all messages are only in memory.
    pub data: Option<PathBuf>,
    /// What durable topics promise that have no rule of their own.
    pub sync: Promise,
    /// The maximum size of the files in `data`, in bytes; `None` for no limit but the disk's.
    pub max_disk_bytes: Option<u64>,
    /// Whether to skip damaged records in `data`.
    pub repair: bool,
    /// The engines that topics may live in.
    pub engines: Vec<EngineConfig>,
    /// Which topics live in them.
    pub engine_topics: Vec<EngineTopics>,
    /// Headers of a publish that are kept with its message, in addition to the well-known ones.
    pub keep_headers: KeepHeaders,
    /// The maximum size of a payload, in bytes.
    pub max_payload: usize,
    /// The maximum size of a request head, in bytes.
    pub max_header: usize,
    /// The maximum number of open connections, websockets included.
    pub max_connections: usize,
    /// The maximum number of open connections per address; `None` means 1000, and no limit for loopback.
    pub max_connections_per_address: Option<usize>,
    /// The maximum number of open websockets and streams.
    pub max_subscriptions: usize,
    /// The maximum publish rate, in messages per second, of each key and of each address without a key; `None` for no
    /// limit.
    pub publish_rate: Option<NonZeroU32>,
    /// The maximum size of request bodies, responses and frames in flight on all connections, in bytes.
    pub max_inflight_bytes: usize,
    /// The maximum number of topics that have their own series in the metrics.
    pub max_metric_topics: usize,
    /// The timeouts.
    pub timeouts: Timeouts,
    /// The number of serving threads; `None` for one per core.
    pub threads: Option<usize>,
    /// How the threads share the work.
    pub scheduler: Scheduler,
    /// Whether to log each request.
    pub debug: bool,
    /// Notices about the command line and the environment, to be logged at the start.
    pub notices: Vec<String>,
}

/// How threads share the work of the connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheduler {
    /// Each connection stays on one thread; new connections go to each thread in turn. A thread does not take work from
    /// another.
    Pinned,
    /// A free thread takes work from others.
    Stealing,
}

/// The timeouts of the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// The maximum time for a whole request head, from its first byte or from the start of the connection.
    pub header: Duration,
    /// The maximum time until the next bytes of a body arrive.
    pub body: Duration,
    /// The maximum time until the next request on a connection.
    pub idle: Duration,
    /// The maximum time for which a peer may accept no bytes while some wait to be written.
    pub write: Duration,
    /// The maximum time for active requests to finish when the daemon stops.
    pub drain: Duration,
    /// The interval of websocket pings; also the maximum time without bytes on a stream whose format has a keep-alive.
    pub ping: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            bind: vec![Bind::Tcp((Ipv4Addr::LOCALHOST, 8000).into())],
            doors: Vec::new(),
            drs: DrsOptions::default(),
            middleman: MiddlemanOptions::default(),
            certificate: None,
            open: false,
            keys: None,
            allowed_origins: Vec::new(),
            allowed_hosts: Vec::new(),
            bus: Options::default(),
            data: None,
            sync: Promise::Synced,
            max_disk_bytes: None,
            repair: false,
            engines: Vec::new(),
            engine_topics: Vec::new(),
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
    /// The TTL and the most important limits, in one line for the log.
    pub fn summary(&self) -> String {
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

/// The action that a command line asks for.
#[derive(Debug)]
pub enum Invocation {
    /// Run the daemon.
    Serve {
        /// The configuration.
        config: Box<Config>,
        /// The file of `--config`, which SIGHUP reads again.
        file: Option<Box<ConfigFile>>,
    },
    /// Print this: help, the version, a manual page or a completion script.
    Print(String),
    /// Print a new key.
    NewKey(NewKey),
    /// Look after a directory of `--data`.
    Data(DataCommand),
    /// Pass drs commands between the standard streams and this server.
    DrsIpc(Bind),
}

/// An error in a flag, variable or file. The text is one line that names it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{}: {}", one_line(.origin), one_line(.problem))]
pub struct ConfigError {
    /// The origin of the error: a flag, a variable, or a file and line.
    origin: String,
    problem: String,
}

/// Escapes control characters, such as line ends, in text from outside.
fn one_line(text: &str) -> String {
    let escape = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.into() };
    text.chars().map(escape).collect()
}

impl ConfigError {
    fn new(origin: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { origin: origin.into(), problem: problem.into() }
    }
}

/// Parses a command line (without the name of the program) and the environment, and reads the files that they name.
/// Blocks for up to ten seconds for each file.
///
/// # Errors
/// The first error in a flag, a variable or a line of a file.
pub fn parse(
    args: impl IntoIterator<Item = OsString>,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Invocation, ConfigError> {
    let args: Vec<OsString> = args.into_iter().collect();
    match args.first().and_then(|first| first.to_str()) {
        Some("key") => return key::parse(args[1..].to_vec()),
        Some("data") => return data::parse(args[1..].to_vec()),
        Some("drs-ipc") => return drs_ipc::parse(&args[1..]),
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
    let mut config = resolve(&layer, &rules)?;
    checks::read_files(&mut config, &layer)?;
    credentials::read(&mut config, &environment)?;
    note_unknown(&mut config, &environment)?;
    Ok(Invocation::Serve { config: Box::new(config), file: file.map(Box::new) })
}

/// Adds the settings of the file that `--config` names, if any, below the others.
fn with_file(layer: &mut Layer) -> Result<Option<ConfigFile>, ConfigError> {
    let Some(path) = layer.get("config").and_then(|values| values.first()).cloned() else {
        return Ok(None);
    };
    let at_start = File::read(&path)?;
    let above = layer.clone();
    put_below(layer, at_start.settings.clone());
    Ok(Some(ConfigFile { path, above, at_start }))
}

/// Resolves the values of all layers to a configuration. Reads no file.
fn resolve(layer: &Layer, rules: &Rules) -> Result<Config, ConfigError> {
    let mut config = Config::default();
    config.bus.rules.clone_from(&rules.topics);
    config.keep_headers.rules.clone_from(&rules.keep_headers);
    if layer.contains_key("bind") {
        config.bind.clear();
    }
    for setting in SETTINGS {
        for Raw { value, origin } in layer.get(setting.name).into_iter().flatten() {
            (setting.apply)(&mut config, value)
                .map_err(|problem| ConfigError::new(origin, problem))?;
        }
    }
    engines::apply(&mut config, layer, rules)?;
    durable::apply(&mut config, layer, &rules.durable)?;
    checks::check(&mut config, layer)?;
    Ok(config)
}

/// Adds notices about variables that look like misspelt settings.
fn note_unknown(config: &mut Config, environment: &Environment) -> Result<(), ConfigError> {
    for unknown in layers::unknown_variables(environment) {
        let near = unknown.near.filter(|near| near.name == "keys");
        if let Some(keys) = near.filter(|_| config.open && config.keys.is_none()) {
            let problem = format!(
                "unknown setting; did you mean {}? Without it, --open lets any client in: set it, or unset this",
                keys.variable()
            );
            return Err(ConfigError::new(unknown.name, problem));
        }
        config.notices.push(unknown.notice());
    }
    Ok(())
}
