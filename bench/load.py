"""A daemon under load: many requests while VMs are made, many lives of VMs, many VMs adopted. Each part can be run alone.

    python bench/load.py requests [--seconds 60]              500 requests a second; the host is in memory, the API server real
    python bench/load.py guests [--count 20] [--seconds 60]   the same beside running guests and 50 stopped VMs, then the daemon
        [--limit-s 3600]                                       restarted; guests are started one by one until the time, or memory, is at
                                                               its end
    python bench/load.py cycles [--count 60]                  so many VMs made and deleted, with what the daemon grew by
    python bench/load.py fake-cycles [--count 1000]           as above over the host in memory

What a part measured is put into bench/results/load.json beside what the others did.
"""

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from common import RESULTS, discard, installation, report
from rate import drive

from banger.api import schema
from banger.client.sdk import Client
from banger.model.errors import BangerError
from tests.framework.api_server import socket_path
from tests.framework.growth import footprint, slopes

ROOT = Path(__file__).parents[1]
RATE = 500
STOPPED = 50
LEAN = ("--memory", "160M", "--vcpus", "1", "--work-size", "1G")
WISH = {"memory_mib": 160, "vcpus": 1, "work_bytes": 1 << 30}
OPERATION_S = 600
AT_REST_S = 20
LEAST_MIB = 4096
"""Of the host's memory, below which no further guest is started: they still grow, and the kernel would end whom it likes."""


