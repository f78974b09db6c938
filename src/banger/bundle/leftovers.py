"""What interrupted fetches of a runtime bundle left, for who wants the room more than to go on with them."""

from __future__ import annotations

from pathlib import Path

from banger.bundle.place import forget_download, writing
from banger.bundle.places import Root
from banger.bundle.report import Reporter
from banger.host import fs
from banger.model.usage import Leftover

_WAIT_S = 1.0


def find(root: Root) -> list[Leftover]:
    """Archives on their way."""
    parts = sorted(root.downloads.glob("*.part")) if root.downloads.is_dir() else []
    return [Leftover("download", path, fs.allocated_bytes(path)) for path in parts]


def remove(root: Root, path: Path, reporter: Reporter) -> None:
    """Remove one of them; idempotent. RefusedError while another banger is fetching, OSError."""
    with writing(root, reporter, _WAIT_S):
        forget_download(root, path)
