"""The tests' own safeguards: what a test leaves behind and what a session did not run are failures."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.framework import suite

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow

LEAKS = {
    "descriptors": "import os\ndef test_it():\n    for _ in range(9): os.dup(0)\n",
    "children": "import subprocess\ndef test_it():\n    subprocess.Popen(['sleep', '30'])\n",
    "tasks": "import asyncio\nasync def test_it():\n    global t\n    t = asyncio.create_task(asyncio.sleep(60))\n",
}
CLEAN = "import asyncio\nasync def test_it():\n    await asyncio.create_task(asyncio.sleep(0))\ndef test_other():\n    pass\n"
SKIPPED = "import pytest\n@pytest.mark.vm\ndef test_it():\n    pytest.skip('no')\ndef test_other():\n    pass\n"


PLUGINS = ["pytest_asyncio.plugin", "pytest_timeout", "xdist.plugin", "no:cacheprovider", "host_of_its_own"]  # fmt: skip
PLUGINS += [f"tests.framework.{name}" for name in ("leaks", "required", "suite")]
HOST = """import os
from tests.framework import suite
looks = iter([set(), set(os.environ.get("LEFT", "").split())])
suite.inventory, suite.PATIENCE_S = lambda: next(looks), 0
"""
"""A host on which nobody else is at work: what it has before the tests, and after them."""


def session(directory, text, *options, **env):
    """A pytest of its own over one file of tests."""
    (directory / "test_one.py").write_text(text)
    (directory / "host_of_its_own.py").write_text(HOST)
    plugins = [word for name in PLUGINS for word in ("-p", name)]
    kept = {k: v for k, v in os.environ.items() if k != "BANGER_REQUIRE_TESTS" and not k.startswith("PYTEST_")}  # fmt: skip
    path = os.pathsep.join([str(directory), str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-c", ROOT / "pyproject.toml", "--rootdir", directory, *plugins, *options, directory],
        cwd=ROOT, env={**kept, "PYTHONPATH": path, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", **env},
        capture_output=True, text=True, timeout=60, check=False, start_new_session=True,
    )  # fmt: skip
    return done.returncode, done.stdout


@pytest.mark.parametrize("what", LEAKS)
def test_a_test_that_leaves_something_fails(tmp_path, what):
    status, said = session(tmp_path, LEAKS[what])
    assert status == 1, said
    assert f"{what} were left" in said
    assert re.search("1 passed, .*1 error", said)


def test_a_test_that_leaves_nothing_passes(tmp_path):
    assert session(tmp_path, CLEAN)[0] == 0


@pytest.mark.parametrize("options", [(), ("-n", "2")], ids=["one process", "several"])
def test_a_required_kind_of_which_all_tests_were_skipped_fails_the_session(tmp_path, options):
    assert session(tmp_path, SKIPPED, *options)[0] == 0
    status, said = session(tmp_path, SKIPPED, *options, BANGER_REQUIRE_TESTS="vm")
    assert status == suite.INCOMPLETE, said
    assert "no test ran of: vm" in said
    ran = SKIPPED.replace("pytest.skip('no')", "pass")
    assert session(tmp_path, ran, *options, BANGER_REQUIRE_TESTS="vm")[0] == 0


@pytest.mark.parametrize("options", [(), ("-n", "2")], ids=["one process", "several"])
def test_what_the_host_has_afterwards_and_had_not_before_fails_the_session(tmp_path, options):
    status, said = session(tmp_path, CLEAN, *options, LEFT="tap0")
    assert status == suite.INCOMPLETE, said
    assert "the tests left behind:\ntap0" in said


FAILS_ONCE = """from pathlib import Path
def test_good(): Path("good").open("a").write("x")
def test_unsteady():
    met = Path(__file__).with_suffix(".met")
    before = met.exists()
    met.touch()
    assert before
"""
FAILS_TWICE = "def test_wrong(): assert False\n"


def again(directory, **files):
    """Exit status and output of scripts/pytest-again.sh over files of tests."""
    for name, text in files.items():
        (directory / f"test_{name}.py").write_text(text)
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    done = subprocess.run(
        ["bash", ROOT / "scripts/pytest-again.sh", "-p", "xdist.plugin", "-n", "1", "-c", os.devnull, "--rootdir", directory, directory],
        cwd=directory, env={**kept, "PYTHON": sys.executable, "PYTHONPATH": "", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True, text=True, timeout=120, check=False, start_new_session=True,
    )  # fmt: skip
    return done.returncode, done.stdout


def test_a_test_that_fails_beside_others_is_run_again_alone_and_named(tmp_path):
    status, said = again(tmp_path, one=FAILS_ONCE)
    assert status == 0, said
    assert said.splitlines()[-1].startswith("UNSTEADY: failed beside others, passed alone: ")
    assert said.splitlines()[-1].endswith("test_one.py::test_unsteady")
    assert (tmp_path / "good").read_text() == "x"  # once


def test_a_test_that_fails_twice_fails_the_tests(tmp_path):
    status, said = again(tmp_path, one=FAILS_ONCE, two=FAILS_TWICE)
    assert status == 1, said
    assert "UNSTEADY: failed twice, or others of these did: " in said


def test_when_many_files_have_failures_there_is_no_second_try(tmp_path):
    status, said = again(tmp_path, **dict.fromkeys(("one", "two", "three", "four"), FAILS_ONCE))
    assert status == 1, said
    assert "once more" not in said


def test_a_session_that_passes_runs_once_and_one_that_is_no_session_not_again(tmp_path):
    status, said = again(tmp_path, one="def test_good(): pass\n")
    assert (status, "once more" in said) == (0, False), said
    status, said = again(tmp_path, one="raise KeyboardInterrupt\n")
    assert status not in (0, 1), said
    assert "once more" not in said
