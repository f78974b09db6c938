"""What a VM is to be: the configuration before it boots, checked as Firecracker checks it, step by step as it comes."""

from __future__ import annotations

import ipaddress
import json
import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.framework.firecracker import host
from tests.framework.firecracker.routes import NOT_HERE, FaultError

CMDLINE_BYTES = 2048
DEFAULT_CMDLINE = "reboot=k panic=1 nomodule 8250.nr_uarts=0 i8042.noaux i8042.nomux i8042.dumbkbd swiotlb=noforce"
MAX_VCPUS = 32
Values = dict[str, Any]


class Resources:
    """The configuration; ``begun`` once anything of it was set, after which no snapshot can be loaded."""

    def __init__(self, mmds_limit_bytes: int) -> None:
        self.begun = False
        self.machine: Values = {
            "vcpu_count": 1, "mem_size_mib": 128, "smt": False, "cpu_template": None,
            "track_dirty_pages": False, "huge_pages": "None",
        }  # fmt: skip
        self.boot: Values | None = None
        self.drives: list[Values] = []
        self.networks: list[Values] = []
        self.taps: dict[str, int] = {}
        self.vsock: Values | None = None
        self.vsock_listener: socket.socket | None = None
        self.balloon: Values | None = None
        self.entropy: Values | None = None
        self.serial_out_path: str | None = None
        self.mmds_config: Values | None = None
        self.mmds: Any = None
        self._mmds_limit_bytes = mmds_limit_bytes

    def put_machine(self, values: Values) -> None:
        """PUT and PATCH /machine-config: what is not None changes."""
        new = {**self.machine, **{key: v for key, v in values.items() if v is not None}}
        if new["cpu_template"] == "None":
            new["cpu_template"] = None
        count, odd = new["vcpu_count"], new["vcpu_count"] > 1 and new["vcpu_count"] % 2 == 1
        if not 0 < count <= MAX_VCPUS or (new["smt"] and odd):
            raise FaultError(
                f"Machine config error: The number of vCPUs must be greater than 0, less than {MAX_VCPUS} "
                "and must be 1 or an even number if SMT is enabled."
            )
        unit = 1 if new["huge_pages"] == "None" else 2
        if new["mem_size_mib"] == 0 or new["mem_size_mib"] % unit:
            raise FaultError(
                "Machine config error: The memory size (MiB) is either 0, or not a multiple of the configured page size."
            )
        if self.balloon and self.balloon["amount_mib"] > new["mem_size_mib"]:
            raise FaultError(
                "Machine config error: The memory size (MiB) is smaller than the previously set balloon device target size."
            )
        self.machine = new

    def put_boot(self, values: Values) -> None:
        """PUT /boot-source."""
        for key, what in (
            ("kernel_image_path", "The kernel file cannot be opened:"),
            ("initrd_path", "The initrd file cannot be opened due to invalid path or invalid permissions."),
        ):  # fmt: skip
            if values[key] is not None:
                try:
                    host.can_open(values[key])
                except OSError as error:
                    raise FaultError(f"Boot source error: {what} {host.said(error)}") from error
        if len((values["boot_args"] or "").encode()) >= CMDLINE_BYTES:
            raise FaultError("Boot source error: The kernel command line is invalid: Invalid cmdline capacity provided.")  # fmt: skip
        self.boot = values

    def put_drive(self, values: Values) -> None:
        """PUT /drives/{id}: the root drive comes first, the others in the order of their first mention."""
        ids = [drive["drive_id"] for drive in self.drives]
        at = ids.index(values["drive_id"]) if values["drive_id"] in ids else None
        has_root = bool(self.drives and self.drives[0]["is_root_device"])
        if values["is_root_device"] and has_root and at != 0:
            raise FaultError("Drive config error: A root block device already exists!")
        drive = checked_drive(values)
        if at is None:
            self.drives.insert(0 if values["is_root_device"] else len(ids), drive)
            return
        self.drives[at] = drive
        if values["is_root_device"]:
            self.drives[0], self.drives[at] = self.drives[at], self.drives[0]

    def put_network(self, values: Values) -> None:
        """PUT /network-interfaces/{id}: the TAP is opened now; an interface of the same id is given up first."""
        name, mac = values["iface_id"], values["guest_mac"]
        if mac and any(n["guest_mac"] == mac and n["iface_id"] != name for n in self.networks):
            raise FaultError(f"Network config error: The MAC address is already in use: {mac}")
        if name in self.taps:
            os.close(self.taps.pop(name))
            at = [network["iface_id"] for network in self.networks].index(name)
            last = self.networks.pop()
            if at < len(self.networks):
                self.networks[at] = last
        what = "Network config error: Could not create the network device:"
        try:
            self.taps[name] = host.tap(values["host_dev_name"])
        except ValueError as error:
            raise FaultError(f"{what} Open tap device failed: {error}") from error
        mtu = values.get("mtu")
        if mtu is not None and mtu < 68:
            os.close(self.taps.pop(name))
            raise FaultError(f"{what} MTU {mtu} is out of range [68, 65535]")
        limited = {key: limiter(values[key]) for key in ("rx_rate_limiter", "tx_rate_limiter")}
        self.networks.append({**values, **limited})

    def put_vsock(self, values: Values) -> None:
        """PUT /vsock: the socket listens from now on; an earlier one is removed."""
        what = "Vsock config error: Cannot create backend for vsock device: Error binding to the host-side Unix socket:"
        if self.vsock is not None and self.vsock_listener is not None:
            self.vsock_listener.close()
            old, self.vsock = self.vsock["uds_path"], None
            try:
                Path(old).unlink()
            except OSError as error:
                raise FaultError(f"{what} {host.said(error)}") from error
        try:
            self.vsock_listener = host.listen(values["uds_path"])
        except ValueError as error:
            raise FaultError(f"{what} {error}") from error
        self.vsock = {key: values[key] for key in ("guest_cid", "uds_path")}

    def put_entropy(self, values: Values) -> None:
        """PUT /entropy."""
        self.entropy = {"rate_limiter": limiter(values["rate_limiter"])}

    def put_balloon(self, values: Values) -> None:
        """PUT /balloon."""
        if values["amount_mib"] > self.machine["mem_size_mib"]:
            raise FaultError("Balloon config error: Amount of pages requested is too large.")
        if values.get("free_page_hinting"):
            raise FaultError(f"{NOT_HERE} free page hinting")
        self.balloon = values

    def put_mmds_config(self, values: Values) -> None:
        """PUT /mmds/config. Firecracker does write three Ms."""
        address = values["ipv4_address"]
        if address is not None and not _link_local(address):
            raise FaultError("MMMDS config error: The MMDS IPv4 address is not link local.")
        wanted, known = values["network_interfaces"], [n["iface_id"] for n in self.networks]
        if not wanted:
            raise FaultError(
                "MMMDS config error: The list of network interface IDs that allow forwarding MMDS requests is empty."
            )
        if not set(wanted) <= set(known):
            raise FaultError(
                "MMMDS config error: The list of network interface IDs provided contains at least one ID that does not "
                "correspond to any existing network interface."
            )
        chosen = [name for name in known if name in wanted]
        self.mmds_config = {**values, "network_interfaces": chosen, "ipv4_address": address or "169.254.169.254"}  # fmt: skip

    def put_mmds(self, value: Any) -> None:
        """PUT /mmds."""
        self._limit(value)
        self.mmds = value

    def patch_mmds(self, value: Any) -> None:
        """PATCH /mmds: a JSON merge patch (RFC 7396)."""
        if self.mmds is None:
            raise FaultError("MMDS error: The MMDS data store is not initialized.")
        patched = _merged(self.mmds, value)
        self._limit(patched)
        self.mmds = patched

    def _limit(self, value: Any) -> None:
        if len(json.dumps(value, separators=(",", ":")).encode()) > self._mmds_limit_bytes:
            raise FaultError(
                "MMDS limit exceeded error: The MMDS patch request doesn't fit.", status=413
            )

    def full(self) -> Values:
        """GET /vm/config, as Firecracker writes it."""
        boot = self.boot or {"kernel_image_path": "", "initrd_path": None, "boot_args": None}
        return {
            "balloon": self.balloon, "drives": self.drives, "boot-source": boot, "cpu-config": None, "logger": None,
            "machine-config": self.machine_shown(), "metrics": None, "mmds-config": self.mmds_config,
            "network-interfaces": self.networks, "vsock": self.vsock, "entropy": self.entropy,
        }  # fmt: skip

    def machine_shown(self) -> Values:
        """GET /machine-config; a template that is not set is not shown."""
        return {k: v for k, v in self.machine.items() if k != "cpu_template" or v is not None}

    def close(self) -> None:
        """Let go of the host's objects; the vsock socket's file stays, as Firecracker leaves it."""
        for descriptor in self.taps.values():
            os.close(descriptor)
        self.taps.clear()
        if self.vsock_listener is not None:
            with suppress(OSError):
                self.vsock_listener.close()


