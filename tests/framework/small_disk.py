"""A file system of its own, small enough to be filled."""

import contextlib
import subprocess

import pytest

from banger.host import probe


@contextlib.contextmanager
def small_disk(place, size_mib):
    """The mount point ``place``/disk of an ext4 on a loop device, for a test with root; skips where there are no such devices."""
    answer = probe.loop()
    if not answer:
        pytest.skip(answer.why)
    device, mount = place / "disk.img", place / "disk"
    with device.open("wb") as file:
        file.truncate(size_mib << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", device], check=True)
    mount.mkdir()
    subprocess.run(["mount", "-o", "loop", device, mount], check=True)
    try:
        yield mount
    finally:
        subprocess.run(["umount", mount], check=True)
