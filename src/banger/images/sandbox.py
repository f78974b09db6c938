"""Where the tools of an image build run: as root of namespaces of their own, which end with the daemon.

An ordinary user's build needs files of any owner, so it gets a user namespace with all the caller's subordinate ids (the caller is root
in it). Root needs none. Both get a mount and a PID namespace: when the daemon ends, however it ends, the kernel kills what is inside,
and every mount is gone with it.
"""

from __future__ import annotations

import asyncio
import os
import pwd
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from banger.host import fs
from banger.host.exec import find_program, run
from banger.host.threads import in_thread
from banger.model.clock import Deadline
from banger.model.errors import BangerError, CommandFailedError, HostLacksError

SUBORDINATE_IDS = 65536
GUARD_MEMORY_BYTES = 4 << 30
GUARD_CPU_S = 600
_UTIL_LINUX = "util-linux"
_TRY_S = 30.0
_REMOVE_S = 300.0
_SETTLE_S = 10.0
_LOCKS = (
    ("kernel/apparmor_restrict_unprivileged_userns", "1", "0"),
    ("kernel/unprivileged_userns_clone", "0", "1"),
    ("user/max_user_namespaces", "0", "15000"),
)


def sandboxed(argv: Sequence[str]) -> list[str]:
    """The command line that runs ``argv`` as root of namespaces of its own; it dies with the thread that starts it."""
    maps = [] if os.geteuid() == 0 else ["--user", "--map-root-user", "--map-auto"]
    return [
        *(find_program("setpriv", package=_UTIL_LINUX), "--pdeathsig", "KILL"),
        *(find_program("unshare", package=_UTIL_LINUX), *maps),
        *("--mount", "--ipc", "--uts", "--pid", "--fork", "--kill-child=KILL", "--", *argv),
    ]


def guarded(argv: Sequence[str], *, file_bytes: int) -> list[str]:
    """As `sandboxed`, for a tool that reads what a guest wrote: it has no network and no capability and can get none, and the kernel ends it
    beyond `GUARD_MEMORY_BYTES` of memory, `GUARD_CPU_S` of computing or a file larger than ``file_bytes``.
    """
    bounds = [f"--as={GUARD_MEMORY_BYTES}", f"--cpu={GUARD_CPU_S}", f"--fsize={file_bytes}"]
    strip = ["--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"]
    inside = [
        *(find_program("unshare", package=_UTIL_LINUX), "--net", "--"),
        *(find_program("prlimit", package=_UTIL_LINUX), *bounds, "--core=0", "--"),
        *(find_program("setpriv", package=_UTIL_LINUX), *strip, "--", *argv),
    ]
    return sandboxed(inside)


async def check_sandbox() -> None:
    """HostLacksError with the command that mends it if this user cannot build: subordinate ids, newuidmap, namespaces."""
    if os.geteuid() != 0:
        find_program("newuidmap", package="uidmap")
        user = pwd.getpwuid(os.geteuid())
        for path in (Path("/etc/subuid"), Path("/etc/subgid")):
            check_subordinate_ids(path, user.pw_name, user.pw_uid)
    try:
        await run(sandboxed(["true"]), timeout_s=_TRY_S)
    except CommandFailedError as error:
        raise HostLacksError(
            "an image is built in namespaces, which this host does not allow",
            detail=error.detail or error.what,
            hint=_hint(),
        ) from error


def check_subordinate_ids(path: Path, user: str, uid: int) -> None:
    """HostLacksError unless ``path`` (as /etc/subuid) gives ``user`` enough ids."""
    try:
        rows = [line.strip().split(":") for line in path.read_text().splitlines()]
    except OSError:
        rows = []
    counts = [row[2] for row in rows if len(row) == 3 and row[0] in {user, str(uid)}]
    if not any(count.isdigit() and int(count) >= SUBORDINATE_IDS for count in counts):
        raise HostLacksError(
            f"user {user} has no subordinate ids in {path}",
            detail=f"an image is built in a user namespace that needs {SUBORDINATE_IDS} of them",
            hint=f"sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}",
        )


def _hint() -> str:
    for name, closed, opened in _LOCKS:
        try:
            value = (Path("/proc/sys") / name).read_text().strip()
        except OSError:
            continue
        if value == closed:
            return f"sudo sysctl {name.replace('/', '.')}={opened}"
    return "banger doctor"


async def remove_mapped(path: Path) -> None:
    """Remove a tree that may hold files of subordinate ids; idempotent. Only such files need a namespace.

    Somebody who was killed a moment ago may still write into it, so it is tried again for some seconds.
    """
    deadline = Deadline.after(_SETTLE_S)
    with suppress(OSError):
        await in_thread(fs.remove_tree, path)
    while _there(path):
        try:
            argv = [find_program("rm"), "-rf", "--one-file-system", "--", str(path)]
            await run(sandboxed(argv), timeout_s=_REMOVE_S)
        except BangerError:
            if deadline.passed:
                raise
            await asyncio.sleep(0.1)


def _there(path: Path) -> bool:
    return path.exists() or path.is_symlink()
