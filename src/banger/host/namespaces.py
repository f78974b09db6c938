"""User and network namespaces of our own: command lines to make and to enter them, and whether this host lets us.

``unshare`` and ``nsenter`` are of util-linux, essential on Debian. One way for root and for an ordinary user: a user namespace in which
the caller is uid 0, and a network namespace that belongs to it.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from banger.host.exec import find_program, run_sync
from banger.host.probe import Answer
from banger.model.errors import BangerError

_PROBE_S = 15.0
_IMPORT_ROOT: Final = str(Path(__file__).parents[2])
_RULES: Final = "table bridge probe\ntable inet probe\ntable ip probe\n"


@dataclass(frozen=True, slots=True)
class NamespacePair:
    """Open descriptors of a user namespace and of a network namespace that it owns; the owner of this value closes them."""

    user: int
    network: int

    @property
    def descriptors(self) -> tuple[int, int]:
        """What a child must inherit to enter."""
        return self.user, self.network


def make() -> list[str]:
    """The words before a command line that is to run in new namespaces, as uid 0 of them; the pid stays the same."""
    unshare = find_program("unshare", package="util-linux")
    return [unshare, "--user", "--map-root-user", "--net", "--"]


def enter(inside: NamespacePair) -> list[str]:
    """The words before a command line that is to run in ``inside``, whose descriptors the child must inherit."""
    return [
        find_program("nsenter", package="util-linux"),
        "--preserve-credentials",
        f"--user=/proc/self/fd/{inside.user}",
        f"--net=/proc/self/fd/{inside.network}",
        "--",
    ]


def small_python(module: str, *arguments: str) -> list[str]:
    """A command line that runs ``main`` of ``module`` with banger and the standard library alone: up in 15 ms.

    No site directory, no user settings, nothing from the environment.
    """
    code = f"import sys; sys.path.insert(0, {_IMPORT_ROOT!r}); from {module} import main; main()"
    return [sys.executable, "-I", "-S", "-c", code, *arguments]


def probe_namespaces(rules: str = _RULES) -> Answer:
    """Whether namespaces of our own can hold a bridge, TAPs, forwarding and the nft ``rules``: found out by doing it all.

    Takes about 50 ms; leaves nothing.
    """
    try:
        nft = find_program("nft", package="nftables")
        argv = [*make(), *small_python("banger.host.namespace_probe", nft, "-f", "-")]
        done = run_sync(argv, timeout_s=_PROBE_S, input=rules.encode(), check=False)
    except BangerError as error:
        return Answer(ok=False, why=error.what, hint=error.hint)
    if done.returncode == 0:
        return Answer(ok=True)
    words = done.stderr.decode(errors="replace").strip()
    why = next((line for line in words.splitlines() if line.strip()), "no reason given")
    return Answer(ok=False, why=why[:300], hint=_hint(words))


_RESTRICTIONS: Final = (
    ("/proc/sys/kernel/unprivileged_userns_clone", "0", "kernel.unprivileged_userns_clone=1"),
    ("/proc/sys/user/max_user_namespaces", "0", "user.max_user_namespaces=15000"),
    ("/proc/sys/user/max_net_namespaces", "0", "user.max_net_namespaces=15000"),
    (
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "kernel.apparmor_restrict_unprivileged_userns=0",
    ),
)


def _hint(words: str) -> str:
    """One next step for the way in which the probe failed."""
    if "/dev/net/tun" in words:
        if "No such" in words:
            return "sudo modprobe tun"
        return "let users open /dev/net/tun: sudo chmod 0666 /dev/net/tun"
    if hint := restriction_hint():
        return hint
    if "nft" in words or "netlink" in words or "process rule" in words:
        return "sudo modprobe -a nf_tables nft_ct nft_masq nft_reject_inet"
    return "banger doctor"


def restriction_hint() -> str:
    """The command that lifts the host's restriction of user namespaces; empty if none of the usual ones is in force."""
    for path, closed, setting in _RESTRICTIONS:
        try:
            value = Path(path).read_text().strip()
        except OSError:
            continue
        if value == closed:
            return f"sudo sysctl {setting}"
    return ""
