"""Runs the examples of the documents, each as a program of its own on a new server, and compares their output."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path
from typing import Iterator, Tuple

from support import TIMEOUT, Case, new_key

ROOT = Path(os.environ.get("MSGBUS_ROOT") or Path(__file__).resolve().parents[3])


def examples(document: str) -> Iterator[Tuple[str, str]]:
    """Each `python` block with the next block of output."""
    blocks = re.findall(r"^```(\w+)\n(.*?)^```$", (ROOT / document).read_text(), re.M | re.S)
    for at, (language, program) in enumerate(blocks):
        if language == "python":
            yield program, next(text for language, text in blocks[at:] if language == "text")


class Examples(Case):
    async def test_examples(self) -> None:
        key, entry = new_key("example", "--allow", "*:**")
        file = self.directory() / "keys.toml"
        file.write_text('[anonymous]\nallow = ["*:**"]\n' + entry)
        for document in ["docs/clients.md", "clients/python/README.md"]:
            for number, (program, output) in enumerate(examples(document), 1):
                with self.subTest(document=document, example=number):
                    daemon = await self.daemon("--keys", str(file))
                    run = await asyncio.create_subprocess_exec(
                        sys.executable, "-c", program.replace("http://localhost:8000", daemon.url),
                        env={**os.environ, "MSGBUS_KEY": key}, stdout=asyncio.subprocess.PIPE,
                    )  # fmt: skip
                    printed, _ = await asyncio.wait_for(run.communicate(), TIMEOUT)
                    self.assertEqual((run.returncode, printed.decode()), (0, output))
