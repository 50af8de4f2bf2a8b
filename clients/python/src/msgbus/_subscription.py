"""Subscriptions: each owns its position and its buffer, and outlives connections."""

from __future__ import annotations

import asyncio
import logging
import random
import re
from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import Any, Callable, Deque, Dict, Generic, List, Optional, Sequence, Tuple, TypeVar, Union, cast

from ._errors import MsgbusError, closed_error
from ._link import Answer, Link
from ._message import Delivery, Message

#: What a subscription buffers for its consumer before it pauses; it resumes when half of it was taken.
MAX_BUFFERED = 1024
#: In characters of payload. One message more may be buffered.
MAX_BUFFERED_SIZE = 4 * 1024 * 1024
#: The topics of a pattern of which the position is remembered: as many as a server has by default.
MAX_TOPICS = 100_000
#: In seconds.
DEFAULT_LEASE = 30.0

END_REASONS = {
    "lagged": 'the subscription fell behind and lag is "disconnect"',
    "revoked": "the keys no longer allow this subscription",
    "store_failed": "the server cannot read older messages from its disk",
    "engine_failed": "the engine of the topic refuses the server",
}

logger = logging.getLogger("msgbus")

M = TypeVar("M", bound=Message)


@dataclass
class Gap:
    """Messages that the server no longer had, or a topic that has started anew."""

    position: str
    #: None for a restart.
    missed: Optional[int] = None


@dataclass
class SubscriptionOptions:
    lag: Optional[str] = None
    group: Optional[str] = None
    lease: Optional[str] = None
    credit: int = 1
    on_gap: Optional[Callable[[int], None]] = None
    on_restart: Optional[Callable[[], None]] = None
    on_stalled: Optional[Callable[[bool], None]] = None


