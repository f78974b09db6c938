"""Forwards of one VM: which there are to be, on which ports of the host, and opening and closing them.

The spec has what was asked, where host port 0 takes any free one; the record has the final ports, which stay the same over restarts of VM
and daemon where they are still free. Every VM with a network has one to its SSH port, asked for or not.
"""

from __future__ import annotations

import functools
import logging
import socket
from collections.abc import Iterable, Sequence
from contextlib import suppress

from banger.engine.context import Context
from banger.engine.dial import dial, on_own_network
from banger.engine.machine import Machine
from banger.host.undo import UndoStack
from banger.model.errors import BangerError, NotFoundError, RefusedError
from banger.model.record import VmRecord
from banger.model.spec import Forward, ForwardProtocol, NetworkMode, VmSpec, suffix

log = logging.getLogger(__name__)
SSH_PORT = 22
MAX_FORWARDS = 128


def wanted(spec: VmSpec) -> tuple[Forward, ...]:
    """What is to be forwarded: what was asked for, and SSH unless that is among it. Pure."""
    ssh = Forward(0, SSH_PORT)
    if spec.network is NetworkMode.NONE or any(f.target == ssh.target for f in spec.forwards):
        return spec.forwards
    return (*spec.forwards, ssh)


def hoped(asked: Iterable[Forward], earlier: Iterable[Forward]) -> list[tuple[Forward, int]]:
    """Each with the host port that is tried first: the asked one, else the one that led there earlier, else 0. Pure."""
    asked = tuple(asked)
    fixed = {forward.key for forward in asked if forward.host_port}
    free = [forward for forward in earlier if forward.key not in fixed]
    found = []
    for forward in asked:
        port = forward.host_port
        for before in free if port == 0 else ():
            if before.target == forward.target:
                free.remove(before)
                port = before.host_port
                break
        found.append((forward, port))
    return found


def add(record: VmRecord, more: Iterable[Forward]) -> tuple[Forward, ...]:
    """The forwards of the spec and ``more``; what leads there already is not added twice. Pure.

    RefusedError if a host port leads elsewhere already, or there are too many.
    """
    forwards = list(record.spec.forwards)
    for forward in more:
        present = [*forwards, *record.forwards]
        if forward.host_port == 0:
            if any(other.target == forward.target for other in present):
                continue
        elif there := [other for other in present if other.key == forward.key]:
            if there[0].target == forward.target:
                continue
            shown = f"{forward.host_port}{suffix(forward.protocol)}"
            raise RefusedError(
                f"port {shown} of 127.0.0.1 leads to port {there[0].guest_port} of VM {record.name} already",
                hint=f"banger vm forward {record.name} --remove {shown}",
            )
        forwards.append(forward)
    if len(forwards) > MAX_FORWARDS:
        raise RefusedError(
            f"VM {record.name} would have {len(forwards)} forwards",
            detail=f"there may be {MAX_FORWARDS}",
            hint=f"banger vm forward {record.name}",
        )
    return tuple(forwards)


def remove(
    record: VmRecord, keys: Iterable[tuple[ForwardProtocol, int]]
) -> tuple[tuple[Forward, ...], tuple[Forward, ...]]:
    """The forwards of the spec, and the final ones, without those at these ports of the host. Pure.

    NotFoundError if there is none; RefusedError for the one to SSH that nobody asked for.
    """
    asked, final = list(record.spec.forwards), list(record.forwards)
    for key in keys:
        there = next((forward for forward in (*final, *asked) if forward.key == key), None)
        shown = f"{key[1]}{suffix(key[0])}"
        if there is None:
            raise NotFoundError(
                f"port {shown} of 127.0.0.1 is no forward of VM {record.name}",
                hint=f"banger vm forward {record.name}",
            )
        exact = [forward for forward in asked if forward.key == key]
        any_port = [f for f in asked if f.host_port == 0 and f.target == there.target]
        if not exact and not any_port:
            raise RefusedError(
                f"the forward to the SSH port of VM {record.name} cannot be removed",
                detail="every VM with a network has one",
                hint=f"give it a port of your choice: banger vm forward {record.name} 2222:22",
            )
        asked.remove((exact or any_port)[0])
        if there in final:
            final.remove(there)
    return tuple(asked), tuple(final)


def settle(context: Context, spec: VmSpec, earlier: Iterable[Forward]) -> tuple[Forward, ...]:
    """The ports that a VM at rest will try to have: free ones now, where any will do and none was had yet."""
    return tuple(
        Forward(
            port or context.relays.free_port(forward.protocol), forward.guest_port, forward.protocol
        )
        for forward, port in hoped(wanted(spec), earlier)
    )


