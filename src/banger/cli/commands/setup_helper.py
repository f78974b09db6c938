"""``banger setup helper``: let systemd start banger-helper, or say how to start it without."""

from __future__ import annotations

import os
import shutil
import sys
from contextlib import suppress
from pathlib import Path

import click

import banger
from banger.cli.output import data
from banger.model.errors import BangerError, HostLacksError, NotFoundError

UNITS = Path("/etc/systemd/system")
NAMES = ("banger-helper.socket", "banger-helper.service")
STORAGE = "banger-helper.service.d/storage.conf"
GROUP = "banger"
_SYSTEMCTL_S, _GROUP_S = 60.0, 20.0


@click.command("helper")
@click.option("--print", "only_print", is_flag=True, help="Only show the units.")
@click.option("--remove", is_flag=True, help="Take it back; what it made for VMs that run stays.")
@click.option(
    "--storage/--no-storage",
    default=None,
    help="Let it make snapshot devices too, for root disks (dm-snapshot).  [default: as it is]",
)
@click.option("--user", "users", multiple=True, help="Who may use it.  [default: who called sudo]")
@data.format_option
def helper(
    *, only_print: bool, remove: bool, storage: bool | None, users: tuple[str, ...], output: str
) -> None:
    """Install banger-helper, root's part of banger, for bridge mode and, with --storage, dm-snapshot (as root).

    Makes the group banger, puts the user into it, and lets systemd start the helper when it is needed. --storage gives it the device mapper and
    loop devices, --no-storage takes them from it again.
    """
    if storage is None:
        storage = (UNITS / STORAGE).exists()
    if only_print:
        wanted = units(storage=storage).items()
        text = "\n".join(f"# {UNITS / name}\n{text}" for name, text in wanted)
        data.show_text(text, output, key="units")
        return
    if os.geteuid() != 0:
        raise HostLacksError("only root can install banger-helper", hint="sudo banger setup helper")
    if remove:
        _remove()
        return
    chosen = users or tuple(filter(None, [os.environ.get("SUDO_USER", "")]))
    _group(chosen)
    _warn_of_others(Path(program()))
    if not has_systemd():
        click.echo(f"there is no systemd here; start it by hand: sudo {program()} &", err=True)
        return
    if not storage:
        _forget(STORAGE)
    for name, text in units(storage=storage).items():
        _write(UNITS / name, text)
    _systemctl("daemon-reload")
    _systemctl("enable", "--now", NAMES[0])
    _systemctl("try-restart", NAMES[1])  # one that runs is another's; what it has made stays
    click.echo("try: banger run --network bridge", err=True)
    if chosen:
        click.echo(f"{', '.join(chosen)}: log in again first, for the group {GROUP}", err=True)


def program() -> str:
    """The helper that belongs to this banger."""
    beside = Path(sys.argv[0]).absolute().with_name("banger-helper")
    found = str(beside) if os.access(beside, os.X_OK) else shutil.which("banger-helper")
    if found is None:
        raise NotFoundError(
            "banger-helper is not beside this banger",
            detail=f"looked at {beside} and on PATH",
            hint="install banger as a package: pip install .",
        )
    return found


def units(*, storage: bool = False) -> dict[str, str]:
    """The units by name, with this banger's helper; with what it needs for ``storage``, if that is wanted."""
    directory = Path(banger.__file__).parent / "helper" / "systemd"
    names = (*NAMES, STORAGE) if storage else NAMES
    texts = {name: (directory / name).read_text() for name in names}
    started = f"ExecStart={program()}"
    texts[NAMES[1]] = texts[NAMES[1]].replace("ExecStart=/usr/bin/banger-helper", started)
    return texts


def has_systemd() -> bool:
    """Whether systemd runs this host (sd_booted(3))."""
    return Path("/run/systemd/system").is_dir()


def _group(users: tuple[str, ...]) -> None:
    from banger.host.exec import run_sync  # noqa: PLC0415  not for --print

    run_sync(["groupadd", "--system", "--force", GROUP], timeout_s=_GROUP_S)
    for user in users:
        run_sync(["usermod", "--append", "--groups", GROUP, user], timeout_s=_GROUP_S)


def _warn_of_others(path: Path) -> None:
    """Who can change the helper's program is root before long."""
    real = path.resolve()
    for each in (real, *real.parents):
        status = each.stat()
        if status.st_uid != 0 or status.st_mode & 0o022:
            click.echo(
                f"warning: {each} can be changed by others than root (user {status.st_uid}), who thereby can become root;"
                " install banger for the whole host to avoid that",
                err=True,
            )
            return


def _write(path: Path, text: str) -> None:
    from banger.host import fs  # noqa: PLC0415  not for --print

    try:
        path.parent.mkdir(exist_ok=True)
        fs.write_atomic(path, text.encode(), mode=0o644)
    except OSError as error:
        raise BangerError(
            f"{path} could not be written", detail=str(error), hint="banger setup helper --print"
        ) from error


def _forget(name: str) -> None:
    """Remove a unit, and the directory that was made for it."""
    path = UNITS / name
    path.unlink(missing_ok=True)
    if path.parent != UNITS:
        with suppress(OSError):  # it is not there, or somebody has put something else into it
            path.parent.rmdir()


def _remove() -> None:
    if has_systemd():
        _systemctl("disable", "--now", *NAMES, check=False)
    for name in (*NAMES, STORAGE):
        _forget(name)
    if has_systemd():
        _systemctl("daemon-reload")
    click.echo(
        f"banger-helper is no longer started; the group {GROUP} and /var/lib/banger-helper stay",
        err=True,
    )


def _systemctl(*words: str, check: bool = True) -> None:
    from banger.host.exec import run_sync  # noqa: PLC0415  not for --print

    run_sync(["systemctl", *words], timeout_s=_SYSTEMCTL_S, check=check)
