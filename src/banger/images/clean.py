"""What of a root file system and a home belongs to one VM alone, and how an image gets rid of it.

The content of a file is gone when its blocks are given back afterwards (`banger.images.mend.compact`). What a VM of the new image needs
of all this it gets by its identity drive, before its init runs.
"""

from __future__ import annotations

import re
import stat
from pathlib import Path

from banger.images.mend import edit, listed

_IDENTITY = (
    *("/etc/machine-id", "/var/lib/dbus/machine-id", "/etc/hostname", "/etc/hosts"),
    *("/etc/resolv.conf", "/etc/banger/agent-token", "/etc/banger/authorized_keys"),
    *("/var/lib/systemd/random-seed", "/var/lib/systemd/credential.secret"),
)
_HOST_KEY = re.compile(r"ssh_host_[a-z0-9_]{1,40}_key(\.pub)?", re.ASCII)
_FILES = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,200}", re.ASCII)
_USER = re.compile(r"[a-z_][a-z0-9_.-]{0,31}", re.ASCII)
_LEASES = ("/var/lib/dhcp", "/var/lib/NetworkManager", "/run", "/tmp", "/var/tmp")  # noqa: S108  in an image
_LOGS = "/var/log"
_MAX_DEPTH, _MAX_FILES = 6, 20_000
HISTORIES = (
    *(".bash_history", ".zsh_history", ".ash_history", ".sh_history", ".local/share/fish/fish_history"),
    *(".python_history", ".lesshst", ".viminfo", ".sqlite_history", ".psql_history", ".mysql_history", ".wget-hsts"),
)  # fmt: skip
_PRIVATE_KEY = re.compile(r"id_[a-z0-9_]{1,30}", re.ASCII)


async def clean_root(image: Path, *, history: bool) -> int:
    """Take identity, logs and leases out of the root file system ``image``, with ``history`` also what shells remember; how many files."""
    commands = [f"rm {path}" for path in _IDENTITY]
    keys = await listed(image, "/etc/ssh")
    commands += [f"rm /etc/ssh/{name}" for name in keys if _HOST_KEY.fullmatch(name)]
    for directory in (_LOGS, *_LEASES):
        commands += await _emptied(image, directory, keep=directory == _LOGS)
    if history:
        homes = ["/root"]
        homes += [f"/home/{n}" for n in await listed(image, "/home") if _USER.fullmatch(n)]
        commands += [f"rm {home}/{name}" for home in homes for name in HISTORIES]
    await edit(image, commands)
    return len(commands)


async def identity_left(image: Path) -> list[str]:
    """What of the identity of one VM is still in the root file system ``image``: empty if `clean_root` could do all that it was to do."""
    left = [
        f"/etc/ssh/{name}" for name in await listed(image, "/etc/ssh") if _HOST_KEY.fullmatch(name)
    ]
    for directory in sorted({path.rpartition("/")[0] for path in _IDENTITY}):
        there = await listed(image, directory)
        left += [path for name in there if (path := f"{directory}/{name}") in _IDENTITY]
    return left


async def clean_home(image: Path, *, history: bool) -> str:
    """Take out of the home ``image`` what shells remember, if asked; a word of warning about keys that stay, or ""."""
    if history:
        await edit(image, [f"rm /{name}" for name in HISTORIES])
    keys = [name for name in await listed(image, "/.ssh") if _PRIVATE_KEY.fullmatch(name)]
    return f"keeps private keys of yours: {' '.join(sorted(keys))}" if keys else ""


async def _emptied(image: Path, directory: str, *, keep: bool) -> list[str]:
    """Commands that take the content of all files below ``directory``; with ``keep`` the files stay, empty, as services expect them.

    Files are named by their inodes, so that their names, which a guest chose, are never part of a command; those to be removed are left
    out if their names are unusual, and only emptied.
    """
    commands: list[str] = []
    todo = [(directory, 0)]
    while todo and len(commands) < _MAX_FILES:
        path, depth = todo.pop()
        for entry in (await listed(image, path)).values():
            plain = _FILES.fullmatch(entry.name) is not None
            if stat.S_ISDIR(entry.mode):
                if plain and depth < _MAX_DEPTH:
                    todo.append((f"{path}/{entry.name}", depth + 1))
            elif stat.S_ISREG(entry.mode):
                commands += [f"punch <{entry.inode}> 0", f"sif <{entry.inode}> size 0"]
                if plain and not keep:
                    commands.append(f"rm {path}/{entry.name}")
    return commands
