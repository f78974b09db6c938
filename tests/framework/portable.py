"""A program of this host with the libraries that it needs, to run in a guest whatever is installed there."""

import re
import shutil
import subprocess
from pathlib import Path


def portable(program):
    """Pairs of a source and its name below a directory of the guest, and the argv there that runs ``program`` (which follows the directory)."""
    path = Path(shutil.which(program, path="/usr/sbin:/sbin:/usr/bin:/bin")).resolve()
    listed = subprocess.run(["ldd", path], capture_output=True, text=True, check=True).stdout
    files = [Path(found).resolve() for found in re.findall(r"(/\S+) \(0x", listed)]
    names = [Path(found).name for found in re.findall(r"(/\S+) \(0x", listed)]
    loader = next(name for name in names if name.startswith("ld-"))
    pairs = [(path, path.name), *zip(files, names, strict=True)]
    return pairs, loader
