//! The performance goals, and whether they are met.

use super::{
    Findings,
    contender::Contender,
    engines,
    figures::{growth, median, p50, p99, rate, server_cpu},
    variants::{
        CALLS_DRS, CALLS_DRS_TCP, EIGHT_THREADS, FOLLOW_MIDDLEMAN, FOLLOW_PATTERN, FOLLOW_V1,
        FOLLOW_V1_10, IDLE_KEEP_ALIVE, IDLE_NDJSON, IDLE_SSE, LEASES, PLAIN_PULLS, PUBLISH_V1,
        REPLAY_COLD, REQUESTS_MIDDLEMAN, SERVICES, SERVICES_V1, SYNCED, TWO_THREADS, Variant,
        WRITTEN,
    },
};
use crate::micro::Measure;

/// A goal and its result.
#[derive(Debug)]
pub(super) struct Goal {
    pub(super) work: &'static str,
    pub(super) wanted: String,
    pub(super) found: String,
    pub(super) is_met: bool,
}

impl Goal {
    pub(super) fn at_least(work: &'static str, what: &str, goal: f64, found: f64) -> Self {
        Self {
            work,
            wanted: format!("{what} at least {}", short(goal)),
            found: short(found),
            is_met: found >= goal,
        }
    }

    pub(super) fn at_most(work: &'static str, what: &str, goal: f64, found: f64) -> Self {
        Self {
            work,
            wanted: format!("{what} at most {}", short(goal)),
            found: short(found),
            is_met: found <= goal,
        }
    }
}

