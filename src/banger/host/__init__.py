"""The machine: one effect and its inverse a function."""
