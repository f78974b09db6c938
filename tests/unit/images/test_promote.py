"""An image out of a VM's disks: what stays, what goes, who it is of; hostile disks, full disks, kills."""

import asyncio
import os
import shutil
import subprocess
from dataclasses import replace

import pytest

from banger.host import fs
from banger.images import mend, promote
from banger.images.catalog import ImageCatalog
from banger.images.seal import put_manifest
from banger.images.seeds import SEED
from banger.model.errors import (
    BangerError,
    HostLacksError,
    InvalidInputError,
    NotFoundError,
    RefusedError,
)
from banger.model.manifest import GIVEN, PROMOTED
from banger.model.promotion import Promotion, PromotionSource
from banger.model.units import MIB
from tests.framework import toy_register as toy
from tests.unit.images.test_register import as_stated, content, entries
from tests.unit.images.test_seeds import an_image, is_whole, names
from tests.unit.images.test_seeds import content as inside

KEYS = ("ssh_host_ed25519_key", "ssh_host_ed25519_key.pub", "ssh_host_rsa_key")
SECRET = b"secret of this vm alone " * 200
OF_THE_VM = {
    **{f"etc/ssh/{name}": SECRET for name in KEYS},
    **dict.fromkeys(("etc/machine-id", "etc/hostname", "etc/banger/agent-token"), SECRET),
    **dict.fromkeys(("etc/banger/authorized_keys", "var/lib/dhcp/eth0.leases"), SECRET),
    **dict.fromkeys(("var/log/syslog", "var/log/apt/term.log", "var/log/a b\tc;rm x"), SECRET),
}  # fmt: skip
KEPT = {
    "etc/ssh/sshd_config": b"Port 22\n",
    "etc/ssh/ssh_host_of_mine": b"a file of the user's",
    "opt/mine": b"installed",
    "usr/lib/banger/payload": b"2\n",
}
HISTORY = {"root/.bash_history": b"typed", "home/me/.python_history": b"typed"}
WORK = {".bashrc": b"x", ".profile": b"x", "note": b"mine", ".bash_history": b"typed", ".ssh/id_ed25519": b"key"}  # fmt: skip
STAGES = ["flatten", "repair", "clean", "compact", "seed", "kernel", "seal"]


@pytest.fixture
def catalog(tmp_path):
    return ImageCatalog(tmp_path / "images", tmp_path / "logs")


@pytest.fixture
def base(catalog):
    return an_image(catalog, payload=1)[0]


@pytest.fixture
def disks(tmp_path):
    """The disks of a VM: root and work."""
    root = toy.ext4(tmp_path / "root.img", {**toy.FILES, **OF_THE_VM, **KEPT, **HISTORY}, size_kib=64 << 10)  # fmt: skip
    work = toy.ext4(tmp_path / "work.img", WORK, size_kib=96 << 10)
    return root, work


def source(base, disks, copy=None):
    root, work = disks

    async def clone(target):
        return fs.clone_file(root, target)

    return PromotionSource("a" * 12, "box", base.id, work, copy or clone, fs.allocated_bytes(root))


async def make(
    catalog, base, disks, name="mine", *, progress=lambda *words: None, copy=None, **wish
):
    return await catalog.promote(Promotion(name, **wish), source(base, disks, copy), progress=progress)  # fmt: skip


def root_of(catalog, image):
    return catalog._dir / image.id / "rootfs.img"


async def test_an_image_of_a_vm_has_its_files_and_not_its_identity(catalog, base, disks):
    said = []
    made = await make(catalog, base, disks, progress=lambda *words: said.append(words))
    as_stated(catalog, made)
    assert list(dict.fromkeys(stage for stage, _ in said)) == STAGES
    rootfs = root_of(catalog, made)
    is_whole(rootfs)
    assert inside(rootfs, "/opt/mine") == b"installed"
    assert set(names(rootfs, "/etc/ssh")) == {".", "..", "sshd_config", "ssh_host_of_mine"}
    assert set(names(rootfs, "/etc/banger")) == {".", "..", "services.json"}
    assert "machine-id" not in names(rootfs, "/etc")
    assert "eth0.leases" not in names(rootfs, "/var/lib/dhcp")
    assert inside(rootfs, "/var/log/syslog") == inside(rootfs, "/var/log/apt/term.log") == b""
    assert SECRET[:24] not in rootfs.read_bytes(), "nor is it in blocks that no file has"
    assert inside(rootfs, "/root/.bash_history") == b"typed"


