//! `msgbus bench`: the message counts are right. No speed is asserted.

use serde_json::Value;

use crate::support::{Daemon, Finished, Running, msgbus, name, run};

async fn bench(daemon: &Daemon, args: &str) -> Finished {
    let mut command = msgbus(&[&["bench"], &args.split(' ').collect::<Vec<_>>()[..]].concat());
    command.env("MSGBUS_URI", daemon.uri());
    run(command).await
}

/// The message counts of a successful run.
async fn accounts(daemon: &Daemon, args: &str) -> Value {
    let finished = bench(daemon, &format!("{args} --json")).await;
    assert_eq!((finished.code, &finished.err[..]), (Some(0), ""), "{args}");
    serde_json::from_str(&finished.out).unwrap()
}

#[tokio::test]
async fn every_message_is_accounted_for() {
    let daemon = Daemon::start();
    for (args, operations, published, received) in [
        ("pub --msgs 1000 --clients 4", 1000, 1000, 0),
        ("pub --msgs 1000 --pipeline 8 --size 0", 1000, 1000, 0),
        ("pub --msgs 1050 --batch 100 --topics 3", 1050, 1050, 0),
        ("pub --msgs 200 --rate 20000", 200, 200, 0),
        ("pub --msgs 1050 --v1 --topics 3 --clients 2 --pipeline 4", 1050, 1050, 0),
        ("pub --msgs 100 --v1 --batch 1 --size 0", 100, 100, 0),
        ("pull --msgs 1000 --clients 7 --topics 3", 1000, 1000, 1000),
        ("pull --msgs 300 --clients 2 --v1 --pipeline 2", 300, 300, 300),
        ("pull --msgs 500 --clients 16 --topics 500", 500, 500, 500),
        ("pull --msgs 900 --clients 16 --topics 50 --pipeline 3", 900, 900, 900),
        ("fanout --msgs 100 --subs 10 --clients 3 --topics 2", 1000 / 2, 100, 1000 / 2),
        ("fanout --msgs 100 --subs 4 --raw --batch 7", 400, 100, 400),
        ("latency --msgs 50 --rate 5000 --subs 2", 100, 50, 100),
        ("request --msgs 500 --clients 4 --responders 2", 500, 500, 0),
        ("request --msgs 50 --clients 1 --responders 1 --size 0", 50, 50, 0),
        ("idle --subs 20 --duration 10ms", 20, 0, 0),
    ] {
        let report = accounts(&daemon, args).await;
        let found = &report["accounts"];
        assert_eq!(report["operations"], operations, "{args}: {report}");
        assert_eq!(found["published"], published, "{args}: {report}");
        assert_eq!(found["received"], received, "{args}: {report}");
        for bad in ["lost", "repeated", "reordered", "refused"] {
            assert_eq!(found[bad], 0, "{args}: {report}");
        }
        assert_eq!(report["latency"].is_null(), args.starts_with("idle"), "{report}");
        assert_eq!(daemon.bus.topics(), [], "it cleans up: {args}");
    }
}

#[tokio::test]
async fn lost_messages_are_counted() {
    // One write contains more batches than the topic retains, so no subscriber receives all of them.
    let daemon = Daemon::with(|config| config.bus.topic.max_messages = 10);
    let finished = bench(&daemon, "fanout --msgs 5000 --batch 10 --pipeline 500 --subs 1").await;
    let (before, _) = finished.out.split_once(" lost").unwrap();
    let lost: u64 = before.rsplit([' ', '\n']).next().unwrap().replace(',', "").parse().unwrap();
    assert!(lost > 0, "{}", finished.out);
    assert_eq!(finished.code, Some(6), "{}", finished.out);

    let finished = bench(&daemon, "pull --msgs 60 --topics 2").await;
    assert!(finished.out.contains("20 received, 40 lost"), "{}", finished.out);
    assert_eq!(finished.code, Some(6), "{}", finished.out);
}

