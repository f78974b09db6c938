"""Snapshots by QEMU's migration into a file: the state file holds the configuration, the memory file QEMU's stream.

Only the stand-in can load what it has made. A difference is a full snapshot; a memory backend that is a socket (Uffd) is refused.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from tests.framework.firecracker import host
from tests.framework.firecracker.log import Log
from tests.framework.firecracker.machine import Machine
from tests.framework.firecracker.resources import Resources, Values
from tests.framework.firecracker.routes import NOT_HERE, FaultError

MAGIC = "stand-in for Firecracker 1"
_KEPT = ("machine", "boot", "drives", "networks", "vsock", "balloon", "entropy", "mmds_config", "mmds")  # fmt: skip


async def create(machine: Machine, values: Values) -> None:
    """PUT /snapshot/create for a paused machine."""
    what = "Create snapshot error: Cannot perform open on the"
    state = {name: getattr(machine.resources, name) for name in _KEPT}
    try:
        Path(values["snapshot_path"]).write_text(json.dumps({"magic": MAGIC, **state}))
    except OSError as error:
        raise FaultError(f"{what} snapshot backing file: {host.said(error)}") from error
    try:
        memory = os.open(values["mem_file_path"], os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)  # fmt: skip
    except OSError as error:
        raise FaultError(f"{what} memory backing file: {host.said(error)}") from error
    try:
        await machine.save(memory)
    finally:
        os.close(memory)


async def load(resources: Resources, log: Log, values: Values) -> Machine:
    """PUT /snapshot/load: the machine, paused; ``resources`` become the snapshot's."""
    what = "Load snapshot error: Failed to restore from snapshot:"
    state = _read(Path(values["snapshot_path"]), what)
    backend = values["mem_backend"] or {
        "backend_path": values["mem_file_path"],
        "backend_type": "File",
    }
    if backend["backend_type"] != "File":
        raise FaultError(f"{NOT_HERE} memory backend of type Uffd")
    try:
        memory = os.open(backend["backend_path"], os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise FaultError(f"{what} Failed to load guest memory: {host.said(error)}") from error
    try:
        _restore(resources, state, values, what)
        machine = Machine(resources, log)
        await machine.start(memory)
        await machine.loaded()
    finally:
        os.close(memory)
    return machine


def _read(path: Path, what: str) -> Values:
    what = f"{what} Failed to get snapshot state from file:"
    try:
        state = json.loads(path.read_text())
    except OSError as error:
        raise FaultError(f"{what} Failed to open snapshot file: {host.said(error)}") from error
    except ValueError as error:
        raise FaultError(f"{what} Failed to load snapshot state from file: CRC64 validation failed") from error  # fmt: skip
    if not isinstance(state, dict) or state.get("magic") != MAGIC:
        raise FaultError(f"{what} Failed to load snapshot state from file: Magic value does not match arch: 0")  # fmt: skip
    return state


def _restore(resources: Resources, state: Values, values: Values, what: str) -> None:
    """Open again what the snapshot had, with what the request puts in its place."""
    what = f"{what} Failed to get snapshot state from file:"
    networks = {network["iface_id"]: network for network in state["networks"]}
    for entry in values.get("network_overrides", ()):
        if entry["iface_id"] not in networks:
            raise FaultError(f"{what} Unknown Network Device.")
        networks[entry["iface_id"]]["host_dev_name"] = entry["host_dev_name"]
    override: Any = values.get("vsock_override")
    if override is not None:
        if state["vsock"] is None:
            raise FaultError(f"{what} Unknown Vsock Device.")
        state["vsock"]["uds_path"] = override["uds_path"]
    for name in ("machine", "boot", "balloon", "entropy", "mmds_config", "mmds"):
        setattr(resources, name, state[name])
    for drive in state["drives"]:
        resources.put_drive(drive)
    for network in state["networks"]:
        resources.put_network(network)
    if state["vsock"] is not None:
        resources.put_vsock(state["vsock"])
