// Checked by tsc, never run: what an application writes has the types that it expects.
import { connect, ConnectionLost, MsgbusError, type Delivery, type Message } from "msgbus-client";

const bus = await connect("http://localhost:8000", { key: "secret", onDisconnect: (error, retryIn) => console.log(error.message, retryIn * 2) });
const { id, epoch, durability }: { id: number; epoch: string; durability: "memory" | "written" | "synced" } =
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
try {
    await bus.close();
} catch (error) {
    if (error instanceof ConnectionLost) console.log(error.code satisfies "connection_lost");
    if (error instanceof MsgbusError) console.log(error.retryAfter);
}
