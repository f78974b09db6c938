"""The monitor against a QEMU that answers late, wrongly or not at all."""

import asyncio
import json
import os
import socket

import pytest

from banger.model.errors import GuestNotReadyError, RefusedError
from banger.vmm.qemu.monitor import Monitor

GREETING = {
    "QMP": {
        "version": {"qemu": {"major": 7, "minor": 2, "micro": 0}, "package": ""},
        "capabilities": [],
    }
}
SHUTDOWN = {
    "event": "SHUTDOWN",
    "data": {"guest": True, "reason": "guest-shutdown"},
    "timestamp": {"seconds": 1, "microseconds": 0},
}


class Script:
    """A QMP server; ``answers`` maps a command to what it says: a dict, None for silence, or "hang up"."""

    def __init__(self, path):
        self.path, self.answers, self.greets = path, {}, True
        self.connections = 0
        self.events = []
        self.writers = []

    async def serve(self, reader, writer):
        self.connections += 1
        self.writers.append(writer)
        if not self.greets:
            return
        await self.say(writer, GREETING)
        async for asked in requests(reader):
            name = asked["execute"]
            answer = (
                {"return": {}}
                if name == "qmp_capabilities"
                else self.answers.get(name, {"return": {}})
            )
            if answer == "hang up":
                writer.close()
                return
            if answer is not None:
                await self.say(
                    writer, {**answer, "id": asked.get("id")} if "id" in asked else answer
                )
            for event in self.events if name != "qmp_capabilities" else ():
                await self.say(writer, event)
        writer.close()

    async def say(self, writer, message):
        writer.write(json.dumps(message).encode() + b"\r\n")
        await writer.drain()


async def requests(reader):
    """JSON values one after the other, with nothing in between."""
    text = ""
    while chunk := await reader.read(4096):
        text += chunk.decode()
        while text.strip():
            try:
                value, end = json.JSONDecoder().raw_decode(text)
            except ValueError:
                break
            text = text[end:].lstrip()
            yield value


@pytest.fixture
async def qemu(tmp_path):
    script = Script(tmp_path / "qmp.sock")
    server = await asyncio.start_unix_server(script.serve, script.path)
    yield script
    server.close()
    for writer in script.writers:
        writer.close()
    await server.wait_closed()


@pytest.fixture
async def monitor(qemu):
    monitor = Monitor(qemu.path)
    yield monitor
    await monitor.close()


async def test_answers_come_back(qemu, monitor):
    qemu.answers["query-status"] = {"return": {"status": "running"}}
    assert await monitor.call("query-status", 30) == {"status": "running"}


async def test_one_connection_serves_all_calls(qemu, monitor):
    for _ in range(5):
        await monitor.call("stop", 30)
    await asyncio.gather(*(monitor.call("cont", 30) for _ in range(5)))
    assert qemu.connections == 1


async def test_a_refusal_has_qemus_words_and_keeps_the_connection(qemu, monitor):
    qemu.answers["cont"] = {"error": {"class": "GenericError", "desc": "Resetting is required"}}
    with pytest.raises(RefusedError, match="QEMU refused cont") as raised:
        await monitor.call("cont", 30)
    assert raised.value.detail == "Resetting is required"
    await monitor.call("stop", 30)
    assert qemu.connections == 1


async def test_silence_is_an_error_in_time_and_the_next_call_connects_anew(qemu, monitor):
    qemu.answers["stop"] = None
    with pytest.raises(GuestNotReadyError, match=r"did not answer stop within 0\.2 s"):
        await monitor.call("stop", 0.2)
    await monitor.call("cont", 30)
    assert qemu.connections == 2


async def test_who_waits_for_the_line_has_a_deadline_too(qemu, monitor):
    qemu.answers["stop"] = None
    began = asyncio.get_running_loop().time()
    calls = [monitor.call("stop", 0.3) for _ in range(60)]
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(result) for result in results} == {GuestNotReadyError}
    assert asyncio.get_running_loop().time() - began < 15  # one after the other they had 18 s


async def test_a_cancelled_call_does_not_confuse_the_next(qemu, monitor):
    qemu.answers["stop"] = None
    task = asyncio.create_task(monitor.call("stop", 30))
    async with asyncio.timeout(30):
        while not qemu.connections:
            await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    qemu.answers["query-status"] = {"return": {"status": "paused"}}
    assert await monitor.call("query-status", 30) == {"status": "paused"}


async def test_a_server_that_never_greets_is_an_error_in_time(qemu, monitor):
    qemu.greets = False
    with pytest.raises(GuestNotReadyError, match="the connection"):
        await monitor.connect(0.2)
    qemu.greets = True
    await monitor.connect(30)
    assert monitor.connected


async def test_a_server_that_hangs_up_is_an_error(qemu, monitor):
    qemu.answers["stop"] = "hang up"
    with pytest.raises(GuestNotReadyError):
        await monitor.call("stop", 30)
    await monitor.call("cont", 30)


async def test_a_full_backlog_does_not_block_the_event_loop(tmp_path):
    path = tmp_path / "stuck.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(0)
        monitor = Monitor(path)
        for _ in range(4):
            with pytest.raises(GuestNotReadyError):
                await monitor.connect(0.1)


async def test_no_socket_is_an_error_and_leaves_no_descriptor(tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(GuestNotReadyError):
        await Monitor(tmp_path / "none").connect(1)
    assert len(os.listdir("/proc/self/fd")) == before


async def test_the_last_word_is_read_even_if_the_end_was_heard_first(qemu, monitor):
    qemu.events = [{**SHUTDOWN, "event": "NIC_RX_FILTER_CHANGED"}, SHUTDOWN]
    await monitor.call("stop", 30)
    for writer in qemu.writers:
        writer.close()
    assert [event["event"] for event in await monitor.last_events(30)] == ["SHUTDOWN"]


async def test_a_connection_that_never_ends_delays_the_last_word_only_so_long(qemu, monitor):
    await monitor.connect(30)
    async with asyncio.timeout(30):
        assert await monitor.last_events(0.1) == []


async def test_the_last_word_of_a_connection_that_was_dropped_is_kept(qemu, monitor):
    qemu.events = [SHUTDOWN]
    await monitor.call("stop", 30)
    qemu.answers["cont"] = None
    with pytest.raises(GuestNotReadyError):
        await monitor.call("cont", 0.2)
    assert SHUTDOWN["data"] in [event["data"] for event in await monitor.last_events(1)]
