"""Firecracker's jailer as banger calls it, as values: what stands in the jail, whose it is, the command line. Pure.

The jail is a file system in memory that only the VMM's mount namespace has, so that nothing of it is left when the VMM ends. What the VMM
may have is bound into it at the path that it has outside: the API's paths need no translation. The jailer then copies Firecracker into it,
makes the device nodes, changes root, drops to the VM's own user and executes Firecracker (docs/jailer.md of Firecracker).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from banger.host.confine_plan import HOST_NAME, NAMESPACES, Confinement, Step

FIRST_ID: Final = 1_879_048_192
"""The first id of the jails where root has no subordinate ids: of the range that systemd's UIDS-GIDS.md lists as unused."""

COUNT: Final = 1024  # as many as a bridge has ports, and more than there are leases


@dataclass(frozen=True, slots=True)
class Jail:
    """One VM's jail. ``base`` is an empty directory of the VM's, ``uid`` and ``gid`` are of nobody else; ``tap`` is the VM's TAP, if it has one."""

    vm_id: str
    jailer: Path
    program: Path
    base: Path
    uid: int
    gid: int
    tap: str = ""

    @property
    def root(self) -> Path:
        """The VMM's root directory, as the jailer names it."""
        return self.base / self.program.name / self.vm_id / "root"


@dataclass(frozen=True, slots=True)
class Ids:
    """The ids of the jails of one daemon: each is a user and a group that is nobody else's."""

    first: int
    count: int

    def of(self, index: int) -> int:
        """That of the VM with lease number ``index``, which is below ``count``."""
        return self.first + index

    def __contains__(self, number: int) -> bool:
        return self.first <= number < self.first + self.count


def own_ids(subuid: str, subgid: str, owner: str = "root") -> Ids:
    """Of the range that both texts (subuid(5)) give ``owner`` if it is large enough, else of one that nobody uses."""
    ranges = [_range(text, owner) for text in (subuid, subgid)]
    if ranges[0] is not None and ranges[0] == ranges[1] and ranges[0][1] >= COUNT:
        return Ids(ranges[0][0], COUNT)
    return Ids(FIRST_ID, COUNT)


def _range(text: str, owner: str) -> tuple[int, int] | None:
    """First id and count of the first range of ``owner``."""
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        first, _, count = rest.partition(":")
        if name == owner and first.isdigit() and count.isdigit():
            return int(first), int(count)
    return None


def steps(jail: Jail, confinement: Confinement, cgroup: Path | None) -> list[Step]:
    """What `banger.host.confine_child` does before it becomes the jailer. ``cgroup``: one to join, if there is any."""
    inside = confinement.namespaces
    own_network = inside is None and not confinement.host_network
    limits = confinement.limits
    return [
        Step("new_keyring"),
        Step("drop_groups"),
        *([] if cgroup is None else [Step("join_cgroup", (str(cgroup),))]),
        *([] if inside is None else [Step("enter_network", (str(inside.network),))]),
        *([Step("own_tap", (jail.tap, str(jail.uid)))] if jail.tap else []),
        Step("new_namespaces", (*NAMESPACES, *(["network"] if own_network else []))),
        Step("become_init"),
        Step("own_session"),
        Step("host_name", (HOST_NAME,)),
        Step("limit_pids"),
        Step("new_jail", (str(jail.base),)),
        *(
            Step("bind", (path, kind, str(jail.root)))
            for path, kind in confinement.paths()
            if kind != "device"  # the jailer makes its own
        ),
        Step("limit", ("DATA", str(limits.data_bytes))),
        Step("limit", ("CORE", "1")),
        Step("limit", ("NPROC", str(limits.processes))),
    ]


def argv(jail: Jail, confinement: Confinement, arguments: Iterable[str]) -> list[str]:
    """The jailer's command line; ``arguments`` are Firecracker's. Its seccomp filters are on by default, and stay so."""
    limits = confinement.limits
    return [
        str(jail.jailer), "--id", jail.vm_id, "--exec-file", str(jail.program), "--uid", str(jail.uid), "--gid", str(jail.gid),
        "--chroot-base-dir", str(jail.base), "--resource-limit", f"fsize={limits.file_bytes}",
        "--resource-limit", f"no-file={limits.descriptors}", "--", *arguments,
    ]  # fmt: skip
