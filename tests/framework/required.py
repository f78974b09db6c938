"""``BANGER_REQUIRE_TESTS=vm,host``: a kind of tests of which none ran is a failure, however good the reasons of the skips. Hooks for conftest."""

import os

import pytest

RAN = set()
"""Markers of the tests that ran and passed."""


def pytest_runtest_logreport(report):
    """Note what kind of test passed."""
    if report.when == "call" and report.passed:
        RAN.update(report.keywords)


def pytest_sessionfinish(session):
    """Fail the session if a kind is missing. A worker of xdist sees only its share."""
    wanted = os.environ.get("BANGER_REQUIRE_TESTS", "").split(",")
    missing = [kind for kind in wanted if kind and kind not in RAN]
    if missing and "PYTEST_XDIST_WORKER" not in os.environ:
        print(f"\nERROR: no test ran of: {', '.join(missing)}; the skips above say why")
        session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED
