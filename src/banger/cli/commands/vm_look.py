"""Commands that look at VMs. ``list`` is what people type most: it prints the API's JSON and needs no structs."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence

import click

from banger.api import routes
from banger.cli import params
from banger.cli.output import data
from banger.cli.output.data import Json
from banger.cli.output.text import calm, dash, yes_no
from banger.cli.session import Session, pass_session
from banger.model import clock
from banger.model.units import MIB, format_duration, format_size

NO_VMS = "no VMs yet; make one: banger run"
NOT_READY = 6
MAX_TAIL_BYTES = 16 << 20
BYTES_A_LINE = 512


def age(created_at: str) -> str:
    """How long ago, for a person."""
    passed = clock.parse(clock.now()) - clock.parse(created_at)
    seconds = max(0, int(passed.total_seconds()))
    return f"{seconds} s" if seconds < 60 else format_duration(seconds * 1000.0)


def _ready(vm: Json) -> str:
    return yes_no(vm["ready"]) if vm["state"] == "running" else "-"


def vm_row(vm: Json) -> Sequence[str]:
    """A line of ``vm list``."""
    spec = vm["spec"]
    return (
        vm["name"],
        vm["state"],
        _ready(vm),
        spec["image"],
        str(spec["vcpus"]),
        format_size(spec["memory_mib"] * MIB),
        dash(vm["status"]["ip"]),
        age(vm["created_at"]),
    )


VM_HEADINGS = ("NAME", "STATE", "READY", "IMAGE", "VCPUS", "MEMORY", "IP", "AGE")


def _forwards(forwards: Sequence[Json]) -> str:
    return ", ".join(
        f"127.0.0.1:{f['host_port'] or 'any'} -> {f['guest_port']}"
        + ("/udp" if f.get("protocol") == "udp" else "")
        for f in forwards
    )


def _services(services: Sequence[Json]) -> str:
    return ", ".join(
        f"{s['name']} {s['port']} {'ready' if s['ready'] else 'not ready'}" for s in services
    )


def _vm_pairs(vm: Json) -> list[tuple[str, object]]:
    spec, status = vm["spec"], vm["status"]
    pairs: list[tuple[str, object]] = [
        ("name", vm["name"]),
        ("id", vm["id"]),
        ("state", vm["state"]),
        ("ready", _ready(vm)),
        ("created", f"{vm['created_at']} ({age(vm['created_at'])} ago)"),
        ("image", spec["image"]),
        ("vcpus", spec["vcpus"]),
        ("memory", format_size(spec["memory_mib"] * MIB)),
        ("disk", format_size(spec["disk_bytes"])),
        ("work disk", format_size(spec["work_bytes"])),
        ("storage", status.get("storage")),
        ("vmm", f"{status['vmm']}, {status['accel']}" if status["vmm"] else spec["vmm"]),
        ("network", status["network"] or spec["network"]),
        ("nat", yes_no(spec["nat"])),
        ("groups", ", ".join(spec["groups"]) or None),
        ("autostart", yes_no(spec.get("autostart", False))),
        ("ip", status["ip"]),
        ("forwards", _forwards(status["forwards"] or spec["forwards"])),
        ("services", _services(status["services"])),
        ("booted", status["booted_at"]),
    ]
    error = status["last_error"]
    return [*pairs, ("last error", error["what"])] if error else pairs


def warn(sentence: str) -> None:
    """Tell on stderr what a VM's user should know of it, if anything."""
    if sentence:
        click.echo(f"warning: {sentence}", err=True)


def print_vm(session: Session, ref: str, output: str) -> None:
    """Fetch and print one VM as ``vm show`` does."""
    vm = session.transport.fetch(routes.VM_SHOW, {"ref": ref})
    warn(vm["status"]["warning"])
    data.show_one(vm, output, pairs=_vm_pairs, name=vm["name"])


@click.command("list")
@data.format_option
@pass_session
def list_vms(session: Session, *, output: str) -> None:
    """List VMs, oldest first. Neither guests nor VMMs are asked."""
    vms = session.transport.fetch(routes.VMS_LIST)
    data.show_list(vms, output, headings=VM_HEADINGS, row=vm_row, empty=NO_VMS)


@click.command()
@click.argument("name", type=params.VM)
@data.format_option
@pass_session
def show(session: Session, *, name: str, output: str) -> None:
    """Show one VM: what was asked for and what is."""
    print_vm(session, name, output)


@click.command()
@click.argument("name", type=params.VM)
@data.format_option
@pass_session
def health(session: Session, *, name: str, output: str) -> None:
    """Ask the guest how it is. The exit status is 6 if it is not ready."""
    found = session.transport.fetch(routes.VM_HEALTH, {"ref": name})
    data.show_one(found, output, pairs=_health_pairs, name=name)
    if not found["ready"]:
        raise click.exceptions.Exit(NOT_READY)