fn short(value: f64) -> String {
    match value {
        v if v >= 1e6 => format!("{:.2} M", v / 1e6),
        v if v >= 1000.0 => format!("{v:.0}"),
        v if v >= 10.0 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}

/// The figure of a run that a goal is about.
type Figure = fn(&msgbus_load::Report) -> f64;

impl Findings {
    pub(super) fn reports(
        &self,
        key: &str,
        contender: Option<Contender>,
    ) -> &[msgbus_load::Report] {
        let work = self.works.iter().find(|(work, _)| work.key == key);
        let found = work.and_then(|(_, found)| match contender {
            Some(contender) => found.iter().find(|(other, _)| *other == contender),
            // The second contender is the limit.
            None => found.get(1),
        });
        found.map_or(&[], |(_, reports)| reports)
    }

    fn own(&self, key: &str, figure: Figure) -> f64 {
        median(self.reports(key, Some(Contender::Msgbusd)).iter().map(figure))
    }

    /// The memory of an idle connection of this kind.
    fn idle(&self, variant: &'static Variant) -> f64 {
        median(self.reports("idle-http", Some(Contender::With(variant))).iter().map(growth))
    }

    /// msgbusd's figure divided by the bare server's: the median over the runs, each divided by the run
    /// next to it.
    fn ratio(&self, key: &str, figure: Figure) -> f64 {
        let own = self.reports(key, Some(Contender::Msgbusd)).iter();
        let bare = self.reports(key, None).iter();
        median(own.zip(bare).map(|(own, bare)| figure(own) / figure(bare)))
    }

    /// The number of messages that were lost, repeated or reordered in all runs of a work.
    fn wrong(&self, key: &str) -> u64 {
        let reports = self.reports(key, Some(Contender::Msgbusd)).iter();
        reports.map(|r| r.accounts.lost + r.accounts.repeated + r.accounts.reordered).sum()
    }

    fn micro(&self, name: &str) -> f64 {
        self.micro_measure(name).map_or(f64::NAN, |measure| measure.value)
    }

    /// The minimum, which other load affects least. Comparing two threads with one needs it: another
    /// busy process makes the median meaningless.
    fn micro_least(&self, name: &str) -> f64 {
        self.micro_measure(name).map_or(f64::NAN, |measure| measure.min)
    }

    fn micro_measure(&self, name: &str) -> Option<&Measure> {
        self.micro.iter().find(|measure| measure.name == name)
    }
}

/// All goals whose works were run.
#[expect(clippy::cast_precision_loss, reason = "small numbers")]
pub(super) fn all(findings: &Findings) -> Vec<Goal> {
    let mut goals = throughput(findings);
    goals.extend(correctness(findings));
    goals.extend(latency(findings));
    goals.extend(memory(findings));
    goals.extend(v1(findings));
    goals.extend(leases(findings));
    goals.extend(requests(findings));
    goals.extend(doors(findings));
    goals.extend(engines::goals(findings));
    goals.extend(durable(findings));
    goals.extend(axes(findings));
    goals.extend(engine(findings));
    goals.push(Goal::at_most("binary", "MB", 12.0, findings.binary as f64 / 1e6));
    let startup = median(findings.startup.iter().copied());
    goals.push(Goal::at_most("start", "ms until it listens", 20.0, startup));
    // Works that were not run have no figures.
    goals.retain(|goal| goal.found != "NaN");
    goals
}

fn throughput(f: &Findings) -> Vec<Goal> {
    let least = Goal::at_least;
    let most = Goal::at_most;
    vec![
        least("put", "rate over bare", 0.85, f.ratio("put", rate)),
        most("put", "CPU over bare", 1.25, f.ratio("put", server_cpu)),
        least("put-pipelined", "rate over bare", 0.7, f.ratio("put-pipelined", rate)),
        most("put-pipelined", "CPU over bare", 1.7, f.ratio("put-pipelined", server_cpu)),
        least("pull", "rate over bare", 0.75, f.ratio("pull", rate)),
        most("pull", "CPU over bare", 1.4, f.ratio("pull", server_cpu)),
        least("split", "messages a second", 2e6, f.own("split", rate)),
        least("fanout-100", "rate over bare", 0.9, f.ratio("fanout-100", rate)),
        least("fanout-100-busy", "rate over bare", 0.7, f.ratio("fanout-100-busy", rate)),
        most("fanout-100-busy", "CPU over bare", 1.4, f.ratio("fanout-100-busy", server_cpu)),
        most(
            "fanout-1000",
            "CPU of a delivery, over that at 100",
            1.3,
            f.own("fanout-1000", server_cpu) / f.own("fanout-100-busy", server_cpu),
        ),
    ]
}

/// What went wrong, for the works that were run.
#[expect(clippy::cast_precision_loss, reason = "small numbers")]
fn correctness(f: &Findings) -> impl Iterator<Item = Goal> {
    ["fanout-100", "fanout-100-busy", "fanout-1000"]
        .into_iter()
        .filter(move |key| !f.reports(key, None).is_empty())
        .map(move |key| Goal::at_most(key, "lost, repeated or reordered", 0.0, f.wrong(key) as f64))
}

fn latency(f: &Findings) -> impl Iterator<Item = Goal> {
    ["latency-1", "latency-100"].into_iter().flat_map(move |key| {
        [
            Goal::at_most(key, "p50 over bare", 1.3, f.ratio(key, p50)),
            Goal::at_most(key, "p99 over bare", 1.3, f.ratio(key, p99)),
        ]
    })
}

fn memory(f: &Findings) -> Vec<Goal> {
    let most = Goal::at_most;
    vec![
        most("idle", "bytes of memory each websocket", 2700.0, f.own("idle", growth)),
        most("idle-http", "bytes of memory each SSE stream", 6000.0, f.idle(IDLE_SSE)),
        most("idle-http", "bytes of memory each NDJSON stream", 6000.0, f.idle(IDLE_NDJSON)),
        most("idle-http", "bytes of memory each kept alive", 6000.0, f.idle(IDLE_KEEP_ALIVE)),
        most(
            "topics",
            "bytes of memory each, beyond the payload",
            700.0,
            f.own("topics", growth) - 128.0,
        ),
    ]
}

/// The goals on `msgbus.v1` and on patterns. The second contender is the same without them.
fn v1(f: &Findings) -> [Goal; 6] {
    let own = |key, variant| f.reports(key, Some(Contender::With(variant))).iter();
    let figure = |key, variant, figure: Figure| median(own(key, variant).map(figure));
    let ratio = |key, variant| {
        let other = f.reports(key, None).iter();
        median(own(key, variant).zip(other).map(|(own, other)| rate(own) / rate(other)))
    };
    let one = figure("v1-idle", FOLLOW_V1, growth);
    let ten = figure("v1-idle-10", FOLLOW_V1_10, growth);
    [
        Goal::at_least(
            "v1-publish",
            "messages a second",
            1e6,
            figure("v1-publish", PUBLISH_V1, rate),
        ),
        Goal::at_most(
            "v1-publish",
            "us of CPU each",
            0.9,
            figure("v1-publish", PUBLISH_V1, server_cpu),
        ),
        Goal::at_least(
            "v1-fanout",
            "rate over plain websockets",
            0.9,
            ratio("v1-fanout", FOLLOW_V1),
        ),
        Goal::at_most("v1-idle", "bytes of memory each connection", 6000.0, one),
        Goal::at_most(
            "v1-idle-10",
            "bytes of memory each further subscription",
            200.0,
            (ten - one) / 9.0,
        ),
        Goal::at_least(
            "pattern-fanout",
            "rate over one topic",
            0.8,
            ratio("pattern-fanout", FOLLOW_PATTERN),
        ),
    ]
}

/// The goals on leases. Each is compared with the plain pulls that ran before it.
fn leases(f: &Findings) -> [Goal; 3] {
    let of = |key, variant| f.reports(key, Some(Contender::With(variant))).iter();
    let pairs = of("leases-1", LEASES).zip(of("leases-1", PLAIN_PULLS));
    let ratio = median(pairs.map(|(leases, plain)| rate(leases) / rate(plain)));
    let by_hundred = |figure: Figure| median(of("leases-100", LEASES).map(figure));
    [
        Goal::at_least("leases-1", "rate over plain pulls", 0.4, ratio),
        Goal::at_least("leases-100", "messages a second", 2e6, by_hundred(rate)),
        Goal::at_most("leases-100", "us of CPU each", 1.5, by_hundred(server_cpu)),
    ]
}

/// The goals on services. The second contender is what they are compared with over HTTP.
fn requests(f: &Findings) -> [Goal; 3] {
    let ratio = |key, figure: Figure| {
        let own = f.reports(key, Some(Contender::With(SERVICES))).iter();
        median(own.zip(f.reports(key, None)).map(|(own, other)| figure(own) / figure(other)))
    };
    let over_v1 = f.reports("requests-v1", Some(Contender::With(SERVICES_V1))).iter();
    let over_v1 = median(over_v1.map(rate));
    [
        Goal::at_least("requests", "rate over publishing", 0.35, ratio("requests", rate)),
        Goal::at_least("requests-v1", "round trips a second", 250e3, over_v1),
        Goal::at_most(
            "requests-latency",
            "p50 over a bare proxy",
            2.0,
            ratio("requests-latency", p50),
        ),
    ]
}

/// The goals on clients of other systems, each compared with the one of msgbus that ran before it.
fn doors(f: &Findings) -> [Goal; 4] {
    let of = |key, contender| f.reports(key, Some(contender)).iter();
    let ratio = |key, other, variant| {
        let pairs = of(key, Contender::With(variant)).zip(of(key, other));
        median(pairs.map(|(own, other)| rate(own) / rate(other)))
    };
    let requests = |what, variant| {
        let found = ratio("doors-requests", Contender::With(SERVICES_V1), variant);
        Goal::at_least("doors-requests", what, 0.6, found)
    };
    [
        requests("rate of middleman over v1", REQUESTS_MIDDLEMAN),
        requests("rate of drs on websockets over v1", CALLS_DRS),
        requests("rate of drs on TCP over v1", CALLS_DRS_TCP),
        Goal::at_least(
            "doors-fanout",
            "rate of middleman over plain websockets",
            0.8,
            ratio("doors-fanout", Contender::Msgbusd, FOLLOW_MIDDLEMAN),
        ),
    ]
}

/// The goals on publishes that survive something. The second contender is the limit.
fn durable(f: &Findings) -> [Goal; 4] {
    let own = |key, variant| f.reports(key, Some(Contender::With(variant))).iter();
    let ratio = |key, variant| {
        let limit = f.reports(key, None).iter();
        median(own(key, variant).zip(limit).map(|(own, limit)| rate(own) / rate(limit)))
    };
    let split = median(own("durable-split", SYNCED).map(rate));
    [
        Goal::at_least("durable-64", "rate over bare", 0.7, ratio("durable-64", SYNCED)),
        Goal::at_least(
            "durable-interval",
            "rate over publishing in memory",
            0.75,
            ratio("durable-interval", WRITTEN),
        ),
        Goal::at_least("durable-split", "messages a second", 1e6, split),
        Goal::at_least(
            "durable-replay",
            "rate over replay from memory",
            0.5,
            ratio("durable-replay", REPLAY_COLD),
        ),
    ]
}

/// The goals on payload sizes and thread counts.
fn axes(f: &Findings) -> Vec<Goal> {
    let most = Goal::at_most;
    // The bare server shares one buffer among all subscribers.
    let cpu = |key| f.ratio(key, server_cpu);
    let mut goals = vec![
        most("size-put-100k", "CPU over bare", 1.5, cpu("size-put-100k")),
        most("size-pull-100k", "CPU over bare", 1.5, cpu("size-pull-100k")),
        most("size-fanout-14k", "CPU over bare", 1.4, cpu("size-fanout-14k")),
        most("size-fanout-100k", "CPU over bare", 1.4, cpu("size-fanout-100k")),
        most("size-fanout-1m", "CPU over bare", 1.4, cpu("size-fanout-1m")),
    ];
    for key in ["threads-put", "threads-fanout"] {
        let eight = f.reports(key, Some(Contender::With(EIGHT_THREADS))).iter();
        let two = f.reports(key, Some(Contender::With(TWO_THREADS))).iter();
        let ratios = eight.zip(two).map(|(eight, two)| server_cpu(eight) / server_cpu(two));
        goals.push(most(key, "CPU with 8 threads over that with 2", 1.3, median(ratios)));
    }
    for work in ["PUT", "delivery to one of 100"] {
        let count = |threads| f.counts.iter().find(|c| c.work == work && c.threads == threads);
        if let (Some(two), Some(eight)) = (count(2), count(8)) {
            let instructions = eight.instructions / two.instructions;
            goals.push(most(
                work,
                "instructions with 8 threads over those with 2",
                1.1,
                instructions,
            ));
        }
    }
    goals
}

fn engine(f: &Findings) -> Vec<Goal> {
    let most = Goal::at_most;
    vec![
        most("engine", "ns for a put by name", 150.0, f.micro("put")),
        most("engine", "ns for a get by name", 90.0, f.micro("get")),
        most("engine", "ns for a put by handle", 100.0, f.micro("put, by handle")),
        most("engine", "ns for a get by handle", 50.0, f.micro("get, by handle")),
        Goal::at_least(
            "engine",
            "times the puts of one thread by two, on two topics",
            1.7,
            f.micro_least("put, one thread") / f.micro_least("put, two threads, two topics"),
        ),
        most(
            "engine",
            "times a put to one of 100,000 topics, over one of 10",
            1.3,
            f.micro("put, to one of 100000 topics") / f.micro("put, to one of 10 topics"),
        ),
        most(
            "engine",
            "bytes of memory for a message of 128 B, beyond its payload",
            150.0,
            f.micro("memory, a message"),
        ),
        most("engine", "bytes of memory for a lease", 120.0, f.micro("memory, a lease")),
        most(
            "engine",
            "bytes of memory for a pending request, beyond its payload",
            300.0,
            f.micro("memory, a pending request"),
        ),
        most(
            "engine",
            "bytes of memory for a topic with a message, beyond its payload",
            700.0,
            f.micro("memory, a topic with a message"),
        ),
    ]
}
