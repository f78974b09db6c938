"""What a look at the host found, what was on record at the time, and where the two differ. Values only; `banger.engine.compare` compares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Literal

from banger.model.process import ProcessIdentity
from banger.model.spec import ForwardProtocol
from banger.model.state import VmState

ResidueKind = Literal[
    "vm", "vmm", "device", "directory", "sockets", "attachment", "network", "forward", "host-key",
    "leftover", "temporary", "build", "ledger", "lease", "disk", "image",
]  # fmt: skip
Sense = Literal["unrecorded", "gone"]


class Remedy(StrEnum):
    """What is done about it: ``forget`` undoes all that is there of a VM without record, ``recover`` takes one up again whose record was lost,
    ``mend`` brings a VM to a truthful state, ``delete`` finishes its deletion, ``sweep`` removes what interrupted work left, ``end`` ends a
    process or link of the network, ``close`` a forward; ``none``: only people can say.
    """

    FORGET = "forget"
    RECOVER = "recover"
    MEND = "mend"
    DELETE = "delete"
    SWEEP = "sweep"
    END = "end"
    CLOSE = "close"
    NONE = "none"


class DirectoryIs(StrEnum):
    """What a VM's directory is that has the form of one: ``lost``, with the copy of a record; ``rest``, nothing but what banger writes; ``kept``,
    with a work disk that may still be somebody's; ``mixed``, with things of others.
    """

    LOST = "lost"
    REST = "rest"
    KEPT = "kept"
    MIXED = "mixed"


@dataclass(frozen=True, slots=True)
class Stray:
    """A process or link of the network that nobody uses: ``name`` is the link's, or what the process is."""

    name: str
    process: ProcessIdentity | None = None


@dataclass(frozen=True, slots=True)
class NetworkSurvey:
    """Which VMs have a place in the network, by id, and what is there beside."""

    attached: frozenset[str] = frozenset()
    strays: tuple[Stray, ...] = ()


Port = tuple[ForwardProtocol, int]


@dataclass(frozen=True, slots=True)
class KnownVm:
    """A VM on record that no operation works on. ``process``: its VMM's as the daemon has it; ``networked``: it runs on a network of banger's own."""

    id: str
    name: str
    state: VmState
    image_id: str
    process: ProcessIdentity | None = None
    networked: bool = False
    relayed: frozenset[Port] = frozenset()


@dataclass(frozen=True, slots=True)
class OnRecord:
    """What is on record. ``ids``: of all VMs, also those that an operation works on, or did while the host was looked at; ``ports``: of their forwards."""

    vms: tuple[KnownVm, ...] = ()
    ids: frozenset[str] = frozenset()
    ports: frozenset[Port] = frozenset()


@dataclass(frozen=True, slots=True)
class OnHost:
    """What a look found, mostly by VM id. ``vmms`` are processes, ``alive`` those VMs whose recorded VMM is there; ``disks`` and ``images`` say what is
    missing of them, ``left`` has VMs with a cgroup or its like, unknown ones if nobody uses it, ``ledger`` the effects that the ledger has.
    """

    vmms: Mapping[str, tuple[ProcessIdentity, ...]] = field(default_factory=dict)
    alive: frozenset[str] = frozenset()
    devices: frozenset[str] = frozenset()
    directories: Mapping[str, DirectoryIs] = field(default_factory=dict)
    sockets: frozenset[str] = frozenset()
    network: NetworkSurvey = field(default_factory=NetworkSurvey)
    ports: frozenset[Port] = frozenset()
    host_keys: frozenset[str] = frozenset()
    left: frozenset[str] = frozenset()
    ledger: Mapping[str, frozenset[str]] = field(default_factory=dict)
    leases: frozenset[str] = frozenset()
    disks: Mapping[str, str] = field(default_factory=dict)
    images: Mapping[str, str] = field(default_factory=dict)
    temporaries: tuple[Path, ...] = ()
    builds: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class Finding:
    """One difference: ``unrecorded``, it exists and nobody knows of it, or ``gone``, it is on record and not there. ``name``: what it is known by."""

    kind: ResidueKind
    sense: Sense
    name: str
    what: str
    remedy: Remedy
    vm_id: str = ""
    hint: str = ""
    stray: Stray | None = None
    port: Port | None = None

    @property
    def key(self) -> tuple[str, str, str]:
        """What makes it the same one at the next look."""
        return self.kind, self.sense, self.name
