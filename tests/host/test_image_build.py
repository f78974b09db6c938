"""Image builds with real namespaces, and what is left when they are ended: nothing."""

import asyncio
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from banger.api import schema
from banger.host import fs
from banger.host.probe import root
from banger.images import build as build_module
from banger.images import sandbox
from banger.images.catalog import ImageCatalog
from banger.images.distributions import distribution
from banger.images.kernel import extract_vmlinux
from banger.images.sandbox import check_subordinate_ids, remove_mapped
from banger.model.errors import HostLacksError
from tests.framework.faulty import Faulty, check_truth, ended
from tests.framework.installation import wait_until
from tests.framework.ordinary_user import processes_of
from tests.framework.sleepers import with_argument
from tests.framework.toy_root import KERNEL, RELEASE, fake_mmdebstrap, root_tar

ROOT = Path(__file__).parents[2]
USER = f"banger-images{os.environ.get('PYTEST_XDIST_WORKER', '')}"  # another process has its own
SLEEP_S = 7719  # a number that marks this test's processes
RECIPE = """name = "toy"
distribution = "debian"
release = "bookworm"
architecture = "amd64"
packages = "list"
disk_size = "2G"
work_seed_size = "64M"
kernel_modules = ["b"]
cmdline = "rw"
[[services]]
name = "ssh"
port = 22
"""
HANG = (
    f"sleep {SLEEP_S} & (sleep {SLEEP_S} & exec setsid sleep {SLEEP_S}) & : > {{notes}}/began; wait"
)
BUILD = """import asyncio, sys
from pathlib import Path
from banger.images.catalog import ImageCatalog
where = Path(sys.argv[1])
catalog = ImageCatalog(where / "images", where / "logs")
if sys.argv[3:] == ["sweep"]:
    asyncio.run(catalog.sweep())
else:
    print(asyncio.run(catalog.build(sys.argv[2], name=None, force=False, progress=lambda *words: None)).id)
"""


@pytest.fixture
def place():
    """A directory that every user may enter."""
    directory = Path(tempfile.mkdtemp(prefix="bgi-", dir="/tmp"))
    directory.chmod(0o777)
    yield directory
    asyncio.run(remove_mapped(directory))


@pytest.fixture
def toy(place, monkeypatch):
    """A recipe, with a stand-in for mmdebstrap that behaves as told."""

    def prepare(behaviour=":"):
        (place / "images-of").mkdir(exist_ok=True)
        recipe = place / "images-of" / "toy.toml"
        recipe.write_text(RECIPE)
        (place / "list").write_text("bash\n")
        (place / "bin").mkdir(exist_ok=True)
        (place / "bin").chmod(0o777)
        tar = root_tar(place / "root.tar")
        fake_mmdebstrap(place / "bin", tar, behaviour.format(notes=place / "bin"))
        monkeypatch.setenv("PATH", f"{place / 'bin'}:{os.environ['PATH']}")
        monkeypatch.setattr(build_module, "EPOCH_S", 1767225600)
        return str(recipe)

    return prepare


@pytest.fixture
def user():
    """Runs a Python program as an ordinary user who has subordinate ids."""
    if not root():
        yield lambda *argv, **options: subprocess.Popen([sys.executable, *argv], **options)
        return
    if not Path("/usr/bin/python3").exists() or shutil.which("useradd") is None:
        pytest.skip("no system Python or useradd for another user")
    subprocess.run(["useradd", "--create-home", USER], check=True, capture_output=True)
    account = pwd.getpwnam(USER)
    packages = next(path for path in sys.path if path.endswith("site-packages"))
    env = {
        "HOME": account.pw_dir,
        "PATH": os.environ["PATH"],
        "PYTHONPATH": f"{ROOT / 'src'}:{packages}",
        "PYTHONDONTWRITEBYTECODE": "1",
    }

    def start(*argv, **options):
        options = {"cwd": "/", **options}
        command = ["/usr/bin/python3", *argv]
        return subprocess.Popen(
            command, user=account.pw_uid, group=account.pw_gid, extra_groups=[], env={**env, "PATH": os.environ["PATH"]}, **options
        )  # fmt: skip

    try:
        can = start(
            "-c", "import msgspec, lz4.block, banger.images.catalog", stderr=subprocess.PIPE
        )
        why = can.communicate(timeout=90)[1].decode().strip().splitlines()
        if can.returncode != 0:
            pytest.skip(f"another user cannot import banger here: {why[-1]}")
        yield start
    finally:
        wait_until(lambda: not processes_of(account.pw_uid), 30, "processes of the user were left")
        subprocess.run(["userdel", "--remove", USER], check=True, capture_output=True)


