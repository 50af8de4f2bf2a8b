// Requests to services, and their responders.
import assert from "node:assert/strict";
import { test } from "node:test";
import { ConnectionLost, MsgbusError } from "msgbus-client";
import { Daemon, Network, open, take, until } from "./support.mjs";

const code = (word) => (error) => error instanceof MsgbusError && error.code === word;

const stats = async (daemon, service) => JSON.parse(await (await daemon.fetch("/-/services")).text())[service];

/** Answers with the text of each request in upper case, until the responder ends. */
async function upper(responder) {
    for await (const request of responder) await request.reply(request.text().toUpperCase());
}

test("a request is answered as it was asked", async (t) => {
    const daemon = await Daemon.start(t);
    const bus = await open(t, daemon.url);
    await assert.rejects(bus.request("s"), code("no_responder"));
    const responder = bus.serve("s", { max: 10 });
    const binary = Uint8Array.from({ length: 70_000 }, (_, index) => index * 7);
    const asked = ["größe 😀", binary, { a: [1, null] }, undefined];
    const replies = asked.map((payload) => bus.request("s", payload, { headers: { tag: ["a", "b"] }, timeout: "1m" }));
    const requests = await take(responder, asked.length);
    assert.deepEqual(requests[0].headers, { tag: ["a", "b"] });
    assert.equal(requests[0].service, "s");
    assert.ok(requests[0].deadline > Date.now() && requests[0].deadline <= Date.now() + 60_000);
    assert.equal(requests[0].text(), "größe 😀");
    assert.deepEqual(requests[1].payload, binary);
    assert.deepEqual(requests[2].json(), { a: [1, null] });
    assert.equal(requests[2].headers["content-type"], "application/json");
    assert.equal(requests[3].payload.length, 0);
    // In another order.
    for (const request of requests.reverse()) await request.reply(request.payload, { headers: { n: "1" } });
    assert.deepEqual((await replies[1]).payload, binary);
    assert.deepEqual((await replies[2]).json(), { a: [1, null] });
    assert.deepEqual((await replies[3]).headers, { n: "1" });
    assert.equal((await replies[0]).text(), "größe 😀");
    await assert.rejects(requests[0].reply("again"), code("reply_not_wanted"));
    await responder.return();
    await until("no responder", async () => (await stats(daemon, "s")).responders === 0);
});

test("failures are told", async (t) => {
    const daemon = await Daemon.start(t);
    const bus = await open(t, daemon.url);
    const responder = bus.serve("s");
    await responder.ready;
    const ask = async (answer, options) => {
        const reply = bus.request("s", "x", { timeout: "1m", ...options });
        reply.catch(() => {});
        const [request] = await take(responder, 1);
        await answer(request);
        return reply;
    };
    await assert.rejects(ask((request) => request.fail("no more paper")), /no more paper/);
    await assert.rejects(ask((request) => request.decline()), code("responder_failed"));
    const late = ask(async (request) => {
        await until("its end", () => request.deadline < Date.now() - 200);
        await assert.rejects(request.reply("late"), code("reply_not_wanted"));
    }, { timeout: "2s" });
    await assert.rejects(late, code("request_timeout"));
    await assert.rejects(bus.request("a//b"), code("bad_topic"));
    await assert.rejects(bus.request("s", "x", { timeout: "2d" }), code("bad_parameter"));
    await assert.rejects(bus.serve("s", { max: 0 }).ready, code("bad_parameter"));
    await assert.rejects(bus.request("s", "\ud800"), code("bad_text"));
    await assert.rejects(ask((request) => request.reply("x".repeat(3_000_000)).catch(() => request.fail("too large"))), /too large/);
});

test("a responder asks itself on the same connection, with as many requests as may wait", async (t) => {
    const daemon = await Daemon.start(t);
    const bus = await open(t, daemon.url);
    void upper(bus.serve("inner", { max: 1000 }));
    const outer = async () => {
        for await (const request of bus.serve("outer", { max: 10 })) {
            void bus.request("inner", request.payload, { timeout: "1m" }).then((reply) => request.reply(reply.payload));
        }
    };
    void outer();
    await until("responders", async () => (await stats(daemon, "outer"))?.responders === 1);
    const ask = (_, n) => bus.request("outer", `n${n}`, { timeout: "1m" });
    const replies = await Promise.all(Array.from({ length: 1000 }, ask));
    replies.forEach((reply, n) => assert.equal(reply.text(), `N${n}`));
    // One more than may wait is refused.
    const silent = bus.serve("silent", { max: 1024 });
    await silent.ready;
    const asked = Array.from({ length: 1025 }, () => bus.request("silent", "", { timeout: "1m" }));
    await assert.rejects(asked.at(-1), code("too_many_requests"));
    for (const request of await take(silent, 1024)) await request.reply();
    await Promise.all(asked.slice(0, -1));
});

