"""The websocket, the operations that are sent on it or wait for it, and the subscriptions that it carries."""

from __future__ import annotations

import asyncio
import json
import math
import random
import ssl as tls
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Awaitable, Callable, Deque, Dict, List, Optional, Protocol, Sequence, Tuple, Union
from urllib.parse import quote, urlsplit, urlunsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus, WebSocketException
from websockets.typing import Subprotocol

from ._errors import ConnectionLost, MsgbusError, closed_error

PROTOCOL = "msgbus.v1"

#: Operations that are sent and not answered. The server has the same limit (16.7).
MAX_UNANSWERED = 1024
#: Operations that do not count: requests may wait for replies that the same connection has to send. The server refuses
#: too many requests (16.9), and there are no more replies than requests that it was sent.
UNCOUNTED = ("request", "reply")
#: In characters. A larger operation is sent alone.
MAX_UNANSWERED_SIZE = 4 * 1024 * 1024
#: Operations share a frame up to this size, in characters.
FRAME_SIZE = 64 * 1024
#: What may wait to be sent, while there is no connection or the server is busy. Beyond it operations are refused.
MAX_WAITING = 65_536
MAX_WAITING_SIZE = 64 * 1024 * 1024
#: The largest frame of the server, in bytes: the answer to a pull of 10,000 messages, and beside it one payload.
MAX_RECEIVED_SIZE = 64 * 1024 * 1024

#: All times are in seconds. A connection on which the server does not answer a ping for this long is lost.
PING_TIMEOUT = 20.0
CLOSE_TIMEOUT = 1.0
#: A connection that has lasted this long resets the backoff, even if nothing was received.
STABLE_AFTER = 10.0
#: Statuses of the handshake after which no other attempt helps: the key or the ticket is wrong.
REFUSED = (401, 403)

Answer = Dict[str, Any]
Ticket = Union[str, Callable[[], Awaitable[str]]]


class Listener(Protocol):
    """A subscription, as its connection sees it."""

    def open(self) -> None:
        """Subscribes on the current connection, if there is one."""

    def disconnected(self) -> None:
        """The connection is lost."""

    def receive(self, event: Answer) -> None:
        """A message, a gap or an end has arrived."""

    def end(self, error: Optional[MsgbusError] = None) -> None:
        """Ends the subscription."""

    def settled(self, op: str, tokens: Sequence[str], lease: Optional[str]) -> None:
        """Leases were settled by their tokens. Some may be of this subscription."""

    async def aclose(self) -> None:
        """Ends the subscription, and gives back what was not taken."""


def _ignore(_: object) -> None:
    pass


@dataclass
class Operation:
    op: str
    rid: int
    line: str
    #: Whether it is sent again if the connection breaks before its answer.
    retry: bool = False
    #: Whether it is forgotten with its connection.
    is_bound: bool = False
    is_sent: bool = False
    is_resent: bool = False
    #: Whether its caller was cancelled; it is then not sent.
    is_cancelled: Callable[[], bool] = field(default=lambda: False)
    resolve: Callable[[Answer], None] = _ignore
    reject: Callable[[MsgbusError], None] = _ignore


@dataclass
class LinkOptions:
    url: str
    key: Optional[str]
    ticket: Optional[Ticket]
    ssl: Optional[tls.SSLContext]
    backoff: Tuple[float, float]
    max_payload: int
    on_connect: Callable[[], None]
    on_disconnect: Callable[[Exception, float], None]


