"""Nothing is missing, nothing comes twice and nothing is out of order within a topic, whatever happens to connections
and to the server, except what the client reports."""

from __future__ import annotations

import asyncio
import os
import random
import re
from typing import Callable, Dict, List, Optional, Sequence, Set

from msgbus import Client, ConnectionLost, MsgbusError
from support import Case, take, texts, until

CUTS = int(os.environ.get("MSGBUS_TEST_CUTS", "300"))
SEED = int(os.environ.get("MSGBUS_TEST_SEED", "1"))
TOPICS = ["cut/a", "cut/b", "cut/c/d"]

Log = Dict[str, List[str]]


async def publish_until(
    bus: Client, seed: random.Random, is_over: Callable[[], bool], records: Sequence[Record] = ()
) -> Log:
    """Publishes over a connection that is not cut, and returns what was published to each topic.

    Unless it may be lost, no more is published than ``records`` can follow between the cuts.
    """
    log: Log = {topic: [] for topic in TOPICS}
    number = 0

    async def keep_up() -> bool:
        return is_over() or all(total(record.of(log)) - record.count < 200 for record in records)

    while not is_over():
        await until("subscribers that keep up", keep_up)
        batch = []
        for _ in range(seed.randint(1, 20)):
            topic, size = seed.choice(TOPICS), seed.choice([10, 10, 10, 10, 10, seed.randint(0, 4000)])
            log[topic].append(f"{number} {'x' * size}")
            number += 1
            batch.append(bus.publish(topic, log[topic][-1], retry=True))
        await asyncio.gather(*batch)
        await asyncio.sleep(seed.uniform(0, 0.002))
    return log


class Record:
    """What a subscription receives, by topic, and what it reports."""

    def __init__(self, bus: Client, topic: str, since: Optional[str] = None) -> None:
        self.topic = topic
        self.seen: Log = {name: [] for name in TOPICS}
        self.missed = 0
        self.restarts = 0
        self.subscription = bus.subscribe(topic, since=since, on_gap=self._gap, on_restart=self._restart)
        self._following = asyncio.create_task(self._follow())

    async def _follow(self) -> None:
        async for message in self.subscription:
            self.seen[message.topic].append(message.text())

    def _gap(self, missed: int) -> None:
        self.missed += missed

    def _restart(self) -> None:
        self.restarts += 1

    @property
    def count(self) -> int:
        return total(self.seen) + self.missed

    def of(self, log: Log) -> Log:
        """The part of a log that the subscription has to receive."""
        pattern = re.sub(r"\*$", "[^/]+", self.topic.replace("**", ".+"))
        return {topic: published if re.fullmatch(pattern, topic) else [] for topic, published in log.items()}

    async def has(self, count: int) -> None:
        async def reached() -> bool:
            return self.count >= count

        await until(f"{count} messages of {self.topic}", reached)


def total(log: Log) -> int:
    return sum(len(published) for published in log.values())


