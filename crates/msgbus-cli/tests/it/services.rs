//! `msgbus request`, `serve` and `services`. docs/cli.md.

use std::{fs, process::Stdio, time::Duration};

use msgbus_client::{Client, Headers, NewRequest};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    process::Command,
};

use crate::support::{
    Daemon, Finished, Proxy, Running, free_address, msgbus, name, nowhere, run, soon, with_files,
};

/// `msgbus serve s`, with more arguments.
pub(crate) fn serve(uri: &str, args: &[&str]) -> Command {
    let mut command = msgbus(&[&["serve", "s"], args].concat());
    command.env("MSGBUS_URI", uri);
    command
}

/// Waits until this many responders wait for requests of `s`.
pub(crate) async fn responders(daemon: &Daemon, count: usize) {
    let is_so = || daemon.bus.service(&name("s")).is_some_and(|stats| stats.responders == count);
    msgbus_testkit::until(is_so).await;
}

/// Starts `msgbus serve s`, and waits until it waits for requests.
pub(crate) async fn serving(daemon: &Daemon, args: &[&str]) -> Running {
    let running = Running::start(serve(&daemon.uri(), args));
    responders(daemon, 1).await;
    running
}

/// `msgbus request s`, with more arguments.
pub(crate) fn request(uri: &str, args: &[&str]) -> Command {
    let mut command = msgbus(&[&["request", "s", "--timeout", "60s"], args].concat());
    command.env("MSGBUS_URI", uri);
    command
}

pub(crate) async fn ask(daemon: &Daemon, args: &[&str]) -> Finished {
    run(request(&daemon.uri(), args)).await
}

pub(crate) async fn end(running: Running) -> Finished {
    running.signal("-TERM");
    running.end().await
}

#[tokio::test]
async fn a_request_is_a_run_of_the_command_byte_for_byte() {
    let daemon = Daemon::start();
    let serving = serving(&daemon, &["--", "tr", "a-z", "A-Z"]).await;
    let said = ask(&daemon, &["hello"]).await;
    assert_eq!((said.code, &*said.out, &*said.err), (Some(0), "HELLO", ""));
    end(serving).await.is_silent();

    let serving = self::serving(&daemon, &["cat"]).await;
    let payload: Vec<u8> = (0..1 << 20).map(|n: u32| n.to_le_bytes()[0]).collect();
    for source in [&[][..], &["-"]] {
        let mut command = request(&daemon.uri(), source);
        command.stdin(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (mut stdin, mut stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let mut reply = Vec::new();
        let (written, read) = soon(async {
            tokio::join!(
                async {
                    let written = stdin.write_all(&payload).await;
                    drop(stdin);
                    written
                },
                stdout.read_to_end(&mut reply)
            )
        })
        .await;
        assert!(written.is_ok() && read.is_ok() && reply == payload, "{} bytes", reply.len());
        assert!(soon(child.wait()).await.unwrap().success());
    }
    end(serving).await.is_silent();
}

#[tokio::test]
async fn headers_are_variables_and_a_reply_has_its_own() {
    let daemon = Daemon::start();
    let script = r#"echo "$MSGBUS_SERVICE $MSGBUS_PAYLOAD $MSGBUS_HEADER_CONTENT_TYPE $MSGBUS_HEADER_TAG <$MSGBUS_TOPIC>""#;
    let args = ["-t", "text/csv", "-H", "answer: 42", "sh", "-c", script];
    let mut command = serve(&daemon.uri(), &args);
    command.env("MSGBUS_TOPIC", "inherited");
    let serving = Running::start(command);
    responders(&daemon, 1).await;
    let said = ask(&daemon, &["-t", "text/plain", "-H", "Tag: a", "hi"]).await;
    assert_eq!(said.out, "s hi text/plain a <>\n", "{}", said.err);
    let client = Client::new(&daemon.uri()).unwrap();
    let reply = client.request(&name("s"), "hi").await.unwrap();
    let headers = Headers::new([("content-type", "text/csv"), ("answer", "42")]).unwrap();
    assert_eq!(reply.headers, headers);
    end(serving).await.is_silent();
}

#[tokio::test]
async fn each_way_to_get_no_reply_has_an_exit_code() {
    let daemon = Daemon::start();
    ask(&daemon, &["x"]).await.fails(7, "msgbus: s: nobody serves the service\n");
    let nobody = nowhere().to_string();
    let refused = ["request", "s", "x", "-q", "--timeout", "100ms", "-u", &nobody];
    run(msgbus(&refused)).await.fails(3, "connection refused");

    let script = "case $MSGBUS_PAYLOAD in
        fail) printf 'starting\\nno \"disk\" & more\\n\\n' >&2; exit 3 ;;
        quiet) exit 4 ;;
        *) sleep 1000 ;;
    esac";
    let mut serving = serving(&daemon, &["sh", "-c", script]).await;
    ask(&daemon, &["fail"]).await.fails(9, "s: the responder failed: no \"disk\" & more\n");
    for line in ["starting\n", "no \"disk\" & more\n", "\n", "msgbus: s: no \"disk\" & more\n"] {
        assert_eq!(serving.note().await, line);
    }
    ask(&daemon, &["quiet"]).await.fails(9, "the responder failed: sh failed: exit status: 4\n");
    assert_eq!(serving.note().await, "msgbus: s: sh failed: exit status: 4\n");
    responders(&daemon, 1).await;
    let mut late = msgbus(&["request", "s", "--timeout", "3s", "x"]);
    late.env("MSGBUS_URI", daemon.uri());
    run(late).await.fails(8, "s: there was no reply in time; a responder may have done the work\n");
    // The command is killed, and the next request is served.
    let note = serving.note().await;
    assert!(note.starts_with("msgbus: s: sh had no reply within "), "{note}");
    ask(&daemon, &["quiet"]).await.fails(9, "exit status: 4");
    assert_eq!(end(serving).await.code, Some(0));
}

