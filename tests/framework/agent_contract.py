"""What the guest agent does beyond the guest contract, when it runs on this host and not in a VM: either transport passes it."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import tarfile
import time
from pathlib import Path

import pytest

from banger.guest.connection import connect_guest
from banger.model.errors import BangerError, GuestNotReadyError, RefusedError
from banger.model.machine import VmPaths
from tests.framework.agent_process import agent_process, http_socket
from tests.framework.guest_contract import all_ports_busy, pieces, run
from tests.framework.vsock_relay import VsockRelay

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


def size_of(pid):
    status = Path(f"/proc/{pid}/status").read_text()
    rss = int(status.split("VmRSS:")[1].split()[0])
    threads = int(status.split("Threads:")[1].split()[0])
    return rss, threads, len(os.listdir(f"/proc/{pid}/fd"))


class AgentContract:
    """Subclass it beside a `GuestContract`; ``transport`` is what carries the agent's bytes, ``socket`` where the VMM has it."""

    transport, socket = "serial", "agent_socket"

    @pytest.fixture
    def agent(self, tmp_path):
        with agent_on_this_host(tmp_path, self.transport) as (paths, process):
            yield paths, process

    @pytest.fixture
    async def guest(self, agent):
        guest = connect_guest(agent[0], self.transport)
        await guest.wait_connected(60)
        yield guest
        await guest.close()

    @contextlib.asynccontextmanager
    async def running(self, directory, **options):
        with agent_on_this_host(directory, self.transport, **options) as (paths, _):
            guest = connect_guest(paths, self.transport)
            yield guest
            await guest.close()

    async def test_a_wrong_token_is_refused(self, agent, tmp_path_factory):
        paths, _ = agent
        copy = VmPaths(tmp_path_factory.mktemp("wrong"), paths.runtime)
        copy.agent_token.write_text("wrong")
        wrong = connect_guest(copy, self.transport)
        with pytest.raises(RefusedError, match="token"):
            await wrong.healthz(30)
        with pytest.raises(
            (BangerError, OSError)
        ):  # the answer may be lost behind a body that nobody reads
            await wrong.put_files("/tmp", pieces(b""))
        await wrong.close()

    async def test_services_are_waited_for_inside_the_guest(self, tmp_path):
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        async with self.running(tmp_path, services=f'[{{"name": "web", "port": {port}}}]') as guest:
            assert (await guest.healthz(30))["services"] == [
                {"name": "web", "port": port, "ready": False}
            ]
            waiting = asyncio.create_task(guest.wait_services(60))
            await asyncio.sleep(0.2)
            assert not waiting.done()
            listener.listen()
            assert (await asyncio.wait_for(waiting, 30))["services"][0]["ready"] is True
        listener.close()

    async def test_a_proxied_port_carries_bytes_both_ways(self, guest):
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

    @pytest.mark.parametrize("request_bytes", REQUESTS)
    async def test_a_malformed_request_gets_a_4xx_with_a_json_error(self, guest, request_bytes):
        stream = await guest.proxy(1024)
        await stream.write(request_bytes)
        answer = b""
        async with asyncio.timeout(60):
            while chunk := await stream.read():
                answer += chunk
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 4"), answer[:200]
        assert set(json.loads(body)) == {"code", "what", "detail", "hint"}
        assert (await guest.healthz(30))["status"] == "ok"

    @pytest.mark.parametrize(
        "part",
        [
            b"G",
            b"GET /healthz HTTP/1.1\r\n",
            b"PUT /files?path=/tmp HTTP/1.1\r\nAuthorization: Bearer secret\r\nContent-Length: 100\r\n\r\nabc",
        ],
    )
    async def test_half_a_request_of_a_client_that_vanishes_is_survived(self, guest, part):
        stream = await guest.proxy(1024)
        await stream.write(part)
        await stream.close()
        assert (await guest.healthz(30))["status"] == "ok"

    async def test_a_slow_reader_costs_neither_side_memory(self, agent, guest, tmp_path, carrier):
        """The agent waits for who reads, and so does the host's end: 200 MiB are nowhere but in the file."""
        with (tmp_path / "big").open("wb") as file:
            file.truncate(200 << 20)
        with all_ports_busy(guest, busy=carrier == "mux"):
            before, here = size_of(agent[1].pid)[0], size_of(os.getpid())[0]
            reading = guest.get_files(str(tmp_path / "big"))
            for _ in range(5):
                await anext(reading)
                await asyncio.sleep(0.1)
            assert size_of(agent[1].pid)[0] - before < 8192
            assert size_of(os.getpid())[0] - here < 8192
            await reading.aclose()

    async def test_a_slow_guest_makes_the_sender_wait(self, agent, guest, tmp_path, carrier):
        asked = 0

        async def source():
            nonlocal asked
            header = tarfile.TarInfo("big")
            header.size = 200 << 20
            yield header.tobuf()
            for _ in range(200):
                asked += 1
                yield bytes(1 << 20)

        with all_ports_busy(guest, busy=carrier == "mux"):
            sending = asyncio.create_task(guest.put_files(str(tmp_path), source()))
            while not asked:
                await asyncio.sleep(0.001)
            os.kill(agent[1].pid, signal.SIGSTOP)
            seen = 0
            async with asyncio.timeout(60):
                while asked != seen:  # what is on the way may take a while to find its place
                    seen = asked
                    await asyncio.sleep(0.3)
            assert asked < 200
            os.kill(agent[1].pid, signal.SIGCONT)
            sending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sending

    async def test_an_agent_that_dies_in_a_transfer_makes_it_fail(
        self, agent, guest, tmp_path, carrier
    ):
        async def source():
            header = tarfile.TarInfo("big")
            header.size = 10 << 20
            yield header.tobuf() + bytes(1 << 20)
            agent[1].kill()
            for _ in range(9):
                yield bytes(1 << 20)
            yield bytes(10240)

        with (tmp_path / "there").open("wb") as file:
            file.truncate(50 << 20)
        with all_ports_busy(guest, busy=carrier == "mux"):
            reading = guest.get_files(str(tmp_path / "there"))
            await anext(reading)
            with pytest.raises(GuestNotReadyError):
                await guest.put_files(str(tmp_path), source())
            with pytest.raises(GuestNotReadyError):
                _ = [chunk async for chunk in reading]

    async def test_an_agent_that_does_not_answer_is_said_to_be_so_in_time(self, tmp_path):
        paths = VmPaths(tmp_path, tmp_path)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(getattr(paths, self.socket)))
        listener.listen(1)
        guest = connect_guest(paths, self.transport)
        began = time.monotonic()
        with pytest.raises(GuestNotReadyError):
            await guest.healthz(0.3)
        with pytest.raises(GuestNotReadyError):
            await guest.wait_connected(0.3)
        assert time.monotonic() - began < 5  # on a busy host, and less than any deadline of its own
        await guest.close()
        listener.close()

    async def test_64_mib_are_byte_exact(self, guest):
        data = os.urandom(1 << 20) * 64
        began = time.monotonic()
        out, _, _ = await run(guest, "cat", stdin=data, timeout=100)
        print(f"exec cat: {64 / (time.monotonic() - began):.0f} MiB/s each way")
        assert out == data


@contextlib.contextmanager
def agent_on_this_host(directory, transport, **options):
    """An agent, and for vsock what Firecracker does in front of it; its paths and its process."""
    with contextlib.ExitStack() as stack:
        paths, process = stack.enter_context(
            agent_process(directory, vsock=transport == "vsock", **options)
        )
        if transport == "vsock":
            stack.enter_context(VsockRelay(paths.vsock_socket, http_socket(paths)))
        yield paths, process
