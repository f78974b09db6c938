"""The CLI's start-up, the daemon's list of 200 VMs, its idle memory and CPU, exec's round trip, and copying, as root or as a user.

python bench/daemon.py
"""

import asyncio
import hashlib
import http.client
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import installation, report, summary

from banger.api.schema import ExecRequest
from banger.client.sdk import Client
from banger.guest.connection import connect_guest
from banger.model.machine import VmPaths

BANGER = Path(sys.executable).with_name("banger")


def wall_ms(argv, env=None):
    """Milliseconds of a program."""
    began = time.monotonic()
    subprocess.run(argv, env=env, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return (time.monotonic() - began) * 1000


def list_ms(path):
    """Milliseconds of GET /v1/vms on an open connection."""
    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(path))
    times = []
    for _ in range(30):
        began = time.monotonic()
        connection.request("GET", "/v1/vms")
        connection.getresponse().read()
        times.append((time.monotonic() - began) * 1000)
    connection.close()
    return times


def cpu_s(pid):
    """CPU seconds of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rss_mib(pid):
    """Resident MiB of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


async def agent_round_trip(guest):
    """Milliseconds of `true` straight through the agent's own connection."""
    began = time.monotonic()
    session = await guest.exec({"argv": ["true"]})
    await session.send(3)
    async for _ in session.frames():
        pass
    await session.close()
    return (time.monotonic() - began) * 1000


def agent_round_trips(paths, count):
    """Of so many, over one connection."""

    async def measure():
        guest = connect_guest(paths, "serial")
        await guest.wait_connected(30)
        times = [await agent_round_trip(guest) for _ in range(count)]
        await guest.close()
        return times

    return asyncio.run(measure())


def daemon_round_trips(socket_path, count):
    """Milliseconds of `true` through the daemon, by its client."""
    times = []
    with Client(socket_path) as client:
        for _ in range(count):
            began = time.monotonic()
            assert client.run("box", ExecRequest(argv=["true"])).status == 0
            times.append((time.monotonic() - began) * 1000)
    return times


def copies(banger, pid, size_mib, rounds):
    """MiB/s of `vm cp` and scp, in turns, in and out, and whether every byte came back; the daemon's MiB after each round."""
    directory = Path(tempfile.mkdtemp(prefix="bench-cp-"))
    blob = directory / "blob"
    with blob.open("wb") as file:
        for _ in range(size_mib):
            file.write(os.urandom(1 << 20))
    config = directory / "ssh_config"
    config.write_text(banger.run("setup", "ssh", "--print").stdout)
    scp = ["scp", "-q", "-F", str(config)]
    ways = {
        "cp_in": [str(BANGER), "vm", "cp", str(blob), "box:/tmp/blob"],
        "cp_out": [str(BANGER), "vm", "cp", "box:/tmp/blob", str(directory / "back")],
        "scp_in": [*scp, str(blob), "box.banger:/tmp/blob2"],
        "scp_out": [*scp, "box.banger:/tmp/blob2", str(directory / "back2")],
    }
    rates = {name: [] for name in ways}
    same, rss = True, []
    for _ in range(rounds):
        for name, argv in ways.items():
            rates[name].append(size_mib / (wall_ms(argv, banger.env) / 1000))
        for name in ("back", "back2"):
            same = same and digest(directory / name) == digest(blob)
            (directory / name).unlink()
        rss.append(rss_mib(pid))
    shutil.rmtree(directory)
    return {"byte_exact": same, **{name: summary(values) for name, values in rates.items()}}, rss


def digest(path):
    """What tells two files apart."""
    return hashlib.sha256(path.read_bytes()).digest()


def idle(pid, rounds, window_s):
    """CPU of a process that nobody talks to, in percent of one CPU."""
    used = []
    for _ in range(rounds):
        before = cpu_s(pid)
        time.sleep(window_s)
        used.append((cpu_s(pid) - before) / window_s * 100)
    return used


def main():
    """All of it."""
    banger = installation()
    try:
        for number in range(200):
            banger.run("vm", "create", "--no-start", "--name", f"vm-{number}", "--work-size", "1G")
        cli = [str(BANGER), "vm", "list"]
        bare, ours = [], []
        for _ in range(15):
            bare.append(wall_ms([sys.executable, "-I", "-c", "pass"]))
            ours.append(wall_ms(cli, banger.env))
        listing = list_ms(banger.runtime / "bangerd.sock")
        banger.run("vm", "delete", "--all", timeout=300)
        pid = banger.daemon_pid()
        idle_alone = idle(pid, 5, 20)
        banger.create("box")
        idle_with_vm = idle(pid, 5, 20)
        record = banger.vm("box")
        paths = VmPaths(banger.state / "vms" / record["id"], banger.runtime / "vms" / record["id"])
        execs, starts = [], []
        for _ in range(11):
            execs.append(
                wall_ms(
                    [str(BANGER), "vm", "exec", "box", "--", "true"],
                    banger.env,
                )
            )
            starts.append(wall_ms(cli, banger.env))
        copied, rss = copies(banger, pid, 256, 5)
        through_daemon, alone = [], []
        for _ in range(5):  # the mux has one client at a time, so they take turns
            banger.run("vm", "list")
            through_daemon += daemon_round_trips(banger.runtime / "bangerd.sock", 5)
            banger.run("daemon", "stop")
            alone += agent_round_trips(paths, 5)
    finally:
        banger.close()
        shutil.rmtree(banger.directory, ignore_errors=True)
    report(
        "daemon",
        {
            "python_pass_ms": summary(bare),
            "vm_list_ms": summary(ours),
            "vm_list_ratio": round(summary(ours)["median"] / summary(bare)["median"], 2),
            "list_200_ms": summary(listing),
            "rss_mib": summary(rss),
            "idle_cpu_percent": summary(idle_alone),
            "idle_cpu_percent_with_a_vm": summary(idle_with_vm),
            "exec_true_ms": summary(execs),
            "cli_start_ms": summary(starts),
            "exec_by_client_ms": summary(through_daemon),
            "agent_round_trip_ms": summary(alone),
            "exec_ratio": round(summary(through_daemon)["median"] / summary(alone)["median"], 2),
            "copy_mib_per_s": copied,
        },
    )


if __name__ == "__main__":
    main()
