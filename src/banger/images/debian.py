"""Debian: a root file system by mmdebstrap."""

from __future__ import annotations

import asyncio
import shlex
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from banger.host.exec import find_program, run, search_path
from banger.host.threads import in_thread
from banger.images import fill_archives
from banger.images.command import Command
from banger.images.complaints import explain
from banger.images.customize import SCRIPT, customizing_files
from banger.images.downloads import Downloads
from banger.images.job import Job
from banger.images.package import Package
from banger.images.recipe import LoadedRecipe
from banger.images.resources import payload_dir
from banger.images.sandbox import remove_mapped, sandboxed
from banger.model.errors import CommandFailedError

_STATUS = "./var/lib/dpkg/status"
_LIB = "usr/lib/banger"
_FILL = (sys.executable, "-I", "-S", fill_archives.__file__)
_KEPT_LINES = 2000
_PROGRAMS = "programs"
# Goes before apt-get in mmdebstrap's PATH. When the indices are known, packages of the download cache are put where apt looks before it
# downloads (apt takes a file of the right name and size for downloaded, so they are verified before); and what apt has
# downloaded, and so verified, gets a second name, since mmdebstrap removes the first one when it fails.
_WRAPPER = """#!/bin/sh
{apt} "$@"
status=$?
case " $* " in
*" update "*) [ $status != 0 ] || {fill} || : ;;
*) ln -f {fetched}/*.deb {kept} 2> /dev/null || : ;;
esac
exit $status
"""
_MAKE_S = 3600.0


class Debian:
    """See `banger.images.distributions.Distribution`."""

    tools: ClassVar[Sequence[tuple[str, str]]] = (("mmdebstrap", "mmdebstrap"),)
    name: ClassVar[str] = "debian"
    purl: ClassVar[str] = "deb/debian"
    databases: ClassVar[Sequence[str]] = (_STATUS,)

    def payload(self) -> dict[str, bytes]:
        """Units and settings for systemd, and what finishes the root."""
        base = payload_dir()
        files = {
            str(path.relative_to(base / "rootfs")): path.read_bytes()
            for path in sorted((base / "rootfs").rglob("*"))
            if path.is_file()
        }
        for name in ("finish.sh", "seal_agent.py"):
            files[f"{_LIB}/{name}"] = (base / name).read_bytes()
        return files

    def locked(self, _loaded: LoadedRecipe, _images_dir: Path, _ref: str) -> str:
        """None: apt verifies by the distribution's own keys."""
        return ""

    def commands(self, job: Job) -> Sequence[Command]:
        """One mmdebstrap, which makes the tar itself."""
        recipe = job.loaded.recipe
        argv = [
            find_program("mmdebstrap", package="mmdebstrap"), "--mode=root", "--variant=minbase",
            f"--architectures={recipe.architecture}", f"--include={','.join(job.loaded.packages)}",
            *_cache_options(job),
            f"--customize-hook=tar-in {shlex.quote(str(job.payload))} /",
            *_customize(job),
            f'--customize-hook=chroot "$1" /bin/sh /{_LIB}/finish.sh',
            recipe.release, str(job.tar), *job.mirrors,
        ]  # fmt: skip
        env = {"SOURCE_DATE_EPOCH": str(job.epoch_s), "TMPDIR": str(job.scratch)}
        if job.downloads is not None:
            env["PATH"] = f"{job.work / _PROGRAMS}:{search_path()}"
        return [Command(tuple(sandboxed(argv)), env)]

    async def make(self, job: Job, note: Callable[[str], None]) -> None:
        """Run `commands`; an error says what is wrong, if that is known. What was downloaded is kept, also by a build that fails."""
        cache = Downloads(job.downloads) if job.downloads is not None else None
        if cache is not None:
            await in_thread(cache.prepare)
            await in_thread(_prepare, job)
        said: deque[str] = deque(maxlen=_KEPT_LINES)

        def hear(line: str) -> None:
            said.append(line)
            note(line)

        try:
            for command in self.commands(job):
                await run(command.argv, timeout_s=_MAKE_S, env=command.env, on_line=hear)
        except CommandFailedError as error:
            raise explain(list(said), job.loaded) or error from error
        finally:
            if cache is not None:
                new = await asyncio.shield(in_thread(cache.collect, _kept(job), ".deb"))
                note(f"I: {new} packages are new in the download cache")
                for directory in (job.fetched, _kept(job), job.work / _PROGRAMS):
                    await remove_mapped(directory)

    def packages(self, found: Mapping[str, bytes]) -> list[Package]:
        """Out of dpkg's status file."""
        return parse_dpkg(found.get(_STATUS, b""))


def _cache_options(job: Job) -> list[str]:
    """Let apt download into the job's directory; see `_WRAPPER`."""
    if job.downloads is None:
        return []
    fetched, archives = shlex.quote(str(job.fetched)), '"$1/var/cache/apt/archives"'
    return [
        "--skip=essential/unlink",
        f"--setup-hook=mkdir -p {archives} && mount --bind {fetched} {archives}",
        f"--customize-hook=umount {archives}",
    ]


def _kept(job: Job) -> Path:
    return job.work / "kept"


def _prepare(job: Job) -> None:
    (job.fetched / "partial").mkdir(parents=True)
    _kept(job).mkdir()
    programs = job.work / _PROGRAMS
    programs.mkdir()
    text = _WRAPPER.format(
        apt=shlex.quote(find_program("apt-get", package="mmdebstrap")),
        fetched=shlex.quote(str(job.fetched)),
        kept=shlex.quote(str(_kept(job))),
        fill=shlex.join([*_FILL, str(job.downloads), str(job.fetched)]),
    )
    wrapper = programs / "apt-get"
    wrapper.write_text(text)
    wrapper.chmod(0o755)


def _customize(job: Job) -> list[str]:
    """The recipe's own part, in the chroot: the host's files are out of its reach."""
    if SCRIPT not in customizing_files(job.loaded):
        return []
    return [f'--customize-hook=chroot "$1" /bin/sh /{SCRIPT}']


def parse_dpkg(status: bytes) -> list[Package]:
    """Installed packages out of dpkg's status file, by name."""
    packages = []
    for block in status.decode(errors="replace").split("\n\n"):
        fields = dict(
            line.split(": ", 1)
            for line in block.splitlines()
            if ": " in line and not line.startswith(" ")
        )
        if fields.get("Status", "").endswith(" installed"):
            packages.append(
                Package(
                    fields["Package"],
                    fields["Version"],
                    fields.get("Architecture", ""),
                    fields.get("Source", ""),
                    fields.get("Maintainer", ""),
                    fields.get("Homepage", ""),
                )
            )
    return sorted(packages)
