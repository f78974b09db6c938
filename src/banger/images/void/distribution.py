"""Void: a root file system by xbps-static, out of packages that a lock file names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from banger.host import faults, fs
from banger.host.exec import run
from banger.host.threads import in_thread, stoppable
from banger.images.command import Command
from banger.images.customize import SCRIPT, customizing_files
from banger.images.job import Job
from banger.images.package import Package
from banger.images.recipe import LoadedRecipe
from banger.images.resources import payload_dir
from banger.images.sandbox import remove_mapped
from banger.images.void.index import PKGVER, read_plist
from banger.images.void.lock import (
    ARCHITECTURES,
    Lock,
    check_signatures,
    lock_path,
    read_lock,
)
from banger.images.void.package import check_package
from banger.images.void.result import DATABASE
from banger.images.void.store import Store
from banger.images.void.tools import Workplace
from banger.model.errors import BangerError, CommandFailedError, RefusedError

_LIB = "usr/lib/banger"
_MAKE_S = 3600.0
_FIRST = "base-files"
"""Makes the directories and accounts that other packages' scripts need."""
_FAILURES = {
    "install": "xbps-install did not install the packages",
    "first": f"the script of {_FIRST} failed",
    "configure": "a package could not be configured",
    "check": "what was installed is not what is locked",
    "customize": "the recipe's users, files or hooks could not be made",
}
_SHARED = ("etc/ssh/sshd_config.d/50-banger.conf", "usr/lib/sysctl.d/50-banger.conf", "etc/fstab")
_POWEROFF = "usr/lib/systemd/system-shutdown/banger-poweroff"


class Void:
    """See `banger.images.distributions.Distribution`."""

    tools: ClassVar[Sequence[tuple[str, str]]] = ()
    name: ClassVar[str] = "void"
    purl: ClassVar[str] = "generic/void"
    databases: ClassVar[Sequence[str]] = (f"./{DATABASE}",)

    def payload(self) -> dict[str, bytes]:
        """Stages and services for runit, what finishes the root, and what Debian's guests have as well."""
        base = payload_dir()
        files = {
            str(path.relative_to(base / "void")): path.read_bytes()
            for path in sorted((base / "void").rglob("*"))
            if path.is_file()
        }
        files |= {name: (base / "rootfs" / name).read_bytes() for name in _SHARED}
        files[f"{_LIB}/banger-poweroff"] = (base / "rootfs" / _POWEROFF).read_bytes()
        files[f"{_LIB}/seal_agent.py"] = (base / "seal_agent.py").read_bytes()
        return files

    def locked(self, loaded: LoadedRecipe, images_dir: Path, ref: str) -> str:
        """The SHA-256 of the recipe's lock file, which was read and fits; NotFoundError or InvalidInputError."""
        return read_lock(lock_path(images_dir, loaded), loaded, ref)[1]

    def commands(self, job: Job) -> Sequence[Command]:
        """Install, configure, check; then banger's own files, and the tar."""
        return [command for _, command in _steps(job)]

    async def make(self, job: Job, note: Callable[[str], None]) -> None:
        """Bring what is missing, verify all of it, run `commands`. InvalidInputError, HostLacksError, CommandFailedError."""
        images_dir = job.work.parent
        lock, sha256 = read_lock(lock_path(images_dir, job.loaded), job.loaded, job.loaded.recipe.name)  # fmt: skip
        if sha256 != job.loaded.lock_sha256:
            raise RefusedError("the lock file was replaced meanwhile", hint="do it again")
        store, place = Store(images_dir), _workplace(job)
        await faults.point("image.void.fetch")
        await stoppable(store.bring, lock.files, next(iter(job.mirrors), None), note)
        await faults.point("image.void.verify")
        note(f"{len(lock.packages)} packages: verifying")
        await stoppable(_verify, lock, store)
        await faults.point("image.void.place")
        await in_thread(_place, lock, store, place, lock_path(images_dir, job.loaded))
        for step, command in _steps(job):
            await faults.point(f"image.void.{step}")
            await _run(step, command, note)
        (place.path / "root.tar").replace(job.tar)
        await faults.point("image.void.clear")
        await remove_mapped(place.path)

    def packages(self, found: Mapping[str, bytes]) -> list[Package]:
        """Out of xbps's database."""
        database = read_plist(found.get(self.databases[0], b"")) or {}
        props = [value for value in database.values() if isinstance(value, dict)]
        return sorted(filter(None, map(_package, props)))


def _workplace(job: Job) -> Workplace:
    return Workplace(job.scratch / "void", ARCHITECTURES[job.loaded.recipe.architecture])


def _verify(lock: Lock, store: Store, *, between: fs.Between) -> None:
    check_signatures(lock)
    for package in lock.packages:
        check_package(store.path(package), package.pkgver, between=between)


def _place(lock: Lock, store: Store, place: Workplace, path: Path) -> None:
    place.path.mkdir()
    place.prepare(store.path(lock.index).read_bytes(), store.path(lock.tools))
    fs.copy_file(path, place.path / "lock")
    for package in lock.packages:
        fs.share_file(store.path(package), place.repository / package.name)


def _steps(job: Job) -> list[tuple[str, Command]]:
    """The commands in order, each with the word by which trace points and errors know it."""
    place = _workplace(job)
    listed = _FIRST in job.loaded.packages
    first = [("first", place.configure("-f", _FIRST))] if listed else []
    own = SCRIPT in customizing_files(job.loaded)
    customize = [("customize", place.script(f"/{SCRIPT}"))] if own else []
    return [
        ("install", place.install(job.loaded.packages)),
        *first,
        ("configure", place.configure("-fa")),
        ("check", place.check(place.path / "lock")),
        ("payload", place.add_payload(job.payload)),
        *customize,
        ("finish", place.script(f"/{_LIB}/finish.sh")),
        ("pack", place.pack(place.path / "root.tar", job.epoch_s)),
    ]


async def _run(step: str, command: Command, note: Callable[[str], None]) -> None:
    """What went wrong is told by the step; the catalog says where the rest of it stands."""
    try:
        done = await run(command.argv, timeout_s=_MAKE_S, env=command.env, on_line=note)
    except CommandFailedError as error:
        what = _FAILURES.get(step, "the root file system could not be finished")
        raise BangerError(what, detail=error.detail or error.what, hint=error.hint) from error
    for line in done.stdout.decode(errors="replace").splitlines():
        note(line)


def _package(props: Mapping[str, Any]) -> Package | None:
    match = PKGVER.fullmatch(str(props.get("pkgver", "")))
    if match is None or props.get("state") != "installed":
        return None

    def text(key: str) -> str:
        return str(props.get(key, ""))

    return Package(
        match[1], match[2], text("architecture"), text("sourcepkg") or match[1],
        text("maintainer"), text("homepage"), text("license"),
    )  # fmt: skip
