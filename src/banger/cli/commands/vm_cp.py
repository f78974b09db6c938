"""``vm cp``: files between host and guest, with the rules of ``cp -a``."""

from __future__ import annotations

import os
import posixpath
import tarfile
from pathlib import Path
from typing import IO, Literal, NamedTuple, cast

import click
from click.shell_completion import CompletionItem

from banger.cli import params
from banger.cli.session import Session, pass_session
from banger.client import archive
from banger.client.refs import check_ref
from banger.client.sdk import Client
from banger.host import tars
from banger.model.compat import override
from banger.model.errors import BangerError, InvalidInputError, NotFoundError

GUEST_HOME = "/root"
Kind = Literal["directory", "other"]


class GuestPath(NamedTuple):
    """A place in a guest: absolute, without ``..`` and doubled slashes. ``contents``: it ended in ``/.``; ``slash``: in ``/``."""

    ref: str
    path: str
    contents: bool
    slash: bool


def parse_guest(text: str) -> GuestPath | None:
    """``NAME:path`` (relative to /root); None for a path of the host: one without a colon, or with a slash before it."""
    ref, colon, path = text.partition(":")
    if not colon or "/" in ref or ref in {"", ".", ".."}:
        return None
    joined = posixpath.join(GUEST_HOME, path)
    if "\0" in joined:
        raise InvalidInputError(
            f"guest path {path!r} is not a path", hint="banger vm cp web:/etc/hostname ."
        )
    normal = posixpath.normpath(joined)
    return GuestPath(
        check_ref(ref),
        "/" + normal.lstrip("/"),
        path == "." or path.endswith("/."),
        path.endswith("/"),
    )


class _GuestOrHost(click.ParamType):  # type: ignore[type-arg]  # generic in newer clicks only
    """A path of the host, or NAME:path; completes the names."""

    name = "path"

    @override
    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Names with a colon, then files."""
        names = [CompletionItem(f"{name}:") for name in params.known_names("VM", incomplete)]
        return [*names, CompletionItem(incomplete, type="file")]


@click.command()
@click.argument("source", metavar="SRC", type=_GuestOrHost())
@click.argument("target", metavar="DST", type=_GuestOrHost())
@pass_session
def cp(session: Session, *, source: str, target: str) -> None:
    """Copy SRC to DST, one of which is NAME:path in a VM (relative paths there begin at /root).

    Directories are copied whole; modes, times and links are kept; in the VM everything belongs to root. As with cp -a, a
    DST that is a directory gets SRC into it, and SRC/. means what is in SRC.
    """
    there, here = parse_guest(source), parse_guest(target)
    if (there is None) == (here is None):
        raise InvalidInputError(
            "one of SRC and DST must be NAME:path, and only one",
            hint="banger vm cp web:/etc/hostname .",
        )
    try:
        if there is not None:
            _download(session.client, there, target)
        elif here is not None:
            _upload(session.client, source, here)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise BangerError(
            f"{where}{error.strerror or error}", hint=f"ls -ld {error.filename or '.'}"
        ) from error


def _download(client: Client, source: GuestPath, target: str) -> None:
    place = Path(target)
    with client.get_files(source.ref, source.path) as reader:
        stream = tars.open_stream(cast("IO[bytes]", reader))
        with stream:
            first = tars.peek(stream)
            if first is None:
                raise BangerError(
                    f"{source.path} came back empty from {source.ref}",
                    hint=f"banger vm exec {source.ref} -- ls -la {source.path}",
                )
            name = posixpath.basename(source.path)
            into = place / name if place.is_dir() and not source.contents else place
            _check_host_target(first.isdir(), source, into, target)
            archive.Unpacker(into, strip=1 if name else 0, warn=_warn).run(stream, first)


def _check_host_target(is_dir: bool, source: GuestPath, into: Path, target: str) -> None:  # noqa: FBT001  one fact of the source
    if source.contents and not is_dir:
        raise InvalidInputError(
            f"{source.ref}:{source.path} is not a directory",
            hint=f"leave the /. out: {source.ref}:{source.path}",
        )
    if not into.parent.is_dir():
        raise InvalidInputError(f"{into.parent} is not a directory", hint=f"mkdir -p {into.parent}")
    if target.endswith("/") and not is_dir and not Path(target).is_dir():
        raise InvalidInputError(f"{target} is not a directory", hint=f"mkdir -p {target}")
    if is_dir and into.exists() and not into.is_dir():
        raise InvalidInputError(
            f"{into} is a file, {source.ref}:{source.path} is a directory",
            hint=f"choose another DST, or: rm {into}",
        )
    if not is_dir and into.is_dir():
        raise InvalidInputError(
            f"{into} is a directory, {source.ref}:{source.path} is a file",
            hint=f"choose another DST, or: mv {into} {into}.old",
        )


def _warn(sentence: str) -> None:
    click.echo(f"warning: {sentence}", err=True)


def guest_kind(client: Client, ref: str, path: str) -> Kind | None:
    """What ``path`` is in the guest; None if there is nothing. Reads only the first header of its archive."""
    try:
        with client.get_files(ref, path) as reader:
            first = tars.peek(tars.open_stream(cast("IO[bytes]", reader)))
    except NotFoundError:
        return None
    return "directory" if first is not None and first.isdir() else "other"


def _upload(client: Client, source: str, target: GuestPath) -> None:
    origin = Path(source)
    contents = source in {".", "./"} or source.endswith("/.")
    is_dir = origin.is_dir() and (contents or source.endswith("/") or not origin.is_symlink())
    if not is_dir and not os.path.lexists(origin):
        raise InvalidInputError(f"{source} does not exist", hint=f"ls -l {Path(source).parent}")
    client.vm(target.ref)  # from here on "not found" means the path
    kind = guest_kind(client, target.ref, target.path)
    shown = f"{target.ref}:{target.path}"
    if kind == "directory":
        name = "" if contents else (origin.name or origin.resolve().name)
        _send(client, origin, name, target.ref, target.path)
        return
    if is_dir and kind == "other":
        raise InvalidInputError(
            f"{shown} is a file, {source} is a directory", hint="choose another DST"
        )
    if (target.slash or target.contents) and not (is_dir and kind is None):
        raise InvalidInputError(
            f"{shown} is not a directory",
            hint=f"banger vm exec {target.ref} -- mkdir -p {target.path}",
        )
    parent = posixpath.dirname(target.path)
    if guest_kind(client, target.ref, parent) != "directory":
        hint = f"banger vm exec {target.ref} -- mkdir -p {parent}"
        raise NotFoundError(f"{target.ref}:{parent} is not a directory", hint=hint)
    _send(client, origin, posixpath.basename(target.path), target.ref, parent)


def _send(client: Client, origin: Path, name: str, ref: str, directory: str) -> None:
    try:
        with client.put_files(ref, directory) as writer:
            archive.pack(cast("IO[bytes]", writer), origin, name)
    except tarfile.TarError as error:
        raise BangerError(
            f"{origin} could not be packed", detail=str(error), hint=f"ls -lR {origin}"
        ) from error
