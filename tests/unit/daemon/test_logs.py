"""Lines of the daemon's log say which VM and which operation they belong to; whoever follows a log misses nothing of it."""

import itertools
import json
import logging

import pytest

from banger.daemon.handlers import logs as handlers
from banger.daemon.logs import JsonLines
from banger.host import fs
from tests.framework.fake_world import FakeGuest, World
from tests.unit.engine.test_engine import finished, make


@pytest.fixture
def lines():
    said = []

    class Kept(logging.Handler):
        def emit(self, record):
            said.append(json.loads(self.format(record)))

    handler = Kept()
    handler.setFormatter(JsonLines())
    logging.getLogger().addHandler(handler)
    yield said
    logging.getLogger().removeHandler(handler)


async def test_a_line_has_the_ids_of_its_vm_and_its_operation(tmp_path, lines, monkeypatch, caplog):
    caplog.set_level("INFO")
    engine = World(tmp_path).engine()
    ids = {}
    for name in ("one", "two"):
        await make(engine, name)
        ids[name] = engine.resolve(name).id

    async def speak(self, epoch_ms, timeout_s=2.0):
        logging.getLogger("x").info("in a guest")

    monkeypatch.setattr(FakeGuest, "set_clock", speak)
    for name in ("one", "two"):
        record = await finished(engine, engine.resume(engine.resolve(name)))
        line = [line for line in lines if line["message"] == "in a guest"][-1]
        assert (line["vm"], line["operation"]) == (ids[name], record.id)
    engine.resolve("one").vmm.end("crash")
    await finished(engine, engine.delete(engine.resolve("one")))
    logging.getLogger("x").info("of nobody")
    assert not {"vm", "operation"} & set(lines[-1])
    await engine.close()
    engine.context.store.close()


async def test_who_follows_a_log_misses_nothing_that_is_written_while_its_end_is_read(
    tmp_path, monkeypatch
):
    path = tmp_path / "console.log"
    path.write_text("much earlier, one")
    numbers = itertools.count()

    def slowly(read):
        def reads(*where):
            found = read(*where)
            with path.open("a") as file:
                file.write(f", {next(numbers)}")
            return found

        return reads

    monkeypatch.setattr(handlers, "_read_from", slowly(handlers._read_from))
    monkeypatch.setattr(fs, "read_tail", slowly(fs.read_tail))
    said = b""
    async for chunk in handlers._log(path, 3, follow=True):
        said += chunk
        if len(said) > 12:
            break
    assert said.startswith(b"one, 0, 1, 2")
