"""Which firecracker and which jailer VMs are started with: configured, of the verified bundle, or found on PATH."""

from __future__ import annotations

import os
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path

from banger.bundle import check, elf, places, reading, wanted
from banger.bundle.manifest import FILE_NAME
from banger.bundle.places import Root
from banger.bundle.reading import Warn
from banger.host.config import Config
from banger.model.errors import HostLacksError

_said: set[Path] = set()


@dataclass(frozen=True, slots=True)
class Binaries:
    """Programs that were looked at: ``firecracker``, its ``jailer`` if there is one, and where they are from, in words."""

    firecracker: Path
    jailer: Path | None
    origin: str


def find_binaries(config: Config, *, warn: Warn) -> Binaries:
    """The first of: ``firecracker_path``, the runtime bundle, a bundle of an older release in a checkout's ``runtime``, PATH.

    The jailer is ``jailer_path``, else of the same place. A bundle that is there but not whole is an error, never passed over.
    Raises HostLacksError that names what is wrong and the command that mends it. A file's digest is computed once and again
    only if the file changes, so asking before every start is cheap. ``warn`` gets a sentence about an old bundle, once.
    """
    root = places.default_root(config.bundle_dir)
    found = (
        _configured(config)
        or _of_bundle(config, root)
        or _of_legacy(config, root, warn)
        or _on_path()
    )
    if found is None:
        raise HostLacksError(
            "no firecracker is here: no runtime bundle, none on PATH",
            detail=f"bundle: {root.path}\nPATH: {os.environ.get('PATH', '')}",
            hint=wanted.how_to_get(config, root),
        )
    if config.jailer_path is None:
        return found
    return Binaries(found.firecracker, _program(config.jailer_path, "jailer_path"), found.origin)


def _configured(config: Config) -> Binaries | None:
    path = config.firecracker_path
    if path is None:
        return None
    return Binaries(
        _program(path, "firecracker_path"), _sibling(path, config), f"firecracker_path {path}"
    )


def _of_bundle(config: Config, root: Root) -> Binaries | None:
    state = check.look(root, programs_only=True)
    if state.state == "missing":
        return None
    if state.state != "ok" or state.manifest is None or state.version_dir is None:
        raise damaged(config, root, state)
    return Binaries(
        state.version_dir / state.manifest.firecracker_path,
        state.version_dir / state.manifest.jailer if state.manifest.jailer else None,
        f"bundle {state.manifest.title}",
    )


def damaged(config: Config, root: Root, state: check.BundleState) -> HostLacksError:
    """The error for a bundle that is not whole."""
    title = f"bundle {state.manifest.title}" if state.manifest else "bundle"
    return HostLacksError(
        f"the runtime {title} in {root.path} is damaged",
        detail="\n".join(state.whys),
        hint=wanted.how_to_mend(config, root, state),
    )


def _of_legacy(config: Config, root: Root, warn: Warn) -> Binaries | None:
    """``./runtime`` of an older checkout: verified if it has a manifest with digests, else looked at like a program on PATH."""
    directory = places.legacy_dir()
    if directory is None:
        return None
    if directory not in _said:
        _said.add(directory)
        warn(
            f"the runtime bundle in {directory} is of an older release, its place is {root.path} now"
        )
    for name in (FILE_NAME, places.SHIPPED):
        if (directory / name).exists():
            manifest = reading.load(directory / name, lambda _: None)
            if manifest.pins_contents:
                files = check.check_files(directory, manifest, programs_only=True)
                state = check.BundleState("damaged", directory, manifest, files)
                if state.whys:
                    raise damaged(config, Root(directory), state)
            firecracker = directory / manifest.firecracker_path
            jailer = directory / manifest.jailer if manifest.jailer else None
            return Binaries(_program(firecracker, "bundle"), jailer, f"bundle in {directory}")
    path = directory / "firecracker"
    return Binaries(_program(path, "bundle"), _sibling(path, config), f"bundle in {directory}")


def _on_path() -> Binaries | None:
    from banger.host.exec import search_path  # noqa: PLC0415  asyncio comes with it

    found = shutil.which("firecracker", path=search_path())
    if found is None:
        return None
    path = Path(found)
    jailer = path.with_name("jailer")
    if not os.access(jailer, os.X_OK):
        elsewhere = shutil.which("jailer", path=search_path())
        jailer = Path(elsewhere) if elsewhere else jailer
    return Binaries(
        _program(path, "PATH"),
        _program(jailer, "PATH") if os.access(jailer, os.X_OK) else None,
        f"PATH {path}",
    )


def _sibling(firecracker: Path, config: Config) -> Path | None:
    """``jailer`` beside ``firecracker``; None if there is none or another one is configured."""
    path = firecracker.with_name("jailer")
    if config.jailer_path is not None or not path.exists():
        return None
    return _program(path, "jailer")


def _program(path: Path, what: str) -> Path:
    """``path`` if this machine can start it; HostLacksError says why not."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise HostLacksError(
            f"{what}: {path} is not there",
            detail=error.strerror or "",
            hint="banger runtime status",
        ) from error
    if not stat.S_ISREG(mode):
        raise HostLacksError(f"{what}: {path} is no file", hint=f"ls -l {path}")
    if not os.access(path, os.X_OK):
        raise HostLacksError(f"{what}: {path} is not executable", hint=f"chmod +x {path}")
    if not os.access(path, os.R_OK):
        return path  # may be started though not looked into
    with path.open("rb") as file:
        head = file.read(elf.HEADER_BYTES)
    if why := elf.why_not_runnable(head, elf.host_architecture()):
        raise HostLacksError(
            f"{what}: {path} cannot run here", detail=why, hint="banger runtime status"
        )
    return path
