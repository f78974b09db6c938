"""What an OCI layout (image-spec 1.1, "image-layout") and a ``docker save`` archive say: which layers, in which order, with which digests.

Every document is digested before it is believed; a document may have `_MAX_JSON_BYTES`, an index may lie in an index `_MAX_NESTING` times.
"""

from __future__ import annotations

import hashlib
import posixpath
import re
from dataclasses import dataclass
from typing import IO, Any, Final, Protocol, TypeVar

import msgspec

from banger.api.malformed import NOT_JSON
from banger.images.layers import MAX_LAYERS
from banger.model.errors import InvalidInputError

BOOT_DIGEST: Final = "vnd.banger.image.boot.digest"
BOOT_SIZE: Final = "vnd.banger.image.boot.size"
"""Annotations of a layout's index: which blob is the boot stack that banger put there (a descriptor would be one more image to engines)."""
REF_NAME: Final = "org.opencontainers.image.ref.name"
_MAX_JSON_BYTES: Final = 4 << 20
_MAX_NESTING: Final = 4
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_AGAIN: Final = "write the archive again, for example with: docker save -o FILE IMAGE"
_T = TypeVar("_T")


class Box(Protocol):
    """Named files: of a directory, or of a tar."""

    what: str

    def has(self, name: str) -> bool:
        """Whether there is a file ``name``."""
        ...

    def open(self, name: str) -> tuple[IO[bytes], int]:
        """The file ``name`` and its size; InvalidInputError if it has none."""
        ...


class _Descriptor(msgspec.Struct, frozen=True, rename="camel"):
    digest: str
    size: int
    media_type: str = ""
    platform: dict[str, Any] | None = None
    annotations: dict[str, str] | None = None


class _Index(msgspec.Struct, frozen=True, rename="camel"):
    manifests: list[_Descriptor]
    annotations: dict[str, str] | None = None


class _Manifest(msgspec.Struct, frozen=True, rename="camel"):
    config: _Descriptor
    layers: list[_Descriptor]
    artifact_type: str | None = None


class Run(msgspec.Struct, frozen=True):
    """What a container of the image would run ("config" of the image's configuration)."""

    env: list[str] | None = msgspec.field(name="Env", default=None)
    entrypoint: list[str] | None = msgspec.field(name="Entrypoint", default=None)
    cmd: list[str] | None = msgspec.field(name="Cmd", default=None)
    working_dir: str = msgspec.field(name="WorkingDir", default="")
    user: str = msgspec.field(name="User", default="")


class _RootFs(msgspec.Struct, frozen=True):
    diff_ids: list[str]


class _Config(msgspec.Struct, frozen=True):
    rootfs: _RootFs
    architecture: str = "amd64"
    os: str = "linux"
    config: Run | None = None


class _Saved(msgspec.Struct, frozen=True):
    config: str = msgspec.field(name="Config")
    layers: list[str] = msgspec.field(name="Layers")
    tags: list[str] | None = msgspec.field(name="RepoTags", default=None)


@dataclass(frozen=True, slots=True)
class LayerFile:
    """A layer in a box: SHA-256 and size of the file, where they are known, and of the tar in it."""

    name: str
    what: str
    digest: str | None = None
    size_bytes: int | None = None
    diff_id: str | None = None


@dataclass(frozen=True, slots=True)
class Picked:
    """The image that was found: its layers from the lowest on. ``boot`` is the file with the boot stack, if banger exported it."""

    layers: list[LayerFile]
    run: Run
    boot: LayerFile | None = None


def hex_digest(text: str, what: str) -> str:
    """The 64 digits of a digest ``sha256:…``; InvalidInputError for any other."""
    found = _DIGEST.fullmatch(text)
    if found is None:
        raise InvalidInputError(f"{what} has a digest that is no SHA-256: {text[:80]!r}", hint=_AGAIN)  # fmt: skip
    return found[1]


