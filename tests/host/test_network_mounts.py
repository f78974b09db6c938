"""The network takes no mount from a host whose mounts are shared, as systemd makes them."""

import subprocess
import sys

import pytest

from banger.host import probe
from banger.host.namespaces import probe_namespaces

SCRIPT = """
import asyncio, os, shutil, sys, tempfile
from pathlib import Path
from banger.network.user import UserNetwork

def mounts():
    return sorted(line.split()[4] for line in open("/proc/self/mountinfo"))

async def main():
    directory = Path(tempfile.mkdtemp(prefix="bgn-", dir="/tmp"))
    network = UserNetwork(directory, directory, uplink=sys.argv[1])
    before = mounts()
    assert any("shared:" in line for line in open("/proc/self/mountinfo")), "nothing is shared here"
    await network.start()
    attached = await network.attach(network.plan_lease("a" * 12, []), "user", named=False)
    during = mounts()
    os.close(attached.tap_fd)
    await network.stop(if_unused=False)
    await network.close()
    shutil.rmtree(directory)
    assert during == before, set(before) ^ set(during)
    assert mounts() == before

asyncio.run(main())
"""


@pytest.mark.parametrize("uplink", ["slirp4netns", "pasta"])
def test_a_host_with_shared_mounts_keeps_them_all(uplink):
    for answer in (probe.root(), probe_namespaces()):
        if not answer:
            pytest.skip(f"{answer.why}; {answer.hint}")
    # Shared among themselves, and not with this host's, where others mount things meanwhile.
    shared = ["unshare", "--mount", "--propagation", "private", "--", "unshare", "--mount", "--propagation", "shared", "--"]  # fmt: skip
    done = subprocess.run(
        [*shared, sys.executable, "-c", SCRIPT, uplink], capture_output=True, text=True, timeout=180, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
