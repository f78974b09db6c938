"""QEMU's command line for what was configured: a pure function, as `banger.vmm.qemu.args`, whose recipe this is.

Differences are for the sake of Firecracker's behaviour: an i8042, so that ``reboot=k`` resets at once and Ctrl+Alt+Del can be pressed;
a power-off leaves QEMU paused; the console is standard output, whose position in a file is Firecracker's.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tests.framework.firecracker.resources import DEFAULT_CMDLINE, Resources

PROGRAM = "qemu-system-x86_64"
AGENT_PORT = "banger.agent"
SERIAL_ID, AGENT_ID, BALLOON_ID = "serial0", "agent0", "balloon0"
_SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"


@dataclass(frozen=True, slots=True)
class Descriptors:
    """What QEMU inherits: a connected monitor, the listening agent socket, TAPs by interface, a snapshot to load."""

    qmp: int
    agent: int
    taps: Mapping[str, int]
    snapshot: int | None = None

    @property
    def all(self) -> tuple[int, ...]:
        """Their numbers."""
        extra = () if self.snapshot is None else (self.snapshot,)
        return (self.qmp, self.agent, *self.taps.values(), *extra)


def cmdline(resources: Resources, khz: int) -> str:
    """The kernel's command line: as given, then what Firecracker appends, then the TSC's frequency for TCG."""
    boot = resources.boot or {}
    given = boot.get("boot_args")
    words = [DEFAULT_CMDLINE if given is None else given, "pci=off"]
    root = next((drive for drive in resources.drives if drive["is_root_device"]), None)
    if root is not None:
        where = f"PARTUUID={root['partuuid']}" if root["partuuid"] else "/dev/vda"
        words += [f"root={where}", "ro" if root["is_read_only"] else "rw"]
    if khz:
        words.append(f"loglevel=5 tsc_early_khz={khz} tsc=reliable")
    return " ".join(words)


def argv(program: str, resources: Resources, fds: Descriptors, *, khz: int) -> list[str]:
    """The whole command line; ``khz`` is the host's TSC's frequency (0: unknown). The guest does not run yet."""
    machine, boot = resources.machine, resources.boot or {}
    words = [
        program,
        "-nodefaults", "-no-user-config", "-display", "none", "-S",
        "-action", "reboot=shutdown,shutdown=pause",
        "-sandbox", _SANDBOX,
        "-machine", "microvm,pit=on,pic=on,rtc=on,acpi=on", "-device", "i8042",
        "-accel", "tcg,thread=multi", "-cpu", "max",
        "-smp", str(machine["vcpu_count"]), "-m", str(machine["mem_size_mib"]),
        "-kernel", boot["kernel_image_path"],
        *(["-initrd", boot["initrd_path"]] if boot["initrd_path"] else []),
        "-append", cmdline(resources, khz),
        "-chardev", f"socket,id=qmp,fd={fds.qmp}", "-mon", "chardev=qmp,mode=control",
        "-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console",
    ]  # fmt: skip
    for drive in resources.drives:
        words += _drive(drive)
    for network in resources.networks:
        words += _network(network, fds.taps[network["iface_id"]])
    if resources.vsock is not None:
        words += _agent(fds.agent)
    if resources.entropy is not None:
        words += ["-object", "rng-random,id=rng,filename=/dev/urandom", "-device", "virtio-rng-device,rng=rng"]  # fmt: skip
    if resources.balloon is not None:
        words += _balloon(resources.balloon)
    if fds.snapshot is not None:
        words += ["-incoming", f"fd:{fds.snapshot}"]
    return words


def _escape(value: str) -> str:
    """A comma inside an option's value is written twice."""
    return value.replace(",", ",,")


def _drive(drive: Mapping[str, Any]) -> list[str]:
    cache = "unsafe" if drive["cache_type"] == "Unsafe" else "writeback"
    read_only = "on" if drive["is_read_only"] else "off"
    name, file = drive["drive_id"], _escape(drive["path_on_host"])
    backend = (
        f"id={name},if=none,format=raw,cache={cache},aio=threads,read-only={read_only},file={file}"
    )
    limits = "".join(f",throttling.{key}={value}" for key, value in throttle(drive["rate_limiter"]).items())  # fmt: skip
    return ["-drive", backend + limits, "-device", f"virtio-blk-device,drive={name},id=disk-{name}"]


def throttle(limiter: Mapping[str, Any] | None) -> dict[str, int]:
    """A drive's rate limiter in QEMU's terms: a rate a second, and a burst of the bucket's size."""
    made: dict[str, int] = {}
    for key, word in (("bandwidth", "bps"), ("ops", "iops")):
        bucket = (limiter or {}).get(key)
        if bucket and bucket["size"] and bucket["refill_time"]:
            made[f"{word}-total"] = max(1, bucket["size"] * 1000 // bucket["refill_time"])
            burst = bucket["size"] + (bucket["one_time_burst"] or 0)
            made[f"{word}-total-max"] = max(burst, made[f"{word}-total"])
    return made


def _network(network: Mapping[str, Any], descriptor: int) -> list[str]:
    name = network["iface_id"]
    mac = network["guest_mac"] or _random_mac()
    mtu = f",host_mtu={network['mtu']}" if network.get("mtu") else ""
    return [
        "-netdev", f"tap,id=net-{name},fd={descriptor},vhost=off",
        "-device", f"virtio-net-device,netdev=net-{name},mac={mac}{mtu}",
    ]  # fmt: skip


def _random_mac() -> str:
    """Locally administered, as the guest's driver would make one if it were given none."""
    return ":".join(f"{byte:02x}" for byte in (0x02, *secrets.token_bytes(5)))


def _agent(descriptor: int) -> list[str]:
    return [
        "-device", f"virtio-serial-device,id={SERIAL_ID}",
        "-chardev", f"socket,id=agent,fd={descriptor},server=on,wait=off",
        "-device", f"virtserialport,id={AGENT_ID},chardev=agent,name={AGENT_PORT}",
    ]  # fmt: skip


def _balloon(balloon: Mapping[str, Any]) -> list[str]:
    on = {True: "on", False: "off"}
    options = f"deflate-on-oom={on[balloon['deflate_on_oom']]},free-page-reporting={on[bool(balloon.get('free_page_reporting'))]}"
    return ["-device", f"virtio-balloon-device,id={BALLOON_ID},{options}"]
