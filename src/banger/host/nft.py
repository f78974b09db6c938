"""nftables through its own program: one atomic transaction a call, in whatever namespace the caller names.

Who builds the text is a pure function; it never holds anything that a guest said.
"""

from __future__ import annotations

import json
from typing import Any

from banger.host.exec import find_program, run
from banger.host.namespaces import NamespacePair, enter
from banger.model.errors import BangerError

_TIMEOUT_S = 10.0


def program() -> str:
    """The nft program; HostLacksError if it is not installed."""
    return find_program("nft", package="nftables")


async def apply(rules: str, inside: NamespacePair) -> None:
    """Run ``rules`` as one transaction: all of them or none. CommandFailedError has nft's own words."""
    argv = [*enter(inside), program(), "-f", "-"]
    await run(argv, timeout_s=_TIMEOUT_S, input=rules.encode(), pass_fds=inside.descriptors)


async def elements(family: str, table: str, name: str, inside: NamespacePair) -> list[Any]:
    """The elements of a set, as nft's JSON has them."""
    argv = [*enter(inside), program(), "-j", "list", "set", family, table, name]
    done = await run(argv, timeout_s=_TIMEOUT_S, pass_fds=inside.descriptors)
    try:
        objects = json.loads(done.stdout)["nftables"]
        (found,) = (each["set"] for each in objects if "set" in each)
        return list(found.get("elem", []))
    except (ValueError, KeyError, TypeError) as error:
        raise BangerError(
            f"nft listed set {name} of {family} {table} in a way banger does not know",
            detail=done.stdout[:200].decode(errors="replace"),
            hint="nft --version",
        ) from error
