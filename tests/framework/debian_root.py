"""Roots of Debian packages and nothing else, as tars; made once, as the debian image is."""

import subprocess

from banger.host.exec import find_program
from tests.framework.installation import CACHE


def debian_root(name, packages, *, release="bookworm"):
    """The tar of a minimal Debian with ``packages`` (their names, with commas), in the cache as ``name`` and release."""
    path = CACHE / f"{name}-{release}-root.tar"
    if not path.exists():
        argv = [
            *(find_program("mmdebstrap", package="mmdebstrap"), "--variant=minbase", f"--include={packages}"),
            *("--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/locale/*"),
            *(release, str(path.with_suffix(".new.tar"))),
        ]  # fmt: skip
        done = subprocess.run(argv, check=False, capture_output=True, timeout=900)
        assert done.returncode == 0, done.stderr.decode()[-3000:]
        path.with_suffix(".new.tar").rename(path)
    return path
