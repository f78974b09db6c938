"""What fuzzers have learned is tried again in every run of the tests, without their engine: no input breaks a promise any more."""

import logging
import tempfile
import time
from pathlib import Path

import pytest

from fuzz.targets import TARGETS
from fuzz.targets.peers import close_loop

CORPUS = Path(__file__).parents[2] / "fuzz" / "corpus"
MOST_BYTES = 512 << 10
SLOWEST_S = 5.0


@pytest.fixture(autouse=True)
def in_a_place_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)
    close_loop()


@pytest.mark.parametrize("name", TARGETS)
def test_no_input_that_was_learned_breaks_a_promise(name):
    inputs = sorted((CORPUS / name).iterdir())
    assert inputs
    attempt = TARGETS[name].load()
    for path in inputs:
        began = time.process_time()  # a busy host may hold any input up
        try:
            attempt(path.read_bytes())
        except Exception as error:
            error.add_note(f"the input is {path}")
            raise
        assert time.process_time() - began < SLOWEST_S, path


def test_every_corpus_is_of_a_target_and_all_are_small():
    assert {path.name for path in CORPUS.iterdir()} == set(TARGETS)
    assert sum(path.stat().st_size for path in CORPUS.rglob("*") if path.is_file()) <= MOST_BYTES
