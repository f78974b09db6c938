"""Start the daemon if none runs. Two at once are fine: the daemon's lock lets one live, both callers then connect."""

from __future__ import annotations

import json
import os
import select
import socket
import sys
import time
from pathlib import Path

from banger.client.transport import Transport, is_absent, open_socket, unreachable
from banger.host.config import Config
from banger.model.clock import Deadline
from banger.model.errors import BangerError, DaemonUnreachableError, HostLacksError

START_S = 120.0  # a busy or emulated host, and VMs to adopt: killing a daemon that is on its way helps nobody
AGAIN_S = 0.02
TAIL_LINES = 10
MAX_LOG_BYTES = 4 << 20
_started: list[object] = []
"""Daemons that this process started: kept, so that Python does not warn that they outlive their Popen."""


def connect_if_running(config: Config) -> Transport | None:
    """A transport to the daemon; None if no daemon listens."""
    path = config.socket_path
    try:
        return Transport(path, connected=open_socket(path))
    except OSError as error:
        if is_absent(error):
            return None
        raise unreachable(path, error) from error


def ensure_daemon(config: Config) -> Transport:
    """A transport to this user's daemon, which is started if it does not run (unless BANGER_NO_AUTOSTART is set)."""
    found = connect_if_running(config)
    if found is not None:
        return found
    if os.environ.get("BANGER_NO_AUTOSTART", "") not in {"", "0"}:
        raise DaemonUnreachableError(
            "the daemon is not running and BANGER_NO_AUTOSTART forbids starting it",
            detail=f"socket: {config.socket_path}",
            hint="bangerd &",
        )
    return Transport(config.socket_path, connected=_start(config))


def _environment(config: Config) -> dict[str, str]:
    """What the daemon needs to have this process's configuration, whatever directories it thinks of itself."""
    wanted = (
        "banger_",
        "npm_config_",
    )  # npm, which fetches tools of images, can be configured so too
    kept = {key: value for key, value in os.environ.items() if key.lower().startswith(wanted)}
    if "PYTHONPATH" in os.environ:
        kept["PYTHONPATH"] = os.environ["PYTHONPATH"]
    return {**kept, **config.environment()}


def _start(config: Config) -> socket.socket:
    from banger.host import exec as host_exec  # noqa: PLC0415  pulls in asyncio, and starting is rare
    from banger.host import fs  # noqa: PLC0415  as above

    log = config.daemon_log_path
    try:
        fs.make_private_dir(config.state_dir)
        if log.exists() and log.stat().st_size > MAX_LOG_BYTES:
            log.replace(log.with_suffix(".log.1"))
        begin = log.stat().st_size if log.exists() else 0
    except OSError as error:
        raise HostLacksError(
            f"{config.state_dir} cannot be written",
            detail=str(error),
            hint="set BANGER_STATE_DIR to a directory of your own",
        ) from error
    reader, writer = os.pipe()
    try:
        # -P: a directory called banger where the user happens to be is not the program
        argv = [sys.executable, "-P", "-m", "banger.daemon.main", "--ready-fd", str(writer)]
        try:
            process = host_exec.spawn(
                argv, log=log, pass_fds=[writer], env=_environment(config), cwd=Path("/")
            )
        finally:
            os.close(writer)
        deadline = Deadline.after(START_S)
        ready = _wait_ready(reader, deadline)
    finally:
        os.close(reader)
    if ready is None:
        process.kill()
        raise _failed("did not become ready in time", log, begin)
    _started.append(process)
    if not ready:
        while (status := process.poll()) is None and not deadline.passed:
            time.sleep(AGAIN_S)
        if status != 0:
            raise _failed(host_exec.describe_exit(status or 0), log, begin)
    return _connect(config, deadline, log, begin)


def _wait_ready(reader: int, deadline: Deadline) -> bool | None:
    """True: it listens; False: it ended without; None: nothing until the deadline."""
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    if not poll.poll(deadline.remaining_s * 1000):
        return None
    return os.read(reader, 1) != b""


def _connect(config: Config, deadline: Deadline, log: Path, begin: int) -> socket.socket:
    """Connect to the daemon that was started, or to the one that was faster and is not listening yet."""
    while True:
        try:
            return open_socket(config.socket_path)
        except OSError as error:
            if not is_absent(error):
                raise unreachable(config.socket_path, error) from error
            if deadline.passed:
                raise _failed("does not listen", log, begin) from error
            time.sleep(AGAIN_S)


def readable(line: str) -> str:
    """A line of the daemon's log for a person: ``time level message  [vm ID operation ID]`` of its JSON, anything else as it is."""
    try:
        entry = json.loads(line)
        ids = " ".join(f"{key} {entry[key]}" for key in ("vm", "operation") if key in entry)
        text = f"{entry['time']} {entry['level']:<7} {entry['message']}" + f"  [{ids}]" * bool(ids)
        return f"{text}\n{entry['exception']}" if "exception" in entry else text
    except (ValueError, KeyError, TypeError):
        return line


def _failed(how: str, log: Path, begin: int) -> BangerError:
    """The error for a daemon that could not be started: what it said itself."""
    try:
        with log.open("rb") as file:
            file.seek(begin)
            lines = file.read(1 << 16).decode(errors="replace").splitlines()
    except OSError:
        lines = []
    tail = "\n".join(readable(line) for line in lines[-TAIL_LINES:])
    return DaemonUnreachableError(
        f"the daemon could not be started: it {how}", detail=tail, hint=f"less {log}"
    )
