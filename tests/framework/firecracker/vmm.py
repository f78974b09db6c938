"""Firecracker's two controllers: what may be asked before the VM boots, what after, and what each answers."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from tests.framework.firecracker import engine, host, snapshot
from tests.framework.firecracker.ending import panic
from tests.framework.firecracker.live import MISSING, Devices
from tests.framework.firecracker.log import Log
from tests.framework.firecracker.machine import Machine
from tests.framework.firecracker.play import Play
from tests.framework.firecracker.resources import CMDLINE_BYTES, Resources, Values
from tests.framework.firecracker.routes import NOT_HERE, Call, FaultError
from tests.framework.firecracker.vsock import Bridge

AFTER_BOOT = "The requested operation is not supported after starting the microVM."
BEFORE_BOOT = "The requested operation is not supported before starting the microVM."
NO_MMDS = "MMDS error: The MMDS data store is not initialized."
Handler = Callable[[Values], Awaitable[Any] | Any]


@dataclass(frozen=True, slots=True)
class Instance:
    """Who this process is."""

    id: str
    play: Play
    log: Log
    mmds_limit_bytes: int


class Vmm:
    """The VM of this process; `perform` does what a `Call` asks. ``machine`` is there once it was started; ``broken`` says
    why the process cannot go on: a snapshot that could not be loaded leaves too much behind.
    """

    def __init__(self, instance: Instance) -> None:
        self._instance = instance
        self._log = instance.log
        self.resources = Resources(instance.mmds_limit_bytes)
        self.machine: Machine | None = None
        self.started = asyncio.Event()
        self.broken: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._state = "Not started"
        self._metrics: int | None = None
        self._bridge: asyncio.Task[None] | None = None

    async def perform(self, call: Call) -> Any:
        """What the answer says, None for no content; FaultError."""
        table = self._before() if self.machine is None else self._after(self.machine)
        handler = table.get(call.action)
        if handler is None:
            raise FaultError(BEFORE_BOOT if self.machine is None else AFTER_BOOT)
        if self.machine is None and call.action in _CONFIGURES:
            self.resources.begun = True
        answer = handler(call.values)
        return await answer if isinstance(answer, Awaitable) else answer

    def _common(self) -> dict[str, Handler]:
        return {
            "describe": lambda _: {
                "id": self._instance.id, "state": self._state,
                "vmm_version": self._instance.play.version, "app_name": "Firecracker",
            },
            "version": lambda _: {"firecracker_version": self._instance.play.version},
            "full-config": lambda _: self._full(),
            "get-machine": lambda _: self.resources.machine_shown(),
            "get-balloon": self._get_balloon,
            "get-mmds": self._get_mmds,
            "put-mmds": lambda values: self._put_mmds(self.resources.put_mmds, values),
            "patch-mmds": lambda values: self._put_mmds(self.resources.patch_mmds, values),
            "act": lambda values: self._act(values["action_type"]),
        }  # fmt: skip

    def _before(self) -> dict[str, Handler]:
        resources = self.resources
        return {
            **self._common(),
            "put-balloon": resources.put_balloon,
            "put-boot": resources.put_boot,
            "put-cpu": lambda _: None,
            "put-drive": resources.put_drive,
            "put-logger": self._put_logger,
            "put-serial": self._put_serial,
            "put-machine": resources.put_machine,
            "patch-machine": resources.put_machine,
            "put-metrics": self._put_metrics,
            "put-mmds-config": resources.put_mmds_config,
            "put-network": resources.put_network,
            "put-vsock": resources.put_vsock,
            "put-entropy": resources.put_entropy,
            "put-pmem": lambda _: _refuse(f"{NOT_HERE} pmem devices"),
            "put-hotplug": lambda _: _refuse(f"{NOT_HERE} memory hotplug"),
            "load-snapshot": self._load_snapshot,
        }

    def _after(self, machine: Machine) -> dict[str, Handler]:
        devices = Devices(self.resources, machine)
        hotplug: dict[str, Handler] = {}
        if self._instance.play.numbers >= (1, 16):  # hot-plugging, for which PCI must be enabled
            plugged = ("put-drive", "put-network", "put-pmem")
            hotplug = dict.fromkeys(plugged, lambda _: _refuse("PCI is not enabled"))
        return {
            **self._common(),
            **hotplug,
            "patch-vm": lambda values: self._patch_vm(machine, values["state"]),
            "patch-drive": devices.patch_drive,
            "patch-network": devices.patch_network,
            "patch-balloon": devices.patch_balloon,
            "get-balloon-stats": devices.balloon_stats,
            "patch-balloon-stats": devices.patch_balloon_stats,
            "get-hinting": devices.no_hinting,
            "start-hinting": devices.no_hinting,
            "stop-hinting": devices.no_hinting,
            "get-hotplug": lambda _: _refuse(f"Internal VMM error: {MISSING}"),
            "patch-hotplug": lambda _: _refuse(f"Memory hotplug update error: {MISSING}"),
            "patch-pmem": devices.patch_pmem,
            "create-snapshot": lambda values: self._create_snapshot(machine, values),
        }

    def file_handlers(self) -> dict[str, Callable[[Values], Any]]:
        """What takes each part of a configuration file, in the order in which Firecracker goes through it."""
        resources = self.resources
        return {
            "logger": self._put_logger, "metrics": self._put_metrics, "machine-config": resources.put_machine,
            "boot-source": resources.put_boot, "drives": resources.put_drive, "network-interfaces": resources.put_network,
            "vsock": resources.put_vsock, "balloon": resources.put_balloon, "mmds-config": resources.put_mmds_config,
            "entropy": resources.put_entropy, "pmem": lambda _: _refuse(f"{NOT_HERE} pmem devices"),
            "memory-hotplug": lambda _: _refuse(f"{NOT_HERE} memory hotplug"),
        }  # fmt: skip

    def _full(self) -> Values:
        full = self.resources.full()
        if self._instance.play.numbers >= (1, 14):
            full |= {"pmem": [], "memory-hotplug": None}
        return full

    # Before boot

    def _put_logger(self, values: Values) -> None:
        try:
            self._log.update(**values)
        except OSError as error:
            raise FaultError(f"Logger error: Failed to open target file: {host.said(error)}") from error  # fmt: skip

    def _put_serial(self, values: Values) -> None:
        self.resources.serial_out_path = values["serial_out_path"]

    def _put_metrics(self, values: Values) -> None:
        self.init_metrics(values["metrics_path"])

    def init_metrics(self, path: str) -> None:
        """Write metrics there from now on; FaultError."""
        what = "Metrics error: Cannot initialize the metrics system due to bad user input:"
        try:
            descriptor = host.open_output(path)
        except OSError as error:
            raise FaultError(f"{what} {host.said(error)}") from error
        if self._metrics is not None:
            os.close(descriptor)
            raise FaultError(f"{what} Reinitialization of metrics not allowed.")
        self._metrics = descriptor

    async def _act(self, action: str) -> None:
        match action, self.machine:
            case "InstanceStart", None:
                await self.start()
            case "InstanceStart", _:
                raise FaultError(AFTER_BOOT)
            case _, None:
                raise FaultError(BEFORE_BOOT)
            case "FlushMetrics", _:
                self.flush_metrics()
            case "SendCtrlAltDel", machine:
                keys = [{"type": "qcode", "data": key} for key in ("ctrl", "alt", "delete")]
                await machine.ask("send-key", keys=keys)

    def flush_metrics(self) -> None:
        """Write one line of metrics, if they have a place."""
        if self._metrics is not None:
            line = {"utc_timestamp_ms": time.time_ns() // 10**6, "vmm": {"panic_count": 0}}
            os.write(self._metrics, json.dumps(line).encode() + b"\n")

    async def start(self) -> None:
        """InstanceStart: check, start QEMU, let it run."""
        if self._instance.play.refuse_start:
            raise FaultError(self._instance.play.refuse_start)
        boot = self.resources.boot
        if boot is None:
            raise FaultError("Start microvm error: Cannot start microvm without kernel configuration.")  # fmt: skip
        machine = Machine(self.resources, self._log)
        machine.open_console()
        self._check_kernel(boot)
        await machine.start()
        await machine.run()
        self._adopt(machine, "Running")

    def _check_kernel(self, boot: Values) -> None:
        """Refuse what would not load, as far as Firecracker's loader finds it out."""
        path, initrd = boot["kernel_image_path"], boot["initrd_path"]
        newer = self._instance.play.numbers >= (1, 17)  # it tries a bzImage after the ELF
        if not host.starts_with(path, b"\x7fELF") and not (newer and host.starts_with(path, b"MZ")):
            kind, why = (
                ("bzImage", "Invalid bzImage") if newer else ("ELF", "Invalid Elf magic number")
            )
            raise FaultError(
                "Start microvm error: System configuration error: Cannot load kernel due to invalid memory configuration "
                f"or invalid kernel image: Kernel Loader: failed to load {kind} kernel image: Kernel Loader: {why}"
            )
        if initrd and host.size_bytes(initrd) > self.resources.machine["mem_size_mib"] << 20:
            raise FaultError("Start microvm error: Error with initrd initialization: Failed to compute the initrd address..")  # fmt: skip
        if "\0" in engine.cmdline(self.resources, 0):
            panic("Cannot create cstring from cmdline string: NullTerminator", self._log)
        if len(engine.cmdline(self.resources, 0)) >= CMDLINE_BYTES:
            raise FaultError("Start microvm error: Invalid kernel command line: Inserting string would make command line too long.")  # fmt: skip

    def _adopt(self, machine: Machine, state: str) -> None:
        self.machine = machine
        self._state = state
        self.started.set()
        listener = self.resources.vsock_listener
        if listener is not None:
            bridge = Bridge(listener, machine, engine.SERIAL_ID, self._log)
            self._bridge = asyncio.create_task(bridge.run(), name="vsock")

    # Always

    def _get_mmds(self, _: Values) -> Any:
        if self.machine is not None and self.resources.mmds_config is None:
            raise FaultError(NO_MMDS)
        return {} if self.resources.mmds is None else self.resources.mmds

    def _put_mmds(self, put: Callable[[Any], None], values: Values) -> None:
        if self.machine is not None and self.resources.mmds_config is None:
            raise FaultError(NO_MMDS)
        put(values["value"])

    def _get_balloon(self, _: Values) -> Values:
        if self.resources.balloon is None:
            if self.machine is None:
                raise FaultError("Balloon config error: No balloon device found.")
            raise FaultError(f"Internal VMM error: {MISSING}")
        return self.resources.balloon

    # After boot

    async def _patch_vm(self, machine: Machine, state: str) -> None:
        await (machine.pause() if state == "Paused" else machine.run())
        self._state = "Paused" if state == "Paused" else "Running"

    async def _create_snapshot(self, machine: Machine, values: Values) -> None:
        if self._state != "Paused":
            raise FaultError(
                "Create snapshot error: Cannot save the microVM state: Operation not allowed: "
                "save/restore unavailable while running"
            )
        await snapshot.create(machine, values)

    async def _load_snapshot(self, values: Values) -> None:
        if self.resources.begun:
            raise FaultError(
                "Load snapshot error: Loading a microVM snapshot not allowed after configuring boot-specific resources."
            )
        try:
            machine = await snapshot.load(self.resources, self._log, values)
        except FaultError:
            self.broken.set_result("Loading snapshot failed.")
            raise
        if values["resume_vm"]:
            await machine.run()
        self._adopt(machine, "Running" if values["resume_vm"] else "Paused")

    async def close(self) -> None:
        """End the guest and let go of everything."""
        if self._bridge is not None:
            self._bridge.cancel()
            await asyncio.gather(self._bridge, return_exceptions=True)
        if self.machine is not None:
            await self.machine.kill()
        self.resources.close()
        with suppress(OSError):
            self.flush_metrics()


_CONFIGURES = {
    "put-balloon", "put-boot", "put-drive", "put-machine", "patch-machine", "put-mmds-config", "put-network",
    "put-vsock", "put-entropy",
}  # fmt: skip


def _refuse(message: str) -> None:
    raise FaultError(message)