def sleepers():
    """Processes that the stand-in started."""
    return with_argument(SLEEP_S)


def entries(place):
    return sorted(path.name for path in (place / "images").iterdir() if path.name != ".lock")


def finish(process, timeout=120):
    out, err = process.communicate(timeout=timeout)
    assert process.returncode == 0, err.decode()
    return out.decode().strip()


async def test_a_build_makes_every_file_and_a_manifest_that_tells_the_truth(toy, place):
    said = []
    catalog = ImageCatalog(place / "images", place / "logs", mirror="http://mirror.test/debian")
    made = await catalog.build(
        toy(), name=None, force=False, progress=lambda stage, detail: said.append(stage)
    )
    assert list(dict.fromkeys(said)) == [
        "resolve",
        "packages",
        "rootfs",
        "kernel",
        "initramfs",
        "seed",
        "seal",
    ]
    directory = place / "images" / made.id
    assert sorted(p.name for p in directory.iterdir()) == sorted(
        [*build_module.FILES, "manifest.json", "sbom.spdx.json"]
    )
    for name, entry in made.files.items():
        assert (directory / name).stat().st_size == entry.size_bytes
        assert fs.sparse_digest(directory / name) == entry.digest
    assert (directory / "vmlinux").read_bytes() == KERNEL
    assert extract_vmlinux((directory / "vmlinuz").read_bytes()) == KERNEL
    assert (made.kernel_release, made.packages, made.cmdline) == (RELEASE, {"bash": "5.2"}, "rw")
    assert (made.recipe, made.pvh) == (str(place / "images-of" / "toy.toml"), True)
    assert made.kernel_digest == made.files["vmlinuz"].digest
    assert (
        json.loads((directory / "manifest.json").read_text())["inputs_digest"] == made.inputs_digest
    )
    seed = subprocess.run(
        ["/sbin/debugfs", "-R", "cat .bashrc", directory / "work-seed.img"],
        capture_output=True,
        check=True,
    )
    assert seed.stdout == b"PS1=x\n"
    boot = subprocess.run(
        ["/sbin/debugfs", "-R", "ls /boot", directory / "rootfs.img"],
        capture_output=True,
        check=True,
    )
    assert b"vmlinuz" not in boot.stdout
    argv = (place / "bin" / "argv").read_text().split()
    assert argv[-1] == "http://mirror.test/debian"
    assert argv[-3] == "bookworm"
    assert "--include=bash" in argv
    assert "I: pretending" in (place / "logs" / "image-toy.log").read_text()


async def test_a_kernel_that_another_image_has_is_taken_from_there(toy, place):
    recipe, said = toy(), []
    catalog = ImageCatalog(place / "images", place / "logs")
    for name in ("one", "two"):
        said.clear()
        made = await catalog.build(
            recipe, name=name, force=False, progress=lambda *words: said.append(words)
        )
        kernel = [detail for stage, detail in said if stage == "kernel"][-1]
        assert ("of another image" in kernel) == (name == "two")
        assert (place / "images" / made.id / "vmlinux").read_bytes() == KERNEL


