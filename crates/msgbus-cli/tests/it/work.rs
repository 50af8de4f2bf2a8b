//! `msgbus work`, `dead` and `redrive`.

use std::{collections::BTreeSet, fs};

use msgbus_client::{Client, GroupChange};
use serde_json::Value;
use tokio::process::Command;

use crate::support::{
    Daemon, Finished, Proxy, Running, msgbus, name, nowhere, run, soon, until_group, with_files,
    with_hangup,
};

/// `msgbus work t -g w`, with more arguments.
fn work(uri: &str, args: &[&str]) -> Command {
    let mut command = msgbus(&[&["work", "t", "-g", "w"], args].concat());
    command.env("MSGBUS_URI", uri);
    command
}

async fn on(daemon: &Daemon, args: &[&str]) -> Finished {
    let mut command = msgbus(args);
    command.env("MSGBUS_URI", daemon.uri());
    run(command).await
}

#[tokio::test]
async fn a_command_runs_for_each_message_and_its_success_is_an_ack() {
    let daemon = Daemon::start();
    for payload in ["a", "b"] {
        daemon.put("t", payload);
    }
    let script = r#"echo "$MSGBUS_TOPIC $MSGBUS_ID $MSGBUS_DELIVERIES $MSGBUS_PAYLOAD $(cat)""#;
    let uri = daemon.uri();
    let said = run(work(&uri, &["-n", "2", "-o", "raw", "--", "sh", "-c", script])).await;
    assert_eq!((said.code, &*said.err), (Some(0), ""));
    assert_eq!(said.out, "t 0 1 a a\nt 1 1 b b\n");
    let group = until_group(&daemon, "t", "w", |group| group.group.acked == 2).await;
    assert_eq!(group.leases, []);

    daemon.put("t", "c");
    let said = run(work(&uri, &["-n1", "cat"])).await;
    assert_eq!(msgbus_core::json::read_message(said.out.as_bytes()).unwrap().payload(), "c");
}

/// Dashes after the command belong to it, and `sub` does not pass on the variables of `work`.
#[tokio::test]
async fn a_command_may_be_msgbus_itself() {
    let daemon = Daemon::start();
    daemon.put("t", "a");
    let uri = daemon.uri();
    let inner = [env!("CARGO_BIN_EXE_msgbus"), "sub", "t", "--all", "-n1", "sh", "-c"];
    let script = r#"echo "<$MSGBUS_DELIVERIES>""#;
    let args = [&["-n", "1"], &inner[..], &[script]].concat();
    assert_eq!(run(work(&uri, &args)).await.out, "<>\n");
}

#[tokio::test]
async fn a_failing_command_ends_in_dead_letters_and_is_redriven() {
    let daemon = Daemon::start();
    let client = Client::new(&daemon.uri()).unwrap();
    let change = GroupChange { max_deliveries: Some(2), ..GroupChange::default() };
    client.set_group(&name("t"), &"w".parse().unwrap(), &change).await.unwrap();
    on(&daemon, &["pub", "t", "the job", "-H", "Reply-To: answers"]).await.is_silent();
    let script = r#"printf 'starting\nno "disk" & more\n\n' >&2; exit 3"#;
    let failing = ["-n", "2", "--retry-delay", "0", "sh", "-c", script];
    let said = run(work(&daemon.uri(), &failing)).await;
    let once = "starting\nno \"disk\" & more\n\n";
    let note = |n| format!("msgbus: sh failed on message 0 (delivery {n}): exit status: 3\n");
    assert_eq!((said.code, said.err), (Some(0), format!("{once}{}{once}{}", note(1), note(2))));
    until_group(&daemon, "t", "w", |group| group.group.dead_lettered == 1).await;

    let dead = on(&daemon, &["dead", "t"]).await;
    assert_eq!((dead.code, &*dead.err), (Some(0), ""));
    let dead: Value = serde_json::from_str(&dead.out).unwrap();
    assert_eq!(dead["topic"]["name"], "t/dead-letters");
    for (header, value) in [
        ("reply-to", "answers"),
        ("dead-letter-topic", "t"),
        ("dead-letter-group", "w"),
        ("dead-letter-deliveries", "2"),
        ("dead-letter-reason", "no \"disk\" & more"),
    ] {
        assert_eq!(dead["headers"][header], value, "{dead}");
    }
    // It shows them as often as it is asked.
    assert_eq!(on(&daemon, &["dead", "-oraw", "t"]).await.out, "the job\n");

    assert_eq!(on(&daemon, &["redrive", "t"]).await.out, "1 message was published again\n");
    on(&daemon, &["dead", "t"]).await.is_silent();
    assert_eq!(on(&daemon, &["redrive", "t"]).await.out, "0 messages were published again\n");
    on(&daemon, &["redrive", "-q", "t"]).await.is_silent();
    let pulled = on(&daemon, &["pull", "t", "-g", "w", "--ack"]).await.out;
    let pulled: Value = serde_json::from_str(&pulled).unwrap();
    assert_eq!((&pulled["id"], &pulled["payload"]), (&1.into(), &"dGhlIGpvYg==".into()));
    assert_eq!(pulled["headers"], serde_json::json!({"reply-to": "answers"}));
}

