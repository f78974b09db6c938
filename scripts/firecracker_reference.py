"""Print the reference of Firecracker's API as banger uses it; ``make reference`` puts it into docs/reference/firecracker.md."""

import sys
from collections.abc import Iterator
from typing import get_args

from msgspec import Struct

from banger.vmm.firecracker import config, versions
from banger.vmm.firecracker.bodies import (
    BODIES,
    Body,
    Endpoint,
    InstanceInfo,
    MmdsContents,
    Part,
    documented,
)

HEAD = """\
# Firecracker's API as banger uses it

Made by `make reference` from the types in `banger.vmm.firecracker.bodies`. "Since" is the first release that has the endpoint or field, by
the API descriptions in Firecracker's repository; 1.0 stands for 1.0 or older. A field that a release does not know is not sent to it; a
request of which nothing is left is not made.

## Releases

- The oldest that banger uses is **{oldest}**: the first that describes its devices by ACPI, which is how the kernels of distributions
  find them.
- {broken} cannot pause: after a resume their vsock device delivers nothing to the guest any more. banger refuses it.
- banger's tests of the API run against a stand-in; the release that banger was run with on a real KVM is in SPECIFICATION.md.

## A launch

One connection carries all requests, in this order: the machine, the boot source, the serial console, the balloon, the drives, the NIC, the
vsock device, the entropy device, and the start. Firecracker appends `pci=off`, `root=/dev/vda rw` and the places of its devices to
the kernel's command line:

    {cmdline}

followed by what the image adds. `reboot=k` and `panic=1` make a guest's reboot or panic end Firecracker with status 0. A power-off
does not end it, as it has no ACPI S5: the guest halts. banger's own images therefore reset after they have said `banger: powered off` on
the console; for any other guest banger watches the console for the kernel's last word (`reboot: System halted`, `reboot: Power down`) and
then ends Firecracker itself. The power button is Ctrl-Alt-Del, which a guest answers with a reboot; when banger has pressed it, the end
counts as a shutdown. That is also why `i8042.nokbd` is not among the words.

The command line of the process is `firecracker --api-sock … --id … --log-path … --level Info`, inside the user and network namespace of the
VM's TAP. Its standard output is the serial console.
"""
SENT = "\n## Requests\n"
LATER = """
## Typed, not sent by a launch

Snapshots, metrics, the log's settings and the metadata service: the client has them, no launch sends them.
"""


NAMES: dict[type, str] = {int: "integer", str: "string", bool: "boolean"}


def table(kind: type[Struct]) -> str:
    """The fields of an object."""
    lines = ["| field | type | since | banger sets it to | why |", "|---|---|---|---|---|"]
    for name, bare, notes, why in documented(kind):
        sets = notes["sets"] or "-"
        lines.append(f"| `{name}` | {words(bare)} | {notes['since']} | {sets} | {why} |")
    return "\n".join(lines) + "\n"


def words(bare: object) -> str:
    """A type, as people write it."""
    parts = [part for part in get_args(bare) if part is not type(None)]
    if isinstance(bare, type) and issubclass(bare, Part):
        return f"[{bare.__name__}](#{bare.__name__.lower()})"
    if isinstance(bare, type) and not parts:
        return NAMES[bare]
    if all(isinstance(part, str) for part in parts):
        return ", ".join(f"`{part}`" for part in parts)
    return f"list of {words(parts[0])}" if Ellipsis in parts else words(parts[0])


def is_sent(kind: type[Body]) -> bool:
    """Whether a launch or a running VM's methods send it."""
    return bool(kind.endpoint.why)


def section(endpoint: Endpoint, kind: type[Struct] | None, text: str) -> str:
    """One endpoint."""
    said = (
        f"Since {endpoint.since}: {endpoint.why}." if endpoint.why else f"Since {endpoint.since}."
    )
    head = f"\n### {endpoint.method} {endpoint.path}\n\n{said} {text}".rstrip() + "\n"
    return head + ("" if kind is None else f"\n{table(kind)}")


def parts() -> Iterator[type[Part]]:
    """The objects inside bodies, in the order of their use."""
    seen: set[type[Part]] = set()
    for body in BODIES:
        pending: list[type[Part]] = [body]
        while pending:
            for _, bare, _, _ in documented(pending.pop(0)):
                for kind in inner(bare):
                    if kind not in seen:
                        seen.add(kind)
                        pending.append(kind)
                        yield kind


def inner(bare: object) -> Iterator[type[Part]]:
    """The objects in a type."""
    if isinstance(bare, type) and issubclass(bare, Part):
        yield bare
    for part in get_args(bare):
        yield from inner(part)


def reference() -> str:
    """The document."""
    broken = " and ".join(versions.words(each) for each in sorted(versions.PAUSE_CUTS_VSOCK))
    oldest = versions.words(versions.OLDEST)
    text = HEAD.format(oldest=oldest, broken=broken, cmdline=config.cmdline("")) + SENT
    text += "".join(section(b.endpoint, b, "") for b in BODIES if is_sent(b))
    text += section(InstanceInfo.endpoint, InstanceInfo, "Of the answer banger reads:")
    text += LATER
    text += "".join(section(b.endpoint, b, b.__doc__ or "") for b in BODIES if not is_sent(b))
    text += section(MmdsContents.endpoint, None, MmdsContents.__doc__ or "")
    text += "\n## Objects inside\n"
    return text + "".join(f"\n### {p.__name__}\n\n{p.__doc__}\n\n{table(p)}" for p in parts())


if __name__ == "__main__":
    sys.stdout.write(reference())