async def test_it_says_where_it_is_from_and_boots_as_its_parent_does(catalog, base, disks):
    made = await make(catalog, base, disks)
    kept = ("kernel_release", "kernel_digest", "pvh", "cmdline", "services", "architecture")
    assert [getattr(made, key) for key in kept] == [getattr(base, key) for key in kept]
    for name in ("vmlinux", "vmlinuz", "initramfs.img", SEED):
        assert content(catalog, made, name) == content(catalog, base, name)
    assert made.parent == base.id
    assert [(one.action, one.parent, one.vm) for one in made.history] == [(PROMOTED, base.id, "box")]  # fmt: skip
    assert (made.payload, made.inputs_digest, made.seed, made.seed_of) == (2, "", base.seed, base.seed_of)  # fmt: skip
    assert (made.distribution, made.packages) == ("toy", {"bash": "5.2"})
    assert made.remedy == "banger image promote box --name mine --replace"
    again = await make(catalog, made, disks, "second")
    assert [one.parent for one in again.history] == [base.id, made.id]
    await catalog.delete(base.id, unused=lambda: None, progress=lambda *_: None)
    await catalog.delete(made.id, unused=lambda: None, progress=lambda *_: None)
    as_stated(catalog, again)


async def test_its_disk_is_as_small_as_its_files(catalog, base, disks):
    root, _ = disks
    plain = fs.allocated_bytes(root_of(catalog, await make(catalog, base, disks)))
    (root.parent / "big").write_bytes(os.urandom(20 * MIB))
    for request in (f"write {root.parent / 'big'} big", "rm big"):
        subprocess.run(["/sbin/debugfs", "-w", "-R", request, root], check=True, capture_output=True)  # fmt: skip
    (root.parent / "zeros").write_bytes(bytes(8 * MIB))
    subprocess.run(["/sbin/debugfs", "-w", "-R", f"write {root.parent / 'zeros'} zeros", root], check=True, capture_output=True)  # fmt: skip
    with root.open("r+b") as file:  # blocks really there, also those of zeros
        whole = file.read()
        file.seek(0)
        file.write(whole)
    made = await make(catalog, base, disks, "second")
    assert fs.allocated_bytes(root) >= 64 * MIB
    assert fs.allocated_bytes(root_of(catalog, made)) < plain + MIB
    assert inside(root_of(catalog, made), "/zeros") == bytes(8 * MIB)


async def test_history_goes_when_it_is_asked(catalog, base, disks):
    made = await make(catalog, base, disks, clean_history=True, with_work=True)
    rootfs, seed = root_of(catalog, made), catalog._dir / made.id / SEED
    assert ".bash_history" not in names(rootfs, "/root")
    assert ".python_history" not in names(rootfs, "/home/me")
    assert ".bash_history" not in names(seed)
    assert inside(seed, "/note") == b"mine"


async def test_what_could_not_be_taken_out_fails_the_promotion(catalog, base, disks, monkeypatch):
    """A tool that meets a full disk need not say so."""

    async def nothing(*_, **__):
        return 0

    monkeypatch.setattr(promote, "clean_root", nothing)
    with pytest.raises(HostLacksError, match="could not be cleaned") as raised:
        await make(catalog, base, disks)
    for path in ("/etc/ssh/ssh_host_rsa_key", "/etc/machine-id", "/etc/banger/agent-token"):
        assert path in raised.value.detail
    assert "ssh_host_of_mine" not in raised.value.detail


