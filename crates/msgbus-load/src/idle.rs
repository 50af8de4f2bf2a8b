//! Following topics on which nothing happens: what a connection costs in memory.

use std::{io, time::Duration};

use tokio::{
    select,
    time::{Instant, sleep},
};

use crate::{
    deliveries::Crowd,
    load::{Load, Target},
    report::{Accounts, Latencies, Meters, Report},
};

/// Time for the server to settle before and after, where no duration is given.
const SETTLE: Duration = Duration::from_secs(1);

/// Opens connections that follow topics, and holds them open for `load.duration`. The operations
/// are connections; `growth` divided by them is what one costs in memory.
///
/// # Errors
/// When the server cannot be reached, or does not keep all connections open.
pub async fn idle(target: &Target, load: &Load, followers: usize) -> io::Result<Report> {
    let meters = Meters::start(target)?;
    let begin = Instant::now();
    let mut crowd = Crowd::gather(target, load, followers).await?;
    let time = begin.elapsed();
    select! {
        () = sleep(load.duration.unwrap_or(SETTLE)) => {}
        error = crowd.ended() => return Err(error),
    }
    meters.report(time, followers as u64, Accounts::default(), &Latencies::new())
}
