#!/bin/sh
# Runs once, inside the new root, for an image whose recipe has tools (of any distribution): mise learns of what was
# unpacked to /opt, installs what it is to install itself, and is part of root's shells. Reads lines of
# "source name version" beside it; removes both.
set -eu

here=/usr/lib/banger
data=/root/.local/share/mise
export HOME=/root USER=root MISE_YES=1 MISE_NO_ANALYTICS=1
cd /root

if command -v mise > /dev/null; then
    while read -r source name version; do
        [ "$name" != mise ] || continue
        status=0
        if [ "$source" = npm ]; then
            mise link "$name@$version" "/opt/$name/$version" < /dev/null &&
                MISE_OFFLINE=1 mise use --global --pin "$name@$version" < /dev/null || status=$?
        else
            mise use --global --pin "$name@$version" < /dev/null || status=$?
        fi
        if [ "$status" != 0 ]; then
            echo "banger: tool $name failed with status $status"
            exit "$status"
        fi
    done < "$here/tools.list"
    mkdir -p "$data/shims"
    mise reshim

    # Interactive shells follow the directory that one is in; all others find the shims by PATH.
    cat >> /etc/bash.bashrc << 'BASHRC'

# mise: the tools of the directory that one is in
if [ -n "${PS1-}" ] && [ "$(id -u)" = 0 ] && command -v mise > /dev/null; then
    eval "$(mise activate bash)"
fi
BASHRC
    printf 'PATH="%s/shims:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"\n' "$data" >> /etc/environment
fi

# A service of one of the tools: the unit of systemd, or the directory of runit, that the payload has brought.
if [ -f /etc/systemd/system/opencode.service ]; then
    mkdir -p /etc/systemd/system/multi-user.target.wants
    ln -sf ../opencode.service /etc/systemd/system/multi-user.target.wants/opencode.service
fi
if [ -d /etc/sv/opencode ]; then
    mkdir -p /etc/runit/runsvdir/default
    ln -sf /etc/sv/opencode /etc/runit/runsvdir/default/opencode
fi

# Caches, downloads and what only this build's mise needs to know.
rm -rf /root/.cache /root/.local/state/mise "$data/downloads" /tmp/mise-* "$here/tools.list" "$here/tools.sh"
