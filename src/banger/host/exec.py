"""The one module that starts processes: argv lists, explicit environment, stdin null, a timeout, a session of its own.

``run`` waits for a program and returns what it printed; ``spawn`` starts one that outlives the daemon (a VMM, the network's
holder). Failures are `CommandFailedError` with the argv, how it ended and the end of its stderr.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from banger.host.threads import finish
from banger.model.errors import CommandFailedError, HostLacksError

STDERR_TAIL_BYTES = 4096
MAX_OUTPUT_BYTES = 64 << 20
INTERRUPTED_S = 0.25
"""So long has an interactive program after Ctrl-C to end by itself."""
_SBIN = ("/usr/local/sbin", "/usr/sbin", "/sbin")
_KEPT_ENVIRONMENT = (
    "HOME",
    "LANG",
    "TMPDIR",
    "XDG_RUNTIME_DIR",
    "http_proxy",
    "https_proxy",
    "no_proxy",
)


@dataclass(frozen=True, slots=True)
class Completed:
    """How a program ended: its argv, exit status (0 if checked) and output."""

    argv: tuple[str, ...]
    returncode: int
    stdout: bytes
    stderr: bytes


def search_path() -> str:
    """The caller's PATH with the sbin directories behind it, where an ordinary user's programs such as nft live."""
    parts = os.environ.get("PATH", "/usr/bin:/bin").split(":")
    return ":".join(dict.fromkeys([*parts, *_SBIN]))


def find_program(name: str, *, package: str | None = None) -> str:
    """The absolute path of program ``name``; HostLacksError names the Debian ``package`` that brings it."""
    found = shutil.which(name, path=search_path())
    if found is None:
        hint = f"install it, for example: sudo apt-get install {package}" if package else ""
        raise HostLacksError(
            f"program {name} was not found", detail=f"PATH={search_path()}", hint=hint
        )
    return found


def base_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment that programs get: a fixed allow-list, C.UTF-8 messages, and ``extra``."""
    kept = {key: os.environ[key] for key in _KEPT_ENVIRONMENT if key in os.environ}
    return {**kept, "PATH": search_path(), "LC_ALL": "C.UTF-8", **(extra or {})}


def describe_exit(returncode: int) -> str:
    """How a program ended, for a person: ``ended with status 1`` or ``was killed by SIGKILL``."""
    if returncode >= 0:
        return f"ended with status {returncode}"
    try:
        return f"was killed by {signal.Signals(-returncode).name}"
    except ValueError:
        return f"was killed by signal {-returncode}"


async def run(
    argv: Sequence[str | os.PathLike[str]],
    *,
    timeout_s: float,
    check: bool = True,
    input: bytes | None = None,  # noqa: A002  the standard library's own name for it
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    pass_fds: Sequence[int] = (),
    on_line: Callable[[str], None] | None = None,
    grace_s: float = 0.0,
) -> Completed:
    """Run ``argv`` to its end; the whole process group is killed at ``timeout_s`` or when the caller is cancelled, after
    ``grace_s`` seconds for its own clean-up (SIGTERM first).

    ``on_line`` gets each line of stderr as it comes (for progress and build logs). Raises CommandFailedError when
    the program cannot be started, times out, or ends non-zero and ``check`` is set.
    """
    words = tuple(os.fspath(word) for word in argv)
    starting = asyncio.ensure_future(
        asyncio.create_subprocess_exec(
            *words,
            stdin=asyncio.subprocess.DEVNULL if input is None else asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=base_environment(env),
            cwd=cwd,
            pass_fds=pass_fds,
            start_new_session=True,
            limit=1 << 20,
        )
    )
    try:
        process = await finish(starting)
    except OSError as error:
        raise CommandFailedError(words, f"could not be started: {error.strerror}") from error
    except asyncio.CancelledError:  # asyncio would end the program alone, not what it has started
        if starting.exception() is None:
            await asyncio.shield(_end_group(starting.result(), grace_s))
        raise
    try:
        async with asyncio.timeout(timeout_s):
            stdout, stderr = await _communicate(process, input, on_line)
            returncode = await process.wait()
    except TimeoutError as error:
        raise CommandFailedError(
            words, f"did not end within {timeout_s:g} s", stderr_tail=shlex.join(words)
        ) from error
    finally:
        if process.returncode is None:
            await asyncio.shield(_end_group(process, grace_s))
    completed = Completed(words, returncode, stdout, stderr)
    if check and returncode != 0:
        raise failure(completed)
    return completed


def failure(completed: Completed, *, hint: str = "") -> CommandFailedError:
    """The error for a program that ended badly: the paste-able command and the end of its stderr."""
    tail = completed.stderr[-STDERR_TAIL_BYTES:].decode(errors="replace").strip()
    detail = f"{tail}\ncommand: {shlex.join(completed.argv)}".strip()
    return CommandFailedError(
        completed.argv, describe_exit(completed.returncode), stderr_tail=detail, hint=hint
    )


