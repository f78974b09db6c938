"""The payload as a tar that goes into the root while it is built: units, settings, the agent. Deterministic."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

from banger.images.customize import customizing_files
from banger.images.distributions import distribution
from banger.images.recipe import LoadedRecipe
from banger.images.resources import agent_dir
from banger.images.tools import tool_files
from banger.model.manifest import PAYLOAD, Service, services_json

EXECUTABLE = frozenset(
    {"finish.sh", "banger-poweroff", "opencode-server", "run", "1", "2", "3", "ctrlaltdel"}
)
_LIB = "usr/lib/banger"
PAYLOAD_FILE = f"{_LIB}/payload"
"""Says in the root file system which version of the payload it has (`banger.model.manifest.PAYLOAD`)."""


def payload_files(recipe: LoadedRecipe, agent: Path | None = None) -> dict[str, bytes]:
    """Every file that the payload puts below the guest's root, by its path."""
    files = distribution(recipe.recipe.distribution).payload()
    files |= tool_files(recipe.recipe.tools, recipe.recipe.distribution)
    services = [Service(table.name, table.port, table.path) for table in recipe.recipe.services]
    files["etc/banger/services.json"] = services_json(services)
    files |= customizing_files(recipe)
    files[PAYLOAD_FILE] = f"{PAYLOAD}\n".encode()
    files[f"{_LIB}/agent.pyz"] = agent_zip(agent or agent_dir())
    return files


def agent_zip(directory: Path) -> bytes:
    """The agent's package as a zipapp of sources; the image build compiles it with the guest's own Python."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        _add(archive, "__main__.py", b"from banger_agent.__main__ import main\n\nmain()\n")
        for path in sorted(directory.rglob("*.py")):
            _add(archive, f"banger_agent/{path.relative_to(directory)}", path.read_bytes())
    return buffer.getvalue()


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    info.external_attr = 0o644 << 16
    archive.writestr(info, data)
