"""``banger runtime``: firecracker and its jailer, verified. Works without the daemon."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click
import msgspec

from banger.bundle import fetch as fetching
from banger.bundle import package as packaging
from banger.bundle import places, wanted
from banger.bundle import status as looking
from banger.bundle.places import Root
from banger.bundle.status import Status
from banger.cli.output import data
from banger.cli.output.bytes import ByteProgress
from banger.cli.output.data import Json
from banger.cli.session import Session, pass_session
from banger.host import faults, own_files
from banger.host.config import Config

_FILE = click.Path(path_type=Path)
WAIT_S = 60.0


@click.group()
def runtime() -> None:
    """The runtime bundle: firecracker and jailer, verified by digest.

    VMs are started with firecracker_path if that is configured, else with the bundle's firecracker, else with the one on PATH.
    """


def warn(sentence: str) -> None:
    """A warning for a person."""
    click.echo(f"warning: {sentence}", err=True)


@contextmanager
def _progress() -> Iterator[ByteProgress]:
    progress = ByteProgress()
    try:
        yield progress
    finally:
        progress.clear()


def _root(config: Config) -> Root:
    return places.default_root(config.bundle_dir)


def _pairs(item: Json) -> list[tuple[str, object]]:
    pairs: list[tuple[str, object]] = [
        ("state", item["state"]),
        ("bundle", f"{item['name']} {item['version']} {item['architecture']}".strip()),
        ("place", f"{item['root']} ({item['origin']})"),
        ("previous", item["previous"]),
        *((f"  {file['path']}", file["why"] or file["state"]) for file in item["files"]),
    ]
    if item["images"]:
        pairs.append(("images", " ".join(item["images"])))
    pairs += [(name, item[name]) for name in ("firecracker", "jailer")]
    return [*pairs, ("used from", item["used_from"])]


def _print(found: Status, output: str) -> None:
    data.show_one(msgspec.to_builtins(found), output, pairs=_pairs, name=found.directory)


@runtime.command()
@data.format_option
@pass_session
def status(session: Session, *, output: str) -> None:
    """Verify the bundle and show what VMs are started with; exit status 5 if they could not be, or the bundle is damaged.

    The name format prints the directory of the bundle in use.
    """
    config = session.config
    found, trouble = looking.status(config, _root(config), warn)
    _print(found, output)
    if trouble is not None:
        raise trouble


@runtime.command()
@click.option(
    "--from",
    "source",
    type=_FILE,
    help="An archive or a directory to take it from, instead of a URL.",
)
@click.option("--manifest", type=_FILE, help="What to fetch.  [default: what banger pins]")
@click.option("--url", "urls", multiple=True, help="A URL to try before the manifest's.")
@click.option("--force", is_flag=True, help="Place it anew even if it is there and whole.")
@click.option(
    "--timeout", type=click.FloatRange(1, 86400), default=3600.0, show_default=True, help="Seconds."
)
@data.format_option
@pass_session
def fetch(
    session: Session,
    *,
    source: Path | None,
    manifest: Path | None,
    urls: Sequence[str],
    force: bool,
    timeout: float,
    output: str,
) -> None:
    """Bring the bundle here: downloaded or copied, verified, then switched to at once.

    A download that was cut goes on where it stopped. The version before is kept for: banger runtime rollback
    """
    faults.load()
    config = session.config
    root = _root(config)
    wish = fetching.Wish(
        wanted.with_urls(wanted.manifest_to_fetch(config, root, manifest, warn), urls),
        source=source,
        force=force,
        timeout_s=timeout,
    )
    with _progress() as progress:
        if not fetching.fetch(root, wish, progress):
            progress.note(f"{wish.manifest.title} is there already, and whole")
    _after(config, root, output)


def _after(config: Config, root: Root, output: str) -> None:
    found, _ = looking.status(config, root, warn)
    _print(found, output)


@runtime.command()
@data.format_option
@pass_session
def rollback(session: Session, *, output: str) -> None:
    """Return to the version before; doing it again comes back."""
    config = session.config
    root = _root(config)
    with _progress() as progress:
        fetching.rollback(root, progress, WAIT_S)
    _after(config, root, output)


@runtime.command()
@click.option(
    "--prefix",
    type=_FILE,
    help="Where programs are in bin.  [default: this banger's; from a checkout /usr/local, or ~/.local if you are not root]",
)
@pass_session
def install(session: Session, *, prefix: Path | None) -> None:
    """Copy the bundle in use to PREFIX/lib/banger, where a banger in PREFIX/bin finds it."""
    config = session.config
    state = looking.placed(_root(config), config)
    target = places.installed_root(_prefix(prefix))
    with _progress() as progress:
        new = fetching.install(state, target, progress)
    title = state.manifest.title if state.manifest else "the bundle"
    click.echo(f"{title} is {'now' if new else 'already'} in {target.path}", err=True)


def _prefix(given: Path | None) -> Path:
    if given is not None:
        return given.absolute()
    if own_files.checkout() is None:
        return own_files.install_prefix()
    return Path("/usr/local") if os.geteuid() == 0 else Path("~/.local").expanduser()


@runtime.command()
@click.argument("tree", type=_FILE)
@click.option(
    "-o",
    "--output-dir",
    "out",
    type=_FILE,
    default=Path(),
    help="Where to put them.  [default: here]",
)
@click.option("--name", default="firecracker", show_default=True, help="The bundle's name.")
@click.option("--version", default="", help="Its version.  [default: the release's]")
@click.option("--architecture", default="", help="x86_64 or aarch64.  [default: this machine's]")
@click.option(
    "--url", "urls", multiple=True, help="Where it will be; one ending in / gets the file's name."
)
@data.format_option
def package(
    *,
    tree: Path,
    out: Path,
    name: str,
    version: str,
    architecture: str,
    urls: Sequence[str],
    output: str,
) -> None:
    """Make a bundle and its manifest from the directory TREE: the same files give the same bytes.

    TREE holds firecracker and jailer, or is an unpacked release of Firecracker; images/NAME in it is taken along.
    """
    order = packaging.Order(tree, out, name, version, architecture, tuple(urls))
    with _progress() as progress:
        made = packaging.package(order, progress)
    item = {
        "archive": str(made.archive),
        "manifest": str(made.manifest_path),
        "name": made.manifest.name,
        "version": made.manifest.version,
        "sha256": made.manifest.sha256,
        "size_bytes": made.manifest.size_bytes,
    }
    data.show_one(item, output, pairs=lambda one: list(one.items()), name=str(made.archive))
