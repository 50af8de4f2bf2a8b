// Nothing is missing, nothing comes twice and nothing is out of order within a topic, whatever happens to connections
// and to the server, except what the client reports.
import assert from "node:assert/strict";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { ConnectionLost } from "msgbus-client";
import { Daemon, Network, open, seeded, take, temporaryDirectory, until } from "./support.mjs";

const CUTS = Number(process.env.MSGBUS_TEST_CUTS ?? 300);
const SEED = Number(process.env.MSGBUS_TEST_SEED ?? 1);
const TOPICS = ["cut/a", "cut/b", "cut/c/d"];

/**
 * Publishes over a connection that is not cut, until `isOver`, and returns what was published to each topic. Unless it
 * may be lost, no more is published than subscribers can follow between the cuts.
 */
async function publishUntil(bus, random, isOver, records = []) {
    const log = new Map(TOPICS.map((topic) => [topic, []]));
    let number = 0;
    const keepUp = () => isOver() || records.every((record) => total(record.of(log)) - record.count() < 200);
    while (!isOver()) {
        await until("subscribers that keep up", keepUp);
        const batch = Array.from({ length: random(1, 20) }, async () => {
            const topic = TOPICS[random(0, TOPICS.length - 1)];
            const text = `${number++} ${"x".repeat(random(0, 5) === 0 ? random(0, 4000) : 10)}`;
            log.get(topic).push(text);
            await bus.publish(topic, text, { retry: true });
        });
        await Promise.all(batch);
        await sleep(random(0, 2));
    }
    return log;
}

/** Records what a subscription receives, by topic, with what it reports. */
function record(bus, topic, since) {
    const seen = new Map(TOPICS.map((name) => [name, []]));
    const reported = { missed: 0, restarts: 0 };
    const subscription = bus.subscribe(topic, {
        since,
        onGap: (missed) => (reported.missed += missed),
        onRestart: () => reported.restarts++,
    });
    const following = (async () => {
        for await (const message of subscription) seen.get(message.topic).push(message.text());
    })();
    const count = () => [...seen.values()].reduce((sum, texts) => sum + texts.length, 0) + reported.missed;
    /** The part of a log that it has to receive. */
    const of = (log) => new Map([...log].map(([name, texts]) => [name, matches(topic, name) ? texts : []]));
    return { topic, subscription, seen, reported, following, count, of };
}

const matches = (pattern, topic) =>
    new RegExp(`^${pattern.replaceAll("**", ".+").replace(/\*$/, "[^/]+")}$`).test(topic);

const total = (log) => [...log.values()].reduce((sum, texts) => sum + texts.length, 0);

test(`${CUTS} cuts: topics and patterns are received as they were published`, async (t) => {
    const random = seeded(SEED);
    const daemon = await Daemon.start(t);
    const network = await Network.start(t, daemon);
    const publisher = await open(t, daemon.url);
    const bus = await open(t, network.url);
    const records = [...TOPICS, "cut/**", "cut/*"].map((topic) => record(bus, topic));
    await Promise.all(records.map(({ subscription }) => subscription.ready));
    network.cutAfter(random, 200, 200_000);
    const log = await publishUntil(publisher, random, () => network.cuts >= CUTS, records);
    network.heal();
    for (const { topic, seen, reported, count, of } of records) {
        const expected = of(log);
        await until(`${total(expected)} messages of ${topic}`, () => count() >= total(expected));
        assert.deepEqual(seen, expected, `${topic}, seed ${SEED}`);
        assert.deepEqual(reported, { missed: 0, restarts: 0 });
    }
    t.diagnostic(`${network.cuts} cuts, ${total(log)} messages`);
});

test("cuts while messages are evicted: what is missing is reported with its exact count", async (t) => {
    const random = seeded(SEED + 1);
    const daemon = await Daemon.start(t, "--max-queue-size", "40");
    const network = await Network.start(t, daemon);
    const publisher = await open(t, daemon.url);
    const bus = await open(t, network.url);
    const records = [...TOPICS, "cut/**"].map((topic) => record(bus, topic));
    await Promise.all(records.map(({ subscription }) => subscription.ready));
    network.cutAfter(random, 200, 200_000);
    const log = await publishUntil(publisher, random, () => network.cuts >= CUTS / 3);
    network.heal();
    let missed = 0;
    for (const { topic, seen, reported, count, of } of records) {
        const expected = of(log);
        await until(`all of ${topic}`, () => count() >= total(expected));
        assert.equal(count(), total(expected));
        for (const [name, texts] of expected) assertSubsequence(seen.get(name), texts);
        missed += reported.missed;
        assert.equal(reported.restarts, 0);
    }
    t.diagnostic(`${network.cuts} cuts, ${total(log)} messages, ${missed} missed`);
});

