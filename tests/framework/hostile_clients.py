"""Requests that no client of ours sends, to the agent of any guest: run by tests/contract and tests/vm."""

import asyncio
import json

import pytest

REQUESTS = [
    b"\r\n\r\n",
    b"GET\r\n\r\n",
    b"GET / HTTP/9\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\nbroken\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\nx: " + b"y" * 40_000,
    b"GET /%zz HTTP/1.1\r\n\r\n",
    b"POST /exec HTTP/1.1\r\nUpgrade: banger-exec\r\nAuthorization: Bearer TOKEN\r\nContent-Length: 99999999999\r\n\r\n",
    b"POST /exec HTTP/1.1\r\nUpgrade: banger-exec\r\nAuthorization: Bearer TOKEN\r\nContent-Length: 3\r\n\r\n{{{",
    b"POST /exec HTTP/1.1\r\nUpgrade: banger-exec\r\nAuthorization: Bearer TOKEN\r\nContent-Length: 2\r\n\r\n[]",
    b"PUT /files?path=/tmp HTTP/1.1\r\nAuthorization: Bearer TOKEN\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"BREW /pot HTTP/1.1\r\nAuthorization: Bearer TOKEN\r\n\r\n",
]


def with_token(guest, request):
    """The request with this guest's token: what is refused is the request itself."""
    return request.replace(b"TOKEN", guest._paths.agent_token.read_text().strip().encode())


class HostileClients:
    """Subclass it where a fixture ``guest`` is at hand."""

    @pytest.mark.parametrize("request_bytes", REQUESTS)
    async def test_a_malformed_request_gets_a_4xx_with_a_json_error(self, guest, request_bytes):
        stream = await guest.proxy(1024)
        await stream.write(with_token(guest, request_bytes))
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
            b"PUT /files?path=/tmp HTTP/1.1\r\nAuthorization: Bearer TOKEN\r\nContent-Length: 100\r\n\r\nabc",
        ],
    )
    async def test_half_a_request_of_a_client_that_vanishes_is_survived(self, guest, part):
        stream = await guest.proxy(1024)
        await stream.write(with_token(guest, part))
        await stream.close()
        assert (await guest.healthz(30))["status"] == "ok"
