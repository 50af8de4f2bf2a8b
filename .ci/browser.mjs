#!/usr/bin/env node
// Checks docs/protocol.md, 6.10 to 6.13, in a real browser: its EventSource resumes by itself after the network or
// the server failed, without missing or repeating a message; and all of it works over TLS, where browsers use HTTP/2,
// and HTTP/1.1 for websockets.
//
//     .ci/browser.mjs target/release/msgbusd
//
// The page reaches the server through a proxy that simulates the network and can cut connections. Messages are
// published to the server directly, and its responses determine what the page has to receive. The whole record is
// compared each time, so that a repeated message is detected at the next step at the latest.
import { execFileSync, spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import net from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";

const PLAYWRIGHT = "playwright-core@1.65.1";
const CHROMIUM = "/usr/bin/chromium";
const FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
];
// Chromium reconnects after 3 s. The timeout is longer for busy machines.
const TIMEOUT = 120_000;
const CUTS = 4;

const [binary] = process.argv.slice(2);
if (!binary) {
    console.error("usage: .ci/browser.mjs <msgbusd>");
    process.exit(2);
}

// Everything is cleaned up on every kind of exit; playwright's own handler ends the browser.
const temporary = mkdtempSync(join(tmpdir(), "msgbus-browser-"));
process.env.TMPDIR = temporary;
let server;
process.on("exit", () => {
    // A server that never started has no pid, and node would kill this process's own group instead.
    if (server?.pid) server.kill("SIGKILL");
    rmSync(temporary, { recursive: true, force: true, maxRetries: 20 });
});
for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"]) process.on(signal, () => process.exit(1));

class Failed extends Error {}

/** Waits until `ready` returns a truthy value, and returns that value. `ready` may throw to end the wait. */
async function until(what, ready) {
    const deadline = Date.now() + TIMEOUT;
    for (;;) {
        const found = await ready();
        if (found) return found;
        if (Date.now() > deadline) throw new Failed(`expected: ${what}\nfound: nothing in ${TIMEOUT / 1000} s`);
        await sleep(50);
    }
}

// The server.

let address = "127.0.0.1:0";

async function startServer(...flags) {
    let log = "";
    server = spawn(binary, ["--bind", address, ...flags], { stdio: ["ignore", "ignore", "pipe"] });
    let over = false;
    server.on("error", (error) => {
        log += error;
        over = true;
    });
    server.on("exit", (code) => {
        log += `exit code ${code}`;
        over = true;
    });
    server.stderr.on("data", (data) => (log += data));
    address = await until("a server that listens", () => {
        if (over) throw new Failed(`expected: a server\nfound: ${log}`);
        return /listening on https?:\/\/(\S+)/.exec(log)?.[1];
    });
    return () => log;
}

async function killServer() {
    const gone = new Promise((resolve) => server.once("exit", resolve));
    server.kill("SIGKILL");
    await gone;
}

let texts = 0;

/** Publishes a message, and returns the line that the page has to record for it. */
async function publish(topic = "news") {
    const text = `message ${texts++}`;
    const { status, headers } = await fetch(`http://${address}/${topic}`, { method: "PUT", body: text });
    if (status !== 202) throw new Failed(`expected: 202 for a publish\nfound: ${status}`);
    const id = headers.get("msgbus-id");
    return `${headers.get("msgbus-epoch")}-${id} ${id} ${text}`;
}

async function publishSome(count) {
    const lines = [];
    while (lines.length < count) lines.push(await publish());
    return lines;
}

// The network.

const network = {
    down: false,
    failed: 0,
    /** Cuts the connection on which the next bytes arrive, after half of them were passed on. */
    tear: undefined,
    clients: new Set(),

    cut() {
        for (const client of this.clients) client.destroy();
    },
};

