"""The whole picture for ``banger runtime status``: the bundle, its files, and what VMs would be started with."""

from __future__ import annotations

import msgspec

from banger.bundle import check, locate, wanted
from banger.bundle.places import Root
from banger.bundle.reading import Warn
from banger.host.config import Config
from banger.model.errors import BangerError, HostLacksError


class FileStatus(msgspec.Struct, frozen=True):
    """One file of the bundle; ``state`` as in `banger.bundle.check.FileState`."""

    path: str
    state: str
    why: str


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """The runtime bundle: ``state`` is ok, missing or damaged. ``firecracker`` and ``jailer`` are what VMs are started with, ``used_from``
    says where they are from; empty texts where there is nothing to say. ``problems`` and ``hint`` say what is wrong and what to do.
    """

    state: str
    root: str
    origin: str
    directory: str = ""
    name: str = ""
    version: str = ""
    architecture: str = ""
    identity: str = ""
    previous: str = ""
    files: list[FileStatus] = []
    images: list[str] = []
    problems: list[str] = []
    hint: str = ""
    firecracker: str = ""
    jailer: str = ""
    used_from: str = ""


def status(config: Config, root: Root, warn: Warn) -> tuple[Status, BangerError | None]:
    """What there is, and the error to end with if VMs could not be started, or the bundle is not whole."""
    state = check.look(root)
    trouble: BangerError | None = None
    binaries = None
    try:
        binaries = locate.find_binaries(config, warn=warn)
    except BangerError as error:
        trouble = error
    if trouble is None and state.state == "damaged":
        trouble = locate.damaged(config, root, state)
    manifest = state.manifest
    found = Status(
        state=state.state,
        root=str(root.path),
        origin=root.origin,
        directory=str(state.version_dir or ""),
        name=manifest.name if manifest else "",
        version=manifest.version if manifest else "",
        architecture=manifest.architecture if manifest else "",
        identity=manifest.identity() if manifest else "",
        previous=_previous(root),
        files=[FileStatus(file.path, file.state, file.why) for file in state.files],
        images=[image.name for image in manifest.images] if manifest else [],
        problems=_problems(state, trouble),
        hint=trouble.hint if trouble else "",
        firecracker=str(binaries.firecracker) if binaries else "",
        jailer=str(binaries.jailer or "") if binaries else "",
        used_from=binaries.origin if binaries else "",
    )
    return found, trouble


def _problems(state: check.BundleState, trouble: BangerError | None) -> list[str]:
    """What is wrong with the bundle, else with what was found instead of it."""
    if state.whys or trouble is None:
        return state.whys
    return [trouble.what, *trouble.detail.splitlines()]


def _previous(root: Root) -> str:
    """Name and version of what a rollback returns to, and whether it could."""
    state = check.look(root, root.previous)
    if state.manifest is None:
        return ""
    return state.manifest.title + ("" if state.state == "ok" else " (damaged)")


def placed(root: Root, config: Config) -> check.BundleState:
    """The whole bundle in ``root``; HostLacksError if there is none or it is damaged."""
    state = check.look(root)
    if state.state == "damaged":
        raise locate.damaged(config, root, state)
    if state.state == "missing":
        raise HostLacksError(
            f"no runtime bundle is in {root.path}", hint=wanted.how_to_get(config, root)
        )
    return state
