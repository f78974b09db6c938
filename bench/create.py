"""Create until ready, until SSH works, and the host's own work, against a bare QEMU started by a script; all alternate.

    python bench/create.py [RUNS]

The bare side has the same kernel, initramfs, disks, identity and command line (taken from the running VM's /proc/PID/cmdline) and the same
readiness probe: the agent's healthz until every service answers. It has no network namespace, no daemon and no stages; that its disks were
made is not counted. Asking for SSH again and again costs the guest time, so creates until ready and until SSH are different ones.
"""

import asyncio
import contextlib
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


OPTIONS = ("--memory", "1G", "--work-size", "2G")


def create_ready(banger, name, *more):
    """One create through the CLI; milliseconds until it returned, and of its stages."""
    began = time.monotonic()
    banger.run("vm", "create", "--name", name, *OPTIONS, *more)
    elapsed_ms = (time.monotonic() - began) * 1000
    created = (op for op in banger.json("op", "list") if op["kind"] == "vm.create")
    operation = next(op for op in created if op["target_name"] == name)
    return elapsed_ms, {stage["name"]: stage["duration_ms"] for stage in operation["stages"]}


def create_ssh(banger, name):
    """Milliseconds from the start of ``vm create`` until a command has run over SSH."""
    began = time.monotonic()
    process = banger.start(
        "vm",
        "create",
        "--name",
        name,
        *OPTIONS,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    port = wait_banner(banger, name, began)
    key, known = banger.state / "ssh" / "id_ed25519", banger.state / "known_hosts"
    options = [f"UserKnownHostsFile={known}", f"HostKeyAlias={banger.vm(name)['id']}.banger"]
    words = ["ssh", "-i", str(key), "-p", str(port), *(f"-o{option}" for option in options)]
    subprocess.run([*words, "root@127.0.0.1", "true"], check=True)
    elapsed_ms = (time.monotonic() - began) * 1000
    assert process.wait() == 0
    return elapsed_ms


def wait_banner(banger, name, began):
    """The forwarded port, once sshd has said through it who it is."""
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
                    return port
        except OSError:
            pass  # not yet
        time.sleep(0.05)


@contextlib.contextmanager
def bare_qemu(argv, paths, disks, tap=None):
    """The same QEMU command line from a script, with fresh disks; where its sockets are, and when it was started.

    Without ``tap``, the descriptor of one, it has QEMU's own user network.
    """
    directory = Path(tempfile.mkdtemp(prefix="bare-"))
    target = VmPaths(directory, directory)
    for name in ("overlay.qcow2", "work.img", "identity.tar"):
        subprocess.run(["cp", "--sparse=always", disks / name, directory / name], check=True)
    shutil.copy(paths.agent_token, target.agent_token)
    words = [
        word.replace(str(paths.state), str(directory)).replace(str(paths.runtime), str(directory))
        for word in argv
    ]
    listeners = []
    for path in (
        target.qmp_socket,
        target.agent_socket,
        target.bulk_socket(0),
        target.bulk_socket(1),
    ):
        listeners.append(listener := socket.socket(socket.AF_UNIX))
        listener.bind(str(path))
        listener.listen(1)
    words = replace_descriptors(words, listeners, tap)
    passed = [*(item.fileno() for item in listeners), *([] if tap is None else [tap])]
    began = time.monotonic()
    process = subprocess.Popen(words, pass_fds=passed, stdin=subprocess.DEVNULL)
    try:
        yield target, began
    finally:
        process.kill()
        process.wait()
        for listener in listeners:
            listener.close()
        shutil.rmtree(directory)


async def bare_ready(target):
    """Wait until the bare guest is ready; its connection."""
    guest = connect_guest(target, "serial")
    await guest.wait_connected(120)
    await guest.wait_services(120)
    return guest


def bare(argv, paths, disks):
    """Milliseconds until a bare QEMU is ready."""

    async def ready():
        await (await bare_ready(target)).close()

    with bare_qemu(argv, paths, disks) as (target, began):
        asyncio.run(ready())
        return (time.monotonic() - began) * 1000


def replace_descriptors(words, sockets, tap):
    """The listening sockets in the order of the command line; the TAP becomes ``tap``, or QEMU's own user network."""
    left = list(sockets)
    out = []
    for word in words:
        if word == "-S":
            continue  # nobody is there to let the guest go
        if word.startswith("socket,") and ",fd=" in word:
            head, _, tail = word.partition(",fd=")
            out.append(f"{head},fd={left.pop(0).fileno()},{tail.partition(',')[2]}")
        elif word.startswith("tap,"):
            out.append("user,id=n0" if tap is None else f"tap,id=n0,fd={tap},vhost=off")
        elif word.startswith("virtio-net-device") and tap is None:
            out.append(word.partition(",host_mtu")[0])
        else:
            out.append(word)
    return out


def bare_disks(banger, paths, disks):
    """Fresh disks and identity for a bare run, made by banger itself."""
    banger.run("vm", "create", "--name", "fresh", "--no-start", *OPTIONS)
    fresh = banger.state / "vms" / banger.vm("fresh")["id"]
    for name in ("overlay.qcow2", "work.img", "identity.tar"):
        subprocess.run(["cp", "--sparse=always", fresh / name, disks / name], check=True)
    shutil.copy(fresh / "agent-token", paths.agent_token)
    banger.run("vm", "delete", "fresh")


def main(runs):
    """Alternate."""
    banger = installation()
    ready, ssh, theirs = [], [], []
    try:
        banger.run("vm", "create", "--name", "model", *OPTIONS)
        record = banger.vm("model")
        paths = VmPaths(banger.state / "vms" / record["id"], banger.runtime / "vms" / record["id"])
        argv = Path(f"/proc/{record['status']['pid']}/cmdline").read_text().split("\0")[:-1]
        banger.run("vm", "stop", "model")
        with tempfile.TemporaryDirectory(prefix="bare-disks-") as disks:
            for _ in range(runs):
                bare_disks(banger, paths, Path(disks))
                theirs.append(bare(argv, paths, Path(disks)))
                for times, measure in ((ready, create_ready), (ssh, create_ssh)):
                    times.append(measure(banger, "timed"))
                    banger.run("vm", "delete", "timed")
    finally:
        left = banger.close()
        shutil.rmtree(banger.directory, ignore_errors=True)
    walls = [wall for wall, _ in ready]
    stages = [stages for _, stages in ready]
    report(
        "create",
        {
            "ready_ms": summary(walls),
            "bare_ready_ms": summary(theirs),
            "ratio": round(summary(walls)["median"] / summary(theirs)["median"], 3),
            "ssh_ms": summary(ssh),
            "host_work_ms": summary([sum(run[name] for name in HOST_STAGES) for run in stages]),
            "stages_ms": {
                name: summary([run[name] for run in stages])["median"] for name in stages[0]
            },
            "left": left,
        },
    )


if __name__ == "__main__":
    os.environ.setdefault(
        "BANGER_TEST_CACHE", str(Path(__file__).parents[1] / "build" / "test-state")
    )
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