@contextlib.contextmanager
def fake_daemon():
    """The API server over a host in memory, a process of its own: its directory and pid."""
    directory = Path(tempfile.mkdtemp(prefix="bload-", dir="/tmp"))
    words = [sys.executable, "-m", "tests.framework.api_server", str(directory)]
    path = f"{ROOT / 'src'}:{ROOT}"
    process = subprocess.Popen(
        words, cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout.readline() == b"ready\n"
        yield directory, process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
        shutil.rmtree(directory)


def make(client, name, *, start):
    """A VM, waited for."""
    wish = schema.VmCreate(name=name, start=start, **WISH)
    client.wait(client.create_vm(wish), timeout_s=OPERATION_S)


class Maker(threading.Thread):
    """Makes and deletes VMs, one after the other, until it is told to end."""

    def __init__(self, path, *, start, pause_s):
        super().__init__()
        self._path, self._start, self._pause_s = path, start, pause_s
        self._ended = threading.Event()
        self.made, self.errors = 0, []

    def run(self):
        """See the class."""
        with Client(self._path) as client:
            while not self._ended.wait(self._pause_s):
                try:
                    make(client, "comes-and-goes", start=self._start)
                    client.wait(client.delete_vm("comes-and-goes"), timeout_s=OPERATION_S)
                    self.made += 1
                except BangerError as error:
                    self.errors.append(f"{error.what}: {error.detail}")

    def end(self):
        """Return when it has ended."""
        self._ended.set()
        self.join(2 * OPERATION_S)


def under_load(path, seconds, *, start):
    """`RATE` requests a second while VMs come and go; what came of it."""
    with Client(path) as client:
        names = [vm.name for vm in client.vms()]
    maker = Maker(path, start=start, pause_s=0.2)
    maker.start()
    try:
        outcome, took_s = asyncio.run(drive(path, names, rate=RATE, seconds=seconds))
    finally:
        maker.end()
    found = outcome.summary(took_s)
    found |= {"vms": len(names), "lives_meanwhile": maker.made, "errors_of_lives": maker.errors[:3]}
    return found


def requests(asked):
    """The host in memory: `STOPPED` VMs at rest, twenty that run."""
    with fake_daemon() as (directory, _):
        path = socket_path(directory)
        with Client(path) as client:
            for number in range(STOPPED + 20):
                make(client, f"vm-{number}", start=number >= STOPPED)
        return under_load(path, asked.seconds, start=True)


def guests(asked):
    """Real guests: as many as fit into the time and the host, the load, then a restart that adopts them all."""
    banger = installation()
    try:
        for number in range(STOPPED):
            banger.run("vm", "create", "--no-start", "--name", f"at-rest-{number}", *LEAN)
        running, why = start_guests(banger, asked)
        memory = available_mib()
        load = under_load(banger.runtime / "bangerd.sock", asked.seconds, start=False)
        return {
            "running": running,
            "why_not_more": why,
            "available_mib": memory,
            "load": load,
            "adopted": restart(banger, running),
        }
    finally:
        print(discard(banger), file=sys.stderr)


def start_guests(banger, asked):
    """Guests one by one; how many run, and why not more."""
    began = time.monotonic()
    for number in range(asked.count):
        if time.monotonic() - began > asked.limit_s:
            return number, "the time was over"
        if (left := available_mib()) < LEAST_MIB:
            return number, f"{left} MiB of memory were left"
        done = banger.run("vm", "create", "--name", f"guest-{number}", *LEAN, "--timeout", str(OPERATION_S), check=False, timeout=OPERATION_S + 60)  # fmt: skip
        if done.returncode:
            return number, [line for line in done.stderr.splitlines() if line.startswith("error")]
        print(f"guest {number + 1} runs, {available_mib()} MiB are available", file=sys.stderr)
    return asked.count, ""


def available_mib():
    """Of the host's memory."""
    text = Path("/proc/meminfo").read_text()
    return int(text.split("MemAvailable:")[1].split()[0]) // 1024


def restart(banger, running, rounds=5):
    """Seconds from the command that starts a daemon until it has answered that all of them run. Guests whose agents have just changed
    their host are busy for some seconds, which is waited for.
    """
    times = []
    for _ in range(rounds):
        time.sleep(AT_REST_S)
        banger.run("daemon", "stop")
        began = time.monotonic()
        banger.run("daemon", "start")
        with Client(banger.runtime / "bangerd.sock") as client:
            found = sum(vm.state == "running" for vm in client.vms())
        times.append(round(time.monotonic() - began, 3))
        assert found == running, f"{found} of {running} run"
    return {"s": times, "vms": running}


def cycles(asked):
    """Lives of real guests, one after the other."""
    banger = installation()
    try:
        banger.run("vm", "list")
        pid = banger.daemon_pid()
        return lives(banger.runtime / "bangerd.sock", pid, banger.state, asked.count)
    finally:
        print(discard(banger), file=sys.stderr)


def fake_cycles(asked):
    """Lives of VMs of the host in memory."""
    with fake_daemon() as (directory, pid):
        return lives(socket_path(directory), pid, directory, asked.count)


def lives(path, pid, directory, count):
    """So many, and by how much the daemon grew with each, after some to warm up: a tenth, or 550 of a thousand, when the history is full."""
    database = directory / "banger.db"
    samples, began = [], time.monotonic()
    warm = 550 if count >= 1000 else count // 10
    with Client(path) as client:
        for done in range(count):
            make(client, "one", start=True)
            client.wait(client.delete_vm("one"), timeout_s=OPERATION_S)
            if done >= warm and done % max(1, count // 50) == 0:
                samples.append((done, footprint(directory, database, pid)))
    return {
        "cycles": count,
        "s_per_cycle": round((time.monotonic() - began) / count, 3),
        "growth_per_cycle": slopes(samples),
        "first": vars(samples[0][1]),
        "last": vars(samples[-1][1]),
    }


PARTS = {"requests": requests, "guests": guests, "cycles": cycles, "fake-cycles": fake_cycles}
COUNTS = {"guests": 20, "cycles": 60, "fake-cycles": 1000}


def main():
    """The part that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--count", type=int)
    parser.add_argument("--limit-s", type=int, default=3600)
    asked = parser.parse_args()
    asked.count = asked.count or COUNTS.get(asked.part, 0)
    found = PARTS[asked.part](asked)
    file = RESULTS / "load.json"
    known = json.loads(file.read_text()) if file.exists() else {}
    known.pop("host", None)
    report("load", {**known, asked.part: found})


if __name__ == "__main__":
    main()
