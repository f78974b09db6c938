"""The inside of a Void build's sandbox: makes the host read-only and unusable to whatever runs, then becomes the program that is named.

A stand-alone program, run as root of namespaces of its own (`banger.images.sandbox`)::

    inside.py WRITABLE ROOT MODE PROGRAM ARGUMENT…

Only the directory WRITABLE can be written. There is no network. The host's shells are covered by a file that is no program: libxbps
runs a package's script with the host's ``/bin/sh`` where the root has none (lib/external/fexec.c), and here that fails. No
capability is left that could undo any of this. MODE ``scripts`` gives ROOT a ``/proc`` and the usual devices, ``chroot``
does that and enters it, ``plain`` neither.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from banger.host import syscalls as sc

SHELLS = ("/bin/sh", "/bin/dash", "/bin/bash", "/bin/busybox", "/bin/busybox.static")
_DEVICES = ("null", "zero", "full", "random", "urandom")
_KEPT = {0, 1, 3, 4, 5, 6, 7, 8, 18, 31}
"""CHOWN DAC_OVERRIDE FOWNER FSETID KILL SETGID SETUID SETPCAP SYS_CHROOT SETFCAP: linux/capability.h."""


def main() -> None:
    """See above."""
    writable, root, mode, *argv = sys.argv[1:]
    sc.leave(sc.CLONE_NEWNET)
    sc.mount("none", "/", None, sc.MS_REC | sc.MS_PRIVATE)
    sc.mount(writable, writable, None, sc.MS_BIND)
    no_shell = Path(writable) / "tmp" / "no-shell"
    no_shell.write_bytes(b"\0this is no program\n")
    no_shell.chmod(0o755)
    for shell in {os.path.realpath(path) for path in SHELLS if os.access(path, os.X_OK)}:
        sc.mount(str(no_shell), shell, None, sc.MS_BIND)
    if mode != "plain":
        _furnish(Path(root))
    sc.set_read_only("/", recursive=True, read_only=True)
    sc.set_read_only(writable, recursive=False, read_only=False)
    sc.bound_capabilities(_KEPT)
    os.chdir(root)
    if mode == "chroot":
        os.chroot(root)
    os.execv(argv[0], argv)  # noqa: S606  argv list, no shell


def _furnish(root: Path) -> None:
    """What package scripts may expect. A root whose /dev or /proc is a link, which would lead elsewhere, is refused."""
    for name in ("dev", "proc"):
        place = root / name
        if place.is_symlink():
            raise SystemExit(f"/{name} of the root is a link")
        place.mkdir(exist_ok=True)
    for name in _DEVICES:
        node = root / "dev" / name
        if node.is_symlink():
            raise SystemExit(f"/dev/{name} of the root is a link")
        node.touch()
        sc.mount(f"/dev/{name}", str(node), None, sc.MS_BIND)
    sc.mount("proc", str(root / "proc"), "proc", sc.MS_NOSUID | sc.MS_NODEV | sc.MS_NOEXEC)


if __name__ == "__main__":
    main()
