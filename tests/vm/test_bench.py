"""``make bench-create``: what it measures on real guests, and that a saved result is compared with."""

import json
import os
import subprocess

from tests.framework.installation import ROOT

LEAN = ("--memory", "512M", "--work-size", "1G", "--runs", "1")
STAGES = {"disks", "vmm", "boot", "agent", "services"}


def test_a_life_is_measured_part_by_part_and_compared_with_a_saved_one(banger, tmp_path):
    saved = tmp_path / "base.json"
    argv = ["bash", ROOT / "scripts" / "bench-create.sh", *LEAN, "--save", saved]
    done = subprocess.run(argv, env={**os.environ, **banger.env}, capture_output=True, text=True, check=True)  # fmt: skip
    assert "run 1 of 1: ready in" in done.stderr
    assert "warm: " in done.stderr
    result = json.loads(saved.read_text())
    figures = {name.strip(): figure for name, figure in result["figures"].items()}
    assert {"create", "ssh", "exec", "delete"} | STAGES <= set(figures)
    assert sum(figures[name]["median_ms"] for name in STAGES) <= figures["create"]["median_ms"]
    assert figures["exec"]["median_ms"] < figures["create"]["median_ms"]
    assert banger.json("vm", "list") == []

    again = banger.run("bench", "create", *LEAN, "--baseline", str(saved))
    rows = {line.split()[0]: line.split() for line in again.stdout.splitlines()}
    assert rows["WHAT"][-1] == "BASELINE"
    assert rows["create"][-1] == "x"
    assert banger.run("bench", "create", "--baseline", "/none", check=False).returncode == 2
