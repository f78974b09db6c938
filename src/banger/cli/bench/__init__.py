"""Benchmarks that a user runs on the own host."""
