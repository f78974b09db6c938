"""A banger of its own for tests: state and runtime directory, real daemon, real CLI, and the proof that nothing is left."""

import contextlib
import fcntl
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


def linked_images():
    """A new directory with the images that the cache has now, by hard links; beside it, since links do not cross file systems."""
    places = CACHE / "linked"
    places.mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(dir=places))
    # Not one that another process builds just now: until it is whole, its name is .build-…
    for manifest in CACHE.glob("images/[!.]*/manifest.json"):
        subprocess.run(["cp", "-al", manifest.parent, place], check=True)
    return place


def name_image(directory, name):
    """Give the image in ``directory`` another name, and no other link to it."""
    manifest, new = directory / "manifest.json", directory / "manifest.new"
    new.write_text(json.dumps({**json.loads(manifest.read_text()), "name": name}))
    new.replace(manifest)


class Installation:
    """``banger`` with directories of its own. Its images are links to those of the cache, because building one takes a minute: what
    it makes, renames or replaces is no other's. Only that of a builder are the cache itself.
    """

    def __init__(self, directory, *, builder=False, **settings):
        self.directory = Path(directory)
        self.state = self.directory / "state"
        # Sockets have short paths: the runtime directory lies in /tmp, whatever pytest calls its own.
        self.runtime = Path(tempfile.mkdtemp(prefix="bgr-", dir="/tmp"))
        self.state.mkdir(parents=True)
        self.images = CACHE / "images" if builder else linked_images()
        self.images.mkdir(parents=True, exist_ok=True)
        (self.state / "images").symlink_to(self.images)
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

    prefix = ()
    """What comes before the command line of ``banger``."""

    def start(self, *argv, **options):
        """``banger ARGV`` as a Popen."""
        return subprocess.Popen(
            [*self.prefix, sys.executable, "-m", "banger.cli.main", *argv],
            env={**self.env, **options.pop("env", {})},
            **options,
        )

    def run(self, *argv, check=True, timeout=240, stdin=None, env=None, text=True):
        """``banger ARGV`` to its end."""
        done = subprocess.run(
            [*self.prefix, sys.executable, "-m", "banger.cli.main", *argv], env={**self.env, **(env or {})}, input=stdin,
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

    def boot_id(self, name):
        """A VM's, as its agent says; asked again while that is too busy to answer in time."""

        def answered():
            health = self.json("vm", "health", name, check=False)
            return health["ready"] and health["boot_id"]

        return wait_until(answered, 60)

    def connects(self, name, address, port, within_s=60):
        """Whether TCP from inside a guest reaches ``address``; where it must not, it need not try for as long as a busy host may take."""
        script = f"timeout {within_s} bash -c '</dev/tcp/{address}/{port}'"
        return self.run("vm", "exec", name, "--", "bash", "-c", script, check=False).returncode == 0

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
        # ProcessLookupError: gone between open and read.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, ValueError):
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
        wait_until(lambda: not _alive(pid), 60)

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
        end = time.monotonic() + 30
        while (
            left := self.leftovers() + [f"process {p}: {t}" for p, t in self.processes().items()]
        ) and time.monotonic() < end:
            time.sleep(0.1)
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.runtime, ignore_errors=True)
        if self.images != CACHE / "images":
            shutil.rmtree(self.images)
        return sorted(set(left))


def built(recipe, name):
    """The image of ``recipe`` as ``name``, built once and kept in the cache; of several processes the first builds it."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix="bgr-builder-", dir="/tmp") as directory,
        (CACHE / "building").open("a") as lock,
    ):
        fcntl.flock(lock, fcntl.LOCK_EX)
        builder = Installation(directory, builder=True)
        try:
            done = builder.run("image", "build", recipe, "--name", name, timeout=1800)
            print(done.stderr)
            return builder.json("image", "show", name)
        finally:
            builder.close()


def _alive(pid):
    """Whether a thread of the process still runs: its first one can be a zombie while another keeps the sockets open."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state != "Z" or len(os.listdir(f"/proc/{pid}/task")) > 1
    except (FileNotFoundError, ProcessLookupError):  # the second: gone between open and read
        return False


def wait_until(condition, timeout, message="it did not happen in time"):
    """Poll ``condition`` until it is true; returns its value. ``message`` says what did not happen, or is called to find out."""
    end = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < end, message() if callable(message) else message
        time.sleep(0.05)
    return value
