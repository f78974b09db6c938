"""Start the agent: on the virtio-serial port ``banger.agent``, or with ``--listen-unix PATH`` on a socket, for tests."""

import sys
import threading
import time

from banger_agent import channel, facts
from banger_agent.mux import Mux
from banger_agent.server import Agent

PORT = "banger.agent"


def main():
    """Serve for ever."""
    arguments = dict(zip(sys.argv[1::2], sys.argv[2::2], strict=False))
    agent = Agent(
        arguments.get("--token", "/etc/banger/agent-token"),
        arguments.get("--services", "/etc/banger/services.json"),
    )
    if "--listen-unix" in arguments:
        link = channel.Listener(arguments["--listen-unix"])
    else:
        link = _wait_for_port()
        threading.Thread(target=_grow, daemon=True).start()
    Mux(link.read, link.write, agent.serve).run()


def _wait_for_port():
    while True:
        path = channel.find_port(PORT)
        if path is not None:
            return channel.Port(path)
        time.sleep(0.02)


def _grow():
    try:
        facts.grow_root()
    except OSError as error:
        sys.stderr.write("banger-agent: the root file system did not grow: %s\n" % error)


if __name__ == "__main__":
    main()
