"""``BANGER_REQUIRE_TESTS=vm,host``: a kind of tests of which none ran is a failure, however good the reasons of the skips."""

import os

RAN = set()
"""Markers of the tests that ran and passed."""


def pytest_runtest_logreport(report):
    """Note what kind of test passed."""
    if report.when == "call" and report.passed:
        RAN.update(report.keywords)


def missing():
    """Kinds that were wanted and of which no test passed."""
    wanted = os.environ.get("BANGER_REQUIRE_TESTS", "").split(",")
    return [kind for kind in wanted if kind and kind not in RAN]
