"""What the whole suite promises, in one process or in several: no kind of tests is missing, and the host has what it had before. Hooks for
conftest; with several processes they act in the one that gives out the tests, since each of the others sees its share only.
"""

import time

import pytest

from tests.framework import required
from tests.framework.inventory import inventory

PATIENCE_S = 30.0
BEFORE = pytest.StashKey[set]()
INCOMPLETE = 10
"""Exit status of a session that left something behind, or in which a kind of tests is missing: not pytest's 1, as no second try mends it."""


def _is_worker(config):
    return hasattr(config, "workerinput")


def pytest_sessionstart(session):
    """Remember what the host has."""
    if not _is_worker(session.config):
        session.config.stash[BEFORE] = inventory()


@pytest.hookimpl(trylast=True)  # behind xdist's, which ends its processes
def pytest_sessionfinish(session):
    """Fail the session if something is missing, or left behind."""
    if _is_worker(session.config):
        return
    said = []
    if missing := required.missing():
        said.append(f"no test ran of: {', '.join(missing)}; the skips above say why")
    if left := left_behind(session.config.stash[BEFORE]):
        said.append("the tests left behind:\n" + "\n".join(sorted(left)))
    for sentence in said:
        print(f"\nERROR: {sentence}")
        session.exitstatus = INCOMPLETE


def left_behind(before):
    """What the host has beyond ``before``, when what is about to end has ended."""
    end = time.monotonic() + PATIENCE_S
    while (left := inventory() - before) and time.monotonic() < end:
        time.sleep(0.2)
    return left
