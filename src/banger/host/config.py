"""The configuration: defaults, then the TOML file, then ``BANGER_<KEY>`` in the environment; the last one wins.

Relative paths are refused, sizes are written as people write them (``2G``) and kept as text where they go into a request.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from banger.host import paths
from banger.model.errors import InvalidInputError
from banger.model.units import parse_size

PREFIX = "BANGER_"
MAX_TAP_POOL = 16
"""With the largest number of leases that is less than the ports of a bridge."""
RENAMED = {"ping_helper_path": "agent_path"}
"""Keys of older releases and what they are called now; still read, with one warning."""

NOT_KEYS = frozenset({"BANGER_CONFIG", "BANGER_NO_AUTOSTART", "BANGER_DEBUG"})
"""Variables that steer banger but are no configuration keys."""


@dataclass(frozen=True, slots=True)
class Config:
    """Everything that can be configured. ``path`` is the file that was looked for, ``sources`` says where each value is from."""

    state_dir: Path
    runtime_dir: Path
    log_level: str = "info"
    default_image: str = "debian"
    vcpus: int = 2
    memory: str = "2G"
    disk_size: str | None = None
    work_size: str = "16G"
    vmm: str = "auto"
    network: str = "auto"
    uplink: str = "slirp4netns"
    dns_port: int = 0
    tap_pool_size: int = 4
    qemu_path: str | None = None
    firecracker_path: Path | None = None
    jailer_path: Path | None = None
    bundle_dir: Path | None = None
    bundle_manifest: Path | None = None
    accel: str = "auto"
    confine: str = "auto"
    storage: str = "auto"
    ready_timeout_s: float = 300.0
    reconcile_s: float = 60.0
    drain_s: float = 10.0
    max_parallel_boots: int = 0
    mirror: str | None = None
    void_mirror: str | None = None
    console_log_max_bytes: int = 1 << 20
    agent_path: Path | None = None
    helper_socket: Path = Path("/run/banger-helper/helper.sock")
    helper_state_dir: Path = Path("/var/lib/banger-helper")
    bridge_prefix: str = "10.115.0.0/16"
    forward_env: tuple[str, ...] = ()
    ssh_reminder: bool = True

    path: Path = Path("/etc/banger/config.toml")
    sources: Mapping[str, str] = field(default_factory=dict)

    @property
    def socket_path(self) -> Path:
        """The daemon's socket; InvalidInputError where the kernel could not bind it."""
        return paths.check_socket_path(self.runtime_dir / "bangerd.sock")

    @property
    def images_dir(self) -> Path:
        """One directory an image, named by its id."""
        return self.state_dir / "images"

    @property
    def database_path(self) -> Path:
        """The daemon's SQLite file."""
        return self.state_dir / "banger.db"

    @property
    def daemon_log_path(self) -> Path:
        """Where a daemon that the CLI started writes its log."""
        return self.state_dir / "bangerd.log"

    @property
    def daemon_lock_path(self) -> Path:
        """The lock of the one daemon of this state directory; it holds its pid."""
        return self.state_dir / "bangerd.lock"

    @property
    def ssh_key_path(self) -> Path:
        """The managed client key."""
        return self.state_dir / "ssh" / "id_ed25519"

    @property
    def secrets_dir(self) -> Path:
        """One file a secret, named by it."""
        return self.state_dir / "secrets"

    @property
    def ssh_config_path(self) -> Path:
        """The file that ``banger setup ssh`` makes ssh include."""
        return self.state_dir / "ssh" / "config"

    @property
    def known_hosts_path(self) -> Path:
        """Host keys of the VMs."""
        return self.state_dir / "known_hosts"

    def values(self) -> dict[str, str | int | float | bool | None]:
        """Every key with its value, paths and lists as text."""
        return {key: _shown(getattr(self, key)) for key in KEYS}

    def environment(self) -> dict[str, str]:
        """The environment that gives a daemon this very configuration: every key that is set, and ``BANGER_CONFIG``."""
        found = {PREFIX + key.upper(): str(v) for key, v in self.values().items() if v is not None}
        return {**found, "BANGER_CONFIG": str(self.path)}