#[tokio::test]
async fn redrive_leaves_what_is_no_dead_letter_and_stops_at_an_error() {
    let daemon = Daemon::start();
    let redrive = ["redrive", "t", "--dead-letters", "failed", "--timeout", "30s"];
    on(&daemon, &["pub", "failed", "a stray message"]).await.is_silent();
    for origin in ["t", "a//b", "payments"] {
        let header = format!("dead-letter-topic: {origin}");
        on(&daemon, &["pub", "failed", "x", "-H", &header]).await.is_silent();
    }
    let said = on(&daemon, &redrive).await;
    assert_eq!((said.code, &*said.out), (Some(0), "1 message was published again\n"));
    let stray = "is no dead letter: no header dead-letter-topic";
    assert_eq!(
        said.err,
        format!(
            "msgbus: failed: message 0 {stray}\nmsgbus: failed: message 2 {stray}\n\
             msgbus: failed: message 3 comes from payments: use msgbus redrive payments\n"
        )
    );
    let left = on(&daemon, &["dead", "t", "--dead-letters", "failed", "-o", "raw"]).await.out;
    assert_eq!(left, "a stray message\nx\nx\n");
    until_group(&daemon, "failed", "redrive", |group| group.leases.is_empty()).await;
}

#[tokio::test]
async fn a_topic_of_any_name_is_redriven() {
    let daemon = Daemon::start();
    let client = Client::new(&daemon.uri()).unwrap();
    let change = GroupChange { max_deliveries: Some(1), ..GroupChange::default() };
    for topic in ["a b ", "a%20b", "größe/%25"] {
        client.set_group(&name(topic), &"w".parse().unwrap(), &change).await.unwrap();
        daemon.put(topic, topic);
        let pulled = on(&daemon, &["pull", topic, "-g", "w", "-o", "raw"]).await;
        on(&daemon, &["nack", pulled.err.trim()]).await.is_silent();
        until_group(&daemon, topic, "w", |group| group.group.dead_lettered == 1).await;
        assert_eq!(on(&daemon, &["redrive", topic]).await.out, "1 message was published again\n");
        let pulled = on(&daemon, &["pull", topic, "-g", "w", "--ack", "-o", "raw"]).await;
        assert_eq!(pulled.out, format!("{topic}\n"));
    }
}

#[tokio::test]
async fn commands_run_in_parallel() {
    let daemon = Daemon::start();
    for _ in 0..4 {
        daemon.put("t", "x");
    }
    let folder = tempfile::tempdir().unwrap();
    // Each waits for the others.
    let script = "touch $MSGBUS_ID; while [ $(ls | wc -l) -lt 4 ]; do sleep 0.01; done";
    let mut command = work(&daemon.uri(), &["-P", "4", "-n", "4", "sh", "-c", script]);
    command.current_dir(folder.path());
    run(command).await.is_silent();
    until_group(&daemon, "t", "w", |group| group.group.acked == 4).await;
}

#[tokio::test]
async fn a_lack_of_files_for_processes_is_waited_for() {
    let daemon = Daemon::start();
    for job in 0..10 {
        daemon.put("t", format!("{job}"));
    }
    // A running command takes two open files: its process and its standard error.
    let args = ["work", "t", "-gw", "-P16", "-n10", "--", "sleep", "3"];
    let mut command = with_files(24, &args);
    command.env("MSGBUS_URI", daemon.uri());
    let said = run(command).await;
    assert_eq!(said.code, Some(0), "{}", said.err);
    assert!(said.err.contains("cannot run sleep yet: Too many open files"), "{}", said.err);
    until_group(&daemon, "t", "w", |group| group.group.acked == 10).await;
}

