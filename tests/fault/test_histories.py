"""Random histories of real VMs: whatever is asked in whatever order, and whoever dies, record and host agree after each step.

The same on a host in memory, with many more of them: tests/unit/engine/test_histories.py. BANGER_HISTORY_STEPS says how long one is.
"""

import contextlib
import os
import signal

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from banger.api import schema
from banger.model.errors import BangerError
from tests.framework.faulty import Faulty, check_truth, ended
from tests.framework.installation import wait_until

STEPS = int(os.environ.get("BANGER_HISTORY_STEPS", "14"))
NAMES = st.sampled_from(["one", "two"])
UP = {"running", "paused"}
REFUSED = {"start": {"paused"}, "kill": set(), "pause": {"stopped", "failed"}, "resume": {"stopped", "failed"}}  # fmt: skip
AFTER = {"start": "running", "kill": "stopped", "pause": "paused", "resume": "running"}
pytestmark = pytest.mark.timeout(900)


class Histories(RuleBasedStateMachine):
    """``states`` is what must be true of each VM. Guests are waited for until they have booted."""

    banger = None

    def __init__(self):
        super().__init__()
        self.states = {}
        self.daemon = contextlib.ExitStack()
        self.client = self.daemon.enter_context(self.banger.daemon())

    def compare(self, *, fresh=False):
        shown = {vm.name: vm.state for vm in self.client.vms()}
        assert shown == self.states
        check_truth(self.banger, self.client, fresh=fresh)

    def asked(self, request, *, allowed):
        """The operation of a request, at its end; None if it was refused, with a next step, as it must be."""
        refused = None
        try:
            operation = ended(self.client, request())
        except BangerError as error:
            refused = error
        if refused is not None:
            assert not allowed, refused
            assert refused.hint, refused
            return None
        assert allowed, operation
        assert operation.state == "succeeded", operation.error
        return operation

    @rule(name=NAMES, start=st.booleans())
    def create(self, name, start):
        wish = schema.VmCreate(name=name, memory_mib=256, work_bytes=1 << 30, start=start, wait="booted")  # fmt: skip
        if self.asked(lambda: self.client.create_vm(wish), allowed=name not in self.states):
            self.states[name] = "running" if start else "stopped"
        self.compare()

    @rule(name=NAMES, verb=st.sampled_from(sorted(AFTER)))
    def do(self, name, verb):
        requests = {
            "start": lambda: self.client.start_vm(name, wait="booted"),
            "kill": lambda: self.client.stop_vm(name, force=True),
            "pause": lambda: self.client.pause_vm(name),
            "resume": lambda: self.client.resume_vm(name),
        }
        if name in self.states:
            state = self.states[name]
            done = self.asked(requests[verb], allowed=state not in REFUSED[verb])
            if done and not (verb == "kill" and state not in UP):  # what is at rest stays as it is
                self.states[name] = AFTER[verb]
            self.compare()

    @rule(name=NAMES)
    def delete(self, name):
        if self.asked(lambda: self.client.delete_vm(name), allowed=name in self.states):
            del self.states[name]
        self.compare()

    @rule(name=NAMES, nat=st.booleans())
    def change(self, name, nat):
        if name in self.states:
            assert self.client.set_vm(name, schema.VmPatch(nat=nat)).spec.nat is nat
            self.compare()

    @rule(name=NAMES)
    def vmm_dies(self, name):
        if self.states.get(name) in UP:
            os.kill(self.client.vm(name).status.pid, signal.SIGKILL)
            wait_until(lambda: self.client.vm(name).state == "failed", 30)
            self.states[name] = "failed"
            self.compare()

    @rule(kill=st.booleans())
    def next_daemon(self, kill):
        if kill:
            os.kill(self.banger.process.pid, signal.SIGKILL)
            self.banger.process.wait(30)
        self.daemon.close()
        self.client = self.daemon.enter_context(self.banger.daemon())
        self.compare(fresh=True)

    def teardown(self):
        try:
            for vm in self.client.vms():
                assert ended(self.client, self.client.delete_vm(vm.id)).state == "succeeded"
            check_truth(self.banger, self.client)
            assert [item.what for item in self.client.audit()] == []
        finally:
            self.daemon.close()


def test_whatever_is_asked_and_whoever_dies_record_and_host_agree(tmp_path, image):
    banger = Faulty(tmp_path)
    Histories.banger = banger
    try:
        run_state_machine_as_test(
            Histories,
            settings=settings(
                max_examples=2, stateful_step_count=STEPS, deadline=None, phases=[Phase.generate], database=None,
                suppress_health_check=list(HealthCheck), print_blob=False,
            ),
        )  # fmt: skip
    finally:
        left = banger.close()
    assert not left, f"left behind: {left}"
