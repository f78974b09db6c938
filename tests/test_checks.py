"""The linters are tests: "run the tests" is the only instruction."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent


def check(*argv):
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, "\n" + done.stdout[-6000:] + done.stderr[-3000:]


def scripts():
    listed = subprocess.run(["git", "ls-files", "*.sh", ".ci/run"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [*listed.stdout.split(), "src/banger/images/payload/init"]


def test_ruff_finds_nothing():
    check(BIN / "ruff", "check", "src", "tests", "scripts", "bench")


def test_the_code_is_formatted():
    check(BIN / "ruff", "format", "--check", "src", "tests", "scripts", "bench")


def test_types_are_right():
    check(BIN / "mypy")


def test_layers_point_down():
    check(BIN / "lint-imports")


def test_dependencies_are_declared_and_used():
    check(BIN / "deptry", ".")


@pytest.mark.parametrize("script", scripts())
def test_shell_scripts_are_clean(script):
    shell = "dash" if script.endswith("/init") else "bash"
    check(BIN / "shellcheck", "-s", shell, script)


def test_no_module_has_outgrown_500_lines():
    long = [p for p in (ROOT / "src").rglob("*.py") if len(p.read_text().splitlines()) > 500]
    assert long == []


def test_every_promise_names_a_proof_that_exists():
    rows = [line.split("|") for line in (ROOT / "SPECIFICATION.md").read_text().splitlines() if line.startswith("| ")]
    proofs = [word.strip("` ") for row in rows[1:] for word in row[-2].split(",")]
    assert proofs
    assert [proof for proof in proofs if not (ROOT / proof.partition("::")[0]).exists()] == []
