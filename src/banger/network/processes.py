"""The two processes of a network that outlive the daemon, holder and uplink: starting them, ending them."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Container, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from banger.host import fs, proc
from banger.host.exec import find_program, spawn
from banger.host.namespaces import make, small_python
from banger.host.netlink import Route
from banger.host.paths import check_socket_path
from banger.model.clock import Deadline
from banger.model.errors import BangerError, HostLacksError
from banger.model.process import ProcessIdentity
from banger.model.residue import Stray
from banger.network.control import ask, ask_one
from banger.network.plan import MTU, UPLINK, NetworkPlan
from banger.network.record import Files

START_S = 15.0
END_S = 5.0
_LOOK_AGAIN_S = 0.01
_LOG_TAIL_BYTES = 2000
_HOLDER = "banger.network.holder"
UPLINKS = {"slirp4netns": "slirp4netns", "pasta": "passt"}
"""Programs that can be the uplink, and the Debian packages that bring them."""


async def start_holder(files: Files) -> ProcessIdentity:
    """Start a holder; it answers on its socket when this returns. On failure nothing is left; HostLacksError has the reason."""
    log_from = fs.length_bytes(files.holder_log)
    files.forget()
    with _listen(files.control) as listener:
        number = listener.fileno()
        argv = small_python(_HOLDER, str(number), str(files.control))
        child = spawn([*make(), *argv], log=files.holder_log, pass_fds=[number], cwd=Path("/"))
    child.returncode = 0  # Popen must not reap it: host.proc does, which waits by pidfd
    try:
        identity = _identify(child.pid)
        await ask(files.control, "hello", timeout_s=START_S)
    except BaseException as error:
        await _end_child(child.pid)
        files.forget()
        if not isinstance(error, BangerError | OSError):
            raise
        raise HostLacksError(
            "the network's namespace could not be made",
            detail=_tail(files.holder_log, log_from) or str(error),
            hint="run the VM without a network: --network none",
        ) from error
    return identity


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    try:
        listener.bind(str(check_socket_path(path)))
        path.chmod(0o600)
        listener.listen(64)
    except BaseException:
        listener.close()
        raise
    return listener


def uplink_argv(
    kind: str, plan: NetworkPlan, holder_pid: int, *, ready_fd: int, exit_fd: int
) -> list[str]:
    """The uplink program's command line. The link ``uplink0`` is there already, with its address: the program may come and go.

    Both are told the holder's pid: slirp4netns 1.2 cannot sandbox itself as an ordinary user when it is given the namespaces' files.
    For root it begins in a mount namespace of its own: slirp4netns makes only ``/`` private before it detaches its old root, so that
    on a host with shared mounts (every one with systemd) it would unmount the host's /sys/fs/cgroup, /dev/pts and their like.
    """
    program = find_program(kind, package=UPLINKS[kind])
    alone = _own_mounts() if os.geteuid() == 0 else []
    if kind == "pasta":
        identity = ["--runas", "0:0"] if os.geteuid() == 0 else []  # nobody may not enter
        return [
            *alone, program, "--foreground", "--quiet", *identity, "--no-netns-quit", "--ns-ifname", UPLINK, "--mtu", str(MTU), "--ipv4-only", "--no-map-gw",
            "--address", plan.uplink_address, "--netmask", str(plan.uplink_prefix_length),
            "--gateway", plan.uplink_gateway, "--dns-forward", plan.uplink_dns,
            "-t", "none", "-u", "none", "-T", "none", "-U", "none", str(holder_pid),
        ]  # fmt: skip
    return [
        *alone, program, "--disable-host-loopback", "--enable-sandbox", "--enable-seccomp", f"--mtu={MTU}", f"--cidr={plan.uplink}",
        f"--ready-fd={ready_fd}", f"--exit-fd={exit_fd}", str(holder_pid), UPLINK,
    ]  # fmt: skip


def _own_mounts() -> list[str]:
    """The words before a command line that is to have mounts that it shares with nobody; the pid stays the same."""
    return [
        find_program("unshare", package="util-linux"),
        "--mount",
        "--propagation",
        "private",
        "--",
    ]


async def start_uplink(
    kind: str, plan: NetworkPlan, holder_pid: int, files: Files, route: Route
) -> ProcessIdentity:
    """Start the uplink's program on the link that is made for it; it carries packets when this returns.

    slirp4netns ends with the holder, by itself. On failure nothing is left.
    """
    log_from = fs.length_bytes(files.uplink_log)
    with _closing() as opened:
        opened.append(exit_fd := await ask_one(files.control, "lifeline"))
        ready, ready_fd = os.pipe()
        opened.extend((ready, ready_fd))
        argv = uplink_argv(kind, plan, holder_pid, ready_fd=ready_fd, exit_fd=exit_fd)
        child = spawn(
            argv,
            log=files.uplink_log,
            pass_fds=[exit_fd, ready_fd],
            env={"BANGER_RUNTIME_DIR": str(files.runtime)},  # says whose it is, in /proc
            cwd=Path("/"),
        )
        child.returncode = 0  # as above
        os.close(opened.pop())
        try:
            identity = _identify(child.pid)
            async with asyncio.timeout(START_S):
                await (_heard(ready) if kind == "slirp4netns" else _carries(route, ready))
        except BaseException as error:
            await _end_child(child.pid)
            if not isinstance(error, OSError):
                raise
            raise HostLacksError(
                f"the network's uplink {kind} does not start",
                detail=_tail(files.uplink_log, log_from) or str(error) or f"no word in {START_S} s",
                hint=f"read {files.uplink_log}",
            ) from error
    return identity


def _identify(pid: int) -> ProcessIdentity:
    identity = proc.identify(pid)
    if identity is None:
        raise ConnectionError("it ended at once")
    return identity


async def _heard(ready: int) -> None:
    """Return when the program says that it is ready; ConnectionError if it closes the pipe instead."""
    loop = asyncio.get_running_loop()
    readable: asyncio.Future[None] = loop.create_future()

    def note() -> None:
        if not readable.done():
            readable.set_result(None)

    loop.add_reader(ready, note)
    try:
        await readable
    finally:
        loop.remove_reader(ready)
    if not os.read(ready, 1):
        raise ConnectionError("it ended at once")


async def _carries(route: Route, ready: int) -> None:
    """Return when the uplink's link has a carrier: pasta tells nobody when it is ready, it only closes the pipe when it ends."""
    deadline = Deadline.after(START_S)
    ended = asyncio.ensure_future(_heard(ready))
    try:
        while not deadline.passed:
            if route.has_carrier(UPLINK):
                return
            if (await asyncio.wait({ended}, timeout=_LOOK_AGAIN_S))[0]:
                ended.result()
    finally:
        ended.cancel()
        await asyncio.wait({ended})
    raise TimeoutError