async def _communicate(
    process: asyncio.subprocess.Process, data: bytes | None, on_line: Callable[[str], None] | None
) -> tuple[bytes, bytes]:
    async def feed() -> None:
        if process.stdin is not None and data is not None:
            with suppress(BrokenPipeError, ConnectionResetError):
                process.stdin.write(data)
                await process.stdin.drain()
            process.stdin.close()

    async def collect(stream: asyncio.StreamReader | None, *, lines: bool) -> bytes:
        collected = bytearray()
        pending = b""
        while stream is not None and (chunk := await stream.read(1 << 16)):
            collected += chunk
            del collected[:-MAX_OUTPUT_BYTES]
            if lines and on_line is not None:
                *whole, pending = (pending + chunk).split(b"\n")
                for line in whole:
                    on_line(line.decode(errors="replace"))
        if pending and on_line is not None:
            on_line(pending.decode(errors="replace"))
        return bytes(collected)

    async with asyncio.TaskGroup() as group:
        group.create_task(feed())
        stdout = group.create_task(collect(process.stdout, lines=False))
        stderr = group.create_task(collect(process.stderr, lines=True))
    return stdout.result(), stderr.result()


async def _end_group(process: asyncio.subprocess.Process, grace_s: float) -> None:
    if grace_s:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await process.wait()
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()


def run_sync(
    argv: Sequence[str | os.PathLike[str]],
    *,
    timeout_s: float,
    check: bool = True,
    input: bytes | None = None,  # noqa: A002  as in run
    env: Mapping[str, str] | None = None,
) -> Completed:
    """As `run`, for code without an event loop (CLI, probes)."""
    words = tuple(os.fspath(word) for word in argv)
    try:
        done = subprocess.run(
            words,
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            capture_output=True,
            env=base_environment(env),
            timeout=timeout_s,
            start_new_session=True,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise CommandFailedError(words, f"did not end within {timeout_s:g} s") from error
    except OSError as error:
        raise CommandFailedError(words, f"could not be started: {error.strerror}") from error
    completed = Completed(words, done.returncode, done.stdout, done.stderr)
    if check and done.returncode != 0:
        raise failure(completed)
    return completed


def spawn(
    argv: Sequence[str | os.PathLike[str]],
    *,
    log: Path,
    pass_fds: Sequence[int] = (),
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> subprocess.Popen[bytes]:
    """Start a program that outlives this process: a session of its own, stdin null, stdout and stderr appended to ``log``.

    The caller owns the returned process and must reap it (``Popen.poll`` or `banger.host.proc`).
    """
    words = tuple(os.fspath(word) for word in argv)
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        return subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=descriptor,
            stderr=descriptor,
            env=base_environment(env),
            cwd=cwd,
            pass_fds=pass_fds,
            start_new_session=True,
        )
    except OSError as error:
        raise CommandFailedError(words, f"could not be started: {error.strerror}") from error
    finally:
        os.close(descriptor)


def replace(argv: Sequence[str], *, env: Mapping[str, str] | None = None) -> None:
    """Become ``argv`` (exec): for the CLI, whose ``vm ssh`` is the user's own ssh with the user's own environment, and ``env``."""
    os.execvpe(argv[0], list(argv), {**os.environ, **(env or {})})  # noqa: S606  argv list, no shell


def run_interactive(argv: Sequence[str], *, env: Mapping[str, str] | None = None) -> int:
    """Run ``argv`` on the caller's own terminal and environment; its exit status, 128 + signal if it was killed.

    Whoever waits stands still with it (ssh's ``~^Z`` stops ssh alone, and the shell watches us), and passes SIGTERM and SIGHUP on.
    """
    with (
        _passed_on() as pass_on_to,
        subprocess.Popen(list(argv), env={**os.environ, **env} if env else None) as child,
    ):
        pass_on_to(child)
        try:
            while not _ended(child):
                os.kill(os.getpid(), signal.SIGSTOP)
                child.send_signal(signal.SIGCONT)
        except KeyboardInterrupt:  # it had the signal too
            with suppress(subprocess.TimeoutExpired):
                child.wait(INTERRUPTED_S)
            child.kill()
            raise
    return 128 - child.returncode if child.returncode < 0 else child.returncode


def _ended(child: subprocess.Popen[bytes]) -> bool:
    """Wait until ``child`` ends, or is stopped: False."""
    wanted = os.WEXITED | os.WSTOPPED
    found = os.waitid(os.P_PID, child.pid, wanted | os.WNOWAIT)
    if found is not None and found.si_code in {os.CLD_STOPPED, os.CLD_TRAPPED}:
        os.waitid(os.P_PID, child.pid, os.WSTOPPED)
        return False
    child.wait()
    return True


@contextmanager
def _passed_on() -> Iterator[Callable[[subprocess.Popen[bytes]], None]]:
    """SIGTERM and SIGHUP go to the child that is given instead, those from before it is there too, unless they are ignored."""
    before = {signo: signal.getsignal(signo) for signo in (signal.SIGTERM, signal.SIGHUP)}
    children: list[subprocess.Popen[bytes]] = []
    early: list[int] = []

    def take(signo: int, _frame: object) -> None:
        if children:
            children[0].send_signal(signo)
        else:
            early.append(signo)

    def pass_on_to(child: subprocess.Popen[bytes]) -> None:
        children.append(child)
        for signo in early:
            child.send_signal(signo)

    for signo, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(signo, take)
    try:
        yield pass_on_to
    finally:
        for signo, handler in before.items():
            signal.signal(signo, handler)
