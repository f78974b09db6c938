#!/usr/bin/env bash
# What banger does, in a minute: an image (built once), a VM with its stages, commands inside over SSH, and nothing left.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
banger=$root/.venv/bin/banger
name=demo-$(od -An -N3 -tx1 /dev/urandom | tr -d ' ')

say() { printf '%s\n' "$*" >&2; }

started=no
"$banger" daemon status > /dev/null 2>&1 || started=yes
finish() {
    status=$?
    trap - EXIT INT TERM
    if "$banger" vm show "$name" > /dev/null 2>&1; then
        "$banger" vm delete "$name" > /dev/null 2>&1 || say "hint: delete what is left: $banger vm delete $name"
    fi
    if [ "$started" = yes ]; then
        "$banger" daemon stop > /dev/null 2>&1 || true
    fi
    if [ "$status" -ne 0 ]; then
        say ""
        say "hint: the daemon's own words: $banger daemon logs"
    fi
    exit "$status"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

say ""
say '$ banger image build debian'
"$banger" image build debian > /dev/null
say ""
say "\$ banger run --rm --name $name --wait agent -- …   # opencode starts meanwhile"
# shellcheck disable=SC2016  # the guest expands it
"$banger" run --rm --name "$name" --memory 1G --work-size 2G --wait agent -- sh -c '
uname -a
grep PRETTY_NAME /etc/os-release
echo "systemd: $(systemctl is-system-running --wait)"
df -h / /root'
say ""
say "That was a VM; it is gone. One of your own: $banger run"
