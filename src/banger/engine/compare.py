"""Where record and host differ. Pure: what is true of a look at both is decided here, and nowhere else.

What an operation works on is not judged: its VM is not among ``OnRecord.vms``, but its id is among ``ids``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from banger.model.residue import (
    DirectoryIs,
    Finding,
    KnownVm,
    OnHost,
    OnRecord,
    Remedy,
    ResidueKind,
    Sense,
    Stray,
)
from banger.model.spec import suffix
from banger.model.state import AT_REST, VmState

RUN_EFFECTS = frozenset({"runtime", "network", "device", "vmm"})
_UP = {VmState.RUNNING, VmState.PAUSED}
_LOOK = "banger audit --fix"


def compare(record: OnRecord, host: OnHost) -> list[Finding]:
    """All findings: those of known VMs first, then what belongs to none."""
    found = [finding for vm in record.vms for finding in _known(vm, host)]
    found += _unknown(record.ids, host)
    found += [_stray(stray) for stray in host.network.strays]
    found += [
        Finding(
            "forward", "unrecorded", f"{port}{suffix(protocol)}",
            f"port {port}{suffix(protocol)} of 127.0.0.1 is relayed for no VM", Remedy.CLOSE, port=(protocol, port),
        )
        for protocol, port in sorted(host.ports - record.ports)
    ]  # fmt: skip
    found += [
        Finding("temporary", "unrecorded", str(path), f"{path} was left half-written", Remedy.SWEEP)
        for path in host.temporaries
    ]
    found += [
        Finding(
            "build", "unrecorded", str(path), f"{path} is of work on an image that was cut short", Remedy.SWEEP
        )
        for path in host.builds
    ]  # fmt: skip
    return found


def _known(vm: KnownVm, host: OnHost) -> Iterator[Finding]:
    if vm.state is VmState.DELETING:
        yield Finding(
            "vm", "gone", vm.name, f"VM {vm.name}: its deletion broke off", Remedy.DELETE, vm.id, f"banger vm delete {vm.name}"
        )  # fmt: skip
        return
    yield from _missing(vm, host)
    if vm.state not in AT_REST and not (vm.state in _UP and vm.id in host.alive):
        yield _mend(vm, "vm", "gone", f"VM {vm.name} is {vm.state} on record, and its VMM is gone")
        return
    if vm.state in AT_REST:
        yield from _left_of_run(vm, host)
        return
    extra = [p for p in host.vmms.get(vm.id, ()) if p != vm.process]
    for process in extra:
        yield Finding(
            "vmm", "unrecorded", str(process.pid), f"process {process.pid} is a second VMM of VM {vm.name}", Remedy.NONE,
            vm.id, f"banger vm restart {vm.name}",
        )  # fmt: skip
    if vm.networked and vm.id not in host.network.attached:
        yield Finding(
            "attachment", "gone", vm.name, f"VM {vm.name} runs and has no place in the network any more", Remedy.NONE,
            vm.id, f"banger vm restart {vm.name}",
        )  # fmt: skip
    for protocol, port in sorted(vm.relayed - host.ports):
        yield Finding(
            "forward", "gone", f"{port}{suffix(protocol)}", f"VM {vm.name}: nobody listens on port {port}{suffix(protocol)} of 127.0.0.1",
            Remedy.NONE, vm.id, f"banger vm restart {vm.name}",
        )  # fmt: skip


def _missing(vm: KnownVm, host: OnHost) -> Iterator[Finding]:
    """Files on record that are not there. Nothing brings them back: it is said, with what can be done."""
    if vm.id in host.disks:
        yield Finding(
            "disk", "gone", host.disks[vm.id], f"VM {vm.name}: {host.disks[vm.id]} is missing", Remedy.NONE, vm.id, f"banger vm delete {vm.name}"
        )  # fmt: skip
    if vm.image_id in host.images:
        yield Finding(
            "image", "gone", vm.image_id, f"VM {vm.name}: its image is not whole: {host.images[vm.image_id]}", Remedy.NONE, vm.id, "banger image list"
        )  # fmt: skip


def _left_of_run(vm: KnownVm, host: OnHost) -> Iterator[Finding]:
    """What a VM at rest has of a run."""
    for process in host.vmms.get(vm.id, ()):
        yield _mend(
            vm, "vmm", "unrecorded", f"process {process.pid} is a VMM of VM {vm.name}, which is {vm.state}", str(process.pid)
        )  # fmt: skip
    parts: tuple[tuple[ResidueKind, frozenset[str], str], ...] = (
        ("device", host.devices, "a device of its root disk"),
        ("sockets", host.sockets, "a directory of sockets"),
        ("attachment", host.network.attached, "a place in the network"),
        ("leftover", host.left, "a control group"),
    )
    for kind, there, what in parts:
        if vm.id in there:
            yield _mend(vm, kind, "unrecorded", f"VM {vm.name} is {vm.state} and has {what}")
    rows = host.ledger.get(vm.id, frozenset()) & RUN_EFFECTS
    if rows:
        yield _mend(
            vm, "ledger", "unrecorded", f"VM {vm.name} is {vm.state} and the ledger has {', '.join(sorted(rows))} of a run"
        )  # fmt: skip


def _mend(
    vm: KnownVm, kind: ResidueKind, sense: Sense, what: str, name: str | None = None
) -> Finding:
    return Finding(kind, sense, name or vm.name, what, Remedy.MEND, vm.id, _LOOK)


def _unknown(ids: frozenset[str], host: OnHost) -> Iterator[Finding]:
    """What there is of VMs that nobody knows. One whose record lies beside its disks is a VM that was lost: it comes back whole."""
    of = Remedy.FORGET
    everything: list[tuple[ResidueKind, Iterable[str], str]] = [
        ("device", host.devices, "a device of a root disk"),
        ("sockets", host.sockets, "a directory of sockets"),
        ("leftover", host.left, "a control group"),
        ("host-key", host.host_keys, "a line in known_hosts"),
        ("ledger", host.ledger, "rows in the ledger"),
        ("lease", host.leases, "a lease"),
    ]
    for vm_id, directory in sorted(host.directories.items()):
        if vm_id not in ids:
            yield _directory(vm_id, directory)
    for vm_id, processes in sorted(host.vmms.items()):
        for process in processes:
            if vm_id not in ids:
                what = f"process {process.pid} is a VMM of VM {vm_id}, which nobody knows"
                yield Finding(
                    "vmm", "unrecorded", str(process.pid), what, _of(vm_id, host, of), vm_id
                )
    for kind, there, words in everything:
        for vm_id in sorted(set(there) - ids):
            what = f"there is {words} of VM {vm_id}, which nobody knows"
            yield Finding(kind, "unrecorded", vm_id, what, _of(vm_id, host, of), vm_id)


def _of(vm_id: str, host: OnHost, remedy: Remedy) -> Remedy:
    """What is done about a part of a VM: what is done about its directory, where it has one."""
    there = host.directories.get(vm_id)
    return remedy if there is None else _FOR[there]


_FOR = {
    DirectoryIs.LOST: Remedy.RECOVER,
    DirectoryIs.REST: Remedy.FORGET,
    DirectoryIs.KEPT: Remedy.NONE,
    DirectoryIs.MIXED: Remedy.NONE,
}
_WHY = {
    DirectoryIs.LOST: "it has a record of its own to come back from",
    DirectoryIs.REST: "it is what a deletion or a creation left",
    DirectoryIs.KEPT: "it has a work disk, which is kept for a day",
    DirectoryIs.MIXED: "it has things in it that banger did not write",
}


def _directory(vm_id: str, directory: DirectoryIs) -> Finding:
    remedy = _FOR[directory]
    hint = {DirectoryIs.KEPT: "banger prune, from tomorrow on"}.get(directory, _LOOK)
    hint = "look into it, and move away what is yours" if directory is DirectoryIs.MIXED else hint
    what = f"there is a directory of VM {vm_id}, which nobody knows: {_WHY[directory]}"
    return Finding("directory", "unrecorded", vm_id, what, remedy, vm_id, hint)


def _stray(stray: Stray) -> Finding:
    if stray.process is None:
        what = f"link {stray.name} of the network belongs to no VM"
        return Finding("network", "unrecorded", stray.name, what, Remedy.END, stray=stray)
    what = f"process {stray.process.pid} is {stray.name} of a network that is not in use"
    return Finding("network", "unrecorded", str(stray.process.pid), what, Remedy.END, stray=stray)
