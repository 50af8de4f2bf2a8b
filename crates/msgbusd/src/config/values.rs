//! The parsers of the values of settings. Errors say what is expected.

use std::{
    net::{Ipv6Addr, SocketAddr, ToSocketAddrs},
    ops::RangeInclusive,
    path::PathBuf,
    time::Duration,
};

use msgbus_core::{LeaseToken, Message, Overflow, format_duration, parse_duration, store::Promise};

use super::{MiddlemanOptions, Scheduler};
use crate::{
    Bind,
    auth::check_key_name,
    limits::rate::{self, Rate},
};

/// A whole number, 1 or more.
pub(super) fn count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("must be 1 or more".to_owned()),
        Ok(count) => Ok(count),
        Err(_) => Err(format!("not a whole number: {text:?}")),
    }
}

/// A rate in messages per second.
pub(super) fn rate(text: &str) -> Result<Rate, String> {
    rate::parse(text).ok_or_else(|| {
        let max = rate::HIGHEST;
        format!("expected an integer from 1 to {max}, not {text:?}; omit it for no limit")
    })
}

/// A size in bytes: a whole number, 1 or more, with or without a unit.
pub(super) fn size(text: &str) -> Result<u64, String> {
    let wrong = || format!("not a size: {text:?}; use bytes or a unit, as in 8192, 64KiB or 1MiB");
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor: u64 = match unit.trim_start().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        // Ambiguous: it may mean a decimal or a binary unit.
        unit @ ("kb" | "mb" | "gb") if !number.is_empty() => {
            let unit = unit[..1].to_ascii_uppercase();
            return Err(format!("not a size: {text:?}; write {number}{unit} or {number}{unit}iB"));
        }
        _ => return Err(wrong()),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    match number.checked_mul(factor) {
        Some(0) => Err("must be 1 or more".to_owned()),
        Some(size) => Ok(size),
        None => Err(wrong()),
    }
}

/// The maximum size of a topic, in bytes. It has to be enough for one message.
pub(super) fn queue_bytes(text: &str) -> Result<u64, String> {
    match size(text)? {
        size if size > Message::OVERHEAD => Ok(size),
        _ => Err(format!("must be more than {}, the overhead of one message", Message::OVERHEAD)),
    }
}

/// Formats a size so that [`size`] can parse it, in the largest unit without a fraction.
pub(crate) fn format_size(bytes: u64) -> String {
    match [(30, "GiB"), (20, "MiB"), (10, "KiB")]
        .into_iter()
        .find(|(shift, _)| bytes > 0 && bytes.trailing_zeros() >= *shift)
    {
        Some((shift, unit)) => format!("{}{unit}", bytes >> shift),
        None => format!("{bytes}B"),
    }
}

/// A duration longer than 0.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    match parse_duration(text) {
        Ok(Duration::ZERO) => Err("must be longer than 0".to_owned()),
        Ok(duration) => Ok(duration),
        Err(error) => Err(error.to_string()),
    }
}

/// The ping interval, in a range in which the deadlines computed from it do not overflow.
pub(super) fn ping_interval(text: &str) -> Result<Duration, String> {
    const RANGE: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3600);
    let interval = duration(text)?;
    if RANGE.contains(&interval) {
        Ok(interval)
    } else {
        Err("must be between 1s and 1h".to_owned())
    }
}

/// How long a request waits for its reply.
pub(super) fn request_timeout(text: &str) -> Result<Duration, String> {
    let timeout = duration(text)?;
    if MiddlemanOptions::TIMEOUTS.contains(&timeout) {
        Ok(timeout)
    } else {
        Err("must be between 1ms and 1m".to_owned())
    }
}

/// The name of a key, or `*`.
pub(super) fn key_name(text: &str) -> Result<String, String> {
    if text == "*" || check_key_name(text).is_ok() {
        return Ok(text.to_owned());
    }
    // The text is not quoted: it may be the secret itself.
    Err("expected the name of a key in the file of --keys, not its secret, or *".to_owned())
}

/// The TTL of messages; 0 means for ever.
pub(super) fn ttl(text: &str) -> Result<Option<Duration>, String> {
    let ttl =
        parse_duration(text).map_err(|error| format!("{error}; 0 keeps messages for ever"))?;
    Ok(Some(ttl).filter(|ttl| !ttl.is_zero()))
}

pub(super) fn overflow(text: &str) -> Result<Overflow, String> {
    match text {
        "drop-oldest" => Ok(Overflow::DropOldest),
        "reject" => Ok(Overflow::Reject),
        _ => Err(format!("must be drop-oldest or reject, not {text:?}")),
    }
}

/// When a publish is answered, and what it then survives.
pub(super) fn sync(text: &str) -> Result<Promise, String> {
    const RANGE: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(3600);
    if text == "always" {
        return Ok(Promise::Synced);
    }
    let every = parse_duration(text)
        .map_err(|_| format!("not always and not a duration: {text:?}; use always, or 1s"))?;
    if RANGE.contains(&every) {
        Ok(Promise::Written { sync_every: every })
    } else {
        Err("must be always, or between 1ms and 1h".to_owned())
    }
}

/// How long leases of an engine last.
pub(super) fn engine_lease(text: &str) -> Result<Duration, String> {
    between(text, Duration::from_secs(1), LeaseToken::MAX_TIME)
}

