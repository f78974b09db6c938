"""How the stand-in behaves on demand: which release it plays, and in which way it fails.

A `Play` is JSON. The first of these counts: the environment variable BANGER_FAKE_FC, the file ``<program>.play`` beside the program
(the way in where the environment is an allow-list), what `install.make_firecracker` wrote into the program.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

VARIABLE = "BANGER_FAKE_FC"
VERSION = "1.13.1"
SNAPSHOT_VERSIONS = (((1, 17), "11.0.0"), ((1, 16), "10.0.0"), ((1, 15), "9.0.0"), ((0,), "8.0.0"))


@dataclass(frozen=True, slots=True)
class Play:
    """Endpoints are written ``PUT /boot-source``, with the path as it is sent. Times are in milliseconds."""

    version: str = VERSION
    binds: bool = True  # False: the API socket never appears
    exit_status: int | None = None  # ends at once so, after ``exit_log`` on standard error
    exit_log: str = ""
    refuse_start: str = ""  # the fault_message of every InstanceStart
    refuse: Mapping[str, str] | None = None  # endpoint to fault_message
    hang: tuple[
        str, ...
    ] = ()  # endpoints that never answer; as in Firecracker nothing else is answered then
    delay_ms: Mapping[str, int] | None = None  # endpoint to how long its answer takes
    garbage: tuple[str, ...] = ()  # endpoints that answer with what is no HTTP
    drop: tuple[str, ...] = ()  # endpoints whose connection is closed without an answer
    die_after_start_ms: int | None = None  # SIGKILL so long after a successful InstanceStart

    @property
    def numbers(self) -> tuple[int, ...]:
        """The release as numbers, for comparisons."""
        return tuple(int(part) for part in self.version.partition("-")[0].split("."))

    @property
    def snapshot_version(self) -> str:
        """The snapshot format of the release."""
        return next(text for since, text in SNAPSHOT_VERSIONS if self.numbers >= since)

    def dump(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self))


def load(text: str) -> Play:
    """A `Play` from JSON; ValueError for what it does not know."""
    said: dict[str, Any] = json.loads(text)
    unknown = set(said) - {field.name for field in fields(Play)}
    if unknown:
        raise ValueError(f"{VARIABLE}: unknown: {', '.join(sorted(unknown))}")
    return Play(**{key: tuple(v) if isinstance(v, list) else v for key, v in said.items()})


def find(program: str, written: str) -> Play:
    """The play of this run; ``program`` is the path of the program, ``written`` what is in it."""
    beside = Path(f"{program}.play")
    text = os.environ.get(VARIABLE) or (beside.read_text() if beside.is_file() else written)
    return load(text)
