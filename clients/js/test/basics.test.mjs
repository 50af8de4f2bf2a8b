// What each operation does, without faults of the network.
import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import { test } from "node:test";
import { connect, ConnectionLost, MsgbusError } from "msgbus-client";
import { newKey, writeKeys } from "./keys.mjs";
import { Daemon, open, options, take, texts, until } from "./support.mjs";

test("a message arrives as it was published", async (t) => {
    const daemon = await Daemon.start(t);
    const bus = await open(t, daemon.url);
    const subscription = bus.subscribe("all/kinds");
    const binary = Uint8Array.from({ length: 70_000 }, (_, index) => index * 7);
    const long = `"\\\n`.repeat(100_000);
    const control = "\u0000".repeat(500_000);
    const published = [
        await bus.publish("all/kinds", "text with ä, 😀, \u2028 and \u0000", { headers: { "Type": "a", tag: ["b", "c"] } }),
        await bus.publish("all/kinds", binary),
        await bus.publish("all/kinds", binary.buffer),
        await bus.publish("all/kinds", { a: [1, null, "ü"] }, { ttl: "1m" }),
        await bus.publish("all/kinds", null),
        await bus.publish("all/kinds"),
        await bus.publish("all/kinds", long),
        await bus.publish("all/kinds", control),
        await bus.publish("all/kinds", "\ufeffmark"),
    ];
    const messages = await take(subscription, published.length);
    assert.deepEqual(messages.map(({ id }) => id), published.map(({ id }) => id));
    assert.deepEqual(messages.map(({ position }) => position), published.map(({ epoch, id }) => `${epoch}-${id}`));
    assert.equal(published[0].durability, "memory");
    const [text, bytes, buffer, json, nothing, empty, escaped, zeros, mark] = messages;
    assert.equal(text.topic, "all/kinds");
    assert.equal(text.text(), "text with ä, 😀, \u2028 and \u0000");
    assert.deepEqual(text.headers, { Type: "a", tag: ["b", "c"] });
    assert.deepEqual(bytes.payload, binary);
    assert.deepEqual(buffer.payload, binary);
    assert.deepEqual(json.json(), { a: [1, null, "ü"] });
    assert.equal(json.headers["content-type"], "application/json");
    assert.ok(json.expires < text.expires);
    assert.equal(nothing.text(), "null");
    assert.equal(empty.payload.length, 0);
    assert.equal(escaped.text(), long);
    assert.equal(zeros.text(), control);
    assert.equal(mark.text(), "\ufeffmark");
    assert.deepEqual(mark.payload, new TextEncoder().encode("\ufeffmark"));
});

test("pipelined publishes are in the order of the calls", async (t) => {
    const daemon = await Daemon.start(t);
    const bus = await open(t, daemon.url);
    const numbers = Array.from({ length: 5000 }, (_, number) => number);
    const published = await Promise.all(numbers.map((number) => bus.publish("numbers", number)));
    assert.deepEqual(published.map(({ id }) => id), numbers);
    const messages = await take(bus.subscribe("numbers", { since: "all" }), numbers.length);
    assert.deepEqual(messages.map((message) => message.json()), numbers);
});

test("a pattern follows topics that exist and topics that are created", async (t) => {
    const daemon = await Daemon.start(t);
    const bus = await open(t, daemon.url);
    await bus.publish("orders/eu", "1");
    const all = bus.subscribe("orders/**", { since: "all" });
    const one = bus.subscribe("orders/*");
    await Promise.all([all.ready, one.ready]);
    await bus.publish("orders/us/east", "2");
    await bus.publish("orders/us", "3");
    await bus.publish("other", "4");
    await bus.publish("orders/eu", "5");
    const seen = (messages) => messages.map((message) => `${message.topic} ${message.text()}`);
    assert.deepEqual(seen(await take(all, 4)), ["orders/eu 1", "orders/us/east 2", "orders/us 3", "orders/eu 5"]);
    assert.deepEqual(seen(await take(one, 2)), ["orders/us 3", "orders/eu 5"]);
});

test("a subscription resumes at the position of a message, of another subscription, and at a time", async (t) => {
    const daemon = await Daemon.start(t);
    const bus = await open(t, daemon.url);
    for (const text of "abcde") await bus.publish("letters", text);
    const first = bus.subscribe("letters", { since: "all" });
    const [, b] = await take(first, 2);
    assert.equal(first.position, b.position);
    assert.deepEqual(texts(await take(bus.subscribe("letters", { since: b.position }), 3)), ["c", "d", "e"]);
    assert.deepEqual(texts(await take(bus.subscribe("letters", { since: "10m" }), 5)), [..."abcde"]);
    const fresh = bus.subscribe("unused");
    await fresh.ready;
    assert.match(fresh.position, /^\d+-start$/);
});

