"""The agent lets the file systems of its guest fill their drives: first the work disk, before anybody is told that the guest is ready."""

import subprocess

import pytest

from banger_agent import __main__ as main
from banger_agent import facts
from tests.framework import toy_register as toy


@pytest.fixture
def asked(monkeypatch):
    """The sizes in blocks that the kernel was asked for."""
    calls = []

    def ioctl(_descriptor, request, argument):
        assert request == 0x40086610  # EXT4_IOC_RESIZE_FS
        calls.append(int.from_bytes(argument, "little"))

    import fcntl

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    return calls


def test_a_file_system_smaller_than_its_drive_is_grown_to_it(tmp_path, asked):
    drive = toy.ext4(tmp_path / "drive", {"a": b"a"})
    assert facts.grow(str(drive), str(tmp_path)) is None
    subprocess.run(["truncate", "-s", "16M", drive], check=True)
    assert facts.grow(str(drive), str(tmp_path)) == 16 << 20
    block_bytes = facts.ext4_size(drive.read_bytes()[1024:2048])[1]
    assert asked == [(16 << 20) // block_bytes]


def test_what_cannot_grow_is_said_and_the_agent_goes_on(tmp_path, capsys):
    (tmp_path / "drive").write_bytes(bytes(4096))
    main._grow(str(tmp_path / "drive"), "/root")
    main._grow(str(tmp_path / "none"), "/root")
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert all(line.startswith("banger-agent: the disk at /root did not grow") for line in said)


def test_the_disks_are_those_that_the_initramfs_mounts():
    assert (main.WORK, main.ROOT) == (("/dev/vdb", "/root"), ("/dev/vda", "/"))
