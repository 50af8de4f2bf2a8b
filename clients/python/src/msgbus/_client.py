"""What the application calls."""

from __future__ import annotations

import asyncio
import ssl as tls
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Optional, Tuple, Union, overload

from ._errors import MsgbusError
from ._link import Link, LinkOptions, Ticket
from ._message import Delivery, Headers, Message
from ._service import Reply, Responder, encode_payload
from ._subscription import LeaseSettler, Subscription, SubscriptionOptions, seconds

#: In seconds.
DEFAULT_TIMEOUT = 5.0
#: How much longer than the server a requester waits, for a connection that is lost or slow.
TIMEOUT_GRACE = 5.0


@dataclass(frozen=True)
class Published:
    """What the server says about a message that it has accepted. ``durability`` is memory, written, synced or engine."""

    id: int
    epoch: str
    durability: str


@dataclass(frozen=True)
class Unsettled:
    """A lease that could not be settled. ``error`` is a code word such as ``lease_lost``."""

    lease: str
    error: str


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
        on_stalled: Optional[Callable[[bool], None]] = None,
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
        on_stalled: Optional[Callable[[bool], None]] = None,
        group: Optional[str] = None,
        lease: Optional[str] = None,
        credit: int = 1,
    ) -> Subscription[Any]:
        """Follows a topic or a pattern (``orders/*``, ``orders/**``). It begins at once, not at the first iteration.

        ``since`` is where to start (docs/protocol.md, 6.3): ``all``, ``10m``, ``message.position``; by default with new
        messages. Where the server no longer has the next messages, the subscription continues after them
        (``lag="skip"``), or ends with the error ``lagged`` (``lag="disconnect"``). ``on_gap`` is called in its turn,
        between messages, with the number of messages that the server no longer had (0: the engine of the topic cannot
        tell); ``on_restart`` when the topic has
        started anew (it was deleted, or the server restarted without its messages), and all messages that it holds now
        follow; ``on_stalled`` at once, with ``True``, when the engine in which the topic lives does not deliver, and with
        ``False`` when it does again. By default they log a warning.

        With ``group``, the messages are leased to one worker of the group each, until it acknowledges them. ``lease``
        is how long a lease lasts (``30s``), ``credit`` how many unsettled messages this worker may have at a time.
        ``since`` counts only if this subscription creates the group.
        """
        options = SubscriptionOptions(lag, group, lease, credit, on_gap, on_restart, on_stalled)
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

    async def request(
        self,
        service: str,
        payload: Any = b"",
        *,
        timeout: Optional[str] = None,
        headers: Optional[Headers] = None,
        retry: bool = False,
    ) -> Reply:
        """Asks a service and waits for the reply. ``payload`` is sent as :meth:`publish` does.

        ``timeout`` is how long to wait for it, ``1ms`` to ``1m``, by default ``5s``. While there is no connection, the
        request waits, but no longer than its timeout and five seconds.

        Raises :class:`MsgbusError`: ``no_responder`` at once if nobody serves it, ``request_timeout``,
        ``responder_failed`` with the reason, or ``too_many_requests`` if 1,024 requests of this connection wait. Raises
        :class:`ConnectionLost` if the connection broke before the reply. With ``retry`` it is asked again instead, and
        another responder gets the request if the first one leaves without a reply; it may then be served twice.
        """
        fields = {
            "service": service, **encode_payload(payload), "timeout": timeout, "headers": headers, "retry": retry,
            "payload": "text",
        }  # fmt: skip
        asked = self._link.request("request", fields, retry=retry)
        limit = seconds(timeout, DEFAULT_TIMEOUT) + TIMEOUT_GRACE
        try:
            return Reply(await asyncio.wait_for(asked, limit))
        except asyncio.TimeoutError:
            text = "there was no reply in time; a responder may have done the work"
            raise MsgbusError("request_timeout", text) from None

    def serve(self, service: str, *, max: int = 1) -> Responder:
        """Serves a service: each request goes to the responder that has waited longest. It begins at once.

        ``max`` is how many requests the responder may have at a time that are not answered, 1 to 10,000.
        """
        return Responder(self._link, service, max)

    @overload
    async def ack(self, token: str) -> None: ...

    @overload
    async def ack(self, token: List[str]) -> List[Unsettled]: ...

    async def ack(self, token: Union[str, List[str]]) -> Optional[List[Unsettled]]:
        """Settles a lease by its token, as :meth:`Delivery.ack` does.

        With a list of at most 10,000 tokens, it settles many at once, and returns those that could not be settled.
        """
        return await self._settle("ack", token)

    @overload
    async def nack(self, token: str, *, delay: Optional[str] = None, reason: Optional[str] = None) -> None: ...

    @overload
    async def nack(
        self, token: List[str], *, delay: Optional[str] = None, reason: Optional[str] = None
    ) -> List[Unsettled]: ...

    async def nack(
        self, token: Union[str, List[str]], *, delay: Optional[str] = None, reason: Optional[str] = None
    ) -> Optional[List[Unsettled]]:
        """Gives a message back by the token of its lease, as :meth:`Delivery.nack` does; or many, as :meth:`ack`."""
        return await self._settle("nack", token, delay=delay, reason=reason)

    @overload
    async def extend(self, token: str, lease: Optional[str] = None) -> str: ...

    @overload
    async def extend(self, token: List[str], lease: Optional[str] = None) -> List[Unsettled]: ...

    async def extend(
        self, token: Union[str, List[str]], lease: Optional[str] = None
    ) -> Union[str, List[Unsettled]]:
        """Prolongs a lease by its token, and returns when it ends (RFC 3339); or prolongs many, as :meth:`ack`."""
        answer = await self._link.request("extend", {**leases(token), "lease": lease}, retry=True)
        unsettled = [Unsettled(one["lease"], one["error"]) for one in answer.get("unsettled", [])]
        lost = {one.lease for one in unsettled}
        tokens = [token] if isinstance(token, str) else token
        self._link.settled("extend", [one for one in tokens if one not in lost], lease)
        if isinstance(token, str):
            expires: str = answer["lease_expires"]
            return expires
        return unsettled

    async def _settle(
        self, op: str, token: Union[str, List[str]], **fields: Optional[str]
    ) -> Optional[List[Unsettled]]:
        try:
            answer = await self._link.request(op, {**leases(token), **fields}, retry=True)
        finally:
            self._link.settled(op, [token] if isinstance(token, str) else token)
        if isinstance(token, str):
            return None
        return [Unsettled(one["lease"], one["error"]) for one in answer.get("unsettled", [])]


def leases(token: Union[str, List[str]]) -> Dict[str, Any]:
    """One lease by its token, or many."""
    return {"token": token} if isinstance(token, str) else {"tokens": list(token)}
