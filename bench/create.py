"""Create until SSH works, until ready, and the host's own work, against a bare QEMU started by a script; both sides alternate.

    python bench/create.py [RUNS]

The bare side has the same kernel, initramfs, disks, identity and command line (taken from the running VM's /proc/PID/cmdline) and the same
readiness probe: the agent's healthz until every service answers. It has no network namespace, no daemon and no stages.
"""

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import installation, report, summary

from banger.guest.connection import connect_guest
from banger.model.machine import VmPaths

HOST_STAGES = ("validate", "reserve", "disks", "identity", "network", "vmm")


def create(banger, name):
    """One create through the CLI; milliseconds until SSH, until ready, and of the host's stages."""
    began = time.monotonic()
    process = banger.start(
        "vm",
        "create",
        "--name",
        name,
        "--memory",
        "1G",
        "--work-size",
        "2G",
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    ssh_ms = wait_ssh(banger, name, began)
    assert process.wait() == 0, process.stderr.read()
    process.stderr.close()
    ready_ms = (time.monotonic() - began) * 1000
    operation = next(
        op
        for op in banger.json("op", "list")
        if op["kind"] == "vm.create" and op["target_name"] == name
    )
    stages = {stage["name"]: stage["duration_ms"] for stage in operation["stages"]}
    return {
        "ssh_ms": ssh_ms,
        "ready_ms": ready_ms,
        "operation_ms": operation["duration_ms"],
        "stages": stages,
    }


def wait_ssh(banger, name, began):
    """Until sshd has said who it is through the forward."""
    while True:
        assert time.monotonic() - began < 120
        try:
            port = banger.vm(name)["status"]["forwards"][0]["host_port"]
            break
        except (AssertionError, IndexError, KeyError):
            time.sleep(0.05)
    while True:
        assert time.monotonic() - began < 120
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
                connection.settimeout(0.5)
                if connection.recv(4) == b"SSH-":
                    return (time.monotonic() - began) * 1000
        except OSError:
            time.sleep(0.02)


def bare(argv, paths, disks):
    """The same QEMU command line from a script, with fresh disks; milliseconds until ready."""
    directory = Path(tempfile.mkdtemp(prefix="bare-"))
    target = VmPaths(directory, directory)
    began = time.monotonic()
    for name in ("overlay.qcow2", "work.img", "identity.tar"):
        subprocess.run(["cp", "--sparse=always", disks / name, directory / name], check=True)
    shutil.copy(paths.agent_token, target.agent_token)
    words = [
        word.replace(str(paths.state), str(directory)).replace(str(paths.runtime), str(directory))
        for word in argv
    ]
    sockets = {}
    for path in (
        target.qmp_socket,
        target.agent_socket,
        target.bulk_socket(0),
        target.bulk_socket(1),
    ):
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen(1)
        sockets[path.name] = listener
    words = replace_descriptors(
        words,
        [
            sockets[name]
            for name in ("qmp.sock", "agent.sock", "agent-bulk0.sock", "agent-bulk1.sock")
        ],
    )
    began = time.monotonic()
    process = subprocess.Popen(
        words, pass_fds=[item.fileno() for item in sockets.values()], stdin=subprocess.DEVNULL
    )

    async def ready():
        guest = connect_guest(target)
        await guest.wait_connected(120)
        await guest.wait_services(120)
        await guest.close()

    asyncio.run(ready())
    elapsed_ms = (time.monotonic() - began) * 1000
    process.kill()
    process.wait()
    for listener in sockets.values():
        listener.close()
    shutil.rmtree(directory)
    return elapsed_ms


def replace_descriptors(words, sockets):
    """The listening sockets in the order of the command line; the TAP becomes QEMU's own user network."""
    left = list(sockets)
    out = []
    for word in words:
        if word.startswith("socket,") and ",fd=" in word:
            head, _, tail = word.partition(",fd=")
            out.append(f"{head},fd={left.pop(0).fileno()},{tail.partition(',')[2]}")
        elif word.startswith("tap,"):
            out.append("user,id=n0")
        elif word.startswith("virtio-net-device"):
            out.append(word.partition(",host_mtu")[0])
        else:
            out.append(word)
    return out


def main(runs):
    """Alternate."""
    banger = installation()
    ours, theirs = [], []
    try:
        banger.run("vm", "create", "--name", "model", "--memory", "1G", "--work-size", "2G")
        record = banger.vm("model")
        paths = VmPaths(banger.state / "vms" / record["id"], banger.runtime / "vms" / record["id"])
        argv = Path(f"/proc/{record['status']['pid']}/cmdline").read_text().split("\0")[:-1]
        banger.run("vm", "stop", "model")
        disks = Path(tempfile.mkdtemp(prefix="bare-disks-"))
        for _ in range(runs):
            banger.run(
                "vm",
                "create",
                "--name",
                "fresh",
                "--no-start",
                "--memory",
                "1G",
                "--work-size",
                "2G",
            )
            fresh = banger.state / "vms" / banger.vm("fresh")["id"]
            for name in ("overlay.qcow2", "work.img", "identity.tar"):
                subprocess.run(["cp", "--sparse=always", fresh / name, disks / name], check=True)
            shutil.copy(fresh / "agent-token", paths.agent_token)
            banger.run("vm", "delete", "fresh")
            theirs.append(bare(argv, paths, disks))
            ours.append(create(banger, "timed"))
            banger.run("vm", "delete", "timed")
        shutil.rmtree(disks)
    finally:
        left = banger.close()
        shutil.rmtree(banger.directory, ignore_errors=True)
    host = [sum(run["stages"][stage] for stage in HOST_STAGES) for run in ours]
    names = list(ours[0]["stages"])
    report(
        "create",
        {
            "ssh_ms": summary([run["ssh_ms"] for run in ours]),
            "ready_ms": summary([run["ready_ms"] for run in ours]),
            "operation_ms": summary([run["operation_ms"] for run in ours]),
            "bare_ready_ms": summary(theirs),
            "ratio": round(
                summary([run["operation_ms"] for run in ours])["median"]
                / summary(theirs)["median"],
                3,
            ),
            "host_work_ms": summary(host),
            "stages_ms": {
                name: summary([run["stages"][name] for run in ours])["median"] for name in names
            },
            "left": left,
        },
    )


if __name__ == "__main__":
    os.environ.setdefault(
        "BANGER_TEST_CACHE", str(Path(__file__).parents[1] / "build" / "test-state")
    )
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
