"""Messages as the application sees them."""

from __future__ import annotations

import base64
import json
from typing import Any, Dict, List, Mapping, Optional, Protocol, Union

Headers = Mapping[str, Union[str, List[str]]]


class Content:
    """A payload with headers."""

    __slots__ = ("_fields",)

    def __init__(self, fields: Dict[str, Any]) -> None:
        self._fields = fields

    @property
    def headers(self) -> Headers:
        """The headers; a name that repeats has a list of values."""
        headers: Headers = self._fields.get("headers", {})
        return headers

    @property
    def payload(self) -> bytes:
        text: Optional[str] = self._fields.get("text")
        return base64.b64decode(self._fields["payload"]) if text is None else text.encode()

    def text(self) -> str:
        """The payload as text; bytes that are not UTF-8 become U+FFFD."""
        text: Optional[str] = self._fields.get("text")
        return self.payload.decode(errors="replace") if text is None else text

    def json(self) -> Any:
        """The payload parsed as JSON."""
        return json.loads(self.payload)

    @property
    def _size(self) -> int:
        """The length of the payload as it was received, in characters."""
        return len(self._fields.get("text") or self._fields.get("payload") or "")


class Message(Content):
    """A message of a topic."""

    __slots__ = ("position",)

    def __init__(self, fields: Dict[str, Any], position: Optional[str] = None) -> None:
        super().__init__(fields)
        #: The position after this message in its subscription, to be used as ``since``.
        self.position = position

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.topic} #{self.id}>"

    @property
    def topic(self) -> str:
        name: str = self._fields["topic"]["name"]
        return name

    @property
    def id(self) -> int:
        number: int = self._fields["id"]
        return number

    @property
    def created(self) -> str:
        """RFC 3339 with nanoseconds."""
        time: str = self._fields["created"]
        return time

    @property
    def expires(self) -> Optional[str]:
        """RFC 3339 with nanoseconds, or None if the message never expires."""
        time: str = self._fields["expires"]
        return None if time.startswith("0001-") else time


class Settler(Protocol):
    """Settles leases, and knows which of them are over."""

    async def settle(self, op: str, token: str, **fields: Optional[str]) -> Dict[str, Any]: ...


class Delivery(Message):
    """A message that is leased: it is delivered again unless it is acknowledged before the lease ends.

    Settling a lease that is over raises the error ``lease_lost``.
    """

    __slots__ = ("_settler", "deliveries", "lease", "lease_expires")

    def __init__(self, settler: Settler, fields: Dict[str, Any], lease: Dict[str, Any]) -> None:
        super().__init__(fields)
        self._settler = settler
        #: The token of the lease.
        self.lease: str = lease["lease"]
        #: How often the group was given the message, this time included.
        self.deliveries: int = lease["deliveries"]
        #: When the lease ends, RFC 3339 on the server's clock.
        self.lease_expires: str = lease["lease_expires"]

    async def ack(self) -> None:
        """The work is done."""
        await self._settler.settle("ack", self.lease)

    async def nack(self, *, delay: Optional[str] = None, reason: Optional[str] = None) -> None:
        """The work has failed: the message is delivered again, after ``delay`` (a duration such as ``10s``)."""
        await self._settler.settle("nack", self.lease, delay=delay, reason=reason)

    async def extend(self, lease: Optional[str] = None) -> None:
        """The lease lasts from now on as long as ``lease`` says, by default 30 s."""
        answer = await self._settler.settle("extend", self.lease, lease=lease)
        self.lease_expires = answer["lease_expires"]
