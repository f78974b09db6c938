"""Checks of this host's kernel and clock."""

from __future__ import annotations

import ctypes
import os
import struct

from banger.doctor.check import Check, Skip
from banger.host import nft, probe
from banger.host.config import Config
from banger.host.exec import run_sync
from banger.host.probe import Answer
from banger.model.errors import BangerError

_STA_UNSYNC = 0x0040  # linux/timex.h
_TIMEX = struct.Struct(
    "@Illlli"
)  # struct timex of adjtimex(2), up to its status; all of it has some 200 bytes
_TIMEX_ROOM_BYTES = 512
_TUN = "/dev/net/tun"
_MODPROBE_S = 10.0


def _tun(config: Config) -> Answer | Skip:
    del config
    try:
        os.close(os.open(_TUN, os.O_RDWR | os.O_CLOEXEC))
    except PermissionError:
        return Answer(ok=False, why=f"{_TUN}: permission denied", hint=f"sudo chmod 0666 {_TUN}")
    except OSError as error:
        return Answer(ok=False, why=f"{_TUN}: {error.strerror}", hint="sudo modprobe tun")
    return Answer(ok=True, found=_TUN)


def _load_tun(config: Config) -> str:
    del config
    run_sync(["modprobe", "tun"], timeout_s=_MODPROBE_S)
    return "loaded the module tun"


def _nft(config: Config) -> Answer | Skip:
    del config
    try:
        return Answer(ok=True, found=nft.program())
    except BangerError as error:
        return Answer(ok=False, why=error.what, hint=error.hint)


def _loop(config: Config) -> Answer | Skip:
    del config
    return probe.loop() if os.geteuid() == 0 else Skip("asked for root alone")


def _device_mapper(config: Config) -> Answer | Skip:
    del config
    return probe.device_mapper() if os.geteuid() == 0 else Skip("asked for root alone")


def _clock(config: Config) -> Answer | Skip:
    """Guests start with this host's time."""
    del config
    state = ctypes.create_string_buffer(_TIMEX_ROOM_BYTES)
    if ctypes.CDLL(None, use_errno=True).adjtimex(state) < 0:
        return Skip(f"the kernel does not say: {os.strerror(ctypes.get_errno())}")
    *_, status = _TIMEX.unpack_from(state)
    if status & _STA_UNSYNC:
        return Answer(
            ok=False,
            why="nothing keeps this host's clock right (NTP)",
            hint="sudo timedatectl set-ntp true",
        )
    return Answer(ok=True, found="synchronized")


CHECKS = (
    Check("tun", _tun, "VMs have no network of banger's own", fix=_load_tun, fixed_by_root=True),
    Check("nft", _nft, "VMs have no network of banger's own"),
    Check("loop", _loop, "no root disks by dm-snapshot, no setup storage"),
    Check("device mapper", _device_mapper, "no root disks by dm-snapshot"),
    Check("clock", _clock, "guests get this host's time, and certificates may seem invalid"),
)
