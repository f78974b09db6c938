"""What the configuration's keys are for: the words that the reference, the manual page and nobody else have them from.

Kind and default are read off the code that converts a key (`banger.host.config`); only what no code can say is written here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from types import MappingProxyType
from typing import Final

from banger.host.config import KEYS, PREFIX, Config, OneOf

MEANINGS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "state_dir": "images, VMs, database, keys",
        "runtime_dir": "sockets; a short path (108 bytes is the kernel's limit for a socket)",
        "log_level": "the daemon's log",
        "default_image": "the image of `banger run` and `banger vm create`",
        "vcpus": "virtual CPUs of a new VM",
        "memory": "memory of a new VM",
        "disk_size": "root disk of a new VM",
        "work_size": "work disk of a new VM; it takes space only as it fills",
        "vmm": "what runs a new VM; `auto` is Firecracker where KVM and its program can be used, else QEMU",
        "network": "of a new VM: `auto` (`bridge` where banger-helper answers you, else `user`, or QEMU's own network with a warning), `user`, `bridge`, `none`; see [the network](../explanation/network.md)",
        "uplink": "what carries the VMs' network to the outside: `slirp4netns`, `pasta`",
        "dns_port": "port of 127.0.0.1 where the daemon answers DNS for `NAME.banger`, 0 is off; see [names](../how-to/forwards.md#names)",
        "tap_pool_size": "TAPs that are made ahead; see [the network](../explanation/network.md#taps-that-are-made-ahead)",
        "qemu_path": "the QEMU to use",
        "firecracker_path": "the Firecracker to use",
        "jailer_path": "its jailer, of the same release",
        "bundle_dir": "where the [runtime bundle](runtime-bundle.md) is",
        "bundle_manifest": "the manifest that `banger runtime fetch` follows",
        "accel": "`auto` is KVM where it really works, else TCG, which is emulation",
        "confine": "`auto` confines VMMs as well as this host can, `off` lets them run unconfined, with a warning; see [confinement](../explanation/confinement.md)",
        "storage": "how new VMs' root disks share the image's data: `qcow2` is QEMU's only, `dm-snapshot` needs root or banger-helper; see [storage](../explanation/storage.md)",
        "ready_timeout_s": "until a started guest must be ready; where it is emulated, opencode alone takes a minute or two",
        "reconcile_s": "every so many seconds the daemon compares record and host, as `banger audit` does; 0 is never",
        "drain_s": "so many seconds an operation has to come to its end when the daemon is told to end; 0 cancels at once",
        "max_parallel_boots": "guests that boot at the same time, more wait; 0 is one a CPU",
        "mirror": "where image builds take packages from; a recipe's own counts before it",
        "void_mirror": "where Void images take packages from: the address below which `current` and `static` are; see [Void images](../how-to/void.md)",
        "console_log_max_bytes": "size at which a console's or VMM's log loses its older half",
        "agent_path": "directory of another `banger_agent` package for image builds; was `ping_helper_path`",
        "helper_socket": "where banger-helper listens",
        "helper_state_dir": "ledger and audit log of banger-helper (or of root's daemon where no helper runs)",
        "bridge_prefix": "the private network that guests' addresses in bridge mode are of, /8 to /20; read by banger-helper",
        "forward_env": 'names of variables that `run`, `ssh` and `exec` pass into the guest where you, or [`banger secret`](../how-to/opencode.md#credentials), have them: `["ANTHROPIC_API_KEY"]`',
        "ssh_reminder": "after a session in a VM, say that it still runs and how to stop it",
    }
)
"""A key's meaning, in Markdown; links are relative to docs/reference."""

FOUND: Final[Mapping[str, str]] = MappingProxyType(
    {
        "state_dir": "`$XDG_STATE_HOME/banger`, for root `/var/lib/banger`",
        "runtime_dir": "`$XDG_RUNTIME_DIR/banger`, for root `/run/banger`",
        "disk_size": "the image's",
        "qemu_path": "found on PATH",
        "firecracker_path": "the runtime bundle's, else found on PATH",
        "jailer_path": "beside that Firecracker, else found on PATH",
        "bundle_dir": "`build/runtime` of a checkout, else `<prefix>/lib/banger`",
        "bundle_manifest": "the one that comes with banger",
        "mirror": "mmdebstrap's",
        "void_mirror": "none",
        "agent_path": "the installed one",
        "forward_env": "none",
    }
)
"""What holds where a key is not set and its default is found out, not written down."""


@dataclass(frozen=True, slots=True)
class KeyHelp:
    """A key as documents show it: Markdown, all of it."""

    key: str
    kind: str
    default: str
    variable: str
    meaning: str


def explain() -> list[KeyHelp]:
    """Every key, in the order of `KEYS`."""
    defaults = {field.name: field.default for field in fields(Config)}
    return [
        KeyHelp(key, _kind(key), _default(key, defaults[key]), PREFIX + key.upper(), MEANINGS[key])
        for key in KEYS
    ]


def _kind(key: str) -> str:
    convert = KEYS[key]
    if isinstance(convert, OneOf):
        return ", ".join(f"`{word}`" for word in convert.allowed)
    said = (convert.__doc__ or "").rstrip(".")
    return said[:1].lower() + said[1:]


def _default(key: str, value: object) -> str:
    if key in FOUND:
        return FOUND[key]
    assert value is not MISSING, key  # noqa: S101  a key without any default needs an entry in FOUND
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"
