"""A daemon that a test starts with faults in it, talks to through the SDK, and finds dead; for the tests that kill things."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time

from banger.api import schema
from banger.client.sdk import Client
from banger.model.errors import BangerError
from tests.framework.installation import Installation, wait_until

FINAL = {"succeeded", "failed", "cancelled"}


class Faulty(Installation):
    """An installation whose daemon the test itself starts and ends."""

    process = None

    @contextlib.contextmanager
    def daemon(self, faults=""):
        """A client of a daemon with ``faults``; the daemon is ended afterwards if it still lives. Its VMs run on."""
        reader, writer = os.pipe()
        with (self.state / "bangerd.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "banger.daemon.main", "--ready-fd", str(writer)],
                env={"BANGER_DRAIN_S": "0", **self.env, "BANGER_FAULTS": faults}, pass_fds=[writer],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        os.close(writer)
        try:
            assert os.read(reader, 1) == b"1", self.logs()
            with Client(self.runtime / "bangerd.sock", timeout_s=60) as client:
                yield client
        finally:
            os.close(reader)
            if self.process.poll() is None:
                self.process.terminate()
            self.process.wait(60)

    def dies(self, timeout_s=60):
        """Wait until the daemon has killed itself."""
        assert self.process.wait(timeout_s) == -signal.SIGKILL

    def is_killed_in(self, point, work):
        """Do ``work(client)`` with a daemon that kills itself at ``point``, and see that it did."""
        with self.daemon(f"{point}=kill") as client:
            with contextlib.suppress(BangerError):  # it may die before it has answered
                work(client)
            self.dies()

    def qemus(self):
        """Pids of this installation's VMMs."""
        return [pid for pid, text in self.processes().items() if re.match(r"\S*qemu-system", text)]

    def begin(self, client, name, *, start=True):
        """Begin to create a VM as small as they come."""
        return client.create_vm(schema.VmCreate(name=name, memory_mib=512, work_bytes=1 << 30, start=start))  # fmt: skip

    def make(self, client, name, *, start=True):
        """The same, to the operation's end."""
        return ended(client, self.begin(client, name, start=start))


def ended(client, operation, timeout_s=180):
    """The operation at its end, whichever that is."""

    def there():
        now = client.operation(operation.id)
        return now.state in FINAL and now

    return wait_until(there, timeout_s, lambda: f"no end of {client.operation(operation.id)}")


SETTLE_S = 20.0  # less than an unused network lingers
NETWORK = ("banger.network.holder", "slirp4netns", "pasta")


def check_truth(banger, client, *, fresh=False):
    """Record and host agree: no operation is open, every VM is what it is said to be, and nothing exists that belongs to none.

    The network lingers for a while after its last VM; a daemon that has just started (``fresh``) does not keep what nobody uses.
    """
    assert {op.state for op in client.operations(limit=1000)} <= FINAL
    vms = client.vms()
    assert {vm.state for vm in vms} <= {"running", "paused", "stopped", "failed"}
    running = {vm.status.pid for vm in vms if vm.state in {"running", "paused"}}
    assert None not in running
    assert set(banger.qemus()) == running
    assert {path.name for path in banger.state.glob("vms/*")} == {vm.id for vm in vms}
    alive = {vm.id for vm in vms if vm.status.pid}
    assert {path.name for path in banger.runtime.glob("vms/*")} == alive
    mine = {banger.process.pid, *running}
    spared = NETWORK if running or not fresh else ()
    end = time.monotonic() + SETTLE_S
    while (others := _others(banger, mine, spared)) and time.monotonic() < end:
        time.sleep(
            0.05
        )  # an uplink that is started again just now is still called as the daemon is
    assert others == {}, f"belongs to no VM: {others}"


def _others(banger, mine, spared):
    """Processes of the installation that are not ``mine`` and have no word of ``spared`` in their command lines."""
    return {
        pid: text
        for pid, text in banger.processes().items()
        if pid not in mine and not any(word in text for word in spared)
    }
