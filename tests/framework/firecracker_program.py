"""Where the tests find a real Firecracker and its jailer, and whether this machine can run them."""

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from banger.host import probe

ROOT = Path(__file__).parents[2]
BUNDLE = ROOT / "build" / "runtime"
NAMES = ("firecracker", "jailer")


@dataclass(frozen=True)
class Programs:
    """Both programs, and what ``firecracker --version`` says."""

    firecracker: Path
    jailer: Path
    version: str


def find(name, environ=os.environ, bundle=BUNDLE):
    """The path of ``name``: what $BANGER_FIRECRACKER or $BANGER_JAILER says, else on PATH, else in the runtime bundle; None."""
    named = environ.get(f"BANGER_{name.upper()}")
    if named:
        return shutil.which(named)
    found = shutil.which(name, path=environ.get("PATH"))
    inside = (str(path) for path in sorted(bundle.glob(f"**/{name}")) if shutil.which(path))
    return found or next(inside, None)


def programs(environ=os.environ, bundle=BUNDLE):
    """`Programs` as far as they are here: a pair of them and, if that is None, the reason."""
    found = {name: find(name, environ, bundle) for name in NAMES}
    for name, path in found.items():
        if path is None:
            named = environ.get(f"BANGER_{name.upper()}")
            if named:
                return None, f"$BANGER_{name.upper()} is {named}, which is no program"
            return None, f"no {name} on PATH, in $BANGER_{name.upper()} or in build/runtime"
    done = subprocess.run(
        [found["firecracker"], "--version"], capture_output=True, text=True, timeout=20, check=False
    )
    version = re.match(r"Firecracker v(\S+)", done.stdout)
    if version is None:
        return None, f"{found['firecracker']} --version says {done.stdout[:80]!r}"
    return Programs(Path(found["firecracker"]), Path(found["jailer"]), version[1]), ""


def why_not_here():
    """Why the real Firecracker cannot run on this very machine; empty if it can."""
    for answer in (probe.kvm(), probe.root()):
        if not answer:
            return answer.why
    return programs()[1]