/// How long an engine remembers idempotency keys.
pub(super) fn duplicate_window(text: &str) -> Result<Duration, String> {
    between(text, Duration::from_secs(1), Duration::from_secs(24 * 3600))
}

/// How long to wait for an engine.
pub(super) fn engine_timeout(text: &str) -> Result<Duration, String> {
    between(text, Duration::from_millis(100), Duration::from_secs(60))
}

fn between(text: &str, least: Duration, most: Duration) -> Result<Duration, String> {
    let duration = duration(text)?;
    if (least..=most).contains(&duration) {
        return Ok(duration);
    }
    Err(format!("must be between {} and {}", format_duration(least), format_duration(most)))
}

pub(super) fn threads(text: &str) -> Result<usize, String> {
    const MAX_THREADS: usize = 1024;
    match count(text)? {
        threads if threads <= MAX_THREADS => Ok(threads),
        _ => Err(format!("must be {MAX_THREADS} or less")),
    }
}

pub(super) fn scheduler(text: &str) -> Result<Scheduler, String> {
    match text {
        "pinned" => Ok(Scheduler::Pinned),
        "stealing" => Ok(Scheduler::Stealing),
        _ => Err(format!("must be pinned or stealing, not {text:?}")),
    }
}

pub(super) fn switch(text: &str) -> Result<bool, String> {
    match text {
        "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        _ => Err(format!("must be true or false, not {text:?}")),
    }
}

/// The name of a file.
pub(super) fn file(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() { Err("the name of the file is empty".to_owned()) } else { Ok(text.into()) }
}

/// An address, or `unix:PATH`.
pub(super) fn bind(text: &str) -> Result<Bind, String> {
    match text.strip_prefix("unix:") {
        Some(path) => file(path).map(Bind::Unix),
        None => address(text).map(Bind::Tcp),
    }
}

/// `HOST:PORT`, or `:PORT` for all interfaces. A host name resolves to its first address.
fn address(text: &str) -> Result<SocketAddr, String> {
    let wrong = || {
        format!("not an address: {text:?}; use HOST:PORT, :PORT for all interfaces, or unix:PATH")
    };
    if let Some(scheme) = ["http://", "https://"].iter().find(|scheme| text.starts_with(**scheme)) {
        return Err(format!("not an address: {text:?}; leave out {scheme}"));
    }
    if text.parse::<u16>().is_ok() {
        return Err(format!(
            "not an address: {text:?}; did you mean :{text} (all interfaces) or 127.0.0.1:{text}?"
        ));
    }
    if let Some(port) = text.strip_prefix(':') {
        let port = port.parse().map_err(|_| wrong())?;
        return Ok(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)));
    }
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let (_, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    port.parse::<u16>().map_err(|_| wrong())?;
    let mut addresses =
        text.to_socket_addrs().map_err(|error| format!("cannot resolve {text:?}: {error}"))?;
    addresses.next().ok_or_else(|| format!("{text:?} has no address"))
}

/// A host name as browsers send it, without a port.
pub(super) fn host(text: &str) -> Result<String, String> {
    let is_of_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    if text.is_empty() || !text.bytes().all(is_of_name) {
        return Err(format!(
            "not a host: {text:?}; use a name such as bus.example.com, without scheme and port"
        ));
    }
    Ok(text.trim_end_matches('.').to_ascii_lowercase())
}

/// A web origin as browsers send it: scheme, host and optional port.
pub(super) fn origin(text: &str) -> Result<String, String> {
    let wrong = || {
        format!("not an origin: {text:?}; use scheme://host or scheme://host:port, without a path")
    };
    let (scheme, authority) = text.split_once("://").ok_or_else(wrong)?;
    let fits = !scheme.is_empty()
        && !authority.is_empty()
        && !authority.contains(['/', '*', '@', '?', '#'])
        && text.bytes().all(|byte| byte.is_ascii_graphic());
    if fits { Ok(text.to_ascii_lowercase()) } else { Err(wrong()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_binary_units() {
        for (text, bytes) in
            [("1", 1), ("8192", 8192), ("64KiB", 65_536), ("1 MiB", 1 << 20), ("2g", 2 << 30)]
        {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for (bytes, text) in [(0, "0B"), (1000, "1000B"), (8192, "8KiB"), (3 << 30, "3GiB")] {
            assert_eq!(format_size(bytes), text);
        }
        for text in ["", "0", "-1", "1.5k", "KiB", "1TB", "99999999999999999999", "17179869184GiB"]
        {
            assert!(size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn addresses_have_a_host_or_all_of_them() {
        assert_eq!(address("127.0.0.1:1").unwrap().to_string(), "127.0.0.1:1");
        assert_eq!(address("[::1]:1").unwrap().to_string(), "[::1]:1");
        assert!(address(":8000").unwrap().ip().is_unspecified());
        assert!(address("localhost:8000").unwrap().ip().is_loopback());
        for text in ["", ":", "8000", "localhost", "localhost:http", ":65536", "1.2.3.4"] {
            assert!(address(text).is_err(), "{text}");
        }
    }

    #[test]
    fn origins_have_no_path_and_no_wildcard() {
        assert_eq!(origin("https://Example.com:8443").as_deref(), Ok("https://example.com:8443"));
        for text in ["", "*", "example.com", "https://", "https://*.com", "https://a/", "://a"] {
            assert!(origin(text).is_err(), "{text}");
        }
    }
}
