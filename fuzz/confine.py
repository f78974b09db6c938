"""Gives up the right to write anywhere but in one directory, for good."""

from __future__ import annotations

import os
import tempfile

from banger.host import landlock, syscalls


def confine(directory: str) -> None:
    """This process, by Landlock; temporary files are made in ``directory`` too. OSError if the kernel has no Landlock."""
    tempfile.tempdir = os.path.join(directory, "tmp")  # noqa: PTH118  tempfile takes words
    os.makedirs(tempfile.tempdir, exist_ok=True)  # noqa: PTH103
    syscalls.forbid_new_privileges()
    rules = landlock.Ruleset(tcp=True)
    rules.allow("/", landlock.READ_FILE | landlock.READ_DIR)
    rules.allow("/dev/null", landlock.WRITE_FILE)
    rules.allow(directory, landlock.fs_rights(landlock.abi()))
    rules.enforce()