def _shown(value: Any) -> Any:  # noqa: ANN401  a field of Config
    if isinstance(value, tuple):
        return ",".join(value) or None
    return str(value) if isinstance(value, Path) else value


def _text(key: str, value: object) -> str:
    """A text."""
    if not isinstance(value, str) or not value or "\0" in value:
        raise _wrong(key, value, "a text that is not empty")
    return value


def _path(key: str, value: object) -> Path:
    """An absolute path."""
    return paths.absolute(_text(key, value), what=key)


def _path_text(key: str, value: object) -> str:
    """An absolute path."""
    return str(_path(key, value))


def _size(key: str, value: object) -> str:
    """A size, as 512M or 2G."""
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    parse_size(_text(key, text), what=key)
    return str(text)


def _bytes(key: str, value: object) -> int:
    """A size, as 512M or 2G."""
    return parse_size(_size(key, value), what=key)


def _count(key: str, value: object) -> int:
    """A whole number, 0 or more."""
    if isinstance(value, str) and value.isascii() and value.isdigit():
        value = int(value[:18])
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise _wrong(key, value, "a whole number, 0 or more")
    return value


def _port(key: str, value: object) -> int:
    """A port, or 0."""
    port = _count(key, value)
    if port > 65535:
        raise _wrong(key, value, "0 (none) to 65535")
    return port


def _pool(key: str, value: object) -> int:
    """0 to 16."""
    size = _count(key, value)
    if size > MAX_TAP_POOL:
        raise _wrong(key, value, f"0 (none) to {MAX_TAP_POOL}")
    return size


def _deadline(key: str, value: object) -> float:
    """Seconds, above 0 and at most 86400."""
    try:
        number = float(value) if isinstance(value, str | int | float) else -1.0
    except ValueError:
        number = -1.0
    if isinstance(value, bool) or not 0 < number <= 86400:
        raise _wrong(key, value, "above 0 and at most 86400 (a day)")
    return number


def _flag(key: str, value: object) -> bool:
    """True or false."""
    known = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}  # fmt: skip
    found = known.get(str(value).lower()) if isinstance(value, str | bool) else None
    if found is None:
        raise _wrong(key, value, "true or false")
    return found


def _period(key: str, value: object) -> float:
    """Seconds, above 0 and at most 86400, or 0."""
    never = value in {"0", "0.0"} or (value == 0 and not isinstance(value, bool))
    return 0.0 if never else _deadline(key, value)


def _names(key: str, value: object) -> tuple[str, ...]:
    """A list of names; in the environment with commas between them."""
    found = value.split(",") if isinstance(value, str) else value
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise _wrong(key, value, "a list of names of variables")
    return tuple(dict.fromkeys(name.strip() for name in found if name.strip()))


class OneOf:
    """One of the words in ``allowed``."""

    def __init__(self, *allowed: str) -> None:
        self.allowed = allowed

    def __call__(self, key: str, value: object) -> str:
        """The word; InvalidInputError."""
        if value not in self.allowed:
            raise _wrong(key, value, f"one of {', '.join(self.allowed)}")
        return str(value)


KEYS: dict[str, Callable[[str, object], Any]] = {
    "state_dir": _path,
    "runtime_dir": _path,
    "log_level": OneOf("debug", "info", "warning", "error"),
    "default_image": _text,
    "vcpus": _count,
    "memory": _size,
    "disk_size": _size,
    "work_size": _size,
    "vmm": OneOf("auto", "firecracker", "qemu"),
    "network": OneOf("auto", "bridge", "user", "none"),
    "uplink": _text,
    "dns_port": _port,
    "tap_pool_size": _pool,
    "qemu_path": _path_text,
    "firecracker_path": _path,
    "jailer_path": _path,
    "bundle_dir": _path,
    "bundle_manifest": _path,
    "accel": OneOf("auto", "kvm", "tcg"),
    "confine": OneOf("auto", "off"),
    "storage": OneOf("auto", "qcow2", "reflink", "dm-snapshot", "copy"),
    "ready_timeout_s": _deadline,
    "reconcile_s": _period,
    "drain_s": _period,
    "max_parallel_boots": _count,
    "mirror": _text,
    "void_mirror": _text,
    "console_log_max_bytes": _bytes,
    "agent_path": _path,
    "helper_socket": _path,
    "helper_state_dir": _path,
    "bridge_prefix": _text,
    "forward_env": _names,
    "ssh_reminder": _flag,
}
"""Every key and what checks and converts its value."""


