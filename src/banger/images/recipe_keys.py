"""The keys of a recipe, their types and what they may be; what depends on more than one key is checked by `banger.images.recipe`."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from banger.images.tools import ToolTable
from banger.model.manifest import (
    CMDLINE_PATTERN,
    HTTP_PATH_PATTERN,
    MAX_CMDLINE_CHARS,
    SERVICE_PATTERN,
)

_Word = Annotated[str, msgspec.Meta(pattern=f"^{SERVICE_PATTERN}$")]
_ModuleName = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]
_Cmdline = Annotated[
    str, msgspec.Meta(pattern=f"^{CMDLINE_PATTERN}$", max_length=MAX_CMDLINE_CHARS)
]
_Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$")]
_Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
_HttpPath = Annotated[str, msgspec.Meta(pattern=f"^({HTTP_PATH_PATTERN})?$")]
_Account = Annotated[str, msgspec.Meta(pattern=r"^[a-z_][a-z0-9_-]{0,31}$")]
_Owner = Annotated[str, msgspec.Meta(pattern=r"^[a-z_][a-z0-9_-]{0,31}(:[a-z_][a-z0-9_-]{0,31})?$")]
_Mode = Annotated[str, msgspec.Meta(pattern=r"^[0-7]{3,4}$")]
_Text = Annotated[str, msgspec.Meta(max_length=1 << 20)]
_Shell = Annotated[str, msgspec.Meta(pattern=r"^(/[A-Za-z0-9._-]+)+$", max_length=128)]


class _Table(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    pass


class ServiceTable(_Table, frozen=True):
    """A ``[[services]]`` table: a TCP service of the guest that must answer before a VM counts as ready; with a ``path`` it must
    answer a GET of it with 200.
    """

    name: _Word
    port: _Port
    path: _HttpPath = ""


class UserTable(_Table, frozen=True):
    """A ``[[users]]`` table: an account without a password; groups that do not exist are made. ``sudo`` asks for none either."""

    name: _Account
    groups: list[_Account] = []
    shell: _Shell = "/bin/bash"
    sudo: bool = False


class FileTable(_Table, frozen=True):
    """A ``[[files]]`` table: a file of the guest, out of the file ``source`` (relative to the recipe) or ``content``."""

    path: str
    source: str | None = None
    content: _Text | None = None
    mode: _Mode = "0644"
    owner: _Owner = "root"


class HookTable(_Table, frozen=True):
    """A ``[[hooks]]`` table: a script that root runs in the image while it is built, out of the file ``script`` or ``run``."""

    stage: Literal["customize"]
    script: str | None = None
    run: _Text | None = None


class Recipe(_Table, frozen=True):
    """A recipe file. ``packages`` is a package list beside the recipe's parent folder or an absolute path; ``signing_keys`` are
    the SHA-256 of the keys that packages may be signed with, where they are verified here (Void).
    """

    name: str
    distribution: _Word
    release: _Word
    architecture: _Word
    packages: str
    profiles: list[_Word] = []
    add_packages: list[str] = []
    mirror: str | list[str] = []
    init: str = ""
    disk_size: str = "8G"
    work_seed_size: str = "1G"
    cmdline: _Cmdline = ""
    kernel_modules: list[_ModuleName] = []
    services: list[ServiceTable] = []
    users: list[UserTable] = []
    files: list[FileTable] = []
    hooks: list[HookTable] = []
    tools: list[ToolTable] = []
    signing_keys: list[_Sha256] = []


TABLES: dict[str, type[msgspec.Struct]] = {  # keys that are arrays of tables
    "services": ServiceTable,
    "users": UserTable,
    "files": FileTable,
    "hooks": HookTable,
    "tools": ToolTable,
}
ADDED = (
    *TABLES,
    "profiles",
    "add_packages",
)  # what a recipe adds to what the one it extends has; all else it replaces
