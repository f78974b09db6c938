"""``banger image lock``: pin what a Void image is built from. Works without the daemon."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from banger.cli.commands.image import absolute_recipe
from banger.cli.output import data
from banger.cli.output.bytes import ByteProgress
from banger.cli.output.data import Json
from banger.cli.session import Session, pass_session

if TYPE_CHECKING:
    from banger.images.void.lock import Lock


@click.command()
@click.argument("recipe", default="void")
@click.option(
    "--tools",
    metavar="PATH",
    help="xbps-static's tarball at the mirror.  [default: static/xbps-static-latest.…]",
)
@data.format_option
@pass_session
def lock(session: Session, *, recipe: str, tools: str | None, output: str) -> None:
    """Pin what RECIPE, a Void recipe, is built from: write its lock file from what the mirror has now.

    The mirror is `void_mirror` of the configuration, or the recipe's. The lock has the digest of every file that a build takes from it; each package's
    signature is verified with a key that the recipe pins. A lock that cannot be renewed stays as it is.
    """
    from banger.images.void import locking  # noqa: PLC0415  cryptography and tar readers, for this command alone

    config = session.config
    progress = _Stages()
    path, made = locking.make_lock(
        absolute_recipe(recipe), config.images_dir, config.void_mirror, progress.say, tools=tools or locking.TOOLS
    )  # fmt: skip
    progress.end()
    data.show_one(_facts(path, made), output, pairs=lambda item: list(item.items()), name=str(path))


def _facts(path: Path, made: Lock) -> Json:
    from banger.images.void.signature import SigningKey  # noqa: PLC0415  as above

    key = SigningKey.parse(made.key.encode(), "the key")
    return {
        "lock": str(path),
        "index": made.index.sha256,
        "tools": made.tools.sha256,
        "packages": len(made.packages),
        "bytes": sum(file.size_bytes for file in made.files),
        "signed_by": key.xbps_name,
        "key_sha256": key.fingerprint,
    }


class _Stages:
    """Prints a stage when the next one begins."""

    def __init__(self) -> None:
        self._progress = ByteProgress()
        self._stage, self._detail = "", ""

    def say(self, stage: str, detail: str) -> None:
        """``stage`` goes on with ``detail``."""
        if stage != self._stage:
            self.end()
        self._stage, self._detail = stage, detail

    def end(self) -> None:
        """The last stage is over."""
        if self._stage:
            self._progress.done(self._stage, self._detail)
