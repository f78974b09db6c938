"""Every claim of SECURITY.md names tests that exist, or says that there is none and why."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "SECURITY.md").read_text()
FEARED = ("A guest", "The network", "Another local user", "A malicious image or bundle", "One VM through another")  # fmt: skip


def claims():
    """Claim and proof of each row."""
    part = TEXT.partition("## What banger claims")[2].partition("\n## ")[0]
    for line in part.splitlines():
        if line.startswith("| ") and not line.startswith("| claim"):
            yield [cell.strip() for cell in line.strip("|").split("|")]


@pytest.mark.parametrize(("claim", "proof"), list(claims()))
def test_a_claim_is_proved_by_a_test_that_exists_or_says_why_not(claim, proof):
    assert claim
    if proof.startswith("no test"):
        assert len(proof) > len("no test: why")
        return
    nodes = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", proof)
    assert nodes
    assert ", ".join(f"`{path}::{name}`" for path, name in nodes) == proof
    for path, name in nodes:
        text = (ROOT / path).read_text()
        assert re.search(rf"^\s*(async )?def {name}\(", text, re.MULTILINE), f"{path}::{name}"


def test_everyone_who_is_feared_has_claims():
    assert tuple(re.findall(r"^### (.*)$", TEXT, re.MULTILINE)) == FEARED
    assert len(list(claims())) > 30


def test_few_claims_are_without_a_test():
    """Who takes a proof away notices."""
    assert sum(proof.startswith("no test") for _, proof in claims()) <= 2