/** Each of `part` once and in the order of `whole`. */
function assertSubsequence(part, whole) {
    let at = -1;
    for (const text of part) {
        const next = whole.indexOf(text, at + 1);
        assert.ok(next > at, `${text} is a repeat or out of order`);
        at = next;
    }
}

test("restarts of a durable server, by kill and by stop, are not noticed", async (t) => {
    const random = seeded(SEED + 2);
    const daemon = await Daemon.start(t, "--data", temporaryDirectory());
    const network = await Network.start(t, daemon);
    const publisher = await open(t, daemon.url);
    const bus = await open(t, network.url);
    const records = [...TOPICS, "cut/**"].map((topic) => record(bus, topic));
    await Promise.all(records.map(({ subscription }) => subscription.ready));
    network.cutAfter(random, 500, 200_000);
    let isOver = false;
    const publishing = publishUntil(publisher, random, () => isOver, records);
    for (let restart = 0; restart < 6; restart++) {
        await sleep(random(100, 400));
        await (restart % 2 ? daemon.kill() : daemon.stop());
        await daemon.start();
    }
    isOver = true;
    const log = await publishing;
    network.heal();
    // A publish that was repeated may be in the log twice: the log of the server is what subscribers have to see.
    const kept = new Map();
    for (const topic of TOPICS) {
        const { retained } = await (await daemon.fetch(`/-/topics/${topic}`)).json();
        const texts = (await take(publisher.subscribe(topic, { since: "all" }), retained)).map((message) => message.text());
        assert.deepEqual(new Set(texts), new Set(log.get(topic)));
        kept.set(topic, texts);
    }
    for (const { topic, seen, reported, count, of } of records) {
        const expected = of(kept);
        await until(`all of ${topic}`, () => count() >= total(expected));
        assert.deepEqual(seen, expected);
        assert.equal(reported.missed, 0);
        // The log of a pattern begins again with the server; repeats are removed.
        assert.ok(reported.restarts === 0 || topic.includes("*"));
    }
    t.diagnostic(`${network.cuts} cuts, ${total(kept)} messages, ${records.at(-1).reported.restarts} restarts of the pattern`);
});

test("a server that restarts without its messages is a restart of each subscription", async (t) => {
    const daemon = await Daemon.start(t);
    const bus = await open(t, daemon.url);
    await bus.publish("cut/a", "before");
    const records = ["cut/a", "cut/**"].map((topic) => record(bus, topic, "all"));
    await until("the first message", () => records.every(({ count }) => count() === 1));
    await daemon.kill();
    await daemon.start();
    await bus.publish("cut/a", "after");
    await until("the second message", () => records.every(({ count }) => count() === 2));
    for (const { seen, reported } of records) {
        assert.deepEqual(seen.get("cut/a"), ["before", "after"]);
        assert.deepEqual(reported, { missed: 0, restarts: 1 });
    }
});

test("a publish without an answer is said to be unknown, and each known one is kept once", async (t) => {
    const random = seeded(SEED + 3);
    const daemon = await Daemon.start(t);
    const network = await Network.start(t, daemon);
    const bus = await open(t, network.url);
    network.cutAfter(random, 200, 8000);
    const known = new Map();
    const unknown = new Set();
    for (let number = 0; network.cuts < CUTS / 3; number += 10) {
        await Promise.all(
            Array.from({ length: 10 }, async (_, index) => {
                const text = `${number + index}`;
                await bus.publish("unsure", text).then(
                    ({ id }) => known.set(id, text),
                    (error) => {
                        assert.ok(error instanceof ConnectionLost, error);
                        unknown.add(text);
                    },
                );
            }),
        );
    }
    network.heal();
    const reader = await open(t, daemon.url);
    const { id: last } = await reader.publish("unsure", "the end");
    const kept = await take(reader.subscribe("unsure", { since: "all" }), last + 1);
    const texts = kept.map((message) => message.text());
    assert.equal(new Set(texts).size, texts.length, "a message was published twice");
    for (const message of kept.slice(0, -1)) {
        const isKnown = known.get(message.id) === message.text();
        assert.ok(isKnown !== unknown.has(message.text()), message.text());
        known.delete(message.id);
    }
    assert.equal(known.size, 0, "a message that was said to be kept is not there");
    assert.ok(unknown.size > 0);
    t.diagnostic(`${network.cuts} cuts, ${texts.length} kept, ${unknown.size} unknown`);
});

