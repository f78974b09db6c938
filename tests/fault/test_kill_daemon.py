"""``kill -9`` of the daemon before and after every step of every operation: the next daemon finds out, undoes or adopts, and tells the truth.

The daemon kills itself at a trace point. Which points there are is taken from the operations themselves.
"""

import os
import signal

import pytest

from banger.api import schema
from banger.host import fs
from tests.framework.faulty import Faulty, check_truth, ended
from tests.framework.installation import wait_until
from tests.framework.operations import stages

STAGES = stages()


def points(kind, leave_out=()):
    """Every trace point of an operation, in order."""
    return [
        f"{kind}.{stage}.{where}"
        for stage in dict.fromkeys(STAGES[kind])
        if stage not in leave_out
        for where in ("before", "after")
    ]


def some(points, *more):
    """All of them as cases. Before a stage the host has what it had after the one before it: these are for long runs, but for the first."""
    seldom = [bool(n) and point.endswith(".before") for n, point in enumerate(points)]
    return [
        pytest.param(point, *more, marks=[pytest.mark.long] * long)
        for point, long in zip(points, seldom, strict=True)
    ]


@pytest.fixture(scope="module")
def banger(tmp_path_factory, image):
    """One installation for all: every test leaves it without VMs, or with those of the fixtures below."""
    installation = Faulty(tmp_path_factory.mktemp("fault"))
    yield installation
    left = installation.close()
    assert not left, f"left behind: {left}"


@pytest.fixture(autouse=True)
def logs_of_failures(request, banger):
    yield
    if getattr(request.node, "failed", False):
        print(banger.logs())


@pytest.fixture
def vm(banger):
    """A VM of the test's own at rest."""
    with banger.daemon() as client:
        made = banger.make(client, "one", start=False)
        assert made.state == "succeeded", made.error
    yield made.target
    with banger.daemon() as client:
        if any(vm.id == made.target for vm in client.vms()):
            assert ended(client, client.delete_vm(made.target)).state == "succeeded"
        check_truth(banger, client)


@pytest.fixture
def running(banger, vm):
    """The same, running."""
    with banger.daemon() as client:
        started = ended(client, client.start_vm(vm))
        assert started.state == "succeeded", started.error
    return vm


def in_images(banger):
    """Names of images, and of what is half made."""
    return sorted(path.name for path in banger.images.iterdir() if path.name != ".lock")


def last_of(kind):
    return f"{kind}.{STAGES[kind][-1]}.after"


@pytest.mark.parametrize("point", some(points("vm.create")))
def test_in_create(banger, point):
    """What was half made is undone; a VM that was complete but for the last word is kept."""
    banger.is_killed_in(point, lambda client: banger.make(client, "one"))
    with banger.daemon() as client:
        check_truth(banger, client, fresh=True)
        if point == last_of("vm.create"):
            assert [vm.state for vm in client.vms()] == ["running"]
            assert ended(client, client.delete_vm("one")).state == "succeeded"
            check_truth(banger, client)
        else:
            assert client.operations(limit=1)[0].state == "failed"
        assert client.vms() == []


@pytest.mark.parametrize("point", some(points("vm.start")))
def test_in_start(banger, vm, point):
    banger.is_killed_in(point, lambda client: ended(client, client.start_vm(vm)))
    with banger.daemon() as client:
        check_truth(banger, client, fresh=True)
        assert client.vm(vm).state == ("running" if point == last_of("vm.start") else "stopped")


@pytest.mark.parametrize("point", some(points("vm.stop")))
def test_in_stop(banger, running, point):
    banger.is_killed_in(point, lambda client: ended(client, client.stop_vm(running)))
    with banger.daemon() as client:
        check_truth(banger, client, fresh=True)
        assert client.vm(running).state == "stopped"


