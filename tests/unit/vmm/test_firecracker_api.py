"""The API's client against a server that plays each way of answering, or not."""

import asyncio
import contextlib
import json

import h11
import pytest

from banger.model.errors import GuestNotReadyError
from banger.vmm.firecracker.api import MAX_ANSWER_BYTES, Api, FaultError
from banger.vmm.firecracker.bodies import Entropy, MmdsContents, Vm

PAUSE = Vm(state="Paused")
INFO = {"id": "x", "state": "Running", "vmm_version": "1.17.0-dev", "app_name": "Firecracker"}


class Played:
    """Answers the requests with what ``answers`` says: bytes as they are, None not at all, a number and JSON."""

    def __init__(self, answers):
        self.answers, self.connections, self.requests = list(answers), 0, []
        self.silent = []

    async def serve(self, reader, writer):
        self.connections += 1
        connection = h11.Connection(h11.SERVER)
        body = b""
        try:
            while True:
                event = connection.next_event()
                if event is h11.NEED_DATA:
                    connection.receive_data(await reader.read(65536))
                elif isinstance(event, h11.Request):
                    request, body = event, b""
                elif isinstance(event, h11.Data):
                    body += bytes(event.data)
                elif isinstance(event, h11.EndOfMessage):
                    self.requests.append((request.method, request.target, bytes(body)))
                    answer = self.answers.pop(0)
                    if answer is None:
                        self.silent.append(asyncio.current_task())
                        await asyncio.Event().wait()
                    if isinstance(answer, bytes):
                        writer.write(answer)
                        return
                    writer.write(as_firecracker(*answer))
                    connection.send(h11.Response(status_code=204, headers=[]))
                    connection.send(h11.EndOfMessage())
                    connection.start_next_cycle()
                else:
                    return
        finally:
            writer.close()


def as_firecracker(status, value=None):
    """As its HTTP server writes it: no reason, and for 204 no length."""
    head = f"HTTP/1.1 {status} \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n"
    if status == 204:
        return (head + "\r\n").encode()
    body = json.dumps(value).encode()
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


@contextlib.asynccontextmanager
async def playing(directory, *answers):
    played = Played(answers)
    server = await asyncio.start_unix_server(played.serve, directory / "api.sock")
    api = Api(directory / "api.sock")
    try:
        yield api, played
    finally:
        await api.close()
        server.close()
        for task in played.silent:
            task.cancel()


async def test_all_requests_go_over_one_connection(tmp_path):
    async with playing(tmp_path, (204,), (204,), (200, INFO), (204,)) as (api, played):
        await api.send(PAUSE, 30)
        await api.send(Entropy(), 30)
        assert (await api.describe(30)).state == "Running"
        await api.send(MmdsContents({"a": {"b": 1}}), 30)
        assert played.connections == 1
        assert played.requests == [
            (b"PATCH", b"/vm", b'{"state":"Paused"}'),
            (b"PUT", b"/entropy", b"{}"),
            (b"GET", b"/", b""),
            (b"PUT", b"/mmds", b'{"a":{"b":1}}'),
        ]


async def test_calls_at_the_same_time_go_one_after_the_other(tmp_path):
    async with playing(tmp_path, *[(204,)] * 20) as (api, played):
        await asyncio.gather(*(api.send(PAUSE, 30) for _ in range(20)))
        assert (played.connections, len(played.requests)) == (1, 20)


async def test_a_refusal_has_firecrackers_words_and_the_connection_goes_on(tmp_path):
    fault = {"fault_message": "Cannot open the tap device"}
    async with playing(tmp_path, (400, fault), (204,)) as (api, played):
        with pytest.raises(FaultError, match="Firecracker refused PATCH /vm") as raised:
            await api.send(PAUSE, 30)
        assert raised.value.detail == "Cannot open the tap device"
        await api.send(PAUSE, 30)
        assert played.connections == 1


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((503, {"error": "Too many open connections"}), "Too many open connections"),
        ((400, {}), "status 400, and no reason"),
        ((400, ["odd"]), "status 400, and no reason"),
        ((400, {"fault_message": "x" * 10_000}), "x" * 2000),
    ],
)
async def test_a_refusal_in_another_form_is_one_too(tmp_path, answer, words):
    async with playing(tmp_path, answer) as (api, _):
        with pytest.raises(FaultError) as raised:
            await api.send(PAUSE, 30)
        assert raised.value.detail == words


async def test_silence_is_an_error_in_time_and_its_connection_is_not_used_again(tmp_path):
    async with playing(tmp_path, None, (204,)) as (api, played):
        with pytest.raises(GuestNotReadyError, match=r"PATCH /vm within 0.1 s"):
            await api.send(PAUSE, 0.1)
        await api.send(PAUSE, 30)
        assert played.connections == 2


async def test_who_waits_for_a_stuck_call_has_a_deadline_too(tmp_path):
    async with playing(tmp_path, None) as (api, _):
        stuck = asyncio.create_task(api.send(PAUSE, 1))
        await asyncio.sleep(0)  # it has the line; both deadlines run from here on
        with pytest.raises(GuestNotReadyError, match=r"within 0.1 s"):
            await api.describe(0.1)
        with pytest.raises(GuestNotReadyError):
            await stuck


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"what?\r\n\r\n",
        b"HTTP/1.1 200 \r\nContent-Length: 100\r\n\r\n{}",
        b"HTTP/1.1 200 \r\nContent-Length: 3\r\n\r\n{{{",
        (200, ["no", "object"]),
        (200, {"state": 3}),
        b"HTTP/1.1 200 \r\nX: " + b"y" * 100_000,
        as_firecracker(200, {"id": "x" * (MAX_ANSWER_BYTES + 1)}),
    ],
)
async def test_nonsense_is_an_error_and_the_next_call_begins_anew(tmp_path, answer):
    async with playing(tmp_path, answer, (200, INFO)) as (api, _):
        with pytest.raises(GuestNotReadyError):
            await api.describe(30)
        assert (await api.describe(30)).vmm_version == "1.17.0-dev"


async def test_a_connection_that_firecracker_has_closed_is_made_again(tmp_path):
    async with playing(tmp_path, as_firecracker(204), (204,)) as (api, played):
        await api.send(PAUSE, 30)
        await asyncio.sleep(0.05)
        await api.send(PAUSE, 30)
        assert played.connections == 2


async def test_an_answer_that_says_it_is_the_last_is_believed(tmp_path):
    last = b"HTTP/1.1 204 \r\nConnection: close\r\n\r\n"
    async with playing(tmp_path, last, (204,)) as (api, played):
        await api.send(PAUSE, 30)
        await api.send(PAUSE, 30)
        assert played.connections == 2


async def test_without_a_server_the_socket_is_named(tmp_path):
    api = Api(tmp_path / "api.sock")
    with pytest.raises(GuestNotReadyError, match="did not answer PATCH /vm at all") as raised:
        await api.send(PAUSE, 30)
    assert "No such file" in raised.value.detail
