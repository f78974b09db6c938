"""Which VMM runs a VM: the one that was asked for, or the first of the host's backends that can."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from banger.engine.ports import Vmm
from banger.host import proc
from banger.model.errors import HostLacksError, NotFoundError, RefusedError
from banger.model.machine import DiskFormat, VmPaths
from banger.model.process import ProcessIdentity
from banger.model.spec import VmmChoice


class Backends:
    """All backends of this host, the preferred one first; see `engine.ports.Vmms`."""

    def __init__(self, backends: Sequence[Vmm]) -> None:
        self._backends = tuple(backends)

    async def pick(self, choice: VmmChoice, root: DiskFormat | None) -> Vmm:
        """The first backend that fits ``choice``, can run a root disk of format ``root`` (None: any) and passes its check.

        Where none does the error is that of the last one, which has the fewest demands; the others' reasons stand in its detail.
        """
        reasons: list[str] = []
        last: HostLacksError | RefusedError | None = None
        for vmm in self._backends:
            if choice not in {VmmChoice.AUTO, vmm.name}:
                continue
            try:
                if root is not None and root not in vmm.root_formats:
                    raise _wrong_disk(vmm, root)
                await vmm.check()
            except (HostLacksError, RefusedError) as error:
                if last is not None:
                    reasons.append(": ".join(filter(None, (last.what, last.detail))))
                last = error
            else:
                return vmm
        if last is None:
            raise HostLacksError(
                f"this host has no VMM {choice}", hint="leave --vmm out, or: --vmm auto"
            )
        if not reasons:
            raise last
        detail = "\n".join(filter(None, (last.detail, *(f"also: {reason}" for reason in reasons))))
        raise type(last)(last.what, detail=detail, hint=last.hint)

    def named(self, name: str) -> Vmm:
        """The backend called ``name``; NotFoundError if this daemon has none, as an older one has of a newer one's VMs."""
        for vmm in self._backends:
            if vmm.name == name:
                return vmm
        raise NotFoundError(f"no VMM {name!r}", hint="use the banger that started the VM")

    def find(self, paths: VmPaths) -> ProcessIdentity | None:
        """The process of any backend that was started for ``paths`` but never recorded."""
        return next(filter(None, (vmm.find(paths) for vmm in self._backends)), None)

    async def end(self, identity: ProcessIdentity) -> None:
        """End this process now, and wait until it is gone; idempotent."""
        await proc.kill(identity)

    def all(self, vms_dir: Path, sockets_dir: Path) -> dict[str, tuple[ProcessIdentity, ...]]:
        """Every process of any backend that runs a VM below these directories, by the VM's id."""
        found: dict[str, tuple[ProcessIdentity, ...]] = {}
        for vmm in self._backends:
            for vm_id, identity in vmm.all(vms_dir, sockets_dir):
                found[vm_id] = (*found.get(vm_id, ()), identity)
        return found

    def left(self, vm_ids: Iterable[str]) -> frozenset[str]:
        """As `Vmm.left`, of any backend."""
        ids = tuple(vm_ids)
        return frozenset[str]().union(*(vmm.left(ids) for vmm in self._backends))

    async def release(self, paths: VmPaths) -> None:
        """Remove what a run of any backend has on the host beside its process, which has ended."""
        for vmm in self._backends:
            await vmm.release(paths)


def _wrong_disk(vmm: Vmm, root: DiskFormat) -> RefusedError:
    return RefusedError(
        f"{vmm.name} cannot run a VM whose root disk is a {root}",
        detail=f"{vmm.name} runs {', '.join(vmm.root_formats)}; a VM keeps the disk that it was made with, a new one gets what storage says",
        hint=f"make a new VM with --vmm {vmm.name}, or start this one with --vmm auto",
    )
