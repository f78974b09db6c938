"""A volume for a state directory whose file system cannot share blocks: what it is, and the texts that bring it back at boot. Pure."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from banger.model.errors import InvalidInputError
from banger.model.units import GIB, format_size

PARTS: Final = ("images", "vms")
LEAST_BYTES: Final = GIB
KIND: Final = "xfs"
OPTIONS: Final = ("loop", "discard", "nodev", "nosuid")
KNOWN_IMAGE: Final = "volume.img"
MARK: Final = "# made by: banger setup storage"
UNITS: Final = Path("/etc/systemd/system")
_FREE_SHARE: Final = 0.8


@dataclass(frozen=True, slots=True)
class Volume:
    """The file system in ``image``, mounted at ``volume`` in the state directory, to which ``images`` and ``vms`` are links."""

    state_dir: Path
    image: Path

    @property
    def known_image(self) -> Path:
        """Where the image is looked for: the image itself, or a link to it if it lies elsewhere."""
        return self.state_dir / KNOWN_IMAGE

    @property
    def mount(self) -> Path:
        """Where it is mounted."""
        return self.state_dir / "volume"

    def link(self, part: str) -> Path:
        """Where banger looks for a part."""
        return self.state_dir / part

    def place(self, part: str) -> Path:
        """Where that part is in the volume."""
        return self.mount / part

    def aside(self, part: str) -> Path:
        """Where that part was put while the link took its place: there only while a set-up is under way."""
        return self.state_dir / f".{part}.before-volume"


def size_of(asked_bytes: int | None, free_bytes: int) -> int:
    """How large it becomes: as asked, else four fifths of what is free, in whole GiB; InvalidInputError if that is too little or too much.

    It is sparse, but what is put into it must find room: never more than is free.
    """
    size_bytes = int(free_bytes * _FREE_SHARE) // GIB * GIB if asked_bytes is None else asked_bytes
    if size_bytes < LEAST_BYTES:
        raise InvalidInputError(
            f"a volume of {format_size(size_bytes)} is too small",
            detail=f"{format_size(free_bytes)} are free",
            hint=f"choose --size {format_size(LEAST_BYTES)} or more, or another disk with --path",
        )
    if size_bytes > free_bytes:
        raise InvalidInputError(
            f"a volume of {format_size(size_bytes)} may not find room",
            detail=f"{format_size(free_bytes)} are free; a file system that runs out of room beneath is damaged",
            hint=f"choose --size {format_size(max(LEAST_BYTES, int(free_bytes * _FREE_SHARE) // GIB * GIB))}",
        )
    return size_bytes


def unit_name(mount: Path) -> str:
    """The name that systemd wants for the unit of this mount (systemd-escape(1) with --path)."""
    text = str(mount).strip("/")
    escaped = "".join(
        one if re.fullmatch(r"[A-Za-z0-9:_.]", one) else "-" if one == "/" else _hex(one)
        for one in text
    )
    return f"{_hex('.') if escaped.startswith('.') else ''}{escaped.removeprefix('.')}.mount"


def _hex(character: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in character.encode())


def unit(volume: Volume) -> str:
    """The unit that mounts it at boot (systemd.mount(5))."""
    what, where = (str(path).replace("%", "%%") for path in (volume.image, volume.mount))
    return (
        f"{MARK}\n"
        "[Unit]\n"
        "Description=Storage of banger: a file system that shares blocks\n"
        "\n"
        "[Mount]\n"
        f"What={what}\n"
        f"Where={where}\n"
        f"Type={KIND}\n"
        f"Options={','.join(OPTIONS)}\n"
        "\n"
        "[Install]\n"
        "WantedBy=multi-user.target\n"
    )


def fstab_lines(volume: Volume) -> str:
    """The lines of fstab(5) that mount it at boot; ``nofail``: the host comes up without it."""
    what, where = (_fstab_word(path) for path in (volume.image, volume.mount))
    return f"{MARK}\n{what} {where} {KIND} {','.join((*OPTIONS, 'nofail'))} 0 0\n"


def _fstab_word(path: Path) -> str:
    return "".join(f"\\{ord(one):03o}" if one in " \t\\\n" else one for one in str(path))


def without_fstab_lines(text: str, volume: Volume) -> str:
    """``text`` without those lines; everything else stays as it is."""
    return text.replace(fstab_lines(volume), "")


def with_fstab_lines(text: str, volume: Volume) -> str:
    """``text`` with those lines at its end, once."""
    kept = without_fstab_lines(text, volume)
    return (kept if kept.endswith("\n") or not kept else f"{kept}\n") + fstab_lines(volume)


def undo_command(volume: Volume) -> str:
    """What takes it all back."""
    return f"sudo banger setup storage --state-dir {shlex.quote(str(volume.state_dir))} --remove"
