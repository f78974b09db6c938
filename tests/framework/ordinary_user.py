"""An ordinary user of the test's own, with a copy of banger that it may read; both are gone afterwards, with all that it owned."""

import contextlib
import fcntl
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

from tests.framework.installation import CACHE, ROOT, name_image, wait_until

NAME = f"banger-user{os.environ.get('PYTEST_XDIST_WORKER', '')}"
CHECK = "import sys; sys.exit(sys.version_info[:2] != tuple(map(int, sys.argv[1:])))"


def processes_of(uid):
    """Pids of what runs as this user, but for zombies."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                dead = (entry / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
                if entry.stat().st_uid == uid and not dead:
                    found.append(int(entry.name))
    return found


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
        wait_until(lambda: not self._kill_all(), 30)
        subprocess.run(["userdel", "--remove", NAME], check=True, capture_output=True)
        shutil.rmtree(self.checkout)
        owned = []
        for path in Path("/tmp").iterdir():
            with contextlib.suppress(FileNotFoundError):  # another process of the tests' own
                if path.lstat().st_uid == self.account.pw_uid:
                    owned.append(path)
        for path in owned:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        assert not owned, f"the user left {owned}"

    def _kill_all(self):
        """Kill what runs, also what was started since it was looked the last time; what that was."""
        found = self.processes()
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return found

    def processes(self):
        """Pids of what runs as this user."""
        return processes_of(self.account.pw_uid)

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
        compiled = self.checkout / "pycache"  # else every command would compile all anew
        path = f"PYTHONPATH={self.checkout / 'src'}:{site} PYTHONPYCACHEPREFIX={compiled}"
        for name, module in (("banger", "banger.cli.main"), ("bangerd", "banger.daemon.main")):
            (programs / name).write_text(f'#!/bin/sh\n{path} exec {python} -m {module} "$@"\n')
            (programs / name).chmod(0o755)
        subprocess.run(["chmod", "-R", "a+rX", self.checkout], check=True)
        compiled.mkdir()
        os.chown(compiled, self.account.pw_uid, self.account.pw_gid)

    def equip(self, *image_ids, names=()):
        """Install banger for this user, with the images, ``names`` by their ids; skips where there is no Python for that."""
        python = self.python()
        if python is None:
            pytest.skip("there is no Python of this version that every user may start")
        self.install(python)
        self.give_images(image_ids, dict(names))

    def give_images(self, image_ids, names):
        """Copies of images of the tests', as if this user had built them."""
        state = Path(self.account.pw_dir) / ".local" / "state"
        images = state / "banger" / "images"
        images.mkdir(parents=True)
        sources = [CACHE / "images" / image_id for image_id in image_ids]
        subprocess.run(["cp", "-a", "--sparse=always", *sources, images], check=True)
        for image_id, name in names.items():
            name_image(images / image_id, name)
        owner = f"{self.account.pw_uid}:{self.account.pw_gid}"
        subprocess.run(["chown", "-R", owner, state.parent], check=True)
        for path in (images, images.parent):
            path.chmod(0o700)


@contextlib.contextmanager
def tun_mode(mode):
    """/dev/net/tun with these permissions for a while; of several processes one at a time, as it is the host's."""
    device = Path("/dev/net/tun")
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "tun-mode").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        kept = device.stat().st_mode & 0o777
        device.chmod(mode)
        try:
            yield
        finally:
            device.chmod(kept)
