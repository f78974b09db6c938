"""QEMU's command line for one VM: a pure function of what was asked and which descriptors were opened.

The machine is microvm: no PCI, no firmware worth the name, virtio over MMIO found through ACPI. Drives appear in the guest in the
order of the command line: vda, vdb, vdc. The reasons for the less obvious words are in docs/explanation/qemu.md.
"""

from __future__ import annotations

import ipaddress
import os
import uuid
from dataclasses import dataclass
from pathlib import Path

from banger.model.ids import is_id
from banger.model.machine import LaunchRequest, VmPaths

NAMESPACE_MTU = 65520  # what the uplinks of the namespace network carry; fewer, larger packets
BULK_PORTS = 2
_SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
_FAST_BOOT = "quiet loglevel=1 panic=-1 net.ifnames=0 cryptomgr.notests random.trust_cpu=on"
_VM_NAMESPACE = uuid.UUID("6f4b7f0e-2f0c-5d0e-9d57-6b616e676572")


@dataclass(frozen=True, slots=True)
class Descriptors:
    """Numbers of the listening sockets that QEMU inherits, and of the TAP."""

    qmp: int
    agent: int
    bulk: tuple[int, ...]
    tap: int | None

    @property
    def all(self) -> tuple[int, ...]:
        """What the process must inherit."""
        return (self.qmp, self.agent, *self.bulk, *(() if self.tap is None else (self.tap,)))


def cmdline(image_part: str, accel: str, khz: int) -> str:
    """The kernel command line; under TCG the TSC's frequency in kHz is given (0: unknown): calibrating it hangs some boots.

    And it is to be trusted, else the kernel counts ticks for its time, and so never lets them rest. Warnings are printed there, since one
    of them says that this boot hangs (`banger.engine.boot`); those of a machine without PCI are saved.
    """
    early = " loglevel=5 pci=off" if accel == "tcg" else ""
    if accel == "tcg" and khz:
        early += f" tsc_early_khz={khz} tsc=reliable"
    return f"console=ttyS0 {_FAST_BOOT}{early} {image_part}".strip()


def console(paths: VmPaths) -> str:
    """The option of the serial console's file; no other process has it, so it also finds the VM's QEMU."""
    return f"file,id=console,path={_escape(str(paths.console_log))},append=on"


def whose(vms_dir: Path, line: bytes) -> str | None:
    """The id of the VM below ``vms_dir`` whose QEMU has this command line; None if it is none."""
    before, _, after = console(VmPaths(vms_dir / "*", vms_dir)).rpartition("*")
    begin, end = os.fsencode(before), os.fsencode(after)
    for word in line.split(b"\0"):
        name = word.removeprefix(begin).removesuffix(end)
        if word.startswith(begin) and word.endswith(end) and is_id(os.fsdecode(name)):
            return os.fsdecode(name)
    return None


def build(
    program: str, request: LaunchRequest, fds: Descriptors, *, accel: str, khz: int
) -> list[str]:
    """The whole argv. ``accel`` is kvm or tcg, ``khz`` the frequency of the host's TSC (0: unknown)."""
    spec, paths, boot = request.spec, request.paths, request.boot
    return [
        program,
        "-name", f"banger-{request.vm_id}",
        "-uuid", str(uuid.uuid5(_VM_NAMESPACE, request.vm_id)),
        "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-S",
        "-sandbox", _SANDBOX,
        "-machine", "microvm,pit=on,pic=on,rtc=on,acpi=on",
        *_accel(accel),
        "-smp", str(spec.vcpus), "-m", str(spec.memory_mib),
        "-kernel", str(boot.pvh_kernel), "-initrd", str(boot.initramfs),
        "-append", cmdline(boot.cmdline, accel, khz),
        "-chardev", f"socket,id=qmp,fd={fds.qmp},server=on,wait=off", "-mon", "chardev=qmp,mode=control",
        "-chardev", console(paths), "-serial", "chardev:console",
        *_ports(fds),
        "-object", "rng-random,id=rng,filename=/dev/urandom", "-device", "virtio-rng-device,rng=rng",
        *_drive("vda", f"format={request.root.format},discard=unmap,file={_escape(str(request.root.path))}"),
        *_drive("vdb", f"format=raw,discard=unmap,file={_escape(str(paths.work))}"),
        *_drive("vdc", f"format=raw,read-only=on,file={_escape(str(paths.identity))}"),
        *_nic(request, fds),
    ]  # fmt: skip


def _escape(value: str) -> str:
    """A comma inside an option's value is written twice."""
    return value.replace(",", ",,")


def _accel(accel: str) -> list[str]:
    if accel == "kvm":
        return ["-accel", "kvm", "-cpu", "host"]
    return ["-accel", "tcg,thread=multi", "-cpu", "max"]


def _ports(fds: Descriptors) -> list[str]:
    words = ["-device", "virtio-serial-device"]
    names = [("agent", "banger.agent", fds.agent)]
    names += [(f"bulk{n}", f"banger.bulk.{n}", fd) for n, fd in enumerate(fds.bulk)]
    for chardev, name, fd in names:
        words += ["-chardev", f"socket,id={chardev},fd={fd},server=on,wait=off"]
        words += ["-device", f"virtserialport,chardev={chardev},name={name}"]
    return words


def _drive(name: str, options: str) -> list[str]:
    backend = f"id={name},if=none,cache=writeback,aio=threads,{options}"
    return ["-drive", backend, "-device", f"virtio-blk-device,drive={name}"]


def _nic(request: LaunchRequest, fds: Descriptors) -> list[str]:
    network = request.network
    if network.mode == "none" or network.lease is None:
        return []
    device = f"virtio-net-device,netdev=n0,mac={network.lease.mac}"
    if fds.tap is not None:
        backend = f"tap,id=n0,fd={fds.tap},vhost=off"
        return ["-netdev", backend, "-device", f"{device},host_mtu={network.mtu}"]
    lease = network.lease
    net = ipaddress.ip_network(f"{lease.ip}/{lease.prefix_length}", strict=False)
    inward = "" if request.spec.nat else ",restrict=on"
    backend = f"user,id=n0,ipv6=off,net={net},host={lease.gateway},dns={lease.dns}{inward}"
    return ["-netdev", backend, "-device", device]