async def test_no_mirror_is_named_unless_one_is_set(toy, place):
    catalog = ImageCatalog(place / "images", place / "logs")
    await catalog.build(toy(), name=None, force=False, progress=lambda *words: None)
    assert (place / "bin" / "argv").read_text().split()[-1].endswith("/root.tar")


async def test_a_mirror_that_fails_is_told_with_its_last_words_and_leaves_nothing(toy, place):
    recipe = toy("echo 'E: the mirror burned down' >&2; exit 25")
    catalog = ImageCatalog(place / "images", place / "logs")
    with pytest.raises(HostLacksError, match="could not be built") as raised:
        await catalog.build(recipe, name=None, force=False, progress=lambda *words: None)
    assert "the mirror burned down" in raised.value.detail
    assert entries(place) == []


async def test_a_cancelled_build_ends_every_process_and_leaves_nothing(toy, place):
    catalog = ImageCatalog(place / "images", place / "logs")
    task = asyncio.create_task(
        catalog.build(toy(HANG), name=None, force=False, progress=lambda *words: None)
    )
    async with asyncio.timeout(90):
        while not (place / "bin" / "began").exists() or len(sleepers()) < 3:
            assert not task.done(), task.result()
            await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert entries(place) == []
    wait_until(lambda: not sleepers(), 30, "processes were left")


