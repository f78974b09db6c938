"""The init and the Python that a root without either gets, run for real in namespaces of this host: no kernel is booted for it."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
from pathlib import Path

import msgspec
import pytest

from banger.host import probe
from banger.host.exec import find_program
from banger.images.foreign import Base, ForeignRoot
from banger.images.guest_python import COMMAND
from banger.model.manifest import ImageManifest
from tests.framework import toy_container as toy
from tests.framework.installation import wait_until
from tests.host.test_image_build import place  # noqa: F401  fixture

# The guest's /dev is a file system of its own: nothing of the host's devices is there to be changed.
BOOT = """
mount -t tmpfs dev "$1/dev" && mknod -m 666 "$1/dev/null" c 1 3 && : > "$1/dev/console" && mount -t proc proc "$1/proc" &&
mkdir "$1/dev/pts" "$1/dev/shm" && echo guest > "$1/etc/hostname" && exec chroot "$1" /sbin/init
"""


def children(pid):
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def commands(pid):
    """The command lines of all below ``pid``."""
    found = {}
    for child in children(pid):
        with contextlib.suppress(OSError):
            found[child] = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            found |= commands(child)
    return found


def zombies(pid):
    """Below ``pid``; programs that are started again and again come and go meanwhile."""
    found = []
    for child in commands(pid):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                found.append(child)
    return found


@pytest.fixture
async def tree(place, test_image):  # noqa: F811
    """A root of one static busybox, made a guest's and mounted."""
    answer = probe.loop()
    if not answer:
        pytest.skip(answer.why)
    busybox = Path(find_program("busybox", package="busybox-static")).read_bytes()
    layer = place / "tiny.tar"
    layer.write_bytes(toy.tar([toy.member("bin/busybox", busybox, mode=0o755), toy.symlink("bin/sh", "busybox")]))  # fmt: skip
    work, scratch, mount = place / "work", place / "scratch", place / "mount"
    for directory in (work, scratch, mount):
        directory.mkdir()
    manifest = msgspec.json.decode((test_image / "manifest.json").read_bytes(), type=ImageManifest)
    root = ForeignRoot(layer, work, scratch, Base(manifest, test_image), lambda *words: None)
    await root.open()
    await root.make(seed=False)
    subprocess.run(["mount", "-o", "loop", work / "rootfs.img", mount], check=True)
    yield mount
    subprocess.run(["umount", mount], check=True)


@pytest.fixture
def init(tree):
    """The pid of its init, and the process that waits for it."""
    argv = ["unshare", "--mount", "--pid", "--fork", "--kill-child=KILL", "--uts", "--ipc", "--net", "sh", "-c", BOOT, "sh", tree]  # fmt: skip
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
    wait_until(lambda: children(process.pid), 60)
    (pid,) = children(process.pid)
    wait_until(lambda: any("agent.pyz" in text for text in commands(pid).values()), 60)
    yield pid, process
    process.kill()
    process.wait()


@pytest.mark.timeout(180)
def test_a_root_of_one_busybox_runs_the_agent_and_its_init_reaps_restarts_and_ends(tree, init):
    pid, process = init
    assert Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"/usr/lib/banger/busybox\0sh\0/sbin/init")  # fmt: skip

    agent = next(child for child, text in commands(pid).items() if "agent.pyz" in text)
    os.kill(agent, signal.SIGKILL)
    wait_until(lambda: any("agent.pyz" in text and child != agent for child, text in commands(pid).items()), 60)  # fmt: skip

    argv = ["nsenter", "-t", str(pid), "--mount", "--pid", "--net", "chroot", str(tree)]
    orphan = "( /bin/busybox sleep 0.3 & ) ; /bin/busybox true"
    subprocess.run([*argv, "/bin/sh", "-c", orphan], check=True)
    wait_until(
        lambda: (
            not any("sleep 0.3" in text for text in commands(pid).values()) and not zombies(pid)
        ),
        30,
        "the orphan was not reaped",
    )

    options = [
        "-I",
        "-S",
        "/usr/lib/banger/agent.pyz",
        "--http-unix",
        "/a.sock",
        "--token",
        "/none",
    ]
    second = subprocess.Popen([*argv, *COMMAND, *options, "--listen-unix", "/b.sock"])
    try:
        wait_until((tree / "a.sock").exists, 60)
        connection = http.client.HTTPConnection("guest")
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(str(tree / "a.sock"))
        connection.request("GET", "/healthz")
        assert json.load(connection.getresponse())["status"] == "ok"
        connection.close()
    finally:
        second.kill()
        second.wait()

    os.kill(pid, signal.SIGUSR2)
    process.wait(timeout=60)
    assert not Path(f"/proc/{pid}").exists()
