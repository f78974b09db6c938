"""``banger runtime`` as a program: statuses, streams, formats; no daemon."""

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import banger
from tests.framework.bundles import Bundle, Server, a_root, program

ARGV = [sys.executable, "-m", "banger.cli.main", "runtime"]


class Shell:
    def __init__(self, directory):
        self.directory = directory
        self.root = a_root(directory / "root")
        (directory / "bin").mkdir()
        self.env = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("BANGER_", "XDG_"))},
            "HOME": str(directory),
            "PATH": str(directory / "bin"),
            "BANGER_CONFIG": str(directory / "config.toml"),
            "BANGER_BUNDLE_DIR": str(self.root.path),
            "BANGER_STATE_DIR": str(directory / "state"),
            "BANGER_RUNTIME_DIR": str(directory / "run"),
        }

    def __call__(self, *argv):
        return subprocess.run(
            [*ARGV, *map(str, argv)], env=self.env, stdin=subprocess.DEVNULL, capture_output=True,
            text=True, timeout=60, check=False,
        )  # fmt: skip

    def ok(self, *argv):
        done = self(*argv)
        assert done.returncode == 0, done.stderr
        return done

    def fails(self, status, *argv):
        done = self(*argv)
        assert done.returncode == status, done.stderr
        assert re.search(r"^error: \S", done.stderr, re.MULTILINE)
        assert re.search(r"\n\nhint: \S", done.stderr)
        assert "Traceback" not in done.stderr
        return done


@pytest.fixture
def shell(tmp_path):
    return Shell(tmp_path)


@pytest.fixture
def bundle(tmp_path):
    return Bundle("1.0.0", tmp_path)


def test_without_a_bundle_status_is_5_and_says_how_to_get_one(shell):
    done = shell.fails(5, "status")
    assert re.search(r"^state +missing$", done.stdout, re.MULTILINE)
    assert "hint: banger runtime fetch --from FILE --manifest FILE" in done.stderr
    done = shell.fails(5, "status", "--format", "json")
    found = json.loads(done.stdout)
    assert found["state"] == "missing"
    assert "no firecracker is here" in found["problems"][0]
    assert found["hint"] == "banger runtime fetch --from FILE --manifest FILE"


def test_what_banger_pins_decides_what_fetch_does(shell):
    """Nothing is pinned yet: fetch says so and what to do, and neither makes a directory nor asks a server."""
    done = shell.fails(5, "fetch")
    assert done.stdout == ""
    assert "pinned yet" in done.stderr
    assert not shell.root.path.exists()


def test_fetch_prints_plain_stages_on_stderr_and_the_result_on_stdout(shell, bundle):
    with Server(bundle.archive) as server:
        bundle.at(server.url)
        done = shell.ok("fetch", "--manifest", bundle.manifest_file, "--format", "json")
    found = json.loads(done.stdout)
    assert (found["state"], found["version"]) == ("ok", "1.0.0")
    assert [line.split()[0] for line in done.stderr.splitlines()] == ["download", "unpack", "place"]
    assert "\r" not in done.stderr
    assert "\x1b" not in done.stderr
    shell.ok("status")
    again = shell.ok("fetch", "--format", "name")  # the manifest of what is placed counts
    assert again.stdout.strip() == found["directory"]
    assert "there already" in again.stderr


def test_a_url_of_ones_own_is_tried_first_and_a_wrong_one_is_a_mistake(shell, bundle):
    with Server(bundle.archive) as server:
        bundle.at("http://127.0.0.1:9/never")
        shell.ok("fetch", "--manifest", bundle.manifest_file, "--url", server.url)
    done = shell("fetch", "--manifest", bundle.manifest_file, "--url", "ftp://example.org/x")
    assert done.returncode == 2
    assert "--url: urls[0]: must begin with https://" in done.stderr


def test_status_names_what_is_damaged_with_status_5(shell, bundle):
    bundle.place(shell.root)
    (shell.root.current / "jailer").write_bytes(b"tampered")
    done = shell.fails(5, "status")
    assert re.search(r"^  jailer +has 8 bytes, not \d+$", done.stdout, re.MULTILINE)
    assert "jailer: has 8 bytes" in done.stderr
    assert "hint: banger runtime fetch --from FILE" in done.stderr
    shell.ok("fetch", "--from", bundle.file)
    assert "ok" in shell.ok("status").stdout


def test_status_is_content_with_a_firecracker_on_path(shell):
    path = shell.directory / "bin" / "firecracker"
    path.write_bytes(program("x"))
    path.chmod(0o755)
    found = json.loads(shell.ok("status", "--format", "json").stdout)
    assert (found["state"], found["firecracker"]) == ("missing", str(path))
    assert found["used_from"] == f"PATH {path}"


