"""The hub: what happens is told, and nobody who listens holds anybody up."""

from banger.engine.events import BACKLOG, Hub, VmChange
from banger.model.state import VmState


def change(number):
    return VmChange(f"{number:012x}", "box", VmState.RUNNING)


def test_whoever_watches_gets_what_happens_from_then_on():
    hub = Hub()
    hub.tell(change(0))
    with hub.watch() as one, hub.watch() as other:
        hub.tell(change(1))
        assert one.get_nowait() == other.get_nowait() == change(1)
        assert one.empty()
    hub.tell(change(2))
    assert one.empty()


def test_who_falls_behind_loses_the_oldest():
    hub = Hub()
    with hub.watch() as queue:
        for number in range(BACKLOG + 3):
            hub.tell(change(number))
        assert queue.qsize() == BACKLOG
        assert queue.get_nowait() == change(3)


def test_listeners_are_called_at_once():
    hub, heard = Hub(), []
    hub.listen(heard.append)
    hub.tell(change(1))
    assert heard == [change(1)]