#[tokio::test]
async fn a_client_without_work_does_not_wait_for_its_turn() {
    let daemon = Daemon::start();
    // The second client's first request is due after 15 minutes.
    for end in ["--msgs 1", "--duration 2s"] {
        let report = accounts(&daemon, &format!("pub --clients 2 --rate 0.001 {end}")).await;
        assert_eq!(report["operations"], 1, "{end}");
    }
}

#[tokio::test]
async fn errors_end_it_with_a_message() {
    let daemon = Daemon::start();
    for args in ["pub --size 2000000", "pub --size 100000 --batch 100", "fanout --size 2000000"] {
        bench(&daemon, args).await.fails(1, "413: payload exceeds max-payload-size");
        assert_eq!(daemon.bus.topics(), [], "it cleans up: {args}");
    }
    for args in ["sub --topic t", "idle --topic t --duration 1h", "fanout --topic t --rate 1"] {
        let mut command = msgbus(&[&["bench"], &args.split(' ').collect::<Vec<_>>()[..]].concat());
        command.env("MSGBUS_URI", daemon.uri()).args(["--subs", "2"]);
        let running = tokio::spawn(run(command));
        daemon.subscribers(2).await;
        daemon.bus.delete(&name("t")).wait().unwrap();
        running.await.unwrap().fails(1, "the topic has been deleted");
    }
}

#[tokio::test]
async fn two_of_them_measure_together() {
    let daemon = Daemon::start();
    let mut receiving = msgbus(&["bench", "sub", "--topic", "t", "--msgs", "500", "--json"]);
    receiving.env("MSGBUS_URI", daemon.uri());
    let receiving = tokio::spawn(run(receiving));
    daemon.subscribers(1).await;
    accounts(&daemon, "pub --topic t --msgs 500").await;
    let report: Value = serde_json::from_str(&receiving.await.unwrap().out).unwrap();
    assert_eq!(report["accounts"]["received"], 500);
    assert_eq!(daemon.bus.topics(), [name("t")], "what was named stays");
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn the_cost_of_a_process_shows_with_its_id() {
    let daemon = Daemon::start();
    // Not this process: the processor time of other tests' threads disappears when they end.
    let mut following = msgbus(&["sub", "t"]);
    following.env("MSGBUS_URI", daemon.uri());
    let following = Running::start(following);
    daemon.subscribers(1).await;
    let pid = following.child.id().unwrap();
    let report = accounts(&daemon, &format!("pub --topic t --msgs 500 --pid {pid}")).await;
    assert!(report["server"]["cpu_per_operation"].as_f64().unwrap() > 0.0, "{report}");
    assert!(report["server"]["resident"].as_u64().unwrap() > 0, "{report}");

    let csv = bench(&daemon, "pub --msgs 10 --csv").await.out;
    let lines: Vec<Vec<&str>> = csv.lines().map(|line| line.split(',').collect()).collect();
    assert_eq!((lines.len(), lines[0].len()), (2, lines[1].len()));
    let place = lines[0].iter().position(|name| *name == "accounts_published").unwrap();
    assert_eq!(lines[1][place], "10");
}

#[tokio::test]
async fn wrong_options_are_rejected() {
    let daemon = Daemon::start();
    for (args, hint) in [
        ("fly", "no benchmark"),
        ("sub", "--topic"),
        ("pull --msgs 1000000", "--topics"),
        ("pull --msgs 10 --topics 11", "--topics"),
        ("pub --rate 0", "--rate"),
        ("pub --rate 1e-30", "--rate"),
        ("pub --size 1000000000 --batch 100000", "--batch"),
        ("pub --clients 0", "--clients"),
        ("fanout --v1", "--v1 is for bench pub and bench pull"),
        ("pub --subs 3", "--subs is not an option of bench pub"),
        ("pub --responders 3", "--responders=3 has no effect here"),
        ("request --topics 2", "one service"),
        ("pub --json --csv", "one of"),
        ("pub --pid 4294967295", "--pid"),
    ] {
        let finished = bench(&daemon, args).await;
        assert_eq!(finished.code, Some(2), "{args}: {}", finished.err);
        assert!(finished.err.contains(hint), "{args}: {}", finished.err);
    }
}
