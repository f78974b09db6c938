#!/usr/bin/env bash
# The tests of the real Firecracker, on any machine: banger builds a test host (a guest with KVM), makes a VM of it, runs
# the suite in there and deletes it. Arguments go to pytest, for example: scripts/testhost.sh -k jail -x
# A benchmark's name in their place runs that: scripts/testhost.sh bench/firecracker.py 5
# The programs are those of $BANGER_FIRECRACKER and $BANGER_JAILER, of PATH, or of the runtime bundle in build/runtime.
# Without them, --without-firecracker runs what needs none: the device mapper's tests.
# With --keep the test host stays, and it is said how to look into it.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
bash "$root/scripts/bootstrap.sh" dev
cd "$root"
exec .venv/bin/python -m tests.framework.testhost "$@"
