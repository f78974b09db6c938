"""The running API keeps its own OpenAPI document: requests made from the document, valid and broken, find nothing."""

import asyncio
import threading

import pytest
import schemathesis
import schemathesis.reporting.html.writer  # its plugin would only import it when all else is being taken down
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import positive_data_acceptance

from banger.daemon.app import make_app
from banger.daemon.server import bind, make_server
from banger.daemon.service import Service
from banger.engine.image_work import ImageWork
from tests.framework.fake_world import World
from tests.framework.faulty import Faulty
from tests.framework.unix_session import BASE, unix_session

SCHEMA = schemathesis.openapi.from_path("docs/reference/openapi.json").exclude(
    path="/v1/events"  # its answer has no end; tests/unit/daemon/test_api.py reads it
)


class Running:
    """The real server over a host in memory, in a thread of its own, with one VM that runs."""

    def __init__(self, directory):
        self.path = directory / "s" / "bangerd.sock"
        self._directory = directory
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    async def _serve(self):
        engine = World(self._directory).engine()
        service = Service(
            engine=engine, image_work=ImageWork(engine), started_at="2026-01-01T00:00:00.000Z", version="0",
            state_dir=str(self._directory), runtime_dir=str(self._directory), accel="tcg", max_console_bytes=1 << 20,
        )  # fmt: skip
        listener = bind(self.path)
        self.loop, self.server = asyncio.get_running_loop(), make_server(make_app(service))
        self.loop.call_soon(self._ready.set)
        try:
            await self.server._serve([listener])
        finally:
            listener.close()
            await service.image_work.close()
            await engine.close()
            engine.context.store.close()

    def __enter__(self):
        self._thread.start()
        assert self._ready.wait(60)
        return self

    def __exit__(self, *_error):
        self.loop.call_soon_threadsafe(self.server.end)
        self._thread.join(20)
        assert not self._thread.is_alive()


@pytest.fixture(scope="module")
def in_memory(tmp_path_factory):
    with Running(tmp_path_factory.mktemp("api")) as running, unix_session(running.path) as session:
        made = session.post(
            f"{BASE}/v1/vms", json={"name": "one", "disk_bytes": 1 << 30, "work_bytes": 1 << 30}
        )
        assert made.status_code == 202, made.text
        yield session


MMDEBSTRAP = "#!/bin/sh\nexit 1\n"


@pytest.fixture(scope="module")
def real(tmp_path_factory, image):
    """A real bangerd with a VM at rest; what it lacks is a QEMU and an mmdebstrap that works, so that nothing boots and nothing is built."""
    banger = Faulty(tmp_path_factory.mktemp("real"))
    with banger.daemon() as client:
        assert banger.make(client, "one", start=False).state == "succeeded"
    programs = banger.directory / "bin"
    programs.mkdir()
    (programs / "mmdebstrap").write_text(MMDEBSTRAP)
    (programs / "mmdebstrap").chmod(0o755)
    kept = dict(banger.env)
    banger.env |= {"BANGER_QEMU_PATH": "/nonexistent/qemu", "PATH": f"{programs}:{kept['PATH']}"}
    with banger.daemon(), unix_session(banger.runtime / "bangerd.sock") as session:
        yield session
    banger.env = kept
    assert banger.close() == []


@pytest.fixture(scope="module", params=["in_memory", "real"])
def session(request):
    return request.getfixturevalue(request.param)


@SCHEMA.parametrize()
@settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
def test_the_api_is_as_its_document_says(case, session):
    # Of the 5xx only 503 and 504 are allowed, where they are documented: schemathesis' own check knows no exception. What only the
    # engine knows (an image's size, an ambiguous id) is refused with words of its own.
    answer = case.call_and_validate(
        base_url=BASE,
        session=session,
        timeout=60,  # images are looked into before they are removed
        excluded_checks=[not_a_server_error, positive_data_acceptance],
    )
    assert answer.status_code < 500 or answer.status_code in {503, 504}
    if answer.status_code >= 400:
        problem = answer.json()
        assert problem["code"] != "failure"
        assert problem["what"]
