"""Starting programs: what they get, how they end, and that nothing of them stays."""

import asyncio
import os
import subprocess
import sys
import time

import pytest

from banger.host import exec as host_exec
from banger.host import proc
from banger.model.errors import CommandFailedError, HostLacksError


def running_with(argument):
    return proc.find_by_argument(argument)


async def test_a_program_gets_the_allowed_environment_only(monkeypatch):
    monkeypatch.setenv("SECRET", "x")
    done = await host_exec.run(["env"], timeout_s=10, env={"MORE": "y"})
    names = {line.partition("=")[0] for line in done.stdout.decode().splitlines()}
    assert "SECRET" not in names
    assert {"PATH", "LC_ALL", "MORE"} <= names


async def test_sbin_is_searched_behind_the_callers_path(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere:/usr/bin")
    assert host_exec.search_path().split(":")[:2] == ["/nowhere", "/usr/bin"]
    assert host_exec.find_program("mke2fs").endswith("/sbin/mke2fs")


def test_a_missing_program_is_named_with_its_package():
    with pytest.raises(HostLacksError, match="no-such-program") as raised:
        host_exec.find_program("no-such-program", package="no-such-package")
    assert raised.value.hint.endswith("apt-get install no-such-package")


async def test_input_and_both_outputs_are_exact():
    data = bytes(range(256)) * 5000
    done = await host_exec.run(["sh", "-c", "cat; echo oops >&2"], timeout_s=20, input=data)
    assert done.stdout == data
    assert done.stderr == b"oops\n"


async def test_without_input_a_program_reads_nothing():
    assert (await host_exec.run(["cat"], timeout_s=10)).stdout == b""


async def test_a_program_that_does_not_read_its_input_is_no_error():
    assert (await host_exec.run(["true"], timeout_s=10, input=bytes(1 << 20))).returncode == 0


async def test_a_bad_end_quotes_the_last_words_and_the_command():
    with pytest.raises(CommandFailedError, match="ended with status 3") as raised:
        await host_exec.run(["sh", "-c", "echo why >&2; exit 3"], timeout_s=10)
    assert "why" in raised.value.detail
    assert "sh -c 'echo why >&2; exit 3'" in raised.value.detail


async def test_a_bad_end_is_a_result_when_nobody_checks():
    assert (await host_exec.run(["false"], timeout_s=10, check=False)).returncode == 1


async def test_a_program_that_is_not_there_cannot_be_started():
    with pytest.raises(CommandFailedError, match="could not be started"):
        await host_exec.run(["/no/such"], timeout_s=1)


async def test_at_the_time_out_the_whole_group_is_gone():
    mark = "86399.0001"
    with pytest.raises(CommandFailedError, match=r"did not end within 0\.3 s"):
        await host_exec.run(["sh", "-c", f"sleep {mark} & sleep {mark}"], timeout_s=0.3)
    await gone(mark)


async def gone(mark):
    async with asyncio.timeout(30):
        while running_with(mark):
            await asyncio.sleep(0.01)


async def test_a_cancelled_caller_takes_the_group_with_it():
    mark = "86399.0002"
    task = asyncio.create_task(host_exec.run(["sh", "-c", f"sleep {mark}; :"], timeout_s=60))
    async with asyncio.timeout(30):
        while not running_with(mark):
            await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await gone(mark)


async def test_a_caller_that_is_cancelled_while_it_starts_takes_the_group_with_it(monkeypatch):
    """asyncio gives the program out some time after it runs."""
    mark, create = "86399.0003", asyncio.create_subprocess_exec

    async def slow(*argv, **options):
        process = await create(*argv, **options)
        await asyncio.sleep(0.3)
        return process

    monkeypatch.setattr(asyncio, "create_subprocess_exec", slow)
    task = asyncio.create_task(host_exec.run(["sh", "-c", f"sleep {mark} & wait"], timeout_s=60))
    async with asyncio.timeout(30):
        while len(running_with(mark)) < 1:
            await asyncio.sleep(0.01)
    task.cancel()
    async with asyncio.timeout(30):
        with pytest.raises(asyncio.CancelledError):
            await task
    await gone(mark)


async def test_a_program_may_clean_up_within_its_grace(tmp_path):
    note, ready = tmp_path / "note", tmp_path / "ready"
    script = (
        f"trap 'echo cleaned > {note}; exit 1' TERM; touch {ready}; while :; do sleep 0.02; done"
    )
    task = asyncio.create_task(host_exec.run(["sh", "-c", script], timeout_s=60, grace_s=30))
    async with asyncio.timeout(30):
        while not ready.exists():
            await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert note.read_text() == "cleaned\n"


async def test_a_program_that_ignores_its_grace_is_killed():
    began = time.monotonic()
    with pytest.raises(CommandFailedError):
        await host_exec.run(
            ["sh", "-c", "trap '' TERM; while :; do sleep 0.02; done"], timeout_s=0.2, grace_s=0.2
        )
    assert time.monotonic() - began < 30


async def test_lines_of_stderr_come_as_they_are_written():
    lines = []
    await host_exec.run(
        ["sh", "-c", "printf 'one\\ntwo\\nrest' >&2"], timeout_s=10, on_line=lines.append
    )
    assert lines == ["one", "two", "rest"]


async def test_stdout_is_bounded_to_its_end(monkeypatch):
    monkeypatch.setattr(host_exec, "MAX_OUTPUT_BYTES", 1000)
    done = await host_exec.run([sys.executable, "-c", "print('x' * 5000 + 'end')"], timeout_s=20)
    assert len(done.stdout) == 1000
    assert done.stdout.endswith(b"end\n")


def test_the_synchronous_twin_has_the_same_ends():
    assert host_exec.run_sync(["echo", "hi"], timeout_s=10).stdout == b"hi\n"
    with pytest.raises(CommandFailedError, match="ended with status 1"):
        host_exec.run_sync(["false"], timeout_s=10)
    with pytest.raises(CommandFailedError, match="did not end within"):
        host_exec.run_sync(["sleep", "5"], timeout_s=0.1)
    with pytest.raises(CommandFailedError, match="could not be started"):
        host_exec.run_sync(["/no/such"], timeout_s=1)


@pytest.mark.parametrize(
    ("returncode", "words"),
    [
        (0, "ended with status 0"),
        (2, "ended with status 2"),
        (-9, "was killed by SIGKILL"),
        (-99, "was killed by signal 99"),
    ],
)
def test_ends_are_told_in_words(returncode, words):
    assert host_exec.describe_exit(returncode) == words


def test_a_spawned_program_has_its_own_session_and_appends_to_its_log(tmp_path):
    log = tmp_path / "log"
    log.write_text("before\n")
    child = host_exec.spawn(
        ["sh", "-c", "cut -d ' ' -f 6 /proc/$$/stat; echo out; echo err >&2; cat"], log=log
    )
    assert child.wait(timeout=10) == 0
    first, sid, *rest = log.read_text().split()
    assert (first, int(sid), rest) == ("before", child.pid, ["out", "err"])
    assert log.stat().st_mode & 0o77 in {0, 0o44}


def test_a_new_log_is_private(tmp_path):
    host_exec.spawn(["true"], log=tmp_path / "log").wait(timeout=10)
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o600


def test_a_spawned_program_inherits_only_the_named_descriptors(tmp_path):
    ours, theirs = os.pipe()
    other = os.dup(theirs)
    try:
        child = host_exec.spawn(
            ["sh", "-c", f"echo hello > /proc/self/fd/{theirs}; [ ! -e /proc/self/fd/{other} ]"],
            log=tmp_path / "log",
            pass_fds=(theirs,),
        )
        assert child.wait(timeout=10) == 0
        assert os.read(ours, 100) == b"hello\n"
    finally:
        for descriptor in (ours, theirs, other):
            os.close(descriptor)


def test_a_spawn_that_fails_says_so(tmp_path):
    with pytest.raises(CommandFailedError, match="could not be started"):
        host_exec.spawn(["/no/such"], log=tmp_path / "log")


def test_an_interactive_program_gives_its_status_like_a_shell():
    assert host_exec.run_interactive(["sh", "-c", "exit 4"]) == 4
    assert host_exec.run_interactive(["sh", "-c", "kill -9 $$"]) == 137
    assert host_exec.run_interactive(["sh", "-c", 'test "$MORE" = y'], env={"MORE": "y"}) == 0


def test_replacing_the_process_keeps_pid_and_environment():
    code = "from banger.host.exec import replace; replace(['sh', '-c', 'echo $$'])"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert int(process.stdout.read()) == process.pid
