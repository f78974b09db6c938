"""Fuzz one target: ``python -m fuzz.one TARGET DIRECTORY [options of libFuzzer] CORPUS…``. `scripts/fuzz.py` calls it.

The process can write to DIRECTORY alone (Landlock): an input that reaches out of where it belongs changes nothing.
"""

from __future__ import annotations

import logging
import sys

import atheris

from fuzz.confine import confine
from fuzz.targets import TARGETS

_WATCHED = ["banger", "banger_agent", "tarfile", "dns", "h11", "tomllib", "plistlib"]


def main() -> None:
    """Until libFuzzer ends, which ends the process."""
    logging.disable(logging.CRITICAL)
    name, directory = sys.argv.pop(1), sys.argv.pop(1)
    with atheris.instrument_imports(include=_WATCHED):
        attempt = TARGETS[name].load()
    confine(directory)
    atheris.Setup(sys.argv, attempt)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
