"""nftables through its own program: one atomic transaction a call, in whatever namespace the caller names.

Who builds the text is a pure function; it never holds anything that a guest said.
"""

from __future__ import annotations

import json
from typing import Any

from banger.host.exec import find_program, run
from banger.host.namespaces import NamespacePair, enter
from banger.model.errors import BangerError, CommandFailedError

_TIMEOUT_S = 10.0


def program() -> str:
    """The nft program; HostLacksError if it is not installed."""
    return find_program("nft", package="nftables")


async def apply(rules: str, inside: NamespacePair | None = None) -> None:
    """Run ``rules`` as one transaction: all of them or none; ``inside`` None: here. CommandFailedError has nft's own words."""
    entered, passed = ([], ()) if inside is None else (enter(inside), inside.descriptors)
    argv = [*entered, program(), "-f", "-"]
    await run(argv, timeout_s=_TIMEOUT_S, input=rules.encode(), pass_fds=passed)


async def listing(kind: str, *words: str) -> list[Any]:
    """What ``nft list`` says of this namespace: the objects of ``kind`` (chain, rule, table) in the listing that ``words`` name."""
    done = await run([program(), "-j", "list", *words], timeout_s=_TIMEOUT_S)
    try:
        return [each[kind] for each in json.loads(done.stdout)["nftables"] if kind in each]
    except (ValueError, KeyError, TypeError) as error:
        raise _unknown(" ".join(words), done.stdout) from error


async def text(family: str, table: str) -> str:
    """A table of this namespace as ``nft list`` writes it, the same as long as nobody changes it; empty if it cannot be had."""
    try:
        done = await run([program(), "list", "table", family, table], timeout_s=_TIMEOUT_S)
    except CommandFailedError:
        return ""
    return done.stdout.decode(errors="replace")


async def elements(family: str, table: str, inside: NamespacePair) -> dict[str, list[Any]]:
    """The elements of all named sets of a table by the sets' names, as nft's JSON has them."""
    argv = [*enter(inside), program(), "-j", "list", "table", family, table]
    done = await run(argv, timeout_s=_TIMEOUT_S, pass_fds=inside.descriptors)
    try:
        objects = json.loads(done.stdout)["nftables"]
        sets = [each["set"] for each in objects if "set" in each]
        return {each["name"]: list(each.get("elem", [])) for each in sets}
    except (ValueError, KeyError, TypeError) as error:
        raise _unknown(f"table {family} {table}", done.stdout) from error


def _unknown(what: str, output: bytes) -> BangerError:
    return BangerError(
        f"nft listed {what} in a way banger does not know",
        detail=output[:200].decode(errors="replace"),
        hint="nft --version",
    )
