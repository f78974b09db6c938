"""What is wrong with a placed bundle is found and named, file by file."""

import os
import shutil
from datetime import UTC, datetime

import msgspec
import pytest

from banger.bundle import check, elf
from banger.bundle.check import look
from banger.bundle.manifest import to_toml
from banger.host import probe
from tests.framework.bundles import Bundle, program


@pytest.fixture
def placed(root, old):
    old.place(root)
    return root.target(root.current)


def states(root):
    found = look(root)
    return found.state, {file.path: file.state for file in found.files}


def test_a_whole_bundle_is_ok_down_to_every_file(root, old, placed):
    found = look(root)
    assert found.state == "ok"
    assert found.manifest.identity() == old.manifest.identity()
    assert [(file.path, file.state, file.why) for file in found.files] == [
        ("firecracker", "ok", ""),
        ("jailer", "ok", ""),
    ]
    assert found.whys == []


def test_nothing_is_missing_and_a_link_to_nowhere_is_damage(root, placed):
    assert look(root, root.previous).state == "missing"
    for target in ("versions/nothing", "../elsewhere", "/etc", "versions/..", "versions"):
        root.current.unlink()
        root.current.symlink_to(target)
        assert look(root).state == "damaged"
        assert "leads to no version" in look(root).whys[0]
    root.current.unlink()
    assert look(root).state == "missing"


def test_a_file_that_is_missing_changed_or_no_file_is_named(root, old, placed):
    jailer = placed / "jailer"
    data = jailer.read_bytes()
    jailer.write_bytes(data[:-1] + b"!")
    assert states(root) == ("damaged", {"firecracker": "ok", "jailer": "changed"})
    assert old.manifest.file("jailer").sha256 in look(root).whys[0]
    jailer.write_bytes(data + b"!")
    assert look(root).whys == [f"jailer: has {len(data) + 1} bytes, not {len(data)}"]
    jailer.unlink()
    assert look(root).whys == ["jailer: is missing"]
    jailer.symlink_to("firecracker")
    assert look(root).whys == ["jailer: is a link"]
    jailer.unlink()
    jailer.mkdir()
    assert look(root).whys == ["jailer: is no file"]
    jailer.rmdir()
    os.mkfifo(jailer)
    assert look(root).whys == ["jailer: is no file"]
    jailer.unlink()
    jailer.write_bytes(data)
    jailer.chmod(0o755)
    assert look(root).state == "ok"


def test_a_folder_that_became_a_link_is_seen(root, tmp_path):
    bundle = Bundle("2.0.0", tmp_path, contents={"firecracker": program("f"), "images/a/x": b"x"})
    bundle.place(root)
    assert look(root).state == "ok"
    images = root.target(root.current) / "images"
    shutil.move(images, tmp_path / "moved")
    images.symlink_to(tmp_path / "moved")
    assert look(root).whys == ["images/a/x: is reached through a link"]


def test_what_lies_behind_a_link_to_the_whole_place_is_fine(root, old, tmp_path):
    old.place(root)
    (tmp_path / "link").symlink_to(root.path)
    assert look(type(root)(tmp_path / "link")).state == "ok"


@pytest.mark.parametrize(
    ("mode", "state", "why"),
    [
        (0o644, "mode", "has mode 0644, not 0755"),
        (0o700, "mode", "has mode 0700, not 0755"),
        (0o4755, "mode", "has mode 4755, not 0755"),
        (0o777, "owner", "has mode 0777: others could change it"),
        (0o775, "owner", "has mode 0775: others could change it"),
    ],
)
def test_a_wrong_mode_is_named(root, placed, mode, state, why):
    (placed / "firecracker").chmod(mode)
    assert states(root)[1]["firecracker"] == state
    assert look(root).whys == [f"firecracker: {why}"]
    assert look(root).only(state)


