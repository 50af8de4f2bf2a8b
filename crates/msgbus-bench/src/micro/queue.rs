//! Publishing to a topic and pulling from it.

use std::{
    hint::black_box,
    iter,
    sync::Barrier,
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use msgbus_core::{MessageBus, NewMessage, Options, TopicName, TopicSettings};

use super::pace::{Bench, clocked};

/// Operations per batch: few enough that their messages stay in a cache, like payloads that a server has
/// just read.
pub(super) const BATCH: u32 = 1000;
pub(super) const PAYLOAD: usize = 128;

pub(super) fn measure(bench: &mut Bench) {
    one_thread(bench);
    leaving(bench);
    several_threads(bench);
}

/// A payload like a server's: a separate buffer of the exact size.
pub(super) fn payload() -> Bytes {
    Bytes::copy_from_slice(&[b'x'; PAYLOAD])
}

pub(super) fn payloads(count: u32) -> Vec<Bytes> {
    iter::repeat_with(payload).take(count as usize).collect()
}

pub(super) fn name(text: &str) -> TopicName {
    text.parse().expect("a good name")
}

pub(super) fn put(bus: &MessageBus, topic: &TopicName, message: impl Into<NewMessage>) {
    black_box(bus.put(topic, message).expect("nothing is full"));
}

fn one_thread(bench: &mut Bench) {
    let bus = MessageBus::new(Options::default());
    by_name(bench, &bus);
    by_handle(bench, &bus);
    let nowhere = name("nowhere");
    bench.time("get, no topic", BATCH, || {
        clocked(|| (0..BATCH).for_each(|_| drop(black_box(bus.get(&nowhere)))))
    });
}

/// Makes the topic anew, without messages.
fn start_again(bus: &MessageBus, topic: &TopicName) {
    let _ = bus.delete(topic).wait();
    put(bus, topic, payload());
    let _ = bus.get(topic);
}

fn by_name(bench: &mut Bench, bus: &MessageBus) {
    let topic = name("orders/eu");
    let start_again = || start_again(bus, &topic);
    let put = |payload: Bytes| put(bus, &topic, payload);
    bench.time("put", BATCH, || {
        start_again();
        let payloads = payloads(BATCH);
        clocked(|| payloads.into_iter().for_each(put))
    });
    bench.time("get", BATCH, || {
        start_again();
        payloads(BATCH).into_iter().for_each(put);
        clocked(|| (0..BATCH).for_each(|_| drop(black_box(bus.get(&topic)))))
    });
    bench.time("put and get", BATCH, || {
        start_again();
        let payloads = payloads(BATCH);
        clocked(|| {
            for payload in payloads {
                put(payload);
                drop(black_box(bus.get(&topic)));
            }
        })
    });
    bench.time("get, nothing there", BATCH, || {
        start_again();
        clocked(|| (0..BATCH).for_each(|_| drop(black_box(bus.get(&topic)))))
    });
}

fn by_handle(bench: &mut Bench, bus: &MessageBus) {
    let topic = name("orders/eu");
    let mut handle = bus.handle(&topic);
    bench.time("put, by handle", BATCH, || {
        start_again(bus, &topic);
        let payloads = payloads(BATCH);
        clocked(|| {
            for payload in payloads {
                black_box(handle.put(payload).expect("nothing is full"));
            }
        })
    });
    bench.time("get, by handle", BATCH, || {
        start_again(bus, &topic);
        for payload in payloads(BATCH) {
            put(bus, &topic, payload);
        }
        clocked(|| (0..BATCH).for_each(|_| drop(black_box(handle.get()))))
    });
}

/// Publishing while older messages are evicted or expire.
fn leaving(bench: &mut Bench) {
    let topic = name("orders/eu");
    let short = Duration::from_micros(50);
    let mut puts = |name: &str, settings: TopicSettings, draft: &dyn Fn(Bytes) -> NewMessage| {
        let bus = MessageBus::new(Options { topic: settings, ..Options::default() });
        bench.time(name, BATCH, || {
            let drafts: Vec<NewMessage> = payloads(BATCH).into_iter().map(draft).collect();
            clocked(|| drafts.into_iter().for_each(|draft| put(&bus, &topic, draft)))
        });
    };
    let default = TopicSettings::default();
    let small = TopicSettings { max_messages: 1000, ..default };
    let brief = TopicSettings { ttl: Some(short), ..default };
    puts("put, the oldest is evicted", small, &NewMessage::new);
    puts("put, the oldest expires", brief, &NewMessage::new);
    puts("put, all expire early", default, &|payload| NewMessage::new(payload).ttl(short));
}

/// Contention between threads. The figure is the total time divided by the messages of all threads.
fn several_threads(bench: &mut Bench) {
    // Large enough that starting threads does not matter.
    const LONG_BATCH: u32 = 5 * BATCH;
    let cases: [(&str, u32, &[&str]); 3] = [
        ("one thread", 1, &["a"]),
        ("two threads, one topic", 2, &["a", "a"]),
        ("two threads, two topics", 2, &["a", "b"]),
    ];
    for (who, threads, names) in cases {
        let topics: Vec<TopicName> = names.iter().map(|text| name(text)).collect();
        // The oldest messages are evicted, so that the memory does not grow.
        let topic = TopicSettings { max_messages: 1000, ..TopicSettings::default() };
        let bus = MessageBus::new(Options { topic, ..Options::default() });
        bench.time(&format!("put, {who}"), threads * LONG_BATCH, || {
            at_once(&topics, LONG_BATCH, |topic, payloads| {
                for payload in payloads {
                    put(&bus, topic, payload);
                }
            })
        });
    }
}

/// Runs a thread for each topic, with payloads that the thread has created. Returns the time from the
/// start of the first thread to the end of the last.
fn at_once(
    topics: &[TopicName],
    count: u32,
    work: impl Fn(&TopicName, Vec<Bytes>) + Sync,
) -> Duration {
    let ready = Barrier::new(topics.len());
    let run = &|topic| {
        let payloads = payloads(count);
        ready.wait();
        let start = Instant::now();
        work(topic, payloads);
        (start, Instant::now())
    };
    let times: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = topics.iter().map(|topic| scope.spawn(move || run(topic))).collect();
        threads.into_iter().map(|thread| thread.join().expect("it does not panic")).collect()
    });
    let start = times.iter().map(|(start, _)| *start).min();
    let end = times.iter().map(|(_, end)| *end).max();
    start.zip(end).map_or(Duration::ZERO, |(start, end)| end - start)
}
