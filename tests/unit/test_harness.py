"""The tests' own safeguards: what a test leaves behind and what a session did not run are failures."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

LEAKS = {
    "descriptors": "import os\ndef test_it():\n    for _ in range(9): os.dup(0)\n",
    "children": "import subprocess\ndef test_it():\n    subprocess.Popen(['sleep', '8'])\n",
    "tasks": "import asyncio\nasync def test_it():\n    global t\n    t = asyncio.create_task(asyncio.sleep(60))\n",
}
CLEAN = "import asyncio\nasync def test_it():\n    await asyncio.create_task(asyncio.sleep(0))\ndef test_other():\n    pass\n"
SKIPPED = "import pytest\n@pytest.mark.vm\ndef test_it():\n    pytest.skip('no')\ndef test_other():\n    pass\n"


def session(directory, text, **env):
    """A pytest of its own over one file of tests."""
    (directory / "test_one.py").write_text(text)
    plugins = [
        "-p",
        "tests.framework.leaks",
        "-p",
        "tests.framework.required",
        "-p",
        "no:cacheprovider",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-c", ROOT / "pyproject.toml", "--rootdir", directory, *plugins, directory],
        cwd=ROOT, env={**{k: v for k, v in os.environ.items() if k != "BANGER_REQUIRE_TESTS" and not k.startswith("PYTEST_")}, **env},
        capture_output=True, text=True, timeout=60, check=False, start_new_session=True,
    )  # fmt: skip
    return done.returncode, done.stdout


@pytest.mark.parametrize("what", LEAKS)
def test_a_test_that_leaves_something_fails(tmp_path, what):
    status, said = session(tmp_path, LEAKS[what])
    assert status == 1, said
    assert f"{what} were left" in said
    assert "1 passed, 1 error" in said


def test_a_test_that_leaves_nothing_passes(tmp_path):
    assert session(tmp_path, CLEAN)[0] == 0


def test_a_required_kind_of_which_all_tests_were_skipped_fails_the_session(tmp_path):
    assert session(tmp_path, SKIPPED)[0] == 0
    status, said = session(tmp_path, SKIPPED, BANGER_REQUIRE_TESTS="vm")
    assert status == 1, said
    assert "no test ran of: vm" in said
    assert (
        session(tmp_path, SKIPPED.replace("pytest.skip('no')", "pass"), BANGER_REQUIRE_TESTS="vm")[
            0
        ]
        == 0
    )
