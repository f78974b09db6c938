"""What is fuzzed: a name, a function of bytes that raises where a promise is broken, and how long its inputs may be.

A target takes the documented errors itself; whatever leaves it is a finding. Targets import what they try when they are called for, so
that the engine can watch these modules.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

Try = Callable[[bytes], None]


@dataclass(frozen=True, slots=True)
class Target:
    """``module`` of this package has the function ``function``; inputs have ``max_bytes``."""

    module: str
    function: str
    max_bytes: int = 4096

    def load(self) -> Try:
        """The function."""
        module = importlib.import_module(f"fuzz.targets.{self.module}")
        return cast("Try", getattr(module, self.function))


TARGETS = {
    "agent-http": Target("agent", "http"),
    "agent-frames": Target("agent", "frames"),
    "agent-mux": Target("agent", "mux", 8192),
    "agent-tar": Target("agent", "tar", 16384),
    "connect": Target("streams", "connect"),
    "answers": Target("streams", "answers"),
    "host-mux": Target("streams", "mux", 8192),
    "bulk": Target("streams", "bulk"),
    "names": Target("messages", "names", 1200),
    "netlink": Target("messages", "netlink", 2048),
    "console": Target("messages", "console", 8192),
    "helper": Target("messages", "helper", 5000),
    "helper-reply": Target("messages", "helper_reply", 5000),
    "image-manifest": Target("documents", "image_manifest"),
    "bundle-manifest": Target("documents", "bundle_manifest"),
    "recipe": Target("documents", "recipe"),
    "void-lock": Target("documents", "void_lock"),
    "void-index": Target("documents", "void_index"),
    "layers": Target("archives", "layers", 16384),
    "oci": Target("archives", "oci", 8192),
    "docker": Target("archives", "docker", 8192),
    "box": Target("archives", "box", 16384),
    "package": Target("archives", "package", 16384),
    "bundle": Target("archives", "bundle", 16384),
    "image-file": Target("archives", "image_file", 16384),
    "heads": Target("heads", "heads", 8192),
}
