#!/usr/bin/env bash
# What a VM's life takes on this host: `banger bench create` with the checkout's own banger.
#
#   scripts/bench-create.sh [options of banger bench create]
#   make bench-create ARGS="--runs 2"
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
banger=$root/.venv/bin/banger
[ -x "$banger" ] || {
    printf '%s\n' "error: $banger is not there" "" "hint: make demo" >&2
    exit 5
}
if ! "$banger" image show --format name > /dev/null 2>&1 debian; then
    "$banger" image build debian
fi
exec "$banger" bench create "$@"
