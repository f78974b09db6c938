"""The files that a lock names, kept by digest in ``images/.void/files``: brought from a mirror once, verified at every use."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

from banger.host import fs
from banger.host.download import Wanted, download
from banger.images.void.lock import PLACE, LockedFile
from banger.model.clock import Deadline
from banger.model.errors import HostLacksError, InvalidInputError

_FETCH_S = 3600.0
NO_MIRROR_HINT = 'set it, for example: export BANGER_VOID_MIRROR=https://…, or void_mirror = "https://…" in the configuration'


def mirror_url(mirror: str | None) -> str:
    """The address of the mirror, without a slash at its end; InvalidInputError if none is configured, or it is none."""
    if not mirror:
        raise InvalidInputError(
            "no Void mirror is configured",
            detail="it is the address below which `current` and `static` are; everything from it is verified by digest and signature",
            hint=NO_MIRROR_HINT,
        )
    if not mirror.startswith(("http://", "https://")):
        raise InvalidInputError(f"void_mirror {mirror!r} is no address of HTTP", hint=NO_MIRROR_HINT)  # fmt: skip
    return mirror.rstrip("/")


class Store:
    """The files below ``images_dir``. Whoever writes holds the lock of a build or of ``image lock``."""

    def __init__(self, images_dir: Path) -> None:
        self._dir = images_dir / PLACE / "files"

    def path(self, file: LockedFile) -> Path:
        """Where it is, if it is."""
        return self._dir / file.sha256

    def put(self, data: bytes) -> str:
        """Keep ``data``; its SHA-256."""
        fs.make_private_dir(self._dir)
        sha256 = hashlib.sha256(data).hexdigest()
        fs.write_atomic(self._dir / sha256, data)
        return sha256

    def bring(
        self,
        files: Iterable[LockedFile],
        mirror: str | None,
        say: Callable[[str], None],
        *,
        between: fs.Between = fs.go_on,
    ) -> None:
        """Have all ``files`` and verify their digests. What is there and damaged is brought again.

        HostLacksError if the mirror has not what is locked (the first parts of files stay for the next time), InvalidInputError if
        one is needed and none configured.
        """
        fs.make_private_dir(self._dir)
        deadline = Deadline.after(_FETCH_S)
        for file in files:
            between()
            if not self._whole(file):
                say(f"{file.name}: downloading")
                self._bring(file, f"{mirror_url(mirror)}/{file.path}", _Talk(file.name, say, between), deadline)  # fmt: skip

    def _whole(self, file: LockedFile) -> bool:
        path = self.path(file)
        if fs.length_bytes(path) != file.size_bytes:
            return False
        with path.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest() == file.sha256

    def _bring(self, file: LockedFile, url: str, talk: _Talk, deadline: Deadline) -> None:
        part = self._dir / f"{file.sha256}.part"
        wanted = Wanted(
            (url,), file.size_bytes, file.sha256, file.name, "the lock file",
            hint="do it again; if the mirror has a newer one by now: banger image lock void",
        )  # fmt: skip
        try:
            download(wanted, part, deadline, talk)
        except OSError as error:
            if error.errno not in fs.FULL:
                raise
            for left in self._dir.glob(f"{part.name}*"):  # others need the space as well
                left.unlink(missing_ok=True)
            raise HostLacksError(
                f"no space for {file.name} in {self._dir}",
                detail=error.strerror or "",
                hint=f"df -h {self._dir}",
            ) from error
        part.replace(self.path(file))

    def prune(self, keep: Iterable[LockedFile]) -> None:
        """Remove what is not in ``keep``."""
        kept = {file.sha256 for file in keep}
        for path in self._dir.iterdir():
            if path.name.partition(".")[0] not in kept:
                path.unlink()


class _Talk:
    """A download's listener, which may be told to stop."""

    def __init__(self, name: str, say: Callable[[str], None], between: fs.Between) -> None:
        self._name, self._say, self._between = name, say, between

    def advance(self, _stage: str, _done_bytes: int, _total_bytes: int) -> None:
        self._between()

    def note(self, sentence: str) -> None:
        self._say(f"{self._name}: {sentence}")
