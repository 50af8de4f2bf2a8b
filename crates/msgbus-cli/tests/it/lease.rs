//! `msgbus pull --group`, `ack`, `nack`, `extend` and `group`.

use msgbus_client::{Client, GroupDetails};
use serde_json::Value;

use crate::support::{Daemon, Finished, Running, msgbus, name, run, run_with, until_group};

async fn on(daemon: &Daemon, args: &[&str]) -> Finished {
    run_on(daemon, args, b"").await
}

async fn run_on(daemon: &Daemon, args: &[&str], input: &[u8]) -> Finished {
    let mut command = msgbus(args);
    command.env("MSGBUS_URI", daemon.uri());
    run_with(command, input).await
}

async fn group(daemon: &Daemon) -> GroupDetails {
    let client = Client::new(&daemon.uri()).unwrap();
    client.inspect_group(&name("t"), &"w".parse().unwrap()).await.unwrap().unwrap()
}

fn tokens(json: &str) -> Vec<String> {
    let token = |line: &str| serde_json::from_str::<Value>(line).unwrap()["lease"].clone();
    json.lines().map(|line| token(line).as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_leased_message_is_printed_with_its_token() {
    let daemon = Daemon::start();
    for n in 0..3 {
        daemon.put("t", n.to_string());
    }
    let json = on(&daemon, &["pull", "t", "-g", "w", "--lease", "10m"]).await;
    assert_eq!((json.code, &*json.err), (Some(0), ""));
    let object: Value = serde_json::from_str(&json.out).unwrap();
    assert_eq!((&object["id"], &object["deliveries"]), (&0.into(), &1.into()));
    let created: chrono::DateTime<chrono::Utc> =
        object["created"].as_str().unwrap().parse().unwrap();
    let expires =
        object["lease_expires"].as_str().unwrap().parse::<chrono::DateTime<chrono::Utc>>();
    assert!((590..=660).contains(&(expires.unwrap() - created).num_seconds()), "{}", json.out);
    assert_eq!(msgbus_core::json::read_message(json.out.as_bytes()).unwrap().payload(), "0");

    let raw = on(&daemon, &["pull", "t", "-g", "w", "-o", "raw", "-n", "2", "--max", "2"]).await;
    assert_eq!((raw.code, &*raw.out), (Some(0), "1\n2\n"));
    assert_eq!(raw.err.lines().count(), 2, "the tokens, alone on their lines: {}", raw.err);

    // All of them are acknowledged, the first as an argument, the others from standard input.
    on(&daemon, &["ack", &tokens(&json.out)[0]]).await.is_silent();
    run_on(&daemon, &["ack", "-"], raw.err.as_bytes()).await.is_silent();
    assert_eq!(group(&daemon).await.group.acked, 3);
    let again = on(&daemon, &["ack", &tokens(&json.out)[0]]).await;
    again.fails(1, ": the lease is over\n");
    let said =
        run_on(&daemon, &["ack", "-"], format!("\n{}not a token\n", raw.err).as_bytes()).await;
    assert_eq!(said.code, Some(1), "{said:?}");
    assert_eq!(said.err.lines().filter(|line| line.ends_with("the lease is over")).count(), 2);
    assert!(said.err.contains("msgbus: line 4 is not a lease token"), "{}", said.err);
}

#[tokio::test]
async fn with_ack_a_message_is_acknowledged_once_it_is_printed() {
    let daemon = Daemon::start();
    for n in 0..3 {
        daemon.put("t", n.to_string());
    }
    let all =
        on(&daemon, &["pull", "t", "-g", "w", "--ack", "-n", "5", "--max", "2", "-o", "raw"]).await;
    assert_eq!((all.code, &*all.out, &*all.err), (Some(0), "0\n1\n2\n", ""));
    assert_eq!(group(&daemon).await.group.acked, 3);
    let json = {
        daemon.put("t", "3");
        on(&daemon, &["pull", "t", "-g", "w", "--ack"]).await.out
    };
    assert!(!json.contains("lease"), "{json}");
    on(&daemon, &["pull", "t", "-g", "w", "--ack"]).await.is_silent();

    // What cannot be printed is not acknowledged.
    daemon.put("t", "4");
    let mut sh = tokio::process::Command::new("sh");
    sh.args(["-c", &format!("{} pull t -g w --ack > /dev/full", env!("CARGO_BIN_EXE_msgbus"))]);
    sh.env("MSGBUS_URI", daemon.uri()).stderr(std::process::Stdio::piped());
    assert_eq!(run(sh).await.code, Some(1));
    let group = group(&daemon).await;
    assert_eq!((group.group.acked, group.leases.len()), (4, 1));
}

#[tokio::test]
async fn a_message_is_given_back_and_extended() {
    let daemon = Daemon::start();
    daemon.put("t", "x");
    let pull = ["pull", "t", "-g", "w"];
    let first = tokens(&on(&daemon, &pull).await.out).remove(0);
    on(&daemon, &pull).await.is_silent();
    on(&daemon, &["extend", "--lease", "1h", &first]).await.is_silent();
    let expires = group(&daemon).await.leases[0].expires.parse::<chrono::DateTime<chrono::Utc>>();
    assert!((expires.unwrap() - chrono::Utc::now()).num_minutes() > 50);
    on(&daemon, &["nack", "--reason", "later", &first]).await.is_silent();
    let peeked = on(&daemon, &["pull", "t", "-g", "w", "--peek", "-o", "raw"]).await;
    assert_eq!((&*peeked.out, &*peeked.err), ("x\n", ""));
    let second = on(&daemon, &pull).await.out;
    assert!(second.contains(r#""deliveries":2"#), "{second}");
    on(&daemon, &["nack", "--delay", "12h", &tokens(&second)[0]]).await.is_silent();
    on(&daemon, &pull).await.is_silent();
    assert_eq!((group(&daemon).await.group.waiting, group(&daemon).await.group.nacked), (1, 2));
}

#[tokio::test]
async fn tokens_in_a_pipe_are_settled_as_they_come() {
    let daemon = Daemon::start();
    for _ in 0..2 {
        daemon.put("t", "x");
    }
    let pulled = on(&daemon, &["pull", "t", "-g", "w", "-n", "2", "--max", "2"]).await.out;
    let mut command = msgbus(&["ack", "-"]);
    command.env("MSGBUS_URI", daemon.uri()).stdin(std::process::Stdio::piped());
    let mut running = Running::start(command);
    for (acked, token) in (1..).zip(tokens(&pulled)) {
        let stdin = running.stdin.as_mut().unwrap();
        tokio::io::AsyncWriteExt::write_all(stdin, format!("{token}\n").as_bytes()).await.unwrap();
        until_group(&daemon, "t", "w", |group| group.group.acked == acked).await;
    }
    running.end().await.is_silent();
}

#[tokio::test]
async fn a_group_is_shown_and_changed() {
    let daemon = Daemon::start();
    on(&daemon, &["group", "t", "w"]).await.fails(1, "no such group: w of t");
    on(&daemon, &["group", "t", "w", "--remove"]).await.fails(1, "no such group: w of t");
    let created = on(
        &daemon,
        &[
            "group",
            "t",
            "w",
            "--max-deliveries",
            "3",
            "--max-leases",
            "7",
            "--dead-letters",
            "failed",
        ],
    )
    .await;
    assert_eq!((created.code, &*created.err), (Some(0), ""));
    for line in ["group            w", "max deliveries   3, then to failed", "max leases       7"] {
        assert!(created.out.lines().any(|shown| shown == line), "no {line:?} in {}", created.out);
    }
    for _ in 0..2 {
        daemon.put("t", "x");
    }
    on(&daemon, &["pull", "t", "-g", "w"]).await;
    let shown = on(&daemon, &["group", "t", "w"]).await.out;
    for line in ["pending          1", "leased           1"] {
        assert!(shown.lines().any(|shown| shown == line), "no {line:?} in {shown}");
    }
    let lease = shown.lines().last().unwrap();
    assert!(lease.starts_with("0 ") && lease.contains("127.0.0.1:"), "{shown}");

    let info = on(&daemon, &["info", "t"]).await.out;
    let row = |table: &str, start: &str| {
        let found = table.lines().find(|line| line.starts_with(start));
        let line = found.unwrap_or_else(|| panic!("no {start:?} in {table}"));
        line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(row(&info, "w ")[..6], ["w", "1", "1", "0", "0", "0"]);
    let lease = info.lines().last().unwrap();
    assert!(lease.starts_with('w') && lease.contains("127.0.0.1:"), "{info}");
    daemon.put("another", "x");
    let topics = on(&daemon, &["topics", "--groups"]).await.out;
    assert_eq!(row(&topics, "w of t ")[..5], ["w", "of", "t", "1", "1"]);
    let json = on(&daemon, &["topics", "--groups", "--json"]).await.out;
    let groups = |line: &str| {
        let topic: Value = serde_json::from_str(line).unwrap();
        (topic["name"].clone(), topic["groups"].as_array().map(Vec::len))
    };
    let groups: Vec<_> = json.lines().map(groups).collect();
    assert_eq!(groups, [("another".into(), None), ("t".into(), Some(1))]);
    assert!(!on(&daemon, &["topics"]).await.out.contains("GROUP"));
    let json = on(&daemon, &["info", "--json", "t"]).await.out;
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["groups"][0]["group"], "w");

    let json = on(&daemon, &["group", "t", "w", "--since", "new", "--json"]).await.out;
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json["pending"], &json["leased"]), (&0.into(), &0.into()));
    on(&daemon, &["group", "t", "w", "--remove"]).await.is_silent();
    on(&daemon, &["group", "t", "w"]).await.fails(1, "no such group: w of t");
}

/// Of the right form.
const TOKEN: &str = "AgAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAB0";

#[tokio::test]
async fn bad_input_is_refused_before_anything_is_sent() {
    let long = "x".repeat(65);
    for (args, mention) in [
        (&["pull", "t", "-g", "a b"][..], "--group: bad group \"a b\": "),
        (&["pull", "t", "-g", "ä"], "--group: bad group \"ä\": "),
        (&["pull", "t", "-g", &long], "--group: bad group "),
        (&["pull", "t", "-g", ""], "-g is empty"),
        (&["pull", "t", "--ack"], "--ack is only for a group; add --group NAME"),
        (&["pull", "t", "--lease", "1m"], "--lease is only for a group; add --group NAME"),
        (&["pull", "t", "-g", "w", "--ack", "--lease", "1m"], "give one of --ack and --lease"),
        (&["pull", "t", "-g", "w", "--peek", "--ack"], "--peek takes nothing; omit --ack"),
        (&["pull", "t", "-g", "w", "--lease", "0"], "--lease must be 1s to 12h"),
        (&["pull", "t", "-g", "w", "--lease", "999ms"], "--lease must be 1s to 12h"),
        (&["pull", "t", "-g", "w", "--lease", "365d"], "--lease must be 1s to 12h"),
        (&["pull", "t", "-g", "w", "--lease", "99999999999999999999d"], "--lease: not a duration"),
        (&["ack"], "no token given; usage: msgbus ack TOKEN..."),
        (&["ack", "a b"], "bad token \"a b\": not a lease token"),
        (&["ack", TOKEN, ""], "bad token \"\": not a lease token"),
        (&["ack", "x"], "bad token \"x\": not a lease token"),
        (&["nack", TOKEN, "--delay", "13h"], "--delay must be 0s to 12h"),
        (&["extend", TOKEN, "--lease", "1d"], "--lease must be 1s to 12h"),
        (&["ack", TOKEN, "--delay", "1s"], "--delay is not an option of ack"),
        (&["work", "t", "-g", "w"], "no command given; usage: msgbus work TOPIC COMMAND [ARG...]"),
        (&["work", "t", "true"], "no group given; add --group NAME"),
        (&["work", "t", "-g", "w", "-P", "0", "true"], "--parallel must be 1 to 1024"),
        (
            &["work", "t", "-g", "w", "--retry-delay", "2d", "true"],
            "--retry-delay must be 0s to 12h",
        ),
        (&["work", "t", "-g", "w", "-o", "pretty", "true"], "a command receives json or raw"),
        (&["work", "t", "-g", "w", ""], "the command is empty"),
        (&["group", "t"], "no group given; usage: msgbus group TOPIC GROUP"),
        (&["group", "t", "a/b"], "bad group \"a/b\": "),
        (&["group", "t", "w", "--max-leases", "0"], "--max-leases must be 1 to 65536"),
        (&["group", "t", "w", "--max-deliveries", "4294967296"], "--max-deliveries must be 0 to "),
        (&["group", "t", "w", "--dead-letters", "a//b"], "--dead-letters: bad topic \"a//b\": "),
        (&["group", "t", "w", "--remove", "--since", "all"], "--remove does not go with settings"),
        (&["dead", "t", "-n", "0"], "--count must be at least 1"),
    ] {
        run(msgbus(args)).await.fails(2, mention);
    }
}

#[tokio::test]
async fn a_token_of_something_else_is_never_acknowledged() {
    let daemon = Daemon::start();
    daemon.put("t", "x");
    let token = tokens(&on(&daemon, &["pull", "t", "-g", "w"]).await.out).remove(0);
    let other = Daemon::start();
    other.put("t", "x");
    on(&other, &["pull", "t", "-g", "w"]).await;
    on(&other, &["ack", &token]).await.fails(1, "the lease is over");
    assert_eq!(group(&other).await.group.acked, 0);
    for text in ["rubbish", &token[..token.len() - 2], &format!("{token}=")] {
        let said = on(&daemon, &["ack", text]).await;
        assert!(matches!(said.code, Some(1 | 2)) && said.err.contains(text), "{said:?}");
    }
    assert_eq!(group(&daemon).await.group.acked, 0);
    on(&daemon, &["rm", "t"]).await.is_silent();
    on(&daemon, &["ack", &token]).await.fails(1, "the lease is over");
    run(msgbus(&["ack", &token, "--timeout", "1s", "-u", &crate::support::nowhere().to_string()]))
        .await
        .fails(3, "connection refused");
}