async def end(identity: ProcessIdentity | None) -> None:
    """End a process of ours: gently, then by force; idempotent."""
    if identity is None:
        return
    proc.send_signal(identity, signal.SIGTERM)
    try:
        async with asyncio.timeout(END_S):
            await proc.wait_gone(identity)
    except TimeoutError:
        await proc.kill(identity)


def find_strays(files: Files, known: Container[ProcessIdentity | None]) -> list[Stray]:
    """Holders and uplinks of this network that are not ``known``, and old enough for that to be no accident.

    An uplink says whose it is in its environment; one in whose environment we may not look is not judged.
    """
    control = b"\0" + os.fsencode(files.control) + b"\0"
    module = _HOLDER.encode()
    holders = proc.find_named(
        lambda line: "the holder" if control in line and module in line else None
    )
    uplinks = proc.find_named(_uplink) if files.name == "net" else []
    found = holders + [
        each
        for each in uplinks
        if proc.has_in_environment(each[1], "BANGER_RUNTIME_DIR", str(files.runtime))
    ]
    return [
        Stray(name, identity)
        for name, identity in found
        if identity not in known and proc.age_s(identity) > START_S + END_S
    ]


def _uplink(line: bytes) -> str | None:
    """Only a program of `UPLINKS` with the name of our link among its words: others use the same programs."""
    words = [os.fsdecode(word) for word in line.split(b"\0")]
    program = Path(words[0]).name.partition(".")[0]  # pasta.avx2
    return "the uplink" if program in UPLINKS and UPLINK in words else None


async def _end_child(pid: int) -> None:
    identity = proc.identify(pid)
    if identity is not None:
        await proc.kill(identity)
    else:
        proc.reap(pid)


def _tail(log: Path, log_from: int) -> str:
    grown = max(0, fs.length_bytes(log) - log_from)
    text = fs.read_tail(log, min(grown, _LOG_TAIL_BYTES)).decode(errors="replace")
    return "".join(c for c in text if c.isprintable() or c == "\n").strip()


@contextmanager
def _closing() -> Iterator[list[int]]:
    """A list of descriptors that are closed at the end."""
    opened: list[int] = []
    try:
        yield opened
    finally:
        for descriptor in opened:
            with suppress(OSError):
                os.close(descriptor)
