"""Files without the zeros that they need not keep."""

import errno
import os

import pytest

from banger.host import fs, holes

MIB = 1 << 20


def test_zeros_and_room_that_was_set_aside_are_given_back_and_the_content_stays(tmp_path):
    path = tmp_path / "x"
    data = b"".join([os.urandom(MIB), bytes(4 * MIB), os.urandom(5), bytes(3 * MIB), os.urandom(7)])
    path.write_bytes(data)
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), len(data), 8 * MIB)
    before = fs.allocated_bytes(path)
    given_back = holes.drop_zeros(path)
    assert given_back == before - fs.allocated_bytes(path)
    assert fs.allocated_bytes(path) < 2 * MIB
    assert path.read_bytes() == data + bytes(8 * MIB)
    assert holes.drop_zeros(path) == 0


def test_an_empty_file_and_one_hole_are_fine(tmp_path):
    path = tmp_path / "x"
    path.touch()
    assert holes.drop_zeros(path) == 0
    os.truncate(path, MIB)
    assert holes.drop_zeros(path) == 0
    assert path.stat().st_size == MIB


def test_where_the_file_system_cannot_nothing_is_done_and_other_errors_are_told(
    tmp_path, monkeypatch
):
    path = tmp_path / "x"
    path.write_bytes(bytes(MIB))

    def fail(*_):
        raise OSError(number, "no")

    monkeypatch.setattr(holes, "punch_hole", fail)
    number = errno.EOPNOTSUPP
    assert holes.drop_zeros(path) == 0
    number = errno.EIO
    with pytest.raises(OSError, match="no"):
        holes.drop_zeros(path)


def test_a_copy_of_data_has_holes_where_there_are_zeros(tmp_path):
    source, target = tmp_path / "a", tmp_path / "b"
    data = os.urandom(MIB) + bytes(6 * MIB) + b"end"
    source.write_bytes(data)
    fs.copy_data(source, target)
    assert target.read_bytes() == data
    assert fs.allocated_bytes(target) < 2 * MIB
    with pytest.raises(FileExistsError):
        fs.copy_data(source, target)
