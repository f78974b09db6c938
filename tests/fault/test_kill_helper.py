"""``kill -9`` of banger-helper at the steps of a VM's life in bridge mode: started again, as systemd does it, the host is as the records say.

`make test` has the life whose create is hit at the network; the others are long.
"""

import pytest

from banger.host.probe import root
from tests.framework.faulty import check_truth, ended
from tests.framework.installation import wait_until
from tests.framework.operations import stages

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(not root(), reason=f"a host of its own: {root().why}"),
]
STAGES = stages()
KINDS = ("vm.create", "vm.stop", "vm.start", "vm.delete")


def kill_at(client, operation, stage, helper):
    """Kill the helper once ``operation`` is at ``stage``, whose beginning is held up; the operation's end."""

    def is_there():
        now = client.operation(operation.id)
        return now.state != "running" or stage in [each.name for each in now.stages]

    wait_until(is_there, 60)
    helper.kill()
    helper.start()
    return ended(client, operation)


def lives():
    """As many lives as the longest operation has steps, in each of which every operation is hit at another step."""
    steps = {kind: list(dict.fromkeys(STAGES[kind])) for kind in KINDS}
    longest = max(map(len, steps.values()))
    whole = [
        {kind: own[number % len(own)] for kind, own in steps.items()} for number in range(longest)
    ]
    return [
        pytest.param(at, marks=[pytest.mark.long] * (at["vm.create"] != "network")) for at in whole
    ]


@pytest.mark.parametrize("at", lives(), ids=lambda at: "-".join(at.values()))
def test_a_life_goes_on_or_says_what_it_lacked(helper, bridged, at):
    faults = ",".join(f"{kind}.{stage}.before=slow" for kind, stage in at.items())
    with bridged.daemon(faults) as client:
        made = kill_at(client, bridged.begin(client, "one"), at["vm.create"], helper)
        if made.state == "failed":
            assert made.error.hint
            check_truth(bridged, client)
            assert client.vms() == []
            made = bridged.make(client, "one")
        assert made.state == "succeeded", made.error
        check_truth(bridged, client)
        for kind, begin in (("vm.stop", client.stop_vm), ("vm.start", client.start_vm), ("vm.delete", client.delete_vm)):  # fmt: skip
            done = kill_at(client, begin("one"), at[kind], helper)
            if done.state == "failed":
                assert done.error.hint
                done = ended(client, begin("one"))
            assert done.state == "succeeded", done.error
            check_truth(bridged, client)
        assert client.vms() == []
