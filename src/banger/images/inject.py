"""What a foreign root lacks to be a guest of banger's, as one more layer: agent, sshd's settings, units or an init, kernel modules' place.

Pure: it looks at the tree of names (`RootTree`) and at the few files in `READ`, and runs nothing of the image. What a guest has in
common whatever it was made of is that of ``payload/``: root by key only, host keys and identity from the drive, an address without DHCP,
a serial getty, a bounded journal, nothing left to be done at the first boot.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from typing import Final

from banger.images.addition import Addition, is_file, payload
from banger.images.guest_python import COMMAND, is_new_enough
from banger.images.inject_sshd import CONFIG, DROP_INS, add_sshd
from banger.images.inject_systemd import SYSTEMD, UNITS, add_units, fstab
from banger.images.oci import Run
from banger.images.pack import agent_zip
from banger.images.resources import agent_dir, payload_dir
from banger.images.root_tree import RootTree
from banger.model.errors import InvalidInputError
from banger.model.manifest import Service, services_json

READ: Final = ("etc/shadow", "etc/passwd", "etc/group", "etc/fstab", CONFIG)
READ_BELOW: Final = (DROP_INS,)
"""Files, and directories of files, that are changed rather than replaced, so their contents are needed."""
_LIB: Final = "usr/lib/banger"
_SSHD: Final = "/usr/sbin/sshd"
_AGENT_OPTIONS: Final = ("-I", "-S", "--check-hash-based-pycs", "never", "/usr/lib/banger/agent.pyz")  # fmt: skip
_PYTHON_HOMES: Final = ("/usr/lib", "/usr/lib64", "/usr/local/lib")
_DIRECTORIES: Final = {
    "proc": 0o555, "sys": 0o555, "dev": 0o755, "run": 0o755, "tmp": 0o1777, "root": 0o700, "root/.ssh": 0o700,
    "etc": 0o755, "etc/banger": 0o755, "var": 0o755, "mnt": 0o755,
}  # fmt: skip
_PROFILE: Final = b'[ -z "$BASH_VERSION" ] || [ ! -f ~/.bashrc ] || . ~/.bashrc\n'
_BASHRC: Final = b"case $- in *i*) ;; *) return ;; esac\nPS1='\\u@\\h:\\w\\$ '\nalias ls='ls --color=auto'\n"  # fmt: skip
_SHADOW: Final = b"root:*:20000:0:99999:7:::\n"
_NO_SHELL = re.compile(rb"(?m)^(root:(?:[^:\n]*:){5})\S*/(?:nologin|false)$")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,200}")
_MAX_WORDS, _MAX_TEXT = 500, 32 * 1024


@dataclass(frozen=True, slots=True)
class Foreign:
    """What was found in a root: whether its init is systemd, whether it has an sshd, and a Python that the agent runs with."""

    systemd: str | None
    sshd: bool
    python: bool

    @property
    def services(self) -> tuple[Service, ...]:
        """What such a guest promises."""
        return (Service("ssh", 22),) if self.sshd else ()


def look_at(tree: RootTree) -> Foreign:
    """The facts that decide what has to be added."""
    systemd = next((path for path in SYSTEMD if is_file(tree, path)), None)
    program = "/".join(("", *tree.real_path("/usr/bin/python3")))
    node = tree.look("/usr/bin/python3", follow=False)
    if node is not None and node.inode.member.kind == "symlink":
        program = node.inode.member.target
    name = program.rpartition("/")[2]
    whole = any(_has_modules(tree, f"{home}/{name}") for home in _PYTHON_HOMES)
    python = is_file(tree, "/usr/bin/python3") and is_new_enough(name) and whole
    return Foreign(systemd, is_file(tree, _SSHD), python)


def additions(
    tree: RootTree,
    contents: dict[str, bytes],
    found: Foreign,
    busybox: bytes,
    services: tuple[Service, ...],
    run: Run,
    *,
    start: bool,
) -> Addition:
    """The layer for a root; ``contents`` are those of `READ` that it has, ``start`` whether ``run`` becomes a service."""
    layer = Addition()
    command = ("/usr/bin/python3",) if found.python else COMMAND
    agent = shlex.join([*command, *_AGENT_OPTIONS])
    for path, mode in _DIRECTORIES.items():
        if tree.look(f"/{path}") is None:
            layer.directories[path] = mode
    _accounts(layer, tree, contents)
    _common(layer, tree, contents, services, busybox)
    if found.sshd:
        add_sshd(layer, tree, contents, environment(run))
    if found.systemd is not None:
        add_units(layer, tree, found.systemd, agent, sshd=found.sshd)
    else:
        _own_init(layer, tree, agent)
    _container(layer, run, found, command, start=start)
    return layer


def _has_modules(tree: RootTree, home: str) -> bool:
    """Whether the library at ``home`` is whole: python3-minimal, for one, lacks compiled modules that the agent needs."""
    compiled = tree.look(f"{home}/lib-dynload")
    names = [] if compiled is None else list(compiled.children or ())
    return is_file(tree, f"{home}/json/__init__.py") and any(name.startswith("_json.") for name in names)  # fmt: skip


def _accounts(layer: Addition, tree: RootTree, contents: dict[str, bytes]) -> None:
    """Root must be somebody with a shell, and nobody logs in by a password: `*` is none, unlike `!` no locked account to sshd, and not expired."""
    users = contents.get("etc/passwd")
    if not users:
        layer.file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n")  # fmt: skip
    elif _NO_SHELL.search(users) and (shell := _shell(tree)) is not None:
        layer.file("etc/passwd", _NO_SHELL.sub(rb"\g<1>" + shell.encode(), users))
    if not contents.get("etc/group"):
        layer.file("etc/group", b"root:x:0:\nnogroup:x:65534:\n")
    shadow = contents.get("etc/shadow") or _SHADOW
    layer.file("etc/shadow", re.sub(rb"(?m)^root:.*\n?", _SHADOW, shadow), 0o640)


def _shell(tree: RootTree) -> str | None:
    return next((path for path in ("/bin/bash", "/bin/sh") if is_file(tree, path)), None)


def _common(
    layer: Addition, tree: RootTree, contents: dict[str, bytes], services: tuple[Service, ...], busybox: bytes
) -> None:  # fmt: skip
    layer.file("etc/banger/services.json", services_json(services))
    layer.file(f"{_LIB}/agent.pyz", agent_zip(agent_dir()))
    layer.file(f"{_LIB}/busybox", busybox, 0o755)
    layer.file("etc/fstab", fstab(contents.get("etc/fstab", b"")))
    layer.file("etc/machine-id", b"")
    layer.removed += [path for path in ("var/lib/dbus/machine-id", "var/lib/systemd/random-seed") if tree.look(f"/{path}", follow=False)]  # fmt: skip
    if tree.look("/etc/default/locale") is None:
        layer.file("etc/default/locale", payload("etc/default/locale"))
    for name, data in ((".bashrc", _BASHRC), (".profile", _PROFILE)):
        if tree.look(f"/root/{name}", follow=False) is None:
            layer.file(f"root/{name}", data)


def _own_init(layer: Addition, tree: RootTree, agent: str) -> None:
    own = payload_dir() / "foreign"
    if tree.look("/sbin/init", follow=False) is not None:
        layer.removed.append("sbin/init")
    layer.file("sbin/init", (own / "init").read_bytes(), 0o755)
    layer.file(f"{_LIB}/agent", f"#!/{_LIB}/busybox sh\nexec {agent}\n".encode(), 0o755)
    layer.links[f"{_LIB}/login"] = "busybox"
    for name in ("poweroff", "reboot", "halt"):
        layer.file(f"{_LIB}/{name}", (own / "poweroff").read_bytes(), 0o755)
        layer.links[f"sbin/{name}"] = f"/{_LIB}/{name}"


def environment(run: Run) -> dict[str, str]:
    """The container's variables; InvalidInputError if one cannot be."""
    found = {}
    for word in run.env or ():
        name, equals, value = word.partition("=")
        if (
            not equals
            or not _NAME.fullmatch(name)
            or "\0" in value
            or "\n" in value
            or len(value) > _MAX_TEXT
        ):
            raise InvalidInputError(
                f"the image has an environment variable that cannot be set: {word[:80]!r}",
                hint="docker build it with another ENV",
            )
        found[name] = value
    return found


