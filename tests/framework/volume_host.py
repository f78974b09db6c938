"""A host for ``banger setup storage``: a mount namespace with an /etc of its own, and the state directory ``state`` of the real file system."""

import os
import subprocess
import sys
from pathlib import Path

SYSTEMCTL = """#!/bin/sh
echo "$@" >> {log}
"""


class VolumeHost:
    """A mount namespace in which /etc and /run/systemd can be written without harm."""

    def __init__(self, directory):
        self.directory = directory
        self.state = directory / "state"
        self.state.mkdir(mode=0o700, exist_ok=True)
        for name in ("upper", "work", "bin"):
            (directory / name).mkdir()
        tool = directory / "bin" / "systemctl"
        tool.write_text(SYSTEMCTL.format(log=directory / "systemctl.log"))
        tool.chmod(0o755)
        script = (
            f"mount -t overlay overlay -o lowerdir=/etc,upperdir={directory}/upper,workdir={directory}/work /etc\n"
            "mkdir -p /run/systemd && mount -t tmpfs none /run/systemd && echo ready && exec sleep infinity"
        )
        self.holder = subprocess.Popen(
            ["unshare", "-m", "--propagation", "private", "sh", "-c", script],
            stdout=subprocess.PIPE,
        )
        assert self.holder.stdout.readline() == b"ready\n"

    def close(self):
        self.holder.kill()
        self.holder.wait()
        self.holder.stdout.close()

    def run(self, *argv, **options):
        """A command in the namespace."""
        return subprocess.run(  # noqa: PLW1510  as the caller says
            ["nsenter", "-t", str(self.holder.pid), "-m", *map(str, argv)],
            **{"check": False, "capture_output": True, "text": True, "timeout": 180, **options},
        )

    def setup(self, *options, status=0, env=None):
        done = self.run(
            sys.executable, "-m", "banger.cli.main", "setup", "storage", "--state-dir", self.state, *options,
            env={**os.environ, "PATH": f"{self.directory}/bin:{os.environ['PATH']}", **(env or {})},
        )  # fmt: skip
        assert done.returncode == status, done.stderr
        return done.stderr

    def inside(self, path):
        """``path`` as it is in the namespace."""
        return Path(f"/proc/{self.holder.pid}/root{path}")

    def files(self):
        """What is in the state directory, as this host has it."""
        return {path.name for path in self.state.iterdir()} - {"bangerd.lock"}

    @property
    def fstab(self):
        path = self.inside("/etc/fstab")
        return path.read_text() if path.exists() else ""

    def systemctl(self):
        log = self.directory / "systemctl.log"
        return log.read_text().splitlines() if log.exists() else []

    def boot_with_systemd(self):
        self.run("mkdir", "/run/systemd/system", check=True)
