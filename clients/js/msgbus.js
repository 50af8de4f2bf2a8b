/**
 * A client of msgbusd for browsers and Node. One websocket, which speaks `msgbus.v1` (docs/protocol.md, section 16),
 * publishes, follows topics and patterns, pulls, works on queues, and asks and serves services. It reconnects by itself.
 *
 * `Link` owns the websocket: it connects again and matches answers to operations. A `Subscription` owns its position
 * and its buffer, a `Responder` the requests that it was sent. `Bus` is what the application sees of them. msgbus.d.ts
 * documents what is exported.
 */

const PROTOCOL = "msgbus.v1";

/** Operations that are sent and not answered. The server has the same limit (16.7). */
const MAX_UNANSWERED = 1024;
/**
 * Operations that do not count: requests may wait for replies that the same connection has to send. The server refuses
 * too many requests (16.9), and there are no more replies than requests that it was sent.
 */
const UNCOUNTED = new Set(["request", "reply"]);
/** In characters. A larger operation is sent alone. */
const MAX_UNANSWERED_SIZE = 4 * 1024 * 1024;
/** Operations share a frame up to this size, in characters. */
const FRAME_SIZE = 64 * 1024;
/** What may wait to be sent, while there is no connection or the server is busy. Beyond it publishes are refused. */
const MAX_WAITING = 65_536;
const MAX_WAITING_SIZE = 64 * 1024 * 1024;

/** What a subscription buffers for its consumer before it pauses; it resumes when half of it was taken. */
const MAX_BUFFERED = 1024;
/** In characters of payload. One message more may be buffered. */
const MAX_BUFFERED_SIZE = 4 * 1024 * 1024;
/** The topics of a pattern of which the position is remembered: as many as a server has by default. */
const MAX_TOPICS = 100_000;

/** All times are in milliseconds. A connection that is silent for this long is asked whether it is alive. */
const PING_AFTER = 20_000;
const DEAD_AFTER = 40_000;
const CHECK_EVERY = 5_000;
/** A connection that has lasted this long resets the backoff, even if nothing was received. */
const STABLE_AFTER = 10_000;
const DEFAULT_LEASE = 30_000;
const DEFAULT_TIMEOUT = 5_000;
/** How much longer than the server a requester waits, for a connection that is lost or slow. */
const TIMEOUT_GRACE = 5_000;

/** Why an operation was refused, a subscription has ended or a connection cannot be made: `code` is a stable word. */
export class MsgbusError extends Error {
    constructor(code, text, { retryAfter, missed } = {}) {
        super(text);
        this.name = "MsgbusError";
        this.code = code;
        this.retryAfter = retryAfter;
        this.missed = missed;
    }
}

/** The connection broke before the answer: it is unknown whether the server has carried out the operation. */
export class ConnectionLost extends MsgbusError {
    constructor(op) {
        super("connection_lost", `the connection broke before the answer: it is unknown whether ${op} was carried out`);
        this.name = "ConnectionLost";
    }
}

const closedError = () => new MsgbusError("client_closed", "the client is closed");

/** Connects to a server. */
export async function connect(url, options = {}) {
    const link = new Link(url, options);
    await link.open();
    return new Bus(link);
}

/** A connection to a server, which reconnects whenever it breaks. */
export class Bus {
    #link;

    constructor(link) {
        this.#link = link;
    }

    async publish(topic, payload = "", { ttl, headers, retry = false } = {}) {
        const fields = { topic, ...encodePayload(payload), ttl, headers };
        const { id, epoch, durability } = await this.#link.request("pub", fields, { retry });
        return { id, epoch, durability };
    }

