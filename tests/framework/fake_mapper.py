"""A device mapper where the kernel has none: it holds the devices of its tables open, as the kernel does, over real loop devices."""

import os
from pathlib import Path

from banger.host import dm
from banger.host.dm import Mapping, SnapshotStatus
from banger.host.probe import Answer
from banger.model.errors import CommandFailedError

YES = Answer(ok=True, found="fake")


class FakeMapper:
    """See `banger.storage.snapshots.mapper.Mapper`. A snapshot's device is its store's loop device; what is written to it is said by ``used``."""

    def __init__(self):
        self.made, self.lines, self.open = {}, {}, {}
        self.owners, self.used, self.busy, self.broken = {}, {}, set(), {}
        self.chunk = dm.CHUNK_SECTORS
        self.there = True
        self.log = []

    def is_there(self):
        return self.there

    async def mappings(self):
        return list(self.made.values())

    async def statuses(self):
        found = {}
        for name, lines in self.lines.items():
            words = lines.split()
            if words[2] == "snapshot":
                size = os.lseek(self.open[name][1], 0, os.SEEK_END)
                found[name] = SnapshotStatus(
                    self.used.get(name, 4096), size, self.broken.get(name, ""), int(words[1]) * 512
                )
        return found

    async def table(self, name):
        return self.lines[name].strip().removesuffix(str(dm.CHUNK_SECTORS)) + str(self.chunk)

    async def create(self, name, uuid, lines, *, read_only=False):
        self.log.append(("create", name))
        if name in self.made:
            raise CommandFailedError(
                ("dmsetup", "create"), "ended", stderr_tail="Device or resource busy"
            )
        words = lines.split()
        paths = [Path(word) for word in words if word[0] == "/"]
        flags = os.O_RDONLY if read_only else os.O_RDWR
        self.open[name] = [os.open(path, flags if path is paths[-1] else os.O_RDONLY) for path in paths]  # fmt: skip
        device = paths[-1]
        self.made[name] = Mapping(name, uuid, os.minor(device.stat().st_rdev))
        self.lines[name] = lines
        return device

    async def remove(self, uuid, *, timeout_s):
        for name, mapping in list(self.made.items()):
            if mapping.uuid == uuid:
                if name in self.busy:
                    raise CommandFailedError(
                        ("dmsetup", "remove"), "ended", stderr_tail="Device or resource busy"
                    )
                self.log.append(("remove", name))
                for descriptor in self.open.pop(name, []):
                    os.close(descriptor)
                del self.made[name]
                self.lines.pop(name, None)
                self.owners.pop(name, None)

    def below(self, mapping):
        return [Path(word) for word in self.lines[mapping.name].split() if word[0] == "/"]

    def give(self, mapping, uid):
        self.owners[mapping.name] = uid

    def take_back(self, mapping):
        self.owners[mapping.name] = 0

    def close(self):
        """As a restart of the host."""
        for descriptors in self.open.values():
            for descriptor in descriptors:
                os.close(descriptor)
        self.__init__()
