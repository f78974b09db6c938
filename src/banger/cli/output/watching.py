"""``vm stats --watch``: a line a look, with what was used since the one before."""

from __future__ import annotations

import time

import click

from banger.api import routes
from banger.cli.output import data
from banger.cli.output.data import Json
from banger.client.transport import Transport
from banger.model import clock
from banger.model.units import format_size

HEADINGS = (
    "TIME",
    "CPU",
    "VMM MEMORY",
    "GUEST MEMORY",
    "LOAD",
    "ROOT",
    "WORK",
    "NET OUT",
    "NET IN",
)
WIDTHS = (12, 7, 12, 14, 6, 8, 8, 10, 10)
INTERRUPTED = 130


def watch_stats(transport: Transport, name: str, interval_s: float, output: str) -> None:
    """Print a line every ``interval_s`` until Ctrl-C; what the daemon refuses (the VM has stopped) ends it as an error."""
    before: tuple[float, Json] | None = None
    if output == "table":
        click.echo(_row(HEADINGS))
    try:
        while True:
            now_s, stats = time.monotonic(), transport.fetch(routes.VM_STATS, {"ref": name})
            if output == "table":
                click.echo(_row(cells(stats, now_s, before)))
            else:
                data.show_json_line({"at": clock.now(), **stats})
            before = (now_s, stats)
            time.sleep(interval_s)
    except KeyboardInterrupt:
        raise click.exceptions.Exit(INTERRUPTED) from None


def cells(stats: Json, now_s: float, before: tuple[float, Json] | None) -> tuple[str, ...]:
    """One look's line. CPU is of one host processor since the look ``before`` (its time and stats): 200 % is two that are busy."""
    cpu = "-"
    if before is not None and now_s > before[0]:
        used_s = stats["vmm_cpu_s"] - before[1]["vmm_cpu_s"]
        cpu = f"{max(0.0, used_s) / (now_s - before[0]) * 100:.0f} %"
    total, free = stats["guest_memory_total_bytes"], stats["guest_memory_available_bytes"]
    memory = (
        "-"
        if total is None or free is None
        else f"{format_size(total - free)} of {format_size(total)}"
    )
    load = stats["guest_load_1m"]
    return (
        clock.now()[11:23],
        cpu,
        _size(stats["vmm_rss_bytes"]),
        memory,
        "-" if load is None else f"{load:.2f}",
        _size(stats["guest_rootfs_used_bytes"]),
        _size(stats["guest_work_used_bytes"]),
        _rate("net_sent_bytes", stats, now_s, before),
        _rate("net_received_bytes", stats, now_s, before),
    )


def _rate(key: str, stats: Json, now_s: float, before: tuple[float, Json] | None) -> str:
    """Bytes a second since the look ``before``; a VM that was restarted meanwhile begins anew."""
    value, earlier = (looked.get(key) for looked in (stats, before[1] if before else {}))
    if before is None or now_s <= before[0] or value is None or earlier is None:
        return "-"  # an older daemon has not got it
    moved = value - earlier if value >= earlier else value
    return f"{format_size(round(moved / (now_s - before[0])))}/s"


def _size(value: int | None) -> str:
    return "-" if value is None else format_size(value)


def _row(values: tuple[str, ...]) -> str:
    return "  ".join(
        value.ljust(width) for value, width in zip(values, WIDTHS, strict=True)
    ).rstrip()