#[tokio::test]
async fn what_is_wrong_is_refused() {
    let daemon = Daemon::start();
    for (args, code, text) in [
        (&["request", "s", "x", "--timeout", "0"][..], 2, "--timeout must be 1ms to 1m"),
        (&["request", "s", "x", "--timeout", "48h"], 2, "--timeout must be 1ms to 1m"),
        (&["request", "-", "x"], 2, "bad service \"-\""),
        (&["request", "a//b", "x"], 2, "bad service \"a//b\""),
        (&["request", "", "x"], 2, "bad service \"\": it is empty"),
        (&["serve", "a/../b", "cat"], 2, "bad service \"a/../b\""),
        (&["serve", "s"], 2, "no command and no --to given"),
        (&["serve", "s", "--to", "http://a", "cat"], 2, "give one of --to and a command"),
        (&["serve", "s", "--to", "ftp://a"], 2, "--to: cannot speak \"ftp\""),
        (&["serve", "s", "--to", "http://a", "-t", "a/b"], 2, "has no effect here"),
        (&["serve", "s", "-P", "0", "cat"], 2, "--parallel must be 1 to 1024"),
        (&["serve", "s", "no-such-program"], 1, "cannot run no-such-program: "),
    ] {
        let mut command = msgbus(args);
        command.env("MSGBUS_URI", daemon.uri());
        run(command).await.fails(code, text);
    }
    run(serve(&nowhere().to_string(), &["cat"])).await.fails(3, "connection refused");
}

#[tokio::test]
async fn a_command_that_does_not_start_or_prints_too_much_is_a_failure() {
    let daemon = Daemon::start();
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("script");
    fs::write(&script, "#!/absent/interpreter\n").unwrap();
    fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let broken = serving(&daemon, &[script.to_str().unwrap()]).await;
    ask(&daemon, &["x"]).await.fails(9, "the responder failed: cannot run /");
    broken.end().await.fails(1, "cannot run /");

    // More than the server accepts, and without an end.
    let script = "if [ $MSGBUS_PAYLOAD = large ]; then head -c 1048577 /dev/zero; else yes; fi";
    let mut serving = serving(&daemon, &["sh", "-c", script]).await;
    let reason = "the responder failed: the reply was refused: the server says 413";
    ask(&daemon, &["large"]).await.fails(9, reason);
    assert!(serving.note().await.contains("an answer was not accepted: the server says 413"));
    ask(&daemon, &["endless"]).await.fails(9, "the responder failed: sh printed more than 64 MiB");
    assert_eq!(end(serving).await.code, Some(0));
}

