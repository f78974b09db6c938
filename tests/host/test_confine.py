"""The launcher: what it starts is our child and nothing else is left, whatever goes wrong. Escapes are in test_confine_escape."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from banger.host import confine, elf, landlock, proc
from banger.host.confine_launch import Launch, StepFailedError
from banger.host.confine_plan import Confinement, Limits, Step, in_namespaces
from banger.model.errors import HostLacksError
from tests.framework import hostile, jail
from tests.framework.waiting_taps import network_with

LIMITS = Limits(file_bytes=1 << 30, data_bytes=1 << 30, processes=64)
BUSYBOX = shutil.which("busybox")


def children():
    """Pids of this process's children, zombies too."""
    found = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return {int(pid) for pid in found}


@pytest.fixture(autouse=True)
def no_child_is_left():
    before = children()
    yield
    left = children() - before
    for pid in left:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert not left


@pytest.fixture
async def namespaces_confine():
    if BUSYBOX is None:
        pytest.skip("no busybox")
    answer = await confine.probe_confinement()
    if not answer:
        pytest.skip(f"{answer.why}; {answer.hint}")


@pytest.fixture
def start(namespaces_confine, tmp_path):
    """Start a shell command confined; its log is ``tmp_path/log``."""

    async def begin(command, **more):
        what = Confinement(code=(BUSYBOX,), limits=LIMITS, devices=("/dev/null",))
        argv = [BUSYBOX, "sh", "-c", command]
        return await confine.start(argv, what, log=tmp_path / "log", **more)

    return begin


async def ended(confined):
    async with asyncio.timeout(60):
        return await proc.wait_gone(confined.identity)


async def test_the_exit_status_of_the_program_is_ours_to_collect(start, tmp_path):
    assert await ended(await start("echo hello; exit 7")) == 7
    assert (tmp_path / "log").read_text() == "hello\n"


async def test_a_program_that_is_killed_is_seen_to_be(start):
    confined = await start("busybox sleep 1000")
    os.kill(confined.identity.pid, signal.SIGKILL)
    assert await ended(confined) == -signal.SIGKILL


async def test_the_program_alone_is_our_child_by_its_own_argv(start):
    read_end, write_end = os.pipe()
    command = f"read x <&{read_end}"
    before = children()
    confined = await start(command, keep=[read_end])
    assert children() - before == {confined.identity.pid}
    async with asyncio.timeout(
        30
    ):  # the channel closes a moment before the kernel shows the new argv
        while not (found := proc.find_by_argument(command)):
            await asyncio.sleep(0.01)
    assert [identity.pid for identity in found] == [confined.identity.pid]
    assert os.getsid(confined.identity.pid) == confined.identity.pid
    for descriptor in (read_end, write_end):
        os.close(descriptor)
    await proc.kill(confined.identity)


async def test_it_is_process_1_of_namespaces_of_its_own_without_any_privilege(start):
    confined = await start("busybox sleep 1000")
    pid = confined.identity.pid
    status = dict(
        line.split(":\t")
        for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        if ":\t" in line
    )
    assert status["NSpid"].split() == [str(pid), "1"]
    assert {int(status[f"Cap{kind}"], 16) for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {0}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    for kind in ("mnt", "pid", "ipc", "uts", "net", "user", "cgroup"):
        assert os.readlink(f"/proc/{pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}")
    await proc.kill(confined.identity)


async def test_when_it_ends_its_children_end(start):
    confined = await start("busybox sleep 86397 & wait")
    async with asyncio.timeout(30):
        while not proc.find_by_argument("86397"):
            await asyncio.sleep(0.01)
    await proc.kill(confined.identity)
    assert proc.find_by_argument("86397") == []


async def test_it_inherits_the_named_descriptors_under_their_numbers(start):
    read_end, write_end = os.pipe()
    confined = await start(f"echo through >&{write_end}", keep=[write_end])
    os.close(write_end)
    assert await ended(confined) == 0
    with os.fdopen(read_end, "rb") as reader:
        assert reader.read() == b"through\n"


async def test_a_file_that_is_not_there_is_named(namespaces_confine, tmp_path):
    what = Confinement(code=(BUSYBOX,), limits=LIMITS, readable=("/nonexistent/disk",))
    with pytest.raises(HostLacksError, match="busybox cannot be confined") as raised:
        await confine.start([BUSYBOX, "true"], what, log=tmp_path / "log")
    assert "bind: No such file or directory: /proc/nonexistent/disk" in raised.value.detail


async def test_a_program_that_the_kernel_does_not_execute_is_an_error(namespaces_confine, tmp_path):
    script = tmp_path / "script"
    script.write_text("no program")
    script.chmod(0o755)
    what = Confinement(code=(str(script),), limits=LIMITS)
    with pytest.raises(HostLacksError) as raised:
        await confine.start([str(script)], what, log=tmp_path / "log")
    assert "execute: Exec format error" in raised.value.detail


async def test_a_launcher_that_breaks_is_quoted(tmp_path):
    async with Launch(tmp_path / "log") as launch:
        with pytest.raises(StepFailedError, match=r"AttributeError: .*step_fly"):
            await launch.until_ready([Step("fly")], [])


@pytest.mark.parametrize("after_s", [0.0, 0.005, 0.015, 0.02, 0.025, 0.03, 0.04])
async def test_a_start_that_is_cancelled_leaves_nothing(start, after_s):
    task = asyncio.create_task(start("busybox sleep 86396"))
    await asyncio.wait({task}, timeout=after_s)
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        await proc.kill(task.result().identity)
    assert proc.find_by_argument("busybox sleep 86396") == []


_DAEMON = """
import asyncio, os, sys
from pathlib import Path
from banger.host.confine_launch import Launch
from banger.host.confine_plan import Confinement, Limits, in_namespaces
async def main():
    what = Confinement(code=(), limits=Limits(1 << 30, 1 << 30, 64))
    async with Launch(Path(os.devnull)) as launch:
        await launch.until_ready(in_namespaces(what, root=os.geteuid() == 0), ["/bin/true"])
        print(*launch._pids, flush=True)
        os.kill(os.getpid(), 9)
asyncio.run(main())
"""


async def test_when_the_daemon_dies_before_the_program_begins_it_never_does(namespaces_confine):
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {str(jail.ROOT / 'src')!r})\n{_DAEMON}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    pids = [int(word) for word in done.stdout.split()]
    assert len(pids) == 2
    async with asyncio.timeout(30):
        while any(proc.identify(pid) for pid in pids):
            await asyncio.sleep(0.01)


