//! Topics that live in an engine: what is known of them, and followers while it is away.

use std::time::Duration;

use msgbus_engine_testkit::server::{Kind, Program, Server};
use msgbusd::config::{EngineConfig, EngineTopics};
use tokio::time::sleep;

use crate::support::{Daemon, Finished, Running, msgbus, run, soon};

/// One of each kind.
fn programs() -> Vec<Program> {
    [Kind::Nats, Kind::Redis]
        .into_iter()
        .filter_map(|kind| kind.programs().into_iter().next())
        .collect()
}

async fn door(engine: &Server) -> Daemon {
    let daemon = Daemon::with(|config| {
        config.engines = vec![EngineConfig::new("main", &engine.url())];
        let pattern = "**".parse().unwrap();
        config.engine_topics = vec![EngineTopics { pattern, engine: Some("main".to_owned()) }];
        config.timeouts.ping = Duration::from_millis(200);
    });
    let is_up = async {
        while daemon.metric("msgbus_engine_up{engine=\"main\"}").await == 0 {
            sleep(Duration::from_millis(20)).await;
        }
    };
    soon(is_up).await;
    // Once: if it were repeated, it could be there twice.
    let published = on(&daemon, &["put", "t", "first"]).await;
    assert_eq!(published.code, Some(0), "{published:?}");
    daemon
}

async fn on(daemon: &Daemon, args: &[&str]) -> Finished {
    let mut command = msgbus(args);
    command.env("MSGBUS_URI", daemon.uri());
    run(command).await
}

#[tokio::test]
async fn what_nobody_counts_is_not_shown() {
    for program in programs() {
        let engine = Server::start(&program);
        let daemon = door(&engine).await;
        let table = on(&daemon, &["topics"]).await.out;
        let row: Vec<&str> = table.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(row, ["t", "1", "-", "-", "-", "-", "-"]);
        let groups = on(&daemon, &["topics", "--groups"]).await.err;
        assert_eq!(
            groups,
            "msgbus: groups of topics in an engine are not listed; see msgbus group TOPIC GROUP\n"
        );
        assert_eq!(on(&daemon, &["-q", "topics", "--groups"]).await.err, "");
        let json = on(&daemon, &["topics", "--json"]).await.out;
        assert_eq!(json, "{\"engine\":\"main\",\"name\":\"t\",\"retained\":1}\n");
        let shown = on(&daemon, &["info", "t"]).await.out;
        assert!(shown.contains("engine           main\n"), "{shown}");
        assert!(shown.contains("messages         1\n") && !shown.contains("published"), "{shown}");
        let group = on(&daemon, &["group", "t", "g", "--since", "all"]).await;
        assert_eq!((group.code, &group.err[..]), (Some(0), ""));
        assert!(group.out.contains("pending          1\n"), "{}", group.out);
        assert!(
            group.out.contains("max deliveries   10, then to t/dead-letters\n"),
            "{}",
            group.out
        );
    }
}

/// What failed too often is shown with its reason, at once, and can be published again.
#[tokio::test]
async fn dead_letters_are_shown_and_published_again() {
    for program in programs() {
        let engine = Server::start(&program);
        let daemon = door(&engine).await;
        let set = on(&daemon, &["group", "t", "w", "--max-deliveries", "1"]).await;
        assert_eq!(set.code, Some(0), "{set:?}");
        let pulled = on(&daemon, &["pull", "t", "-g", "w", "--wait", "30s"]).await;
        let pulled: serde_json::Value = serde_json::from_str(&pulled.out).unwrap();
        let token = pulled["lease"].as_str().unwrap();
        on(&daemon, &["nack", token, "--reason", "it rains"]).await.is_silent();
        let dead = on(&daemon, &["dead", "-o", "pretty", "t"]).await;
        assert_eq!((dead.code, &dead.err[..]), (Some(0), ""));
        let marks = "dead-letter-topic=t dead-letter-id=";
        assert!(dead.out.contains(marks), "{}", dead.out);
        let rest =
            " dead-letter-group=w dead-letter-deliveries=1 dead-letter-reason=it rains first\n";
        assert!(dead.out.ends_with(rest), "{}", dead.out);
        let again = on(&daemon, &["redrive", "t"]).await;
        assert_eq!((again.code, &again.out[..]), (Some(0), "1 message was published again\n"));
        on(&daemon, &["dead", "t"]).await.is_silent();
        let pulled = on(&daemon, &["pull", "t", "-g", "w", "--wait", "30s", "-o", "raw"]).await;
        assert_eq!(pulled.out, "first\n");
        let group = on(&daemon, &["group", "t/dead-letters", "redrive"]).await;
        assert!(group.out.contains("max deliveries   unlimited"), "{}", group.out);
    }
}

/// Waits for a note on standard error.
async fn hears(sub: &mut Running, text: &str) {
    loop {
        let note = sub.note().await;
        assert_ne!(note, "", "it ended without {text:?}");
        if note.contains(text) {
            break;
        }
    }
}

#[tokio::test]
async fn who_follows_is_told_that_the_engine_is_away() {
    for program in programs() {
        let mut engine = Server::start(&program);
        let daemon = door(&engine).await;
        for args in [&["sub", "t", "--since", "all"][..], &["sub", "t", "--since", "all", "u"]] {
            let mut command = msgbus(args);
            command.env("MSGBUS_URI", daemon.uri());
            let mut sub = Running::start(command);
            assert_eq!(sub.ids(1).await.len(), 1);
            engine.kill();
            hears(&mut sub, "its engine is away; waiting for it").await;
            engine.run();
            hears(&mut sub, "its engine delivers again").await;
        }
    }
}

#[tokio::test]
async fn a_pull_says_that_the_engine_is_away() {
    for program in programs() {
        let mut engine = Server::start(&program);
        let daemon = door(&engine).await;
        assert_eq!(on(&daemon, &["request", "nobody", "x"]).await.code, Some(7));
        engine.kill();
        let text = "503: the engine is not available";
        for group in [&[][..], &["-g", "g"]] {
            // With a time, the last attempt is shortly before its end.
            for time in [&[][..], &["--fail-empty"], &["--wait", "2s"], &["--timeout", "2s"]] {
                let args = [&["pull", "t"], group, time].concat();
                let pull = async {
                    loop {
                        let ended = on(&daemon, &args).await;
                        // Until the server knows, the result is unknown.
                        if !ended.err.contains("504") {
                            break ended;
                        }
                    }
                };
                let ended = soon(pull).await;
                assert_eq!((ended.code, &ended.out[..]), (Some(1), ""), "{args:?}: {ended:?}");
                assert!(ended.err.contains(text), "{args:?}: {ended:?}");
            }
        }
        let listed = on(&daemon, &["topics"]).await;
        assert!(listed.err.contains(text) && !listed.err.contains('{'), "{listed:?}");
    }
}
