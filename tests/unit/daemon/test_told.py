"""Warnings of a daemon reach its user once, by whatever command comes first."""

import asyncio

import pytest

from banger.api import routes
from banger.client.transport import Transport

LOST = "the database was damaged and is kept as /x/banger.db.corrupt; VMs were recovered: naïvely"


@pytest.fixture
def warnings():
    return [LOST]


async def test_a_warning_is_told_once_to_a_client_that_shows_it_and_stays_in_info(api):
    def ask(*, shows):
        transport = Transport(api.path)
        transport.shows_warnings = shows
        info = transport.fetch(routes.INFO)
        return transport.warnings, info["warnings"], transport.daemon_version

    assert await asyncio.to_thread(ask, shows=False) == ([], [LOST], "0")
    assert await asyncio.to_thread(ask, shows=True) == ([LOST], [LOST], "0")
    assert await asyncio.to_thread(ask, shows=True) == ([], [LOST], "0")
