"""A banger of its own for tests: state and runtime directory, real daemon, real CLI, and the proof that nothing is left."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
CACHE = Path(os.environ.get("BANGER_TEST_CACHE", ROOT / "build" / "test-state"))


class CommandFailedError(AssertionError):
    """A command that should have succeeded did not."""


class Installation:
    """``banger`` with directories of its own; ``images`` are shared between tests, because building one takes a minute."""

    def __init__(self, directory, **settings):
        self.directory = Path(directory)
        self.state = self.directory / "state"
        # Sockets have short paths: the runtime directory lies in /tmp, whatever pytest calls its own.
        self.runtime = Path(tempfile.mkdtemp(prefix="bgr-", dir="/tmp"))
        self.state.mkdir(parents=True)
        (CACHE / "images").mkdir(parents=True, exist_ok=True)
        (self.state / "images").symlink_to(CACHE / "images")
        self.env = {
            **{
                k: v
                for k, v in os.environ.items()
                if not k.startswith(("BANGER_", "XDG_", "PYTHONDONTWRITE"))
            },
            "BANGER_CONFIG": str(self.directory / "none.toml"),
            "BANGER_STATE_DIR": str(self.state),
            "BANGER_RUNTIME_DIR": str(self.runtime),
            "NO_COLOR": "1",
            **{f"BANGER_{key.upper()}": str(value) for key, value in settings.items()},
        }

    def start(self, *argv, **options):
        """``banger ARGV`` as a Popen."""
        return subprocess.Popen(
            [sys.executable, "-m", "banger.cli.main", *argv],
            env={**self.env, **options.pop("env", {})},
            **options,
        )

    def run(self, *argv, check=True, timeout=240, stdin=None, env=None, text=True):
        """``banger ARGV`` to its end."""
        done = subprocess.run(
            [sys.executable, "-m", "banger.cli.main", *argv], env={**self.env, **(env or {})}, input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None, capture_output=True, text=text, timeout=timeout, check=False,
        )  # fmt: skip
        if check and done.returncode != 0:
            raise CommandFailedError(
                f"banger {' '.join(argv)}: status {done.returncode}\n{done.stdout}\n{done.stderr}\n{self.logs()}"
            )
        return done

    def json(self, *argv, **options):
        """The JSON that ``banger ARGV --format json`` prints."""
        return json.loads(self.run(*argv, "--format", "json", **options).stdout)

    def vm(self, name):
        """A VM as the API shows it."""
        return self.json("vm", "show", name)

    def create(self, name, *options, **more):
        """A running VM, as small as they come."""
        return self.run(
            "vm",
            "create",
            "--name",
            name,
            "--memory",
            "512M",
            "--work-size",
            "1G",
            *options,
            **more,
        )

    def daemon_pid(self):
        """The daemon's pid, None if none runs."""
        with contextlib.suppress(FileNotFoundError, ValueError):
            pid = int((self.state / "bangerd.lock").read_text())
            if (
                Path(f"/proc/{pid}/cmdline").exists()
                and b"banger" in Path(f"/proc/{pid}/cmdline").read_bytes()
            ):
                return pid
        return None

    def kill_daemon(self):
        """kill -9, and wait until the kernel has taken it away."""
        pid = self.daemon_pid()
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not _alive(pid), 10)

    def logs(self):
        """The ends of all logs, for a failed test."""
        paths = [self.state / "bangerd.log", *self.state.glob("vms/*/*.log")]
        return "\n".join(
            f"--- {path}\n" + path.read_text(errors="replace")[-4000:]
            for path in paths
            if path.exists()
        )

    def processes(self):
        """Processes that belong to this installation, by the directories in their arguments or environment."""
        found = {}
        marks = (str(self.runtime).encode(), str(self.state).encode())
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                with contextlib.suppress(OSError):
                    text = (entry / "cmdline").read_bytes()
                    environ = (entry / "environ").read_bytes()
                    state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
                    if state != "Z" and any(mark in text or mark in environ for mark in marks):
                        found[int(entry.name)] = text.replace(b"\0", b" ").decode(errors="replace")[
                            :200
                        ]
        return found

    def leftovers(self):
        """What exists though no VM does: processes but the daemon's, VM directories, sockets."""
        daemon = self.daemon_pid()
        left = [
            f"process {pid}: {text}"
            for pid, text in self.processes().items()
            if pid != daemon and "bangerd" not in text
        ]
        left += [str(path) for path in self.state.glob("vms/*")]
        left += [str(path) for path in self.runtime.glob("vms/*")]
        return left

    def close(self):
        """Delete all VMs, stop the daemon, and return what is left after that."""
        with contextlib.suppress(CommandFailedError, subprocess.TimeoutExpired):
            if self.daemon_pid() is not None or any(self.state.glob("vms/*")):
                self.run("vm", "delete", "--all", check=False, timeout=120)
                self.run("daemon", "stop", check=False, timeout=60)
        end = time.monotonic() + 10
        while (
            left := self.leftovers() + [f"process {p}: {t}" for p, t in self.processes().items()]
        ) and time.monotonic() < end:
            time.sleep(0.1)
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.runtime, ignore_errors=True)
        return sorted(set(left))


def _alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # the second: gone between open and read
        return False


def wait_until(condition, timeout, message="it did not happen in time"):
    """Poll ``condition`` until it is true; returns its value."""
    end = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < end, message
        time.sleep(0.05)
    return value
