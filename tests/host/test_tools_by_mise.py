"""Tools that mise installs itself while an image is built: the real mise, pinned as in the recipe ``debian``, in a Debian of small packages.
The tool comes from a server on loopback.
"""

import io
import shutil
import tarfile
import tempfile
import tomllib
from pathlib import Path

import pytest

from banger.images.resources import config_dir
from tests.framework.toy_archive import Mirror, ToyArchive
from tests.host.test_image_recipe_builds import Place, debugfs, place  # noqa: F401  fixture

LIBRARIES = ("libdl.so.2", "libgcc_s.so.1", "libpthread.so.0", "librt.so.1")
"""What mise needs and the small Debian has not."""
PACKAGES = "toykernel\nmiselibs\n"
HELLO = b"#!/bin/sh\necho hello\n"
TOOLS = """[[tools]]
name = "mise"
version = "{version}"
package = "{package}"
integrity = "{integrity}"
files = ["bin/mise"]
programs = ["bin/mise"]
[[tools]]
name = "http:hello[url=http://127.0.0.1:{port}/{archive}]"
version = "1.0"
source = "mise"
"""


@pytest.fixture(scope="module")
def mirror():
    """Of a small Debian with the libraries of mise; beside its suites lies the tool's archive."""
    directory = Path(tempfile.mkdtemp(prefix="bgm-", dir="/tmp"))
    directory.chmod(0o755)
    made = ToyArchive(directory / "archive")
    host = Path("/lib/x86_64-linux-gnu")
    files = {f"usr{host}/{name}": ((host / name).read_bytes(), 0o755) for name in LIBRARIES}
    certificates = "etc/ssl/certs/ca-certificates.crt"  # without any mise speaks no HTTP at all
    files[certificates] = (Path(f"/{certificates}").read_bytes(), 0o644)
    made.add("miselibs", "1", files)
    made.publish()
    with tarfile.open(made.root / "hello-1.0.tgz", "w:gz") as tar:
        info = tarfile.TarInfo("hello-1.0/bin/hello")
        info.size, info.mode = len(HELLO), 0o755
        tar.addfile(info, io.BytesIO(HELLO))
    with Mirror(made.root) as found:
        yield found
    shutil.rmtree(directory)


@pytest.fixture
def toy(place, namespaces_work):  # noqa: F811  fixture
    return Place(place)


def tools(mirror, archive):
    recipe = tomllib.loads((config_dir() / "images" / "debian.toml").read_text())
    mise = next(tool for tool in recipe["tools"] if tool["name"] == "mise")
    return TOOLS.format(**mise, port=mirror.server.server_address[1], archive=archive)


async def test_mise_installs_what_the_recipe_leaves_to_it(toy, mirror):
    made = await toy.build(mirror, tools(mirror, "hello-1.0.tgz"), packages=PACKAGES)
    seed = toy.images / made.id / "work-seed.img"
    data = ".local/share/mise"
    assert debugfs(seed, f"cat {data}/installs/http-hello/1.0/bin/hello") == HELLO
    config = tomllib.loads(debugfs(seed, "cat .config/mise/config.toml").decode())
    assert config["tools"]["http:hello"]["version"] == "1.0"
    assert b"hello" in debugfs(seed, f"ls {data}/shims")
    assert debugfs(seed, f"ls {data}/downloads") == b"", "nothing of the download is kept"
    assert debugfs(seed, "ls .cache") == b""


async def test_what_mise_says_of_a_tool_that_it_cannot_have_is_told(toy, mirror):
    said = await toy.fails(mirror, tools(mirror, "hello-2.0.tgz"), packages=PACKAGES)
    assert "could not be built: tool http:hello[url=" in said
    assert "of the recipe failed with status 1\n" in said
    assert "mise ERROR Failed to install http:hello@1.0: HTTP status client error (404" in said
    assert said.endswith("hint: mend the recipe")
