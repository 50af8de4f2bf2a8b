//! `msgbus work` that is killed again and again: every job is done, and no more are repeated than workers were killed.

use std::{collections::BTreeMap, fs, process::Stdio, time::Duration};

use msgbus_core::{GroupName, MessageBus};
use tokio::process::Child;

use crate::support::{Daemon, msgbus, name, soon};

const TOPIC: &str = "jobs";
const GROUP: &str = "workers";
/// Much longer than the time between two extensions. The last job of a killed worker waits that long.
const LEASE: &str = "10s";

struct Size {
    jobs: u64,
    workers: usize,
    kills: u64,
}

/// Larger in CI.
fn size() -> Size {
    if std::env::var_os("MSGBUS_TEST_ALL").is_some() {
        Size { jobs: 10_000, workers: 8, kills: 200 }
    } else {
        Size { jobs: 400, workers: 4, kills: 10 }
    }
}

/// Counters of the group.
#[derive(Debug, Default)]
struct Counts {
    acked: u64,
    lease_expired: u64,
    redelivered: u64,
    others: u64,
}

fn counts(bus: &MessageBus) -> Counts {
    let group: GroupName = GROUP.parse().unwrap();
    let Some((stats, _)) = bus.group_stats(&name(TOPIC), &group, 0) else {
        return Counts::default();
    };
    let counters = stats.counters;
    Counts {
        acked: counters.acked,
        lease_expired: counters.lease_expired,
        redelivered: counters.redelivered,
        others: counters.nacked + counters.dead_lettered + counters.expired + counters.evicted,
    }
}

async fn acked(bus: &MessageBus, count: u64) {
    let is_so = async {
        while counts(bus).acked < count {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon(is_so).await;
}

fn start(uri: &str, done: &str) -> Child {
    let command = "echo \"$MSGBUS_PAYLOAD\" >> \"$0\"";
    let args = ["--uri", uri, "work", TOPIC, "--group", GROUP, "--lease", LEASE, "--quiet", "--"];
    let args = [&args[..], &["sh", "-c", command, done]].concat();
    msgbus(&args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

#[tokio::test]
async fn every_job_is_done_and_only_jobs_of_killed_workers_twice() {
    let Size { jobs, workers, kills } = size();
    let daemon = Daemon::start();
    let folder = tempfile::tempdir().unwrap();
    let done = folder.path().join("done").display().to_string();
    for job in 0..jobs {
        daemon.put(TOPIC, job.to_string());
    }
    let mut running: Vec<Child> = (0..workers).map(|_| start(&daemon.uri(), &done)).collect();
    for kill in 1..=kills {
        acked(&daemon.bus, jobs * kill / (kills + 1)).await;
        let victim = usize::try_from(kill).unwrap() % workers;
        soon(running[victim].kill()).await.unwrap();
        running[victim] = start(&daemon.uri(), &done);
    }
    acked(&daemon.bus, jobs).await;

    let mut times: BTreeMap<u64, u64> = BTreeMap::new();
    for line in fs::read_to_string(&done).unwrap().lines() {
        *times.entry(line.parse().unwrap()).or_default() += 1;
    }
    assert_eq!(times.keys().copied().collect::<Vec<_>>(), (0..jobs).collect::<Vec<_>>());
    // A worker has one lease at a time. When it is killed, the lease ends by time, and the job is delivered again; it is
    // a repeat if the command had got to its end.
    let repeats = times.values().sum::<u64>() - jobs;
    let counts = counts(&daemon.bus);
    assert_eq!((counts.acked, counts.others), (jobs, 0), "{counts:?}");
    assert_eq!(counts.redelivered, counts.lease_expired, "{counts:?}");
    assert!(counts.lease_expired <= kills, "{kills} kills, {counts:?}");
    assert!(repeats <= counts.redelivered, "{repeats} repeats, {counts:?}");
    assert!(counts.redelivered > 0, "no kill came in the middle of a job: {counts:?}");
}