def test_a_directory_in_which_others_may_write_is_named(root, placed):
    for directory in (root.path, root.versions, placed):
        directory.chmod(0o777)
        found = look(root)
        assert (found.state, found.only("owner")) == ("damaged", True)
        assert found.whys == [f"{directory}: has mode 0777: others could change it"]
        directory.chmod(0o755)
    assert look(root).state == "ok"


def test_a_file_of_another_user_is_named(root, placed):
    if not probe.root():
        pytest.skip(probe.root().why)
    os.chown(placed / "jailer", 4321, 4321)
    assert look(root).whys == ["jailer: belongs to uid 4321, who could change it"]


def test_a_program_for_another_machine_is_named(root, tmp_path, monkeypatch):
    here = elf.host_architecture()
    monkeypatch.setattr(elf, "host_architecture", lambda: "aarch64")
    foreign = {"firecracker": program("f", "aarch64"), "jailer": program("j", "aarch64")}
    Bundle("1.0.0", tmp_path, contents=foreign).place(root)
    assert look(root).state == "ok"
    monkeypatch.setattr(elf, "host_architecture", lambda: here)
    assert states(root) == ("damaged", {"firecracker": "architecture", "jailer": "architecture"})
    assert look(root).whys[0] == f"firecracker: it is a program for aarch64, this is {here}"


@pytest.mark.parametrize(
    ("head", "why"),
    [
        (program("x", "x86_64"), ""),
        (b"#!/bin/sh\n", ""),
        (program("x", "aarch64"), "it is a program for aarch64, this is x86_64"),
        (program("x", "x86_64", bits=1), "it is a program for x86_64, 32-bit, this is x86_64"),
        (b"", "it is no program"),
        (b"\x7fELF", "it is no program"),
        (b"MZ" * 20, "it is no program"),
        (b"\x7fELF\x02\x02" + bytes(12) + b"\x00\x16", "it is a program for machine 22"),
    ],
)
def test_programs_are_known_by_their_first_bytes(head, why):
    assert elf.why_not_runnable(head, "x86_64").startswith(why)
    assert bool(elf.why_not_runnable(head, "x86_64")) == bool(why)


def test_a_manifest_that_is_missing_or_spoiled_is_damage(root, old, placed):
    manifest = placed / "manifest.toml"
    manifest.write_text("nonsense")
    assert "is not TOML" in look(root).whys[0]
    manifest.unlink()
    assert "cannot be read" in look(root).whys[0]
    unpinned = msgspec.structs.replace(
        old.manifest, urls=(), sha256="", size_bytes=0,
        files=tuple(msgspec.structs.replace(f, sha256="", size_bytes=0) for f in old.manifest.files),
    )  # fmt: skip
    manifest.write_text(to_toml(unpinned))
    assert look(root).state == "damaged"  # a manifest without digests verifies nothing


def test_a_digest_is_computed_once_and_again_after_any_change(root, placed, monkeypatch):
    counted = []
    check._known.clear()
    digest = check.hashlib.file_digest
    monkeypatch.setattr(check.hashlib, "file_digest", lambda *a: counted.append(1) or digest(*a))
    monkeypatch.setattr(check, "_SETTLED_S", -1.0)  # as if the files were old
    look(root)
    look(root)
    assert len(counted) == 2
    jailer = placed / "jailer"
    stamp = jailer.stat()
    data = jailer.read_bytes()
    jailer.write_bytes(data[:-1] + b"!")
    os.utime(jailer, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # as a forger would
    assert states(root)[1]["jailer"] == "changed"
    assert len(counted) == 3


def test_a_fresh_file_is_not_remembered_as_its_next_change_may_carry_the_same_time(
    root, placed, monkeypatch
):
    made_s = [path.stat().st_ctime for path in placed.iterdir()]
    now_s = min(made_s)
    monkeypatch.setattr(check.clock, "now", lambda: datetime.fromtimestamp(now_s, UTC).isoformat())
    check._known.clear()
    look(root)
    assert check._known == {}
    now_s = max(made_s) + 2
    look(root)
    assert len(check._known) == 2
