"""``/v1/audit`` and what else tells of residue: metrics and events."""

import asyncio
import json

from tests.unit.engine.test_engine import make

STRANGER = "0123456789ab"


async def test_audit_is_empty_where_record_and_host_agree(api):
    await make(api.service.engine)
    assert await api("GET", "/v1/audit") == (200, [])
    assert await api("POST", "/v1/audit/fix") == (200, [])


async def test_residue_is_listed_counted_and_mended(api):
    api.world.known_hosts[STRANGER] = "gone"
    (item,) = (await api("GET", "/v1/audit"))[1]
    assert item == {
        "kind": "host-key", "sense": "unrecorded", "name": STRANGER, "vm": STRANGER, "remedy": "forget", "fixed": False, "did": "",
        "what": f"there is a line in known_hosts of VM {STRANGER}, which nobody knows", "hint": "", "error": None,
    }  # fmt: skip
    _, _, metrics = await api.raw("GET", "/metrics")
    assert b'banger_residue{kind="host-key"} 1.0' in metrics
    (item,) = (await api("POST", "/v1/audit/fix"))[1]
    assert (item["fixed"], item["did"]) == (True, f"everything of VM {STRANGER} removed")
    assert await api("GET", "/v1/audit") == (200, [])
    _, _, metrics = await api.raw("GET", "/metrics")
    assert b"banger_residue{" not in metrics


async def test_what_the_watch_finds_is_an_event(api):
    reader, writer = await asyncio.open_unix_connection(api.path)
    writer.write(b"GET /v1/events HTTP/1.1\r\nHost: x\r\n\r\n")
    async with asyncio.timeout(30):
        await reader.readuntil(b"event: hello")
        api.world.known_hosts[STRANGER] = "gone"
        await api.service.audit.watch_once()
        await reader.readuntil(b"event: residue\r\ndata: ")
        event = json.loads(await reader.readline())
    assert event["residue"]["kind"] == "host-key"
    writer.close()
