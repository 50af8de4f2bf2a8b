//! What a follower has seen on its last connections, for the report of a message that it lacks.

use std::{collections::VecDeque, fmt, net::SocketAddr};

use tokio::time::Instant;

const MOST: usize = 3;

/// The last connections of a follower.
#[derive(Debug, Default)]
pub(super) struct Trail(VecDeque<Visit>);

/// A connection.
#[derive(Debug)]
struct Visit {
    node: SocketAddr,
    at: Instant,
    /// The query.
    asked: String,
    /// The epoch and the next id in the response, and how many were missed.
    told: Option<(u64, u64, Option<u64>)>,
    /// How many messages came, and the ids of the first and the last.
    count: u64,
    ids: Option<(u64, u64)>,
}

impl Trail {
    pub(super) fn connect(&mut self, node: SocketAddr, asked: &str) {
        self.0.truncate(MOST - 1);
        let (at, asked) = (Instant::now(), asked.to_owned());
        self.0.push_front(Visit { node, at, asked, told: None, count: 0, ids: None });
    }

    pub(super) fn begin(&mut self, epoch: u64, next: u64, missed: Option<u64>) {
        if let Some(visit) = self.0.front_mut() {
            visit.told = Some((epoch, next, missed));
        }
    }

    pub(super) fn take(&mut self, id: Option<u64>) {
        if let Some(visit) = self.0.front_mut() {
            visit.count += 1;
            visit.ids = id.map(|id| (visit.ids.map_or(id, |(first, _)| first), id)).or(visit.ids);
        }
    }
}

impl fmt::Display for Trail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Visit { node, at, asked, told, count, ids } in &self.0 {
            let ago = at.elapsed();
            write!(
                f,
                "; {ago:.1?} ago ?{asked} of {node}: told {told:?}, {count} messages {ids:?}"
            )?;
        }
        Ok(())
    }
}
