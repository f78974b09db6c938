"""Lives of VMs with kills at random: of the daemon, of the VMM, of what keeps the network. However often, nothing is left and nothing grows.

BANGER_SOAK_CYCLES says how many (CI: 40, 1,000 take a quarter of an hour), BANGER_SOAK_SEED repeats a run.
"""

import contextlib
import os
import random
import signal
import sqlite3
import time
from pathlib import Path

import pytest

from banger.api import schema
from banger.model.errors import BangerError
from tests.framework.faulty import FINAL, Faulty, check_truth, ended

CYCLES = int(os.environ.get("BANGER_SOAK_CYCLES", "40"))
SEED = os.environ.get("BANGER_SOAK_SEED") or str(random.SystemRandom().randrange(10**6))
WISH = schema.VmCreate(name="one", memory_mib=256, work_bytes=1 << 30)
VICTIMS = ("nobody", "daemon", "vmm", "holder", "uplink")
AT_WORK_S = 0.5  # within it most kills fall into a create, some into a boot
MIB = 1 << 20


@pytest.fixture
def banger(tmp_path, image):
    installation = Faulty(tmp_path)
    yield installation
    left = installation.close()
    assert not left, f"left behind: {left}"


def pids_of(banger, victim):
    """What is to be killed, of those that are there just now."""
    if victim == "daemon":
        return [banger.process.pid]
    if victim == "vmm":
        return banger.qemus()
    word = {"holder": "banger.network.holder", "uplink": "slirp4netns"}[victim]
    return [pid for pid, text in banger.processes().items() if word in text]


def life(banger, client, dice):
    """Create, kill somebody meanwhile; whether the daemon lives on."""
    victim = dice.choice(VICTIMS)
    client.create_vm(WISH)
    time.sleep(dice.uniform(0, AT_WORK_S))
    for pid in [] if victim == "nobody" else pids_of(banger, victim):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return victim != "daemon"


def tidy(banger, client):
    """End what is under way, delete what is there: then host and record agree, and there is nothing."""
    for operation in client.operations(limit=10):
        if operation.state not in FINAL:
            with contextlib.suppress(BangerError):  # it has ended meanwhile
                client.cancel(operation.id)
            ended(client, operation)
    for vm in client.vms():
        assert ended(client, client.delete_vm(vm.id)).state == "succeeded"
    assert client.vms() == []
    check_truth(banger, client)


def usage(pid):
    """Descriptors, threads and resident bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    resident = int(status.partition("VmRSS:")[2].split()[0]) << 10
    return len(os.listdir(f"/proc/{pid}/fd")), len(os.listdir(f"/proc/{pid}/task")), resident


def test_whoever_is_killed_nothing_is_left(banger):
    dice, done, first = random.Random(SEED), 0, None
    print(f"BANGER_SOAK_SEED={SEED} BANGER_SOAK_CYCLES={CYCLES}")
    while done < CYCLES:
        with banger.daemon() as client:
            tidy(banger, client)
            first = None
            while done < CYCLES:
                done += 1
                if not life(banger, client, dice):
                    break
                tidy(banger, client)
                first = first or usage(banger.process.pid)
            else:
                last = usage(banger.process.pid)
                assert last[0] - first[0] <= 8, "descriptors grow"
                assert last[2] - first[2] <= 16 * MIB, "memory grows"
    with banger.daemon() as client:
        tidy(banger, client)
    with sqlite3.connect(banger.state / "banger.db") as database:
        for table in ("vms", "leases", "ledger"):
            assert database.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)
    database.close()
