"""Recipes built by the real mmdebstrap, apt and dpkg, from a small archive on loopback; good days and bad ones."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import pytest

from banger.host.probe import root
from banger.images import catalog as catalog_module
from banger.images import debian
from banger.images.catalog import ImageCatalog
from banger.images.command import Command
from banger.images.files import files_of, read_files
from banger.images.inventory import sbom
from banger.images.sandbox import remove_mapped
from banger.model.errors import BangerError
from tests.framework.faulty import Faulty
from tests.framework.installation import wait_until
from tests.framework.sleepers import with_argument
from tests.framework.toy_archive import Mirror, ToyArchive
from tests.host.test_image_build import user  # noqa: F401  fixture

SLEEP_S = 7723  # a number that marks this test's processes
RECIPE = """name = "toy"
distribution = "debian"
release = "toy"
architecture = "amd64"
packages = "list"
mirror = "{mirror}"
disk_size = "2G"
work_seed_size = "64M"
kernel_modules = ["b"]
{more}
"""
EXTRAS = """add_packages = ["sudo"]
[[users]]
name = "dev"
groups = ["docker"]
shell = "/bin/sh"
sudo = true
[[files]]
path = "/opt/tool/run"
source = "tool"
mode = "4755"
owner = "dev:docker"
[[files]]
path = "/etc/greeting"
content = "hello\\n"
[[files]]
path = "/root/notes"
content = "in the work seed"
[[hooks]]
stage = "customize"
run = "cp /etc/greeting /srv/copied; mkdir /srv/made; ln -s copied /srv/link; id dev > /srv/id; echo noise > /var/log/noise"
"""
BUILD = """import asyncio, sys
from pathlib import Path
from banger.images.catalog import ImageCatalog
where = Path(sys.argv[1])
catalog = ImageCatalog(where / "images", where / "logs", cache_dir=where / "cache")
print(asyncio.run(catalog.build(sys.argv[2], name=None, force=False, progress=lambda *words: None)).id)
"""


@pytest.fixture(scope="module")
def archive():
    directory = Path(tempfile.mkdtemp(prefix="bga-", dir="/tmp"))
    directory.chmod(0o755)
    made = ToyArchive(directory / "archive")
    yield made
    shutil.rmtree(directory)


@pytest.fixture
def place():
    directory = Path(tempfile.mkdtemp(prefix="bgrec-", dir="/tmp"))
    directory.chmod(0o755)
    yield directory
    asyncio.run(remove_mapped(directory))


@pytest.fixture
def mirror(archive):
    with Mirror(archive.root) as found:
        yield found


class Place:
    """A recipe and a catalog."""

    def __init__(self, place):
        self.place = place
        self.images = place / "state" / "images"
        self.cache = place / "state" / "cache" / "packages"
        self.progress = lambda *_: None

    def write(
        self, mirror, more="", packages="toykernel\ntoy0\ntoy1\ntoy2\n", options="trusted=yes"
    ):
        (self.place / "recipes").mkdir(exist_ok=True)
        (self.place / "list").write_text(packages)
        (self.place / "recipes" / "tool").write_bytes(b"#!/bin/sh\n")
        self.recipe = self.place / "recipes" / "toy.toml"
        line = mirror if isinstance(mirror, str) else mirror.line(options)
        self.recipe.write_text(RECIPE.format(mirror=line, more=more))
        return str(self.recipe)

    def catalog(self):
        state = self.place / "state"
        return ImageCatalog(self.images, state / "logs", cache_dir=state / "cache")

    async def build(self, mirror, *args, force=True, **options):
        recipe = self.write(mirror, *args, **options)
        return await self.catalog().build(recipe, name=None, force=force, progress=self.progress)

    async def fails(self, mirror, *args, **options):
        """The error of a build, as people see it, without this test's directory; nothing is left of it."""
        before = self.left()
        with pytest.raises(BangerError) as raised:
            await self.build(mirror, *args, **options)
        assert self.left() == before
        return raised.value.told().replace(str(self.place), "")

    def left(self):
        found = self.images.iterdir() if self.images.exists() else []
        return sorted(path.name for path in found if path.name != ".lock")


@pytest.fixture
def toy(place, namespaces_work):
    return Place(place)