#[tokio::test]
async fn requests_are_answered_in_parallel() {
    let daemon = Daemon::start();
    let folder = tempfile::tempdir().unwrap();
    // Each waits for the others.
    let script = "touch $MSGBUS_PAYLOAD; while [ $(ls | wc -l) -lt 4 ]; do sleep 0.01; done; echo";
    let mut command = serve(&daemon.uri(), &["-P", "4", "sh", "-c", script]);
    command.current_dir(folder.path());
    let serving = Running::start(command);
    responders(&daemon, 1).await;
    let asked = ["a", "b", "c", "d"].map(|payload| {
        let command = request(&daemon.uri(), &[payload]);
        tokio::spawn(run(command))
    });
    for said in asked {
        assert_eq!(said.await.unwrap().code, Some(0));
    }
    end(serving).await.is_silent();
}

#[tokio::test]
async fn a_lack_of_files_for_processes_is_waited_for() {
    let daemon = Daemon::start();
    let mut command = with_files(24, &["serve", "s", "-P16", "--", "sleep", "1"]);
    command.env("MSGBUS_URI", daemon.uri());
    let serving = Running::start(command);
    responders(&daemon, 1).await;
    let client = Client::new(&daemon.uri()).unwrap();
    let asked: Vec<_> = (0..20)
        .map(|_| {
            let client = client.clone();
            let request = NewRequest::new("x").timeout(NewRequest::MAX_TIMEOUT);
            tokio::spawn(async move { client.request(&name("s"), request).await })
        })
        .collect();
    for asked in asked {
        soon(asked).await.unwrap().unwrap();
    }
    let said = end(serving).await;
    assert!(said.err.contains("cannot run sleep yet: Too many open files"), "{}", said.err);
}

#[tokio::test]
async fn the_first_signal_lets_requests_finish_and_takes_no_more() {
    let daemon = Daemon::start();
    let folder = tempfile::tempdir().unwrap();
    let go = folder.path().join("go");
    let script =
        format!("echo began >&2; while [ ! -e {} ]; do sleep 0.01; done; echo ok", go.display());
    let mut serving = serving(&daemon, &["sh", "-c", &script]).await;
    let asked = tokio::spawn(run(request(&daemon.uri(), &["x"])));
    assert_eq!(serving.note().await, "began\n");
    serving.signal("-INT");
    let pause = Duration::from_millis(300);
    assert!(tokio::time::timeout(pause, serving.child.wait()).await.is_err(), "it finishes");
    fs::write(&go, "").unwrap();
    assert_eq!(asked.await.unwrap().out, "ok\n");
    serving.end().await.is_silent();
    responders(&daemon, 0).await;
}

#[tokio::test]
async fn no_request_is_lost_to_a_responder_that_ends() {
    let daemon = Daemon::start();
    for _ in 0..5 {
        let serving = serving(&daemon, &["-P4", "cat"]).await;
        let asked = ["a", "b", "c"].map(|payload| {
            let command = request(&daemon.uri(), &[payload]);
            tokio::spawn(run(command))
        });
        let served = || daemon.bus.service(&name("s")).is_some_and(|s| s.counters.asked % 3 > 0);
        tokio::time::timeout(Duration::from_secs(1), msgbus_testkit::until(served)).await.ok();
        end(serving).await.is_silent();
        for asked in asked {
            let said = asked.await.unwrap();
            assert!(matches!(said.code, Some(0 | 7)), "replied or refused: {said:?}");
        }
    }
}

#[tokio::test]
async fn the_whole_output_is_the_reply() {
    let daemon = Daemon::start();
    // The command has ended before what it has started writes.
    let serving = serving(&daemon, &["sh", "-c", "(sleep 1; echo late) & echo early"]).await;
    assert_eq!(ask(&daemon, &["x"]).await.out, "early\nlate\n");
    end(serving).await.is_silent();
}

#[tokio::test]
async fn a_request_in_hand_at_a_stop_of_the_server_is_not_repeated() {
    let daemon = Daemon::start();
    let mut serving = serving(&daemon, &["sh", "-c", "echo began >&2; sleep 30"]).await;
    let asked = tokio::spawn(run(request(&daemon.uri(), &["x"])));
    assert_eq!(serving.note().await, "began\n");
    daemon.stop().await;
    asked.await.unwrap().fails(3, "lost the connection");
}

