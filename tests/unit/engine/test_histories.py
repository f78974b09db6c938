"""Random histories over a host in memory: whatever is asked in whatever order, and whatever dies meanwhile, record and host agree."""

import asyncio
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from banger.engine.adjust import Changes
from banger.engine.audit import Audit
from banger.engine.reconcile import reconcile
from banger.host import faults
from banger.model.errors import BangerError
from banger.model.spec import Forward
from banger.model.state import VmState
from tests.framework.fake_world import World
from tests.framework.operations import SPEC, passed

NAMES = st.sampled_from(["one", "two", "three"])
VERBS = st.sampled_from(["start", "stop", "kill", "restart", "pause", "resume", "delete", "mend"])
POINTS = sorted({point.name for points in passed().values() for point in points if point.name.startswith("vm.")})  # fmt: skip


class Histories(RuleBasedStateMachine):
    """Requests are not waited for, so that they meet in queues; then the daemon is let come to rest, and all is compared."""

    def __init__(self):
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.directory = Path(tempfile.mkdtemp(prefix="bgh-"))
        self.world = World(self.directory)
        self.before = self.world.inventory()
        self.engine = self.run(self._engine())

    async def _engine(self):
        return self.world.engine()

    def run(self, work):
        return self.loop.run_until_complete(asyncio.wait_for(work, 20))

    def ask(self, request):
        """A request may be refused; what it begins goes on a little."""

        async def do():
            try:
                request()
            except BangerError as error:
                assert error.hint, error  # noqa: PT017  every refusal has a next step
            for _ in range(3):
                await asyncio.sleep(0)

        self.run(do())

    def machine(self, name):
        return next((m for m in self.engine.machines() if m.name == name), None)

    @rule(name=NAMES, start=st.booleans())
    def create(self, name, start):
        self.ask(lambda: self.engine.create(name, "debian", SPEC, start=start, ready_s=None))

    @rule(name=NAMES, verb=VERBS)
    def do(self, name, verb):
        engine = self.engine
        asked = {
            "start": lambda vm: engine.start(vm, None),
            "stop": lambda vm: engine.stop(vm, None, force=False),
            "kill": lambda vm: engine.stop(vm, None, force=True),
            "restart": lambda vm: engine.restart(vm, None),
        }
        machine = self.machine(name)
        begin = asked.get(verb) or getattr(engine, verb)
        if machine is not None:
            self.ask(lambda: begin(machine))

    @rule(name=NAMES, nat=st.booleans(), port=st.sampled_from([8080, 9090]))
    def change(self, name, nat, port):
        machine = self.machine(name)
        changes = Changes(nat=nat, forwards=(Forward(port, 80),))

        async def do():
            try:
                await self.engine.change(machine, changes)
            except BangerError as error:
                assert error.what  # noqa: PT017  refused or failed, as the host is

        if machine is not None:
            self.run(do())

    @rule(name=NAMES)
    def vmm_dies(self, name):
        machine = self.machine(name)
        if machine is not None and machine.paths.runtime in self.world.vmms:
            self.ask(self.world.vmms[machine.paths.runtime].end)

    @rule(point=st.sampled_from(POINTS))
    def break_at(self, point):
        """The next operation that comes by there fails, until the host is whole again."""
        faults.load(f"{point}=error")

    @rule()
    def be_whole(self):
        faults.load("")

    @rule()
    def look(self):
        """While operations run nothing of theirs is taken for residue, nor touched."""
        for each in self.run(Audit(self.engine).fix()):
            assert each.finding.remedy.value in {"mend", "delete"}, each

    @rule()
    def next_daemon(self):
        """The daemon ends as at SIGTERM, and another comes."""

        async def do():
            await self.engine.close()
            self.engine.context.store.close()
            self.world.ports.clear()
            self.engine = self.world.engine()
            await reconcile(self.engine)

        self.run(do())

    async def quiet(self):
        async with asyncio.timeout(10):
            while any(self.engine.busy(machine) for machine in self.engine.machines()):
                await asyncio.sleep(0)

    @precondition(lambda self: True)
    @rule()
    def settle(self):
        self.run(self.quiet())
        faults.load("")
        for machine in self.engine.machines():
            runs = machine.paths.runtime in self.world.vmms
            assert (machine.vmm is not None) is runs
            up = machine.state in {VmState.RUNNING, VmState.PAUSED}
            assert up is runs or machine.state is VmState.DELETING, machine.record
        kinds = {(f.kind, f.remedy.value) for f in self.run(Audit(self.engine).look())}
        assert kinds <= {("vm", "delete")}

    @invariant()
    def names_and_leases_are_nobody_elses(self):
        names = [machine.name for machine in self.engine.machines()]
        leases = [m.lease.index for m in self.engine.machines() if m.lease is not None]
        assert len(names) == len(set(names))
        assert len(leases) == len(set(leases))

    def teardown(self):
        faults.load("")
        self.settle()

        async def clean():
            for machine in self.engine.machines():
                run = self.engine.context.board.live(self.engine.delete(machine).id)
                if run is not None:
                    await run.wait()
            await self.quiet()
            assert self.engine.context.store.ledger() == []
            await self.engine.close()
            self.engine.context.store.close()

        self.run(clean())
        assert {**self.world.inventory(), "ports": set()} == self.before
        self.loop.close()
        shutil.rmtree(self.directory)


TestHistories = pytest.mark.slow(Histories.TestCase)
TestHistories.settings = settings(
    max_examples=40, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
