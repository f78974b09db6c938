"""Who one VM is: the identity drive that its initramfs applies before init runs, and banger's side of it.

The drive is a raw tar. ``rootfs/…`` is copied over the guest's root; ``control/network`` (KEY=value lines), ``control/clock`` (epoch
seconds) and ``control/seed`` (512 random bytes) are used by the initramfs itself. Machine-id, SSH host key and agent token are made once
and kept over restarts; clock and seed are new each time. No two VMs share any of it.
"""

from __future__ import annotations

import asyncio
import fcntl
import io
import os
import secrets
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from banger.host import fs
from banger.host.exec import find_program, run
from banger.model.ids import is_id
from banger.model.machine import HostKey, IdentityRequest, VmPaths
from banger.model.manifest import services_json

SEED_BYTES = 512
_KEY = "rootfs/etc/ssh/ssh_host_ed25519_key"
_MACHINE_ID = "rootfs/etc/machine-id"
_TOKEN = "rootfs/etc/banger/agent-token"  # noqa: S105  a path
_SECRET = {_KEY, _TOKEN, "rootfs/etc/banger/authorized_keys"}
_KEPT = (_KEY, f"{_KEY}.pub", _MACHINE_ID, _TOKEN)


class IdentityStore:
    """Identity drives, the managed client key ``ssh/id_ed25519`` and ``known_hosts``, all below ``state_dir``."""

    def __init__(self, state_dir: Path) -> None:
        self._ssh = state_dir / "ssh"
        self._known_hosts = state_dir / "known_hosts"
        self._lock = asyncio.Lock()

    async def write(self, request: IdentityRequest, paths: VmPaths) -> HostKey:
        """Write the drive and the agent token; see `engine.ports.Identity`."""
        client_key = await self._client_key()
        files = _kept(paths.identity)
        if _KEY not in files:
            files[_KEY], files[f"{_KEY}.pub"] = await _new_key(paths.identity.parent, request.vm_id)
        files.setdefault(_MACHINE_ID, secrets.token_hex(16).encode() + b"\n")
        files.setdefault(_TOKEN, secrets.token_hex(32).encode() + b"\n")
        files["rootfs/etc/banger/authorized_keys"] = client_key
        now_s = int(time.time())  # noqa: TID251  the guest's clock is set from ours
        files |= _settings(request, now_s)
        public = files[f"{_KEY}.pub"].decode().strip()
        fs.write_atomic(paths.agent_token, files[_TOKEN])
        fs.write_atomic(paths.identity, _tar(files, now_s))
        self._pin(request.vm_id, request.name, public)
        return HostKey(public)

    async def forget(self, vm_id: str, paths: VmPaths) -> None:
        """Remove drive, token and the line in known_hosts; idempotent."""
        for path in (paths.identity, paths.agent_token):
            path.unlink(missing_ok=True)
        if self._known_hosts.exists():
            with self._locked(self._known_hosts):
                self._write_known_hosts(self._others(vm_id))

    def known_hosts(self) -> frozenset[str]:
        """The VMs that have a line, by id."""
        hosts = [host for line in self._others() for host in line.partition(" ")[0].split(",")]
        names = [host.removesuffix(".banger") for host in hosts if host.endswith(".banger")]
        return frozenset(name for name in names if is_id(name))

    async def _client_key(self) -> bytes:
        """The managed client key's public half; the pair is made on first use, or when a half is gone."""
        private, public = self._ssh / "id_ed25519", self._ssh / "id_ed25519.pub"
        async with self._lock:
            fs.make_private_dir(self._ssh)
            if not (private.exists() and public.exists()):
                private_half, public_half = await _new_key(self._ssh, "managed by banger")
                with self._locked(private):
                    if not (private.exists() and public.exists()):
                        fs.write_atomic(private, private_half)
                        fs.write_atomic(public, public_half, mode=0o644)
        return public.read_bytes()

    def _pin(self, vm_id: str, name: str, public: str) -> None:
        """One line for the VM, in place of what was known of its id or its name."""
        key = " ".join(public.split()[:2])
        with self._locked(self._known_hosts):
            line = f"{vm_id}.banger,{name}.banger {key}"
            self._write_known_hosts([*self._others(vm_id, name), line])

    def _others(self, *hosts: str) -> list[str]:
        """The lines that name none of ``hosts``."""
        mine = {f"{host}.banger" for host in hosts}
        lines = self._known_hosts.read_text().splitlines() if self._known_hosts.exists() else []
        return [line for line in lines if mine.isdisjoint(line.partition(" ")[0].split(","))]

    def _write_known_hosts(self, lines: list[str]) -> None:
        fs.write_atomic(self._known_hosts, "".join(f"{line}\n" for line in lines).encode())

    @contextmanager
    def _locked(self, path: Path) -> Iterator[None]:
        """Keep other processes from changing ``path``; held for a small write at a time."""
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        descriptor = os.open(path.with_name(f"{path.name}.lock"), flags, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


async def _new_key(directory: Path, comment: str) -> tuple[bytes, bytes]:
    """A fresh ed25519 key pair: private and public file contents. It is made below ``directory``, with which it goes if we are killed."""
    with fs.temporary_directory(directory) as own:
        path = own / "key"
        tool = find_program("ssh-keygen", package="openssh-client")
        await run(
            [tool, "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(path)], timeout_s=30
        )
        return path.read_bytes(), path.with_suffix(".pub").read_bytes()


def _kept(path: Path) -> dict[str, bytes]:
    """What an earlier drive says that must not change."""
    files: dict[str, bytes] = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                file = archive.extractfile(member) if member.name in _KEPT else None
                if file is not None:
                    files[member.name] = file.read()
    except (FileNotFoundError, tarfile.TarError):
        return {}
    return files if set(_KEPT) <= set(files) else {}


def _settings(request: IdentityRequest, now_s: int) -> dict[str, bytes]:
    lease = request.lease
    hosts = f"127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n127.0.1.1 {request.name}.banger {request.name}\n"
    servers = [] if lease is None else [lease.dns]
    if lease is not None and request.peers:
        servers.insert(0, lease.names)
    files = {
        "rootfs/etc/hostname": f"{request.name}\n".encode(),
        "rootfs/etc/hosts": hosts.encode(),
        "control/clock": f"{now_s}\n".encode(),
        "control/seed": secrets.token_bytes(SEED_BYTES),
        "rootfs/etc/resolv.conf": "".join(f"nameserver {a}\n" for a in servers).encode(),
    }
    if request.services is not None:
        files["rootfs/etc/banger/services.json"] = services_json(request.services)
    if lease is not None:
        network = {"ADDRESS": f"{lease.ip}/{lease.prefix_length}", "GATEWAY": lease.gateway}
        if request.mtu is not None:
            network["MTU"] = str(request.mtu)
        files["control/network"] = "".join(
            f"{key}={value}\n" for key, value in network.items()
        ).encode()
    return files


def _tar(files: dict[str, bytes], now_s: int) -> bytes:
    """A tar of root's; private files 0600, the others 0644, directories 0755."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        directories = sorted(
            {str(parent) for name in files for parent in Path(name).parents} - {"."}
        )
        for directory in directories:
            info = tarfile.TarInfo(directory)
            info.type, info.mode, info.mtime = tarfile.DIRTYPE, 0o755, now_s
            archive.addfile(info)
        for name, data in sorted(files.items()):
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), 0o600 if name in _SECRET else 0o644
            info.mtime = now_s
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()
