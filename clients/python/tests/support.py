"""The server under test, and a network that can be cut."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import subprocess
import tempfile
import unittest
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Awaitable, Callable, List, Optional, Tuple

from msgbus import Client, Subscription

#: Waits are generous, for busy machines.
TIMEOUT = 60.0
#: Attempts to reconnect follow each other quickly.
BACKOFF = (0.004, 0.1)


class Case(unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self) -> None:
        # The debug mode of these tests makes asyncio many times slower.
        asyncio.get_running_loop().set_debug(False)

    async def daemon(self, *flags: str) -> Daemon:
        daemon = Daemon(flags)
        self.addAsyncCleanup(daemon.kill)
        await daemon.start()
        return daemon

    async def network(self, daemon: Daemon) -> Network:
        network = Network(daemon)
        await network.start()
        self.addAsyncCleanup(network.close)
        return network

    async def open(self, url: str, **options: Any) -> Client:
        """A connected client that is closed after the test."""
        bus = Client(url, backoff=BACKOFF, **options)
        await bus.connect()
        self.addAsyncCleanup(bus.close)
        return bus

    def directory(self) -> Path:
        directory = tempfile.TemporaryDirectory(prefix="msgbus-clients-")
        self.addCleanup(directory.cleanup)
        return Path(directory.name)


class Daemon:
    def __init__(self, flags: Tuple[str, ...]) -> None:
        self._flags = flags
        self._address = "127.0.0.1:0"
        self._process: Optional[asyncio.subprocess.Process] = None
        self._reading: Optional[asyncio.Task[None]] = None

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            os.environ["MSGBUSD"], "--bind", self._address, *self._flags,
            stdin=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert self._process.stderr
        log = ""
        while not (match := re.search(r"listening on https?://(\S+)", log)):
            line = await asyncio.wait_for(self._process.stderr.readline(), TIMEOUT)
            assert line, f"no server: {log}"
            log += line.decode()
        self._address = match[1]
        self._reading = asyncio.create_task(discard(self._process.stderr))

    @property
    def url(self) -> str:
        return f"http://{self._address}"

    @property
    def port(self) -> int:
        return int(self._address.rsplit(":")[-1])

    async def kill(self) -> None:
        if self._process and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    async def stop(self) -> None:
        """Stops with a drain."""
        assert self._process
        self._process.terminate()
        await asyncio.wait_for(self._process.wait(), TIMEOUT)

    def reload(self) -> None:
        assert self._process
        self._process.send_signal(1)

    async def fetch(self, path: str, method: str = "GET", **headers: str) -> str:
        request = urllib.request.Request(self.url + path, method=method, headers=headers)

        def send() -> str:
            with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
                return str(response.read().decode())

        return await asyncio.to_thread(send)

    async def get(self, path: str) -> Any:
        return json.loads(await self.fetch(path))


def new_key(*parameters: str) -> Tuple[str, str]:
    """The secret of a new key, and its lines of the key file."""
    command = [os.environ["MSGBUSD"], "key", "new", *parameters]
    made = subprocess.run(command, capture_output=True, text=True, check=True)
    return made.stderr.strip(), made.stdout


async def discard(stream: asyncio.StreamReader) -> None:
    while await stream.read(65_536):
        pass


class Network:
    """Passes bytes on until it cuts the connection, after a number of bytes in both directions together."""

    def __init__(self, daemon: Daemon) -> None:
        self.cuts = 0
        self._daemon = daemon
        self._bytes_until_cut: Optional[Callable[[], int]] = None
        self._clients: List[asyncio.StreamWriter] = []

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._pass, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def cut_after(self, seed: random.Random, least: int, most: int) -> None:
        """From now on each connection is cut: many after a few bytes, some late enough for all that has waited."""
        self._bytes_until_cut = lambda: round(least * (most / least) ** seed.random())
        self.cut_all()

    def heal(self) -> None:
        self._bytes_until_cut = None

    def cut_all(self) -> None:
        for client in self._clients:
            client.transport.abort()

    async def close(self) -> None:
        self.heal()
        self._server.close()
        self.cut_all()

    async def _pass(self, from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        self._clients.append(to_client)
        try:
            from_daemon, to_daemon = await asyncio.open_connection("127.0.0.1", self._daemon.port)
        except OSError:
            to_client.transport.abort()
            self._clients.remove(to_client)
            return
        left = self._bytes_until_cut() if self._bytes_until_cut else None

        async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
            nonlocal left
            while data := await source.read(65_536):
                if left is None or not self._bytes_until_cut or len(data) < left:
                    left = None if left is None else left - len(data)
                    target.write(data)
                    continue
                # The first part arrives, the rest does not.
                target.write(data[:left])
                self.cuts += 1
                return

        copies = [asyncio.create_task(copy(from_client, to_daemon)), asyncio.create_task(copy(from_daemon, to_client))]
        await asyncio.wait(copies, return_when=asyncio.FIRST_COMPLETED)
        for task in copies:
            task.cancel()
        await asyncio.gather(*copies, return_exceptions=True)
        to_daemon.close()
        # Alternately by closing the connection and by resetting it.
        to_client.close() if self.cuts % 2 else to_client.transport.abort()
        self._clients.remove(to_client)


async def until(what: str, ready: Callable[[], Awaitable[Any]]) -> None:
    deadline = asyncio.get_running_loop().time() + TIMEOUT
    while not await ready():
        assert asyncio.get_running_loop().time() < deadline, f"expected: {what}"
        await asyncio.sleep(0.01)


async def take(subscription: Subscription[Any], count: int) -> List[Any]:
    """Takes this many messages, or fewer if the subscription ends."""
    messages: List[Any] = []
    while len(messages) < count:
        try:
            messages.append(await asyncio.wait_for(subscription.__anext__(), TIMEOUT))
        except StopAsyncIteration:
            break
    return messages


def texts(messages: List[Any]) -> List[str]:
    return [message.text() for message in messages]
