"""Requests to services, and their responders."""

from __future__ import annotations

import asyncio
import base64
import json
import random
import time
from collections import deque
from typing import Any, Deque, Dict, Optional, Sequence

from ._errors import MsgbusError, closed_error
from ._link import FRAME_SIZE, Answer, Link
from ._message import Content, Headers
from ._subscription import END_REASONS, seconds


class Reply(Content):
    """The reply to a request."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<Reply of {len(self.payload)} bytes>"


class Request(Content):
    """A request that was given to a responder.

    An answer that nobody waits for raises the error ``reply_not_wanted``: there was one, or the requester has left, or its
    time is over.
    """

    __slots__ = ("_link", "deadline", "service", "token")

    def __init__(self, link: Link, service: str, fields: Dict[str, Any]) -> None:
        super().__init__(fields)
        self._link = link
        self.service = service
        #: Names the request: it can be answered elsewhere, too (docs/protocol.md, 17.5).
        self.token: str = fields["reply"]
        #: When the requester stops waiting, by ``time.monotonic()``.
        self.deadline = time.monotonic() + seconds(fields["timeout"])

    def __repr__(self) -> str:
        return f"<Request to {self.service}>"

    async def reply(self, payload: Any = b"", *, headers: Optional[Headers] = None) -> None:
        """Replies. ``payload`` is sent as :meth:`Client.publish` does."""
        await self._answer({**encode_payload(payload), "headers": headers})

    async def fail(self, reason: str) -> None:
        """The requester gets the error ``responder_failed`` with this reason."""
        await self._answer({"error": reason})

    async def decline(self) -> None:
        """Another responder gets the request, if its requester has set ``retry``; else it fails."""
        await self._answer({"retry": True})

    async def _answer(self, fields: Dict[str, Any]) -> None:
        await self._link.request("reply", {"token": self.token, **fields})


class Responder:
    """The requests of a service, as an asynchronous iterator that outlives connections.

    The requests of a connection that is lost have ended with it. Use it as ``async with`` to end it when the block is
    left; otherwise it ends with the client. Requests that were taken can still be answered then.

    The server sends no more than ``max`` at a time that are neither answered nor over, so few wait here.
    """

    def __init__(self, link: Link, service: str, max: int) -> None:
        self._link = link
        self._service = service
        self._max = max
        self._buffer: Deque[Request] = deque()
        self._sid: Optional[int] = None
        self._was_open = False
        self._is_ended = False
        self._error: Optional[MsgbusError] = None
        self._changed = asyncio.Event()
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # An error is not logged if no caller waits for it.
        self._ready.add_done_callback(lambda ready: ready.exception())
        self._retry: Optional[asyncio.TimerHandle] = None
        link.add(self)

    # The consumer's side.

    async def ready(self) -> None:
        """Waits until the server has accepted the responder."""
        await asyncio.shield(self._ready)

    async def aclose(self) -> None:
        """Ends the responder. Requests that were not taken are declined."""
        if self._sid is not None:
            self._link.enqueue("unsub", {"sid": self._sid}, is_bound=True)
        self.end()
        for request in self._buffer:
            self._link.decline(request.token)
        self._buffer.clear()

    async def __aenter__(self) -> Responder:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __aiter__(self) -> Responder:
        return self

    async def __anext__(self) -> Request:
        while True:
            if self._buffer:
                request = self._buffer.popleft()
                # If its time is over, its requester has been told.
                if request.deadline > time.monotonic():
                    return request
            elif self._error:
                error, self._error = self._error, None
                raise error
            elif self._is_ended:
                raise StopAsyncIteration
            else:
                self._changed.clear()
                await self._changed.wait()

    # The link's side.

    def open(self) -> None:
        """Serves on the current connection, if there is one."""
        if not self._link.is_open or self._is_ended:
            return
        sid = self._sid = self._link.route(self)
        self._link.enqueue(
            "serve",
            {"sid": sid, "service": self._service, "max": self._max, "payload": "text"},
            is_bound=True,
            resolve=lambda answer: self._opened() if sid == self._sid else None,
            reject=lambda error: self._refused(error) if sid == self._sid else None,
        )

    def disconnected(self) -> None:
        """The connection is lost, and with it all requests that were sent on it."""
        self._sid = None
        self._buffer.clear()
        self._cancel_retry()

    def receive(self, event: Answer) -> None:
        """A request or an end has arrived."""
        if event["op"] == "end":
            self._ended_by_server(event["reason"])
        elif event["op"] == "request":
            # A consumer that is stuck is sent others in the place of those whose time is over, by the server's clock.
            if len(self._buffer) >= 2 * self._max:
                now = time.monotonic()
                self._buffer = deque(request for request in self._buffer if request.deadline > now)
            if len(self._buffer) >= 2 * self._max:
                return self._link.decline(event["reply"])
            self._buffer.append(Request(self._link, self._service, event))
            self._changed.set()

    def settled(self, op: str, tokens: Sequence[str], lease: Optional[str]) -> None:
        """It has no leases."""

    def end(self, error: Optional[MsgbusError] = None) -> None:
        """Ends the responder."""
        if self._is_ended:
            return
        self._is_ended = True
        self._error = error
        self._cancel_retry()
        self._link.remove(self, self._sid)
        self._sid = None
        if not self._ready.done():
            self._ready.set_exception(error or closed_error())
        self._changed.set()

    def _opened(self) -> None:
        self._was_open = True
        if not self._ready.done():
            self._ready.set_result(None)

    def _refused(self, error: MsgbusError) -> None:
        self._link.unroute(self._sid)
        self._sid = None
        if error.code == "closed":
            return  # A server that stops closes the connection, and the next one tries again.
        if not self._was_open or error.retry_after is None:
            return self.end(error)
        self._cancel_retry()
        delay = error.retry_after * random.uniform(1, 2)
        self._retry = asyncio.get_running_loop().call_later(delay, self.open)

    def _cancel_retry(self) -> None:
        if self._retry:
            self._retry.cancel()
            self._retry = None

    def _ended_by_server(self, reason: str) -> None:
        self._link.unroute(self._sid)
        self._sid = None
        # A server that stops closes the connection, too.
        if reason != "closed":
            self.end(MsgbusError(reason, END_REASONS.get(reason, f"the server has ended the responder: {reason}")))


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
