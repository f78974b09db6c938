"""Requests at a rate that does not wait for answers: what is late because an earlier answer was late counts as late.

`drive` is for any server with the API: real or over a host in memory.
"""

import asyncio
import itertools
import json
import math
import time
from collections import defaultdict

CONNECTIONS = 32
MIX = (
    ("list", 8, "/v1/vms"),
    ("show", 5, "/v1/vms/{name}"),
    ("operations", 2, "/v1/operations?limit=20"),
    ("images", 2, "/v1/images"),
    ("info", 2, "/v1/info"),
    ("metrics", 1, "/metrics"),
)
"""Of twenty requests so many ask for that."""


class Outcome:
    """Milliseconds by kind of request, from when it was due, and what went wrong."""

    def __init__(self):
        self.times_ms = defaultdict(list)
        self.errors = []

    def summary(self, seconds):
        """For the report."""
        count = sum(map(len, self.times_ms.values()))
        return {
            "requests": count,
            "per_s": round(count / seconds, 1),
            "errors": len(self.errors),
            "first_errors": self.errors[:3],
            "ms": {
                kind: {"p50": percentile(times, 50), "p99": percentile(times, 99), "max": round(max(times), 1)}
                for kind, times in self.times_ms.items()
            },
        }  # fmt: skip


def percentile(values, percent):
    """The least value that so many percent are not above."""
    ordered = sorted(values)
    return round(ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)], 1)


async def drive(socket_path, names, *, rate, seconds):
    """``rate`` requests a second for ``seconds``, `MIX` of them, over `CONNECTIONS` connections; ``names`` are VMs to be shown."""
    outcome, due = Outcome(), asyncio.Queue()
    workers = [asyncio.create_task(_serve(socket_path, due, outcome)) for _ in range(CONNECTIONS)]
    kinds = [(kind, path) for kind, count, path in MIX for _ in range(count)]
    order = itertools.cycle([kinds[at * 7 % len(kinds)] for at in range(len(kinds))])
    name = itertools.cycle(names)
    began = time.monotonic()
    for number in range(int(rate * seconds)):
        at = began + number / rate
        wait_s = at - time.monotonic()
        if wait_s > 0:
            await asyncio.sleep(wait_s)
        kind, path = next(order)
        due.put_nowait((at, kind, path.format(name=next(name)) if "{" in path else path))
    for _ in workers:
        due.put_nowait(None)
    await asyncio.gather(*workers)
    return outcome, time.monotonic() - began


async def _serve(socket_path, due, outcome):
    """One connection: what is due, one after the other; connected anew when it broke, which is an error."""
    reader = writer = None
    while (item := await due.get()) is not None:
        at, kind, path = item
        try:
            if writer is None:
                reader, writer = await asyncio.open_unix_connection(str(socket_path))
            status, body = await _ask(reader, writer, path)
            if status != 200 or not (kind == "metrics" or json.loads(body) is not None):
                outcome.errors.append(f"{path}: {status} {body[:200]!r}")
        except (OSError, EOFError, ValueError) as error:
            outcome.errors.append(f"{path}: {error!r}")
            if writer is not None:
                writer.close()
            reader = writer = None
            continue
        outcome.times_ms[kind].append((time.monotonic() - at) * 1000)
    if writer is not None:
        writer.close()


async def _ask(reader, writer, path):
    writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    length = int(head.lower().split("content-length: ", 1)[1].split("\r\n", 1)[0])
    return int(head.split(" ", 2)[1]), await reader.readexactly(length)
