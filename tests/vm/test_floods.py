"""A guest that floods what it has of the host: its console, the channel to its agent, names, its disk. One VM for all of them.

While it does, the daemon stays as large as it was and answers others in time; afterwards the VM's user is told, and the guest works.
"""

import contextlib
import os
import re
import threading
import time
from pathlib import Path

import pytest

from banger.client.sdk import Client
from tests.framework.installation import Installation, wait_until

pytestmark = pytest.mark.timeout(400)
CONSOLE_BYTES = 64 << 10
WORK_BYTES = 1 << 30
FLOOD_S = 15
MOST_MIB = 32
MOST_DESCRIPTORS = 16
MOST_LOG_BYTES = 64 << 10
IN_TIME_S = 5.0
"""Of a list, on a machine whose processors the emulated guest takes too; alone it has 4 ms."""


@pytest.fixture(scope="module")
def flooding(tmp_path_factory, image):
    installation = Installation(
        tmp_path_factory.mktemp("floods"), console_log_max_bytes=f"{CONSOLE_BYTES >> 10}K"
    )
    try:
        installation.create("box", "--group", "flood")
        yield installation
    finally:
        left = installation.close()
    assert not left, f"left behind: {left}"


class Daemon:
    """How large it is, and how long others wait for it; asked all the time while a block runs."""

    def __init__(self, banger):
        self._banger, self._pid = banger, banger.daemon_pid()
        self.slowest_s, self.count = 0.0, 0

    def size(self):
        """Resident MiB, descriptors, bytes of its log."""
        status = Path(f"/proc/{self._pid}/status").read_text()
        resident = int(status.partition("VmRSS:")[2].split()[0]) / 1024
        descriptors = len(os.listdir(f"/proc/{self._pid}/fd"))
        return resident, descriptors, (self._banger.state / "bangerd.log").stat().st_size

    @contextlib.contextmanager
    def stays_small_and_answers(self):
        before, ended = self.size(), threading.Event()
        asker = threading.Thread(target=self._ask, args=(ended,))
        asker.start()
        try:
            yield
        finally:
            ended.set()
            asker.join(60)
        grown = [now - then for now, then in zip(self.size(), before, strict=True)]
        print(f"grown by {grown} (MiB, descriptors, log), {self.count} lists, slowest {self.slowest_s:.3f} s")  # fmt: skip
        assert grown[0] <= MOST_MIB
        assert grown[1] <= MOST_DESCRIPTORS
        assert grown[2] <= MOST_LOG_BYTES
        assert self.count > 5
        assert self.slowest_s <= IN_TIME_S

    def _ask(self, ended):
        with Client(self._banger.runtime / "bangerd.sock") as client:
            while not ended.wait(0.1):
                began = time.monotonic()
                assert [vm.name for vm in client.vms()] == ["box"]
                self.slowest_s = max(self.slowest_s, time.monotonic() - began)
                self.count += 1


def inside(banger, script, **options):
    """Run a shell script in the guest."""
    return banger.run("vm", "exec", "box", "--", "sh", "-c", script, timeout=200, **options)


def works(banger):
    assert inside(banger, "echo still here").stdout == "still here\n"
    assert banger.vm("box")["ready"]


def warned(banger, words):
    """The VM's warning says so, and the daemon's log has it once."""
    wait_until(lambda: words in banger.vm("box")["status"]["warning"], 30)
    assert (banger.state / "bangerd.log").read_text().count(words) == 1


def test_a_flood_of_its_console(flooding):
    [log] = flooding.state.glob("vms/*/console.log")
    largest = 0
    with Daemon(flooding).stays_small_and_answers():
        # By its own name, as who opens /dev/console does not wait when it is full, and again, as the getty hangs up when it begins.
        again = "while :; do yes flood > /dev/ttyS0; done 2> /dev/null"
        flood = flooding.start("vm", "exec", "box", "--", "timeout", str(2 * FLOOD_S), "sh", "-c", again)  # fmt: skip
        while flood.poll() is None:
            largest = max(largest, log.stat().st_size)
            time.sleep(0.1)
    print(f"the console had {largest} bytes at most")
    assert flood.returncode == 124, "it did not last"
    assert largest > CONSOLE_BYTES / 2
    warned(flooding, "flooded its console")
    wait_until(lambda: log.stat().st_size <= CONSOLE_BYTES, 20)
    works(flooding)


