//! The command of `msgbus sub TOPIC COMMAND`, run once for each message.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    env,
    ffi::{OsStr, OsString},
    future::pending,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::Stdio,
};

use msgbus_client::{Headers, Message, Subscription};
use tokio::{io::AsyncWriteExt as _, process::Command, select};

use crate::{failure::Failure, output::write_json, signals::Stop};

/// The longest payload that goes into the environment, in bytes: together with what else is there it
/// has to fit what a system allows, and it is no place for more than a line or two.
const MAX_VARIABLE: usize = 4096;

#[derive(Debug)]
pub(crate) struct Execute {
    program: OsString,
    arguments: Vec<OsString>,
    /// Whether it gets the payload, and not JSON.
    raw: bool,
}

/// Says at the start, and not at the first message, that a program is not there.
fn check(program: &OsStr) -> Result<(), Failure> {
    let is_program = |path: &Path| {
        path.metadata().is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
    };
    let name = program.to_string_lossy();
    let path = env::var_os("PATH").unwrap_or_default();
    let is_there = if name.contains('/') {
        is_program(Path::new(program))
    } else {
        env::split_paths(&path).any(|folder| is_program(&folder.join(program)))
    };
    if is_there {
        return Ok(());
    }
    if name.is_empty() {
        return Err(Failure::usage("the command is empty; is the variable set?"));
    }
    let hint = match &name {
        name if name.contains(' ') => "; for a line of shell use sh -c",
        _ => "; sub follows one topic; what comes after it is a command",
    };
    Err(Failure::Other(format!("cannot run {name}: there is no such program{hint}")))
}

impl Execute {
    pub(crate) fn new(
        program: OsString,
        arguments: Vec<OsString>,
        raw: bool,
    ) -> Result<Self, Failure> {
        check(&program)?;
        Ok(Self { program, arguments, raw })
    }

    /// Runs it for one message, and returns what is wrong if it fails. It has a process group of its
    /// own: Ctrl-C is for us, and we let it finish. Meanwhile the subscription is kept alive.
    pub(crate) async fn run(
        &self,
        message: &Message,
        subscription: &mut Subscription,
        stop: &mut Stop,
    ) -> Result<Option<String>, Failure> {
        let name = self.program.to_string_lossy();
        let mut child = self
            .command(message)
            .spawn()
            .map_err(|error| Failure::Other(format!("cannot run {name}: {error}")))?;
        let input = self.input(message);
        let stdin = child.stdin.take();
        let feed = async {
            if let Some(mut stdin) = stdin {
                // A command need not read its input.
                let _ = stdin.write_all(&input).await;
            }
            pending::<Infallible>().await
        };
        let status = select! {
            status = child.wait() => status.map_err(Failure::Output)?,
            never = feed => match never {},
            never = subscription.keep_alive() => match never {},
            () = stop.insisted() => {
                // The process ends in a moment.
                let _ = child.start_kill();
                pending().await
            }
        };
        let problem = || format!("{name} failed on message {}: {status}", message.id());
        Ok((!status.success()).then(problem))
    }

    fn command(&self, message: &Message) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(&self.arguments)
            .env("MSGBUS_ID", message.id().to_string())
            .env("MSGBUS_TOPIC", message.topic().name.as_str())
            // That of another message may be there, where this runs in such a command itself.
            .env_remove("MSGBUS_PAYLOAD")
            .stdin(Stdio::piped())
            .process_group(0);
        for (name, _) in env::vars_os().filter(|(name, _)| is_of_header(name)) {
            command.env_remove(name);
        }
        for (name, value) in header_variables(message.headers()) {
            command.env(name, value);
        }
        if let Some(text) = short_text(message.payload()) {
            command.env("MSGBUS_PAYLOAD", text);
        }
        command
    }

    fn input(&self, message: &Message) -> Vec<u8> {
        if self.raw {
            return message.payload().to_vec();
        }
        let mut json = Vec::new();
        write_json(&mut json, message);
        json
    }
}

/// Begins the names of the variables for the headers of a message.
const HEADER_VARIABLE: &str = "MSGBUS_HEADER_";

fn is_of_header(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(HEADER_VARIABLE.as_bytes())
}

/// A variable for each header. Values of one name, or of names that differ only in case or punctuation, are a list.
fn header_variables(headers: &Headers) -> BTreeMap<String, String> {
    let mut variables = BTreeMap::<_, String>::new();
    for (name, value) in headers {
        let letter = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
        let name: String = HEADER_VARIABLE.chars().chain(name.chars().map(letter)).collect();
        let list = variables.entry(name).or_default();
        if !list.is_empty() {
            list.push_str(", ");
        }
        list.push_str(value);
    }
    variables
}

/// A payload that can be a variable of the environment.
fn short_text(payload: &[u8]) -> Option<&str> {
    let fits = payload.len() <= MAX_VARIABLE && !payload.contains(&0);
    std::str::from_utf8(payload).ok().filter(|_| fits)
}
