"""Void images from a real XBPS repository on the loopback: what is not exactly what was locked does not get in, and nothing is left.

The programs of xbps are those on PATH, else a stand-in that is not xbps; the first test's name says which in its output.
"""

import asyncio
import base64
import errno
import hashlib
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

import pytest

from banger.api import schema
from banger.host import download as download_module
from banger.host import faults, fs
from banger.host.probe import root
from banger.images.catalog import ImageCatalog
from banger.images.sandbox import remove_mapped
from banger.images.void import locking
from banger.images.void.locking import make_lock
from banger.model.errors import BangerError, HostLacksError, InvalidInputError, NotFoundError
from tests.framework import xbps_repository
from tests.framework.faulty import Faulty, check_truth, ended
from tests.framework.mirror import Mirror
from tests.framework.toy_root import KERNEL, RELEASE
from tests.framework.xbps_repository import Repository, member, new_key, sign, toy, write_recipe
from tests.host.test_image_build import user  # noqa: F401  fixture

KEY = new_key()
STEPS = "fetch verify place install configure check payload finish pack clear".split()


def nothing(*_):
    pass


class Place:
    """A mirror, a recipe that trusts it, and images of its own."""

    def __init__(self, directory):
        self.directory = directory
        self.repository = toy(directory / "mirror", KEY)
        self.recipe = str(write_recipe(directory, self.repository))
        self.mirror = Mirror(directory / "mirror")
        self.images = directory / "images"

    def lock(self, **more):
        return make_lock(self.recipe, self.images, self.mirror.url, nothing, **more)

    def build(self, *, mirror="", said=nothing):
        catalog = ImageCatalog(
            self.images,
            self.directory / "logs",
            void_mirror=self.mirror.url if mirror == "" else mirror,
        )
        return asyncio.run(catalog.build(self.recipe, name=None, force=True, progress=said))

    @property
    def lock_file(self):
        return self.images / ".void" / "void-toy.lock"

    def entries(self):
        """Images and what was left of builds."""
        return sorted(p.name for p in self.images.glob("*") if p.name not in {".lock", ".void"})

    def kept(self):
        return sorted(p.name for p in (self.images / ".void" / "files").iterdir())

    def changed_lock(self, change):
        """Rewrite the lock file; what is cached stays."""
        data = json.loads(self.lock_file.read_bytes())
        change(data)
        self.lock_file.write_text(json.dumps(data))


@pytest.fixture
def place(monkeypatch):
    monkeypatch.setattr(download_module, "_PAUSE_S", 0.001)
    directory = Path(tempfile.mkdtemp(prefix="bgr-void-", dir="/tmp"))
    directory.chmod(0o755)
    made = Place(directory)
    yield made
    made.mirror.close()
    faults.load("")
    asyncio.run(remove_mapped(directory))


def refused(place, match, error=InvalidInputError):
    """A build is refused, and leaves nothing."""
    with pytest.raises(error, match=match) as raised:
        place.build()
    assert place.entries() == []
    assert raised.value.hint
    return raised.value


def test_a_locked_image_is_built_twice_with_the_same_bytes_and_holds_what_the_packages_hold(
    place, capsys
):
    print(f"the tools are {xbps_repository.TOOLS}")
    _, lock = place.lock()
    assert [p.pkgver for p in lock.packages] == [
        "base-files-1.0_1", "busybox-static-1.0_1", "linux-toy-1.0_1", "python3-1.0_1", "runit-void-1.0_1",
    ]  # fmt: skip
    before = len(place.mirror.asked)
    made = place.build()
    assert len(place.mirror.asked) - before == 5, "index and tools are there from locking"
    asyncio.run(remove_mapped(place.images / made.id))
    assert place.build().id == made.id
    assert len(place.mirror.asked) - before == 5, "nothing is downloaded twice"
    assert (made.distribution, made.kernel_release) == ("void", RELEASE)
    assert made.packages["runit-void"] == "1.0_1"
    directory = place.images / made.id
    assert (directory / "vmlinux").read_bytes() == KERNEL
    root = directory / "rootfs.img"

    def read(path):
        return subprocess.run(
            ["/sbin/debugfs", "-R", f"cat {path}", root], capture_output=True, check=True
        ).stdout

    assert read("/etc/marked") == b"configured\n"
    assert b"exec runsvdir" not in read("/etc/runit/1")
    assert b"runsvdir -P" in read("/etc/runit/2")
    stat = subprocess.run(
        ["/sbin/debugfs", "-R", "stat /usr/bin/owned", root], capture_output=True, check=True
    ).stdout.decode()
    assert "Mode:  04750" in stat
    assert "User:  1000" in stat
    assert read("/usr/lib/banger/finish.sh") == b""


