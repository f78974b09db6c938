"""Two commits of banger against one another: what each part of a VM's life takes, measured by turns, so that both meet the same host.

    python bench/ab.py OLD [NEW] [--runs N] [--image RECIPE]

NEW is HEAD if it is not given. Each has a checkout, a state and an image of its own, and the Python packages of this one; prints medians in
milliseconds and NEW : OLD.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
LEAN = ("--memory", "512M", "--work-size", "1G")


class Side:
    """A commit, checked out below ``directory``, with a daemon of its own."""

    def __init__(self, commit, directory):
        self.name, self.checkout = commit, directory / "src"
        self._run(["git", "-C", ROOT, "worktree", "add", "--detach", self.checkout, commit])
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("BANGER_", "PYTHON"))}
        self._env = {
            **kept, "PYTHONPATH": str(self.checkout / "src"), "BANGER_CONFIG": str(directory / "none.toml"),
            "BANGER_STATE_DIR": str(directory / "state"), "BANGER_RUNTIME_DIR": str(directory / "run"),
        }  # fmt: skip
        self.runs = []

    def _run(self, argv, **options):
        return subprocess.run(argv, check=True, capture_output=True, text=True, **options).stdout

    def banger(self, *argv):
        """What ``banger ARGV`` prints."""
        return self._run(
            [sys.executable, "-m", "banger.cli.main", *argv], env=self._env, timeout=1800
        )

    def measure(self, image):
        """One life of a VM."""
        said = json.loads(
            self.banger("bench", "create", "--runs", "1", "--image", image, *LEAN, "--json")
        )
        self.runs.append({name: figure["median_ms"] for name, figure in said["figures"].items()})

    def medians(self):
        """Milliseconds by part."""
        names = [name for name in self.runs[0] if all(name in run for run in self.runs)]
        return {name: statistics.median(run[name] for run in self.runs) for name in names}

    def close(self):
        """Nothing of it is left."""
        with contextlib.suppress(subprocess.CalledProcessError):
            self.banger("daemon", "stop")
        self._run(["git", "-C", ROOT, "worktree", "remove", "--force", self.checkout])


def main():
    """See the module."""
    parser = argparse.ArgumentParser(description="two commits of banger against one another")
    parser.add_argument("old")
    parser.add_argument("new", nargs="?", default="HEAD")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--image", default="debian-base")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="bench-ab-", dir="/tmp") as here,
        contextlib.ExitStack() as stack,
    ):
        sides = []
        for letter, commit in (("a", options.old), ("b", options.new)):
            (Path(here) / letter).mkdir()
            side = Side(commit, Path(here) / letter)
            stack.callback(side.close)
            side.banger("image", "build", options.image)
            sides.append(side)
        for number in range(options.runs):
            for side in sides if number % 2 == 0 else reversed(sides):
                side.measure(options.image)
                print(
                    f"run {number + 1} of {options.runs}: {side.name}: {side.runs[-1]['create']:.0f} ms",
                    file=sys.stderr,
                )
        old, new = (side.medians() for side in sides)
        print(f"{'part':<14}{options.old[:12]:>14}{options.new[:12]:>14}{'ratio':>8}")
        for name in new:
            if old.get(name):
                print(
                    f"{name:<14}{old[name]:>14.1f}{new[name]:>14.1f}{new[name] / old[name]:>8.2f}"
                )


if __name__ == "__main__":
    main()
