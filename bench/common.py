"""What the benchmarks share: an installation of their own, medians, JSON results in bench/results."""

import json
import os
import platform
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.framework.installation import Installation

RESULTS = Path(__file__).parent / "results"


def installation(**settings):
    """A banger of the benchmark's own, with the tests' image."""
    banger = Installation(tempfile.mkdtemp(prefix="banger-bench-"), **settings)
    banger.run("image", "build", "debian", timeout=1800)
    return banger


def summary(values):
    """Median, least, greatest and count."""
    return {
        "median": round(statistics.median(values), 2),
        "min": round(min(values), 2),
        "max": round(max(values), 2),
        "n": len(values),
    }


def report(name, result):
    """Print the result and keep it."""
    result = {
        "host": {
            "cpus": os.cpu_count(),
            "machine": platform.machine(),
            "kernel": platform.release().split("-")[0],
        },
        **result,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