BUILD = """import asyncio, sys
from pathlib import Path
from banger.images.catalog import ImageCatalog
from banger.images.void.locking import make_lock
where, recipe, mirror = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
make_lock(recipe, where / "images", mirror, lambda *words: None)
catalog = ImageCatalog(where / "images", where / "logs", void_mirror=mirror)
print(asyncio.run(catalog.build(recipe, name=None, force=False, progress=lambda *words: None)).id)
"""


def test_an_ordinary_user_locks_and_builds_the_same_bytes_as_root(place, user):  # noqa: F811
    place.lock()
    made = place.build()
    home = place.directory / "home"
    home.mkdir()
    home.chmod(0o777)
    process = user(
        "-c",
        BUILD,
        home,
        place.recipe,
        place.mirror.url,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err.decode()
    assert out.decode().strip() == made.id


def test_modules_are_decompressed_and_those_of_the_file_system_are_in_the_initramfs_when_they_are_modules(
    place,
):
    place.lock()
    made = place.build()
    names = (
        subprocess.run(
            ["cpio", "-t"],
            stdin=(place.images / made.id / "initramfs.img").open("rb"),
            capture_output=True,
            check=True,
        )
        .stdout.decode()
        .split()
        if shutil.which("cpio")
        else []
    )
    data = (place.images / made.id / "initramfs.img").read_bytes()
    order = data.partition(b"jbd2.ko\next4.ko\na.ko\nb.ko\n")
    assert order[1], "loading order: what is needed comes first, what is built in is left out"
    assert b"kernel" not in order[1]
    assert b"fs/ext4/ext4" * 9 in data, "the module is there uncompressed"
    assert not names or "modules/ext4.ko" in names


def test_without_a_lock_file_or_a_mirror_the_next_step_is_told(place):
    error = refused(place, "void-toy has no lock file", NotFoundError)
    assert error.hint.startswith("banger image lock ")
    with pytest.raises(InvalidInputError, match="no Void mirror") as raised:
        make_lock(place.recipe, place.images, None, nothing)
    assert "void_mirror" in raised.value.hint
    place.lock()
    with pytest.raises(BangerError, match="no Void mirror"):
        place.build(mirror=None)
    assert place.entries() == []


def test_a_lock_for_another_package_list_or_another_key_is_refused(place):
    place.lock()
    (place.directory / "list").write_text("runit-void\nlinux-toy\nunwanted\n")
    assert "new: unwanted" in refused(place, "not for this package list").detail
    (place.directory / "list").write_text("runit-void\nlinux-toy\n")
    other = toy(place.directory / "other")
    write_recipe(place.directory, other)
    refused(place, "trusts a key that the recipe does not pin")


@pytest.mark.parametrize("text", ["", "{", '{"version": 2}', "[]"])
def test_a_damaged_lock_file_is_refused(place, text):
    place.lock()
    place.lock_file.write_text(text)
    refused(place, "is damaged")


@pytest.mark.parametrize(
    "path", ["../../etc/passwd", "/etc/passwd", "a/../b", "", "current/.hidden"]
)
def test_a_lock_file_cannot_name_files_elsewhere(place, path):
    place.lock()
    place.changed_lock(lambda data: data["index"].update(path=path))
    refused(place, "is damaged")


@pytest.mark.parametrize("which", ["tools", "index", "package"])
def test_a_file_that_is_not_the_locked_one_is_refused_wherever_it_comes_from(place, which):
    """Replaced at the mirror before it was fetched, then in the cache."""
    _, lock = place.lock()
    locked = lock.packages[0] if which == "package" else getattr(lock, which)
    at_mirror = place.directory / "mirror" / locked.path
    good = at_mirror.read_bytes()
    kept = place.images / ".void" / "files" / locked.sha256
    kept.unlink(missing_ok=True)
    at_mirror.write_bytes(bytes([good[0] ^ 1]) + good[1:])
    assert (
        "SHA-256 is not the lock file's"
        in refused(place, f"{locked.name} could not", HostLacksError).detail
    )
    at_mirror.write_bytes(good + b"!")
    refused(place, f"{locked.name} could not", HostLacksError)
    at_mirror.unlink()
    assert "404" in refused(place, f"{locked.name} could not", HostLacksError).detail
    at_mirror.write_bytes(good)
    made = place.build()
    kept.chmod(0o600)
    kept.write_bytes(b"!" * len(good))
    asyncio.run(remove_mapped(place.images / made.id))
    assert place.build().id == made.id, "it was found damaged, and brought again"


def test_a_signature_in_the_lock_that_is_not_the_keys_is_refused(place):
    place.lock()
    forged = base64.b64encode(
        sign(new_key(), place.repository.file("python3").read_bytes())
    ).decode()
    for signature in (forged, "", "!", base64.b64encode(bytes(256)).decode()):
        place.lock()
        place.changed_lock(lambda data, s=signature: data["packages"][3].update(signature=s))
        assert (
            "python3-1.0_1" in refused(place, "1 packages in the lock file are not signed").detail
        )


@pytest.mark.parametrize("how", ["missing", "of another key", "of another file"])
def test_locking_refuses_a_package_without_a_right_signature_and_keeps_the_old_lock(place, how):
    place.lock()
    before = place.lock_file.read_bytes()
    path = place.repository.file("python3")
    signature = path.with_name(f"{path.name}.sig2")
    if how == "missing":
        signature.unlink()
    else:
        signature.write_bytes(
            sign(KEY, b"x") if how == "of another file" else sign(new_key(), path.read_bytes())
        )
    with pytest.raises(InvalidInputError, match=r"python3-1\.0_1"):
        place.lock()
    assert place.lock_file.read_bytes() == before
    place.build()


def test_a_forged_index_whose_hashes_fit_its_packages_is_refused_by_the_signatures(place):
    """What xbps itself would install from a local repository, and over HTTP if the signature were the mirror's own."""
    evil = Repository(place.directory / "mirror", KEY)
    evil.index = dict(place.repository.index)
    honest = (
        place.repository.file("python3")
        .with_name(place.repository.file("python3").name + ".sig2")
        .read_bytes()
    )
    evil.add(
        "python3",
        {"usr/bin/python3": (b"#!/bin/sh\necho evil\n", 0o755)},
        depends=["busybox-static>=1.0_1"],
    )
    evil.file("python3").with_name(evil.file("python3").name + ".sig2").write_bytes(honest)
    evil.write_index()
    with pytest.raises(
        InvalidInputError, match=r"python3-1\.0_1 is not signed by the repository's key"
    ):
        place.lock()
    assert not place.lock_file.exists()


def test_an_index_of_another_key_or_of_none_is_not_locked(place):
    place.repository.write_index(signed=False)
    with pytest.raises(InvalidInputError, match="not signed"):
        place.lock()
    place.repository.key = new_key()
    place.repository.write_index()
    with pytest.raises(InvalidInputError, match="does not pin") as raised:
        place.lock()
    assert "SHA-256" in raised.value.detail


def test_unknown_packages_are_told_with_the_line_and_what_may_be_meant(place):
    (place.directory / "list").write_text("runit-void\nlinux-toy\npyhton3\n")
    with pytest.raises(InvalidInputError, match="no package 'pyhton3'") as raised:
        place.lock()
    assert f"{place.directory}/list:3: pyhton3" in raised.value.detail
    assert "did you mean 'python3'" in raised.value.hint
    place.repository.add("broken", {"usr/bin/x": b"x"}, depends=["nowhere>=1"])
    place.repository.write_index()
    (place.directory / "list").write_text("runit-void\nlinux-toy\nbroken\n")
    with pytest.raises(HostLacksError, match="cannot resolve") as raised:
        place.lock()
    assert "nowhere" in raised.value.detail


@pytest.mark.parametrize(
    "evil",
    [
        member("./../escaped", b"x"),
        member("/tmp/bgr-escaped", b"x"),
        member("./dev/sda", kind=tarfile.BLKTYPE),
        member("./usr/bin/link", kind=tarfile.LNKTYPE, target="/etc/shadow"),
    ],
    ids=["above", "absolute", "device", "hard link"],
)
def test_a_signed_package_with_a_member_that_leads_out_is_not_opened_by_xbps(place, evil):
    place.repository.add(
        "python3",
        {"usr/bin/python3": (b"#!/bin/sh\n", 0o755)},
        depends=["busybox-static>=0"],
        raw=[evil],
    )
    place.repository.write_index()
    place.lock()
    assert (
        evil[0].name.strip("/")
        in refused(place, "python3-1.0_1 is not one that banger installs").detail
    )
    assert not Path("/tmp/bgr-escaped").exists()


def test_a_script_runs_inside_the_root_alone_and_can_reach_nothing_of_the_host(place):
    """It tries, as root: to write to the host by every way out, to make it writable, to reach the network."""
    target = place.directory / "touched"
    script = f"""
[ "$1" = post ] || exit 0
{{
echo "root is $(ls / | tr '\\n' ' ')"
touch {target} && echo "WROTE by path"
mkdir -p {place.directory} && echo ok > {target}
touch "/proc/1/root{target}" && echo "WROTE by the root of who started it"
mount -o remount,rw,bind / && echo "REMOUNTED"
mount -t proc none /mnt && echo "MOUNTED"
mknod /disk b 8 0 && echo "MADE A DEVICE"
echo "links: $(ls /sys/class/net 2> /dev/null; cat /proc/net/dev | wc -l)"
}} > etc/attempts 2>&1
exit 0
"""
    repository = place.repository
    links = {
        f"usr/bin/{applet}": ("link", "busybox.static")
        for applet in ("tr", "touch", "mknod", "wc", "cut")
    }
    repository.add("unwanted", links, depends=["busybox-static>=0"], install=script)
    repository.write_index()
    (place.directory / "list").write_text("runit-void\nlinux-toy\nunwanted\n")
    place.lock()
    made = place.build()
    assert not target.exists()
    said = subprocess.run(
        ["/sbin/debugfs", "-R", "cat /etc/attempts", place.images / made.id / "rootfs.img"],
        capture_output=True,
        check=True,
    ).stdout.decode()
    print(said)
    assert "root is bin" in said
    for word in ("WROTE by the root", "REMOUNTED", "MOUNTED", "MADE A DEVICE"):
        assert word not in said
    assert "links: 3" in said, "two lines of heading, and the loopback"


def test_a_root_without_a_shell_runs_no_script_on_the_hosts_shell(place):
    """xbps would: the root has no bin/sh. The host's shells are covered, so that nothing runs and the build fails."""
    mark = place.directory / "host-shell-ran"
    repository = Repository(place.directory / "mirror", KEY)
    repository.index = {k: v for k, v in place.repository.index.items() if k == "linux-toy"}
    repository.add(
        "aaa",
        {"usr/bin/aaa": b"x"},
        install=f"echo ran > {mark}; echo ran > /tmp/bgr-host-shell; echo ran > ran\n",
    )
    repository.write_index()
    (place.directory / "list").write_text("aaa\nlinux-toy\n")
    place.lock()
    error = refused(place, "a package could not be configured", HostLacksError)
    assert "aaa" in error.detail
    assert not mark.exists()
    assert not Path("/tmp/bgr-host-shell").exists()


def test_a_root_in_which_a_packages_file_was_changed_or_a_package_failed_is_not_taken(place):
    place.repository.add(
        "unwanted", {"usr/bin/unwanted": b"x"}, install="echo changed > usr/bin/python3\n"
    )
    place.repository.write_index()
    (place.directory / "list").write_text("runit-void\nlinux-toy\nunwanted\n")
    place.lock()
    error = refused(place, "what was installed is not what is locked", HostLacksError)
    assert "python3-1.0_1: /usr/bin/python3 is not as in its package" in error.detail
    place.repository.add(
        "unwanted",
        {"usr/bin/unwanted": b"x"},
        install="echo I cannot >&2; exit 3\n",
        version="1.0_2",
    )
    place.repository.write_index()
    place.lock()
    assert (
        "unwanted-1.0_2"
        in refused(place, "a package could not be configured", HostLacksError).detail
    )


def test_a_mirror_that_goes_down_midway_is_told_and_what_came_is_kept_for_the_next_time(place):
    place.lock()
    place.mirror.ends_after = len(place.mirror.asked) + 2
    error = refused(place, "could not be downloaded", HostLacksError)
    assert error.detail
    kept = place.kept()
    place.mirror.ends_after = None
    asked = len(place.mirror.asked)
    place.build()
    assert len(place.mirror.asked) - asked == 3, "two of five packages had come"
    assert set(kept) <= set(place.kept())


def test_a_mirror_that_goes_down_while_locking_leaves_no_lock_and_no_scratch(place):
    for after in range(6):
        place.mirror.ends_after = len(place.mirror.asked) + after
        with pytest.raises(HostLacksError, match="could not be downloaded"):
            place.lock()
        assert not place.lock_file.exists()
        assert [p.name for p in (place.images / ".void").iterdir()] in ([], ["files"])


def test_a_full_disk_while_a_package_is_brought_leaves_no_part(place, monkeypatch):
    place.lock()

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(download_module, "_write_all", full)
    refused(place, "no space for", HostLacksError)
    assert not [name for name in place.kept() if "part" in name]


@pytest.mark.parametrize("size_mib", [3, 4, 6, 7])
def test_a_disk_that_is_full_in_a_later_step_is_told_and_nothing_is_left(
    place, monkeypatch, size_mib
):
    """While xbps unpacks, while the root is packed, while the file system is made, while it is filled."""
    if not root():
        pytest.skip(f"a small disk needs root: {root().why}")
    monkeypatch.setattr("banger.images.catalog.SPACE_BYTES", 0)
    place.images.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size_mib}m,mode=0700", "none", place.images],
        check=True,
    )
    try:
        place.lock()
        error = refused(place, "no space", HostLacksError)
        assert "df -h" in error.hint
    finally:
        subprocess.run(["umount", place.images], check=True)


