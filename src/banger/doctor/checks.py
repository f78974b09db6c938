"""The checks: each asks one question of this host, mostly by a probe that the run-time paths share, and weighs the answer."""

from __future__ import annotations

import asyncio
import os
import pwd
from pathlib import Path

from banger.doctor import installation, system
from banger.doctor.check import Check
from banger.host import fs, probe
from banger.host.config import Config
from banger.host.exec import find_program
from banger.host.namespaces import probe_namespaces
from banger.host.probe import Answer
from banger.images.catalog import ImageCatalog
from banger.images.sandbox import check_subordinate_ids
from banger.model.errors import BangerError
from banger.model.units import GIB, format_size
from banger.storage.snapshots.client import snapshots_of
from banger.wire.helper import ask

LEAST_FREE_BYTES = 4 * GIB  # an image build and a few VMs
_HELLO_S = 2.0
_PROGRAMS = (
    ("ssh", "openssh-client"),
    ("ssh-keygen", "openssh-client"),
    ("qemu-img", "qemu-utils"),
    ("mke2fs", "e2fsprogs"),
    ("resize2fs", "e2fsprogs"),
    ("debugfs", "e2fsprogs"),
    ("mmdebstrap", "mmdebstrap"),
)


def _kvm(config: Config) -> Answer:
    del config
    return probe.kvm()


def _qemu(config: Config) -> Answer:
    return probe.qemu(config.qemu_path)


def _network(config: Config) -> Answer:
    try:
        find_program(config.uplink, package=config.uplink.replace("pasta", "passt"))
    except BangerError as error:
        return Answer(ok=False, why=error.what, hint=error.hint)
    answer = probe_namespaces()
    return Answer(ok=True, found=f"namespaces, {config.uplink}") if answer else answer


def _bridge_mode(config: Config) -> Answer:
    try:
        asyncio.run(ask(config.helper_socket, "hello", timeout_s=_HELLO_S))
    except BangerError as error:
        return Answer(ok=False, why=error.what, hint=error.hint)
    return Answer(ok=True, found=f"banger-helper at {config.helper_socket}")


def _programs(config: Config) -> Answer:
    del config
    missing: dict[str, str] = {}
    for name, package in _PROGRAMS:
        try:
            find_program(name, package=package)
        except BangerError:
            missing[name] = package
    if not missing:
        return Answer(ok=True, found=", ".join(name for name, _ in _PROGRAMS))
    packages = " ".join(dict.fromkeys(missing.values()))
    return Answer(
        ok=False,
        why=f"missing: {', '.join(missing)}",
        hint=f"install them, for example: sudo apt-get install {packages}",
    )


def _image_builds(config: Config) -> Answer:
    del config
    if os.geteuid() == 0:
        return Answer(ok=True, found="as root")
    user = pwd.getpwuid(os.geteuid())
    try:
        find_program("newuidmap", package="uidmap")
        for path in (Path("/etc/subuid"), Path("/etc/subgid")):
            check_subordinate_ids(path, user.pw_name, user.pw_uid)
    except BangerError as error:
        return Answer(ok=False, why=error.what, hint=error.hint)
    return Answer(ok=True, found=f"subordinate ids of {user.pw_name}")


def _existing(path: Path) -> Path:
    """``path``, or the nearest directory above it that exists."""
    return next(above for above in (path, *path.parents) if above.exists())


def _state_dir(config: Config) -> Answer:
    directory = _existing(config.state_dir)
    if not os.access(directory, os.W_OK | os.X_OK):
        return Answer(
            ok=False,
            why=f"{directory} cannot be written",
            hint="set BANGER_STATE_DIR to a directory of your own",
        )
    lost = [part for part in ("images", "vms") if _dangles(config.state_dir / part)]
    if lost:
        return Answer(
            ok=False,
            why=f"{' and '.join(lost)} of {config.state_dir} are on a volume that is not mounted",
            hint=f"sudo banger setup storage --state-dir {config.state_dir}",
        )
    free = fs.free_bytes(directory)
    if free < LEAST_FREE_BYTES:
        return Answer(
            ok=False,
            why=f"{directory} has {format_size(free)} free, {format_size(LEAST_FREE_BYTES)} are wanted",
            hint="banger vm list, and delete what you do not need",
        )
    return Answer(ok=True, found=f"{directory}, {format_size(free)} free")


def _dangles(path: Path) -> bool:
    return path.is_symlink() and not path.exists()


def _reflink(config: Config) -> Answer:
    directory = _existing(config.state_dir)
    if not os.access(directory, os.W_OK):
        return Answer(ok=False, why=f"{directory} cannot be written", hint=f"ls -ld {directory}")
    return probe.reflink(_existing(config.state_dir / "vms"))


def _snapshots(config: Config) -> Answer:
    return asyncio.run(snapshots_of(config.helper_socket).available())


def _sockets(config: Config) -> Answer:
    try:
        return Answer(ok=True, found=str(config.socket_path))
    except BangerError as error:
        return Answer(ok=False, why=f"{error.what}: {error.detail}", hint=error.hint)


def _images(config: Config) -> Answer:
    images = ImageCatalog(config.images_dir, config.state_dir / "logs").list()
    if not images:
        return Answer(ok=False, why="there is no image yet", hint="banger image build debian")
    return Answer(ok=True, found=", ".join(image.name for image in images))


CHECKS = (
    Check("kvm", _kvm, "guests are emulated, several times slower"),
    Check("qemu", _qemu, "no VM can run", needed=True),
    Check(
        "network", _network, "VMs get QEMU's own network, whose guests reach this host's 127.0.0.1"
    ),
    Check(
        "bridge mode",
        _bridge_mode,
        "the host reaches VMs by forwards and the agent, not by address",
    ),
    Check("programs", _programs, "disks, images or SSH do not work", needed=True),
    Check("image builds", _image_builds, "images cannot be built"),
    Check("state directory", _state_dir, "VMs and images have no room", needed=True),
    Check(
        "reflink",
        _reflink,
        "Firecracker's root disks are snapshots or copies, and work disks copies",
    ),
    Check(
        "dm-snapshot",
        _snapshots,
        "where blocks cannot be shared either, Firecracker's root disks are copied: slower, and more room",
    ),
    Check("sockets", _sockets, "the daemon cannot be reached", needed=True),
    Check("images", _images, "the first VM has to wait for its image"),
    *system.CHECKS,
    *installation.CHECKS,
)
