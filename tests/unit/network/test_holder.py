"""The holder's protocol, with a holder in a thread (its namespaces are then the test's own), and the daemon's side of it."""

import json
import os
import socket
import threading

import pytest

from banger.network.control import HolderError, ask, ask_one
from banger.network.holder import MAX_REQUEST_BYTES, PROTOCOL, Holder


@pytest.fixture
def control(tmp_path_factory):
    path = tmp_path_factory.mktemp("h") / "s"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(path))
    listener.listen(8)
    thread = threading.Thread(target=Holder(listener).serve, daemon=True)
    thread.start()
    yield path
    if thread.is_alive():
        talk(path, b'{"op": "stop"}')
    thread.join(30)
    assert not thread.is_alive()
    listener.close()


def talk(path, request):
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as channel:
        channel.settimeout(30)
        channel.connect(str(path))
        channel.send(request)
        return channel.recv(4096)


async def test_it_says_who_it_is(control):
    reply, descriptors = await ask(control, "hello")
    assert reply == {"ok": True, "pid": os.getpid(), "protocol": PROTOCOL}
    assert descriptors == []


async def test_it_hands_out_sockets_and_keeps_none(control):
    before = len(os.listdir("/proc/self/fd"))
    for op, family in (("tcp", socket.AF_INET), ("route", socket.AF_NETLINK)):
        with socket.socket(fileno=await ask_one(control, op)) as opened:
            assert opened.family == family
            assert not opened.get_inheritable()
    _, namespaces = await ask(control, "namespaces", expect=2)
    links = [os.readlink(f"/proc/self/fd/{number}").split(":")[0] for number in namespaces]
    assert links == ["user", "net"]
    for number in namespaces:
        os.close(number)
    assert (
        len(os.listdir("/proc/self/fd")) <= before + 3
    )  # its ends of connections that it has not yet seen closed


async def test_a_lifeline_hangs_up_when_the_next_is_asked_for(control):
    first = await ask_one(control, "lifeline")
    second = await ask_one(control, "lifeline")
    assert os.read(first, 1) == b""
    os.set_blocking(second, False)
    with pytest.raises(BlockingIOError):
        os.read(second, 1)
    os.close(first)
    os.close(second)


@pytest.mark.parametrize(
    "junk", [b"{", b"[]", b"null", b'{"op":1}', b'{"op":"nothing"}', b'{"op":"tap"}', b'{"op":"tap","name":5}',
             b'{"op":"tap","name":""}', b'{"op":"tap","name":"sixteen-letters."}', b"[" * 1000, b"\xff\xfe"],
)  # fmt: skip
async def test_nonsense_gets_an_error_and_changes_nothing(control, junk):
    assert json.loads(talk(control, junk))["ok"] is False
    assert (await ask(control, "hello"))[0]["ok"]


async def test_an_oversized_request_is_not_read(control):
    assert talk(control, b"x" * (MAX_REQUEST_BYTES + 1)) == b""
    assert (await ask(control, "hello"))[0]["ok"]


async def test_descriptors_that_were_not_expected_are_closed_again(control):
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        with pytest.raises(HolderError):
            await ask(control, "namespaces", expect=1)
    assert len(os.listdir("/proc/self/fd")) <= before + 3


async def test_a_holder_that_does_not_answer_is_given_up(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as deaf:
        deaf.bind(str(tmp_path / "s"))
        deaf.listen(1)
        with pytest.raises(HolderError, match="did not answer 'hello'"):
            await ask(tmp_path / "s", "hello", timeout_s=0.05)
    with pytest.raises(ConnectionRefusedError):
        await ask(tmp_path / "s", "hello")
    with pytest.raises(FileNotFoundError):
        await ask(tmp_path / "none", "hello")