def checked_drive(values: Values) -> Values:
    """A drive with its defaults, its file opened once; FaultError."""
    what = "Drive config error: Unable to create the virtio block device:"
    if values["path_on_host"] is None and values["socket"] is not None:
        raise FaultError(f"{NOT_HERE} vhost-user drives")
    if values["path_on_host"] is None or values["socket"] is not None:
        raise FaultError(f"{what} Invalid block config.")
    read_only = bool(values["is_read_only"])
    backing_file(values["path_on_host"], what, writable=not read_only)
    limits = limiter(values["rate_limiter"])
    return {**values, "is_read_only": read_only, "io_engine": values["io_engine"] or "Sync", "rate_limiter": limits}  # fmt: skip


def limiter(values: Values | None) -> Values | None:
    """A rate limiter as Firecracker keeps it: a bucket of no size or without a refill time limits nothing and is forgotten."""
    made = {
        key: {**bucket, "one_time_burst": bucket["one_time_burst"] or None}
        if bucket and bucket["size"] and bucket["refill_time"] else None
        for key, bucket in (values or {}).items()
    }  # fmt: skip
    return made if any(made.values()) else None


def backing_file(path: str, what: str, *, writable: bool) -> None:
    """Open a drive's file once; FaultError that begins with ``what``."""
    try:
        host.can_open(path, writable=writable)
    except OSError as error:
        raise FaultError(
            f"{what} Virtio backend error: Error manipulating the backing file: {host.said(error)} {path}"
        ) from error


def _link_local(address: str) -> bool:
    """169.254.1.0 to 169.254.254.255 (RFC 3927, section 2.1)."""
    number = int(ipaddress.IPv4Address(address))
    first, last = (int(ipaddress.IPv4Address(text)) for text in ("169.254.1.0", "169.254.254.255"))
    return first <= number <= last


def _merged(target: Any, patch: Any) -> Any:
    if not isinstance(patch, dict):
        return patch
    made = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            made.pop(key, None)
        else:
            made[key] = _merged(made.get(key), value)
    return made
