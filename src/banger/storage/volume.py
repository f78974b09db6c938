"""Makes, mounts and takes back the volume of `banger.storage.volume_plan`. For root; no daemon of the state directory may run.

Effects and inverses side by side: what fails half-way is undone, and what a killed set-up left is put right by `remove`.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final

from banger.host import fs, probe
from banger.host.exec import find_program, run_sync
from banger.host.locks import FileLock
from banger.model.errors import BangerError, HostLacksError, RefusedError
from banger.model.units import format_size
from banger.storage import volume_plan as plan
from banger.storage.volume_plan import PARTS, Volume

log = logging.getLogger(__name__)
Say = Callable[[str], None]
FSTAB: Final = Path("/etc/fstab")
_SYSTEMD: Final = Path("/run/systemd/system")  # sd_booted(3)
_TOOL_S, _COPY_S = 60.0, 3600.0
_RESERVE_BYTES: Final = 64 << 20


def is_mounted(volume: Volume) -> bool:
    """Whether something is mounted there."""
    return os.path.ismount(volume.mount)


def is_set_up(volume: Volume) -> bool:
    """Whether the links lead into it, mounted or not."""
    return all(_is_linked(volume, part) for part in PARTS)


def _is_linked(volume: Volume, part: str) -> bool:
    link = volume.link(part)
    return link.is_symlink() and link.readlink() == volume.place(part)


def set_up(volume: Volume, size_bytes: int, say: Say) -> None:
    """Make and mount it, move images into it, and see to it that it is there after a restart; on failure nothing is changed.

    RefusedError if a daemon runs or there are VMs; HostLacksError if the file system cannot be had.
    """
    with _alone(volume.state_dir):
        _refuse_vms(volume)
        owner = volume.state_dir.stat()
        with ExitStack() as undo:
            _make_image(volume, size_bytes, undo)
            say(f"made {volume.image}, {format_size(size_bytes)}, sparse")
            _mount_new(volume, owner.st_uid, owner.st_gid, undo)
            say(f"mounted at {volume.mount}")
            for part in PARTS:
                _move_in(volume, part, owner.st_uid, owner.st_gid, undo)
            if not probe.reflink(volume.place("vms")):
                raise HostLacksError(
                    f"{volume.mount} cannot share blocks", hint="sudo apt-get install xfsprogs"
                )
            say(_persist(volume, undo))
            undo.pop_all()
        for part in PARTS:
            fs.remove_tree(volume.aside(part))
        say(f"{', '.join(PARTS)} of {volume.state_dir} are in it")


def complete(volume: Volume, say: Say) -> None:
    """Mount one that is set up and not mounted, and do what a killed set-up did not come to; idempotent."""
    if not is_mounted(volume):
        _mount(volume)
    with ExitStack() as nothing:
        say(_persist(volume, nothing))
        nothing.pop_all()
    for part in PARTS:
        fs.remove_tree(volume.aside(part))
    say(f"{volume.state_dir} has its volume at {volume.mount}")


def remove(volume: Volume, say: Say) -> None:
    """Take it all back: images out of it, links, mount, boot, file; also what a killed set-up left. Idempotent."""
    with _alone(volume.state_dir):
        whole = is_set_up(volume)
        if whole and volume.image.exists() and not is_mounted(volume):
            _mount(volume)
        _refuse_vms(volume)
        for part in PARTS:
            if whole:
                _move_out(volume, part)
            else:
                _put_back(volume, part)
        say(f"{', '.join(PARTS)} are in {volume.state_dir} again")
        if is_mounted(volume):
            _unmount(volume)
        with suppress(FileNotFoundError):
            volume.mount.rmdir()
        _forget(volume)
        for path in {volume.image, volume.known_image}:
            path.unlink(missing_ok=True)
        say(f"{volume.mount} and {volume.image} are removed")


def _push(undo: ExitStack, inverse: Callable[..., object], *arguments: object) -> None:
    """Register ``inverse``; its failure is told and keeps neither the others nor the first error from being told."""

    def run() -> None:
        try:
            inverse(*arguments)
        except (BangerError, OSError) as error:
            log.warning("undo failed: %s %s: %s", inverse.__name__, arguments, error)

    undo.callback(run)


def _alone(state_dir: Path) -> ExitStack:
    """Hold the daemon's own lock: none runs, and none can start."""
    lock, stack = FileLock(state_dir / "bangerd.lock"), ExitStack()
    owner = state_dir.stat()
    if not lock.acquire():
        raise RefusedError(
            f"a daemon runs for {state_dir}",
            detail=f"its pid is {lock.holder()}",
            hint="banger daemon stop",
        )
    stack.callback(lock.release)
    os.chown(state_dir / "bangerd.lock", owner.st_uid, owner.st_gid, follow_symlinks=False)
    return stack