#[tokio::test]
async fn the_second_signal_kills_commands_and_gives_requests_back() {
    let daemon = Daemon::start();
    let mut first = serving(&daemon, &["sh", "-c", "echo $$ >&2; sleep 1000"]).await;
    let asked = tokio::spawn(run(request(&daemon.uri(), &["--retry", "x"])));
    let pid = first.note().await;
    let serving = serving(&daemon, &["echo", "second"]).await;
    let ended = soon(async {
        loop {
            first.signal("-INT");
            // Longer than it takes to exit: a third signal would end it at once.
            let pause = Duration::from_secs(4);
            if let Ok(ended) = tokio::time::timeout(pause, first.child.wait()).await {
                return ended;
            }
        }
    });
    assert_eq!(ended.await.unwrap().code(), Some(130));
    assert_eq!(asked.await.unwrap().out, "second\n");
    let process = format!("/proc/{}/stat", pid.trim());
    msgbus_testkit::until(|| {
        // It is a zombie until somebody has read its status.
        fs::read_to_string(&process).map_or(true, |stat| stat.contains(") Z "))
    })
    .await;
    end(serving).await.is_silent();
}

/// Over HTTP the server cannot know that a responder was killed: only time ends its request.
#[tokio::test]
async fn a_requester_of_a_killed_responder_is_told_in_time() {
    let daemon = Daemon::start();
    let mut serving = serving(&daemon, &["sh", "-c", "echo began >&2; sleep 30"]).await;
    let mut command = msgbus(&["request", "s", "--timeout", "8s", "--retry", "x"]);
    command.env("MSGBUS_URI", daemon.uri());
    let asked = tokio::spawn(run(command));
    assert_eq!(serving.note().await, "began\n");
    serving.signal("-KILL");
    asked.await.unwrap().fails(8, "there was no reply in time");
    // The service is as good as before.
    let serving = self::serving(&daemon, &["cat"]).await;
    assert_eq!(ask(&daemon, &["y"]).await.out, "y");
    end(serving).await.is_silent();
}

#[tokio::test]
async fn a_responder_survives_the_server() {
    let address = free_address();
    let daemon = Daemon::at(address, |_| {});
    let proxy = Proxy::to(address).await;
    let mut serving = Running::start(serve(&proxy.uri(), &["cat"]));
    responders(&daemon, 1).await;
    proxy.close();
    let note = serving.note().await;
    assert!(note.contains("lost the connection") && note.contains("trying again in"), "{note}");
    daemon.stop().await;
    let daemon = Daemon::at(address, |_| {});
    proxy.open();
    assert_eq!(serving.note().await, "msgbus: connected again\n");
    responders(&daemon, 1).await;
    assert_eq!(ask(&daemon, &["x"]).await.out, "x");
    end(serving).await.is_silent();
}

#[tokio::test]
async fn services_are_listed() {
    let daemon = Daemon::start();
    let list = async |args: &[&str]| {
        let mut command = msgbus(&[&["services"], args].concat());
        command.env("MSGBUS_URI", daemon.uri());
        run(command).await
    };
    let head = "SERVICE  RESPONDERS  QUEUED  IN HAND  ASKED  REPLIED  FAILED  TIMED OUT  REFUSED\n";
    let said = list(&[]).await;
    assert_eq!((said.code, &*said.out, &*said.err), (Some(0), head, ""));
    let serving = serving(&daemon, &["cat"]).await;
    ask(&daemon, &["x"]).await;
    let row = "s                 1       0        0      1        1       0          0        0\n";
    // Between two takes, nobody waits for a moment.
    soon(async { while list(&[]).await.out != format!("{head}{row}") {} }).await;
    for (args, shown) in [(&["s"][..], true), (&["*"], true), (&["t"], false), (&["s/*"], false)] {
        assert_eq!(list(args).await.out.contains("\ns "), shown, "{args:?}");
    }
    let json: Value = serde_json::from_str(&list(&["--json"]).await.out).unwrap();
    assert_eq!((&json["name"], &json["replied"]), (&"s".into(), &1.into()));
    end(serving).await.is_silent();
}
