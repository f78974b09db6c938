#!/usr/bin/env bash
# Install bangerd's systemd user units, pointing at this checkout, or take them back.
#
#   scripts/user-units.sh install|remove DIRECTORY
set -euo pipefail

action=${1:-}
target=${2:-}
root=$(cd "$(dirname "$0")/.." && pwd)
if [ -z "$target" ] || { [ "$action" != install ] && [ "$action" != remove ]; }; then
    printf 'usage: scripts/user-units.sh install|remove DIRECTORY\n' >&2
    exit 2
fi

# Without a user manager (in a container, over su) the files are written and the rest is said.
manager() { systemctl --user "$@" 2> /dev/null; }

if [ "$action" = remove ]; then
    manager disable --now bangerd.socket || true
    rm -f "$target/bangerd.socket" "$target/bangerd.service"
    manager daemon-reload || true
    printf 'removed from %s\n' "$target"
    exit 0
fi

mkdir -p "$target"
install -m 644 "$root/src/banger/daemon/systemd/bangerd.socket" "$target/bangerd.socket"
sed "s|^ExecStart=.*|ExecStart=$root/.venv/bin/bangerd|" "$root/src/banger/daemon/systemd/bangerd.service" > "$target/bangerd.service"
chmod 644 "$target/bangerd.service"
printf 'installed in %s\n' "$target"
if manager daemon-reload; then
    # A daemon that runs already holds the socket; systemd's takes its place, VMs run on.
    "$root/.venv/bin/banger" daemon stop
    manager enable --now bangerd.socket
    printf 'systemd starts bangerd now; its log: journalctl --user -u bangerd\n'
else
    printf 'hint: log in with a systemd session, then: systemctl --user enable --now bangerd.socket\n'
fi
