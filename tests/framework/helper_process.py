"""A banger-helper as a process of its own, which can be killed."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from tests.framework.installation import ROOT


class HelperProcess:
    """``banger-helper --socket DIRECTORY/helper.sock --group GROUP OPTIONS``; ``faults`` is for BANGER_FAULTS. As a context manager it ends with it."""

    def __init__(self, directory, group="", options=()):
        self.directory, self.group, self._options = Path(directory), group, options
        self.socket, self.state = self.directory / "helper.sock", self.directory / "state"
        self._process = None

    def start(self, faults=""):
        """Start it and wait until it listens."""
        argv = [sys.executable, "-m", "banger.helper.main", "--socket", self.socket, "--group", self.group,
                "--state-dir", self.state, *self._options]  # fmt: skip
        env = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "BANGER_CONFIG": str(self.directory / "none.toml"), "BANGER_FAULTS": faults}  # fmt: skip
        self._process = subprocess.Popen(argv, env=env)
        end = time.monotonic() + 60
        while not self._listens():
            assert self._process.poll() is None, "the helper ended"
            assert time.monotonic() < end, "the helper does not listen"
            time.sleep(0.05)

    def _listens(self):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as channel:
            return channel.connect_ex(str(self.socket)) == 0

    def killed_by(self, timeout_s=60):
        """The signal that ended it."""
        return -self._process.wait(timeout_s)

    def kill(self):
        """kill -9."""
        self._process.kill()
        self._process.wait()

    def stop(self):
        """SIGTERM, if it runs; its status."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            return self._process.wait(60)
        return None

    def __enter__(self):
        self.directory.chmod(0o755)
        self.start()
        return self

    def __exit__(self, *_error):
        self.stop()
