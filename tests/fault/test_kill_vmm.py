"""``kill -9`` of QEMU at any time: while it is started, while its guest boots, while it is stopped or paused. It is noticed at once, and
told truthfully."""

import os
import signal

import pytest

from banger.api import schema
from tests.framework.faulty import FINAL, Faulty, check_truth, ended
from tests.framework.installation import wait_until
from tests.framework.operations import stages

STAGES = stages()
NOTICED_S = 30  # on a busy host; who did not look would wait for the guest for five minutes
WISH = schema.VmCreate(name="one", memory_mib=512, work_bytes=1 << 30)


def from_vmm_on(kind):
    names = STAGES[kind]
    return names[names.index("vmm") :]


@pytest.fixture(scope="module")
def banger(tmp_path_factory, image):
    installation = Faulty(tmp_path_factory.mktemp("fault"))
    yield installation
    left = installation.close()
    assert not left, f"left behind: {left}"


@pytest.fixture(autouse=True)
def logs_of_failures(request, banger):
    yield
    if getattr(request.node, "failed", False):
        print(banger.logs())


def kill_vmm(banger, how=signal.SIGKILL):
    (pid,) = wait_until(banger.qemus, 60)
    os.kill(pid, how)


def kill_at(banger, client, operation, stage):
    """Kill QEMU once ``operation`` is at ``stage``; in the stage that starts it as soon as there is one. Whether the operation was over by
    then: a test that is held up comes too late.
    """
    if stage != "vmm":
        wait_until(lambda: stage in [s.name for s in client.operation(operation.id).stages], 60)
    over = client.operation(operation.id).state in FINAL
    kill_vmm(banger)
    return over


@pytest.mark.parametrize("stage", from_vmm_on("vm.create"))
def test_in_create_and_start(banger, stage):
    """A step that waits is cut short; a step that is too quick is slowed down. What was made is undone or kept as a failed VM."""
    slow = f"vm.create.{stage}.before=slow,vm.start.{stage}.before=slow" if stage != "vmm" else ""
    with banger.daemon(slow) as client:
        operation = client.create_vm(WISH)
        over = kill_at(banger, client, operation, stage)
        final = ended(client, operation, NOTICED_S)
        died_as(final, client, stage, over=over)
        check_truth(banger, client)
        for vm in client.vms():
            begun = client.start_vm(vm.id)
            over = kill_at(banger, client, begun, stage)
            died_as(ended(client, begun, NOTICED_S), client, stage, over=over)
            check_truth(banger, client)
            assert ended(client, client.delete_vm(vm.id)).state == "succeeded"
        check_truth(banger, client)
        assert client.vms() == []


def died_as(final, client, stage, *, over):
    """The operation failed with what happened, and a VM that it left is failed too."""
    if final.state == "succeeded" and (
        over or stage == STAGES["vm.create"][-1]
    ):  # it was ready, then it died
        wait_until(lambda: client.vms()[0].state == "failed", NOTICED_S)
    else:
        assert final.state == "failed"
        assert "SIGKILL" in final.error.what + final.error.detail
    for vm in client.vms():  # one whose VMM was never up is as it was before
        assert vm.state == "failed" or (stage == "vmm" and vm.state == "stopped")
        assert "SIGKILL" in vm.status.last_error.what + vm.status.last_error.detail


def test_while_stopping_pausing_and_paused(banger):
    with banger.daemon("vm.stop.shutdown.before=slow,vm.pause.vmm.before=slow") as client:
        assert banger.make(client, "one").state == "succeeded"
        kill_vmm(banger, signal.SIGSTOP)  # else its guest may be down before it is looked for
        operation = client.stop_vm("one")
        wait_until(lambda: client.vm("one").state == "stopping", 30)
        kill_vmm(banger)
        assert ended(client, operation).state == "succeeded"
        assert client.vm("one").state == "stopped"
        check_truth(banger, client)

        assert ended(client, client.start_vm("one")).state == "succeeded"
        kill_vmm(banger, signal.SIGSTOP)  # else it may be paused before it is killed
        operation = client.pause_vm("one")
        wait_until(lambda: client.operation(operation.id).stages, 30)
        kill_vmm(banger)
        assert ended(client, operation).state == "failed"
        wait_until(lambda: client.vm("one").state == "failed", NOTICED_S)
        check_truth(banger, client)

        assert ended(client, client.start_vm("one")).state == "succeeded"
        assert ended(client, client.pause_vm("one")).state == "succeeded"
        kill_vmm(banger)
        failed = wait_until(lambda: (vm := client.vm("one")).state == "failed" and vm, NOTICED_S)
        assert "SIGKILL" in failed.status.last_error.what + failed.status.last_error.detail
        check_truth(banger, client)
        assert ended(client, client.delete_vm("one")).state == "succeeded"


@pytest.mark.parametrize(
    "stage",
    [
        pytest.param(s, marks=[pytest.mark.long] * (s != "agent"))
        for s in from_vmm_on("vm.create")[1:]
    ],
)
def test_together_with_the_daemon(banger, stage):
    """Both die at once, at a step of create: the next daemon undoes all of it."""
    with banger.daemon(f"vm.create.{stage}.before=hang") as client:
        operation = client.create_vm(WISH)
        wait_until(
            lambda: [s.name for s in client.operation(operation.id).stages][-1:] == [stage], 60
        )
        for pid in [*banger.qemus(), banger.process.pid]:
            os.kill(pid, signal.SIGKILL)
        banger.dies()
    with banger.daemon() as client:
        assert client.vms() == []
        assert client.operations(limit=1)[0].state == "failed"
        check_truth(banger, client, fresh=True)
