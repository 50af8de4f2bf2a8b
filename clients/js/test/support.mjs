// The server under test, and a network that can be cut.
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import net from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { connect } from "msgbus-client";

const BINARY = process.env.MSGBUSD;
if (!BINARY) throw new Error("set MSGBUSD to the path of msgbusd");

// Everything is cleaned up when a test does not end by itself, too.
const cleanups = [];
process.on("exit", () => cleanups.forEach((clean) => clean()));
for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"]) process.on(signal, () => process.exit(1));

/** Waits are generous, for busy machines. */
export const TIMEOUT = 60_000;

/** The global class, or that of the package `ws` if MSGBUS_TEST_WEBSOCKET says so. */
export const WebSocket =
    process.env.MSGBUS_TEST_WEBSOCKET === "ws" ? (await import("ws")).default : globalThis.WebSocket;

/** Attempts to reconnect follow each other quickly. */
export const options = { WebSocket, backoff: { first: 4, cap: 100 } };

export async function until(what, ready) {
    const deadline = Date.now() + TIMEOUT;
    for (;;) {
        const found = await ready();
        if (found) return found;
        if (Date.now() > deadline) throw new Error(`expected: ${what}`);
        await sleep(10);
    }
}

/** Random numbers that are the same for the same seed (mulberry32). */
export function seeded(seed) {
    const next = () => {
        seed = (seed + 0x6d2b79f5) | 0;
        let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
        t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
        return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
    };
    /** An integer from `from` to `to`. */
    return (from, to) => from + Math.floor(next() * (to - from + 1));
}

/** A directory that is removed when everything has ended. */
export function temporaryDirectory() {
    const path = mkdtempSync(join(tmpdir(), "msgbus-clients-"));
    cleanups.push(() => rmSync(path, { recursive: true, force: true, maxRetries: 20 }));
    return path;
}

export class Daemon {
    #flags;
    #process;
    #bind = "127.0.0.1:0";

    static async start(t, ...flags) {
        const daemon = new Daemon();
        daemon.#flags = flags;
        cleanups.unshift(() => daemon.#process?.pid && daemon.#process.kill("SIGKILL"));
        t.after(() => daemon.kill());
        await daemon.start();
        return daemon;
    }

    async start() {
        let log = "";
        this.#process = spawn(BINARY, ["--bind", this.#bind, ...this.#flags], { stdio: ["ignore", "ignore", "pipe"] });
        this.#process.stderr.on("data", (data) => (log += data));
        this.#process.on("error", (error) => (log += error));
        this.url = await until("a server that listens", () => {
            if (this.#process.exitCode !== null) throw new Error(`no server: ${log}`);
            return /listening on (https?:\/\/\S+)/.exec(log)?.[1];
        });
        this.#bind = new URL(this.url).host;
        this.port = Number(new URL(this.url).port);
    }

    async #stop(signal) {
        if (!this.#process.pid || this.#process.exitCode !== null || this.#process.signalCode !== null) return;
        const exited = once(this.#process, "exit");
        this.#process.kill(signal);
        await exited;
    }

    kill() {
        return this.#stop("SIGKILL");
    }

    /** Stops with a drain. */
    stop() {
        return this.#stop("SIGTERM");
    }

    reload() {
        this.#process.kill("SIGHUP");
    }

    async fetch(path, init) {
        return fetch(new URL(path, this.url), init);
    }
}

/** Passes bytes on until it cuts the connection: in either direction, after a number of bytes, or at once. */
export class Network {
    cuts = 0;
    #connections = new Set();
    #daemon;
    #bytesUntilCut;

    static async start(t, daemon) {
        const network = new Network();
        network.#daemon = daemon;
        network.server = net.createServer((client) => network.#pass(client));
        network.server.listen(0, "127.0.0.1");
        await once(network.server, "listening");
        t.after(() => {
            network.heal();
            network.server.close();
            network.cutAll();
        });
        network.url = `http://127.0.0.1:${network.server.address().port}`;
        return network;
    }

    /** From now on each connection is cut: many after a few bytes, some late enough for all that has waited. */
    cutAfter(random, least, most) {
        this.#bytesUntilCut = () => Math.round(least * (most / least) ** (random(0, 1000) / 1000));
        this.cutAll();
    }

    heal() {
        this.#bytesUntilCut = undefined;
    }

    cutAll() {
        for (const client of this.#connections) client.resetAndDestroy();
    }

    #pass(client) {
        client.on("error", () => {});
        const upstream = net.connect(this.#daemon.port, "127.0.0.1");
        this.#connections.add(client);
        upstream.on("error", () => {});
        upstream.on("close", () => client.destroy());
        client.on("close", () => {
            this.#connections.delete(client);
            upstream.destroy();
        });
        let left = this.#bytesUntilCut?.() ?? Infinity;
        const pass = (from, to) =>
            from.on("data", (data) => {
                if (left === 0) return;
                const isWhole = data.length < left || !this.#bytesUntilCut;
                if (isWhole) {
                    left -= data.length;
                    to.write(data);
                    return;
                }
                // The first part arrives, the rest does not.
                to.write(data.subarray(0, left), () => (++this.cuts % 2 ? client.destroySoon() : client.resetAndDestroy()));
                left = 0;
            });
        pass(client, upstream);
        pass(upstream, client);
    }
}

/** A connected bus that is closed after the test. */
export async function open(t, url, more = {}) {
    const bus = await connect(url, { ...options, ...more });
    t.after(() => bus.close());
    return bus;
}

/** Takes this many messages, or fewer if the subscription ends. */
export async function take(subscription, count) {
    const messages = [];
    while (messages.length < count) {
        const { value, done } = await subscription.next();
        if (done) break;
        messages.push(value);
    }
    return messages;
}

export const texts = (messages) => messages.map((message) => message.text());
