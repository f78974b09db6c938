"""The stand-in as a program in a file of its own, as a bundle or a test would have Firecracker."""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path

from tests.framework.firecracker.play import VERSION, Play

ROOT = Path(__file__).parents[3]
_SCRIPT = """#!{python} -IBS
# A stand-in for Firecracker: tests/framework/firecracker. It plays release {version}.
import sys

sys.path[:0] = {paths!r}
from tests.framework.firecracker.program import main

main(sys.argv[0], sys.argv[1:], {play!r})
"""


def import_paths() -> list[str]:
    """What goes in front of the interpreter's own path: the checkout, its sources, the packages (h11, qemu.qmp, …)."""
    packages = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    return [str(ROOT), str(ROOT / "src"), *packages]


def needed_paths() -> list[Path]:
    """What must be visible (read only) where the program is run confined, besides the program, QEMU's own needs (its binary, /usr/lib,
    /usr/share/qemu and /usr/share/seabios, /dev/urandom, with a network /dev/net/tun) and the directories of the VM's files.
    No /proc, no /tmp and no home are needed.
    """
    base = Path(sys.base_prefix)
    paths = [ROOT / "tests", ROOT / "src", *map(Path, import_paths()[2:])]
    return [*paths, Path(sys.executable).parent, base / "bin", base / "lib"]


def make_firecracker(directory: Path, *, version: str = VERSION, play: Play | None = None) -> Path:
    """Write the executable ``firecracker`` into ``directory`` (made if it is not there) and return its path.

    It runs with this interpreter and import path, whatever its environment is, and also when only this one file is copied elsewhere
    (as the jailer does). ``play`` says how it behaves; ``version`` counts when it is not given. Later changes: ``firecracker.play`` beside
    it or $BANGER_FAKE_FC, see `play`.
    """
    play = play or Play(version=version)
    text = _SCRIPT.format(
        python=sys.executable, version=play.version, paths=import_paths(), play=play.dump()
    )
    path = Path(directory) / "firecracker"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path
