//! The table of settings: flag, variable, key, default, help and effect of each, in one place.

use super::{Config, DoorBind, Protocol, doors, values};
use crate::Bind;

/// The prefix of all environment variables.
pub(super) const VARIABLE_PREFIX: &str = "MSGBUSD_";

/// One setting.
pub(super) struct Setting {
    /// The name: the flag without its dashes, and the key in the file.
    pub(super) name: &'static str,
    pub(super) short: Option<&'static str>,
    pub(super) kind: Kind,
    /// The name of the value in the help.
    pub(super) placeholder: &'static str,
    /// The default in the notation of a flag; empty if there is none.
    pub(super) default: &'static str,
    pub(super) help: &'static str,
    /// Parses a value and stores it in the configuration, or returns an error text.
    pub(super) apply: fn(&mut Config, &str) -> Result<(), String>,
    flag: &'static str,
}

/// How a setting is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// With one value.
    Value,
    /// Any number of times; in a variable separated by commas, in the file as an array.
    List,
    /// Without a value; in a variable or the file `true` or `false`.
    Switch,
}

impl Setting {
    pub(super) fn flag(&self) -> &'static str {
        self.flag
    }

    pub(super) fn variable(&self) -> String {
        format!("{VARIABLE_PREFIX}{}", self.name.to_ascii_uppercase().replace('-', "_"))
    }
}

macro_rules! setting {
    ($kind:ident $name:literal $placeholder:literal $default:literal, $help:literal, $apply:expr) => {
        setting!(None, $kind $name $placeholder $default, $help, $apply)
    };
    ($short:expr, $kind:ident $name:literal $placeholder:literal $default:literal, $help:literal, $apply:expr) => {
        Setting {
            name: $name,
            short: $short,
            kind: Kind::$kind,
            placeholder: $placeholder,
            default: $default,
            help: $help,
            apply: $apply,
            flag: concat!("--", $name),
        }
    };
}

