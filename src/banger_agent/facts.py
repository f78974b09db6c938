"""What the agent can say of its guest: use of resources, listening sockets. And file system growth."""

import os

_MAX_PORTS = 4096
_EXT4_IOC_RESIZE_FS = 0x40086610  # linux/ext4.h: _IOW('f', 16, __u64)


def _read(path):
    with open(path) as file:
        return file.read()


def uptime_s():
    return float(_read("/proc/uptime").split()[0])


def boot_id():
    return _read("/proc/sys/kernel/random/boot_id").strip()


def _usage(path):
    status = os.statvfs(path)
    total = status.f_blocks * status.f_frsize
    return total, total - status.f_bfree * status.f_frsize


def stats():
    """The answer to /stats."""
    memory = dict(line.split(":", 1) for line in _read("/proc/meminfo").splitlines())
    rootfs_total, rootfs_used = _usage("/")
    work_total, work_used = _usage("/root")
    return {
        "uptime_s": uptime_s(),
        "load_1m": float(_read("/proc/loadavg").split()[0]),
        "memory_total_bytes": int(memory["MemTotal"].split()[0]) * 1024,
        "memory_available_bytes": int(memory["MemAvailable"].split()[0]) * 1024,
        "rootfs_total_bytes": rootfs_total,
        "rootfs_used_bytes": rootfs_used,
        "work_total_bytes": work_total,
        "work_used_bytes": work_used,
    }


def ports():
    """The answer to /ports: sockets that listen (TCP state 0A, UDP state 07 of proc(5))."""
    owners = _socket_owners()
    found = []
    for protocol, state in (("tcp", "0A"), ("tcp6", "0A"), ("udp", "07"), ("udp6", "07")):
        try:
            lines = _read("/proc/net/" + protocol).splitlines()[1:]
        except FileNotFoundError:
            continue  # no IPv6
        for line in lines:
            fields = line.split()
            if fields[3] == state and len(found) < _MAX_PORTS:
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
    """The address that /proc/net writes as words of 4 bytes in hex, each in the machine's byte order."""
    import struct
    from _socket import AF_INET, AF_INET6, inet_ntop

    words = [text[i : i + 8] for i in range(0, len(text), 8)]
    packed = b"".join(struct.pack("=I", int(word, 16)) for word in words)
    return inet_ntop(AF_INET if len(packed) == 4 else AF_INET6, packed)


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


def ext4_size(superblock):
    """Number and size in bytes of the blocks of the ext4 whose superblock this is; ValueError if it is none."""
    word = lambda at, size=4: int.from_bytes(superblock[at : at + size], "little")  # noqa: E731
    if word(0x38, 2) != 0xEF53:
        raise ValueError("no ext4")
    wide = word(0x60) & 0x80  # INCOMPAT_64BIT: there are more than 32 bits
    return word(0x4) + (word(0x150) << 32 if wide else 0), 1024 << word(0x18)


def grow(device, mount):
    """Let the file system at ``mount`` fill its drive, if the drive is larger; the new size in bytes, or None if nothing was to be done."""
    descriptor = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        drive_bytes = os.lseek(descriptor, 0, os.SEEK_END)
        blocks, block_bytes = ext4_size(os.pread(descriptor, 1024, 1024))
    finally:
        os.close(descriptor)
    if drive_bytes // block_bytes <= blocks:
        return None
    import fcntl

    wanted = drive_bytes // block_bytes
    descriptor = os.open(mount, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(descriptor, _EXT4_IOC_RESIZE_FS, wanted.to_bytes(8, "little"))
    finally:
        os.close(descriptor)
    return wanted * block_bytes
