//! `msgbus bench` measures a server. `msgbus_load` generates the load; this module selects it and shows
//! the results.

mod plan;
mod show;

use std::{
    io::{self, IsTerminal as _},
    rc::Rc,
    time::Duration,
};

use msgbus_client::{Client, ClientError, TopicName};
use msgbus_load::{
    ConnectFn, Http, Load, MsgbusV1, Progress, Protocol, Report, Server, Services, Target,
};
use tokio::{runtime, select, task::LocalSet, time::timeout};

pub(crate) use self::plan::Bench;
use self::plan::{Show, Work};
use crate::{
    failure::{Exit, Failure},
    output::{note, print},
    signals::{GRACE, Stop},
};

/// How long the server may take to delete a topic at the end.
const DELETE_TIMEOUT: Duration = Duration::from_secs(5);

pub(crate) fn run(bench: Bench) -> Result<Exit, Failure> {
    // One thread, to leave the other cores to a local server.
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::Other(format!("cannot start: {error}")))?;
    // Each connection needs a file descriptor. If the limit cannot be raised, connecting fails with an error.
    let _ = rlimit::increase_nofile_limit(u64::MAX);
    LocalSet::new().block_on(&runtime, measure(bench))
}

async fn measure(bench: Bench) -> Result<Exit, Failure> {
    let stop = Stop::listen(GRACE).map_err(|error| Failure::Other(error.to_string()))?;
    let mut ended = stop.clone();
    // Fails early with a clear error if there is no msgbus server.
    bench.client.topics("-").await?;
    let target = target(&bench).await?;
    let topics = bench.topic_names()?;
    let progress = Progress::default();
    let load = bench.load(&topics, &progress);
    let shown = bench.progress && io::stderr().is_terminal() && bench.work != Work::Idle;
    let work = generate(&bench, &target, &load, stop);
    let report = select! {
        report = work => Some(report),
        () = show::watch(&bench, &progress), if shown => None,
        () = ended.requested(), if bench.work != Work::Sub => None,
    };
    if shown {
        show::clear_line();
    }
    if bench.topic.is_none()
        && bench.work != Work::Request
        && let Err(error) = remove(&bench.client, &topics).await
    {
        note(&format!("topics of this run may remain on the server: {error}"));
    }
    let Some(report) = report else { return Err(Failure::Other("ended by a signal".to_owned())) };
    let report = report.map_err(|error| Failure::Other(format!("bench: {error}")))?;
    print(&match bench.show {
        Show::Table => show::table(&bench, &report),
        Show::Json => show::json(&bench, &report),
        Show::Csv => show::csv(&bench, &report),
    })?;
    let accounts = report.accounts;
    if accounts.refused > 0 {
        note(&format!("the server rejected {} requests", accounts.refused));
    }
    let is_whole = accounts.lost + accounts.repeated + accounts.reordered == 0;
    Ok(if is_whole { Exit::Done } else { Exit::Missed })
}

/// Generates the load.
async fn generate(
    bench: &Bench,
    target: &Target,
    load: &Load,
    mut stop: Stop,
) -> io::Result<Report> {
    match bench.work {
        Work::Pub => msgbus_load::publish(target, load).await,
        Work::Pull => msgbus_load::pull(target, load).await,
        Work::Fanout | Work::Latency => msgbus_load::fan_out(target, load, bench.subscribers).await,
        Work::Request => msgbus_load::request(target, load, bench.subscribers).await,
        Work::Idle => msgbus_load::idle(target, load, bench.subscribers).await,
        Work::Sub => msgbus_load::follow(target, load, bench.subscribers, stop.requested()).await,
    }
}

async fn target(bench: &Bench) -> Result<Target, Failure> {
    let server = bench.client.server();
    let resolved = bench.client.connector().clone().resolved().await;
    let connector = resolved.map_err(|error| ClientError::Connect {
        server: server.to_string(),
        reason: error.to_string(),
        kind: error.kind(),
    })?;
    let server_process = bench.pid.map(|pid| Server::new([pid]));
    if let (Some(process), Some(pid)) = (&server_process, bench.pid) {
        process.processor_time().map_err(|error| {
            Failure::usage(format!("--pid: cannot inspect process {pid}: {error}"))
        })?;
    }
    let key = bench.client.key().and_then(|key| key.authorization().to_str().ok());
    let http = Http {
        host: server.authority(),
        prefix: server.prefix().to_owned(),
        raw: bench.raw,
        authorization: key.map(str::to_owned),
    };
    let connector = ConnectFn(move || {
        let connector = connector.clone();
        async move { connector.connect().await }
    });
    let protocol: Rc<dyn Protocol> = match bench.work {
        Work::Request => Rc::new(Services(http)),
        _ if bench.v1 => Rc::new(MsgbusV1(http)),
        _ => Rc::new(http),
    };
    Ok(Target { connector: Rc::new(connector), protocol, server: server_process })
}

async fn remove(client: &Client, topics: &[TopicName]) -> Result<(), Failure> {
    for topic in topics {
        let deleted = timeout(DELETE_TIMEOUT, client.delete(topic)).await;
        deleted.map_err(|_| Failure::Other("no answer".to_owned()))??;
    }
    Ok(())
}
