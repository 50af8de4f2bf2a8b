//! `msgbusd drs-ipc`: drs on standard input and output.

use std::ffi::OsString;

use super::{ConfigError, Invocation, values};

/// The port that examples of drs use.
const DEFAULT: &str = "127.0.0.1:12000";

const HELP: &str = "\
Pass drs commands between standard input and output and a running msgbusd

Usage: msgbusd drs-ipc [tcp://HOST:PORT | unix:PATH]

The parent process speaks drs on the pipes of this process, as on a connection to the server
(msgbusd --drs tcp://127.0.0.1:12000, the default here). It ends with the connection, and with
its standard input. Errors go to standard error.
";

/// Parses the arguments after `drs-ipc`.
pub(super) fn parse(args: &[OsString]) -> Result<Invocation, ConfigError> {
    let words: Vec<_> = args.iter().map(|word| word.to_string_lossy()).collect();
    let address = match &words[..] {
        [] => DEFAULT,
        [help] if matches!(&**help, "-h" | "--help") => {
            return Ok(Invocation::Print(HELP.to_owned()));
        }
        [address] if !address.starts_with('-') => address.strip_prefix("tcp://").unwrap_or(address),
        _ => return Err(ConfigError::new("drs-ipc", "use msgbusd drs-ipc tcp://HOST:PORT")),
    };
    let server = values::bind(address).map_err(|why| ConfigError::new("drs-ipc", why))?;
    Ok(Invocation::DrsIpc(server))
}
