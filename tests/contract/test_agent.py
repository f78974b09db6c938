"""The guest agent through the real client and mux, over a Unix socket instead of a virtio-serial port."""

import asyncio
import json
import os
import socket
import time
from pathlib import Path

import pytest

from banger.guest.connection import connect_guest
from banger.model.errors import GuestNotReadyError, RefusedError
from banger.model.machine import VmPaths
from banger.wire.mux import MAGIC, Mux
from tests.framework.agent_process import agent_process
from tests.framework.guest_contract import GuestContract, pieces, run


class TestAgentOverASocket(GuestContract):
    """The contract."""


async def test_a_wrong_token_is_refused(agent, tmp_path_factory):
    paths, _ = agent
    copy = VmPaths(tmp_path_factory.mktemp("wrong"), paths.runtime)
    copy.agent_token.write_text("wrong")
    wrong = connect_guest(copy)
    with pytest.raises(RefusedError, match="token"):
        await wrong.healthz(5)
    with pytest.raises(RefusedError, match="token"):
        await wrong.put_files("/tmp", pieces(b""))
    await wrong.close()


async def test_services_are_waited_for_inside_the_guest(tmp_path):
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    with agent_process(tmp_path, services=json.dumps([{"name": "web", "port": port}])) as (
        paths,
        _,
    ):
        guest = connect_guest(paths)
        assert (await guest.healthz(5))["services"] == [
            {"name": "web", "port": port, "ready": False}
        ]
        waiting = asyncio.create_task(guest.wait_services(10))
        await asyncio.sleep(0.2)
        assert not waiting.done()
        listener.listen()
        assert (await asyncio.wait_for(waiting, 5))["services"][0]["ready"] is True
        await guest.close()
    listener.close()


async def test_a_proxied_port_carries_bytes_both_ways(guest):
    async def echo(reader, writer):
        writer.write(await reader.readexactly(5))
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    stream = await guest.proxy(server.sockets[0].getsockname()[1])
    await stream.write(b"hello")
    assert await stream.read() == b"hello"
    assert await stream.read() == b""
    await stream.close()
    server.close()


@pytest.mark.parametrize("cut", [0, 1, 8, 9, 10, 500, 32 * 1024])
async def test_a_host_killed_in_the_middle_of_a_frame_does_not_confuse_the_guest(agent, cut):
    """Whatever the last host left half sent, the next one gets a working channel at once."""
    paths, _ = agent
    mux = await asyncio.wait_for(Mux.connect(paths.agent_socket), 10)
    stream = await mux.open(1024)
    frame = (
        (1).to_bytes(4, "big")
        + b"\x04"
        + (32 * 1024).to_bytes(4, "big")
        + bytes(os.urandom(32 * 1024))
    )
    mux._writer.write(frame[:cut])
    await mux._writer.drain()
    mux._writer.transport.abort()
    del stream
    guest = connect_guest(paths)
    await guest.wait_connected(10)
    assert (await run(guest, "echo", "again"))[0] == b"again\n"
    await guest.close()
    await mux.close()


async def test_the_next_host_synchronises_even_when_the_guest_did_not_notice_the_change(agent):
    """On virtio-serial a quick reconnect may go unnoticed: half a frame, then the new host's padding, on one byte stream."""
    paths, _ = agent
    reader, writer = await asyncio.open_unix_connection(paths.agent_socket)
    half = (1).to_bytes(4, "big") + b"\x04" + (32 * 1024).to_bytes(4, "big") + b"abc"
    writer.write(bytes(40000) + MAGIC + b"n" * 16 + half)
    assert await asyncio.wait_for(reader.readexactly(32), 5) == MAGIC + b"n" * 16
    writer.write(bytes(32 * 1024 + 9) + MAGIC + b"m" * 16)
    assert await asyncio.wait_for(reader.readexactly(32), 5) == MAGIC + b"m" * 16
    writer.close()


GARBAGE = [
    b"\0" * 100_000,
    os.urandom(50_000),
    b"GET / HTTP/1.1\r\n\r\n",
    MAGIC,
    MAGIC + b"n" * 16 + os.urandom(50_000),
]


