"""How a VMM is confined, as values: what it may have, and the steps that take away the rest. Pure; see docs/explanation/confinement.md.

The steps are done one after the other by `banger.host.confine_child`, in which each has its function of the same name.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from banger.host.namespaces import NamespacePair

INSIDE_ID = 1000
"""Its user and group inside: an ordinary user, so that executing the program drops capabilities once more."""
HOST_NAME = "vmm"
NAMESPACES = ("mount", "pid", "ipc", "uts")


@dataclass(frozen=True, slots=True)
class Limits:
    """Resource limits (setrlimit(2)). ``data_bytes``: private memory; ``processes``: threads too, where they are counted a namespace."""

    file_bytes: int
    data_bytes: int
    processes: int
    descriptors: int = 1024


@dataclass(frozen=True, slots=True)
class Confinement:
    """All that a VMM may have of this host. Paths are absolute and the same inside; a directory means everything beneath it.

    ``code``: program, libraries: may be read and executed. ``readable``, ``writable``: files that exist. ``socket_dirs``: directories in
    which it may make sockets. ``devices``: device nodes; ``disks``: those of block devices that are the VM's own. ``namespaces``: of a network to enter, or None for an empty one;
    with ``host_network`` it has the host's. Descriptors that the program inherits are named when it is started.
    """

    code: tuple[str, ...]
    limits: Limits
    readable: tuple[str, ...] = ()
    writable: tuple[str, ...] = ()
    socket_dirs: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    disks: tuple[str, ...] = ()
    namespaces: NamespacePair | None = None
    host_network: bool = False

    def paths(self) -> Iterable[tuple[str, str]]:
        """Every path once with what may be done there: ``code``, ``read``, ``write``, ``socket``, ``device`` or ``disk``; parents come first."""
        found: dict[str, str] = {}
        for kind, paths in (
            ("code", self.code),
            ("read", self.readable),
            ("write", self.writable),
            ("socket", self.socket_dirs),
            ("device", self.devices),
            ("disk", self.disks),
        ):
            for path in paths:
                found.setdefault(path, kind)
        return sorted(found.items())


@dataclass(frozen=True, slots=True)
class Step:
    """One step: the name of a function of `banger.host.confine_child` and its arguments."""

    name: str
    arguments: tuple[str, ...] = field(default=())

    def describe(self) -> str:
        """As a person reads it: ``bind /usr/bin/qemu-system-x86_64 code``."""
        return " ".join([self.name.replace("_", " "), *self.arguments])


def in_namespaces(confinement: Confinement, *, root: bool) -> list[Step]:
    """The steps to everything: namespaces of its own, a root of only what is listed, Landlock on top. ``root``: the caller is."""
    inside = confinement.namespaces
    own_network = inside is None and not confinement.host_network
    return [
        *_ids(root=root),
        *([] if inside is None else [Step("enter", tuple(map(str, inside.descriptors)))]),
        Step("new_user", (str(INSIDE_ID),)),
        Step("new_namespaces", (*NAMESPACES, *(["network"] if own_network else []))),
        Step("forbid_user_namespaces"),
        Step("become_init"),
        Step("own_session"),
        Step("host_name", (HOST_NAME,)),
        Step("limit_pids"),
        Step("new_root"),
        *(Step("bind", words) for words in confinement.paths()),
        Step("close_root"),
        *_limits(confinement.limits, own_count=True),
        *_landlock(confinement),
        *_privileges(confinement),
    ]


def by_landlock_alone(confinement: Confinement, *, root: bool) -> list[Step]:
    """The steps where the host refuses namespaces: no files but the listed ones, no capabilities, limits."""
    return [
        *_ids(root=root),
        *_limits(confinement.limits, own_count=False),
        *_landlock(confinement),
        Step("require_landlock"),
        *_privileges(confinement),
    ]


def message(steps: Iterable[Step]) -> bytes:
    """``steps`` for the child: words that end in NUL; each step is its name, the number of its arguments, the arguments."""
    words = (word for s in steps for word in (s.name, str(len(s.arguments)), *s.arguments))
    return b"".join(word.encode(errors="surrogateescape") + b"\0" for word in words)


def _ids(*, root: bool) -> list[Step]:
    return [Step("new_keyring"), *([Step("drop_groups")] if root else [])]


def _limits(limits: Limits, *, own_count: bool) -> list[Step]:
    """Processes can be limited only where they are counted for this VMM alone: elsewhere all of the user's count."""
    counted = [Step("limit", ("NPROC", str(limits.processes)))] if own_count else []
    return [
        Step("limit", ("FSIZE", str(limits.file_bytes))),
        Step("limit", ("DATA", str(limits.data_bytes))),
        Step("limit", ("NOFILE", str(limits.descriptors))),
        Step("limit", ("CORE", "1")),  # core(5): 1 keeps it from a program that takes cores, too
        *counted,
    ]


def _landlock(confinement: Confinement) -> list[Step]:
    return [
        Step("begin_landlock", ("tcp",) if confinement.host_network else ()),
        *(Step("allow", words) for words in confinement.paths()),
        Step("enforce_landlock"),
    ]


def _privileges(confinement: Confinement) -> list[Step]:
    open_ = ("socket-ioctls",) if confinement.host_network else ()
    return [Step("drop_privileges"), Step("filter_system_calls", open_)]