def test_rollback_and_install(shell, bundle, tmp_path):
    shell.fails(4, "rollback")
    shell.fails(5, "install", "--prefix", tmp_path / "p")
    bundle.place(shell.root)
    Bundle("1.1.0", tmp_path).place(shell.root)
    assert json.loads(shell.ok("rollback", "--format", "json").stdout)["version"] == "1.0.0"
    done = shell.ok("install", "--prefix", tmp_path / "p")
    assert done.stdout == ""
    assert f"firecracker 1.0.0 is now in {tmp_path}/p/lib/banger" in done.stderr
    assert "already" in shell.ok("install", "--prefix", tmp_path / "p").stderr
    assert (tmp_path / "p/lib/banger/current/firecracker").read_bytes() == bundle.contents["firecracker"]  # fmt: skip


def test_package_makes_what_fetch_takes(shell, bundle, tmp_path):
    made = json.loads(
        shell.ok("package", bundle.tree, "-o", tmp_path / "out", "--version", "2.0", "--format", "json").stdout
    )  # fmt: skip
    shell.ok("fetch", "--from", made["archive"], "--manifest", made["manifest"])
    assert json.loads(shell.ok("status", "--format", "json").stdout)["version"] == "2.0"
    shell.fails(2, "package", bundle.tree, "-o", tmp_path / "out")  # whose version nobody knows
    shell.fails(3, "package", tmp_path / "nothing", "--version", "1")


def test_a_manifest_with_a_mistake_is_wrong_input(shell, bundle):
    bundle.manifest_file.write_text(bundle.manifest_file.read_text().replace("mode", "mdoe", 1))
    done = shell("fetch", "--manifest", bundle.manifest_file)
    assert done.returncode == 2
    assert re.search(
        rf"error: {bundle.manifest_file}:\d+: files\[0\].mdoe: unknown key", done.stderr
    )
    assert done.stderr.endswith("hint: did you mean mode?\n")


def test_on_a_terminal_the_download_is_drawn_live(shell, tmp_path):
    bundle = Bundle("1.0.0", tmp_path, contents={"firecracker": program("f") + os.urandom(8 << 20)})
    with Server(bundle.archive) as server:
        bundle.at(server.url)
        ours, theirs = pty.openpty()
        process = subprocess.Popen(
            [*ARGV, "fetch", "--manifest", str(bundle.manifest_file)], env={**shell.env, "TERM": "xterm"},
            stdin=theirs, stdout=theirs, stderr=theirs,
        )  # fmt: skip
        os.close(theirs)
        said, end = b"", time.monotonic() + 30
        while time.monotonic() < end:
            try:
                said += os.read(ours, 65536)
            except OSError:  # the other side is closed
                break
        os.close(ours)
        assert process.wait(10) == 0
    assert re.search(rb"\r\x1b\[Kdownload .* \d+ % of 8M", said)
    assert b"state" in said


def test_ctrl_c_ends_it_and_the_next_fetch_goes_on(shell, bundle):
    with Server(bundle.archive) as server:
        bundle.at(server.url)
        event = threading.Event()
        server.hold = (50, event)
        process = subprocess.Popen(
            [*ARGV, "fetch", "--manifest", str(bundle.manifest_file)], env=shell.env,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        part = shell.root.downloads / f"{bundle.manifest.sha256}.part"
        end = time.monotonic() + 20
        while not (part.exists() and part.stat().st_size == 50) and time.monotonic() < end:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
        assert process.returncode == 130
        assert "Traceback" not in err
        server.hold = None
        event.set()
        shell.ok("fetch", "--manifest", bundle.manifest_file)
        assert server.asked[-1][1] == "bytes=50-"


def test_a_banger_below_a_prefix_uses_the_bundle_that_was_installed_there(shell, bundle, tmp_path):
    prefix = tmp_path / "prefix"
    packages = prefix / "lib" / "python3" / "dist-packages"
    shutil.copytree(Path(banger.__file__).parent, packages / "banger")
    bundle.place(shell.root)
    shell.ok("install", "--prefix", prefix)
    env = {**shell.env, "PYTHONPATH": str(packages)}
    del env["BANGER_BUNDLE_DIR"]
    done = subprocess.run(
        [*ARGV, "status", "--format", "json"], env=env, capture_output=True, text=True, timeout=60, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["origin"], found["root"]) == ("installed", str(prefix / "lib" / "banger"))
    assert found["used_from"] == "bundle firecracker 1.0.0"
