"""How another program (ssh, for its ProxyCommand) starts this very banger with this very configuration."""

from __future__ import annotations

import os
import sys

from banger.host.config import Config

_STEERING = ("state_dir", "runtime_dir")


def self_argv(config: Config) -> list[str]:
    """The absolute command, behind ``env`` where directories come from the environment, which others need not have."""
    program = os.path.abspath(sys.argv[0])  # noqa: PTH100  a symlink in ~/.local/bin outlives what it points to
    if os.path.basename(program) == "banger" and os.access(program, os.X_OK):  # noqa: PTH119  as above
        argv = [program]
    else:
        argv = [sys.executable, "-P", "-m", "banger.cli.main"]
    settings = [
        f"BANGER_{key.upper()}={getattr(config, key)}"
        for key in _STEERING
        if config.sources.get(key, "").startswith("BANGER_")
    ]
    if os.environ.get("BANGER_CONFIG"):
        settings.append(f"BANGER_CONFIG={config.path}")
    return ["env", *settings, *argv] if settings else argv