async def test_users_files_and_hooks_are_in_the_image_and_equal_inputs_give_equal_bytes(toy, mirror):  # fmt: skip
    made = await toy.build(mirror, EXTRAS)
    assert made.packages["toy1"] == "1:1.0"
    directory = toy.images / made.id
    assert {path.name for path in directory.iterdir()} == {*made.files, "manifest.json", "sbom.spdx.json"}  # fmt: skip
    files = await files_of(directory)
    tool = files["/opt/tool/run"]
    assert (oct(tool.mode), tool.uid, tool.size_bytes) == ("0o4755", 1000, 10)
    assert files["/etc/greeting"].digest == files["/srv/copied"].digest
    assert (files["/srv/link"].kind, files["/srv/link"].target) == ("link", "copied")
    assert oct(files["/etc/sudoers.d/50-banger-dev"].mode) == "0o440"
    assert files["/home/dev"].uid == 1000
    assert files["/var/log/noise"].size_bytes == 0
    assert not [path for path in files if "/usr/lib/banger/build" in path or "customize" in path]
    assert not [path for path in files if path.startswith("/var/cache/apt/archives/")]
    shadow = debugfs(directory / "rootfs.img", "cat /etc/shadow").decode()
    assert "\ndev:!:" in shadow, "the account has no password"
    assert b"gid=1000(dev) groups=1000(dev),999(docker)" in debugfs(directory / "rootfs.img", "cat /srv/id")  # fmt: skip
    assert debugfs(directory / "work-seed.img", "cat notes") == b"in the work seed"
    stored = {path.name: path.read_bytes() for path in directory.glob("*.json")}
    without_cache = ImageCatalog(toy.images, toy.place / "logs")
    again = await without_cache.build(
        str(toy.recipe), name=None, force=True, progress=lambda *_: None
    )
    assert again.id == made.id
    assert mirror.debs.count("toybase") == 2
    assert stored["sbom.spdx.json"] == (directory / "sbom.spdx.json").read_bytes()
    assert [package["name"] for package in json.loads(stored["sbom.spdx.json"])["packages"]] == ["toy", "sudo", "toy0", "toy1", "toy2", "toybase", "toykernel"]  # fmt: skip


