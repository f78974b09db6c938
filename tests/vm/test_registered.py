"""Real guests of registered images: a kernel, an initramfs and modules of the user's own, and files that were replaced."""

import gzip
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from banger.host.exec import find_program

ASKED = (
    "uname -r; cat /proc/cmdline; cat /etc/banger/services.json; systemctl is-system-running --wait"
)


@pytest.fixture
def registered(banger):
    """Registers an image named ``mine``, and removes it at the end."""

    def register(*options, check=True):
        return banger.run("image", "register", "--name", "mine", *options, check=check)

    yield register
    banger.run("vm", "delete", "--all", check=False)
    for item in banger.json("image", "list"):
        if item["name"].startswith("mine"):
            banger.run("image", "delete", item["id"])


@pytest.fixture
def kernel(test_image, tmp_path):
    """Debian's kernel as a file of the user's: bytes behind its end make another digest, and no other kernel."""
    path = tmp_path / "bzImage"
    path.write_bytes((test_image / "vmlinuz").read_bytes() + bytes(512))
    return path


@pytest.fixture
def modules(test_image, tmp_path):
    """The modules of that kernel, out of the image's root file system."""
    debugfs = find_program("debugfs", package="e2fsprogs")
    argv = [debugfs, "-R", f"rdump /usr/lib/modules {tmp_path}", test_image / "rootfs.img"]
    subprocess.run(argv, check=True, capture_output=True)
    return tmp_path / "modules"


def ask(banger, name):
    """Release, command line and services that the guest has, and whether its systemd is content."""
    done = banger.run("vm", "exec", name, "--", "sh", "-c", ASKED)
    release, cmdline, services, state = done.stdout.splitlines()
    assert state == "running"
    return release, cmdline.split(), json.loads(services)


def test_the_debian_image_with_its_own_kernel_given_as_the_users_boots(
    banger, image, test_image, registered
):
    registered(
        "--from", "debian", "--kernel", test_image / "vmlinuz", "--cmdline", "rw test.mine=1"
    )
    banger.create("one", "--image", "mine")
    release, cmdline, services = ask(banger, "one")
    assert release == image["kernel_release"]
    assert "test.mine=1" in cmdline
    assert services == [{"name": "ssh", "port": 22}]
    assert banger.vm("one")["spec"]["image"] == "mine"


def test_a_kernel_of_ones_own_boots_with_its_modules(
    banger, image, registered, kernel, modules, tmp_path
):
    refused = registered("--from", "debian", "--kernel", kernel, check=False)
    assert refused.returncode == 2
    assert "--modules" in refused.stderr
    refused = registered("--from", "debian", "--kernel", kernel, "--modules", "none", check=False)
    assert "no virtio_mmio and no virtio_blk" in refused.stderr
    packed = tmp_path / "modules.tar.zst"
    subprocess.run(["tar", "--zstd", "-cf", packed, "-C", modules.parent, "modules"], check=True)
    registered("--from", "debian", "--kernel", kernel, "--modules", packed, "--service", "ssh:22")
    banger.create("one", "--image", "mine")
    assert ask(banger, "one")[0] == image["kernel_release"]


def test_files_alone_make_an_image_that_boots(
    banger, image, test_image, registered, kernel, modules
):
    registered("--rootfs", test_image / "rootfs.img", "--kernel", kernel, "--modules", modules)
    made = banger.json("image", "show", "mine")
    for key in ("distribution", "release", "kernel_release", "disk_bytes", "packages", "services"):
        assert made[key] == image[key]
    banger.create("one", "--image", "mine")
    assert ask(banger, "one")[2] == [{"name": "ssh", "port": 22}]
    assert banger.run("vm", "exec", "one", "--", "cat", "/root/.profile").stdout.startswith("#")


@pytest.mark.long
def test_a_kernel_and_an_initramfs_of_ones_own_boot_also_as_a_bzimage(
    banger, image, test_image, registered, kernel, tmp_path
):
    """The manifest is made to say that QEMU cannot enter the ELF kernel."""
    initramfs = tmp_path / "initrd.gz"
    initramfs.write_bytes(gzip.compress((test_image / "initramfs.img").read_bytes()))
    registered("--from", "debian", "--kernel", kernel, "--initramfs", initramfs)
    made = banger.json("image", "show", "mine")
    path = Path(banger.state) / "images" / made["id"] / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "pvh": False}))
    banger.create("one", "--image", "mine")
    assert ask(banger, "one")[0] == image["kernel_release"]
    argv = Path(f"/proc/{banger.vm('one')['status']['pid']}/cmdline").read_bytes().split(b"\0")
    assert argv[argv.index(b"-kernel") + 1].endswith(b"/vmlinuz")


def test_a_kernel_that_somebody_replaced_is_refused_until_the_image_is_mended(
    banger, test_image, registered, kernel
):
    given = ("--from", "debian", "--kernel", kernel, "--initramfs", test_image / "initramfs.img")
    registered(*given)
    banger.create("one", "--image", "mine")
    banger.run("vm", "stop", "one")
    made = banger.json("image", "show", "mine")
    vmlinux = Path(banger.state) / "images" / made["id"] / "vmlinux"
    other = vmlinux.with_name("other")
    shutil.copyfile(vmlinux, other)
    with other.open("r+b") as file:
        file.seek(1 << 20)
        file.write(b"another kernel")
    other.replace(vmlinux)
    for command in (("vm", "start", "one"), ("vm", "create", "--name", "two", "--image", "mine")):
        done = banger.run(*command, check=False)
        assert done.returncode == 5, done.stderr
        assert "vmlinux is not the file" in done.stderr
        assert "banger image register --name mine --replace" in done.stderr
    registered(*given, "--replace")
    assert banger.json("image", "show", "mine")["id"] == made["id"]
    banger.run("vm", "start", "one")
    assert banger.vm("one")["ready"]


@pytest.mark.parametrize(
    ("options", "status"),
    [
        (["--from", "plan9"], 3),
        (["--from", "debian", "--kernel", "/etc/hostname"], 2),
        (["--from", "debian", "--kernel", "/bin/ls"], 2),
        (["--from", "debian", "--kernel", "/no/such/file"], 3),
        (["--from", "debian", "--rootfs", "/bin/ls"], 2),
        (["--from", "debian", "--rootfs", "/dev/zero"], 2),
        (["--from", "debian", "--initramfs", "/etc"], 2),
        (["--from", "debian", "--service", "Web!:80"], 2),
        (["--name", "debian", "--from", "debian"], 4),
        (["--rootfs", "/bin/ls"], 2),
    ],
)
def test_a_bad_registration_gets_an_error_with_a_next_step(shared, options, status):
    done = shared.run("image", "register", "--name", "mine", *options, check=False)
    assert done.returncode == status, done.stderr
    assert "error:" in done.stderr
    assert "hint:" in done.stderr
    assert "Traceback" not in done.stderr
    assert "mine" not in [item["name"] for item in shared.json("image", "list")]