class Cuts(Case):
    async def test_topics_and_patterns_are_received_as_they_were_published(self) -> None:
        seed = random.Random(SEED)
        daemon = await self.daemon()
        network = await self.network(daemon)
        publisher, bus = await self.open(daemon.url), await self.open(network.url)
        records = [Record(bus, topic) for topic in [*TOPICS, "cut/**", "cut/*"]]
        await asyncio.gather(*(record.subscription.ready() for record in records))
        network.cut_after(seed, 200, 200_000)
        log = await publish_until(publisher, seed, lambda: network.cuts >= CUTS, records)
        network.heal()
        for record in records:
            expected = record.of(log)
            await record.has(total(expected))
            self.assertEqual(record.seen, expected, f"seed {SEED}")
            self.assertEqual((record.missed, record.restarts), (0, 0))

    async def test_what_is_evicted_is_reported_with_its_exact_count(self) -> None:
        seed = random.Random(SEED + 1)
        daemon = await self.daemon("--max-queue-size", "40")
        network = await self.network(daemon)
        publisher, bus = await self.open(daemon.url), await self.open(network.url)
        records = [Record(bus, topic) for topic in [*TOPICS, "cut/**"]]
        await asyncio.gather(*(record.subscription.ready() for record in records))
        network.cut_after(seed, 200, 200_000)
        log = await publish_until(publisher, seed, lambda: network.cuts >= CUTS // 3)
        network.heal()
        for record in records:
            expected = record.of(log)
            await record.has(total(expected))
            self.assertEqual(record.count, total(expected))
            self.assertEqual(record.restarts, 0)
            for topic, seen in record.seen.items():
                # Each once, and in the order of the log.
                rest = iter(expected[topic])
                self.assertTrue(all(text in rest for text in seen), topic)

    async def test_restarts_of_a_durable_server_are_not_noticed(self) -> None:
        seed = random.Random(SEED + 2)
        daemon = await self.daemon("--data", str(self.directory()))
        network = await self.network(daemon)
        publisher, bus = await self.open(daemon.url), await self.open(network.url)
        records = [Record(bus, topic) for topic in [*TOPICS, "cut/**"]]
        await asyncio.gather(*(record.subscription.ready() for record in records))
        network.cut_after(seed, 500, 200_000)
        over = asyncio.Event()
        publishing = asyncio.create_task(publish_until(publisher, seed, over.is_set, records))
        for restart in range(6):
            await asyncio.sleep(seed.uniform(0.1, 0.4))
            await (daemon.kill() if restart % 2 else daemon.stop())
            await daemon.start()
        over.set()
        log = await publishing
        network.heal()
        # A publish that was repeated may be in the log twice: the log of the server is what subscribers have to see.
        kept: Log = {}
        for topic in TOPICS:
            retained = (await daemon.get(f"/-/topics/{topic}"))["retained"]
            kept[topic] = texts(await take(publisher.subscribe(topic, since="all"), retained))
            self.assertEqual(set(kept[topic]), set(log[topic]))
        for record in records:
            expected = record.of(kept)
            await record.has(total(expected))
            self.assertEqual(record.seen, expected)
            self.assertEqual(record.missed, 0)
            # The log of a pattern begins again with the server; repeats are removed.
            self.assertTrue(record.restarts == 0 or "*" in record.topic)

    async def test_a_server_that_restarts_without_its_messages_is_a_restart_of_each_subscription(self) -> None:
        daemon = await self.daemon()
        bus = await self.open(daemon.url)
        await bus.publish("cut/a", "before")
        records = [Record(bus, topic, "all") for topic in ["cut/a", "cut/**"]]
        for record in records:
            await record.has(1)
        await daemon.kill()
        await daemon.start()
        await bus.publish("cut/a", "after")
        for record in records:
            await record.has(2)
            self.assertEqual(record.seen["cut/a"], ["before", "after"])
            self.assertEqual((record.missed, record.restarts), (0, 1))

    async def test_a_publish_without_an_answer_is_unknown_and_each_known_one_is_kept_once(self) -> None:
        seed = random.Random(SEED + 3)
        daemon = await self.daemon()
        network = await self.network(daemon)
        bus, reader = await self.open(network.url), await self.open(daemon.url)
        network.cut_after(seed, 200, 8000)
        known: Dict[int, str] = {}
        unknown: Set[str] = set()

        async def publish(text: str) -> None:
            try:
                known[(await bus.publish("unsure", text)).id] = text
            except ConnectionLost:
                unknown.add(text)

        number = 0
        while network.cuts < CUTS // 3:
            await asyncio.gather(*(publish(str(number + index)) for index in range(10)))
            number += 10
        network.heal()
        last = (await reader.publish("unsure", "the end")).id
        kept = (await take(reader.subscribe("unsure", since="all"), last + 1))[:-1]
        self.assertEqual(len({message.text() for message in kept}), len(kept))
        for message in kept:
            self.assertNotEqual(known.pop(message.id, None) == message.text(), message.text() in unknown)
        self.assertEqual(known, {})
        self.assertTrue(unknown)

    async def test_with_retry_every_publish_is_kept_in_order(self) -> None:
        seed = random.Random(SEED + 4)
        daemon = await self.daemon()
        network = await self.network(daemon)
        bus, reader = await self.open(network.url), await self.open(daemon.url)
        network.cut_after(seed, 200, 8000)
        number = 0
        while network.cuts < CUTS // 6:
            await asyncio.gather(*(bus.publish("sure", number + index, retry=True) for index in range(10)))
            number += 10
        network.heal()
        last = (await reader.publish("sure", "the end")).id
        kept = (await take(reader.subscribe("sure", since="all"), last + 1))[:-1]
        # A dict keeps the first of each, in order.
        self.assertEqual(list(dict.fromkeys(message.json() for message in kept)), list(range(number)))

    async def test_every_job_of_a_group_is_done(self) -> None:
        seed = random.Random(SEED + 5)
        daemon = await self.daemon()
        network = await self.network(daemon)
        publisher = await self.open(daemon.url)
        workers = [await self.open(network.url) for _ in range(2)]
        jobs = {str(job) for job in range(600)}
        await asyncio.gather(*(publisher.publish("jobs", job) for job in jobs))
        network.cut_after(seed, 500, 15_000)
        done: Set[str] = set()

        async def work(bus: Client) -> None:
            async for delivery in bus.subscribe("jobs", group="workers", lease="2s", credit=8):
                done.add(delivery.text())
                try:
                    await delivery.ack()
                except MsgbusError as error:
                    self.assertIn(error.code, ["lease_lost", "connection_lost"])

        working = [asyncio.create_task(work(bus)) for bus in workers]

        async def are_acknowledged() -> bool:
            if len(done) < len(jobs):
                return False
            return bool((await daemon.get("/-/groups/workers/jobs"))["acked"] == len(jobs))

        await until("all jobs acknowledged", are_acknowledged)
        self.assertEqual(done, jobs)
        for bus in workers:
            await bus.close()
        await asyncio.gather(*working)

    async def test_a_slow_consumer_pauses_its_own_subscription_and_loses_nothing_that_is_kept(self) -> None:
        daemon = await self.daemon()
        bus, publisher = await self.open(daemon.url), await self.open(daemon.url)
        slow, quick = bus.subscribe("slow"), bus.subscribe("quick")
        await asyncio.gather(slow.ready(), quick.ready())
        # Several times what a subscription buffers.
        count, padding = 1500, "x" * 10_000
        for number in range(0, count, 100):
            await asyncio.gather(*(publisher.publish("slow", f"{number + index} {padding}") for index in range(100)))
        await publisher.publish("quick", "not held up")
        self.assertEqual((await take(quick, 1))[0].text(), "not held up")

        async def is_paused() -> bool:
            return not (await daemon.get("/-/topics/slow"))["subscriptions"]

        # The buffer is full, so the subscription has ended on the server until the consumer takes messages.
        await until("a pause", is_paused)
        messages = await take(slow, count)
        self.assertEqual([int(message.text().split()[0]) for message in messages], list(range(count)))