def test_the_tools_of_a_tarball_without_them_or_that_is_damaged_are_refused(place):
    tarball = place.directory / "mirror" / xbps_repository.TARBALL
    tarball.write_bytes(
        xbps_repository.tar_of([member("./usr/bin/xbps-install.static", b"x", mode=0o755)])
    )
    with pytest.raises(InvalidInputError, match="has no usr/bin/xbps-reconfigure") as raised:
        place.lock()
    assert "--tools" in raised.value.hint
    tarball.write_bytes(b"no tar")
    with pytest.raises(InvalidInputError, match="damaged"):
        place.lock()
    with pytest.raises(HostLacksError, match="the mirror has no static/other"):
        place.lock(tools="static/other")


@pytest.mark.parametrize("step", STEPS)
def test_a_step_that_fails_leaves_nothing_and_the_next_build_is_whole(place, step):
    place.lock()
    faults.load(f"image.void.{step}=error")
    with pytest.raises(BangerError):
        place.build()
    assert place.entries() == []
    faults.load("")


def test_locks_share_their_files_and_what_no_lock_names_goes(place):
    place.lock()
    place.build()
    stray = place.images / ".void" / "files" / hashlib.sha256(b"stray").hexdigest()
    stray.write_bytes(b"stray")
    (place.images / ".void" / ".banger-new-killed").mkdir()
    place.lock()
    assert not stray.exists()
    assert not (place.images / ".void" / ".banger-new-killed").exists()
    assert len(place.kept()) == 7