class Link:
    """Connects again whenever the connection breaks, and matches answers to operations."""

    def __init__(self, options: LinkOptions) -> None:
        self._options = options
        self._url = websocket_url(options.url)
        self._task: Optional[asyncio.Task[None]] = None
        #: Set by the first connection. After that, connections are retried.
        self._opening: Optional[asyncio.Future[None]] = None
        self._has_writable = asyncio.Event()
        self._socket: Optional[ClientConnection] = None
        self._is_closed = False
        #: Whether the server stops: nothing more is sent on this connection.
        self._is_draining = False
        self._is_ticket_used = False
        self._opened_at = 0.0
        self._has_received = False
        self._failures = 0
        #: Operations that are not sent, in order.
        self._waiting: Deque[Operation] = deque()
        self._waiting_size = 0
        #: Operations that are sent and not answered, in the order in which they were sent.
        self._unanswered: Dict[int, Operation] = {}
        #: Of those that count.
        self._unanswered_count = 0
        self._unanswered_size = 0
        #: An ordered set.
        self._subscriptions: Dict[Listener, None] = {}
        #: Subscriptions of this connection by ``sid``.
        self._routes: Dict[int, Listener] = {}
        self._last_id = 0

    @property
    def is_open(self) -> bool:
        return self._socket is not None

    async def open(self) -> None:
        self._opening = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._run())
        try:
            await self._opening
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        if not self._is_closed:
            for subscription in list(self._subscriptions):
                await subscription.aclose()
            # What gives leases back is the last that is sent.
            if self._socket and not self._is_draining:
                await self._send_last(self._socket)
            self._end(closed_error())
        if self._task:
            self._task.cancel()
            await asyncio.wait([self._task])

    # Operations.

    async def request(self, op: str, fields: Dict[str, Any], *, retry: bool = False) -> Answer:
        """Sends an operation, now or on the next connection, and returns its answer."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.enqueue(
            op,
            fields,
            retry=retry,
            is_cancelled=future.done,
            resolve=lambda answer: None if future.done() else future.set_result(answer),
            reject=lambda error: None if future.done() else future.set_exception(error),
        )
        return await future

    def enqueue(self, op: str, fields: Dict[str, Any], **how: Any) -> None:
        """Adds an operation to those that wait to be sent. ``how`` are fields of :class:`Operation`."""
        self._last_id += 1
        given = {name: value for name, value in fields.items() if value is not None}
        # `json` is a payload, which may be null.
        given.update({"json": fields["json"]} if "json" in fields else {})
        line = json.dumps(
            {"op": op, "rid": self._last_id, **given}, ensure_ascii=False, allow_nan=False, separators=(",", ":")
        )
        operation = Operation(op, self._last_id, line, **how)
        # Raises an error if a text has a lone surrogate, which UTF-8 cannot encode.
        size = len(line.encode())
        refusal = closed_error() if self._is_closed else None if operation.is_bound else self._refusal(size)
        if refusal:
            operation.reject(refusal)
            return
        self._waiting.append(operation)
        self._waiting_size += len(line)
        self._has_writable.set()

    def _refusal(self, size: int) -> Optional[MsgbusError]:
        """Why an operation of this size in bytes cannot be sent."""
        if size > math.ceil(self._options.max_payload * 4 / 3) + 64 * 1024:
            return MsgbusError("payload_too_large", "the message is too large; see max_payload")
        if len(self._waiting) >= MAX_WAITING or self._waiting_size + size > MAX_WAITING_SIZE:
            return MsgbusError("too_many_waiting", "too many operations wait to be sent; nothing was sent")
        return None

    async def _write(self, socket: ClientConnection) -> None:
        """Sends what waits, as many operations as fit in a frame at a time."""
        with suppress(WebSocketException, OSError):  # The reader notices it too.
            while True:
                self._has_writable.clear()
                while frame := self._next_frame():
                    await socket.send(frame)
                await self._has_writable.wait()

    def _next_frame(self) -> str:
        lines: List[str] = []
        size = 0
        while self._waiting and not self._is_draining:
            operation = self._waiting[0]
            length = len(operation.line)
            if not operation.is_cancelled():
                is_counted = operation.op not in UNCOUNTED
                is_full = self._unanswered_count >= MAX_UNANSWERED or (
                    self._unanswered_count > 0 and self._unanswered_size + length > MAX_UNANSWERED_SIZE
                )
                if (is_counted and is_full) or (lines and size + length > FRAME_SIZE):
                    break
                lines.append(operation.line)
                size += length
                operation.is_sent = True
                self._unanswered[operation.rid] = operation
                self._unanswered_count += is_counted
                self._unanswered_size += length if is_counted else 0
            self._waiting.popleft()
            self._waiting_size -= length
        return "\n".join(lines)

    async def _send_last(self, socket: ClientConnection) -> None:
        with suppress(WebSocketException, OSError, asyncio.TimeoutError):
            while frame := self._next_frame():
                await asyncio.wait_for(socket.send(frame), CLOSE_TIMEOUT)

    def give_back(self, token: str) -> None:
        """Gives back a message that the consumer has not taken, so that another worker gets it at once."""
        self.enqueue("nack", {"token": token})

    def decline(self, token: str) -> None:
        """Gives back a request that the consumer has not taken. It has ended if its connection is lost."""
        self.enqueue("reply", {"token": token, "retry": True}, is_bound=True)

    def settled(self, op: str, tokens: Sequence[str], lease: Optional[str] = None) -> None:
        """Leases were settled by their tokens."""
        for subscription in list(self._subscriptions):
            subscription.settled(op, tokens, lease)

    # Subscriptions.

    def add(self, subscription: Listener) -> None:
        if self._is_closed:
            return subscription.end(closed_error())
        self._subscriptions[subscription] = None
        subscription.open()

    def remove(self, subscription: Listener, sid: Optional[int]) -> None:
        self._subscriptions.pop(subscription, None)
        self.unroute(sid)

    def route(self, subscription: Listener) -> int:
        """Returns a new ``sid``, whose messages go to the subscription."""
        self._last_id += 1
        self._routes[self._last_id] = subscription
        return self._last_id

    def unroute(self, sid: Optional[int]) -> None:
        if sid is not None:
            self._routes.pop(sid, None)

    # Answers.

    def _receive(self, frame: Union[str, bytes]) -> None:
        if isinstance(frame, bytes):
            raise MsgbusError("bad_protocol", "the server sent a binary frame")
        # Not splitlines: JSON may contain other characters that end lines.
        for line in frame.split("\n"):
            if line:
                self._dispatch(json.loads(line))
        self._has_writable.set()

    def _dispatch(self, answer: Answer) -> None:
        op = answer.get("op")
        if op in ("msg", "gap", "stalled", "resumed", "end", "request"):
            self._has_received = True
            subscription = self._routes.get(answer["sid"])
            if subscription:
                subscription.receive(answer)
            elif "lease" in answer:
                self.give_back(answer["lease"])
            elif "reply" in answer:
                self.decline(answer["reply"])
        elif op in ("ok", "error"):
            operation = self._unanswered.pop(answer.get("rid", -1), None)
            if operation:
                if operation.op not in UNCOUNTED:
                    self._unanswered_count -= 1
                    self._unanswered_size -= len(operation.line)
                self._complete(operation, answer)
            elif op == "error":
                raise MsgbusError(answer["code"], answer["text"])

    def _complete(self, operation: Operation, answer: Answer) -> None:
        if answer["op"] == "ok":
            self._has_received = True
            operation.resolve(answer)
        elif answer["code"] == "closed" and operation.retry:
            # The server stops and closes this connection: the next one carries it out.
            self._is_draining = True
            self._requeue([operation])
        elif answer["code"] == "lease_lost" and operation.is_resent:
            # The first attempt may have settled the lease.
            operation.reject(ConnectionLost(operation.op))
        else:
            operation.reject(MsgbusError(answer["code"], answer["text"], answer.get("retry_after")))

    # The connection.

    async def _run(self) -> None:
        while True:
            try:
                async with await self._connection() as socket:
                    self._opened(socket)
                    writer = asyncio.create_task(self._write(socket))
                    try:
                        async for frame in socket:
                            self._receive(frame)
                    finally:
                        writer.cancel()
                    raise MsgbusError("disconnected", f"closed with {socket.close_code} {socket.close_reason}")
            except InvalidStatus as status:
                error = refused_handshake(status)
                if status.response.status_code in REFUSED:
                    return self._end(error)
            except MsgbusError as problem:
                error = problem
                if problem.code == "wrong_ticket":
                    return self._end(error)
            except (OSError, EOFError, WebSocketException, asyncio.TimeoutError, ValueError) as problem:
                error = MsgbusError("disconnected", f"no connection: {problem}")
                error.__cause__ = problem
            except Exception as problem:
                # The application's: of a ticket function or a callback.
                error = MsgbusError("disconnected", f"no connection: {problem!r}")
                error.__cause__ = problem
            if self._opening and not self._opening.done():
                return self._end(error)
            self._lost()
            await self._pause(error)

    async def _connection(self) -> connect:
        key, ticket = self._options.key, self._options.ticket
        url = self._url
        if ticket is not None:
            if isinstance(ticket, str):
                if self._is_ticket_used:
                    raise MsgbusError(
                        "wrong_ticket", "a ticket is for one connection: pass a function that returns new ones"
                    )
                self._is_ticket_used = True
                text = ticket
            else:
                text = await ticket()
            url += f"?ticket={quote(text)}"
        headers = {"Accept": "application/problem+json"}
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        options: Dict[str, Any] = {} if self._options.ssl is None else {"ssl": self._options.ssl}
        return connect(
            url,
            additional_headers=headers,
            subprotocols=[Subprotocol(PROTOCOL)],
            compression=None,
            max_size=MAX_RECEIVED_SIZE + self._options.max_payload * 4 // 3,
            ping_interval=PING_TIMEOUT,
            ping_timeout=PING_TIMEOUT,
            close_timeout=CLOSE_TIMEOUT,
            **options,
        )

    def _opened(self, socket: ClientConnection) -> None:
        if socket.subprotocol != PROTOCOL:
            raise MsgbusError("bad_protocol", f"the server does not speak {PROTOCOL}")
        self._socket = socket
        self._opened_at = time.monotonic()
        self._has_received = self._is_draining = False
        # Subscriptions resume before operations that have waited.
        waiting, self._waiting = self._waiting, deque()
        for subscription in list(self._subscriptions):
            subscription.open()
        self._waiting.extend(waiting)
        if self._opening and not self._opening.done():
            self._opening.set_result(None)
        self._options.on_connect()

    def _lost(self) -> None:
        if self._has_received or (self._socket and time.monotonic() - self._opened_at > STABLE_AFTER):
            self._failures = 0
        self._socket = None
        self._has_received = False
        self._routes.clear()
        for subscription in list(self._subscriptions):
            subscription.disconnected()
        self._waiting = deque(operation for operation in self._waiting if not operation.is_bound)
        unanswered = list(self._unanswered.values())
        self._unanswered.clear()
        self._unanswered_count = self._unanswered_size = 0
        self._requeue([operation for operation in unanswered if operation.retry])
        for operation in unanswered:
            if not operation.retry and not operation.is_bound:
                operation.reject(ConnectionLost(operation.op))

    def _requeue(self, operations: List[Operation]) -> None:
        """Puts operations that have to be sent again before those that were never sent."""
        for operation in operations:
            operation.is_resent = True
        self._waiting.extendleft(reversed(operations))
        self._waiting_size = sum(len(operation.line) for operation in self._waiting)

    async def _pause(self, error: MsgbusError) -> None:
        """Waits for a time that doubles with each failure. It is random, so that clients do not come together."""
        first, cap = self._options.backoff
        delay = min(first * 2 ** min(self._failures, 16), cap) * random.uniform(0.5, 1)
        delay = max(delay, error.retry_after or 0)
        self._failures += 1
        self._options.on_disconnect(error, delay)
        await asyncio.sleep(delay)

    def _end(self, error: MsgbusError) -> None:
        """Ends everything: the client is closed, or another attempt would not help."""
        if self._is_closed:
            return
        for subscription in list(self._subscriptions):
            subscription.end(error)
        self._is_closed = True
        self._socket = None
        if self._opening and not self._opening.done():
            self._opening.set_exception(error)
        for operation in [*self._unanswered.values(), *self._waiting]:
            operation.reject(ConnectionLost(operation.op) if operation.is_sent else error)
        self._unanswered.clear()
        self._waiting.clear()


def refused_handshake(refusal: InvalidStatus) -> MsgbusError:
    response = refusal.response
    try:
        problem = json.loads(response.body or b"")
        code, text = problem["code"], problem["detail"]
    except (ValueError, TypeError, KeyError):
        code, text = "disconnected", str(refusal)
    retry_after = response.headers.get("Retry-After", "")
    return MsgbusError(code, text, float(retry_after) if retry_after.isdigit() else None)


def websocket_url(url: str) -> str:
    parts = urlsplit(url if "://" in url else f"http://{url}")
    schemes = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}
    if parts.scheme not in schemes or not parts.netloc:
        raise ValueError(f"not a URL of a server: {url!r}; use http://, https://, ws:// or wss://")
    return urlunsplit((schemes[parts.scheme], parts.netloc, parts.path or "/", "", ""))
