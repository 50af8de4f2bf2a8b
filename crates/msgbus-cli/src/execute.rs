//! The command of `msgbus sub TOPIC COMMAND`, of `msgbus work` and of `msgbus serve`, run once for each message or request.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    env,
    ffi::{OsStr, OsString},
    future::pending,
    io,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    pin::pin,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use msgbus_client::{Headers, Message, Request};
use rustix::{
    io::Errno,
    process::{Pid, Signal, kill_process_group},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    process::{Child, ChildStdin, ChildStdout, Command},
    select,
    time::sleep,
};

use crate::{
    failure::Failure,
    output::{note, write_json},
    stderr::PassedOn,
};

/// The longest payload that is put into the environment, in bytes. Systems limit the total size of the
/// environment, and larger payloads are better read from standard input.
const MAX_VARIABLE: usize = 4096;
/// The pause before another attempt to start a command when the system lacks processes, files or memory.
const SHORTAGE_PAUSE: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub(crate) struct Execute {
    program: OsString,
    arguments: Vec<OsString>,
    /// Whether the command gets the payload on standard input instead of JSON.
    raw: bool,
}

/// How a run of the command has ended.
pub(crate) enum Ended {
    Exited {
        status: ExitStatus,
        /// Standard output, if it is a pipe.
        output: Vec<u8>,
        /// The last line on standard error, if that is passed on.
        last_line: Option<String>,
    },
    /// It was killed, because standard output was longer than its limit.
    TooLong,
    /// It was killed as asked, for example by a second signal to msgbus.
    Killed,
}

/// Whether there is such a program.
pub(crate) fn is_program(name: &OsStr) -> bool {
    let is_program = |path: &Path| {
        path.metadata().is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
    };
    if name.to_string_lossy().contains('/') {
        return is_program(Path::new(name));
    }
    let path = env::var_os("PATH").unwrap_or_default();
    !name.is_empty() && env::split_paths(&path).any(|folder| is_program(&folder.join(name)))
}

/// Whether an argument is meant as a command although there is no such program: it is empty, or a line of shell.
pub(crate) fn cannot_be_a_topic(arg: &OsStr) -> bool {
    arg.is_empty() || arg.to_string_lossy().contains(' ')
}

