"""Loop devices of a real kernel: whose they are, and that they go by themselves."""

import errno
import fcntl
import os
import subprocess
import time
from pathlib import Path

import pytest

from banger.host import loop, probe
from banger.host.loop import Backing
from banger.model.errors import HostLacksError
from banger.model.units import MIB

if not (probe.root() and probe.loop()):
    pytest.skip("no loop devices here", allow_module_level=True)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "a disk with a blank.img"
    path.write_bytes(os.urandom(4 * MIB))
    return path


def backing(path):
    found = path.stat()
    return Backing(found.st_dev, found.st_ino)


def gone(path):
    """The kernel lets go of the file a moment after the last close."""
    end = time.monotonic() + 30
    while loop.over(backing(path)) and time.monotonic() < end:
        time.sleep(0.01)
    return loop.over(backing(path)) == []


def test_a_device_has_the_files_content_and_goes_with_its_holder(file):
    with loop.held(file, read_only=False) as made:
        assert loop.over(backing(file)) == [made.path]
        assert loop.backing_of(made.path) == backing(file)
        assert made.path.read_bytes() == file.read_bytes()
    assert gone(file)


def test_a_read_only_device_cannot_be_written(file):
    with loop.held(file, read_only=True) as made:
        with pytest.raises(PermissionError):
            os.write(made.descriptor, bytes(512))
        assert Path(f"/sys/block/{made.path.name}/ro").read_text() == "1\n"
    assert gone(file)


def test_an_image_has_one_device_for_all_who_read_it(file):
    with loop.held(file, read_only=True, shared=True) as first:
        with loop.held(file, read_only=True, shared=True) as second:
            assert second.path == first.path
        assert loop.over(backing(file)) == [first.path]  # the first one still has it
    assert gone(file)


def test_a_device_of_another_size_than_its_file_has_now_is_not_shared(file):
    with loop.held(file, read_only=True, shared=True) as first:
        os.truncate(file, 8 * MIB)
        with loop.held(file, read_only=True, shared=True) as second:
            assert second.path != first.path
            assert os.lseek(second.descriptor, 0, os.SEEK_END) == 8 * MIB
    assert gone(file)


def test_a_device_is_no_larger_than_its_limit_however_large_the_file_becomes(file):
    descriptor = os.open(file, os.O_RDWR)
    with loop.held_over(descriptor, "limited", read_only=False, limit_bytes=6 * MIB) as made:
        for size_bytes in (5 * MIB, 1 << 40):
            os.truncate(file, size_bytes)
            loop.adopt_size(made.path, backing(file))
            assert os.lseek(made.descriptor, 0, os.SEEK_END) == min(size_bytes, 6 * MIB)
    os.close(descriptor)
    assert gone(file)


def test_only_a_device_of_the_same_name_is_shared(file):
    descriptor = os.open(file, os.O_RDONLY)

    def shared(name):
        return loop.held_over(descriptor, name, read_only=True, shared=True)

    with shared("one") as first, shared("one") as second, shared("two") as other:
        assert second.path == first.path
        assert other.path != first.path
    os.close(descriptor)
    assert gone(file)


def test_a_device_that_is_written_to_is_nobodys_image(file):
    with (
        loop.held(file, read_only=False) as store,
        loop.held(file, read_only=True, shared=True) as image,
    ):
        assert image.path != store.path
    assert gone(file)


def test_a_device_of_somebody_else_is_not_shared(file):
    """Theirs may have an offset, or go away when they please: it has no autoclear."""
    theirs = subprocess.run(
        ["losetup", "--read-only", "--find", "--show", file],
        check=True, capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    try:
        with loop.held(file, read_only=True, shared=True) as ours:
            assert str(ours.path) != theirs
    finally:
        subprocess.run(["losetup", "--detach", theirs], check=True)
    assert gone(file)


def test_a_device_grows_with_its_file(file):
    with loop.held(file, read_only=False) as made:
        os.truncate(file, 8 * MIB)
        loop.adopt_size(made.path, backing(file))
        assert os.lseek(made.descriptor, 0, os.SEEK_END) == 8 * MIB


def test_a_number_that_is_over_another_file_by_now_is_left_alone(file, tmp_path):
    other = tmp_path / "other.img"
    other.write_bytes(bytes(MIB))
    with loop.held(file, read_only=False) as made:
        with pytest.raises(FileNotFoundError):
            loop.adopt_size(made.path, backing(other))
        loop.detach(made.path, backing(other))
        assert loop.backing_of(made.path) == backing(file)


def test_a_device_is_detached_and_that_may_be_repeated(file):
    device = subprocess.run(
        ["losetup", "--find", "--show", file], check=True, capture_output=True, text=True
    ).stdout.strip()
    for _ in range(2):
        loop.detach(Path(device), backing(file))
    assert gone(file)
    loop.detach(Path("/dev/loop99999"), backing(file))
    assert loop.backing_of(Path("/dev/loop99999")) is None


def test_a_maker_that_is_killed_leaves_nothing(file):
    program = (
        "import sys; from pathlib import Path; from banger.host import loop\n"
        "with loop.held(Path(sys.argv[1]), read_only=False): print('made', flush=True); sys.stdin.read()"
    )
    import sys

    process = subprocess.Popen(
        [sys.executable, "-c", program, file], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with process:
        assert process.stdout.readline() == b"made\n"
        assert loop.over(backing(file))
        process.kill()
    assert gone(file)


def test_where_others_take_every_free_device_that_is_told(file, monkeypatch):
    real = fcntl.ioctl

    def busy(descriptor, request, *rest):
        if request == 0x4C0A:
            raise OSError(errno.EBUSY, "Device or resource busy")
        return real(descriptor, request, *rest)

    monkeypatch.setattr(fcntl, "ioctl", busy)
    with (
        pytest.raises(HostLacksError, match="no loop device"),
        loop.held(file, read_only=False),
    ):
        pass
