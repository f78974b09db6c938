"""Which Firecracker is there, and what is wrong with it."""

import platform
import struct

import pytest

from banger.host import probe
from banger.host.probe import Answer
from banger.model.errors import HostLacksError
from banger.vmm.firecracker import backend, versions
from banger.vmm.firecracker.backend import FirecrackerVmm
from banger.vmm.firecracker.binary import STAND_IN, inspect


@pytest.fixture
def program(tmp_path):
    def write(script, name="firecracker"):
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return path

    return write


def says(text):
    return f"printf '{text}'"


def elf(machine, *, word_size=2, order=1):
    return b"\x7fELF" + bytes([word_size, order]) + bytes(10) + struct.pack("<HH", 2, machine)


def test_release_and_need_of_kvm_are_known(program):
    found = inspect(program(says(r"Firecracker v1.16.1\n\n")))
    assert (found.version, found.needs_kvm) == ((1, 16, 1), True)


def test_a_stand_in_says_that_it_needs_no_kvm(program):
    assert not inspect(program(says(rf"Firecracker v1.17.0-dev\n\n{STAND_IN}\n"))).needs_kvm


def test_a_file_is_asked_once_and_another_one_in_its_place_anew(program, tmp_path):
    path = program(f"echo asked >> {tmp_path}/asked; " + says(r"Firecracker v1.15.0\n"))
    assert inspect(path).version == inspect(path).version == (1, 15, 0)
    assert (tmp_path / "asked").read_text() == "asked\n"
    program(says(r"Firecracker v1.16.0\n"), "newer").replace(path)
    assert inspect(path).version == (1, 16, 0)


def wrong(path):
    with pytest.raises(HostLacksError) as raised:
        inspect(path)
    assert raised.value.hint
    return raised.value


def test_a_missing_file_is_named(tmp_path):
    error = wrong(tmp_path / "firecracker")
    assert error.what == "there is no Firecracker"
    assert error.detail == f"{tmp_path}/firecracker: No such file or directory"


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_what_is_not_executable_says_how_to_change_that(tmp_path, kind):
    path = tmp_path / "firecracker"
    path.mkdir() if kind == "directory" else path.write_bytes(elf(62))
    error = wrong(path)
    assert error.what == f"{path} is not executable"
    assert error.hint == f"chmod +x {path}"


def executable(path, data):
    path.write_bytes(data)
    path.chmod(0o755)
    return path


def test_another_architecture_is_told_from_this_one(tmp_path, monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    error = wrong(executable(tmp_path / "firecracker", elf(183)))
    assert error.what.endswith("is not made for this machine")
    assert error.detail == "it is for aarch64, this is x86_64"


@pytest.mark.parametrize(
    "data", [elf(8), elf(62, word_size=1), elf(62, order=2), elf(0x3E00, order=2)]
)
def test_programs_of_yet_other_machines_are_no_better(tmp_path, data):
    assert "not made for this machine" in wrong(executable(tmp_path / "fc", data)).what


@pytest.mark.parametrize("data", [b"", b"\x7fELF", b"PK\x03\x04" + bytes(100)])
def test_a_file_that_is_no_program_is_said_to_be_none(tmp_path, data):
    assert wrong(executable(tmp_path / "fc", data)).what.endswith("is no program")


@pytest.mark.parametrize("text", [r"Firecracker v1.7.0\n", r"Firecracker v0.25.2\n"])
def test_a_release_that_is_too_old_says_which_is_not(program, text):
    error = wrong(program(says(text)))
    assert "is too old" in error.what
    assert versions.words(versions.OLDEST) in error.detail


@pytest.mark.parametrize(
    "text", ["", r"QEMU emulator version 9.0.0\n", r"Jailer v1.16.0\n", r"Firecracker\n", "1.16.0"]
)
def test_another_program_is_quoted(program, text):
    error = wrong(program(says(text)))
    assert "is no Firecracker" in error.what
    assert text.partition("\\")[0] in error.detail


def test_a_program_that_does_not_run_is_quoted(program):
    error = wrong(program("echo 'no such library' >&2; exit 127"))
    assert error.what.endswith("does not run")
    assert "ended with status 127" in error.detail
    assert "no such library" in error.detail


def test_a_file_that_may_be_run_and_not_read_is_no_riddle(tmp_path, monkeypatch):
    def refuse(*_args, **_options):
        raise PermissionError(13, "Permission denied")

    path = executable(tmp_path / "firecracker", elf(62))
    monkeypatch.setattr(type(path), "open", refuse)
    error = wrong(path)
    assert error.what == f"{path} cannot be read"


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("Firecracker v1.16.1\n", (1, 16, 1)),
        ("1.17.0-dev", (1, 17, 0)),
        ("1.17.0+fuzzing", (1, 17, 0)),
        ("1.17", None),
        ("1.17.0.1", None),
        ("v1.17.0", None),
        ("x1.17.0", None),
        ("1.17.99999", None),
    ],
)
def test_releases_are_read_strictly(text, version):
    assert versions.parse(text) == version


def answering(answer):
    def kvm():
        return answer

    kvm.cache_clear = lambda: None
    return kvm


async def test_without_kvm_the_check_says_why(program, monkeypatch):
    no = Answer(ok=False, why="/dev/kvm: permission denied", hint="join the group")
    monkeypatch.setattr(backend.probe, "kvm", answering(no))
    vmm = FirecrackerVmm(lambda: program(says(r"Firecracker v1.16.0\n")))
    with pytest.raises(HostLacksError, match="needs KVM") as raised:
        await vmm.check()
    assert (raised.value.detail, raised.value.hint) == (no.why, no.hint)
    await FirecrackerVmm(lambda: program(says(rf"Firecracker v1.16.0\n{STAND_IN}\n"))).check()


async def test_with_kvm_the_check_passes(program, monkeypatch):
    monkeypatch.setattr(probe, "kvm", answering(Answer(ok=True)))
    await FirecrackerVmm(lambda: program(says(r"Firecracker v1.16.0\n"))).check()


async def test_a_firecracker_that_is_fetched_later_is_found(program, tmp_path):
    vmm = FirecrackerVmm(lambda: tmp_path / "firecracker")
    with pytest.raises(HostLacksError):
        await vmm.check()
    program(says(rf"Firecracker v1.16.0\n{STAND_IN}\n"))
    await vmm.check()