async def test_an_image_is_built_by_an_ordinary_user_with_the_same_bytes_as_by_root(
    toy, place, user
):
    recipe = toy()
    catalog = ImageCatalog(place / "images", place / "logs")
    made = await catalog.build(recipe, name=None, force=False, progress=lambda *words: None)
    (place / "home").mkdir()
    (place / "home").chmod(0o777)
    assert (
        finish(
            user(
                "-c", BUILD, place / "home", recipe, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
        )
        == made.id
    )


def test_kill_9_of_a_users_build_ends_every_process_and_the_next_start_removes_the_rest(
    toy, place, user
):
    recipe = toy(HANG)
    process = user("-c", BUILD, place, recipe, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    wait_until(
        lambda: (
            ((place / "bin" / "began").exists() and len(sleepers()) == 3)
            or process.poll() is not None
        ),
        90,
    )
    assert process.poll() is None, process.stderr.read().decode()
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    wait_until(lambda: not sleepers(), 30, "processes outlived the build")
    (left,) = entries(place)
    scratch = place / "images" / left / "tmp" / "scratch"
    assert scratch.stat().st_uid >= 1000, "the stand-in made a file of another owner"
    finish(
        user("-c", BUILD, place, recipe, "sweep", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    )
    assert entries(place) == []


def test_a_user_without_subordinate_ids_is_told_the_command(tmp_path):
    path = tmp_path / "subuid"
    for text in (None, "other:100000:65536\n", "me:100000:1000\n", "me:nonsense\n"):
        if text is not None:
            path.write_text(text)
        with pytest.raises(HostLacksError, match="user me has no subordinate ids") as raised:
            check_subordinate_ids(path, "me", 1000)
        assert raised.value.hint.startswith("sudo usermod --add-subuids")
    for text in ("me:100000:65536\n", "1000:100000:65536\n"):
        path.write_text(text)
        check_subordinate_ids(path, "me", 1000)


async def test_a_host_that_forbids_namespaces_is_told_why(monkeypatch):
    monkeypatch.setattr(
        sandbox, "sandboxed", lambda argv: ["sh", "-c", "echo unshare failed: no >&2; exit 1"]
    )
    with pytest.raises(HostLacksError, match="namespaces") as raised:
        await sandbox.check_sandbox()
    assert "unshare failed: no" in raised.value.detail
    assert raised.value.hint


async def test_a_missing_tool_is_told_with_its_package(monkeypatch, tmp_path):
    monkeypatch.setattr("banger.host.exec.search_path", lambda: str(tmp_path))
    with pytest.raises(HostLacksError, match="mmdebstrap") as raised:
        await build_module.check_host(distribution("debian"))
    assert "apt-get install mmdebstrap" in raised.value.hint


async def test_removing_what_is_ones_own_needs_no_namespace(place, monkeypatch):
    monkeypatch.setattr(sandbox, "sandboxed", lambda argv: ["false"])
    (place / "victim" / "inner").mkdir(parents=True)
    await remove_mapped(place / "victim")
    assert not (place / "victim").exists()


async def test_removing_waits_for_somebody_who_still_writes(place):
    victim = place / "victim"
    victim.mkdir()
    keep_on = f"import os, time\nend = time.time() + 1\nn = 0\nwhile time.time() < end:\n  n += 1\n  os.makedirs('{victim}/d%d' % n, exist_ok=True)"
    writer = subprocess.Popen([sys.executable, "-c", keep_on])
    await asyncio.sleep(0.2)
    began = time.monotonic()
    await remove_mapped(victim)
    writer.wait(60)
    await remove_mapped(victim)
    assert not victim.exists()
    assert time.monotonic() - began < 60


@pytest.mark.long
@pytest.mark.timeout(900)
async def test_the_debian_image_has_the_same_bytes_when_root_and_a_user_build_it(place, user):
    """Slow: two real builds of the whole image, from the packages of a mirror."""
    other = place / "home"
    other.mkdir()
    other.chmod(0o777)
    process = user("-c", BUILD, other, "debian", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        catalog = ImageCatalog(place / "images", place / "logs")
        made = await catalog.build("debian", name=None, force=False, progress=lambda *words: None)
        assert finish(process, timeout=600) == made.id
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    theirs = json.loads((other / "images" / made.id / "manifest.json").read_text())
    assert {name: entry["digest"] for name, entry in theirs["files"].items()} == {
        name: entry.digest for name, entry in made.files.items()
    }


@pytest.fixture
def builder(toy, place, namespaces_work):
    """A banger with images of its own, and the recipe of one."""
    recipe = toy()
    banger = Faulty(place / "banger")
    (banger.state / "images").unlink()
    yield banger, recipe
    assert banger.close() == []


def test_an_image_is_built_again_only_when_forced_and_can_be_deleted(builder, place):
    banger, recipe = builder
    built = place / "bin" / "argv"  # the stand-in for mmdebstrap notes that it was called
    with banger.daemon():
        first = banger.json("image", "build", recipe)
        built.unlink()
        assert banger.json("image", "build", recipe)["id"] == first["id"]
        assert not built.exists()
        banger.run("image", "build", recipe, "--force")
        assert built.exists()
        assert [image["name"] for image in banger.json("image", "list")] == ["toy"]
        banger.run("image", "delete", "toy")
        assert banger.json("image", "list") == []
        assert banger.run("image", "delete", "toy", check=False).returncode == 3
    assert [path.name for path in (banger.state / "images").iterdir()] == [".lock"]


@pytest.mark.timeout(240)
def test_kill_9_of_the_daemon_before_any_stage_of_a_build_leaves_nothing(builder):
    """The stages are those of a real build; killed after the last one the image is whole."""
    banger, recipe = builder
    with banger.daemon() as client:
        done = client.wait(client.build_image(schema.ImageBuild(recipe=recipe)))
        client.delete_image("toy")
    stages = [stage.name for stage in done.stages]
    assert len(stages) > 3
    for point in [*(f"{stage}.before" for stage in stages), f"{stages[-1]}.after"]:
        banger.is_killed_in(
            f"image.build.{point}",
            lambda client: ended(client, client.build_image(schema.ImageBuild(recipe=recipe))),
        )
        with banger.daemon() as client:
            check_truth(banger, client, fresh=True)
            assert client.operations(limit=1)[0].state == "failed"
            if point.endswith("after"):
                client.delete_image("toy")
            assert client.images() == [], point
            assert [path.name for path in (banger.state / "images").iterdir()] == [".lock"], point