class Subscription(Generic[M]):
    """The messages of a topic, a pattern or a group, as an asynchronous iterator.

    Within a topic messages are in order, each once, with none missing except what ``on_gap`` and ``on_restart`` report.
    Use it as ``async with`` to end it when the block is left; otherwise it ends with the client.

    A slow consumer must not delay other subscriptions of the connection. So when 1,024 messages or about
    4 MiB are buffered, the subscription ends on the server; it resumes at its position once half of the buffer was
    taken. What the server no longer has by then is reported as a gap. A group needs no such pause, since it is sent no
    more than its credit.
    """

    def __init__(self, link: Link, topic: str, since: Optional[str], options: SubscriptionOptions) -> None:
        self._link = link
        self._topic = topic
        self._options = options
        #: The position after what was taken, to be used as ``since``. None before :meth:`ready`, and for groups.
        self.position: Optional[str] = None
        #: Where the next `sub` starts: after the last event in the buffer.
        self._resume = since
        self._epoch = ""
        #: What the consumer has not taken, in order.
        self._buffer: Deque[Union[Message, Gap]] = deque()
        #: Not used by groups, which credit limits.
        self._buffered_size = 0
        #: The ``sid`` on the current connection. Each attempt has its own, so that events of earlier ones are ignored.
        self._sid: Optional[int] = None
        self._is_paused = False
        self._was_open = False
        self._was_resumed = False
        # Whether the engine of the topic does not deliver, as far as the server has said.
        self._is_stalled = False
        self._is_ended = False
        self._error: Optional[MsgbusError] = None
        self._changed = asyncio.Event()
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # An error is not logged if no caller waits for it.
        self._ready.add_done_callback(lambda ready: ready.exception())
        self._retry: Optional[asyncio.TimerHandle] = None
        #: The last message of each topic. Where a pattern's log begins again, it shows what was received before.
        self._received: OrderedDict[str, Tuple[str, int, str]] = OrderedDict()
        #: The credit that the server has left.
        self._granted = 0
        is_group = options.group is not None
        self._held = HeldLeases(link, options.lease, self._top_up, self._changed.set) if is_group else None
        link.add(self)

    # The consumer's side.

    async def ready(self) -> None:
        """Waits until the server has accepted the subscription: all later messages are received."""
        await asyncio.shield(self._ready)

    async def aclose(self) -> None:
        """Ends the subscription. Messages of a group that were not taken are given back."""
        if not self._is_ended:
            self._unsubscribe()
        self.end()
        for item in self._buffer:
            if isinstance(item, Delivery):
                self._link.give_back(item.lease)
        self._buffer.clear()
        if self._held is not None:
            self._held.clear()

    async def __aenter__(self) -> Subscription[M]:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __aiter__(self) -> Subscription[M]:
        return self

    async def __anext__(self) -> M:
        while True:
            self._forget_ended_leases()
            item = self._take()
            if isinstance(item, Message):
                return cast(M, item)
            if item:
                self._report(item)
            elif self._error:
                error, self._error = self._error, None
                raise error
            elif self._is_ended:
                raise StopAsyncIteration
            else:
                self._changed.clear()
                await self._changed.wait()

    def _take(self) -> Union[Message, Gap, None]:
        if not self._buffer:
            return None
        item = self._buffer.popleft()
        self._buffered_size -= size_of(item)
        if item.position is not None:
            self.position = item.position
        is_half_empty = len(self._buffer) <= MAX_BUFFERED // 2 and self._buffered_size <= MAX_BUFFERED_SIZE // 2
        if self._is_paused and is_half_empty:
            self._is_paused = False
            self.open()
        return item

    def _report(self, gap: Gap) -> None:
        if gap.missed is None:
            if self._options.on_restart:
                self._options.on_restart()
            else:
                logger.warning("%s has started anew; all messages that it holds follow", self._topic)
        elif self._options.on_gap:
            self._options.on_gap(gap.missed)
        else:
            logger.warning("missed %d messages of %s", gap.missed, self._topic)

    # The link's side.

    def open(self) -> None:
        """Subscribes on the current connection, if there is one."""
        if not self._link.is_open or self._is_paused or self._is_ended:
            return
        options = self._options
        if self._held is not None:
            self._granted = max(0, options.credit - len(self._held))
        sid = self._sid = self._link.route(self)
        fields = {
            "sid": sid,
            "topic": self._topic,
            "since": self._resume,
            "lag": options.lag,
            "payload": "text",
            "group": options.group,
            "lease": options.lease,
            "credit": None if self._held is None else self._granted,
        }
        self._link.enqueue(
            "sub",
            fields,
            is_bound=True,
            resolve=lambda answer: self._opened(answer) if sid == self._sid else None,
            reject=lambda error: self._refused(error) if sid == self._sid else None,
        )

    def disconnected(self) -> None:
        """The connection is lost."""
        self._sid = None
        self._cancel_retry()

    def receive(self, event: Answer) -> None:
        """A message, a gap or an end has arrived."""
        if event["op"] == "end":
            self._ended_by_server(event)
        elif event["op"] in ("stalled", "resumed"):
            self._note_feed(event["op"] == "stalled")
        elif self._held is not None:
            if event["op"] == "msg":
                self._granted -= 1
                self._held.hold(event["lease"])
                self._push(Delivery(self._held, event["message"], event))
        elif len(self._buffer) >= MAX_BUFFERED or self._buffered_size >= MAX_BUFFERED_SIZE:
            # What arrives from here on is sent again when the subscription resumes.
            self._is_paused = True
            self._unsubscribe()
        elif event["op"] == "msg":
            self._resume = f"{self._epoch}-{event['id']}"
            if not self._is_repeat(event["message"]):
                self._push(Message(event["message"], self._resume))
        elif event["op"] == "gap" and self._options.lag == "disconnect" and self._was_resumed:
            # The server ends a subscription only for what it missed later than at its start, which this is.
            self._unsubscribe()
            self.end(MsgbusError("lagged", END_REASONS["lagged"], missed=event["missed"]))
        elif event["op"] == "gap":
            self._resume = position_before(self._epoch, event["next_id"])
            self._push(Gap(self._resume, event["missed"]))

    def _note_feed(self, is_stalled: bool) -> None:
        """The server says again and again that an engine does not deliver. Only the first time is news."""
        if self._is_stalled == is_stalled:
            return
        self._is_stalled = is_stalled
        if self._options.on_stalled:
            self._options.on_stalled(is_stalled)
        elif is_stalled:
            logger.warning("the engine of %s is away; waiting for it", self._topic)

    def settled(self, op: str, tokens: Sequence[str], lease: Optional[str]) -> None:
        """Leases were settled by their tokens. Some may be of this subscription."""
        if self._held is None:
            return
        if op == "extend":
            self._held.prolong(tokens, lease)
        else:
            self._held.release(tokens)

    def end(self, error: Optional[MsgbusError] = None) -> None:
        """Ends the subscription; its consumer takes what is in the buffer first."""
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

    def _opened(self, ok: Answer) -> None:
        self._was_resumed = self._was_open
        self._was_open = True
        self._is_stalled = False
        if not self._ready.done():
            self._ready.set_result(None)
        if self._held is not None:
            return
        self._epoch = ok["epoch"]
        # A gap reports what was missed. Until it has arrived, the next connection has to report it, too.
        if ok.get("restarted"):
            self._resume = f"{self._epoch}-start"
            self._push(Gap(self._resume))
        if not ok.get("missed"):
            self._resume = position_before(self._epoch, ok["next_id"])
            if self.position is None:
                self.position = self._resume

    def _refused(self, error: MsgbusError) -> None:
        self._link.unroute(self._sid)
        self._sid = None
        if error.code == "closed":
            return  # A server that stops closes the connection, and the next one tries again.
        if not self._was_open or error.retry_after is None:
            return self.end(error)
        delay = error.retry_after * random.uniform(1, 2)
        self._cancel_retry()
        self._retry = asyncio.get_running_loop().call_later(delay, self.open)

    def _cancel_retry(self) -> None:
        if self._retry:
            self._retry.cancel()
            self._retry = None

    def _ended_by_server(self, end: Answer) -> None:
        self._link.unroute(self._sid)
        self._sid = None
        reason: str = end["reason"]
        # A topic that was deleted may be created again, which is then a restart. A server that stops closes the
        # connection too.
        if reason == "deleted":
            self.open()
        elif reason != "closed":
            text = END_REASONS.get(reason, f"the server has ended the subscription: {reason}")
            self.end(MsgbusError(reason, text, missed=end.get("missed")))

    def _unsubscribe(self) -> None:
        if self._sid is not None:
            self._link.unroute(self._sid)
            self._link.enqueue("unsub", {"sid": self._sid}, is_bound=True)
            self._sid = None

    def _push(self, item: Union[Message, Gap]) -> None:
        self._buffer.append(item)
        self._buffered_size += size_of(item)
        self._changed.set()

    def _is_repeat(self, message: Dict[str, Any]) -> bool:
        """Whether the message was received before.

        The times matter as well as the ids, because ids begin again with a topic, and after a power cut may be given
        again.
        """
        topic, number, created = message["topic"], message["id"], message["created"]
        last = self._received.get(topic["name"])
        if last and last[0] == topic["created"] and number <= last[1] and created <= last[2]:
            return True
        # The topics that have been silent for the longest come first, and are forgotten first.
        self._received[topic["name"]] = (topic["created"], number, created)
        self._received.move_to_end(topic["name"])
        if len(self._received) > MAX_TOPICS:
            self._received.popitem(last=False)
        return False

    def _forget_ended_leases(self) -> None:
        """Leases that have ended are forgotten only when the consumer asks for a message.

        Until then their credit is not renewed, or a consumer that is stuck would be sent one message after the other,
        and work on none.
        """
        if self._held is None or not self._held.forget_ended():
            return
        # The server delivers again what the consumer has not taken in time.
        held = self._held
        self._buffer = deque(item for item in self._buffer if isinstance(item, Delivery) and item.lease in held)
        self._top_up()

    def _top_up(self) -> None:
        """Renews the credit, so that it is as before together with the leases that are held."""
        if self._held is None or self._sid is None:
            return
        n = self._options.credit - len(self._held) - self._granted
        if n > 0:
            self._granted += n
            self._link.enqueue("credit", {"sid": self._sid, "n": n}, is_bound=True)


