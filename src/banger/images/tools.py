"""Tools that an image gets beside its distribution's packages: a recipe's ``[[tools]]``, each pinned by version and digest.

A tool of source ``npm`` is unpacked to ``/opt/<name>/<version>`` and its programs are linked into ``/usr/local/bin``. In the
new root ``payload/tools.sh`` then tells mise of the others, and lets it install those of source ``mise`` itself.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from banger.host.threads import in_thread
from banger.images import npm
from banger.images.mistake import Fail
from banger.images.resources import payload_dir
from banger.model.errors import HostLacksError

_MEMBER = r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,100}(/[A-Za-z0-9_][A-Za-z0-9_.+-]{0,100}){0,7}"
_Name = Annotated[str, Meta(pattern=r"^[a-z][A-Za-z0-9:@/.,_+=?&%~\[\]-]{0,200}$")]
_PLAIN = re.compile(r"[a-z][a-z0-9-]{0,30}", re.ASCII)
_Version = Annotated[str, Meta(pattern=r"^[0-9][A-Za-z0-9.+-]{0,40}$")]
_Package = Annotated[
    str, Meta(pattern=r"^(@[a-z0-9][a-z0-9._-]{0,60}/)?[a-z0-9][a-z0-9._-]{0,80}$")
]
_Integrity = Annotated[str, Meta(pattern=r"^sha512-[A-Za-z0-9+/]{86}==$")]
_Member = Annotated[str, Meta(pattern=f"^{_MEMBER}$")]
_SAFE = re.compile(rf"package/({_MEMBER})", re.ASCII)
_INIT = {"debian": "systemd", "void": "runit"}
_MAX_BYTES = 1 << 30
LIST = "usr/lib/banger/tools.list"
SCRIPT = "usr/lib/banger/tools.sh"
MISE = "mise"


class ToolTable(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A ``[[tools]]`` table. ``files``: what of the package is unpacked, paths of files or directories; all of it if empty.
    ``programs``: which of these are linked into ``/usr/local/bin``. A tool of source ``mise`` has neither, nor a package; its name
    is mise's own, with backend and options where it has them (``http:tool[url=...]``).
    """

    name: _Name
    version: _Version
    source: Literal["npm", "mise"] = "npm"
    package: _Package | None = None
    integrity: _Integrity | None = None
    files: list[_Member] = []
    programs: list[_Member] = []


def check_tools(tools: Sequence[ToolTable], about: Callable[[int], Fail]) -> None:
    """The error for tools that say too little or too much; ``about`` makes it for the tool of a number."""
    names = [tool.name for tool in tools]
    for number, tool in enumerate(tools):
        if tool.source == "npm" and not _PLAIN.fullmatch(tool.name):
            raise about(number)(
                f"{tool.name} is no name for a tool of npm",
                detail="it is a directory of /opt: small letters, digits and dashes; only mise's own tools have others",
                hint="name it as its program is named, and the package in package",
            )
        pinned = tool.package is not None and tool.integrity is not None
        given = tool.package or tool.integrity or tool.files or tool.programs
        if tool.source == "npm" and not pinned:
            raise about(number)(
                f"{tool.name} of npm needs package and integrity",
                hint=f"npm view PACKAGE@{tool.version} dist.integrity",
            )
        if tool.source == MISE and (given or tool.name == MISE or MISE not in names):
            raise about(number)(
                f"{tool.name} cannot be installed by mise so",
                detail="such a table has name, version and source alone, and the recipe has mise itself, from npm",
                hint="compare with config/images/debian.toml",
            )


def tool_files(tools: Sequence[ToolTable], distribution: str) -> dict[str, bytes]:
    """What the payload has for ``tools``: the script, what it reads, and the service of a tool that has one."""
    if not tools:
        return {}
    lines = [f"{t.source} {t.name} {t.version}" for t in tools]
    base = payload_dir()
    files = {LIST: "".join(f"{line}\n" for line in lines).encode()}
    files[SCRIPT] = (base / "tools.sh").read_bytes()
    for tool in (tool for tool in tools if _PLAIN.fullmatch(tool.name)):
        for part in ("common", _INIT[distribution]):
            top = base / "tools" / tool.name / part
            found = sorted(path for path in top.rglob("*") if path.is_file())
            files |= {str(path.relative_to(top)): path.read_bytes() for path in found}
    return files


async def fetch_tools(tools: Sequence[ToolTable], cache: Path, scratch: Path) -> list[Path]:
    """The archives of those of source ``npm``, in order."""
    return [
        await npm.fetch(tool.package, tool.version, tool.integrity, cache, scratch)
        for tool in tools
        if tool.package is not None and tool.integrity is not None
    ]


async def add_tools(
    tools: Sequence[ToolTable], cache: Path, scratch: Path, payload: Path, epoch_s: int
) -> None:
    """Fetch the tools and append their files to the tar ``payload``."""
    archives = await fetch_tools(tools, cache, scratch)
    pinned = [tool for tool in tools if tool.package is not None]
    for tool, archive in zip(pinned, archives, strict=True):
        await in_thread(append_tool, tool, archive, payload, epoch_s)


def append_tool(tool: ToolTable, archive: Path, payload: Path, epoch_s: int) -> None:
    """Append the files of one tool to the tar ``payload``, as root's; HostLacksError if the package lacks what the recipe names."""
    prefix = f"./opt/{tool.name}/{tool.version}"
    missing = {*tool.files, *tool.programs}
    with (
        tarfile.open(archive) as source,
        tarfile.open(payload, "a", format=tarfile.GNU_FORMAT) as to,
    ):
        total = 0
        for member in source:
            path = _wanted(member, tool.files)
            if path is None:
                continue
            total += member.size
            if total > _MAX_BYTES:
                raise HostLacksError(
                    f"package {tool.package} is larger than {_MAX_BYTES} bytes",
                    hint=f"name what is needed of it in files of tool {tool.name}",
                )
            missing -= {name for name in missing if _is_below(path, name)}
            executable = member.mode & 0o100 or path in tool.programs
            info = tarfile.TarInfo(f"{prefix}/{path}")
            info.size, info.mtime, info.mode = member.size, epoch_s, 0o755 if executable else 0o644
            to.addfile(info, source.extractfile(member))
        for program in tool.programs:
            to.addfile(_link(program, tool, epoch_s), io.BytesIO())
    if missing:
        raise HostLacksError(
            f"package {tool.package} has no {min(missing)}",
            hint=f"mend files and programs of tool {tool.name} in the recipe",
        )


def _wanted(member: tarfile.TarInfo, files: Sequence[str]) -> str | None:
    """The path of a regular file that is wanted, without npm's folder; None for all else."""
    match = _SAFE.fullmatch(member.name)
    if match is None or not member.isreg():
        return None
    path = match[1]
    return path if not files or any(_is_below(path, name) for name in files) else None


def _is_below(path: str, name: str) -> bool:
    return path == name or path.startswith(f"{name}/")


def _link(program: str, tool: ToolTable, epoch_s: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(f"./usr/local/bin/{program.rpartition('/')[2]}")
    info.type, info.mtime, info.mode = tarfile.SYMTYPE, epoch_s, 0o777
    info.linkname = f"/opt/{tool.name}/{tool.version}/{program}"
    return info
