"""What a user asks of ``image register``. Rules are checked when the value is built; whether the files are any good is not known here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from banger.model.errors import InvalidInputError
from banger.model.ids import check_name
from banger.model.manifest import CMDLINE_PATTERN, MAX_CMDLINE_CHARS, SERVICE_PATTERN, Service
from banger.model.transfer import check_ref

_CMDLINE = re.compile(CMDLINE_PATTERN, re.ASCII)
_SERVICE = re.compile(SERVICE_PATTERN, re.ASCII)


@dataclass(frozen=True, slots=True)
class Registration:
    """An image out of files that are there; ``base`` is the name or id of an image that gives what is not.

    ``modules`` is a directory or tar that banger's initramfs is made with; ``built_in`` says that the kernel needs none.
    ``replace`` takes the name from an image that has it. With ``boot_only`` the base image gives its boot stack and nothing else. ``ref``
    and ``start_command`` are about a root that is a container image's; see `banger.model.transfer.ImageImport`.
    """

    name: str
    base: str | None = None
    rootfs: Path | None = None
    kernel: Path | None = None
    initramfs: Path | None = None
    modules: Path | None = None
    built_in: bool = False
    work_seed: Path | None = None
    cmdline: str | None = None
    services: tuple[Service, ...] | None = None
    replace: bool = False
    boot_only: bool = False
    ref: str | None = None
    start_command: bool = False

    def __post_init__(self) -> None:
        check_name(self.name, what="image")
        for option, path in self.paths.items():
            if not path.is_absolute() or "\0" in str(path):
                raise InvalidInputError(
                    f"{option} {str(path)!r} is no absolute path",
                    hint=f"write it as /…/{path.name}",
                )
        self._check_boot_stack()
        if self.cmdline is not None and (
            len(self.cmdline) > MAX_CMDLINE_CHARS or not _CMDLINE.fullmatch(self.cmdline)
        ):
            raise InvalidInputError(
                f"cmdline {self.cmdline[:40]!r} cannot be part of a kernel command line",
                hint=f"write at most {MAX_CMDLINE_CHARS} printable ASCII characters",
            )
        names = [service.name for service in self.services or ()]
        for service in self.services or ():
            if not _SERVICE.fullmatch(service.name) or not 1 <= service.port <= 65535:
                raise InvalidInputError(
                    f"service {service.name!r} on port {service.port} is not possible",
                    hint="write, for example, web:8080",
                )
        if len(set(names)) < len(names):
            raise InvalidInputError("two services have the same name", hint="give each its own")

    @property
    def paths(self) -> dict[str, Path]:
        """The files that were given, by the option that gives them."""
        given = {
            "rootfs": self.rootfs,
            "kernel": self.kernel,
            "initramfs": self.initramfs,
            "modules": self.modules,
            "work-seed": self.work_seed,
        }
        return {option: path for option, path in given.items() if path is not None}

    def _check_boot_stack(self) -> None:
        check_ref(self.ref)
        if self.boot_only and (self.rootfs is None or self.base is None):
            raise InvalidInputError(
                "a boot stack alone is no image",
                hint="add --rootfs FILE, or write --from for --kernel-from",
            )
        ways = (self.initramfs is not None, self.modules is not None, self.built_in)
        if sum(ways) > 1:
            raise InvalidInputError(
                "an initramfs is either given or made of modules",
                hint="drop --modules or --initramfs",
            )
        if self.base is not None:
            return
        for missing, what, option in (
            (self.rootfs is None, "root file system", "--rootfs FILE"),
            (self.kernel is None, "kernel", "--kernel FILE"),
            (not any(ways), "initramfs", "--modules DIR or --initramfs FILE"),
        ):
            if missing:
                raise InvalidInputError(
                    f"image {self.name} has no {what}", hint=f"add {option}, or --from IMAGE"
                )
