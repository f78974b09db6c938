"""Units for a foreign root with systemd: the agent, sshd and a serial getty are started, and nothing else configures ``eth0`` or waits for
what a guest does not have.
"""

from __future__ import annotations

import re
from typing import Final

from banger.images.addition import Addition, is_file, payload
from banger.images.resources import payload_dir
from banger.images.root_tree import Node, RootTree

SYSTEMD: Final = ("/usr/lib/systemd/systemd", "/lib/systemd/systemd")
UNITS: Final = "etc/systemd/system"
_VENDOR: Final = ("/usr/lib/systemd/system", "/lib/systemd/system")
_UDEV: Final = ("/usr/lib/systemd/systemd-udevd", "/lib/systemd/systemd-udevd", "/usr/bin/udevadm", "/bin/udevadm")  # fmt: skip
_GETTY: Final = "serial-getty@ttyS0.service"
_MASKED: Final = (
    # other masters of eth0, which has its address before systemd starts
    "systemd-networkd.service", "systemd-networkd.socket", "systemd-networkd-wait-online.service",
    "systemd-networkd-wait-online@.service", "systemd-resolved.service", "NetworkManager.service",
    "NetworkManager-wait-online.service", "networking.service", "ifup@.service", "ifupdown-wait-online.service", "network.service",
    "dhcpcd.service", "dhcpcd@.service", "wicked.service", "connman.service", "connman-wait-online.service",
    "cloud-init.service", "cloud-init-local.service", "cloud-init-network.service", "cloud-config.service", "cloud-final.service",
    "cloud-init-main.service", "cloud-init-hotplugd.socket",
    # what was done already, or is not there
    "systemd-firstboot.service", "systemd-machine-id-commit.service", "systemd-boot-system-token.service",
    "getty@tty1.service", "getty-static.service", "fstrim.timer", "e2scrub_all.timer", "e2scrub_reap.service",
    "sshd-keygen.target", "sshd-keygen.service",
)  # fmt: skip
_KMOD: Final = ("/sbin/modprobe", "/usr/sbin/modprobe")
_OF_KMOD: Final = ("kmod-static-nodes.service", "systemd-binfmt.service", "proc-sys-fs-binfmt_misc.automount", "proc-sys-fs-binfmt_misc.mount")  # fmt: skip
"""What fails where modules are, and no program that loads them: in a minimal Debian."""
_DISABLED: Final = ("ssh.socket", "sshd.socket")
"""Not masked: an ssh.service that requires its socket would not start. They are where port 22 would be listened at twice."""
_PULLED = re.compile(r"\.(wants|requires|upholds)$")
_KEPT_TYPES: Final = {b"tmpfs", b"ramfs"}
_OUR_PLACES: Final = {b"/", b"/root", b"/run", b"/dev", b"/proc", b"/sys"}
_FSTAB_NOTE: Final = b"# The fstab that this root came with; its disks are not in this machine.\n"


def add_units(layer: Addition, tree: RootTree, init: str, agent: str, *, sshd: bool) -> None:
    """What systemd (the program ``init``) is to start, and what not; ``agent`` is the agent's command line."""
    for path in ("etc/systemd/journald.conf.d/50-banger.conf", "etc/tmpfiles.d/systemd-nologin.conf", "usr/lib/sysctl.d/50-banger.conf"):  # fmt: skip
        layer.file(path, payload(path))
    poweroff = "usr/lib/systemd/system-shutdown/banger-poweroff"
    layer.file(poweroff, payload(poweroff), 0o755)
    if _inode(tree, "/sbin/init") is not _inode(tree, init):
        layer.links["sbin/init"] = init
    layer.file(f"{UNITS}/banger-agent.service", _agent_unit(agent))
    layer.links[f"{UNITS}/sysinit.target.wants/banger-agent.service"] = "../banger-agent.service"
    layer.links[f"{UNITS}/default.target"] = _vendor(tree, "multi-user.target") or f"{_VENDOR[1]}/multi-user.target"  # fmt: skip
    _getty(layer, tree)
    if sshd:
        _start_sshd(layer, tree)
    for name in (*_MASKED, *(() if any(is_file(tree, path) for path in _KMOD) else _OF_KMOD)):
        layer.links[f"{UNITS}/{name}"] = "/dev/null"
    _unpull(layer, tree)
    if tree.look("/etc/cloud") is not None:
        layer.file("etc/cloud/cloud-init.disabled", b"")
    if tree.look("/etc/crypttab", follow=False) is not None:
        layer.file("etc/crypttab", b"# No disk of this machine is encrypted.\n")


def fstab(before: bytes) -> bytes:
    """What of a foreign fstab can be mounted in a guest: file systems in memory. The rest is kept as comments."""
    lines = [line if _stays(line) else b"#" + line for line in before.splitlines()]
    note = _FSTAB_NOTE if lines else b""
    return payload("etc/fstab") + note + b"".join(line + b"\n" for line in lines)


def _stays(line: bytes) -> bool:
    words = line.split()
    if not words or words[0].startswith(b"#"):
        return True
    return (
        len(words) > 2
        and words[2] in _KEPT_TYPES
        and (words[1].rstrip(b"/") or b"/") not in _OUR_PLACES
    )


def _agent_unit(agent: str) -> bytes:
    """The agent does not wait for sshd, which here starts late, and not at all if the boot fails: then it is the way in."""
    unit = payload(f"{UNITS}/banger-agent.service").decode().replace("After=ssh.service\n", "")
    return re.sub(r"(?m)^ExecStart=.*$", lambda _: f"ExecStart={agent}", unit).encode()


def _getty(layer: Addition, tree: RootTree) -> None:
    _unmask(layer, tree, "serial-getty@.service", "multi-user.target")
    layer.links[f"{UNITS}/getty.target.wants/{_GETTY}"] = f"{_VENDOR[1]}/serial-getty@.service"
    if any(is_file(tree, path) for path in _UDEV):
        _unmask(layer, tree, _GETTY)
    else:
        layer.file(f"{UNITS}/{_GETTY}", (payload_dir() / "foreign" / _GETTY).read_bytes())


def _start_sshd(layer: Addition, tree: RootTree) -> None:
    for name in ("ssh.service", "sshd.service"):
        place = _vendor(tree, name)
        if place is not None:
            layer.links[f"{UNITS}/multi-user.target.wants/{name}"] = place
            _unmask(layer, tree, name)
            break


def _unmask(layer: Addition, tree: RootTree, *names: str) -> None:
    """Take away what somebody masked that a guest needs."""
    for name in names:
        node = tree.look(f"/{UNITS}/{name}", follow=False)
        if node is not None and node.inode.member.target == "/dev/null":
            layer.removed.append(f"{UNITS}/{name}")


def _unpull(layer: Addition, tree: RootTree) -> None:
    """Nothing starts the sockets of sshd, and nothing needs what is masked."""
    for directory, node in sorted(_children(tree.look(f"/{UNITS}")).items()):
        pulled = _PULLED.search(directory)
        unwanted = {*_DISABLED, *_MASKED} if pulled and pulled[1] == "requires" else set(_DISABLED)
        if pulled:
            layer.removed += [f"{UNITS}/{directory}/{name}" for name in sorted(_children(node)) if name in unwanted]  # fmt: skip


def _children(node: Node | None) -> dict[str, Node]:
    return (node.children or {}) if node is not None else {}


def _inode(tree: RootTree, path: str) -> object:
    node = tree.look(path)
    return path if node is None else node.inode


def _vendor(tree: RootTree, name: str) -> str | None:
    return next((f"{base}/{name}" for base in _VENDOR if is_file(tree, f"{base}/{name}")), None)