async def test_an_ordinary_user_builds_the_same_bytes_and_keeps_downloads_too(toy, mirror, place, user):  # noqa: F811  # fmt: skip
    made = await toy.build(mirror, EXTRAS)
    home = place / "home"
    home.mkdir()
    home.chmod(0o777)
    for number in range(2):
        mirror.asked.clear()
        process = user("-c", BUILD, home, toy.recipe, stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err.decode()
        assert out.decode().strip() == made.id
        assert len(mirror.debs) == (0 if number else 6)
        shutil.rmtree(home / "images")


def debugfs(image, command):
    return subprocess.run(["/sbin/debugfs", "-R", command, image], capture_output=True, check=True).stdout  # fmt: skip


async def test_what_was_downloaded_is_not_downloaded_again_and_a_damaged_file_is(toy, mirror):
    made = await toy.build(mirror)
    assert mirror.debs == ["toy0", "toy1", "toy2", "toybase", "toykernel"]
    assert len(list(toy.cache.iterdir())) == 5
    mirror.asked.clear()
    victim = min(toy.cache.iterdir(), key=lambda path: path.stat().st_size)  # the kernel's
    data = victim.read_bytes()
    victim.unlink()
    victim.write_bytes(data[:-4] + b"evil")
    assert (await toy.build(mirror)).id == made.id
    assert mirror.debs == ["toykernel"]
    assert victim.read_bytes() == data
    path, size_bytes = toy.catalog().downloads()
    assert path == toy.cache.parent
    assert size_bytes > 5 << 20
    toy.catalog().clear_downloads()
    assert toy.catalog().downloads() is None


async def test_a_plan_has_the_commands_that_the_build_then_runs_and_makes_nothing(toy, mirror, monkeypatch):  # fmt: skip
    recipe = toy.write(mirror, EXTRAS)
    plan = toy.catalog().plan(recipe, name=None)
    assert not toy.images.exists()
    assert mirror.asked == []
    ran = []

    async def note(self, **options):
        ran.append(self.argv)
        return await original(self, **options)

    async def note_too(argv, **options):
        ran.append(tuple(argv))
        return await run(argv, **options)

    original, run = Command.run, debian.run
    monkeypatch.setattr(Command, "run", note)
    monkeypatch.setattr(debian, "run", note_too)
    made = await toy.build(mirror, EXTRAS)
    work = next(part for word in ran[0] for part in word.split("/") if part.startswith(".build-"))
    planned = [argv for stage in plan.stages for argv in stage.commands]
    assert planned == [tuple(word.replace(work, ".build-XXXXXXXX") for word in argv) for argv in ran]  # fmt: skip
    assert plan.inputs_digest == made.inputs_digest
    assert plan.up_to_date == ""
    after = toy.catalog().plan(recipe, name=None)
    assert (after.up_to_date, after.cached_files, after.users) == (made.id, 6, ("dev",))


async def test_unknown_packages_are_told_with_the_lines_that_ask_for_them(toy, mirror):
    said = await toy.fails(mirror, 'add_packages = [\n  "neither",\n]', packages="toykernel\ntoy0\nnosuch\n")  # fmt: skip
    assert said == (
        "error: image toy could not be built: debian toy has no package 'neither', 'nosuch'\n"
        "/recipes/toy.toml:11: neither\n/list:3: nosuch\n\n"
        "hint: mend /recipes/toy.toml:11, or name another mirror"
    )


async def test_an_index_without_a_valid_signature_is_refused(toy, mirror, archive, place):
    said = await toy.fails(mirror, options="")
    assert "the mirror's index has no valid signature" in said
    assert "signed-by=" in said
    if shutil.which("gpg") is None:
        pytest.skip("no gpg to sign with")
    right = archive.sign(place / "right")
    try:
        assert (await toy.build(mirror, options=f"signed-by={right}")).packages["toy0"] == "1:0.0"
        archive.sign(place / "other")  # another key signs now
        said = await toy.fails(mirror, options=f"signed-by={right}")
        assert "the mirror's index has no valid signature" in said
    finally:
        archive.release.with_name("InRelease").unlink()
    assert mirror.debs.count("toy0") == 1


async def test_a_package_that_is_not_what_the_index_promises_is_refused(toy, mirror):
    mirror.damaged = {"toy2"}
    said = await toy.fails(mirror)
    assert "1 file from 127.0.0.1:" in said
    assert "is not what its index promises\ntoy2.deb: Hash Sum mismatch" in said
    mirror.damaged = set()
    mirror.asked.clear()
    await toy.build(mirror)
    assert mirror.debs == ["toy2"], "what was fetched before was kept, and nothing else"


async def test_a_mirror_that_goes_down_midway_is_told_and_the_next_build_fetches_the_rest(toy, archive):  # fmt: skip
    with Mirror(archive.root) as mirror:
        mirror.budget = (archive.pool / "toybase.deb").stat().st_size + 300_000
        said = await toy.fails(mirror)
        line = mirror.line()
    assert "files from 127.0.0.1:" in said
    assert "could not be fetched\ntoy1.deb: " in said
    assert "what was fetched is kept" in said
    said = await toy.fails(line)
    assert "1 file from 127.0.0.1:" in said
    assert "InRelease: Could not connect" in said
    with Mirror(archive.root) as mirror:
        await toy.build(mirror)
        assert mirror.debs == ["toy1", "toy2", "toykernel"]


async def test_a_hook_that_fails_is_told_with_its_place_and_its_words(toy, mirror):
    said = await toy.fails(mirror, '[[hooks]]\nstage = "customize"\nrun = "echo about to fail; exit 7"')  # fmt: skip
    assert said == (
        "error: image toy could not be built: hook hooks[0] of the recipe failed with status 7\n"
        "about to fail\nit stands in /recipes/toy.toml:10:1\n\nhint: mend /recipes/toy.toml:10:1"
    )


async def test_a_hook_sees_the_image_and_not_the_host(toy, mirror, place):
    (place / "secret").write_text("the host's")
    look = f"test ! -e {place}/secret; test ! -e {sys.prefix}; echo $$ > /srv/pid"
    made = await toy.build(mirror, f'[[hooks]]\nstage = "customize"\nrun = "{look}"')
    pid = int(debugfs(toy.images / made.id / "rootfs.img", "cat /srv/pid"))
    assert pid < 20_000, "it had a PID namespace of its own"


async def test_images_differ_by_packages_and_files(toy, mirror):
    one = await toy.build(mirror)
    other = await toy.build(mirror, 'add_packages = ["toy3"]\n[[files]]\npath = "/etc/passwd-note"\ncontent = "x"', packages="toykernel\ntoy0\ntoy1\n")  # fmt: skip
    names = {(image.name, image.id) for image in toy.catalog().list()}
    assert names == {(f"toy-{one.id}", one.id), ("toy", other.id)}
    found = await toy.catalog().diff(one.id, other.id)
    assert [(item.what, item.name, item.before, item.after) for item in found.packages] == [
        ("removed", "toy2", "1:2.0", ""),
        ("added", "toy3", "", "1:3.0"),
    ]
    files = {item.name: (item.what, item.before[:19], item.after[:19]) for item in found.files}
    assert files["/etc/passwd-note"] == ("added", "", "file 0644 0:0 1 B s")
    assert files["/usr/share/toy/2"][:2] == ("removed", "file 0644 0:0 26214")
    assert files["/usr/share/toy/3"][0] == "added"
    assert files["/var/lib/dpkg/status"][0] == "changed"
    assert "/usr/share/toy/0" not in files
    assert not [path for path in files if not path.startswith(("/etc/passwd-note", "/usr/share/toy/", "/var/lib/dpkg"))]  # fmt: skip
    same = await toy.catalog().diff(one.id, one.id)
    assert (same.packages, same.files) == ((), ())


async def test_the_list_of_files_is_that_of_the_tree(tmp_path):
    """Every kind, odd names, large and sparse contents: against what the host's own file system says."""
    tree = tmp_path / "tree"
    (tree / "deep" / "er").mkdir(parents=True)
    (tree / "empty").write_bytes(b"")
    (tree / "large").write_bytes(os.urandom(25 << 20))
    (tree / "debugfs: cat <12>").write_bytes(b"debugfs: cat <13>\n" * 99)
    (tree / "with\nline\tand 'quotes\"").write_bytes(b"x")
    (tree / "deep" / "er" / "/etc".strip("/")).write_bytes(b"1/2/3/")
    (tree / "long").symlink_to("t" * 200)
    (tree / "short").symlink_to('x"y')
    os.mkfifo(tree / "fifo")
    os.link(tree / "empty", tree / "hard")
    with (tree / "sparse").open("wb") as file:
        file.truncate(30 << 20)
    (tree / "suid").write_bytes(b"s")
    (tree / "suid").chmod(0o6711)
    for number in range(3000):
        (tree / "deep" / f"n{number}").write_bytes(b"%d" % number)
    image = tmp_path / "image"
    subprocess.run(["/sbin/mke2fs", "-q", "-t", "ext4", "-d", tree, image, "120M"], check=True, capture_output=True)  # fmt: skip
    found = await read_files(image, tmp_path)
    del found["/lost+found"]
    expected = {}
    for path in sorted(tree.rglob("*")):
        name = f"/{path.relative_to(tree)}"
        status = path.lstat()
        kind = "link" if path.is_symlink() else "directory" if path.is_dir() else "fifo" if path.is_fifo() else "file"  # fmt: skip
        digest = subprocess.run(["sha256sum"], stdin=path.open("rb"), capture_output=True, check=True).stdout.split()[0].decode() if kind == "file" and "/n" not in name else ""  # fmt: skip
        expected[name] = (kind, status.st_mode & 0o7777, status.st_uid, status.st_size if kind == "file" else 0, digest, os.readlink(path) if kind == "link" else "")  # fmt: skip
    assert {
        name: (fact.kind, fact.mode, fact.uid, fact.size_bytes, "" if "/n" in name else fact.digest, fact.target)
        for name, fact in found.items()
    } == expected  # fmt: skip


async def test_an_image_without_an_inventory_gets_one_from_its_root(toy, mirror):
    """As a registered or promoted one."""
    made = await toy.build(mirror)
    directory = toy.images / made.id
    built = (directory / "sbom.spdx.json").read_bytes()
    (directory / "sbom.spdx.json").unlink()
    assert await sbom(directory, made) == built


@pytest.fixture
def small_disk(toy):
    """The state directory is a tmpfs of its own."""
    if not root():
        pytest.skip("mounting a small disk needs root")
    state = toy.images.parent
    state.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=80m", "none", state], check=True)
    yield state
    subprocess.run(["umount", state], check=True)


async def test_a_disk_that_is_too_small_is_refused_with_numbers(toy, mirror, small_disk):
    said = await toy.fails(mirror)
    assert "no space to build an image" in said
    assert "3G are needed" in said
    assert mirror.asked == []


async def test_a_disk_that_is_full_in_any_stage_is_told_and_gets_its_space_back(toy, mirror, small_disk, monkeypatch):  # fmt: skip
    """Somebody else fills it at the beginning of each stage in turn."""
    monkeypatch.setattr(catalog_module, "SPACE_BYTES", 0)
    filler = small_disk / "filler"
    for stage in ("packages", "unpack", "ext4", "kernel", "initramfs", "seed", "seal"):

        def fill(name, detail, stage=stage):
            if stage in {name, detail.rpartition(", ")[2]} and not filler.exists():
                with filler.open("wb", buffering=0) as file, suppress(OSError):
                    while True:
                        file.write(bytes(1 << 16))

        toy.progress = fill
        said = await toy.fails(mirror)
        assert filler.exists(), f"{stage} was not reached"
        assert "could not be built: no space" in said, (stage, said)
        assert "hint: " in said
        filler.unlink()
    toy.progress = lambda *_: None
    assert (await toy.build(mirror)).name == "toy"


def sleepers():
    """Processes of the hook."""
    return with_argument(SLEEP_S)


@pytest.mark.parametrize("where", ["download", "hook"])
async def test_kill_9_in_the_middle_leaves_no_process_and_the_next_build_works(toy, mirror, where):
    if where == "download":
        mirror.slow_s = 60
    hook = f'[[hooks]]\nstage = "customize"\nrun = "sleep {SLEEP_S}"'
    recipe = toy.write(mirror, hook)
    command = [sys.executable, "-c", BUILD, toy.place / "state", recipe]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": "src"})  # fmt: skip
    reached = (lambda: mirror.debs) if where == "download" else sleepers
    wait_until(lambda: reached() or process.poll() is not None, 60, f"no {where}")
    assert process.poll() is None, process.stderr.read().decode()
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    work = next(path for path in toy.images.iterdir() if path.name.startswith(".build-"))
    wait_until(lambda: not _users_of(work) + sleepers(), 60, "processes outlived the build")
    assert str(work) not in Path("/proc/self/mountinfo").read_text()
    mirror.slow_s = 0
    made = await toy.build(mirror)
    assert toy.left() == [made.id]
    assert not [path for path in toy.cache.iterdir() if path.suffix == ".part"]


def _users_of(directory):
    """Processes that name the directory in their command lines."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if str(directory).encode() in (entry / "cmdline").read_bytes():
                    found.append(entry.name)
            except OSError:
                continue
    return found


@pytest.fixture
def banger(place, namespaces_work):
    """A banger with images of its own."""
    banger = Faulty(place / "banger")
    (banger.state / "images").unlink()
    yield banger
    assert banger.close() == []


def test_a_person_explains_builds_compares_and_prunes(banger, toy, mirror):
    recipe = toy.write(mirror, EXTRAS)
    with banger.daemon():
        plan = banger.run("image", "build", recipe, "--explain").stdout
        assert "mmdebstrap --mode=root" in plan
        assert "up to date    no" in plan
        assert banger.json("image", "list") == []
        one = banger.json("image", "build", recipe)
        bare_s, took_s = [], []
        for _ in range(5):  # by turns, the least of each: others use the processors too
            began = time.monotonic()
            banger.json("image", "list")
            bare_s.append(time.monotonic() - began)
            began = time.monotonic()
            assert banger.json("image", "build", recipe)["id"] == one["id"]
            took_s.append(time.monotonic() - began)
        assert min(took_s) <= min(bare_s) + 1.0, "nothing has changed"
        assert one["id"] in banger.run("image", "build", recipe, "--explain").stdout
        toy.write(mirror, EXTRAS.replace("hello", "goodbye"))
        other = banger.json("image", "build", recipe)
        found = banger.json("image", "diff", one["id"], other["id"])
        assert found["packages"] == []
        assert [item["name"] for item in found["files"]] == ["/etc/greeting", "/srv/copied"]
        document = json.loads(banger.run("image", "sbom", "toy").stdout)
        assert len(document["packages"]) == 7
        cache = [item for item in banger.json("df")["items"] if item["name"] == "cache"]
        assert cache[0]["allocated_bytes"] > 5 << 20
        assert [item["kind"] for item in banger.json("prune", "--yes")] == ["cache"]
        assert list((banger.state / "cache" / "packages").iterdir()) == []
        toy.write(mirror, EXTRAS.replace("hello", "goodbye") + "\nsizes = 3")
        failed = banger.run("image", "build", recipe, check=False)
        assert failed.returncode == 2
        assert f"error: {recipe}:" in failed.stderr
