"""The real API server on a real Unix socket, over a host in memory."""

import asyncio
import contextlib
import http.client
import json
import socket

import pytest

from tests.framework.api_server import serving, socket_path


class Api:
    """A small blocking client, so that the tests do not lean on banger's own."""

    def __init__(self, path, service, world):
        self.path, self.service, self.world = str(path), service, world

    def _call(self, method, url, body, headers):
        connection = http.client.HTTPConnection("localhost", timeout=10)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(10)
        connection.sock.connect(self.path)
        with contextlib.closing(connection):
            connection.request(method, url, body, headers)
            response = connection.getresponse()
            return response.status, response.headers, response.read()

    async def raw(self, method, url, body=None, headers=None):
        return await asyncio.to_thread(self._call, method, url, body, headers or {})

    async def __call__(self, method, url, body=None):
        data = None if body is None else json.dumps(body)
        status, _, answer = await self.raw(method, url, data, {"content-type": "application/json"})
        return status, json.loads(answer) if answer else None

    async def wait(self, operation):
        async with asyncio.timeout(10):
            while operation["state"] in {"pending", "running"}:
                await asyncio.sleep(0.01)
                _, operation = await self("GET", f"/v1/operations/{operation['id']}")
        return operation


@pytest.fixture
def warnings():
    """What this daemon has to say to its user."""
    return []


@pytest.fixture
async def api(tmp_path, warnings):
    async with serving(tmp_path, warnings) as (service, world):
        yield Api(socket_path(tmp_path), service, world)
