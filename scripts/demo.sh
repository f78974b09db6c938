#!/usr/bin/env bash
# What banger does, in a minute: an image (built once), a VM with its stages, a command inside over SSH, and nothing left.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
banger=$root/.venv/bin/banger
name=demo-$$

started=no
"$banger" daemon status > /dev/null 2>&1 || started=yes
finish() {
    status=$?
    if [ "$started" = yes ]; then
        "$banger" daemon stop > /dev/null 2>&1 || true
    fi
    if [ "$status" -ne 0 ]; then
        printf '\nhint: see what went wrong: %s daemon logs\n' "$banger" >&2
    fi
    exit "$status"
}
trap finish EXIT

printf '\n$ banger image build debian\n' >&2
"$banger" image build debian > /dev/null
printf '\n$ banger run --rm -- …\n' >&2
"$banger" run --rm --name "$name" --memory 1G -- \
    'uname -srm; grep PRETTY_NAME /etc/os-release; systemctl is-system-running --wait; df -h /root | tail -n 1'
printf '\nThat was a VM; it is gone. Your own: %s run\n' "$banger" >&2
