//! `msgbus ack`, `nack` and `extend`.

use std::{
    ffi::OsString,
    io::{self, IsTerminal as _},
    time::Duration,
};

use msgbus_client::{Client, LeaseOptions, LeaseToken, Settlement};

use crate::{
    commands::Command,
    failure::{Exit, Failure},
    input::{Input, Piece, without_end},
    output::note,
    reader::{Options, delay, duration, lease, text},
};

/// How many tokens from standard input are settled in one request.
const BATCH: usize = 10_000;
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(crate) struct Settle {
    client: Client,
    /// `None` reads standard input.
    tokens: Option<Vec<LeaseToken>>,
    settlement: Settlement,
    timeout: Duration,
}

impl Settle {
    pub(crate) fn parse(
        options: &mut Options,
        command: Command,
        arguments: impl Iterator<Item = OsString>,
    ) -> Result<Self, Failure> {
        let arguments: Vec<OsString> = arguments.collect();
        let tokens = match &arguments[..] {
            [] => {
                let usage = command.spec().usage();
                return Err(Failure::usage(format!("no token given; usage: {usage}")));
            }
            [only] if only == "-" => None,
            _ => Some(arguments.into_iter().map(token).collect::<Result<_, _>>()?),
        };
        let settlement = match command {
            Command::Nack => Settlement::Nack {
                delay: options.value("--delay", delay)?.unwrap_or_default(),
                reason: options.value("--reason", |reason| Ok(reason.into()))?,
            },
            Command::Extend => Settlement::Extend {
                lease: options.value("--lease", lease)?.unwrap_or(LeaseOptions::DEFAULT_LEASE),
            },
            _ => Settlement::Ack,
        };
        let timeout = options.value("--timeout", duration)?.unwrap_or(DEFAULT_TIMEOUT);
        Ok(Self { client: options.client()?.0, tokens, settlement, timeout })
    }

    /// Settles leases, and reports those that were not. Returns whether all were.
    async fn settle(&self, tokens: &[LeaseToken]) -> Result<bool, Failure> {
        let unsettled = self.client.settle_all(tokens, &self.settlement, self.timeout).await?;
        for lease in &unsettled {
            note(&format!("{}: {}", lease.token, lease.error));
        }
        Ok(unsettled.is_empty())
    }
}

fn token(argument: OsString) -> Result<LeaseToken, Failure> {
    let text = text(Some(argument), "")?;
    text.parse().map_err(|error| Failure::usage(format!("bad token {text:?}: {error}")))
}

pub(crate) async fn run(args: Settle) -> Result<Exit, Failure> {
    let all_settled = match &args.tokens {
        Some(tokens) => args.settle(tokens).await?,
        None => from_input(&args).await?,
    };
    Ok(if all_settled { Exit::Done } else { Exit::Error })
}

/// Settles the token of each line. Sends what has arrived and does not wait for more.
async fn from_input(args: &Settle) -> Result<bool, Failure> {
    if io::stdin().is_terminal() {
        note("reading tokens from the terminal; end them with Ctrl-D");
    }
    let (mut input, mut all_settled) = (Input::new(), true);
    let mut tokens = Vec::new();
    for number in 1_u64.. {
        let line = input.line().await?;
        let is_last = line.is_none();
        match line.map(|line| read(&line)) {
            None | Some(Ok(None)) => {}
            Some(Ok(Some(token))) => tokens.push(token),
            Some(Err(problem)) => {
                all_settled = false;
                note(&format!("line {number} is {problem}"));
            }
        }
        if !tokens.is_empty() && (is_last || tokens.len() == BATCH || !input.has_line()) {
            all_settled &= args.settle(&tokens).await?;
            tokens.clear();
        }
        if is_last {
            break;
        }
    }
    Ok(all_settled)
}

/// The token in a line; `None` if the line is empty.
fn read(line: &Piece) -> Result<Option<LeaseToken>, String> {
    let Piece::Whole(line) = line else { return Err("too long".to_owned()) };
    match String::from_utf8_lossy(&without_end(line.clone())).trim() {
        "" => Ok(None),
        text => {
            text.parse().map(Some).map_err(|error: msgbus_client::TokenError| error.to_string())
        }
    }
}
