"""Snapshot devices made by banger-helper, for daemons that are not root. The helper gets the files as descriptors, and numbers.

What the helper has is its to say: nothing is kept here, so that a daemon that was killed finds everything again.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from banger.host.dm import SECTOR_BYTES, SnapshotStatus
from banger.host.probe import Answer
from banger.model.errors import BangerError, HostLacksError, NotFoundError
from banger.storage.snapshots.direct import DirectSnapshots
from banger.storage.snapshots.port import (
    INSTALLATION_DIGITS,
    THROUGH_HELPER,
    SnapshotKey,
    Snapshots,
)
from banger.storage.snapshots.rules import Attached
from banger.wire.helper import ask

_ASK_S = 5.0
_AT_ONCE = 4  # of the connections that the helper lets a user have
_T = TypeVar("_T")


class _Listed(msgspec.Struct, frozen=True):
    snapshots: list[Attached]
    why: str = ""
    hint: str = ""


class _Detached(msgspec.Struct, frozen=True):
    snapshot: Attached | None


class HelperSnapshots:
    """See `Snapshots`. ``socket_path`` is the helper's."""

    def __init__(self, socket_path: Path) -> None:
        self._path = socket_path
        self._places = asyncio.Semaphore(_AT_ONCE)

    async def available(self) -> Answer:
        """Whether a helper answers us, and its host can."""
        try:
            found = await self._listed()
        except NotFoundError:  # no such verb
            why = "this banger-helper knows no snapshots"
            return Answer(ok=False, why=why, hint="update banger-helper, then restart it")
        except BangerError as error:
            why = f"it needs root or banger-helper; {error.what}"
            return Answer(ok=False, why=why, hint="sudo banger setup helper --storage")
        if found.why:
            return Answer(ok=False, why=f"banger-helper: {found.why}", hint=found.hint)
        return Answer(ok=True, found=THROUGH_HELPER)

    async def open(self, key: SnapshotKey, image: Path, store: Path, size_bytes: int) -> Path:
        """Hand both files over."""
        with _opened(image, os.O_RDONLY) as base, _opened(store, os.O_RDWR) as changes:
            result = await self._ask(
                "snapshot.attach", descriptors=[base, changes],
                installation=int(key.installation, 16), vm=int(key.vm_id, 16), sectors=size_bytes // SECTOR_BYTES,
            )  # fmt: skip
        return Path(_converted(result, Attached).device)

    async def close(self, key: SnapshotKey) -> SnapshotStatus | None:
        """By its slot, if it has one. Where no helper answers that is an error only if a device of ours is there."""
        try:
            found = await self._listed()
        except HostLacksError:
            if await asyncio.to_thread(_has_devices, os.geteuid()):
                raise
            return None
        each = _find(found.snapshots, key)
        if each is None:
            return None
        last = _converted(await self._ask("snapshot.detach", slot=each.slot), _Detached)
        return None if last.snapshot is None else _status(last.snapshot)

    async def statuses(self, of: str) -> dict[str, SnapshotStatus]:
        """As the helper says."""
        mine = int(of, 16)
        found = (await self._listed()).snapshots
        return {_vm_id(each): _status(each) for each in found if each.installation == mine}

    async def adopt_growth(self, key: SnapshotKey, store: Path) -> bool:
        """The helper knows the store by what it was handed."""
        del store
        each = _find((await self._listed()).snapshots, key)
        if each is None:
            return False
        return bool((await self._ask("snapshot.grown", slot=each.slot)).get("adopted"))

    async def there(self, of: str) -> frozenset[str]:
        """As the helper says."""
        try:
            found = await self._listed()
        except BangerError:
            return frozenset()
        return frozenset(
            _vm_id(each) for each in found.snapshots if each.installation == int(of, 16)
        )

    async def sweep(self, of: str, running: frozenset[str]) -> list[str]:
        """Where no helper answers there is nothing to sweep."""
        try:
            found = await self._listed()
        except BangerError:
            return []
        said = []
        for each in found.snapshots:
            vm_id = _vm_id(each)
            if each.installation != int(of, 16) or vm_id in running:
                continue
            try:
                await self._ask("snapshot.detach", slot=each.slot)
                said.append(f"snapshot {each.slot} of VM {vm_id}, which does not run, was removed")
            except BangerError as error:
                said.append(f"snapshot {each.slot} of VM {vm_id} could not be removed: {error}")
        return said

    async def _listed(self) -> _Listed:
        return _converted(await self._ask("snapshot.list", timeout_s=_ASK_S), _Listed)

    async def _ask(self, op: str, **arguments: Any) -> Mapping[str, Any]:  # noqa: ANN401  as `ask` has them
        async with self._places:
            return await ask(self._path, op, **arguments)


def snapshots_of(socket_path: Path) -> Snapshots:
    """The way to snapshot devices that is this process's."""
    return DirectSnapshots() if os.geteuid() == 0 else HelperSnapshots(socket_path)


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _has_devices(uid: int) -> bool:
    """Whether devices of the device mapper belong to ``uid``: the helper's doing, as far as it is for us."""
    for path in Path("/dev").glob("dm-*"):
        with suppress(FileNotFoundError):
            if path.stat().st_uid == uid:
                return True
    return False


def _find(found: Iterable[Attached], key: SnapshotKey) -> Attached | None:
    wanted = (int(key.installation, 16), int(key.vm_id, 16))
    return next((each for each in found if (each.installation, each.vm) == wanted), None)


def _vm_id(each: Attached) -> str:
    return f"{each.vm:0{INSTALLATION_DIGITS}x}"


def _status(each: Attached) -> SnapshotStatus:
    return SnapshotStatus(each.used_bytes, each.size_bytes, each.broken, each.disk_bytes)


def _converted(result: Mapping[str, Any], kind: type[_T]) -> _T:
    try:
        return msgspec.convert(result, kind)
    except msgspec.ValidationError as error:
        raise HostLacksError(
            "banger-helper described snapshots in a way banger does not know",
            detail=str(error),
            hint="update banger and banger-helper to the same release",
        ) from error
