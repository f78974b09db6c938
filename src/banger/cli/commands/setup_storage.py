"""``banger setup storage``: a file system that shares blocks, for hosts whose own cannot."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import click

from banger.cli import params
from banger.cli.session import Session, pass_session
from banger.model.errors import HostLacksError


def _state_dir(session: Session, given: Path | None) -> Path:
    """As given, else that of the user who called sudo, else one's own."""
    if given is not None:
        return given
    caller = os.environ.get("SUDO_UID", "")
    if caller.isdigit() and caller != "0" and "state_dir" not in session.config.sources:
        return Path(pwd.getpwuid(int(caller)).pw_dir) / ".local" / "state" / "banger"
    return session.config.state_dir


@click.command("storage")
@click.option("--size", type=params.SIZE, help="How large it may become (default: four fifths of what is free).")  # fmt: skip
@click.option("--path", type=click.Path(path_type=Path), help="The file that holds it (default: volume.img in the state directory).")  # fmt: skip
@click.option("--state-dir", type=click.Path(path_type=Path), help="Whose images and VMs (default: those of who calls sudo, else root's).")  # fmt: skip
@click.option("--remove", is_flag=True, help="Take it back; images are moved out of it.")
@pass_session
def storage(
    session: Session,
    *,
    size: int | None,
    path: Path | None,
    state_dir: Path | None,
    remove: bool,
) -> None:
    """Make a file system that shares blocks, in which copies of images cost nothing (as root).

    An XFS in a sparse file is mounted in the state directory, now and at every boot; images are moved into it. There must be no VMs, and no
    daemon.
    """
    from banger.host import fs, probe  # noqa: PLC0415  not for --help
    from banger.storage import volume as volumes  # noqa: PLC0415  as above
    from banger.storage.volume_plan import size_of  # noqa: PLC0415  as above

    def say(sentence: str) -> None:
        click.echo(sentence, err=True)

    if os.geteuid() != 0:
        raise HostLacksError(
            "a file system can be made and mounted by root only",
            hint=f"sudo banger setup storage --state-dir {session.config.state_dir}",
        )
    directory = _state_dir(session, state_dir)
    volumes.check_state_dir(directory)
    volume = volumes.find(directory, path.absolute() if path else None)
    if remove:
        volumes.remove(volume, say)
        return
    if volumes.is_set_up(volume):
        volumes.complete(volume, say)
        return
    if probe.reflink(directory):
        say(f"{directory} is on a file system that shares blocks: nothing to do")
        return
    volumes.set_up(volume, size_of(size, fs.free_bytes(volume.image.parent)), say)