@pytest.fixture
def builder(place, namespaces_work):
    banger = Faulty(place.directory / "banger", void_mirror=place.mirror.url)
    (banger.state / "images").unlink()
    banger.run("image", "lock", place.recipe)
    yield banger, place
    assert banger.close() == []


@pytest.mark.timeout(300)
def test_kill_9_of_the_daemon_in_every_step_leaves_nothing_but_what_was_downloaded(builder):
    banger, place = builder
    for step in STEPS:
        banger.is_killed_in(
            f"image.void.{step}",
            lambda client: ended(
                client, client.build_image(schema.ImageBuild(recipe=place.recipe))
            ),
        )
        with banger.daemon() as client:
            check_truth(banger, client, fresh=True)
            assert client.operations(limit=1)[0].state == "failed"
            assert client.images() == [], step
            assert sorted(p.name for p in (banger.state / "images").iterdir()) == [
                ".lock",
                ".void",
            ], step
    with banger.daemon() as client:
        client.wait(client.build_image(schema.ImageBuild(recipe=place.recipe)))
        assert [image.distribution for image in client.images()] == ["void"]


def test_kill_9_while_locking_leaves_the_old_lock_and_the_next_one_clears_up(place, monkeypatch):
    place.lock()
    before = place.lock_file.read_bytes()
    child = os.fork()
    if child == 0:
        monkeypatch.setattr(locking, "_signed", lambda *_: os.kill(os.getpid(), 9))
        try:
            place.lock()
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -9
    assert place.lock_file.read_bytes() == before
    place.lock()
    assert sorted(p.name for p in (place.images / ".void").iterdir()) == ["files", "void-toy.lock"]
    assert fs.free_bytes(place.images) > 0
