"""The payload as a tar that goes into the root while it is built: units, settings, the agent. Deterministic."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from pathlib import Path

from banger.images.recipe import LoadedRecipe
from banger.images.resources import agent_dir, payload_dir

_EXECUTABLE = {"finish.sh", "banger-poweroff"}
_LIB = "usr/lib/banger"


def payload_files(recipe: LoadedRecipe, agent: Path | None = None) -> dict[str, bytes]:
    """Every file that the payload puts below the guest's root, by its path."""
    base = payload_dir()
    files = {
        str(path.relative_to(base / "rootfs")): path.read_bytes()
        for path in sorted((base / "rootfs").rglob("*"))
        if path.is_file()
    }
    services = [{"name": service.name, "port": service.port} for service in recipe.recipe.services]
    files["etc/banger/services.json"] = json.dumps(services).encode() + b"\n"
    for name in ("finish.sh", "seal_agent.py"):
        files[f"{_LIB}/{name}"] = (base / name).read_bytes()
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


def payload_tar(files: dict[str, bytes], epoch_s: int) -> bytes:
    """``files`` as a tar of root's."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, data in sorted(files.items()):
            info = tarfile.TarInfo(f"./{name}")
            info.size, info.mtime = len(data), epoch_s
            info.mode = 0o755 if name.rpartition("/")[2] in _EXECUTABLE else 0o644
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()
