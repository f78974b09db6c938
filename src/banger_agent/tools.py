"""Programs of the guest that the agent runs for itself."""

import os

from banger_agent import process
from banger_agent.http import BadRequest

_TIMEOUT_S = 10


def run(*argv):
    """Run a program to its end, at most 10 s; BadRequest (500) with its last words if it fails or is not there."""
    try:
        started = process.spawn(argv, {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}, "/")
    except OSError as error:
        why = str(error.strerror or error)
        raise BadRequest(500, "%s cannot be started" % argv[0], why) from None
    try:
        if not started.ended(_TIMEOUT_S):
            started.signal(9)
        if started.wait() != 0:
            said = os.read(started.outputs[1], 1000).decode("utf-8", "replace")
            raise BadRequest(500, "%s failed" % " ".join(argv), said)
    finally:
        started.close()