ASK = """
import socket, struct, sys, time
server = sys.argv[1]
query = struct.pack(">6H", 7, 256, 1, 0, 0, 0) + b"\\3box\\6banger\\0" + struct.pack(">2H", 1, 1)
asker = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
asker.setblocking(False)
asker.connect((server, 53))
asked = heard = 0
end = time.monotonic() + float(sys.argv[2])
while time.monotonic() < end:
    for _ in range(20):
        try:
            asker.send(query); asked += 1
        except OSError:
            time.sleep(0.001)
    try:
        while asker.recv(512): heard += 1
    except OSError:
        pass
print(asked, heard)
"""


def test_a_flood_of_questions_for_names(flooding):
    server = inside(flooding, "cat /etc/resolv.conf").stdout.split()[1]
    with Daemon(flooding).stays_small_and_answers():
        done = flooding.run("vm", "exec", "box", "--", "python3", "-c", ASK, server, str(FLOOD_S), timeout=200)  # fmt: skip
    asked, heard = map(int, done.stdout.split())
    print(f"{asked} questions, {heard} answers")
    assert asked > 3000
    assert 0 < heard <= 200 + 50 * 3 * FLOOD_S  # its clock may be slower than ours
    warned(flooding, "asked for names")
    works(flooding)


FRAMES = """
import glob, os, struct, subprocess, sys, time
subprocess.run(["systemctl", "stop", "banger-agent"], check=True)
for name in glob.glob("/sys/class/virtio-ports/*/name"):
    if open(name).read().strip() == "banger.agent":
        port = os.open("/dev/" + name.split("/")[-2], os.O_RDWR)
frames = struct.pack(">IBI", 99, 4, 0) * 4000
end, count = time.monotonic() + float(sys.argv[1]), 0
while time.monotonic() < end:
    count += os.write(port, frames)
    open("/root/flooded", "w").write(str(count))
os.close(port)
subprocess.run(["systemctl", "start", "banger-agent"], check=True)
"""


def test_a_flood_of_frames_in_the_place_of_its_agent(flooding):
    """Whatever holds the port may write what it likes to the daemon."""
    flooding.run("vm", "exec", "box", "--", "sh", "-c", "cat > /root/frames.py", stdin=FRAMES)
    with Daemon(flooding).stays_small_and_answers():
        inside(flooding, f"systemd-run --unit frames python3 /root/frames.py {FLOOD_S}")
        time.sleep(FLOOD_S)
        health = flooding.run("vm", "health", "box", check=False, timeout=60)
        assert health.returncode != 0 or "ok" in health.stdout  # within its deadline, whichever
    wait_until(lambda: "still" in inside(flooding, "echo still here", check=False).stdout, 90)
    sent = int(inside(flooding, "cat /root/flooded").stdout)
    print(f"{sent} bytes of frames")
    assert sent >= 36_000
    works(flooding)


def test_a_disk_that_it_fills(flooding):
    [disk] = flooding.state.glob("vms/*/work.img")
    with Daemon(flooding).stays_small_and_answers():
        done = inside(flooding, "dd if=/dev/zero of=/root/fill bs=1M; sync", check=False)
        assert re.search("No space left", done.stderr)
    assert disk.stat().st_size == WORK_BYTES
    assert disk.stat().st_blocks * 512 <= WORK_BYTES + (1 << 20)
    # Null while the guest is too busy to answer in time.
    used = wait_until(lambda: flooding.json("vm", "stats", "box")["guest_work_used_bytes"], 60)
    assert used > WORK_BYTES * 0.8  # it is seen there
    inside(flooding, "rm /root/fill")
    works(flooding)
