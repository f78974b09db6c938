"""A network's namespaces with TAPs that wait in them to be opened by name, as a holder keeps them."""

import contextlib
import os
import subprocess

import pytest

from banger.host.namespaces import NamespacePair, make, small_python
from tests.framework import jail


@contextlib.contextmanager
def network_with(*taps):
    """The namespaces' descriptors; skips where no TAP can be made."""
    opened = "".join(f"os.close(open_tap({tap!r}, persist=True)); " for tap in taps)
    code = f"from banger.host.tun import open_tap; import os; {opened}print(flush=True); input()"
    python = [
        *small_python("banger.host.tun")[:4],
        f"import sys; sys.path.insert(0, {str(jail.ROOT / 'src')!r}); {code}",
    ]
    holder = subprocess.Popen(
        [*make(), *python], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    if not holder.stdout.readline():
        pytest.skip(f"no TAP: {holder.communicate()[1].decode().splitlines()[-1]}")
    pair = [os.open(f"/proc/{holder.pid}/ns/{kind}", os.O_RDONLY) for kind in ("user", "net")]
    try:
        yield NamespacePair(*pair)
    finally:
        for descriptor in pair:
            os.close(descriptor)
        holder.communicate(b"\n")
