"""Lives of VMs with kills at random: of the daemon, of the VMM, of what keeps the network, of banger-helper. However often, nothing is left and nothing grows.

BANGER_SOAK_CYCLES says how many in each mode of the network (CI: 40 and 20, 1,000 take a quarter of an hour), BANGER_SOAK_SEED repeats a run.
"""

import contextlib
import os
import random
import signal
import sqlite3
import subprocess
import time
from pathlib import Path

import pytest

from banger.api import schema
from banger.host.probe import root
from banger.model.errors import BangerError
from tests.framework.faulty import FINAL, Faulty, check_truth, ended
from tests.framework.helper_host import links

CYCLES = int(os.environ.get("BANGER_SOAK_CYCLES", "40"))
BRIDGE_CYCLES = int(os.environ.get("BANGER_SOAK_CYCLES", "20"))
SEED = os.environ.get("BANGER_SOAK_SEED") or str(random.SystemRandom().randrange(10**6))
WISH = schema.VmCreate(name="one", memory_mib=256, work_bytes=1 << 30)
VICTIMS = ("nobody", "daemon", "vmm", "holder", "uplink")
BRIDGE_VICTIMS = (*VICTIMS, "helper")
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


def kill(banger, victim, helper):
    """kill -9; a routed uplink is a link, and is removed."""
    if victim == "nobody":
        return
    if victim == "helper":
        helper.kill()
        helper.start()
        return
    if victim == "uplink" and helper is not None:
        for link in links():
            if link.startswith("banger-up"):  # it may go by itself just now
                subprocess.run(["ip", "link", "delete", link], check=False, capture_output=True)
        return
    for pid in pids_of(banger, victim):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def life(banger, client, dice, helper):
    """Create, kill somebody meanwhile; whether the daemon lives on."""
    victim = dice.choice(VICTIMS if helper is None else BRIDGE_VICTIMS)
    client.create_vm(WISH)
    time.sleep(dice.uniform(0, AT_WORK_S))
    kill(banger, victim, helper)
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
    """How many descriptors it has, and its resident bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    resident = int(status.partition("VmRSS:")[2].split()[0]) << 10
    return len(os.listdir(f"/proc/{pid}/fd")), resident


def check_growth(seen):
    """What grows is never again as little as it was: nine descriptors come and go with the network, while it lingers or is being made."""
    early, late = seen[: len(seen) // 2], seen[len(seen) // 2 :]
    if early:
        print(f"descriptors: {[count for count, _ in seen]}")
        assert min(late)[0] <= min(early)[0] + 8, "descriptors grow"
        assert late[-1][1] - early[0][1] <= 16 * MIB, "memory grows"


def soak(banger, cycles, helper=None):
    """That many lives, with a daemon for as long as it is not the victim."""
    dice, done = random.Random(SEED), 0
    print(f"BANGER_SOAK_SEED={SEED} BANGER_SOAK_CYCLES={cycles}")
    while done < cycles:
        with banger.daemon() as client:
            tidy(banger, client)
            seen = []
            while done < cycles and life(banger, client, dice, helper):
                done += 1
                tidy(banger, client)
                seen.append(usage(banger.process.pid))
            done += 1
            check_growth(seen)
    with banger.daemon() as client:
        tidy(banger, client)
    with contextlib.closing(sqlite3.connect(banger.state / "banger.db")) as database:
        for table in ("vms", "leases", "ledger"):
            assert database.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)


def test_whoever_is_killed_nothing_is_left(banger):
    soak(banger, CYCLES)


@pytest.mark.skipif(not root(), reason=f"a host of its own: {root().why}")
def test_whoever_is_killed_nothing_is_left_on_a_host_with_a_helper(helper, bridged):
    soak(bridged, BRIDGE_CYCLES, helper)
    assert "uplink.attach" in (helper.state / "audit.log").read_text()
