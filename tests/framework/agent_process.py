"""The real guest agent as a process on this host, reached over Unix sockets: the whole protocol without a VM."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from banger.model.machine import VmPaths

SOURCE = Path(__file__).parents[2] / "src"


def http_socket(paths):
    """Where an agent started with ``vsock`` listens, as on a port of vsock."""
    return paths.runtime / "http.sock"


@contextlib.contextmanager
def agent_process(
    directory: Path,
    *,
    token: str = "secret",
    services: str = "[]",
    bulk_ports: int = 2,
    vsock: bool = False,
):
    """Start the agent; yields the VmPaths to connect with and the process.

    With ``vsock`` it serves what `VsockRelay` leads to it, beside the mux.
    """
    paths = VmPaths(directory, directory)
    paths.agent_token.write_text(token)
    (directory / "services.json").write_text(services)
    argv = [
        sys.executable,
        "-I",
        "-c",
        f"import sys; sys.path.insert(0, {str(SOURCE)!r}); from banger_agent.__main__ import main; main()",
    ]
    argv += [
        "--listen-unix",
        str(paths.agent_socket),
        "--token",
        str(paths.agent_token),
        "--services",
        str(directory / "services.json"),
    ]
    if vsock:
        argv += ["--http-unix", str(http_socket(paths))]
    if bulk_ports:
        argv += ["--bulk-unix", ",".join(str(paths.bulk_socket(n)) for n in range(bulk_ports))]
    process = subprocess.Popen(argv, stderr=subprocess.PIPE)
    try:
        end = time.monotonic() + 30
        while not (paths.agent_socket.exists() and (not vsock or _listens(http_socket(paths)))):
            assert process.poll() is None, process.stderr.read().decode()
            assert time.monotonic() < end
            time.sleep(0.01)
        yield paths, process
    finally:
        process.kill()
        said = process.communicate()[1].decode()
        if said:
            print("the agent said:", said)


def _listens(path: Path) -> bool:
    """Whether somebody takes connections: the socket is there a moment before."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(os.fspath(path)) == 0
