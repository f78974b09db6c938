"""Adapters in memory that pass the same contract suites as the real ones."""
