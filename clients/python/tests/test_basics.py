"""What each operation does, without faults of the network."""

from __future__ import annotations

import asyncio
import json
from typing import Any, List

from msgbus import Client, ConnectionLost, Message, MsgbusError
from support import Case, Daemon, new_key, take, texts, until


async def group(daemon: Daemon, topic: str) -> Any:
    return await daemon.get(f"/-/groups/workers/{topic}")


class Basics(Case):
    async def refused(self, code: str, awaitable: Any) -> None:
        with self.assertRaises(MsgbusError) as raised:
            await awaitable
        self.assertEqual(raised.exception.code, code)
        self.assertGreater(len(str(raised.exception)), 5)

    async def test_a_message_arrives_as_it_was_published(self) -> None:
        daemon = await self.daemon()
        bus = await self.open(daemon.url)
        subscription = bus.subscribe("all/kinds")
        binary = bytes(range(256)) * 300
        escaped = '"\\\n' * 100_000
        published = [
            await bus.publish("all/kinds", "text with ä, 😀, \u2028 and \0", headers={"Type": "a", "tag": ["b", "c"]}),
            await bus.publish("all/kinds", binary),
            await bus.publish("all/kinds", bytearray(binary)),
            await bus.publish("all/kinds", {"a": [1, None, "ü"]}, ttl="1m"),
            await bus.publish("all/kinds", None),
            await bus.publish("all/kinds"),
            await bus.publish("all/kinds", escaped),
            await bus.publish("all/kinds", "\0" * 500_000),
            await bus.publish("all/kinds", "\ufeffmark"),
        ]
        messages = await take(subscription, len(published))
        self.assertEqual([message.id for message in messages], [one.id for one in published])
        self.assertEqual([message.position for message in messages], [f"{one.epoch}-{one.id}" for one in published])
        self.assertEqual(published[0].durability, "memory")
        text, raw, array, value, nothing, empty, long, zeros, mark = messages
        self.assertEqual(text.topic, "all/kinds")
        self.assertEqual(text.text(), "text with ä, 😀, \u2028 and \0")
        self.assertEqual(text.headers, {"Type": "a", "tag": ["b", "c"]})
        self.assertEqual(raw.payload, binary)
        self.assertEqual(array.payload, binary)
        self.assertEqual(value.json(), {"a": [1, None, "ü"]})
        self.assertEqual(value.headers["content-type"], "application/json")
        self.assertLess(value.expires, text.expires)
        self.assertEqual(nothing.payload, b"null")
        self.assertEqual(empty.payload, b"")
        self.assertEqual(long.text(), escaped)
        self.assertEqual(zeros.payload, bytes(500_000))
        self.assertEqual(mark.text(), "\ufeffmark")

    async def test_pipelined_publishes_are_in_the_order_of_the_calls(self) -> None:
        daemon = await self.daemon()
        bus = await self.open(daemon.url)
        published = await asyncio.gather(*(bus.publish("numbers", number) for number in range(5000)))
        self.assertEqual([one.id for one in published], list(range(5000)))
        messages = await take(bus.subscribe("numbers", since="all"), 5000)
        self.assertEqual([message.json() for message in messages], list(range(5000)))

    async def test_a_pattern_follows_topics_that_exist_and_topics_that_are_created(self) -> None:
        daemon = await self.daemon()
        bus = await self.open(daemon.url)
        await bus.publish("orders/eu", "1")
        every, one = bus.subscribe("orders/**", since="all"), bus.subscribe("orders/*")
        await asyncio.gather(every.ready(), one.ready())
        for topic, text in [("orders/us/east", "2"), ("orders/us", "3"), ("other", "4"), ("orders/eu", "5")]:
            await bus.publish(topic, text)

        def seen(messages: List[Message]) -> List[str]:
            return [f"{message.topic} {message.text()}" for message in messages]

        self.assertEqual(seen(await take(every, 4)), ["orders/eu 1", "orders/us/east 2", "orders/us 3", "orders/eu 5"])
        self.assertEqual(seen(await take(one, 2)), ["orders/us 3", "orders/eu 5"])

    async def test_a_subscription_resumes_at_a_position(self) -> None:
        daemon = await self.daemon()
        bus = await self.open(daemon.url)
        for text in "abcde":
            await bus.publish("letters", text)
        first = bus.subscribe("letters", since="all")
        _, b = await take(first, 2)
        self.assertEqual(first.position, b.position)
        self.assertEqual(texts(await take(bus.subscribe("letters", since=b.position), 3)), list("cde"))
        self.assertEqual(texts(await take(bus.subscribe("letters", since="10m"), 5)), list("abcde"))
        fresh = bus.subscribe("unused")
        await fresh.ready()
        self.assertRegex(fresh.position or "", r"^\d+-start$")

    async def test_leaving_the_block_ends_the_subscription_on_the_server_too(self) -> None:
        daemon = await self.daemon()
        bus = await self.open(daemon.url)
        await bus.publish("letters", "a")
        async with bus.subscribe("letters", since="all") as messages:
            async for message in messages:
                self.assertEqual(message.text(), "a")
                break

        async def is_ended() -> bool:
            return not (await daemon.get("/-/topics/letters"))["subscriptions"]

        await until("no subscription", is_ended)

    async def test_what_was_missed_and_that_a_topic_has_started_anew_is_reported(self) -> None:
        daemon = await self.daemon("--max-queue-size", "5")
        bus = await self.open(daemon.url)
        published = [await bus.publish("short", str(number)) for number in range(20)]
        reported: List[Any] = []
        subscription = bus.subscribe(
            "short",
            since=f"{published[0].epoch}-2",
            on_gap=reported.append,
            on_restart=lambda: reported.append("restart"),
        )
        self.assertEqual(texts(await take(subscription, 5)), ["15", "16", "17", "18", "19"])
        self.assertEqual(reported, [12])
        await daemon.fetch("/short", "DELETE")
        await bus.publish("short", "reborn")
        self.assertEqual(texts(await take(subscription, 1)), ["reborn"])
        self.assertEqual(reported, [12, "restart"])

    async def test_what_was_missed_is_logged_by_default(self) -> None:
        daemon = await self.daemon("--max-queue-size", "5")
        bus = await self.open(daemon.url)
        published = [await bus.publish("short", str(number)) for number in range(10)]
        with self.assertLogs("msgbus", "WARNING") as logs:
            await take(bus.subscribe("short", since=f"{published[0].epoch}-0"), 5)
        self.assertEqual(logs.output, ["WARNING:msgbus:missed 4 messages of short"])

    async def test_pull_takes_messages_and_waits_for_them(self) -> None:
        daemon = await self.daemon()
        bus = await self.open(daemon.url)
        self.assertEqual(await bus.pull("jobs"), [])
        for text in "abc":
            await bus.publish("jobs", text)
        self.assertEqual(texts(await bus.pull("jobs")), ["a"])
        self.assertEqual(texts(await bus.pull("jobs", max=10)), ["b", "c"])
        waiting = asyncio.create_task(bus.pull("jobs", wait="50s"))
        await bus.publish("jobs", "d")
        self.assertEqual(texts(await waiting), ["d"])
        self.assertEqual(await bus.pull("jobs", wait="10ms"), [])

    async def test_leases_are_acknowledged_given_back_and_extended(self) -> None:
        daemon = await self.daemon()
        bus = await self.open(daemon.url)
        for text in "abc":
            await bus.publish("jobs", text)
        (a,) = await bus.pull("jobs", group="workers", lease="20s")
        before = a.lease_expires
        await a.extend("50s")
        self.assertGreater(a.lease_expires, before)
        await a.ack()
        await self.refused("lease_lost", a.ack())
        b, c = await bus.pull("jobs", group="workers", max=5)
        await b.nack(reason="later")
        (again,) = await bus.pull("jobs", group="workers", wait="30s")
        self.assertEqual((again.text(), again.deliveries), ("b", 2))
        await bus.ack(again.lease)
        await bus.nack(c.lease, delay="1h")
        state = await group(daemon, "jobs")
        self.assertEqual((state["acked"], state["waiting"]), (2, 1))

    async def test_a_worker_has_as_many_messages_as_its_credit(self) -> None:
        daemon = await self.daemon()
        bus = await self.open(daemon.url)
        for text in "abcd":
            await bus.publish("jobs", text)
        jobs = bus.subscribe("jobs", group="workers", credit=2)
        a, b = await take(jobs, 2)
        following = asyncio.create_task(take(jobs, 1))
        await bus.publish("other")
        self.assertEqual((await group(daemon, "jobs"))["leased"], 2)
        await b.nack(delay="1h")
        (c,) = await following
        await asyncio.gather(a.ack(), c.ack())
        (d,) = await take(jobs, 1)
        self.assertEqual(d.text(), "d")
        await d.ack()
        self.assertEqual((await group(daemon, "jobs"))["acked"], 3)

    async def test_a_lease_that_ends_gives_its_credit_back(self) -> None:
        daemon = await self.daemon()
        bus = await self.open(daemon.url)
        for text in "ab":
            await bus.publish("jobs", text)
        jobs = bus.subscribe("jobs", group="workers", lease="3s")
        (a,) = await take(jobs, 1)

        async def has_ended() -> bool:
            return bool((await group(daemon, "jobs"))["lease_expired"] == 1)

        await until("the end of the lease", has_ended)
        # A worker that is stuck is sent nothing more.
        self.assertEqual((await group(daemon, "jobs"))["delivered"], 1)
        (again,) = await take(jobs, 1)
        self.assertEqual((a.text(), again.text(), again.deliveries), ("a", "a", 2))
        await self.refused("lease_lost", a.ack())
        await again.ack()

        async def is_leased() -> bool:
            return bool((await group(daemon, "jobs"))["leased"] == 1)

        # "b" is in the buffer, or on its way.
        await until("a lease of b", is_leased)
        await jobs.aclose()
        (b,) = await bus.pull("jobs", group="workers", wait="30s")
        self.assertEqual(b.text(), "b")

    async def test_errors_have_a_code_and_leave_everything_else_alone(self) -> None:
        daemon = await self.daemon("--max-payload-size", "1000")
        bus = await self.open(daemon.url)
        await self.refused("bad_topic", bus.publish("metrics", "x"))
        await self.refused("bad_parameter", bus.publish("a", "x", ttl="soon"))
        await self.refused("payload_too_large", bus.publish("a", "x" * 1001))
        await self.refused("payload_too_large", bus.publish("a", "x" * 2_000_000))
        await self.refused("payload_too_large", bus.publish("a", bytes(3_000_000)))
        await self.refused("invalid_lease", bus.ack("nonsense"))
        await self.refused("bad_parameter", take(bus.subscribe("a", since="yesterday"), 1))
        with self.assertRaises(UnicodeEncodeError):
            await bus.publish("a", "\ud800")
        with self.assertRaises(MsgbusError):
            await bus.pull("a/**")
        ended = bus.subscribe("orders/#/x//")
        with self.assertRaises(MsgbusError):
            await ended.ready()
        with self.assertRaises(MsgbusError):
            await take(ended, 1)
        self.assertEqual(await take(ended, 1), [])
        self.assertEqual((await bus.publish("a", "fine")).id, 0)

    async def test_lag_disconnect_ends_the_subscription_with_an_error(self) -> None:
        daemon = await self.daemon("--max-queue-size", "10")
        bus, publisher = await self.open(daemon.url), await self.open(daemon.url)
        subscription = bus.subscribe("fast", lag="disconnect")
        await subscription.ready()
        # The consumer takes nothing: first the buffer is full, then messages leave the topic.
        for _ in range(10):
            await asyncio.gather(*(publisher.publish("fast", "x") for _ in range(500)))
        await self.refused("lagged", take(subscription, 5000))

    async def test_after_close_nothing_is_sent_and_every_call_ends(self) -> None:
        daemon = await self.daemon()
        bus = await self.open(daemon.url)
        subscription = bus.subscribe("a")
        await subscription.ready()
        taking = asyncio.create_task(take(subscription, 1))
        waiting = asyncio.create_task(bus.pull("b", wait="50s"))
        await bus.publish("c")
        await bus.close()
        self.assertEqual(await taking, [])
        with self.assertRaises(ConnectionLost):
            await waiting
        await self.refused("client_closed", bus.publish("a"))
        await self.refused("client_closed", take(bus.subscribe("a"), 1))
        self.assertFalse(bus.is_connected)

    async def test_a_first_connection_that_fails_is_an_error(self) -> None:
        daemon = await self.daemon()
        await daemon.kill()
        await self.refused("disconnected", Client(daemon.url).connect())
        with self.assertRaises(ValueError):
            await Client("ftp://localhost").connect()

    async def test_keys_by_header_by_ticket_and_revoked(self) -> None:
        file = self.directory() / "keys.toml"
        key, entry = new_key("shop", "--allow", "*:orders/**")
        other, other_entry = new_key("watch", "--allow", "subscribe:orders/**")
        file.write_text(entry + other_entry)
        daemon = await self.daemon("--keys", str(file))
        shop = await self.open(daemon.url, key=key)
        await shop.publish("orders/1", "one")
        await self.refused("not_granted", shop.publish("private", "x"))
        await self.refused("wrong_key", Client(daemon.url, key="wrong").connect())

        async def ticket() -> str:
            answer = await daemon.fetch("/-/ticket", "POST", Authorization=f"Bearer {other}")
            return str(json.loads(answer)["ticket"])

        watch = await self.open(daemon.url, ticket=ticket)
        subscription = watch.subscribe("orders/1", since="all")
        self.assertEqual(texts(await take(subscription, 1)), ["one"])
        await self.refused("not_granted", watch.publish("orders/1", "x"))
        file.write_text(entry)
        daemon.reload()
        await self.refused("revoked", take(subscription, 1))
        await shop.publish("orders/1", "two")