#[tokio::test]
async fn no_job_is_lost_when_a_worker_is_killed() {
    const JOBS: u64 = 100;
    let daemon = Daemon::start();
    let folder = tempfile::tempdir().unwrap();
    let done = folder.path().join("done");
    fs::write(&done, "").unwrap();
    for _ in 0..JOBS {
        daemon.put("t", "x");
    }
    let script = format!("sleep 0.05; echo $MSGBUS_ID >> {}", done.display());
    let start = || {
        let args = ["--lease", "5s", "-P", "2", "sh", "-c", &script];
        Running::start(work(&daemon.uri(), &args))
    };
    let (killed, others) = (start(), [start(), start()]);
    until_group(&daemon, "t", "w", |group| group.group.acked >= 3 && group.leases.len() > 4).await;
    killed.signal("-KILL");
    let group = until_group(&daemon, "t", "w", |group| group.group.acked == JOBS).await;
    assert_eq!((group.group.pending, group.group.leased, group.group.waiting), (0, 0, 0));
    let ids: BTreeSet<u64> =
        fs::read_to_string(&done).unwrap().lines().map(|id| id.parse().unwrap()).collect();
    assert_eq!(ids, (0..JOBS).collect());
    for other in others {
        other.signal("-INT");
        other.end().await.is_silent();
    }
}

#[tokio::test]
async fn the_first_signal_lets_running_commands_finish() {
    for signal in ["-INT", "-TERM"] {
        let daemon = Daemon::start();
        let folder = tempfile::tempdir().unwrap();
        let go = folder.path().join("go");
        for _ in 0..3 {
            daemon.put("t", "x");
        }
        let script = format!("echo began; while [ ! -e {} ]; do sleep 0.01; done", go.display());
        let mut running = Running::start(work(&daemon.uri(), &["-P", "2", "sh", "-c", &script]));
        for _ in 0..2 {
            assert_eq!(running.line().await, "began\n");
        }
        running.signal(signal);
        let is_running =
            tokio::time::timeout(std::time::Duration::from_secs(1), running.child.wait());
        assert!(is_running.await.is_err(), "the commands are let finish");
        fs::write(&go, "").unwrap();
        running.end().await.is_silent();
        let group = until_group(&daemon, "t", "w", |group| group.group.acked == 2).await;
        assert_eq!((group.group.pending, group.group.leased), (1, 0), "no more were taken");
        // While it waits for messages, it ends at once.
        let idle = Running::start(work(&daemon.uri(), &["true"]));
        until_group(&daemon, "t", "w", |group| group.group.acked == 3 && group.group.waiters == 1)
            .await;
        idle.signal(signal);
        idle.end().await.is_silent();
    }
}

#[tokio::test]
async fn the_end_of_the_terminal_lets_running_commands_finish_and_nohup_goes_on() {
    for (option, left) in [("--default-signal=HUP", 1), ("--ignore-signal=HUP", 0)] {
        let daemon = Daemon::start();
        let folder = tempfile::tempdir().unwrap();
        let go = folder.path().join("go");
        daemon.put("t", "x");
        daemon.put("t", "x");
        let script = format!("echo began; while [ ! -e {} ]; do sleep 0.01; done", go.display());
        let uri = daemon.uri();
        let args = ["--uri", &uri, "work", "t", "-g", "w", "sh", "-c", &script];
        let mut running = Running::start(with_hangup(option, &args));
        assert_eq!(running.line().await, "began\n");
        running.signal("-HUP");
        let is_running =
            tokio::time::timeout(std::time::Duration::from_secs(1), running.child.wait());
        assert!(is_running.await.is_err(), "the command is let finish");
        fs::write(&go, "").unwrap();
        if left == 0 {
            assert_eq!(running.line().await, "began\n", "it goes on");
            until_group(&daemon, "t", "w", |group| group.group.acked == 2).await;
            running.signal("-TERM");
        }
        running.end().await.is_silent();
        until_group(&daemon, "t", "w", |group| group.group.pending == left).await;
    }
}

