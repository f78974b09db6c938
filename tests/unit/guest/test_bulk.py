"""The host's end of a bulk port against whatever a guest may send."""

import asyncio
import os
import socket
import struct

import pytest

from banger.guest import bulk
from banger.guest.bulk import MAGIC, MAX_BLOCK_BYTES, BulkLostError, BulkPort, BulkPorts
from banger.model.machine import VmPaths


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.settimeout(30)
    with ours, theirs:
        yield BulkPort(1, ours), theirs


def mark_of(port):
    number, nonce = port.header[bulk.HEADER].split()
    assert number == "1"
    return MAGIC + bytes.fromhex(nonce)


def block(data):
    return struct.pack(">I", len(data)) + data


async def received(port):
    blocks = []
    while data := await port.block():
        blocks.append(data)
    return blocks


@pytest.mark.parametrize(
    "stale",
    [b"", b"x", MAGIC, MAGIC * 3, MAGIC + bytes(16) + block(b"old"), os.urandom(100_000), bytes(100_000)],
)  # fmt: skip
async def test_what_lies_before_the_mark_is_skipped(pair, stale):
    port, guest = pair
    data = stale + mark_of(port) + block(b"first") + block(b"second") + block(b"")
    asyncio.get_running_loop().run_in_executor(None, guest.sendall, data)
    await port.find_mark()
    assert await received(port) == [b"first", b"second"]


async def test_a_stream_in_single_bytes_is_read_alike(pair):
    port, guest = pair

    def trickle():
        for byte in b"stale" + mark_of(port) + block(b"data") + block(b""):
            guest.sendall(bytes([byte]))

    asyncio.get_running_loop().run_in_executor(None, trickle)
    await port.find_mark()
    assert await received(port) == [b"data"]


async def test_a_port_without_a_mark_is_given_up(pair, monkeypatch):
    monkeypatch.setattr(bulk, "MAX_STALE_BYTES", 1000)
    port, guest = pair
    guest.sendall(MAGIC * 100)
    with pytest.raises(BulkLostError, match="no mark"):
        await port.find_mark()


@pytest.mark.parametrize("sent", [b"", b"\0", block(b"whole") + b"\0\0", b"\0\0\0\x09part"])
async def test_a_port_that_closes_early_is_an_error(pair, sent):
    port, guest = pair
    guest.sendall(mark_of(port) + sent)
    guest.shutdown(socket.SHUT_WR)
    await port.find_mark()
    with pytest.raises(BulkLostError, match="closed"):
        await received(port)


async def test_a_block_beyond_all_bounds_is_refused_before_it_is_read(pair):
    port, guest = pair
    guest.sendall(mark_of(port) + struct.pack(">I", MAX_BLOCK_BYTES + 1))
    await port.find_mark()
    with pytest.raises(BulkLostError, match="nonsense"):
        await port.block()


async def test_small_pieces_are_gathered_and_large_ones_cut(pair):
    port, guest = pair
    data = os.urandom(600_000)

    async def tar():
        yield data[:100_000]
        for at in range(100_000, 101_000):
            yield data[at : at + 1]
        yield b""
        yield data[101_000:]

    def everything():
        with guest.makefile("rb") as file:
            blocks = []
            while size := struct.unpack(">I", file.read(4))[0]:
                blocks.append(file.read(size))
            return blocks

    reading = asyncio.get_running_loop().run_in_executor(None, everything)
    await port.send(tar(), 30)
    blocks = await reading
    assert b"".join(blocks) == data
    assert [len(b) for b in blocks[:-1]] == [MAX_BLOCK_BYTES, MAX_BLOCK_BYTES]


async def test_a_guest_that_takes_nothing_is_given_up(pair):
    async def tar():
        while True:
            yield bytes(1 << 20)

    with pytest.raises(BulkLostError, match=r"took nothing for 0\.2 s"):
        await pair[0].send(tar(), 0.2)


async def test_an_aborted_port_wakes_who_reads(pair):
    port, _ = pair
    reading = asyncio.create_task(port.block())
    await asyncio.sleep(0.01)
    port.abort()
    with pytest.raises(BulkLostError):
        await asyncio.wait_for(reading, 30)


def test_ports_are_given_one_by_one_and_given_back(tmp_path):
    paths = VmPaths(tmp_path, tmp_path)
    ports = BulkPorts(paths)
    with ports.take() as none:
        assert none is None
    with socket.socket(socket.AF_UNIX) as first, socket.socket(socket.AF_UNIX) as second:
        for number, listener in enumerate((first, second)):
            listener.bind(str(paths.bulk_socket(number)))
            listener.listen()
        with ports.take() as one, ports.take() as two, ports.take() as three:
            assert one.header[bulk.HEADER].startswith("0 ")
            assert two.header[bulk.HEADER].startswith("1 ")
            assert one.header[bulk.HEADER][2:] != two.header[bulk.HEADER][2:]
            assert three is None
        with pytest.raises(LookupError), ports.take():
            raise LookupError
        with ports.take() as one:
            assert one.header[bulk.HEADER].startswith("0 ")
