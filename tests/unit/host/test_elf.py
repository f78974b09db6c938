"""What programs need: asked for real programs of this host."""

import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from banger.host import elf
from banger.model.errors import CommandFailedError, HostLacksError


def test_a_dynamic_program_needs_its_loader_and_what_ldd_lists():
    python = Path(sys.executable).resolve()
    found = elf.needed(python)
    listed = subprocess.run(["ldd", python], capture_output=True, text=True, check=True).stdout
    libraries = {word for line in listed.splitlines() for word in line.split() if word[0] == "/"}
    assert found[:2] == (str(python), elf.interpreter(python))
    assert set(found) == libraries | {str(python)}
    assert all(Path(path).exists() for path in found)


def test_modules_bring_their_own_libraries():
    import _ctypes

    python, module = Path(sys.executable).resolve(), Path(_ctypes.__file__)
    more = set(elf.needed(python, module)) - set(elf.needed(python))
    assert str(module) in more
    assert any("libffi" in path for path in more)


def test_a_static_program_needs_itself():
    busybox = shutil.which("busybox")
    if busybox is None or elf.interpreter(Path(busybox)) is not None:
        pytest.skip("no static busybox")
    assert elf.needed(Path(busybox)) == (busybox,)


@pytest.mark.parametrize(
    "data",
    [b"", b"#!/bin/sh\nexec qemu\n", b"\x7fELF\x01" + bytes(80), b"\x7fELF\x02\x01"],
    ids=["empty", "script", "32-bit", "cut"],
)
def test_what_is_no_64_bit_program_is_refused(tmp_path, data):
    path = tmp_path / "program"
    path.write_bytes(data)
    with pytest.raises(HostLacksError, match="no 64-bit ELF program"):
        elf.needed(path)


def test_a_table_of_headers_that_leads_nowhere_names_no_loader(tmp_path):
    head = bytearray(Path(sys.executable).resolve().read_bytes()[:64])
    for size, count in ((56, 9), (0, 9), (0, 0)):
        struct.pack_into("<Q", head, 32, 1 << 40)
        struct.pack_into("<HH", head, 54, size, count)
        path = tmp_path / "program"
        path.write_bytes(head)
        assert elf.interpreter(path) is None


def test_a_missing_program_is_named(tmp_path):
    with pytest.raises(HostLacksError, match="none cannot be read"):
        elf.needed(tmp_path / "none")


def test_a_program_whose_loader_is_missing_is_an_error(tmp_path):
    path = tmp_path / "program"
    loader = b"/nonexistent/loader\0"
    head = b"\x7fELF\x02\x01".ljust(32, b"\0") + struct.pack(
        "<QQIHHHHHH", 64, 0, 0, 64, 56, 1, 0, 0, 0
    )
    header = struct.pack("<IIQQQQQQ", 3, 4, 120, 0, 0, len(loader), len(loader), 1)
    path.write_bytes(head + header + loader)
    assert elf.interpreter(path) == "/nonexistent/loader"
    with pytest.raises(CommandFailedError, match="could not be started"):
        elf.needed(path)


def test_the_loader_is_asked_again_when_the_program_has_changed(tmp_path, monkeypatch):
    path = tmp_path / "program"
    shutil.copy(Path(sys.executable).resolve(), path)
    asked = []
    ask = elf.run_sync
    monkeypatch.setattr(
        elf, "run_sync", lambda argv, **more: asked.append(argv) or ask(argv, **more)
    )
    assert elf.needed(path) == elf.needed(path)
    assert len(asked) == 1
    path.touch()
    elf.needed(path)
    assert len(asked) == 2
