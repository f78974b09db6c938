"""The helper's messages, and what happens to those that are none: random, mutated and half ones, sent to a real server."""

import asyncio
import json
import os
import random
import socket
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from banger.helper.audit import AuditLog
from banger.helper.policy import Policy
from banger.helper.server import Server
from banger.helper.verbs import VERBS, World
from banger.host.probe import Answer
from banger.model.errors import BangerError, RefusedError
from banger.wire.helper import (
    MAX_REQUEST_BYTES,
    BadRequestError,
    Request,
    decode_reply,
    encode_error,
    encode_request,
    encode_result,
    parse_request,
)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


def test_a_request_comes_back_as_it_was():
    data = encode_request("uplink.detach", {"slot": 3})
    assert parse_request(data, (7,)) == Request("uplink.detach", {"slot": 3}, (7,))


@pytest.mark.parametrize("data", [
    b"", b"{", b"[]", b"3", b"null", b"\xff\xfe", b'{"op": 3}', b"{}", b'{"op": "x", "a": [1]}', b'{"op": "x", "a": null}',
    b'{"op": "x", "a": 1.5}', b'{"op": "x", "a": NaN}', b'{"op": "x", "a": {"b": 1}}', b"[" * 4000,
    b'{"op": "x", "a": ' + b"9" * 4300 + b"}", b'{"op": "' + b"x" * MAX_REQUEST_BYTES + b'"}',
])  # fmt: skip
def test_what_is_no_request_is_refused(data):
    with pytest.raises(BadRequestError):
        parse_request(data)


@given(st.binary(max_size=300) | json_values.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_a_request_or_refused(data):
    try:
        request = parse_request(data)
    except BadRequestError:
        return
    assert isinstance(request.op, str)
    assert all(isinstance(value, int | str | bool) for value in request.arguments.values())


@given(st.binary(max_size=300) | json_values.map(lambda value: json.dumps(value).encode()))
def test_any_reply_is_a_result_or_an_error(data):
    try:
        found = decode_reply(data)
    except BangerError:
        return
    assert isinstance(found, dict)


def test_an_error_comes_back_in_three_parts():
    with pytest.raises(RefusedError) as caught:
        decode_reply(encode_error(RefusedError("no", detail="because", hint="do that")))
    assert (caught.value.what, caught.value.detail, caught.value.hint) == (
        "no",
        "because",
        "do that",
    )
    assert decode_reply(encode_result({"a": 1})) == {"a": 1}


class Uplinks:
    """In the service's place: notes what it is asked for."""

    def __init__(self):
        self.asked = []

    async def attach(self, uid, namespace):
        self.asked.append("attach")
        raise RefusedError("not today", hint="tomorrow")

    async def detach(self, uid, slot):
        self.asked.append(("detach", slot))

    async def list(self, uid):
        self.asked.append("list")
        return []


class Snapshots:
    """In the other service's place."""

    def __init__(self):
        self.asked = []

    async def able(self):
        return Answer(ok=True)

    async def attach(self, uid, numbers, image, store):
        assert all(type(number) is int for number in numbers)
        self.asked.append("attach")
        raise RefusedError("not today", hint="tomorrow")

    async def detach(self, uid, slot):
        assert type(slot) is int
        self.asked.append("detach")

    async def grown(self, uid, slot):
        assert type(slot) is int
        self.asked.append("grown")
        return False

    async def list(self, uid):
        self.asked.append("list")
        return []


class Patient(Policy):
    """The flood is meant."""

    def count_request(self, caller):
        pass


@pytest.fixture
async def served(tmp_path):
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(tmp_path / "h"))
    listener.listen(64)
    world = World(Uplinks(), Snapshots())
    policy = Patient(os.getegid(), time.monotonic)
    server = Server(listener, world, policy, AuditLog(tmp_path / "audit.log"))
    task = asyncio.create_task(server.serve())
    yield tmp_path / "h", world, policy
    task.cancel()
    await asyncio.wait({task})
    await server.close()


def talk(path, messages):
    """Send each on a connection of its own; the replies, empty where it hung up."""
    replies = []
    for data, descriptors in messages:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as channel:
            channel.settimeout(10)
            channel.connect(str(path))
            try:
                socket.send_fds(channel, [data], descriptors)
                if not data and not descriptors:  # an empty message is an end
                    channel.shutdown(socket.SHUT_WR)
                replies.append(channel.recv(1 << 16))
            except (ConnectionResetError, BrokenPipeError):
                replies.append(b"")
    return replies


def mutated(chance, data):
    found = bytearray(data)
    for _ in range(chance.randrange(1, 6)):
        match chance.randrange(4):
            case 0 if found:
                found[chance.randrange(len(found))] = chance.randrange(256)
            case 1 if found:
                del found[chance.randrange(len(found)) :]
            case 2:
                found[chance.randrange(len(found) + 1) : 0] = chance.randbytes(chance.randrange(20))
            case _:
                found *= chance.randrange(1, 4)
    return bytes(found)


