# shellcheck shell=bash
# What scripts/verify.sh and scripts/verify-void.sh share. Sourced by them.
set -euo pipefail

# The head of the script that sources this.
usage() { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"; }

# find_banger ROOT: the program that $BANGER names, or ROOT's own, or that of PATH.
find_banger() {
    if [ -n "${BANGER:-}" ]; then
        printf '%s\n' "$BANGER"
    elif [ -x "$1/.venv/bin/banger" ]; then
        printf '%s\n' "$1/.venv/bin/banger"
    else
        echo banger
    fi
}

# healthy SECONDS: the VM is ready by then; on a busy host a guest may be slow to answer once. Needs $banger, $name and run.
healthy() {
    local end=$((SECONDS + $1))
    # shellcheck disable=SC2154  # the script's that sources this
    until timeout 60 "$banger" vm health "$name" > /dev/null 2>&1 < /dev/null || [ "$SECONDS" -ge "$end" ]; do sleep 1; done
    run 60 "$banger" vm health "$name"
}

# What guests wrote may hold anything: only what can be printed is shown.
printable() { tr -cd '\11\12\40-\176'; }
