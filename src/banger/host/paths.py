"""Where banger's files are: the configuration file, the state directory and the runtime directory (CONTRACT, "Files").

Pure but for `default_runtime_dir`, which asks whether ``/run/user/UID`` is there. Kept light: the CLI imports it on every start.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from banger.model.errors import InvalidInputError

MAX_SOCKET_PATH_BYTES = 107  # sun_path of unix(7) less the final zero


def is_root() -> bool:
    """Whether this process is root, whose files lie in system directories."""
    return os.geteuid() == 0


def absolute(text: str, *, what: str) -> Path:
    """``text`` as an absolute path, ``~`` expanded; InvalidInputError names ``what`` if it is not one."""
    path = Path(os.path.expanduser(text))  # noqa: PTH111  leaves an unknown user's ~ as it is, where Path raises
    if not path.is_absolute() or "\0" in text:
        raise InvalidInputError(
            f"{what} {text!r} is not an absolute path", hint="begin it with / or ~/"
        )
    return path


def _xdg(environ: Mapping[str, str], name: str, fallback: str) -> Path:
    """``$name`` where it is absolute (the XDG specification says to ignore it else), or ``~/fallback``."""
    value = environ.get(name, "")
    if value.startswith("/"):
        return Path(value)
    home = environ.get("HOME") or os.path.expanduser("~")  # noqa: PTH111  as above
    return Path(home) / fallback


def config_path(environ: Mapping[str, str]) -> Path:
    """``$BANGER_CONFIG``, else the place that XDG or, for root, /etc gives; it need not exist."""
    if environ.get("BANGER_CONFIG"):
        return absolute(environ["BANGER_CONFIG"], what="BANGER_CONFIG")
    if is_root():
        return Path("/etc/banger/config.toml")
    return _xdg(environ, "XDG_CONFIG_HOME", ".config") / "banger" / "config.toml"


def default_state_dir(environ: Mapping[str, str]) -> Path:
    """``/var/lib/banger`` for root, else ``$XDG_STATE_HOME/banger``."""
    if is_root():
        return Path("/var/lib/banger")
    return _xdg(environ, "XDG_STATE_HOME", ".local/state") / "banger"


def default_runtime_dir(environ: Mapping[str, str], state_dir: Path) -> Path:
    """``/run/banger`` for root, else ``$XDG_RUNTIME_DIR/banger``, else ``/run/user/UID/banger`` if that directory is
    ours, else ``run`` in the state directory.
    """
    if is_root():
        return Path("/run/banger")
    value = environ.get("XDG_RUNTIME_DIR", "")
    if value.startswith("/"):
        return Path(value) / "banger"
    login = Path(f"/run/user/{os.getuid()}")
    try:
        ours = login.stat().st_uid == os.getuid()
    except OSError:
        ours = False
    return login / "banger" if ours else state_dir / "run"


def check_socket_path(path: Path) -> Path:
    """``path`` if the kernel can bind a socket there; else InvalidInputError that names BANGER_RUNTIME_DIR."""
    length = len(os.fsencode(path))
    if length > MAX_SOCKET_PATH_BYTES:
        raise InvalidInputError(
            f"socket path {path} is too long",
            detail=f"it has {length} bytes, the kernel allows {MAX_SOCKET_PATH_BYTES}",
            hint="set BANGER_RUNTIME_DIR to a shorter directory",
        )
    return path