def halves():
    """Points of a restart: those where it stops the VM need a running one, the others do not; from the VMM on it is a start. Its stopping
    is that of `test_in_stop`.
    """
    first = STAGES["vm.stop"]
    behind = STAGES["vm.start"][STAGES["vm.start"].index("vmm") :]
    of_stop = [point for point in points("vm.restart") if point.split(".")[2] in first]
    of_start = points("vm.restart", {*first, *behind})
    return [
        *(pytest.param(point, "running", marks=pytest.mark.long) for point in of_stop),
        *some(of_start, "vm"),
    ]


@pytest.mark.parametrize(("point", "which"), halves())
def test_in_restart(banger, request, point, which):
    vm = request.getfixturevalue(which)
    banger.is_killed_in(point, lambda client: ended(client, client.restart_vm(vm)))
    with banger.daemon() as client:
        check_truth(banger, client, fresh=True)
        assert client.vm(vm).state == "stopped"


@pytest.mark.parametrize("point", some(points("vm.delete")))
def test_in_delete(banger, vm, point):
    """A deletion that was begun is finished."""
    banger.is_killed_in(point, lambda client: ended(client, client.delete_vm(vm)))
    with banger.daemon() as client:
        check_truth(banger, client, fresh=True)
        assert client.vms() == []


def test_in_delete_of_a_running_vm(banger, running):
    banger.is_killed_in("vm.delete.vmm.before", lambda client: client.delete_vm(running))
    with banger.daemon() as client:
        check_truth(banger, client, fresh=True)
        assert client.vms() == []


# Its stages with real disks, from tests/vm/test_promote.py; those of the engine's own tests are over a host in memory.
PROMOTE = ["check", "flatten", "repair", "clean", "compact", "seed", "kernel", "seal", "place"]


@pytest.mark.timeout(400)  # some ten promotions of a whole root
@pytest.mark.parametrize(
    "stages", [["compact", "place"], pytest.param(PROMOTE, marks=pytest.mark.long)], ids=len
)
def test_in_promote(banger, vm, stages):
    """At every point: nothing of an image, or a whole one; the next promotion works, and so does the VM."""
    before = in_images(banger)
    last = f"vm.promote.{PROMOTE[-1]}.after"
    for point in [*(f"vm.promote.{stage}.before" for stage in stages), last]:
        wish = schema.ImagePromote("mine", with_work=True)
        banger.is_killed_in(point, lambda client, wish=wish: ended(client, client.promote_vm(vm, wish)))  # fmt: skip
        with banger.daemon() as client:
            check_truth(banger, client, fresh=True)
            assert client.operations(limit=1)[0].state == "failed"
            assert client.vm(vm).state == "stopped"
            placed = point.startswith("vm.promote.place.")
            assert ("mine" in {image.name for image in client.images()}) is placed, point
            if placed:
                assert client.delete_image("mine").state == "succeeded"
            assert in_images(banger) == before, point
    with banger.daemon() as client:
        final = ended(client, client.promote_vm(vm, wish))
        assert final.state == "succeeded", final.error
        assert [stage.name for stage in final.stages] == PROMOTE
        assert client.delete_image("mine").state == "succeeded"


def test_while_a_root_disk_is_copied(banger, vm):
    """In the middle of it: what copies ends with the daemon, and the copy goes."""
    before = in_images(banger)
    with banger.daemon() as client:
        client.promote_vm(vm, schema.ImagePromote("mine"))
        wait_until(
            lambda: any(fs.allocated_bytes(p) > 16 << 20 for p in banger.images.glob(".build-*/rootfs.img")), 60
        )  # fmt: skip
        os.kill(banger.process.pid, signal.SIGKILL)
        banger.dies()
    with banger.daemon() as client:
        check_truth(banger, client, fresh=True)
        assert in_images(banger) == before
        assert client.vm(vm).state == "stopped"


