"""A disk that fills up under a fetch: a small tmpfs in a mount namespace of the test's own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.framework.bundles import Bundle, Server, program

OWN_MOUNTS = ["unshare", *(["--user", "--map-root-user"] if os.geteuid() else []), "--mount"]
REPORT = """
import json, os, subprocess, sys
from pathlib import Path
small, size, *argv = sys.argv[1:]
subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=755", "none", small], check=True)
root = Path(small) / "root"
free = lambda: os.statvfs(small).f_bavail * os.statvfs(small).f_frsize
empty = free()
if placed := os.environ.get("PLACED"):
    subprocess.run([sys.executable, "-m", "banger.cli.main", "runtime", "fetch", *placed.split("|")], check=True, capture_output=True)
before = free()
code = "import banger.bundle.fetch as f; f.RESERVE_BYTES = -(1 << 40); from banger.cli.app import run; import sys; sys.exit(run(sys.argv[1:]))"
done = subprocess.run([sys.executable, *(["-c", code] if os.environ.get("BLIND") else ["-m", "banger.cli.main"]), "runtime", "fetch", *argv], capture_output=True, text=True)
status = subprocess.run([sys.executable, "-m", "banger.cli.main", "runtime", "status", "--format", "json"], capture_output=True, text=True)
print(json.dumps({
    "returncode": done.returncode, "err": done.stderr, "status": json.loads(status.stdout),
    "left": sorted(str(p.relative_to(root)) for p in root.rglob("*")), "lost": before - free(), "size": empty,
}))
"""


@pytest.fixture
def fetch_on_a_small_disk(tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    tried = subprocess.run([*OWN_MOUNTS, "mount", "-t", "tmpfs", "none", small], capture_output=True, text=True, check=False)  # fmt: skip
    if tried.returncode:
        pytest.skip(f"no mount namespace: {tried.stderr.strip()}")

    def do(size, *argv, blind=True, placed=()):
        env = {
            **{k: v for k, v in os.environ.items() if not k.startswith("BANGER_")},
            "BANGER_CONFIG": "/nonexistent",
            "BANGER_BUNDLE_DIR": str(small / "root"),
            "BLIND": "1" if blind else "",
            "PLACED": "|".join(map(str, placed)),
        }
        done = subprocess.run(
            [*OWN_MOUNTS, sys.executable, "-c", REPORT, small, size, *map(str, argv)],
            env=env, capture_output=True, text=True, timeout=90, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert list(small.iterdir()) == []  # the mount was of the namespace alone
        return json.loads(done.stdout)

    return do


@pytest.fixture
def big(tmp_path):
    """A bundle whose archive has 3 MiB and whose files have 6."""
    noise = os.urandom(3 << 20)
    return Bundle(
        "2.0.0", tmp_path, contents={"firecracker": program("f") + noise, "jailer": program("j") + b"x" * (3 << 20)}
    )  # fmt: skip


def told(result, hint="free some space"):
    assert result["returncode"] == 5, result["err"]
    assert "error: no space for the runtime bundle in " in result["err"]
    assert hint in result["err"]
    assert "Traceback" not in result["err"]


def test_it_is_refused_with_numbers_if_it_cannot_fit(fetch_on_a_small_disk, big):
    with Server(big.archive) as server:
        big.at(server.url)
        result = fetch_on_a_small_disk("8m", "--manifest", big.manifest_file, blind=False)
        assert server.asked == []
    told(result)
    assert "needs 13" in result["err"]
    assert result["left"] == [".lock"]


@pytest.mark.parametrize("size", ["1m", "4m", "5m", "8m"])
def test_a_disk_that_fills_up_meanwhile_is_told_and_gets_its_space_back(
    fetch_on_a_small_disk, big, size
):
    with Server(big.archive) as server:
        big.at(server.url)
        result = fetch_on_a_small_disk(size, "--manifest", big.manifest_file)
    told(result)
    assert [name for name in result["left"] if name not in {".lock", "versions"}] == []
    assert result["lost"] < 64 << 10
    assert result["status"]["state"] == "missing"


@pytest.mark.parametrize("source", ["file", "tree"])
def test_an_update_that_does_not_fit_leaves_the_old_version_in_use(
    fetch_on_a_small_disk, big, tmp_path, source
):
    old = Bundle("1.0.0", tmp_path)
    placed = ("--from", old.file, "--manifest", old.manifest_file)
    result = fetch_on_a_small_disk(
        "5m", "--from", getattr(big, source), "--manifest", big.manifest_file, placed=placed
    )
    told(result)
    assert (result["status"]["state"], result["status"]["version"]) == ("ok", "1.0.0")
    assert result["lost"] < 64 << 10
    assert not any(Path(name).name.startswith(".new-") for name in result["left"])


def test_no_room_even_for_the_lock_is_told(fetch_on_a_small_disk, big):
    result = fetch_on_a_small_disk("4k", "--from", big.file, "--manifest", big.manifest_file)
    told(result)
    assert result["status"]["state"] == "missing"