test("leaving the loop ends the subscription, on the server too", async (t) => {
    const daemon = await Daemon.start(t);
    const bus = await open(t, daemon.url);
    for (const text of "ab") await bus.publish("letters", text);
    for await (const message of bus.subscribe("letters", { since: "all" })) {
        assert.equal(message.text(), "a");
        break;
    }
    const subscribers = async () => JSON.parse(await (await daemon.fetch("/-/topics/letters")).text()).subscriptions.length;
    await until("no subscription", async () => (await subscribers()) === 0);
});

test("what was missed, and that a topic has started anew, is reported", async (t) => {
    const daemon = await Daemon.start(t, "--max-queue-size", "5");
    const bus = await open(t, daemon.url);
    const { epoch } = await bus.publish("short", "0");
    for (let number = 1; number < 20; number++) await bus.publish("short", `${number}`);
    const reported = [];
    const follow = { onGap: (missed) => reported.push(missed), onRestart: () => reported.push("restart") };
    const subscription = bus.subscribe("short", { since: `${epoch}-2`, ...follow });
    assert.deepEqual(texts(await take(subscription, 5)), ["15", "16", "17", "18", "19"]);
    assert.deepEqual(reported.splice(0), [12]);

    assert.equal((await daemon.fetch("/short", { method: "DELETE" })).status, 204);
    await bus.publish("short", "reborn");
    assert.deepEqual(texts(await take(subscription, 1)), ["reborn"]);
    assert.deepEqual(reported, ["restart"]);
    assert.equal(subscription.position.split("-")[1], "0");
});

test("pull takes messages, and waits for them", async (t) => {
    const daemon = await Daemon.start(t);
    const bus = await open(t, daemon.url);
    assert.deepEqual(await bus.pull("jobs"), []);
    for (const text of "abc") await bus.publish("jobs", text);
    assert.deepEqual(texts(await bus.pull("jobs")), ["a"]);
    assert.deepEqual(texts(await bus.pull("jobs", { max: 10 })), ["b", "c"]);
    const waiting = bus.pull("jobs", { wait: "50s" });
    await bus.publish("jobs", "d");
    assert.deepEqual(texts(await waiting), ["d"]);
    assert.deepEqual(await bus.pull("jobs", { wait: "10ms" }), []);
});

const group = async (daemon, topic) => JSON.parse(await (await daemon.fetch(`/-/groups/workers/${topic}`)).text());

test("leases are acknowledged, given back and extended", async (t) => {
    const daemon = await Daemon.start(t);
    const bus = await open(t, daemon.url);
    for (const text of "abc") await bus.publish("jobs", text);
    const [a] = await bus.pull("jobs", { group: "workers", lease: "20s" });
    const before = a.leaseExpires;
    await a.extend("50s");
    assert.ok(a.leaseExpires > before);
    await a.ack();
    await assert.rejects(a.ack(), { code: "lease_lost" });
    const [b, c] = await bus.pull("jobs", { group: "workers", max: 5 });
    await b.nack({ reason: "later" });
    const [again] = await bus.pull("jobs", { group: "workers", wait: "30s" });
    assert.deepEqual([again.text(), again.deliveries], ["b", 2]);
    await bus.ack(again.lease);
    await bus.nack(c.lease, { delay: "1h" });
    const { acked, waiting } = await group(daemon, "jobs");
    assert.deepEqual({ acked, waiting }, { acked: 2, waiting: 1 });
});

test("a worker has as many messages as its credit, and the next one when it has settled one", async (t) => {
    const daemon = await Daemon.start(t);
    const bus = await open(t, daemon.url);
    for (const text of "abcd") await bus.publish("jobs", text);
    const jobs = bus.subscribe("jobs", { group: "workers", credit: 2 });
    const [a, b] = await take(jobs, 2);
    const next = take(jobs, 1);
    await bus.publish("other");
    assert.equal((await group(daemon, "jobs")).leased, 2);
    await b.nack({ delay: "1h" });
    const [c] = await next;
    await Promise.all([a.ack(), c.ack()]);
    const [d] = await take(jobs, 1);
    assert.equal(d.text(), "d");
    await d.ack();
    assert.equal((await group(daemon, "jobs")).acked, 3);
});

test("a lease that ends gives its credit back, and a message that was not taken goes to another worker", async (t) => {
    const daemon = await Daemon.start(t);
    const bus = await open(t, daemon.url);
    for (const text of "ab") await bus.publish("jobs", text);
    const jobs = bus.subscribe("jobs", { group: "workers", lease: "3s" });
    const [a] = await take(jobs, 1);
    await until("the end of the lease", async () => (await group(daemon, "jobs")).lease_expired === 1);
    // A worker that is stuck is sent nothing more.
    assert.equal((await group(daemon, "jobs")).delivered, 1);
    const [again] = await take(jobs, 1);
    assert.deepEqual([a.text(), again.text(), again.deliveries], ["a", "a", 2]);
    await assert.rejects(a.ack(), { code: "lease_lost" });
    await again.ack();
    // "b" is in the buffer, or on its way.
    await until("a lease of b", async () => (await group(daemon, "jobs")).leased === 1);
    await jobs.return();
    const [b] = await bus.pull("jobs", { group: "workers", wait: "30s" });
    assert.equal(b.text(), "b");
});

