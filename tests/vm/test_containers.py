"""podman and Docker in a guest, as a recipe installs them: containers run from overlay on the work disk, and images go both ways between them and banger."""

import json

import pytest

from banger.host.exec import find_program
from tests.framework import toy_container as toy
from tests.framework.installation import Installation

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]  # an image is built
RECIPE = 'name = "pods"\nextends = "debian-base"\nprofiles = ["containers"]\nadd_packages = ["docker.io", "apparmor"]\n'


@pytest.fixture(scope="module")
def pods(tmp_path_factory, image):
    """A VM ``box`` whose podman and Docker have an image ``toy``: a static busybox, and nothing else."""
    directory = tmp_path_factory.mktemp("pods")
    installation = Installation(directory / "banger")
    try:
        recipe, root = directory / "pods.toml", directory / "root.tar"
        recipe.write_text(RECIPE)
        print(installation.run("image", "build", str(recipe), timeout=900).stderr)
        with open(find_program("busybox", package="busybox-static"), "rb") as file:
            busybox = toy.member("bin/busybox", file.read(), mode=0o755)
        root.write_bytes(toy.tar([busybox, toy.symlink("bin/sh", "busybox")]))
        installation.create("box", "--image", "pods", "--memory", "1G", "--work-size", "2G")
        installation.run("vm", "cp", str(root), "box:")
        inside(installation, "podman import --quiet root.tar toy; docker import root.tar toy")
        yield installation
    finally:
        left = installation.close()
    assert not left, f"left behind: {left}"


def inside(pods, script):
    return pods.run("vm", "exec", "box", "--", "sh", "-ec", script, timeout=240).stdout.strip()


def test_its_store_is_overlay_on_the_work_disk(pods):
    info = json.loads(inside(pods, "podman info --format json"))["store"]
    assert info["graphDriverName"] == "overlay"
    assert info["graphRoot"] == "/root/.local/share/containers/storage"
    assert info["graphStatus"]["Backing Filesystem"] == "extfs"
    assert inside(pods, f"findmnt -no SOURCE -T {info['graphRoot']}") == "/dev/vdb"


def test_dockers_too(pods):
    info = json.loads(inside(pods, "docker info --format '{{json .}}'"))
    assert info["Driver"] == "overlay2"
    assert info["DockerRootDir"] == "/root/.local/share/docker"
    assert inside(pods, f"findmnt -no SOURCE -T {info['DockerRootDir']}") == "/dev/vdb"


@pytest.mark.parametrize(("program", "network"), [("podman", "10.88."), ("docker", "172.17.")])
def test_a_container_runs_with_a_network_of_its_own(pods, program, network):
    said = inside(pods, f"{program} run --rm toy /bin/busybox sh -c 'echo inside; /bin/busybox ip -4 -o addr show eth0'")  # fmt: skip
    first, address = said.splitlines()
    assert first == "inside"
    assert f" inet {network}" in address


SAVED = {
    "docker-archive": "podman save --quiet --format docker-archive --output",
    "oci-archive": "podman save --quiet --format oci-archive --output",
    "docker": "docker save --output",
}


@pytest.mark.parametrize("form", SAVED)
def test_what_they_saved_is_imported(pods, tmp_path, form):
    inside(pods, f"{SAVED[form]} {form}.tar toy")
    pods.run("vm", "cp", f"box:{form}.tar", str(tmp_path))
    pods.run("image", "import", str(tmp_path / f"{form}.tar"), "--name", f"toy-{form}", timeout=300)
    assert pods.json("image", "show", f"toy-{form}")["name"] == f"toy-{form}"


def test_what_banger_exported_runs_in_podman(pods, tmp_path):
    layout = tmp_path / "toy.tar"
    pods.run("image", "export", "toy-oci-archive", str(layout), "--as", "oci", timeout=300)
    pods.run("vm", "cp", str(layout), "box:exported.tar")
    inside(pods, "podman pull --quiet oci-archive:exported.tar > id")
    assert inside(pods, 'podman run --rm --network none "$(cat id)" /bin/busybox echo again') == "again"  # fmt: skip
