"""WebSockets of the real API server, over a host in memory: what a client hears when something goes wrong."""

import asyncio
import json

import pytest
from websockets.asyncio.client import unix_connect
from websockets.exceptions import ConnectionClosed

from banger.api.frames import FrameType
from tests.framework.fake_world import FakeGuest
from tests.unit.engine.test_engine import make


class Session:
    """A command in a guest; ``frames_`` is what it says, an exception among them is raised."""

    def __init__(self, *frames_, send_error=None):
        self.frames_, self.send_error, self.closed = frames_, send_error, False
        self.fed = asyncio.Event()

    async def send(self, kind, payload=b""):
        self.fed.set()
        if self.send_error is not None:
            raise self.send_error

    async def frames(self):
        await self.fed.wait()
        for frame in self.frames_:
            if isinstance(frame, Exception):
                raise frame
            yield frame

    async def close(self):
        self.closed = True


@pytest.fixture
async def vm(api):
    await make(api.service.engine)
    return api.service.engine.resolve("one")


def connect(api, path):
    return unix_connect(api.path, f"ws://localhost/v1/vms/{path}")


async def everything(socket):
    heard = []
    try:
        while True:
            heard.append(await asyncio.wait_for(socket.recv(), 30))
    except ConnectionClosed:
        return heard


async def execute(api, monkeypatch, session, *messages):
    async def exec_(self, request):
        if isinstance(session, Exception):
            raise session
        return session

    monkeypatch.setattr(FakeGuest, "exec", exec_, raising=False)
    async with connect(api, "one/exec") as socket:
        for message in (json.dumps({"argv": ["true"]}), *messages):
            await socket.send(message)
        return await everything(socket)


async def test_a_guest_that_breaks_off_is_told_to_the_client(api, vm, monkeypatch):
    session = Session((FrameType.STDOUT, b"so far"), ConnectionResetError("the port was closed"))
    first, error = await execute(api, monkeypatch, session, b"\0x")
    assert first == bytes([FrameType.STDOUT]) + b"so far"
    assert "the port was closed" in json.loads(error)["detail"]
    assert session.closed


async def test_what_a_command_said_at_its_end_arrives_though_it_takes_no_more_input(
    api, vm, monkeypatch
):
    last = (FrameType.EXIT, b"\3")
    session = Session(last, send_error=ConnectionResetError("gone"))
    assert await execute(api, monkeypatch, session, b"\0x") == [bytes([FrameType.EXIT]) + b"\3"]


async def test_a_frame_that_is_none_is_refused(api, vm, monkeypatch):
    (error,) = await execute(api, monkeypatch, Session(), b"")
    assert json.loads(error)["code"] == "invalid"


async def test_a_guest_whose_socket_cannot_be_reached_is_an_error_not_a_dead_connection(
    api, vm, monkeypatch
):
    (error,) = await execute(api, monkeypatch, ConnectionRefusedError(111, "refused"))
    assert "refused" in json.loads(error)["detail"]


async def test_the_console_is_followed_from_its_tail_on_until_the_vm_is_gone(api, vm):
    async with connect(api, "one/console?tail_bytes=6") as socket:
        assert await asyncio.wait_for(socket.recv(), 30) == b"guest\n"
        with vm.paths.console_log.open("ab") as file:
            file.write(b"login: ")
        assert await asyncio.wait_for(socket.recv(), 30) == b"login: "
        _, operation = await api("DELETE", "/v1/vms/one")
        await api.wait(operation)
        assert await everything(socket) == []


async def test_the_console_takes_no_input_and_says_what_does(api, vm):
    async with connect(api, "one/console?tail_bytes=0") as socket:
        await socket.send(b"root\n")
        error = json.loads([message for message in await everything(socket) if message][-1])
    assert error["code"] == "invalid"
    assert "vm exec -t one" in error["hint"]


async def test_the_console_of_an_unknown_vm_is_not_found(api):
    async with connect(api, "none/console") as socket:
        (error,) = await everything(socket)
    assert json.loads(error)["code"] == "not-found"
