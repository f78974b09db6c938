"""How two images differ, in packages and in the files of their root file systems."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from banger.images.files import FileFact
from banger.model.image_plan import Difference, ImageDiff, What
from banger.model.manifest import ImageManifest

_DIGEST_CHARS = 12
_T = TypeVar("_T")


def compare(
    before: ImageManifest, after: ImageManifest, files: tuple[Mapping[str, FileFact], Mapping[str, FileFact]]
) -> ImageDiff:  # fmt: skip
    """``files`` are those of both."""
    return ImageDiff(
        before.name if before.name != after.name else before.id,
        after.name if before.name != after.name else after.id,
        packages_differ(before.packages, after.packages),
        files_differ(*files),
    )


def packages_differ(before: Mapping[str, str], after: Mapping[str, str]) -> tuple[Difference, ...]:
    """By name; a package of another version has changed."""
    return _differ(before, after, lambda one, other: (one, other))


def files_differ(
    before: Mapping[str, FileFact], after: Mapping[str, FileFact]
) -> tuple[Difference, ...]:
    """By path; what is told of a file that changed is what changed of it, of others all."""
    return _differ(before, after, _told)


def _told(one: FileFact | str, other: FileFact | str) -> tuple[str, str]:
    first, second = _words(one), _words(other)
    keys = [key for key in {**first, **second} if first.get(key) != second.get(key)]
    return _joined(first, keys), _joined(second, keys)


def _joined(words: Mapping[str, str], keys: list[str]) -> str:
    return " ".join(words[key] for key in keys if key in words)


def _words(fact: FileFact | str) -> dict[str, str]:
    if isinstance(fact, str):
        return {}
    found = {"kind": fact.kind, "mode": f"{fact.mode:04o}", "owner": f"{fact.uid}:{fact.gid}"}
    if fact.kind == "file":
        found["size"] = f"{fact.size_bytes} B"
        found["digest"] = f"sha256:{fact.digest[:_DIGEST_CHARS]}"
    if fact.kind == "link":
        found["target"] = f"-> {fact.target}"
    return found


def _differ(
    before: Mapping[str, _T],
    after: Mapping[str, _T],
    told: Callable[[_T | str, _T | str], tuple[str, str]],
) -> tuple[Difference, ...]:
    found = []
    for name in sorted({*before, *after}):
        one, other = before.get(name, ""), after.get(name, "")
        if one != other:
            what: What = (
                "added" if name not in before else "removed" if name not in after else "changed"
            )
            found.append(Difference(what, name, *told(one, other)))
    return tuple(found)
