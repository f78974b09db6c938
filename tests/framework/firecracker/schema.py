"""The bodies of Firecracker's API: their fields in its order, since which release each is known, and what stands for a missing one.

Taken from the API descriptions of the releases v1.7 to 1.17-dev. Where Firecracker ignores unknown fields (token buckets, metrics,
overrides, the configuration file), the stand-in refuses them: they can only be a mistake.
"""

from __future__ import annotations

from tests.framework.firecracker.shapes import (
    IPV4,
    LEVEL,
    MAC,
    REGISTER,
    Flag,
    ListOf,
    OneOf,
    Struct,
    Text,
    TextMap,
    Whole,
    default,
    need,
    option,
)

V1_12, V1_13, V1_14, V1_16, V1_17 = (1, 12), (1, 13), (1, 14), (1, 16), (1, 17)
TEXT, FLAG = Text(), Flag()
U8, U16, U32, U64, SIZE = (Whole(name) for name in ("u8", "u16", "u32", "u64", "usize"))

BUCKET = Struct(
    "TokenBucketConfig",
    (need("size", U64), option("one_time_burst", U64), need("refill_time", U64)),
    "TokenBucket",
)
LIMITER = Struct(
    "RateLimiterConfig", (option("bandwidth", BUCKET), option("ops", BUCKET)), "RateLimiter"
)
ACTION = Struct(
    "ActionBody",
    (need("action_type", OneOf(("FlushMetrics", "InstanceStart", "SendCtrlAltDel"))),),
    "InstanceActionInfo",
)
BALLOON = Struct(
    "BalloonDeviceConfig",
    (
        need("amount_mib", U32),
        need("deflate_on_oom", FLAG),
        default("stats_polling_interval_s", U16, 0),
        default("free_page_hinting", FLAG, value=False, since=V1_14),
        default("free_page_reporting", FLAG, value=False, since=V1_14),
    ),
    "Balloon",
)
BALLOON_UPDATE = Struct("BalloonUpdateConfig", (need("amount_mib", U32),), "BalloonUpdate")
BALLOON_STATS = Struct(
    "BalloonUpdateStatsConfig", (need("stats_polling_interval_s", U16),), "BalloonStatsUpdate"
)
HINTING_START = Struct(
    "StartHintingCmd", (default("acknowledge_on_stop", FLAG, value=True),), "BalloonStartCmd"
)
BOOT_SOURCE = Struct(
    "BootSourceConfig",
    (need("kernel_image_path", TEXT), option("initrd_path", TEXT), option("boot_args", TEXT)),
    "BootSource",
)
_BITMAP = need("bitmap", TEXT)
_REGISTER = Struct(
    "CpuidRegisterModifier",
    (need("register", REGISTER), _BITMAP),
    "CpuidRegisterModifier",
)
_LEAF = Struct(
    "CpuidLeafModifier",
    (need("leaf", TEXT), need("subleaf", TEXT), need("flags", U32), need("modifiers", ListOf(_REGISTER))),
    "CpuidLeafModifier",
)  # fmt: skip
_MSR = Struct("RegisterModifier", (need("addr", TEXT), _BITMAP), "MsrModifier")
CPU_CONFIG = Struct(
    "CustomCpuTemplate",
    (
        default("kvm_capabilities", ListOf(TEXT), []),
        default("cpuid_modifiers", ListOf(_LEAF), []),
        default("msr_modifiers", ListOf(_MSR), []),
    ),
    "CpuConfig",
)
DRIVE = Struct(
    "BlockDeviceConfig",
    (
        need("drive_id", TEXT),
        option("partuuid", TEXT),
        need("is_root_device", FLAG),
        default("cache_type", OneOf(("Unsafe", "Writeback")), "Unsafe"),
        option("is_read_only", FLAG),
        option("path_on_host", TEXT),
        option("rate_limiter", LIMITER),
        option("io_engine", OneOf(("Async", "Sync"))),
        option("socket", TEXT),
    ),
    "Drive",
)
DRIVE_UPDATE = Struct(
    "BlockDeviceUpdateConfig",
    (need("drive_id", TEXT), option("path_on_host", TEXT), option("rate_limiter", LIMITER)),
    "PartialDrive",
)
ENTROPY = Struct("EntropyDeviceConfig", (option("rate_limiter", LIMITER),), "EntropyDevice")
LOGGER = Struct(
    "LoggerConfig",
    (
        option("log_path", TEXT),
        option("level", LEVEL),
        option("show_level", FLAG),
        option("show_log_origin", FLAG),
        option("module", TEXT),
    ),
    "Logger",
)
_TEMPLATES = OneOf(("C3", "T2", "T2S", "None", "T2CL", "T2A"))
_PAGES = OneOf(("None", ("Transparent", V1_17), "2M"))
MACHINE = Struct(
    "MachineConfig",
    (
        need("vcpu_count", U8),
        need("mem_size_mib", SIZE),
        default("smt", FLAG, value=False),
        option("cpu_template", _TEMPLATES),
        default("track_dirty_pages", FLAG, value=False),
        default("huge_pages", _PAGES, "None"),
    ),
    "MachineConfiguration",
)
MACHINE_UPDATE = Struct(
    "MachineConfigUpdate",
    tuple(option(field.name, field.kind) for field in MACHINE.fields),
    "MachineConfiguration",
)
METRICS = Struct(
    "MetricsConfig",
    (
        need("metrics_path", TEXT),
        default("emit_id", FLAG, value=False, since=V1_17),
        option("properties", TextMap(), since=V1_17),
    ),
    "Metrics",
)
MMDS_CONFIG = Struct(
    "MmdsConfig",
    (
        default("version", OneOf(("V1", "V2")), "V1"),
        need("network_interfaces", ListOf(TEXT)),
        option("ipv4_address", IPV4),
        default("imds_compat", FLAG, value=False, since=V1_13),
    ),
    "MmdsConfig",
)
NETWORK = Struct(
    "NetworkInterfaceConfig",
    (
        need("iface_id", TEXT),
        need("host_dev_name", TEXT),
        option("guest_mac", MAC),
        option("mtu", U16, since=V1_16),
        option("rx_rate_limiter", LIMITER),
        option("tx_rate_limiter", LIMITER),
    ),
    "NetworkInterface",
)
NETWORK_UPDATE = Struct(
    "NetworkInterfaceUpdateConfig",
    (need("iface_id", TEXT), option("rx_rate_limiter", LIMITER), option("tx_rate_limiter", LIMITER)),
    "PartialNetworkInterface",
)  # fmt: skip
PMEM = Struct(
    "PmemConfig",
    (
        need("id", TEXT),
        need("path_on_host", TEXT),
        default("root_device", FLAG, value=False),
        default("read_only", FLAG, value=False),
        option("rate_limiter", LIMITER, since=V1_16),
    ),
    "Pmem",
)
PMEM_UPDATE = Struct(
    "PmemDeviceUpdateConfig", (need("id", TEXT), option("rate_limiter", LIMITER)), "PartialPmem"
)
HOTPLUG = Struct(
    "MemoryHotplugConfig",
    (
        need("total_size_mib", U32),
        default("block_size_mib", U32, 2),
        default("slot_size_mib", U32, 128),
    ),
    "MemoryHotplugConfig",
)
HOTPLUG_SIZE = Struct(
    "MemoryHotplugSizeUpdate", (need("requested_size_mib", U32),), "MemoryHotplugSizeUpdate"
)
SERIAL = Struct(
    "SerialConfig",
    (option("serial_out_path", TEXT), option("rate_limiter", BUCKET, since=V1_16)),
    "SerialDevice",
)
SNAPSHOT_CREATE = Struct(
    "CreateSnapshotParams",
    (
        default("snapshot_type", OneOf(("Diff", "Full")), "Full"),
        need("snapshot_path", TEXT),
        need("mem_file_path", TEXT),
    ),
    "SnapshotCreateParams",
)
_BACKEND = Struct(
    "MemBackendConfig",
    (need("backend_path", TEXT), need("backend_type", OneOf(("File", "Uffd")))),
    "MemoryBackend",
)
_NETWORK_OVERRIDE = Struct(
    "NetworkOverride", (need("iface_id", TEXT), need("host_dev_name", TEXT)), "NetworkOverride"
)
_VSOCK_OVERRIDE = Struct("VsockOverride", (need("uds_path", TEXT),), "VsockOverride")
SNAPSHOT_LOAD = Struct(
    "LoadSnapshotConfig",
    (
        need("snapshot_path", TEXT),
        option("mem_file_path", TEXT),
        option("mem_backend", _BACKEND),
        default("enable_diff_snapshots", FLAG, value=False),
        default("track_dirty_pages", FLAG, value=False, since=V1_13),
        default("resume_vm", FLAG, value=False),
        default("network_overrides", ListOf(_NETWORK_OVERRIDE), [], since=V1_12),
        option("vsock_override", _VSOCK_OVERRIDE, since=V1_16),
        default("clock_realtime", FLAG, value=False, since=(1, 15, 1)),
        default(
            "huge_pages", OneOf(("Snapshot", "None", "Transparent", "2M")), "Snapshot", since=V1_17
        ),
    ),
    "SnapshotLoadParams",
)
VM_STATE = Struct("Vm", (need("state", OneOf(("Paused", "Resumed"))),), "Vm")
VSOCK = Struct(
    "VsockDeviceConfig",
    (option("vsock_id", TEXT), need("guest_cid", U32), need("uds_path", TEXT)),
    "Vsock",
)
CONFIG_FILE = Struct(
    "VmmConfig",
    (
        option("balloon", BALLOON),
        need("drives", ListOf(DRIVE)),
        need("boot-source", BOOT_SOURCE),
        option("cpu-config", CPU_CONFIG),
        option("logger", LOGGER),
        option("machine-config", MACHINE),
        option("metrics", METRICS),
        option("mmds-config", MMDS_CONFIG),
        default("network-interfaces", ListOf(NETWORK), []),
        option("vsock", VSOCK),
        option("entropy", ENTROPY),
        default("pmem", ListOf(PMEM), [], since=V1_14),
        option("memory-hotplug", HOTPLUG, since=V1_14),
    ),
    "FullVmConfiguration",
)