/// Reports a missing program at the start instead of at the first message.
fn check(program: &OsStr) -> Result<(), Failure> {
    let name = program.to_string_lossy();
    if is_program(program) {
        return Ok(());
    }
    if name.is_empty() {
        return Err(Failure::usage("the command is empty; is the variable set?"));
    }
    let hint = match &name {
        name if name.contains(' ') => "; for a line of shell use sh -c",
        _ => "; this argument is the command to run",
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

    /// The name of the program.
    pub(crate) fn name(&self) -> String {
        self.program.to_string_lossy().into_owned()
    }

    /// Runs `command`, which one of the methods below has made, with this standard input. It has a process group of its
    /// own, so Ctrl-C reaches only msgbus, which lets the command finish, or kills the group when `kill` completes. If
    /// standard output is a pipe, up to `limit` bytes of it are kept. If standard error is a pipe, it is passed on.
    pub(crate) async fn run(
        &self,
        mut command: Command,
        input: Vec<u8>,
        limit: usize,
        meanwhile: impl Future<Output = Infallible>,
        kill: impl Future<Output = ()>,
    ) -> Result<Ended, Failure> {
        let mut kill = pin!(kill);
        let mut child = select! {
            child = self.spawn(&mut command) => child?,
            () = &mut kill => return Ok(Ended::Killed),
        };
        let group = child.id();
        let stderr = child.stderr.take().map(PassedOn::start);
        let feed = feed(child.stdin.take(), &input);
        let mut output = Output { stdout: child.stdout.take(), limit, bytes: Vec::new() };
        let ended = select! {
            status = child.wait() => Ok(status.map_err(Failure::Output)?),
            never = feed => match never {},
            never = meanwhile => match never {},
            () = output.too_long() => Err(Ended::TooLong),
            () = &mut kill => Err(Ended::Killed),
        };
        let status = match ended {
            Ok(status) => status,
            Err(ended) => {
                kill_group(group);
                child.wait().await.map_err(Failure::Output)?;
                return Ok(ended);
            }
        };
        // What it has started may write more, as a filter behind a redirection does.
        let fits = select! {
            biased;
            fits = output.read() => fits,
            () = kill => {
                kill_group(group);
                return Ok(Ended::Killed);
            }
        };
        if !fits {
            return Ok(Ended::TooLong);
        }
        let last_line = match stderr {
            Some(stderr) => stderr.last_line().await,
            None => None,
        };
        Ok(Ended::Exited { status, output: output.bytes, last_line })
    }

    /// Starts the command. While the system has no resources for it, it waits: a message that is leased is kept meanwhile.
    async fn spawn(&self, command: &mut Command) -> Result<Child, Failure> {
        let mut is_noted = false;
        loop {
            match command.spawn() {
                Err(error) if is_shortage(&error) => {
                    if !std::mem::replace(&mut is_noted, true) {
                        note(&format!("cannot run {} yet: {error}; trying again", self.name()));
                    }
                    sleep(SHORTAGE_PAUSE).await;
                }
                child => {
                    let failed = |error| format!("cannot run {}: {error}", self.name());
                    return child.map_err(|error| Failure::Other(failed(error)));
                }
            }
        }
    }

    /// The command for one message.
    pub(crate) fn command(&self, message: &Message) -> Command {
        let mut command = self.prepared(message.headers(), message.payload());
        command
            .env("MSGBUS_ID", message.id().to_string())
            .env("MSGBUS_TOPIC", message.topic().name.as_str());
        command
    }

    /// The command for one request.
    pub(crate) fn command_for_request(&self, request: &Request) -> Command {
        let mut command = self.prepared(request.headers(), request.payload());
        command.env("MSGBUS_SERVICE", request.service().as_str());
        command
    }

    fn prepared(&self, headers: &Headers, payload: &[u8]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).stdin(Stdio::piped()).process_group(0);
        // They may be inherited if msgbus runs in a command of another msgbus.
        for name in ["ID", "TOPIC", "SERVICE", "PAYLOAD", "DELIVERIES"] {
            command.env_remove(format!("MSGBUS_{name}"));
        }
        for (name, _) in env::vars_os().filter(|(name, _)| is_header_variable(name)) {
            command.env_remove(name);
        }
        for (name, value) in header_variables(headers) {
            command.env(name, value);
        }
        if let Some(text) = short_text(payload) {
            command.env("MSGBUS_PAYLOAD", text);
        }
        command
    }

    /// What a command reads for a message.
    pub(crate) fn input(&self, message: &Message) -> Vec<u8> {
        if self.raw {
            return message.payload().to_vec();
        }
        let mut json = Vec::new();
        write_json(&mut json, message);
        json
    }
}

/// Writes to the standard input of a command, which need not read it.
async fn feed(stdin: Option<ChildStdin>, input: &[u8]) -> Infallible {
    if let Some(mut stdin) = stdin {
        let _ = stdin.write_all(input).await;
    }
    pending().await
}

/// Standard output of a command.
struct Output {
    /// `None` if it is not a pipe, or has ended.
    stdout: Option<ChildStdout>,
    limit: usize,
    bytes: Vec<u8>,
}

impl Output {
    /// Reads up to the end. Returns false once it is longer than the limit. No byte is lost if the future is dropped.
    async fn read(&mut self) -> bool {
        while let Some(stdout) = &mut self.stdout {
            // An error is the end: there is nothing left to read.
            if !matches!(stdout.read_buf(&mut self.bytes).await, Ok(1..)) {
                self.stdout = None;
            }
            if self.bytes.len() > self.limit {
                return false;
            }
        }
        true
    }

    /// Reads, and completes only if it is longer than the limit.
    async fn too_long(&mut self) {
        if self.read().await {
            pending::<()>().await;
        }
    }
}

/// Whether the system lacks processes, open files or memory, which may be a matter of time.
fn is_shortage(error: &io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    errno.is_some_and(|errno| {
        [Errno::AGAIN, Errno::MFILE, Errno::NFILE, Errno::NOMEM].contains(&errno)
    })
}

/// Kills the command and what it has started.
fn kill_group(group: Option<u32>) {
    let group = group.and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
    if let Some(group) = group {
        // It may have ended by itself.
        let _ = kill_process_group(group, Signal::KILL);
    }
}

/// The prefix of the environment variables for message headers.
const HEADER_VARIABLE: &str = "MSGBUS_HEADER_";

fn is_header_variable(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(HEADER_VARIABLE.as_bytes())
}

/// One variable per header. Values of the same name, or of names that differ only in case or punctuation, are
/// joined with commas.
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

/// The payload as text, if it can be an environment variable.
fn short_text(payload: &[u8]) -> Option<&str> {
    let fits = payload.len() <= MAX_VARIABLE && !payload.contains(&0);
    std::str::from_utf8(payload).ok().filter(|_| fits)
}
