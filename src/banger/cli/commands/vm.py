"""``banger vm``: the table of its commands."""

from __future__ import annotations

import click

from banger.cli.lazy import Entry, LazyGroup

_C = "banger.cli.commands"
_TABLE: dict[str, Entry] = {
    "create": Entry(f"{_C}.vm_make:create", "Make a VM and start it."),
    "list": Entry(f"{_C}.vm_look:list_vms", "List VMs."),
    "show": Entry(f"{_C}.vm_look:show", "Show one VM."),
    "start": Entry(f"{_C}.vm_life:start", "Start VMs."),
    "stop": Entry(f"{_C}.vm_life:stop", "Shut VMs down."),
    "restart": Entry(f"{_C}.vm_life:restart", "Stop VMs, then start them."),
    "pause": Entry(f"{_C}.vm_life:pause", "Stop the vCPUs of VMs; their memory stays."),
    "resume": Entry(f"{_C}.vm_life:resume", "Let paused VMs go on."),
    "delete": Entry(f"{_C}.vm_life:delete", "Delete VMs and their disks."),
    "set": Entry(f"{_C}.vm_make:change", "Change a VM."),
    "forward": Entry(f"{_C}.vm_forward:forward", "List, add and remove forwards of a VM."),
    "ssh": Entry(f"{_C}.vm_ssh:ssh", "Log in to a VM, or run a command over SSH."),
    "opencode": Entry(f"{_C}.vm_opencode:opencode", "Attach to the opencode server of a VM."),
    "exec": Entry(f"{_C}.vm_exec:exec_command", "Run a command in a VM through its agent."),
    "cp": Entry(f"{_C}.vm_cp:cp", "Copy files into or out of a VM."),
    "logs": Entry(f"{_C}.vm_look:logs", "Print a VM's console."),
    "health": Entry(f"{_C}.vm_look:health", "Ask the guest how it is."),
    "stats": Entry(f"{_C}.vm_look:stats", "Show what a VM uses."),
    "ports": Entry(f"{_C}.vm_look:ports", "List the ports that listen in a VM."),
    "ls": Entry(f"{_C}.vm_look:list_vms", "Alias of: list.", alias=True),
    "rm": Entry(f"{_C}.vm_life:delete", "Alias of: delete.", alias=True),
    "proxy": Entry(f"{_C}.vm_exec:proxy", "Connect stdin and stdout to a port.", hidden=True),
}


@click.group(cls=LazyGroup, lazy=_TABLE)
def vm() -> None:
    """Make, use, change and remove VMs.

    A VM is named by its name, its id, or a unique beginning of its id.
    """