    subscribe(topic, options = {}) {
        return new Subscription(this.#link, topic, options);
    }

    async pull(topic, { max, wait, group, lease, since } = {}) {
        const fields = { topic, max, wait, group, lease, since, payload: "text" };
        const { messages } = await this.#link.request("pull", fields);
        if (group === undefined) return messages.map((message) => new Message(message));
        return messages.map((message) => new Delivery(this.#link, message, message));
    }

    async request(service, payload = "", { timeout, headers, retry = false } = {}) {
        const fields = { service, ...encodePayload(payload), headers, timeout, retry, payload: "text" };
        const limit = milliseconds(timeout, DEFAULT_TIMEOUT) + TIMEOUT_GRACE;
        return new Reply(await this.#link.request("request", fields, { retry, limit }));
    }

    serve(service, options = {}) {
        return new Responder(this.#link, service, options);
    }

    ack(tokens) {
        return this.#settle("ack", tokens, {});
    }

    nack(tokens, { delay, reason } = {}) {
        return this.#settle("nack", tokens, { delay, reason });
    }

    async extend(tokens, lease) {
        const { lease_expires, unsettled = [] } = await settle(this.#link, "extend", { ...leases(tokens), lease });
        const lost = new Set(unsettled.map(({ lease }) => lease));
        this.#link.extended([tokens].flat().filter((token) => !lost.has(token)), lease);
        return lease_expires ?? unsettled;
    }

    /** Returns the leases that were not settled. */
    async #settle(op, tokens, fields) {
        try {
            return (await settle(this.#link, op, { ...leases(tokens), ...fields })).unsettled ?? [];
        } finally {
            this.#link.released([tokens].flat());
        }
    }

    get isConnected() {
        return this.#link.isOpen;
    }

    async close() {
        this.#link.close(closedError());
    }
}

/** Repeating it does no harm, so it is sent again when the connection breaks before the answer. */
const settle = (link, op, fields) => link.request(op, fields, { retry: true });

/** One lease by its token, or many. */
const leases = (tokens) => (Array.isArray(tokens) ? { tokens } : { token: tokens });

/** The size of what a subscription buffers, in characters. */
const sizeOf = (item) => (item instanceof Message ? sizeOfContent(item) : 0);
let sizeOfContent;

/** A payload with headers. */
class Content {
    #content;

    static {
        sizeOfContent = (item) => (item.#content.text ?? item.#content.payload).length;
    }

    constructor(content) {
        this.#content = content;
    }

    get headers() {
        return this.#content.headers ?? {};
    }

    get payload() {
        const { text, payload } = this.#content;
        return text === undefined ? fromBase64(payload) : new TextEncoder().encode(text);
    }

    text() {
        return this.#content.text ?? new TextDecoder("utf-8", { ignoreBOM: true }).decode(this.payload);
    }

    json() {
        return JSON.parse(this.text());
    }
}

/** The reply to a request. */
export class Reply extends Content {}

/** A request that was given to a responder. */
export class ServiceRequest extends Content {
    #link;

    constructor(link, service, content) {
        super(content);
        this.#link = link;
        this.service = service;
        this.token = content.reply;
        /** By the clock of this client. */
        this.deadline = Date.now() + milliseconds(content.timeout);
    }

    async reply(payload = "", { headers } = {}) {
        await this.#answer({ ...encodePayload(payload), headers });
    }

    async fail(reason) {
        await this.#answer({ error: String(reason) });
    }

    async decline() {
        await this.#answer({ retry: true });
    }

    #answer(fields) {
        return this.#link.request("reply", { token: this.token, ...fields });
    }
}

/** A message of a topic. */
export class Message extends Content {
    #message;

    constructor(message, position) {
        super(message);
        this.#message = message;
        this.position = position;
    }

    get topic() {
        return this.#message.topic.name;
    }

    get id() {
        return this.#message.id;
    }

    get created() {
        return this.#message.created;
    }

    get expires() {
        const { expires } = this.#message;
        return expires?.startsWith("0001-") ? undefined : expires;
    }
}

/** A message that is leased: it is delivered again unless it is acknowledged before the lease ends. */
export class Delivery extends Message {
    #link;
    #held;

    constructor(link, message, { lease, deliveries, lease_expires }, held) {
        super(message);
        this.#link = link;
        this.#held = held;
        this.lease = lease;
        this.deliveries = deliveries;
        this.leaseExpires = lease_expires;
    }

    ack() {
        return this.#settle("ack", {});
    }

    nack({ delay, reason } = {}) {
        return this.#settle("nack", { delay, reason });
    }

    async extend(lease) {
        const { lease_expires } = await settle(this.#link, "extend", { token: this.lease, lease });
        this.#held?.extend(this.lease, lease);
        this.leaseExpires = lease_expires;
    }

    async #settle(op, fields) {
        try {
            await settle(this.#link, op, { token: this.lease, ...fields });
        } finally {
            this.#held?.release(this.lease);
        }
    }
}

/**
 * The messages of a topic, a pattern or a group, as an async iterator that outlives connections.
 *
 * A websocket in a browser cannot be stopped from receiving. So when the buffer is full, the subscription ends on the
 * server and begins again at its position once the consumer has taken half of the buffer: nothing is dropped, and no
 * other subscription of the connection waits. A group needs no such pause, since it is sent no more than its credit.
 */
export class Subscription {
    #link;
    #topic;
    #options;
    /** Messages, gaps and restarts that the consumer has not taken, in order. */
    #buffer = [];
    /** Not used by groups, which credit limits. */
    #bufferedSize = 0;
    /** The `sid` on the current connection. Each attempt has its own, so that events of earlier ones are ignored. */
    #sid;
    #isPaused = false;
    #wasOpen = false;
    #wasResumed = false;
    /** Whether the engine of the topic does not deliver, as far as the server has said. */
    #isStalled = false;
    #epoch;
    /** Where the next `sub` starts: after the last event in the buffer. */
    #resume;
    /** The last message of each topic. Where a pattern's log begins again, it shows what was received before. */
    #received = new Map();
    #held;
    /** The credit that the server has left. */
    #granted = 0;
    #wakers = [];
    #ended = false;
    #error;
    #resolveReady;
    #rejectReady;
    #timer;

    constructor(link, topic, { since, lag, group, lease, credit = 1, onGap, onRestart, onStalled }) {
        this.#link = link;
        this.#topic = topic;
        this.#options = { lag, group, lease, credit, onGap, onRestart, onStalled };
        this.#resume = since;
        /** The position after what the consumer has taken: the `since` with which another subscription resumes. */
        this.position = undefined;
        /** Fulfilled when the server has accepted the subscription. */
        this.ready = new Promise((resolve, reject) => {
            this.#resolveReady = resolve;
            this.#rejectReady = reject;
        });
        this.ready.catch(() => {});
        if (group !== undefined) this.#held = new HeldLeases(lease, () => this.#topUp(), () => this.#wake());
        link.add(this);
    }

    // The consumer's side.

    [Symbol.asyncIterator]() {
        return this;
    }

    async next() {
        for (;;) {
            if (this.#held) this.#forgetEndedLeases();
            const item = this.#take();
            if (item instanceof Message) return { value: item, done: false };
            if (item) {
                this.#report(item);
            } else if (this.#error) {
                const error = this.#error;
                this.#error = undefined;
                throw error;
            } else if (this.#ended) {
                return { value: undefined, done: true };
            } else {
                await new Promise((resolve) => this.#wakers.push(resolve));
            }
        }
    }

    async return() {
        if (!this.#ended) this.#unsubscribe();
        this.end();
        this.#discard();
        return { value: undefined, done: true };
    }

    #take() {
        const item = this.#buffer.shift();
        if (item === undefined) return undefined;
        this.#bufferedSize -= sizeOf(item);
        if (item.position !== undefined) this.position = item.position;
        const isHalfEmpty = this.#buffer.length <= MAX_BUFFERED / 2 && this.#bufferedSize <= MAX_BUFFERED_SIZE / 2;
        if (this.#isPaused && isHalfEmpty) {
            this.#isPaused = false;
            this.open();
        }
        return item;
    }

    #report({ missed, isRestart }) {
        const { onGap, onRestart } = this.#options;
        if (isRestart) {
            if (onRestart) onRestart();
            else console.warn(`msgbus: ${this.#topic} has started anew; all messages that it holds follow`);
        } else if (onGap) {
            onGap(missed);
        } else {
            console.warn(`msgbus: missed ${missed} messages of ${this.#topic}`);
        }
    }

    #wake() {
        for (const resolve of this.#wakers.splice(0)) resolve();
    }

    // The link's side.

    /** Subscribes on the current connection, if there is one. */
    open() {
        if (!this.#link.isOpen || this.#isPaused || this.#ended) return;
        const { lag, group, lease, credit } = this.#options;
        const sid = this.#link.route(this);
        this.#sid = sid;
        const fields = { sid, topic: this.#topic, since: this.#resume, lag, payload: "text", group, lease };
        if (this.#held) fields.credit = this.#granted = Math.max(0, credit - this.#held.size);
        this.#link.enqueue("sub", fields, {
            isBound: true,
            resolve: (ok) => sid === this.#sid && this.#opened(ok),
            reject: (error) => sid === this.#sid && this.#refused(error),
        });
    }

    /** The connection is lost. */
    disconnected() {
        this.#sid = undefined;
        clearTimeout(this.#timer);
    }

    receive(event) {
        if (event.op === "end") {
            this.#endedByServer(event);
        } else if (event.op === "stalled" || event.op === "resumed") {
            this.#noteFeed(event.op === "stalled");
        } else if (this.#held) {
            if (event.op === "msg") this.#deliver(event);
        } else if (this.#buffer.length >= MAX_BUFFERED || this.#bufferedSize >= MAX_BUFFERED_SIZE) {
            // What arrives from here on is sent again when the subscription resumes.
            this.#isPaused = true;
            this.#unsubscribe();
        } else if (event.op === "msg") {
            this.#resume = `${this.#epoch}-${event.id}`;
            if (!this.#isRepeat(event.message)) this.#push(new Message(event.message, this.#resume));
        } else if (event.op === "gap" && this.#options.lag === "disconnect" && this.#wasResumed) {
            // The server ends a subscription only for what it missed later than at its start, which this is.
            this.#unsubscribe();
            this.end(new MsgbusError("lagged", END_REASONS.lagged, { missed: event.missed }));
        } else if (event.op === "gap") {
            this.#resume = positionBefore(this.#epoch, event.next_id);
            this.#push({ missed: event.missed, position: this.#resume });
        }
    }

    /** The server says again and again that an engine does not deliver. Only the first time is news. */
    #noteFeed(isStalled) {
        if (this.#isStalled === isStalled) return;
        this.#isStalled = isStalled;
        const { onStalled } = this.#options;
        if (onStalled) onStalled(isStalled);
        else if (isStalled) console.warn(`msgbus: the engine of ${this.#topic} is away; waiting for it`);
    }

    /** Leases were settled by their tokens. Some may be of this subscription. */
    released(tokens) {
        this.#held?.release(...tokens);
    }

    extended(tokens, lease) {
        for (const token of tokens) this.#held?.extend(token, lease);
    }

    /** Ends the subscription; its consumer takes what is in the buffer first. */
    end(error) {
        if (this.#ended) return;
        this.#ended = true;
        this.#error = error;
        clearTimeout(this.#timer);
        this.#link.remove(this, this.#sid);
        this.#sid = undefined;
        this.#rejectReady(error ?? closedError());
        this.#wake();
    }

    #opened({ epoch, next_id, missed, restarted }) {
        this.#wasResumed = this.#wasOpen;
        this.#wasOpen = true;
        this.#isStalled = false;
        this.#resolveReady();
        if (this.#held) return;
        this.#epoch = epoch;
        // A gap reports what was missed. Until it has arrived, the next connection has to report it, too.
        if (restarted) this.#resume = `${epoch}-start`;
        if (!missed) this.#resume = positionBefore(epoch, next_id);
        if (restarted) this.#push({ isRestart: true, position: `${epoch}-start` });
        if (!missed) this.position ??= this.#resume;
    }

    #refused(error) {
        this.#link.unroute(this.#sid);
        this.#sid = undefined;
        // A server that stops closes the connection, and the next one tries again.
        if (error.code === "closed") return;
        if (this.#wasOpen && error.retryAfter !== undefined) this.#openLater(error.retryAfter * 1000);
        else this.end(error);
    }

    #openLater(delay) {
        clearTimeout(this.#timer);
        this.#timer = setTimeout(() => this.#sid === undefined && this.open(), delay * (1 + Math.random()));
    }

    #endedByServer({ reason, missed }) {
        this.#link.unroute(this.#sid);
        this.#sid = undefined;
        // A topic that was deleted may be created again, which is then a restart. A server that stops closes the
        // connection too.
        if (reason === "deleted") return this.open();
        if (reason === "closed") return;
        this.end(new MsgbusError(reason, END_REASONS[reason] ?? `the server has ended it: ${reason}`, { missed }));
    }

    #unsubscribe() {
        if (this.#sid === undefined) return;
        this.#link.unroute(this.#sid);
        this.#link.enqueue("unsub", { sid: this.#sid }, { isBound: true });
        this.#sid = undefined;
    }

    #push(item) {
        this.#buffer.push(item);
        this.#bufferedSize += sizeOf(item);
        this.#wake();
    }

    /**
     * Whether the message was received before. The times matter as well as the ids, because ids begin again with a
     * topic, and after a power cut may be given again.
     */
    #isRepeat({ topic, id, created }) {
        const last = this.#received.get(topic.name);
        if (last?.topicCreated === topic.created && id <= last.id && created <= last.created) return true;
        // The topics that have been silent for the longest come first, and are forgotten first.
        this.#received.delete(topic.name);
        this.#received.set(topic.name, { topicCreated: topic.created, id, created });
        if (this.#received.size > MAX_TOPICS) this.#received.delete(this.#received.keys().next().value);
        return false;
    }

    // Groups.

    #deliver(event) {
        this.#granted--;
        this.#held.hold(event.lease);
        this.#push(new Delivery(this.#link, event.message, event, this.#held));
    }

    /**
     * Leases that have ended are forgotten only when the consumer asks for a message. Until then their credit is not
     * renewed, or a consumer that is stuck would be sent one message after the other, and work on none.
     */
    #forgetEndedLeases() {
        if (!this.#held.forgetEnded()) return;
        // The server delivers again what the consumer has not taken in time.
        this.#buffer = this.#buffer.filter(({ lease }) => this.#held.has(lease));
        this.#topUp();
    }

    /** Renews the credit, so that it is as before together with the leases that are held. */
    #topUp() {
        const n = this.#options.credit - this.#held.size - this.#granted;
        if (this.#sid === undefined || n <= 0) return;
        this.#granted += n;
        this.#link.enqueue("credit", { sid: this.#sid, n }, { isBound: true });
    }

    /** Gives back what was leased and not taken. */
    #discard() {
        for (const { lease } of this.#buffer) if (lease) this.#link.giveBack(lease);
        this.#buffer = [];
        this.#held?.clear();
    }
}

/**
 * The requests of a service, as an async iterator that outlives connections. The server sends no more than `max` at a
 * time that are neither answered nor over, so few wait here.
 */
export class Responder {
    #link;
    #service;
    #max;
    #buffer = [];
    #sid;
    #wasOpen = false;
    #wakers = [];
    #ended = false;
    #error;
    #resolveReady;
    #rejectReady;
    #timer;

    constructor(link, service, { max = 1 }) {
        this.#link = link;
        this.#service = service;
        this.#max = max;
        /** Fulfilled when the server has accepted the responder. */
        this.ready = new Promise((resolve, reject) => {
            this.#resolveReady = resolve;
            this.#rejectReady = reject;
        });
        this.ready.catch(() => {});
        link.add(this);
    }

    // The consumer's side.

    [Symbol.asyncIterator]() {
        return this;
    }

    async next() {
        for (;;) {
            const request = this.#buffer.shift();
            if (request) {
                // Its requester has been told.
                if (request.deadline > Date.now()) return { value: request, done: false };
            } else if (this.#error) {
                const error = this.#error;
                this.#error = undefined;
                throw error;
            } else if (this.#ended) {
                return { value: undefined, done: true };
            } else {
                await new Promise((resolve) => this.#wakers.push(resolve));
            }
        }
    }

    async return() {
        if (this.#sid !== undefined) this.#link.enqueue("unsub", { sid: this.#sid }, { isBound: true });
        this.end();
        for (const { token } of this.#buffer.splice(0)) this.#decline(token);
        return { value: undefined, done: true };
    }

    // The link's side.

    open() {
        if (!this.#link.isOpen || this.#ended) return;
        const sid = this.#link.route(this);
        this.#sid = sid;
        const fields = { sid, service: this.#service, max: this.#max, payload: "text" };
        this.#link.enqueue("serve", fields, {
            isBound: true,
            resolve: () => sid === this.#sid && this.#opened(),
            reject: (error) => sid === this.#sid && this.#refused(error),
        });
    }

    /** The connection is lost, and with it all requests that were sent on it. */
    disconnected() {
        this.#sid = undefined;
        this.#buffer = [];
        clearTimeout(this.#timer);
    }

    receive(event) {
        if (event.op === "request") this.#push(event);
        else if (event.op === "end") this.#endedByServer(event);
    }

    end(error) {
        if (this.#ended) return;
        this.#ended = true;
        this.#error = error;
        clearTimeout(this.#timer);
        this.#link.remove(this, this.#sid);
        this.#sid = undefined;
        this.#rejectReady(error ?? closedError());
        this.#wake();
    }

    #push(event) {
        // A consumer that is stuck is sent others in the place of those whose time is over, by the server's clock.
        const isFull = () => this.#buffer.length >= 2 * this.#max;
        if (isFull()) this.#buffer = this.#buffer.filter(({ deadline }) => deadline > Date.now());
        if (isFull()) return this.#decline(event.reply);
        this.#buffer.push(new ServiceRequest(this.#link, this.#service, event));
        this.#wake();
    }

    #decline(token) {
        this.#link.enqueue("reply", { token, retry: true }, { isBound: true });
    }

    #opened() {
        this.#wasOpen = true;
        this.#resolveReady();
    }

    #refused(error) {
        this.#link.unroute(this.#sid);
        this.#sid = undefined;
        // A server that stops closes the connection, and the next one tries again.
        if (error.code === "closed") return;
        if (!this.#wasOpen || error.retryAfter === undefined) return this.end(error);
        const delay = error.retryAfter * 1000 * (1 + Math.random());
        this.#timer = setTimeout(() => this.#sid === undefined && this.open(), delay);
    }

    #endedByServer({ reason }) {
        this.#link.unroute(this.#sid);
        this.#sid = undefined;
        if (reason !== "closed") this.end(new MsgbusError(reason, END_REASONS[reason] ?? `the server has ended it: ${reason}`));
    }

    #wake() {
        for (const resolve of this.#wakers.splice(0)) resolve();
    }
}

/** What the server sends about a subscription. */
const EVENTS = new Set(["msg", "gap", "stalled", "resumed", "end", "request"]);

const END_REASONS = {
    lagged: "the subscription fell behind and lag is \"disconnect\"",
    revoked: "the keys no longer allow this subscription",
    store_failed: "the server cannot read older messages from its disk",
    engine_failed: "the engine of the topic refuses the server",
};

const positionBefore = (epoch, nextId) => (nextId > 0 ? `${epoch}-${nextId - 1}` : `${epoch}-start`);

/** The leases of a subscription that are not settled. They end by the client's clock, counted from their arrival. */
class HeldLeases {
    #timers = new Map();
    #ended = [];
    #lease;
    #onRelease;
    #onEnd;

    constructor(lease, onRelease, onEnd) {
        this.#lease = lease;
        this.#onRelease = onRelease;
        this.#onEnd = onEnd;
    }

    get size() {
        return this.#timers.size;
    }

    has(token) {
        return this.#timers.has(token);
    }

    hold(token, lease = this.#lease) {
        const end = () => {
            this.#ended.push(token);
            this.#onEnd();
        };
        this.#timers.set(token, setTimeout(end, milliseconds(lease)));
    }

    extend(token, lease) {
        if (!this.has(token)) return;
        clearTimeout(this.#timers.get(token));
        this.#ended = this.#ended.filter((ended) => ended !== token);
        this.hold(token, lease);
    }

    release(...tokens) {
        for (const token of tokens) clearTimeout(this.#timers.get(token));
        if (tokens.filter((token) => this.#timers.delete(token)).length > 0) this.#onRelease();
    }

    /** Returns whether there were any. */
    forgetEnded() {
        return this.#ended.splice(0).filter((token) => this.#timers.delete(token)).length > 0;
    }

    clear() {
        for (const timer of this.#timers.values()) clearTimeout(timer);
        this.#timers.clear();
    }
}

/** The websocket, the operations that are sent on it or wait for it, and the subscriptions that it carries. */
class Link {
    #url;
    #options;
    #socket;
    #isOpen = false;
    /** Whether the server stops: nothing more is sent on this connection. */
    #isDraining = false;
    #isClosed = false;
    #isTicketUsed = false;
    /** Fulfils or rejects `open`. After that, connections are retried. */
    #opening;
    #openedAt = 0;
    #receivedAt = 0;
    #isPinged = false;
    #hasReceived = false;
    #watch;
    #retry;
    #failures = 0;

    /** Operations that are not sent, in order. */
    #waiting = [];
    #waitingSize = 0;
    /** Operations that are sent and not answered, by `rid`, in the order in which they were sent. */
    #unanswered = new Map();
    /** Of those that count. */
    #unansweredCount = 0;
    #unansweredSize = 0;
    #isFlushing = false;
    #subscriptions = new Set();
    /** Subscriptions of this connection by `sid`. */
    #routes = new Map();
    #lastId = 0;

    constructor(url, options) {
        const { key, ticket, WebSocket = globalThis.WebSocket, backoff = {}, maxPayload = 1024 * 1024 } = options;
        if (!WebSocket) throw new TypeError("there is no global WebSocket: pass one, as in connect(url, { WebSocket })");
        const { first = 500, cap = 30_000 } = backoff;
        const { onConnect = () => {}, onDisconnect = () => {} } = options;
        this.#url = websocketUrl(url);
        this.#options = { key, ticket, WebSocket, first, cap, maxPayload, onConnect, onDisconnect };
    }

    get isOpen() {
        return this.#isOpen;
    }

    open() {
        return new Promise((resolve, reject) => {
            this.#opening = { resolve, reject };
            this.#connect();
        });
    }

    close(error) {
        if (this.#isClosed) return;
        for (const subscription of [...this.#subscriptions]) void subscription.return();
        this.#sendFrames();
        this.#isClosed = true;
        clearTimeout(this.#retry);
        const socket = this.#detach();
        const left = [...this.#unanswered.values(), ...this.#waiting];
        for (const operation of left) operation.reject(operation.isSent ? new ConnectionLost(operation.op) : error);
        this.#unanswered.clear();
        this.#waiting = [];
        socket?.close(1000);
    }

    // Operations.

    /** Sends an operation, now or on the next connection, and returns its answer. */
    request(op, fields, { retry = false, limit } = {}) {
        return new Promise((resolve, reject) => {
            const operation = this.enqueue(op, fields, { retry, resolve, reject });
            if (operation === undefined || limit === undefined) return;
            const timer = setTimeout(() => this.#giveUp(operation), limit);
            for (const end of ["resolve", "reject"]) {
                const { [end]: settle } = operation;
                operation[end] = (outcome) => {
                    clearTimeout(timer);
                    settle(outcome);
                };
            }
        });
    }

    /** There was no answer in time. If one comes later, it is ignored. */
    #giveUp(operation) {
        operation.reject(new MsgbusError("request_timeout", "there was no reply in time; a responder may have done the work"));
        operation.resolve = operation.reject = () => {};
        operation.retry = false;
        const at = this.#waiting.indexOf(operation);
        if (at < 0) return;
        this.#waiting.splice(at, 1);
        this.#waitingSize -= operation.line.length;
    }

    /**
     * Adds an operation to those that wait to be sent. If the connection breaks before its answer, an operation with
     * `retry` is sent again, one that `isBound` to the connection is forgotten, and any other is rejected.
     */
    enqueue(op, fields, { retry = false, isBound = false, resolve = () => {}, reject = () => {} } = {}) {
        if (this.#isClosed) return void reject(closedError());
        const rid = ++this.#lastId;
        const line = JSON.stringify({ op, rid, ...fields });
        const refusal = this.#refusal(line, fields, isBound);
        if (refusal) return void reject(refusal);
        const counts = !UNCOUNTED.has(op);
        const operation = { op, rid, line, counts, retry, isBound, resolve, reject, isSent: false, isResent: false };
        this.#waiting.push(operation);
        this.#waitingSize += line.length;
        this.#flush();
        return operation;
    }

    /** Why an operation cannot be sent. */
    #refusal(line, { text, topic, service, error, headers = {} }, isBound) {
        const maxLine = Math.ceil((this.#options.maxPayload * 4) / 3) + 64 * 1024;
        if (line.length * 3 > maxLine && byteLength(line) > maxLine) {
            return new MsgbusError("payload_too_large", "the message is too large; see the option maxPayload");
        }
        if (line.includes("\\ud") && ![text, topic, service, error, ...Object.entries(headers).flat(2)].every(isWellFormed)) {
            return new MsgbusError("bad_text", "the text has a lone surrogate, which UTF-8 cannot encode");
        }
        const isFull = this.#waiting.length >= MAX_WAITING || this.#waitingSize + line.length > MAX_WAITING_SIZE;
        if (isFull && !isBound) {
            return new MsgbusError("too_many_waiting", "too many operations wait to be sent; nothing was sent");
        }
    }

    /** Sends what waits after the current task, so that operations of one task share frames. */
    #flush() {
        if (this.#isFlushing || !this.#isOpen) return;
        this.#isFlushing = true;
        queueMicrotask(() => {
            this.#isFlushing = false;
            this.#sendFrames();
        });
    }

    #sendFrames() {
        if (!this.#isOpen || this.#isDraining) return;
        let frame = "";
        let count = 0;
        for (const operation of this.#waiting) {
            const { rid, line, counts } = operation;
            const isFull = this.#unansweredCount >= MAX_UNANSWERED
                || (this.#unansweredCount > 0 && this.#unansweredSize + line.length > MAX_UNANSWERED_SIZE);
            if (isFull && counts) break;
            if (frame && frame.length + line.length > FRAME_SIZE) {
                this.#socket.send(frame);
                frame = "";
            }
            frame += `${line}\n`;
            count++;
            operation.isSent = true;
            this.#unanswered.set(rid, operation);
            if (counts) this.#unansweredCount++;
            if (counts) this.#unansweredSize += line.length;
            this.#waitingSize -= line.length;
        }
        this.#waiting.splice(0, count);
        if (frame) this.#socket.send(frame);
    }

    /** Gives back a message that the consumer has not taken, so that another worker gets it at once. */
    giveBack(token) {
        this.enqueue("nack", { token });
    }

    /** Leases were settled by their tokens. */
    released(tokens) {
        for (const subscription of this.#subscriptions) subscription.released?.(tokens);
    }

    extended(tokens, lease) {
        for (const subscription of this.#subscriptions) subscription.extended?.(tokens, lease);
    }

    // Subscriptions.

    add(subscription) {
        if (this.#isClosed) return subscription.end(closedError());
        this.#subscriptions.add(subscription);
        subscription.open();
    }

    remove(subscription, sid) {
        this.#subscriptions.delete(subscription);
        this.#routes.delete(sid);
    }

    /** Returns a new `sid`, whose messages go to the subscription. */
    route(subscription) {
        const sid = ++this.#lastId;
        this.#routes.set(sid, subscription);
        return sid;
    }

    unroute(sid) {
        this.#routes.delete(sid);
    }

    // Answers.

    #receive(frame) {
        this.#receivedAt = Date.now();
        this.#isPinged = false;
        for (const line of frame.split("\n")) if (line) this.#dispatch(JSON.parse(line));
        this.#flush();
    }

    #dispatch(answer) {
        const { op, sid, rid, lease, reply } = answer;
        if (EVENTS.has(op)) {
            const subscription = this.#routes.get(sid);
            if (subscription) subscription.receive(answer);
            else if (lease) this.giveBack(lease);
            else if (reply) this.enqueue("reply", { token: reply, retry: true }, { isBound: true });
            this.#hasReceived = true;
        } else if (op === "ok" || op === "error") {
            this.#hasReceived ||= op === "ok";
            const operation = this.#unanswered.get(rid);
            if (operation) this.#complete(operation, answer);
            else if (op === "error") throw new MsgbusError(answer.code, answer.text);
        }
    }

    #complete(operation, answer) {
        this.#unanswered.delete(operation.rid);
        if (operation.counts) this.#unansweredCount--;
        if (operation.counts) this.#unansweredSize -= operation.line.length;
        if (answer.op === "ok") return operation.resolve(answer);
        const { code, text, retry_after } = answer;
        if (code === "closed" && operation.retry) {
            // The server stops and closes this connection: the next one carries it out.
            this.#isDraining = true;
            this.#requeue([operation]);
        } else if (code === "lease_lost" && operation.isResent) {
            // The first attempt may have settled the lease.
            operation.reject(new ConnectionLost(operation.op));
        } else {
            operation.reject(new MsgbusError(code, text, { retryAfter: retry_after }));
        }
    }

    // The connection.

    async #connect() {
        let socket;
        try {
            const address = await this.#address();
            if (this.#isClosed) return;
            const { key, WebSocket } = this.#options;
            const protocols = key === undefined ? [PROTOCOL] : [PROTOCOL, `bearer.${toBase64Url(key)}`];
            socket = new WebSocket(address, protocols);
        } catch (error) {
            return error.code === "wrong_ticket" ? this.#fail(error) : this.#later(error);
        }
        this.#socket = socket;
        this.#receivedAt = Date.now();
        this.#isPinged = this.#hasReceived = this.#isDraining = false;
        this.#watch = setInterval(() => this.#check(socket), CHECK_EVERY);
        socket.onopen = () => this.#opened(socket);
        socket.onmessage = ({ data }) => {
            try {
                this.#receive(data);
            } catch (error) {
                this.#lost(socket, error);
            }
        };
        // A failed handshake is not reported as closed by every implementation.
        socket.onerror = (event) => this.#lost(socket, lostError(event.message ?? event.error?.message));
        socket.onclose = ({ code, reason }) => this.#lost(socket, lostError(`closed with ${code} ${reason}`));
    }

    async #address() {
        const { ticket } = this.#options;
        if (ticket === undefined) return this.#url;
        if (typeof ticket === "string" && this.#isTicketUsed) {
            throw new MsgbusError("wrong_ticket", "a ticket is for one connection: pass a function that returns new ones");
        }
        this.#isTicketUsed = true;
        const url = new URL(this.#url);
        url.searchParams.set("ticket", typeof ticket === "function" ? await ticket() : ticket);
        return url.href;
    }

    #opened(socket) {
        if (socket.protocol !== PROTOCOL) {
            return this.#lost(socket, new MsgbusError("bad_protocol", `the server does not speak ${PROTOCOL}`));
        }
        this.#isOpen = true;
        this.#openedAt = Date.now();
        // Subscriptions resume before operations that have waited.
        const waiting = this.#waiting;
        this.#waiting = [];
        for (const subscription of this.#subscriptions) subscription.open();
        this.#waiting = this.#waiting.concat(waiting);
        this.#opening?.resolve();
        this.#opening = undefined;
        this.#options.onConnect();
        this.#flush();
    }

    /** Pings a connection that is silent, since an application does not notice the server's own pings. */
    #check(socket) {
        const silence = Date.now() - this.#receivedAt;
        if (silence > DEAD_AFTER || (silence > PING_AFTER && !this.#isOpen)) {
            this.#lost(socket, lostError("the server does not answer"));
        } else if (silence > PING_AFTER && !this.#isPinged) {
            this.#isPinged = true;
            socket.send('{"op":"ping"}\n');
        }
    }

    #detach() {
        const socket = this.#socket;
        this.#socket = undefined;
        this.#isOpen = false;
        clearInterval(this.#watch);
        if (!socket) return undefined;
        socket.onopen = socket.onmessage = socket.onclose = null;
        // Some implementations throw an error that has no listener.
        socket.onerror = () => {};
        return socket;
    }

    #lost(socket, error) {
        if (socket === undefined || socket !== this.#socket) return;
        if (this.#hasReceived || (this.#isOpen && Date.now() - this.#openedAt > STABLE_AFTER)) this.#failures = 0;
        this.#detach().close();
        this.#routes.clear();
        for (const subscription of this.#subscriptions) subscription.disconnected();

        this.#waiting = this.#waiting.filter((operation) => !operation.isBound);
        const unanswered = [...this.#unanswered.values()];
        this.#unanswered.clear();
        this.#unansweredCount = this.#unansweredSize = 0;
        this.#requeue(unanswered.filter(({ retry }) => retry));
        this.#later(error);
        for (const { op, retry, isBound, reject } of unanswered) if (!retry && !isBound) reject(new ConnectionLost(op));
    }

    /** Puts operations that have to be sent again before those that were never sent. */
    #requeue(operations) {
        for (const operation of operations) operation.isResent = true;
        this.#waiting = operations.concat(this.#waiting);
        this.#waitingSize = this.#waiting.reduce((size, { line }) => size + line.length, 0);
    }

    /** Connects again after a delay that doubles with each failure, with jitter against clients that come together. */
    #later(error) {
        if (this.#isClosed) return;
        if (this.#opening) return this.#fail(error);
        const { first, cap, onDisconnect } = this.#options;
        const delay = Math.min(first * 2 ** Math.min(this.#failures++, 16), cap) * (0.5 + Math.random() / 2);
        this.#retry = setTimeout(() => this.#connect(), delay);
        onDisconnect(error, delay);
    }

    /** Ends everything: another attempt would not help. */
    #fail(error) {
        for (const subscription of [...this.#subscriptions]) subscription.end(error);
        this.#opening?.reject(error);
        this.close(error);
    }
}

const lostError = (reason) => new MsgbusError("disconnected", `no connection: ${reason || "the server refused it"}`);

/** The payload as a field of an operation. Text that is mostly escapes is shorter in base64. */
function encodePayload(payload) {
    if (payload instanceof ArrayBuffer) return { base64: toBase64(new Uint8Array(payload)) };
    if (ArrayBuffer.isView(payload)) {
        return { base64: toBase64(new Uint8Array(payload.buffer, payload.byteOffset, payload.byteLength)) };
    }
    if (["function", "symbol"].includes(typeof payload)) throw new TypeError(`a ${typeof payload} is not a payload`);
    if (typeof payload !== "string") return { json: payload };
    if (payload.length > FRAME_SIZE && isWellFormed(payload)) {
        const bytes = new TextEncoder().encode(payload);
        if (byteLength(JSON.stringify(payload)) > (bytes.length * 4) / 3) return { base64: toBase64(bytes) };
    }
    return { text: payload };
}

function websocketUrl(url) {
    const address = new URL(url, globalThis.location?.href);
    address.protocol = address.protocol.replace(/^http/, "ws");
    address.hash = "";
    return address.href;
}

/** A duration of the protocol: integers with units, such as `1m30s`. */
function milliseconds(duration, byDefault = DEFAULT_LEASE) {
    if (duration === undefined) return byDefault;
    const units = { ms: 1, s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000 };
    let sum = 0;
    for (const [, count, unit] of duration.matchAll(/(\d+)(ms|s|m|h|d)/g)) sum += count * units[unit];
    return sum;
}

const byteLength = (text) => new TextEncoder().encode(text).length;

const isWellFormed = (text) => typeof text !== "string" || !/\p{Surrogate}/u.test(text);

function toBase64(bytes) {
    if (bytes.toBase64) return bytes.toBase64();
    let binary = "";
    for (let at = 0; at < bytes.length; at += 8192) binary += String.fromCharCode(...bytes.subarray(at, at + 8192));
    return btoa(binary);
}

function fromBase64(text) {
    return Uint8Array.fromBase64?.(text) ?? Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
}

const toBase64Url = (text) =>
    toBase64(new TextEncoder().encode(text)).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
