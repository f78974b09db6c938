"""What keeps on working in a daemon when something else does not."""

import asyncio
import subprocess
import sys
from types import SimpleNamespace

from banger.daemon import capping
from tests.framework.fake_world import World
from tests.unit.engine.test_engine import make


async def test_one_log_that_cannot_be_capped_ends_the_capping_of_no_other(tmp_path, monkeypatch):
    engine = World(tmp_path).engine()
    await make(engine, "one")
    await make(engine, "two")
    asked = asyncio.Event()
    first, second = (engine.resolve(name).paths.console_log for name in ("one", "two"))
    rounds = []

    def cap(path, _max_bytes):
        rounds.append(path)
        if path == first:
            raise ValueError("odd")
        if rounds.count(second) == 2:
            asked.set()

    monkeypatch.setattr(capping, "cap_log", cap)
    monkeypatch.setattr(capping, "EVERY_S", 0.01)
    capper = capping.Capper(SimpleNamespace(engine=engine, max_console_bytes=1 << 20))
    task = asyncio.create_task(capper.run())
    await asyncio.wait_for(asked.wait(), 30)
    assert not task.done()
    task.cancel()
    await asyncio.wait({task})
    await engine.close()
    engine.context.store.close()


def test_a_daemon_that_breaks_says_so_in_the_three_parts_with_its_traceback_in_a_line_of_the_log(
    tmp_path,
):
    env = {
        "BANGER_STATE_DIR": str(tmp_path), "BANGER_RUNTIME_DIR": str(tmp_path / "r"), "BANGER_FAULTS": "x=explode",
        "BANGER_CONFIG": str(tmp_path / "none"), "PATH": "/usr/bin:/bin",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "banger.daemon.main"], env=env, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert not any(line.startswith("Traceback") for line in lines)
    assert any(line.startswith("error: internal error: ValueError: fault") for line in lines)
    assert lines[-1] == "hint: banger daemon logs"
    assert any('"exception"' in line and "Traceback" in line for line in lines)
