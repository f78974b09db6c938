"""Desired state, operations and the ledger of host effects in SQLite."""
