"""Start the agent: on the virtio-serial ports and vsock of a guest, or on sockets, for tests.

Options, each with a value: ``--listen-unix PATH`` (the mux) · ``--bulk-unix PATH,PATH`` (bulk ports) · ``--http-unix PATH`` (each
connection a request, as on vsock) · ``--token PATH`` · ``--services PATH``.
"""

import os
import sys
import time

from banger_agent import bulk, channel, facts, health, server, threads
from banger_agent.mux import Mux

PORT = "banger.agent"
WORK, ROOT = ("/dev/vdb", "/root"), ("/dev/vda", "/")
OPTIONS = ("--listen-unix", "--bulk-unix", "--http-unix", "--token", "--services")


def main():
    """Serve for ever."""
    options = dict(zip(sys.argv[1::2], sys.argv[2::2]))  # noqa: B905  strict= is newer than 3.9
    if len(sys.argv) % 2 == 0 or set(options) - set(OPTIONS):
        sys.exit("banger-agent: known options are %s, each with a value" % ", ".join(OPTIONS))
    services = health.Services(options.get("--services", health.SERVICES))
    services.watch()
    ports = bulk.Ports(_unix_bulk(options["--bulk-unix"]) if "--bulk-unix" in options else None)
    agent = server.Agent(services, ports, options.get("--token", server.TOKEN))
    if "--http-unix" in options:
        from banger_agent import sockets

        threads.start(sockets.serve_unix, options["--http-unix"], agent.serve)
    if "--listen-unix" in options:
        from banger_agent import sockets

        link = sockets.UnixPort(options["--listen-unix"])
    else:
        _grow(*WORK)  # before anybody is told that the guest is ready
        threads.start(_grow, *ROOT)
        if os.path.exists("/dev/vsock"):
            threads.start(_serve_vsock, agent)
        link = _wait_for_port()
    Mux(link, agent.serve).run()


def _unix_bulk(paths):
    from banger_agent import sockets

    # Bound at once: a host finds them as it finds QEMU's.
    ports = dict(enumerate(sockets.UnixPort(path) for path in paths.split(",")))
    return ports.get


def _wait_for_port():
    wait_s = 0.02
    while True:
        path = channel.find_port(PORT)
        if path is not None:
            return channel.Port(path)
        time.sleep(wait_s)
        wait_s = min(wait_s * 1.1, 1.0)


def _serve_vsock(agent):
    from banger_agent import sockets

    try:
        sockets.serve_vsock(server.AGENT_PORT, agent.serve)
    except OSError as error:
        sys.stderr.write("banger-agent: no vsock: %s\n" % error)


def _grow(device, mount):
    try:
        facts.grow(device, mount)
    except (OSError, ValueError) as error:
        sys.stderr.write("banger-agent: the disk at %s did not grow: %s\n" % (mount, error))


if __name__ == "__main__":
    main()
