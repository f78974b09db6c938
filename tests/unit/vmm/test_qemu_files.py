"""Files of an installed QEMU: of the real one, and of one that is put together for the test."""

import os
from pathlib import Path

import pytest

from banger.host import elf, probe
from banger.model.errors import HostLacksError
from banger.vmm.qemu import files
from banger.vmm.qemu.files import program_files


@pytest.fixture
def qemu():
    answer = probe.qemu()
    if not answer:
        pytest.skip(answer.why)
    return answer.found


def test_the_real_qemu_has_libraries_an_accelerator_and_firmware(qemu):
    found = program_files(qemu)
    assert found.code[0] == qemu
    assert any("libglib" in path for path in found.code)
    assert all(Path(path).exists() for path in (*found.code, *found.data))
    firmware = [name for path in found.data if Path(path).is_dir() for name in os.listdir(path)]
    assert "bios-microvm.bin" in firmware


def test_what_qemu_is_given_is_a_small_part_of_the_system(qemu):
    found = program_files(qemu)
    assert not {"/", "/usr", "/usr/bin", "/usr/lib", "/lib", "/etc"} & {*found.code, *found.data}
    assert len(found.code) + len(found.data) < 120


def test_accelerators_in_modules_come_with_what_they_need(tmp_path, monkeypatch):
    """Fedora's QEMU has TCG in a module beside its libraries."""
    library = tmp_path / "lib" / "libfoo.so"
    module = tmp_path / "lib" / "qemu" / "accel-tcg-x86_64.so"
    other = module.with_name("ui-curses.so")
    module.parent.mkdir(parents=True)
    for path in (library, module, other, tmp_path / "qemu"):
        path.touch()
    monkeypatch.setattr(
        elf, "needed", lambda program, *modules: (str(program), str(library), *map(str, modules))
    )
    monkeypatch.setattr(files, "_firmware", lambda program, changed: ("/share/qemu",))
    found = program_files(str(tmp_path / "qemu"))
    assert found.code == (str(tmp_path / "qemu"), str(library), str(module))
    assert found.data[0] == "/share/qemu"


def test_a_script_in_qemus_place_is_told_before_anything_is_started(tmp_path):
    script = tmp_path / "qemu"
    script.write_text('#!/bin/sh\nexec qemu-system-x86_64 "$@"\n')
    with pytest.raises(HostLacksError, match="no 64-bit ELF program") as raised:
        program_files(str(script))
    assert raised.value.hint