async def open_forwards(context: Context, machine: Machine) -> None:
    """Listen on the host for every forward of a VM that begins to run; if one cannot be had, raise: the caller closes the others."""
    record = machine.record
    for forward, port in hoped(wanted(record.spec), record.forwards):
        await _open_new(context, machine, forward, port)
    machine.save(forwards=tuple(machine.relayed))


async def reopen_forwards(context: Context, machine: Machine) -> None:
    """Listen again for every forward of a VM that runs since an earlier daemon; one that cannot be had is told and stays closed."""
    record = machine.record
    final = [
        await _reopen(context, machine, forward, port)
        for forward, port in hoped(wanted(record.spec), record.forwards)
    ]
    if tuple(final) != record.forwards:
        machine.save(forwards=tuple(final))


async def _reopen(context: Context, machine: Machine, forward: Forward, port: int) -> Forward:
    try:
        opened = await _open(context, machine, forward, port)
    except (BangerError, OSError) as error:
        log.warning("VM %s: forward %s is closed: %s", machine.id, forward, error)
        return Forward(port, forward.guest_port, forward.protocol)
    machine.relayed.append(opened)
    return opened


async def switch(
    context: Context,
    machine: Machine,
    spec: VmSpec,
    earlier: Sequence[Forward],
    undo: UndoStack,
) -> tuple[tuple[Forward, ...], list[Forward]]:
    """Open what a VM that runs is to have under ``spec``; what of it was open stays so. The inverses are on ``undo``.

    Returns the final forwards, and those that are to be closed once all is written down.
    """
    goal = hoped(wanted(spec), earlier)
    open_now = list(machine.relayed)
    final: list[Forward | None] = []
    for forward, port in goal:
        same = Forward(port, forward.guest_port, forward.protocol)
        final.append(same if same in open_now else None)
    closing = [forward for forward in open_now if forward not in final]
    new = {
        (forward.protocol, port)
        for (forward, port), kept in zip(goal, final, strict=True)
        if not kept
    }
    for old in [forward for forward in closing if forward.key in new]:
        again = functools.partial(_open_new, context, machine, old, old.host_port)
        undo.push(f"open {old} again", again)
        await close(context, machine, old)
        closing.remove(old)
    for number, (forward, port) in enumerate(goal):
        if final[number] is None:
            had = Forward(port, forward.guest_port, forward.protocol) in machine.record.forwards
            open_it = _reopen if had else _open_new  # what was closed at an adoption fails no other
            opened = await open_it(context, machine, forward, port)
            undo.push(f"close {opened}", functools.partial(close, context, machine, opened))
            final[number] = opened
    return tuple(forward for forward in final if forward is not None), closing


async def close(context: Context, machine: Machine, forward: Forward) -> None:
    """Stop listening; idempotent."""
    if forward in machine.relayed:
        machine.relayed.remove(forward)
    await context.relays.remove(forward.host_port, protocol=forward.protocol)


async def _open_new(context: Context, machine: Machine, forward: Forward, port: int) -> Forward:
    opened = await _open(context, machine, forward, port)
    machine.relayed.append(opened)
    return opened


async def _open(context: Context, machine: Machine, forward: Forward, port: int) -> Forward:
    """Listen for ``forward``, on ``port`` if it can be had or is the very one that was asked for; the forward with its real port."""
    protocol = forward.protocol

    async def connect() -> socket.socket:
        return await dial(context, machine, forward.guest_port, protocol=protocol)

    if protocol is ForwardProtocol.UDP:
        await _check_way_in(context, machine, forward)
    got = None
    if forward.host_port == 0 and port:
        with suppress(RefusedError):  # taken by another program meanwhile: any other port will do
            got = await context.relays.add(port, connect, protocol=protocol)
    if got is None:
        got = await context.relays.add(forward.host_port, connect, protocol=protocol)
    return Forward(got, forward.guest_port, protocol)


async def _check_way_in(context: Context, machine: Machine, forward: Forward) -> None:
    """Raise now what every datagram would meet."""
    run, attachment = machine.record.run, machine.attachment
    mode = attachment.mode if attachment else run.network if run else ""
    if machine.lease is None or not on_own_network(mode):
        raise RefusedError(
            f"VM {machine.name} takes no UDP from the host: its network is {mode}",
            detail="TCP reaches it through its agent",
            hint="see what this host lacks: banger doctor",
        )
    try:
        probe = await context.network.dial(
            machine.lease, forward.guest_port, protocol=ForwardProtocol.UDP
        )
    except OSError as error:
        raise RefusedError(
            f"UDP cannot be forwarded to VM {machine.name}",
            detail=str(error),
            hint=f"banger vm restart {machine.name}",
        ) from error
    probe.close()
