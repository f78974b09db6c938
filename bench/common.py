"""What the benchmarks share: an installation of their own, medians, JSON results in bench/results."""

import contextlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.framework.installation import Installation, built

RESULTS = Path(__file__).parent / "results"


def installation(**settings):
    """A banger of the benchmark's own, with the tests' image."""
    built("debian-base", "debian")
    return Installation(tempfile.mkdtemp(prefix="banger-bench-"), **settings)


def discard(banger):
    """End an installation and remove its directory; what was left of it."""
    left = banger.close()
    shutil.rmtree(banger.directory, ignore_errors=True)
    return left


@contextlib.contextmanager
def reflink_volume():
    """A directory on a file system that shares blocks: an xfs in a loop file. Needs root."""
    here = Path(tempfile.mkdtemp(prefix="bench-volume-"))
    disk, mount = here / "xfs.img", here / "xfs"
    with disk.open("wb") as file:
        file.truncate(12 << 30)
    subprocess.run(["mkfs.xfs", "-q", "-m", "reflink=1", str(disk)], check=True)
    mount.mkdir()
    subprocess.run(["mount", "-o", "loop", str(disk), str(mount)], check=True)
    try:
        yield mount
    finally:
        subprocess.run(["umount", str(mount)], check=True)
        shutil.rmtree(here)


def copy_images(images, target):
    """The images in the directory ``images``, as ``target``."""
    subprocess.run(["cp", "-a", "--sparse=always", f"{images}/.", str(target)], check=True)


def summary(values):
    """Median, least, greatest and count."""
    return {
        "median": round(statistics.median(values), 2),
        "min": round(min(values), 2),
        "max": round(max(values), 2),
        "n": len(values),
    }


def report(name, result):
    """Print the result and keep it."""
    result = {
        "host": {
            "cpus": os.cpu_count(),
            "machine": platform.machine(),
            "kernel": platform.release().split("-")[0],
        },
        **result,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