def _health_pairs(health: Json) -> list[tuple[str, object]]:
    return [
        ("ready", yes_no(health["ready"])),
        ("reachable", yes_no(health["reachable"])),
        ("status", health["status"]),
        ("agent", health["version"]),
        ("boot id", health["boot_id"]),
        ("up", format_duration(health["uptime_s"] * 1000) if health["reachable"] else None),
        ("services", _services(health["services"])),
        ("detail", health["detail"]),
    ]


@click.command()
@click.argument("name", type=params.VM)
@click.option("--watch", is_flag=True, help="Again and again, until Ctrl-C or the VM stops.")
@click.option("--interval", type=click.FloatRange(0.2, 3600), default=2.0, show_default=True, help="Seconds between two looks.")  # fmt: skip
@data.format_option
@pass_session
def stats(session: Session, *, name: str, watch: bool, interval: float, output: str) -> None:
    """Show what a VM uses, seen from the host and from inside."""
    if watch:
        from banger.cli.output.watching import watch_stats  # noqa: PLC0415  only for those who watch

        watch_stats(session.transport, name, interval, output)
        return
    found = session.transport.fetch(routes.VM_STATS, {"ref": name})
    data.show_one(found, output, pairs=_stats_pairs, name=name)


def _stats_pairs(stats: Json) -> list[tuple[str, object]]:
    def size(key: str) -> str | None:
        value = stats.get(key)  # an older daemon has not all of them
        return None if value is None else format_size(value)

    up = stats["guest_uptime_s"]
    return [
        ("VMM CPU time", format_duration(stats["vmm_cpu_s"] * 1000)),
        ("VMM memory", size("vmm_rss_bytes")),
        ("overlay on disk", size("overlay_bytes")),
        ("work disk on disk", size("work_bytes")),
        ("net sent", size("net_sent_bytes")),
        ("net received", size("net_received_bytes")),
        ("guest up", None if up is None else format_duration(up * 1000)),
        ("guest load (1 min)", stats["guest_load_1m"]),
        ("guest memory", size("guest_memory_total_bytes")),
        ("guest memory available", size("guest_memory_available_bytes")),
        ("guest root used", size("guest_rootfs_used_bytes")),
        ("guest work disk used", size("guest_work_used_bytes")),
    ]


@click.command()
@click.argument("name", type=params.VM)
@data.format_option
@pass_session
def ports(session: Session, *, name: str, output: str) -> None:
    """List the ports that listen in a VM, and where the host reaches them."""
    found = session.transport.fetch(routes.VM_PORTS, {"ref": name})
    data.show_list(
        found,
        output,
        headings=("PROTOCOL", "ADDRESS", "PORT", "PROCESS", "HOST"),
        row=lambda p: (
            p["protocol"],
            p["address"],
            str(p["port"]),
            dash(p["process"]),
            dash(p["host_port"] and f"127.0.0.1:{p['host_port']}"),
        ),
        name="port",
        empty="nothing listens",
    )


@click.command()
@click.argument("name", type=params.VM)
@click.option("-f", "--follow", is_flag=True, help="Go on with what is appended, until Ctrl-C.")
@click.option("--vmm", "vmm_log", is_flag=True, help="The VMM's own log instead of the console.")
@click.option("-n", "--lines", type=click.IntRange(min=0), help="Only the last N lines.")
@data.format_option
@pass_session
def logs(
    session: Session, *, name: str, follow: bool, vmm_log: bool, lines: int | None, output: str
) -> None:
    """Print a VM's serial console. On a terminal, control sequences are left out; as JSON each line is an object with the key line."""
    source = "vmm" if vmm_log else "console"
    wide = MAX_TAIL_BYTES if lines is None else min(MAX_TAIL_BYTES, (lines + 1) * BYTES_A_LINE)
    tail_bytes = wide
    if lines is not None:
        with session.client.logs(name, source=source, tail_bytes=wide) as pieces:
            tail = last_lines(b"".join(pieces), lines)
        if not follow:
            write_log(_in_format(iter([tail]), output))
            return
        tail_bytes = len(tail)
    with session.client.logs(name, source=source, tail_bytes=tail_bytes, follow=follow) as pieces:
        write_log(_in_format(pieces, output))


def _in_format(pieces: Iterator[bytes], output: str) -> Iterator[bytes]:
    """A log's pieces as they are, or as JSON lines."""
    if output != "json":
        yield from pieces
        return
    rest = b""
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            yield _json_line(line)
    if rest:
        yield _json_line(rest)


def _json_line(line: bytes) -> bytes:
    return json.dumps({"line": line.rstrip(b"\r").decode(errors="replace")}).encode() + b"\n"


def last_lines(text: bytes, count: int) -> bytes:
    """The last ``count`` lines of ``text``."""
    return b"".join(text.splitlines(keepends=True)[-count:]) if count else b""


def write_log(pieces: Iterator[bytes]) -> None:
    """Copy a log to stdout; on a terminal without commands to it."""
    sys.stdout.flush()
    descriptor = sys.stdout.fileno()
    terminal = os.isatty(descriptor)
    try:
        for piece in pieces:
            left = memoryview(calm(piece) if terminal else piece)
            while left:
                left = left[os.write(descriptor, left) :]
    except KeyboardInterrupt:
        raise click.exceptions.Exit(130) from None
