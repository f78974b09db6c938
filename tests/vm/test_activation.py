"""Socket activation: the daemon serves the socket that systemd (here: the test) passes, and leaves it alone."""

import os
import signal
import socket
import subprocess
import sys

from tests.framework.installation import Installation, wait_until

# As sd_listen_fds(3) has it: descriptor 3, and the pid of the process that is meant.
PASS = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
os.execv(sys.executable, [sys.executable, "-m", "banger.daemon.main"])
"""


def test_a_passed_socket_is_served_and_left_to_its_owner(tmp_path):
    banger = Installation(tmp_path)
    path = banger.runtime / "bangerd.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(16)
        before = path.stat().st_ino
        process = subprocess.Popen(
            [sys.executable, "-c", PASS, str(listener.fileno())],
            env=banger.env, pass_fds=[listener.fileno()], stdin=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            # The first command waits in the backlog until the daemon takes it.
            assert banger.json("vm", "list", env={"BANGER_NO_AUTOSTART": "1"}) == []
            assert banger.daemon_pid() == process.pid
            os.kill(process.pid, signal.SIGTERM)
            assert process.wait(60) == 0
            assert path.stat().st_ino == before
        finally:
            process.kill()
            process.wait()
    path.unlink()
    wait_until(lambda: banger.processes() == {}, 60)
    assert banger.close() == []