@pytest.fixture
async def network(namespaces_confine):
    """A network's namespaces with a TAP called tap7 in them, as a holder keeps them."""
    with network_with("tap7") as pair:
        yield pair


@pytest.mark.parametrize(
    ("attempt", "arguments", "wanted"),
    [
        ("open_tap", {"name": "tap7"}, {"got": "tap7"}),
        ("see_links", {}, {"got": ["lo", "tap7"]}),
        ("change_link", {}, {"denied": "EPERM"}),
        ("open_tap", {"name": "tap8"}, {"denied": "EPERM"}),
        ("make_raw_socket", {}, {"denied": "EPERM"}),
    ],
    ids=[
        "opens its TAP",
        "sees the network",
        "changes no link",
        "makes no TAP",
        "forges no packet",
    ],
)
async def test_in_a_networks_namespaces_a_program(network, tmp_path, attempt, arguments, wanted):
    python = Path(sys.executable).resolve()
    import _ctypes

    what = Confinement(
        code=(*elf.needed(python, Path(_ctypes.__file__)), str(Path(os.__file__).parent)), limits=LIMITS,
        readable=(hostile.__file__,), devices=("/dev/null", "/dev/net/tun"), namespaces=network,
    )  # fmt: skip
    argv = [str(python), "-I", "-S", hostile.__file__, attempt, json.dumps(arguments)]
    confined = await confine.start(argv, what, log=tmp_path / "log")
    assert confined.how == "confined"
    await ended(confined)
    answer = json.loads((tmp_path / "log").read_text())
    assert answer.items() >= wanted.items()


# Hosts that refuse


@pytest.fixture
def on_a_host_without(tmp_path):
    """What starting a program leads to on a host that lacks things."""
    if BUSYBOX is None:
        pytest.skip("no busybox")

    def run(*refuse, policy="auto"):
        job = {
            "argv": [BUSYBOX, "sh", "-c", "echo began; busybox sleep 0.1"], "policies": [policy], "refuse": refuse, "log": str(tmp_path / "log"),
            "confinement": {"code": [BUSYBOX]}, "limits": {"file_bytes": 1 << 30, "data_bytes": 1 << 30, "processes": 64},
        }  # fmt: skip
        (result,) = jail.run(job, os.geteuid(), os.path.realpath(sys.executable))
        return result

    return run


def needs_landlock():
    if not confine.probe_landlock():
        pytest.skip(confine.probe_landlock().why)


@pytest.mark.parametrize("lack", ["namespaces", "mount"])
def test_without_namespaces_landlock_does_it_and_the_user_is_told(on_a_host_without, lack):
    needs_landlock()
    result = on_a_host_without(lack)
    assert (result["how"], result["output"]) == ("Landlock only", "began\n")
    assert "this host refuses namespaces" in result["warning"]


def test_without_landlock_namespaces_do_it_and_it_is_noted(on_a_host_without, namespaces_confine):
    result = on_a_host_without("landlock")
    assert (result["how"], result["output"]) == ("confined, this kernel has no Landlock", "began\n")
    assert result["warning"] == ""


def test_without_both_nothing_is_started(on_a_host_without, tmp_path):
    result = on_a_host_without("namespaces", "landlock")
    assert result["error"] == "HostLacksError"
    assert "cannot be confined" in result["what"]
    assert 'confine = "off"' in result["detail"]
    assert result["hint"]
    assert "began" not in (tmp_path / "log").read_text()


def test_a_user_who_accepts_it_gets_an_unconfined_vmm_and_a_warning(on_a_host_without):
    result = on_a_host_without("namespaces", "landlock", policy="off")
    assert (result["how"], result["output"]) == ("not confined", "began\n")
    assert "unconfined" in result["warning"]


async def test_the_probe_answers_what_this_host_can(namespaces_confine):
    answer = await confine.probe_confinement()
    assert answer.ok
    assert ("no Landlock" in answer.found) == (landlock.abi() == 0)
    assert in_namespaces(Confinement((), LIMITS), root=False)
