"""Bytes and streams."""
