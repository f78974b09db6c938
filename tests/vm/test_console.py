"""The console of a real guest, as it is written."""

import time

import pytest

from banger.client.sdk import Client
from banger.model.errors import InvalidInputError

pytestmark = pytest.mark.timeout(300)


def until(stream, text, seconds=60):
    """What comes until ``text`` is in it."""
    heard, end = b"", time.monotonic() + seconds
    while text not in heard:
        piece = stream.receive(max(0.0, end - time.monotonic()))
        assert piece is not None, heard
        heard += piece
    return heard


def write(vm, text):
    vm.run("vm", "exec", "box", "--", "sh", "-c", f"echo {text} > /dev/console")


def test_the_console_is_heard_from_its_tail_on_as_the_guest_writes_it(vm):
    with Client(vm.runtime / "bangerd.sock") as client, client.console("box") as stream:
        assert b"banger: booted" in until(stream, b"banger: booted")
        write(vm, "first-words")
        assert b"first-words" in until(stream, b"first-words")
        with client.console("box", tail_bytes=0) as second:
            write(vm, "for-both")
            assert b"first-words" not in until(second, b"for-both")
        until(stream, b"for-both")


def test_what_is_typed_at_it_is_refused_with_the_way_that_works(vm):
    with (
        Client(vm.runtime / "bangerd.sock") as client,
        client.console("box", tail_bytes=0) as stream,
    ):
        stream._send(b"root\n")
        with pytest.raises(InvalidInputError) as caught:
            until(stream, b"Password")
    assert "vm exec -t box" in caught.value.hint
