"""Fuzzers for whatever banger reads and did not write itself; docs/explanation/fuzzing.md. `scripts/fuzz.py` runs them."""
