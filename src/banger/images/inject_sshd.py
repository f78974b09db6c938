"""An sshd of somebody else's, made a guest's: by key only, on the port that is asked, whatever its configuration says.

sshd takes the first value that it reads, so banger's have to come first. Where they do not anyway, they are put on top of
``sshd_config`` as text: an OpenSSH before 8.2 knows no ``Include``. What adds up instead (ports, addresses, host keys, who may come in)
is commented out.
"""

from __future__ import annotations

import re
from typing import Final

from banger.images.addition import Addition, payload
from banger.images.root_tree import RootTree

CONFIG: Final = "etc/ssh/sshd_config"
DROP_INS: Final = "etc/ssh/sshd_config.d"
_OURS: Final = "50-banger.conf"
_BARRED: Final = (
    "Port", "ListenAddress", "AddressFamily", "PubkeyAuthentication", "AuthenticationMethods",
    "AllowUsers", "DenyUsers", "AllowGroups", "DenyGroups", "HostKey", "HostCertificate", "HostKeyAgent",
)  # fmt: skip
_BARRED_LINE = re.compile(rb"(?mi)^([ \t]*(?:%s)\b)" % "|".join(_BARRED).encode())
_FIRST = re.compile(rb"\A(?:[ \t]*(?:#[^\n]*)?\n)*[ \t]*Include[ \t]+\S*sshd_config\.d/\*", re.IGNORECASE)  # fmt: skip
_BEGIN: Final = b"# banger's settings: the first value counts.\n"
_MARK: Final = b"#not with banger# "


def add_sshd(layer: Addition, tree: RootTree, contents: dict[str, bytes], variables: dict[str, str]) -> None:  # fmt: skip
    """Settings that count, and no host key; ``variables`` are set in every session."""
    ours = payload(f"{DROP_INS}/{_OURS}")
    if variables:
        text = " ".join(f'"{key}={value}"' for key, value in variables.items() if not set('"\\\n') & set(value))  # fmt: skip
        ours += f"SetEnv {text}\n".encode()
    layer.file(f"{DROP_INS}/{_OURS}", ours)
    for path, data in contents.items():
        if path.startswith(f"{DROP_INS}/") and path != f"{DROP_INS}/{_OURS}" and barred(data) != data:  # fmt: skip
            layer.file(path, barred(data))
    config = contents.get(CONFIG, b"")
    wanted = barred(config)
    if not _FIRST.search(config) or any(name < _OURS for name in _names(tree, f"/{DROP_INS}")):
        wanted = _BEGIN + ours + b"\n" + wanted
    if wanted != config:
        layer.file(CONFIG, wanted)
    layer.removed += [f"etc/ssh/{name}" for name in _names(tree, "/etc/ssh") if name.startswith("ssh_host_")]  # fmt: skip
    for path in ("run/nologin", "etc/ssh/sshd_not_to_be_run"):
        layer.removed += [path] if tree.look(f"/{path}", follow=False) is not None else []


def barred(config: bytes) -> bytes:
    """A configuration in which nobody is kept out, and no other port or host key is named."""
    return _BARRED_LINE.sub(_MARK + rb"\1", config)


def _names(tree: RootTree, path: str) -> list[str]:
    node = tree.look(path)
    return sorted(node.children or ()) if node is not None else []
