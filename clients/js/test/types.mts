// Checked by tsc, never run: what an application writes has the types that it expects.
import { connect, ConnectionLost, MsgbusError, type Delivery, type Message } from "msgbus-client";

const bus = await connect("http://localhost:8000", { key: "secret", onDisconnect: (error, retryIn) => console.log(error.message, retryIn * 2) });
const { id, epoch, durability }: { id: number; epoch: string; durability: "memory" | "written" | "synced" | "engine" } =
    await bus.publish("orders", { total: 3, lines: ["a", null] }, { ttl: "30s", headers: { type: "created" }, retry: true });
await bus.publish("orders", new Uint8Array(3));
await bus.publish("orders");
// @ts-expect-error a function is not a payload
await bus.publish("orders", () => {});

for await (const message of bus.subscribe("orders/**", { since: `${epoch}-${id}`, onGap: (missed) => console.log(missed + 1) })) {
    const bytes: Uint8Array = message.payload;
    console.log(bytes.length, message.topic, durability);
    // @ts-expect-error only a delivery is acknowledged
    await message.ack();
}
for await (const delivery of bus.subscribe("jobs", { group: "workers", credit: 4 })) await delivery.ack();
const messages: Message[] = await bus.pull("jobs", { max: 3, wait: "20s" });
const deliveries: Delivery[] = await bus.pull("jobs", { group: "workers" });
console.log(messages.length, deliveries.length);
const reply = await bus.request("upper", { word: "hello" }, { timeout: "5s", headers: { type: "word" }, retry: true });
const upper: string = reply.text();
for await (const request of bus.serve("upper", { max: 4 })) {
    await request.reply(request.text().toUpperCase() + upper, { headers: request.headers });
    await request.fail("no more paper");
    // @ts-expect-error a request is no message of a topic
    console.log(request.topic, request.deadline - Date.now());
}
const ends: string = await bus.extend("token");
const unsettled: { lease: string; error: string }[] = await bus.extend(["token"], "1m");
console.log(ends, unsettled.length, (await bus.ack(["token"])).length);
try {
    await bus.close();
} catch (error) {
    if (error instanceof ConnectionLost) console.log(error.code satisfies "connection_lost");
    if (error instanceof MsgbusError) console.log(error.retryAfter);
}