class LeaseSettler:
    """Settles leases. Repeating it does no harm, so it is sent again when the connection breaks before the answer."""

    def __init__(self, link: Link) -> None:
        self._link = link

    async def settle(self, op: str, token: str, **fields: Optional[str]) -> Answer:
        return await self._link.request(op, {"token": token, **fields}, retry=True)


class HeldLeases(LeaseSettler):
    """The leases of a subscription that are not settled. They end by the client's clock, counted from their arrival."""

    def __init__(
        self, link: Link, lease: Optional[str], on_release: Callable[[], None], on_end: Callable[[], None]
    ) -> None:
        super().__init__(link)
        self._lease = lease
        self._on_release = on_release
        self._on_end = on_end
        self._timers: Dict[str, asyncio.TimerHandle] = {}
        self._ended: List[str] = []

    def __len__(self) -> int:
        return len(self._timers)

    def __contains__(self, token: str) -> bool:
        return token in self._timers

    def hold(self, token: str, lease: Optional[str] = None) -> None:
        loop = asyncio.get_running_loop()
        self._timers[token] = loop.call_later(seconds(lease or self._lease), self._end, token)

    async def settle(self, op: str, token: str, **fields: Optional[str]) -> Answer:
        is_over = op != "extend"
        try:
            answer = await super().settle(op, token, **fields)
        finally:
            if is_over:
                self.release([token])
        if not is_over:
            self.prolong([token], fields.get("lease"))
        return answer

    def prolong(self, tokens: Sequence[str], lease: Optional[str]) -> None:
        held = [token for token in tokens if token in self._timers]
        for token in held:
            self._timers[token].cancel()
            self.hold(token, lease)
        self._ended = [ended for ended in self._ended if ended not in held]

    def release(self, tokens: Sequence[str]) -> None:
        timers = [timer for token in tokens if (timer := self._timers.pop(token, None))]
        for timer in timers:
            timer.cancel()
        if timers:
            self._on_release()

    def _end(self, token: str) -> None:
        self._ended.append(token)
        self._on_end()

    def forget_ended(self) -> bool:
        """Returns whether there were any."""
        ended, self._ended = self._ended, []
        return any([self._timers.pop(token, None) for token in ended])

    def clear(self) -> None:
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()


def size_of(item: Union[Message, Gap]) -> int:
    return item._size if isinstance(item, Message) else 0


def position_before(epoch: str, next_id: int) -> str:
    return f"{epoch}-{next_id - 1}" if next_id else f"{epoch}-start"


def seconds(duration: Optional[str], default: float = DEFAULT_LEASE) -> float:
    """A duration of the protocol: integers with units, such as ``1m30s``."""
    if duration is None:
        return default
    units = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86_400}
    parts: List[Tuple[str, str]] = re.findall(r"(\d+)(ms|s|m|h|d)", duration)
    return sum(int(count) * units[unit] for count, unit in parts)
