"""Where the project's own files are: ``config/`` and the guest agent, in a source checkout or an installed package."""

from __future__ import annotations

from importlib import resources
from importlib.util import find_spec
from pathlib import Path

from banger.host import own_files
from banger.model.errors import HostLacksError


def config_dir() -> Path:
    """The directory of recipes and package lists."""
    found = own_files.config_dir()
    if not (found / "images").is_dir():
        raise HostLacksError(
            "banger's config directory is missing", detail=str(found), hint="install banger again"
        )
    return found


def payload_dir() -> Path:
    """The files baked into guests."""
    return Path(str(resources.files("banger.images"))) / "payload"


def agent_dir() -> Path:
    """The guest agent's package."""
    spec = find_spec("banger_agent")
    if spec is None or not spec.submodule_search_locations:
        raise HostLacksError(
            "the guest agent's package banger_agent is missing", hint="install banger again"
        )
    return Path(next(iter(spec.submodule_search_locations)))
