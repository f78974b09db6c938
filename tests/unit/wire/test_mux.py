"""The host's end of the channel when the guest's is late, or its answer is lost."""

import asyncio
import contextlib

import pytest

from banger.wire import mux as module
from banger.wire.mux import DATA, HEADER, MAGIC, MAX_PAYLOAD, NONCE_BYTES, Mux
from banger_agent.mux import NONSENSE

CALL = len(MAGIC) + NONCE_BYTES


@contextlib.asynccontextmanager
async def guest(path, script):
    """A guest's end: ``script(call)`` gives what is answered to each call, given without its padding."""

    async def serve(reader, writer):
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                await reader.readuntil(MAGIC)
                writer.write(script(MAGIC + await reader.readexactly(NONCE_BYTES)))
        writer.close()

    server = await asyncio.start_unix_server(serve, path, limit=1 << 20)
    try:
        yield
    finally:
        server.close()


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(module, "_CALL_AGAIN_S", 0.05)


async def test_a_lost_answer_is_asked_for_again(tmp_path):
    calls = []

    def script(call):
        calls.append(call)
        return call if len(calls) >= 3 else b""

    async with guest(tmp_path / "s", script):
        mux = await asyncio.wait_for(Mux.connect(tmp_path / "s"), 30)
        await mux.close()
    assert len(set(calls)) == len(calls) >= 3  # more if the third answer was held up


async def test_a_late_answer_to_an_earlier_call_does_not_count(tmp_path):
    calls = []

    def script(call):
        calls.append(call)
        return (
            b""
            if len(calls) == 1
            else calls[0] + b"half a frame" + (call if len(calls) > 2 else b"")
        )

    async with guest(tmp_path / "s", script):
        mux = await asyncio.wait_for(Mux.connect(tmp_path / "s"), 30)
        await mux.close()
    assert len(calls) >= 3


async def test_a_guest_that_never_answers_is_given_up_by_the_callers_deadline(tmp_path):
    async with guest(tmp_path / "s", lambda _: b""):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(Mux.connect(tmp_path / "s"), 0.5)


FRAME = HEADER.pack(7, DATA, MAX_PAYLOAD) + bytes(MAX_PAYLOAD)


@pytest.mark.parametrize("sent", [*range(HEADER.size + 1), HEADER.size + 1, len(FRAME) - 1])
async def test_an_agent_that_starts_anew_is_noticed_wherever_its_predecessor_stopped(
    tmp_path, sent
):
    async with guest(tmp_path / "s", lambda call: call + FRAME[:sent] + NONSENSE):
        mux = await asyncio.wait_for(Mux.connect(tmp_path / "s"), 30)
        await asyncio.wait_for(mux.closed.wait(), 30)
        await mux.close()


async def test_a_channel_that_ends_before_the_guest_has_answered_is_a_broken_connection(tmp_path):
    async def hang_up(reader, writer):
        await reader.readexactly(1)
        writer.close()

    server = await asyncio.start_unix_server(hang_up, tmp_path / "a.sock")
    try:
        async with asyncio.timeout(10):
            with pytest.raises(ConnectionError, match="was closed"):
                await Mux.connect(tmp_path / "a.sock")
    finally:
        server.close()


async def test_frames_without_data_are_neither_kept_nor_an_end(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_CALL_AGAIN_S", 60)  # the guest here answers once
    answer = HEADER.pack(1, module.OPENED, 0) + HEADER.pack(1, DATA, 0) * 1000
    answer += HEADER.pack(1, DATA, 5) + b"hello"

    async def serve(reader, writer):
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await reader.readuntil(MAGIC)
            writer.write(MAGIC + await reader.readexactly(NONCE_BYTES))
            await reader.readexactly(HEADER.size + 2)
            writer.write(answer)
            await reader.read()
        writer.close()

    server = await asyncio.start_unix_server(serve, tmp_path / "a.sock", limit=1 << 20)
    try:
        async with asyncio.timeout(10):
            mux = await Mux.connect(tmp_path / "a.sock")
            stream = await mux.open(1024)
            assert await stream.read() == b"hello"
            assert not stream._chunks
            await mux.close()
    finally:
        server.close()
