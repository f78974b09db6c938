"""What an intruder in Firecracker's place meets in its jail, played and real; what is left when it ends.

Firecracker's own filters of system calls, which are on in a jail, are not in the intruder's way here: these are the jail's walls alone.
"""

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from banger.host import elf, jail, probe, proc
from banger.host.confine_plan import Confinement, Limits
from banger.host.jail_plan import Jail
from banger.model.errors import HostLacksError
from tests.framework import hostile, jailers
from tests.framework.waiting_taps import network_with

MIB = 1 << 20
LIMITS = Limits(file_bytes=64 * MIB, data_bytes=512 * MIB, processes=32)
INTRUDER = """#!{python} -IS
import sys
sys.argv = ["firecracker", *sys.argv[-2:]]
exec(compile(open({hostile!r}).read(), "hostile.py", "exec"))
"""


@pytest.fixture(params=["played", "real"])
def jailer(request, tmp_path):
    if not (answer := probe.root()):
        pytest.skip(f"a jail needs root: {answer.why}")
    if request.param == "played":
        return jailers.played(tmp_path)
    found = jailers.real()
    if found is None:
        pytest.skip("Firecracker's jailer is not here: put it on PATH, or name it in BANGER_JAILER")
    return found


class World:
    """Two VMs of root's: one is the intruder's."""

    def __init__(self, jailer, root):
        self.root = root
        self.uid = jail.own_ids().of(7)
        self.database, self.key, self.image = (
            self._file(name) for name in ("state/banger.db", "state/id_ed25519", "state/images/rootfs.img")
        )  # fmt: skip
        self.image.chmod(0o444)
        self.disk, self.other_disk = (self._file(f"state/vms/{n}/overlay.img") for n in "ab")
        self.run, self.other_run = root / "run/a", root / "run/b"
        self.log = root / "log"
        base = self.disk.parent / "jail"
        for directory in (self.run, self.other_run, base):
            directory.mkdir(parents=True, mode=0o700)
        self.other_socket = str(self.other_run / "api.sock")
        self.hostile = Path(shutil.copy(hostile.__file__, root / "hostile.py"))
        self.python = os.path.realpath(sys.executable)
        program = root / "firecracker"
        program.write_text(INTRUDER.format(python=self.python, hostile=str(self.hostile)))
        program.chmod(0o755)
        self.network = None
        self.jail = Jail("a" * 12, jailer, program, base, self.uid, self.uid)
        for path in (self.disk, self.run):
            os.chown(path, self.uid, self.uid)

    def _file(self, name):
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"secret".ljust(MIB))
        path.chmod(0o600)
        return path

    def confinement(self):
        out = subprocess.run(
            [self.python, "-IS", "-c", "import os, _ctypes; print(os.path.dirname(os.__file__), _ctypes.__file__)"],
            capture_output=True, text=True, check=True,
        ).stdout.split()  # fmt: skip
        code = [*elf.needed(Path(self.python), Path(out[1])), out[0]]
        return Confinement(
            code=tuple(map(str, code)), limits=LIMITS, readable=(str(self.hostile), str(self.image)),
            writable=(str(self.disk),), socket_dirs=(str(self.run),), devices=("/dev/kvm",),
            namespaces=self.network,
        )  # fmt: skip

    async def start(self, name, /, **arguments):
        words = {k: str(v) if isinstance(v, Path) else v for k, v in arguments.items()}
        self.log.unlink(missing_ok=True)
        return await jail.start(
            self.jail, self.confinement(), [name, json.dumps(words)], log=self.log, cgroup=None
        )

    async def attempt(self, name, /, **arguments):
        confined = await self.start(name, **arguments)
        try:
            async with asyncio.timeout(30):
                status = await proc.wait_gone(confined.identity)
        finally:
            await proc.kill(confined.identity)
        assert status == 0, self.log.read_text()
        return json.loads(self.log.read_text().splitlines()[-1])


@pytest.fixture
def world(jailer):
    root = Path(tempfile.mkdtemp(prefix="bgj-", dir="/tmp"))
    root.chmod(0o711)
    made = World(jailer, root)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(made.other_socket)
        listener.listen()
        yield made
    shutil.rmtree(root)


async def test_it_has_what_is_its_own(world):
    assert (await world.attempt("read_file", path=world.image))["got"].startswith("secret")
    assert (await world.attempt("write_file", path=world.disk))["got"] == "written"
    assert (await world.attempt("make_socket", directory=world.run))["got"] == "bound"
    assert (await world.attempt("see_links"))["got"] == ["lo"]


async def test_a_tap_waits_for_its_own_vm_alone(world):
    """All of Firecracker's are in the network's namespace: one must not take the TAP of another that has just been made."""
    with network_with("tap7", "tap8") as world.network:
        mine = world.jail = replace(world.jail, tap="tap7")
        assert (await world.attempt("open_tap", name="tap7"))["got"] == "tap7"
        world.jail = replace(mine, uid=world.uid + 1, gid=world.uid + 1, tap="tap8")
        for path in (world.disk, world.run):
            os.chown(path, world.uid + 1, world.uid + 1)
        assert (await world.attempt("open_tap", name="tap7"))["denied"] == "EPERM"
        assert (await world.attempt("open_tap", name="tap8"))["got"] == "tap8"


