"""What can be changed in, and asked of, the devices of a guest that runs."""

from __future__ import annotations

from tests.framework.firecracker import engine, host
from tests.framework.firecracker.machine import Machine
from tests.framework.firecracker.resources import Resources, Values, backing_file, limiter
from tests.framework.firecracker.routes import NOT_HERE, FaultError

MISSING = "Failed perform action on device: Device not found"
PAGES_PER_MIB = 256
_STATS = {
    "swap_in": "stat-swap-in", "swap_out": "stat-swap-out", "major_faults": "stat-major-faults",
    "minor_faults": "stat-minor-faults", "free_memory": "stat-free-memory", "total_memory": "stat-total-memory",
    "available_memory": "stat-available-memory", "disk_caches": "stat-disk-caches",
    "hugetlb_allocations": "stat-htlb-pgalloc", "hugetlb_failures": "stat-htlb-pgfail",
}  # fmt: skip


class Devices:
    """The devices of ``machine``; every method takes a request's values."""

    def __init__(self, resources: Resources, machine: Machine) -> None:
        self._resources = resources
        self._machine = machine

    async def patch_drive(self, values: Values) -> None:
        """Look again how large the file is; change the rate limiter's buckets that are given."""
        what = "Drive config error: Unable to patch the block device:"
        hint = "Please verify the request arguments."
        name, path = values["drive_id"], values["path_on_host"]
        drive = next((d for d in self._resources.drives if d["drive_id"] == name), None)
        if drive is None:
            raise FaultError(f"{what} {MISSING} {hint}")
        if path is None and values["rate_limiter"] is None:
            raise FaultError(f"{what} Block: Running method expected different backend. {hint}")
        if path is not None:
            try:
                backing_file(path, f"{what} Block:", writable=not drive["is_read_only"])
            except FaultError as fault:
                raise FaultError(f"{fault.message} {hint}") from fault
            if path != drive["path_on_host"]:
                raise FaultError(f"{NOT_HERE} way to give a running guest another file; the same file with another size works")  # fmt: skip
            await self._machine.ask("block_resize", device=name, size=host.size_bytes(path))
        if values["rate_limiter"] is not None:
            drive["rate_limiter"] = _changed(drive["rate_limiter"], values["rate_limiter"])
            await self._machine.ask("block_set_io_throttle", **_throttle(name, drive))

    def patch_network(self, values: Values) -> None:
        """Note the rate limiters; they have no effect."""
        name = values["iface_id"]
        network = next((n for n in self._resources.networks if n["iface_id"] == name), None)
        if network is None:
            raise FaultError(f"Network config error: Unable to update the net device: {MISSING}")
        for key in ("rx_rate_limiter", "tx_rate_limiter"):
            if values[key] is not None:
                network[key] = _changed(network[key], values[key])

    def patch_pmem(self, values: Values) -> None:
        """There is no such device; without a limiter there is nothing to do."""
        if values["rate_limiter"] is not None:
            what = "Pmem config error: Unable to patch the pmem device:"
            raise FaultError(f"{what} {MISSING} Please verify the request arguments.")

    def _balloon(self, what: str) -> Values:
        """The balloon; FaultError, that begins with ``what``, if there is none."""
        if self._resources.balloon is None:
            raise FaultError(f"{what}: {MISSING}")
        return self._resources.balloon

    async def patch_balloon(self, values: Values) -> None:
        """Another size, for a guest whose driver is up."""
        what = "Balloon update error"
        balloon, amount = self._balloon(what), values["amount_mib"]
        memory = self._resources.machine["mem_size_mib"]
        if not await self._machine.driver_is_up(engine.BALLOON_ID):
            raise FaultError(f"{what}: Balloon: Device not activated yet.")
        if amount > memory:
            raise FaultError(f"{what}: Balloon: Requested memory should be less than {amount}MiB")
        await self._machine.ask("balloon", value=max(1, memory - amount) << 20)
        balloon["amount_mib"] = amount

    async def balloon_stats(self, _: Values) -> Values:
        """What the guest says of its memory, as far as it has said it."""
        what = "Internal VMM error"
        balloon = self._balloon(what)
        if not balloon["stats_polling_interval_s"]:
            raise FaultError(f"{what}: Balloon: Received stats query when stats are disabled.")
        memory = self._resources.machine["mem_size_mib"]
        actual = memory - ((await self._machine.ask("query-balloon"))["actual"] >> 20)
        target = balloon["amount_mib"]
        path = f"/machine/peripheral/{engine.BALLOON_ID}"
        interval_s = balloon["stats_polling_interval_s"]
        await self._machine.ask("qom-set", path=path, property="guest-stats-polling-interval", value=interval_s)  # fmt: skip
        stats = (await self._machine.ask("qom-get", path=path, property="guest-stats"))["stats"]
        known = {ours: stats[theirs] for ours, theirs in _STATS.items() if 0 <= stats.get(theirs, -1) < 1 << 63}  # fmt: skip
        pages = {"target_pages": target * PAGES_PER_MIB, "actual_pages": actual * PAGES_PER_MIB}
        return {**pages, "target_mib": target, "actual_mib": actual, **known}

    def patch_balloon_stats(self, values: Values) -> None:
        """Another interval; statistics cannot be switched on or off."""
        what = "Balloon update error"
        balloon = self._balloon(what)
        old, new = balloon["stats_polling_interval_s"], values["stats_polling_interval_s"]
        if old != new and 0 in (old, new):
            raise FaultError(f"{what}: Balloon: Statistics cannot be enabled/disabled after activation.")  # fmt: skip
        balloon["stats_polling_interval_s"] = new

    def no_hinting(self, _: Values) -> None:
        """Every balloon here is without free page hinting."""
        self._balloon("Balloon update error")
        raise FaultError("Balloon update error: Balloon: Attempting to use hinting when not enabled")  # fmt: skip


def _changed(old: Values | None, new: Values) -> Values | None:
    """A rate limiter with the buckets that an update names; the others stay."""
    given = {key: bucket for key, bucket in new.items() if bucket is not None}
    return limiter({"bandwidth": None, "ops": None, **(old or {}), **given})


def _throttle(name: str, drive: Values) -> Values:
    """QMP's arguments for a drive's limits; what is not limited is 0."""
    limits = {word.replace("-total", "").replace("-", "_"): v for word, v in engine.throttle(drive["rate_limiter"]).items()}  # fmt: skip
    zero = dict.fromkeys(("bps", "bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr"), 0)
    return {"id": f"/machine/peripheral/disk-{name}", **zero, **limits}