async def test_a_work_disk_becomes_the_seed_and_keys_in_it_are_told(catalog, base, disks):
    said = []
    made = await make(catalog, base, disks, with_work=True, progress=lambda *w: said.append(w))
    as_stated(catalog, made)
    seed = catalog._dir / made.id / SEED
    is_whole(seed)
    assert made.files[SEED].size_bytes == 96 * MIB
    assert {"note", ".bash_history", ".ssh"} <= set(names(seed))
    assert made.seed_of == GIVEN
    assert catalog.seed_word(made) == "current"
    assert any("keeps private keys of yours: id_ed25519" in detail for _, detail in said)


async def test_a_disk_that_the_vm_left_dirty_is_repaired(catalog, base, disks):
    root, _ = disks
    subprocess.run(["/sbin/debugfs", "-w", "-R", "sif /opt/mine links_count 9", root], check=True, capture_output=True)  # fmt: skip
    said = []
    made = await make(catalog, base, disks, progress=lambda *words: said.append(words))
    assert ("repair", "corrected") in said
    is_whole(root_of(catalog, made))


@pytest.mark.parametrize("which", ["root", "work"])
async def test_a_disk_without_a_file_system_is_refused_and_nothing_is_left(
    catalog, base, disks, which
):
    disk = disks[which == "work"]
    disk.write_bytes(bytes(64 * MIB))
    before = entries(catalog)
    with pytest.raises(InvalidInputError, match=f"the {which} disk of VM box cannot be repaired") as raised:  # fmt: skip
        await make(catalog, base, disks, with_work=True)
    assert "banger vm start box" in raised.value.hint
    assert entries(catalog) == before


async def test_a_root_without_an_agent_is_refused(catalog, base, disks):
    root, _ = disks
    subprocess.run(["/sbin/debugfs", "-w", "-R", "rm /usr/lib/banger/agent.pyz", root], check=True, capture_output=True)  # fmt: skip
    with pytest.raises(InvalidInputError, match="no banger agent"):
        await make(catalog, base, disks)


async def test_names_that_a_guest_chose_are_never_commands(catalog, base, disks, tmp_path):
    root, _ = disks
    tree = tmp_path / "tree"
    for name in (
        "x\nrm opt/mine",
        "a\nrm /opt/mine\n",
        '"; rm /opt/mine',
        "-R",
        "ssh_host_x_key\nrm",
    ):
        (tree / "var" / "log").mkdir(parents=True, exist_ok=True)
        (tree / "var" / "log" / name.replace("/", "_")).write_bytes(SECRET)
    for name, data in {**toy.FILES, **KEPT}.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(data)
    root.unlink()
    subprocess.run(["/sbin/mke2fs", "-q", "-t", "ext4", "-d", tree, root, "64m"], check=True, capture_output=True)  # fmt: skip
    made = await make(catalog, base, disks)
    assert inside(root_of(catalog, made), "/opt/mine") == b"installed"
    is_whole(root_of(catalog, made))


async def test_tools_that_read_a_guests_disk_have_no_network_and_no_capability(
    tmp_path, monkeypatch
):
    image = toy.ext4(tmp_path / "x.img", {"a": b"a"})
    monkeypatch.setattr(mend, "find_program", lambda name, **_: shutil.which(name))
    done = await mend.tool(image, ["cat", "/proc/self/status", "/proc/self/limits", "/proc/net/dev"])  # fmt: skip
    text = done.stdout.decode()
    assert "CapEff:\t0000000000000000" in text
    assert "CapBnd:\t0000000000000000" in text
    assert "NoNewPrivs:\t1" in text
    assert "eth0" not in text
    (limit,) = [line for line in text.splitlines() if line.startswith("Max file size")]
    assert int(limit.split()[3]) == image.stat().st_size + 64 * MIB


async def test_a_taken_name_is_refused_or_taken_over(catalog, base, disks):
    with pytest.raises(RefusedError, match="taken") as raised:
        await make(catalog, base, disks, "debian")
    assert "--replace" in raised.value.hint
    made = await make(catalog, base, disks, "debian", replace=True)
    assert catalog.get("debian").id == made.id
    assert catalog.get(base.id).name == f"debian-{base.id}"


