//! How the cost of an operation depends on the payload size and on the number of threads.

use super::{
    contender::Contender::{self, Bare, Msgbusd, With},
    variants::{EIGHT_THREADS, ONE_THREAD, TWO_THREADS},
    work::{Kind, Work, topics},
};
use crate::bare::Push;

/// A payload size, and the number of operations of each work.
struct Size {
    label: &'static str,
    /// The label in keys.
    key: &'static str,
    bytes: usize,
    clients: usize,
    publishes: u64,
    pulls: u64,
    /// Few enough that the topic retains all of them, so that no subscriber can miss one.
    fan_outs: u64,
}

const SIZES: [Size; 5] = [
    Size {
        label: "128 B",
        key: "128",
        bytes: 128,
        clients: 64,
        publishes: 150_000,
        pulls: 100_000,
        fan_outs: 20_000,
    },
    Size {
        label: "4 KiB",
        key: "4k",
        bytes: 4 << 10,
        clients: 64,
        publishes: 80_000,
        pulls: 40_000,
        fan_outs: 4000,
    },
    Size {
        label: "14 KiB",
        key: "14k",
        bytes: 14 << 10,
        clients: 64,
        publishes: 40_000,
        pulls: 12_000,
        fan_outs: 1500,
    },
    Size {
        label: "100 KiB",
        key: "100k",
        bytes: 100 << 10,
        clients: 16,
        publishes: 8000,
        pulls: 2000,
        fan_outs: 250,
    },
    Size {
        label: "1 MiB",
        key: "1m",
        bytes: 1 << 20,
        clients: 8,
        publishes: 800,
        pulls: 200,
        fan_outs: 25,
    },
];

const REQUESTS: &[Contender] = &[Msgbusd, Bare(Push::Nowhere)];
const DELIVERIES: &[Contender] = &[Msgbusd, Bare(Push::Batches)];
/// The first one is the reference for the others.
const BY_THREADS: &[Contender] = &[With(TWO_THREADS), With(ONE_THREAD), With(EIGHT_THREADS)];

/// The works of both axes. Works with the same title share a table.
pub(super) fn works() -> Vec<Work> {
    let mut works = Vec::new();
    works.extend(SIZES.iter().map(Size::publish));
    works.extend(SIZES.iter().map(Size::pull));
    works.extend(SIZES.iter().map(Size::fan_out));
    works.push(
        Work::new(
            "threads-put",
            "Threads: publish, 64 connections, 128 B",
            BY_THREADS,
            Kind::Publish,
        )
        .with(|load| load.messages = 150_000),
    );
    works.push(
        Work::new(
            "threads-fanout",
            "Threads: 8 publishers, 100 subscribers, 128 B",
            BY_THREADS,
            Kind::FanOut(100),
        )
        .with(|load| (load.clients, load.messages) = (8, 20_000)),
    );
    works
}

impl Size {
    fn publish(&self) -> Work {
        let key = format!("size-put-{}", self.key);
        self.work(key, "Payload size: publish", REQUESTS, Kind::Publish)
            .with(|load| load.messages = self.publishes)
    }

    fn pull(&self) -> Work {
        let key = format!("size-pull-{}", self.key);
        self.work(key, "Payload size: pull", REQUESTS, Kind::Pull).with(|load| {
            load.messages = self.pulls;
            load.topics = topics(4);
        })
    }

    fn fan_out(&self) -> Work {
        let key = format!("size-fanout-{}", self.key);
        let title = "Payload size: 4 publishers, 100 subscribers";
        self.work(key, title, DELIVERIES, Kind::FanOut(100))
            .with(|load| (load.clients, load.messages) = (4, self.fan_outs))
    }

    fn work(
        &self,
        key: String,
        title: &'static str,
        contenders: &'static [Contender],
        kind: Kind,
    ) -> Work {
        Work::new(key, title, contenders, kind)
            .at(self.label)
            .with(|load| (load.clients, load.size) = (self.clients, self.bytes))
    }
}
