"""A guest that does too much of something is held within bounds, and its VM's user is told."""

import asyncio
import socket
import time
from types import SimpleNamespace

import dns.message
import pytest

from banger.daemon.capping import FLOOD_CUTS, LOOKS, Capper
from banger.daemon.names import flooded
from banger.engine.events import VmChange
from banger.network.guest_names import BURST, GuestNames
from banger.wire import mux as module
from banger.wire.mux import CREDIT, DATA, HEADER, MAGIC, NONCE_BYTES, OPENED, Mux, MuxClosedError

MOST_BYTES = 4096


async def make(api, name="box"):
    _, operation = await api("POST", "/v1/vms", {"name": name, "image": "debian"})
    assert (await api.wait(operation))["state"] == "succeeded"
    return api.service.engine.resolve(name)


async def warning(api, name="box"):
    return (await api("GET", f"/v1/vms/{name}"))[1]["status"]["warning"]


async def test_a_console_that_is_cut_again_and_again_is_a_flood_until_the_next_run(api):
    machine = await make(api)
    capper = Capper(SimpleNamespace(engine=api.service.engine, max_console_bytes=MOST_BYTES))
    with api.service.context.board.hub.watch() as told:
        for number in range(FLOOD_CUTS + 2):
            with machine.paths.console_log.open("ab") as console:
                console.write(b"flood\n" * MOST_BYTES)
            capper.look()
            assert machine.paths.console_log.stat().st_size <= MOST_BYTES
            assert bool(await warning(api)) == (number + 1 >= FLOOD_CUTS)
    happenings = [told.get_nowait() for _ in range(told.qsize())]
    assert [one.trouble for one in happenings if isinstance(one, VmChange)] == [await warning(api)]
    assert "flooded its console" in await warning(api)
    await api.wait((await api("POST", "/v1/vms/box/stop"))[1])
    assert await warning(api) == ""
    await api.wait((await api("POST", "/v1/vms/box/start"))[1])
    assert await warning(api) == ""


async def test_a_console_that_is_cut_now_and_then_is_none(api):
    machine = await make(api)
    capper = Capper(SimpleNamespace(engine=api.service.engine, max_console_bytes=MOST_BYTES))
    for number in range(3 * LOOKS):
        if number % (LOOKS // 2) == 0:
            with machine.paths.console_log.open("ab") as console:
                console.write(b"much\n" * MOST_BYTES)
        capper.look()
    assert await warning(api) == ""


async def test_a_guest_that_asks_for_names_without_end_is_answered_so_often_and_told_about(api):
    machine = await make(api)
    run = machine.record.run
    machine.save(run=type(run)(**{**vars_of(run), "ip": "127.0.0.1"}))
    opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    opened.bind(("127.0.0.1", 0))
    told = []

    def tell(address):
        told.append(address)
        flooded(api.service.engine, run.network, address)

    names = GuestNames(opened, lambda _asker, _name: ["10.0.0.9"], tell)
    query = dns.message.make_query("web.banger", "A").to_wire()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as guest:
        guest.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        guest.connect(opened.getsockname())
        answers = 0
        for _ in range(40):
            for _ in range(50):
                guest.send(query)
            await asyncio.sleep(0)
            answers += heard(guest)
        await asyncio.sleep(0.2)
        answers += heard(guest)
    names.close()
    assert BURST <= answers <= BURST + 400  # 2,000 were asked
    assert told == ["127.0.0.1"]
    assert "asked for names" in await warning(api)


def vars_of(value):
    return {name: getattr(value, name) for name in type(value).__slots__}


def heard(guest):
    count = 0
    while True:
        try:
            guest.recv(2048)
        except BlockingIOError:
            return count
        count += 1


def test_who_is_told_of_is_the_vm_with_that_address_in_that_network():
    said = []

    def a_machine(name, network, ip):
        run = SimpleNamespace(network=network, ip=ip)
        return SimpleNamespace(
            record=SimpleNamespace(run=run), note=lambda what, _sentence: said.append((name, what))
        )

    at_rest = SimpleNamespace(record=SimpleNamespace(run=None))
    machines = [a_machine("one", "user", "10.0.0.2"), a_machine("two", "bridge", "10.0.0.2"), at_rest]  # fmt: skip
    flooded(SimpleNamespace(machines=lambda: machines), "bridge", "10.0.0.2")
    assert said == [("two", "names")]


FLOODS = {
    "of-nobody": HEADER.pack(99, DATA, 0),
    "unknown": HEADER.pack(1, 77, 0),
    "empty": HEADER.pack(1, DATA, 0),
    "credit-for-nothing": HEADER.pack(1, CREDIT, 4) + b"\xff\xff\xff\xff",
    "opened-again": HEADER.pack(1, OPENED, 0),
}


@pytest.mark.parametrize("frame", FLOODS.values(), ids=FLOODS)
async def test_frames_without_end_leave_others_their_turn_and_end_the_channel(
    tmp_path, monkeypatch, frame
):
    monkeypatch.setattr(module, "MAX_STRAYS", 20_000)
    monkeypatch.setattr(module, "_CALL_AGAIN_S", 60)  # the guest here answers once

    async def serve(reader, writer):
        try:
            await reader.readuntil(MAGIC)
            writer.write(MAGIC + await reader.readexactly(NONCE_BYTES))
            await reader.readexactly(HEADER.size + 2)
            writer.write(HEADER.pack(1, OPENED, 0))
            while True:
                writer.write(frame * 2000)
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            writer.close()

    server = await asyncio.start_unix_server(serve, tmp_path / "a.sock", limit=1 << 20)
    longest_s = 0.0

    async def others():
        nonlocal longest_s
        while True:
            before = time.thread_time()  # what a turn costs, not for how long the host held it up
            await asyncio.sleep(0)
            longest_s = max(longest_s, time.thread_time() - before)

    async with asyncio.timeout(60):
        mux = await Mux.connect(tmp_path / "a.sock")
        stream = await mux.open(1024)
        task = asyncio.create_task(others())
        await mux.closed.wait()
        task.cancel()
        assert await stream.read() == b""
        assert "without end" in stream.why
        with pytest.raises(MuxClosedError):
            await mux.open(1024)
        await mux.close()
    server.close()
    await asyncio.wait({task})
    assert longest_s < 1.0  # a few milliseconds, on a machine that does nothing else