def pick_oci(box: Box, ref: str | None) -> Picked:
    """The image for linux/amd64 in an OCI layout; with several, the one that ``ref`` names."""
    layout = _json(box, "oci-layout", dict[str, Any])
    if not str(layout.get("imageLayoutVersion", "")).startswith("1."):
        raise InvalidInputError(f"{box.what} is an OCI layout of an unknown version", hint=_AGAIN)
    index = _json(box, "index.json", _Index)
    found = _manifests(box, index.manifests, None, 0)
    named = [(name, manifest) for name, manifest in found if ref is None or _is_named(name, ref)]
    if len({id(manifest) for _, manifest in named}) > 1:
        digests = {manifest.config.digest for _, manifest in named}
        named = named[:1] if len(digests) == 1 else named
    manifest = _only(box, [(name or "", m) for name, m in named], ref, [name for name, _ in found])
    config = _blob_json(box, manifest.config, _Config)
    _check_platform(box, config)
    if len(config.rootfs.diff_ids) != len(manifest.layers):
        raise InvalidInputError(f"{box.what} has {len(manifest.layers)} layers and {len(config.rootfs.diff_ids)} digests of them", hint=_AGAIN)  # fmt: skip
    layers = [
        _layer(box, number, one, hex_digest(diff, box.what))
        for number, (one, diff) in enumerate(zip(manifest.layers, config.rootfs.diff_ids, strict=True), 1)
    ]  # fmt: skip
    return Picked(_bounded(box, layers), config.config or Run(), _boot(box, index))


def pick_docker(box: Box, ref: str | None) -> Picked:
    """The image in a ``docker save`` archive without an OCI layout; with several, the one tagged ``ref``."""
    saved = _json(box, "manifest.json", list[_Saved])
    tagged = [(tag, one) for one in saved for tag in (one.tags or [""])]
    named = [(tag, one) for tag, one in tagged if ref is None or _is_named(tag, ref)]
    if ref is None and len(saved) == 1:
        named = named[:1]
    one = _only(box, named, ref, [tag for tag, _ in tagged])
    data = _read(box, _inside(one.config, box))
    digest = posixpath.basename(one.config).removesuffix(".json")
    if re.fullmatch("[0-9a-f]{64}", digest) is None or hashlib.sha256(data).hexdigest() != digest:
        raise _wrong(box, f"configuration {one.config[:100]!r}")
    config = _decode(data, _Config, f"{box.what}: {one.config[:100]}")
    _check_platform(box, config)
    if len(config.rootfs.diff_ids) != len(one.layers):
        raise InvalidInputError(f"{box.what} has {len(one.layers)} layers and {len(config.rootfs.diff_ids)} digests of them", hint=_AGAIN)  # fmt: skip
    layers = [
        LayerFile(_inside(name, box), f"layer {number} of {box.what}", diff_id=hex_digest(diff, box.what))
        for number, (name, diff) in enumerate(zip(one.layers, config.rootfs.diff_ids, strict=True), 1)
    ]  # fmt: skip
    return Picked(_bounded(box, layers), config.config or Run())


def _manifests(
    box: Box, descriptors: list[_Descriptor], above: str | None, depth: int
) -> list[tuple[str | None, _Manifest]]:
    """Image manifests for this platform with their names."""
    if depth > _MAX_NESTING or len(descriptors) > 1000:
        raise InvalidInputError(f"{box.what} has too many indexes in one another", hint=_AGAIN)
    found: list[tuple[str | None, _Manifest]] = []
    for one in descriptors:
        name = (one.annotations or {}).get(REF_NAME) or above
        if not _fits(one.platform):
            continue
        data = _blob(box, one)
        if b'"manifests"' in data and b'"config"' not in data:
            below = _decode(data, _Index, box.what).manifests
            found += _manifests(box, below, name, depth + 1)
            continue
        manifest = _decode(data, _Manifest, box.what)
        if manifest.artifact_type is None:
            found.append((name, manifest))
    return found


def _boot(box: Box, index: _Index) -> LayerFile | None:
    """The boot stack that banger put into the layout."""
    said = index.annotations or {}
    digest, size = said.get(BOOT_DIGEST), said.get(BOOT_SIZE, "")
    if digest is None:
        return None
    if re.fullmatch("[0-9]{1,18}", size) is None:
        raise InvalidInputError(f"{box.what} has a boot stack of size {size[:40]!r}", hint=_AGAIN)
    return _layer(box, 0, _Descriptor(digest, int(size)), None)