def _wrong(key: str, value: object, wanted: str) -> InvalidInputError:
    shown = repr(value)
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    return InvalidInputError(
        f"{key} {shown} is not allowed",
        detail=f"it must be {wanted}",
        hint="banger config path names the file that has it",
    )


def _known(key: str, where: str, warnings: list[str], show: Callable[[str], str] = str) -> str:
    """The present name of ``key``; InvalidInputError names the nearest one if there is none."""
    if key in KEYS:
        return key
    if key in RENAMED:
        warnings.append(f"{where}: {show(key)} is called {show(RENAMED[key])} now")
        return RENAMED[key]
    import difflib  # noqa: PLC0415  only on this way to an error

    near = difflib.get_close_matches(key, [*KEYS, *RENAMED], n=1, cutoff=0.0)[0]
    raise InvalidInputError(
        f"unknown key {show(key)} in {where}", hint=f"did you mean {show(near)}?"
    )


def _from_file(path: Path, warnings: list[str]) -> dict[str, object]:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise InvalidInputError(
            f"{path} cannot be read", detail=error.strerror or str(error), hint=f"ls -l {path}"
        ) from error
    import tomllib  # noqa: PLC0415  most hosts have no configuration file

    try:
        table = tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInputError(
            f"{path} is not TOML",
            detail=str(error),
            hint=f"mend it, or move it away: mv {path} {path}.old",
        ) from error
    found: dict[str, object] = {}
    for key, value in table.items():
        present = _known(key, str(path), warnings)
        if key == present or present not in table:
            found[present] = value
    return found


def _variable(key: str) -> str:
    return PREFIX + key.upper()


def _from_environment(environ: Mapping[str, str], warnings: list[str]) -> dict[str, str]:
    """Values of the keys that are set and not empty. Variables that are no keys are left alone: the guest's tools, tests and
    other programs have their own ``BANGER_…``.
    """
    found: dict[str, str] = {}
    for key in [*RENAMED, *KEYS]:
        value = environ.get(_variable(key), "")
        if value:
            found[_known(key, "the environment", warnings, _variable)] = value
    return found


def load_config(
    environ: Mapping[str, str] | None = None, *, warn: Callable[[str], None] | None = None
) -> Config:
    """The configuration of this process.

    ``warn`` gets one sentence for each renamed key (default: a line on stderr). Raises InvalidInputError for an unknown
    key, a value out of its range, or a file that cannot be read.
    """
    environ = os.environ if environ is None else environ
    warnings: list[str] = []
    path = paths.config_path(environ)
    from_file = _from_file(path, warnings)
    from_environment = _from_environment(environ, warnings)
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for key, convert in KEYS.items():
        if key in from_environment:
            values[key] = convert(key, from_environment[key])
            sources[key] = _variable(key)
        elif key in from_file:
            values[key] = _in_file(path, convert, key, from_file[key])
            sources[key] = str(path)
    values.setdefault("state_dir", paths.default_state_dir(environ))
    values.setdefault("runtime_dir", paths.default_runtime_dir(environ, values["state_dir"]))
    for warning in warnings:
        (warn or _to_stderr)(warning)
    return Config(**values, path=path, sources=sources)


def _in_file(path: Path, convert: Callable[[str, object], Any], key: str, value: object) -> Any:  # noqa: ANN401  what the key's converter returns
    try:
        return convert(key, value)
    except InvalidInputError as error:
        raise InvalidInputError(
            f"{path}: {error.what}", detail=error.detail, hint=error.hint
        ) from error


def _to_stderr(sentence: str) -> None:
    sys.stderr.write(f"warning: {sentence}\n")
