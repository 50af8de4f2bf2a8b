//! The built binary.

use std::{process::Stdio, time::Duration};

use msgbus_client::{Client, GroupDetails};
use msgbus_engine_testkit::server::send_signal;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    process::{Child, ChildStderr, ChildStdin, ChildStdout, Command},
};

pub(crate) use msgbus_testkit::{Daemon, Proxy, free_address, name, nowhere, soon};

pub(crate) fn msgbus(args: &[&str]) -> Command {
    command(env!("CARGO_BIN_EXE_msgbus"), args)
}

/// The same with a limit on its data segment, in KiB. An allocation beyond it kills the process.
pub(crate) fn in_memory(kib: u32, args: &[&str]) -> Command {
    limited(&format!("-d {kib}"), args)
}

/// The same, with SIGHUP as in a terminal (`--default-signal=HUP`), or as under `nohup` (`--ignore-signal=HUP`).
pub(crate) fn with_hangup(option: &str, args: &[&str]) -> Command {
    command("env", &[&[option, env!("CARGO_BIN_EXE_msgbus")], args].concat())
}

/// The same with a limit on its open files.
pub(crate) fn with_files(files: u32, args: &[&str]) -> Command {
    limited(&format!("-n {files}"), args)
}

fn limited(limit: &str, args: &[&str]) -> Command {
    let script = format!("ulimit {limit}; exec \"$@\"");
    command("sh", &[&["-c", &script, "sh", env!("CARGO_BIN_EXE_msgbus")], args].concat())
}

fn command(program: &str, args: &[&str]) -> Command {
    let mut command = Command::new(program);
    command
        .args(args)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

/// Waits until a group exists and is in some state, and returns it.
pub(crate) async fn until_group(
    daemon: &Daemon,
    topic: &str,
    group: &str,
    mut is_so: impl FnMut(&GroupDetails) -> bool,
) -> GroupDetails {
    let client = Client::new(&daemon.uri()).unwrap();
    let (topic, group) = (name(topic), group.parse().unwrap());
    soon(async {
        loop {
            let details = client.inspect_group(&topic, &group).await.unwrap();
            if let Some(details) = details.filter(&mut is_so) {
                return details;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
}

#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Finished {
    /// Asserts success without any output.
    #[track_caller]
    pub(crate) fn is_silent(&self) {
        assert_eq!((self.code, &self.out[..], &self.err[..]), (Some(0), "", ""));
    }

    /// Asserts the exit code, and one line on standard error that contains `mention`.
    #[track_caller]
    pub(crate) fn fails(&self, code: i32, mention: &str) {
        assert_eq!(self.code, Some(code), "{self:?}");
        assert!(self.err.contains(mention), "{:?} does not say {mention:?}", self.err);
        assert!(self.err.starts_with("msgbus: "), "{self:?}");
        assert_eq!(self.err.lines().count(), 1, "{self:?}");
        assert_eq!(self.out, "", "{self:?}");
    }
}

/// Runs a command to its end, with `input` on standard input.
pub(crate) async fn run_with(mut command: Command, input: &[u8]) -> Finished {
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let feed = async {
        // The command may exit without reading all of it.
        let _ = stdin.write_all(input).await;
        drop(stdin);
    };
    let ((), output) = soon(async { tokio::join!(feed, child.wait_with_output()) }).await;
    let output = output.unwrap();
    Finished {
        code: output.status.code(),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

pub(crate) async fn run(command: Command) -> Finished {
    run_with(command, b"").await
}

/// A running command.
pub(crate) struct Running {
    pub(crate) child: Child,
    pub(crate) stdin: Option<ChildStdin>,
    pub(crate) out: BufReader<ChildStdout>,
    err: BufReader<ChildStderr>,
}

impl Running {
    pub(crate) fn start(mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        Self {
            stdin: child.stdin.take(),
            out: BufReader::new(child.stdout.take().unwrap()),
            err: BufReader::new(child.stderr.take().unwrap()),
            child,
        }
    }

    pub(crate) async fn line(&mut self) -> String {
        let mut line = String::new();
        soon(self.out.read_line(&mut line)).await.unwrap();
        line
    }

    /// The next line on standard error.
    pub(crate) async fn note(&mut self) -> String {
        let mut line = String::new();
        soon(self.err.read_line(&mut line)).await.unwrap();
        line
    }

    /// The ids of the next messages, printed as JSON.
    pub(crate) async fn ids(&mut self, count: usize) -> Vec<u64> {
        let mut ids = Vec::new();
        while ids.len() < count {
            let line = self.line().await;
            ids.push(msgbus_core::json::read_message(line.as_bytes()).unwrap().id());
        }
        ids
    }

    pub(crate) fn signal(&self, signal: &str) {
        assert!(send_signal(self.child.id().unwrap(), signal));
    }

    pub(crate) async fn end(mut self) -> Finished {
        drop(self.stdin);
        let (mut out, mut err) = (String::new(), String::new());
        let (_, _, status) = soon(async {
            tokio::join!(
                self.out.read_to_string(&mut out),
                self.err.read_to_string(&mut err),
                self.child.wait()
            )
        })
        .await;
        Finished { code: status.unwrap().code(), out, err }
    }
}