async def test_a_name_that_cannot_be_is_refused():
    with pytest.raises(InvalidInputError):
        Promotion("No Name")


async def test_too_little_room_is_said_first(catalog, base, disks, monkeypatch):
    monkeypatch.setattr(fs, "free_bytes", lambda path: MIB)
    copied = []

    async def copy(target):
        copied.append(target)

    with pytest.raises(HostLacksError, match="no space"):
        await make(catalog, base, disks, copy=copy)
    assert copied == []


@pytest.mark.parametrize("where", ["copy", "clone_file", "seal_file", "compact"])
async def test_a_disk_that_fills_up_leaves_nothing(catalog, base, disks, monkeypatch, where):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    async def copy(target):
        target.write_bytes(b"some of it")
        full()

    before = entries(catalog)
    if where == "compact":
        monkeypatch.setattr(promote, where, full)
    elif where != "copy":
        monkeypatch.setattr(promote.fs if where == "clone_file" else promote, where, full)
    with pytest.raises(HostLacksError, match="no space to promote"):
        await make(catalog, base, disks, copy=copy if where == "copy" else None, with_work=True)
    assert entries(catalog) == before
    monkeypatch.undo()
    as_stated(catalog, await make(catalog, base, disks))


@pytest.mark.parametrize("stage", STAGES)
async def test_cancelled_at_any_stage_it_leaves_nothing_and_the_next_one_works(
    catalog, base, disks, stage
):
    before, reached = entries(catalog), asyncio.Event()

    async def hang(name, _):
        if name == stage:
            reached.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(make(catalog, base, disks, progress=hang, with_work=True))
    await asyncio.wait_for(reached.wait(), 60)
    assert len(entries(catalog)) == len(before) + 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert entries(catalog) == before


async def test_the_vms_own_disks_are_not_touched(catalog, base, disks):
    before = [fs.sparse_digest(disk) for disk in disks]
    await make(catalog, base, disks, with_work=True, clean_history=True)
    assert [fs.sparse_digest(disk) for disk in disks] == before


async def test_without_a_seed_there_is_none_until_it_is_needed(catalog, base, disks):
    (catalog._dir / base.id / SEED).unlink()
    made = await make(catalog, base, disks)
    assert SEED not in made.files
    assert "made again" in (await catalog.seed(made.id)).detail
    as_stated(catalog, catalog.by_id(made.id))


async def test_a_damaged_seed_with_content_of_its_own_is_not_passed_on(catalog, base, disks):
    path = catalog._dir / base.id / SEED
    put_manifest(path.parent, replace(base, seed_of=GIVEN))
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.write(bytes(MIB))
    with pytest.raises(HostLacksError, match="damaged") as raised:
        await make(catalog, base, disks)
    assert "--with-work" in raised.value.hint


async def test_a_boot_stack_that_is_not_whole_is_not_passed_on(catalog, base, disks):
    (catalog._dir / base.id / "vmlinux").unlink()
    with pytest.raises(BangerError, match="vmlinux"):
        await make(catalog, base, disks)


async def test_an_image_that_was_deleted_meanwhile_is_named(catalog, base, disks):
    await catalog.delete(base.id, unused=lambda: None, progress=lambda *_: None)
    with pytest.raises(NotFoundError):
        await make(catalog, base, disks)


async def test_two_promotions_by_two_daemons_do_not_meet(catalog, base, disks):
    reached = asyncio.Event()

    async def hang(name, _):
        if name == "clean":
            reached.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(make(catalog, base, disks, progress=hang))
    await asyncio.wait_for(reached.wait(), 60)
    other = ImageCatalog(catalog._dir, catalog._logs)
    with pytest.raises(RefusedError, match="another image build"):
        await make(other, base, disks, "other")
    task.cancel()
    await asyncio.wait({task})
    as_stated(other, await make(other, base, disks, "other"))