test("requests end with the connection of their responder, and are handed on if they may be repeated", async (t) => {
    const daemon = await Daemon.start(t);
    const network = await Network.start(t, daemon);
    let losses = 0;
    const far = await open(t, network.url, { onDisconnect: () => losses++ });
    const near = await open(t, daemon.url);
    const responder = far.serve("s", { max: 10 });
    await responder.ready;
    const once = near.request("s", "once", { timeout: "1m" });
    const [lost] = await take(responder, 1);
    const again = near.request("s", "again", { timeout: "1m", retry: true });
    await until("both in hand", async () => (await stats(daemon, "s")).in_hand === 2);
    network.cutAll();
    await assert.rejects(once, code("responder_failed"));
    await until("the loss", () => losses > 0);
    const [request] = await take(responder, 1);
    assert.equal(request.text(), "again");
    await assert.rejects(lost.reply("late"), code("reply_not_wanted"));
    await request.reply("here");
    assert.equal((await again).text(), "here");
});

test("a requester whose connection is lost is told, or asks again", async (t) => {
    const daemon = await Daemon.start(t);
    const network = await Network.start(t, daemon);
    const [far, near] = [await open(t, network.url), await open(t, daemon.url)];
    const responder = near.serve("s", { max: 10 });
    await responder.ready;
    const once = far.request("s", "once", { timeout: "1m" });
    const again = far.request("s", "again", { timeout: "1m", retry: true });
    await take(responder, 2);
    network.cutAll();
    await assert.rejects(once, (error) => error instanceof ConnectionLost);
    const [request] = await take(responder, 1);
    assert.equal(request.text(), "again");
    await request.reply("here");
    assert.equal((await again).text(), "here");
});

test("without a connection a request waits no longer than its time", async (t) => {
    const daemon = await Daemon.start(t);
    const bus = await open(t, daemon.url);
    await daemon.kill();
    await until("no connection", () => !bus.isConnected);
    await assert.rejects(bus.request("s", "x", { timeout: "1ms" }), code("request_timeout"));
});

test("a consumer that is stuck is passed over", async (t) => {
    const daemon = await Daemon.start(t);
    const bus = await open(t, daemon.url);
    const responder = bus.serve("s");
    await responder.ready;
    await assert.rejects(bus.request("s", "1", { timeout: "50ms" }), code("request_timeout"));
    const reply = bus.request("s", "2", { timeout: "1m" });
    // By the clock of the client, the first may not be over.
    let request;
    do [request] = await take(responder, 1);
    while (request.text() !== "2");
    await request.reply("3");
    assert.equal((await reply).text(), "3");
});

test("many leases are settled at once", async (t) => {
    const daemon = await Daemon.start(t);
    const bus = await open(t, daemon.url);
    for (const text of "abc") await bus.publish("jobs", text);
    const [a, b, c] = (await bus.pull("jobs", { group: "g", max: 3 })).map(({ lease }) => lease);
    assert.deepEqual(await bus.extend([a, b], "1h"), []);
    assert.match(await bus.extend(c, "1h"), /Z$/);
    assert.deepEqual(await bus.nack([a], { reason: "later" }), []);
    assert.deepEqual(await bus.ack([b, a, "x", c]), [
        { lease: a, error: "lease_lost" },
        { lease: "x", error: "invalid_lease" },
    ]);
    assert.deepEqual(await bus.ack([]), []);
    const [again] = await bus.pull("jobs", { group: "g" });
    assert.equal(again.text(), "a");
    assert.deepEqual(await bus.ack(again.lease), []);

    // The credit of a subscription comes back.
    const subscription = bus.subscribe("jobs", { group: "g", credit: 2, lease: "1h" });
    for (let n = 0; n < 6; n++) await bus.publish("jobs", `${n}`);
    for (const texts of [["0", "1"], ["2", "3"], ["4", "5"]]) {
        const deliveries = await take(subscription, 2);
        assert.deepEqual(deliveries.map((delivery) => delivery.text()), texts);
        assert.deepEqual(await bus.ack(deliveries.map(({ lease }) => lease)), []);
    }
});