@pytest.mark.parametrize(
    ("attempt", "reasons", "arguments"),
    [
        ("read_file", {"ENOENT"}, {"path": "other_disk"}),
        ("write_file", {"ENOENT"}, {"path": "other_disk"}),
        ("read_file", {"ENOENT"}, {"path": "database"}),
        ("read_file", {"ENOENT"}, {"path": "key"}),
        ("read_file", {"ENOENT"}, {"path": "/etc/passwd"}),
        ("write_file", {"EROFS", "EACCES"}, {"path": "image"}),
        ("make_writable_again", {"EPERM"}, {"path": "image"}),
        ("connect_unix", {"ENOENT"}, {"path": "other_socket"}),
        ("grow_file", {"EFBIG"}, {"path": "disk", "size_bytes": 65 * MIB}),
        ("raise_limit", {"EPERM"}, {}),
        ("climb_out", {"ENOENT"}, {}),
        ("change_root", {"EPERM"}, {"directory": "/"}),
        ("make_raw_socket", {"EPERM"}, {}),
        ("change_link", {"EPERM"}, {}),
        ("signal_process", {"ESRCH"}, {"pid": os.getpid()}),
        ("signal_all", {"ESRCH"}, {}),
        ("attach", {"ESRCH", "EPERM"}, {"pid": os.getpid()}),
        ("read_memory", {"ESRCH", "EPERM"}, {"pid": os.getpid(), "address": 4096}),
        ("open_pidfd", {"ESRCH"}, {"pid": os.getpid()}),
        ("read_proc", {"ENOENT"}, {"pid": os.getpid()}),
        ("mount_proc", {"EPERM"}, {"directory": "/run"}),
        ("mount_tmpfs", {"EPERM"}, {"directory": "/run"}),
        ("unmount", {"EPERM", "EINVAL"}, {"path": "disk"}),
        ("make_device", {"EPERM"}, {"directory": "/run"}),
        ("open_device", {"ENOENT"}, {"path": "/dev/mem"}),
        ("open_device", {"ENOENT"}, {"path": "/dev/loop-control"}),
        ("have_capabilities", {"EPERM"}, {}),
        ("regain_capabilities", {"EPERM"}, {}),
        ("become_root", {"EPERM"}, {}),
        ("drop_groups", {"EPERM"}, {}),
        ("set_clock", {"EPERM"}, {}),
        ("fork_bomb", {"EAGAIN"}, {"limit": 64}),
        ("take_memory", {"ENOMEM"}, {"size_bytes": 1 << 30}),
        ("open_descriptors", {"EBADF"}, {"expected": [0, 1, 2]}),
    ],
)
async def test_an_attempt_to_get_out_leads_nowhere(world, attempt, reasons, arguments):
    said = {k: getattr(world, v, v) if isinstance(v, str) else v for k, v in arguments.items()}
    answer = await world.attempt(attempt, **said)
    assert answer.get("denied") in reasons, answer


async def test_nothing_is_left_when_it_ends(world):
    confined = await world.start("host_name")
    async with asyncio.timeout(30):
        await proc.wait_gone(confined.identity)
    assert confined.how.startswith(f"jailed as uid {world.uid}")
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()  # others mount things here too
    assert [line for line in mounts if str(world.root) in line] == []
    assert list(world.jail.base.iterdir()) == []


async def test_it_is_our_child_under_its_own_user_and_alone_in_its_process_namespace(world):
    confined = await world.start("fork_bomb", limit=1 << 20)  # ends when it meets its limit
    status = Path(f"/proc/{confined.identity.pid}/status").read_text()
    async with asyncio.timeout(30):
        assert await proc.wait_gone(confined.identity) == 0
    assert f"PPid:\t{os.getpid()}" in status


async def test_a_jailer_that_fails_is_told_in_its_own_words(world):
    broken = world.root / "broken"
    broken.write_text("#!/bin/sh\necho no jail today >&2\nexit 3\n")
    broken.chmod(0o755)
    made = Jail("a" * 12, broken, world.jail.program, world.jail.base, world.uid, world.uid)
    confined = await jail.start(made, world.confinement(), ["x", "{}"], log=world.log, cgroup=None)
    assert await proc.wait_gone(confined.identity) == 3
    assert "no jail today" in world.log.read_text()


async def test_a_jail_that_cannot_be_made_says_which_step_failed(world):
    made = Jail("a" * 12, world.jail.jailer, world.jail.program, world.root / "none", 1, 1)
    with pytest.raises(HostLacksError, match="jail") as raised:
        await jail.start(made, world.confinement(), ["x", "{}"], log=world.log, cgroup=None)
    assert "new jail" in raised.value.detail
