"""Checks of banger itself: its VMMs, its daemon, and what it left over."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from banger import __version__
from banger.api import routes
from banger.bundle import leftovers, places
from banger.bundle.locate import find_binaries
from banger.client.autostart import connect_if_running
from banger.doctor.check import Check, Skip
from banger.host.config import Config
from banger.host.probe import Answer
from banger.images.catalog import ImageCatalog
from banger.images.workshop import Workshop
from banger.model.errors import HostLacksError
from banger.model.units import format_size
from banger.vmm.firecracker.binary import inspect

_DAEMON_S = 2.0


def _firecracker(config: Config) -> Answer | Skip:
    try:
        found = find_binaries(config, warn=lambda _: None)
        binary = inspect(found.firecracker)
    except HostLacksError as error:
        return Answer(ok=False, why=error.what, hint=error.hint)
    jailer = "with its jailer" if found.jailer else "no jailer"
    version = ".".join(map(str, binary.version))
    return Answer(ok=True, found=f"{version}, {jailer}, {found.origin}")


def _daemon(config: Config) -> Answer | Skip:
    transport = connect_if_running(config)
    if transport is None:
        return Skip("it does not run; the next command starts it")
    try:
        transport.timeout_s = _DAEMON_S
        version = transport.fetch(routes.INFO)["version"]
    finally:
        transport.close()
    if version != __version__:
        return Answer(
            ok=False,
            why=f"bangerd is {version}, banger {__version__}",
            hint="banger daemon stop  (VMs run on; the next command starts it again)",
        )
    return Answer(ok=True, found=f"runs, {__version__}")


def _seeds(config: Config) -> Answer | Skip:
    """Whether every image has all of its files, with the sizes that its manifest says."""
    images = ImageCatalog(config.images_dir, config.state_dir / "logs").list()
    if not images:
        return Skip("there is no image")
    for image in images:
        for name, entry in image.files.items():
            path = config.images_dir / image.id / name
            try:
                size_bytes = path.stat().st_size
            except OSError as error:
                return Answer(ok=False, why=f"{path}: {error.strerror}", hint=image.remedy)
            if size_bytes != entry.size_bytes:
                return Answer(ok=False, why=f"{path} has not its size", hint=image.remedy)
    return Answer(ok=True, found=f"{len(images)} with all their files")


def _stale_socket(config: Config) -> list[Path]:
    """The API's socket, if nobody serves it."""
    transport = connect_if_running(config)
    if transport is not None:
        transport.close()
        return []
    return [config.socket_path] if config.socket_path.is_socket() else []


def _leftovers(config: Config) -> Answer | Skip:
    left = Workshop(config.images_dir).leftovers()
    downloads = leftovers.find(places.default_root(config.bundle_dir))
    found = [*left, *((each.path, each.size_bytes) for each in downloads)]
    found += [(path, 0) for path in _stale_socket(config)]
    if not found:
        return Answer(ok=True, found="nothing")
    total = format_size(sum(size_bytes for _, size_bytes in found))
    names = ", ".join(str(path) for path, _ in found)
    hint = "banger prune" if len(found) == len(downloads) else "banger doctor --fix"
    return Answer(ok=False, why=f"{total}: {names}", hint=hint)


def _sweep(config: Config) -> str:
    """Remove what nobody uses. A cut download stays: a fetch goes on from it, and ``banger prune`` takes it."""
    asyncio.run(Workshop(config.images_dir).sweep())
    for path in _stale_socket(config):
        path.unlink(missing_ok=True)
    return "removed what interrupted work had left"


def _user(config: Config) -> Answer | Skip:
    """Sockets and disks are for one user alone."""
    for path in (config.state_dir, config.runtime_dir):
        if path.exists():
            status = path.stat()
            if status.st_uid != os.geteuid() or status.st_mode & 0o077:
                return Answer(
                    ok=False, why=f"others may look into {path}", hint=f"chmod 0700 {path}"
                )
    return Answer(ok=True, found="its directories are for this user alone")


def _close(config: Config) -> str:
    for path in (config.state_dir, config.runtime_dir):
        if path.exists() and path.stat().st_uid == os.geteuid():
            path.chmod(0o700)
    return "closed banger's directories to others"


CHECKS = (
    Check("firecracker", _firecracker, "VMs run on QEMU"),
    Check("daemon", _daemon, "commands and daemon may misunderstand each other"),
    Check("image files", _seeds, "VMs of that image do not start"),
    Check("privacy", _user, "others could read disks and keys", fix=_close),
    Check("leftovers", _leftovers, "they take room", fix=_sweep),
)
