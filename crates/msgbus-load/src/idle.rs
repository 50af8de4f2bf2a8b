//! Idle subscriptions, to measure the memory of a connection.

use std::{io, time::Duration};

use tokio::{
    select,
    time::{Instant, sleep},
};

use crate::{
    deliveries::Group,
    load::{Load, Target},
    report::{Accounts, Latencies, Meters, Report},
};

/// How long the server may settle before and after, unless a duration is given.
const SETTLE: Duration = Duration::from_secs(1);

/// Opens subscriber connections, and keeps them open for `load.duration`. The operations are
/// connections; `growth` divided by them is the memory of one connection.
///
/// # Errors
/// The server cannot be reached, or closes a connection.
pub async fn idle(target: &Target, load: &Load, followers: usize) -> io::Result<Report> {
    let meters = Meters::start(target)?;
    let begin = Instant::now();
    let mut group = Group::connect(target, load, followers).await?;
    let time = begin.elapsed();
    select! {
        () = sleep(load.duration.unwrap_or(SETTLE)) => {}
        error = group.ended() => return Err(error),
    }
    meters.report(time, followers as u64, Accounts::default(), &Latencies::new())
}
