"""What apt, dpkg and a recipe's own script say when they fail, told in banger's words: which package, which address, which hook."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from urllib.parse import urlsplit

from banger.host import fs
from banger.images.recipe import LoadedRecipe
from banger.model.errors import BangerError, HostLacksError, InvalidInputError

_UNKNOWN = re.compile(
    r"E: (?:Unable to locate package (\S+)|Package '([^']+)' has no installation candidate|Version '[^']*' for '([^']+)' was not found)"
)
_FETCH = re.compile(r"E: Failed to fetch (\S+)\s+(.*)")
_SIGNATURE = re.compile(
    r"E: .*(is not signed|signatures were invalid|signatures couldn't be verified|NO_PUBKEY|GPG error).*"
)
_STEP = re.compile(r"banger: (.+) failed with status (\d+)")
_NUMBERED = re.compile(r"(users|files|hooks)\[(\d+)\]")
_SHOWN = 12


_TAR_STOPPED = re.compile(r"tar: .*: Wrote only \d+ of \d+ bytes")


def explain(lines: Sequence[str], loaded: LoadedRecipe) -> BangerError | None:
    """The error that the ``lines`` of a failed build's log tell of; None if they tell nothing known."""
    return (
        _full(lines) or _unknown(lines, loaded) or _unsigned(lines) or _unfetched(lines, loaded) or _step(lines, loaded)
    )  # fmt: skip


def says_full(text: str) -> bool:
    """Whether a program or the kernel says that there is no space left."""
    return bool(_TAR_STOPPED.search(text)) or any(os.strerror(number) in text for number in fs.FULL)


def _full(lines: Sequence[str]) -> BangerError | None:
    found = [line.strip() for line in lines if says_full(line)]
    if not found:
        return None
    return HostLacksError(
        "no space to build an image",
        detail="\n".join(found[:_SHOWN]),
        hint="banger df",
    )


def _unknown(lines: Sequence[str], loaded: LoadedRecipe) -> BangerError | None:
    matches = [match for line in lines if (match := _UNKNOWN.match(line))]
    names = sorted({next(filter(None, match.groups())) for match in matches})
    if not names:
        return None
    where = {name: _origin(name, loaded) for name in names}
    return InvalidInputError(
        f"{loaded.recipe.distribution} {loaded.recipe.release} has no package {', '.join(map(repr, names))}",
        detail="\n".join(f"{place}: {name}" for name, place in where.items() if place),
        hint=f"mend {next(filter(None, where.values()), 'the package list')}, or name another mirror",
    )


def _origin(name: str, loaded: LoadedRecipe) -> str:
    for asked, place in loaded.origins.items():
        if re.split("[:=]", asked)[0] == name:
            return place
    return ""


def _unsigned(lines: Sequence[str]) -> BangerError | None:
    found = [line.removeprefix("E: ").strip() for line in lines if _SIGNATURE.match(line)]
    if not found:
        return None
    return HostLacksError(
        "the mirror's index has no valid signature",
        detail="\n".join(dict.fromkeys(found)),
        hint='name the key in the recipe: mirror = "deb [signed-by=FILE] ADDRESS SUITE COMPONENT"',
    )


def _unfetched(lines: Sequence[str], loaded: LoadedRecipe) -> BangerError | None:
    found = {match[1]: match[2] for line in lines if (match := _FETCH.match(line))}
    if not found:
        return None
    hosts = sorted({urlsplit(url).netloc.rpartition("@")[2] for url in found})
    said = [f"{url.rpartition('/')[2]}: {reason}" for url, reason in found.items()]
    more = [f"and {len(said) - _SHOWN} more"] if len(said) > _SHOWN else []
    wrong = [url for url, reason in found.items() if "mismatch" in reason.lower()]
    number = len(wrong or found)
    what = "is not what its index promises" if wrong else "could not be fetched"
    return HostLacksError(
        f"{number} {'file' if number == 1 else 'files'} from {', '.join(hosts)}: {what}",
        detail="\n".join([*said[:_SHOWN], *more]),
        hint=f"banger image build {shlex.quote(loaded.ref)}, when the mirror is well; what was fetched is kept",
    )


def _step(lines: Sequence[str], loaded: LoadedRecipe) -> BangerError | None:
    """What failed of the recipe's own, with its last words."""
    for at in range(len(lines) - 1, -1, -1):
        match = _STEP.match(lines[at])
        if match:
            break
    else:
        return None
    what = match[1]
    number = _NUMBERED.search(what)
    hook = loaded.hooks[int(number[2])] if number and number[1] == "hooks" else None
    said = [line for line in lines[max(0, at - _SHOWN) : at] if not line.startswith(("I: ", "banger: "))]  # fmt: skip
    return InvalidInputError(
        f"{what} of the recipe failed with status {match[2]}",
        detail="\n".join([*said, *([f"it stands in {hook.origin}"] if hook else [])]),
        hint=f"mend {hook.origin}" if hook else "mend the recipe",
    )