def _container(
    layer: Addition, run: Run, found: Foreign, python: tuple[str, ...], *, start: bool
) -> None:
    """The environment for every session; with ``start`` the container's command as a service."""
    words = environment(run)
    if words:
        layer.file("etc/banger/environment", "".join(f"{key}={value}\n" for key, value in words.items()).encode())  # fmt: skip
        exports = "".join(f"export {key}={shlex.quote(value)}\n" for key, value in words.items())
        layer.file("etc/profile.d/banger-environment.sh", exports.encode())
    if not start:
        return
    argv = [*(run.entrypoint or ()), *(run.cmd or ())]
    texts = [*argv, run.user, run.working_dir]
    if not argv or len(argv) > _MAX_WORDS or any("\0" in text or len(text) > _MAX_TEXT for text in texts):  # fmt: skip
        raise InvalidInputError(
            "the image has no command that could be started",
            detail="its configuration names neither Entrypoint nor Cmd",
            hint="leave --start-command out",
        )
    if run.user not in {"", "0", "root", "0:0", "root:root"}:
        layer.file(f"{_LIB}/as_user.py", (payload_dir() / "foreign" / "as_user.py").read_bytes())
        argv = [*python, "-I", "-S", f"/{_LIB}/as_user.py", run.user, *argv]
    exports = "".join(f"export {key}={shlex.quote(value)}\n" for key, value in words.items())
    script = f"#!/{_LIB}/busybox sh\n{exports}cd {shlex.quote(run.working_dir or '/')} || exit 1\nexec {shlex.join(argv)}\n"  # fmt: skip
    layer.file(f"{_LIB}/entrypoint", script.encode(errors="surrogateescape"), 0o755)
    if found.systemd is not None:
        unit = f"[Unit]\nDescription=The command of the container image\n\n[Service]\nExecStart=/{_LIB}/entrypoint\nRestart=always\nRestartSec=1\n"  # fmt: skip
        layer.file(f"{UNITS}/banger-container.service", unit.encode())
        layer.links[f"{UNITS}/multi-user.target.wants/banger-container.service"] = "../banger-container.service"  # fmt: skip
