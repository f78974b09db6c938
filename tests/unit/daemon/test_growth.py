"""A daemon that makes and deletes VMs all day is afterwards as large as before. The API server is the real one, the host is in memory.

``BANGER_LOAD_CYCLES`` says how many VMs come and go; the slopes are printed.
"""

import asyncio
import gc
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from banger.store import store
from tests.framework.growth import footprint, slopes

CYCLES = int(os.environ.get("BANGER_LOAD_CYCLES", "200"))
SAMPLES = 20
THREADS = 4
KEPT_OPERATIONS = 20
"""Of the history; the real limit would be reached only by five hundred VMs."""
MOST_KIB = 2.0
"""Of resident memory a cycle: measured is a tenth of it, and one record of an operation that is kept would be more."""

pytestmark = pytest.mark.timeout(60 + CYCLES)


async def life(api):
    """A VM is made, looked at, and deleted; each answer is what it should be."""
    status, operation = await api("POST", "/v1/vms", {"name": "box", "image": "debian"})
    assert status == 202
    record = await api.service.context.board.live(operation["id"]).wait()
    assert record.state == "succeeded", record.error
    status, shown = await api("GET", "/v1/vms/box")
    assert (status, shown["state"]) == (200, "running")
    status, operation = await api("DELETE", "/v1/vms/box")
    assert status == 202
    record = await api.service.context.board.live(operation["id"]).wait()
    assert record.state == "succeeded", record.error


async def all_threads():
    """The loop's pool of threads makes them when they are wanted at once, which is chance: here all are made before anything is measured."""
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(THREADS))
    met = threading.Barrier(THREADS)
    await asyncio.gather(*(loop.run_in_executor(None, met.wait, 10) for _ in range(THREADS)))


@pytest.mark.slow
async def test_nothing_grows_while_vms_come_and_go(api, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "KEEP_OPERATIONS", KEPT_OPERATIONS)
    world = api.world
    await all_threads()
    for _ in range(max(40, CYCLES // 5)):  # until pools, caches and the history are full
        await life(api)
    before = world.inventory()
    samples = []
    for done in range(CYCLES):
        await life(api)
        world.identities.clear()  # the fake's own notes
        if done % (CYCLES // SAMPLES) == 0:
            gc.collect()
            samples.append((done, footprint(tmp_path, tmp_path / "banger.db")))
    found = slopes(samples)
    print(f"{CYCLES} cycles, growth a cycle: {found}")
    assert world.inventory() == before
    assert found.pop("rss_kib") <= MOST_KIB
    per_sample = 1 / CYCLES  # less than one more at the end than at the beginning
    assert all(slope <= per_sample for slope in found.values()), found
    _, shown = await api("GET", "/v1/vms")
    assert shown == []
