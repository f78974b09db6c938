"""A file system that shares blocks, for the time of a test: a small xfs in a loop file. For root."""

import contextlib
import subprocess


@contextlib.contextmanager
def reflink_volume(directory, size="1G"):
    """Mounted at ``directory/volume``."""
    image, where = directory / "volume.img", directory / "volume"
    where.mkdir()
    subprocess.run(["truncate", "-s", size, image], check=True)
    subprocess.run(["mkfs.xfs", "-q", "-m", "reflink=1", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, where], check=True)
    try:
        yield where
    finally:
        subprocess.run(["umount", where], check=True)
        image.unlink()