const proxy = net.createServer((client) => {
    client.on("error", () => {});
    if (network.down) {
        network.failed++;
        client.destroy();
        return;
    }
    const upstream = net.connect(Number(address.split(":")[1]), "127.0.0.1");
    network.clients.add(client);
    upstream.on("error", () => network.failed++);
    upstream.on("close", () => client.destroy());
    client.on("close", () => {
        network.clients.delete(client);
        upstream.destroy();
    });
    client.on("data", (data) => upstream.write(data));
    upstream.on("data", (data) => {
        const { tear } = network;
        if (!tear) return void client.write(data);
        network.tear = undefined;
        upstream.pause();
        client.write(data.subarray(0, data.length / 2), () => tear(client));
    });
});

// The page.

async function openBrowser() {
    const npm = ["install", "--no-save", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error", "--prefix", temporary];
    execFileSync("npm", [...npm, PLAYWRIGHT], { stdio: ["ignore", "ignore", "inherit"] });
    const { chromium } = createRequire(join(temporary, "/"))("playwright-core");
    return chromium.launchPersistentContext(join(temporary, "profile"), {
        executablePath: CHROMIUM,
        args: FLAGS,
        // Files that Chromium keeps outside its profile are removed with the rest.
        env: { ...process.env, HOME: temporary },
        ignoreHTTPSErrors: true,
        // Playwright would end this process without its exit handlers.
        handleSIGINT: false,
        handleSIGTERM: false,
        handleSIGHUP: false,
    });
}

/** Runs in the page: subscribes, and records events. */
function follow(target) {
    window.record?.source.close();
    const source = new EventSource(target);
    const record = { opened: 0, seen: [], source };
    source.onopen = () => record.opened++;
    source.onmessage = ({ lastEventId, data }) => {
        const { id, payload } = JSON.parse(data);
        record.seen.push(`${lastEventId} ${id} ${atob(payload)}`);
    };
    for (const event of ["gap", "restart", "deleted", "lagged"]) {
        source.addEventListener(event, ({ data }) => record.seen.push(`${event} ${data}`));
    }
    window.record = record;
}

async function look(page) {
    const record = await page.evaluate(() => {
        const { opened, seen, source } = window.record;
        return { opened, seen, givenUp: source.readyState === EventSource.CLOSED };
    });
    if (record.givenUp) throw new Failed("expected: an EventSource that reconnects\nfound: one that has given up");
    return record;
}

/** Waits until the page has recorded exactly these lines. */
async function sees(page, expected) {
    let seen = [];
    const differs = () => {
        const at = expected.findIndex((line, index) => line !== seen[index]);
        const from = at < 0 ? expected.length : at;
        const show = (lines) => lines.slice(from, from + 5).join("\n    ") || "nothing more";
        return new Failed(`expected, from event ${from}:\n    ${show(expected)}\nfound:\n    ${show(seen)}`);
    };
    await until("", async () => {
        ({ seen } = await look(page));
        if (seen.some((line, index) => line !== expected[index])) throw differs();
        return seen.length === expected.length;
    }).catch((error) => {
        throw error instanceof Failed && seen.length < expected.length ? differs() : error;
    });
}

const opened = (page, count) =>
    until(`an EventSource opened ${count} times`, async () => (await look(page)).opened >= count);

const failedAttempt = (before) =>
    until("a failed attempt to connect", () => network.failed > before);

async function speaksTls(page) {
    const [cert, key] = ["cert.pem", "key.pem"].map((name) => join(temporary, name));
    const made = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-days", "2"];
    const kind = ["req", "-x509", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"];
    execFileSync("openssl", [...kind, ...made, "-keyout", key, "-out", cert], { stdio: "ignore" });
    address = "127.0.0.1:0";
    await startServer("--tls-cert", cert, "--tls-key", key);
    // By name, as other machines would do, without --allow-origin.
    await page.goto(`https://localhost:${address.split(":")[1]}/healthz`, { timeout: TIMEOUT });
    const came = await page.evaluate(async () => {
        const next = (source) => new Promise((resolve) => (source.onmessage = ({ data }) => resolve(data)));
        const open = (source) => new Promise((resolve) => (source.onopen = resolve));
        const stream = new EventSource("/news");
        const socket = new WebSocket(`wss://${location.host}/news`);
        await Promise.all([open(stream), open(socket)]);
        const coming = Promise.all([next(stream), next(socket)]);
        const { status } = await fetch("/news", { method: "PUT", body: "in TLS" });
        const seen = (await coming).map((data) => atob(JSON.parse(data).payload));
        const protocols = performance.getEntriesByType("resource").map((entry) => entry.nextHopProtocol);
        return JSON.stringify({ status, seen, protocol: protocols.find((name) => name.startsWith("h")) });
    });
    const expected = JSON.stringify({ status: 202, seen: ["in TLS", "in TLS"], protocol: "h2" });
    if (came !== expected) throw new Failed(`expected: ${expected}\nfound: ${came}`);
}

async function speaksDrs(page, foreign) {
    address = "127.0.0.1:0";
    const log = await startServer("--drs", "ws://127.0.0.1:0");
    const drs = await until("an address for drs", () => /drs-ws clients are served at (\S+)/.exec(log())?.[1]);
    await page.goto(`http://${drs}/stats`, { timeout: TIMEOUT });
    const coming = page.evaluate(async () => {
        const open = (target) => {
            const socket = new WebSocket(`ws://${location.host}${target}`);
            return new Promise((resolve) => (socket.onopen = () => resolve(socket)));
        };
        const handler = await open("/socket?serve=math.add&subscribe=news");
        const fired = new Promise((resolve) => {
            handler.onmessage = ({ data }) => {
                const { key, action, body } = JSON.parse(data);
                if (action === "news") resolve(body);
                const answer = { key, action: "drs.response", body: body.a + body.b };
                if (action === "math.add") handler.send(JSON.stringify(answer));
            };
        });
        const caller = await open("/socket");
        const answered = new Promise((resolve) => (caller.onmessage = ({ data }) => resolve(data)));
        caller.send(JSON.stringify({ key: "0.5", action: "math.add", body: { a: 1, b: 2 } }));
        window.answer = await answered;
        return JSON.stringify({ answer: window.answer, fired: await fired });
    });
    await page.waitForFunction(() => window.answer, undefined, { timeout: TIMEOUT });
    await publish();
    const expected = JSON.stringify({
        answer: `{"key":"0.5","action":"drs.response","body":3}\n`,
        fired: `message ${texts - 1}`,
    });
    const came = await coming;
    if (came !== expected) throw new Failed(`expected: ${expected}\nfound: ${came}`);
    await refusesForeign(foreign, `ws://${drs}/socket`);
}

/** Runs in the page: clients of middleman in the manner of the known ones, with their peculiarities. */
function installMiddleman(broker) {
    const address = `ws://${broker}/`;
    /**
     * As in JavaScript: the first text must confirm the key; lines are trimmed, dots stay; names of headers are compared
     * with their case; it throws on what it does not know, such as the id of the connection, and goes on.
     */
    window.oldPage = (key) => {
        const socket = new WebSocket(address);
        const [targets, requests] = [new Map(), new Map()];
        let ready;
        const client = {
            thrown: 0,
            ready: new Promise((resolve) => (ready = resolve)),
            send(command, target, headers = {}, body = "") {
                const lines = Object.entries(headers).map(([name, value]) => `${name}: ${value}\r\n`);
                socket.send(`${command} ${target}\r\n${lines.join("")}\r\n${body}\r\n.\r\n`);
            },
            next: (target) => new Promise((resolve) => targets.set(target, resolve)),
            request(target, headers, body) {
                const id = `${Math.random()}`;
                client.send("REQ", target, { ...headers, ReqID: id }, body);
                return new Promise((resolve) => requests.set(id, resolve));
            },
        };
        const handle = (data) => {
            const lines = data.split("\n").map((line) => line.trim());
            const [command, target] = lines.shift().split(" ");
            const headers = {};
            for (let line; (line = lines.shift()) !== ""; ) {
                const colon = line.indexOf(":");
                headers[line.slice(0, colon)] = line.slice(colon + 1).trim();
            }
            const body = lines.slice(0, lines.indexOf(".")).join("\n");
            if (command === "PUB") targets.get(target)(body);
            if (command === "RES") requests.get(headers.ReqID)(body);
        };
        socket.onopen = () => socket.send(key);
        socket.onclose = ({ code }) => ready(`closed ${code}`);
        socket.onmessage = ({ data }) => {
            ready(data);
            socket.onmessage = ({ data }) => {
                try {
                    handle(data);
                } catch {
                    client.thrown++;
                }
            };
        };
        return client;
    };
    /**
     * As in Python: it needs the id of its connection; heads have bare line feeds and no space after the colon; names of
     * headers are in lower case; a reply has all headers of its request.
     */
    window.oldService = async (key, name) => {
        const socket = new WebSocket(address);
        const text = () => new Promise((resolve) => (socket.onmessage = ({ data }) => resolve(data)));
        await new Promise((resolve) => (socket.onopen = resolve));
        socket.send(key);
        const greeting = [await text(), await text()];
        const send = (command, target, headers, body) => {
            const lines = Object.entries(headers).map(([name, value]) => `${name}:${value}\n`);
            socket.send(`${command} ${target}\n${lines.join("")}\n${body}\r\n.\r\n`);
        };
        socket.onmessage = ({ data }) => {
            const [head, rest] = data.split("\r\n\r\n");
            const lines = head.split("\r\n").slice(1).map((line) => line.split(/: ?/));
            const headers = Object.fromEntries(lines.map(([name, value]) => [name.toLowerCase(), value]));
            const body = rest.replace(/\r\n\.\r\n$/, "");
            if (headers.cmd === "upper") send("RES", name, headers, body.toUpperCase());
            if (headers.cmd === "who") send("RES", name, headers, headers.cid);
            if (headers.cmd === "whisper") send("PUB", `MSG:${headers.cid}`, { cmd: "error" }, body);
        };
        for (const command of ["EPUB", "EREQ", "SUB", "ESUB"]) send(command, name, {}, "");
        return greeting;
    };
}

/** Runs in the page: everything that it may do, and something that it may not. */
async function useMiddleman() {
    const [confirmed, id] = await window.oldService("xyzzy", "Chat");
    const [wrong, page] = [window.oldPage("wrong"), window.oldPage("plugh")];
    const ready = [confirmed, id.length, await wrong.ready, await page.ready];
    const reply = await page.request("Chat", { cmd: "upper" }, "who\nis there");
    const own = await page.request("Chat", { cmd: "who" }, "");
    page.send("SUB", "Chat");
    const said = page.next("Chat");
    page.send("PUB", "Chat", { cmd: "say", room: "red" }, "hi\n there\n.hidden");
    const published = await said;
    const whispered = page.next(`MSG:${own}`);
    page.next("Chat");
    page.send("PUB", "Chat", { cmd: "whisper" }, "psst");
    const refused = page.next("ERROR");
    page.send("PUB", "Secret");
    return { ready, reply, published, whispered: await whispered, refused: await refused, thrown: page.thrown };
}

async function speaksMiddleman(page, foreign) {
    address = "127.0.0.1:0";
    const keys = join(temporary, "keys.toml");
    const key = (name, secret, allow) => {
        const hash = createHash("sha256").update(secret).digest("hex");
        return `[keys.${name}]\nhash = "sha256:${hash}"\nallow = [${allow}]\n`;
    };
    writeFileSync(keys, key("trusted", "xyzzy", '"serve:**"') + key("public", "plugh", ""));
    const log = await startServer("--middleman", "127.0.0.1:0", "--keys", keys);
    const broker = await until("an address for middleman", () => /middleman clients are served at (\S+)/.exec(log())?.[1]);
    // There are no pages at this address, but an error is one of it, too.
    await page.goto(`http://${broker}/`, { timeout: TIMEOUT });
    await page.evaluate(installMiddleman, broker);
    const came = JSON.stringify(await page.evaluate(useMiddleman));
    const expected = JSON.stringify({
        ready: ["MM OK", 20, "closed 1006", "MM OK"],
        reply: "WHO\nIS THERE",
        // This client doubles no dots.
        published: "hi\nthere\nhidden",
        whispered: "psst",
        refused: "Not trusted PUB Secret",
        // At the id of its connection.
        thrown: 1,
    });
    if (came !== expected) throw new Failed(`expected: ${expected}\nfound: ${came}`);
    await refusesForeign(foreign, `ws://${broker}/`);
}

/** A page of another origin gets no websocket. */
async function refusesForeign(page, target) {
    await page.goto(`http://${address}/healthz`, { timeout: TIMEOUT });
    const end = await page.evaluate(async (target) => {
        const socket = new WebSocket(target);
        return new Promise((resolve) => (socket.onopen = socket.onerror = ({ type }) => resolve(type)));
    }, target);
    if (end !== "error") throw new Failed(`expected: a page of another origin is refused\nfound: ${end}`);
}

function proven(what) {
    console.log(`${(performance.now() / 1000).toFixed(1).padStart(5)} s  ${what}`);
}

async function main() {
    await startServer();
    await new Promise((resolve) => proxy.listen(0, "127.0.0.1", resolve));
    const browser = await openBrowser();
    const page = await browser.newPage();
    await page.goto(`http://127.0.0.1:${proxy.address().port}/healthz`, { timeout: TIMEOUT });

    const expected = await publishSome(3);
    await page.evaluate(follow, "/news?since=all");
    await opened(page, 1);
    expected.push(...(await publishSome(3)));
    await sees(page, expected);
    proven("an EventSource receives retained and new messages");

    let publishing = true;
    const publisher = (async () => {
        while (publishing) {
            expected.push(await publish());
            await sleep(20);
        }
    })();
    for (let cut = 1; cut <= CUTS; cut++) {
        // Alternately by closing the connection and by resetting it.
        network.tear = cut % 2 ? (client) => client.destroySoon() : (client) => client.resetAndDestroy();
        await opened(page, 1 + cut);
    }
    publishing = false;
    await publisher;
    await sees(page, expected);
    proven(`cut ${CUTS} times in the middle of an event, it receives all ${expected.length}, each once and in order`);

    let failed = network.failed;
    await killServer();
    await failedAttempt(failed);
    await startServer("--max-queue-size", "5");
    const reborn = await publishSome(2);
    const [epoch] = reborn[0].split("-");
    expected.push(`restart {"epoch":"${epoch}"}`, ...reborn);
    await sees(page, expected);
    expected.push(...(await publishSome(3)));
    await sees(page, expected);
    if (!reborn[0].startsWith(`${epoch}-0 `)) throw new Failed(`expected: ids from 0\nfound: ${reborn[0]}`);
    proven("after a kill and a restart of the server, it receives a restart event and all messages from id 0");

    failed = network.failed;
    network.down = true;
    network.cut();
    const unseen = await publishSome(20);
    await failedAttempt(failed);
    network.down = false;
    expected.push(`gap {"missed":15}`, ...unseen.slice(15));
    await sees(page, expected);
    // Any other pending event would arrive before this one.
    expected.push(await publish());
    await sees(page, expected);
    proven("disconnected during 20 messages of which 5 are retained, it receives a gap of 15 and the others");

    await page.evaluate(follow, "/quiet");
    await opened(page, 1);
    failed = network.failed;
    network.down = true;
    network.cut();
    const quiet = [await publish("quiet")];
    await failedAttempt(failed);
    network.down = false;
    await sees(page, quiet);
    quiet.push(await publish("quiet"));
    await sees(page, quiet);
    proven("disconnected before the first message, it receives the messages published in the meantime");

    await killServer();
    await speaksTls(await browser.newPage());
    proven("over TLS the server's own page publishes and follows over HTTP/2, and opens a websocket");

    await killServer();
    await speaksDrs(await browser.newPage(), await browser.newPage());
    proven("a page calls and handles commands of drs, and one of another origin may not");

    await killServer();
    await speaksMiddleman(await browser.newPage(), await browser.newPage());
    proven("an old page of middleman publishes, subscribes and asks a service, and one of another origin may not");

    await browser.close();
}

try {
    await main();
    process.exit(0);
} catch (error) {
    console.error(error instanceof Failed ? error.message : error);
    process.exit(1);
}
