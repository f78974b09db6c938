"""What the helper does: one table of verbs, each with its arguments and its inverse. Names of things on the host are made here and below, from
numbers that the helper gave out itself; a caller names nothing.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from banger import __version__
from banger.helper.policy import Caller
from banger.model.errors import InvalidInputError, NotFoundError
from banger.network.uplinks.service import UplinkService
from banger.storage.snapshots.service import SnapshotService
from banger.wire.helper import PROTOCOL, Request

Result = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class World:
    """What the verbs work on."""

    uplinks: UplinkService
    snapshots: SnapshotService


@dataclass(frozen=True, slots=True)
class Call:
    """One admitted request."""

    caller: Caller
    arguments: Mapping[str, int | str | bool]
    descriptors: tuple[int, ...]

    def number(self, key: str) -> int:
        """An integer argument, checked by `check`."""
        return int(self.arguments[key])


@dataclass(frozen=True, slots=True)
class Verb:
    """One verb: ``arguments`` by name and type, all of them needed; how many ``descriptors``; ``inverse``, the verb that takes it back.

    One that only ``reads``, and is asked all the time, is no line of the audit log unless it is refused.
    """

    run: Callable[[World, Call], Awaitable[Result]]
    arguments: Mapping[str, type] = field(default_factory=dict)
    descriptors: int = 0
    inverse: str | None = None
    reads: bool = False


async def _hello(world: World, call: Call) -> Result:
    del world
    return {
        "protocol": PROTOCOL,
        "version": __version__,
        "pid": os.getpid(),
        "uid": call.caller.uid,
        "verbs": sorted(VERBS),
    }


async def _attach(world: World, call: Call) -> Result:
    (namespace,) = call.descriptors
    found = await world.uplinks.attach(call.caller.uid, namespace)
    return dict(msgspec.to_builtins(found))


async def _detach(world: World, call: Call) -> Result:
    await world.uplinks.detach(call.caller.uid, call.number("slot"))
    return {}


async def _list(world: World, call: Call) -> Result:
    found = await world.uplinks.list(call.caller.uid)
    return {"uplinks": msgspec.to_builtins(found)}


async def _snapshot_attach(world: World, call: Call) -> Result:
    image, store = call.descriptors
    numbers = (call.number("installation"), call.number("vm"), call.number("sectors"))
    found = await world.snapshots.attach(call.caller.uid, numbers, image, store)
    return dict(msgspec.to_builtins(found))


async def _snapshot_detach(world: World, call: Call) -> Result:
    found = await world.snapshots.detach(call.caller.uid, call.number("slot"))
    return {"snapshot": msgspec.to_builtins(found)}


async def _snapshot_grown(world: World, call: Call) -> Result:
    return {"adopted": await world.snapshots.grown(call.caller.uid, call.number("slot"))}


async def _snapshot_list(world: World, call: Call) -> Result:
    answer = await world.snapshots.able()
    found = await world.snapshots.list(call.caller.uid) if answer else []
    why, hint = (answer.why[:1000], answer.hint[:1000])
    return {"snapshots": msgspec.to_builtins(found), "why": why, "hint": hint}


VERBS: dict[str, Verb] = {
    "hello": Verb(_hello, reads=True),
    "list": Verb(_list),
    "uplink.attach": Verb(_attach, descriptors=1, inverse="uplink.detach"),
    "uplink.detach": Verb(_detach, {"slot": int}),
    "snapshot.attach": Verb(
        _snapshot_attach,
        {"installation": int, "vm": int, "sectors": int},
        descriptors=2,
        inverse="snapshot.detach",
    ),
    "snapshot.detach": Verb(_snapshot_detach, {"slot": int}),
    "snapshot.grown": Verb(_snapshot_grown, {"slot": int}),
    "snapshot.list": Verb(_snapshot_list, reads=True),
}


def check(request: Request) -> Verb:
    """The verb that is asked for, its arguments and descriptors counted and of their types; NotFoundError or InvalidInputError else."""
    verb = VERBS.get(request.op)
    if verb is None:
        raise NotFoundError(
            f"no verb {request.op[:40]!r}", detail=f"there are: {', '.join(sorted(VERBS))}",
            hint="update banger and banger-helper to the same release",
        )  # fmt: skip
    right = request.arguments.keys() == verb.arguments.keys() and all(
        type(request.arguments[key]) is kind for key, kind in verb.arguments.items()
    )
    if not right or len(request.descriptors) != verb.descriptors:
        wanted = ", ".join(f"{key}: {kind.__name__}" for key, kind in verb.arguments.items())
        raise InvalidInputError(
            f"{request.op} was asked for wrongly",
            detail=f"it takes ({wanted}) and {verb.descriptors} descriptors",
            hint="update banger and banger-helper to the same release",
        )
    return verb
