"""Every request on a VM in any state, with anything queued, gets a decision that makes sense."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from banger.engine.admission import Accept, AlreadySo, Queued, Refuse, Verb, admit, expected
from banger.model.state import AT_REST, VmState

REST = [VmState.STOPPED, VmState.FAILED]
queues = st.lists(st.sampled_from([v for v in Verb if v is not Verb.CREATE]), max_size=4).map(
    lambda verbs: [Queued(verb, str(number)) for number, verb in enumerate(verbs)]
)


@pytest.mark.parametrize("state", REST)
def test_a_vm_at_rest_may_be_started_changed_and_deleted(state):
    assert admit(state, [], Verb.START) == Accept()
    assert admit(state, [], Verb.SET) == Accept()
    assert admit(state, [], Verb.DELETE) == Accept()


@pytest.mark.parametrize("state", REST)
def test_stopping_a_vm_at_rest_is_already_so(state):
    assert admit(state, [], Verb.STOP) == AlreadySo()


def test_starting_a_running_vm_is_already_so():
    assert admit(VmState.RUNNING, [], Verb.START) == AlreadySo()


def test_starting_twice_gives_the_first_operation():
    assert admit(VmState.STOPPED, [Queued(Verb.START, "7")], Verb.START) == AlreadySo("7")


def test_stop_cuts_a_start_short():
    assert admit(VmState.STARTING, [Queued(Verb.START, "7")], Verb.STOP) == Accept(
        cancel_running=True
    )


def test_stop_during_create_is_refused_with_two_ways_on():
    decision = admit(VmState.CREATING, [Queued(Verb.CREATE, "7")], Verb.STOP)
    assert isinstance(decision, Refuse)
    assert "op wait 7" in decision.hint
    assert "delete" in decision.hint


def test_delete_cuts_anything_short():
    assert admit(VmState.CREATING, [Queued(Verb.CREATE, "7")], Verb.DELETE) == Accept(
        cancel_running=True
    )


def test_changing_a_running_vm_is_refused_with_the_way_on():
    assert admit(VmState.RUNNING, [], Verb.SET) == Refuse("is running", "banger vm stop {name}")


@pytest.mark.parametrize("state", [*REST, VmState.RUNNING, VmState.PAUSED])
def test_forwards_and_nat_may_change_whenever_nothing_leads_elsewhere(state):
    assert admit(state, [], Verb.ADJUST) == Accept()
    assert (
        admit(state, [Queued(Verb.ADJUST, "1"), Queued(Verb.PAUSE, "2")], Verb.ADJUST) == Accept()
    )
    busy = admit(state, [Queued(Verb.RESTART, "7")], Verb.ADJUST)
    assert busy == Refuse("has an operation in hand", "banger op wait 7")
    starting = admit(VmState.STARTING, [Queued(Verb.START, "7")], Verb.ADJUST)
    assert starting == Refuse("is starting", "banger op wait 7")


def test_pause_needs_a_running_vm():
    assert isinstance(admit(VmState.STOPPED, [], Verb.PAUSE), Refuse)
    assert admit(VmState.RUNNING, [], Verb.PAUSE) == Accept()
    assert admit(VmState.PAUSED, [], Verb.PAUSE) == AlreadySo()


def test_a_running_vm_may_be_resumed_because_its_vmm_may_have_stopped_it():
    assert admit(VmState.RUNNING, [], Verb.RESUME) == Accept()
    assert isinstance(admit(VmState.PAUSED, [], Verb.PAUSE), AlreadySo)


def test_a_paused_vm_is_resumed_not_started():
    assert admit(VmState.PAUSED, [], Verb.START) == Refuse("is paused", "banger vm resume {name}")


@given(st.sampled_from(list(VmState)), queues, st.sampled_from(list(Verb)))
def test_nothing_follows_a_delete_but_the_same_delete(state, queue, verb):
    queue = [*queue, Queued(Verb.DELETE, "d")]
    decision = admit(state, queue, verb)
    assert decision == AlreadySo("d") if verb is Verb.DELETE else isinstance(decision, Refuse)


@given(
    st.sampled_from(list(VmState)),
    queues,
    st.sampled_from([Verb.START, Verb.STOP, Verb.DELETE, Verb.PAUSE]),
)
def test_asking_twice_is_idempotent(state, queue, verb):
    first = admit(state, queue, verb)
    if isinstance(first, Accept):
        rest = [] if first.cancel_running else queue
        second = admit(state, [*rest, Queued(verb, "n")], verb)
        assert second == AlreadySo("n")


@given(st.sampled_from(list(VmState)), queues)
def test_changes_are_only_accepted_by_an_idle_vm_at_rest(state, queue):
    accepted = admit(state, queue, Verb.SET) == Accept()
    assert accepted == (not queue and state in AT_REST)


@given(st.sampled_from([VmState.RUNNING, VmState.STOPPED, VmState.PAUSED]), queues)
def test_an_accepted_start_leads_to_running(state, queue):
    if admit(state, queue, Verb.START) == Accept():
        assert expected(state, [*queue, Queued(Verb.START, "n")]) is VmState.RUNNING


@pytest.mark.parametrize("verb", [Verb.SET, Verb.PROMOTE])
def test_who_wants_a_vm_at_rest_for_himself_is_told_what_has_it(verb):
    assert admit(VmState.STOPPED, [Queued(Verb.PROMOTE, "op")], verb) == Refuse(
        "has an operation in hand", "banger op wait op"
    )
    assert admit(VmState.STARTING, [Queued(Verb.START, "op")], verb) == Refuse(
        "is starting", "banger vm stop {name}"
    )
    assert admit(VmState.FAILED, [], verb) == Accept()
