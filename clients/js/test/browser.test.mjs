// The same file in Chromium, whose WebSocket differs from that of Node.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { chromium } from "playwright-core";
import { newKey, writeKeys } from "./keys.mjs";
import { Daemon, Network, seeded, until } from "./support.mjs";

const SOURCE = readFileSync(fileURLToPath(import.meta.resolve("msgbus-client")), "utf8");
const CUTS = 60;

async function openPage(t, url) {
    const browser = await chromium.launch({
        executablePath: "/usr/bin/chromium",
        args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"],
    });
    t.after(() => browser.close());
    const page = await browser.newPage();
    // A page of the server's own origin.
    await page.goto(`${url}/healthz`);
    await page.evaluate(async (source) => {
        const address = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
        window.msgbus = await import(address);
    }, SOURCE);
    return page;
}

test(`a page follows, publishes and resumes over ${CUTS} cuts`, async (t) => {
    const daemon = await Daemon.start(t);
    const network = await Network.start(t, daemon);
    const page = await openPage(t, network.url);
    await page.evaluate(async () => {
        window.bus = await window.msgbus.connect("/", { backoff: { first: 4, cap: 100 } });
        window.seen = [];
        const subscription = window.bus.subscribe("page/**", { onGap: (missed) => window.seen.push(`gap ${missed}`) });
        await subscription.ready;
        window.following = (async () => {
            for await (const message of subscription) window.seen.push(message.text());
        })();
    });
    network.cutAfter(seeded(1), 200, 10_000);
    network.cutAll();
    const publish = async (text) => (await daemon.fetch("/page/a", { method: "PUT", body: text })).body?.cancel();
    const expected = [];
    while (network.cuts < CUTS) {
        expected.push(`${expected.length} ${"x".repeat(200)}`);
        await publish(expected.at(-1));
    }
    network.heal();
    await until("all messages", async () => (await page.evaluate(() => window.seen.length)) >= expected.length);
    assert.deepEqual(await page.evaluate(() => window.seen), expected);

    const answer = await page.evaluate(async () => {
        const { id } = await window.bus.publish("from/page", { text: "ü" });
        await window.bus.publish("from/page", new Uint8Array([0, 255]));
        const [json, bytes] = await window.bus.pull("from/page", { max: 2 });
        await window.bus.close();
        await window.following;
        return [id, json.json(), [...bytes.payload]];
    });
    assert.deepEqual(answer, [0, { text: "ü" }, [0, 255]]);
});

test("a page uses a key and tickets", async (t) => {
    const [key, entry] = newKey("page", "--allow", "*:orders/**");
    const daemon = await Daemon.start(t, "--keys", writeKeys(entry));
    const page = await openPage(t, daemon.url);
    const text = await page.evaluate(async (key) => {
        const bus = await window.msgbus.connect("/", { key });
        await bus.publish("orders/1", "one");
        const ticket = async () => {
            const response = await fetch("/-/ticket", { method: "POST", headers: { authorization: `Bearer ${key}` } });
            return (await response.json()).ticket;
        };
        const other = await window.msgbus.connect("/", { ticket });
        const [message] = await other.pull("orders/1");
        return message.text();
    }, key);
    assert.equal(text, "one");
});
