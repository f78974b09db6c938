"""The programs of xbps-static: taken out of their tarball, and the command lines that they are run with.

What the options mean: xbps-install(1), xbps-reconfigure(1). ``XBPS_TARGET_ARCH`` makes xbps-install leave package scripts alone: they are run later,
inside the root, by xbps-reconfigure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from banger.host import tars
from banger.host.exec import find_program
from banger.host.namespaces import small_python
from banger.images.command import Command
from banger.images.decompress import STREAM_ERRORS
from banger.images.sandbox import sandboxed
from banger.images.void.package import open_tar
from banger.model.errors import BangerError, InvalidInputError

INSTALL, RECONFIGURE = "xbps-install", "xbps-reconfigure"
_MAX_TOOL_BYTES = 128 << 20
_INSIDE, _RESULT = "banger.images.void.inside", "banger.images.void.result"


def unpack_tools(tarball: Path, directory: Path) -> None:
    """Make ``directory`` with the programs that are needed; InvalidInputError if the tarball has not got them.

    xbps-static has ``usr/bin/<name>.static`` (void-packages: srcpkgs/xbps-static/template).
    """
    wanted = {f"usr/bin/{name}.static": name for name in (INSTALL, RECONFIGURE)}
    directory.mkdir()
    try:
        with open_tar(tarball) as archive:
            for member in tars.members(archive):
                name = wanted.get(member.name.removeprefix("./"))
                file = archive.extractfile(member) if name and member.isreg() else None
                if name and file is not None and member.size <= _MAX_TOOL_BYTES:
                    (directory / name).write_bytes(file.read())
                    (directory / name).chmod(0o755)
    except (BangerError, OSError, ValueError, *STREAM_ERRORS) as error:
        raise InvalidInputError("the tarball of xbps-static is damaged", detail=str(error), hint="banger image lock void") from error  # fmt: skip
    missing = [name for name in wanted if not (directory / wanted[name]).is_file()]
    if missing:
        raise InvalidInputError(
            f"the tarball of xbps-static has no {missing[0]}",
            hint="name another one: banger image lock void --tools PATH",
        )


@dataclass(frozen=True, slots=True)
class Workplace:
    """A directory of a build with ``tools``, ``repository``, ``root`` and ``tmp``; ``architecture`` is XBPS's word."""

    path: Path
    architecture: str

    @property
    def tools(self) -> Path:
        """The programs."""
        return self.path / "tools"

    @property
    def repository(self) -> Path:
        """A local repository."""
        return self.path / "repository"

    @property
    def root(self) -> Path:
        """The root file system that is made."""
        return self.path / "root"

    @property
    def settings(self) -> Path:
        """The directory of xbps's settings: nothing of the host's counts."""
        return self.path / "settings"

    def prepare(self, index: bytes, tarball: Path) -> None:
        """Make all of it, with a repository that has nothing but its index."""
        for directory in (self.repository, self.root, self.settings, self.path / "tmp"):
            directory.mkdir()
        (self.settings / "banger.conf").write_text("syslog=false\n")
        (self.repository / f"{self.architecture}-repodata").write_bytes(index)
        unpack_tools(tarball, self.tools)

    def install(self, packages: Sequence[str], *, dry_run: bool = False) -> Command:
        """Install ``packages`` and what they need without running a script; or say what that would be."""
        options = ["-n"] if dry_run else ["-y", "--reproducible"]
        argv = [
            *(str(self.tools / INSTALL), *options, "-i", "-C", str(self.settings)),
            *("-R", str(self.repository), "-r", str(self.root), *packages),
        ]
        return self._inside("plain", argv)

    def configure(self, *which: str) -> Command:
        """Run scripts of installed packages inside the root."""
        argv = [
            *(str(self.tools / RECONFIGURE), "-r", str(self.root), "-C", str(self.settings), *which)
        ]
        return self._inside("scripts", argv, target=False)

    def check(self, lock: Path) -> Command:
        """Compare the root with what the packages say, and these with the lock."""
        return self._inside("plain", small_python(_RESULT, str(self.root), str(lock)))

    def add_payload(self, payload: Path) -> Command:
        """Unpack banger's own files in the root."""
        argv = [find_program("tar", package="tar"), "-x", "-p", "--keep-directory-symlink"]
        return self._inside("plain", [*argv, "--no-same-owner", "-f", str(payload), "-C", str(self.root)])  # fmt: skip

    def script(self, path: str) -> Command:
        """Run a script of the payload inside the root."""
        return self._inside("chroot", ["/bin/sh", path])

    def pack(self, tar: Path, epoch_s: int) -> Command:
        """Make a tar of the root."""
        argv = [
            *(find_program("tar", package="tar"), "-c", "--format=gnu", "--sort=name"),
            *(f"--mtime=@{epoch_s}", "--numeric-owner", "--exclude=./dev/*", "-f", str(tar)),
        ]
        return self._inside("plain", [*argv, "-C", str(self.root), "."])

    def _inside(self, mode: str, argv: Sequence[str], *, target: bool = True) -> Command:
        inside = small_python(_INSIDE, str(self.path), str(self.root), mode, *argv)
        kind = "XBPS_TARGET_ARCH" if target else "XBPS_ARCH"
        env = {kind: self.architecture, "TMPDIR": str(self.path / "tmp"), "HOME": "/root"}
        return Command(tuple(sandboxed(inside)), env)
