"""Requests to services, and their responders; and many leases at once."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Awaitable, Callable

from msgbus import ConnectionLost, MsgbusError, Request, Responder, Unsettled
from support import TIMEOUT, Case, Daemon, take, until


async def stats(daemon: Daemon, service: str) -> Any:
    return (await daemon.get("/-/services")).get(service)


async def upper(responder: Responder) -> None:
    """Answers with the text of each request in upper case, until the responder ends."""
    async for request in responder:
        await request.reply(request.text().upper())


async def take_one(responder: Responder) -> Request:
    return await asyncio.wait_for(responder.__anext__(), TIMEOUT)


class Services(Case):
    async def refused(self, code: str, awaitable: Awaitable[Any]) -> None:
        with self.assertRaises(MsgbusError) as raised:
            await awaitable
        self.assertEqual(raised.exception.code, code)

    async def test_a_request_is_answered_as_it_was_asked(self) -> None:
        daemon = await self.daemon()
        bus = await self.open(daemon.url)
        await self.refused("no_responder", bus.request("s"))
        binary = bytes(range(256)) * 300
        async with bus.serve("s", max=10) as responder:
            await responder.ready()
            asked: Any = ["größe 😀", binary, {"a": [1, None]}, None]
            replies = [
                asyncio.create_task(bus.request("s", payload, headers={"tag": ["a", "b"]}, timeout="1m"))
                for payload in asked
            ]
            requests = [await take_one(responder) for _ in asked]
            self.assertEqual(requests[0].headers, {"tag": ["a", "b"]})
            self.assertEqual(requests[0].service, "s")
            self.assertLessEqual(requests[0].deadline, time.monotonic() + 60)
            self.assertEqual(requests[0].text(), "größe 😀")
            self.assertEqual(requests[1].payload, binary)
            self.assertEqual(requests[2].json(), {"a": [1, None]})
            self.assertEqual(requests[2].headers["content-type"], "application/json")
            self.assertIsNone(requests[3].json())
            for request in reversed(requests):  # In another order.
                await request.reply(request.payload, headers={"n": "1"})
            self.assertEqual((await replies[0]).text(), "größe 😀")
            self.assertEqual((await replies[1]).payload, binary)
            self.assertEqual((await replies[2]).json(), {"a": [1, None]})
            self.assertEqual((await replies[3]).headers, {"n": "1"})
            await self.refused("reply_not_wanted", requests[0].reply("again"))

        async def is_ended() -> bool:
            return bool((await stats(daemon, "s"))["responders"] == 0)

        await until("no responder", is_ended)

    async def test_failures_are_told(self) -> None:
        daemon = await self.daemon()
        bus = await self.open(daemon.url)
        responder = bus.serve("s")
        await responder.ready()

        async def ask(answer: Callable[[Request], Awaitable[None]], timeout: str = "1m") -> Any:
            reply = asyncio.create_task(bus.request("s", "x", timeout=timeout))
            await answer(await take_one(responder))
            return await reply

        async def late(request: Request) -> None:
            await asyncio.sleep(max(0.0, request.deadline - time.monotonic()) + 0.2)
            await self.refused("reply_not_wanted", request.reply("late"))

        async def too_large(request: Request) -> None:
            await self.refused("payload_too_large", request.reply("x" * 3_000_000))
            await request.fail("too large")

        with self.assertRaisesRegex(MsgbusError, "no more paper"):
            await ask(lambda request: request.fail("no more paper"))
        await self.refused("responder_failed", ask(lambda request: request.decline()))
        await self.refused("request_timeout", ask(late, "2s"))
        await self.refused("responder_failed", ask(too_large))
        await self.refused("bad_topic", bus.request("a//b"))
        await self.refused("bad_parameter", bus.request("s", "x", timeout="2d"))
        await self.refused("bad_parameter", bus.serve("s", max=0).ready())

    async def test_a_responder_asks_itself_with_as_many_requests_as_may_wait(self) -> None:
        daemon = await self.daemon()
        bus = await self.open(daemon.url)
        tasks = [asyncio.create_task(upper(bus.serve("inner", max=1000)))]

        async def forward(request: Request) -> None:
            await request.reply((await bus.request("inner", request.payload, timeout="1m")).payload)

        async def outer() -> None:
            async for request in bus.serve("outer", max=10):
                tasks.append(asyncio.create_task(forward(request)))

        tasks.append(asyncio.create_task(outer()))

        async def is_served() -> bool:
            return bool(await stats(daemon, "outer")) and bool(await stats(daemon, "inner"))

        await until("responders", is_served)
        replies = await asyncio.gather(*(bus.request("outer", f"n{n}", timeout="1m") for n in range(1000)))
        self.assertEqual([reply.text() for reply in replies], [f"N{n}" for n in range(1000)])
        silent = bus.serve("silent", max=1024)
        await silent.ready()
        asked = [asyncio.create_task(bus.request("silent", timeout="1m")) for _ in range(1025)]
        await self.refused("too_many_requests", asked[-1])
        for _ in range(1024):
            await (await take_one(silent)).reply()
        await asyncio.gather(*asked[:-1])
        for task in tasks:
            task.cancel()

    async def test_requests_end_with_the_connection_of_their_responder_or_are_handed_on(self) -> None:
        daemon = await self.daemon()
        network = await self.network(daemon)
        is_lost = asyncio.Event()
        far = await self.open(network.url, on_disconnect=lambda error, retry_in: is_lost.set())
        near = await self.open(daemon.url)
        responder = far.serve("s", max=10)
        await responder.ready()
        once = asyncio.create_task(near.request("s", "once", timeout="1m"))
        lost = await take_one(responder)
        again = asyncio.create_task(near.request("s", "again", timeout="1m", retry=True))

        async def are_in_hand() -> bool:
            return bool((await stats(daemon, "s"))["in_hand"] == 2)

        await until("both in hand", are_in_hand)
        network.cut_all()
        await self.refused("responder_failed", once)
        await asyncio.wait_for(is_lost.wait(), TIMEOUT)
        request = await take_one(responder)
        self.assertEqual(request.text(), "again")
        await self.refused("reply_not_wanted", lost.reply("late"))
        await request.reply("here")
        self.assertEqual((await again).text(), "here")

    async def test_a_requester_whose_connection_is_lost_is_told_or_asks_again(self) -> None:
        daemon = await self.daemon()
        network = await self.network(daemon)
        far, near = await self.open(network.url), await self.open(daemon.url)
        responder = near.serve("s", max=10)
        await responder.ready()
        once = asyncio.create_task(far.request("s", "once", timeout="1m"))
        again = asyncio.create_task(far.request("s", "again", timeout="1m", retry=True))
        for _ in range(2):
            await take_one(responder)
        network.cut_all()
        with self.assertRaises(ConnectionLost):
            await once
        request = await take_one(responder)
        self.assertEqual(request.text(), "again")
        await request.reply("here")
        self.assertEqual((await again).text(), "here")

    async def test_a_consumer_that_is_stuck_is_passed_over(self) -> None:
        daemon = await self.daemon()
        bus = await self.open(daemon.url)
        responder = bus.serve("s")
        await responder.ready()
        await self.refused("request_timeout", bus.request("s", "1", timeout="50ms"))
        reply = asyncio.create_task(bus.request("s", "2", timeout="1m"))
        # By the clock of the client, the first may not be over.
        while (request := await take_one(responder)).text() != "2":
            pass
        await request.reply("3")
        self.assertEqual((await reply).text(), "3")

    async def test_without_a_connection_a_request_waits_no_longer_than_its_time(self) -> None:
        daemon = await self.daemon()
        bus = await self.open(daemon.url)
        await daemon.kill()

        async def is_lost() -> bool:
            return not bus.is_connected

        await until("no connection", is_lost)
        await self.refused("request_timeout", bus.request("s", "x", timeout="1ms"))

    async def test_many_leases_are_settled_at_once(self) -> None:
        daemon = await self.daemon()
        bus = await self.open(daemon.url)
        for text in "abc":
            await bus.publish("jobs", text)
        a, b, c = [delivery.lease for delivery in await bus.pull("jobs", group="g", max=3)]
        self.assertEqual(await bus.extend([a, b], "1h"), [])
        self.assertRegex(await bus.extend(c, "1h"), "Z$")
        self.assertEqual(await bus.nack([a], reason="later"), [])
        self.assertEqual(
            await bus.ack([b, a, "x", c]), [Unsettled(a, "lease_lost"), Unsettled("x", "invalid_lease")]
        )
        self.assertEqual(await bus.ack([]), [])
        (again,) = await bus.pull("jobs", group="g")
        self.assertEqual(again.text(), "a")
        await bus.ack(again.lease)
        # The credit of a subscription comes back.
        subscription = bus.subscribe("jobs", group="g", credit=2, lease="1h")
        for n in range(6):
            await bus.publish("jobs", str(n))
        for texts in [["0", "1"], ["2", "3"], ["4", "5"]]:
            deliveries = await take(subscription, 2)
            self.assertEqual([delivery.text() for delivery in deliveries], texts)
            self.assertEqual(await bus.ack([delivery.lease for delivery in deliveries]), [])