def _refuse_vms(volume: Volume) -> None:
    vms = volume.link("vms")
    there = sorted(path.name for path in vms.iterdir()) if vms.is_dir() else []
    if there:
        raise RefusedError(
            f"{volume.state_dir} has {len(there)} VM{'s' if len(there) > 1 else ''}",
            detail="their disks lie where they were made",
            hint="banger vm delete --all",
        )


def find(state_dir: Path, image: Path | None) -> Volume:
    """The volume of ``state_dir`` in the file ``image`` (None: in the one that it has, or in ``volume.img``)."""
    known = state_dir / plan.KNOWN_IMAGE
    if image is None:
        image = known.readlink() if known.is_symlink() else known
    return Volume(state_dir, image)


def _make_image(volume: Volume, size_bytes: int, undo: ExitStack) -> None:
    for there in (volume.image, volume.known_image, volume.mount):
        if not os.path.lexists(there):
            continue
        raise RefusedError(
            f"{there} is there already",
            detail="an earlier set-up was cut off, or it is somebody else's",
            hint=plan.undo_command(volume),
        )
    mkfs = find_program("mkfs.xfs", package="xfsprogs")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    descriptor = os.open(volume.image, flags, 0o600)
    _push(undo, volume.image.unlink)
    try:
        os.ftruncate(descriptor, size_bytes)
    finally:
        os.close(descriptor)
    if volume.image != volume.known_image:
        volume.known_image.symlink_to(volume.image)
        _push(undo, volume.known_image.unlink)
    run_sync([mkfs, "-q", "-m", "reflink=1", str(volume.image)], timeout_s=_TOOL_S)


def _mount_new(volume: Volume, uid: int, gid: int, undo: ExitStack) -> None:
    volume.mount.mkdir(mode=0o700)
    _push(undo, volume.mount.rmdir)
    _mount(volume)
    _push(undo, _unmount, volume)
    os.chown(volume.mount, uid, gid)
    volume.mount.chmod(0o700)


def _mount(volume: Volume) -> None:
    mount = find_program("mount")
    options = ",".join(plan.OPTIONS)
    run_sync(
        [mount, "-t", plan.KIND, "-o", options, str(volume.image), str(volume.mount)],
        timeout_s=_TOOL_S,
    )


def _unmount(volume: Volume) -> None:
    run_sync([find_program("umount"), str(volume.mount)], timeout_s=_TOOL_S)


def _move_in(volume: Volume, part: str, uid: int, gid: int, undo: ExitStack) -> None:
    """Copy a part, then let the link take its place by one rename; what was there is kept aside until all is done."""
    link, place, aside = volume.link(part), volume.place(part), volume.aside(part)
    place.mkdir(mode=0o700)
    os.chown(place, uid, gid)
    if link.is_dir():
        _copy(link, place)
        link.rename(aside)
        _push(undo, _put_back, volume, part)
        link.symlink_to(place)
    else:
        link.symlink_to(place)
        _push(undo, link.unlink)
    os.chown(link, uid, gid, follow_symlinks=False)


