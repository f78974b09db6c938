"""Fixtures by stage: an image, an installation, a running VM. Tests that boot guests share one build of the image."""

import signal
import time
from pathlib import Path

import pytest

from banger.host.probe import root
from tests.framework import firecracker_program
from tests.framework.installation import CACHE, Installation, built
from tests.framework.leaks import (  # noqa: F401  fixtures
    loop_without_tasks,
    no_open_files_and_children_are_left,
    no_tasks_are_left,
)
from tests.framework.net_host import OwnHost
from tests.framework.required import pytest_runtest_logreport  # noqa: F401  hook
from tests.framework.suite import (  # noqa: F401  hooks
    pytest_sessionfinish,
    pytest_sessionstart,
)

for _signal in (
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGHUP,
):  # under nohup, or a shell's &, they are ignored, which children inherit
    if signal.getsignal(_signal) is signal.SIG_IGN:
        default = signal.default_int_handler if _signal is signal.SIGINT else signal.SIG_DFL
        signal.signal(_signal, default)

REAL_FIRECRACKER = ("firecracker", "real")


def pytest_collection_modifyitems(items):
    """Tests in tests/vm boot real guests, those in tests/host need namespaces: marked by where they are."""
    for item in items:
        folder = Path(str(item.fspath)).relative_to(Path(__file__).parent).parts[0]
        if folder in {"vm", "host", "fault"}:
            item.add_marker(getattr(pytest.mark, folder))


@pytest.fixture(scope="session")
def image():
    """The image that tests boot: debian-base by the name of the default one."""
    return built("debian-base", "debian")


@pytest.fixture(scope="session")
def dev_image():
    """The default image as its users get it, the recipe debian, by the name ``dev``."""
    return built("debian", "dev")


@pytest.fixture(scope="session")
def test_image(image):
    """The directory of the image's files."""
    return CACHE / "images" / image["id"]


@pytest.fixture
def banger(tmp_path, image, request):
    """An installation of the test's own; fails the test if anything is left at its end."""
    installation = Installation(tmp_path)
    yield installation
    failed = getattr(request.node, "failed", False)
    if failed:
        print(installation.logs())
    left = installation.close()
    assert not left, f"left behind: {left}"


@pytest.fixture(scope="module")
def shared(tmp_path_factory, image):
    """An installation for all tests of a module that leave its VM as it was."""
    installation = Installation(tmp_path_factory.mktemp("shared"))
    yield installation
    left = installation.close()
    assert not left, f"left behind: {left}"


@pytest.fixture(scope="module")
def vm(shared):
    """A running VM named ``box`` of the module's own."""
    began = time.monotonic()
    shared.create("box")
    print(f"created in {time.monotonic() - began:.1f} s")
    return shared


@pytest.fixture
def own_host():
    """What the test starts lives on this host, a namespace: beyond it is a machine that echoes."""
    if not root():
        pytest.skip(f"a host of its own needs root: {root().why}")
    host = OwnHost()
    yield host
    host.close()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item):
    outcome = yield
    report = outcome.get_result()
    item.failed = report.failed or getattr(item, "failed", False)
    # A parameter may be called so too, which keywords do not tell apart.
    if report.when == "call" and item.get_closest_marker("firecracker"):
        report.user_properties.append(REAL_FIRECRACKER)


def pytest_terminal_summary(terminalreporter, config):
    """Say which Firecracker was tested, or why none was: a suite that did not run must not look like one that passed."""
    ran = [
        report
        for kind in ("passed", "failed")
        for report in terminalreporter.stats.get(kind, ())
        if REAL_FIRECRACKER in map(tuple, report.user_properties)
    ]
    found, why = firecracker_program.programs()
    if ran:
        what = f"{len(ran)} tests ran with Firecracker {found.version}"
    else:
        what = f"no test ran; {why or 'none was asked for, or this machine cannot'}"
    terminalreporter.write_line(f"the real Firecracker: {what}")