test("errors have a code, and leave everything else alone", async (t) => {
    const daemon = await Daemon.start(t, "--max-payload-size", "1000");
    const bus = await open(t, daemon.url);
    const refused = (code) => (error) => error instanceof MsgbusError && error.code === code && error.message.length > 5;
    await assert.rejects(bus.publish("metrics", "x"), refused("bad_topic"));
    await assert.rejects(bus.publish("a", "x", { ttl: "soon" }), refused("bad_parameter"));
    await assert.rejects(bus.publish("a", "x".repeat(1001)), refused("payload_too_large"));
    await assert.rejects(bus.publish("a", "x".repeat(2_000_000)), refused("payload_too_large"));
    await assert.rejects(bus.publish("a", "\ud800"), refused("bad_text"));
    await assert.rejects(bus.publish("a", new Uint8Array(3_000_000)), refused("payload_too_large"));
    await assert.rejects(bus.pull("a/**"), MsgbusError);
    await assert.rejects(bus.ack("nonsense"), refused("invalid_lease"));
    await assert.rejects(take(bus.subscribe("a", { since: "yesterday" }), 1), refused("bad_parameter"));
    const ended = bus.subscribe("orders/#/x//");
    await assert.rejects(ended.ready, MsgbusError);
    await assert.rejects(take(ended, 1), MsgbusError);
    assert.deepEqual(await ended.next(), { value: undefined, done: true });
    assert.equal((await bus.publish("a", "fine")).id, 0);
});

test("lag: disconnect ends the subscription with an error", async (t) => {
    const daemon = await Daemon.start(t, "--max-queue-size", "10");
    const bus = await open(t, daemon.url);
    const publisher = await open(t, daemon.url);
    const subscription = bus.subscribe("fast", { lag: "disconnect" });
    await subscription.ready;
    // The consumer takes nothing: first the buffer is full, then messages leave the topic.
    for (let round = 0; round < 10; round++) {
        await Promise.all(Array.from({ length: 500 }, () => publisher.publish("fast", "x")));
    }
    await assert.rejects(take(subscription, 5000), (error) => error.code === "lagged");
});

test("after close nothing is sent, and every call ends", async (t) => {
    const daemon = await Daemon.start(t);
    const bus = await open(t, daemon.url);
    const subscription = bus.subscribe("a");
    await subscription.ready;
    const taking = subscription.next();
    const waiting = bus.pull("b", { wait: "50s" });
    waiting.catch(() => {});
    await bus.publish("c");
    await bus.close();
    assert.deepEqual(await taking, { value: undefined, done: true });
    await assert.rejects(waiting, ConnectionLost);
    await assert.rejects(bus.publish("a"), { code: "client_closed" });
    await assert.rejects(take(bus.subscribe("a"), 1), { code: "client_closed" });
    assert.equal(bus.isConnected, false);
});

test("a first connection that fails is an error", async (t) => {
    const daemon = await Daemon.start(t);
    await daemon.kill();
    await assert.rejects(connect(daemon.url, options), { code: "disconnected" });
    await assert.rejects(connect("ftp://localhost", options), Error);
});

test("keys: as a subprotocol, by ticket, and revoked", async (t) => {
    const [key, entry] = newKey("shop", "--allow", "*:orders/**");
    const [other, otherEntry] = newKey("watch", "--allow", "subscribe:orders/**");
    const file = writeKeys(entry, otherEntry);
    const daemon = await Daemon.start(t, "--keys", file);

    const shop = await open(t, daemon.url, { key });
    await shop.publish("orders/1", "one");
    await assert.rejects(shop.publish("private", "x"), { code: "not_granted" });
    await assert.rejects(connect(daemon.url, { ...options, key: "wrong" }), MsgbusError);

    const headers = { authorization: `Bearer ${other}` };
    const ticket = async () => (await (await daemon.fetch("/-/ticket", { method: "POST", headers })).json()).ticket;
    const watch = await open(t, daemon.url, { ticket });
    const subscription = watch.subscribe("orders/1", { since: "all" });
    assert.deepEqual(texts(await take(subscription, 1)), ["one"]);
    await assert.rejects(watch.publish("orders/1", "x"), { code: "not_granted" });

    writeFileSync(file, entry);
    daemon.reload();
    await assert.rejects(take(subscription, 1), { code: "revoked" });
    await shop.publish("orders/1", "two");
});
