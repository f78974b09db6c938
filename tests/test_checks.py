"""The linters are tests: "run the tests" is the only instruction."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
PYTHON = ("src", "tests", "scripts", "bench", "fuzz")


def check(*argv):
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"\n{done.stdout[-6000:]}{done.stderr[-3000:]}"


def shell_scripts():
    """Every shell script, by its first line: not all are called .sh."""
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if path.is_file() and path.suffix in {".sh", ""}:
            with path.open("rb") as file:
                words = file.readline().split()
            if words and words[-1].rpartition(b"/")[2] in {b"sh", b"bash"}:
                yield name


def dialect(script):
    return "bash" if b"bash" in (ROOT / script).read_bytes().split(b"\n", 1)[0] else "dash"


def test_ruff_finds_nothing():
    check(BIN / "ruff", "check", "--output-format=concise", *PYTHON)


def test_the_code_is_formatted():
    check(BIN / "ruff", "format", "--check", "--output-format=concise", *PYTHON)


def test_types_are_right():
    check(BIN / "mypy")


def test_layers_point_down():
    check(BIN / "lint-imports")


def test_dependencies_are_declared_and_used():
    check(BIN / "deptry", "--no-ansi", "src")


@pytest.mark.parametrize("script", list(shell_scripts()))
def test_shellcheck_finds_nothing(script):
    check(BIN / "shellcheck", "-x", "-s", dialect(script), script)


@pytest.mark.parametrize("script", list(shell_scripts()))
def test_shell_scripts_can_be_parsed(script):
    if dialect(script) == "bash":
        check("bash", "-n", script)
    else:
        check("sh", "-n", script)


def test_the_shell_scripts_are_found():
    assert {".ci/run", "scripts/bootstrap.sh", "scripts/demo.sh"} <= set(shell_scripts())
