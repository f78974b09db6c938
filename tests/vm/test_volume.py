"""A VM whose image and disks lie in the volume that ``banger setup storage`` made."""

import os
import shutil

import pytest

from banger.host import probe
from tests.framework.installation import Installation
from tests.framework.volume_host import VolumeHost

pytestmark = pytest.mark.skipif(
    not (probe.root() and probe.loop()), reason="needs root and loop devices"
)


@pytest.fixture
def banger(tmp_path, test_image):
    """An installation with an image of its own in a volume, all of it in one mount namespace."""
    if probe.reflink(tmp_path):
        pytest.skip("this file system shares blocks")
    installation = Installation(tmp_path, network="none", storage="reflink")
    images = installation.state / "images"
    images.unlink()
    shutil.copytree(test_image, images / test_image.name, copy_function=os.link)
    host = VolumeHost(tmp_path)
    installation.prefix = ("nsenter", "-t", str(host.holder.pid), "-m", "--")
    host.setup("--size", "8G")
    yield installation
    try:
        left = installation.close()
        assert not left, f"left behind: {left}"
        host.setup("--remove")
    finally:
        host.close()
    assert {path.name for path in images.iterdir()} >= {test_image.name}


def test_it_is_made_without_copying_and_lives_there(banger):
    banger.create("box")
    shown = banger.vm("box")["status"]
    assert shown["storage"] == "reflink"
    banger.run(
        "vm", "exec", "box", "--", "sh", "-c", "echo kept > /root/file; echo kept > /etc/file; sync"
    )
    banger.run("vm", "restart", "box")
    assert (
        banger.run("vm", "exec", "box", "--", "cat", "/root/file", "/etc/file").stdout
        == "kept\nkept\n"
    )
    (disk,) = [row for row in banger.json("df")["items"] if row["name"] == "box"]
    assert disk["storage"] == "reflink"
