"""An ordinary user of the test's own, with a copy of banger that it may read; both are gone afterwards, with all that it owned."""

import contextlib
import importlib.metadata
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.framework.installation import CACHE, ROOT, wait_until

NAME = "banger-user"
CHECK = "import sys; sys.exit(sys.version_info[:2] != tuple(map(int, sys.argv[1:])))"


class OrdinaryUser:
    """Use as a context manager. ``checkout`` is laid out as a clone after ``make demo``'s first half; ``groups`` has more than its own."""

    def __init__(self, groups=()):
        self.groups = list(groups)

    def __enter__(self):
        subprocess.run(["useradd", "--create-home", NAME], check=True, capture_output=True)
        self.account = pwd.getpwnam(NAME)
        self.checkout = Path(tempfile.mkdtemp(prefix="banger-user-", dir="/tmp"))
        self.env = {
            "HOME": self.account.pw_dir,
            "USER": NAME,
            "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "NO_COLOR": "1",
        }
        self.checkout.chmod(0o755)
        return self

    def __exit__(self, *_error):
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not self.processes(), 10)
        subprocess.run(["userdel", "--remove", NAME], check=True, capture_output=True)
        shutil.rmtree(self.checkout)
        owned = [
            path for path in Path("/tmp").iterdir() if path.lstat().st_uid == self.account.pw_uid
        ]
        for path in owned:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        assert not owned, f"the user left {owned}"

    def processes(self):
        """Pids of what runs as this user."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    dead = (entry / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
                    if entry.stat().st_uid == self.account.pw_uid and not dead:
                        found.append(int(entry.name))
        return found

    def start(self, argv, **options):
        """A program as this user."""
        return subprocess.Popen(
            argv, user=self.account.pw_uid, group=self.account.pw_gid, extra_groups=self.groups,
            cwd=self.account.pw_dir, env=self.env, **options,
        )  # fmt: skip

    def run(self, *argv, timeout=240, check=True):
        """The same, to its end."""
        process = self.start(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            out, err = process.communicate(timeout=timeout)
        finally:
            process.kill()
        assert not check or process.returncode == 0, f"{argv}: {process.returncode}\n{out}\n{err}"
        return subprocess.CompletedProcess(argv, process.returncode, out, err)

    def banger(self, *argv, **options):
        """``banger ARGV``."""
        return self.run(str(self.checkout / ".venv" / "bin" / "banger"), *argv, **options)

    def python(self):
        """A Python of our own version that this user may start, None if there is none."""
        wanted = [str(number) for number in sys.version_info[:2]]
        for path in (
            Path(sys.executable).resolve(),
            shutil.which("python3", path=self.env["PATH"]),
        ):
            with contextlib.suppress(OSError):
                if path and self.run(str(path), "-c", CHECK, *wanted, check=False).returncode == 0:
                    return str(path)
        return None

    def install(self, python):
        """Sources and what they need, readable for everybody, behind ``.venv/bin/banger``."""
        for name in ("src", "config", "scripts"):
            skipped = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, self.checkout / name, ignore=skipped)
        site, programs = self.checkout / "site", self.checkout / ".venv" / "bin"
        for requirement in re.findall(
            r"(?m)^([\w.-]+)==", (ROOT / "requirements" / "run.txt").read_text()
        ):
            with contextlib.suppress(
                importlib.metadata.PackageNotFoundError
            ):  # for other platforms
                for file in importlib.metadata.files(requirement):
                    if ".." not in file.parts and file.suffix != ".pyc":
                        (site / file).parent.mkdir(parents=True, exist_ok=True)
                        shutil.copy(file.locate(), site / file)
        programs.mkdir(parents=True)
        path = f"PYTHONPATH={self.checkout / 'src'}:{site} PYTHONDONTWRITEBYTECODE=1"
        for name, module in (("banger", "banger.cli.main"), ("bangerd", "banger.daemon.main")):
            (programs / name).write_text(f'#!/bin/sh\n{path} exec {python} -m {module} "$@"\n')
            (programs / name).chmod(0o755)
        subprocess.run(["chmod", "-R", "a+rX", self.checkout], check=True)

    def equip(self, image_id):
        """Install banger for this user, with the image; skips where there is no Python for that."""
        python = self.python()
        if python is None:
            pytest.skip("there is no Python of this version that every user may start")
        self.install(python)
        self.give_image(image_id)

    def give_image(self, image_id):
        """A copy of the tests' image, as if this user had built it."""
        state = Path(self.account.pw_dir) / ".local" / "state"
        images = state / "banger" / "images"
        images.mkdir(parents=True)
        source = CACHE / "images" / image_id
        subprocess.run(["cp", "-a", "--sparse=always", source, images], check=True)
        owner = f"{self.account.pw_uid}:{self.account.pw_gid}"
        subprocess.run(["chown", "-R", owner, state.parent], check=True)
        for path in (images, images.parent):
            path.chmod(0o700)


@contextlib.contextmanager
def tun_mode(mode):
    """/dev/net/tun with these permissions for a while."""
    device = Path("/dev/net/tun")
    kept = device.stat().st_mode & 0o777
    device.chmod(mode)
    try:
        yield
    finally:
        device.chmod(kept)
