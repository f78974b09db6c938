#!/usr/bin/env python3
"""Fuzz what banger reads and did not write: every target one after the other, each in a process of its own.

python scripts/fuzz.py [--seconds 60] [--jobs 1] [--keep] [TARGET…]

What was learned is kept in build/fuzz/TARGET/corpus; what breaks a promise in build/fuzz/TARGET/found, one file a finding. Exit status: 0
nothing was found, 1 something was, 2 wrong use. ``--keep`` adds a few inputs of build/fuzz that reach more than those in fuzz/corpus/TARGET to
them.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from fuzz.targets import TARGETS  # noqa: E402  the root has to be on the path

LIMITS = ("-timeout=10", "-rss_limit_mb=1024", "-print_final_stats=1")
SLACK_S = 300
MOST_NEW = 8
STATISTIC = re.compile(r"^stat::(\w+):\s+(\d+)", re.MULTILINE)
COVERAGE = re.compile(r"cov: (\d+)")


class Outcome(NamedTuple):
    """How one target went."""

    name: str
    executions: int
    coverage: int
    peak_mib: int
    inputs: int
    findings: int
    said: str


def own(name: str) -> Path:
    """A target's directory, with one for what is learned and one for findings; the fuzzer can write to no other."""
    directory = ROOT / "build" / "fuzz" / name
    for part in ("corpus", "found"):
        (directory / part).mkdir(parents=True, exist_ok=True)
    return directory


def start(module: str, name: str, *options: str, timeout_s: float) -> tuple[int, str]:
    """Run a module of `fuzz` for a target; its exit status and what it said."""
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-m", f"fuzz.{module}", name, str(own(name)), *options],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path, "HOME": "/nonexistent", "PYTHONDONTWRITEBYTECODE": "1"},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=timeout_s, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout.decode(errors="replace")


def fuzz(name: str, seconds: int) -> Outcome:
    """One target for so long, or until its first finding."""
    directory = own(name)
    seeds = [str(path) for path in [ROOT / "fuzz" / "corpus" / name] if path.is_dir()]
    status, said = start(
        "one", name, f"-max_len={TARGETS[name].max_bytes}", *LIMITS, f"-max_total_time={seconds}",
        f"-artifact_prefix={directory}/found/", str(directory / "corpus"), *seeds, timeout_s=seconds + SLACK_S,
    )  # fmt: skip
    (directory / "fuzz.log").write_text(said)
    facts = {key: int(value) for key, value in STATISTIC.findall(said)}
    coverage = [int(value) for value in COVERAGE.findall(said)]
    return Outcome(
        name,
        facts.get("number_of_executed_units", 0),
        max(coverage, default=0),
        facts.get("peak_rss_mb", 0),
        len(list((directory / "corpus").iterdir())),
        1 if status else 0,
        said if status else "",
    )


def keep(name: str) -> None:
    """Add to the corpus that is kept with the code what was learned and reaches more: a few inputs."""
    kept = ROOT / "fuzz" / "corpus" / name
    kept.mkdir(exist_ok=True)
    status, said = start("pick", name, str(kept), str(MOST_NEW), timeout_s=SLACK_S)
    if status:
        sys.exit(said[-2000:])
    for word in said.split():
        shutil.copyfile(own(name) / "corpus" / word, kept / word[:16])


def tell(outcome: Outcome) -> None:
    """A line, and what went wrong."""
    words = f"{outcome.executions} executions, coverage {outcome.coverage}, {outcome.inputs} inputs, peak {outcome.peak_mib} MiB"
    print(f"{outcome.name:16} {'FOUND' if outcome.findings else 'ok':6} {words}", flush=True)
    if outcome.said:
        print(outcome.said[-4000:], flush=True)


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description="Fuzz what banger reads and did not write.")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--jobs", type=int, default=1, help="so many at once")
    parser.add_argument("--keep", action="store_true", help="add to fuzz/corpus what was learned")
    asked = parser.parse_args()
    names = asked.targets or list(TARGETS)
    unknown = sorted(set(names) - set(TARGETS))
    if unknown:
        parser.error(f"no target {unknown[0]!r}; there are: {', '.join(TARGETS)}")
    with ThreadPoolExecutor(asked.jobs) as pool:
        if asked.keep:
            list(pool.map(keep, names))
            return 0
        outcomes = []
        for outcome in pool.map(lambda name: fuzz(name, asked.seconds), names):
            tell(outcome)
            outcomes.append(outcome)
    total = sum(outcome.executions for outcome in outcomes)
    findings = sum(outcome.findings for outcome in outcomes)
    print(
        f"{len(outcomes)} targets, {asked.seconds} s each, {total} executions, {findings} findings"
    )
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
