"""A lock that dies with its holder."""

import errno
import subprocess
import sys

import pytest

from banger.host import locks
from banger.host.locks import FileLock

HOLD = "import sys; from pathlib import Path; from banger.host.locks import FileLock; l = FileLock(Path(sys.argv[1])); print(l.acquire(), flush=True); sys.stdin.read()"


def test_a_lock_excludes_until_it_is_released(tmp_path):
    one, two = FileLock(tmp_path / "lock"), FileLock(tmp_path / "lock")
    assert one.acquire() is True
    assert two.acquire() is False
    one.release()
    one.release()
    assert two.acquire() is True
    two.release()


def test_a_killed_holder_frees_its_lock_and_its_pid_was_readable(tmp_path):
    lock = FileLock(tmp_path / "lock")
    assert lock.holder() == ""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, lock._path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout.readline() == b"True\n"
        assert lock.acquire() is False
        assert lock.holder() == str(child.pid)
        child.kill()
        child.wait()
    assert lock.acquire() is True
    lock.release()
    assert (tmp_path / "lock").stat().st_mode & 0o777 == 0o600


def test_a_lock_that_cannot_be_signed_is_not_kept(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(locks.os, "write", full)
    with pytest.raises(OSError, match="No space"):
        FileLock(tmp_path / "lock").acquire()
    monkeypatch.undo()
    lock = FileLock(tmp_path / "lock")
    assert lock.acquire() is True
    lock.release()
