"""``banger df`` and ``banger prune``: what takes room, and what of it can go."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from banger.api import routes
from banger.cli.output import data
from banger.cli.output.data import Json
from banger.cli.session import Session, pass_session
from banger.model.errors import BangerError, InvalidInputError
from banger.model.units import format_size

SLOW_S = 600.0
_FAILED = 1
HEADINGS = ("KIND", "NAME", "STORAGE", "OWN", "SHARED", "ON DISK", "SIZE")
LEFT_HEADINGS = ("KIND", "NAME", "ON DISK", "PATH")


def _size(size_bytes: int | None) -> str:
    return "?" if size_bytes is None else format_size(size_bytes)


def _row(item: Json) -> Sequence[str]:
    return (
        item["kind"],
        item["name"],
        item["storage"] or "-",
        _size(item["own_bytes"]),
        _size(item["shared_bytes"]),
        _size(item["allocated_bytes"]),
        _size(item["logical_bytes"]),
    )


def _largest_first(items: Sequence[Json]) -> list[Json]:
    order = ("image", "vm", "other")
    return sorted(items, key=lambda i: (order.index(i["kind"]), -i["allocated_bytes"], i["name"]))


@click.command()
@data.format_option
@pass_session
def df(session: Session, *, output: str) -> None:
    """Say what VMs and images take of the disk.

    OWN becomes free when the thing is removed, SHARED is in blocks that others have too, SIZE is what a guest sees. Where the file
    system does not say what is shared there is a question mark.
    """
    session.transport.timeout_s = SLOW_S
    usage = session.transport.fetch(routes.DISK_USAGE)
    if output != "table":
        if output == "json":
            data.show_json(usage)
        else:
            data.show_list(usage["items"], output, headings=HEADINGS, row=_row)
        return
    click.echo(data.table(HEADINGS, [_row(item) for item in _largest_first(usage["items"])]))
    most = "" if usage["exact"] else " at most"
    click.echo(f"\ntogether{most} {format_size(usage['used_bytes'])}, shared blocks counted once")
    for place in usage["file_systems"]:
        free, size = format_size(place["free_bytes"]), format_size(place["size_bytes"])
        click.echo(f"{place['path']}: {free} of {size} are free")


def _downloads(session: Session) -> list[Json]:
    """What the daemon does not own: the runtime bundle's archives on their way."""
    from banger.bundle import leftovers, places  # noqa: PLC0415  `df` needs none

    found = leftovers.find(places.default_root(session.config.bundle_dir))
    return [
        {
            "kind": item.kind, "name": item.name, "path": str(item.path), "size_bytes": item.size_bytes,
            "removed": False, "error": None,
        }
        for item in found
    ]  # fmt: skip


def _remove_download(session: Session, item: Json) -> Json:
    from pathlib import Path  # noqa: PLC0415  as above

    from banger.bundle import leftovers, places  # noqa: PLC0415  as above
    from banger.cli.output.bytes import ByteProgress  # noqa: PLC0415  as above

    root = places.default_root(session.config.bundle_dir)
    try:
        leftovers.remove(root, Path(item["path"]), ByteProgress())
    except (BangerError, OSError) as error:
        what = f"{item['path']} could not be removed"
        told = {
            "code": "failure",
            "what": what,
            "detail": str(error),
            "hint": "ls -l " + str(root.path),
        }
        return {**item, "error": told}
    return {**item, "removed": True}


def _ask(session: Session, wish: Json) -> list[Json]:
    import json  # noqa: PLC0415  `df` needs none

    from banger.client.sdk import decode  # noqa: PLC0415  nor this

    body = json.dumps(wish).encode()
    answer = session.transport.call(routes.PRUNE, {}, body=body, timeout_s=SLOW_S)
    return decode(answer, list[Json])


def _left_row(item: Json) -> Sequence[str]:
    return item["kind"], item["name"], _size(item["size_bytes"]), item["path"]


def _confirm(count: int, size_bytes: int) -> None:
    if not sys.stdin.isatty():
        raise InvalidInputError(
            "banger prune asks before it removes anything, and there is nobody to ask",
            hint="banger prune --yes",
        )
    click.confirm(
        f"remove {count} thing{'s' if count > 1 else ''}, {format_size(size_bytes)}?",
        abort=True,
        err=True,
    )


@click.command()
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@click.option(
    "--images", is_flag=True, help="Also images that no VM uses, but for the default one."
)
@click.option("--databases", is_flag=True, help="Also damaged databases that were kept aside.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@data.format_option
@pass_session
def prune(
    session: Session, *, dry_run: bool, images: bool, databases: bool, yes: bool, output: str
) -> None:
    """Remove what nothing uses.

    That is what interrupted image builds and deletions of VMs left, packages that image builds have downloaded, and downloads that were not finished. Nothing of a VM
    that exists is touched.
    """
    wish = {"images": images, "databases": databases}
    items = [*_ask(session, {**wish, "dry_run": True}), *_downloads(session)]
    if not dry_run and items:
        if not yes:
            click.echo(data.table(LEFT_HEADINGS, [_left_row(item) for item in items]), err=True)
            _confirm(len(items), sum(item["size_bytes"] for item in items))
        downloads = [item for item in items if item["kind"] == "download"]
        items = [
            *_ask(session, {**wish, "dry_run": False}),
            *(_remove_download(session, item) for item in downloads),
        ]
    data.show_list(
        items, output, headings=LEFT_HEADINGS, row=_left_row, empty="there is nothing to remove"
    )
    _tell(items, dry_run=dry_run)


def _tell(items: Sequence[Json], *, dry_run: bool) -> None:
    """The sum on stderr, then what could not be removed."""
    failed = [item for item in items if item["error"] is not None]
    freed = format_size(sum(item["size_bytes"] for item in items if item["error"] is None))
    if items:
        click.echo(f"{freed} would be freed" if dry_run else f"{freed} freed", err=True)
    if failed:
        from banger.cli.output import errors  # noqa: PLC0415  most prunes end well
        from banger.model.errors import from_code  # noqa: PLC0415  as above

        for item in failed:
            told = item["error"]
            errors.show(
                from_code(told["code"], told["what"], detail=told["detail"], hint=told["hint"])
            )
        raise click.exceptions.Exit(_FAILED)
