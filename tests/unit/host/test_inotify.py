"""Changes of files, told by the kernel."""

import asyncio
import os

from banger.host import inotify
from banger.host.inotify import watching


async def comes(event):
    async with asyncio.timeout(30):
        await event.wait()
    event.clear()


def descriptors():
    return len(os.listdir("/proc/self/fd"))


async def test_every_write_to_a_file_is_told(tmp_path):
    file = tmp_path / "log"
    file.write_text("")
    with watching(file) as changed:
        assert not changed.is_set()
        for number in range(3):
            with file.open("a") as writer:
                writer.write(str(number))
            await comes(changed)


async def test_what_appears_in_a_directory_is_told(tmp_path):
    with watching(tmp_path) as changed:
        (tmp_path / "socket").touch()
        await comes(changed)


async def test_each_watch_hears_of_its_own_file_only(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    one.touch()
    other.touch()
    with watching(one) as first, watching(other) as second:
        other.write_text("x")
        await comes(second)
        assert not first.is_set()


async def test_two_watches_of_one_file_end_one_by_one(tmp_path):
    file = tmp_path / "log"
    file.touch()
    with watching(file) as outer:
        with watching(file) as inner:
            file.write_text("x")
            await comes(inner)
            await comes(outer)
        file.write_text("y")
        await comes(outer)


async def test_all_watches_share_a_descriptor_that_is_closed_with_the_last(tmp_path):
    before = descriptors()
    files = [tmp_path / str(number) for number in range(5)]
    for file in files:
        file.touch()
    with watching(files[0]), watching(files[1]), watching(files[2]):
        assert descriptors() == before + 1
    assert descriptors() == before


async def test_a_file_that_goes_takes_its_watch_along(tmp_path):
    file = tmp_path / "log"
    file.touch()
    with watching(file) as changed:
        file.unlink()
        await comes(changed)
    with watching(tmp_path) as changed:
        file.touch()
        await comes(changed)


async def test_where_the_kernel_cannot_watch_the_event_stays_unset(tmp_path, monkeypatch):
    before = descriptors()
    with watching(tmp_path / "missing") as changed:
        assert not changed.is_set()
    monkeypatch.setattr(inotify._libc, "inotify_init1", lambda _flags: -1)
    with watching(tmp_path) as changed:
        (tmp_path / "new").touch()
        await asyncio.sleep(0.02)
        assert not changed.is_set()
    assert descriptors() == before