def _put_back(volume: Volume, part: str) -> None:
    """As it was before a set-up that was not completed: what was kept aside takes its place, a link that was made is no more."""
    link, aside = volume.link(part), volume.aside(part)
    if _is_linked(volume, part):
        link.unlink()
    if aside.exists() and not os.path.lexists(link):
        aside.rename(link)


def _move_out(volume: Volume, part: str) -> None:
    """What is in the volume takes the link's place; a copy from before the set-up is out of date."""
    link, place = volume.link(part), volume.place(part)
    coming = volume.state_dir / f".{part}.from-volume"
    fs.remove_tree(coming)
    owner = volume.state_dir.stat()
    coming.mkdir(mode=0o700)
    os.chown(coming, owner.st_uid, owner.st_gid)
    if place.is_dir():
        _copy(place, coming)
    link.unlink()
    coming.rename(link)
    fs.remove_tree(volume.aside(part))


def _copy(source: Path, target: Path) -> None:
    """All that is in ``source``, holes as holes; HostLacksError if it does not fit."""
    used = sum(fs.allocated_bytes(path) for path in source.rglob("*") if not path.is_symlink())
    free = fs.free_bytes(target)
    if used + _RESERVE_BYTES > free:
        raise HostLacksError(
            f"no room for the {format_size(used)} of {source} in {target}",
            detail=f"{format_size(free)} are free",
            hint="banger image list, and delete what you do not need",
        )
    cp = find_program("cp")
    run_sync(
        [cp, "-a", "--sparse=always", "--reflink=auto", f"{source}/.", str(target)],
        timeout_s=_COPY_S,
    )


def _persist(volume: Volume, undo: ExitStack) -> str:
    """Have it mounted at boot; a sentence about how."""
    _push(undo, _forget, volume)
    if not _SYSTEMD.is_dir():
        text = FSTAB.read_text() if FSTAB.exists() else ""
        fs.write_atomic(FSTAB, plan.with_fstab_lines(text, volume).encode(), mode=0o644)
        return f"it is mounted at boot by a line in {FSTAB}"
    name = plan.unit_name(volume.mount)
    fs.write_atomic(plan.UNITS / name, plan.unit(volume).encode(), mode=0o644)
    _systemctl("daemon-reload")
    _systemctl("enable", name)
    return f"it is mounted at boot by the unit {name}"


def _forget(volume: Volume) -> None:
    """Have it mounted at boot no more; idempotent."""
    if FSTAB.exists():
        text = FSTAB.read_text()
        kept = plan.without_fstab_lines(text, volume)
        if kept != text:
            fs.write_atomic(FSTAB, kept.encode(), mode=0o644)
    unit = plan.UNITS / plan.unit_name(volume.mount)
    if not unit.exists():
        return
    try:
        if _SYSTEMD.is_dir():
            _systemctl("disable", unit.name)
    finally:
        unit.unlink()
    if _SYSTEMD.is_dir():
        _systemctl("daemon-reload")


def _systemctl(*words: str) -> None:
    run_sync([find_program("systemctl"), *words], timeout_s=_TOOL_S)


def check_state_dir(state_dir: Path) -> None:
    """BangerError unless it is a directory that only its owner can change, and reached without a link."""
    try:
        found = state_dir.lstat()
    except FileNotFoundError:
        raise RefusedError(
            f"{state_dir} does not exist",
            hint="banger daemon start, as the user whose VMs they are",
        ) from None
    if state_dir.resolve() != state_dir or found.st_mode & 0o022:
        raise BangerError(
            f"{state_dir} can be changed by others, or is reached by a link",
            hint=f"ls -ld {state_dir}",
        )
    if shutil.disk_usage(state_dir).total == 0:
        raise HostLacksError(f"{state_dir} has no disk", hint=f"df {state_dir}")
