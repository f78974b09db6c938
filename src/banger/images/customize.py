"""A recipe's users, files and hooks, as a script that runs in the chroot of the root that is being made, and what it needs there.

Only the script's text and the files around it are made here; a distribution runs it when the payload is unpacked. What it says
in lines that begin with "banger: " is for the build's log; the last of them names what failed.
"""

from __future__ import annotations

import hashlib
import io
import shlex
import tarfile
from collections.abc import Mapping
from pathlib import Path

from banger.images.recipe import LoadedRecipe
from banger.images.recipe_extras import ExtraFile
from banger.images.recipe_keys import UserTable
from banger.model.errors import InvalidInputError

SCRIPT = "usr/lib/banger/customize.sh"
DIRECTORY = "usr/lib/banger/build"
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def customize_script(loaded: LoadedRecipe) -> str:
    """A POSIX shell script that makes users, then files, then runs hooks, and removes itself; stops at the first that fails."""
    lines = [
        "#!/bin/sh",
        "set -eu",
        f"export PATH={_PATH} HOME=/root DEBIAN_FRONTEND=noninteractive",
        "exec < /dev/null",
        "step='nothing yet'",
        "trap 'status=$?; [ $status = 0 ] || echo \"banger: $step failed with status $status\" >&2' EXIT",
    ]
    for number, user in enumerate(loaded.recipe.users):
        lines += _user(number, user)
    for number, file in enumerate(loaded.files):
        lines += [
            f"step={shlex.quote(f'files[{number}] ({file.path})')}",
            f"install -D -m {file.mode:04o} -o {file.owner} -g {file.group} /{DIRECTORY}/file-{number} {shlex.quote(file.path)}",
        ]
    for number, hook in enumerate(loaded.hooks):
        runner = "" if hook.text.startswith("#!") else "/bin/sh -e "
        lines += [
            f"step={shlex.quote(f'hook {hook.label}')}",
            'echo "banger: $step" >&2',
            f"(cd / && {runner}/{DIRECTORY}/hook-{number} >&2)",
        ]
    lines += ["step='cleaning up'", f"rm -rf /{DIRECTORY} /{SCRIPT}"]
    return "\n".join(lines) + "\n"


def _user(number: int, user: UserTable) -> list[str]:
    """No password: such an account is entered by key or by `su`."""
    groups = "".join(f"groupadd --force --system {group}; " for group in user.groups)
    listed = f"--groups {','.join(user.groups)} " if user.groups else ""
    lines = [
        f"step='users[{number}] ({user.name})'",
        f"{groups}useradd --create-home --user-group {listed}--shell {user.shell} {user.name}",
    ]
    if user.sudo:
        rules = f"/etc/sudoers.d/50-banger-{user.name}"
        lines += [
            f"printf '%s\\n' '{user.name} ALL=(ALL:ALL) NOPASSWD: ALL' > {rules}",
            f"chmod 0440 {rules}",
        ]
    return lines


def customizing_files(loaded: LoadedRecipe) -> dict[str, bytes]:
    """The script and the hooks, by their path below the guest's root; nothing if the recipe has neither users, files nor hooks."""
    if not (loaded.recipe.users or loaded.files or loaded.hooks):
        return {}
    hooks = {f"{DIRECTORY}/hook-{n}": hook.text.encode() for n, hook in enumerate(loaded.hooks)}
    return {SCRIPT: customize_script(loaded).encode(), **hooks}


def write_payload(path: Path, files: Mapping[str, bytes], loaded: LoadedRecipe, *, executable: frozenset[str], epoch_s: int) -> None:  # fmt: skip
    """Write the tar ``path`` with ``files`` and the contents of the recipe's own; all are root's. ``executable`` are names.

    InvalidInputError if a file is not any more what it was when the recipe was read.
    """
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        for name, data in sorted(files.items()):
            info = tarfile.TarInfo(f"./{name}")
            base = name.rpartition("/")[2]
            info.size, info.mtime = len(data), epoch_s
            info.mode = 0o755 if base in executable or f"{DIRECTORY}/hook-" in name else 0o644
            archive.addfile(info, io.BytesIO(data))
        for number, file in enumerate(loaded.files):
            _add(archive, f"./{DIRECTORY}/file-{number}", file, loaded, epoch_s)


def _add(archive: tarfile.TarFile, name: str, file: ExtraFile, loaded: LoadedRecipe, epoch_s: int) -> None:  # fmt: skip
    info = tarfile.TarInfo(name)
    info.mtime, info.mode = epoch_s, 0o600
    if not file.source:
        data = file.content.encode()
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
        return
    changed = InvalidInputError(
        f"{file.source} has changed while the image was being built",
        hint=f"banger image build {shlex.quote(loaded.ref)}, when nobody writes it",
    )
    try:
        with Path(file.source).open("rb") as source:
            digest = hashlib.file_digest(source, "sha256").hexdigest()
            info.size = source.seek(0, io.SEEK_END)
            source.seek(0)
            if digest != file.digest:
                raise changed
            archive.addfile(info, source)
    except OSError as error:
        raise changed from error
