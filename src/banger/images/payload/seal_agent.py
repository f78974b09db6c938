"""Rewrite a zipapp of sources as one of byte code, with the Python that runs this; the same input gives the same bytes."""

import importlib.util
import marshal
import sys
import zipfile
from pathlib import Path


def seal(path: Path) -> None:
    """Replace each ``x.py`` in the zip at ``path`` by ``x.pyc`` that is never checked against a source."""
    with zipfile.ZipFile(path) as source:
        members = {name: source.read(name) for name in sorted(source.namelist())}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as target:
        for name, data in members.items():
            compiled = name.endswith(".py")
            info = zipfile.ZipInfo(name + "c" if compiled else name, (1980, 1, 1, 0, 0, 0))
            info.external_attr = 0o644 << 16
            target.writestr(info, byte_code(name, data) if compiled else data)


def byte_code(name: str, source: bytes) -> bytes:
    """A .pyc (PEP 552) with an unchecked source hash: magic, flags 0b01, hash, marshalled code."""
    code = compile(source, f"agent.pyz/{name}", "exec", dont_inherit=True)
    flags = (1).to_bytes(4, "little")
    return (
        importlib.util.MAGIC_NUMBER
        + flags
        + importlib.util.source_hash(source)
        + marshal.dumps(code)
    )


seal(Path(sys.argv[1]))
