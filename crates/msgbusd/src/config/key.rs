//! `msgbusd key new`: creates a key for the file of `--keys`.

use std::ffi::OsString;

use pico_args::Arguments;

use super::{ConfigError, Invocation, layers::describe};
use crate::auth::{Grant, NewKey};

const USAGE: &str = "use msgbusd key new NAME --allow ACTION:TOPIC, see msgbusd key --help";

const HELP: &str = "\
Create a key for the file of --keys

Usage: msgbusd key new NAME --allow ACTION:TOPIC...

The secret is printed to standard error and stored nowhere: give it to its holder. The lines
for the file, with a hash of the secret, are printed to standard output.

Actions: publish, pull, subscribe, delete, inspect, admin, request, serve, and * for all.
Topics (services for request and serve): a name, or a pattern in which * is one segment and ** the rest.

Flags:
      --allow ACTION:TOPIC          what the key allows; may be repeated
  -h, --help                        print this help

Examples:
  msgbusd key new deploy --allow 'publish:orders/**' >> keys.toml
  msgbusd key new prometheus --allow 'inspect:**' >> keys.toml 2> prometheus.key
";

/// Parses the arguments after `key`.
pub(super) fn parse(args: Vec<OsString>) -> Result<Invocation, ConfigError> {
    let mut args = Arguments::from_vec(args);
    if args.contains(["-h", "--help"]) {
        return Ok(Invocation::Print(HELP.to_owned()));
    }
    let allow: Vec<String> = args
        .values_from_str("--allow")
        .map_err(|error| ConfigError::new("--allow", describe(&error)))?;
    let words: Vec<String> =
        args.finish().iter().map(|word| word.to_string_lossy().into_owned()).collect();
    let name = match &words[..] {
        [new, name] if new == "new" && !name.starts_with('-') => name,
        _ => return Err(ConfigError::new("key", USAGE)),
    };
    if allow.is_empty() {
        return Err(ConfigError::new("--allow", format!("the key would allow nothing; {USAGE}")));
    }
    let grants: Result<Vec<Grant>, ConfigError> = allow
        .iter()
        .map(|text| {
            text.parse().map_err(|why| ConfigError::new("--allow", format!("{text:?}: {why}")))
        })
        .collect();
    NewKey::make(name, &grants?)
        .map(Invocation::NewKey)
        .map_err(|error| ConfigError::new(format!("key new {name}"), error.to_string()))
}