#[tokio::test]
async fn the_second_signal_kills_commands_and_gives_messages_back() {
    let daemon = Daemon::start();
    daemon.put("t", "x");
    let script = "trap '' TERM INT; sleep 1000 & echo $!; wait";
    let mut running = Running::start(work(&daemon.uri(), &["--lease", "1h", "sh", "-c", script]));
    let grandchild = running.line().await;
    let ended = soon(async {
        loop {
            running.signal("-INT");
            // A third signal would end it before the message is given back.
            let pause = std::time::Duration::from_secs(2);
            if let Ok(ended) = tokio::time::timeout(pause, running.child.wait()).await {
                return ended;
            }
            if until_group(&daemon, "t", "w", |_| true).await.group.nacked == 1 {
                return soon(running.child.wait()).await;
            }
        }
    });
    assert_eq!(ended.await.unwrap().code(), Some(130));
    let group = until_group(&daemon, "t", "w", |group| group.group.nacked == 1).await;
    assert_eq!((group.group.waiting, group.leases.len()), (1, 0));
    let process = format!("/proc/{}/stat", grandchild.trim());
    soon(async {
        // It is a zombie until somebody has read its status.
        while fs::read_to_string(&process).is_ok_and(|stat| !stat.contains(") Z ")) {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn commands_go_on_without_the_server_and_their_acks_are_tried() {
    let daemon = Daemon::start();
    let proxy = Proxy::to(daemon.address).await;
    let folder = tempfile::tempdir().unwrap();
    let go = folder.path().join("go");
    daemon.put("t", "x");
    let script =
        format!("echo began; while [ ! -e {} ]; do sleep 0.01; done; echo ended", go.display());
    let args = ["-P", "2", "--lease", "1h", "sh", "-c", &script];
    let mut running = Running::start(work(&proxy.uri(), &args));
    assert_eq!(running.line().await, "began\n");
    until_group(&daemon, "t", "w", |group| group.group.waiters == 1).await;
    proxy.close();
    let note = running.note().await;
    assert!(
        note.contains("lost the connection to http://") && note.contains("trying again"),
        "{note}"
    );
    fs::write(&go, "").unwrap();
    assert_eq!(running.line().await, "ended\n");
    proxy.open();
    assert_eq!(running.note().await, "msgbus: connected again\n");
    until_group(&daemon, "t", "w", |group| group.group.acked == 1).await;
    // Later messages are taken too.
    daemon.put("t", "x");
    assert_eq!(running.line().await, "began\n");
    until_group(&daemon, "t", "w", |group| group.group.acked == 2).await;
    running.signal("-TERM");
    assert_eq!(running.end().await.code, Some(0));
}

#[tokio::test]
async fn a_lease_is_extended_while_the_command_runs_and_its_loss_is_reported() {
    let daemon = Daemon::start();
    let proxy = Proxy::to(daemon.address).await;
    let folder = tempfile::tempdir().unwrap();
    let go = folder.path().join("go");
    daemon.put("t", "x");
    let script = format!("echo began; while [ ! -e {} ]; do sleep 0.01; done", go.display());
    let args = ["-q", "--lease", "3s", "sh", "-c", &script];
    let mut running = Running::start(work(&proxy.uri(), &args));
    assert_eq!(running.line().await, "began\n");
    let group = until_group(&daemon, "t", "w", |group| !group.leases.is_empty()).await;
    let begin = group.leases[0].expires.parse::<chrono::DateTime<chrono::Utc>>().unwrap();
    until_group(&daemon, "t", "w", |group| {
        let expires = group.leases[0].expires.parse::<chrono::DateTime<chrono::Utc>>().unwrap();
        (expires - begin).num_milliseconds() > 4500
    })
    .await;
    proxy.close();
    assert_eq!(running.note().await, "msgbus: t: the lease of message 0 was lost while sh ran\n");
    until_group(&daemon, "t", "w", |group| group.group.lease_expired == 1).await;
    fs::write(&go, "").unwrap();
    proxy.open();
    // It is delivered again.
    assert_eq!(running.line().await, "began\n");
    until_group(&daemon, "t", "w", |group| group.group.acked == 1).await;
    running.signal("-TERM");
    running.end().await.is_silent();
}

#[tokio::test]
async fn what_cannot_begin_is_an_error() {
    let daemon = Daemon::start();
    let uri = daemon.uri();
    run(work(&nowhere().to_string(), &["true"])).await.fails(3, "connection refused");
    run(work(&uri, &["no-such-program"])).await.fails(1, "cannot run no-such-program: ");
    // A program that is there, and cannot be run.
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("script");
    fs::write(&script, "#!/absent/interpreter\n").unwrap();
    fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    daemon.put("t", "x");
    run(work(&uri, &[script.to_str().unwrap()])).await.fails(1, "cannot run /");
    until_group(&daemon, "t", "w", |group| group.group.nacked == 1).await;
}

#[tokio::test]
async fn what_a_command_leaves_behind_blocks_nothing() {
    let daemon = Daemon::start();
    for _ in 0..2 {
        daemon.put("t", vec![b'x'; 300_000]);
    }
    // It keeps standard input and error open.
    let script = "sleep 20 > /dev/null & echo $MSGBUS_ID; exit 0";
    let mut running = Running::start(work(&daemon.uri(), &["-n", "2", "sh", "-c", script]));
    assert_eq!((running.line().await, running.line().await), ("0\n".to_owned(), "1\n".to_owned()));
    assert_eq!(soon(running.child.wait()).await.unwrap().code(), Some(0));
    until_group(&daemon, "t", "w", |group| group.group.acked == 2).await;
}