@pytest.mark.parametrize("point", some(points("image.delete")))
def test_in_image_delete(banger, point):
    """The image is whole, or gone with all its files once the next daemon has started; another try does the rest."""
    before = in_images(banger)
    with banger.daemon() as client:
        wish = schema.ImageRegister("idle", base="debian")
        assert ended(client, client.register_image(wish)).state == "succeeded"
    banger.is_killed_in(point, lambda client: client.delete_image("idle"))
    with banger.daemon() as client:
        check_truth(banger, client, fresh=True)
        assert client.operations(limit=1)[0].state == "failed"
        there = "idle" in {image.name for image in client.images()}
        assert there is (point == points("image.delete")[0])
        if there:
            final = client.delete_image("idle")
            assert final.state == "succeeded"
            assert [stage.name for stage in final.stages] == STAGES["image.delete"]
        assert in_images(banger) == before
        assert client.audit() == []


@pytest.mark.parametrize("point", some(points("vm.set")))
def test_in_set(banger, vm, point):
    """The VM has its old values or its new ones, can be changed again, and its disks are as a start wants them."""
    wish = schema.VmPatch(name="two", memory_mib=640, work_bytes=2 << 30)
    banger.is_killed_in(point, lambda client: client.set_vm(vm, wish))
    with banger.daemon("vm.start.network.before=error") as client:
        check_truth(banger, client, fresh=True)
        now = client.vm(vm)
        assert now.state == "stopped"
        old, new = ("one", 512, 1 << 30), ("two", 640, 2 << 30)
        assert (now.name, now.spec.memory_mib, now.spec.work_bytes) in {old, new}
        checked = ended(client, client.start_vm(vm))
        assert checked.error.what == "fault injected at vm.start.network.before"
        assert client.set_vm(vm, wish).name == "two"


@pytest.fixture(scope="module")
def box(banger):
    """A running VM that tests leave running."""
    with banger.daemon() as client:
        made = banger.make(client, "box")
        assert made.state == "succeeded", made.error
    yield made.target
    with banger.daemon() as client:
        assert ended(client, client.delete_vm(made.target)).state == "succeeded"
        check_truth(banger, client)


@pytest.mark.parametrize("point", some(points("vm.adjust")))
def test_in_adjust(banger, box, point):
    """Forwards, groups and NAT are all as they were or all as they were to be; the ports that are open are those of the record."""
    adding = [schema.Forward(0, 80), schema.Forward(0, 53, "udp")]
    wish = schema.VmPatch(nat=False, groups=["web"], forwards=adding)
    banger.is_killed_in(point, lambda client: client.set_vm(box, wish))
    with banger.daemon() as client:
        check_truth(banger, client, fresh=True)
        spec, listed = client.vm(box).spec, client.forwards(box)
        assert (spec.nat, spec.groups, spec.forwards) in [(True, [], []), (False, ["web"], adding)]
        assert all(forward.open for forward in listed)
        assert len(listed) == 1 + len(spec.forwards)
        back = client.set_vm(box, schema.VmPatch(nat=True, groups=[], forwards=[])).spec
        assert (back.nat, back.groups) == (True, [])
        assert len(client.forwards(box)) == 1


@pytest.mark.parametrize("point", [*some(points("vm.pause")), *some(points("vm.resume"))])
def test_in_pause_and_resume(banger, box, point):
    """The record says what the VMM says, and the VM can be used on."""
    kind = point.rsplit(".", 2)[0]
    with banger.daemon() as client:
        if kind == "vm.resume":
            assert ended(client, client.pause_vm(box)).state == "succeeded"
    verb = {"vm.pause": "pause_vm", "vm.resume": "resume_vm"}[kind]
    banger.is_killed_in(point, lambda client: ended(client, getattr(client, verb)(box)))
    with banger.daemon() as client:
        check_truth(banger, client, fresh=True)
        done = points(kind).index(point) >= points(kind).index(f"{kind}.vmm.after")
        expected = "paused" if done == (kind == "vm.pause") else "running"
        assert client.vm(box).state == expected
        if expected == "paused":
            assert ended(client, client.resume_vm(box)).state == "succeeded"
        assert client.run(box, schema.ExecRequest(["echo", "awake"])).stdout == b"awake\n"
