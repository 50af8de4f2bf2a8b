/** Connects to a server, and rejects if the first attempt fails. `url` may begin with `http`, `https`, `ws` or `wss`. */
export function connect(url: string | URL, options?: ConnectOptions): Promise<Bus>;

export interface ConnectOptions {
    /** A key of the server's key file. It is sent as a subprotocol, because browsers cannot set headers. */
    key?: string;
    /**
     * A ticket (`POST /-/ticket`) in the place of a key. Each is for one connection, so pass a function that returns a
     * new one. With a string, the bus is closed when its first connection is lost.
     */
    ticket?: string | (() => string | Promise<string>);
    /** The class to use if there is no global WebSocket, as in Node 20: that of the package `ws`, for example. */
    WebSocket?: new (url: string, protocols: string[]) => unknown;
    /** The delays in ms before attempts to reconnect: they double from `first` (500) to `cap` (30,000), with jitter. */
    backoff?: { first?: number; cap?: number };
    /** The server's `--max-payload-size` in bytes, if it is not 1 MiB. Larger messages are refused by the client. */
    maxPayload?: number;
    /** Called at every connection after the first one, too. */
    onConnect?(): void;
    /** Called when a connection is lost or an attempt has failed, with the time in ms until the next attempt. */
    onDisconnect?(error: Error, retryIn: number): void;
}

/**
 * One connection for everything. It reconnects whenever it breaks, until `close` is called; every subscription resumes at
 * its own position.
 */
export class Bus {
    private constructor();
    /** Whether there is a connection at this moment. */
    readonly isConnected: boolean;

    /**
     * Publishes a message and waits for the server's `ok`. Publishes may be pipelined: messages to one topic are in the
     * order of the calls. While there is no connection, they wait.
     *
     * A string is sent as text, `Uint8Array` and other buffers as bytes, any other value as JSON.
     *
     * @throws {ConnectionLost} if the connection broke before the answer, unless `retry` is set.
     * @throws {MsgbusError} if the server refused it, or `too_many_waiting` if 65,536 operations or 64 MiB wait.
     */
    publish(topic: string, payload?: Payload, options?: PublishOptions): Promise<Published>;

    /** Follows a topic or a pattern (`orders/*`, `orders/**`). It begins at once, not at the first `next`. */
    subscribe(topic: string, options?: SubscribeOptions): Subscription<Message>;
    /** Works on a topic: each message is leased to one worker of the group, until that acknowledges it. */
    subscribe(topic: string, options: WorkOptions): Subscription<Delivery>;

    /** Takes messages: an empty array if there are none, or none within `wait`. */
    pull(topic: string, options?: PullOptions): Promise<Message[]>;
    /** Leases messages for a group. */
    pull(topic: string, options: PullOptions & { group: string; lease?: string; since?: string }): Promise<Delivery[]>;

    /**
     * Asks a service and waits for the reply. While there is no connection, the request waits, but no longer than its
     * timeout and five seconds.
     *
     * @throws {MsgbusError} `no_responder` at once if nobody serves it, `request_timeout`, `responder_failed` with the
     * reason, or `too_many_requests` if 1,024 requests of this connection wait.
     * @throws {ConnectionLost} if the connection broke before the reply, unless `retry` is set.
     */
    request(service: string, payload?: Payload, options?: RequestOptions): Promise<Reply>;

    /** Serves a service: each request goes to the responder that has waited longest. It begins at once. */
    serve(service: string, options?: ServeOptions): Responder;

    /** Settles a lease by its token, as `Delivery.ack` does. */
    ack(token: string): Promise<Unsettled[]>;
    /** Settles many leases at once, at most 10,000. Returns those that could not be settled, and why. */
    ack(tokens: readonly string[]): Promise<Unsettled[]>;
    nack(token: string, options?: NackOptions): Promise<Unsettled[]>;
    nack(tokens: readonly string[], options?: NackOptions): Promise<Unsettled[]>;
    /** Returns when the lease ends (RFC 3339). */
    extend(token: string, lease?: string): Promise<string>;
    extend(tokens: readonly string[], lease?: string): Promise<Unsettled[]>;

