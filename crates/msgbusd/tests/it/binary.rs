//! The binary in its own process.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    process::{Child, ChildStderr, Command, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use msgbus_engine_testkit::server::send_signal;

/// The time after which a daemon is killed, so that a test that waits for it fails instead of hanging.
const LIFETIME: Duration = Duration::from_secs(300);

pub(crate) fn msgbusd(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_msgbusd"));
    command
        .args(args)
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// A daemon on its own port with a limit on open files.
#[cfg(target_os = "linux")]
pub(crate) fn msgbusd_of_files(files: usize, args: &str) -> Command {
    let binary = env!("CARGO_BIN_EXE_msgbusd");
    let script = format!("ulimit -n {files}; exec {binary} --bind 127.0.0.1:0 {args}");
    let mut command = Command::new("sh");
    command.args(["-c", &script]).stderr(Stdio::piped());
    command
}

/// A daemon in its own process, killed when dropped.
pub(crate) struct Running {
    pub(crate) child: Child,
    pub(crate) log: BufReader<ChildStderr>,
    /// The log up to the line with the address.
    pub(crate) opening: String,
    pub(crate) address: SocketAddr,
    _watchdog: mpsc::Sender<()>,
}

impl Running {
    pub(crate) fn start(command: &mut Command) -> Self {
        let mut child = command.spawn().unwrap();
        let watchdog = watchdog(child.id());
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut opening = String::new();
        while !opening.contains("listening on") {
            assert_ne!(log.read_line(&mut opening).unwrap(), 0, "it ended: {opening}");
        }
        let address = opening.split("://").nth(1).unwrap().split(' ').next().unwrap();
        Self { child, log, address: address.parse().unwrap(), opening, _watchdog: watchdog }
    }

    pub(crate) fn signal(&self, name: &str) {
        assert!(send_signal(self.child.id(), name));
    }

    pub(crate) fn end(mut self) -> (ExitStatus, String) {
        let mut log = String::new();
        self.log.read_to_string(&mut log).unwrap();
        (self.child.wait().unwrap(), log)
    }

    /// Reads the log up to a line that contains `text`.
    pub(crate) fn logs(&mut self, text: &str) -> String {
        let mut line = String::new();
        while !line.contains(text) {
            line.clear();
            assert_ne!(self.log.read_line(&mut line).unwrap(), 0, "it ended without {text:?}");
        }
        line
    }

    pub(crate) fn say(&self, request: &str) -> String {
        self.say_with(request, "Accept: */*")
    }

    pub(crate) fn say_with(&self, request: &str, header: &str) -> String {
        let mut stream = TcpStream::connect(self.address).unwrap();
        let headers = format!("Host: localhost\r\nConnection: close\r\n{header}\r\n");
        write!(stream, "{request} HTTP/1.1\r\n{headers}\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }
}

/// Kills a process after [`LIFETIME`], unless the returned sender is dropped before.
fn watchdog(pid: u32) -> mpsc::Sender<()> {
    let (alive, ended) = mpsc::channel();
    thread::spawn(move || {
        if ended.recv_timeout(LIFETIME) == Err(mpsc::RecvTimeoutError::Timeout) {
            send_signal(pid, "-KILL");
        }
    });
    alive
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
