"""Archives that somebody else made: layers, OCI layouts, docker save archives, packages of XBPS, runtime bundles, exported images.

Digests stand in the way of whoever changes a byte, so a target computes them itself where a document names another.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import IO

import msgspec

from banger.bundle.manifest import FileTable, Manifest
from banger.bundle.unpack import from_archive
from banger.images.boxes import EXPORT_HEAD, TarBox, first_name, kind_by_head, spool
from banger.images.flatten import Source, from_box, measure, read_contents, scan, write_tar
from banger.images.image_file import ImageFile
from banger.images.layers import Budget
from banger.images.oci import LayerFile, Picked, pick_docker, pick_oci
from banger.images.root_tree import RootTree
from banger.images.seal import image_id
from banger.images.void.package import check_package
from banger.model.errors import BangerError, InvalidInputError
from banger.model.manifest import ImageManifest
from fuzz.targets.peers import require

PART = b"\n---\n"
"""Between the documents of one input."""

_MOST_WRITTEN_BYTES = 1 << 20


def layers(data: bytes) -> None:
    """One or two layers over one another: InvalidInputError, or a tar whose members are in order and below the root."""
    sources = [
        Source(LayerFile("layer", f"layer {number}"), lambda layer=layer: (io.BytesIO(layer), len(layer)))  # type: ignore[misc]
        for number, layer in enumerate(data.split(PART)[:2], 1)
    ]  # fmt: skip
    with suppress(BangerError):
        _flatten(sources)


def _flatten(sources: list[Source]) -> None:
    tree, budget = RootTree(), Budget()
    contents: dict[tuple[int, int], bytes] = {}
    for number, source in enumerate(sources):
        scan(source, number, tree, contents, budget)
    read_contents(tree, contents)
    tree.look("/etc/os-release")
    size_bytes, _ = measure(tree)
    if size_bytes > _MOST_WRITTEN_BYTES:
        return
    with tempfile.TemporaryDirectory(prefix="banger-fuzz-") as name:
        target = Path(name) / "clean.tar"
        write_tar(tree, sources, target)
        _check_clean(target)


def _check_clean(path: Path) -> None:
    folders, seen = {"."}, set[str]()
    with tarfile.open(path) as archive:
        for member in archive:
            parent = member.name.rpartition("/")[0]
            require(member.name == "." or parent in folders, f"{member.name!r} has no directory")
            require(".." not in member.name.split("/"), f"{member.name!r} leaves the root")
            require(member.name not in seen, f"{member.name!r} comes twice")
            require(not member.islnk() or member.linkname in seen, "a link to nothing before it")
            require(not (member.ischr() or member.isblk()), "a device")
            seen.add(member.name)
            if member.isdir():
                folders.add(member.name)


class _Parts:
    """A box of documents that are named by what they really digest to."""

    what = "box"

    def __init__(self, files: dict[str, bytes]) -> None:
        self._files = files

    def has(self, name: str) -> bool:
        """See `oci.Box`."""
        return name in self._files

    def open(self, name: str) -> tuple[IO[bytes], int]:
        """See `oci.Box`."""
        data = self._files.get(name)
        if data is None:
            raise InvalidInputError(f"box lacks {name[:200]}", hint="get the file again")
        return io.BytesIO(data), len(data)


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).hexdigest().encode()


def _named(text: bytes, parts: dict[bytes, bytes]) -> bytes:
    """``text`` with ``@x`` as the digest of part x, and ``"#x"`` as its size."""
    for word, part in parts.items():
        text = text.replace(b"@" + word, b"sha256:" + _digest(part))
        text = text.replace(b'"#' + word + b'"', b"%d" % len(part))
    return text


def _documents(data: bytes) -> tuple[bytes, bytes, bytes, bytes]:
    first, second, third, *rest = [*data.split(PART, 3), b"", b"", b""]
    return first, second, third, rest[0]


def oci(data: bytes) -> None:
    """index.json, a manifest, a configuration and a layer: what is picked is bounded, else InvalidInputError."""
    index, manifest, config, layer = _documents(data)
    config = _named(config, {b"l": layer})
    manifest = _named(manifest, {b"l": layer, b"c": config})
    index = _named(index, {b"m": manifest, b"c": config})
    blobs = {f"blobs/sha256/{_digest(part).decode()}": part for part in (manifest, config, layer)}
    box = _Parts({"oci-layout": b'{"imageLayoutVersion": "1.0.0"}', "index.json": index, **blobs})
    for ref in (None, "toy"):
        with suppress(BangerError):
            _use(box, pick_oci(box, ref))


def docker(data: bytes) -> None:
    """manifest.json, a configuration and a layer of docker save."""
    manifest, config, layer, _ = _documents(data)
    config = _named(config, {b"l": layer})
    name = _digest(config).decode()
    box = _Parts({"manifest.json": manifest.replace(b"@c", name.encode()), f"{name}.json": config, "l/layer.tar": layer})  # fmt: skip
    for ref in (None, "toy:latest"):
        with suppress(BangerError):
            _use(box, pick_docker(box, ref))


def _use(box: _Parts, picked: Picked) -> None:
    require(0 < len(picked.layers) <= 500, "too many layers")
    require(all(".." not in layer.name.split("/") for layer in picked.layers), "a name leads out")
    _flatten(from_box(box, picked.layers))


def box(data: bytes) -> None:
    """A file that is called an image: what it is is told, and it is taken apart as that."""
    with tempfile.TemporaryDirectory(prefix="banger-fuzz-") as name:
        path = Path(name) / "archive"
        path.write_bytes(data)
        kind_by_head(data[:4096])
        with suppress(BangerError):
            first_name(path, "archive")
        with suppress(BangerError):
            found = TarBox(spool(path, Path(name) / "plain", 1 << 20), "archive")
            if found.kind in {"oci", "docker"}:
                pick = pick_oci if found.kind == "oci" else pick_docker
                _flatten(from_box(found, pick(found, None).layers))


def package(data: bytes) -> None:
    """A package of XBPS: checked, or InvalidInputError."""
    with tempfile.TemporaryDirectory(prefix="banger-fuzz-") as name:
        path = Path(name) / "package.xbps"
        for content in (data, gzip.compress(data, 0)):
            path.write_bytes(content)
            with suppress(InvalidInputError):
                check_package(path, "toy-1_1")


def bundle(data: bytes) -> None:
    """An archive of a runtime bundle: the manifest's files and nothing else, or BangerError."""
    manifest = Manifest(name="toy", files=(FileTable(path="firecracker", size_bytes=5, sha256=_digest(b"hello").decode()),))  # fmt: skip
    for content in (data, gzip.compress(data, 0)):
        with tempfile.TemporaryDirectory(prefix="banger-fuzz-") as name:
            target = Path(name) / "target"
            target.mkdir()
            try:
                from_archive(io.BytesIO(content), manifest, target, lambda _done, _all: None)
            except BangerError:
                pass
            else:
                require((target / "firecracker").read_bytes() == b"hello", "something else was placed")  # fmt: skip
            require([one.name for one in Path(name).iterdir()] == ["target"], "it leads out")


def image_file(data: bytes) -> None:
    """An exported image: as it comes, then with a head whose identity is right."""
    head, _, rest = data.partition(PART)
    for content in (data, _headed(head) + rest):
        with tempfile.TemporaryDirectory(prefix="banger-fuzz-") as name:
            path, target = Path(name) / "image", Path(name) / "target"
            path.write_bytes(content)
            target.mkdir()
            with suppress(BangerError), ImageFile(path) as image:
                image.unpack(target, list(image.manifest.files))


def _headed(head: bytes) -> bytes:
    with suppress(msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        manifest = msgspec.json.decode(head, type=ImageManifest)
        named = {**msgspec.to_builtins(manifest), "id": image_id(manifest)}
        head = msgspec.json.encode({"format": 1, "manifest": named})
    info = tarfile.TarInfo(EXPORT_HEAD)
    info.size = len(head)
    return info.tobuf(tarfile.GNU_FORMAT) + head + bytes(-len(head) % 512)
