"""One run of ``banger bench create``: a VM's life with a clock beside it."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from banger import __version__
from banger.api import schema
from banger.cli.commands.vm_ssh import ssh_argv
from banger.cli.session import Session
from banger.host.exec import run_sync
from banger.model.errors import BangerError, HostLacksError
from banger.model.ids import new_id

_SSH_S = 120.0
_DROP = Path("/proc/sys/vm/drop_caches")


@contextmanager
def _timed(run: dict[str, float], name: str) -> Iterator[None]:
    began = time.monotonic()
    yield
    run[name] = round((time.monotonic() - began) * 1000, 1)


def one_run(session: Session, wish: schema.VmCreate, *, cold: bool) -> dict[str, float]:
    """Milliseconds of: ``create`` (until ready), its stages, the first ``ssh``, the first ``exec`` and ``delete``.

    The VM is gone afterwards, however it ends. ``cold`` drops the host's page cache first.
    """
    client = session.client
    wish.name = f"bench-{new_id()[:6]}"
    if cold:
        drop_caches()
    run: dict[str, float] = {}
    try:
        with _timed(run, "create"):
            operation = client.wait(client.create_vm(wish))
        for stage in operation.stages:
            run[f"  {stage.name}"] = round(stage.duration_ms or 0.0, 1)
        vm = client.vm(operation.target)
        with _timed(run, "ssh"):
            run_sync(
                ssh_argv(session.config, vm, ["true"], tty=False),
                timeout_s=_SSH_S,
                env=dict(os.environ),
            )
        with _timed(run, "exec"):
            client.run(vm.id, schema.ExecRequest(["true"]))
        with _timed(run, "delete"):
            client.wait(client.delete_vm(vm.id))
    except BaseException:
        with suppress(BangerError):
            client.wait(client.delete_vm(wish.name))
        raise
    return run


def drop_caches() -> None:
    """Forget what the host has read: the next run reads from the disk. HostLacksError for who is not root."""
    try:
        os.sync()
        _DROP.write_text("3")
    except OSError as error:
        raise HostLacksError(
            "only root can drop the host's caches",
            detail=f"{_DROP}: {error.strerror}",
            hint="sudo banger bench create --cold",
        ) from error


def facts(session: Session, wish: schema.VmCreate, *, cold: bool) -> dict[str, object]:
    """What the figures depend on."""
    info = session.client.info()
    memory_kib = next(
        (
            line.split()[1]
            for line in Path("/proc/meminfo").read_text().splitlines()
            if line.startswith("MemTotal")
        ),
        "0",
    )
    return {
        "banger": __version__,
        "host": {
            "kernel": platform.release(), "machine": platform.machine(), "cpus": os.cpu_count(), "memory_mib": int(memory_kib) // 1024,
            "cpu": _cpu_model(), "load_1m": os.getloadavg()[0],
        },
        "accel": info.accel,
        "cache": "cold: the host's page cache was dropped before every run" if cold else "warm: what was read before is still in memory",
        "vm": {"image": wish.image, "vcpus": wish.vcpus, "memory_mib": wish.memory_mib, "vmm": wish.vmm, "network": wish.network},
    }  # fmt: skip


def _cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), ""
    )
