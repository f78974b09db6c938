"""What the agent can say of its guest: health, use of resources, listening sockets, file system growth."""

import os
import socket
import struct
import time

from banger_agent import VERSION

SERVICES = "/etc/banger/services.json"
_EXT4_IOC_RESIZE_FS = 0x40086610  # linux/ext4.h: _IOW('f', 16, __u64)
_BLKGETSIZE64 = 0x80081272  # linux/fs.h
_POLL_S = 0.02


def _read(path):
    with open(path) as file:
        return file.read()


def _declared(path):
    import json

    try:
        return json.loads(_read(path))
    except FileNotFoundError:
        return []


def answers(port):
    """Whether something on this guest accepts TCP connections on ``port``; sshd must also say who it is."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1.0) as connection:
            return port != 22 or connection.recv(4) == b"SSH-"
    except OSError:
        return False


def health(wait_ms=0, services=SERVICES):
    """The answer to /healthz, once every service answers or ``wait_ms`` have passed."""
    end = time.monotonic() + wait_ms / 1000
    declared = _declared(services)
    state = {}
    while True:
        for item in declared:
            if not state.get(item["name"]):
                state[item["name"]] = answers(item["port"])
        if all(state.values()) or time.monotonic() >= end:
            break
        time.sleep(_POLL_S)
    return {
        "status": "ok",
        "version": VERSION,
        "boot_id": _read("/proc/sys/kernel/random/boot_id").strip(),
        "uptime_s": float(_read("/proc/uptime").split()[0]),
        "services": [
            {"name": s["name"], "port": s["port"], "ready": state[s["name"]]} for s in declared
        ],
    }


def _used(path):
    status = os.statvfs(path)
    return (status.f_blocks - status.f_bfree) * status.f_frsize


def stats():
    """The answer to /stats."""
    memory = dict(line.split(":", 1) for line in _read("/proc/meminfo").splitlines())
    return {
        "uptime_s": float(_read("/proc/uptime").split()[0]),
        "load_1m": float(_read("/proc/loadavg").split()[0]),
        "memory_total_bytes": int(memory["MemTotal"].split()[0]) * 1024,
        "memory_available_bytes": int(memory["MemAvailable"].split()[0]) * 1024,
        "rootfs_used_bytes": _used("/"),
        "work_used_bytes": _used("/root"),
    }


def ports():
    """The answer to /ports: sockets that listen (TCP state 0A, UDP state 07 of proc(5))."""
    owners = _socket_owners()
    found = []
    for protocol, state in (("tcp", "0A"), ("tcp6", "0A"), ("udp", "07"), ("udp6", "07")):
        try:
            lines = _read("/proc/net/" + protocol).splitlines()[1:]
        except FileNotFoundError:
            continue
        for line in lines:
            fields = line.split()
            if fields[3] == state:
                address, port = fields[1].split(":")
                found.append(
                    {
                        "protocol": protocol,
                        "address": _address(address),
                        "port": int(port, 16),
                        "process": owners.get(fields[9], ""),
                    }
                )
    return found


def _address(text):
    words = [text[i : i + 8] for i in range(0, len(text), 8)]
    packed = b"".join(struct.pack("=I", int(word, 16)) for word in words)
    return socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed)


def _socket_owners():
    owners = {}
    for pid in os.listdir("/proc"):
        if not pid.isdigit():
            continue
        try:
            for descriptor in os.listdir("/proc/%s/fd" % pid):
                target = os.readlink("/proc/%s/fd/%s" % (pid, descriptor))
                if target.startswith("socket:["):
                    owners[target[8:-1]] = _read("/proc/%s/comm" % pid).strip()
        except OSError:
            continue  # the process has ended meanwhile
    return owners


def grow_root(device="/dev/vda", mount="/"):
    """Let the root file system fill its drive, if the drive is larger (it was made from a smaller image)."""
    import fcntl

    with open(device, "rb") as file:
        (drive_bytes,) = struct.unpack("Q", fcntl.ioctl(file, _BLKGETSIZE64, bytes(8)))
    status = os.statvfs(mount)
    block = status.f_bsize
    if drive_bytes - status.f_blocks * status.f_frsize > 256 * 1024 * 1024:
        descriptor = os.open(mount, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, _EXT4_IOC_RESIZE_FS, struct.pack("Q", drive_bytes // block))
        finally:
            os.close(descriptor)