def _fits(platform: dict[str, Any] | None) -> bool:
    return platform is None or (platform.get("os"), platform.get("architecture")) == ("linux", "amd64")  # fmt: skip


def _is_named(name: str | None, ref: str) -> bool:
    return name is not None and ref in {name, name.rpartition(":")[2], name.partition(":")[0]}


def _only(
    box: Box, named: list[tuple[str, _T]], ref: str | None, all_names: list[str | None] | list[str]
) -> _T:
    if len(named) == 1:
        return named[0][1]
    names = [name for name in all_names if name]
    if not named:
        wanted = f"image {ref!r}" if ref is not None else "image for linux/amd64"
        raise InvalidInputError(
            f"{box.what} holds no {wanted}",
            detail=f"there are: {', '.join(names)}"[:500] if names else "",
            hint=f"banger image import --ref {names[0][:100]} FILE" if names else _AGAIN,
        )
    raise InvalidInputError(
        f"{box.what} holds {len(named)} images",
        detail=", ".join(names)[:500],
        hint=f"banger image import --ref {names[0][:100] if names else 'NAME'} FILE",
    )


def _layer(box: Box, number: int, one: _Descriptor, diff_id: str | None) -> LayerFile:
    digest = hex_digest(one.digest, box.what)
    what = f"layer {number} of {box.what}" if number else f"boot stack of {box.what}"
    return LayerFile(f"blobs/sha256/{digest}", what, digest, one.size, diff_id)


def _bounded(box: Box, layers: list[LayerFile]) -> list[LayerFile]:
    if not 0 < len(layers) <= MAX_LAYERS:
        raise InvalidInputError(
            f"{box.what} has {len(layers)} layers, 1 to {MAX_LAYERS} are possible", hint=_AGAIN
        )
    return layers


def _check_platform(box: Box, config: _Config) -> None:
    if (config.os, config.architecture) != ("linux", "amd64"):
        raise InvalidInputError(
            f"{box.what} is for {config.os[:40]}/{config.architecture[:40]}, not for linux/amd64",
            hint="docker pull --platform linux/amd64 IMAGE, then docker save",
        )


def _inside(name: str, box: Box) -> str:
    clean = posixpath.normpath(name)
    if clean.startswith(("/", "..")):
        raise InvalidInputError(f"{box.what} names {name[:100]!r}, which is not in it", hint=_AGAIN)
    return clean


def _read(box: Box, name: str) -> bytes:
    file, size_bytes = box.open(name)
    with file:
        data = file.read(_MAX_JSON_BYTES + 1) if size_bytes <= _MAX_JSON_BYTES else b""
    if size_bytes > _MAX_JSON_BYTES or len(data) != size_bytes:
        raise InvalidInputError(f"{name} in {box.what} is too large or cut off", hint=_AGAIN)
    return data


def _blob(box: Box, one: _Descriptor) -> bytes:
    digest = hex_digest(one.digest, box.what)
    data = _read(box, f"blobs/sha256/{digest}")
    if len(data) != one.size or hashlib.sha256(data).hexdigest() != digest:
        raise _wrong(box, f"blob {digest}")
    return data


def _wrong(box: Box, what: str) -> InvalidInputError:
    return InvalidInputError(
        f"{what} in {box.what} is not what its digest says", hint="get the file again"
    )


def _json(box: Box, name: str, kind: type[_T]) -> _T:
    return _decode(_read(box, name), kind, f"{name} in {box.what}")


def _blob_json(box: Box, one: _Descriptor, kind: type[_T]) -> _T:
    return _decode(_blob(box, one), kind, f"blob {one.digest[:80]} in {box.what}")


def _decode(data: bytes, kind: type[_T], what: str) -> _T:
    try:
        return msgspec.json.decode(data, type=kind)
    except NOT_JSON as error:
        raise InvalidInputError(f"{what} is malformed", detail=str(error)[:500], hint=_AGAIN) from error  # fmt: skip
