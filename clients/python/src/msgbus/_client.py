"""What the application calls."""

from __future__ import annotations

import base64
import json
import ssl as tls
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Optional, Tuple, overload

from ._link import FRAME_SIZE, Link, LinkOptions, Ticket
from ._message import Delivery, Headers, Message
from ._subscription import LeaseSettler, Subscription, SubscriptionOptions


@dataclass(frozen=True)
class Published:
    """What the server says about a message that it has accepted. ``durability`` is memory, written or synced."""

    id: int
    epoch: str
    durability: str


class Client:
    """One connection for everything. It reconnects whenever it breaks, until the client is closed.

    ``url`` may begin with ``http``, ``https``, ``ws`` or ``wss``. ``key`` is a key of the server's key file. ``ticket``
    may take its place: an asynchronous function that returns a new ticket (``POST /-/ticket``) for each connection;
    with a string, the client is closed when its first connection is lost. ``backoff`` has the delays in seconds before
    attempts to reconnect: they double from the first to the second value, with jitter. ``max_payload`` is the server's
    ``--max-payload-size`` in bytes. ``on_connect`` is called at every connection, ``on_disconnect`` with an error and
    the time in seconds until the next attempt.
    """

    def __init__(
        self,
        url: str,
        *,
        key: Optional[str] = None,
        ticket: Optional[Ticket] = None,
        ssl: Optional[tls.SSLContext] = None,
        backoff: Tuple[float, float] = (0.5, 30.0),
        max_payload: int = 1024 * 1024,
        on_connect: Callable[[], None] = lambda: None,
        on_disconnect: Callable[[Exception, float], None] = lambda error, retry_in: None,
    ) -> None:
        self._options = LinkOptions(url, key, ticket, ssl, backoff, max_payload, on_connect, on_disconnect)
        self._opened: Optional[Link] = None

    async def __aenter__(self) -> Client:
        await self.connect()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def connect(self) -> None:
        """Connects. Raises :class:`MsgbusError` if the first attempt fails."""
        if self._opened:
            raise RuntimeError("the client is connected, or was closed")
        self._opened = Link(self._options)
        await self._opened.open()

    async def close(self) -> None:
        """Closes the connection. Subscriptions end, and operations without an answer raise an error."""
        if self._opened:
            await self._opened.close()

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection at this moment."""
        return self._opened is not None and self._opened.is_open

    @property
    def _link(self) -> Link:
        if not self._opened:
            raise RuntimeError("the client is not connected: use `async with Client(url) as bus`")
        return self._opened

    async def publish(
        self,
        topic: str,
        payload: Any = b"",
        *,
        ttl: Optional[str] = None,
        headers: Optional[Headers] = None,
        retry: bool = False,
    ) -> Published:
        """Publishes a message and waits for the server's ``ok``.

        ``str`` is sent as text, ``bytes``, ``bytearray`` and ``memoryview`` as bytes, any other value as JSON. ``ttl``
        is a duration such as ``30s``, after which the message expires. Publishes may be pipelined: messages to one
        topic are in the order of the calls. While there is no connection, they wait.

        Raises :class:`ConnectionLost` if the connection broke before the answer. With ``retry`` it is published again
        instead; the message may then be published twice. Raises :class:`MsgbusError` if the server refused it, or with
        the code ``too_many_waiting`` if 65,536 operations or 64 MiB wait.
        """
        fields = {"topic": topic, **encode_payload(payload), "ttl": ttl, "headers": headers}
        ok = await self._link.request("pub", fields, retry=retry)
        return Published(ok["id"], ok["epoch"], ok["durability"])

    @overload
    def subscribe(
        self,
        topic: str,
        *,
        since: Optional[str] = None,
        lag: Optional[str] = None,
        on_gap: Optional[Callable[[int], None]] = None,
        on_restart: Optional[Callable[[], None]] = None,
    ) -> Subscription[Message]: ...

    @overload
    def subscribe(
        self,
        topic: str,
        *,
        group: str,
        lease: Optional[str] = None,
        credit: int = 1,
        since: Optional[str] = None,
    ) -> Subscription[Delivery]: ...

    def subscribe(
        self,
        topic: str,
        *,
        since: Optional[str] = None,
        lag: Optional[str] = None,
        on_gap: Optional[Callable[[int], None]] = None,
        on_restart: Optional[Callable[[], None]] = None,
        group: Optional[str] = None,
        lease: Optional[str] = None,
        credit: int = 1,
    ) -> Subscription[Any]:
        """Follows a topic or a pattern (``orders/*``, ``orders/**``). It begins at once, not at the first iteration.

        ``since`` is where to start (docs/protocol.md, 6.3): ``all``, ``10m``, ``message.position``; by default with new
        messages. Where the server no longer has the next messages, the subscription continues after them
        (``lag="skip"``), or ends with the error ``lagged`` (``lag="disconnect"``). ``on_gap`` is called in its turn,
        between messages, with the number of messages that the server no longer had; ``on_restart`` when the topic has
        started anew (it was deleted, or the server restarted without its messages), and all messages that it holds now
        follow. By default both log a warning.

        With ``group``, the messages are leased to one worker of the group each, until it acknowledges them. ``lease``
        is how long a lease lasts (``30s``), ``credit`` how many unsettled messages this worker may have at a time.
        ``since`` counts only if this subscription creates the group.
        """
        options = SubscriptionOptions(lag, group, lease, credit, on_gap, on_restart)
        return Subscription(self._link, topic, since, options)

    @overload
    async def pull(self, topic: str, *, max: Optional[int] = None, wait: Optional[str] = None) -> List[Message]: ...

    @overload
    async def pull(
        self,
        topic: str,
        *,
        max: Optional[int] = None,
        wait: Optional[str] = None,
        group: str,
        lease: Optional[str] = None,
        since: Optional[str] = None,
    ) -> List[Delivery]: ...

    async def pull(
        self,
        topic: str,
        *,
        max: Optional[int] = None,
        wait: Optional[str] = None,
        group: Optional[str] = None,
        lease: Optional[str] = None,
        since: Optional[str] = None,
    ) -> Any:
        """Takes at most ``max`` messages (1): none if there are none, or none within ``wait``.

        With ``group`` they are leased: settle them.
        """
        fields = {
            "topic": topic, "max": max, "wait": wait, "group": group, "lease": lease, "since": since, "payload": "text"
        }  # fmt: skip
        messages: List[Dict[str, Any]] = (await self._link.request("pull", fields))["messages"]
        if group is None:
            return [Message(message) for message in messages]
        return [Delivery(LeaseSettler(self._link), message, message) for message in messages]

    async def ack(self, token: str) -> None:
        """Settles a lease by its token, as :meth:`Delivery.ack` does."""
        await LeaseSettler(self._link).settle("ack", token)

    async def nack(self, token: str, *, delay: Optional[str] = None, reason: Optional[str] = None) -> None:
        """Gives a message back by the token of its lease, as :meth:`Delivery.nack` does."""
        await LeaseSettler(self._link).settle("nack", token, delay=delay, reason=reason)

    async def extend(self, token: str, lease: Optional[str] = None) -> str:
        """Prolongs a lease by its token, and returns when it ends (RFC 3339)."""
        expires: str = (await LeaseSettler(self._link).settle("extend", token, lease=lease))["lease_expires"]
        return expires


def encode_payload(payload: Any) -> Dict[str, Any]:
    """The payload as a field of an operation. Text that is mostly escapes is shorter in base64."""
    if isinstance(payload, (bytes, bytearray, memoryview)):
        return {"base64": base64.b64encode(payload).decode()}
    if not isinstance(payload, str):
        return {"json": payload}
    if len(payload) > FRAME_SIZE:
        data = payload.encode()
        if len(json.dumps(payload, ensure_ascii=False).encode()) > len(data) * 4 / 3:
            return {"base64": base64.b64encode(data).decode()}
    return {"text": payload}