    /**
     * Closes the connection. Subscriptions and responders end, messages of groups that were not taken are given back,
     * requests that were not answered fail, and operations without an answer are rejected.
     */
    close(): Promise<void>;
}

export type Payload = string | ArrayBuffer | ArrayBufferView | JsonValue;

export type JsonValue =
    | string
    | number
    | boolean
    | null
    | readonly JsonValue[]
    | { readonly [name: string]: JsonValue | undefined };

export type Headers = Record<string, string | string[]>;

export interface PublishOptions {
    /** A duration such as `30s`, after which the message expires. */
    ttl?: string;
    headers?: Headers;
    /** Publish again if the connection breaks before the answer. The message may then be published twice. */
    retry?: boolean;
}

export interface Published {
    id: number;
    epoch: string;
    durability: "memory" | "written" | "synced" | "engine";
}

export interface SubscribeOptions {
    /** Where to start (docs/protocol.md, 6.3): `all`, `10m`, `message.position`. By default with new messages. */
    since?: string;
    /**
     * What happens where the server no longer has the next messages: `skip` (the default) continues after them and calls
     * `onGap`, `disconnect` ends the subscription with the error `lagged`.
     */
    lag?: "skip" | "disconnect";
    /**
     * Called in its turn between messages when the server no longer had this many; 0 means that the engine of the topic
     * cannot tell. By default a warning is logged.
     */
    onGap?(missed: number): void;
    /**
     * Called in its turn when the topic has started anew (it was deleted, or the server restarted without its messages).
     * All messages that it holds now follow. By default a warning is logged.
     */
    onRestart?(): void;
    /**
     * Called at once when the engine in which the topic lives does not deliver (`true`), and when it does again (`false`). By
     * default a warning is logged.
     */
    onStalled?(isStalled: boolean): void;
}

export interface WorkOptions {
    group: string;
    /** How long a lease lasts, by default `30s`. */
    lease?: string;
    /** How many unsettled messages the worker may have at a time, by default 1. */
    credit?: number;
    /** Where the group starts, if this subscription creates it. */
    since?: string;
}

export interface PullOptions {
    /** At most this many messages, by default 1. */
    max?: number;
    /** How long to wait for a message, such as `20s`. */
    wait?: string;
}

export interface NackOptions {
    /** When the message is delivered again: a duration such as `10s`. By default at once. */
    delay?: string;
    reason?: string;
}

/**
 * The messages of a topic, a pattern or a group. Within a topic they are in order, each once, with none missing except
 * what `onGap` and `onRestart` report.
 *
 * A consumer may be slow: at most 1,024 messages or about 4 MiB are buffered. Then the subscription ends on the server
 * and resumes at its position when half of the buffer was taken. What the server no longer has by then is reported as a
 * gap.
 */
export class Subscription<M extends Message = Message> implements AsyncIterableIterator<M> {
    private constructor();
    /** Fulfilled when the server has accepted the subscription: later messages are received. */
    readonly ready: Promise<void>;
    /** The position after what was taken, to be used as `since`. Undefined before `ready`, and for groups. */
    readonly position: string | undefined;
    next(): Promise<IteratorResult<M, undefined>>;
    /** Ends the subscription, as leaving a `for await` does. */
    return(): Promise<IteratorResult<M, undefined>>;
    [Symbol.asyncIterator](): this;
}

/** A lease that could not be settled. `error` is a code word such as `lease_lost`. */
export interface Unsettled {
    lease: string;
    error: string;
}

export interface RequestOptions {
    /** How long to wait for the reply, `1ms` to `1m`, by default `5s`. */
    timeout?: string;
    headers?: Headers;
    /**
     * Another responder gets the request if the first one leaves without a reply, and it is asked again if the connection
     * breaks before the reply. It may then be served twice.
     */
    retry?: boolean;
}

