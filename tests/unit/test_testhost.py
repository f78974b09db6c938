"""What the tests of the real Firecracker are given: the programs that are found, and the tar that a test host gets."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.framework import testhost
from tests.framework.firecracker_program import Programs, find, programs


@pytest.fixture
def make(tmp_path):
    def program(place, name="firecracker", says="Firecracker v1.9.1"):
        path = tmp_path / place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\necho '{says}'\n")
        path.chmod(0o755)
        return path

    return program


def test_a_program_is_looked_for_in_the_environment_then_on_path_then_in_the_bundle(make, tmp_path):
    named, on_path, inside = make("named"), make("bin"), make("bundle/1.9")
    environ = {"BANGER_FIRECRACKER": str(named), "PATH": str(on_path.parent)}
    bundle = tmp_path / "bundle"
    assert find("firecracker", environ, bundle) == str(named)
    del environ["BANGER_FIRECRACKER"]
    assert find("firecracker", environ, bundle) == str(on_path)
    assert find("firecracker", {"PATH": "/none"}, bundle) == str(inside)
    assert find("jailer", environ, bundle) is None


def test_both_programs_are_needed_and_the_reason_names_the_missing_one(make, tmp_path):
    environ = {"PATH": str(make("bin").parent)}
    assert programs(environ, tmp_path / "none") == (
        None, "no jailer on PATH, in $BANGER_JAILER or in build/runtime",
    )  # fmt: skip
    make("bin", "jailer")
    found, why = programs(environ, tmp_path / "none")
    assert (found.version, why) == ("1.9.1", "")


def test_a_named_program_that_is_none_is_not_replaced_by_another(make, tmp_path):
    environ = {"PATH": str(make("bin").parent), "BANGER_FIRECRACKER": "/no/such"}
    assert programs(environ, tmp_path)[1] == "$BANGER_FIRECRACKER is /no/such, which is no program"


def test_a_program_of_that_name_that_is_no_firecracker_is_refused(make, tmp_path):
    path = make("bin", says="Firework 3")
    make("bin", "jailer")
    why = programs({"PATH": str(path.parent)}, tmp_path)[1]
    assert why == f"{path} --version says 'Firework 3\\n'"


@pytest.mark.slow
def test_the_tar_for_a_test_host_has_all_that_its_tests_import(make, tmp_path):
    pair = Programs(make("bin"), make("bin", "jailer"), "1.9.1")
    testhost.write_code(tmp_path / "code.tar", pair)
    root = tmp_path / "root"
    root.mkdir()
    subprocess.run(["tar", "-x", "-f", tmp_path / "code.tar", "-C", root], check=True)
    home = root / testhost.HOME.strip("/")
    packages = next(home.glob(".venv/lib/*/site-packages"))
    say = "import banger.daemon.main, pytest, pytest_asyncio, pytest_timeout, xdist; print(pytest.__file__)"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path += sys.argv[1:]; {say}", packages, home / "src"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert Path(done.stdout.strip()).is_relative_to(packages)
    assert os.readlink(home / ".venv/bin/python") == "/usr/bin/python3"
    for name in ("firecracker", "jailer"):
        assert (root / "usr/local/bin" / name).stat().st_mode & 0o777 == 0o755