async def test_random_and_mutated_messages_do_no_harm(served):
    path, world, policy = served
    chance = random.Random(7)  # the same every time
    good = [
        encode_request(op, arguments)
        for op, arguments in (
            ("hello", {}), ("list", {}), ("uplink.attach", {}), ("uplink.detach", {"slot": 3}),
            ("snapshot.attach", {"installation": 1, "vm": 2, "sectors": 131072}), ("snapshot.detach", {"slot": 3}),
            ("snapshot.grown", {"slot": 3}), ("snapshot.list", {}),
        )
    ]  # fmt: skip
    null = os.open("/dev/null", os.O_RDONLY)
    open_before = len(os.listdir("/proc/self/fd"))
    messages = []
    for _ in range(1500):
        data = chance.choice(
            [chance.randbytes(chance.randrange(200)), mutated(chance, chance.choice(good))]
        )
        messages.append((data, [null] * chance.choice([0, 0, 0, 1, 1, 2, 2, 5])))
    messages.append((b"x" * 60_000, []))
    replies = await asyncio.to_thread(talk, path, messages)
    for reply in filter(None, replies):
        found = json.loads(reply)
        assert found["ok"] is True or found["error"]["what"]
    assert sum(bool(reply) for reply in replies) > 1000
    assert {"attach", "list"} <= set(world.snapshots.asked)
    assert all(
        slot == 3 or isinstance(slot, int)
        for slot in [a[1] for a in world.uplinks.asked if a[0] == "detach"]
    )
    assert (await asyncio.to_thread(talk, path, [(good[0], [])]))[0]
    async with asyncio.timeout(30):
        while policy._open or len(os.listdir("/proc/self/fd")) > open_before:
            await asyncio.sleep(0.01)
    os.close(null)


VALUES = [0, 1, -1, 3, 2**31, 2**48, 2**63, 2**64, -(2**63), 10**40, True, False, "", "3", "../../dev/sda", "\0"]  # fmt: skip


async def test_arguments_of_every_kind_reach_a_verb_as_its_table_says_or_not_at_all(served):
    """Well-formed requests of every verb with values, names and numbers of descriptors that are mostly wrong; the stand-ins look at types."""
    path, world, policy = served
    chance = random.Random(8)
    null = os.open("/dev/null", os.O_RDONLY)
    messages = []
    for _ in range(1200):
        op = chance.choice(sorted(VERBS))
        wanted = VERBS[op].arguments
        arguments = {key: chance.choice(VALUES) for key in wanted if chance.random() < 0.95}
        if chance.random() < 0.1:
            arguments[chance.choice(["uid", "name", "path", "slot", "op"])] = chance.choice(VALUES)
        count = chance.choice([VERBS[op].descriptors] * 5 + [0, 1, 2, 3])
        messages.append((encode_request(op, arguments), [null] * count))
    replies = [json.loads(reply) for reply in await asyncio.to_thread(talk, path, messages)]
    assert set(world.snapshots.asked) == {"attach", "detach", "grown", "list"}
    assert all(
        r["ok"] or r["error"]["code"] in {"invalid", "not-found", "refused"} for r in replies
    )
    assert not [r for r in replies if not r["ok"] and not r["error"]["hint"]]
    async with asyncio.timeout(30):
        while policy._open:
            await asyncio.sleep(0.01)
    os.close(null)


async def test_a_bug_in_a_verb_is_told_in_general_words_and_ends_nobody(served):
    path, world, _ = served

    async def broken(uid):
        raise KeyError("secret")

    world.uplinks.list = broken
    (reply,) = await asyncio.to_thread(talk, path, [(encode_request("list", {}), [])])
    error = json.loads(reply)["error"]
    assert error["what"] == "list failed"
    assert "secret" not in reply.decode()
    assert (await asyncio.to_thread(talk, path, [(encode_request("hello", {}), [])]))[0]


async def test_an_audit_log_that_cannot_be_written_ends_nobody(served, monkeypatch):
    path, _, _ = served

    def full(*_arguments, **_named):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(AuditLog, "note", full)
    for op in ("list", "no.such.verb"):
        (reply,) = await asyncio.to_thread(talk, path, [(encode_request(op, {}), [])])
        assert reply


async def test_who_says_nothing_is_let_go(served, monkeypatch):
    monkeypatch.setattr("banger.helper.server.IDLE_S", 0.05)
    path, _, policy = served

    def silent():
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as channel:
            channel.settimeout(30)
            channel.connect(str(path))
            return channel.recv(10)

    assert await asyncio.to_thread(silent) == b""
    assert not policy._open


async def test_a_verb_that_hangs_has_a_deadline(served, monkeypatch):
    monkeypatch.setattr("banger.helper.server.VERB_S", 0.05)
    path, world, _ = served

    async def hangs(uid):
        await asyncio.Event().wait()

    world.uplinks.list = hangs
    (reply,) = await asyncio.to_thread(talk, path, [(encode_request("list", {}), [])])
    assert "did not end within" in json.loads(reply)["error"]["what"]