export interface ServeOptions {
    /** How many requests the responder may have at a time that are not answered, 1 to 10,000, by default 1. */
    max?: number;
}

/**
 * The requests of a service, as an async iterator that outlives connections. The requests of a connection that is lost have
 * ended with it. Leaving the loop ends the responder; requests that were taken can still be answered.
 */
export class Responder implements AsyncIterableIterator<ServiceRequest> {
    private constructor();
    /** Fulfilled when the server has accepted the responder. */
    readonly ready: Promise<void>;
    next(): Promise<IteratorResult<ServiceRequest, undefined>>;
    /** Ends the responder, as leaving a `for await` does. Requests that were not taken are declined. */
    return(): Promise<IteratorResult<ServiceRequest, undefined>>;
    [Symbol.asyncIterator](): this;
}

/** A payload with headers. */
declare class Content {
    protected constructor();
    readonly headers: Headers;
    /** The bytes of the payload, in a new array. */
    readonly payload: Uint8Array;
    /** The payload as text; bytes that are not UTF-8 become U+FFFD. */
    text(): string;
    /** The payload parsed as JSON. */
    json(): any;
}

/** The reply to a request. */
export class Reply extends Content {}

/**
 * A request that was given to a responder. An answer that nobody waits for is the error `reply_not_wanted`: there was one,
 * or the requester has left, or its time is over.
 */
export class ServiceRequest extends Content {
    readonly service: string;
    /** Names the request: it can be answered elsewhere, too (docs/protocol.md, 17.5). */
    readonly token: string;
    /** When the requester stops waiting, in ms of this client's clock (`Date.now()`). */
    readonly deadline: number;
    reply(payload?: Payload, options?: { headers?: Headers }): Promise<void>;
    /** The requester gets the error `responder_failed` with this reason. */
    fail(reason: string): Promise<void>;
    /** Another responder gets the request, if its requester has set `retry`; else it fails. */
    decline(): Promise<void>;
}

export class Message extends Content {
    readonly topic: string;
    readonly id: number;
    /** The position after this message in its subscription, to be used as `since`. */
    readonly position: string | undefined;
    /** RFC 3339 with nanoseconds. */
    readonly created: string;
    /** RFC 3339 with nanoseconds, or undefined if the message never expires. */
    readonly expires: string | undefined;
}

/** A message that is leased. Settling it after the end of the lease is the error `lease_lost`: it is delivered again. */
export class Delivery extends Message {
    /** The token of the lease. */
    readonly lease: string;
    /** How often the group was given the message, this time included. */
    readonly deliveries: number;
    /** When the lease ends, RFC 3339 on the server's clock. */
    readonly leaseExpires: string;
    /** The work is done. */
    ack(): Promise<void>;
    /** The work has failed: the message is delivered again. */
    nack(options?: NackOptions): Promise<void>;
    /** The lease lasts from now on as long as `lease` says, by default 30 s. */
    extend(lease?: string): Promise<void>;
}

/** An operation was refused, a subscription has ended, or there is no connection. */
export class MsgbusError extends Error {
    /**
     * A stable word: those of docs/protocol.md, section 8 and 16.3, the reasons of an `end` (`revoked`, `lagged`,
     * `store_failed`, `engine_failed`), and of this client `connection_lost`, `disconnected`, `client_closed`, `wrong_ticket`,
     * `bad_protocol`, `bad_text` and `too_many_waiting`.
     */
    readonly code: string;
    /** In seconds, where trying again may help. */
    readonly retryAfter: number | undefined;
    /** With `lagged`: how many messages the subscription has missed. */
    readonly missed: number | undefined;
}

/** The connection broke before the answer: it is unknown whether the operation was carried out. */
export class ConnectionLost extends MsgbusError {
    readonly code: "connection_lost";
}
