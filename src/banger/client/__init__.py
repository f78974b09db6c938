"""Blocking client of the daemon; imports no asyncio."""