pub(super) const SETTINGS: &[Setting] = &[
    setting!(List "bind" "ADDRESS" "127.0.0.1:8000", "HOST:PORT, :PORT or unix:PATH; may be repeated", |c, v| {
        let bind = values::bind(v)?;
        if !c.bind.contains(&bind) {
            c.bind.push(bind);
        }
        Ok(())
    }),
    setting!(List "middleman" "ADDRESS" "", "serve clients of middleman here; may be repeated", |c, v| {
        add_door(c, Protocol::Middleman, values::bind(v)?);
        Ok(())
    }),
    setting!(List "middleman-no-id" "KEY" "", "name of a key whose clients know no connection id; * is all", |c, v| {
        c.middleman.without_id.push(values::key_name(v)?);
        Ok(())
    }),
    setting!(List "middleman-super" "KEY" "", "name of a key whose clients get a copy of every message", |c, v| {
        c.middleman.super_keys.push(values::key_name(v)?);
        Ok(())
    }),
    setting!(Value "middleman-timeout" "DURATION" "5s", "how long a request waits for its reply", |c, v| {
        c.middleman.timeout = values::request_timeout(v)?;
        Ok(())
    }),
    setting!(Switch "middleman-revoke" "" "", "what a service has enabled ends with its connection", |c, v| {
        c.middleman.ends_with_service = values::switch(v)?;
        Ok(())
    }),
    setting!(List "drs" "URI" "", "serve drs: ws://HOST:PORT or tcp://HOST:PORT; may be repeated", |c, v| {
        let DoorBind { protocol, bind } = doors::drs(v)?;
        add_door(c, protocol, bind);
        Ok(())
    }),
    setting!(List "drs-broadcast" "PATTERN" "", "fire messages of these topics at all drs peers; may be repeated", |c, v| {
        c.drs.broadcast.push(v.parse().map_err(|error| format!("{error}"))?);
        Ok(())
    }),
    setting!(Value "drs-timeout" "DURATION" "1m", "how long calls of drs peers wait for a reply", |c, v| {
        c.drs.timeout = doors::drs_timeout(v)?;
        Ok(())
    }),
    setting!(Switch "drs-answer-fires" "" "", "answer drs commands without a key, as old servers do", |c, v| {
        c.drs.answers_fires = values::switch(v)?;
        Ok(())
    }),
    setting!(Switch "drs-serial" "" "", "begin commands of a drs peer only when its last call is answered", |c, v| {
        c.drs.is_serial = values::switch(v)?;
        Ok(())
    }),
    setting!(Switch "open" "" "", "allow addresses beyond loopback without keys", |c, v| {
        c.open = values::switch(v)?;
        Ok(())
    }),
    setting!(Value "keys" "FILE" "", "keys and what each allows; reloaded on SIGHUP", |_, v| {
        // The file is read when all settings are known.
        values::file(v).map(drop)
    }),
    setting!(Value "tls-cert" "FILE" "", "use TLS with this certificate; reloaded on SIGHUP", |c, v| {
        c.certificate.get_or_insert_default().chain = values::file(v)?;
        Ok(())
    }),
    setting!(Value "tls-key" "FILE" "", "private key of --tls-cert", |c, v| {
        c.certificate.get_or_insert_default().key = values::file(v)?;
        Ok(())
    }),
    setting!(List "allow-origin" "ORIGIN" "", "web origin that may use the bus; may be repeated", |c, v| {
        c.allowed_origins.push(values::origin(v)?);
        Ok(())
    }),
    setting!(List "allow-host" "HOST" "", "host name by which clients may call the server; may be repeated", |c, v| {
        c.allowed_hosts.push(values::host(v)?);
        Ok(())
    }),
    setting!(Value "config" "FILE" "", "TOML file with settings, and rules for topics", |_, _| Ok(())),
    setting!(Value "ttl" "DURATION" "1h", "how long messages live; 0 keeps them for ever", |c, v| {
        c.bus.topic.ttl = values::ttl(v)?;
        Ok(())
    }),
    setting!(Value "max-queue-size" "COUNT" "65536", "maximum number of messages in a topic", |c, v| {
        c.bus.topic.max_messages = values::count(v)?;
        Ok(())
    }),
    setting!(Value "max-queue-bytes" "SIZE" "64MiB", "maximum size of a topic", |c, v| {
        c.bus.topic.max_bytes = values::queue_bytes(v)?;
        Ok(())
    }),
    setting!(Value "overflow" "POLICY" "drop-oldest", "what a full topic does: drop-oldest, or reject", |c, v| {
        c.bus.topic.overflow = values::overflow(v)?;
        Ok(())
    }),
    setting!(Value "data" "DIR" "", "keep messages in this directory, through restarts and crashes", |c, v| {
        c.data = Some(values::file(v)?);
        Ok(())
    }),
    setting!(Value "sync" "WHEN" "always", "when to sync the disk: always, or every DURATION", |c, v| {
        c.sync = values::sync(v)?;
        Ok(())
    }),
    setting!(Value "max-disk-bytes" "SIZE" "", "maximum size of the files of --data", |c, v| {
        c.max_disk_bytes = Some(values::size(v)?);
        Ok(())
    }),
    setting!(Value "memory-per-topic" "SIZE" "16MiB", "how much of a topic of --data is also in memory", |c, v| {
        c.bus.topic.memory_bytes = values::size(v)?;
        Ok(())
    }),
    setting!(Switch "repair" "" "", "skip damaged records of --data, and say how many", |c, v| {
        c.repair = values::switch(v)?;
        Ok(())
    }),
    setting!(Value "engine" "URL" "", "keep all topics in this engine, shared with other servers", |_, v| {
        // It is resolved together with the engines of the file.
        if v.is_empty() { Err("the URL is empty".to_owned()) } else { Ok(()) }
    }),
    setting!(List "keep-headers" "NAME" "", "header to keep with messages, as X-NAME-*; may be repeated", |c, v| {
        c.keep_headers.all.push(v.parse()?);
        Ok(())
    }),
    setting!(Value "max-payload-size" "SIZE" "1MiB", "maximum size of a payload", |c, v| {
        c.max_payload = usize::try_from(values::size(v)?).map_err(|_| "too large")?;
        Ok(())
    }),
    setting!(Value "max-topics" "COUNT" "100000", "maximum number of topics", |c, v| {
        c.bus.max_topics = values::count(v)?;
        Ok(())
    }),
    setting!(Value "max-total-bytes" "SIZE" "1GiB", "maximum size of all topics together", |c, v| {
        c.bus.max_bytes = values::size(v)?;
        Ok(())
    }),
    setting!(Value "threads" "COUNT" "", "number of threads that serve connections [one for each core]", |c, v| {
        c.threads = Some(values::threads(v)?);
        Ok(())
    }),
    setting!(Value "scheduler" "HOW" "pinned", "pinned: a connection stays with one thread; or stealing", |c, v| {
        c.scheduler = values::scheduler(v)?;
        Ok(())
    }),
    setting!(Value "max-connections" "COUNT" "10000", "maximum number of connections, websockets included", |c, v| {
        c.max_connections = values::count(v)?;
        Ok(())
    }),
    setting!(Value "max-connections-per-address" "COUNT" "", "maximum number from one address [1000, loopback unlimited]", |c, v| {
        c.max_connections_per_address = Some(values::count(v)?);
        Ok(())
    }),
    setting!(Value "max-subscriptions" "COUNT" "10000", "maximum number of websockets and streams", |c, v| {
        c.max_subscriptions = values::count(v)?;
        Ok(())
    }),
    setting!(Value "publish-rate" "COUNT" "", "messages per second and key, or address without a key", |c, v| {
        c.publish_rate = Some(values::rate(v)?);
        Ok(())
    }),
    setting!(Value "max-inflight-bytes" "SIZE" "256MiB", "maximum size of request bodies and responses in flight", |c, v| {
        c.max_inflight_bytes = usize::try_from(values::size(v)?).map_err(|_| "too large")?;
        Ok(())
    }),
    setting!(Value "max-header-size" "SIZE" "16KiB", "maximum size of a request head", |c, v| {
        let size = usize::try_from(values::size(v)?).map_err(|_| "too large")?;
        if !(MIN_HEADER..=MAX_HEADER).contains(&size) {
            return Err("must be between 8KiB and 1MiB".to_owned());
        }
        c.max_header = size;
        Ok(())
    }),
    setting!(Value "max-metric-topics" "COUNT" "1000", "maximum number of topics with metrics of their own", |c, v| {
        c.max_metric_topics = v.parse().map_err(|_| format!("not a whole number: {v:?}"))?;
        Ok(())
    }),
    setting!(Value "header-timeout" "DURATION" "10s", "time limit for a whole request head", |c, v| {
        c.timeouts.header = values::duration(v)?;
        Ok(())
    }),
    setting!(Value "body-timeout" "DURATION" "30s", "time limit for the next bytes of a body", |c, v| {
        c.timeouts.body = values::duration(v)?;
        Ok(())
    }),
    setting!(Value "idle-timeout" "DURATION" "75s", "time limit for the next request on a connection", |c, v| {
        c.timeouts.idle = values::duration(v)?;
        Ok(())
    }),
    setting!(Value "write-timeout" "DURATION" "10s", "time limit for a peer that accepts no bytes", |c, v| {
        c.timeouts.write = values::duration(v)?;
        Ok(())
    }),
    setting!(Value "drain-timeout" "DURATION" "10s", "time limit for active requests at shutdown", |c, v| {
        c.timeouts.drain = values::duration(v)?;
        Ok(())
    }),
    setting!(Value "ping-interval" "DURATION" "25s", "ping websockets this often; proxies cut silent ones", |c, v| {
        c.timeouts.ping = values::ping_interval(v)?;
        Ok(())
    }),
    setting!(Value "buffer-length" "COUNT" "", "accepted, no longer needed", |c, _| {
        c.notices.push(
            "--buffer-length is no longer needed: a subscription has no buffer, only a position in \
             the topic's log, which --max-queue-size and --max-queue-bytes limit"
                .to_owned(),
        );
        Ok(())
    }),
    setting!(Some("-d"), Switch "debug" "" "", "log each request", |c, v| {
        c.debug = values::switch(v)?;
        Ok(())
    }),
];

fn add_door(config: &mut Config, protocol: Protocol, bind: Bind) {
    let door = DoorBind { protocol, bind };
    if !config.doors.contains(&door) {
        config.doors.push(door);
    }
}

/// The minimum that hyper needs, and a maximum that no client exceeds.
const MIN_HEADER: usize = 8 << 10;
const MAX_HEADER: usize = 1 << 20;

/// The flag that is most similar to `name`.
pub(super) fn nearest(name: &str) -> Option<&'static str> {
    let names = SETTINGS.iter().map(|setting| setting.name).chain(["help", "version"]);
    closest(name, names)
}

/// The one of `names` that is most similar to `name`, if it differs in only a few letters.
pub(super) fn closest(
    name: &str,
    names: impl Iterator<Item = &'static str>,
) -> Option<&'static str> {
    names
        .map(|candidate| (strsim::damerau_levenshtein(name, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= 1 + candidate.len() / 4)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_in_the_help_are_the_defaults() {
        let mut config = Config::default();
        for setting in SETTINGS.iter().filter(|setting| !setting.default.is_empty()) {
            (setting.apply)(&mut config, setting.default).unwrap();
        }
        assert_eq!(config, Config::default());
    }
}