test("with retry every publish is kept, in order, though perhaps twice", async (t) => {
    const random = seeded(SEED + 4);
    const daemon = await Daemon.start(t);
    const network = await Network.start(t, daemon);
    const bus = await open(t, network.url);
    network.cutAfter(random, 200, 8000);
    let number = 0;
    while (network.cuts < CUTS / 6) {
        await Promise.all(Array.from({ length: 10 }, () => bus.publish("sure", number++, { retry: true })));
    }
    network.heal();
    const reader = await open(t, daemon.url);
    const { id: last } = await reader.publish("sure", "the end");
    const kept = (await take(reader.subscribe("sure", { since: "all" }), last + 1)).slice(0, -1).map((message) => message.json());
    const firsts = kept.filter((value, index) => kept.indexOf(value) === index);
    assert.deepEqual(firsts, Array.from({ length: number }, (_, index) => index));
});

test("every job of a group is done, over cuts", async (t) => {
    const random = seeded(SEED + 5);
    const daemon = await Daemon.start(t);
    const network = await Network.start(t, daemon);
    const publisher = await open(t, daemon.url);
    const jobs = Array.from({ length: 600 }, (_, job) => `${job}`);
    await Promise.all(jobs.map((job) => publisher.publish("jobs", job)));
    const done = new Map();
    const workers = [await open(t, network.url), await open(t, network.url)];
    network.cutAfter(random, 500, 15_000);
    const work = async (bus) => {
        for await (const delivery of bus.subscribe("jobs", { group: "workers", lease: "2s", credit: 8 })) {
            done.set(delivery.text(), (done.get(delivery.text()) ?? 0) + 1);
            await delivery.ack().catch((error) => assert.match(error.code, /^(lease_lost|connection_lost)$/));
        }
    };
    const working = Promise.all(workers.map(work));
    const acked = async () => (await (await daemon.fetch("/-/groups/workers/jobs")).json()).acked;
    await until("all jobs acknowledged", async () => done.size === jobs.length && (await acked()) === jobs.length);
    assert.deepEqual(new Set(done.keys()), new Set(jobs));
    await Promise.all(workers.map((bus) => bus.close()));
    await working;
    t.diagnostic(`${network.cuts} cuts, ${[...done.values()].reduce((a, b) => a + b)} deliveries`);
});

test("a slow consumer pauses its own subscription and loses nothing that is kept", async (t) => {
    const daemon = await Daemon.start(t);
    const bus = await open(t, daemon.url);
    const publisher = await open(t, daemon.url);
    const subscription = bus.subscribe("slow");
    const quick = bus.subscribe("quick");
    await Promise.all([subscription.ready, quick.ready]);
    // Several times what a subscription buffers.
    const count = 1500;
    const padding = "x".repeat(10_000);
    for (let number = 0; number < count; number += 100) {
        await Promise.all(Array.from({ length: 100 }, (_, index) => publisher.publish("slow", `${number + index} ${padding}`)));
    }
    await publisher.publish("quick", "not held up");
    assert.equal((await take(quick, 1))[0].text(), "not held up");
    // The buffer is full, so the subscription has ended on the server until the consumer takes messages.
    const subscriptions = async () => (await (await daemon.fetch("/-/topics/slow")).json()).subscriptions.length;
    await until("a pause", async () => (await subscriptions()) === 0);
    const numbers = (await take(subscription, count)).map((message) => parseInt(message.text()));
    assert.deepEqual(numbers, Array.from({ length: count }, (_, number) => number));
});