@pytest.mark.parametrize("garbage", GARBAGE)
async def test_garbage_on_the_channel_is_survived(agent, garbage):
    paths, process = agent
    _, writer = await asyncio.open_unix_connection(paths.agent_socket)
    writer.write(garbage)
    await writer.drain()
    writer.close()
    guest = connect_guest(paths)
    await guest.wait_connected(10)
    assert process.poll() is None
    await guest.close()


REQUESTS = [
    b"\r\n\r\n",
    b"GET\r\n\r\n",
    b"GET / HTTP/9\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\nbroken\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\nx: " + b"y" * 40_000,
    b"GET /%zz HTTP/1.1\r\n\r\n",
    b"POST /exec HTTP/1.1\r\nUpgrade: banger-exec\r\nAuthorization: Bearer secret\r\nContent-Length: 99999999999\r\n\r\n",
    b"POST /exec HTTP/1.1\r\nUpgrade: banger-exec\r\nAuthorization: Bearer secret\r\nContent-Length: 3\r\n\r\n{{{",
    b"POST /exec HTTP/1.1\r\nUpgrade: banger-exec\r\nAuthorization: Bearer secret\r\nContent-Length: 2\r\n\r\n[]",
    b"PUT /files?path=/tmp HTTP/1.1\r\nAuthorization: Bearer secret\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"BREW /pot HTTP/1.1\r\nAuthorization: Bearer secret\r\n\r\n",
]


@pytest.mark.parametrize("request_bytes", REQUESTS)
async def test_a_malformed_request_gets_a_4xx_with_a_json_error(guest, request_bytes):
    stream = await guest.proxy(1024)
    await stream.write(request_bytes)
    answer = b""
    async with asyncio.timeout(10):
        while chunk := await stream.read():
            answer += chunk
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 4"), answer[:200]
    assert set(json.loads(body)) == {"code", "what", "detail", "hint"}
    assert (await guest.healthz(5))["status"] == "ok"


@pytest.mark.parametrize(
    "part",
    [
        b"G",
        b"GET /healthz HTTP/1.1\r\n",
        b"PUT /files?path=/tmp HTTP/1.1\r\nAuthorization: Bearer secret\r\nContent-Length: 100\r\n\r\nabc",
    ],
)
async def test_half_a_request_of_a_client_that_vanishes_is_survived(guest, part):
    stream = await guest.proxy(1024)
    await stream.write(part)
    await stream.close()
    assert (await guest.healthz(5))["status"] == "ok"


def _size(pid):
    status = Path(f"/proc/{pid}/status").read_text()
    rss = int(status.split("VmRSS:")[1].split()[0])
    threads = int(status.split("Threads:")[1].split()[0])
    return rss, threads, len(os.listdir(f"/proc/{pid}/fd"))


async def test_500_exec_calls_leave_the_agent_as_it_was(agent, guest):
    pid = agent[1].pid

    async def calls(count):
        for _ in range(count):
            assert (await run(guest, "true"))[2] == 0

    await calls(100)
    rss, _, files = _size(pid)
    await calls(400)
    end = time.monotonic() + 5
    while _size(pid)[1] > 4 and time.monotonic() < end:
        await asyncio.sleep(0.05)
    rss_after, threads_after, files_after = _size(pid)
    assert files_after <= files + 2
    assert threads_after <= 4
    assert rss_after - rss < 1024, f"{rss} kB -> {rss_after} kB"


async def test_an_agent_that_does_not_answer_is_said_to_be_so_in_time(tmp_path):
    paths = VmPaths(tmp_path, tmp_path)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(paths.agent_socket))
    listener.listen(1)
    guest = connect_guest(paths)
    began = time.monotonic()
    with pytest.raises(GuestNotReadyError):
        await guest.healthz(0.3)
    with pytest.raises(GuestNotReadyError):
        await guest.wait_connected(0.3)
    assert time.monotonic() - began < 2
    await guest.close()
    listener.close()


async def test_64_mib_are_byte_exact(guest):
    data = os.urandom(1 << 20) * 64
    began = time.monotonic()
    out, _, _ = await run(guest, "cat", stdin=data, timeout=100)
    print(f"exec cat: {64 / (time.monotonic() - began):.0f} MiB/s each way")
    assert out == data
